"""The few private elements (PS3.5 7.8) that say how many images a series will have, under names of their own.

A private element is found by its creator, in whichever block of its group the creator stands, and read by the VR of the
table here: a file that went through an archive may give it as UN, or, in implicit VR, give none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sorter.model import Value
from sorter.take import elements, values

BLOCKS = range(0x10, 0x18)
"""Blocks in which a creator is looked for; 0x10 is the usual one, further ones where others wrote into the group."""

PROTOCOL_BYTES = 256 << 10
"""Bytes kept of a Siemens CSA series header; real ones have 60 to 110 KB."""


class Private(NamedTuple):
    """One private element: the name it gets, its group, creator and number in the block, its VR."""

    name: str
    group: int
    creator: str
    number: int
    vr: str


ELEMENTS = (
    Private("GELocationsInAcquisition", 0x0021, "GEMS_RELA_01", 0x4F, "SS"),
    Private("PhilipsNumberOfEchoes", 0x2001, "Philips Imaging DD 001", 0x14, "SL"),
    Private("PhilipsNumberOfPhases", 0x2001, "Philips Imaging DD 001", 0x17, "SL"),
    Private("PhilipsNumberOfSlices", 0x2001, "Philips Imaging DD 001", 0x18, "SL"),
    Private("PhilipsNumberOfDynamics", 0x2001, "Philips Imaging DD 001", 0x81, "IS"),
    Private("PhilipsDiffusionBFactor", 0x2001, "Philips Imaging DD 001", 0x03, "FL"),
    Private("SiemensImagesInMosaic", 0x0019, "SIEMENS MR HEADER", 0x0A, "US"),
)
"""Meanings: pydicom's private dictionary, and the makers' conformance statements."""

_CSA = Private("", 0x0029, "SIEMENS CSA HEADER", 0x20, "OB")
"""CSA Series Header Info: somewhere in it lies the measurement protocol as text, the part called ASCCONV."""

PROTOCOL = {
    "SiemensRepetitions": (b"lRepetitions", 0),
    "SiemensContrasts": (b"lContrasts", 1),
    "SiemensDiffusionMode": (b"sDiffusion.ulMode", 1),
    "SiemensSlices": (b"sSliceArray.lSize", None),
}
"""Names of what is read of the protocol: its own name, and what it means where a whole protocol leaves it out."""

NAMES = (*(each.name for each in ELEMENTS), *PROTOCOL)

_CREATORS = frozenset(each.group << 16 | block for each in (*ELEMENTS, _CSA) for block in BLOCKS)
_BEGIN, _END = b"### ASCCONV BEGIN", b"\n### ASCCONV END ###"
_NUMBER = re.compile(rb"[ \t]{0,80}=[ \t]{0,80}(0x[0-9a-fA-F]{1,8}|[0-9]{1,9})[ \t\r]{0,80}\n")


def wanted() -> dict[int, int]:
    """The tags to ask a walk for, with the bytes to keep of each: creators, and the elements in every block."""
    found: dict[int, int] = {}
    for each in (*ELEMENTS, _CSA):
        for block in BLOCKS:
            found[each.group << 16 | block] = elements.SHORT
            found[each.group << 16 | block << 8 | each.number] = PROTOCOL_BYTES if each is _CSA else elements.SHORT
    return found


def read(found: Mapping[int, tuple[bytes, bytes]], order: str) -> Iterator[tuple[str, Value]]:
    """The names and values that a walk found; `order` is that of its numbers."""
    if _CREATORS.isdisjoint(found):
        return
    for each in ELEMENTS:
        raw = _raw(each, found)
        if raw is None:
            continue
        given = raw[0].decode("latin-1")
        vr = given if values.known(given) else each.vr
        value = values.value(vr, raw[1], order=order)
        if value is not None:
            yield each.name, value
    csa = _raw(_CSA, found)
    if csa is not None:
        yield from protocol(csa[1]).items()


def _raw(each: Private, found: Mapping[int, tuple[bytes, bytes]]) -> tuple[bytes, bytes] | None:
    for block in BLOCKS:
        creator = found.get(each.group << 16 | block)
        if creator is not None and elements.text(creator[1]) == each.creator:
            return found.get(each.group << 16 | block << 8 | each.number)
    return None


def protocol(raw: bytes) -> dict[str, int]:
    """The wanted numbers of a Siemens measurement protocol; none where it does not lie whole in `raw`.

    Lines such as `lRepetitions = 299` between two marks; what equals its default may be left out. Bounded work: each
    name is looked for once.
    """
    start = raw.find(_BEGIN)
    end = raw.find(_END, start + len(_BEGIN)) if start >= 0 else -1
    if end < 0:
        return {}
    found: dict[str, int] = {}
    for name, (written, default) in PROTOCOL.items():
        at = raw.find(b"\n" + written, start, end)
        number = _NUMBER.match(raw, at + 1 + len(written), end + 1) if at >= 0 else None
        if number is not None:
            found[name] = int(number[1], 0) if number[1].startswith(b"0x") else int(number[1])
        elif at < 0 and default is not None:
            found[name] = default
    return found
