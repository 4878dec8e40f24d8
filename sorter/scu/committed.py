"""Storage commitment as its SCU (PS3.4 annex J, Push Model): does a node keep what it was sent?

The question is an N-ACTION. The answer is an N-EVENT-REPORT, on the same association or on one that the node opens to
us, at once or after hours. A question has a Transaction UID drawn at random, so nobody else can answer it. What is not
answered is asked again, under another one; an answer to the earlier counts still.

DICOM commits to a SOP Instance UID, not to bytes. So only what the node has answered success to is asked for, and
nothing of which it was sent two contents under one UID: which of them it keeps, it does not say.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sorter.errors import SorterError, TryLater
from sorter.protocol.commitment import MOST_BYTES, Reference, Report, Unreadable, parse_report
from sorter.scu.association import PATIENCE, Guard, Limits, Peer, exchange
from sorter.scu.commitment import COMMITMENT, COMMITMENT_INSTANCE, REPORT_SYNTAXES

CONTEXT = (COMMITMENT, REPORT_SYNTAXES)

MOST_AT_ONCE = 10_000
"""Instances of one question: about a megabyte."""

MOST_REMEMBERED = 200_000
"""Images; of more, the first are sent again."""

_REQUEST_COMMITMENT = 1  # the one action type (PS3.4 J.3.2.1)
_INVALID_ARGUMENT = 0x0115
_LISTENING = Limits(message=30, seconds=300, octets=4 * MOST_BYTES)
_MOST_CONNECTIONS = 16

FAILURES = {
    0x0110: "it could not",
    0x0112: "it does not have them",
    0x0119: "it has them with another SOP class",
    0x0122: "it does not take their SOP class",
    0x0131: "it knows the question already",
    0x0213: "it has no room",
}
"""Failure reasons (PS3.3 C.14.1.1), in words."""


@dataclass(slots=True, eq=False)
class Sent:
    """An image that the node answered success to.

    `alone`: no other content was sent there under its UID. `asked`: when, by the monotonic clock. `safe`: the node
    keeps it; `failure`: it does not, with its reason.
    """

    reference: Reference
    sha256: str
    alone: bool = True
    asked: float | None = None
    safe: bool = False
    failure: int | None = None


class Ledger:
    """What was sent, asked and answered, in this process. Answers come on pynetdicom's threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sent: dict[str, Sent] = {}  # by the digest of its file
        self._latest: dict[str, Sent] = {}  # by SOP Instance UID
        self._questions: dict[str, tuple[Sent, ...]] = {}

    def find(self, sha256: str) -> Sent | None:
        return self._sent.get(sha256)

    def add(self, reference: Reference, sha256: str) -> Sent:
        """The node has it."""
        with self._changed:
            sent, other = Sent(reference, sha256), self._latest.get(reference.sop_uid)
            if other is not None and other.sha256 != sha256:
                sent.alone = other.alone = False
            self._sent[sha256] = self._latest[reference.sop_uid] = sent
            while len(self._sent) > MOST_REMEMBERED:
                self._drop(next(iter(self._sent.values())))
            return sent

    def forget(self, images: Iterable[Sent]) -> None:
        """They have their receipt, or are to be sent again."""
        with self._changed:
            for each in images:
                self._drop(each)
            self._questions = {name: those for name, those in self._questions.items() if any(map(self._open, those))}

    def _drop(self, sent: Sent) -> None:
        if self._sent.get(sent.sha256) is sent:
            del self._sent[sent.sha256]
        if self._latest.get(sent.reference.sop_uid) is sent:
            del self._latest[sent.reference.sop_uid]

    def _open(self, sent: Sent) -> bool:
        return not sent.safe and sent.failure is None and self._sent.get(sent.sha256) is sent

    def question(self, images: Sequence[Sent]) -> str:
        """A new Transaction UID (PS3.5 B.2), under which these are asked for from now on."""
        transaction = f"2.25.{uuid.uuid4().int}"
        with self._changed:
            for each in images:
                each.asked = time.monotonic()
            self._questions[transaction] = tuple(images)
        return transaction

    def unasked(self, images: Iterable[Sent]) -> None:
        """The question did not arrive."""
        for each in images:
            each.asked = None

    def answer(self, report: Report) -> None:
        """Take an answer for what it was asked of, and for nothing else."""
        with self._changed:
            for each in self._questions.pop(report.transaction, ()):
                if each.reference in report.safe:
                    each.safe, each.failure = True, None
                elif not each.safe:
                    each.failure = report.failed.get(each.reference)
                    each.asked = each.asked if each.failure is not None else None  # not named: asked again
            self._changed.notify_all()

    def wait(self, images: Sequence[Sent], seconds: float) -> bool:
        """Until all of these that were asked for are answered, but no longer than so; are they?"""
        with self._changed:
            return self._changed.wait_for(lambda: not any(each.asked and self._open(each) for each in images), seconds)

    def youngest(self) -> float | None:
        """When the last question that has no answer yet was asked."""
        with self._changed:
            asked = [each.asked for each in self._sent.values() if self._open(each) and each.asked is not None]
        return max(asked, default=None)


