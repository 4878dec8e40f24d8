"""The way in: what the receiver stored and what others dropped, in order, in batches that keep the rest moving."""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from sorter.model import Source
from sorter.take.filing import Candidate, Filed, Filing
from sorter.take.received import Ended, Received
from sorter.watch import Incoming, Ready

BATCH = 128
"""Files taken in one go: one sync of the folders serves them all, and a large one delays the others little."""

PAUSE = 5.0
"""Seconds until a file that could not be taken (a full disk, an error of reading) is tried again."""

RELIST = 60.0
"""Seconds between listings of the folders themselves: the scan is the truth, the arrivals file a hint."""


@dataclass(frozen=True, slots=True)
class _Door:
    """The way to one ready file: through `Incoming`, which follows no link."""

    incoming: Incoming
    ready: Ready

    def open(self) -> int:
        return self.incoming.open(self.ready)

    def remove(self) -> bool:
        return self.incoming.remove(self.ready)


@dataclass(frozen=True, slots=True)
class Whole:
    """Every file of this drop has been taken or set aside."""

    drop: str


@dataclass(slots=True)
class Intake:
    """Everything that comes passes here; `look` finds it, `take` takes the next batch."""

    filing: Filing
    received: Received
    incoming: Incoming
    problem: str = ""  # why nothing is taken at the moment, "" if it is
    _own: deque[Candidate | Ended] = field(default_factory=deque)
    _dropped: deque[Candidate] = field(default_factory=deque)
    _late: list[tuple[float, Candidate]] = field(default_factory=list)
    _ends: Counter[str] = field(default_factory=Counter)  # associations whose end is still in the queue
    _ended: deque[str] = field(default_factory=lambda: deque(maxlen=10_000))
    _whole: list[str] = field(default_factory=list)
    _empty: list[str] = field(default_factory=list)
    strange: deque[tuple[str, str]] = field(default_factory=deque)  # what lies in incoming/ and is left there, and why
    fresh: int = 0  # files that the last look saw for the first time
    _relisted: float | None = None
    _look_again: float = 0.0

    def look(self, now: float) -> None:
        """Find what is new. Cheap; may be called at every turn."""
        relist = self._relisted is None or now - self._relisted >= RELIST
        if relist:
            self._relisted = now
        for item in self.received.look(relist=relist):
            self._own.append(item)
            if isinstance(item, Ended):
                self._ends[item.association] += 1
        look = self.incoming.look(now)
        self._dropped.extend(self._candidate(ready) for ready in look.ready)
        self._whole += look.whole
        self._empty += look.empty
        self.strange.extend(look.strange)
        self.fresh, self._look_again = look.fresh, look.next
        late, self._late = self._late, [each for each in self._late if each[0] > now]
        self._own.extend(candidate for due, candidate in late if due <= now)

    def _candidate(self, ready: Ready) -> Candidate:
        return Candidate(
            self.incoming.folder / ready.path,
            Source(uid=ready.uid, drop=ready.drop),
            _Door(self.incoming, ready),
            (ready.size, ready.mtime_ns),
            ready.final,
        )

    def is_open(self, association: str) -> bool:
        """Could this association still bring images?"""
        if association in self._ended:
            return False
        return association in self.received.open_associations or self._ends[association] > 0

    @property
    def busy(self) -> bool:
        """Is there more to take at once?"""
        return bool(self._own or self._dropped)

    def next(self, now: float) -> float:
        """When to look again, in the time of `now`."""
        late = min((due for due, _ in self._late), default=now + RELIST)
        return now if self.busy else min(self._look_again, late, (self._relisted or now) + RELIST)

    # --- taking -------------------------------------------------------------------------------------------------

    def take(self, now: float) -> Iterator[Filed | Ended | Whole]:
        """The next batch of what came by network, then one of what was dropped; then what ended by that."""
        yield from self._take_own(now)
        yield from self._take_dropped()
        self.received.tidy()
        whole, self._whole = self._whole, []
        yield from (Whole(drop) for drop in whole)
        empty, self._empty = self._empty, []
        for drop in [*whole, *empty]:
            self.incoming.tidy(drop)

    def _take_own(self, now: float) -> Iterator[Filed | Ended]:
        batch: list[Candidate] = []
        while self._own and len(batch) < BATCH and isinstance(self._own[0], Candidate):
            batch.append(self._own.popleft())  # type: ignore[arg-type]
        filed, failed = self._file(batch)
        self._late += [(now + PAUSE, candidate) for candidate in failed]
        yield from filed
        while self._own and isinstance(self._own[0], Ended):
            ended = self._own.popleft()
            assert isinstance(ended, Ended)
            self._ends[ended.association] -= 1
            self._ended.append(ended.association)
            yield ended

    def _take_dropped(self) -> Iterator[Filed]:
        filed, failed = self._file([self._dropped.popleft() for _ in range(min(BATCH, len(self._dropped)))])
        for each in filed:
            ready = _ready(each.candidate)
            self.incoming.not_yet(ready) if each.outcome == "changed" else self.incoming.gone(ready)
            yield each
        for candidate in failed:
            self.incoming.again(_ready(candidate))

    def _file(self, batch: list[Candidate]) -> tuple[list[Filed], list[Candidate]]:
        """Take them together, or if that fails one by one: what was filed, and what has to be tried again later."""
        try:
            filed = self.filing.take(batch)
            self.problem = "" if batch else self.problem
        except OSError:
            return self._one_by_one(batch)
        return filed, []

    def _one_by_one(self, batch: list[Candidate]) -> tuple[list[Filed], list[Candidate]]:
        filed: list[Filed] = []
        failed: list[Candidate] = []
        for position, candidate in enumerate(batch):
            try:
                filed += self.filing.take([candidate])
            except OSError as error:
                failed.append(candidate)
                self.problem = f"files are not taken into the store: {error.strerror}"
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    return filed, [*failed, *batch[position + 1 :]]
        return filed, failed


def _ready(candidate: Candidate) -> Ready:
    assert isinstance(candidate.door, _Door)
    return candidate.door.ready
