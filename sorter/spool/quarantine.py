"""Quarantine: what could not be taken as an image, each file with the reason in words, and with the path it came by.

    quarantine/<day>/<nnnn>/<path it came by>       the file
    quarantine/<day>/<nnnn>/<path it came by>.reason.json

The path consists of safe components, so it may differ from the one in the reason. A folder <nnnn> takes `PER_FOLDER`
files at most, however many come in a day, so no folder below it ever holds more than twice as many entries. Nothing is
removed from here but by `put_back`, after the file is safe in the place it goes to.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from sorter.durable import PART, Files
from sorter.naming import NAME_LIMIT, NOTHING, safe_component
from sorter.spool.lines import line, now

REASON = ".reason.json"

PER_FOLDER = 4000
"""Files in one numbered folder, together with their reasons well below 10,000 entries."""

_PATH_LIMIT = 1000  # bytes of the path that is kept; what is beyond is in the reason alone
_MOST_FOLDERS = 32  # of it: a new one costs a sync, and incoming/ is to look into them when it is put back
_MOST_NUMBERED = 8  # files of one path that are told apart by a number
_AGAIN = "again-"
_SYNC_EVERY = 256  # files put back between two syncs


def is_retry(drop: str) -> bool:
    """Is this what `put_back` calls the folder in incoming/ that it gives files back in?"""
    return re.fullmatch(_AGAIN + "[0-9a-f]{12}", drop) is not None


@dataclass(frozen=True, slots=True)
class Aside:
    """One file in quarantine. `name` is its path below quarantine/; `origin` where it came from, below the spool."""

    name: str
    path: Path
    reason: str
    origin: str
    at: str


@dataclass(slots=True)
class Quarantine:
    """The folder quarantine/ of a spool."""

    root: Path
    files: Files
    _day: str = ""
    _number: int = 1
    _filled: int = 0

    # --- setting aside ------------------------------------------------------------------------------------------

    def set_aside(self, path: Path, reason: str, origin: str) -> Path:
        """Move a synced file of this file system into quarantine, with its reason; returns where it lies now.

        The same file set aside twice, after a crash in between, lies there once.
        """
        folders, name = _safe_path(origin)
        folder = self._folder(self._shard(), folders)
        places = self._places(folder / name, path)
        target = next(each for each in places if not self.files.exists(each) or self._equal(each, path))
        self._write_reason(target, line({"reason": reason, "origin": origin, "at": now()}))
        try:
            self.files.link(path, target)
        except FileExistsError:
            pass  # the same bytes: no other's place was chosen
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(path, target)
        self._filled += 1
        self.files.fsync_folder(folder)
        self.files.unlink(path)
        return target

    def _shard(self) -> Path:
        """Today's folder that still has room. What it holds is counted once in a life."""
        day = datetime.date.today().isoformat()
        if day != self._day:
            numbers = [int(name) for name in self._names(self.root / day) if name.isdecimal()]
            self._day, self._number = day, max(numbers, default=1)
            self._filled = sum(1 for _ in self._walk(self.root / day / f"{self._number:04d}"))
        if self._filled >= PER_FOLDER:
            self._number, self._filled = self._number + 1, 0
        return self.root / day / f"{self._number:04d}"

    def _names(self, folder: Path) -> list[str]:
        try:
            return self.files.names(folder)
        except FileNotFoundError:
            return []

    def _folder(self, folder: Path, parts: list[str]) -> Path:
        """The folder below `folder`, made where it is missing; another name where a file has one of its parts."""
        for part in parts:
            places = _numbered(folder / part)
            folder = next(each for each in places if self.files.is_folder(each) or not self.files.exists(each))
        self.files.make_folders(folder)
        return folder

    def _places(self, place: Path, path: Path) -> Iterator[Path]:
        """Where the file of `path` may lie. An archive may have a hundred thousand files of one name: each of them is
        not to be compared with all those before.
        """
        yield from islice(_numbered(place), _MOST_NUMBERED)
        digest = hashlib.sha256()
        with self.files.opened(path) as fd:
            for piece in self.files.chunks(fd):
                digest.update(piece)
        yield from _numbered(place.with_name(f"{digest.hexdigest()[:16]}-{place.name}"))

    def _equal(self, one: Path, other: Path) -> bool:
        """Regular files of the same bytes."""
        first, second = self.files.stat(one), self.files.stat(other)
        if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino):
            return True
        if self.files.is_folder(one) or first.st_size != second.st_size:
            return False
        with self.files.opened(one) as here, self.files.opened(other) as there:
            return all(piece == self.files.read(there, len(piece)) for piece in self.files.chunks(here))

    def _write_reason(self, target: Path, note: bytes) -> None:
        """Durable with the file's own name. What a crash tears is only the words, which `entries` can do without."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with self.files.opened(target.with_name(target.name + REASON), flags) as fd:
            self.files.write_all(fd, note)
            self.files.fsync(fd)

    def _copy(self, source: Path, target: Path) -> None:
        part = target.with_name(f".{target.name[-200:]}{PART}")  # no safe name begins with a dot
        with (
            self.files.opened(source, os.O_RDONLY | os.O_NOFOLLOW) as reading,
            self.files.opened(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW) as writing,
        ):
            self.files.copy(reading, writing)
            self.files.fsync(writing)
        self.files.rename(part, target)

    # --- looking ------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[Aside]:
        """Everything that was set aside, oldest day first."""
        for path in self._walk(self.root):
            note = self._note(path)
            yield Aside(
                os.path.relpath(path, self.root),
                path,
                str(note.get("reason", "no reason was recorded")),
                str(note.get("origin", "")),
                str(note.get("at", "")),
            )

    def count(self, below: str = "") -> int:
        """How many files were set aside, whose path here has `below` in it; no reason is read for it."""
        return sum(1 for path in self._walk(self.root) if below in str(path))

    def _note(self, path: Path) -> Mapping[str, Any]:
        try:
            note = json.loads(self.files.read_file(path.with_name(path.name + REASON), limit=1 << 20))
        except (FileNotFoundError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Files, without reasons and parts, by name."""
        try:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in self.files.entries(folder))
        except FileNotFoundError:
            return
        for name, is_folder in found:
            if is_folder:
                yield from self._walk(folder / name)
            elif not name.endswith(REASON) and not name.startswith("."):
                yield folder / name

    # --- trying again -------------------------------------------------------------------------------------------

    def put_back(self, asides: Iterable[Aside], incoming: Path) -> int:
        """Give files back to incoming/, under the path they came by, to be looked at again; returns how many.

        They are linked there and the folders synced before they go from here: a crash leaves a file in both places.
        """
        done, rest = 0, iter(asides)
        while batch := list(islice(rest, _SYNC_EVERY)):
            base = incoming / f"{_AGAIN}{os.urandom(6).hex()}"
            folders = set()
            for aside in batch:
                place = base / _without_prefix(aside.name)
                self.files.make_folders(place.parent)
                place = next(each for each in _numbered(place) if not self.files.exists(each))
                self.files.link(aside.path, place)
                folders.add(place.parent)
            self.files.fsync_folders(folders)
            self._let_go([aside.path for aside in batch])
            done += len(batch)
        return done

    def _let_go(self, paths: list[Path]) -> None:
        """Remove what is durable in its other place, its reason, and the folders of past days that are empty then."""
        for path in paths:
            self.files.unlink(path)
            if self.files.exists(reason := path.with_name(path.name + REASON)):
                self.files.unlink(reason)
        today = self.root / datetime.date.today().isoformat()
        for folder in {path.parent for path in paths}:
            while folder != self.root and today not in (folder, *folder.parents) and not self.files.names(folder):
                self.files.rmdir(folder)
                folder = folder.parent


