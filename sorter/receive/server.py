"""The receiver of one process: its lobby, its threads, its life cycle. `workers` has several of them on one port."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.protocol import upper_layer
from sorter.protocol.upper_layer import Rejection, Request
from sorter.protocol.wire import Basin, Patience
from sorter.receive.arrivals import Arrivals
from sorter.receive.association import Association, Seat
from sorter.receive.crew import Crew
from sorter.receive.gate import FULL, NO_SPACE, NO_THREADS, Caller, Gate, Refusal, admits_everybody, is_loopback
from sorter.receive.lobby import Door, Keeper, Lobby, Peer
from sorter.receive.refusals import Open, Refusals
from sorter.receive.settings import ReceiveSettings
from sorter.receive.tally import Tally
from sorter.spool.commitments import Commitments

log = logging.getLogger("sorter.receive")

BACKLOG = 128  # connections the kernel holds for us
_LAST_SECONDS = 1.0  # of a stop, for associations whose connection had to be cut


class Receiver:
    """The embedded storage SCP: files in `received`/`worker`/..., as `sorter.receive.arrivals` says.

    It is started once; to stop it again does nothing. Several processes may serve one port: give each another number,
    and all of them one listener and one tally.
    """

    def __init__(
        self, settings: ReceiveSettings, received: Path, files: Files, number: int = 1, tally: Tally | None = None
    ) -> None:
        worker = f"w{number}"
        self._row = (tally or Tally(number, settings.associations)).row(number - 1)
        self._row.clear()
        self._settings = settings
        self._keeper = Keeper(Gate(settings), Refusals(received / worker, files), self._row)
        self._refusals = self._keeper.refusals
        self._doors: Sequence[Door] = ()
        self._arrivals = Arrivals(received, worker, files, settings)
        self._received = received
        self._commitments = Commitments(settings.commitments, files) if settings.commitments else None
        self._stopping = threading.Event()
        self._serving: set[socket.socket] = set()
        self._fewer = threading.Condition()  # of them; held for each change
        self._placed = 0  # of them, those that have a place still
        self._crew = Crew(self._serve)
        self._lobby: Lobby | None = None
        self._thread: threading.Thread | None = None

    def start(self, doors: Sequence[Door] = ()) -> int:
        """Begin to answer, at `doors` if they are given; the port of the first. SorterError says why it cannot be."""
        self._doors = doors = doors or open_doors(self._settings)
        port = int(doors[0].listener.getsockname()[1])
        try:
            self._arrivals.begin()
            if self._commitments is not None:
                self._commitments.create()
        except OSError as error:
            for door in doors:
                door.listener.close()
            why = f"{error.strerror}; sorter must be able to write there"
            raise SorterError(f"{self._received} cannot be used for received images: {why}") from error
        self._refusals.begin(self._open())
        self._lobby = Lobby(doors, self._settings, self._keeper, self._admit)
        self._thread = threading.Thread(target=self._lobby.run, args=(self._tick,), name="lobby", daemon=True)
        self._thread.start()
        return port

    def admit_from_now_on(self, settings: ReceiveSettings) -> None:
        """Callers, places and certificates as `settings` say. Ports stay open, associations go on."""
        self._settings = replace(
            self._settings,
            senders=settings.senders,
            strangers=settings.strangers,
            called=settings.called,
            associations=min(settings.associations, self._settings.associations),  # the tally has no more places
            per_address=settings.per_address,
            reserve=settings.reserve,
        )
        self._keeper.gate = Gate(self._settings)
        renew_certificates(self._doors, settings)
        self._refusals.open(self._open())

    def _open(self) -> Open:
        port = int(self._doors[0].listener.getsockname()[1])
        return Open(self._settings.host, port, open_to_everybody(self._settings), time.time())

    def stop(self, timeout: float) -> None:
        """Take nothing new, finish the instances in flight, release the associations; `timeout` in seconds.

        What is not over by then is cut off; its sender has no Success and keeps the image.
        """
        lobby, self._lobby = self._lobby, None
        if lobby is None or self._thread is None:
            return
        deadline = time.monotonic() + timeout
        self._stopping.set()
        lobby.stop()
        self._thread.join(timeout)
        self._crew.end()
        self._await_the_last(deadline)
        with self._fewer:
            for sock in self._serving:
                _cut(sock)
        self._await_the_last(max(deadline, time.monotonic() + _LAST_SECONDS))
        self._arrivals.close()
        self._refusals.close()

    @property
    def alive(self) -> bool:
        """Whether connections are taken."""
        return self._thread is not None and self._thread.is_alive()

    def _await_the_last(self, deadline: float) -> None:
        with self._fewer:
            self._fewer.wait_for(lambda: not self._serving, max(0.0, deadline - time.monotonic()))

    def _tick(self) -> None:
        self._arrivals.tick()
        self._refusals.tick()

    def _admit(self, sock: socket.socket, body: bytes, peer: Peer) -> bytes | None:
        """A complete request is here: give it a place and a thread, or the A-ASSOCIATE-RJ that says why not."""
        request = upper_layer.decode_request(body)
        caller = Caller(peer[0], request.calling, request.called)
        refusal = self._keeper.gate.at_the_request(caller, *self._row.count(caller.address))
        if refusal is None and self._arrivals.space.short:
            refusal = NO_SPACE
        if refusal is None:
            refusal = self._begin(sock, request, peer)
        if refusal is None:
            return None
        self._refusals.note(caller, refusal)
        assert refusal.rejection is not None
        return Rejection(*refusal.rejection).pdu

    def _begin(self, sock: socket.socket, request: Request, peer: Peer) -> Refusal | None:
        place = self._row.take(peer[0])
        if place is None:
            return FULL
        admitted = _Admitted(sock, request, peer, place)
        with self._fewer:
            self._serving.add(sock)
            self._placed += 1
            self._row.associations(self._placed)
        try:
            self._crew.begin(admitted)
        except RuntimeError:  # the system gives no more threads
            self._end(admitted)
            return NO_THREADS
        return None

    def _serve(self, admitted: _Admitted, basin: Basin) -> None:
        settings = self._settings
        stopping = self._stopping.is_set
        patience = Patience(settings.stall_timeout, settings.idle_timeout, stopping, settings.least_rate)
        association = Association(admitted.sock, self._arrivals, settings, patience, self._commitments)
        try:
            association.run(admitted.request, admitted.peer, Seat(basin, lambda: self._leave(admitted)))
        finally:
            self._end(admitted)

    def _leave(self, admitted: _Admitted) -> None:
        """Give the place back; harmless when it was given back before."""
        with self._fewer:
            if admitted.place is not None:
                self._row.give_back(admitted.place)
                admitted.place = None
                self._placed -= 1
                self._row.associations(self._placed)

    def _end(self, admitted: _Admitted) -> None:
        self._leave(admitted)
        with self._fewer:
            self._serving.discard(admitted.sock)
            self._fewer.notify_all()


@dataclass(slots=True)
class _Admitted:
    """Who has a place, or had one until it was released."""

    sock: socket.socket
    request: Request
    peer: Peer
    place: int | None


def open_to_everybody(settings: ReceiveSettings) -> bool:
    """Whether whoever reaches this machine over a network is admitted."""
    hosts = [settings.host]
    if settings.tls is not None and settings.tls.context.verify_mode is not ssl.CERT_REQUIRED:
        hosts.append(settings.tls.host)
    return admits_everybody(settings) and not all(is_loopback(host) for host in hosts)


def open_doors(settings: ReceiveSettings) -> list[Door]:
    """The listening sockets, that without TLS first, which child processes may inherit. SorterError says why not."""
    doors = [Door(_listen("receive", settings.host, settings.port))]
    if settings.tls is not None:
        try:
            listener = _listen("receive.tls", settings.tls.host, settings.tls.port)
        except SorterError:
            doors[0].listener.close()
            raise
        doors.append(Door(listener, settings.tls.context))
    return doors


def renew_certificates(doors: Sequence[Door], settings: ReceiveSettings) -> None:
    """TLS as `settings` say, for whoever comes in at `doors` from now on."""
    for door in doors:
        if door.tls is not None and settings.tls is not None:
            door.tls = settings.tls.context


def _listen(table: str, host: str, port: int) -> socket.socket:
    where = f"{host} port {port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SorterError(
            f"cannot receive on {where}: the host is not known ({error.strerror}); set host in [{table}]"
        ) from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SorterError(f"cannot receive on {where}: {_why(error, table)}") from error
    return sock


def _why(error: OSError, table: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"another program answers there; end it, or set another port in [{table}]"
        case errno.EACCES:
            return f"ports below 1024 are for root; set another port in [{table}]"
        case errno.EADDRNOTAVAIL:
            return f"this machine has no such address; set host in [{table}]"
    return error.strerror or str(error)


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it ended by itself meanwhile
