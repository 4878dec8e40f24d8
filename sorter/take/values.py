"""Header values as plain text and numbers, from the bytes of their elements (PS3.5 sections 6.1 and 6.2).

Nothing here raises or warns, whatever the bytes are: what cannot be a number stays text, what cannot be decoded is
replaced, and control characters go, for these values end in names, logs and terminals.
"""

from __future__ import annotations

import functools
import math
import re
import struct

from pydicom.charset import CODES_TO_ENCODINGS, handled_encodings, python_encoding

from sorter.model import Value
from sorter.take.elements import CONTROL, LATIN, LONGEST_TEXT, text

MOST_VALUES = 64
"""Values kept of one element."""

CHARACTER_SETS = tuple(python_encoding)
"""The terms of SpecificCharacterSet (PS3.3 C.12.1.1.2) that text is decoded from, with slips that are frequent."""

CODED = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""VRs whose text is in the data set's SpecificCharacterSet."""

_SINGLE = frozenset({"LT", "ST", "UT", "UR"})  # a backslash is a character like any other
_BINARY = {"US": "H", "UL": "L", "SS": "h", "SL": "l", "FL": "f", "FD": "d", "SV": "q", "UV": "Q"}
_TEXT = CODED | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", re.ASCII)
_DELIMITERS = re.compile(rb"[\\\r\n\t\f^=]")
_FRAGMENT = re.compile(rb"^[^\x1b]+|\x1b[^\x1b]*")


@functools.lru_cache(maxsize=64)
def encodings(raw: bytes) -> tuple[str, ...]:
    """Python's names of the character sets in a SpecificCharacterSet (0008,0005); unknown ones count as the default."""
    names = [term.strip() for term in text(raw).split("\\")[:16]]
    found = tuple(python_encoding.get(_term(each), LATIN) for each in names)
    return found or (LATIN,)


def _term(written: str) -> str:
    """The defined term, where a device writes ISO-IR 100 or ISO 2022-IR 100 for it."""
    if written in python_encoding:
        return written
    match = re.fullmatch(r"ISO([ _-]?2022)?[ _-]*IR[ _-]*([0-9]+)", written, re.IGNORECASE)
    if match is None:
        return written
    return f"ISO 2022 IR {match[2]}" if match[1] else f"ISO_IR {match[2]}"


def is_text(vr: str) -> bool:
    """Is a value of this VR text, numbers written as text included?"""
    return vr in _TEXT


def known(vr: str) -> bool:
    """Can `value` read this VR?"""
    return vr in _TEXT or vr in _BINARY


def value(vr: str, raw: bytes, charset: tuple[str, ...] = (LATIN,), order: str = "<") -> Value | None:
    """The value of an element: None where it is empty, or of a VR that is neither text nor number."""
    if vr in _BINARY:
        return _several(_numbers(_BINARY[vr], raw, order))
    if vr not in _TEXT:
        return None
    decoded = decode(raw, charset) if vr in CODED else raw.decode(LATIN)
    parts = [decoded] if vr in _SINGLE else decoded.split("\\", MOST_VALUES)[:MOST_VALUES]
    clean = [part.translate(CONTROL).strip()[:LONGEST_TEXT] for part in parts]
    if vr == "PN":
        return _several([part.rstrip("=") for part in clean])  # empty groups at the end may be left out (PS3.5 6.2.1)
    if vr == "IS":
        return _several([_integer(part) for part in clean])
    if vr == "DS":
        return _several([_decimal(part) for part in clean])
    return _several(clean)


def _several(values: list[str] | list[str | int | float] | list[int | float]) -> Value | None:
    if len(values) == 1:
        return values[0] if values[0] != "" else None
    return tuple(values) if any(each != "" for each in values) else None


def _integer(written: str) -> str | int | float:
    if _INTEGER.fullmatch(written):
        return int(written)
    number = _decimal(written)
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else written


def _decimal(written: str) -> str | int | float:
    if len(written) > 64 or not _DECIMAL.fullmatch(written):
        return written
    number = float(written)
    return number if math.isfinite(number) else written


def _numbers(code: str, raw: bytes, order: str) -> list[int | float]:
    count = min(len(raw) // struct.calcsize("=" + code), MOST_VALUES)
    numbers = struct.unpack_from(f"{order}{count}{code}", raw)
    return [number for number in numbers if math.isfinite(number)]


def decode(raw: bytes, charset: tuple[str, ...]) -> str:
    """Text in its character sets (PS3.5 6.1.2.4, 6.1.2.5); what cannot be decoded becomes U+FFFD."""
    if b"\x1b" not in raw:
        return _decode(raw, charset[0])
    return "".join(_fragment(part, charset) for part in _FRAGMENT.findall(raw))


def _decode(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding, "replace")
    except (LookupError, UnicodeError):
        return raw.decode(LATIN)


def _fragment(raw: bytes, charset: tuple[str, ...]) -> str:
    """What follows one escape sequence, up to the next."""
    if not raw.startswith(b"\x1b"):
        return _decode(raw, charset[0])
    code = raw[:4] if raw.startswith((b"\x1b$(", b"\x1b$)")) else raw[:3]
    encoding = CODES_TO_ENCODINGS.get(code, "")
    if encoding not in charset and encoding != LATIN:
        return _decode(raw, charset[0])
    if encoding in handled_encodings:  # Python's codec knows the escape sequence itself
        return _decode(raw, encoding)
    raw = raw[len(code) :]
    end = _DELIMITERS.search(raw)
    if end is None:
        return _decode(raw, encoding)
    return _decode(raw[: end.start()], encoding) + _decode(raw[end.start() :], charset[0])
