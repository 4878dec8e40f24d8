"""The way out: one lane per target, what waits to be tried again, and the answers as they come."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from sorter.deliver.backoff import backoff
from sorter.deliver.lane import Lane
from sorter.deliver.target import (
    Checked,
    Copied,
    Copies,
    Done,
    LabLook,
    LabSeen,
    Later,
    Put,
    Refused,
    Removed,
    Result,
    Wanted,
)
from sorter.deliver.workers import workers_of
from sorter.model import DICOM, Receipt
from sorter.pipeline.outages import Outages
from sorter.spool import Spool
from sorter.spool.exports import is_export

SLOW = 30.0
"""Seconds without a sign of life from a target at work, after which a person is told."""

Errand: TypeAlias = tuple[str, str, str]
"""(unit key, product, target)"""


@dataclass(frozen=True, slots=True)
class Outlet:
    """One configured target: the code of its kind, and its own settings. `stay`: it is a lab's, whose worker stays.
    `account`: whom its worker is to be run as; "" for the account that sorter runs as."""

    code: str
    settings: Mapping[str, Any]
    stay: bool = False
    account: str = ""


class Outlets:
    """Hands deliveries to their lanes. The lanes' threads only append to a queue; everything else is the caller's."""

    def __init__(self, spool: Spool, wake: Callable[[], None], tell_after: float = 900.0) -> None:
        self._spool, self._wake = spool, wake
        self._lanes: dict[str, tuple[Outlet, Lane]] = {}
        self._ending: dict[str, threading.Thread] = {}  # by target: the end of the lane that it had before
        self._answers: deque[tuple[str, Lane, Put, Result]] = deque()
        self._removals: deque[tuple[Lane, Receipt, Removed | Later | Refused]] = deque()
        self._checks: deque[tuple[str, Checked | Later | Refused]] = deque()
        self._away: deque[tuple[str, str]] = deque()  # found by a look at a lab's folder, and why
        self._removing: set[tuple[Errand, int]] = set()
        self._under_way: dict[Errand, int] = {}  # the revision being delivered
        self._attempts: dict[Errand, int] = {}
        self._waiting: list[tuple[float, int, Errand]] = []  # a heap: when, in which order, what
        self._asleep: set[Errand] = set()  # those in it
        self._order = itertools.count()
        self._returned: list[tuple[str, Put, Result]] = []  # taken back from a lane whose target is out
        self._parked: dict[str, dict[Errand, None]] = {}  # by target: what waits for the end of its outage
        self._random = Random()  # noqa: S311  jitter, not secrets
        self.outages = Outages(spool, tell_after, self._random)

    def configure(self, outlets: Mapping[str, Outlet]) -> None:
        """Use these targets from now on; the lane of a target that changed ends after its job, and begins anew.

        What waited in it is on its way no more: who owes it sends it again. The new one waits for the end of the old:
        where both mean the same folder, what is to be removed must not come there afterwards.
        """
        changed = {name for name, (outlet, _) in self._lanes.items() if outlets.get(name) != outlet}
        for name in changed:
            # Beside: a mount that hangs must not keep the other labs waiting.
            stop = self._lanes.pop(name)[1].stop
            self._ending[name] = threading.Thread(target=stop, args=(10.0,), daemon=True)
            self._ending[name].start()
            self._forget(name)
        for name, outlet in outlets.items():
            if name not in self._lanes:
                self._lanes[name] = (outlet, self._lane(name, outlet))
        self.outages.configure(outlets, changed)

    def _forget(self, target: str) -> None:
        self._under_way = {errand: revision for errand, revision in self._under_way.items() if errand[2] != target}
        self._removing = {each for each in self._removing if each[0][2] != target}
        self._release(target)

    def _lane(self, name: str, outlet: Outlet) -> Lane:
        def report(put: Put, result: Result) -> None:
            self._answers.append((name, lane, put, result))
            self._wake()

        workers = workers_of(name, outlet.account, self._spool.workers, self._spool.files)
        after = self._ending.get(name)
        lane = Lane(
            name, outlet.code, outlet.settings, self._open, report, stay=outlet.stay, workers=workers, after=after
        )
        return lane

    def is_of_now(self, target: str, lane: Lane | None) -> bool:
        """Is this where the target is now? What was done before it was configured anew is owed still, perhaps
        elsewhere."""
        return target in self._lanes and self._lanes[target][1] is lane

    def _open(self, put: Put, wanted: Wanted) -> int:
        """Called in a lane's thread: a read-only descriptor of one file."""
        return self._spool.files.open(self._path(put, wanted))

    def _path(self, put: Put, wanted: Wanted) -> Path:
        folder = self._spool.unit_folder(put.key)
        if put.product == DICOM:
            return folder / "images" / wanted.file
        if is_export(put.product):
            return folder / wanted.file
        return folder / "products" / f"{put.product}-{put.revision}" / wanted.file

    # --- sending ------------------------------------------------------------------------------------------------

    def __contains__(self, target: str) -> bool:
        """Is it configured now?"""
        return target in self._lanes

    def busy(self, errand: Errand, revision: int) -> bool:
        """Is this revision on its way, or waiting to be tried again?"""
        waits = errand in self._asleep or errand in self._parked.get(errand[2], {})
        return waits or self._under_way.get(errand, -1) >= revision

    def under_way(self, key: str) -> bool:
        """Is anything of this unit being delivered or removed?"""
        return any(errand[0] == key for errand in (*self._under_way, *(each for each, _ in self._removing)))

    def submit(self, target: str, put: Put) -> str:
        """Deliver; or, where the target is out, note that this waits too, and say why.

        Not while an earlier revision is being delivered: its receipt is what this one grows. Whoever takes its answer
        submits this anew.
        """
        errand, lane = (put.key, put.product, target), self._lanes[target][1]
        if target in self.outages:
            self._park(errand)
            return self.outages.why(target)
        if errand in self._under_way and not lane.take_back(errand[:2]):
            return ""
        self._under_way[errand] = put.revision
        lane.submit(put)
        return ""

    def remove(self, receipt: Receipt) -> bool:
        """Have removed from its target what still equals this receipt; False where there is no such target now."""
        errand = (receipt.key, receipt.product, receipt.target)
        if receipt.target not in self._lanes:
            return False
        if (errand, receipt.revision) in self._removing:
            return True
        if receipt.target in self.outages:
            self._park(errand)
            return True

        def tell(result: Removed | Later | Refused) -> None:
            self._removals.append((lane, receipt, result))
            self._wake()

        lane = self._lanes[receipt.target][1]
        self._removing.add((errand, receipt.revision))
        lane.remove(receipt, tell)
        return True

    def withhold(self, key: str) -> None:
        """Nothing of this unit that still waits for its target's worker is delivered or removed now."""
        for name, (_, lane) in self._lanes.items():
            puts, receipts = lane.withhold(key)
            for put in puts:
                self._under_way.pop((key, put.product, name), None)
            self._removing -= {((key, each.product, name), each.revision) for each in receipts}

    def take_all_back(self) -> None:
        """Nothing that still waits for its target's worker is delivered now; who owes it sends it again."""
        for target in self._lanes:
            self._taken_back(target)

    def _taken_back(self, target: str) -> list[Put]:
        puts = self._lanes[target][1].take_back()
        for put in puts:
            self._under_way.pop((put.key, put.product, target), None)
        return puts

    def look_at_lab(
        self, lab: str, job: LabLook, opened: Callable[[Wanted], int], tell: Callable[[LabSeen | Later | Refused], None]
    ) -> bool:
        """Have the worker of a lab look at the lab's own corner; `opened` and `tell` are called in its lane's thread.
        False where nothing can be asked of it now."""
        if lab not in self._lanes or lab in self.outages:
            return False

        def heard(answer: LabSeen | Later | Refused) -> None:
            if isinstance(answer, Later) and answer.away:
                self._away.append((lab, answer.why))
            tell(answer)

        self._lanes[lab][1].look_at_lab(job, opened, self._waking(heard))
        return True

    def copy_for_lab(
        self, lab: str, job: Copies, opened: Callable[[Wanted], int], tell: Callable[[Copied | Later | Refused], None]
    ) -> bool:
        """The same of copies that a lab asked for, one such job after another."""
        if lab not in self._lanes or lab in self.outages:
            return False
        self._lanes[lab][1].copy_for_lab(job, opened, self._waking(tell))
        return True

    def _waking(self, tell: Callable[[Any], None]) -> Callable[[Any], None]:
        def told(answer: Any) -> None:
            tell(answer)
            self._wake()

        return told

    def lane(self, target: str) -> Lane | None:
        """The lane of a target, for errands of one's own; None where there is none, or it is out."""
        return self._lanes[target][1] if target in self._lanes and target not in self.outages else None

    def wake(self) -> None:
        """Something is to be looked at; from any thread."""
        self._wake()

    def removals(self, now: float) -> Iterator[tuple[Receipt, Removed | Later | Refused]]:
        """What came of removing since the last call; what failed is put on the list to try again.

        One at a time, as `answers`.
        """
        for _ in range(len(self._removals)):
            lane, receipt, result = self._removals.popleft()
            if not self.is_of_now(receipt.target, lane):
                continue
            errand = (receipt.key, receipt.product, receipt.target)
            self._removing.discard((errand, receipt.revision))
            if not isinstance(result, Removed):
                self._failed(errand, result, now)
            yield receipt, result

    def answers(self, now: float) -> Iterator[tuple[str, Put, Result]]:
        """(target, put, result) of what ended since the last call; what failed is put on the list to try again.

        Each is on its way until it is its turn: whoever takes the answer before it up, and looks what else is owed,
        must not send it once more.
        """
        for _ in range(len(self._answers)):
            target, lane, put, result = self._answers.popleft()
            if not self.is_of_now(target, lane):
                continue
            errand = (put.key, put.product, target)
            if self._under_way.get(errand) == put.revision:
                del self._under_way[errand]
            if isinstance(result, Done):
                self._succeeded(errand, now)
            else:
                self._failed(errand, result, now)
            yield target, put, result
        while self._returned:
            yield self._returned.pop(0)

    def _succeeded(self, errand: Errand, now: float) -> None:
        target = errand[2]
        self._attempts.pop(errand, None)
        self.outages.ended(target, now)
        self._release(target)
        if self.outages.is_shaky(target) and not any(
            each[2] == target for each in itertools.chain(self._under_way, self._asleep)
        ):
            self.outages.settled(target)

    def _failed(self, errand: Errand, result: Later | Refused, now: float) -> None:
        """Wait: for the end of the outage where nothing can be delivered there, else for this errand's own turn."""
        target = errand[2]
        if not isinstance(result, Later) or not result.away:
            self.try_later(errand, now)
            return
        if target not in self.outages:
            self.outages.failed(target, result.why, now)
        for put in self._taken_back(target) if target in self._lanes else ():
            self._park((put.key, put.product, target))
            self._returned.append((target, put, result))
        self._park(errand)  # behind what has not been tried: one that fails by itself keeps nobody else waiting

    def try_later(self, errand: Errand, now: float) -> None:
        """After a while that grows with each failure in a row: a person's mistake is looked at again too."""
        self._attempts[errand] = self._attempts.get(errand, 0) + 1
        self._sleep(now + backoff(self._attempts[errand], self._random), errand)

    def _sleep(self, until: float, errand: Errand) -> None:
        if errand not in self._asleep:
            self._asleep.add(errand)
            heapq.heappush(self._waiting, (until, next(self._order), errand))

    def due(self, now: float) -> list[Errand]:
        """What should be tried again now; targets that are out are asked for it by one small check."""
        self._collect_looks(now)
        self._collect_checks(now)
        for name, (_, lane) in self._lanes.items():
            if lane.worker_came():
                self.outages.ask_now(name)
        for target in self.outages.due(now):
            self._check(target)
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            errand = heapq.heappop(self._waiting)[2]
            self._asleep.discard(errand)
            found.append(errand)
        return found

    def _check(self, target: str) -> None:
        def tell(answer: Checked | Later | Refused) -> None:
            self._checks.append((target, answer))
            self._wake()

        self._lanes[target][1].check(tell)

    def _collect_looks(self, now: float) -> None:
        """Who found nothing at a lab's folder to look at found an outage, before anything is to be delivered there."""
        while self._away:
            target, why = self._away.popleft()
            if target in self._lanes and target not in self.outages:
                self.outages.failed(target, why, now)

    def _collect_checks(self, now: float) -> None:
        while self._checks:
            target, answer = self._checks.popleft()
            if target not in self.outages:
                continue  # a delivery that was under way was done meanwhile, or the target is another now
            if isinstance(answer, Checked):
                self.outages.ended(target, now)
                self._release(target)
            else:
                self.outages.failed(target, answer.why, now)

    def _park(self, errand: Errand) -> None:
        parked = self._parked.setdefault(errand[2], {})
        parked.pop(errand, None)
        parked[errand] = None

    def _release(self, target: str) -> None:
        """All that waits for it is due now, each behind those that waited before it."""
        for errand in self._parked.pop(target, {}):
            self._attempts.pop(errand, None)
            self._sleep(0.0, errand)

    def try_all_now(self) -> None:
        """A person says that what was wrong is mended."""
        self._waiting = [(0.0, number, errand) for _, number, errand in sorted(self._waiting)]
        self.outages.ask_all_now()

    @property
    def next(self) -> float | None:
        times = [self._waiting[0][0] if self._waiting else None, self.outages.next]
        return min((time for time in times if time is not None), default=None)

    def problems(self) -> list[str]:
        """Targets that have not moved for long, long before their worker is given up, or that have no worker."""
        slow = (name for name, (_, lane) in self._lanes.items() if lane.silence() > SLOW)
        hung = [f"target {name} has not moved for more than {SLOW:g} s: does its mount hang?" for name in slow]
        return hung + [each for each in (lane.problem() for _, lane in self._lanes.values()) if each]

    def stop(self, timeout: float) -> None:
        """All lanes at once: one whose mount hangs takes `timeout` seconds, and ten of them no longer."""
        stopping = [threading.Thread(target=lane.stop, args=(timeout,)) for _, lane in self._lanes.values()]
        for each in stopping:
            each.start()
        for each in stopping:
            each.join()
