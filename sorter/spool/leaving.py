"""How an image leaves the store: the only place in sorter where one is removed.

Somebody has to prove, right before, from what the disk says at that moment, that it may go; what the prover does not
allow stays. First it is written down that it left and why, durable; then it goes; its records stay. From the first that
left after a delivery on, the spool is refused by a sorter that knows nothing of this and would call it lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sorter.model import DICOM, Instance, Receipt, Standing, plain
from sorter.spool.lines import now as wall_clock
from sorter.spool.unit import DELIVERED, Unit, UnitSummary, content, image_of

MAY_LEAVE = (Standing.CURRENT, Standing.AGAIN)
"""What may leave after its delivery. A conflict copy, a superseded header and a transcoded copy stay for ever."""


NOT_THERE = "its delivered copy is not there any more as it was delivered"


class Proof(Protocol):
    """Why images of one unit may leave. Both questions are asked right before, of the unit as its records say now."""

    @property
    def because(self) -> str:
        """The word that evidence keeps."""
        ...

    def forbids(self, unit: Unit) -> str:
        """Why all of it has to stay; "" where some may go."""
        ...

    def keeps(self, unit: Unit, file: str) -> str:
        """Why this one has to stay; "" where it may go."""
        ...

    def tombstone(self, unit: Unit, file: str) -> Mapping[str, Any]:
        """What has to be known of it afterwards, beside its evidence; empty for nothing."""
        ...


class Withdrawn:
    """A person withdrew the unit: the tombstone is there, and the unit's own records say so."""

    because = "withdrawn"

    def forbids(self, unit: Unit) -> str:
        if not unit.withdrawn:
            return "its records do not say that it was withdrawn"
        if not unit.spool.withdrawals.holds(unit.key):
            return "it has no tombstone"
        return ""

    def keeps(self, unit: Unit, file: str) -> str:  # noqa: ARG002 - a withdrawal is of the whole unit
        return ""

    def tombstone(self, unit: Unit, file: str) -> Mapping[str, Any]:  # noqa: ARG002 - its evidence says all
        return {}


@dataclass(frozen=True, slots=True)
class Verified:
    """It was delivered, the time to keep it is over, and its target read the delivered copy again on this day.

    `receipt` is what was compared; `same` are the image files whose delivered copies were read, every byte, and found
    equal to it on day `day` of the count, which is `today` still. `sketch` says of an image in the store what a later
    header has to be compared with.
    """

    receipt: Receipt
    same: frozenset[str]
    day: int
    keep: int  # days
    today: Callable[[], int]
    sketch: Callable[[Unit, str], Mapping[str, Any] | None]

    because = DELIVERED

    def forbids(self, unit: Unit) -> str:
        if self.day != self.today():
            return "its delivered copies were verified on another day"
        return _frozen(unit) or self._owed(unit)

    def _owed(self, unit: Unit) -> str:
        revision, plan, receipts = unit.latest_revision(), unit.latest_plan(), unit.receipts()
        if revision is None or content(unit.instances.values()) != content(revision.instances):
            return "not all of it is published"
        if plan is None or plan.revision != revision.revision or plan.revision <= unit.outdated:
            return "its latest revision has no plan"
        due = [receipts.get((each.product, each.target)) for each in plan.deliveries]
        for each, receipt in zip(plan.deliveries, due, strict=True):
            if receipt is None or receipt.revision != plan.revision:
                return f"{each.product} is owed to {each.target}"
        if unit.retiring():
            return "what was delivered before a correction is being removed"
        if self.receipt.product != DICOM or self.receipt not in due:
            return "what was verified is not its last delivery"
        if self.today() - max(each.day for each in due if each is not None and each.product == DICOM) <= self.keep:
            return "the time to keep it is not over"
        return ""

    def keeps(self, unit: Unit, file: str) -> str:
        instance = unit.instances.get(file)
        if instance is None:
            return "its records do not know it"
        if instance.standing not in MAY_LEAVE:
            return f"it is no current image ({instance.standing})"
        original = instance if instance.standing is Standing.CURRENT else _original(unit, instance)
        if original is None or not self._names(original):
            return NOT_THERE
        if unit.digest_of(file) != instance.sha256:
            return "it has no longer the digest that it came with"
        return ""

    def _names(self, instance: Instance) -> bool:
        """Does the receipt name this very file, and was that copy read again?"""
        return instance.file in self.same and any(
            (each.file, each.sha256, each.state) == (instance.file, instance.sha256, "written")
            for each in self.receipt.files
        )

    def tombstone(self, unit: Unit, file: str) -> Mapping[str, Any]:
        instance, receipt = unit.instances[file], self.receipt
        original = instance if instance.standing is Standing.CURRENT else _original(unit, instance)
        assert original is not None
        return {
            "file": file,
            "sha256": instance.sha256,
            "size": instance.size,
            "at": wall_clock(),
            "day": self.day,
            "kept": self.day - receipt.day,
            "target": receipt.target,
            "revision": receipt.revision,
            "folder": receipt.folder,
            "copy": plain(next(each for each in receipt.files if each.file == original.file)),
            "sketch": self.sketch(unit, file),
        }


