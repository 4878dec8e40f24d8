"""The dicom target against a node that answers as a test says; tests/unit/test_targets.py has real programs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification  # type: ignore[attr-defined]

from sorter.deliver.lane import Patience
from sorter.durable import Files
from sorter.errors import Away, Held, TryLater
from sorter.scu import target
from sorter.scu.storage import STORING
from sorter.scu.target import DicomTarget
from sorter.testing.targets import IMAGES, KEY, Store, job, receipt


class Node:
    """A Storage SCP that answers each C-STORE with the next of `statuses`, the last one from then on."""

    def __init__(self) -> None:
        self.statuses, self.came, self.associations = [0x0000], list[bytes](), 0
        entity = AE(ae_title="NODE")
        entity.add_supported_context(Verification)
        entity.add_supported_context(MRImageStorage)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._established)]
        self.server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = self.server.socket.getsockname()[1]

    def _established(self, event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int:
        self.came.append(event.request.DataSet.getvalue())
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def target(self, **settings: object) -> DicomTarget:
        return DicomTarget({"host": "127.0.0.1", "port": self.port, "ae_title": "NODE", **settings})


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.server.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path, IMAGES)
    yield store
    store.close()


def test_images_go_byte_for_byte_over_one_association(node: Node, store: Store) -> None:
    done = node.target().put(job(IMAGES), store)
    assert [image.endswith(data) for image, data in zip(IMAGES, node.came, strict=True)] == [True] * len(IMAGES)
    assert node.associations == 1
    assert done.folder == f"NODE at 127.0.0.1:{node.port}"
    assert all(each.name.startswith("2.25.") for each in done.files)  # their SOP Instance UIDs


class Flips(Files):
    """Reads a file rightly once; the end of it, read again, has another byte, as of a failing disk."""

    def __init__(self) -> None:
        self.ends = 0

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        data = super().pread(fd, size, offset)
        if not data or offset + len(data) < os.fstat(fd).st_size:
            return data
        self.ends += 1
        return data if self.ends == 1 else data[:-1] + bytes([data[-1] ^ 1])


def test_what_is_read_otherwise_when_it_is_sent_arrives_nowhere(node: Node, store: Store) -> None:
    settings = {"host": "127.0.0.1", "port": node.port, "ae_title": "NODE"}
    with pytest.raises(TryLater, match="an image changed while it was sent"):
        DicomTarget(settings, Flips()).put(job(IMAGES), store)
    assert node.came == []


def test_a_warning_is_stored_and_said(node: Node, store: Store) -> None:
    node.statuses = [0xB000, 0xB007, 0x0000]
    assert node.target().put(job(IMAGES), store).note == "sent, answered 0x0000; 2 images were stored with a warning"


@pytest.mark.parametrize(
    ("status", "away", "says"),
    [
        (0xA700, True, "refuses an image with status 0xA700: the receiver has no room"),
        (0xA701, True, "0xA701"),
        (0xA900, False, "does not fit its SOP class"),
        (0xC123, False, "0xC123"),
        (0x0117, False, "SOP Instance UID is invalid"),
    ],
)
def test_one_refusal_and_there_is_no_receipt(node: Node, store: Store, status: int, away: bool, says: str) -> None:
    node.statuses = [0x0000, status, 0x0000]
    with pytest.raises(TryLater if away else Held, match=says) as said:
        node.target().put(job(IMAGES), store)
    assert isinstance(said.value, Away) == away
    assert len(node.target().put(job(IMAGES), store).files) == len(IMAGES)


def test_a_node_that_breaks_off_after_every_second_image_gets_them_all(node: Node, store: Store) -> None:
    def breaks_off(event: evt.Event) -> int:
        node.came.append(event.request.DataSet.getvalue())
        if len(node.came) % 3 == 0:
            event.assoc.abort()
        return 0x0000

    node.server.bind(evt.EVT_C_STORE, breaks_off)
    target = node.target()
    for _ in range(len(IMAGES)):
        try:
            done = target.put(job(IMAGES), store)
            break
        except Away:
            continue
    assert len(done.files) == len(IMAGES)
    assert len(node.came) < 2 * len(IMAGES)
    node.server.bind(evt.EVT_C_STORE, node._store)
    assert target.put(job(IMAGES), store).files == done.files  # nothing is remembered of what is done
    assert len(node.came) >= 2 * len(IMAGES)


def test_a_node_that_takes_its_time_is_waited_for(node: Node, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 120 <= STORING.message < Patience().silence - 30  # a worker that waits for longer would be ended
    may_answer = threading.Event()

    def thinks(event: evt.Event) -> int:
        may_answer.wait(20)
        return 0x0000

    node.server.bind(evt.EVT_C_STORE, thinks)
    monkeypatch.setattr(target, "STORING", replace(STORING, message=0.2))
    with pytest.raises(Away, match="broke off while an image was sent"):
        node.target().put(job(IMAGES), store)
    monkeypatch.setattr(target, "STORING", STORING)
    threading.Timer(0.5, may_answer.set).start()
    assert len(node.target().put(job(IMAGES), store).files) == len(IMAGES)


def test_a_sop_class_that_the_node_does_not_take_is_held(store: Store) -> None:
    entity = AE(ae_title="NODE")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        settings = {"host": "127.0.0.1", "port": server.socket.getsockname()[1], "ae_title": "NODE"}
        with pytest.raises(Held, match="does not take this SOP class"):
            DicomTarget(settings).put(job(IMAGES), store)
    finally:
        server.shutdown()


def test_made_products_are_held_with_a_sentence(node: Node, store: Store) -> None:
    made = job(IMAGES)
    object.__setattr__(made, "product", "nifti")
    with pytest.raises(Held, match="takes images, and no nifti"):
        node.target().put(made, store)
    assert node.came == []


def test_what_is_no_dicom_in_the_store_is_held(node: Node, store: Store) -> None:
    store.images = (b"no image", *IMAGES)
    with pytest.raises(Held, match="cannot be sent"):
        node.target().put(job(store.images), store)


def test_nothing_is_removed_there(node: Node, store: Store) -> None:
    held = receipt(node.target().put(job(IMAGES), store))
    removed = node.target().remove(held)
    assert (removed.removed, len(removed.left)) == ((), len(IMAGES))
    assert "removes nothing at sorter's word" in removed.note
    assert KEY not in removed.note


@pytest.mark.parametrize("settings", [{}, {"host": "a"}, {"host": "a", "port": "104", "ae_title": "X"}])
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(Held, match="needs a `host`, a `port` and an `ae_title`"):
        DicomTarget(settings)
