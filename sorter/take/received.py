"""What the receiver tells the sorter: the arrivals files of its segments, followed like a log.

A receiving process writes `received/<worker>/<segment>/arrivals.jsonl` and holds its flock for as long as the segment
is open. A line says what was stored, and which associations were opened, released, aborted. A segment whose lock is
free but which was never closed belonged to a process that died: its associations are lost. The lines are a quick hint
and the evidence of associations; that no file is missed is the folder's own listing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sorter.durable import PART, Files
from sorter.model import Source
from sorter.take.filing import Candidate

ARRIVALS = "arrivals.jsonl"


@dataclass(frozen=True, slots=True)
class Ended:
    """An association ended: "released", "aborted" or "lost"."""

    association: str
    how: str


@dataclass(slots=True)
class _Segment:
    path: Path
    offset: int = 0
    rest: bytes = b""
    sources: dict[str, Source] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    offered: set[str] = field(default_factory=set)
    heard: bool = False  # what is written to its arrivals file is told of
    closed: bool = False  # its last line says so
    dead: bool = False  # its process ended without closing it
    listed: bool = False  # its files were listed since it was over

    @property
    def over(self) -> bool:
        return self.closed or self.dead


class Received:
    """Follows received/. `look` may be called as often as there is a hint; it reads only what is new.

    `hear` is asked, for the arrivals file of each segment, until it says that hints will come when that is written to.
    """

    def __init__(self, folder: Path, files: Files, hear: Callable[[Path], bool] = lambda _: True) -> None:
        self._folder, self._files, self._hear = folder, files, hear
        self._segments: dict[Path, _Segment] = {}
        self._news: list[Candidate | Ended] = []  # found, and not told yet: a look may fail in the middle
        self._unread: dict[Path, str] = {}  # folders that could not be looked at, or removed, and why

    def is_open(self, association: str) -> bool:
        return any(association in segment.open for segment in self._segments.values())

    def open_sources(self) -> list[Source]:
        """Who has an association open, once for each."""
        return [segment.sources[each] for segment in self._segments.values() for each in segment.open]

    def problems(self) -> list[str]:
        """Sentences on what could not be looked at, or removed; [] where all could."""
        return [f"{path} cannot be {why}" for path, why in self._unread.items()]

    def look(self, *, relist: bool = False) -> list[Candidate | Ended]:
        """New finished files and the ends of associations, in the order they happened.

        With `relist` the folders of open segments are listed too, for files whose line could not be written. One that
        may not be read, or that a bad disk does not give, keeps nobody from the others.
        """
        self._unread = {}
        paths = self._paths()
        for path in [each for each in self._segments if each not in paths and each.parent not in self._unread]:
            self._lose(self._segments.pop(path))  # somebody removed it
        for path in paths:
            with self._apart(path):
                self._look_at(self._segments.setdefault(path, _Segment(path)), relist=relist)
        news, self._news = self._news, []
        return news

    @contextlib.contextmanager
    def _apart(self, folder: Path, what: str = "looked at") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._unread[folder] = f"{what}: {error.strerror or 'error'}"

    def _look_at(self, segment: _Segment, *, relist: bool) -> None:
        segment.heard = segment.heard or self._hear(segment.path / ARRIVALS)  # before reading: no line is missed
        told = self._follow(segment)
        if relist or not told or (segment.over and not segment.listed):
            with contextlib.suppress(FileNotFoundError):  # its receiver could not use it, and removed it
                self._list(segment)

    def tidy(self) -> None:
        """Remove the segments that are over and empty."""
        for path, segment in list(self._segments.items()):
            with self._apart(path, "removed"):
                if segment.over and segment.listed and self._remove(path):
                    del self._segments[path]

    def _paths(self) -> list[Path]:
        files, found = self._files, []
        for worker in files.names(self._folder):
            with self._apart(folder := self._folder / worker):
                if files.is_folder(folder):
                    found += [folder / name for name in files.names(folder)]
        return [path for path in found if files.is_folder(path)]

    def _lose(self, segment: _Segment) -> None:
        self._news += [Ended(association, "lost") for association in sorted(segment.open)]
        segment.open.clear()

    def _follow(self, segment: _Segment) -> bool:
        """Read what is new; False where there is no arrivals file."""
        try:
            fd = self._files.open(segment.path / ARRIVALS, os.O_RDONLY | os.O_NOFOLLOW)  # to write would wake us again
        except FileNotFoundError:
            return False
        try:
            dead = not segment.over and self._writer_is_dead(fd)  # before reading: nothing can be added afterwards
            while data := self._files.pread(fd, 1 << 20, segment.offset):
                *lines, rest = (segment.rest + data).split(b"\n")
                for raw in lines:
                    self._apply(segment, raw)
                segment.offset, segment.rest = segment.offset + len(data), rest  # else they are read again
        finally:
            self._files.close(fd)
        segment.dead = segment.dead or (dead and not segment.closed)
        if segment.dead:
            self._lose(segment)
        if segment.over:
            segment.open.clear()  # those still open when it was closed go on in the next one
        return True

    def _writer_is_dead(self, fd: int) -> bool:
        if self._files.stat(fd).st_size == 0:  # it may just have been made, and be locked in a moment
            return False
        if not self._files.lock(fd):
            return False
        self._files.unlock(fd)
        return True

    def _apply(self, segment: _Segment, raw: bytes) -> None:
        try:
            entry = json.loads(raw)
            if isinstance(entry, dict):
                self._take_note(segment, entry)
        except (ValueError, KeyError):
            return  # a line that a power cut, or a bad disk, left of another; the listing finds its file

    def _take_note(self, segment: _Segment, entry: Mapping[str, Any]) -> None:
        association = str(entry.get("association", ""))
        match entry.get("event"):
            case "opened":
                segment.sources[association] = Source(
                    calling=entry["calling"],
                    called=entry["called"],
                    address=entry["address"],
                    association=association,
                )
                segment.open.add(association)
            case "stored":
                self._offer(segment, str(entry["file"]), segment.sources.get(association, Source()))
            case "released" | "aborted" | "lost":
                segment.open.discard(association)
                self._news.append(Ended(association, entry["event"]))
            case "closed":
                segment.closed = True

    def _offer(self, segment: _Segment, name: str, source: Source) -> None:
        if name in segment.offered or os.sep in name:
            return
        path = segment.path / name
        if self._files.exists(path):
            segment.offered.add(name)
            self._news.append(Candidate(path, source))

    def _list(self, segment: _Segment) -> None:
        """The folder itself: what its arrivals file did not say. Parts of a process that is gone go too."""
        for name in self._files.names(segment.path):
            if not name.endswith(PART) and name != ARRIVALS:
                association = name.rpartition("-")[0]
                self._offer(segment, name, segment.sources.get(association, Source()))
            elif segment.over and name.endswith(PART):
                self._files.unlink(segment.path / name)
        segment.listed = segment.over

    def _remove(self, path: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):  # a person was first, in part or in whole
            if any(name != ARRIVALS for name in self._files.names(path)):
                return False
            with contextlib.suppress(FileNotFoundError):
                self._files.unlink(path / ARRIVALS)
            self._files.rmdir(path)
        return True
