"""A port at which other nodes report what they keep (PS3.4 J.3.3), on associations that they ask for."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from sorter.errors import TryLater
from sorter.protocol import upper_layer
from sorter.protocol.commitment import MOST_BYTES
from sorter.protocol.uids import EXPLICIT, IMPLICIT, STORAGE_COMMITMENT, VERIFICATION
from sorter.protocol.upper_layer import AbortReason, Context, Lost, Proposal, ProtocolError, Rejection
from sorter.protocol.wire import whole_pdu
from sorter.scu.association import MOST_NEGOTIATED, MOST_PDU, PATIENCE, Agreed, Association, Hear, Limits, Peer

_LISTENING = Limits(message=30, seconds=300, octets=4 * MOST_BYTES)
_PAUSE = 1.0  # seconds, where this machine gives no more descriptors or threads


MOST_CONNECTIONS = 16
"""To one port at once; of more, the oldest is closed that is not of the node's own address, else what comes last."""


class Ear:
    """Hears reports, and answers C-ECHO: whoever enters us there will try it."""

    def __init__(self, hear: Hear, peer: Peer, port: int) -> None:
        self._hear, self._peer, self._port = hear, peer, port
        self._listener: socket.socket | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, str] = {}  # with the address of each, in the order they came
        self._own: frozenset[str] = frozenset()  # addresses of the node

    def listen(self) -> None:
        """From now on, for as long as the process lives, at that address of this machine that the node sees."""
        if self._listener is not None:
            return
        try:
            self._own = _addresses(self._peer)
            self._listener = _listener(self._peer, self._port)
        except OSError as error:
            raise TryLater(
                f"port {self._port}, on which {self._peer} is to answer whether it keeps images, cannot be had"
                f" ({error.strerror}); another program, or another target, has it"
            ) from None
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        with self._lock:
            for each in (self._listener, *self._connections):
                if each is not None:
                    with contextlib.suppress(OSError):  # it has ended already
                        each.shutdown(socket.SHUT_RDWR)
        if self._listener is not None:
            self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while not self._ended.is_set():
            try:
                sock, address = listener.accept()
            except OSError:
                self._ended.wait(_PAUSE)
                continue
            if not self._enter(sock, str(address[0])):
                sock.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()
            except RuntimeError:  # no more threads
                self._leave(sock)
                self._ended.wait(_PAUSE)

    def _enter(self, sock: socket.socket, address: str) -> bool:
        """Whoever holds connections for nothing keeps the node from none."""
        with self._lock:
            if len(self._connections) >= MOST_CONNECTIONS:
                stranger = next((each for each, of in self._connections.items() if of not in self._own), None)
                if stranger is None:
                    return False
                del self._connections[stranger]
                with contextlib.suppress(OSError):  # it has ended already
                    stranger.shutdown(socket.SHUT_RDWR)
            self._connections[sock] = address
        return True

    def _serve(self, sock: socket.socket) -> None:
        last_word = b""
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _accepted(sock, self._hear).serve()
        except Rejection as error:
            last_word = error.pdu
        except ProtocolError as error:
            last_word = upper_layer.encode_abort(error.reason)
        except (Lost, OSError):
            pass
        finally:
            with contextlib.suppress(OSError):
                sock.send(last_word, socket.MSG_DONTWAIT)
            self._leave(sock)

    def _leave(self, sock: socket.socket) -> None:
        sock.close()
        with self._lock:
            self._connections.pop(sock, None)


def _addresses(peer: Peer) -> frozenset[str]:
    return frozenset(str(each[4][0]) for each in socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM))


def _listener(peer: Peer, port: int) -> socket.socket:
    """At the address of this machine that leads to the node; nothing is sent to find out."""
    family, kind, _, _, address = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        own = str(probe.getsockname()[0])
    return socket.create_server((own, port), family=family, backlog=MOST_CONNECTIONS)


def _accepted(sock: socket.socket, hear: Hear) -> Association:
    """The association that is asked for over this connection. Rejection, ProtocolError, Lost: there is none."""
    kind, body = whole_pdu(sock, MOST_NEGOTIATED, time.monotonic() + PATIENCE)
    if kind != upper_layer.ASSOCIATE_RQ:
        raise ProtocolError(f"PDU type {kind} instead of an association request", AbortReason.UNEXPECTED_PDU)
    request = upper_layer.decode_request(body)
    if not request.version & 1:
        raise Rejection(*upper_layer.VERSION_NOT_SUPPORTED)
    asked = upper_layer.decode_items(request.items)
    if asked.application_context != upper_layer.APPLICATION_CONTEXT:
        raise Rejection(*upper_layer.APPLICATION_CONTEXT_NOT_SUPPORTED)
    results = {each.number: _answer(each) for each in asked.proposals}
    # A node that reports is its SCP (PS3.7 D.3.3.4), whether it says so or not; where it does, it wants an answer.
    roles = [each for each in upper_layer.decode_roles(request.items) if each.abstract == STORAGE_COMMITMENT]
    answers = upper_layer.encode_answers(results, MOST_PDU, roles[:1])
    sock.sendall(upper_layer.encode_accept(request.titles, answers))
    accepted = {
        each.number: Context(each.number, each.abstract, results[each.number][1])
        for each in asked.proposals
        if results[each.number][0] == upper_layer.ACCEPTED
    }
    return Association(sock, Agreed(accepted, asked.max_length), _LISTENING, hear)


def _answer(proposal: Proposal) -> tuple[int, str]:
    if proposal.abstract not in (VERIFICATION, STORAGE_COMMITMENT):
        return upper_layer.ABSTRACT_NOT_SUPPORTED, IMPLICIT
    transfer = next((each for each in proposal.transfers if each in (EXPLICIT, IMPLICIT)), None)
    return (upper_layer.TRANSFER_NOT_SUPPORTED, IMPLICIT) if transfer is None else (upper_layer.ACCEPTED, transfer)
