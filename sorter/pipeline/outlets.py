"""The way out: one lane per target, what waits to be tried again, and the answers as they come."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from sorter.deliver.backoff import backoff
from sorter.deliver.lane import Lane
from sorter.deliver.target import Done, Later, Put, Refused, Removed, Result, Wanted
from sorter.model import DICOM, Receipt
from sorter.spool import Spool

Errand: TypeAlias = tuple[str, str, str]
"""(unit key, product, target)"""


@dataclass(frozen=True, slots=True)
class Outlet:
    """One configured target: the code of its kind, and its own settings."""

    code: str
    settings: Mapping[str, Any]


class Outlets:
    """Hands deliveries to their lanes. The lanes' threads only append to a queue; everything else is the caller's."""

    def __init__(self, spool: Spool, wake: Callable[[], None]) -> None:
        self._spool, self._wake = spool, wake
        self._lanes: dict[str, tuple[Outlet, Lane]] = {}
        self._answers: deque[tuple[str, Put, Result]] = deque()
        self._removals: deque[tuple[Receipt, Removed | Later | Refused]] = deque()
        self._removing: set[tuple[Errand, int]] = set()
        self._under_way: dict[Errand, int] = {}  # the revision being delivered
        self._attempts: dict[Errand, int] = {}
        self._waiting: list[tuple[float, Errand]] = []
        self._random = Random()  # noqa: S311  jitter, not secrets

    def configure(self, outlets: Mapping[str, Outlet]) -> None:
        """Use these targets from now on; the lane of a target that changed ends after its job, and begins anew.

        What waited in it is on its way no more: who owes it sends it again.
        """
        for name, (outlet, lane) in list(self._lanes.items()):
            if outlets.get(name) != outlet:
                lane.stop(10)
                del self._lanes[name]
                self._under_way = {errand: each for errand, each in self._under_way.items() if errand[2] != name}
                self._removing = {each for each in self._removing if each[0][2] != name}
        for name, outlet in outlets.items():
            if name not in self._lanes:
                self._lanes[name] = (outlet, self._lane(name, outlet))

    def _lane(self, name: str, outlet: Outlet) -> Lane:
        def report(put: Put, result: Result) -> None:
            self._answers.append((name, put, result))
            self._wake()

        return Lane(name, outlet.code, outlet.settings, self._open, report)

    def _open(self, put: Put, wanted: Wanted) -> int:
        """Called in a lane's thread: a read-only descriptor of one file."""
        return self._spool.files.open(self._path(put, wanted))

    def _path(self, put: Put, wanted: Wanted) -> Path:
        folder = self._spool.unit_folder(put.key)
        if put.product == DICOM:
            return folder / "images" / wanted.file
        return folder / "products" / f"{put.product}-{put.revision}" / wanted.file

    # --- sending ------------------------------------------------------------------------------------------------

    def __contains__(self, target: str) -> bool:
        """Is it configured now?"""
        return target in self._lanes

    def busy(self, errand: Errand, revision: int) -> bool:
        """Is this revision on its way, or waiting to be tried again?"""
        return self._under_way.get(errand, -1) >= revision or any(each == errand for _, each in self._waiting)

    def under_way(self, key: str) -> bool:
        """Is anything of this unit being delivered or removed?"""
        return any(errand[0] == key for errand in (*self._under_way, *(each for each, _ in self._removing)))

    def submit(self, target: str, put: Put) -> None:
        self._under_way[put.key, put.product, target] = put.revision
        self._lanes[target][1].submit(put)

    def remove(self, receipt: Receipt) -> bool:
        """Have removed from its target what still equals this receipt; False where there is no such target now."""
        errand = (receipt.key, receipt.product, receipt.target)
        if receipt.target not in self._lanes:
            return False
        if (errand, receipt.revision) in self._removing:
            return True

        def tell(result: Removed | Later | Refused) -> None:
            self._removals.append((receipt, result))
            self._wake()

        self._removing.add((errand, receipt.revision))
        self._lanes[receipt.target][1].remove(receipt, tell)
        return True

    def removals(self, now: float) -> list[tuple[Receipt, Removed | Later | Refused]]:
        """What came of removing since the last call; what failed is put on the list to try again."""
        found = []
        while self._removals:
            receipt, result = self._removals.popleft()
            errand = (receipt.key, receipt.product, receipt.target)
            self._removing.discard((errand, receipt.revision))
            if not isinstance(result, Removed):
                self.try_later(errand, now)
            found.append((receipt, result))
        return found

    def answers(self, now: float) -> list[tuple[str, Put, Result]]:
        """(target, put, result) of what ended since the last call; what failed is put on the list to try again."""
        found = []
        while self._answers:
            target, put, result = self._answers.popleft()
            errand = (put.key, put.product, target)
            if self._under_way.get(errand) == put.revision:
                del self._under_way[errand]
            if isinstance(result, Done):
                self._attempts.pop(errand, None)
            elif isinstance(result, Later | Refused):
                self.try_later(errand, now)
            found.append((target, put, result))
        return found

    def try_later(self, errand: Errand, now: float) -> None:
        """After a while that grows with each failure in a row: a person's mistake is looked at again too."""
        self._attempts[errand] = self._attempts.get(errand, 0) + 1
        heapq.heappush(self._waiting, (now + backoff(self._attempts[errand], self._random), errand))

    def due(self, now: float) -> list[Errand]:
        """What should be tried again now."""
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            found.append(heapq.heappop(self._waiting)[1])
        return found

    def try_all_now(self) -> None:
        """A person says that what was wrong is mended."""
        self._waiting = [(0.0, errand) for _, errand in self._waiting]

    @property
    def next(self) -> float | None:
        return self._waiting[0][0] if self._waiting else None

    def stop(self, timeout: float) -> None:
        for _, lane in self._lanes.values():
            lane.stop(timeout)
