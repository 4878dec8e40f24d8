"""The head of a stored file: preamble, prefix and file meta information (PS3.10 7.1)."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

from sorter.protocol.upper_layer import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<HH2sHI")
_GROUP_LENGTH = _SHORT.pack(2, 0x0000, b"UL", 4)
_PREFIX = bytes(128) + b"DICM"


@dataclass(frozen=True, slots=True)
class Route:
    """How an association's images came: AE titles as the peer gave them, and its address."""

    calling: str
    called: str
    address: str  # "192.0.2.1" or "2001:db8::1"
    port: int

    @property
    def uri(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"dicom://{host}:{self.port}"


def tail_of_meta(route: Route) -> bytes:
    """The elements that are the same for all images of an association."""
    uri = route.uri.encode()
    return (
        _titles(route.calling, route.called)
        + _long(0x0026, b"UR", uri)  # Source Presentation Address
        + _long(0x0027, b"UR", uri)  # Sending
    )


@functools.lru_cache(maxsize=256)
def _titles(calling: str, called: str) -> bytes:
    """What is the same for all associations of a scanner."""
    return (
        _short(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode())
        + _short(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode())
        + _short(0x0016, b"AE", calling.encode())  # Source Application Entity Title
        + _short(0x0017, b"AE", calling.encode())  # Sending
        + _short(0x0018, b"AE", called.encode())  # Receiving
    )


def file_head(class_uid: str, instance_uid: str, transfer: str, tail: bytes) -> bytes:
    """What stands in a file before the data set. `tail` is `tail_of_meta` of the association."""
    before, after = _around_instance(class_uid, transfer, tail)
    instance = _short(0x0003, b"UI", instance_uid.encode())
    size = len(before) + len(instance) + len(after)
    return b"".join((_PREFIX, _GROUP_LENGTH, size.to_bytes(4, "little"), before, instance, after))


@functools.lru_cache(maxsize=256)
def _around_instance(class_uid: str, transfer: str, tail: bytes) -> tuple[bytes, bytes]:
    """What is the same in many files, before and after the SOP Instance UID."""
    before = _long(0x0001, b"OB", b"\0\1") + _short(0x0002, b"UI", class_uid.encode())
    return before, _short(0x0010, b"UI", transfer.encode()) + tail


def _short(element: int, vr: bytes, value: bytes) -> bytes:
    value += _padding(vr, value)
    return _SHORT.pack(2, element, vr, len(value)) + value


def _long(element: int, vr: bytes, value: bytes) -> bytes:
    value += _padding(vr, value)
    return _LONG.pack(2, element, vr, 0, len(value)) + value


def _padding(vr: bytes, value: bytes) -> bytes:
    if len(value) % 2 == 0:
        return b""
    return b"\0" if vr in (b"UI", b"OB") else b" "
