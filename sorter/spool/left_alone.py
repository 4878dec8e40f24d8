"""What was found in incoming/, or in a tree of `[[watch]]`, and is left where it is: a cache, for `status`.

Links, pipes and devices, what cannot be read, what seems unfinished and never changes. The sorting process keeps the
list while it lives, and writes it down; it is only true while one runs. Its paths may name patients: it is for the
spool's owner alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from sorter.durable import Files
from sorter.spool.lines import line

MOST = 1000
"""Entries that are written down; of what is beyond there is the number."""


@dataclass(slots=True)
class LeftAlone:
    """By path, why it is left. `path`: of the file that the list is kept in."""

    path: Path
    files: Files
    found: dict[str, str] = field(default_factory=dict)
    _changed: bool = True  # a life begins with an empty list

    def note(self, path: str, why: str) -> None:
        """It is left for this reason; "": it is so no longer."""
        if why:
            self.found[path] = why
        else:
            self.found.pop(path, None)
        self._changed = True

    def write(self) -> None:
        """Where something has changed since. OSError: it is written the next time."""
        if self._changed:
            some = [[path, why] for path, why in list(self.found.items())[:MOST]]
            self.files.write_file(self.path, line({"count": len(self.found), "some": some}), durable=False)
            self._changed = False

    def read(self) -> tuple[int, list[tuple[str, str]]]:
        """By another process: how many there are, and the path and reason of some."""
        try:
            told = json.loads(self.files.read_file(self.path, limit=1 << 24))
            return int(told["count"]), [(str(path), str(why)) for path, why in told["some"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0, []
