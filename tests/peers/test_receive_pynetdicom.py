"""pynetdicom as a sender: odd proposals, and what its own table of services says of ours."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import _config, build_context, build_role
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation, UserIdentityNegotiation
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    MRImageStorage,
    StorageCommitmentPushModel,
    Verification,
)

from sorter.durable import Files
from sorter.receive import Receiver, ReceiveSettings
from tests.peers.sender import Sender


@pytest.fixture
def port(tmp_path: Path) -> Generator[int, None, None]:
    receiver = Receiver(ReceiveSettings(port=0), tmp_path / "received", Files())
    try:
        yield receiver.start()
    finally:
        receiver.stop(5)


def an_image() -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
    image.PatientID, image.StudyInstanceUID, image.SeriesInstanceUID = "P1", generate_uid(), generate_uid()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def test_echo_store_and_release_with_every_extra_item(port: int, tmp_path: Path) -> None:
    window, user = AsynchronousOperationsWindowNegotiation(), UserIdentityNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 3
    user.user_identity_type, user.primary_field, user.secondary_field = 2, b"name", b"word"
    user.positive_response_requested = True
    ae = Sender("SCANNER")
    contexts = [
        build_context(Verification),
        build_context(MRImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
        build_context(StorageCommitmentPushModel),
        build_context(ModalityWorklistInformationFind),
    ]
    extras: list[Any] = [build_role(MRImageStorage, scu_role=True, scp_role=True), window, user]
    association = ae.associate("127.0.0.1", port, contexts, "ANYTHING", ext_neg=extras)
    assert association.is_established
    assert [str(context.abstract_syntax) for context in association.accepted_contexts] == [Verification, MRImageStorage]
    assert association.accepted_contexts[1].transfer_syntax == [ExplicitVRLittleEndian]
    assert association.send_c_echo().Status == 0
    assert association.send_c_store(an_image()).Status == 0
    association.release()
    assert len(list((tmp_path / "received").rglob("*.dcm"))) == 1


def data_set(path: Path) -> bytes:
    """What follows the file meta information."""
    data = path.read_bytes()
    return data[144 + int.from_bytes(data[140:144], "little") :]


@pytest.mark.parametrize("name", ["philips-epi", "siemens-xa10", "ge-b0map", "multiecho-qt2"])
def test_the_bytes_of_a_file_arrive_as_they_are(
    sample: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)  # else it would encode them anew
    sent = [path for path in (sample / "data" / name).rglob("*") if path.is_file()]
    sent = [path for path in sent if path.read_bytes()[128:132] == b"DICM"]
    metas = [read_file_meta_info(path) for path in sent]
    wanted = sorted({(str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)) for meta in metas})
    contexts = [build_context(abstract, [transfer]) for abstract, transfer in wanted]
    association = Sender("SCANNER").associate("127.0.0.1", port, contexts)
    assert [association.send_c_store(path).Status for path in sent] == [0] * len(sent)
    association.release()
    came = list((tmp_path / "received").rglob("*.dcm"))
    assert len(came) > 0
    assert Counter(map(data_set, came)) == Counter(map(data_set, sent))
    assert Counter(read_file_meta_info(path).TransferSyntaxUID for path in came) == Counter(
        meta.TransferSyntaxUID for meta in metas
    )


def test_several_at_once(port: int, tmp_path: Path) -> None:
    statuses: list[int] = []

    def send() -> None:
        association = Sender("SCANNER").associate("127.0.0.1", port, [build_context(MRImageStorage)])
        image = an_image()
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        statuses.extend(association.send_c_store(image).Status for _ in range(5))
        association.release()

    senders = [threading.Thread(target=send) for _ in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(30)
    assert statuses == [0] * 30
    assert len(list((tmp_path / "received").rglob("*.dcm"))) == 30
