"""What `rename` would do, as a rule of the lab's own file: such series into such a folder, from now on."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence

from pydantic import ValidationError

from sorter.config.lab import Rule
from sorter.errors import SorterError
from sorter.exports.choosing import Choice, Subject
from sorter.exports.finding import Found
from sorter.exports.naming import PRESETS, from_percent, split
from sorter.matching import numbers
from sorter.model import Series, UnitKind
from sorter.naming import Pattern, folder_name, safe_component, values_of


def standing_rule(subject: str, choice: Choice, below: Sequence[str], pattern: str, author: str) -> Rule:
    """The rule for these flags, into the folder `below` the lab's own. SorterError: what no rule can say."""
    for value, says in (
        (subject.startswith("@"), "a list of subjects; give one subject or a glob, or a table to the admin"),
        (choice.study, "--study, one that is there already"),
        (choice.since, "--since, what is there already"),
    ):
        if value:
            raise SorterError(f"a rule is for what comes from now on, not for {says}")
    for part in below:
        if safe_component(part) != part:
            raise SorterError(f'the folder "{part}" cannot be named in a rule: write letters, digits and . _ + - alone')
    wanted = PRESETS.get(pattern, pattern)
    folder, file = split(from_percent(wanted) if "%" in wanted and "{" not in wanted else wanted)
    given = {
        "subject": subject, "series": choice.series or None, "modality": choice.modality or None,
        "folder": "/".join(filter(None, (*below, folder))) or None, "file": file, "author": author,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    try:
        return Rule.model_validate({name: value for name, value in given.items() if value})
    except ValidationError as error:
        raise SorterError("; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())) from None


def places(rule: Rule, every: Iterable[Found]) -> list[str]:
    """The folders, below the lab's own, into which these series come by it, each once."""
    pattern = Pattern(rule.folder) if rule.folder else None
    found = (folder_name(pattern, values_of(each.face, each.identity)) if pattern else "." for each in every)
    return list(dict.fromkeys(found))


def fitting(rule: Rule, every: Sequence[Found], choice: Choice) -> list[Found]:
    """The series that it fits. SorterError: it would miss some that `rename` finds by another name than their ID."""
    found = [each for each in every if rule.fits(_series(each))]
    meant = Subject(rule.subject or "*").among([each for each in every if choice.fits(each)])
    missed = sorted({each.subject for each in meant if each not in found})
    if missed:
        raise SorterError(f"a rule knows subjects by their ID: give {' or '.join(missed)} in place of {rule.subject}")
    return found


def _series(found: Found) -> Series:
    sources = tuple(dict.fromkeys(each.source for each in found.images))
    what = found.key, UnitKind.SERIES, found.study_uid, found.series_uids
    return Series(*what, found.face, len(found.images), sources, found.identity)


def sentence(rule: Rule) -> str:
    """What it says, in words: "Series of subject PILOT*, called *T1*, come into pilots/{subject}."."""
    return f"Series{''.join(f' {each},' for each in _which(rule))} {_whereto(rule)}."


def _which(rule: Rule) -> Iterator[str]:
    if rule.subject:
        yield f"of subject {rule.subject}"
    if rule.modality:
        yield f"of modality {rule.modality}"
    if rule.series:
        yield f"numbered {rule.series}" if numbers(rule.series) is not None else f"called {rule.series}"
    if rule.match:
        yield f"with {' or '.join(rule.match)}"


def _whereto(rule: Rule) -> str:
    if rule.products == ():
        return "are not delivered"
    said = []
    if rule.below or rule.folder:
        usual = "" if rule.folder else ", below it as usual"
        said.append(f"come into {'/'.join(filter(None, (rule.below, rule.folder)))}{usual}")
    if rule.file:
        said.append(f"have files called {rule.file}")
    if rule.products:
        said.append(f"are delivered as {', '.join(rule.products)}")
    return " and ".join(said)
