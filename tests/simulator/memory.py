"""A disk in memory, for what a unit writes and reads of its records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sorter.durable import Files


class MemoryFiles(Files):
    """`Files` as far as a unit's records need it."""

    def __init__(self) -> None:
        self._content: dict[str, bytearray] = {}

    def make_folders(self, path: Any, mode: int = 0o700) -> None:
        """A folder is there as soon as something is in it."""

    def sync_file_system(self, path: Any) -> None:
        pass

    def append(self, path: Any, data: Any, mode: int = 0o600, *, durable: bool = True) -> None:
        self._content.setdefault(os.fspath(path), bytearray()).extend(data)

    def write_file(self, path: Any, data: Any, mode: int = 0o600, *, durable: bool = True) -> None:
        self._content[os.fspath(path)] = bytearray(data)

    def read_file(self, path: Any, *, at: int | None = None, limit: int = 1 << 30) -> bytes:
        try:
            return bytes(self._content[os.fspath(path)])
        except KeyError:
            raise FileNotFoundError(path) from None

    def exists(self, path: Any, *, at: int | None = None) -> bool:
        return any(name == os.fspath(path) or Path(path) in Path(name).parents for name in self._content)

    def names(self, path: Any) -> list[str]:
        below = f"{os.fspath(path)}/"
        return sorted({name[len(below) :].split("/")[0] for name in self._content if name.startswith(below)})

    def stat(self, path: Any, *, at: int | None = None) -> os.stat_result:
        return os.stat_result((0, 0, 0, 0, 0, 0, len(self.read_file(path)), 0, 0, 0))
