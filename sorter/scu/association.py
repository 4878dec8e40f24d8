"""An association, and one message at a time over it: how we ask for one, what ends it, and who may say what meanwhile.

The peer is not trusted to end anything, nor to be brief: each message has its seconds, and a bound of bytes; the
association has both for all it takes (`Limits`). One thread reads and writes, so whatever comes is answered in its
order, and before the association is released.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from sorter.errors import SorterError
from sorter.protocol import dimse, upper_layer
from sorter.protocol.commitment import MOST_BYTES
from sorter.protocol.dimse import Command, Status
from sorter.protocol.uids import STORAGE_COMMITMENT
from sorter.protocol.upper_layer import (
    Aborted,
    AbortReason,
    Context,
    Lost,
    Proposal,
    ProtocolError,
    Released,
    Role,
)
from sorter.protocol.wire import Basin, Patience, Piece, Wire, whole_pdu

CONTEXTS = 128  # presentation contexts of one association (PS3.8 7.1.1.13: odd numbers below 256)

PATIENCE = 10
"""Seconds for a connection, and for the answer to an association request."""

MOST_PDU = 128 << 10
"""Bytes of a P-DATA-TF that we announce and take (PS3.8 D.1)."""

MOST_NEGOTIATED = 256 << 10
"""Bytes of an A-ASSOCIATE-RQ, or of its answer."""

_MOST_COMMAND = 64 << 10
_STALL = 30.0  # seconds without a byte inside a message, or without one taken of ours
_LEAST_RATE = 1024.0  # bytes/s inside a message, over as many

Contexts: TypeAlias = Sequence[tuple[str, tuple[str, ...]]]
"""What is proposed: an abstract syntax and its transfer syntaxes, each."""

Hear: TypeAlias = Callable[[bytes, str], int]
"""Takes the data set of a report of storage commitment, and its transfer syntax; gives the status to answer with."""


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
    """What an association may take: seconds until each message is here, seconds in all, and bytes that come in all."""

    message: float
    seconds: float
    octets: int


USUAL = Limits(message=30, seconds=7 * 86400, octets=1 << 30)
"""Where the peer has little to say, and what we have to say may take its time."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both sides have agreed on: presentation contexts, and the longest P-DATA-TF the peer takes, 0 for any."""

    contexts: Mapping[int, Context]
    max_length: int


class Message(NamedTuple):
    """A command set and its data set, in one presentation context."""

    context: Context
    command: Command
    data: bytes


