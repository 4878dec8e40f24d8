"""The sending side: C-ECHO, C-STORE of files as they are, and the reports of storage commitment."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.errors import Quarantine, SorterError
from sorter.spool.commitments import Commitment, Reference
from sorter.take.header import Parsed, examine

CONTEXTS = 128  # presentation contexts of one association (PS3.8 7.1.1.13: odd numbers below 256)

PATIENCE = 10
"""Seconds for a connection, and for the answer to an association request."""

STATUSES = {
    0xA700: "the receiver has no room",
    0xA900: "the receiver says that the data set does not fit its SOP class",
    0xC000: "the receiver cannot understand it",
    0x0122: "the receiver does not take this SOP class",
    0x0117: "the receiver says that its SOP Instance UID is invalid",
}


@dataclass(slots=True)
class SendReport:
    """What became of the files: accepted, refused (path, status, sentence), or no DICOM at all."""

    sent: int = 0
    refused: list[tuple[Path, int, str]] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def echo(host: str, port: int, *, called: str, calling: str) -> None:
    """Returns if the receiver answers a C-ECHO (PS3.4 A); else SorterError says why not."""
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    association = _associate(host, port, called, calling, [(str(Verification), ("1.2.840.10008.1.2",))])
    try:
        status = association.send_c_echo()
    finally:
        association.release()
    if getattr(status, "Status", None) != 0:
        raise SorterError(f"{called} at {host}:{port} takes associations, but did not answer C-ECHO with success")


def send(
    paths: Iterable[Path], host: str, port: int, *, called: str, calling: str, progress: Callable[[Path], None]
) -> SendReport:
    """Send every DICOM file of `paths` and below; `progress` is told each file that is through.

    SorterError where the receiver cannot be reached, refuses the association, or breaks it off.
    """
    files, report = Files(), SendReport()
    waiting: list[tuple[Path, Parsed]] = []
    contexts: set[tuple[str, str]] = set()
    for path in _walk(files, paths):
        try:
            with files.opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
                parsed = examine(files, fd)
        except (Quarantine, OSError):
            report.unreadable.append(path)
            continue
        context = (parsed.sop_class, parsed.transfer_syntax)
        if len(contexts | {context}) > CONTEXTS:
            _send_batch(files, waiting, (host, port, called, calling), report, progress)
            waiting, contexts = [], set()
        contexts.add(context)
        waiting.append((path, parsed))
    if waiting:
        _send_batch(files, waiting, (host, port, called, calling), report, progress)
    return report


def _walk(files: Files, paths: Iterable[Path]) -> Iterator[Path]:
    """Regular files, folder by folder, by name; symbolic links are not followed."""
    for path in paths:
        if not files.is_folder(path):
            yield path
            continue
        for name, info in files.scan(path):
            kind = info.st_mode & 0o170000
            if kind in (0o100000, 0o040000):
                yield from _walk(files, [path / name])


def _send_batch(
    files: Files,
    batch: list[tuple[Path, Parsed]],
    peer: tuple[str, int, str, str],
    report: SendReport,
    progress: Callable[[Path], None],
) -> None:
    pairs = sorted({(parsed.sop_class, parsed.transfer_syntax) for _, parsed in batch})
    association = _associate(*peer, [(sop_class, (syntax,)) for sop_class, syntax in pairs])
    try:
        for path, parsed in batch:
            status = _store(association, files, path, parsed)
            if status == 0 or status & 0xF000 == 0xB000:  # success, or a warning: it is stored (PS3.4 B.2.3)
                report.sent += 1
            else:
                report.refused.append((path, status, STATUSES.get(status, "the receiver gives no better reason")))
            progress(path)
    finally:
        if association.is_established:
            association.release()


def _associate(
    host: str,
    port: int,
    called: str,
    calling: str,
    contexts: Sequence[tuple[str, tuple[str, ...]]],
    roles: Sequence[Any] = (),
) -> Any:
    from pynetdicom import AE, build_context, evt

    where = f"{called} at {host}:{port}"
    entity = AE(ae_title=calling)
    entity.connection_timeout = entity.acse_timeout = PATIENCE
    wanted = [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts]
    association = entity.associate(
        host, port, contexts=wanted, ae_title=called, ext_neg=list(roles), evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay)]
    )
    if association.is_established:
        _pause_reactor(association, where)
        return association
    if association.is_rejected:
        why = association.acceptor.primitive.reason_str if association.acceptor.primitive else "no reason given"
        raise SorterError(f"{where} rejects the association of {calling}: {why}")
    raise SorterError(f"nothing answers as {where}; is it running, is the port right, is a firewall between?")


class _Checkpoint(threading.Event):
    """What pynetdicom's reactor waits at in each round; says when it stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self.reached.set()
        return super().wait(timeout)


