"""Where connections wait until they have asked for an association: one thread for all of them, a deadline for each.

A connection costs a thread and a buffer only once its whole A-ASSOCIATE-RQ is here, after the TLS handshake where there
is one. What never asks (health checks, port scanners, slow senders of single bytes) costs a descriptor for a few
seconds, and only so many of them: the oldest goes when another comes, that of the same address first, a stranger's
before that of an address that is known.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sorter.protocol import upper_layer
from sorter.protocol.upper_layer import AbortReason
from sorter.receive import gate as reasons
from sorter.receive.farewells import Farewell, Farewells
from sorter.receive.gate import Caller, Gate, Refusal, plain_address
from sorter.receive.refusals import Refusals
from sorter.receive.settings import ReceiveSettings
from sorter.receive.tally import Row

log = logging.getLogger("sorter.receive")

_HEAD = 6
_LOOK = 1.0  # seconds between two looks at deadlines when nothing happens
_PAUSE = 0.1  # seconds without accepting when descriptors have run out
_COURTESY = 0.0005  # seconds that a process with fewer connections has to take the next one
_LEAST = 68  # bytes of an A-ASSOCIATE-RQ without items
_TLS_HANDSHAKE = 0x16  # the first byte of whoever speaks TLS (RFC 8446 5.1)
KEEPALIVE = (60, 10, 6)
"""Seconds of silence before the kernel asks, between asking, and how often."""

Peer = tuple[str, int]
Admit = Callable[[socket.socket, bytes, Peer], bytes | None]
"""Takes the connection over, or answers with the PDU that ends it."""


@dataclass(slots=True)
class Door:
    """A listening socket, and the TLS that is spoken there."""

    listener: socket.socket
    tls: ssl.SSLContext | None = None


@dataclass(slots=True)
class Keeper:
    """Whom the lobby asks and tells: who may come in, who was refused, who has the fewest connections.

    `gate`, as a door's `tls`, may be replaced at any time by another thread.
    """

    gate: Gate
    refusals: Refusals
    row: Row


class _Visitor:
    """A connection that has not asked yet."""

    def __init__(self, sock: socket.socket, peer: Peer, deadline: float, known: bool) -> None:
        self.sock, self.peer, self.deadline, self.known = sock, peer, deadline, known
        self.shaking = isinstance(sock, ssl.SSLSocket)  # the TLS handshake is not over
        self.flags = 0 if self.shaking else socket.MSG_DONTWAIT  # each read returns at once
        self.watched = False  # by the selector
        self.got = bytearray()
        self.needed = _HEAD


class Lobby:
    """Accepts connections at `doors` and gives each complete request to `admit`, from the thread of `run`.

    Other processes may do so at the same doors: whoever has not the fewest connections lets the rest go first for a
    moment.
    """

    def __init__(self, doors: Sequence[Door], settings: ReceiveSettings, keeper: Keeper, admit: Admit) -> None:
        self._doors, self._settings, self._admit = doors, settings, admit
        self._keeper, self._refusals, self._row = keeper, keeper.refusals, keeper.row
        self._selector = selectors.DefaultSelector()
        self._farewells = Farewells(self._selector, settings.waiting)
        self._visitors: dict[socket.socket, _Visitor] = {}  # in order of arrival, so of deadlines
        self._of_address: Counter[str] = Counter()
        self._strangers = 0
        self._wake, self._woken = socket.socketpair()
        self._deaf_until: float | None = None
        self._was_polite = False
        for door in doors:
            _prepare(door.listener, settings.stall_timeout)
        self._listen()
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
                if isinstance(key.data, Door):
                    self._accept(key.data)
                elif isinstance(key.data, Farewell):
                    self._farewells.listen(key.data)
                elif key.fileobj is self._woken:
                    closing = True
                elif key.fileobj in self._visitors:  # it may have been crowded out since
                    self._read(key.data)
            now = time.monotonic()
            self._expire(now)
            self._farewells.expire(now)
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

    def _listen(self) -> None:
        for door in self._doors:
            self._selector.register(door.listener, selectors.EVENT_READ, door)

    def _be_deaf(self, seconds: float) -> None:
        for door in self._doors:
            self._selector.unregister(door.listener)
        self._deaf_until = time.monotonic() + seconds

    def _accept(self, door: Door) -> None:
        """One connection a turn: those who wait get theirs, and so do other processes at the same door."""
        if self._deaf_until is not None:
            return  # since the last door of this turn
        self._was_polite = not self._was_polite and self._row.busiest
        if self._was_polite:
            time.sleep(_COURTESY)  # no longer: by then it may be this process that has fewer
            return
        try:
            sock, address = door.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process took it, or it is gone
        except OSError as error:  # no descriptors or memory left: the rest waits in the kernel's backlog
            log.error("no more connections can be taken now: %s", error.strerror)
            self._be_deaf(_PAUSE)
            return
        self._enter(sock, (plain_address(str(address[0])), int(address[1])), door.tls)

    def _enter(self, sock: socket.socket, peer: Peer, tls: ssl.SSLContext | None) -> None:
        refusal = self._keeper.gate.at_the_door(peer[0])
        if refusal is not None:
            sock.close()
            self._refusals.note(Caller(peer[0]), refusal)
            return
        try:
            if tls is not None:
                sock.setblocking(False)
                sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError:
            sock.close()
            return
        visitor = _Visitor(
            sock, peer, time.monotonic() + self._settings.request_timeout, self._keeper.gate.knows(peer[0])
        )
        self._make_room(visitor)
        self._visitors[sock] = visitor
        self._row.visitors(len(self._visitors))
        self._of_address[peer[0]] += 1
        self._strangers += not visitor.known
        self._read(visitor)  # most ask at once, and need not be waited for
        if sock in self._visitors and not visitor.watched:
            self._watch(visitor, selectors.EVENT_READ)

    def _watch(self, visitor: _Visitor, events: int) -> None:
        if visitor.watched:
            self._selector.modify(visitor.sock, events, visitor)
        else:
            self._selector.register(visitor.sock, events, visitor)
            visitor.watched = True

    def _make_room(self, newcomer: _Visitor) -> None:
        """Whoever has asked for nothing for longest goes, if there are too many of the newcomer's kind."""
        settings, address = self._settings, newcomer.peer[0]
        waiting = self._visitors.values()
        goes: _Visitor | None = None
        if self._of_address[address] >= settings.waiting_per_address:
            goes = next(each for each in waiting if each.peer[0] == address)
        elif self._strangers and (
            len(waiting) >= settings.waiting
            or (not newcomer.known and self._strangers >= settings.waiting - settings.waiting_reserve)
        ):
            goes = next(each for each in waiting if not each.known)
        elif len(waiting) >= settings.waiting:
            goes = next(iter(waiting))
        if goes is not None:
            self._refuse(goes, reasons.CROWDED_OUT)

    def _read(self, visitor: _Visitor) -> None:
        while visitor.sock in self._visitors:
            if visitor.shaking and not self._shake(visitor):
                return
            try:
                data = visitor.sock.recv(visitor.needed - len(visitor.got), visitor.flags)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
                return
            except OSError:
                data = b""
            if not data:
                self._leave(visitor)
                return
            visitor.got += data
            if len(visitor.got) == visitor.needed:
                self._advance(visitor)

    def _shake(self, visitor: _Visitor) -> bool:
        """Go on with the TLS handshake as far as it goes now; whether it is over."""
        assert isinstance(visitor.sock, ssl.SSLSocket)
        try:
            visitor.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(visitor, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(visitor, selectors.EVENT_WRITE)
        except ssl.SSLError as error:
            self._refuse(visitor, _no_handshake(error))
        except OSError:  # it went away
            self._leave(visitor)
        else:
            self._watch(visitor, selectors.EVENT_READ)
            visitor.shaking = False
            return True
        return False

    def _advance(self, visitor: _Visitor) -> None:
        """The head, or the whole request, is here."""
        if visitor.needed > _HEAD:
            self._forget(visitor)
            last_word = self._admit(visitor.sock, bytes(visitor.got[_HEAD:]), visitor.peer)
            if last_word is not None:
                self._farewells.say(visitor.sock, last_word)
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
        self._forget(visitor)
        self._farewells.say(visitor.sock, upper_layer.encode_abort(reason))
        why = reasons.SPEAKS_TLS if visitor.got[0] == _TLS_HANDSHAKE else reasons.NOT_DICOM
        self._refusals.note(Caller(visitor.peer[0]), why)

    def _refuse(self, visitor: _Visitor, refusal: Refusal) -> None:
        self._leave(visitor)
        self._refusals.note(Caller(visitor.peer[0]), refusal)

    def _expire(self, now: float) -> None:
        while self._visitors:
            first = next(iter(self._visitors.values()))
            if first.deadline > now:
                break
            self._refuse(first, reasons.SILENT)
        if self._deaf_until is not None and self._deaf_until <= now:
            self._deaf_until = None
            self._listen()

    def _forget(self, visitor: _Visitor) -> None:
        del self._visitors[visitor.sock]
        self._row.visitors(len(self._visitors))
        if visitor.watched:
            self._selector.unregister(visitor.sock)
        self._strangers -= not visitor.known
        self._of_address[visitor.peer[0]] -= 1
        if not self._of_address[visitor.peer[0]]:
            del self._of_address[visitor.peer[0]]

    def _leave(self, visitor: _Visitor) -> None:
        self._forget(visitor)
        visitor.sock.close()

    def _close(self) -> None:
        for visitor in list(self._visitors.values()):
            self._leave(visitor)
        self._farewells.close()
        self._selector.close()
        for door in self._doors:
            door.listener.close()
        self._woken.close()


def _prepare(sock: socket.socket, patience: float) -> None:
    """A listening socket is non-blocking, and hands on to its connections what else is set here (accept(2), tcp(7)).

    They answer at once, and a peer whose machine or network is gone is noticed within minutes.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in zip((socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), KEEPALIVE, strict=True):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(patience * 1000)))


_HANDSHAKES = {
    reasons.SPEAKS_NO_TLS: {
        "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG", "BAD_RECORD_TYPE",
    },
    reasons.NO_CERTIFICATE: {"PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED"},
    reasons.UNTRUSTED: {
        "TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    },
    reasons.OLD_TLS: {"UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "WRONG_SSL_VERSION"},
}  # fmt: skip


def _no_handshake(error: ssl.SSLError) -> Refusal:
    """What went wrong, in one of a few sentences: OpenSSL's own words are many."""
    return next((says for says, words in _HANDSHAKES.items() if error.reason in words), reasons.NO_HANDSHAKE)
