"""What people want a target to be given copies of, by `sorter rename SUBJECT target:NAME`.

`spool/exports/` holds what the target does not have yet; once it has, a receipt in the unit's own folder says so
(`Unit.exported`). An export never grows with its series, has a place of its own at the target, and is no delivery:
retention does not count it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from sorter.errors import SorterError
from sorter.model import build, plain
from sorter.spool.layout import Spool
from sorter.spool.lines import line
from sorter.spool.requests import request

MOST_OWED = 10_000
"""Exports that may wait at once, of all who ask."""

_EXPORTED = "rename-"


def is_export(product: str) -> bool:
    """Is that the product of an export, and not one that is made?"""
    return product.startswith(_EXPORTED)


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One of the copies: its name at the target, SHA-256, bytes, and the file below the unit's folder."""

    name: str
    sha256: str
    size: int
    file: str


@dataclass(frozen=True, slots=True)
class Export:
    """Copies of files of one series in one folder of one target. `by`: the account that asked for them, at `at`; `who`
    says it, where it was none."""

    key: str
    target: str
    folder: str
    files: tuple[ExportedFile, ...]
    by: int
    at: str = ""
    who: str = ""

    @property
    def product(self) -> str:
        """What it is called among the products: the same copies to the same place are the same, whoever asks again."""
        what = json.dumps([self.key, self.target, self.folder, plain(self.files)])
        return _EXPORTED + hashlib.sha256(what.encode()).hexdigest()[:12]


def ask(spool: Spool, export: Export) -> None:
    """Ask the sorting process for it. SorterError: as much as can be is owed already."""
    waiting = sum(1 for folder in (spool.exports, spool.requests) for _ in spool.files.entries(folder))
    if waiting >= MOST_OWED:
        raise SorterError(f"{waiting} copies to targets are owed already; ask again when some of them are there")
    request(spool, f"export-{export.product}-{export.key}", {"do": "export", "export": plain(export)})


class ExportRecords:
    """Those that are owed: a file each."""

    def __init__(self, spool: Spool) -> None:
        self._folder, self._files = spool.exports, spool.files

    def owed(self) -> list[Export]:
        """All of them, oldest first. OSError: the spool cannot be read."""
        found = [
            build(Export, json.loads(self._files.read_file(self._folder / name)))
            for name in self._files.names(self._folder)
            if name.endswith(".json")
        ]
        return sorted(found, key=lambda each: each.at)

    def add(self, export: Export) -> None:
        self._files.write_file(self._folder / f"{export.product}.json", line(plain(export)))

    def remove(self, export: Export) -> None:
        self._files.unlink(self._folder / f"{export.product}.json")
        self._files.fsync_folder(self._folder)
