"""The way in: what the receiver stored and what others dropped, in order, in batches that keep the rest moving."""

from __future__ import annotations

import errno
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from sorter.model import Source
from sorter.pipeline.archives import Archives, Read
from sorter.take.filing import Candidate, Filed, Filing
from sorter.take.received import Ended, Received
from sorter.watch import Incoming, Look, Lookout, Ready, Tree, Watched

BATCH = 128
"""Files taken in one go: one sync of the folders serves them all, and a large one delays the others little."""

ENDS = 1024
"""Ends of associations that are told in one go: most of them may have brought nothing."""

DROPPED = 512
"""The same of what was dropped: as many as are offered at once, so that what is offered first is taken first."""

DROPPED_AT_FIRST = 64
"""The same before it is known how long that takes."""

LONG = 5.0
"""Seconds for which what comes by network may wait for what was dropped. Of deflated images, each of which is read by a
process of its own, a batch of `DROPPED` takes a minute."""

DROPPED_BYTES = 64 << 20
"""Bytes at which a batch of what was dropped is full."""

PAUSE = 5.0
"""Seconds until a file that could not be taken (a full disk, an error of reading) is tried again."""

RELIST = 60.0
"""Seconds between listings of the folders themselves: the scan is the truth, the arrivals file a hint."""


MOST_ENDED = 10_000
"""Associations that are known to have ended."""


@dataclass(frozen=True, slots=True)
class _Door:
    """The way to one ready file: through the tree that found it, which follows no link."""

    tree: Tree
    ready: Ready

    def open(self) -> int:
        return self.tree.open(self.ready)

    def remove(self) -> bool:
        return self.tree.remove(self.ready)

    def not_yet(self) -> None:
        self.tree.not_yet(self.ready)

    def again(self) -> None:
        self.tree.again(self.ready)

    def unreadable(self, why: str) -> None:
        self.tree.unreadable(self.ready, why)

    def gone(self) -> None:
        self.tree.gone(self.ready)


