"""Retention: which images leave the store, once their time is over and their delivered copies were read again.

Once in each day that sorter saw pass the summaries of the store are looked through, a few a turn; of a unit whose time
is over one target after the other reads what was delivered there, while it has nothing else to do; then its images go,
some a turn, as far as `leaving.Verified` allows. Nothing is remembered over a restart but the count of days: what was
not finished is begun again.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from sorter.deliver.lane import Lane
from sorter.deliver.target import Later, Refused, Verified
from sorter.model import DICOM, Delivered, Receipt, Standing
from sorter.pipeline.outlets import Outlets
from sorter.pipeline.units import Live
from sorter.spool import Spool, Unit, leaving
from sorter.spool.days import Days
from sorter.spool.leaving import NOT_THERE
from sorter.spool.stays import Stays, write_stays
from sorter.spool.unit import image_of
from sorter.take.compare import sketch
from sorter.words import counted

LOOK_STEP = 50
"""Summaries that one turn looks at."""

AT_ONCE, MOST_BYTES = 200, 100_000_000
"""Images that one turn lets go, and their bytes: each is read once more. A larger one goes alone."""

PART = 500
"""Files of a receipt that a target compares at once: a delivery that comes meanwhile waits no longer than for these."""

MOST_AHEAD = 20
"""Units that wait for their targets."""

PATIENCE, LATER = 600.0, 3600.0
"""Seconds that such a unit may keep others from being looked at, and until those that were put off come again."""

Answer: TypeAlias = Verified | Later | Refused


@dataclass(slots=True)
class _Case:
    """A unit whose time is over: the receipts that are still to be compared, and what came of it so far."""

    key: str
    receipts: deque[Receipt]  # the first is the one at hand
    images: int
    since: float
    rest: deque[Delivered] | None = None  # of the receipt at hand what is still to be compared; None before it is begun
    proof: leaving.Verified | None = None  # of the receipt that was compared last,
    lane: Lane | None = None  # and where
    waits: deque[str] = field(default_factory=deque)  # images to look at with this proof
    stay: dict[str, str] = field(default_factory=dict)  # by file, why it stays
    why: str = ""  # why no target could be asked


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a target compares now, since which day: the case, and its receipt at hand."""

    case: _Case
    receipt: Receipt
    lane: Lane
    day: int


