"""A plugin of sorter: whose a series is, what is held and where it goes, by tables that a person edits.

Two kinds of table, each a CSV or TSV file. `rules` has conditions in columns named by DICOM keywords and answers in
columns named lab, subject, session, hold, skip, only and add; for each answer the first row that fits counts. `listed`
is a list of those who may be delivered, as a consent list: what is not on it is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydicom.datadict import tag_for_keyword

from sorter import Add, Hold, Identity, Only, Series, Skip, Table, hookimpl
from sorter.expected import fits
from sorter.matching import SENDER, texts

ANSWERS = ("lab", "subject", "session", "hold", "skip", "only", "add")
NOTE = "note"
"""A column for people, which says nothing to sorter."""

Row = dict[str, str]


def _conditions(row: Row) -> Iterator[tuple[str, str]]:
    for name, glob in row.items():
        if name not in ANSWERS and name != NOTE and glob:
            yield name, glob


def _check_columns(rows: tuple[Row, ...], answers: tuple[str, ...]) -> None:
    for name in rows[0] if rows else ():
        if name in answers or name == NOTE or name in SENDER:
            continue
        if tag_for_keyword(name) is None:
            known = ", ".join((*answers, NOTE, *SENDER))
            raise ValueError(f'the column "{name}" is no DICOM keyword, as PatientID, and none of {known}')


def _rules(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    _check_columns(rows, ANSWERS)
    for number, row in enumerate(rows, 1):
        said = [name for name in ANSWERS if row.get(name)]
        if not said:
            raise ValueError(f"{_place(row, number)} says nothing: fill in one of {', '.join(ANSWERS)}")
        if len(routes := [name for name in said if name in ("hold", "skip", "only", "add")]) > 1:
            raise ValueError(f"{_place(row, number)} says {' and '.join(routes)}; one of them")
    return rows


def _listed(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    _check_columns(rows, ())
    for number, row in enumerate(rows, 1):
        if not dict(_conditions(row)):
            raise ValueError(f"{_place(row, number)} is empty, and would fit every series")
    return rows


def _place(row: Row, number: int) -> str:
    """File and line, where the row was just read."""
    return str(getattr(row, "where", f"row {number}"))


class Settings(BaseModel):
    """`rules` and `listed` are tables; `unlisted` is why a series that is not on the list is held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: Annotated[Table, AfterValidator(_rules)] = ()
    listed: Annotated[Table, AfterValidator(_listed)] | None = None
    unlisted: str = "it is not on the list; put it there, or release it with sorter hold"

    def first(self, *answers: str, series: Series) -> Row | None:
        """The first row of `rules` that fits and says one of these."""
        return next((row for row in self.rules if any(map(row.get, answers)) and _fits(row, series)), None)

    def answer(self, name: str, series: Series) -> str | None:
        row = self.first(name, series=series)
        return row[name] if row else None


def _fits(row: Row, series: Series) -> bool:
    """Does each condition fit any value of its attribute? An attribute that is absent fits nothing."""
    return all(any(fits(glob, text) for text in texts(name, series)) for name, glob in _conditions(row))


@hookimpl
def sorter_config() -> type[Settings]:
    return Settings


@hookimpl
def sorter_identify(series: Series, settings: Settings) -> Identity | None:
    lab, subject, session = (settings.answer(each, series) for each in ("lab", "subject", "session"))
    return Identity(lab, subject, session) if lab or subject or session else None


@hookimpl
def sorter_route(series: Series, settings: Settings) -> Hold | Skip | Only | Add | None:
    if settings.listed is not None and not any(_fits(row, series) for row in settings.listed):
        return Hold(settings.unlisted)
    row = settings.first("hold", "skip", "only", "add", series=series)
    if row is None:
        return None
    if row.get("hold"):
        return Hold(row["hold"])
    if row.get("skip"):
        return Skip(row["skip"])
    targets = tuple((row.get("only") or row["add"]).split())
    return Only(targets) if row.get("only") else Add(targets)
