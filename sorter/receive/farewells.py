"""Connections that have heard a last PDU and may not have read it yet.

To close one while bytes of the peer are unread resets it, and a peer that is still sending then never reads why it was
refused. So our side is closed alone, and what comes is read over until the peer closes its own: for a moment, a few
bytes, and not for too many at once.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import time
from dataclasses import dataclass

_PATIENCE = 1.0  # seconds
_MOST_BYTES = 1 << 20  # of one peer
_STEP = 1 << 16


@dataclass(slots=True)
class Farewell:
    """A connection of which only our side is closed; `data` of its key in the selector."""

    sock: socket.socket
    deadline: float  # monotonic
    left: int = _MOST_BYTES


class Farewells:
    """Those of one thread, which waits with `selector` and tells which of them has sent something."""

    def __init__(self, selector: selectors.BaseSelector, most: int) -> None:
        self._selector, self._most = selector, most
        self._open: dict[socket.socket, Farewell] = {}  # in order of their deadlines

    def say(self, sock: socket.socket, pdu: bytes) -> None:
        """Send `pdu`, which is short, and close our side. The connection, closed soon, is ours from now on."""
        if len(self._open) >= self._most:
            self._end(next(iter(self._open.values())))
        with contextlib.suppress(OSError):  # it is gone: then nothing can be read from it either
            sock.setblocking(False)
            sock.send(pdu)
            if isinstance(sock, ssl.SSLSocket):
                with contextlib.suppress(OSError):  # it wants to read the peer's own word, which we do not wait for
                    sock.unwrap()
            socket.socket.shutdown(sock, socket.SHUT_WR)
        each = self._open[sock] = Farewell(sock, time.monotonic() + _PATIENCE)
        self._selector.register(sock, selectors.EVENT_READ, each)

    def listen(self, each: Farewell) -> None:
        """Something came, if only the end."""
        if each.sock not in self._open:
            return  # it has ended since
        try:
            size = len(socket.socket.recv(each.sock, _STEP))  # below TLS, too: it is read over
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        each.left -= size
        if not size or each.left <= 0:
            self._end(each)

    def expire(self, now: float) -> None:
        """End those whose time is over."""
        while self._open and (first := next(iter(self._open.values()))).deadline <= now:
            self._end(first)

    def close(self) -> None:
        for each in list(self._open.values()):
            self._end(each)

    def _end(self, each: Farewell) -> None:
        del self._open[each.sock]
        self._selector.unregister(each.sock)
        each.sock.close()
