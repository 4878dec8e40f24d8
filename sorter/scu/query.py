"""Query/Retrieve (PS3.4 annex C): what a sender has of a series, and having it sent here.

Study Root, and Patient Root of peers that offer no other. An answer is a claim of the peer's: it is read without
building a data set, and only valid UIDs of the series that was asked about are taken from it, up to `MOST_NAMES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from sorter.errors import Quarantine, SorterError
from sorter.protocol.uids import is_uid
from sorter.scu.association import Limits, Peer, answer, associated
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
SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")  # explicit and implicit VR little endian

_STUDY, _SERIES, _SOP = 0x0020000D, 0x0020000E, 0x00080018
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


def _names(association: Any, peer: Peer, series: Series) -> set[str]:
    from pynetdicom.dimse_primitives import C_FIND

    found: set[str] = set()
    question = _Question("find", association, peer)
    for count, (status, identifier) in enumerate(question.ask(C_FIND(), series, ("SOPInstanceUID", ""))):
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


def _move(association: Any, peer: Peer, to: str, series: Series, names: Sequence[str]) -> Iterator[Moved]:
    from pynetdicom.dimse_primitives import C_MOVE

    request = C_MOVE()
    request.MoveDestination = to
    key = ("SOPInstanceUID", list(names)) if names else None
    for answered in _Question("move", association, peer).answers(request, series, key):
        status = int(answered.Status)
        pending = status in _PENDING
        yield Moved(
            remaining=answered.NumberOfRemainingSuboperations or 0 if pending else 0,
            completed=(answered.NumberOfCompletedSuboperations or 0) + (answered.NumberOfWarningSuboperations or 0),
            failed=answered.NumberOfFailedSuboperations or 0,
            status=0 if pending else status,
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

    def __init__(self, service: str, association: Any, peer: Peer) -> None:
        self._association = association
        accepted = {each.abstract_syntax: each for each in association.accepted_contexts}
        self._by_study = STUDY_ROOT[service] in accepted
        self._context = accepted[(STUDY_ROOT if self._by_study else PATIENT_ROOT)[service]]
        self._syntax = self._context.transfer_syntax[0]
        self._peer = peer

    def ask(self, request: Any, series: Series, key: tuple[str, Any]) -> Iterator[tuple[int, bytes]]:
        """Status and identifier of each answer; ends early where the association breaks."""
        for answered in self.answers(request, series, key):
            yield int(answered.Status), answered.Identifier.getvalue() if answered.Identifier is not None else b""

    def answers(self, request: Any, series: Series, key: tuple[str, Any] | None) -> Iterator[Any]:
        """The answers themselves, until the association breaks or no more come in time."""
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID = self._context.abstract_syntax
        request.Identifier = BytesIO(self._identifier(series, key))
        self._association.dimse.send_msg(request, self._context.context_id)
        while (answered := answer(self._association)) is not None:
            if type(answered) is not type(request):
                return
            yield answered

    def _identifier(self, series: Series, key: tuple[str, Any] | None) -> bytes:
        """The unique keys down to the series, and at the IMAGE level its own (PS3.4 C.6.1.1, C.6.2.1)."""
        from pydicom.dataset import Dataset
        from pynetdicom.dsutils import encode

        asked = Dataset()
        asked.QueryRetrieveLevel = "IMAGE" if key else "SERIES"
        if not self._by_study:
            if not series.patient_id:
                raise SorterError(f"{self._peer} offers Patient Root only, and the series has no PatientID")
            asked.PatientID = series.patient_id
        asked.StudyInstanceUID, asked.SeriesInstanceUID = series.study_uid, series.series_uid
        if key:
            setattr(asked, *key)
        data = encode(asked, self._syntax.is_implicit_VR, self._syntax.is_little_endian)
        if data is None:
            raise SorterError("the question could not be written as DICOM; the UIDs of the series are not valid")
        return data

    def name_in(self, identifier: bytes, series: Series) -> set[str]:
        """The SOP Instance UID of an answer, if it is one, and of that series."""
        codec = elements.IMPLICIT if self._syntax.is_implicit_VR else elements.EXPLICIT
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
        return {name} if is_uid(name) else set()
