"""A sender of a few lines that says what it is told to, well or badly: for tests of a receiver."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Sequence
from types import TracebackType

MR_IMAGE = b"1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = b"1.2.840.10008.1.1"
IMPLICIT = b"1.2.840.10008.1.2"
DATA_SET = b"\x08\0\x18\0\x0a\0\0\x001.2.3.4.5\0" + bytes(range(256)) * 40
"""Ten kilobytes that begin as a data set does."""

C_STORE, C_ECHO = 0x0001, 0x0030
RELEASE = struct.pack(">BxI", 5, 4) + bytes(4)
ABORT = struct.pack(">BxI", 7, 4) + bytes(4)

_STATUS = re.compile(rb"\x00\x00\x00\x09\x02\x00\x00\x00(..)", re.DOTALL)


def item(kind: int, value: bytes) -> bytes:
    """An item of an A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(value)) + value


def pdv(context: int, control: int, data: bytes) -> bytes:
    """`control`: 1 a command, 2 the last of its message; or both."""
    return struct.pack(">IBB", len(data) + 2, context, control) + data


def request(abstracts: Sequence[bytes] = (MR_IMAGE, VERIFICATION), calling: bytes = b"SCANNER") -> bytes:
    """An A-ASSOCIATE-RQ that proposes `abstracts` in implicit VR little endian, as contexts 1, 3, 5, …"""
    body = b"\0\1\0\0" + b"SORTER".ljust(16) + calling.ljust(16) + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract in enumerate(abstracts):
        body += item(0x20, bytes((2 * number + 1, 0, 0, 0)) + item(0x30, abstract) + item(0x40, IMPLICIT))
    return pdu(1, body + item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3")))


def element(number: int, value: bytes) -> bytes:
    """(0000,`number`) of a command set."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def command(field: int = C_STORE, data_set: int = 0, instance: bytes = b"1.2.3.4.5") -> bytes:
    """A request's command set, without its group length."""
    values = {
        0x0002: MR_IMAGE if field == C_STORE else VERIFICATION,
        0x0100: struct.pack("<H", field),
        0x0110: b"\7\0",
        0x0700: b"\2\0",
        0x0800: struct.pack("<H", data_set),
        0x1000: instance if field == C_STORE else b"",
    }
    return b"".join(element(number, value) for number, value in sorted(values.items()) if value)


def store(data: bytes = DATA_SET, step: int = 16_000) -> bytes:
    """A C-STORE of `data`, `step` bytes of it in each PDU."""
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    sent = [pdv(1, 2 if number == len(pieces) else 0, piece) for number, piece in enumerate(pieces, 1)]
    return pdu(4, pdv(1, 3, command())) + b"".join(pdu(4, each) for each in sent)


def echo(context: int = 3) -> bytes:
    return pdu(4, pdv(context, 3, command(C_ECHO, 0x0101)))


class Peer:
    """A connection to a receiver. `source` is the address of this machine that it comes from."""

    def __init__(self, port: int, source: str = "127.0.0.1", timeout: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout, source_address=(source, 0))

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, size: int) -> bytes:
        """EOFError where the connection ends before."""
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def pdu(self) -> tuple[int, bytes]:
        """The type of the next PDU, and what follows its length."""
        kind, length = struct.unpack(">BxI", self.take(6))
        return kind, self.take(length)

    def associate(self) -> Peer:
        """AssertionError where the request is not accepted."""
        self.send(request())
        kind, _ = self.pdu()
        if kind != 2:
            raise AssertionError(f"the association was not accepted: PDU type {kind}")
        return self

    def status(self) -> int:
        """Of the next response."""
        kind, body = self.pdu()
        found = _STATUS.search(body)
        if kind != 4 or found is None:
            raise AssertionError(f"no response but PDU type {kind}")
        return int.from_bytes(found[1], "little")

    def release(self) -> None:
        self.send(RELEASE)
        if self.pdu() != (6, bytes(4)):
            raise AssertionError("the release was not confirmed")

    def drain(self) -> None:
        """Read until the other side has closed the connection, or broken it."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(1 << 16):
                pass
