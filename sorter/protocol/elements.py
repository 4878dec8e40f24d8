"""Elements of a data set as they are written, in explicit or implicit VR little endian (PS3.5 7.1)."""

from __future__ import annotations

import struct

from sorter.protocol.uids import IMPLICIT

LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs whose length has four bytes (PS3.5 table 7.1-1)."""


def element(transfer: str, tag: int, vr: bytes, value: bytes) -> bytes:
    """One element. A value of an odd length is padded as its VR wants it."""
    value += (b"\0" if vr in (b"UI", b"OB", b"UN") else b" ") * (len(value) % 2)
    group, number = tag >> 16, tag & 0xFFFF
    if transfer == IMPLICIT:
        return struct.pack("<HHL", group, number, len(value)) + value
    if vr in LONG:
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def item(content: bytes) -> bytes:
    """An item of a sequence (PS3.5 7.5)."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
