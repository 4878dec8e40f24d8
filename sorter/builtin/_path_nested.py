"""A product with folders in it: at the target each of them is a delivery of its own, and told as one.

So all that is so of a folder of files, who may edit it, how it grows and how it is taken back, is so of each of them. A
name such as "anat/T1w.nii.gz" is a file of the folder "anat"; those without are the folder's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from sorter.builtin._path_folders import file_name
from sorter.deliver.target import Done, Put, Removed, Source, Verified, Wanted
from sorter.errors import Held
from sorter.model import DICOM, Delivered, Receipt
from sorter.naming import short_hash

_Named = TypeVar("_Named", Wanted, Delivered)


def is_nested(job: Put) -> bool:
    """Has it folders, or had it? Images never have. Held: a name could lead elsewhere."""
    if job.product == DICOM:
        return False
    for each in job.files:
        for step in each.name.split("/"):
            file_name(step)
    files: Iterable[Wanted | Delivered] = (*job.files, *(job.previous.files if job.previous else ()))
    return any("/" in each.name for each in files)


def _below(files: Sequence[_Named]) -> Mapping[str, list[tuple[int, _Named]]]:
    """By folder, "" for the product's own: the files, called as they are in it, with their places among all."""
    found: dict[str, list[tuple[int, _Named]]] = {}
    for at, each in enumerate(files):
        folder, _, name = each.name.rpartition("/")
        if isinstance(each, Delivered):
            part = replace(each, name=name, beside=each.beside.rpartition("/")[2])
        else:
            part = replace(each, name=name)
        found.setdefault(folder, []).append((at, part))
    return found


def _joined(folder: str, below: str) -> str:
    return f"{folder}/{below}" if below else folder


def _called(product: str, below: str) -> str:
    """Each part has a manifest of its own, by which its folder is found wherever the lab moved it."""
    return f"{product}.{short_hash(below)}" if below else product


def receipts(receipt: Receipt) -> dict[str, Receipt]:
    """One for each folder."""
    return {
        below: replace(
            receipt,
            product=_called(receipt.product, below),
            folder=_joined(receipt.folder, below),
            files=tuple(each for _, each in files),
        )
        for below, files in sorted(_below(receipt.files).items())
    }


def puts(job: Put, source: Source) -> Iterator[tuple[str, Put, Source]]:
    """One for each folder, with where its files come from."""
    before = receipts(job.previous) if job.previous else {}
    for below, files in sorted(_below(job.files).items()):
        mend = [name.removeprefix(f"{below}/") for name in job.mend if name.rpartition("/")[0] == below]
        part = replace(
            job,
            product=_called(job.product, below),
            folder=_joined(job.folder, below),
            files=tuple(each for _, each in files),
            previous=before.get(below),
            mend=tuple(mend),
        )
        yield below, part, Part(source, [at for at, _ in files])


def gone(job: Put) -> list[Receipt]:
    """Of folders that were delivered, and that this revision has not."""
    now = _below(job.files)
    return [each for below, each in (receipts(job.previous) if job.previous else {}).items() if below not in now]


class Part:
    """Some files of a source."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self._source, self._places = source, places

    def will_need(self, indices: Sequence[int]) -> None:
        self._source.will_need([self._places[each] for each in indices])

    def __call__(self, index: int) -> int:
        return self._source(self._places[index])


def done(job: Put, parts: Sequence[tuple[str, Done]]) -> Done:
    """All of them told as one, which the lab may have moved. Held: they lie apart, where no name could say that."""
    above = {part.folder.removesuffix(f"/{below}") for below, part in parts}
    if len(above) != 1:
        says = f"{job.key[:8]}: folders of {job.product} were moved apart; move them back, then run `sorter retry`"
        raise Held(says)
    files = [replace(each, name=_at(below, each.name), beside=each.beside and _at(below, each.beside))
             for below, part in parts for each in part.files]  # fmt: skip
    notes = dict.fromkeys(part.note for _, part in parts if part.note)
    return Done(above.pop(), tuple(files), "; ".join(notes))


def _at(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def verified(folder: str, parts: Mapping[str, Verified]) -> Verified:
    def names(state: str) -> tuple[str, ...]:
        return tuple(_at(below, name) for below, part in parts.items() for name in getattr(part, state))

    states = {state: names(state) for state in ("same", "missing", "changed", "damaged", "outdated")}
    notes = dict.fromkeys(part.note for part in parts.values() if part.note)
    return Verified(folder, there=any(part.there for part in parts.values()), note="; ".join(notes), **states)


def removed(folder: str, parts: Mapping[str, Removed]) -> Removed:
    gone = tuple(_at(below, name) for below, part in parts.items() for name in part.removed)
    left = tuple(_at(below, name) for below, part in parts.items() for name in part.left)
    notes = dict.fromkeys(part.note for part in parts.values() if part.note)
    return Removed(folder, gone, left, "; ".join(notes))
