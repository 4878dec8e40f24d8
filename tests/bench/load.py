"""The load: many associations driven by one thread of one process, so that it takes little from what it measures.

An image is one buffer of ready PDUs, in which only the SOP Instance UID changes. Each PDU is a write of its own, as
from every sender that was looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import selectors
import socket
import struct
import time
from collections.abc import Iterator

MR = b"1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = b"1.2.840.10008.1.2.1"
UID = b"2.25.1%014d"  # of one length always, so that it can be written over
SERIES_UID = b"2.25.2%014d"  # the same
SERIES_NUMBER = b"\x20\x00\x11\x00IS\x04\x00%04d"  # the whole element
LARGEST_PDU = 131072  # what a scanner offers; a receiver may take less
_STATUS = b"\0\0\0\x09\x02\0\0\0"
_PDU = struct.Struct(">BxI")


@dataclasses.dataclass(frozen=True)
class Load:
    """What is sent, and how. Times in seconds."""

    data_set: bytes  # Explicit VR little endian, holding the UID of `first_uid()` once
    senders: int = 1
    seconds: float = 1.5
    per_image: bool = False  # an association for each image
    nagle: bool = False  # as packaged: no TCP_NODELAY
    stalled: int = 0  # of the senders, so many stop in the middle of their first image
    images: int = 0  # at most so many are sent; 0: as many as there is time for
    series: int = 0  # images of each series, which has an association of its own; 0: one series, whoever sends


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it: images acknowledged with success, in so many seconds, each answered after so long."""

    images: int
    refused: int
    seconds: float
    answers: tuple[float, ...]  # seconds from the last byte given to the kernel to the whole answer


def first_uid() -> bytes:
    return UID % 0


def first_series() -> tuple[bytes, bytes]:
    """Its UID, and the element with its number: what changes where each association sends a series of its own."""
    return SERIES_UID % 0, SERIES_NUMBER % 0


def run(port: int, load: Load) -> Outcome:
    """Send `load` to 127.0.0.1; the time begins when every association is there (with `per_image`: at once)."""
    return _Run(port, load).outcome()


def request() -> bytes:
    """An A-ASSOCIATE-RQ for MR images (PS3.8 9.3.2)."""
    context = b"\1\0\0\0" + _item(0x30, MR) + _item(0x40, EXPLICIT)
    user = _item(0x51, struct.pack(">I", LARGEST_PDU)) + _item(0x52, b"1.2.3") + _item(0x55, b"SORTER_BENCH")
    body = b"\0\1\0\0" + b"SORTER".ljust(16) + b"BENCH".ljust(16) + bytes(32)
    body += _item(0x10, b"1.2.840.10008.3.1.1.1") + _item(0x20, context) + _item(0x50, user)
    return _PDU.pack(1, len(body)) + body


def max_length(accept: bytes) -> int:
    """The longest P-DATA-TF that an A-ASSOCIATE-AC takes; ConnectionError where it is none."""
    at = accept.find(b"\x51\0\0\4")
    if accept[0] != 2 or at < 0:
        raise ConnectionError(f"the association was refused: {accept[:10].hex()}")
    return min(int.from_bytes(accept[at + 4 : at + 8], "big") or LARGEST_PDU, LARGEST_PDU)


def message(data_set: bytes, longest: int) -> tuple[bytes, list[int], list[int]]:
    """A C-STORE-RQ and its data set as PDUs, where the UID stands in it, and where each PDU ends."""
    uid = first_uid()
    command = b"".join(
        struct.pack("<HHI", 0, number, len(value)) + value
        for number, value in (
            (0x0002, MR + b"\0"), (0x0100, b"\1\0"), (0x0110, b"\1\0"), (0x0700, b"\0\0"), (0x0800, b"\0\0"),
            (0x1000, uid),
        )
    )  # fmt: skip
    command = struct.pack("<HHII", 0, 0, 4, len(command)) + command
    pdus = [_PDU.pack(4, len(command) + 6) + struct.pack(">IBB", len(command) + 2, 1, 3) + command]
    step = (longest - 6) & ~1
    for start in range(0, len(data_set), step):
        piece = data_set[start : start + step]
        last = 2 if start + step >= len(data_set) else 0
        pdus.append(_PDU.pack(4, len(piece) + 6) + struct.pack(">IBB", len(piece) + 2, 1, last) + piece)
    whole = b"".join(pdus)
    first = whole.index(uid)
    return whole, [first, whole.index(uid, first + 1)], list(itertools.accumulate(len(pdu) for pdu in pdus))


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


