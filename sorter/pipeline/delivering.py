"""Delivering: what a plan owes is had, made and sent, and stands in a receipt once it is there.

Images that have left the store are brought back first, products are made first, by `Making`. What cannot be sent now is
a trouble of that one delivery, which `status` and `why` tell, and is tried again by the outlets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sorter.deliver.target import Done, Later, Put, Refused, Wanted
from sorter.engine.work import Outcome
from sorter.model import DICOM, Delivery, Receipt, plain
from sorter.pipeline.making import Making, Waits
from sorter.pipeline.outlets import Outlets
from sorter.pipeline.planning import Planner
from sorter.pipeline.recall import Recall, alone, grown, lacking
from sorter.pipeline.retiring import left_behind, take_away, take_back
from sorter.pipeline.units import Live
from sorter.pipeline.workshop import Workshop
from sorter.spool.layout import now as wall_clock
from sorter.words import counted


@dataclass(slots=True)
class Delivering:
    """`now` is the turn's time in monotonic seconds, `day` the number of today's day of work; `received` hears of
    every unit that has a new receipt."""

    outlets: Outlets
    workshop: Workshop
    recall: Recall
    planner: Callable[[], Planner]
    live: Callable[[str], Live]
    now: Callable[[], float]
    day: Callable[[], int]
    happened: Callable[..., None]
    received: Callable[[Live], None]
    making: Making = field(init=False)

    def __post_init__(self) -> None:
        self.making = Making(self.workshop, self.planner, self.live, self._fetch)

    def deliver(self, live: Live) -> None:
        """Start every delivery that is owed and not on its way."""
        plan = live.plan if not live.unit.held and not live.unplanned and not live.growing else None
        for delivery in plan.deliveries if plan else ():
            errand = (live.key, delivery.product, delivery.target)
            assert plan is not None
            if errand[1:] not in live.owed or self.outlets.busy(errand, plan.revision):
                continue
            if not self.may_leave(live, delivery.product):
                live.troubles[errand[1:]] = (
                    f"{delivery.product} may not leave any more: [labs.{plan.identity.lab}] only"
                )
                continue
            if delivery.target not in self.outlets:
                live.troubles[errand[1:]] = f"{delivery.target} is no configured target any more; configure it again"
                continue
            if delivery.product != DICOM:
                self._make_or_send(live, delivery)
            elif not self.wait_for(live, errand[1:], lacking(live, delivery)):
                self._send(live, delivery, self._images(live, delivery))

    def may_leave(self, live: Live, product: str) -> bool:
        """Is it among what its lab gets, where that gets nothing else?"""
        return live.plan is None or self.planner().may_leave(live.plan.identity.lab, product)

    def _make_or_send(self, live: Live, delivery: Delivery) -> None:
        assert live.revision is not None
        where = (delivery.product, delivery.target)
        made = self.making.provide(live, delivery.product)
        if isinstance(made, Waits):
            if made.why:
                live.troubles[where] = made.why
            if made.later:
                self.outlets.try_later((live.key, *where), self.now())
        elif made.nothing:
            take_back(live, where)
            none = Receipt(live.key, *where, live.revision.revision, "", (), wall_clock(), made.nothing)
            self._receive(live, none, live.unit.mending.get(where, ()))
        else:
            self._send(live, delivery, made.wanted(delivery, live.unit.kind))

    def _images(self, live: Live, delivery: Delivery) -> list[Wanted]:
        assert live.revision is not None
        return [
            Wanted(delivery.names[each.file], each.sha256, each.size, each.file, gone=each.file in live.unit.left)
            for each in live.revision.deliverable
        ]

    def _send(self, live: Live, delivery: Delivery, files: Sequence[Wanted]) -> None:
        assert live.plan is not None
        before = grown(live, delivery)
        waits = self.outlets.submit(
            delivery.target,
            Put(
                id=f"{live.key}-{live.plan.revision}-{delivery.product}",
                key=live.key,
                product=delivery.product,
                revision=live.plan.revision,
                folder=delivery.folder,
                files=tuple(files),
                previous=before,
                manifest=_manifest(live, shown=self.may_leave(live, DICOM)),
                mend=live.unit.mending.get((delivery.product, delivery.target), ()),
                exact=any(each.merge for each in files),
                alone=alone(live, before) if delivery.product == DICOM else (),
            ),
        )
        if waits:
            self.not_yet(live, delivery.product, delivery.target, waits)

    # --- what came of it --------------------------------------------------------------------------------------------

    def answered(self, live: Live, target: str, put: Put, result: Done | Later | Refused) -> None:
        """What came of sending."""
        if not isinstance(result, Done):
            self.not_yet(live, put.product, target, result.why)
            self.recall.look_again(live.key)  # before the next attempt: the lab may have put it back
            return
        receipt = Receipt(
            live.key, put.product, target, put.revision, result.folder, result.files, wall_clock(), result.note,
            day=self.day(),
        )  # fmt: skip
        self._receive(live, receipt, put.mend)
        self.deliver(live)

    def _receive(self, live: Live, receipt: Receipt, mended: Sequence[str]) -> None:
        """Only now it is delivered. `mended`: what a person wanted as it was, as far as that was known when it was
        sent."""
        where = (receipt.product, receipt.target)
        for earlier in left_behind(live, where):
            if earlier.revision != receipt.revision:  # else this tells of it, and better
                take_away(live, earlier)
        live.unit.write_receipt(receipt)
        live.receipts[where] = receipt
        live.troubles.pop(where, None)
        if where in live.unit.mending:
            live.unit.mend(where, [name for name in live.unit.mending[where] if name not in mended])
        note = f" ({receipt.note})" if receipt.note else ""
        if receipt.files:
            live.unit.tell(f"{receipt.product} revision {receipt.revision} delivered to {receipt.target}: "
                           f"{counted(len(receipt.files), 'files')}{note}")  # fmt: skip
            self.happened("delivered", live, product=receipt.product, target=receipt.target)
        if receipt.product != DICOM:
            self.workshop.discard(live, receipt.product, receipt.revision)
        self.received(live)

    def not_yet(self, live: Live, product: str, target: str, why: str) -> None:
        """Say why, once."""
        if live.troubles.get((product, target)) != why:
            live.unit.tell(f"{product} is not at {target} yet: {why}")
            self.happened("delivery failed", live, product=product, target=target)
        live.troubles[product, target] = why

    def tell_product(self, live: Live, product: str, outcome: Outcome) -> None:
        """That it was made of this unit, or why not."""
        said = {
            "made": f"{product} was made: {counted(len(outcome.files), 'files')}",
            "nothing": f"no {product}: {outcome.why}",
        }
        live.unit.tell(said.get(outcome.state, f"{product} could not be made: {outcome.why}"), log=outcome.log)
        if outcome.state == "failed":
            self.happened("product failed", live, product=product)

    def heed(self, live: Live, product: str, outcome: Outcome) -> None:
        """What came of a product, for each delivery of it, or of what it is needed for."""
        for delivery in live.plan.deliveries if live.plan else ():
            where = (delivery.product, delivery.target)
            if product in (delivery.product, *self.planner().recipes.all_needs(delivery.product)):
                live.troubles.pop(where, None)
                live.unmade.discard(where)
                if outcome.state == "failed":
                    live.unmade.add(where)
                    live.troubles[where] = f"{product} could not be made: {outcome.why}"
                    self.outlets.try_later((live.key, *where), self.now())

    # --- images that left the store ---------------------------------------------------------------------------------

    def wait_for(self, live: Live, where: tuple[str, str], files: Sequence[str]) -> bool:
        """Are images on their way back that are needed there first? What cannot be had is not waited for."""
        why, later = self._fetch(live, files)
        if why:
            live.troubles[where] = why
        if later:
            self.outlets.try_later((live.key, *where), self.now())
        return bool(why)

    def _fetch(self, live: Live, files: Sequence[str]) -> tuple[str, bool]:
        """(why to wait, is it to be tried again by the caller)"""
        why, later = self.recall.fetch(live, files) if files else ("", False)
        if live.unpublished and not live.state.pending:  # another copy stands for one that nobody has
            live.state = replace(live.state, pending=True, last=self.now(), by_network=True)
        return why, later

    def bring_back(self, live: Live, files: Sequence[str]) -> tuple[str, list[str]]:
        """Have those of these images in the store that left it: (why to wait, those that cannot be had)."""
        gone = [file for file in files if file in live.unit.left]
        why, _ = self.recall.fetch(live, gone) if gone else ("", False)
        return why, [] if why else gone

    def recalled(self, live: Live, why: str) -> None:
        """Images that it needs are back (""), or there is a reason to try it later."""
        for product, target in (*live.owed, *((each.product, each.target) for each in live.retiring)) if why else ():
            self.not_yet(live, product, target, why)
            self.outlets.try_later((live.key, product, target), self.now())
        if not why:
            self.deliver(live)


def _manifest(live: Live, *, shown: bool) -> Mapping[str, Any]:
    """What the hidden manifest beside the files says of them."""
    assert live.plan is not None
    assert live.revision is not None
    return {
        "key": live.key,
        "kind": live.unit.kind.value,
        "study_uid": live.unit.study_uid if shown else "",
        "series_uids": list(live.unit.series_uids) if shown else [],
        "identity": plain(live.plan.identity),
        "verdict": live.revision.verdict.value,
        "revision": live.plan.revision,
    }