@dataclass(slots=True)
class Retention:
    """Finds what may leave, has it verified, and lets it go. `apart` does a step of one unit, and sums it up.

    `keep` is in days, None for ever. `doubted` says why what a target says is not enough for an image to leave, ""
    where it is.
    """

    spool: Spool
    outlets: Outlets
    apart: Callable[[str, Callable[[Live], None]], None]
    happened: Callable[..., None]
    keep: int | None = None
    doubted: Callable[[str], str] = lambda _: ""
    days: Days = field(init=False)
    more: bool = False  # is there more to be done at once?
    _walk: Iterator[str] | None = None
    _looked: int = -1  # the day on which the store was looked through last
    _again: float = float("inf")  # when it is to be looked through once more that day
    _now: float = 0.0
    _cases: dict[str, _Case] = field(default_factory=dict)
    _asked: dict[str, _Asked] = field(default_factory=dict)  # by target
    _answers: deque[tuple[_Asked, Answer]] = field(default_factory=deque)
    _stays: Counter[str] = field(default_factory=Counter)  # images whose time is over, by what keeps them

    def __post_init__(self) -> None:
        self.days = Days(self.spool.days, self.spool.files)

    def turn(self, now: float, *, ready: bool) -> None:
        """Do a little. `ready`: all that came has been looked at."""
        self._now, self.more = now, False
        self.days.look(now)
        if self.keep is None:
            self._cases.clear()
            self._asked.clear()
        if self.keep is None or not ready:
            return
        while self._answers:
            self._compared(*self._answers.popleft())
        self._let_some_go()
        self._ask()
        self.more = self._look_around() or any(case.waits for case in self._cases.values())

    def came(self, key: str) -> None:
        """Something of this unit came, be it known already: its sender relies on the store from now on, so that what
        was verified before counts no more.
        """
        if self._cases.pop(key, None) is not None:
            self._again = self._now + LATER

    # --- which? -------------------------------------------------------------------------------------------------

    def _look_around(self) -> bool:
        due = self._looked != self.days.count or self._now >= self._again
        if self._walk is None and due and not self._cases:
            self._walk, self._looked, self._again = self.spool.keys(), self.days.count, float("inf")
            self._stays.clear()
        for _ in range(LOOK_STEP):
            if self._walk is None or len(self._cases) >= MOST_AHEAD:
                return False
            key = next(self._walk, None)
            if key is None:
                self._walk = None
                self._say()
            else:
                self._look_at(key)
        return True

    def _look_at(self, key: str) -> None:
        """At what its records say; all of it is asked again before anything goes."""
        unit = Unit(self.spool, key)
        try:
            summary = unit.summary()
            if summary is None or leaving.why_it_stays(summary, self.keep, self.days.count):
                return
            receipts, plan = unit.receipts(), unit.latest_plan()
        except OSError:
            return  # whoever works on it says it better
        places = [each.target for each in plan.deliveries if each.product == DICOM] if plan else []
        found = [receipts[DICOM, each] for each in places if (DICOM, each) in receipts]
        images = sum(summary.stored.get(standing, 0) for standing in leaving.MAY_LEAVE)
        self._cases[key] = _Case(key, deque(each for each in found if each.files), images, self._now)

    # --- is the delivered copy still there? ---------------------------------------------------------------------

    def _ask(self) -> None:
        for target, asked in list(self._asked.items()):
            if self.outlets.lane(target) is not asked.lane:  # another configuration: all of it is asked there
                del self._asked[target]
                asked.case.rest = None
        busy = {asked.case.key for asked in self._asked.values()}
        for case in [case for case in self._cases.values() if not case.waits and case.key not in busy]:
            if case.rest is not None and not case.rest:
                case.receipts.popleft()
                case.rest = None
            if case.receipts:
                self._ask_for(case, case.receipts[0])
            else:
                self._end(case)

    def _ask_for(self, case: _Case, receipt: Receipt) -> None:
        lane = self.outlets.lane(receipt.target)
        if lane is None:
            case.rest, case.why = deque(), f"{receipt.target} is away, or is no target any more"
        elif why := self.doubted(receipt.target):
            case.rest, case.why = deque(), why
        elif receipt.target in self._asked or lane.waiting():
            self._put_off(case, receipt)
        else:
            if case.rest is None:
                case.rest = deque()
                self.apart(case.key, lambda live: _pick(live.unit, case, receipt))
            if part := [case.rest.popleft() for _ in range(min(PART, len(case.rest)))]:
                asked = self._asked[receipt.target] = _Asked(case, receipt, lane, self.days.count)
                lane.verify(replace(receipt, files=tuple(part)), functools.partial(self._hear, asked), only=True)

    def _put_off(self, case: _Case, receipt: Receipt) -> None:
        """A target that is busy for long, or hangs, keeps no other's images in the store."""
        if len(self._cases) >= MOST_AHEAD and self._now - case.since >= PATIENCE:
            case.rest, case.why = deque(), f"{receipt.target} has had other things to do"
            self._again = self._now + LATER

    def _hear(self, asked: _Asked, answer: Answer) -> None:
        """Called in a lane's thread."""
        self._answers.append((asked, answer))
        self.outlets.wake()

    def _compared(self, asked: _Asked, answer: Answer) -> None:
        """An answer to what is not asked any more, or from where the target was before it was configured anew, proves
        nothing."""
        case, receipt = asked.case, asked.receipt
        if self._asked.get(receipt.target) is not asked or self.outlets.lane(receipt.target) is not asked.lane:
            return
        del self._asked[receipt.target]
        if not case.receipts or case.receipts[0] != receipt or self.keep is None:
            return
        why = answer.why if not isinstance(answer, Verified) else self.doubted(receipt.target)
        if why or not isinstance(answer, Verified):  # doubted since it was asked: who answered may be another
            case.rest, case.why = deque(), why
            return
        same = frozenset(each.file for each in receipt.files if each.name in answer.same and each.state == "written")
        case.proof = leaving.Verified(receipt, same, asked.day, self.keep, lambda: self.days.count, _sketch)
        case.lane = asked.lane
        self.apart(case.key, lambda live: case.waits.extend(_candidates(live.unit, same)))

    # --- then it goes -------------------------------------------------------------------------------------------

    def _let_some_go(self) -> None:
        case = next((each for each in self._cases.values() if each.waits), None)
        if case is not None:
            self.apart(case.key, lambda live: self._let_go(live, case))

    def _let_go(self, live: Live, case: _Case) -> None:
        assert case.proof is not None
        elsewhere = not self.outlets.is_of_now(case.proof.receipt.target, case.lane)
        if elsewhere or case.proof.keep != self.keep:  # it was configured anew: all is looked at once more
            case.receipts.clear()
            case.waits.clear()
            case.rest, self._looked = None, -1
            return
        files = _some(live.unit, case.waits)
        stay = leaving.let_go(live.unit, files, case.proof)
        for file in files:
            case.stay.pop(file, None)
        case.stay.update(stay)
        if gone := len(files) - len(stay):
            where = case.proof.receipt.target
            live.unit.tell(f"{counted(gone, 'images')} left the store: read again at {where}, and equal to what came")
            self.happened("left", live, images=str(gone), target=where)

    def _end(self, case: _Case) -> None:
        del self._cases[case.key]
        if case.proof is None and case.why:
            self._stays[case.why] += case.images
        else:
            self._stays.update(case.stay.values())
        if self._walk is None and not self._cases:
            self._say()

    def _say(self) -> None:
        """For `status`: what could not leave at the last look, and why."""
        write_stays(self.spool, Stays(self.days.count, dict(self._stays)))


def _pick(unit: Unit, case: _Case, receipt: Receipt) -> None:
    """What of a receipt is to be compared: the copies of images that are in the store. So far all of them stay."""
    here = _candidates(unit, frozenset(unit.instances))
    case.stay = dict.fromkeys(here, NOT_THERE)
    wanted = {image_of(unit.instances[file]) for file in here}
    files = {each.file for each in unit.instances.values() if image_of(each) in wanted}
    case.rest = deque(each for each in receipt.files if each.file in files and each.state == "written")


def _some(unit: Unit, waits: deque[str]) -> list[str]:
    """As many of these as one turn lets go."""
    some, size = [waits.popleft()], 0
    while waits and len(some) < AT_ONCE and (size := size + unit.instances[waits[0]].size) <= MOST_BYTES:
        some.append(waits.popleft())
    return some


def _candidates(unit: Unit, same: frozenset[str]) -> list[str]:
    """Images in the store that may leave, where the delivered copies of `same` are as they were delivered."""
    alike = {image_of(unit.instances[file]) for file in same if file in unit.instances}
    return [
        each.file
        for each in unit.instances.values()
        if each.file not in unit.left
        and each.standing in leaving.MAY_LEAVE
        and (each.file in same or (each.standing is Standing.AGAIN and image_of(each) in alike))
    ]


def _sketch(unit: Unit, file: str) -> Mapping[str, Any] | None:
    with unit.spool.files.opened(unit.images / file) as fd:
        return sketch(unit.spool.files, fd)
