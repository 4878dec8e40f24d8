"""Where each key of a TOML text stands. tomli gives values without their lines, and people need the line."""

from __future__ import annotations

import bisect
import re
from typing import TypeAlias

import tomli

Key: TypeAlias = tuple[str, ...]
"""The way to a value; the index of a list element is a part too, as ("senders", "0", "ae")."""

_BLANK = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}', re.DOTALL),
    re.compile(r"'''(?:[^']|'(?!''))*'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\]|\\.)*"'),
    re.compile(r"'[^']*'"),
)


def places(text: str) -> dict[Key, int]:
    """The line (from 1) of every table, key and list element of `text`, which tomli must have been able to read."""
    return _Scanner(text).found


class _Scanner:
    """Walks over valid TOML once. It looks only for keys, so it need not understand values."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n").removeprefix("\ufeff")
        self.at = 0
        self.found: dict[Key, int] = {}
        self._starts = [0, *(match.end() for match in re.finditer("\n", self.text))]
        self._last: dict[Key, int] = {}  # of each array of tables, the index of its last element
        self._table: Key = ()
        self._document()

    def _document(self) -> None:
        while self._skip(_BETWEEN) < len(self.text):
            if self.text.startswith("[[", self.at):
                self._header(2)
            elif self.text[self.at] == "[":
                self._header(1)
            else:
                self._pair(self._table)

    def _header(self, brackets: int) -> None:
        begun = self.at
        self.at += brackets
        names = self._key()
        self.at += brackets
        table: Key = ()
        for name in names[:-1]:
            table = self._note((*table, name), begun)
            if table in self._last:
                table = (*table, str(self._last[table]))
        table = self._note((*table, names[-1]), begun)
        if brackets == 2:
            self._last[table] = self._last.get(table, -1) + 1
            table = self._note((*table, str(self._last[table])), begun)
        self._table = table

    def _pair(self, table: Key) -> None:
        begun = self.at
        for name in self._key():
            table = self._note((*table, name), begun)
        self.at += 1  # the =
        self._skip(_BLANK)
        self._value(table)

    def _key(self) -> list[str]:
        """A key, dotted or not, quoted or bare; stops at what follows it."""
        names = []
        while True:
            self._skip(_BLANK)
            bare = _BARE_KEY.match(self.text, self.at)
            if bare:
                names.append(bare[0])
                self.at = bare.end()
            else:
                quoted = self._string()
                names.append(next(iter(tomli.loads(f"{quoted} = 0"))))
            self._skip(_BLANK)
            if self.text[self.at : self.at + 1] != ".":
                return names
            self.at += 1

    def _value(self, key: Key) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._list(key)
        elif first == "{":
            self._inline_table(key)
        else:
            self._skip(_BARE_VALUE)

    def _list(self, key: Key) -> None:
        self.at += 1
        index = 0
        while self.text[self._skip(_BETWEEN)] != "]":
            self._value(self._note((*key, str(index)), self.at))
            index += 1
            self._comma()
        self.at += 1

    def _inline_table(self, key: Key) -> None:
        self.at += 1
        while self.text[self._skip(_BETWEEN)] != "}":
            self._pair(key)
            self._comma()
        self.at += 1

    def _comma(self) -> None:
        if self.text[self._skip(_BETWEEN)] == ",":
            self.at += 1

    def _string(self) -> str:
        for form in _STRINGS:
            match = form.match(self.text, self.at)
            if match and (match[0] not in ('""', "''") or self.text[self.at : self.at + 3] not in ('"""', "'''")):
                self.at = match.end()
                return match[0]
        raise ValueError(f"no string at {self.at}")

    def _skip(self, what: re.Pattern[str]) -> int:
        match = what.match(self.text, self.at)
        assert match is not None  # each of them matches nothing too
        self.at = match.end()
        return self.at

    def _note(self, key: Key, at: int) -> Key:
        self.found.setdefault(key, bisect.bisect_right(self._starts, at))
        return key
