"""Query/Retrieve from our side, against pynetdicom's own: answers right, partial, slow, refused, hostile."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (
    MRImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from sorter.errors import SorterError
from sorter.scu import query
from sorter.scu.association import Limits, Peer
from sorter.scu.query import Moved, Series, fetch, instances
from sorter.testing.peer import item, pdu, pdv
from sorter.testing.waiting import wait_until

SERIES = Series("1.2.3", "1.2.3.4", "P^1")
NAMES = [f"1.2.3.4.{number}" for number in range(1, 31)]
SHORT = Limits(message=1, seconds=3, octets=1 << 20)

STUDY_ROOT = (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove)
PATIENT_ROOT = (PatientRootQueryRetrieveInformationModelFind, PatientRootQueryRetrieveInformationModelMove)

Handler = Callable[[Any], Iterator[Any]]


@contextlib.contextmanager
def an_archive(find: Handler | None = None, move: Handler | None = None, models: Any = STUDY_ROOT) -> Iterator[Peer]:
    """pynetdicom's Query/Retrieve SCP on loopback."""
    ae = AE("ARCHIVE")
    for each in models:
        ae.add_supported_context(each)
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, move)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[each for each in handlers if each[1]])
    try:
        yield Peer("127.0.0.1", int(server.socket.getsockname()[1]), "ARCHIVE", "SORTER")
    finally:
        server.shutdown()


def named(name: str, series: str = SERIES.series_uid, **more: Any) -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel, found.StudyInstanceUID, found.SeriesInstanceUID = "IMAGE", SERIES.study_uid, series
    found.SOPInstanceUID = name
    for keyword, value in more.items():
        setattr(found, keyword, value)
    return found


def answers(*datasets: Dataset, status: int = 0) -> Handler:
    def find(event: Any) -> Iterator[Any]:
        for each in datasets:
            yield 0xFF00, each
        yield status, None

    return find


# --- C-FIND ---------------------------------------------------------------------------------------------------------


def test_the_list_is_what_the_peer_answers_to_the_right_question() -> None:
    asked: list[tuple[str, Dataset]] = []

    def find(event: Any) -> Iterator[Any]:
        asked.append((event.assoc.requestor.ae_title, event.identifier))
        yield from answers(*map(named, NAMES))(event)

    with an_archive(find) as peer:
        assert instances(peer, [SERIES]) == frozenset(NAMES)
    [(calling, question)] = asked
    assert calling == "SORTER"
    assert {each.keyword: each.value for each in question} == {
        "QueryRetrieveLevel": "IMAGE",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "SOPInstanceUID": "",
    }  # fmt: skip  (and no patient)


def test_patient_root_is_asked_where_there_is_no_other() -> None:
    asked: list[Dataset] = []

    def find(event: Any) -> Iterator[Any]:
        asked.append(event.identifier)
        yield from answers(named(NAMES[0]))(event)

    with an_archive(find, models=PATIENT_ROOT) as peer:
        assert instances(peer, [SERIES]) == {NAMES[0]}
        with pytest.raises(SorterError, match="Patient Root only"):
            instances(peer, [Series("1.2.3", "1.2.3.4")])
    assert [each.PatientID for each in asked] == ["P^1"]


def test_several_series_are_asked_about_on_one_association() -> None:
    def find(event: Any) -> Iterator[Any]:
        uid = event.identifier.SeriesInstanceUID
        yield from answers(named(f"{uid}.1", uid))(event)

    with an_archive(find) as peer:
        assert instances(peer, [SERIES, Series("1.2.3", "1.2.3.5")]) == {"1.2.3.4.1", "1.2.3.5.1"}


def test_an_unknown_series_is_an_empty_list() -> None:
    with an_archive(answers()) as peer:
        assert instances(peer, [SERIES]) == frozenset()


