"""How records are written: one line of JSON each, with the time as people read it."""

from __future__ import annotations

import datetime
import json
from typing import Any


def now() -> str:
    """Local wall clock with its offset, to the second: for people to read, never to decide by."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def line(value: Any) -> bytes:
    """One line of JSON. Bytes of a file name that are no UTF-8 are escaped, so that reading gives them back."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
