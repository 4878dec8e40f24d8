"""Whose series it is: what labs say of themselves (`match`), a table of subjects, and what people write at scanners.

These are asked in the order of `extract`; of lab, subject and session each is given by the first that knows it. A rule
of `match` is `KEYWORD=GLOB`. KEYWORD is a DICOM keyword (PS3.6), as StudyDescription, or one of CallingAE, CalledAE and
PeerAddress, which say who sent it. GLOB has `*`, `?` and `[abc]`; capital and small letters are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)

from sorter import Identity, Series, hookimpl
from sorter.builtin._extractors import MATCH, TABLE, Extractor, check_keyword, extractor
from sorter.builtin._subjects import Subjects, labels_of
from sorter.expected import fits
from sorter.matching import SENDER, fits_rule, texts
from sorter.plugins.table import read_table

NO_ID = "no-id"
"""The subject of what has neither PatientID nor PatientName."""

DEFAULT_SUBJECT = f"PatientID ?? PatientName ?? '{NO_ID}'"

_RULE = re.compile(r"([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+)")
_TERM = re.compile(r"[A-Z][A-Za-z0-9]*|'[^']*'")


def _rule(text: str) -> str:
    found = _RULE.fullmatch(text)
    if not found:
        raise ValueError(f'"{text}" is not a rule; write KEYWORD=GLOB, as "StudyDescription=Memory^*"')
    check_keyword(found[1], tuple(SENDER))
    return text


def _subject(text: str) -> str:
    for term in _terms(text):
        if not _TERM.fullmatch(term):
            raise ValueError(f'"{term}" is not possible; write DICOM keywords joined by ??, as {DEFAULT_SUBJECT}')
        if not term.startswith("'"):
            check_keyword(term)
    return text


def _extractor(text: str) -> str:
    if text not in (MATCH, TABLE):
        extractor(text)
    return text


def _table(value: Any, info: ValidationInfo) -> Subjects:
    return value if isinstance(value, Subjects) else Subjects(read_table(value, info))


class Lab(BaseModel):
    """One lab: it owns a series that any of its rules fits, or of which an extractor reads one of its projects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    match: tuple[Annotated[str, AfterValidator(_rule)], ...] = ()
    projects: tuple[str, ...] | None = None
    """Globs of `group/project`, of a project or of a group. None: the lab's own name."""

    def is_called(self, name: str) -> bool:
        globs = (self.name,) if self.projects is None else self.projects
        return any(fits(glob, name) for glob in globs)


class Settings(BaseModel):
    """`labs` is filled from the configuration; the first that fits owns the series."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    labs: tuple[Lab, ...] = ()
    subject: Annotated[str, AfterValidator(_subject)] = DEFAULT_SUBJECT
    extract: tuple[Annotated[str, AfterValidator(_extractor)], ...] = ()
    table: Annotated[Subjects, BeforeValidator(_table), PlainSerializer(lambda subjects: subjects.rows)] = Subjects()

    _order: tuple[tuple[str, Extractor | None], ...] = PrivateAttr()

    @model_validator(mode="after")
    def _ready(self) -> Settings:
        self.table.check_labs([lab.name for lab in self.labs])
        order = [each for each in (TABLE, MATCH) if each not in self.extract] + list(self.extract)
        self._order = tuple((each, None if each in (MATCH, TABLE) else extractor(each)) for each in order)
        return self

    def identities(self, series: Series) -> Iterator[Identity]:
        """What each says, in their order."""
        for name, extract in self._order:
            if name == MATCH:
                owner = next((lab.name for lab in self.labs for rule in lab.match if fits_rule(rule, series)), None)
                yield Identity(owner)
            elif name == TABLE:
                says = self.table.of(series)
                yield Identity(says.get("lab"), says.get("subject"), says.get("session"), labels_of(says))
            elif extract is not None:
                found = extract(series)
                owner = next((lab.name for name in found.names for lab in self.labs if lab.is_called(name)), None)
                labels = {"group": found.group, "project": found.project, **found.labels}
                yield Identity(owner, found.subject or None, found.session or None,
                               {name: value for name, value in labels.items() if value})  # fmt: skip
        yield Identity(subject=_first(self.subject, series))


@hookimpl
def sorter_config() -> type[Settings]:
    return Settings


@hookimpl
def sorter_identify(series: Series, settings: Settings) -> Identity:
    lab = subject = session = None
    labels: dict[str, str] = {}
    for found in settings.identities(series):
        lab, subject, session = lab or found.lab, subject or found.subject, session or found.session
        labels = {**found.labels, **labels}
    return Identity(lab, subject, session, labels)


def _terms(pattern: str) -> list[str]:
    return [term.strip() for term in pattern.split("??")]


def _first(pattern: str, series: Series) -> str | None:
    for term in _terms(pattern):
        text = term[1:-1] if term.startswith("'") else next(texts(term, series), "").strip()
        if text:
            return text
    return None
