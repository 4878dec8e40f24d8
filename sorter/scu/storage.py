"""C-ECHO, and C-STORE of files as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.errors import Quarantine, SorterError
from sorter.scu.association import CONTEXTS, Peer, associated, exchange
from sorter.take.header import Parsed, examine

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

    context = (str(Verification), ("1.2.840.10008.1.2",))
    with associated(Peer(host, port, called, calling), [context]) as association:
        status = association.send_c_echo()
    if getattr(status, "Status", None) != 0:
        raise SorterError(f"{called} at {host}:{port} takes associations, but did not answer C-ECHO with success")


def send(
    paths: Iterable[Path], host: str, port: int, *, called: str, calling: str, progress: Callable[[Path], None]
) -> SendReport:
    """Send every DICOM file of `paths` and below; `progress` is told each file that is through.

    SorterError where the receiver cannot be reached, refuses the association, or breaks it off.
    """
    files, report = Files(), SendReport()
    peer = Peer(host, port, called, calling)
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
            _send_batch(files, waiting, peer, report, progress)
            waiting, contexts = [], set()
        contexts.add(context)
        waiting.append((path, parsed))
    if waiting:
        _send_batch(files, waiting, peer, report, progress)
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
    peer: Peer,
    report: SendReport,
    progress: Callable[[Path], None],
) -> None:
    pairs = sorted({(parsed.sop_class, parsed.transfer_syntax) for _, parsed in batch})
    with associated(peer, [(sop_class, (syntax,)) for sop_class, syntax in pairs]) as association:
        for path, parsed in batch:
            status = _store(association, files, path, parsed)
            if is_stored(status):
                report.sent += 1
            else:
                report.refused.append((path, status, STATUSES.get(status, "the receiver gives no better reason")))
            progress(path)


def is_stored(status: int) -> bool:
    """Success, or a warning: the receiver has it (PS3.4 B.2.3)."""
    return status == 0 or status & 0xF000 == 0xB000


def _store(association: Any, files: Files, path: Path, parsed: Parsed) -> int:
    """One C-STORE of a file; the status. SorterError if the association broke."""
    status = store_data(association, parsed, files.read_file(path, limit=4 << 30)[parsed.dataset_offset :])
    if status is None:
        raise SorterError(f"the receiver broke off while {path} was sent; send again, what it has changes nothing")
    return status


def store_data(association: Any, parsed: Parsed, data: bytes) -> int | None:
    """One C-STORE (PS3.7 9.1.1) of a data set's own bytes; the status, None if the association broke."""
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
    request.DataSet = BytesIO(data + b"\0" * (len(data) % 2))
    answer = exchange(association, request, context.context_id)
    return None if answer is None else int(answer.Status)
