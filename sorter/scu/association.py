"""An association that we ask for: how it is opened, what ends it, and one message at a time over it."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sorter.errors import SorterError

CONTEXTS = 128  # presentation contexts of one association (PS3.8 7.1.1.13: odd numbers below 256)

PATIENCE = 10
"""Seconds for a connection, and for the answer to an association request."""

Contexts: TypeAlias = Sequence[tuple[str, tuple[str, ...]]]
"""What is proposed: an abstract syntax and its transfer syntaxes, each."""


class Peer(NamedTuple):
    """Whom to ask for an association, and the two AE titles it is asked with."""

    host: str
    port: int
    called: str
    calling: str

    def __str__(self) -> str:
        return f"{self.called} at {self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an association may take: seconds until each message, seconds in all, and bytes that come in all."""

    message: float
    seconds: float
    octets: int


USUAL = Limits(message=30, seconds=7 * 86400, octets=1 << 30)
"""Where the peer has little to say, and what we have to say may take its time."""


@contextlib.contextmanager
def associated(
    peer: Peer, contexts: Contexts, limits: Limits = USUAL, roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
) -> Iterator[Any]:
    """An established association, released at the end, or aborted after an exception. SorterError: why there is none.

    The peer is not trusted to end anything: beyond `limits` the connection is cut, wherever it stands. `handlers` are
    pynetdicom's, for reports that come meanwhile (N-EVENT-REPORT); no other request is answered.
    """
    guard, reports, whole = Guard(limits), _Reports(), False
    association = None
    try:
        association = _associate(peer, contexts, roles, guard, [*handlers, *reports.handlers()])
        guard.arm(limits.seconds)
        yield association
        whole = True
    except SorterError:
        if guard.cut:
            raise SorterError(f"{peer} {guard.cut}") from None
        raise
    finally:
        if association is not None and whole and association.is_established:
            reports.end()
            association._is_paused = True  # so it is, since `pause_reactor`; but it says otherwise after a report
            association.release()
        else:
            guard.end("was cut off")  # else it might be read from for ever, or stay open
            if association is not None:
                association.abort()
        guard.disarm()


class Guard:
    """Cuts a connection from outside: pynetdicom would wait for the rest of a PDU for ever, and keep all of any."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cut = ""  # why
        self._came = 0
        self._timer: threading.Timer | None = None
        self._socket: socket.socket | None = None

    def opened(self, event: Any) -> None:
        """There is a connection (an event of pynetdicom)."""
        link = event.assoc.dul.socket
        # Without it each image waits for a delayed acknowledgement.
        link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._read = link.socket, link.recv
        link.recv = self._recv
        self.arm(min(3 * PATIENCE, self.limits.seconds))

    def arm(self, seconds: float) -> None:
        """From now on so long, and no longer."""
        self.disarm()
        self._timer = threading.Timer(seconds, self.end, (f"does not come to an end in {seconds:g} s",))
        self._timer.daemon = True
        self._timer.start()

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _recv(self, size: int) -> Any:
        self._came += size  # what a PDU announces counts before it is read
        if self._came > self.limits.octets:
            self.end("sends more than an answer can be")
            return bytearray()
        return self._read(size)

    def end(self, why: str) -> None:
        self.cut = self.cut or why
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended already
                self._socket.shutdown(socket.SHUT_RDWR)


class _Reports:
    """The reports (N-EVENT-REPORT) of one association, which pynetdicom answers on a thread of its own, each.

    An answer that came after our release request would end the thread that sends, and the release with it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._answering = 0
        self._ended = False

    def handlers(self) -> list[Any]:
        from pynetdicom import evt

        return [(evt.EVT_CONN_OPEN, self._opened)]

    def _opened(self, event: Any) -> None:
        event.assoc._serve_request = functools.partial(self._serve, event.assoc._serve_request)

    def _serve(self, serve: Callable[[Any, int], None], message: Any, context: int) -> None:
        with self._changed:
            if self._ended:
                return
            self._answering += 1
        try:
            serve(message, context)
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Take none any more; come back when those that were taken are answered."""
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._answering, PATIENCE)


def _associate(peer: Peer, contexts: Contexts, roles: Sequence[Any], guard: Guard, handlers: Sequence[Any]) -> Any:
    from pynetdicom import AE, build_context, evt

    entity = AE(ae_title=peer.calling)
    entity.connection_timeout = entity.acse_timeout = PATIENCE
    entity.dimse_timeout = guard.limits.message
    wanted = [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts]
    events: list[Any] = [(evt.EVT_CONN_OPEN, guard.opened), *handlers]
    try:
        association = entity.associate(
            peer.host, peer.port, contexts=wanted, ae_title=peer.called, ext_neg=list(roles), evt_handlers=events
        )
    except OSError as error:  # the name has no address
        raise SorterError(f"{peer} cannot be reached: {error.strerror}") from None
    if association.is_established:
        pause_reactor(association, str(peer))
        return association
    if association.is_rejected:
        why = association.acceptor.primitive.reason_str if association.acceptor.primitive else "no reason given"
        raise SorterError(f"{peer} rejects the association of {peer.calling}: {why}")
    if association.rejected_contexts:
        raise SorterError(f"{peer} takes the association of {peer.calling}, but nothing that is to be done over it")
    raise SorterError(f"nothing answers as {peer}; is it running, is the port right, is a firewall between?")


class _Checkpoint(threading.Event):
    """What pynetdicom's reactor waits at in each round; says when it stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self.reached.set()
        return super().wait(timeout)


def pause_reactor(association: Any, where: str) -> None:
    """Stop the thread that would take our answers for requests, for as long as the association lives.

    To clear its event is not enough: it may be past it, in a round that still takes a message.
    """
    checkpoint = _Checkpoint()
    association._reactor_checkpoint = checkpoint
    if not checkpoint.reached.wait(PATIENCE):
        association.abort()
        raise SorterError(f"{where}: the association does not come to rest; try again")


def exchange(association: Any, request: Any, context: int) -> Any:
    """Send one DIMSE request and wait for its answer; None if the association broke, or the answer did not come."""
    association.dimse.send_msg(request, context)
    return answer(association)


def answer(association: Any) -> Any:
    """The next answer to what was sent; None as `exchange` says."""
    _, found = association.dimse.get_msg(block=True)
    return found if found is not None and getattr(found, "is_valid_response", False) else None
