"""Retiring: what was delivered before a correction goes from where it lies, once its successors are delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sorter.deliver.target import Removed
from sorter.model import Delivered, Delivery, Plan, Receipt
from sorter.pipeline.deciding import moved
from sorter.pipeline.outlets import Outlets
from sorter.pipeline.recall import dispensable, is_same_delivery, only_there
from sorter.pipeline.units import Live
from sorter.spool import Unit


@dataclass(slots=True)
class Retiring:
    """`wait_for` has images brought back that lie nowhere else: is one to be waited for? `happened` tells of it."""

    outlets: Outlets
    wait_for: Callable[[Live, tuple[str, str], Sequence[str]], bool]
    happened: Callable[..., None]

    def retire(self, live: Live) -> None:
        """Remove what was delivered before a correction, of each product whose successors are all delivered."""
        if live.unit.held or live.unit.withdrawn:
            return
        owed = {product for product, _ in live.owed}
        planned = {(each.product, each.target) for each in live.plan.deliveries} if live.plan else set()
        for where in [where for where in live.receipts if live.plan and where not in planned and where[0] not in owed]:
            receipt = replace(live.receipts.pop(where), moved=moved(None))
            live.unit.retire(receipt)
            live.unit.withdraw_receipt(receipt)
            live.retiring.append(receipt)
        for receipt in list(live.retiring):
            now_there = live.receipts.get((receipt.product, receipt.target))
            if receipt.product in owed or (now_there is not None and now_there.revision <= receipt.revision):
                continue
            if self.wait_for(live, (receipt.product, receipt.target), only_there(live, receipt)):
                continue
            if not self.outlets.remove(replace(receipt, files=dispensable(live, receipt))):
                self._over(live, receipt, f"{receipt.target} is no configured target any more; remove it by hand")

    def removed(self, live: Live, receipt: Receipt, result: Removed) -> None:
        """The target has removed what it could."""
        said = f"{len(result.removed)} files that were delivered to {receipt.target} before a correction"
        said += f" were removed there{f'; {result.note}' if result.note else ''}"
        kept = next((len(each.files) for each in live.retiring if is_same_delivery(each, receipt)), 0)
        if kept > len(receipt.files):
            said += f"; {kept - len(receipt.files)} stay in {result.folder}: the store has them no more"
        self._over(live, receipt, said)

    def _over(self, live: Live, receipt: Receipt, says: str) -> None:
        live.unit.tell(says)
        live.unit.retired(receipt)
        live.retiring = [each for each in live.retiring if not is_same_delivery(each, receipt)]
        live.troubles.pop((receipt.product, receipt.target), None)
        self.happened("retired", live, product=receipt.product, target=receipt.target)


def replaced(live: Live, where: tuple[str, str]) -> list[Receipt]:
    """What corrections that gave it another place here leave at the old ones, a receipt for each.

    The last receipt tells of one of them. Of images the plans since then count too: a disk that fails, or the next
    correction, may come between a delivery and its receipt.
    """
    now_there, before = _delivery(live.plan, where), live.receipts.get(where)
    if now_there is None or (before is not None and before.revision >= now_there.since):
        return []
    places: dict[str, Receipt] = {}
    for plan in live.unit.plans_between(before.revision if before is not None else 1, now_there.since):
        was = _delivery(plan, where)
        if was is None or was.folder == now_there.folder:
            continue
        there = places.get(was.folder)
        if before is not None and plan.revision == before.revision:
            there = before
        files = dict.fromkeys((*(there.files if there else ()), *_images_of(live.unit, was)))
        folder, verified = (there.folder, there.verified) if there else (was.folder, "")  # asked again: the same
        places[was.folder] = Receipt(live.key, *where, plan.revision, folder, tuple(files), verified,
                                     moved=moved(now_there.folder))  # fmt: skip
    return [receipt for receipt in places.values() if receipt.files]


def take_back(live: Live, where: tuple[str, str]) -> None:
    """There is nothing to make any more of what was made once: that goes."""
    before = live.receipts.get(where)
    known = before is None or any(is_same_delivery(before, each) for each in live.retiring)
    if before is not None and before.files and not known:
        live.unit.retire(before)
        live.retiring.append(before)


def _delivery(plan: Plan | None, where: tuple[str, str]) -> Delivery | None:
    """What a plan says of this (product, target)."""
    return next((each for each in plan.deliveries if (each.product, each.target) == where), None) if plan else None


def _images_of(unit: Unit, delivery: Delivery) -> Iterator[Delivered]:
    """The images of a delivery as it would have left them."""
    for image in unit.instances.values():
        if image.file in delivery.names:
            yield Delivered(delivery.names[image.file], image.sha256, image.size, image.file)