def _pause_reactor(association: Any, where: str) -> None:
    """Stop the thread that would take our answers for requests, for as long as the association lives.

    To clear its event is not enough: it may be past it, in a round that still takes a message.
    """
    checkpoint = _Checkpoint()
    association._reactor_checkpoint = checkpoint
    if not checkpoint.reached.wait(PATIENCE):
        association.abort()
        raise SorterError(f"{where}: the association does not come to rest; try again")


def _no_delay(event: Any) -> None:
    """Without it each image waits for a delayed acknowledgement."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _store(association: Any, files: Files, path: Path, parsed: Parsed) -> int:
    """One C-STORE (PS3.7 9.1.1) of the data set's own bytes; the status. SorterError if the association broke."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    context = next(
        (
            each
            for each in association.accepted_contexts
            if each.abstract_syntax == parsed.sop_class and each.transfer_syntax[0] == parsed.transfer_syntax
        ),
        None,
    )
    if context is None:
        return 0x0122
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = parsed.sop_class, parsed.sop_uid
    request.Priority = 2
    data = files.read_file(path, limit=4 << 30)[parsed.dataset_offset :]
    request.DataSet = BytesIO(data + b"\0" * (len(data) % 2))
    answer = _exchange(association, request, context.context_id)
    if answer is None:
        raise SorterError(f"the receiver broke off while {path} was sent; send again, what it has changes nothing")
    return int(answer.Status)


# --- Storage Commitment ---------------------------------------------------------------------------------------------

_COMMITMENT, _COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
REPORT_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_ALL_SAFE, _FAILURES_EXIST = 1, 2  # event types (PS3.4 J.3.3.1)


def report_commitment(request: Commitment, host: str, port: int) -> None:
    """N-EVENT-REPORT (PS3.4 J.3.3) of a decided request to its sender, on a new association.

    We ask for the association and are its SCP, so the roles are negotiated (PS3.7 D.3.3.4); peers that do not answer
    that item take the report all the same. Returns when the peer has confirmed; SorterError says why it has not.
    """
    from pynetdicom import build_role

    context = (_COMMITMENT, REPORT_SYNTAXES)
    roles = [build_role(_COMMITMENT, scp_role=True)]
    association = _associate(host, port, request.calling, request.called, [context], roles)
    try:
        status = _event_report(association, request)
    finally:
        if association.is_established:
            association.release()
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
    report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = _COMMITMENT, _COMMITMENT_INSTANCE
    report.EventTypeID = _FAILURES_EXIST if request.failed else _ALL_SAFE
    report.EventInformation = BytesIO(data)
    answer = _exchange(association, report, accepted[0].context_id)
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


def _exchange(association: Any, request: Any, context: int) -> Any:
    """Send one DIMSE request and wait for its answer; None if the association broke, or the answer did not come."""
    association.dimse.send_msg(request, context)
    _, answer = association.dimse.get_msg(block=True)
    return answer if answer is not None and getattr(answer, "is_valid_response", False) else None
