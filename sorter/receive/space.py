"""Room on the disk: how much stays free, how long the rest will do, and who is refused when it runs short.

Each step comes before the next one hurts. A day before the mark is reached, at the rate of the last hours, the log and
`status` say so. From a quarter above it on each instance waits a little, the nearer the longer. Below the mark no
association begins (a transient rejection: the scanner keeps its images and tries again), while those that are open go
on. Below an eighth of it every instance is answered 0xA700; that last part is for sorting, which moves what is here and
has to note where.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

from sorter.durable import Files
from sorter.receive.settings import Keep

log = logging.getLogger("sorter.receive")

SPACE = "space.json"
DAY = 86400.0
"""Seconds; how far ahead a warning comes, and how far back it looks."""

_HOURS = 3 * 3600.0  # seconds: a rate of late counts as well as that of the whole day, the faster of them
_LEAST_SPAN = 3600.0  # seconds that a rate is taken over at least: a first transfer is no trend
_EVERY = 600.0  # seconds between two samples
_LONGEST = 1 << 20  # bytes of the samples of a day
SHARE, MOST_BYTES, MOST_INODES = 0.05, 10_000_000_000, 100_000
"""What stays free where nothing is configured: so much of a disk, and no more than so many bytes and inodes."""

NEAR, SLOWEST = 0.25, 0.05
"""From this share above the mark on each instance waits before it is taken, at the mark so many seconds."""

LAST = 8
"""The mark's part that no instance may take."""

_BYTES, _INODES = attrgetter("free.bytes"), attrgetter("free.inodes")


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes and inodes, free or to be kept free. Zero inodes of a file system that does not count them are no limit."""

    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What was free at a time, in seconds since the epoch."""

    at: float
    free: Room


def room_of(space: os.statvfs_result) -> Room:
    """What a process without privileges may still take."""
    return Room(space.f_bavail * space.f_frsize, space.f_favail)


def mark_of(space: os.statvfs_result, keep: Keep) -> Room:
    """What stays free: as configured, else a twentieth of the disk, within reason."""
    least_bytes, least_inodes = keep.bytes, keep.inodes
    if least_bytes is None:
        least_bytes = min(MOST_BYTES, int(space.f_blocks * space.f_frsize * SHARE))
    if least_inodes is None:
        least_inodes = min(MOST_INODES, int(space.f_files * SHARE))
    return Room(least_bytes, least_inodes if space.f_files else 0)


def forecast(samples: Sequence[Sample], mark: Room) -> float | None:
    """Seconds from the last of `samples`, in order of time, until `mark` is reached; None while nothing points there.

    All that went counts, whoever took it (images are also copied, converted, delivered), and nothing that was freed
    meanwhile: that somebody tidied up yesterday does not say that it happens again.
    """
    found = list[float]()
    for window in (_HOURS, DAY):
        late = [each for each in samples if samples[-1].at - each.at <= window]
        for free, kept in ((_BYTES, mark.bytes), (_INODES, mark.inodes)):
            went = sum(max(0, free(one) - free(next_one)) for one, next_one in pairwise(late))
            if went and kept:
                span = max(late[-1].at - late[0].at, _LEAST_SPAN)
                found.append((free(late[-1]) - kept) * span / went)
    return max(0.0, min(found)) if found else None


def warning(samples: Sequence[Sample], mark: Room) -> str:
    """What a person should know of at least one sample, in a sentence; empty while there is nothing to worry about."""
    free = samples[-1].free
    if free.bytes < mark.bytes or free.inodes < mark.inodes:
        room = f"{_free(free, mark)} free for the spool, {_kept(mark)} stay free"
        return f"{room}: scanners are rejected until there is room"
    left = forecast(samples, mark)
    if left is None or left >= DAY:
        return ""
    when = f"{left / 3600:.0f} hours" if left >= 5400 else f"{left / 60:.0f} minutes"
    return f"{_free(free, mark)} free for the spool: at the rate of the last hours scanners will be rejected in {when}"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What `status` knows of the spool's disk: free now, to stay free, and seconds until that is all (None: no end)."""

    free: Room
    mark: Room
    seconds: float | None

    def __str__(self) -> str:
        room = f"{_free(self.free, self.mark)} free, of which {_kept(self.mark)} stay free"
        if self.seconds is None:
            return room
        days = f"{self.seconds / DAY:.0f} days" if self.seconds >= 2 * DAY else f"{self.seconds / 3600:.0f} hours"
        return f"{room}; as fast as it fills at present, that will do for {days}"


