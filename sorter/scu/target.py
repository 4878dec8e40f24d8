"""The target kind "dicom": another node, to which images go by C-STORE (PS3.4 B) as they are, byte for byte.

What the node answered success to is delivered, instance by instance: DICOM has no way to read it back, so nothing here
verifies later, and nothing is ever removed there. A job that comes twice sends its images twice, which a node takes as
what it has already. This module imports pynetdicom, and runs in the worker of its own target alone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sorter.deliver.target import Checked, Done, Put, Removed, Source, Verified, Wanted
from sorter.durable import Files
from sorter.errors import Away, Held, Quarantine, SorterError, TryLater
from sorter.model import DICOM, Delivered, Receipt
from sorter.scu.association import CONTEXTS, Peer, associated
from sorter.scu.storage import STATUSES, echo, is_stored, store_data
from sorter.take.header import Parsed, examine

_STEP = 1 << 20
_LARGEST = 4 << 30  # bytes of one image
_VERIFICATION = ("1.2.840.10008.1.1", ("1.2.840.10008.1.2",))  # proposed too, so that refused images have a sentence
_NO_ROOM = 0xA700  # to 0xA7FF (PS3.4 table B.2-1)


class DicomTarget:
    """Settings: `host` and `port` of the node, `ae_title`, which it is called by, and `calling`, ours."""

    def __init__(self, settings: Mapping[str, Any], files: Files | None = None) -> None:
        self._files = files or Files()
        host, port, called = settings.get("host"), settings.get("port"), settings.get("ae_title")
        if not isinstance(host, str) or not isinstance(port, int) or not isinstance(called, str):
            raise Held("a dicom target needs a `host`, a `port` and an `ae_title`: those of the node to send to")
        self._peer = Peer(host, port, called, str(settings.get("calling") or "SORTER"))

    # --- the four methods of a target ---------------------------------------------------------------------------

    def check(self, *, prepare: bool = False) -> Checked:  # noqa: ARG002 - nothing has to be made at a node
        """A C-ECHO (PS3.4 A)."""
        with self._reached():
            echo(self._peer.host, self._peer.port, called=self._peer.called, calling=self._peer.calling)
        return Checked()

    def put(self, job: Put, source: Source) -> Done:
        if job.product != DICOM:
            raise Held(f"{self._peer} takes images, and no {job.product}; let a route send that elsewhere")
        there = {(each.file, each.sha256): each for each in job.previous.files} if job.previous else {}
        new = [index for index, want in enumerate(job.files) if (want.file, want.sha256) not in there and not want.gone]
        source.will_need(new)
        with _Sender(self._peer) as sender:
            for index in new:
                want = job.files[index]
                sop_uid = self._send(sender, want, source(index))
                there[want.file, want.sha256] = Delivered(sop_uid, want.sha256, want.size, want.file)
        files = tuple(there.get((want.file, want.sha256)) or _missed(want) for want in job.files)
        return Done(str(self._peer), files, sender.note)

    def verify(self, receipt: Receipt, *, deep: bool = True) -> Verified:  # noqa: ARG002 - neither way is there
        raise Held(f"{self._peer} cannot be compared with what was sent: a node does not give back the same bytes")

    def remove(self, receipt: Receipt) -> Removed:
        names = tuple(each.name for each in receipt.files)
        said = f"{self._peer} removes nothing at sorter's word; ask whoever keeps it"
        return Removed(receipt.folder, left=names, note=said if names else "")

    # --- sending ------------------------------------------------------------------------------------------------

    def _send(self, sender: _Sender, want: Wanted, fd: int) -> str:
        """Send one image; its SOP Instance UID, which is its name there."""
        content = self._content(fd, want)
        try:
            parsed = examine(self._files, fd)
        except Quarantine as error:
            raise Held(f"an image in the store cannot be sent: {error}") from None
        with self._reached():
            status = sender.store(parsed, content[parsed.dataset_offset :])
        if not is_stored(status):
            raise self._refused(status)
        return parsed.sop_uid

    def _content(self, fd: int, want: Wanted) -> bytes:
        """The file, with the digest it came with; Held when it has another."""
        pieces, found, offset = [], hashlib.sha256(), 0
        while offset < _LARGEST and (piece := self._files.pread(fd, _STEP, offset)):
            pieces.append(piece)
            found.update(piece)
            offset += len(piece)
        if found.hexdigest() != want.sha256:
            raise Held("a file in the store has no longer the digest it came with; run `sorter verify --deep`")
        return b"".join(pieces)

    def _refused(self, status: int) -> SorterError:
        why = STATUSES.get(status, "the receiver gives no better reason")
        said = f"{self._peer} refuses an image with status 0x{status:04X}: {why}"
        return Away(said) if status & 0xFF00 == _NO_ROOM else Held(said)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Whatever is wrong between us and the node: it is away."""
        try:
            yield
        except (TryLater, Held):
            raise
        except SorterError as error:
            raise Away(str(error)) from error
        except OSError as error:
            raise Away(f"{self._peer} cannot be reached: {error.strerror}") from error


def _missed(want: Wanted) -> Delivered:
    """It has left the store, and was never sent there."""
    return Delivered(want.name, want.sha256, want.size, want.file, "removed")


class _Sender:
    """The association of one put: opened with the first image, and anew where one needs what was not proposed yet."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._pairs: set[tuple[str, str]] = set()
        self._open = contextlib.ExitStack()
        self._association: Any = None
        self._warned = 0

    def __enter__(self) -> _Sender:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @property
    def note(self) -> str:
        return f"{self._warned} images were stored with a warning" if self._warned else ""

    def store(self, parsed: Parsed, data: bytes) -> int:
        """The node's status. SorterError where the association broke."""
        pair = (parsed.sop_class, parsed.transfer_syntax)
        if self._association is None or pair not in self._pairs:
            self._associate(pair)
        status = store_data(self._association, parsed, data)
        if status is None:
            raise SorterError(f"{self._peer} broke off while an image was sent")
        self._warned += status != 0 and is_stored(status)
        return status

    def _associate(self, pair: tuple[str, str]) -> None:
        self._open.close()
        self._pairs = {pair} if len(self._pairs) >= CONTEXTS - 1 else {*self._pairs, pair}
        contexts: Sequence[Any] = [_VERIFICATION, *((sop, (syntax,)) for sop, syntax in sorted(self._pairs))]
        self._association = self._open.enter_context(associated(self._peer, contexts))
