"""What the rules of now would do with what was delivered: told to whoever tries them, and done where they say so."""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sorter.accounts import name_of
from sorter.errors import SorterError
from sorter.model import Delivery, Plan, UnitKind, build, plain
from sorter.pipeline.planning import NoPlan, Planner
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.labs import LabRecords
from sorter.spool.requests import request
from sorter.summaries import in_order, summaries, title_of

STEP, LISTED = 5, 200
"""Series that one turn plans, and at most looks at, beside its daily work: each is read from its folder."""

MOST_TOLD = 5000
"""Series in one answer; whoever has more tries fewer days at a time."""

LOOK_WITHIN = 20.0
"""Seconds in which the lab's own file is read once more first; a folder that is away keeps nobody waiting longer."""

ANSWER_WITHIN = 240.0
"""Seconds that the sorting process has for one answer."""


@dataclass(frozen=True, slots=True)
class Move:
    """A series that the rules of now would have elsewhere than it is; `says` it in a line. `stops`: nowhere at all."""

    key: str
    lab: str
    says: str
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """What the rules of now would do: so many series would lie elsewhere, so many would not be delivered; of very many
    only the first are in `moves` and `stops`."""

    moving: int
    moves: tuple[Move, ...]
    stopping: int
    stops: tuple[Move, ...]

    @staticmethod
    def of(found: Sequence[Move]) -> Tried:
        """Of all that was found."""
        moves, stops = ([each for each in found if each.stops is stop] for stop in (False, True))
        return Tried(len(moves), tuple(moves[:MOST_TOLD]), len(stops), tuple(stops[:MOST_TOLD]))

    def __add__(self, other: Tried) -> Tried:
        return Tried(
            self.moving + other.moving, self.moves + other.moves, self.stopping + other.stopping,
            self.stops + other.stops,
        )  # fmt: skip


def move_of(planner: Planner, spool: Spool, summary: UnitSummary, *, own: bool = False) -> Move | None:
    """None where it would lie as it does. `own`: and where the rules of now would give it to another lab."""
    unit = Unit.load(spool, summary.key)
    before, revision = unit.latest_plan(), unit.latest_revision()
    if before is None or revision is None or unit.withdrawn or unit.held:
        return None
    now = planner.plan(unit, revision, None)
    if own and now.identity.lab != summary.lab:
        return None
    stops = not isinstance(now, Plan)
    says = now.why if isinstance(now, NoPlan) else "; ".join(_changes(before, now))
    return Move(summary.key, summary.lab or "", f"{title_of(summary)}: {says}", stops) if says else None


def _changes(before: Plan, now: Plan) -> Iterator[str]:
    was, will = ({(each.product, each.target): each for each in plan.deliveries} for plan in (before, now))
    yield from (f"{_shown(was[each])} is wanted no more, and goes" for each in was if each not in will)
    yield from (f"{_shown(will[each])} is new" for each in will if each not in was)
    for each in [each for each in was if each in will]:
        if was[each].folder != will[each].folder:
            yield f"{_shown(was[each])} goes to {will[each].folder}"
        elif was[each].pattern.file != will[each].pattern.file:
            yield f"{_shown(was[each])} gets other file names"


def _shown(delivery: Delivery) -> str:
    return f"{delivery.product} in {delivery.target}: {delivery.folder}"


def delivered(every: Iterable[UnitSummary], lab: str | None, since: str) -> Iterator[UnitSummary]:
    """The series of this lab, or of any, that came on this day (YYYYMMDD) or later."""
    for each in every:
        if each.kind is UnitKind.SERIES and each.lab is not None and lab in (None, each.lab) and each.came >= since:
            yield each


# --- for members of a lab, by the sorter that runs --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """What somebody asks for: to try the rules on what came `since`, or to have `keys` moved by them.

    `own`, as for the lab's members: what another lab would get is left out.
    """

    lab: str
    since: str
    by: int
    keys: tuple[str, ...] = ()
    own: bool = True
    code: str = field(default_factory=lambda: uuid.uuid4().hex)

    def answered(self, spool: Spool) -> Tried:
        """What the sorting process says, once it has. SorterError: none has started here, or it is too busy."""
        request(spool, f"try-{self.code}", {"do": "try rules", "trial": plain(self)})
        records, until = LabRecords(spool.labs, spool.files), time.monotonic() + ANSWER_WITHIN
        while time.monotonic() < until:
            data = records.take_trial(self.lab, self.code)
            if data is not None:
                return build(Tried, json.loads(data))
            time.sleep(0.05)
        raise SorterError("sorter is too busy to try the rules on all of these now; ask again, or about fewer days")


@dataclass(slots=True)
class _Work:
    trial: Trial
    is_read: Callable[[], bool]  # was the lab's own file looked at since it was asked for?
    until: float
    every: Iterator[UnitSummary]
    found: list[UnitSummary] = field(default_factory=list)
    listed: bool = False
    due: deque[UnitSummary] = field(default_factory=deque)
    moves: list[Move] = field(default_factory=list)


@dataclass(slots=True)
class Trials:
    """One after the other, some series a turn; each answer is a file that whoever asked takes.

    `look` has a lab's own file read once more, and says when it was; `move` has the rules asked again for these units.
    """

    spool: Spool
    records: LabRecords
    planner: Callable[[], Planner]
    look: Callable[[str], Callable[[], bool]]
    move: Callable[[Sequence[str], str], None]
    _asked: deque[Trial] = field(default_factory=deque)
    _work: _Work | None = None

    def ask(self, trial: Trial) -> None:
        """Somebody wants it."""
        self._asked.append(trial)

    def turn(self, now: float) -> float:
        """Go on with one; returns when to be called again at the latest."""
        if self._work is None and self._asked:
            trial = self._asked.popleft()
            self._work = _Work(trial, self.look(trial.lab), now + LOOK_WITHIN, self._series(trial))
        work = self._work
        if work is None:
            return float("inf")
        if not work.is_read() and now < work.until:
            return now + 0.1
        if not work.listed:
            self._list(work)
        else:
            self._plan(work)
        if work.listed and not work.due:
            self._work = None  # first: where the disk fails, only this answer is lost, and nothing moves twice
            self._answer(work)
        return now

    def _series(self, trial: Trial) -> Iterator[UnitSummary]:
        found = summaries(self.spool, self._not_tried, trial.keys or None)
        return delivered(found, trial.lab, trial.since)

    def _not_tried(self, key: str, error: OSError) -> None:
        """That one's trouble alone."""
        self.spool.note("not tried", unit=key, why=error.strerror or "")

    def _list(self, work: _Work) -> None:
        for _ in range(LISTED):
            try:
                found = next(work.every, None)
            except OSError:  # as the disk is not there; all of it again, once it is
                work.every, work.found = self._series(work.trial), []
                raise
            if found is None:
                work.listed, work.due = True, deque(in_order(work.found))
                return
            work.found.append(found)

    def _plan(self, work: _Work) -> None:
        for _ in range(min(STEP, len(work.due))):
            summary = work.due.popleft()
            try:
                found = move_of(self.planner(), self.spool, summary, own=work.trial.own)
            except OSError as error:
                found = None
                self._not_tried(summary.key, error)
            if found is not None:
                work.moves.append(found)

    def _answer(self, work: _Work) -> None:
        trial = work.trial
        moving = [each.key for each in work.moves if not each.stops]
        if trial.keys and moving:
            self.move(moving, name_of(trial.by))
        self.records.write_trial(trial.lab, trial.code, json.dumps(plain(Tried.of(work.moves))).encode())
