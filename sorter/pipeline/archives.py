"""Archives that were dropped: read beside everything else, a bunch of entries a turn, and removed when all is safe.

Two are read at a time at most: a small one, and a large one that may take hours. The images of an archive go through
`Filing` like any others; what is no image goes to quarantine by itself. Only when every entry is in the store or in
quarantine, the archive is removed. One that cannot be read to its end is set aside whole, besides what was read of it.
After a crash it is simply read again: what was taken before is there already.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from sorter.spool import Spool
from sorter.take.archive import End, Unpacking
from sorter.take.filing import NOT_THAT_FILE, Candidate, Filed

SMALL = 64 << 20
"""Bytes up to which an archive is small: it need not wait for the large ones."""

MOST_WAITING = 16
"""Archives of one size that wait here; others are offered again, so that they do not stand in the way of images."""

PAUSE = 5.0
"""Seconds until entries, or an archive, that could not be taken (a full disk) are tried again."""

LOOK = 0.05
"""Seconds between looks at what the child has read."""

File: TypeAlias = Callable[[list[Candidate]], tuple[list[Filed], list[Candidate]]]
"""Files what it is given: what was filed, and what has to be tried again later."""


@dataclass(frozen=True, slots=True)
class Read:
    """An archive has been read. `how` as in `sorter.take.archive.End`; `candidate` is the archive's own."""

    candidate: Candidate
    end: End
    entries: int = 0
    images: int = 0
    known: int = 0  # images that were there already
    aside: int = 0

    @property
    def drop(self) -> str:
        """Its entries' drop: an archive is one of its own, wherever it lies."""
        return self.candidate.origin


@dataclass(slots=True)
class _Lane:
    """One archive that is being read, and those that wait for it."""

    spool: Spool
    waiting: deque[Candidate] = field(default_factory=deque)
    archive: Candidate | None = None
    fd: int = -1
    unpacking: Unpacking | None = None
    broken: End | None = None  # then the archive itself is being copied, to be set aside
    pending: list[Candidate] = field(default_factory=list)  # entries that could not be filed yet
    paused: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    lost: bool = False  # an entry vanished before it was filed: all has to be read again

    @property
    def all(self) -> list[Candidate]:
        return [*([self.archive] if self.archive is not None else []), *self.waiting]

    # --- a turn -------------------------------------------------------------------------------------------------

    def turn(self, now: float, file: File) -> Iterator[Filed | Read]:
        if self.archive is None and self.waiting:
            self.archive = self.waiting.popleft()
            self.counts, self.broken, self.lost = Counter(), None, False
            yield from self._start(copy=False)
        if self.archive is None or self.unpacking is None or now < self.paused:
            return
        bunch = self.pending or [self._entry(path, name) for path, name in self.unpacking.entries(now)]
        filed, self.pending = file(bunch) if bunch else ([], [])
        for each in filed:
            if self.broken is None:
                self.counts[each.outcome] += 1
            self.lost = self.lost or each.outcome == "changed"
            if each.outcome != "changed":
                yield each
        if self.pending:
            self.paused = now + PAUSE
        elif self.unpacking.end is not None:
            yield from self._finish(self.unpacking.end, now)

    def _start(self, *, copy: bool) -> Iterator[Read]:
        assert self.archive is not None
        assert self.archive.door is not None
        try:
            self.fd = self.archive.door.open()
        except OSError as error:
            changed = error.errno in NOT_THAT_FILE  # or went, while it waited for its turn
            why = "it is not what it was" if changed else error.strerror or "it cannot be opened"
            yield self._over(End("truncated" if changed else "later", why))
            return
        try:
            self.unpacking = Unpacking(self.spool.files, self.spool.taking, self.fd, copy=copy)
        except OSError as error:
            yield self._over(End("later", error.strerror or "it cannot be read"))

    def _entry(self, path: Path, name: str) -> Candidate:
        """A file that came out of the archive, as one to take."""
        assert self.archive is not None
        archive = self.archive
        if self.broken is not None:
            return Candidate(path, archive.source, origin=archive.origin, aside=self.broken.why)
        origin = f"{archive.origin}/{name}" if name else archive.origin
        return Candidate(path, replace(archive.source, drop=archive.origin), origin=origin)

    def _finish(self, end: End, now: float) -> Iterator[Read]:
        """Every entry that was read is safe."""
        assert self.archive is not None
        if self.lost or end.how == "later":
            self.paused = now + PAUSE
            yield self._over(End("later", end.why or "an entry went away before it was taken"))
        elif self._changed():
            yield self._over(End("truncated", "it is still changing"))
        elif end.how == "truncated" and not self.archive.final:
            yield self._over(end)
        elif self.broken is not None and end.how == "whole":
            self._remove()
            yield self._over(self.broken)
        elif self.broken is not None:  # there is no copy of it in quarantine
            self.paused = now + PAUSE
            yield self._over(End("later", f"it cannot be set aside ({end.why})"))
        elif end.how == "whole" and self.counts:
            self._remove()
            yield self._over(end)
        else:
            self.close()
            self.broken = End("broken", end.why or "an archive without a file in it", end.other)
            yield from self._start(copy=True)

    def _changed(self) -> bool:
        assert self.archive is not None
        if self.archive.copy is not None:
            return False
        info = self.spool.files.stat(self.fd)
        return (info.st_size, info.st_mtime_ns) != self.archive.found

    def _remove(self) -> None:
        """The archive goes from where it was dropped; one that may not be removed is read all the same."""
        assert self.archive is not None
        assert self.archive.door is not None
        try:
            self.archive.door.remove()
        except OSError:
            return

    def _over(self, end: End) -> Read:
        assert self.archive is not None
        counts = self.counts
        read = Read(self.archive, end, counts.total(), counts["new"], counts["same"], counts["aside"])
        self.close()
        self.archive = None
        return read

    def close(self) -> None:
        if self.unpacking is not None:
            self.unpacking.close()
        if self.fd >= 0:
            self.spool.files.close(self.fd)
        self.unpacking, self.fd = None, -1


class Archives:
    """All archives that were dropped and not read yet."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._small, self._large = _Lane(spool), _Lane(spool)

    @property
    def lanes(self) -> Sequence[_Lane]:
        return self._small, self._large

    def add(self, candidate: Candidate) -> bool:
        """Read this one when its turn comes; False where too many wait already."""
        lane = self._small if candidate.found[0] <= SMALL else self._large
        if len(lane.waiting) >= MOST_WAITING:
            return False
        inside = candidate.path.is_relative_to(self._spool.root)
        path = os.path.relpath(candidate.path, self._spool.root) if inside else str(candidate.path)
        origin = candidate.origin or path
        lane.waiting.append(replace(candidate, origin=origin))
        return True

    def of(self, drop: str) -> int:
        """How many archives of this drop are still to be read."""
        return sum(each.source.drop == drop for lane in self.lanes for each in lane.all)

    def turn(self, now: float, file: File) -> Iterator[Filed | Read]:
        """A bunch of entries of each archive that is being read, filed; and what was read to its end by that."""
        for lane in self.lanes:
            yield from lane.turn(now, file)

    def next(self, now: float) -> float | None:
        """When to call `turn` again, in the time of `now`; None while there is nothing to read."""
        times = [max(now + LOOK, lane.paused) for lane in self.lanes if lane.all]
        return min(times, default=None)

    def stop(self) -> None:
        """End the children; what they were reading is read again by the next life."""
        for lane in self.lanes:
            lane.close()
