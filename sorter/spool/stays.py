"""What could not leave the store although its time was over, as retention saw it last: a cache, for `status`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sorter.model import build, plain
from sorter.spool.layout import Spool
from sorter.spool.lines import line

_NAME = "stays.json"


@dataclass(frozen=True, slots=True)
class Stays:
    """`day` of the count, and how many images stay because of what."""

    day: int = -1
    images: Mapping[str, int] = field(default_factory=dict)


def write_stays(spool: Spool, stays: Stays) -> None:
    with contextlib.suppress(OSError):  # a full disk: it is told with the next look
        spool.files.write_file(spool.root / _NAME, line(plain(stays)), durable=False)


def read_stays(spool: Spool) -> Stays:
    try:
        return build(Stays, json.loads(spool.files.read_file(spool.root / _NAME, limit=1 << 20)))
    except (OSError, ValueError):
        return Stays()
