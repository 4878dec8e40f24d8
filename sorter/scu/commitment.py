"""The reports of storage commitment, on associations of our own."""

from __future__ import annotations

from sorter.errors import SorterError
from sorter.protocol.commitment import SYNTAXES, encode
from sorter.protocol.dimse import N_EVENT_REPORT_RQ, Command
from sorter.protocol.uids import COMMITMENT_INSTANCE, STORAGE_COMMITMENT
from sorter.protocol.upper_layer import Role
from sorter.scu.association import Association, Peer, associated
from sorter.spool.commitments import Commitment

_ALL_SAFE, _FAILURES_EXIST = 1, 2  # event types (PS3.4 J.3.3.1)


def report_commitment(request: Commitment, host: str, port: int) -> None:
    """N-EVENT-REPORT (PS3.4 J.3.3) of a decided request to its sender, on a new association.

    We ask for the association and are its SCP, so the roles are negotiated (PS3.7 D.3.3.4); peers that do not answer
    that item take the report all the same. Returns when the peer has confirmed; SorterError says why it has not.
    """
    peer, context = Peer(host, port, request.calling, request.called), (STORAGE_COMMITMENT, SYNTAXES)
    with associated(peer, [context], roles=[Role(STORAGE_COMMITMENT, scu=False, scp=True)]) as association:
        status = _event_report(association, request)
    if status != 0:
        raise SorterError(f"{request.calling} at {host}:{port} answers the report with status 0x{status:04X}")


def _event_report(association: Association, request: Commitment) -> int:
    """What is safe, and what is not, with the reason."""
    context, failed = association.contexts[0], request.failed or {}
    kind = _FAILURES_EXIST if failed else _ALL_SAFE
    safe = [each for each in request.instances if each.sop_uid not in failed]
    rest = {each: failed[each.sop_uid] for each in request.instances if each.sop_uid in failed}
    report = Command(N_EVENT_REPORT_RQ, 0, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, True, kind)
    answer = association.request(context, report, [encode(context.transfer, request.transaction, safe, rest)])
    if answer is None:
        raise SorterError(f"{request.calling} broke off, or did not answer the report in time")
    return answer.status
