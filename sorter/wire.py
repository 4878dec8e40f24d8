"""Messages between two processes of sorter: JSON objects with descriptors, over one unix stream socket.

A frame is 4 bytes of length, most significant first, then that many bytes of JSON. Descriptors travel as SCM_RIGHTS
with the length, so they belong to the frame that follows. Neither side trusts the other's frames: length and number
of descriptors are bounded, and a descriptor that was not asked for is closed.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

MOST_DESCRIPTORS = 250
"""In one frame; the kernel's own bound is 253 (SCM_MAX_FD)."""

MOST_BYTES = 64 << 20
"""Of JSON in one frame: a put of about 200,000 files."""

_LENGTH = struct.Struct("!I")
_INT = array.array("i").itemsize


class WireError(Exception):
    """The other side broke the protocol; the connection is of no more use."""


class Channel:
    """One end of the socket. Sending is safe from several threads; receiving is one thread's.

    `timeout` is how many seconds the other side may stay silent, or not read, before TimeoutError; None for ever.
    """

    def __init__(self, sock: socket.socket, timeout: float | None = None) -> None:
        self._socket = sock
        self._socket.settimeout(timeout)
        self._until: float | None = None
        self._sending = threading.Lock()

    def by(self, moment: float) -> None:
        """From now on, all that is sent and received has to be through by this moment of `time.monotonic`: whoever
        says a little now and then is not waited for either."""
        self._until = moment

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one frame. The descriptors are duplicated on the way: the caller still owns, and closes, its own."""
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > MOST_BYTES or len(descriptors) > MOST_DESCRIPTORS:
            raise WireError(f"a frame of {len(body)} bytes and {len(descriptors)} descriptors is too large")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        header = _LENGTH.pack(len(body))
        try:
            with self._sending:
                self._hurry()
                sent = self._socket.sendmsg([header], rights)
                self._socket.sendall(header[sent:] + body)
        except ConnectionError:
            raise EOFError("the other side has gone") from None

    def receive(self, descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
        """The next frame and its descriptors (at most `descriptors`), which are the caller's to close.

        EOFError when the other side has gone, WireError for anything that is not a frame.
        """
        header, received = self._header(descriptors)
        try:
            return self._body(header), received
        except BaseException:
            close_all(received)
            raise

    def _body(self, header: bytes) -> dict[str, Any]:
        (length,) = _LENGTH.unpack(header)
        if length > MOST_BYTES:
            raise WireError(f"a frame of {length} bytes was announced")
        try:
            message = json.loads(self._exactly(length))
        except (ValueError, RecursionError):
            raise WireError("a frame is not JSON") from None
        if not isinstance(message, dict):
            raise WireError("a frame is not a JSON object")
        return message

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """To wait with `poll` until there is something to receive."""
        return self._socket.fileno()

    def _header(self, most: int) -> tuple[bytes, list[int]]:
        header, received = b"", array.array("i")
        room = socket.CMSG_SPACE(most * _INT) if most else 0
        try:
            while len(header) < _LENGTH.size:
                self._hurry()
                data, rights, flags, _ = self._socket.recvmsg(
                    _LENGTH.size - len(header), room, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
                )
                for level, kind, content in rights:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        received.frombytes(content[: len(content) - len(content) % _INT])
                if not data:
                    raise EOFError("the other side has gone")
                if flags & socket.MSG_CTRUNC or len(received) > most:
                    raise WireError("descriptors came that were not asked for")
                header += data
        except ConnectionError:
            close_all(received)
            raise EOFError("the other side has gone") from None
        except BaseException:
            close_all(received)
            raise
        return header, list(received)

    def _hurry(self) -> None:
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)

    def _exactly(self, length: int) -> bytearray:
        body = bytearray(length)
        view = memoryview(body)
        while view:
            self._hurry()
            try:
                got = self._socket.recv_into(view)
            except ConnectionError:
                got = 0
            if not got:
                raise EOFError("the other side went in the middle of a frame")
            view = view[got:]
        return body


def close_all(descriptors: Sequence[int] | array.array[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
