"""One association, from its request to its end."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

from sorter.protocol import upper_layer
from sorter.protocol.upper_layer import (
    Aborted,
    AbortReason,
    Lost,
    ProtocolError,
    Rejection,
    Released,
    Request,
    Stopping,
)
from sorter.protocol.wire import Basin, Patience, Wire
from sorter.receive.arrivals import Arrivals
from sorter.receive.commitment import Desk
from sorter.receive.exchange import Exchange
from sorter.receive.file_meta import Route
from sorter.receive.incoming import Intake
from sorter.receive.negotiation import Agreement, negotiate
from sorter.receive.settings import ReceiveSettings
from sorter.spool.commitments import Commitments

log = logging.getLogger("sorter.receive")

_RELEASE_PATIENCE = 2.0  # seconds a peer has to agree when this process ends
_LINGER = 1.0  # seconds to let a refused peer read why before the connection is cut


class Seat(NamedTuple):
    """What an association is lent: a basin for its bytes, and a place among all associations.

    `leave` gives the place back, and is called before a peer hears that it is released: it may return at once.
    """

    basin: Basin
    leave: Callable[[], None]


class Association:
    """Serves one peer on its connection until the association ends. `run` never raises."""

    def __init__(
        self,
        sock: socket.socket,
        arrivals: Arrivals,
        settings: ReceiveSettings,
        patience: Patience,
        commitments: Commitments | None = None,
    ) -> None:
        self._socket, self._arrivals, self._settings, self._patience = sock, arrivals, settings, patience
        self._commitments = commitments

    def run(self, request: Request, peer: tuple[str, int], seat: Seat) -> None:
        """Answer `request`, then serve. The connection is closed at the end."""
        try:
            self._serve(request, peer, seat)
        except ProtocolError as error:
            log.warning("%s broke the protocol: %s", peer[0], error)
            say_last(self._socket, upper_layer.encode_abort(error.reason))
        except Rejection as error:
            log.warning("%s: association %s", peer[0], error)
            say_last(self._socket, error.pdu)
        except Exception:  # a bug ends this association, never the receiver
            log.exception("an association with %s ended by a fault of ours", peer[0])
            say_last(self._socket, upper_layer.encode_abort(AbortReason.NOT_SPECIFIED))
        finally:
            self._socket.close()

    def _serve(self, request: Request, peer: tuple[str, int], seat: Seat) -> None:
        agreement = negotiate(request, self._settings.max_pdu, self._commitments is not None)
        route = Route(request.calling, request.called, *peer)
        try:
            association = self._arrivals.opened(route)
        except OSError as error:
            log.error("an association cannot be written down: %s", error.strerror)
            raise Rejection(*upper_layer.TEMPORARY_CONGESTION) from error
        intake, how = Intake(self._arrivals, association, route), "lost"
        last_word = b""
        try:
            how, last_word = self._established(request, agreement, intake, seat)
        finally:
            self._arrivals.ended(association, how)
            _tell(intake, how)
        seat.leave()  # but not where a fault ended it: there a thread and its basin wait for the peer to go
        say(self._socket, last_word)  # when all is done: a peer that is released may return at once

    def _established(self, request: Request, agreement: Agreement, intake: Intake, seat: Seat) -> tuple[str, bytes]:
        """How it ended ("released", "aborted" or "lost"), and a PDU that the peer is to hear."""
        wire = Wire(self._socket, self._settings.max_pdu, self._patience, seat.basin)
        try:
            wire.send(upper_layer.encode_accept(request.titles, agreement.answers))
            try:
                desk = Desk(self._commitments, intake.route) if self._commitments is not None else None
                Exchange(wire, agreement, intake, self._settings, desk).run()
            except Stopping:
                wire.release(_RELEASE_PATIENCE)
        except Released:
            return "released", upper_layer.RELEASE_REPLY
        except Aborted:
            return "aborted", b""
        except Lost as error:
            log.info("association %s: %s", intake.association, error)
            return "lost", upper_layer.encode_abort(AbortReason.NOT_SPECIFIED)
        return "released", b""


def _tell(intake: Intake, how: str) -> None:
    """Log how an association ended; if all went well, for debugging only: it may be one for each image."""
    well = how == "released" and intake.stored == intake.begun
    who = intake.route.calling, intake.route.called, intake.route.address
    says = "association %s, %s calling %s from %s: %s, %d of %d stored"
    log.log(logging.DEBUG if well else logging.INFO, says, intake.association, *who, how, intake.stored, intake.begun)


def say(sock: socket.socket, pdu: bytes) -> None:
    """Send a last PDU to a peer that may be gone."""
    with contextlib.suppress(OSError):
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(_LINGER)
            sock.sendall(pdu)
        else:
            sock.send(pdu, socket.MSG_DONTWAIT)  # a few bytes, for which there is room unless nobody reads


def say_last(sock: socket.socket, pdu: bytes) -> None:
    """Send a last PDU and let the peer read it: closing with its bytes unread would reset the connection first."""
    say(sock, pdu)
    deadline = time.monotonic() + _LINGER
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)  # a peer that neither speaks nor closes would keep its place for ever
            if not sock.recv(1 << 16):
                return
