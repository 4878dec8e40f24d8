"""An established association's bytes: PDUs in, taken apart as they come, and PDUs out (PS3.8 9.3.5)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec

from sorter.protocol.upper_layer import (
    ABORT,
    ASSOCIATE_RQ,
    P_DATA,
    PDU,
    PDV,
    RELEASE_REPLY,
    RELEASE_REQUEST,
    RELEASE_RP,
    RELEASE_RQ,
    Aborted,
    AbortReason,
    Lost,
    ProtocolError,
    Released,
    Stopping,
)

P = ParamSpec("P")

_NOTHING = memoryview(b"")
_BUFFER = 256 << 10
_WORTH_A_PIPE = 32 << 10  # bytes left of a PDV from which on two splices cost less than two copies
_SIP = 4096  # bytes read at the head of a message whose data set will come through the pipe
_HEADERS = 12  # bytes of a PDU's and its PDV's header
_PIPE = 1 << 20  # bytes that a pipe is asked to hold
_NO_BYTES = struct.pack("i", 0)  # FIONREAD of an empty pipe
_TICK = 0.5  # seconds between two looks at whether to stop


class Piece(NamedTuple):
    """Some bytes of a message: a part of one PDV.

    Either they are `data`, which holds until the next piece is asked for, or they are `piped`: they wait in the wire's
    pipe, and must be taken out of it first.
    """

    context: int
    command: bool
    last: bool
    size: int  # bytes
    data: memoryview
    piped: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a wire waits for the peer, in seconds, and whether this process is about to end."""

    stall: float
    idle: float
    stopping: Callable[[], bool]
    least_rate: float = 0.0  # bytes/s inside a message, while we wait for them


