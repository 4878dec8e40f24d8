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
    _dropped: deque[tuple[Candidate, Ready]] = field(default_factory=deque)
    _late: list[tuple[float, Candidate, Ready | None]] = field(default_factory=list)
    _ends: Counter[str] = field(default_factory=Counter)  # associations whose end is still in the queue
    _ended: deque[str] = field(default_factory=lambda: deque(maxlen=10_000))
    _per_drop: Counter[str] = field(default_factory=Counter)
    _whole: set[str] = field(default_factory=set)
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
        for ready in look.ready:
            self._per_drop[ready.drop] += 1
            self._dropped.append((self._candidate(ready), ready))
        self._whole.update(look.whole)
        self._look_again = look.next
        for late in [each for each in self._late if each[0] <= now]:
            self._late.remove(late)
            _, candidate, ready_again = late
            if ready_again is None:
                self._own.append(candidate)
            else:
                self._dropped.append((candidate, ready_again))

    def _candidate(self, ready: Ready) -> Candidate:
        return Candidate(
            self.incoming.folder / ready.path,
            own=False,
            source=Source(uid=ready.uid, drop=ready.drop),
            identity=(ready.size, ready.mtime_ns, ready.inode),
            final=ready.final,
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
        late = min((each[0] for each in self._late), default=now + RELIST)
        return now if self.busy else min(self._look_again, late, (self._relisted or now) + RELIST)

    # --- taking -------------------------------------------------------------------------------------------------

    def take(self, now: float) -> Iterator[Filed | Ended | Whole]:
        """The next batch of what came by network, then one of what was dropped; then what ended by that."""
        yield from self._take_own(now)
        yield from self._take_dropped(now)
        self.received.tidy()
        for drop in [each for each in self._whole if not self._per_drop[each]]:
            self._whole.discard(drop)
            yield Whole(drop)
            self.incoming.tidy(drop)

    def _take_own(self, now: float) -> Iterator[Filed | Ended]:
        candidates: list[Candidate] = []
        while self._own and len(candidates) < BATCH and isinstance(self._own[0], Candidate):
            candidates.append(self._own.popleft())  # type: ignore[arg-type]
        yield from self._file([(candidate, None) for candidate in candidates], now)
        while self._own and isinstance(self._own[0], Ended):
            ended = self._own.popleft()
            assert isinstance(ended, Ended)
            self._ends[ended.association] -= 1
            self._ended.append(ended.association)
            yield ended

    def _take_dropped(self, now: float) -> Iterator[Filed]:
        batch = [self._dropped.popleft() for _ in range(min(BATCH, len(self._dropped)))]
        ready = {id(candidate): each for candidate, each in batch}
        for filed in self._file(batch, now):
            self._tell_incoming(ready[id(filed.candidate)], filed)
            yield filed

    def _tell_incoming(self, ready: Ready, filed: Filed) -> None:
        self._per_drop[ready.drop] -= 1
        if filed.outcome == "changed":
            self.incoming.not_yet(ready)
        else:
            self.incoming.gone(ready)

    def _file(self, batch: list[tuple[Candidate, Ready | None]], now: float) -> list[Filed]:
        """Take them together; if that fails, one by one, and what still fails again later."""
        try:
            filed = self.filing.take([candidate for candidate, _ in batch])
            self.problem = "" if batch else self.problem
            return filed
        except OSError:
            pass
        filed = []
        for position, (candidate, ready) in enumerate(batch):
            try:
                filed += self.filing.take([candidate])
                self.problem = ""
            except OSError as error:
                self._late.append((now + PAUSE, candidate, ready))
                self.problem = f"files are not taken into the store: {error.strerror}"
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self._late += [(now + PAUSE, each, its) for each, its in batch[position + 1 :]]
                    break
        return filed
