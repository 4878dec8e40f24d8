"""The DICOM upper layer (PS3.8) as far as an acceptor needs it: PDUs in, PDUs out.

Written by hand where pynetdicom has codecs too: its decoder takes 10 ms for the 128 presentation contexts of a usual
proposal, and answers junk with bare assertions and KeyErrors. The tests hold the two against each other.
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLEMENTATION_CLASS_UID = "2.25.69988629887158946819400123722328831240"
IMPLEMENTATION_VERSION_NAME = "SORTER"

_ITEM = struct.Struct(">BxH")
_PDU = struct.Struct(">BxI")
_PDV = struct.Struct(">IBB")
_REQUEST_HEAD = 68  # of an A-ASSOCIATE-RQ, after type and length, before its first item
_BUFFER = 256 << 10
_TICK = 0.5  # seconds between two looks at whether to stop

RELEASE_REQUEST = _PDU.pack(RELEASE_RQ, 4) + bytes(4)
RELEASE_REPLY = _PDU.pack(RELEASE_RP, 4) + bytes(4)


class AbortReason:
    """Reasons of an A-ABORT by the service provider (PS3.8 9.3.8)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class ProtocolError(Exception):
    """The peer broke PS3.8 or PS3.7: the association is aborted with `reason`."""

    def __init__(self, says: str, reason: int = AbortReason.INVALID_PARAMETER) -> None:
        self.reason = reason
        super().__init__(says)


class Released(Exception):
    """The peer asked to release the association, or (`confirmed`) agreed to our own request."""

    def __init__(self, *, confirmed: bool = False) -> None:
        self.confirmed = confirmed
        super().__init__("released")


class Aborted(Exception):
    """The peer aborted the association."""


class Lost(Exception):
    """The connection is gone, or was silent for too long."""


class Stopping(Exception):
    """This process is to end, and no message is in flight."""


# --- association requests and their answers -------------------------------------------------------------------------


class Rejection(Exception):
    """An A-ASSOCIATE-RJ: result 1 permanent or 2 transient, source and reason as in PS3.8 9.3.4."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.pdu = _PDU.pack(ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))
        super().__init__(f"rejected: result {result}, source {source}, reason {reason}")


VERSION_NOT_SUPPORTED = (1, 2, 2)
APPLICATION_CONTEXT_NOT_SUPPORTED = (1, 1, 2)
CALLING_NOT_RECOGNIZED = (1, 1, 3)
CALLED_NOT_RECOGNIZED = (1, 1, 7)
TEMPORARY_CONGESTION = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A presentation context as proposed: its odd number, an abstract syntax, transfer syntaxes in the peer's order."""

    number: int
    abstract: str
    transfers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UserItems:
    """The variable items of an A-ASSOCIATE-RQ. `max_length` is the longest P-DATA-TF the peer takes, 0 for any.

    Role selection, asynchronous operations, extended negotiation and user identity are read over: without an answer
    their defaults hold (PS3.7 D.3.3), which are what we do.
    """

    application_context: str
    proposals: tuple[Proposal, ...]
    max_length: int


@dataclass(frozen=True, slots=True)
class Request:
    """An A-ASSOCIATE-RQ: titles as text for people and as sent, and its items, still encoded."""

    calling: str
    called: str
    version: int
    titles: bytes  # called and calling AE title and the reserved bytes, which the answer repeats
    items: bytes


def decode_request(body: bytes) -> Request:
    """The fixed part of an A-ASSOCIATE-RQ (PS3.8 9.3.2), from what follows its length. ProtocolError if cut short."""
    if len(body) < _REQUEST_HEAD:
        raise ProtocolError("association request cut short")
    return Request(
        calling=_title(body[20:36]),
        called=_title(body[4:20]),
        version=int.from_bytes(body[0:2], "big"),
        titles=body[4:_REQUEST_HEAD],
        items=body[_REQUEST_HEAD:],
    )


def decode_items(items: bytes) -> UserItems:
    """The items of an A-ASSOCIATE-RQ (PS3.8 9.3.2); ProtocolError where they do not parse."""
    application, max_length = "", 0
    proposals: dict[int, Proposal] = {}
    for kind, value in _items(items):
        if kind == 0x10:
            application = _uid(value)
        elif kind == 0x20:
            proposal = _proposal(value)
            if proposal.number in proposals:
                raise ProtocolError("a presentation context number was proposed twice")
            proposals[proposal.number] = proposal
        elif kind == 0x50:
            max_length = _max_length(value)
    if not proposals:
        raise ProtocolError("association request without a presentation context")
    return UserItems(application, tuple(proposals.values()), max_length)


def encode_accept(titles: bytes, answers: bytes) -> bytes:
    """An A-ASSOCIATE-AC (PS3.8 9.3.3) of the request's own `titles` and of `encode_answers`."""
    return _PDU.pack(ASSOCIATE_AC, 4 + len(titles) + len(answers)) + b"\0\1\0\0" + titles + answers