class Basin:
    """What the bytes of a wire are collected in: a buffer, and a pipe once it is needed. For one wire after the other.

    To make it costs as much as to receive an image, which matters where each image has its own association.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(_BUFFER)
        self._pipe: tuple[int, int] | None = None

    def pipe(self) -> tuple[int, int]:
        """Its two ends: to read from, to write to."""
        if self._pipe is None:
            self._pipe = os.pipe()
            with contextlib.suppress(OSError):  # this user's pipes hold enough already: then more, smaller steps
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE)
        return self._pipe

    def has_pipe(self) -> bool:
        """Whether there is one, made now if need be: descriptors may have run out."""
        try:
            self.pipe()
        except OSError:
            return False
        return True

    def rinse(self) -> None:
        """Nothing of an earlier association is in it."""
        if self._pipe is not None and fcntl.ioctl(self._pipe[0], termios.FIONREAD, _NO_BYTES) != _NO_BYTES:
            self.drop_pipe()

    def drop_pipe(self) -> None:
        """With what is in it."""
        if self._pipe is not None:
            pipe, self._pipe = self._pipe, None
            for end in pipe:
                os.close(end)


def whole_pdu(sock: socket.socket, most: int, deadline: float) -> tuple[int, bytes]:
    """Type and body of one PDU, before there is a `Wire`. `deadline` is monotonic.

    Lost where it does not come in time, ProtocolError where it announces more than `most` bytes.
    """
    head = _exactly(sock, PDU.size, deadline)
    kind, length = PDU.unpack(head)
    if length > most:
        raise ProtocolError(f"a PDU of {length} bytes where {most} are many")
    return kind, _exactly(sock, length, deadline)


def _exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Lost("it did not come in time")
        try:
            sock.settimeout(left)
            more = sock.recv(size - len(data))
        except OSError as error:
            raise Lost(_failure(error)) from error
        if not more:
            raise Lost("the peer closed the connection")
        data += more
    return bytes(data)


class Wire:
    """Both directions of one association. P-DATA-TF PDUs come out in pieces, whatever their length.

    One buffer is filled again and again; `before_reuse` is called before the bytes of earlier pieces are overwritten,
    so that whoever collects them can write many with one system call. What is left of a large PDV can go through a pipe
    instead, from the socket to a file, and is never copied into this process. Headers are then read with small reads.
    """

    def __init__(self, sock: socket.socket, max_pdu: int, patience: Patience, basin: Basin) -> None:
        self._socket, self._max_pdu, self._patience, self.basin = sock, max_pdu, patience, basin
        self._buffer, self._connection = basin.buffer, sock.fileno()
        self._view = memoryview(self._buffer)
        basin.rinse()
        self._start = self._end = 0
        self._pdu_left = self._pdv_left = 0
        self._context = self._control = 0
        self._large = False  # the peer sends PDVs that are worth a pipe
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
            sent = self._socket.send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])
            if self._encrypted:
                self._socket.settimeout(self._tick)
        except OSError as error:
            raise Lost(f"the answer could not be sent: {error.strerror or error}") from error
        self._acknowledge_at_once()

    def _send_rest(self, data: memoryview) -> None:
        """In time, too, from a peer that takes a few bytes now and then."""
        deadline = time.monotonic() + self._patience.stall
        while data:
            if time.monotonic() > deadline:
                raise Lost(f"{len(data)} bytes were not taken in {self._patience.stall:g} s")
            data = data[self._socket.send(data) :]

    def has_come(self) -> bool:
        """Whether there is something to be read: bytes of the peer, or that the connection has ended."""
        if self._start < self._end:
            return True
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def piece(self, *, piped: bool = False) -> Piece:
        """The next bytes of a message, if `piped` perhaps through the pipe.

        Raises Released, Aborted, Lost, Stopping or ProtocolError.
        """
        if not self._pdv_left:
            self._next_pdv(_HEADERS if piped and self._large else _SIP if self._large else _BUFFER)
        size = self._end - self._start
        if not size and self._pdv_left:
            self._large = self._pdv_left >= _WORTH_A_PIPE and not self._encrypted
            if piped and self._large and self.basin.has_pipe():
                return self._through_the_pipe()
            self._fill(1)
            size = self._end - self._start
        left, start, control = self._pdv_left, self._start, self._control
        if size > left:
            size = left
        self._start, self._pdv_left = start + size, left - size
        data = self._view[start : start + size]
        return Piece(self._context, control & 1 == 1, control & 2 == 2 and size == left, size, data)

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

    def _through_the_pipe(self) -> Piece:
        left, control = self._pdv_left, self._control
        size = self._receive(os.splice, self._connection, self.basin.pipe()[1], left)
        self._pdv_left = left - size
        return Piece(self._context, control & 1 == 1, control & 2 == 2 and size == left, size, _NOTHING, True)

    def _next_pdv(self, most: int) -> None:
        """To the start of a PDV's bytes, reading at most `most` at a time on the way there."""
        while not self._pdu_left:
            self._next_pdu(most)
        if self._pdu_left < 6:
            raise ProtocolError("a PDU ends inside a PDV")
        if self._end - self._start < 6:
            self._fill(6, most)
        length, self._context, self._control = PDV.unpack_from(self._buffer, self._start)
        if length < 2 or length + 4 > self._pdu_left:
            raise ProtocolError("a PDV is longer than its PDU")
        self._start += 6
        self._pdu_left -= length + 4
        self._pdv_left = length - 2

    def _next_pdu(self, most: int) -> None:
        if self._end - self._start < 6:
            self._fill(6, most)
        kind, length = PDU.unpack_from(self._buffer, self._start)
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

    def _fill(self, size: int, most: int = _BUFFER) -> None:
        """At least `size` bytes stand in the buffer from `_start` on. `size` is small: headers, or one byte.

        Not much more than `most` are read at a time.
        """
        while self._end - self._start < size:
            if self._start == self._end or self._end > _BUFFER // 2:
                if self.before_reuse is not None:
                    self.before_reuse()
                rest = self._end - self._start
                self._buffer[:rest] = self._buffer[self._start : self._end]
                self._start, self._end = 0, rest
            room = self._view[self._end : self._end + most]
            self._end += self._receive(self._socket.recv_into, room)

    def _receive(self, some: Callable[P, int], *how: P.args, **also: P.kwargs) -> int:
        """The number of bytes that `some` got from the socket, once there are any."""
        while True:
            began = time.monotonic()
            try:
                got = some(*how, **also)
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

    def _acknowledge_at_once(self) -> None:
        """Until we send again: without it a sender with Nagle on waits 40 ms for our delayed ACK."""
        with contextlib.suppress(OSError):  # the connection is gone: the next read says so
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

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
