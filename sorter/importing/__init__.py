"""`sorter import`: an old archive, carried into the spool parcel by parcel. Its files are only read.

What was handed over is remembered in the spool, folder by folder, once it is durable there. So a run may end anywhere,
by Ctrl-C, kill -9 or a power cut: the next one walks the archive again, opens only what is not known yet, and goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sorter.errors import SorterError
from sorter.importing.handover import Handover, NotCopied
from sorter.importing.pace import Pace
from sorter.importing.walk import Own, Parcel, Portion, Walk
from sorter.spool import Spool
from sorter.spool.lines import line, now
from sorter.watch import Taken

__all__ = ["Import", "Pace", "Tally", "Walk"]

_LOOK_EVERY = 0.2  # seconds between looks whether a parcel was taken
_IDLE = 5.0  # seconds after which the end of a run waits no longer for a sorter that does not run


@dataclass(slots=True)
class Tally:
    """What a run did so far. Files, and their bytes."""

    copied: int = 0
    copied_size: int = 0
    handed: int = 0  # of these; the rest is in a parcel that is still being filled
    handed_size: int = 0
    known: int = 0  # handed over by an earlier run
    known_size: int = 0
    left_out: int = 0  # links and other things that are no regular files
    failed: int = 0  # files and folders that could not be read
    waiting: int = 0  # handed over and not taken yet
    sorting: bool = True  # is there a sorter that takes it?
    held: float = 0.0  # seconds that scanners had the way


@dataclass(slots=True)
class Import:
    """One run. `hear` is called often, with what was done so far."""

    spool: Spool
    pace: Pace
    hear: Callable[[Tally], None]
    again: bool = False
    own: Own = lambda *_: True  # told of the records that sorter left beside what it delivered
    run: str = field(default_factory=lambda: os.urandom(6).hex())
    tally: Tally = field(default_factory=Tally)
    first_failures: list[tuple[str, str]] = field(default_factory=list)
    _given: list[str] = field(default_factory=list)  # drops that may hold files still

    @property
    def report(self) -> Path:
        """What could not be taken, and why: one line of JSON each. For the spool's owner alone."""
        return self.spool.imports / f"{self.run}.report.jsonl"

    def __call__(self, roots: Sequence[Path]) -> Tally:
        """Carry all of it over, and wait until it is taken. SorterError: no room, or another import is running."""
        with self._alone():
            done = Taken(self.spool.imports / "done", self.spool.files)
            handover = Handover(self.spool, self.run)
            handover.clear()
            try:
                for root in roots:
                    self._carry(root, done, handover)
                self._wait(handover, at_the_end=True)
            finally:
                with contextlib.suppress(OSError):
                    handover.clear()
                self._note()
        return self.tally

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        files = self.spool.files
        files.make_folders(self.spool.imports)
        with files.opened(self.spool.imports / "lock", os.O_RDWR | os.O_CREAT) as fd:
            if not files.lock(fd):
                raise SorterError(f"another import into {self.spool.root} is running; wait for it, or end it first")
            yield

    def _carry(self, root: Path, done: Taken, handover: Handover) -> None:
        known, known_size = self.tally.known, self.tally.known_size
        walk = Walk(root, self.spool.files, frozenset() if self.again else done, self._not_taken, self.own)
        walk.keep_out_of(self.spool.root)
        for parcel in walk.parcels():
            self.tally.known, self.tally.known_size = known + walk.known, known_size + walk.known_size
            failed = self._copy(parcel, handover)
            self._wait(handover)
            if failed < parcel.marks:
                self._given.append(handover.give())
            self.tally.handed, self.tally.handed_size = self.tally.copied, self.tally.copied_size
            for portion in parcel.portions:
                _remember(done, portion, failed)
            done.keep()
        self.tally.known, self.tally.known_size = known + walk.known, known_size + walk.known_size
        self.hear(self.tally)

    def _copy(self, parcel: Parcel, handover: Handover) -> set[bytes]:
        """The marks of the files that could not be copied."""
        failed = set()
        handover.begin(parcel)
        for found in parcel.files:
            self.pace.before(found.size)
            self.tally.held = self.pace.held
            try:
                handover.copy(found)
                self.tally.copied += 1
                self.tally.copied_size += found.size
            except NotCopied as error:
                failed.add(found.mark)
                self._not_taken(found.path, str(error), failed=True)
            self.hear(self.tally)
        return failed

    def _wait(self, handover: Handover, *, at_the_end: bool = False) -> None:
        """Until the sorter has taken what it was given before; at the end not for one that does not run."""
        begun = time.monotonic()
        while left := self._left(handover):
            self.tally.waiting, self.tally.sorting = left, self.spool.is_sorting()
            self.hear(self.tally)
            if at_the_end and not self.tally.sorting and time.monotonic() - begun > _IDLE:
                return
            time.sleep(_LOOK_EVERY)
        self.tally.waiting, self.tally.sorting = 0, True

    def _left(self, handover: Handover) -> int:
        left = {drop: handover.waiting(drop) for drop in self._given}
        for drop in [drop for drop, count in left.items() if not count]:
            handover.tidy(drop)
            self._given.remove(drop)
        return sum(left.values())

    # --- what is told -------------------------------------------------------------------------------------------

    def _not_taken(self, path: str, why: str, failed: bool) -> None:
        if failed:
            self.tally.failed += 1
        else:
            self.tally.left_out += 1
        if len(self.first_failures) < 20:
            self.first_failures.append((path, why))
        self.spool.files.append(self.report, line({"path": path, "why": why}), durable=False)

    def _note(self) -> None:
        tally = self.tally
        self.spool.note(
            "import",
            run=self.run,
            files=tally.handed,
            bytes=tally.handed_size,
            known=tally.known,
            left_out=tally.left_out,
            failed=tally.failed,
            ended=now(),
        )


def _remember(done: Taken, portion: Portion, failed: set[bytes]) -> None:
    """The portion as a whole; or, where some of its files could not be copied, the others one by one."""
    if failed.isdisjoint(each.mark for each in portion.files):
        done.add(portion.mark)
        return
    for found in portion.files:
        if found.mark not in failed:
            done.add(found.mark)
