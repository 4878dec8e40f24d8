"""Whose a series is, from what people write at the scanner: each extractor knows one habit of the field.

An extractor reads a group, a project, a subject, a session, or labels, each if it is there. What is a group or project
here becomes a lab by the labs' `projects`; nothing of it is trusted beyond that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from sorter import Series
from sorter.builtin._expressions import Expression
from sorter.errors import did_you_mean
from sorter.matching import SENDER, texts

MATCH, TABLE = "match", "table"
"""The places of the labs' `match` and of the table of subjects in the order of extractors."""

MOST_TEXTS = 16
"""Values of one attribute that an expression is compared with: ten thousand images may have as many."""

_PARTS = ("group", "project", "subject", "session")
_XNAT = re.compile(r"\b(Project|Subject|Session):[ \t]*([^\s;,]+)", re.IGNORECASE)
_EXPRESSION = re.compile(r"([A-Za-z][A-Za-z0-9]*)\s*~\s*(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Extracted:
    """What one extractor read; "" for what is not there."""

    group: str = ""
    project: str = ""
    subject: str = ""
    session: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """What a lab's `projects` are compared with."""
        both = f"{self.group}/{self.project}" if self.group and self.project else ""
        return tuple(filter(None, (both, self.project, self.group)))


Extractor = Callable[[Series], Extracted]


def check_keyword(keyword: str, more: tuple[str, ...] = ()) -> None:
    """ValueError: a misspelt keyword would never fit, in silence."""
    from pydicom.datadict import keyword_dict

    if keyword not in more and keyword not in keyword_dict:
        raise ValueError(f"{keyword} is no DICOM keyword{did_you_mean(keyword, (*more, *keyword_dict))}")


def extractor(text: str) -> Extractor:
    """The one that is called so, or that reads this attribute. ValueError is a sentence that says what is wrong."""
    if text in _KNOWN:
        return _KNOWN[text]
    found = _EXPRESSION.fullmatch(text.strip())
    if found:
        check_keyword(found[1], tuple(SENDER))
        return _by_expression(found[1], Expression(found[2]))
    if not text.isalnum():
        known = ", ".join((MATCH, TABLE, *_KNOWN))
        raise ValueError(f'"{text[:60]}" is no extractor: write {known}, KEYWORD, or KEYWORD ~ EXPRESSION')
    if text[:1].islower():
        raise ValueError(f'there is no extractor "{text[:60]}"{did_you_mean(text, (MATCH, TABLE, *_KNOWN))}')
    check_keyword(text, tuple(SENDER))
    return lambda series: Extracted(group=_text(text, series))


def _text(keyword: str, series: Series) -> str:
    return next(texts(keyword, series), "").strip()


def _siemens(series: Series) -> Extracted:
    """`PI^Project`: at a Siemens console the exam tree's region and program, joined, are the StudyDescription."""
    group, caret, project = _text("StudyDescription", series).partition("^")
    both = bool(caret and group.strip() and project.strip())
    return Extracted(group=group.strip(), project=project.strip()) if both else Extracted()


def _address(series: Series) -> Extracted:
    """`subject@group/project` as the PatientID, as CNI's NIMS and Flywheel read it; the subject may be missing."""
    subject, at, place = _text("PatientID", series).partition("@")
    group, slash, project = place.partition("/")
    if not (at and slash and group.strip() and project.strip()):
        return Extracted()
    return Extracted(group=group.strip(), project=project.strip(), subject=subject.strip())


def _xnat(series: Series) -> Extracted:
    """`Project:X Subject:Y Session:Z` in PatientComments, else in StudyComments, in any order: XNAT's own routing."""
    for keyword in ("PatientComments", "StudyComments"):
        said = {name.lower(): value for name, value in reversed(_XNAT.findall(_text(keyword, series)))}
        if said:
            return Extracted(**said)
    return Extracted()


_KNOWN: Mapping[str, Extractor] = {"siemens": _siemens, "address": _address, "xnat": _xnat}


def _by_expression(keyword: str, expression: Expression) -> Extractor:
    """Named groups `group` (or `lab`), `project`, `subject` and `session`; any other name is a label."""
    if not expression.names:
        raise ValueError("the expression names nothing; write (?P<subject>…), or lab, group, project, session")
    if "lab" in expression.names and "group" in expression.names:
        raise ValueError("lab and group are one in an expression; name one of the two")

    def extract(series: Series) -> Extracted:
        for text in islice(texts(keyword, series), MOST_TEXTS):
            found = expression.search(text)
            if found is not None:
                named = {("group" if name == "lab" else name): value.strip() for name, value in found.items()}
                labels = {name: value for name, value in named.items() if name not in _PARTS}
                return Extracted(**{name: named.get(name, "") for name in _PARTS}, labels=labels)
        return Extracted()

    return extract
