"""`sorter verify`: the store, the receipts and the targets, compared with each other. Nothing is changed here.

What is in the store is compared with its records, and each delivery with its receipt, by the code of its target in a
worker process of its own: a mount that hangs holds up nothing but its own deliveries. A lab may do with its files what
it likes, so what it removed or edited is told, and is no fault; damage is a fault.
"""

from __future__ import annotations

import enum
import queue
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from sorter.deliver.lane import Lane, Patience
from sorter.deliver.target import Later, Refused, Verified
from sorter.deliver.workers import Started, may_start
from sorter.model import DICOM, Instance, Receipt
from sorter.spool import Unit
from sorter.spool.unit import image_of

STORE = "store"
"""Where a finding is that is of no target."""

AT_ONCE = 2
"""Receipts that are with one target's worker: the one at hand, and the next, so that it never waits."""

PATIENCE = Patience(silence=60.0)
"""Somebody sits before it: a mount that hangs is told of after this long."""

Answer: TypeAlias = Verified | Later | Refused


class Standing(enum.StrEnum):
    """What is the matter with files that are not as the records say."""

    DAMAGED = "damaged"
    LOST = "lost"  # gone, from the store or, where it was asked for, from a target that lost what was delivered
    OUTDATED = "outdated"  # the target was put back to an earlier day
    GONE = "its folder is gone"
    REMOVED = "removed by the lab"
    EDITED = "edited by the lab"
    UNKNOWN = "could not be compared"
    INCOMPARABLE = "of a kind that cannot be compared"

    @property
    def is_fault(self) -> bool:
        """Something that nobody wanted, or that is not known."""
        return self in (Standing.DAMAGED, Standing.LOST, Standing.OUTDATED, Standing.UNKNOWN)

    @property
    def can_be_mended(self) -> bool:
        """By a delivery, from the store."""
        return self in (Standing.DAMAGED, Standing.LOST, Standing.OUTDATED)


@dataclass(frozen=True, slots=True)
class Finding:
    """Files of one unit, in the store or at one target, that are not as the records say."""

    key: str
    where: str
    product: str
    standing: Standing
    names: tuple[str, ...]
    why: str = ""


@dataclass(slots=True)
class Tally:
    """What was compared, in files, and what was found."""

    stored: int = 0
    delivered: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        return [each for each in self.findings if each.standing.is_fault]

    @property
    def can_be_mended(self) -> bool:
        """Is there anything at a target that can be delivered again?"""
        return any(each.standing.can_be_mended and each.where != STORE for each in self.findings)


# --- the store ------------------------------------------------------------------------------------------------------


def in_store(unit: Unit, *, deep: bool, progress: Callable[[int], None]) -> Iterator[Finding]:
    """Compare the images of a unit with its records: presence and size, or where `deep` every byte."""
    found: dict[Standing, list[str]] = {}
    here = [each for each in unit.instances.values() if each.file not in unit.left]  # the others are compared elsewhere
    latest = {image_of(each): each.file for each in here}
    for each in here:
        if latest[image_of(each)] != each.file:  # it was lost once, and came again
            continue
        standing = _of_image(unit, each, deep)
        progress(each.size)
        if standing is not None:
            found.setdefault(standing, []).append(each.file)
    for standing, names in found.items():
        yield Finding(unit.key, STORE, "dicom", standing, tuple(names))


def _of_image(unit: Unit, instance: Instance, deep: bool) -> Standing | None:
    try:
        if unit.spool.files.stat(unit.images / instance.file).st_size != instance.size:
            return Standing.DAMAGED
        if deep and unit.digest_of(instance.file) != instance.sha256:
            return Standing.DAMAGED
    except FileNotFoundError:
        return Standing.LOST
    except OSError:
        return Standing.DAMAGED
    return None


# --- the targets ----------------------------------------------------------------------------------------------------


