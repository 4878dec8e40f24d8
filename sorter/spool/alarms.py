"""What should have come and did not, and what came and is nobody's, as it is kept in `alarms.json` of a spool.

It is truth, a few lines, written whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sorter.durable import Files
from sorter.expected import Daily
from sorter.model import Event, build, plain
from sorter.spool.lines import line
from sorter.strays import Strays


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm that stands: what `status` says, and when it was raised."""

    says: str
    at: str


@dataclass(frozen=True, slots=True)
class AlarmState:
    """`boot` names the boot of the machine that `offset` is of; `seen` is when this was written, by the steady clock.

    `untold` are events that plugins have not been told of: they are written down with what they tell of.
    """

    boot: str
    offset: float
    seen: float
    daily: Mapping[str, Daily] = field(default_factory=dict)  # by lab
    silent: Mapping[str, float] = field(default_factory=dict)  # seconds without an image, by sender
    strays: Mapping[str, Strays] = field(default_factory=dict)  # by sender
    raised: Mapping[str, Raised] = field(default_factory=dict)
    untold: tuple[Event, ...] = ()


class AlarmFile:
    """The file in a spool. A spool where nothing is expected, and nothing came for long, has none."""

    def __init__(self, path: Path, files: Files) -> None:
        self._path, self._files = path, files

    def read(self) -> AlarmState | None:
        try:
            return build(AlarmState, json.loads(self._files.read_file(self._path, limit=1 << 24)))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, state: AlarmState) -> None:
        self._files.write_file(self._path, line(plain(state)))