def encode_answers(results: dict[int, tuple[int, str]], max_pdu: int) -> bytes:
    """The items of an A-ASSOCIATE-AC: by context number the result (PS3.8 9.3.3.2) and the transfer syntax."""
    out = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for number, (result, transfer) in results.items():
        out.append(_item(0x21, bytes((number, 0, result, 0)) + _item(0x40, transfer.encode())))
    user = (
        _item(0x51, max_pdu.to_bytes(4, "big"))
        + _item(0x52, IMPLEMENTATION_CLASS_UID.encode())
        + _item(0x55, IMPLEMENTATION_VERSION_NAME.encode())
    )
    return b"".join([*out, _item(0x50, user)])


def encode_abort(reason: int | None = None) -> bytes:
    """An A-ABORT (PS3.8 9.3.8) by the service provider for `reason`, by the service user without one."""
    source = (0, 0) if reason is None else (2, reason)
    return _PDU.pack(ABORT, 4) + bytes((0, 0, *source))


def encode_data(context: int, command: bytes, max_length: int) -> bytes:
    """A command set as P-DATA-TF PDUs, none longer than `max_length` (0: any length)."""
    step = max(1, max_length - 6) if max_length else len(command)
    out = []
    for start in range(0, len(command), step):
        piece = command[start : start + step]
        control = 3 if start + step >= len(command) else 1
        out.append(_PDU.pack(P_DATA, len(piece) + 6) + _PDV.pack(len(piece) + 2, context, control) + piece)
    return b"".join(out)


def pdu_head(data: bytes | bytearray) -> tuple[int, int]:
    """Type and length of a PDU, from its first six bytes."""
    kind, length = _PDU.unpack_from(data)
    return kind, length


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ProtocolError("an item is cut short")
        kind, length = _ITEM.unpack_from(data, at)
        at += 4 + length
        if at > len(data):
            raise ProtocolError("an item is longer than what holds it")
        yield kind, data[at - length : at]


def _proposal(value: bytes) -> Proposal:
    if len(value) < 4 or value[0] % 2 == 0:
        raise ProtocolError("a presentation context has no odd number")
    abstract, transfers = "", []
    for kind, sub in _items(value[4:]):
        if kind == 0x30:
            abstract = _uid(sub)
        elif kind == 0x40:
            transfers.append(_uid(sub))
    return Proposal(value[0], abstract, tuple(transfers))


def _max_length(user: bytes) -> int:
    for kind, value in _items(user):
        if kind == 0x51:
            if len(value) != 4:
                raise ProtocolError("the maximum length is not four bytes")
            return int.from_bytes(value, "big")
    return 0


def _uid(value: bytes) -> str:
    """As text; old peers pad with NUL or spaces. What is no UID stays recognisable as none."""
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def _title(value: bytes) -> str:
    """An AE title for people and headers: what its VR forbids becomes "?" (PS3.5 6.2)."""
    text = value.replace(b"\0", b" ").strip(b" ").decode("ascii", "replace")
    return "".join(char if " " <= char <= "~" and char != "\\" else "?" for char in text)


# --- an established association's bytes -----------------------------------------------------------------------------