class Ear:
    """Hears answers: on associations of ours (`handlers`), and on those that the node opens to a port of ours."""

    def __init__(self, ledger: Ledger, peer: Peer, port: int) -> None:
        self._ledger, self._peer, self._port = ledger, peer, port
        self._server: Any = None
        self._guards: dict[Any, Guard] = {}
        self._lock = threading.Lock()

    def handlers(self) -> list[Any]:
        from pynetdicom import evt

        return [(evt.EVT_N_EVENT_REPORT, self._heard)]

    def listen(self) -> None:
        """From now on, for as long as the process lives, at that address of this machine that the node sees."""
        if self._server is not None:
            return
        from pynetdicom import AE, evt

        entity = AE(ae_title=self._peer.calling)
        entity.acse_timeout = PATIENCE
        entity.maximum_associations = 4 * _MOST_CONNECTIONS  # those count too that were cut off, until it has noticed
        # A node that reports is its SCP (PS3.7 D.3.3.4), whether it says so or not.
        entity.add_supported_context(CONTEXT[0], list(CONTEXT[1]), scu_role=True, scp_role=True)
        entity.add_supported_context("1.2.840.10008.1.1")  # C-ECHO: whoever enters us there will try it
        handlers = [*self.handlers(), (evt.EVT_CONN_OPEN, self._opened), (evt.EVT_CONN_CLOSE, self._closed)]
        try:
            where = (_own_address(self._peer), self._port)
            self._server = entity.start_server(where, block=False, evt_handlers=handlers)
        except OSError as error:
            raise TryLater(
                f"port {self._port}, on which {self._peer} is to answer whether it keeps images, cannot be had"
                f" ({error.strerror}); another program, or another target, has it"
            ) from None

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _opened(self, event: Any) -> None:
        guard = Guard(_LISTENING)
        guard.opened(event)
        with self._lock:
            self._guards = {each: of for each, of in self._guards.items() if not of.cut}
            if len(self._guards) >= _MOST_CONNECTIONS:
                guard.end("is one too many")
            self._guards[event.assoc] = guard

    def _closed(self, event: Any) -> None:
        with self._lock:
            guard = self._guards.pop(event.assoc, None)
        if guard is not None:
            guard.disarm()

    def _heard(self, event: Any) -> tuple[int, None]:
        """An N-EVENT-REPORT (PS3.4 J.3.3); its status. What was never asked is taken, and means nothing."""
        information = event.request.EventInformation
        try:
            report = parse_report(information.getvalue() if information else b"", event.context.transfer_syntax)
        except Unreadable:
            return _INVALID_ARGUMENT, None
        self._ledger.answer(report)
        return 0x0000, None


def _own_address(peer: Peer) -> str:
    """The address of this machine that leads to the node; nothing is sent to find out."""
    family, kind, _, _, address = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def ask(association: Any, peer: Peer, ledger: Ledger, images: Sequence[Sent]) -> None:
    """Ask for these (N-ACTION, PS3.4 J.3.2).

    SorterError where the association broke, TryLater where the node does not take the question.
    """
    context = next(each for each in association.accepted_contexts if each.abstract_syntax == COMMITMENT)
    for start in range(0, len(images), MOST_AT_ONCE):
        some = images[start : start + MOST_AT_ONCE]
        answer = exchange(association, _question(context, ledger.question(some), some), context.context_id)
        if answer is None or answer.Status != 0:
            ledger.unasked(some)
        if answer is None:
            raise SorterError(f"{peer} broke off when it was asked whether it keeps what it has")
        if answer.Status != 0:
            says = f"status 0x{int(answer.Status):04X}"
            raise TryLater(f"{peer} does not take the question whether it keeps what it has: {says}")


def _question(context: Any, transaction: str, images: Sequence[Sent]) -> Any:
    """The N-ACTION's request (PS3.4 table J.3-1)."""
    from io import BytesIO

    from pydicom.dataset import Dataset
    from pynetdicom.dimse_primitives import N_ACTION
    from pynetdicom.dsutils import encode

    asked, items = Dataset(), []
    for each in images:
        items.append(Dataset())
        items[-1].ReferencedSOPClassUID, items[-1].ReferencedSOPInstanceUID = each.reference
    asked.TransactionUID, asked.ReferencedSOPSequence = transaction, items
    syntax = context.transfer_syntax[0]
    request = N_ACTION()
    request.MessageID, request.ActionTypeID = 1, _REQUEST_COMMITMENT
    request.RequestedSOPClassUID, request.RequestedSOPInstanceUID = COMMITMENT, COMMITMENT_INSTANCE
    request.ActionInformation = BytesIO(encode(asked, syntax.is_implicit_VR, syntax.is_little_endian) or b"")
    return request
