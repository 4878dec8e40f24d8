"""Whose series it is by default: the first lab with a rule that fits, and the patient's ID as the subject.

A rule is `KEYWORD=GLOB`. KEYWORD is a DICOM keyword (PS3.6), as StudyDescription, or one of CallingAE, CalledAE and
PeerAddress, which say who sent it. GLOB has `*`, `?` and `[abc]`; capital and small letters are the same.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from sorter import Identity, Series, hookimpl
from sorter.matching import SENDER, fits_rule, texts

NO_ID = "no-id"
"""The subject of what has neither PatientID nor PatientName."""

DEFAULT_SUBJECT = f"PatientID ?? PatientName ?? '{NO_ID}'"

_RULE = re.compile(r"([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+)")
_TERM = re.compile(r"[A-Z][A-Za-z0-9]*|'[^']*'")


def _rule(text: str) -> str:
    found = _RULE.fullmatch(text)
    if not found:
        raise ValueError(f'"{text}" is not a rule; write KEYWORD=GLOB, as "StudyDescription=Memory^*"')
    _check_keyword(found[1], tuple(SENDER))
    return text


def _subject(text: str) -> str:
    for term in _terms(text):
        if not _TERM.fullmatch(term):
            raise ValueError(f'"{term}" is not possible; write DICOM keywords joined by ??, as {DEFAULT_SUBJECT}')
        if not term.startswith("'"):
            _check_keyword(term)
    return text


def _check_keyword(keyword: str, more: tuple[str, ...] = ()) -> None:
    """A misspelt keyword would never fit, in silence."""
    from pydicom.datadict import keyword_dict

    if keyword in more or keyword in keyword_dict:
        return
    import difflib

    close = difflib.get_close_matches(keyword, [*more, *keyword_dict], n=1)
    raise ValueError(f"{keyword} is no DICOM keyword{f', did you mean {close[0]}?' if close else ''}")


class Lab(BaseModel):
    """One lab: it owns a series that any of its rules fits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    match: tuple[Annotated[str, AfterValidator(_rule)], ...] = ()


class Settings(BaseModel):
    """`labs` is filled from the configuration; the first that fits owns the series."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labs: tuple[Lab, ...] = ()
    subject: Annotated[str, AfterValidator(_subject)] = DEFAULT_SUBJECT


@hookimpl
def sorter_config() -> type[Settings]:
    return Settings


@hookimpl
def sorter_identify(series: Series, settings: Settings) -> Identity:
    owner = next((lab.name for lab in settings.labs if any(fits_rule(rule, series) for rule in lab.match)), None)
    return Identity(lab=owner, subject=_first(settings.subject, series))


def _terms(pattern: str) -> list[str]:
    return [term.strip() for term in pattern.split("??")]


def _first(pattern: str, series: Series) -> str | None:
    for term in _terms(pattern):
        text = term[1:-1] if term.startswith("'") else next(texts(term, series), "").strip()
        if text:
            return text
    return None
