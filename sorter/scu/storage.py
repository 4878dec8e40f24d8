"""C-ECHO, and C-STORE of files as they are."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sorter.durable import Files
from sorter.errors import Quarantine, SorterError, TryLater
from sorter.protocol.dimse import C_ECHO_RQ, C_STORE_RQ, Command, Status
from sorter.protocol.uids import IMPLICIT, VERIFICATION
from sorter.scu.association import CONTEXTS, USUAL, Association, Peer, associated
from sorter.take import contents, elements

VERIFICATION_CONTEXT = (VERIFICATION, (IMPLICIT,))

STATUSES = {
    0xA700: "the receiver has no room",
    0xA900: "the receiver says that the data set does not fit its SOP class",
    0xC000: "the receiver cannot understand it",
    0x0122: "the receiver does not take this SOP class",
    0x0117: "the receiver says that its SOP Instance UID is invalid",
}


STORING = dataclasses.replace(USUAL, message=240)
"""A node may compress, move or index an image of gigabytes before it answers; shorter than a worker's own silence may
be (`sorter.deliver.lane.Patience`)."""

_WANTED = dict.fromkeys(contents.UIDS.values(), elements.LONGEST)
_STEP = 256 << 10  # bytes of a data set that are read and sent at a time


@dataclass(slots=True)
class SendReport:
    """What became of the files: accepted, refused (path, status, sentence), or no DICOM at all."""

    sent: int = 0
    refused: list[tuple[Path, int, str]] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Image:
    """A file as C-STORE speaks of it: its data set begins at `offset`, and has these UIDs; `sha256` is of the file."""

    sop_class: str
    sop_uid: str
    transfer_syntax: str
    offset: int
    size: int
    sha256: str


def look(files: Files, fd: int) -> Image:
    """What is in the open file, read once to its end as whatever is taken in is read. Quarantine, OSError."""
    found = contents.read(files, fd, _WANTED)
    uids = found.uids()
    return Image(
        uids["SOPClassUID"], uids["SOPInstanceUID"], found.transfer_syntax,
        found.meta.offset, found.size, found.sha256,
    )  # fmt: skip


def echo(host: str, port: int, *, called: str, calling: str) -> None:
    """Returns if the receiver answers a C-ECHO (PS3.4 A); else SorterError says why not."""
    with associated(Peer(host, port, called, calling), [VERIFICATION_CONTEXT]) as association:
        answer = association.request(association.contexts[0], Command(C_ECHO_RQ, 0, VERIFICATION, "", False))
    if answer is None or answer.status != 0:
        raise SorterError(f"{called} at {host}:{port} takes associations, but did not answer C-ECHO with success")


def send(
    paths: Iterable[Path], host: str, port: int, *, called: str, calling: str, progress: Callable[[Path], None]
) -> SendReport:
    """Send every DICOM file of `paths` and below; `progress` is told each file that is through.

    SorterError where the receiver cannot be reached, refuses the association, or breaks it off.
    """
    files, report = Files(), SendReport()
    peer = Peer(host, port, called, calling)
    waiting: list[tuple[Path, Image]] = []
    contexts: set[tuple[str, str]] = set()
    for path in _walk(files, paths):
        try:
            with files.opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
                image = look(files, fd)
        except (Quarantine, OSError):
            report.unreadable.append(path)
            continue
        context = (image.sop_class, image.transfer_syntax)
        if len(contexts | {context}) > CONTEXTS:
            _send_batch(files, waiting, peer, report, progress)
            waiting, contexts = [], set()
        contexts.add(context)
        waiting.append((path, image))
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
    batch: list[tuple[Path, Image]],
    peer: Peer,
    report: SendReport,
    progress: Callable[[Path], None],
) -> None:
    pairs = sorted({(image.sop_class, image.transfer_syntax) for _, image in batch})
    contexts = [(sop_class, (syntax,)) for sop_class, syntax in pairs]
    with associated(peer, contexts, STORING) as association:
        for path, image in batch:
            status = _store(association, files, path, image)
            if is_stored(status):
                report.sent += 1
            else:
                report.refused.append((path, status, STATUSES.get(status, "the receiver gives no better reason")))
            progress(path)


def is_stored(status: int) -> bool:
    """Success, or a warning: the receiver has it (PS3.4 B.2.3)."""
    return status == 0 or status & 0xF000 == 0xB000


def _store(association: Association, files: Files, path: Path, image: Image) -> int:
    """One C-STORE of a file; the status. SorterError if the association broke."""
    with files.opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        status = store(association, image, data_set(files, fd, image))
    if status is None:
        raise SorterError(f"the receiver broke off while {path} was sent; send again, what it has changes nothing")
    return status


def data_set(files: Files, fd: int, image: Image) -> Iterator[bytes]:
    """The data set's own bytes, and one more where it has an odd number.

    TryLater where they cannot be read, or are not those that were looked at: the last of them does not come then, so
    the receiver has no whole image.
    """
    at, found = 0, hashlib.sha256()
    while at < image.size:
        begun, end = at, image.size if at >= image.offset else image.offset
        try:
            piece = files.pread(fd, min(_STEP, end - at), at)
        except OSError as error:
            raise TryLater(f"an image cannot be read: {error.strerror}") from error
        if not piece:
            raise TryLater("an image became shorter while it was sent")
        found.update(piece)
        at += len(piece)
        if at == image.size and found.hexdigest() != image.sha256:
            raise TryLater("an image changed while it was sent")
        if begun >= image.offset:
            yield piece if at < image.size or (at - image.offset) % 2 == 0 else piece + b"\0"


def store(association: Association, image: Image, data: Iterable[bytes]) -> int | None:
    """One C-STORE (PS3.7 9.1.1) of a data set's own bytes; the status, None if the association broke."""
    context = association.context(image.sop_class, image.transfer_syntax)
    if context is None:
        return Status.CLASS_NOT_SUPPORTED
    answer = association.request(context, Command(C_STORE_RQ, 0, image.sop_class, image.sop_uid, True), data)
    return None if answer is None else answer.status
