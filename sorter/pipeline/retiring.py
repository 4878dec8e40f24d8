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
from sorter.words import counted


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
        for where in [where for where in unplanned(live) if where[0] not in owed]:
            for earlier in left_behind(live, where):
                take_away(live, earlier)
            live.behind.discard(where)
            if (receipt := live.receipts.pop(where, None)) is not None:
                live.unit.withdraw_receipt(receipt)
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
        if not receipt.verified and not result.removed and not result.left:
            self._over(live, receipt)  # planned once, and never delivered
            return
        gone = counted(len(result.removed), "files that were delivered before a correction were removed")
        said = f"{receipt.target}: {gone}{f'; {result.note}' if result.note else ''}"
        kept = next((len(each.files) for each in live.retiring if is_same_delivery(each, receipt)), 0)
        if kept > len(receipt.files):
            said += f"; {kept - len(receipt.files)} stay in {result.folder}: the store has them no more"
        self._over(live, receipt, said)

    def _over(self, live: Live, receipt: Receipt, says: str = "") -> None:
        if says:
            live.unit.tell(says)
            self.happened("retired", live, product=receipt.product, target=receipt.target)
        live.unit.retired(receipt)
        live.retiring = [each for each in live.retiring if not is_same_delivery(each, receipt)]
        live.troubles.pop((receipt.product, receipt.target), None)


def take_away(live: Live, receipt: Receipt) -> None:
    """What this says of is to be removed; the last that is said of a delivery counts."""
    live.unit.retire(receipt)
    live.retiring = [*(each for each in live.retiring if not is_same_delivery(each, receipt)), receipt]


def was_a_guess(live: Live, receipt: Receipt) -> bool:
    """Was it removed by what its plan says, and has its receipt come meanwhile, which may tell of other names?"""
    return any(is_same_delivery(each, receipt) and each.verified != receipt.verified for each in live.retiring)


def leave_behind(live: Live, plan: Plan) -> None:
    """This is the plan from now on: what the one before put elsewhere is to be taken away."""
    live.behind |= {(each.product, each.target) for each in live.plan.deliveries} if live.plan else set()
    live.plan = plan


def look_back(live: Live) -> None:
    """Where did earlier plans put something that the plan of now does not name?"""
    if live.plan is not None:
        earlier = live.unit.plans_between(1, live.plan.revision)
        live.behind |= {(each.product, each.target) for plan in earlier for each in plan.deliveries}


def unplanned(live: Live) -> list[tuple[str, str]]:
    """Each (product, target) where something was delivered, or may have been, and that the plan does not name."""
    if live.plan is None:
        return []
    planned = {(each.product, each.target) for each in live.plan.deliveries}
    return [where for where in dict.fromkeys((*live.receipts, *sorted(live.behind))) if where not in planned]


def left_behind(live: Live, where: tuple[str, str]) -> list[Receipt]:
    """What corrections that gave it another place, here or elsewhere, leave at the old ones: a receipt for each.

    The last receipt tells of one of them. Of images the plans since then count too: a disk that fails, or the next
    correction, may come between a delivery and its receipt.
    """
    now_there, before = _delivery(live.plan, where), live.receipts.get(where)
    if live.plan is None or (now_there and before is not None and before.revision >= now_there.since):
        return []
    places: dict[str, Receipt] = {}
    if before is not None and now_there is None:  # whatever its plan says
        places[before.folder] = replace(before, moved=moved(None))
    end = now_there.since if now_there else live.plan.revision
    for plan in live.unit.plans_between(before.revision if before is not None else 1, end):
        was = _delivery(plan, where)
        if was is None or (now_there and was.folder == now_there.folder):
            continue
        there = places.get(was.folder)
        if before is not None and plan.revision == before.revision:
            there = before
            places.pop(before.folder, None)
        files = dict.fromkeys((*(there.files if there else ()), *_images_of(live.unit, was)))
        folder, verified = (there.folder, there.verified) if there else (was.folder, "")  # asked again: the same
        places[was.folder] = Receipt(live.key, *where, plan.revision, folder, tuple(files), verified,
                                     moved=moved(now_there.folder if now_there else None))  # fmt: skip
    return [each for each in places.values() if each.files and (each.verified or not is_known(live, each))]


def is_known(live: Live, receipt: Receipt) -> bool:
    """Is it being removed, or was it? Without a receipt the plans alone say what there was, and say so for ever."""
    return live.unit.was_retired(receipt) or any(is_same_delivery(receipt, each) for each in live.retiring)


def take_back(live: Live, where: tuple[str, str]) -> None:
    """There is nothing to make any more of what was made once: that goes."""
    before = live.receipts.get(where)
    known = before is None or any(is_same_delivery(before, each) for each in live.retiring)
    if before is not None and before.files and not known:
        take_away(live, before)


def _delivery(plan: Plan | None, where: tuple[str, str]) -> Delivery | None:
    """What a plan says of this (product, target)."""
    return next((each for each in plan.deliveries if (each.product, each.target) == where), None) if plan else None


def _images_of(unit: Unit, delivery: Delivery) -> Iterator[Delivered]:
    """The images of a delivery as it would have left them."""
    for image in unit.instances.values():
        if image.file in delivery.names:
            yield Delivered(delivery.names[image.file], image.sha256, image.size, image.file)
