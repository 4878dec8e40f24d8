"""How many days the sorting process has seen pass: what retention counts in, whatever any clock says.

A day is 86,400 seconds in which sorter was there: not those of a machine that was off or suspended, and none that a
clock was set by. `days.json` is truth, two numbers. Where it is lost the count starts at 0, and all waits longer.
"""

from __future__ import annotations

import json
from pathlib import Path

from sorter.durable import Files
from sorter.spool.lines import line

DAY = 86400.0
"""Seconds."""

_KEEP_EVERY = 1800.0  # seconds of the day that a crash may take back
_LONGEST_STEP = 3600.0  # seconds that count of any time in which nobody looked


class Days:
    """The count in a spool; for the one process that sorts. `count` is what is on the disk, never more."""

    def __init__(self, path: Path, files: Files) -> None:
        self._path, self._files = path, files
        self.count, self._kept = _read(path, files)
        self._seconds = self._kept
        self._last: float | None = None

    def look(self, now: float) -> None:
        """It is `now`, in monotonic seconds of this life. OSError: what passed is counted with the next look."""
        if self._last is not None:
            self._seconds += min(max(0.0, now - self._last), _LONGEST_STEP)
        self._last = now
        whole, rest = divmod(self._seconds, DAY)
        if whole or rest - self._kept >= _KEEP_EVERY:
            self._files.write_file(self._path, line({"days": self.count + int(whole), "seconds": rest}))
            self.count, self._seconds, self._kept = self.count + int(whole), rest, rest


def days_passed(path: Path, files: Files) -> int:
    """The count as it was last written down."""
    return _read(path, files)[0]


def _read(path: Path, files: Files) -> tuple[int, float]:
    try:
        found = json.loads(files.read_file(path, limit=1 << 16))
        days, seconds = int(found["days"]), float(found["seconds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0, 0.0
    return (days, seconds) if days >= 0 and 0 <= seconds < DAY else (0, 0.0)
