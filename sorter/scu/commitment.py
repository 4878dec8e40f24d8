"""The reports of storage commitment, on associations of our own."""

from __future__ import annotations

from typing import Any

from sorter.errors import SorterError
from sorter.protocol.commitment import Reference
from sorter.scu.association import Peer, associated, exchange
from sorter.spool.commitments import Commitment

COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
REPORT_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_ALL_SAFE, _FAILURES_EXIST = 1, 2  # event types (PS3.4 J.3.3.1)


def report_commitment(request: Commitment, host: str, port: int) -> None:
    """N-EVENT-REPORT (PS3.4 J.3.3) of a decided request to its sender, on a new association.

    We ask for the association and are its SCP, so the roles are negotiated (PS3.7 D.3.3.4); peers that do not answer
    that item take the report all the same. Returns when the peer has confirmed; SorterError says why it has not.
    """
    from pynetdicom import build_role

    context = (COMMITMENT, REPORT_SYNTAXES)
    roles = [build_role(COMMITMENT, scp_role=True)]
    with associated(Peer(host, port, request.calling, request.called), [context], roles=roles) as association:
        status = _event_report(association, request)
    if status != 0:
        raise SorterError(f"{request.calling} at {host}:{port} answers the report with status 0x{status:04X}")


def _event_report(association: Any, request: Commitment) -> int:
    from io import BytesIO

    from pynetdicom.dimse_primitives import N_EVENT_REPORT
    from pynetdicom.dsutils import encode

    accepted = association.accepted_contexts
    if not accepted:
        raise SorterError(f"{request.calling} takes no storage commitment in the role that a report needs")
    syntax = accepted[0].transfer_syntax[0]
    data = encode(_result(request), syntax.is_implicit_VR, syntax.is_little_endian)
    if data is None:
        raise SorterError("the report could not be encoded")
    report = N_EVENT_REPORT()
    report.MessageID = 1
    report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = COMMITMENT, COMMITMENT_INSTANCE
    report.EventTypeID = _FAILURES_EXIST if request.failed else _ALL_SAFE
    report.EventInformation = BytesIO(data)
    answer = exchange(association, report, accepted[0].context_id)
    if answer is None:
        raise SorterError(f"{request.calling} broke off, or did not answer the report in time")
    return int(answer.Status)


def _result(request: Commitment) -> Any:
    """The event information (PS3.4 table J.3-2): what is safe, and what is not, with the reason."""
    from pydicom.dataset import Dataset

    def item(reference: Reference, reason: int | None = None) -> Dataset:
        found = Dataset()
        found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = reference.sop_class, reference.sop_uid
        if reason is not None:
            found.FailureReason = reason
        return found

    failed = request.failed or {}
    result = Dataset()
    result.TransactionUID = request.transaction
    safe = [item(each) for each in request.instances if each.sop_uid not in failed]
    if safe:
        result.ReferencedSOPSequence = safe
    if failed:
        result.FailedSOPSequence = [item(e, failed[e.sop_uid]) for e in request.instances if e.sop_uid in failed]
    return result