@pytest.mark.filterwarnings("ignore:.*VR UI")
def test_what_is_not_of_the_series_or_no_uid_is_left_out() -> None:
    nested = named(NAMES[1])
    for _ in range(60):
        outer = named(NAMES[1])
        outer.ReferencedSeriesSequence = [nested]
        nested = outer
    wrong = [
        named("1.9.9", series="1.9"),
        named("../../etc/passwd"),
        named(""),
        named("1" * 64 + ".2"),
        named("1.2.3.4.5\\1.2.3.4.6"),
        named("no uid", PatientName="x" * 60),
    ]
    other, empty = named("1.9.8"), named("1.9.7")
    other.StudyInstanceUID = "1.9"
    del empty.SOPInstanceUID
    good = [named(NAMES[0], PatientComments="y" * 9000, RetrieveAETitle="A"), named(NAMES[0]), nested]
    with an_archive(answers(*wrong, other, empty, *good)) as peer:
        assert instances(peer, [SERIES]) == {NAMES[0], NAMES[1]}


@pytest.mark.parametrize(
    ("status", "says"),
    [(0xA700, "out of resources"), (0xC001, "no reason that could be understood"), (0x0122, "does not know this kind")],
)
def test_a_failure_is_no_list(status: int, says: str) -> None:
    with an_archive(answers(named(NAMES[0]), status=status)) as peer, pytest.raises(SorterError, match=says):
        instances(peer, [SERIES])


def test_a_peer_that_offers_no_query_is_said() -> None:
    with (
        an_archive(models=[Verification, MRImageStorage]) as peer,
        pytest.raises(SorterError, match=r"ARCHIVE at .* takes the association of SORTER, but nothing"),
    ):
        instances(peer, [SERIES])


def test_nobody_there_and_no_such_host_are_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    with pytest.raises(SorterError, match="nothing answers as"):
        instances(Peer("127.0.0.1", port, "X", "SORTER"), [SERIES])
    with pytest.raises(SorterError, match="cannot be reached"):
        instances(Peer("no-such-host.invalid", port, "X", "SORTER"), [SERIES])


def test_endless_answers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "MOST_NAMES", 50)

    def different(event: Any) -> Iterator[Any]:
        number = 0
        while not event.is_cancelled and event.assoc.is_established:
            number += 1
            yield 0xFF00, named(f"1.2.{number}")

    def the_same(event: Any) -> Iterator[Any]:
        while event.assoc.is_established:
            yield 0xFF00, named("1.2.1")

    for handler in (different, the_same):
        with an_archive(handler) as peer, pytest.raises(SorterError, match="names more than 50"):
            instances(peer, [SERIES])


def test_a_list_that_is_too_long_in_bytes_ends() -> None:
    def find(event: Any) -> Iterator[Any]:
        while event.assoc.is_established:
            yield 0xFF00, named("1.2.1", TextValue="x" * 30_000)

    with an_archive(find) as peer, pytest.raises(SorterError, match="sends more than an answer can be"):
        instances(peer, [SERIES], SHORT)


def test_slow_answers_end() -> None:
    go_on = threading.Event()

    def silent(event: Any) -> Iterator[Any]:
        yield 0xFF00, named(NAMES[0])
        go_on.wait(30)
        yield 0, None

    def dripping(event: Any) -> Iterator[Any]:
        while not go_on.wait(0.4):
            yield 0xFF00, named(NAMES[0])

    with an_archive(silent) as peer, pytest.raises(SorterError, match="breaks off in the middle"):
        instances(peer, [SERIES], SHORT)
    go_on.set()
    go_on.clear()
    with an_archive(dripping) as peer, pytest.raises(SorterError, match="does not come to an end in 3 s"):
        instances(peer, [SERIES], SHORT)
    go_on.set()


# --- peers that speak no DICOM, or speak it wrong -------------------------------------------------------------------

CONTEXTS = item(0x21, bytes((1, 0, 0, 0)) + item(0x40, b"1.2.840.10008.1.2")) + item(0x21, bytes((3, 0, 3, 0)))
USER = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
ACCEPT = pdu(
    2,
    b"\0\1\0\0" + b"ARCHIVE".ljust(16) + b"SORTER".ljust(16) + bytes(32)
    + item(0x10, b"1.2.840.10008.3.1.1.1") + CONTEXTS + USER,
)  # fmt: skip


