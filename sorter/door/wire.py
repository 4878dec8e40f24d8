"""One request and its answer over one connection: lines of JSON, and descriptors with the line that names them.

A request is one line. An answer is lines of items and a last one, {"end": true} or {"no": "a sentence"}. Neither side
trusts the other: lengths, descriptors and times are bounded, and whoever breaks the bounds is cut off.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Any

MOST_FILES = 64
"""Descriptors with one answer. The kernel passes 253 at most (SCM_MAX_FD), and counts those that nobody has fetched yet
against the account that sent them: see `sorter.door.server`."""

LONGEST_REQUEST = 1 << 20  # bytes
LONGEST_ANSWER = 16 << 20  # bytes of one line of it

LONGEST_PAUSE = 1000
"""Milliseconds between two looks at whether what was sent has been read; who reads it does so at once, or never."""

_INT = array.array("i").itemsize
_PIECE = 1 << 16
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid; unix(7)


class Broken(Exception):
    """The other side has gone, is too slow, or does not keep to this page."""


class Connection:
    """One end. Everything on it has to be over within `seconds`."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._socket = sock
        self._until = time.monotonic() + seconds
        self._read = bytearray()
        self.descriptors: list[int] = []
        """Those that have come; whoever takes them closes them. `close` closes what is left."""

    def allow(self, seconds: float) -> None:
        """From now on so long."""
        self._until = time.monotonic() + seconds

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """One line. The descriptors are duplicated on the way. Broken: it was not read in time."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            self._wait()
            sent = 0
            if descriptors:
                sent = socket.send_fds(self._socket, [data], descriptors)
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise Broken(error.strerror or "too slow") from None

    def receive(self, limit: int, descriptors: int = 0) -> dict[str, Any]:
        """The next line, of so many bytes at most, keeping the descriptors that come with it. Broken: none came."""
        while (end := self._read.find(b"\n")) < 0:
            if len(self._read) > limit:
                raise Broken(f"a line of more than {limit} bytes came")
            self._read += self._piece(descriptors)
        data, self._read = self._read[:end], self._read[end + 1 :]
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            raise Broken("a line is not JSON") from None
        if not isinstance(message, dict):
            raise Broken("a line is no JSON object")
        return message

    def _piece(self, descriptors: int) -> bytes:
        room = socket.CMSG_SPACE(descriptors * _INT) if descriptors else 0
        try:
            self._wait()
            data, rights, flags, _ = self._socket.recvmsg(_PIECE, room, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise Broken(error.strerror or "too slow") from None
        for level, kind, content in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                came = array.array("i")
                came.frombytes(content[: len(content) - len(content) % _INT])
                self.descriptors += came
        if flags & socket.MSG_CTRUNC or len(self.descriptors) > descriptors:
            raise Broken("descriptors came that were not asked for")
        if not data:
            raise Broken("the other side has gone")
        return data

    def _wait(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise Broken("too slow")
        self._socket.settimeout(left)

    def wait_taken(self) -> None:
        """Until the other side has read all that was sent, or has gone. For as long as that takes."""
        gone, pause = select.poll(), 1
        gone.register(self._socket, 0)  # of what it sends nothing is read any more
        while self._unread() and not gone.poll(pause):  # that it was read is nothing a poll tells of
            pause = min(2 * pause, LONGEST_PAUSE)

    def _unread(self) -> int:
        """What was sent and not read yet, in bytes of the kernel's memory. (SIOCOUTQ)"""
        answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(answer, "little")

    def close(self) -> None:
        for each in self.descriptors:
            os.close(each)
        self.descriptors = []
        self._socket.close()


def peer_of(sock: socket.socket) -> int:
    """The uid of the process that connected, as the kernel saw it then. (SO_PEERCRED, unix(7))"""
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)
