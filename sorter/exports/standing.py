"""What `rename` would do, as a rule of the lab's own file: such series into such a folder, from now on."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from sorter.config.lab import Rule
from sorter.errors import SorterError
from sorter.exports.choosing import Choice, Subject
from sorter.exports.finding import Found
from sorter.exports.naming import PRESETS, from_percent, split
from sorter.matching import numbers
from sorter.model import DICOM, Series, UnitKind
from sorter.naming import Pattern, folder_name, safe_component, values_of

MOST_SUBJECTS = 100
"""Of a list, each of which gets a rule of its own."""

_SUBJECT = re.compile(r"\{(?:subject|PatientID|PatientName)\b[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Lasting:
    """What the flags of `rename` say of series that are to come to the folder `below` the lab's own from now on."""

    subjects: Sequence[Subject]
    choice: Choice
    pattern: str
    below: Sequence[str] = ()
    new_name: str = ""
    product: str = ""


def standing_rules(asked: Lasting, author: str) -> list[Rule]:
    """A rule for each subject, or glob of subjects, that is named. SorterError: what no rule can say."""
    for value, says in (
        (asked.choice.study, "--study, one that is there already"),
        (asked.choice.since, "--since, what is there already"),
    ):
        if value:
            raise SorterError(f"a rule is for what comes from now on, not for {says}")
    if len(asked.subjects) > MOST_SUBJECTS:
        raise SorterError(
            f"these are {len(asked.subjects)} subjects; each gets a rule of its own, and {MOST_SUBJECTS} are the most: "
            "give a glob, or a table of subjects to the admin"
        )
    if asked.product and asked.pattern != "pretty":
        raise SorterError("a rule puts what is made of series below a folder, under its usual names: leave out --name")
    for part in asked.below:
        if safe_component(part) != part:
            raise SorterError(f'the folder "{part}" cannot be named in a rule: write letters, digits and . _ + - alone')
    return [_rule(asked, each, author) for each in asked.subjects]


def _rule(asked: Lasting, subject: Subject, author: str) -> Rule:
    choice, new_name = asked.choice, asked.new_name or subject.new_name
    given: dict[str, object] = {
        "subject": subject.text, "series": choice.series, "modality": choice.modality, "author": author,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    if asked.product:
        if new_name:
            raise SorterError(f"what is made of series keeps its usual names in a rule: leave out the name {new_name}")
        given |= {"below": "/".join(asked.below), "products": (asked.product,)}
    else:
        wanted = PRESETS.get(asked.pattern, asked.pattern)
        folder, file = split(from_percent(wanted) if "%" in wanted and "{" not in wanted else wanted)
        folder = "/".join(filter(None, (*asked.below, folder)))
        given |= {"folder": _called(folder, subject, new_name), "file": _called(file, subject, new_name)}
    try:
        return Rule.model_validate({name: value for name, value in given.items() if value})
    except ValidationError as error:
        raise SorterError("; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())) from None


def _called(pattern: str, subject: Subject, new_name: str) -> str:
    """The pattern for a subject that is called otherwise in folders and file names. SorterError: it is several."""
    if not new_name:
        return pattern
    if subject.is_glob:
        raise SorterError(f"{new_name} is for one subject, and {subject.text} may fit several; a list names each")
    if safe_component(new_name) != new_name:
        raise SorterError(f'the name "{new_name}" cannot stand in a rule: write letters, digits and . _ + - alone')
    return _SUBJECT.sub(new_name, pattern)


def places(rule: Rule, every: Iterable[Found]) -> list[str]:
    """The folders, below the lab's own, into which these series come by it, each once."""
    where = rule.folder or rule.below
    pattern = Pattern(where) if where else None
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
        instead = "" if DICOM in rule.products else ", in place of their images"
        said.append(f"are delivered as {', '.join(rule.products)}{instead}")
    return " and ".join(said)
