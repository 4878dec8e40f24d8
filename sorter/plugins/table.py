"""A CSV or TSV file as a setting of a plugin: sorter reads it, the plugin gets its rows.

    from sorter import Table

    class Settings(BaseModel):
        subjects: Table

In `sorter.toml` the setting is the path of the file; a relative path starts in the plugins folder. The plugin gets a
tuple of rows, each a mapping of column name to text. Sorter reads the file again when it changes.
"""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from sorter.durable import Files


class Row(dict[str, str]):
    """One row by column name. `where` is its file and line, as "/etc/sorter/subjects.csv:7"."""

    where = ""


Rows: TypeAlias = tuple[dict[str, str], ...]
Stamp: TypeAlias = tuple[int, int, int]

MAX_BYTES = 16 << 20
MAX_COLUMNS = 1000


@dataclass
class TableReader:
    """Reads the tables of one plugin, and remembers what each looked like. `base` is where relative paths start."""

    files: Files = field(default_factory=Files)
    base: Path | None = None
    seen: dict[Path, Stamp | None] = field(default_factory=dict)

    def read(self, path: str) -> Rows:
        """The rows of one file; ValueError is a sentence that says what is wrong with it."""
        where = Path(path)
        if not where.is_absolute():
            if self.base is None:
                raise ValueError(f"{path} must be a whole path, as /etc/sorter/{where.name}")
            where = self.base / where
        self.seen[where] = None
        try:
            with self.files.opened(where, os.O_RDONLY | os.O_NONBLOCK) as fd:
                info = self.files.stat(fd)
                before = _stamp(info)
                if not stat.S_ISREG(info.st_mode):
                    raise ValueError(f"{where} is not a file")
                if before[1] > MAX_BYTES:
                    raise ValueError(f"{where} is larger than {MAX_BYTES >> 20} MiB; a table must be smaller")
                text = b"".join(bytes(piece) for piece in self.files.chunks(fd))
                after = _stamp(self.files.stat(fd))
        except OSError as error:
            raise ValueError(f"{where} cannot be read: {error.strerror}") from None
        if before != after:
            raise ValueError(f"{where} was being written; it is read again when it stands still")
        self.seen[where] = after
        return parse_table(text, where)

    def changed(self) -> bool:
        """True when a file that was read looks different now (time, size or inode), or came, or went."""
        return any(self._look(path) != stamp for path, stamp in self.seen.items())

    def _look(self, path: Path) -> Stamp | None:
        try:
            with self.files.opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
                return _stamp(self.files.stat(fd))
        except OSError:
            return None


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_mtime_ns, info.st_size, info.st_ino


def parse_table(data: bytes, path: Path) -> Rows:
    """Rows of a TSV or CSV file (comma, or the semicolon of some spreadsheets) in UTF-8. ValueError names the line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not UTF-8 text; save the table as CSV in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, path), strict=True)
    rows: list[dict[str, str]] = []
    columns: list[str] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if not columns:
                columns = _columns(stripped, f"{path}:{reader.line_num}")
                continue
            if any(stripped[len(columns) :]):
                raise ValueError(f"{path}:{reader.line_num}: {len(stripped)} cells for {len(columns)} columns")
            stripped += [""] * (len(columns) - len(stripped))
            rows.append(row := Row(zip(columns, stripped, strict=False)))
            row.where = f"{path}:{reader.line_num}"
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from None
    if not columns:
        raise ValueError(f"{path} is empty; its first line must name the columns")
    return tuple(rows)


def _delimiter(text: str, path: Path) -> str:
    first = text.lstrip().partition("\n")[0]
    if path.suffix.lower() in (".tsv", ".tab") or "\t" in first:
        return "\t"
    return ";" if ";" in first and "," not in first else ","


def _columns(names: list[str], where: str) -> list[str]:
    while names and not names[-1]:
        names.pop()
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"{where}: {len(names)} columns; a table has at most {MAX_COLUMNS}")
    for name in names:
        if not name or names.count(name) > 1:
            raise ValueError(f"{where}: the column name {name!r} is {'used twice' if name else 'empty'}")
    return names


def read_table(value: Any, info: ValidationInfo) -> Any:
    """The rows of the file that a setting names: what a model calls that checks them itself, line by line."""
    if not isinstance(value, str | os.PathLike):
        return value  # rows already: a job's settings come back so
    context = info.context if isinstance(info.context, Mapping) else {}
    reader = context.get("tables") or TableReader(base=Path.cwd())
    return reader.read(os.fspath(value))


def _rows(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Rows that were just read are not copied: each knows its line."""
    rows = read_table(value, info)
    return rows if rows is not value else check(rows)


Table: TypeAlias = Annotated[tuple[dict[str, str], ...], WrapValidator(_rows)]
"""The type of a setting that is a table: a path in the configuration, rows in the plugin.

While the setting is validated, `getattr(row, "where", "")` is where a row stands, as "/etc/sorter/subjects.csv:7".
"""
