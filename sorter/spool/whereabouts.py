"""Where copies should lie of images that have left the store: what receipts say, and what tombstones said earlier."""

from __future__ import annotations

from collections.abc import Iterator

from sorter.model import DICOM, Delivered, Receipt, build
from sorter.spool.unit import Unit


def whereabouts(unit: Unit) -> Iterator[Receipt]:
    """Receipts of images, the likeliest place first. Nobody has looked there since: only its digest makes a copy one.

    A later receipt may call "removed" what a lab had only moved out of sight for a while. Where it was read right
    before it left is told by its tombstone, here as a receipt that was never written.
    """
    graves = [grave for file in unit.buried() if (grave := unit.tombstone(file)) is not None]
    read_at = {grave["target"] for grave in graves}
    receipts = [each for each in (*unit.receipts().values(), *unit.retiring()) if each.product == DICOM]
    yield from sorted(receipts, key=lambda each: each.target not in read_at)
    known = {(each.target, each.folder) for each in receipts}
    buried: dict[tuple[str, str], list[Delivered]] = {}
    for grave in graves:
        if (grave["target"], grave["folder"]) not in known:
            buried.setdefault((grave["target"], grave["folder"]), []).append(build(Delivered, grave["copy"]))
    for (target, folder), files in buried.items():
        yield Receipt(unit.key, DICOM, target, 1, folder, tuple(files), "")


def once_there(unit: Unit) -> Iterator[Receipt]:
    """Receipts of images that a correction removed, as far as it could: what was out of sight then may be back."""
    known = {(each.target, each.folder) for each in whereabouts(unit)}
    yield from (each for each in unit.were_retired()
                if each.product == DICOM and (each.target, each.folder) not in known)  # fmt: skip
