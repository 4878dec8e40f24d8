"""A table of subjects: a CSV or TSV file in which a row says whose a series is, and what its subject is called.

    PatientID,lab,subject,session
    1234567,memory,P07,1
    1234568,vision,V01,

Columns are DICOM keywords (or CallingAE, CalledAE, PeerAddress), which say of which series a row speaks; `lab`,
`subject` and `session`, which say what it is; and any other name in small letters, which is a label. A row speaks of a
series if each of its cells below a keyword that is not empty is the value there, capital and small letters being the
same. The first row that speaks counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sorter import Series
from sorter.builtin._extractors import check_keyword
from sorter.errors import did_you_mean
from sorter.matching import SENDER, texts
from sorter.plugins.table import Row

_SAYS = ("lab", "subject", "session")


@dataclass(frozen=True, slots=True)
class Line:
    """One row. `where` names its file and line."""

    where: str
    keys: Mapping[str, str]  # by keyword, folded
    says: Mapping[str, str]


class Subjects:
    """The table, read and checked. ValueError says which line is wrong, and why."""

    def __init__(self, rows: Sequence[Mapping[str, str]] = ()) -> None:
        self.rows = tuple(rows)
        self._lines = [_line(row) for row in rows]
        self._by_key: dict[tuple[str, str], list[int]] = {}
        first: dict[tuple[tuple[str, str], ...], str] = {}
        for number, line in enumerate(self._lines):
            keys = tuple(sorted(line.keys.items()))
            if keys in first:
                raise ValueError(
                    f"{line.where}: the row at {first[keys]} speaks of the same series; keep one of the two"
                )
            first[keys] = line.where
            self._by_key.setdefault(keys[0], []).append(number)
        self._keywords = {keyword for keyword, _ in self._by_key}

    def check_labs(self, labs: Collection[str]) -> None:
        """ValueError: a row names a lab that there is not."""
        for line in self._lines:
            lab = line.says.get("lab", "")
            if lab and lab not in labs:
                hint = did_you_mean(lab, labs) or f"; add [labs.{lab}], or mend the table"
                raise ValueError(f'{line.where}: lab "{lab}" is not configured{hint}')

    def of(self, series: Series) -> Mapping[str, str]:
        """What the first row that speaks of this series says of it; {} where none does."""
        values = {keyword: {_folded(text) for text in texts(keyword, series)} for keyword in self._keywords}
        numbers = sorted(number for keyword in values for text in values[keyword]
                         for number in self._by_key.get((keyword, text), ()))  # fmt: skip
        for number in numbers:
            line = self._lines[number]
            if all(key in {_folded(text) for text in texts(keyword, series)} for keyword, key in line.keys.items()):
                return line.says
        return {}


def _line(row: Mapping[str, str]) -> Line:
    where = row.where if isinstance(row, Row) else "the table"
    cells = {name: cell.strip() for name, cell in row.items() if cell.strip()}
    keys = {name: _folded(cell) for name, cell in cells.items() if name[:1].isupper()}
    for name in row:
        if name[:1].isupper():
            try:
                check_keyword(name, tuple(SENDER))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
    if not keys:
        raise ValueError(f"{where}: the row does not say of which series it speaks; fill in a column as PatientID")
    says = {name: cell for name, cell in cells.items() if name not in keys}
    if not says:
        raise ValueError(f"{where}: the row says nothing; fill in lab, subject or session")
    return Line(where, keys, says)


def labels_of(says: Mapping[str, str]) -> dict[str, str]:
    """What a row says beside lab, subject and session."""
    return {name: cell for name, cell in says.items() if name not in _SAYS}


def _folded(text: str) -> str:
    return text.strip().casefold()
