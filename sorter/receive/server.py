"""The receiver of one process: its lobby, its threads, its life cycle. `workers` has several of them on one port."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from pathlib import Path

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.receive import upper_layer
from sorter.receive.arrivals import Arrivals
from sorter.receive.association import Association, say
from sorter.receive.lobby import Lobby, Peer
from sorter.receive.settings import ReceiveSettings
from sorter.receive.tally import Tally
from sorter.receive.upper_layer import Patience, Rejection
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
        self._row = (tally or Tally(number)).row(number - 1)
        self._row.clear()
        self._settings = settings
        self._arrivals = Arrivals(received, worker, files, settings)
        self._received = received
        self._commitments = Commitments(settings.commitments, files) if settings.commitments else None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._serving: dict[threading.Thread, socket.socket] = {}
        self._lobby: Lobby | None = None
        self._thread: threading.Thread | None = None

    def start(self, listener: socket.socket | None = None) -> int:
        """Begin to answer, on `listener` if it is given; the port. SorterError says why it cannot be."""
        try:
            self._arrivals.begin()
            if self._commitments is not None:
                self._commitments.create()
        except OSError as error:
            why = f"{error.strerror}; sorter must be able to write there"
            raise SorterError(f"{self._received} cannot be used for received images: {why}") from error
        listener = listener or listen(self._settings)
        port = int(listener.getsockname()[1])
        self._lobby = Lobby(listener, self._settings, self._admit, self._row)
        self._thread = threading.Thread(target=self._lobby.run, args=(self._arrivals.tick,), name="lobby", daemon=True)
        self._thread.start()
        return port

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
        self._join(deadline)
        with self._lock:
            for sock in self._serving.values():
                _cut(sock)
        self._join(max(deadline, time.monotonic() + _LAST_SECONDS))
        self._arrivals.close()

    @property
    def alive(self) -> bool:
        """Whether connections are taken."""
        return self._thread is not None and self._thread.is_alive()

    def _join(self, deadline: float) -> None:
        with self._lock:
            threads = list(self._serving)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _admit(self, sock: socket.socket, body: bytes, peer: Peer) -> None:
        """A complete request is here: give it a thread, or say that there are too many."""
        patience = Patience(self._settings.stall_timeout, self._settings.idle_timeout, self._stopping.is_set)
        association = Association(sock, self._arrivals, self._settings, patience, self._commitments)
        thread = threading.Thread(target=self._serve, args=(association, body, peer), name="association", daemon=True)
        with self._lock:
            full = len(self._serving) >= self._settings.associations
            if not full:
                self._serving[thread] = sock
                self._row.associations(len(self._serving))
        if full:
            log.warning("%s: too many associations at once", peer[0])
            say(sock, Rejection(*upper_layer.LOCAL_LIMIT_EXCEEDED).pdu)
            sock.close()
            return
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            self._forget(thread)
            say(sock, Rejection(*upper_layer.TEMPORARY_CONGESTION).pdu)
            sock.close()

    def _serve(self, association: Association, body: bytes, peer: Peer) -> None:
        try:
            association.run(body, peer)
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            del self._serving[thread]
            self._row.associations(len(self._serving))


def listen(settings: ReceiveSettings) -> socket.socket:
    """A listening socket, which child processes may inherit. SorterError says why there is none."""
    where = f"{settings.host} port {settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SorterError(
            f"cannot receive on {where}: the host is not known ({error.strerror}); set host in [receive]"
        ) from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SorterError(f"cannot receive on {where}: {_why(error)}") from error
    return sock


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another program answers there; end it, or set another port in [receive]"
        case errno.EACCES:
            return "ports below 1024 are for root; set another port in [receive]"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address; set host in [receive]"
    return error.strerror or str(error)


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it ended by itself meanwhile
