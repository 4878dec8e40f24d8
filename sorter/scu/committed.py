"""Storage commitment as its SCU (PS3.4 annex J, Push Model): does a node keep what it was sent?

The question is an N-ACTION. The answer is an N-EVENT-REPORT, on the same association or on one that the node opens to
us, at once or after hours. A question has a Transaction UID drawn at random, so nobody else can answer it. What is not
answered is asked again, under another one; an answer to the earlier counts still.

DICOM commits to a SOP Instance UID, not to bytes. So only what the node has answered success to is asked for, and
nothing of which it was sent two contents under one UID: which of them it keeps, it does not say.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sorter.errors import SorterError, TryLater
from sorter.protocol.commitment import SYNTAXES, Reference, Report, Unreadable, encode, parse_report
from sorter.protocol.dimse import N_ACTION_RQ, Command, Status
from sorter.protocol.uids import COMMITMENT_INSTANCE, STORAGE_COMMITMENT
from sorter.scu.association import Association, Peer

CONTEXT = (STORAGE_COMMITMENT, SYNTAXES)

MOST_AT_ONCE = 10_000
"""Instances of one question: about a megabyte."""

MOST_REMEMBERED = 200_000
"""Images; of more, the first are sent again."""

MOST_DONE = 20_000
"""Images that have their receipt."""

MOST_QUESTIONS = 200
"""That have no answer yet: a node may take them for ever and never say a word. Of more, the first count no longer."""

_SEVERAL = ""  # in place of the digest: contents under one UID, of which none is alone
_REQUEST_COMMITMENT = 1  # the one action type (PS3.4 J.3.2.1)
_BETWEEN_LOOKS = 0.05  # seconds between two looks at whether an association of ours brought an answer

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
    """What was sent, asked and answered, in this process. Answers come on threads of the `Ear`, too."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sent: dict[str, Sent] = {}  # by the digest of its file
        self._latest: dict[str, Sent] = {}  # by SOP Instance UID
        self._questions: dict[str, tuple[Sent, ...]] = {}
        self._done: dict[str, str] = {}  # digests of what has its receipt, by SOP Instance UID

    def find(self, sha256: str) -> Sent | None:
        return self._sent.get(sha256)

    def add(self, reference: Reference, sha256: str) -> Sent:
        """The node has it."""
        with self._changed:
            sent, other = Sent(reference, sha256), self._latest.get(reference.sop_uid)
            if other is not None and other.sha256 != sha256:
                sent.alone = other.alone = False
            sent.alone = sent.alone and self._done.get(reference.sop_uid, sha256) == sha256
            self._sent[sha256] = self._latest[reference.sop_uid] = sent
            while len(self._sent) > MOST_REMEMBERED:
                self._drop(next(iter(self._sent.values())))
            return sent

    def done(self, images: Sequence[Sent]) -> None:
        """They have their receipt. Of each only its digest is remembered: another content under its UID, of another
        series perhaps, is not alone there."""
        self.forget(images)
        with self._changed:
            self._done |= {each.reference.sop_uid: each.sha256 if each.alone else _SEVERAL for each in images}
            while len(self._done) > MOST_DONE:
                del self._done[next(iter(self._done))]

    def forget(self, images: Iterable[Sent]) -> None:
        """They are to be sent again, if at all."""
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
            while len(self._questions) > MOST_QUESTIONS:
                del self._questions[next(iter(self._questions))]
        return transaction

    def unasked(self, images: Iterable[Sent]) -> None:
        """The question did not arrive."""
        for each in images:
            each.asked = None

    def answer(self, report: Report) -> None:
        """Take an answer for what it was asked of, and for nothing else."""
        reasons = {each.sop_uid: reason for each, reason in report.failed.items()}
        with self._changed:
            for each in self._questions.pop(report.transaction, ()):
                if each.reference in report.safe:
                    each.safe, each.failure = True, None
                elif not each.safe:
                    each.failure = reasons.get(each.reference.sop_uid)
                    each.asked = each.asked if each.failure is not None else None  # not named: asked again
            self._changed.notify_all()

    def hear(self, data: bytes, transfer: str) -> int:
        """An N-EVENT-REPORT (PS3.4 J.3.3); its status. What was never asked is taken, and means nothing."""
        try:
            report = parse_report(data, transfer)
        except Unreadable:
            return Status.INVALID_ARGUMENT
        self.answer(report)
        return Status.SUCCESS

    def wait(self, images: Sequence[Sent], seconds: float) -> bool:
        """Until all of these that were asked for are answered, but no longer than so; are they?"""
        with self._changed:
            return self._changed.wait_for(lambda: not any(each.asked and self._open(each) for each in images), seconds)

    def youngest(self) -> float | None:
        """When the last question that has no answer yet was asked."""
        with self._changed:
            asked = [each.asked for each in self._sent.values() if self._open(each) and each.asked is not None]
        return max(asked, default=None)


def ask(association: Association, peer: Peer, ledger: Ledger, images: Sequence[Sent]) -> None:
    """Ask for these (N-ACTION, PS3.4 J.3.2).

    SorterError where the association broke, TryLater where the node does not take the question.
    """
    context = next(each for each in association.contexts if each.abstract == STORAGE_COMMITMENT)
    action = Command(N_ACTION_RQ, 0, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, True, _REQUEST_COMMITMENT)
    for start in range(0, len(images), MOST_AT_ONCE):
        some = images[start : start + MOST_AT_ONCE]
        question = encode(context.transfer, ledger.question(some), [each.reference for each in some], {})
        answer = association.request(context, action, [question])
        if answer is None or answer.status != 0:
            ledger.unasked(some)
        if answer is None:
            raise SorterError(f"{peer} broke off when it was asked whether it keeps what it has")
        if answer.status != 0:
            says = f"status 0x{answer.status:04X}"
            raise TryLater(f"{peer} does not take the question whether it keeps what it has: {says}")


def wait(association: Association, ledger: Ledger, images: Sequence[Sent], seconds: float) -> None:
    """For the answers to what was asked of these, over this association or another; no longer than so."""
    deadline = time.monotonic() + seconds
    while True:
        association.hear()
        left = deadline - time.monotonic()
        if ledger.wait(images, max(0.0, min(_BETWEEN_LOOKS, left))) or left <= 0:
            return
