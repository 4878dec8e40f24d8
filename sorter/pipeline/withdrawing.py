"""Withdrawing a unit: what was delivered is taken back, then the images go; tombstone, records and receipts stay.

A target removes only what still equals its receipt, so what somebody changed stays and is named. Every step may be the
last of a life: the unit's own records say that it was withdrawn, and the next life goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sorter.deliver.target import Removed
from sorter.model import DICOM, Delivered, Delivery, Receipt
from sorter.pipeline.exporting import Exporting
from sorter.pipeline.outlets import Outlets
from sorter.pipeline.recall import is_same_delivery
from sorter.pipeline.retiring import is_known, left_behind, look_back, take_away, unplanned
from sorter.pipeline.units import Live
from sorter.pipeline.workshop import Workshop
from sorter.spool.leaving import Withdrawn, images_of, let_go

Happened = Callable[..., None]

_NAMED = 20  # files, of those that a target has left


@dataclass(slots=True)
class Withdrawing:
    """Takes back what was delivered of withdrawn units, and ends with their images."""

    outlets: Outlets
    exporting: Exporting
    workshop: Workshop
    happened: Happened

    def begin(self, live: Live, why: str) -> None:
        """A person says so. What is on its way is taken back once it is there."""
        if not live.unit.withdrawn:
            self._once_more(live)
            live.unit.withdraw(why or "no reason was given")
            self.workshop.cancel(live)
            live.unit.tell(f"withdrawn: {live.unit.withdrawn}")
            self.happened("withdrawn", live, images=str(len(live.unit.instances)))
            look_back(live)
        self.go_on(live)

    def _once_more(self, live: Live) -> None:
        """What a correction had to leave where it lay, since the store had it no more, goes from there too."""
        buried = set(live.unit.buried())
        for receipt in live.unit.were_retired() if buried else ():
            under_way = any(is_same_delivery(each, receipt) for each in live.retiring)
            if receipt.product == DICOM and not under_way and any(each.file in buried for each in receipt.files):
                take_away(live, receipt)

    def go_on(self, live: Live) -> None:
        """Do what can be done now; called whenever something of a unit ended. Nothing for what is not withdrawn."""
        if not live.unit.withdrawn or live.gone:
            return
        self.exporting.withdrawn(live)
        for receipt in live.unit.exported():
            take_away(live, receipt)
            live.unit.withdraw_exported(receipt)
        delivered = list(self._delivered(live))
        for receipt in delivered:
            take_away(live, receipt)
        for receipt in delivered:  # not before all are written down
            if live.receipts.pop((receipt.product, receipt.target), None) is not None:
                live.unit.withdraw_receipt(receipt)
        for receipt in list(live.retiring):
            if not self.outlets.remove(receipt):
                where = f"{receipt.target}, in {receipt.folder}"
                self._tell(live, receipt, f"{where}: it is no configured target any more; remove it by hand")
        if not live.retiring and not self.outlets.under_way(live.key):
            self._end(live)

    def taken_back(self, live: Live, receipt: Receipt, result: Removed) -> None:
        """A target removed what still equalled its receipt."""
        said = f"{receipt.target}: {len(result.removed)} files of {receipt.product} were removed"
        if result.left:
            names = ", ".join(result.left[:_NAMED]) + (" …" if len(result.left) > _NAMED else "")
            said += f"; {len(result.left)} are left in {result.folder}, for you to remove: {names} ({result.note})"
        self._tell(live, receipt, said, left=list(result.left))

    def _tell(self, live: Live, receipt: Receipt, says: str, **details: object) -> None:
        live.unit.tell(says, **details)
        live.unit.retired(receipt)
        live.retiring = [each for each in live.retiring if not is_same_delivery(each, receipt)]
        live.troubles.pop((receipt.product, receipt.target), None)

    def _delivered(self, live: Live) -> Iterator[Receipt]:
        """Receipts of all that is, or that may be, at a target: a receipt can have been lost with a crash."""
        for delivery in live.plan.deliveries if live.plan else ():
            receipt = live.receipts.get((delivery.product, delivery.target))
            assert live.plan is not None
            if receipt is None or receipt.revision < live.plan.revision:
                yield from self._as_if(live, delivery)
        planned = [(each.product, each.target) for each in live.plan.deliveries] if live.plan else []
        earlier = [each for where in (*planned, *unplanned(live)) for each in left_behind(live, where)]
        yield from earlier
        known = {(each.product, each.target, each.folder) for each in earlier}
        for receipt in live.receipts.values():
            if receipt.files and (receipt.product, receipt.target, receipt.folder) not in known:
                yield receipt

    def _as_if(self, live: Live, delivery: Delivery) -> Iterator[Receipt]:
        """The receipt that a delivery would have, unless it is taken back already."""
        assert live.plan is not None
        assert live.revision is not None
        files: tuple[Delivered, ...] = ()
        if delivery.product == DICOM:
            images = [each for each in live.revision.deliverable if each.file in delivery.names]
            files = tuple(Delivered(delivery.names[each.file], each.sha256, each.size, each.file) for each in images)
        elif (made := self.workshop.made(live, delivery.product)) is not None:
            wanted = [each for each in made.wanted(delivery, live.unit.kind) if not each.merge]  # others share those
            files = tuple(Delivered(each.name, each.sha256, each.size, each.file) for each in wanted)
        receipt = Receipt(
            live.key, delivery.product, delivery.target, live.plan.revision, delivery.folder, files, "",
            "withdrawn before it had a receipt",
        )  # fmt: skip
        if files and not is_known(live, receipt):
            yield receipt

    def _end(self, live: Live) -> None:
        """Nothing of it is at a target any more, but what was named: the images go."""
        let_go(live.unit, list(images_of(live.unit)), Withdrawn())
        self.workshop.forget(live)
        live.gone = True
        live.unit.tell("withdrawn: its images left the store; a copy that comes again goes to quarantine")
        self.happened("withdrawn to the end", live)
