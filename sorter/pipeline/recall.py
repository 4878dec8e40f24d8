"""Recall: images that left the store are brought back from where they were delivered, because something needs them.

A product is made anew, a correction gives them another place, or what was delivered is about to be replaced although it
is the only copy. The target's worker copies them into the spool; only what has its digest comes back into the store,
and leaves again in its time. What no target can give back is given up until a person says `sorter retry`: whoever needs
it goes on without, and says so.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from sorter.deliver.lane import Lane
from sorter.deliver.target import Fetched, Later, Refused
from sorter.model import DICOM, Delivered, Delivery, Receipt, Standing
from sorter.pipeline.outlets import Outlets
from sorter.pipeline.units import Live
from sorter.spool import Spool, Unit
from sorter.spool.unit import digest_at, image_of
from sorter.spool.whereabouts import once_there, whereabouts
from sorter.words import counted

AT_ONCE = 64
"""Images that are fetched together: their descriptors go with one frame."""

Answer: TypeAlias = Fetched | Later | Refused


@dataclass(frozen=True, slots=True)
class _Errand:
    """Images under way from one target: for each what its receipt says, and where it is copied to."""

    receipt: Receipt
    lane: Lane
    files: dict[str, tuple[Delivered, Path]]  # by image file


@dataclass(slots=True)
class Recall:
    """One errand a unit at a time."""

    spool: Spool
    outlets: Outlets
    _under_way: dict[str, _Errand] = field(default_factory=dict)  # by key
    _answers: deque[tuple[str, _Errand, Answer]] = field(default_factory=deque)
    _without: set[tuple[str, str, str, str]] = field(default_factory=set)  # (key, file, target, folder): not there
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def fetch(self, live: Live, files: Iterable[str]) -> tuple[str, bool]:
        """Have those of `files` that left brought back: (why to wait, is it to be tried again later by the caller).

        ("", False) where there is nothing to wait for: what is still not in the store then cannot be had.
        """
        wanted = [file for file in files if file in live.unit.left and not _lies_here_too(live.unit, file)]
        errand = self._under_way.get(live.key)
        if errand is not None and self.outlets.lane(errand.receipt.target) is not errand.lane:
            self._tidy(self._under_way.pop(live.key))  # another configuration: no answer counts
            errand = None
        if errand is not None and wanted:
            return _says(errand.receipt), False
        away: Receipt | None = None
        likely = list(whereabouts(live.unit)) if wanted else []
        for receipt in (*likely, *(once_there(live.unit) if wanted else ())):
            some = self._had(live, wanted, receipt)
            lane = self.outlets.lane(receipt.target)
            if some and lane is not None:
                self._begin(live, receipt, lane, some)
                return _says(receipt), False
            away = receipt if some and receipt in likely else away
        if _stand_in(live.unit, wanted):
            return "copies that came again take the place of images that have left the store", False
        if away is not None:
            return f"{_says(away)}; it is away, or configured no more", True
        return "", False

    def _had(self, live: Live, wanted: Iterable[str], receipt: Receipt) -> dict[str, Delivered]:
        """Of these images what was delivered there, whatever became of it: it is looked for once."""
        there = {each.file: each for each in receipt.files}
        found = {}
        for file in wanted:
            each = there.get(file)
            place = (live.key, file, receipt.target, receipt.folder)
            if each is not None and each.sha256 == live.unit.instances[file].sha256 and place not in self._without:
                found[file] = each
        return dict(itertools.islice(found.items(), AT_ONCE))

    def _begin(self, live: Live, receipt: Receipt, lane: Lane, some: dict[str, Delivered]) -> None:
        receipt = replace(receipt, files=tuple(some.values()))
        files = {file: (each, self.spool.taking / f"back-{next(self._numbers)}") for file, each in some.items()}
        errand = self._under_way[live.key] = _Errand(receipt, lane, files)
        names = [each.beside or each.name for each in some.values()]
        copies = [path for _, path in files.values()]
        lane.fetch(receipt, names, lambda: self._opened(copies), functools.partial(self._hear, live.key, errand))

    def _opened(self, copies: Iterable[Path]) -> list[int]:
        return [self.spool.files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW) for path in copies]

    def _hear(self, key: str, errand: _Errand, answer: Answer) -> None:
        """Called in a lane's thread."""
        self._answers.append((key, errand, answer))
        self.outlets.wake()

    def retry(self) -> None:
        """A person says that what was wrong is mended."""
        self._without.clear()

    def look_again(self, key: str) -> None:
        """What of this unit was not there may be by now."""
        self._without = {each for each in self._without if each[0] != key}

    # --- what came of it ----------------------------------------------------------------------------------------

    def answers(self) -> Iterator[tuple[str, Callable[[Unit], str]]]:
        """(key, step): the step takes into the store what came of a unit, and says why to try later; "" to go on."""
        while self._answers:
            key, errand, answer = self._answers.popleft()
            if self._under_way.get(key) is errand:
                del self._under_way[key]
                yield key, functools.partial(self._take, errand, answer)
            else:
                self._tidy(errand)

    def _take(self, errand: _Errand, answer: Answer, unit: Unit) -> str:
        try:
            if unit.withdrawn:
                return ""  # meanwhile: nothing of it comes back
            if not isinstance(answer, Fetched):
                return answer.why
            good = set(answer.good)
            back = [file for file, (each, path) in errand.files.items()
                    if (each.beside or each.name) in good and self._place(unit, file, path)]  # fmt: skip
            for file in errand.files.keys() - set(back):
                self._without.add((unit.key, file, errand.receipt.target, errand.receipt.folder))
            if back:
                self.spool.files.fsync_folders({(unit.images / file).parent for file in back})
                unit.come_back(back)
                unit.tell(f"{counted(len(back), 'images are')} back in the store, from {errand.receipt.target}")
            return ""
        finally:
            self._tidy(errand)

    def _tidy(self, errand: _Errand) -> None:
        """Leave nothing of its copies. What cannot be removed now goes with the next start."""
        for _, path in errand.files.values():
            with contextlib.suppress(OSError):
                self.spool.files.unlink(path)

    def _place(self, unit: Unit, file: str, path: Path) -> bool:
        """Give a copy its place in the store, if it has the digest that the image came with.

        A worker may run as another's account, and keep its descriptor of what it wrote: a copy of that is taken.
        """
        disk, instance, own = self.spool.files, unit.instances[file], path.with_name(f"{path.name}-own")
        if disk.stat(path).st_size != instance.size:
            return False
        try:
            with disk.opened(path) as reading, disk.opened(own, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as writing:
                disk.copy(reading, writing)
            if digest_at(disk, own) != instance.sha256:
                return False
            disk.fsync_all([own])
            disk.make_folders((unit.images / file).parent)
            if not disk.exists(unit.images / file):
                disk.link(own, unit.images / file)
            return True
        finally:
            with contextlib.suppress(OSError):
                disk.unlink(own)


def _says(receipt: Receipt) -> str:
    return f"images that have left the store are fetched from {receipt.target}, where they were delivered"


# --- what is needed, and what is not --------------------------------------------------------------------------------


def absent(live: Live) -> list[str]:
    """Current images of the latest revision that are not in the store: what a product would lack."""
    assert live.revision is not None
    return [each.file for each in live.revision.instances
            if each.standing is Standing.CURRENT and each.file in live.unit.left]  # fmt: skip


def lacking(live: Live, delivery: Delivery) -> list[str]:
    """Images that have to be in the store before this delivery of images is made.

    Those that it has to write: all of a new place, what gets another name where it is, and what a person wants mended.
    And those that it would replace: a copy that was superseded after it had left lies nowhere else.
    """
    unit, where = live.unit, (delivery.product, delivery.target)
    if not unit.left:
        return []
    before = grown(live, delivery)
    there = before.files if before is not None else ()
    mending = {each.file for each in there if each.name in unit.mending.get(where, ())}
    planned = _planned(unit, before) if before is not None else None
    names = planned.names if planned is not None else {}  # what they got there may differ
    return [
        file
        for file in unit.left
        if not unit.instances[file].deliverable
        or before is None
        or file in mending
        or names.get(file) != delivery.names.get(file)
    ]


def grown(live: Live, delivery: Delivery) -> Receipt | None:
    """The receipt of what this delivery grows; None where a correction gave it another place.

    What was to go elsewhere, and is to be here again before it was delivered there, never left.
    """
    receipt = live.receipts.get((delivery.product, delivery.target))
    if receipt is None or receipt.revision >= delivery.since:
        return receipt
    was = _planned(live.unit, receipt)
    return receipt if was is not None and was.folder == delivery.folder else None


def _planned(unit: Unit, receipt: Receipt) -> Delivery | None:
    """What the plan of this receipt's revision said of it."""
    plans = unit.plans_between(receipt.revision, receipt.revision + 1)
    found = (each for plan in plans for each in plan.deliveries)
    return next((each for each in found if (each.product, each.target) == (receipt.product, receipt.target)), None)


def alone(live: Live, receipt: Receipt | None) -> tuple[str, ...]:
    """What a target calls those files of a receipt of images that the store has no copy of."""
    return tuple(each.name for each in receipt.files if each.file in live.unit.left) if receipt is not None else ()


def only_there(live: Live, receipt: Receipt) -> list[str]:
    """Images of an earlier delivery that have left the store: to be fetched before what is there is removed."""
    return [each.file for each in receipt.files if receipt.product == DICOM and each.file in live.unit.left]


def dispensable(live: Live, receipt: Receipt) -> tuple[Delivered, ...]:
    """What a correction may remove of an earlier delivery: of images only those that lie in the store."""
    alone = set(only_there(live, receipt))
    return tuple(each for each in receipt.files if each.file not in alone)


def is_same_delivery(one: Receipt, other: Receipt) -> bool:
    """Do both tell of the same revision of the same product at the same target?"""
    return (one.product, one.target, one.revision) == (other.product, other.target, other.revision)


# --- another copy of the same data set ------------------------------------------------------------------------------


def _again(unit: Unit, file: str) -> str:
    """A copy in the store that came after this one had left: the same data set under another file meta; "" for none."""
    gone = unit.instances[file]
    return next((each for each in unit.by_sop[gone.sop_uid]
                 if unit.instances[each].standing is Standing.AGAIN and each not in unit.left
                 and image_of(unit.instances[each]) == image_of(gone)), "")  # fmt: skip


def _lies_here_too(unit: Unit, file: str) -> bool:
    """Is nothing lost with this copy, which is not current any more?"""
    return not unit.instances[file].deliverable and bool(_again(unit, file))


def _stand_in(unit: Unit, files: Iterable[str]) -> bool:
    """Where nobody has an image any more, the copy that came again takes its place, and is published. Was there any?"""
    instead = {other: file for file in files
               if unit.instances[file].standing is Standing.CURRENT and (other := _again(unit, file))}  # fmt: skip
    if instead:
        unit.take_place(instead)
        unit.tell(f"{len(instead)} images are not where they were delivered: copies that came again take their place")
    return bool(instead)
