"""Storage commitment end to end: pynetdicom sends, asks, and is told on an association of ours; sorter really runs."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import MRImageStorage, StorageCommitmentPushModel

from sorter.durable import Files
from sorter.spool.commitments import Commitment, Commitments
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.peers.sender import Sender

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


class Scanner:
    """Sends images, asks for their commitment, and listens for the reports."""

    def __init__(self, port: int = 0) -> None:
        self.told: list[tuple[int, Dataset]] = []
        self.roles: list[tuple[bool, bool]] = []
        ae = AE("SCANNER")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._note)]
        self._server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port = int(self._server.socket.getsockname()[1])
        self._lock = threading.Lock()

    def _note(self, event: Any) -> tuple[int, None]:
        with self._lock:
            context = event.assoc.accepted_contexts[0]
            self.roles.append((context.as_scu, context.as_scp))
            self.told.append((event.request.EventTypeID, event.event_information))
        return 0x0000, None

    def close(self) -> None:
        self._server.shutdown()

    def config(self, **more: str) -> str:
        keys = "\n".join(f"{key} = {value}" for key, value in more.items())
        sender = f'[[senders]]\nae = "SCANNER"\naddress = "127.0.0.1"\nport = {self.port}\n'
        return f'[receive]\ncommitment = "stored"\n{keys}\n{sender}'

    def send(self, port: int, images: Sequence[Dataset]) -> None:
        association = Sender("SCANNER").associate("127.0.0.1", port, [build_context(MRImageStorage)])
        assert [association.send_c_store(image).Status for image in images] == [0] * len(images)
        association.release()

    def ask(self, port: int, pairs: Sequence[tuple[str, str]], uid: str = "", **wrong: Any) -> tuple[int, str]:
        """Status of the N-ACTION, and the transaction UID."""
        wanted = Dataset()
        wanted.TransactionUID = uid or generate_uid()
        wanted.ReferencedSOPSequence = [item(*pair) for pair in pairs]
        association = AE("SCANNER").associate("127.0.0.1", port, [build_context(StorageCommitmentPushModel)])
        assert association.accepted_contexts
        given = {"action_type": 1, "instance_uid": WELL_KNOWN, **wrong}
        status, _ = association.send_n_action(
            wanted, given["action_type"], StorageCommitmentPushModel, given["instance_uid"]
        )
        association.release()
        return int(status.Status), str(wanted.TransactionUID)

    def of(self, transaction: str) -> list[tuple[int, Dataset]]:
        with self._lock:
            return [each for each in self.told if each[1].TransactionUID == transaction]

    def wait_told(self, transaction: str, reports: int = 1, timeout: float = 30) -> list[tuple[int, Dataset]]:
        wait_until(lambda: len(self.of(transaction)) >= reports, timeout, f"{reports} reports")
        return self.of(transaction)


def item(sop_class: str, sop_uid: str) -> Dataset:
    found = Dataset()
    found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = sop_class, sop_uid
    return found


@contextmanager
def a_scanner(port: int = 0) -> Generator[Scanner, None, None]:
    scanner = Scanner(port)
    try:
        yield scanner
    finally:
        scanner.close()


@pytest.fixture
def scanner() -> Generator[Scanner, None, None]:
    with a_scanner() as scanner:
        yield scanner


def images(count: int) -> list[Dataset]:
    study, series = generate_uid(), generate_uid()
    found = []
    for number in range(count):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
        image.PatientID, image.StudyInstanceUID, image.SeriesInstanceUID = "P1", study, series
        image.InstanceNumber, image.Rows, image.Columns = number + 1, 4, 4
        image.SamplesPerPixel, image.BitsAllocated, image.BitsStored, image.HighBit = 1, 16, 16, 15
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.PixelData = bytes([number]) * 32
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        found.append(image)
    return found


def pairs(of: Sequence[Dataset]) -> list[tuple[str, str]]:
    return [(str(image.SOPClassUID), str(image.SOPInstanceUID)) for image in of]


def of_sequence(told: Dataset, keyword: str) -> list[tuple[str, str]]:
    found = told.get(keyword) or []
    return [(str(each.ReferencedSOPClassUID), str(each.ReferencedSOPInstanceUID)) for each in found]


def records(sorter: RunningSorter, transaction: str = "") -> list[Commitment]:
    kept = Commitments(sorter.spool.commitments, Files())
    return [each for each in kept.all() if transaction in ("", each.transaction)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Scanner, RunningSorter], None, None]:
    """A scanner and a sorter that many tests may share."""
    root = tmp_path_factory.mktemp("shared")
    with a_scanner() as scanner, RunningSorter(root, quiet=0.5, config=scanner.config(commitment_wait="8")) as sorter:
        yield scanner, sorter


def test_what_is_stored_is_committed_and_the_list_is_kept(pair: tuple[Scanner, RunningSorter]) -> None:
    scanner, sorter = pair
    sent = images(5)
    scanner.send(sorter.port, sent)
    status, transaction = scanner.ask(sorter.port, pairs(sent))
    assert status == 0
    [(event, told)] = scanner.wait_told(transaction)
    wait_until(lambda: [each for each in records(sorter, transaction) if each.told], what="the record of it")
    [record] = records(sorter, transaction)
    assert event == 1
    assert of_sequence(told, "ReferencedSOPSequence") == pairs(sent)
    assert "FailedSOPSequence" not in told
    assert scanner.roles[-1] == (True, False)  # the scanner is the SCU of an association that it did not ask for
    assert (record.calling, record.called, record.address) == ("SCANNER", "ANY-SCP", "127.0.0.1")
    assert [tuple(each) for each in record.instances] == pairs(sent)
    assert not list(sorter.spool.commitments.rglob("*.part"))


def test_what_never_came_and_what_is_of_another_class_is_named(pair: tuple[Scanner, RunningSorter]) -> None:
    scanner, sorter = pair
    sent, never = images(2), images(1)
    asked = [*pairs(sent[:1]), (CT, str(sent[1].SOPInstanceUID)), *pairs(never)]
    scanner.send(sorter.port, sent)
    status, transaction = scanner.ask(sorter.port, asked)
    assert status == 0
    [(event, told)] = scanner.wait_told(transaction)
    assert event == 2
    assert of_sequence(told, "ReferencedSOPSequence") == asked[:1]
    assert of_sequence(told, "FailedSOPSequence") == asked[1:]
    assert [each.FailureReason for each in told.FailedSOPSequence] == [0x0119, 0x0112]


def test_one_transaction_is_reported_once_and_images_may_come_later(pair: tuple[Scanner, RunningSorter]) -> None:
    scanner, sorter = pair
    sent, other = images(2), images(1)
    status, uid = scanner.ask(sorter.port, pairs(sent))
    assert status == 0
    assert scanner.ask(sorter.port, pairs(sent), uid)[0] == 0  # a scanner that is impatient
    assert scanner.ask(sorter.port, pairs(other), uid)[0] == 0  # a scanner that is confused
    scanner.wait_told(uid)
    scanner.send(sorter.port, sent)
    told = scanner.wait_told(uid, 2)
    wait_until(lambda: all(each.told for each in records(sorter, uid)), what="the end of all three")
    assert [event for event, _ in told] == [2, 1]
    assert [each.FailureReason for each in told[0][1].FailedSOPSequence] == [0x0131]
    assert of_sequence(told[1][1], "ReferencedSOPSequence") == pairs(sent)


def test_what_is_no_request_is_refused(pair: tuple[Scanner, RunningSorter]) -> None:
    scanner, sorter = pair
    asked, uid = pairs(images(1)), generate_uid()
    assert scanner.ask(sorter.port, asked, uid, action_type=2)[0] == 0x0123
    assert scanner.ask(sorter.port, asked, uid, instance_uid="1.2.3")[0] == 0x0112
    assert scanner.ask(sorter.port, [], uid)[0] == 0x0115
    assert scanner.ask(sorter.port, [("", str(generate_uid()))], uid)[0] == 0x0115
    assert records(sorter, uid) == []


def test_a_request_outlives_a_crash_and_a_scanner_that_does_not_listen(tmp_path: Path) -> None:
    """Asked, killed, started while nobody listens: told once somebody does. The index is deleted in between."""
    sent = images(3)
    with a_scanner() as scanner:
        port, config = scanner.port, scanner.config()
    sorter = RunningSorter(tmp_path, quiet=0.5, config=config)
    with sorter:
        scanner.send(sorter.port, sent)
        status, transaction = scanner.ask(sorter.port, pairs(sent))
        assert status == 0
        sorter.kill()
        shutil.rmtree(tmp_path / "spool" / "by-sop", ignore_errors=True)
        sorter.start()
        wait_until(lambda: any(each.trouble for each in records(sorter)), 30, "a failed report")
        assert "nothing answers as SCANNER" in records(sorter)[0].trouble
        sorter.kill()
        with a_scanner(port) as scanner:
            sorter.start()
            [(event, told)] = scanner.wait_told(transaction)
    assert event == 1
    assert of_sequence(told, "ReferencedSOPSequence") == pairs(sent)


def test_delivered_means_at_every_place(scanner: Scanner, tmp_path: Path) -> None:
    """Without its marker the archive takes nothing: not committed, until it has."""
    archive = tmp_path / "archive"
    archive.mkdir()
    config = scanner.config().replace('"stored"', '"delivered"') + (
        f'[labs.all]\nmatch = ["PatientID=*"]\ntargets = ["archive"]\n'
        f'[targets.archive]\nkind = "path"\nroot = "{archive}"\n'
    )
    sent = images(2)
    with RunningSorter(tmp_path / "sorter", quiet=0.5, config=config) as sorter:
        scanner.send(sorter.port, sent)
        status, transaction = scanner.ask(sorter.port, pairs(sent))
        assert status == 0
        wait_until(
            lambda: [each for each in sorter.series() if any(d.state == "delivered" for d in each.deliveries)],
            what="the delivery to the lab",
        )
        assert scanner.told == []
        shutil.copytree(sorter.labs / "all" / ".sorter", archive / ".sorter")
        [(event, told)] = scanner.wait_told(transaction)
        assert all(each.state == "delivered" for each in sorter.series())
    assert event == 1
    assert of_sequence(told, "ReferencedSOPSequence") == pairs(sent)


def test_it_is_off_unless_configured(tmp_path: Path) -> None:
    with RunningSorter(tmp_path, quiet=0.5) as sorter:
        association = AE("SCANNER").associate("127.0.0.1", sorter.port, [build_context(StorageCommitmentPushModel)])
        assert association.accepted_contexts == []
        association.abort()
    assert not (tmp_path / "spool" / "by-sop").exists()


def test_nobody_known_to_tell_is_said_and_mended_by_a_reload(scanner: Scanner, tmp_path: Path) -> None:
    sent = images(1)
    with RunningSorter(tmp_path, quiet=0.5, config='[receive]\ncommitment = "stored"\n') as sorter:
        scanner.send(sorter.port, sent)
        status, transaction = scanner.ask(sorter.port, pairs(sent))
        assert status == 0
        wait_until(lambda: any("[[senders]]" in each.trouble for each in records(sorter)), what="the trouble")
        sorter.reload(scanner.config())
        [(event, _)] = scanner.wait_told(transaction)
        folder = tmp_path / "spool" / "journal"
        found = wait_until(lambda: [each for each in journal(folder) if each["kind"] == "storage commitment"])
    assert event == 1
    assert [each["over"] for each in found] == ["reported"]


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for path in folder.iterdir() for text in path.read_text().splitlines()]
