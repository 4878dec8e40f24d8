"""What a media directory (DICOMDIR, PS3.3 F.3) says that there is: a hint, for a person who asks whether all has come.

Nothing is filed, named, waited for or opened by it: copies of media miss part of what it lists, or have more, and
anybody may have written it. So its records are not followed, they are only looked for: the elements that name
instances, in any of the three ways in which a data set that is not deflated may be written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MOST_BYTES = 64 << 20
"""Of a directory that are looked at: about 100,000 images."""

_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_UID = re.compile(rb"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class Listed:
    """The UIDs in it, each once, in the order in which they stand there."""

    studies: tuple[str, ...]
    series: tuple[str, ...]
    instances: tuple[str, ...]


def listed(content: bytes) -> Listed:
    """`content` is the whole file, or its first `MOST_BYTES`."""
    return Listed(_found(content, 0x0020, 0x000D), _found(content, 0x0020, 0x000E), _found(content, 0x0004, 0x1511))


def _found(content: bytes, group: int, element: int) -> tuple[str, ...]:
    """The values of an element that holds a UID, wherever it seems to stand."""
    found: dict[str, None] = {}
    for order in _ORDERS:
        tag = group.to_bytes(2, order) + element.to_bytes(2, order)
        for at in re.finditer(re.escape(tag), content):
            start = at.end() + 4
            explicit = content[at.end() : at.end() + 2] == b"UI"
            size = int.from_bytes(content[at.end() + 2 * explicit : start], order)
            uid = content[start : start + size].rstrip(b"\0 ") if 0 < size <= 64 else b""
            if _UID.fullmatch(uid):
                found[uid.decode("ascii")] = None
    return tuple(found)