class _Run:
    """All senders, one selector."""

    def __init__(self, port: int, load: Load) -> None:
        self.port, self.load = port, load
        self.selector = selectors.DefaultSelector()
        self.uids: Iterator[int] = itertools.count(random.SystemRandom().randrange(10**14))
        self.series: Iterator[int] = itertools.count(1)
        self.messages: dict[int, tuple[bytes, list[int], list[int]]] = {}
        self.answers: list[float] = []
        self.refused = self.begun = 0
        self.senders = [_Sender(self, number < load.stalled) for number in range(load.senders)]

    def outcome(self) -> Outcome:
        for sender in self.senders:
            sender.connect()
        start = time.perf_counter()
        end = start + self.load.seconds
        while (now := time.perf_counter()) < end and not self.done:
            for key, _ in self.selector.select(min(0.2, end - now)):
                key.data.step()
        took = time.perf_counter() - start
        for sender in self.senders:
            sender.close()
        return Outcome(len(self.answers), self.refused, took, tuple(self.answers))

    @property
    def done(self) -> bool:
        return 0 < self.load.images <= len(self.answers) + self.refused

    def message(self, longest: int) -> tuple[bytes, list[int], list[int]]:
        if longest not in self.messages:
            self.messages[longest] = message(self.load.data_set, longest)
        return self.messages[longest]


class _Sender:
    """One association after the other, or one for all."""

    def __init__(self, run: _Run, stalls: bool) -> None:
        self.run, self.stalls = run, stalls
        self.sock: socket.socket | None = None
        self.longest = 0
        self.left = 0  # images of this association's series that were not begun yet
        self.got = b""

    def connect(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self.run.port), timeout=20)
        if not self.run.load.nagle:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.sock.send(request())
        self.got, self.step = b"", self._accepted
        self.run.selector.register(self.sock, selectors.EVENT_READ, self)

    def close(self) -> None:
        if self.sock is not None:
            self.run.selector.unregister(self.sock)
            self.sock.close()
            self.sock = None

    def _pdu(self) -> bytes | None:
        """The next whole PDU, if it is here."""
        assert self.sock is not None
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the receiver closed the connection")
        self.got += data
        if len(self.got) < 6 or len(self.got) < 6 + int.from_bytes(self.got[2:6], "big"):
            return None
        pdu, self.got = self.got, b""
        return pdu

    def _accepted(self) -> None:
        if (pdu := self._pdu()) is None:
            return
        longest = max_length(pdu)
        if longest != self.longest:
            self.longest = longest
            self.whole, self.places, self.ends = self.run.message(longest)
            self.buffer = bytearray(self.whole)
            self.view = memoryview(self.buffer)
        if self.run.load.series:
            self._next_series()
        self._begin()

    def _next_series(self) -> None:
        self.left, number = self.run.load.series, next(self.run.series)
        for old, new in zip(first_series(), (SERIES_UID % number, SERIES_NUMBER % (number % 10_000)), strict=True):
            place = self.whole.index(old)
            self.buffer[place : place + len(new)] = new

    def _begin(self) -> None:
        assert self.sock is not None
        if self.run.load.images and self.run.begun >= self.run.load.images:
            self.step = self._pdu  # nothing more to say
            return
        self.run.begun += 1
        uid = UID % next(self.run.uids)
        for place in self.places:
            self.buffer[place : place + len(uid)] = uid
        self.at, self.next_end = 0, 0
        self.until = len(self.buffer) // 2 if self.stalls else len(self.buffer)
        self.step = self._sending
        self._sending()

    def _sending(self) -> None:
        """As far as the kernel takes it."""
        assert self.sock is not None
        while self.at < self.until:
            while self.ends[self.next_end] <= self.at:
                self.next_end += 1
            stop = min(self.ends[self.next_end], self.until)
            try:
                self.at += self.sock.send(self.view[self.at : stop])
            except BlockingIOError:
                self.run.selector.modify(self.sock, selectors.EVENT_WRITE, self)
                return
        if self.run.selector.get_key(self.sock).events != selectors.EVENT_READ:
            self.run.selector.modify(self.sock, selectors.EVENT_READ, self)
        self.sent = time.perf_counter()
        self.step = self._answered

    def _answered(self) -> None:
        if (pdu := self._pdu()) is None:
            return
        at = pdu.find(_STATUS)
        if pdu[0] != 4 or at < 0:
            raise ConnectionError(f"no answer to a C-STORE but {pdu[:10].hex()}")
        if pdu[at + 8 : at + 10] == b"\0\0":
            self.run.answers.append(time.perf_counter() - self.sent)
        else:
            self.run.refused += 1
        self.left -= 1
        if self.run.load.per_image or (self.run.load.series and not self.left):
            assert self.sock is not None
            self.sock.send(_PDU.pack(5, 4) + bytes(4))
            self.step = self._released
        else:
            self._begin()

    def _released(self) -> None:
        if self._pdu() is not None:
            self.close()
            self.connect()