class Outlet(Protocol):
    """A configured target: the code of its kind, its settings, and whose its files are."""

    @property
    def code(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def account(self) -> str: ...


class Targets:
    """Compares receipts with what is at their targets, several targets at a time.

    One that is away is asked no more: of ten thousand receipts each would wait for it anew.
    """

    def __init__(self, outlets: Mapping[str, Outlet], *, deep: bool, patience: Patience = PATIENCE) -> None:
        self._outlets, self._deep, self._patience = outlets, deep, patience
        self._lanes: dict[str, Lane] = {}
        self._away: dict[str, Later] = {}
        self._answers: queue.SimpleQueue[tuple[Receipt, Answer]] = queue.SimpleQueue()

    def compare(self, receipts: Iterable[Receipt]) -> Iterator[tuple[Receipt, Answer]]:
        """Each of these with the answer of its target, as they come."""
        waiting: dict[str, deque[Receipt]] = {}
        for receipt in receipts:
            waiting.setdefault(receipt.target, deque()).append(receipt)
        under_way = sum(self._next(waiting[target]) for target in list(waiting) for _ in range(AT_ONCE))
        while under_way:
            receipt, answer = self._answers.get()
            if isinstance(answer, Later) and answer.away:
                self._away.setdefault(receipt.target, answer)
            under_way += self._next(waiting[receipt.target]) - 1
            yield receipt, answer

    def _next(self, waiting: deque[Receipt]) -> int:
        """Have the next one compared; how many that is."""
        if not waiting:
            return 0
        receipt = waiting.popleft()
        if receipt.target not in self._outlets:
            self._answers.put((receipt, Refused(f"{receipt.target} is no configured target any more")))
            return 1
        if receipt.target in self._away:
            self._answers.put((receipt, self._away[receipt.target]))
            return 1
        self._lane(receipt.target).verify(receipt, lambda answer: self._answers.put((receipt, answer)), deep=self._deep)
        return 1

    def _lane(self, target: str) -> Lane:
        if target not in self._lanes:
            outlet = self._outlets[target]
            workers = Started(outlet.account if may_start(outlet.account) else "")  # to look, reading may be enough
            self._lanes[target] = Lane(
                target, outlet.code, outlet.settings, _nothing_to_deliver, _nothing_to_deliver,
                patience=self._patience, workers=workers,
            )  # fmt: skip
        return self._lanes[target]

    def stop(self) -> None:
        """End the workers."""
        for lane in self._lanes.values():
            lane.stop(1.0)


def _nothing_to_deliver(*_: object) -> Any:
    raise AssertionError("nothing is delivered here")


ALONE = "the store has no copy any more"


def at_target(
    receipt: Receipt, answer: Answer, *, was_lost: bool, left: Container[str] = frozenset()
) -> Iterator[Finding]:
    """What the answer of a target says. `was_lost`: what is gone was lost by the target, not removed by the lab.

    `left` are image files that have left the store: of those it is told that none is there.
    """
    if not isinstance(answer, Verified):
        never = isinstance(answer, Refused) and answer.never
        standing = Standing.INCOMPARABLE if never else Standing.UNKNOWN
        yield Finding(receipt.key, receipt.target, receipt.product, standing, (), answer.why)
        return
    gone = Standing.LOST if was_lost else Standing.REMOVED if answer.there else Standing.GONE
    for standing, names in (
        (Standing.DAMAGED, answer.damaged),
        (Standing.OUTDATED, answer.outdated),
        (gone, answer.missing),
        (Standing.EDITED, answer.changed),
    ):
        alone = {each.name for each in receipt.files if receipt.product == DICOM and each.file in left}
        for some, note in (
            (tuple(name for name in names if name not in alone), answer.note),
            (tuple(name for name in names if name in alone), "; ".join(filter(None, (answer.note, ALONE)))),
        ):
            if some:
                yield Finding(receipt.key, receipt.target, receipt.product, standing, some, note)
