"""What somebody asks for, and what of it can be had: the same for the command and for a lab's request file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sorter.errors import SorterError
from sorter.exports.choosing import Catalogue, Choice, Subject
from sorter.exports.copying import Copy
from sorter.exports.finding import Found, Made
from sorter.exports.naming import Naming, plan_copies, plan_products
from sorter.exports.source import Source
from sorter.model import DICOM
from sorter.naming import safe_value
from sorter.spool import UnitSummary
from sorter.summaries import in_order

NIFTI = "nifti"
"""The product that `--nifti` copies."""

_WORDS = {NIFTI: "NIfTI"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom, which of their series, and under which names. `product`: copied in place of the images."""

    subjects: Sequence[Subject]
    choice: Choice
    names: Naming
    new_name: str = ""
    product: str = ""


@dataclass(slots=True)
class Chosen:
    """The series that fit; what a list calls their subjects; who was asked for and is not there."""

    found: list[Found] = field(default_factory=list)
    new_names: dict[str, str] = field(default_factory=dict)  # by key of a series
    missing: list[Subject] = field(default_factory=list)


def meant(units: Sequence[UnitSummary], wanted: Sequence[Subject]) -> list[UnitSummary]:
    """Those that may be meant: by ID where that is enough, so that not all that there is has to be read."""
    every = in_order([unit for unit in units if unit.state != "withdrawn"])
    ids = {each.text.casefold() for each in wanted if not each.is_glob}
    by_id = [unit for unit in every if (unit.subject or "").casefold() in ids]
    enough = by_id and {(unit.subject or "").casefold() for unit in by_id} == ids
    return by_id if enough else every


def choose(every: Sequence[Found], asked: Asked) -> Chosen:
    """Of these, each once. SorterError: a name fits several subjects, or one new name is for several."""
    found: dict[str, Found] = {}
    chosen = Chosen()
    narrowed = Catalogue([each for each in every if asked.choice.fits(each)])
    for one in asked.subjects:
        fits = narrowed.meant(one)
        if not fits:
            chosen.missing.append(one)
        _check_name(one.new_name, fits, one.text)
        for each in fits:
            found.setdefault(each.key, each)
            name = chosen.new_names.setdefault(each.key, one.new_name) if one.new_name else ""
            if name != one.new_name:
                raise SorterError(f"the list calls {each.subject} {name} and {one.new_name}; leave out one of the two")
    chosen.found = list(found.values())
    if asked.new_name:
        _check_name(asked.new_name, chosen.found, " ".join(each.text for each in asked.subjects), "--as ")
        chosen.new_names = dict.fromkeys(found, asked.new_name)
    return chosen


def _check_name(name: str, found: Sequence[Found], text: str, by: str = "") -> None:
    """SorterError: nothing can be called so, or several subjects would be."""
    if name and not safe_value(name):
        raise SorterError(f'"{name}" can be the name of no subject; write letters and digits')
    if name and len({each.subject for each in found}) > 1:
        raise SorterError(f"{by}{name} is for one subject, and {text} fits several; a list names each")


def plan(source: Source | None, chosen: Chosen, asked: Asked) -> tuple[list[Copy], list[str]]:
    """What is copied, and a sentence for each series of which there is nothing to copy."""
    if source is None:
        return plan_copies(chosen.found, asked.names, chosen.new_names), []
    whole = [each for each in chosen.found if not _product(each, asked)]
    made: list[tuple[Found, str, Made]] = []
    lacking = []
    for series in chosen.found:
        product, title = _product(series, asked), f"{series.subject} {series.number} {series.description}"
        if not product:
            continue
        if series.only is not None and product not in series.only:
            lacking.append(f"no {_called(product)} of {title.strip()}: this lab gets {', '.join(series.only)} only")
            continue
        there = source.made(series, product)
        if there is None:
            says = "there is none (yet): it is made when the series is published, if the lab has a plugin that makes it"
            lacking.append(f"no {_called(product)} of {title.strip()}: {says}")
        elif not there.product.files:
            says = f"there was nothing to make ({there.product.nothing})"
            lacking.append(f"no {_called(product)} of {title.strip()}: {says}")
        else:
            made.append((series, product, there))
    images = plan_copies(whole, asked.names, chosen.new_names)
    return [*images, *plan_products(made, asked.names, chosen.new_names)], lacking


def _product(series: Found, asked: Asked) -> str:
    """What is copied of a series: "" for its images, in place of which its lab may get something else."""
    if asked.product or series.only is None or DICOM in series.only:
        return asked.product
    return series.only[0]


def _called(product: str) -> str:
    return _WORDS.get(product, product)


def rows(found: Sequence[Found]) -> list[Mapping[str, str | int | None]]:
    """The session as a table."""
    return [
        {
            "subject": each.subject, "date": each.text("StudyDate"), "number": each.number,
            "description": each.description, "images": len(each.images), "verdict": each.verdict,
            "lab": each.identity.lab,
        }
        for each in found
    ]  # fmt: skip