@contextlib.contextmanager
def a_liar(*says: bytes) -> Generator[Peer, None, None]:
    """Accepts a connection; answers each PDU that comes with the next of `says`, and then nothing any more."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                for each in says:
                    head = connection.recv(6, socket.MSG_WAITALL)
                    connection.recv(struct.unpack(">BxI", head)[1], socket.MSG_WAITALL)
                    connection.sendall(each)
                while connection.recv(1 << 16):
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Peer("127.0.0.1", listening.getsockname()[1], "ARCHIVE", "SORTER")
    finally:
        listening.close()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "says",
    [
        [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
        [ACCEPT, struct.pack(">BxI", 4, 300_000_000) + bytes(100)],
        [ACCEPT, struct.pack(">BxI", 4, 30_000) + bytes(100)],
        [ACCEPT, pdu(4, pdv(1, 3, b"\xff" * 40))],
        [ACCEPT, pdu(4, pdv(1, 1, bytes(30)) * 3)],
        [ACCEPT, pdu(7, bytes(4))],
        [ACCEPT, pdu(6, bytes(4))],
        [ACCEPT, ACCEPT],
    ],
    ids=["http", "huge", "half", "junk", "fragments", "abort", "release", "accept"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # pynetdicom's own
@pytest.mark.filterwarnings("ignore:End of file reached")
def test_a_peer_that_breaks_the_rules_costs_little(says: list[bytes]) -> None:
    threads, began = threading.active_count(), time.monotonic()
    with a_liar(*says) as peer, pytest.raises(SorterError):
        instances(peer, [SERIES], SHORT)
    assert time.monotonic() - began < 15
    wait_until(lambda: threading.active_count() <= threads, 10, "the threads of the association to end")


# --- C-MOVE ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_destination() -> Iterator[tuple[int, list[str]]]:
    came: list[str] = []
    ae = AE("SORTER")
    ae.add_supported_context(MRImageStorage)

    def store(event: Any) -> int:
        came.append(str(event.dataset.SOPInstanceUID))
        return 0xA700 if came[-1].endswith(".13") else 0

    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield int(server.socket.getsockname()[1]), came
    finally:
        server.shutdown()


def moving(port: int, asked: list[Dataset]) -> Handler:
    def move(event: Any) -> Iterator[Any]:
        asked.append(event.identifier)
        if event.move_destination != "SORTER":
            yield None, None
            return
        yield "127.0.0.1", port, {"contexts": [build_context(MRImageStorage)]}
        wanted = event.identifier.get("SOPInstanceUID") or NAMES
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        yield len(wanted)
        for name in wanted:
            image = named(name)
            image.SOPClassUID, image.file_meta = MRImageStorage, FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            yield 0xFF00, image

    return move


def test_missing_images_are_fetched_by_name_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "MOST_AT_ONCE", 4)
    asked: list[Dataset] = []
    with a_destination() as (port, came), an_archive(move=moving(port, asked)) as peer:
        said = list(fetch(peer, "SORTER", SERIES, NAMES[:10]))
    assert came == NAMES[:10]
    assert [each.QueryRetrieveLevel for each in asked] == ["IMAGE"] * 3
    assert said[-1] == Moved(completed=10)
    assert [each.completed for each in said] == sorted(each.completed for each in said)
    assert {each.completed + each.failed + each.remaining for each in said} == {10}


def test_a_whole_series_is_fetched_where_no_list_is_known_and_failures_are_counted() -> None:
    asked: list[Dataset] = []
    with a_destination() as (port, came), an_archive(move=moving(port, asked)) as peer:
        *_, last = fetch(peer, "SORTER", SERIES)
    assert [each.QueryRetrieveLevel for each in asked] == ["SERIES"]
    assert came == NAMES
    assert (last.completed, last.failed, last.status) == (29, 1, 0xB000)


def test_an_unknown_destination_is_said() -> None:
    with a_destination() as (port, came), an_archive(move=moving(port, [])) as peer:
        *_, last = fetch(peer, "ELSEWHERE", SERIES, NAMES)
    assert (last.status, came) == (0xA801, [])
    assert last.says == "it does not know where to send them (0xA801)"


def test_a_retrieval_that_breaks_off_is_said() -> None:
    def move(event: Any) -> Iterator[Any]:
        event.assoc.abort()
        yield "127.0.0.1", 1

    with an_archive(move=move) as peer, pytest.raises(SorterError, match="breaks off"):
        list(fetch(peer, "SORTER", SERIES, NAMES, SHORT))
