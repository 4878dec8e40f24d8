"""Query/Retrieve (PS3.4 annex C): what a sender has of a series, and having it sent here.

Study Root, and Patient Root of peers that offer no other. An answer is a claim of the peer's: it is read without
building a data set, and only valid UIDs of the series that was asked about are taken from it, up to `MOST_NAMES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from sorter.errors import Quarantine, SorterError
from sorter.protocol.dimse import C_FIND_RQ, C_MOVE_RQ, Command
from sorter.protocol.elements import element
from sorter.protocol.uids import EXPLICIT, IMPLICIT, names_an_instance
from sorter.scu.association import Association, Limits, Message, Peer, associated
from sorter.take import elements

MOST_NAMES = 100_000
"""SOP instances of one series that an answer may name."""

MOST_AT_ONCE = 100
"""SOP instances that one C-MOVE asks for: a value of 6.5 KB, which is well below what an element may hold."""

QUERY = Limits(message=30, seconds=300, octets=64 << 20)
RETRIEVE = Limits(message=900, seconds=86400, octets=64 << 20)
"""A peer may have to fetch the images from an archive first, and need not say anything meanwhile."""

STUDY_ROOT = {"find": "1.2.840.10008.5.1.4.1.2.2.1", "move": "1.2.840.10008.5.1.4.1.2.2.2"}
PATIENT_ROOT = {"find": "1.2.840.10008.5.1.4.1.2.1.1", "move": "1.2.840.10008.5.1.4.1.2.1.2"}
SYNTAXES = (EXPLICIT, IMPLICIT)

_STUDY, _SERIES, _SOP, _LEVEL, _PATIENT_ID = 0x0020000D, 0x0020000E, 0x00080018, 0x00080052, 0x00100020
_PENDING = (0xFF00, 0xFF01)
MOVE_DESTINATION_UNKNOWN = 0xA801
_WITH_FAILURES = 0xB000  # all sub-operations were done, and some failed (PS3.4 C.4.2.1.5)

SAYS = {
    0x0122: "it does not know this kind of query",
    0x0124: "it does not allow us to",
    0xA700: "it is out of resources",
    0xA701: "it cannot tell how many images that is",
    0xA702: "it could not send the images",
    MOVE_DESTINATION_UNKNOWN: "it does not know where to send them",
    0xA900: "it finds that the question does not fit",
    _WITH_FAILURES: "it gives no reason for each",
    0xFE00: "it was cancelled there",
}


@dataclass(frozen=True, slots=True)
class Series:
    """A series as a query names it. The PatientID is told only to a peer that offers nothing but Patient Root."""

    study_uid: str
    series_uid: str
    patient_id: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """The sub-operations of a retrieval, as the peer counts them so far. `status` is 0 if it found nothing wrong."""

    remaining: int = 0
    completed: int = 0  # with warnings too: what is warned about was stored
    failed: int = 0
    status: int = 0

    @property
    def says(self) -> str:
        """What its status means."""
        return f"{SAYS.get(self.status, 'it gives no reason that could be understood')} (0x{self.status:04X})"


def instances(peer: Peer, wanted: Iterable[Series], limits: Limits = QUERY) -> frozenset[str]:
    """The SOP Instance UIDs that `peer` has of these series, by C-FIND at the IMAGE level (PS3.4 C.4.1).

    Empty where it knows none. SorterError says why it could not be asked, or what is wrong with its answer.
    """
    found: set[str] = set()
    with associated(peer, _contexts("find"), limits) as association:
        for series in wanted:
            found |= _names(association, peer, series)
    return frozenset(found)


def _names(association: Association, peer: Peer, series: Series) -> set[str]:
    found: set[str] = set()
    question = _Question("find", association, peer)
    for count, (_, answered, identifier) in enumerate(question.answers(C_FIND_RQ, series, [""])):
        status = answered.status
        if status not in _PENDING:
            if status != 0:
                raise SorterError(f"{peer} does not say what it has: {_said(status)}")
            return found
        if count >= 2 * MOST_NAMES or len(found) >= MOST_NAMES:
            raise SorterError(f"{peer} names more than {MOST_NAMES} images in a series; its answer is not believed")
        found |= question.name_in(identifier, series)
    raise SorterError(f"{peer} breaks off in the middle of its answer, or does not go on with it")


def fetch(peer: Peer, to: str, series: Series, names: Sequence[str] = (), limits: Limits = RETRIEVE) -> Iterator[Moved]:
    """Have `peer` send a series, or only the instances `names` of it, to the AE title `to` (C-MOVE, PS3.4 C.4.2).

    Yields how far it is, over all requests; at the end once more, with the status. SorterError: it broke off.
    """
    batches = [names[at : at + MOST_AT_ONCE] for at in range(0, len(names), MOST_AT_ONCE)] or [()]
    with associated(peer, _contexts("move"), limits) as association:
        before = Moved(remaining=len(names))
        for some in batches:
            last = before
            for last in _move(association, peer, to, series, some):
                yield _sum(before, last, len(some))
            before = _sum(before, last, len(some))
            if last.status not in (0, _WITH_FAILURES):
                return


def _sum(before: Moved, now: Moved, asked: int) -> Moved:
    """Together with the requests that went before. What a request does not speak of remains to be asked for."""
    later = max(0, before.remaining - asked) if asked else 0
    return Moved(
        remaining=later + now.remaining,
        completed=before.completed + now.completed,
        failed=before.failed + now.failed,
        status=now.status or before.status,
    )


def _move(association: Association, peer: Peer, to: str, series: Series, names: Sequence[str]) -> Iterator[Moved]:
    for _, answered, _ in _Question("move", association, peer).answers(C_MOVE_RQ, series, names, to):
        pending = answered.status in _PENDING
        remaining, completed, failed, warned = answered.sub_operations
        yield Moved(
            remaining=remaining if pending else 0,
            completed=completed + warned,
            failed=failed,
            status=0 if pending else answered.status,
        )
        if not pending:
            return
    raise SorterError(f"{peer} breaks off in the middle, or says nothing any more; what came is kept")


def _contexts(service: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(STUDY_ROOT[service], SYNTAXES), (PATIENT_ROOT[service], SYNTAXES)]


def _said(status: int) -> str:
    return Moved(status=status).says


class _Question:
    """One request over an association, in the information model that the peer has accepted."""

    def __init__(self, service: str, association: Association, peer: Peer) -> None:
        self._association, self._peer = association, peer
        accepted = {each.abstract: each for each in association.contexts}
        self._by_study = STUDY_ROOT[service] in accepted
        self._context = accepted[(STUDY_ROOT if self._by_study else PATIENT_ROOT)[service]]

    def answers(self, field: int, series: Series, names: Sequence[str], to: str = "") -> Iterator[Message]:
        """The answers, until the association breaks or no more come in time. `names`: the instances that are meant, ""
        for whichever there are; without any, the series as a whole."""
        request = Command(field, 0, self._context.abstract, "", True, destination=to)
        yield from self._association.requests(self._context, request, [self._identifier(series, names)])

    def _identifier(self, series: Series, names: Sequence[str]) -> bytes:
        """The unique keys down to the series, and at the IMAGE level its own (PS3.4 C.6.1.1, C.6.2.1)."""
        keys = {_LEVEL: (b"CS", "IMAGE" if names else "SERIES")}
        if names:
            keys[_SOP] = b"UI", "\\".join(names)
        if not self._by_study:
            if not series.patient_id:
                raise SorterError(f"{self._peer} offers Patient Root only, and the series has no PatientID")
            keys[_PATIENT_ID] = b"LO", series.patient_id
        keys[_STUDY], keys[_SERIES] = (b"UI", series.study_uid), (b"UI", series.series_uid)
        written = ((tag, vr, value.encode(elements.LATIN, "replace")) for tag, (vr, value) in sorted(keys.items()))
        return b"".join(element(self._context.transfer, *each) for each in written)

    def name_in(self, identifier: bytes, series: Series) -> set[str]:
        """The SOP Instance UID of an answer, if it is one, and of that series."""
        codec = elements.IMPLICIT if self._context.transfer == IMPLICIT else elements.EXPLICIT
        stream = elements.Stream(BytesIO(identifier).read, len(identifier))
        try:
            walked = elements.walk(stream, codec, dict.fromkeys((_STUDY, _SERIES, _SOP), 128))
        except Quarantine:
            return set()
        values = {tag: elements.text(value).strip(" \0") for tag, (_, value) in walked.values.items()}
        if values.get(_STUDY, series.study_uid) != series.study_uid:
            return set()
        if values.get(_SERIES, series.series_uid) != series.series_uid:
            return set()
        name = values.get(_SOP, "")
        return {name} if names_an_instance(name) else set()