def _safe_path(origin: str) -> tuple[list[str], str]:
    """Folders and name to keep a file under that came from `origin`. Of a path too long the beginning and the end."""
    parts = [_safe(part) for part in origin.split("/") if part not in ("", ".")] or [NOTHING]
    first, rest, size = parts[0], parts[1:], len(parts[0])
    kept: list[str] = []
    for part in reversed(rest):
        size += len(part.encode()) + 1
        if size > _PATH_LIMIT or len(kept) > _MOST_FOLDERS:
            kept.append("etc")
            break
        kept.append(part)
    *folders, name = [first, *reversed(kept)]
    return folders, name


def _safe(part: str) -> str:
    name = safe_component(part, limit=NAME_LIMIT) or NOTHING
    return f"{name}_" if name.endswith((REASON, PART)) else name


def _without_prefix(name: str) -> Path:
    """Of a name in quarantine the path that the file came by: without the day, the number, incoming/ and again-…/."""
    *folders, last = name.split("/")
    folders = folders[1:]
    for prefix in (str.isdecimal, "incoming".__eq__):
        folders = folders[1:] if folders and prefix(folders[0]) else folders
    while folders and folders[0].startswith(_AGAIN):
        folders = folders[1:]
    return Path(*folders, last)


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then the same with 2-, 3-, … before its name."""
    yield path
    yield from (path.with_name(f"{number}-{path.name}") for number in count(2))