@dataclass(frozen=True, slots=True)
class _Come:
    """What came by network: found by the look at `at`, and not by the one before it, at `after`."""

    item: Candidate | Ended
    at: float
    after: float


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
    archives: Archives
    follow: Callable[[Watched], Lookout]
    lookouts: dict[Watched, Lookout] = field(default_factory=dict)  # the trees of [[watch]]
    clock: Callable[[], float] = time.perf_counter  # how long something took
    problem: str = ""  # why nothing is taken at the moment, "" if it is
    heard: float = 0.0  # all that had come by network at this time was taken
    heard_drops: float = 0.0  # the same of what was dropped
    came: float = 0.0  # when the last of what came by network and was taken had come, at the latest
    _own: deque[_Come] = field(default_factory=deque)
    _dropped: deque[Candidate] = field(default_factory=deque)
    _late: list[tuple[float, Candidate]] = field(default_factory=list)
    _most_dropped: int = DROPPED_AT_FIRST  # in the next batch
    _ends: Counter[str] = field(default_factory=Counter)  # associations whose end is still in the queue
    _ended: dict[str, None] = field(default_factory=dict)  # the last of them; asked for with each image
    _whole: list[tuple[Tree, str]] = field(default_factory=list)
    _read: list[Read] = field(default_factory=list)  # archives read to their end, in a drop that has more of them
    _empty: list[tuple[Tree, str]] = field(default_factory=list)
    strange: deque[tuple[Path, str, str]] = field(default_factory=deque)  # (tree, path, why) of what is left there
    fresh: int = 0  # files that the last look saw for the first time
    _unseen: dict[Path, str] = field(default_factory=dict)  # trees that cannot be looked at, and why
    _relisted: float | None = None
    _look_again: float = 0.0
    _looked: float = 0.0

    def look(self, now: float) -> None:
        """Find what is new. Cheap; may be called at every turn."""
        relist = self._relisted is None or now - self._relisted >= RELIST
        if relist:
            self._relisted = now
        after, self._looked = self._looked, now
        for item in self.received.look(relist=relist):
            self._own.append(_Come(item, now, after))
            if isinstance(item, Ended):
                self._ends[item.association] += 1
        looks = [(tree, self._look_at(tree, now)) for tree in self._trees]
        for tree, look in looks:
            self._dropped.extend(_candidate(tree, ready) for ready in look.ready)
            self._whole += [(tree, drop) for drop in look.whole]
            self._empty += [(tree, drop) for drop in look.empty]
            self.strange.extend((tree.folder, path, why) for path, why in look.strange)
        self.fresh = looks[0][1].fresh
        self._look_again = min(look.next for _, look in looks)
        late, self._late = self._late, [each for each in self._late if each[0] > now]
        self._own.extend(_Come(candidate, now, after) for due, candidate in late if due <= now)

    def _look_at(self, tree: Tree, now: float) -> Look:
        """What lies elsewhere is taken meanwhile, and above all what came by network."""
        try:
            look = tree.look(now)
        except OSError as error:
            self._unseen[tree.folder] = f"{tree.folder} cannot be looked at: {error.strerror}"
            return Look(next=now + PAUSE)
        self._unseen.pop(tree.folder, None)
        return look

    @property
    def _trees(self) -> list[Tree]:
        return [self.incoming, *self.lookouts.values()]

    def watch(self, wanted: Iterable[Watched]) -> None:
        """Follow these trees besides incoming/, and no others."""
        wanted = list(wanted)
        for each in [each for each in self.lookouts if each not in wanted]:
            self.lookouts.pop(each).stop()
        for each in wanted:
            if each not in self.lookouts:
                self.lookouts[each] = self.follow(each)

    def problems(self) -> list[str]:
        """Sentences on what keeps files from being found or taken; [] while nothing does."""
        said = [problem for lookout in self.lookouts.values() for problem in lookout.problems()]
        said += [*self._unseen.values(), *self.received.problems()]
        return [*said, self.problem] if self.problem else said

    def stop(self) -> None:
        """End what runs beside."""
        self.archives.stop()
        for lookout in self.lookouts.values():
            lookout.stop()

    def is_open(self, association: str) -> bool:
        """Could this association still bring images?"""
        if association in self._ended:
            return False
        return self.received.is_open(association) or self._ends[association] > 0

    @property
    def blind(self) -> bool:
        """May something that was dropped lie where nobody can look?"""
        return bool(self._unseen)

    @property
    def behind(self) -> bool:
        """Has more come by network than was taken so far?"""
        return bool(self._own or self._late)

    @property
    def busy(self) -> bool:
        """Is there more to take at once?"""
        return bool(self._own or self._dropped)

    def next(self, now: float) -> float:
        """When to look again, in the time of `now`."""
        if self.busy:
            return now
        times = [self._look_again, (self._relisted or now) + RELIST, *(due for due, _ in self._late)]
        reading = self.archives.next(now)
        return min(times if reading is None else [*times, reading])

    # --- taking -------------------------------------------------------------------------------------------------

    def take(self, now: float) -> Iterator[Filed | Ended | Whole | Read]:
        """The next batch of what came by network, one of what was dropped, one of an archive; what ended by that."""
        yield from self._take_own(now)
        yield from self._take_dropped()
        yield from self._take_archives(now)
        self.heard = self._own[0].after if self._own else now
        if not (self._dropped or self.blind):
            self.heard_drops = now
        self.received.tidy()
        whole, self._whole = self._whole, []
        yield from (Whole(drop) for _, drop in whole)
        empty, self._empty = self._empty, []
        for tree, drop in [*whole, *empty]:
            tree.tidy(drop)

    def _take_own(self, now: float) -> Iterator[Filed | Ended]:
        batch, ends = self._next_own()
        filed, failed = self._file(batch)
        self._late += [(now + PAUSE, candidate) for candidate in failed]
        yield from filed
        for ended in ends:
            self._ends[ended.association] -= 1
            if not self._ends[ended.association]:
                del self._ends[ended.association]
            self._ended[ended.association] = None
            if len(self._ended) > MOST_ENDED:
                del self._ended[next(iter(self._ended))]
            yield ended

    def _next_own(self) -> tuple[list[Candidate], list[Ended]]:
        """The next batch, and the ends that are told after it.

        A sender may have an association for each image: its images are taken together all the same. Only an abort has
        to be told before what came after it, which says that its sender goes on.
        """
        batch, ends, broken = list[Candidate](), list[Ended](), False
        while self._own and len(ends) < ENDS:
            come = self._own[0]
            if isinstance(come.item, Ended):
                ends.append(come.item)
                broken = broken or come.item.how != "released"
            elif broken or len(batch) >= BATCH:
                break
            else:
                batch.append(come.item)
                self.came = come.at
            self._own.popleft()
        return batch, ends

    def _take_dropped(self) -> Iterator[Filed]:
        begun, batch = self.clock(), self._next_dropped()
        filed, failed = self._file(batch)
        self._most_dropped = _next_most(self._most_dropped, len(batch), self.clock() - begun)
        for each in filed:
            door = _door(each.candidate)
            if each.outcome == "archive":
                if not self.archives.add(each.candidate):
                    door.again()
                continue
            if each.outcome == "unreadable":
                door.unreadable(each.why)
            elif each.outcome == "changed":
                door.not_yet()
            else:
                door.gone()
            yield each
        for candidate in failed:
            _door(candidate).again()

    def _next_dropped(self) -> list[Candidate]:
        batch: list[Candidate] = []
        size = 0
        while self._dropped and len(batch) < self._most_dropped and size < DROPPED_BYTES:
            batch.append(self._dropped.popleft())
            size += batch[-1].found[0]
        return batch

    def _take_archives(self, now: float) -> Iterator[Filed | Whole | Read]:
        for news in self.archives.turn(now, self._file):
            if isinstance(news, Read):
                self._archive_read(news)
            yield news
        whole = [each for each in self._read if not self.archives.of(each.candidate.source.drop)]
        self._read = [each for each in self._read if each not in whole]
        yield from (Whole(each.drop) for each in whole)

    def _archive_read(self, read: Read) -> None:
        door = _door(read.candidate)
        if read.end.how == "later":
            self.problem = f"an archive cannot be read now: {read.end.why}"
            door.again()
        elif read.end.how == "truncated":
            door.not_yet()
        else:
            door.gone()
            if read.end.how == "whole":
                self._read.append(read)

    def _file(self, batch: list[Candidate]) -> tuple[list[Filed], list[Candidate]]:
        """File them together, or if that fails in halves, down to the one that it fails for: what was filed, and what
        has to be tried again later. On a full disk nothing more is tried.
        """
        filed: list[Filed] = []
        failed: list[Candidate] = []
        self.problem = "" if batch else self.problem
        rest = deque([batch])
        while rest:
            some = rest.popleft()
            try:
                done, again = self._those_done(self.filing.take(some))
                filed, failed = filed + done, failed + again
            except OSError as error:
                if len(some) > 1:
                    middle = len(some) // 2
                    rest.extendleft((some[middle:], some[:middle]))
                    continue
                failed += some
                self.problem = f"files are not taken into the store: {error.strerror}"
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    return filed, [*failed, *chain.from_iterable(rest)]
        return filed, failed

    def _those_done(self, filed: list[Filed]) -> tuple[list[Filed], list[Candidate]]:
        again = [each for each in filed if each.again]
        if again:
            self.problem = f"files are not taken out of where they came: {again[0].why}"
        return [each for each in filed if each.outcome != "later"], [each.candidate for each in again]


def _next_most(most: int, taken: int, seconds: float) -> int:
    """How many are to be in the next batch, where of at most so many so many were taken in so long. After a turn with
    nothing to take, others come.
    """
    if not taken:
        return min(most, DROPPED_AT_FIRST)
    if seconds > LONG:
        return max(1, taken // 2)
    return min(DROPPED, 2 * most) if taken == most and seconds < LONG / 2 else most


def _candidate(tree: Tree, ready: Ready) -> Candidate:
    return Candidate(
        tree.folder / ready.path,
        Source(uid=ready.uid, drop=ready.drop),
        _Door(tree, ready),
        (ready.size, ready.mtime_ns),
        ready.final,
        ready.copy,
    )


def _door(candidate: Candidate) -> _Door:
    assert isinstance(candidate.door, _Door)
    return candidate.door
