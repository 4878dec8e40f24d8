"""`scans.tsv` of each lab: where every series of the lab is, and why, without a command.

Kept in memory as the lines that they are, the newest of each lab, and written as a whole when a line changed: at most
once for a look of the lab's worker, however many series came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from sorter.deliver.target import Wanted
from sorter.labs.pages import page
from sorter.model import DICOM
from sorter.spool import UnitSummary
from sorter.spool.labs import LabRecords

PAGE = "scans.tsv"
TITLES = ("date", "subject", "session", "series", "images", "verdict", "where", "why")

MOST_ROWS = 20_000
"""Series of one lab; of more the newest are shown, which `sorter list` is not bound to."""


@dataclass(slots=True)
class _Table:
    """Of one lab, by key: when the series was made, and its line."""

    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    page: Wanted | None = None  # what was written of it last; None: it is out of date

    def text(self) -> str:
        newest = sorted(self.rows.values(), key=itemgetter(0), reverse=True)
        return "".join(["\t".join(TITLES) + "\n", *(line for _, line in newest[:MOST_ROWS])])

    def prune(self) -> list[str]:
        """The oldest of too many go; their keys."""
        if len(self.rows) <= MOST_ROWS * 11 // 10:
            return []
        oldest = sorted(self.rows, key=lambda key: self.rows[key][0])[: len(self.rows) - MOST_ROWS]
        for key in oldest:
            del self.rows[key]
        return oldest


@dataclass(slots=True)
class Scans:
    """`ready` says whether all of the store was looked at: a table with half of it would answer wrong."""

    records: LabRecords
    ready: Callable[[], bool]
    _tables: dict[str, _Table] = field(default_factory=dict)
    _whose: dict[str, str] = field(default_factory=dict)  # key -> lab

    def configure(self, labs: Iterable[str]) -> None:
        """A lab without any series has a page too."""
        for lab in labs:
            self._tables.setdefault(lab, _Table())

    def heed(self, unit: UnitSummary) -> None:
        """How a series stands now."""
        before = self._whose.get(unit.key)
        lab = unit.lab if unit.state != "withdrawn" and unit.images else None
        if before is not None and before != lab:
            self._tables[before].rows.pop(unit.key, None)
            self._tables[before].page = None
            del self._whose[unit.key]
        if lab is None:
            return
        table, row = self._tables.setdefault(lab, _Table()), (f"{unit.study_date} {unit.study_time}", line_of(unit))
        if table.rows.get(unit.key) != row:
            table.rows[unit.key], self._whose[unit.key], table.page = row, lab, None
            for key in table.prune():
                del self._whose[key]

    def pages(self, lab: str) -> list[Wanted]:
        """Written to the spool if it is out of date; the worker of the lab brings it."""
        table = self._tables.get(lab)
        if table is None or not self.ready():
            return []
        if table.page is None:
            table.page = page(self.records, lab, PAGE, table.text().encode())
        return [table.page]


def line_of(unit: UnitSummary) -> str:
    """One line of the table. What came from outside can neither break it nor be a formula to a spreadsheet."""
    day = unit.study_date
    date = f"{day[:4]}-{day[4:6]}-{day[6:8]}" if len(day) == 8 and day.isdigit() else day
    there = [each for each in unit.deliveries if each.target == unit.lab and each.state != "nothing"]
    first = next((each for each in there if each.product == DICOM), there[0] if there else None)
    where = first.folder if first is not None and first.state == "delivered" else ""
    why = unit.why if unit.state != "delivered" else first.why if first is not None else ""
    cells = (
        date, unit.subject or "", unit.session or "", f"{unit.number} {unit.description}".strip(), str(unit.images),
        unit.verdict or unit.state, where, why,
    )  # fmt: skip
    return "\t".join(map(_cell, cells)) + "\n"


def _cell(text: str) -> str:
    plain = "".join(char if char.isprintable() else " " for char in text).strip()[:1000]
    return f"'{plain}" if plain.startswith(("=", "+", "-", "@")) else plain
