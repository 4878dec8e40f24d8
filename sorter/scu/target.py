"""The target kind "dicom": another node, to which images go by C-STORE (PS3.4 B) as they are, byte for byte.

What the node answered success to is delivered, instance by instance: DICOM has no way to read it back, so nothing here
verifies later, and nothing is ever removed there. Where the node offers storage commitment (PS3.4 J), and we have a
port for its answers, an image is delivered only when the node has committed itself to it. What it has answered success
to is remembered as long as this process lives, and not sent twice by a job that comes again: so a node that breaks off
after so many images gets them all. In another process they are sent twice, which a node takes as what it has already.
It runs in the worker of its own target alone, which is to be small: nothing
that is imported here needs pydicom or pynetdicom.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sorter.deliver.target import Checked, Done, Put, Removed, Source, Verified, Wanted
from sorter.durable import Files
from sorter.errors import Away, Held, Never, Quarantine, SorterError, TryLater
from sorter.model import DICOM, Delivered, Receipt
from sorter.protocol.commitment import Reference
from sorter.protocol.uids import STORAGE_COMMITMENT
from sorter.scu.association import CONTEXTS, Association, Hear, Peer, associated
from sorter.scu.committed import CONTEXT, FAILURES, Ledger, Sent, ask, wait
from sorter.scu.ear import Ear
from sorter.scu.storage import STATUSES, STORING, VERIFICATION_CONTEXT, Image, data_set, echo, is_stored, look, store
from sorter.words import counted

_STEP = 1 << 20
_NO_ROOM = 0xA700  # to 0xA7FF (PS3.4 table B.2-1)
_COMMITMENT_WAIT = 600.0  # seconds
_AT_HAND = 5.0  # seconds that a job waits for an answer; what comes later is found when it comes again
_BETWEEN = 1200.0  # seconds, more than between two attempts of what waits
_COMMITTED = "committed"
_ANOTHER_DIGEST = "a file in the store has no longer the digest it came with; run `sorter verify --deep`"


class DicomTarget:
    """Settings: `host` and `port` of the node, `ae_title`, which it is called by, and `calling`, ours; where storage
    commitment is to be asked for, `commitment_port`, ours, and `commitment_wait`, seconds until it is asked again."""

    def __init__(self, settings: Mapping[str, Any], files: Files | None = None) -> None:
        self._files = files or Files()
        host, port, called = settings.get("host"), settings.get("port"), settings.get("ae_title")
        if not isinstance(host, str) or not isinstance(port, int) or not isinstance(called, str):
            raise Held("a dicom target needs a `host`, a `port` and an `ae_title`: those of the node to send to")
        self._peer = Peer(host, port, called, str(settings.get("calling") or "SORTER"))
        self._wait = float(settings.get("commitment_wait") or _COMMITMENT_WAIT)
        self._ledger, answers = Ledger(), settings.get("commitment_port")
        self._ear = Ear(self._ledger.hear, self._peer, int(answers)) if answers else None

    @property
    def waits(self) -> bool:
        """For the node's word, which would be lost if the process ended."""
        asked = self._ledger.youngest()
        return asked is not None and time.monotonic() - asked < self._wait + _BETWEEN

    # --- the four methods of a target ---------------------------------------------------------------------------

    def check(self, *, prepare: bool = False) -> Checked:  # noqa: ARG002 - nothing has to be made at a node
        """A C-ECHO (PS3.4 A); and is storage commitment offered, where it would be asked for?"""
        with self._reached():
            echo(self._peer.host, self._peer.port, called=self._peer.called, calling=self._peer.calling)
            if self._ear is None:
                return Checked()
            with associated(self._peer, [VERIFICATION_CONTEXT, CONTEXT]) as association:
                offered = _offers_commitment(association)
        if not offered:
            return Checked(("it offers no storage commitment; a receipt says what it has answered success to",))
        try:
            self._ear.listen()
        except TryLater as error:
            return Checked((f"{error}; that may be the running sorter itself",))
        return Checked(("it offers storage commitment; an image is delivered when it has committed itself to it",))

    def put(self, job: Put, source: Source) -> Done:
        if job.product != DICOM:
            raise Held(f"{self._peer} takes images, and no {job.product}; let a route send that elsewhere")
        there = {(each.file, each.sha256): each for each in job.previous.files} if job.previous else {}
        new = [index for index, want in enumerate(job.files) if (want.file, want.sha256) not in there and not want.gone]
        unsent = [index for index in new if self._ledger.find(job.files[index].sha256) is None]
        source.will_need(unsent)
        with self._reached():
            if self._ear is not None and new:
                self._ear.listen()
        sent: dict[int, Sent] = {}
        with _Sender(self._peer, self._ledger.hear if self._ear else None) as sender:
            for index in new:
                want = job.files[index]
                known = None if index in unsent else self._ledger.find(want.sha256)
                sent[index] = known or self._send(sender, want, source(index))
            self._no_second_content(sent.values(), job)
            alone = [each for each in sent.values() if each.alone]
            asked = self._ear is not None and self._ask(sender, alone)
        if asked:
            self._judge(alone)
        for index, each in sent.items():
            want, state = job.files[index], _COMMITTED if asked and each.alone and each.safe else "written"
            there[want.file, want.sha256] = Delivered(each.reference.sop_uid, want.sha256, want.size, want.file, state)
        self._ledger.done(list(sent.values()))
        files = tuple(there.get((want.file, want.sha256)) or _missed(want) for want in job.files)
        return Done(str(self._peer), files, _note(files, sender, len(sent) - len(alone)))

    def verify(self, receipt: Receipt, *, deep: bool = True) -> Verified:  # noqa: ARG002 - neither way is there
        raise Never(f"{self._peer} cannot be compared with what was sent: a node does not give back the same bytes")

    def remove(self, receipt: Receipt) -> Removed:
        names = tuple(each.name for each in receipt.files)
        said = f"{self._peer} removes nothing at sorter's word; ask whoever keeps it"
        return Removed(receipt.folder, left=names, note=said if names else "")

    # --- sending ------------------------------------------------------------------------------------------------

    def _send(self, sender: _Sender, want: Wanted, fd: int) -> Sent:
        """Send one image, and remember that the node has it."""
        image = self._image(fd, want)
        with self._reached():
            status = sender.store(image, data_set(self._files, fd, image))
        if not is_stored(status):
            raise self._refused(status)
        return self._ledger.add(Reference(image.sop_class, image.sop_uid), want.sha256)

    def _image(self, fd: int, want: Wanted) -> Image:
        """What the file is, which has the digest it came with; Held when it has another, or is no image."""
        try:
            image = look(self._files, fd)
        except OSError as error:
            raise TryLater(f"an image cannot be read: {error.strerror}") from error
        except Quarantine as error:
            if self._digest(fd) != want.sha256:
                raise Held(_ANOTHER_DIGEST) from None
            raise Held(f"an image in the store cannot be sent: {error}") from None
        if image.sha256 != want.sha256:
            raise Held(_ANOTHER_DIGEST)
        return image

    def _digest(self, fd: int) -> str:
        found, offset = hashlib.sha256(), 0
        while piece := self._files.pread(fd, _STEP, offset):
            found.update(piece)
            offset += len(piece)
        return found.hexdigest()

    def _refused(self, status: int) -> SorterError:
        why = STATUSES.get(status, "the receiver gives no better reason")
        said = f"{self._peer} refuses an image with status 0x{status:04X}: {why}"
        return Away(said) if status & 0xFF00 == _NO_ROOM else Held(said)

    # --- storage commitment -------------------------------------------------------------------------------------

    def _no_second_content(self, images: Iterable[Sent], job: Put) -> None:
        """A node that has an instance may go on with its first content, and commit itself to that."""
        before = {each.name: each.sha256 for each in job.previous.files} if job.previous else {}
        for each in images:
            if before.get(each.reference.sop_uid, each.sha256) != each.sha256:
                each.alone = False

    def _ask(self, sender: _Sender, images: Sequence[Sent]) -> bool:
        """Ask, where it is to be asked, whether the node keeps these. False where it offers no storage commitment."""
        due = [each for each in images if self._is_to_be_asked(each)]
        if due:
            with self._reached():
                return sender.ask(due, self._ledger)
        return True

    def _judge(self, images: Sequence[Sent]) -> None:
        """Returns if the node keeps them all. TryLater: not yet, or it does not, and they are sent again then."""
        failed = {each: each.failure for each in images if each.failure is not None}
        if failed:
            self._ledger.forget(failed)
            reason = next(iter(failed.values()))
            says = f"{FAILURES.get(reason, 'it gives no better reason')} (0x{reason:04X})"
            raise TryLater(
                f"{self._peer} does not keep {counted(len(failed), 'images')}: {says}; what it lacks is sent again"
            )
        if not all(each.safe for each in images):
            raise TryLater(f"{self._peer} has the images, and was asked whether it keeps them; it has not answered yet")

    def _is_to_be_asked(self, sent: Sent) -> bool:
        if sent.safe or sent.failure is not None:
            return False
        return sent.asked is None or time.monotonic() - sent.asked > self._wait

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
    """The association of one put: opened with the first image, and anew where one needs what was not proposed yet.

    `hear` takes what the node says of storage commitment; None where it is not asked for.
    """

    def __init__(self, peer: Peer, hear: Hear | None) -> None:
        self._peer, self._hear = peer, hear
        self._pairs: set[tuple[str, str]] = set()
        self._open = contextlib.ExitStack()
        self._association: Association | None = None
        self.warned = 0
        self.offered = True  # as far as it was asked

    def __enter__(self) -> _Sender:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def ask(self, images: Sequence[Sent], ledger: Ledger) -> bool:
        """Ask whether the node keeps these; False where it offers no storage commitment."""
        association = self._association or self._associate(None)
        self.offered = _offers_commitment(association)
        if self.offered:
            ask(association, self._peer, ledger, images)
            wait(association, ledger, images, _AT_HAND)
        return self.offered

    def store(self, image: Image, data: Iterable[bytes]) -> int:
        """The node's status. SorterError where the association broke."""
        pair = (image.sop_class, image.transfer_syntax)
        association = self._association
        if association is None or pair not in self._pairs:
            association = self._associate(pair)
        status = store(association, image, data)
        if status is None:
            raise SorterError(f"{self._peer} broke off while an image was sent")
        self.warned += status != 0 and is_stored(status)
        return status

    def _associate(self, pair: tuple[str, str] | None) -> Association:
        self._open.close()
        if pair is not None:
            self._pairs = {pair} if len(self._pairs) >= CONTEXTS - 2 else {*self._pairs, pair}
        also = [VERIFICATION_CONTEXT]  # so that images that are refused have a sentence
        images = [(sop_class, (syntax,)) for sop_class, syntax in sorted(self._pairs)]
        asked = [CONTEXT] if self._hear is not None else []
        whole = associated(self._peer, [*also, *images, *asked], STORING, hear=self._hear)
        self._association = self._open.enter_context(whole)
        return self._association


def _offers_commitment(association: Association) -> bool:
    return any(each.abstract == STORAGE_COMMITMENT for each in association.contexts)


def _note(files: Sequence[Delivered], sender: _Sender, twice: int) -> str:
    """What is known of them, in the words of a receipt. `twice`: so many share their UID with another content."""
    kept, count = (sum(each.state in states for each in files) for states in ((_COMMITTED,), (_COMMITTED, "written")))
    if not count:
        return ""
    said = [f"{kept} committed, {count - kept} sent, answered 0x0000" if kept else "sent, answered 0x0000"]
    if kept == count:
        said = ["committed"]
    if not sender.offered:
        said.append("the node offers no storage commitment")
    if twice:
        said.append(f"{twice} share their SOP Instance UID with another image, of which a node may keep one only")
    if sender.warned:
        said.append(f"{counted(sender.warned, 'images were')} stored with a warning")
    return "; ".join(said)