def _frozen(unit: Unit) -> str:
    if unit.withdrawn:
        return "it was withdrawn"
    if unit.held:
        return f"a person holds it: {unit.held}"
    if unit.mending:
        return "a person wants some of it delivered again"
    if unit.spool.decisions.waiting(unit.key) is not None:
        return "what was decided of it is not done yet"
    claim = next((each for each in unit.spool.claims.all() if unit.key in each.keys), None)
    return f"lab {claim.lab} claims it" if claim is not None else ""


def _original(unit: Unit, again: Instance) -> Instance | None:
    """The current image that this one came again for: the same data set, under another file meta."""
    copies = [unit.instances[file] for file in unit.by_sop[again.sop_uid]]
    return next((each for each in copies
                 if each.standing is Standing.CURRENT and image_of(each) == image_of(again)), None)  # fmt: skip


def let_go(unit: Unit, files: Sequence[str], proof: Proof) -> dict[str, str]:
    """Remove these images from the store as far as `proof` allows; by file, why those that stay have to.

    `unit` is brought up to date. OSError leaves a state from which the same call goes on.
    """
    now = Unit.load(unit.spool, unit.key)
    if why := proof.forbids(now):
        return dict.fromkeys(files, why)
    stay = {file: why for file in files if (why := proof.keeps(now, file))}
    going = [file for file in files if file not in stay]
    new = [file for file in going if file not in now.left]
    if new and proof.because == DELIVERED:
        unit.spool.mark_left()
    if tombstones := [entry for file in new if (entry := proof.tombstone(now, file))]:
        unit.bury(tombstones)
    if new:
        unit.add_evidence([{"left": new, "because": proof.because}])
        unit.left.update(dict.fromkeys(new, proof.because))
    _remove(unit, going)
    return stay


def _remove(unit: Unit, going: Sequence[str]) -> None:
    disk, folders = unit.spool.files, set[str]()
    for file in going:
        path = unit.images / file
        if disk.exists(path):
            disk.unlink(path)
            folders.add(os.path.dirname(path))
    disk.fsync_folders(folders)


def images_of(unit: Unit) -> Iterator[str]:
    """Every image file that lies in the unit's folder, whether evidence knows it or not."""
    disk = unit.spool.files
    if disk.exists(unit.images):
        for shard in disk.names(unit.images):
            yield from (f"{shard}/{name}" for name in disk.names(unit.images / shard))


def why_it_stays(summary: UnitSummary, keep: int | None, today: int) -> str:
    """Why none of a unit's images can leave now, as its summary says, in words of few kinds; "" where some may."""
    if keep is None:
        return "all is kept for ever"
    if summary.state != "delivered":
        return {"open": "still arriving", "owed": "something of it is owed", "held": "held",
                "kept": "delivered nowhere"}.get(summary.state, summary.state)  # fmt: skip
    if not any(each.product == DICOM and each.state == "delivered" for each in summary.deliveries):
        return "only products of it are delivered"
    if not summary.leaving:
        return "conflict copies, superseded and transcoded ones"
    return "" if today - summary.day > keep else "the time to keep it is not over"