def outlook(received: Path, files: Files, keep: Keep, now: float) -> Outlook | None:
    """The forecast as it is now; None where the disk cannot be asked."""
    try:
        space = files.space(received)
    except OSError:
        return None
    free, mark = room_of(space), mark_of(space, keep)
    return Outlook(free, mark, forecast([*_read(received, files, now), Sample(now, free)], mark))


def _free(free: Room, mark: Room) -> str:
    """What is free, in words; also that no inode is, where some are to stay free."""
    return _amount(free.bytes, free.inodes if free.inodes or mark.inodes else None)


def _kept(mark: Room) -> str:
    return _amount(mark.bytes, mark.inodes or None)


def _amount(size: int, inodes: int | None) -> str:
    said = "" if inodes is None else f" and {inodes:,} inodes"
    return f"{size / 1e9:.{1 if size >= 1e9 else 3}f} GB{said}"


def _pause(free: Room, mark: Room) -> float:
    """The nearer to the mark, the slower: nothing from a quarter above it on, `SLOWEST` seconds an instance at it."""
    both = ((free.bytes, mark.bytes), (free.inodes, mark.inodes))
    above = [(have - kept) / (kept * NEAR) for have, kept in both if kept]
    return SLOWEST * (1.0 - max(0.0, min([1.0, *above])))


class Gauge:
    """Looked at by a worker about once a second and every few instances, before each once room is short."""

    def __init__(self, place: Path, files: Files, keep: Keep) -> None:
        self._place, self._files, self._keep = place, files, keep
        self.short = False  # no association may begin
        self.out = False  # no instance is taken
        self.pause = 0.0  # seconds that each instance is to wait: room gets scarce

    def look(self) -> None:
        try:
            space = self._files.space(self._place)
        except OSError:
            return  # whatever is wrong there, writing says it better
        free, mark = room_of(space), mark_of(space, self._keep)
        short = free.bytes < mark.bytes or free.inodes < mark.inodes
        if short != self.short:
            log.error(
                "%s free; %s", _free(free, mark), "no association begins" if short else "associations begin again"
            )
        self.short = short
        self.pause = _pause(free, mark)
        self.out = free.bytes < mark.bytes // LAST or free.inodes < mark.inodes // LAST


class Ledger:
    """Samples of the last day, in `received`/space.json: a forecast survives a restart. For one process alone."""

    def __init__(self, received: Path, files: Files, keep: Keep) -> None:
        self._received, self._files, self._keep = received, files, keep
        self._samples: list[Sample] | None = None  # read when the folder is sure to be there
        self._said = ""

    def note(self, now: float) -> None:
        """May be called as often as wanted: takes a sample when it is time, and says what follows from all of them."""
        if self._samples is None:
            self._samples = _read(self._received, self._files, now)
        if self._samples and 0 <= now - self._samples[-1].at < _EVERY:
            return
        try:
            space = self._files.space(self._received)
            self._samples = [*_of_the_day(self._samples, now), Sample(now, room_of(space))]
            content = json.dumps([asdict(each) for each in self._samples]).encode()
            self._files.write_file(self._received / SPACE, content, durable=False)
        except OSError:
            return  # a full or broken disk: the workers feel it, and say so
        says = warning(self._samples, mark_of(space, self._keep))
        if says and not self._said:  # once, not with every new number in it
            log.warning("%s", says)
        self._said = says


def told(received: Path, files: Files, keep: Keep, now: float) -> str:
    """The warning for `status`, of what the receiver noted and of what is free now; empty where there is none."""
    try:
        space = files.space(received)
    except OSError:
        return ""
    return warning([*_read(received, files, now), Sample(now, room_of(space))], mark_of(space, keep))


def _read(received: Path, files: Files, now: float) -> list[Sample]:
    """A cache: what cannot be read counts as nothing."""
    try:
        found = json.loads(files.read_file(received / SPACE, limit=_LONGEST))
        samples = [Sample(float(each["at"]), Room(**each["free"])) for each in found]
        return sorted(_of_the_day(samples, now), key=lambda each: each.at)
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _of_the_day(samples: Sequence[Sample], now: float) -> list[Sample]:
    return [each for each in samples if 0 <= now - each.at <= DAY]