class Association:
    """An established association. `hear` takes reports that come over it; any other request is refused."""

    def __init__(self, sock: socket.socket, agreed: Agreed, limits: Limits, hear: Hear | None = None) -> None:
        self.contexts = tuple(agreed.contexts.values())
        self.cut = ""  # why it was, where its limits were exceeded
        self.ended = False
        self._socket, self._agreed, self._limits, self._hear = sock, agreed, limits, hear
        idle = min(limits.message, limits.seconds)
        self._wire = Wire(sock, MOST_PDU, Patience(min(idle, _STALL), idle, lambda: False, _LEAST_RATE), Basin())
        self._deadline, self._left = time.monotonic() + limits.seconds, limits.octets
        self._last = 0  # message ID

    def context(self, abstract: str, transfer: str) -> Context | None:
        """The one that was accepted for these syntaxes."""
        return next((each for each in self.contexts if (each.abstract, each.transfer) == (abstract, transfer)), None)

    def request(self, context: Context, command: Command, data: Iterable[bytes] = ()) -> Command | None:
        """Send a request (its message ID is given to it here) and wait for its answer; reports that come before are
        heard. None if the association broke, or the answer did not come."""
        answer = next(self.requests(context, command, data), None)
        return answer.command if answer is not None else None

    def requests(self, context: Context, command: Command, data: Iterable[bytes] = ()) -> Iterator[Message]:
        """The same where several answers come: each of them, until no more are asked for, or come."""
        if self.ended:
            return
        self._last = self._last % 0xFFFF + 1
        asked = dataclasses.replace(command, message_id=self._last)
        with self._as_long_as_it_holds():
            self._send(context, dimse.encode_request(asked), data if command.has_data_set else None)
            while True:
                yield self._answer(asked)

    def hear(self) -> None:
        """Take and answer the reports that have come. That the peer ends the association is no fault."""
        with self._as_long_as_it_holds():
            while not self.ended and self._wire.has_come():
                self._serve(self._message(self._soon()))

    def serve(self) -> None:
        """Answer what the peer asks, until it ends the association."""
        with self._as_long_as_it_holds():
            while True:
                self._serve(self._message(self._soon()))

    def release(self) -> None:
        """At the end of what we wanted; what comes meanwhile is not answered any more."""
        if not self.ended:
            with contextlib.suppress(Lost, Aborted, ProtocolError):
                self._wire.release(PATIENCE)
            self._end(b"")

    def abort(self) -> None:
        if not self.ended:
            self._end(upper_layer.encode_abort())

    # --- messages -----------------------------------------------------------------------------------------------

    def _answer(self, asked: Command) -> Message:
        deadline = self._soon()
        while True:
            message = self._message(deadline)
            if not message.command.field & dimse.RESPONSE:
                self._serve(message)
                continue
            if (message.command.field ^ dimse.RESPONSE, message.command.message_id) != (asked.field, asked.message_id):
                raise ProtocolError("a response to nothing we asked", AbortReason.UNEXPECTED_PARAMETER)
            return message

    def _serve(self, message: Message) -> None:
        """Answer a request of the peer's."""
        context, command, data = message
        if command.field & dimse.RESPONSE:
            raise ProtocolError("a response to nothing we asked", AbortReason.UNEXPECTED_PARAMETER)
        status = Status.UNRECOGNIZED_OPERATION
        if command.field == dimse.C_ECHO_RQ:
            status = Status.SUCCESS
        elif command.field == dimse.N_EVENT_REPORT_RQ and context.abstract == STORAGE_COMMITMENT and self._hear:
            status = self._hear(data, context.transfer)
        if command.field != dimse.C_CANCEL_RQ:
            self._send(context, dimse.encode_response(command, status), None)

    def _message(self, deadline: float) -> Message:
        number, data = self._part(deadline, command=True)
        context = self._agreed.contexts.get(number)
        if context is None:
            raise ProtocolError("a message in a presentation context that was not accepted")
        command = dimse.decode_command(data)
        found = self._part(deadline, command=False, of=number)[1] if command.has_data_set else b""
        self._wire.message_done()
        return Message(context, command, found)

    def _part(self, deadline: float, *, command: bool, of: int = 0) -> tuple[int, bytes]:
        """A command set, or a data set (`of` this presentation context): the number of its context, and its bytes."""
        data, steps, most = bytearray(), 0, _MOST_COMMAND if command else MOST_BYTES
        while True:
            piece = self._piece(deadline)
            self._wire.in_message = True
            if piece.command != command or (of and piece.context != of):
                raise ProtocolError("command and data sets out of their order", AbortReason.UNEXPECTED_PARAMETER)
            of, steps = piece.context, steps + 1
            data += piece.data
            if max(len(data), steps) > most:  # pieces of nothing must end too
                raise ProtocolError(f"a part of a message of more than {most} bytes")
            if piece.last:
                return of, bytes(data)

    def _piece(self, deadline: float) -> Piece:
        piece = self._wire.piece()
        self._left -= piece.size
        if self._left < 0:
            self.cut = "sends more than an answer can be"
            raise Lost(self.cut)
        if time.monotonic() > min(deadline, self._deadline):
            raise Lost("the message did not come in time")
        return piece

    def _send(self, context: Context, command: bytes, data: Iterable[bytes] | None) -> None:
        """The pieces of a data set go as they come, each in as many PDUs as the peer wants."""
        number, most = context.number, self._agreed.max_length
        ahead = upper_layer.encode_data(number, command, most)
        if data is None:
            self._wire.send(ahead)
            return
        held = b""
        for piece in data:
            if held:
                self._wire.send(ahead + upper_layer.encode_data_set(number, held, most, last=False))
                ahead = b""
            held = piece
            if time.monotonic() > self._deadline:
                raise Lost("the message did not go in time")
        self._wire.send(ahead + upper_layer.encode_data_set(number, held, most, last=True))

    # --- the end ------------------------------------------------------------------------------------------------

    def _soon(self) -> float:
        return time.monotonic() + self._limits.message

    @contextlib.contextmanager
    def _as_long_as_it_holds(self) -> Iterator[None]:
        """Whatever ends the association ends here, and tells the peer."""
        try:
            yield
        except Released:
            self._end(upper_layer.RELEASE_REPLY)
        except Aborted:
            self._end(b"")
        except Lost:
            if time.monotonic() > self._deadline:
                self.cut = self.cut or f"does not come to an end in {self._limits.seconds:g} s"
            self._end(upper_layer.encode_abort())
        except ProtocolError as error:
            self._end(upper_layer.encode_abort(error.reason))

    def _end(self, last_word: bytes) -> None:
        self.ended = True
        with contextlib.suppress(OSError):  # it is gone, or nobody reads
            self._socket.send(last_word, socket.MSG_DONTWAIT)
        self._socket.close()


