"""Finding series in a spool by what people call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeAlias

from sorter.errors import SorterError
from sorter.model import UnitKind
from sorter.pipeline.units import revive, summarise
from sorter.spool import Spool, Unit, UnitSummary

Unread: TypeAlias = Callable[[str, OSError], None]
"""Is told of a unit, by its key, whose records the disk does not give."""


def summaries(spool: Spool, unread: Unread | None = None, keys: Iterable[str] | None = None) -> Iterator[UnitSummary]:
    """Of every unit, in no order, or of those of these `keys`; read from its records where the cached summary is gone.
    What cannot be read is left out where there is an `unread`, who only looks; who acts on all that there is has to
    have all (OSError)."""
    for key in spool.keys() if keys is None else keys:
        try:
            found = summary_of(spool, key)
        except OSError as error:
            if unread is None:
                raise
            unread(key, error)
            continue
        if found is not None:
            yield found


def summary_of(spool: Spool, key: str) -> UnitSummary | None:
    """Of one unit; None where nothing of it is here."""
    unit = Unit(spool, key)
    found = unit.summary()
    if found is not None and found.evidence == unit.evidence_size():
        return found
    if found is not None:  # the sorter has not looked at it since more came
        return replace(found, state="open", why="more has come than is counted here")
    live = revive(Unit.load(spool, key), 0.0)
    return summarise(live) if live.unit.instances or live.unit.bundle else None


def in_order(found: Iterator[UnitSummary] | list[UnitSummary]) -> list[UnitSummary]:
    """By subject, study and series number, as people look for them."""
    return sorted(
        found, key=lambda each: (each.subject or "", each.study_date, each.study_time, in_number(each.number))
    )


def in_number(text: str) -> tuple[int, str]:
    """By which series numbers are put in order: as numbers, whatever a header says in place of one."""
    return (int(text), "") if _is_number(text) else (0, text)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 18  # "²" is a digit, which int() refuses, and thousands of them too


def is_called(unit: UnitSummary, text: str) -> bool:
    """A subject's ID or a glob of it (capital and small letters are the same), a UID, or the start of a key."""
    subject = (unit.subject or "").casefold()
    wanted = text.casefold()
    if subject == wanted or text in (unit.study_uid, *unit.series_uids):
        return True
    if len(text) >= 8 and unit.key.startswith(wanted):
        return True
    return any(each in text for each in "*?[") and fnmatchcase(subject, wanted)


def find_units(spool: Spool, text: str) -> list[UnitSummary]:
    """Every unit that `text` may mean, in order. SorterError: one cannot be read, and may be meant too."""
    try:
        return in_order([unit for unit in summaries(spool) if is_called(unit, text)])
    except OSError as error:
        raise SorterError(f"{error.filename}: {error.strerror}; nothing was done") from None


def find_series(spool: Spool, text: str) -> list[UnitSummary]:
    """The same of series alone, without what is made of whole studies and subjects."""
    return [unit for unit in find_units(spool, text) if unit.kind is UnitKind.SERIES]


def title_of(unit: UnitSummary) -> str:
    """What people call a series: subject, day, number and description."""
    number = f"{int(unit.number):03d} " if _is_number(unit.number) else ""
    return f"{unit.subject or 'no subject'} {unit.study_date} {number}{unit.description}".strip()