class Piece(NamedTuple):
    """Some bytes of a message, as they came: a part of one PDV. `data` holds until the next piece is asked for."""

    context: int
    command: bool
    last: bool
    data: memoryview


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a wire waits for the peer, in seconds, and whether this process is about to end."""

    stall: float
    idle: float
    stopping: Callable[[], bool]
    least_rate: float = 0.0  # bytes/s inside a message, while we wait for them


class Wire:
    """Both directions of one association. P-DATA-TF PDUs come out in pieces, whatever their length.

    One buffer is filled again and again; `before_reuse` is called before the bytes of earlier pieces are overwritten,
    so that whoever collects them can write many with one system call.
    """

    def __init__(self, sock: socket.socket, max_pdu: int, patience: Patience) -> None:
        self._socket, self._max_pdu, self._patience = sock, max_pdu, patience
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._pdu_left = self._pdv_left = 0
        self._context = self._control = 0
        self._silent = 0.0
        self._waited, self._came = 0.0, 0  # seconds and bytes, since the message began or the pace was looked at
        self._releasing = False
        self.in_message = False  # set by whoever knows: a message has begun and is not answered yet
        self.before_reuse: Callable[[], None] | None = None
        tick = min(_TICK, patience.stall, patience.idle)
        self._tick = tick
        wait = struct.pack("ll", int(tick), int(tick % 1 * 1e6))
        send_wait = struct.pack("ll", int(patience.stall), int(patience.stall % 1 * 1e6))
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        if self._encrypted:
            sock.settimeout(tick)
            return
        sock.setblocking(True)  # the kernel's own timeouts save the poll that Python's would make before each call
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, send_wait)

    def send(self, data: bytes) -> None:
        """All of it, in one write where the kernel takes it; Lost when the peer does not."""
        try:
            if self._encrypted:
                self._socket.settimeout(self._patience.stall)
            self._socket.sendall(data)
            if self._encrypted:
                self._socket.settimeout(self._tick)
        except OSError as error:
            raise Lost(f"the answer could not be sent: {error.strerror or error}") from error

    def piece(self) -> Piece:
        """The next bytes of a message. Raises Released, Aborted, Lost, Stopping or ProtocolError."""
        if not self._pdv_left:
            self._next_pdv()
        if self._pdv_left and self._start == self._end:
            self._fill(1)
        size = min(self._pdv_left, self._end - self._start)
        data = self._view[self._start : self._start + size]
        self._start += size
        self._pdv_left -= size
        control = self._control
        return Piece(self._context, control & 1 == 1, control & 2 == 2 and not self._pdv_left, data)

    def message_done(self) -> None:
        """The message is answered. Raises Stopping when this process is to end."""
        self.in_message = False
        self._waited, self._came = 0.0, 0
        if self._patience.stopping():
            raise Stopping

    def release(self, patience: float) -> None:
        """Ask the peer to release and wait for its reply, `patience` seconds at most; Lost if there is none."""
        self._releasing = True
        self._patience = Patience(patience, patience, lambda: False)
        self.send(RELEASE_REQUEST)
        deadline = time.monotonic() + patience
        try:
            while time.monotonic() < deadline:  # what was under way may still come; it is not answered any more
                self.piece()
        except Released as end:
            if not end.confirmed:
                self.send(RELEASE_REPLY)  # both asked at once (PS3.8 9.2, states 9 to 12)
            return
        raise Lost("the peer went on after our release request")

    def _next_pdv(self) -> None:
        while not self._pdu_left:
            self._next_pdu()
        if self._pdu_left < 6:
            raise ProtocolError("a PDU ends inside a PDV")
        self._fill(6)
        length, self._context, self._control = _PDV.unpack_from(self._buffer, self._start)
        if length < 2 or length + 4 > self._pdu_left:
            raise ProtocolError("a PDV is longer than its PDU")
        self._start += 6
        self._pdu_left -= length + 4
        self._pdv_left = length - 2

    def _next_pdu(self) -> None:
        self._fill(6)
        kind, length = _PDU.unpack_from(self._buffer, self._start)
        self._start += 6
        if kind != P_DATA:
            self._other(kind, length)
        if not 6 <= length <= self._max_pdu:
            raise ProtocolError(f"a P-DATA-TF of {length} bytes, {self._max_pdu} were agreed")
        self._pdu_left = length

    def _other(self, kind: int, length: int) -> None:
        if kind == ABORT:
            raise Aborted
        if kind == RELEASE_RQ or (kind == RELEASE_RP and self._releasing):
            if length != 4:
                raise ProtocolError("a release PDU is not four bytes long")
            self._fill(4)
            self._start += 4
            raise Released(confirmed=kind == RELEASE_RP)
        known = ASSOCIATE_RQ <= kind <= ABORT
        reason = AbortReason.UNEXPECTED_PDU if known else AbortReason.UNRECOGNIZED_PDU
        raise ProtocolError(f"PDU type {kind} inside an association", reason)

    def _fill(self, size: int) -> None:
        """At least `size` bytes stand in the buffer from `_start` on. `size` is small: headers, or one byte."""
        while self._end - self._start < size:
            if self._start == self._end or self._end > _BUFFER // 2:
                if self.before_reuse is not None:
                    self.before_reuse()
                rest = self._end - self._start
                self._buffer[:rest] = self._buffer[self._start : self._end]
                self._start, self._end = 0, rest
            self._end += self._receive(self._view[self._end :])

    def _receive(self, into: memoryview) -> int:
        while True:
            began = time.monotonic()
            try:
                # Re-armed each time: without it a sender with Nagle on waits 40 ms for our delayed ACK.
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                got = self._socket.recv_into(into)
            except (BlockingIOError, TimeoutError):
                self._waited += self._tick
                self._nothing_came()
                continue
            except OSError as error:
                raise Lost(_failure(error)) from error
            if not got:
                raise Lost("the peer closed the connection")
            self._silent = 0.0
            self._waited += time.monotonic() - began
            self._came += got
            if self._waited >= self._patience.stall:
                self._keep_pace()
            return got

    def _keep_pace(self) -> None:
        """Whoever sends a byte now and then holds a place and a thread for nothing."""
        if self._came < self._patience.least_rate * self._waited:
            raise Lost(f"less than {self._patience.least_rate:g} bytes/s came for {self._waited:.0f} s")
        self._waited, self._came = 0.0, 0

    def _nothing_came(self) -> None:
        self._silent += self._tick
        inside = self.in_message or self._pdu_left > 0 or self._pdv_left > 0 or self._start < self._end
        if not inside and self._patience.stopping():
            raise Stopping
        if not inside:
            self._waited, self._came = 0.0, 0
        limit = self._patience.stall if inside else self._patience.idle
        if self._silent >= limit:
            raise Lost(f"nothing came for {limit:g} s")


def _failure(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'the peer broke it off'}"
    return errno.errorcode.get(error.errno or 0, "connection error")