# --- asking for one ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def associated(
    peer: Peer, contexts: Contexts, limits: Limits = USUAL, roles: Sequence[Role] = (), hear: Hear | None = None
) -> Iterator[Association]:
    """An established association, released at the end, or aborted after an exception. SorterError: why there is none.

    Beyond `limits` the connection is cut, wherever it stands. `hear` is told reports that come meanwhile.
    """
    association, whole = _associate(peer, contexts, limits, roles, hear), False
    try:
        yield association
        whole = True
    except SorterError:
        if association.cut:
            raise SorterError(f"{peer} {association.cut}") from None
        raise
    finally:
        if whole:
            association.release()
        else:
            association.abort()  # else it might stay open


def _associate(peer: Peer, contexts: Contexts, limits: Limits, roles: Sequence[Role], hear: Hear | None) -> Association:
    proposals = [Proposal(2 * n + 1, abstract, transfers) for n, (abstract, transfers) in enumerate(contexts)]
    nothing = f"nothing answers as {peer}; is it running, is the port right, is a firewall between?"
    try:
        sock = socket.create_connection((peer.host, peer.port), min(PATIENCE, limits.seconds))
    except socket.gaierror as error:  # the name has no address
        raise SorterError(f"{peer} cannot be reached: {error.strerror}") from None
    except OSError:
        raise SorterError(nothing) from None
    with contextlib.ExitStack() as otherwise:
        otherwise.callback(sock.close)
        try:
            # Without it each image waits for a delayed acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(upper_layer.encode_request((peer.called, peer.calling), proposals, MOST_PDU, roles))
            answer = whole_pdu(sock, MOST_NEGOTIATED, time.monotonic() + min(PATIENCE, limits.seconds))
            agreed = _agreed(peer, proposals, *answer)
        except ProtocolError as error:
            with contextlib.suppress(OSError):
                sock.send(upper_layer.encode_abort(error.reason), socket.MSG_DONTWAIT)
            raise SorterError(f"{peer} does not answer as DICOM wants it: {error}") from None
        except (Lost, OSError):
            raise SorterError(nothing) from None
        association = Association(sock, agreed, limits, hear)
        otherwise.pop_all()
    if not agreed.contexts:
        association.abort()
        raise SorterError(f"{peer} takes the association of {peer.calling}, but nothing that is to be done over it")
    return association


def _agreed(peer: Peer, proposals: Sequence[Proposal], kind: int, body: bytes) -> Agreed:
    """What the answer to our request says. SorterError where it is a refusal, Lost where it is an abort."""
    if kind == upper_layer.ASSOCIATE_RJ:
        why = upper_layer.REJECTED_BECAUSE.get((body[2], body[3]) if len(body) == 4 else (0, 0), "no reason given")
        raise SorterError(f"{peer} rejects the association of {peer.calling}: {why}")
    if kind == upper_layer.ABORT:
        raise Lost("it aborts the association")
    if kind != upper_layer.ASSOCIATE_AC:
        raise ProtocolError(f"PDU type {kind} in answer to an association request", AbortReason.UNEXPECTED_PDU)
    results, max_length = upper_layer.decode_accept(body)
    accepted: dict[int, Context] = {}
    for each in proposals:
        result, transfer = results.get(each.number, (upper_layer.ABSTRACT_NOT_SUPPORTED, ""))
        if result == upper_layer.ACCEPTED and transfer in each.transfers:
            accepted[each.number] = Context(each.number, each.abstract, transfer)
    return Agreed(accepted, max_length)
