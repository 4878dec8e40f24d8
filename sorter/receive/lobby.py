"""Where connections wait until they have asked for an association: one thread for all of them, a deadline for each.

A connection costs a thread and a buffer only once its whole A-ASSOCIATE-RQ is here. What never asks (health checks,
port scanners, slow senders of single bytes) costs a descriptor for a few seconds.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable

from sorter.receive import upper_layer
from sorter.receive.settings import ReceiveSettings
from sorter.receive.tally import Row
from sorter.receive.upper_layer import AbortReason

log = logging.getLogger("sorter.receive")

_HEAD = 6
_LOOK = 1.0  # seconds between two looks at deadlines when nothing happens
_PAUSE = 0.1  # seconds without accepting when descriptors have run out
_COURTESY = 0.003  # seconds that a process with fewer connections has to take the next one
_LEAST = 68  # bytes of an A-ASSOCIATE-RQ without items

Peer = tuple[str, int]
Admit = Callable[[socket.socket, bytes, Peer], None]


class _Visitor:
    """A connection that has not asked yet."""

    def __init__(self, sock: socket.socket, peer: Peer, deadline: float) -> None:
        self.sock, self.peer, self.deadline = sock, peer, deadline
        self.got = bytearray()
        self.needed = _HEAD


class Lobby:
    """Accepts connections on `listener` and gives each complete request to `admit`, from the thread of `run`.

    Other processes may do so on the same listener: `row` says who has the fewest connections, and the rest let it go
    first for a moment.
    """

    def __init__(self, listener: socket.socket, settings: ReceiveSettings, admit: Admit, row: Row) -> None:
        self._listener, self._settings, self._admit, self._row = listener, settings, admit, row
        self._selector = selectors.DefaultSelector()
        self._visitors: dict[socket.socket, _Visitor] = {}  # in order of arrival, so of deadlines
        self._wake, self._woken = socket.socketpair()
        self._deaf_until: float | None = None
        self._was_polite = False
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def stop(self) -> None:
        """Make `run` return; from any thread, once."""
        self._wake.close()  # which the other end sees

    def run(self, tick: Callable[[], None]) -> None:
        """Until `stop`. `tick` is called about once a second."""
        next_tick = time.monotonic() + _LOOK
        closing = False
        while not closing:
            for key, _ in self._selector.select(self._wait()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    closing = True
                else:
                    self._read(key.data)
            now = time.monotonic()
            self._expire(now)
            if now >= next_tick:
                next_tick = now + _LOOK
                tick()
        self._close()

    def _wait(self) -> float:
        first = next(iter(self._visitors.values()), None)
        limits = [_LOOK]
        now = time.monotonic()
        if first is not None:
            limits.append(first.deadline - now)
        if self._deaf_until is not None:
            limits.append(self._deaf_until - now)
        return max(0.0, min(limits))

    def _accept(self) -> None:
        """One connection a turn: those who wait get theirs, and so do other processes on the same listener."""
        self._was_polite = not self._was_polite and self._row.busiest
        if self._was_polite:
            self._be_deaf(_COURTESY)
            return
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process took it, or it is gone
        except OSError as error:  # no descriptors or memory left: the rest waits in the kernel's backlog
            log.error("no more connections can be taken now: %s", error.strerror)
            self._be_deaf(_PAUSE)
            return
        self._enter(sock, (str(address[0]), int(address[1])))

    def _be_deaf(self, seconds: float) -> None:
        self._selector.unregister(self._listener)
        self._deaf_until = time.monotonic() + seconds

    def _enter(self, sock: socket.socket, peer: Peer) -> None:
        if len(self._visitors) >= self._settings.waiting:
            self._leave(next(iter(self._visitors.values())))
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError:
            sock.close()
            return
        visitor = _Visitor(sock, peer, time.monotonic() + self._settings.request_timeout)
        self._visitors[sock] = visitor
        self._row.visitors(len(self._visitors))
        self._selector.register(sock, selectors.EVENT_READ, visitor)
        self._read(visitor)

    def _read(self, visitor: _Visitor) -> None:
        while visitor.sock in self._visitors:
            try:
                data = visitor.sock.recv(visitor.needed - len(visitor.got))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._leave(visitor)
                return
            visitor.got += data
            if len(visitor.got) == visitor.needed:
                self._advance(visitor)

    def _advance(self, visitor: _Visitor) -> None:
        """The head, or the whole request, is here."""
        if visitor.needed > _HEAD:
            self._forget(visitor)
            self._admit(visitor.sock, bytes(visitor.got[_HEAD:]), visitor.peer)
            return
        kind, length = upper_layer.pdu_head(visitor.got)
        if kind != upper_layer.ASSOCIATE_RQ:
            known = upper_layer.ASSOCIATE_RQ <= kind <= upper_layer.ABORT
            self._turn_away(visitor, AbortReason.UNEXPECTED_PDU if known else AbortReason.UNRECOGNIZED_PDU)
        elif not _LEAST <= length <= self._settings.max_request:
            self._turn_away(visitor, AbortReason.INVALID_PARAMETER)
        else:
            visitor.needed = _HEAD + length

    def _turn_away(self, visitor: _Visitor, reason: int) -> None:
        with contextlib.suppress(OSError):
            visitor.sock.send(upper_layer.encode_abort(reason))
        self._leave(visitor)

    def _expire(self, now: float) -> None:
        while self._visitors:
            first = next(iter(self._visitors.values()))
            if first.deadline > now:
                break
            log.info("%s connected and did not ask for an association in time", first.peer[0])
            self._leave(first)
        if self._deaf_until is not None and self._deaf_until <= now:
            self._deaf_until = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _forget(self, visitor: _Visitor) -> None:
        del self._visitors[visitor.sock]
        self._row.visitors(len(self._visitors))
        self._selector.unregister(visitor.sock)

    def _leave(self, visitor: _Visitor) -> None:
        self._forget(visitor)
        visitor.sock.close()

    def _close(self) -> None:
        for visitor in list(self._visitors.values()):
            self._leave(visitor)
        self._selector.close()
        self._listener.close()
        self._woken.close()
