"""Storage commitment as its SCU: a node of pynetdicom that keeps what it is sent, or does not, or says nothing."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import MRImageStorage, StorageCommitmentPushModel, Verification

from sorter.deliver.lane import Lane, Patience
from sorter.deliver.target import Done, Later, Result
from sorter.errors import TryLater
from sorter.protocol.commitment import Reference, Report, Unreadable, encode, parse_report
from sorter.protocol.uids import IMPLICIT
from sorter.protocol.wire import Wire
from sorter.scu import committed, ear, target
from sorter.scu.committed import Ledger
from sorter.scu.target import DicomTarget
from sorter.testing.peer import Peer as Raw
from sorter.testing.ports import free_port
from sorter.testing.targets import IMAGES, LATE, Store, job, receipt
from sorter.testing.waiting import wait_until

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
NO_SUCH_INSTANCE = 0x0112


class Keeper:
    """A node that offers storage commitment.

    `how` it answers: over the association that asked ("same"), over one of its own ("new"), or not at all ("never").
    It loses the first `loses` images that come. `status` is what it answers the question itself with.
    """

    def __init__(self) -> None:
        self.begin("never")
        entity = AE(ae_title="KEEPER")
        for each in (Verification, MRImageStorage, StorageCommitmentPushModel):
            entity.add_supported_context(each)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._asked)]
        self.server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = self.server.socket.getsockname()[1]

    def begin(self, how: str) -> None:
        """Anew, for another test."""
        self.how, self.loses, self.status, self.unnamed = how, 0, 0x0000, 0
        self.answered: list[int] = []
        self.port_of_sorter = free_port()
        self.stored: list[str] = []
        self.kept: set[str] = set()
        self.questions: list[Dataset] = []

    def _store(self, event: evt.Event) -> int:
        uid = event.request.AffectedSOPInstanceUID
        self.stored.append(uid)
        if self.loses:
            self.loses -= 1
        else:
            self.kept.add(uid)
        return 0x0000

    def _asked(self, event: evt.Event) -> tuple[int, None]:
        if self.status == 0x0000:
            self.questions.append(event.action_information)
            if self.how == "same":  # from another thread: it may overtake the answer to the N-ACTION
                threading.Thread(target=self._report, args=(event.assoc, event.action_information)).start()
            elif self.how == "new":
                threading.Thread(target=self.tell, args=(event.action_information,)).start()
        return self.status, None

    def tell(self, question: Dataset, transaction: str = "") -> int:
        """The report of one question, over an association of its own; the status that it is answered with."""
        entity = AE(ae_title="KEEPER")
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = entity.associate("127.0.0.1", self.port_of_sorter, ext_neg=[role])
        assert association.is_established
        try:
            return self._report(association, question, transaction)
        finally:
            association.release()

    def _report(self, association: Any, question: Dataset, transaction: str = "") -> int:
        told = Dataset()
        told.TransactionUID = transaction or question.TransactionUID
        named = question.ReferencedSOPSequence[self.unnamed :]
        told.ReferencedSOPSequence = [each for each in named if each.ReferencedSOPInstanceUID in self.kept]
        lost = [each for each in named if each.ReferencedSOPInstanceUID not in self.kept]
        for each in lost:
            each.FailureReason = NO_SUCH_INSTANCE
        if lost:
            told.FailedSOPSequence = lost
        status, _ = association.send_n_event_report(told, 2 if lost else 1, StorageCommitmentPushModel, WELL_KNOWN)
        self.answered.append(int(status.Status))
        return self.answered[-1]

    def target(self, **more: Any) -> DicomTarget:
        return DicomTarget(self.settings(**more))

    def settings(self, **more: Any) -> dict[str, Any]:
        address = {"host": "127.0.0.1", "port": self.port, "ae_title": "KEEPER"}
        return {**address, "commitment_port": self.port_of_sorter, **more}


@pytest.fixture(scope="module")
def node() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.server.shutdown()


@pytest.fixture(params=["same", "new"])
def keeper(request: pytest.FixtureRequest, node: Keeper) -> Keeper:
    node.begin(request.param)
    return node


@pytest.fixture
def silent(node: Keeper, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """One that answers when the test says."""
    monkeypatch.setattr(target, "_AT_HAND", 0.0)
    node.begin("never")
    return node


@pytest.fixture(scope="module")
def ending() -> Iterator[list[threading.Thread]]:
    """Listeners that end beside the next test: each takes half a second."""
    ending: list[threading.Thread] = []
    yield ending
    for each in ending:
        each.join()


@pytest.fixture
def made(ending: list[threading.Thread]) -> Iterator[list[DicomTarget]]:
    """Targets whose listeners end with the test."""
    made: list[DicomTarget] = []
    yield made
    for each in made:
        if each._ear is not None:
            ending.append(threading.Thread(target=each._ear.close))
            ending[-1].start()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path, IMAGES)
    yield store
    store.close()


def uids(images: Sequence[bytes]) -> list[str]:
    return [str(dcmread(BytesIO(image)).SOPInstanceUID) for image in images]


def of(keeper: Keeper, made: list[DicomTarget], **more: Any) -> DicomTarget:
    made.append(keeper.target(**more))
    return made[-1]


def test_what_the_node_keeps_is_committed(keeper: Keeper, made: list[DicomTarget], store: Store) -> None:
    place = of(keeper, made)
    done = place.put(job(IMAGES), store)
    assert done.note == "committed"
    assert {each.state for each in done.files} == {"committed"}
    [question] = keeper.questions
    assert [each.ReferencedSOPInstanceUID for each in question.ReferencedSOPSequence] == uids(IMAGES)
    assert not place.waits
    store.images = (*IMAGES, *LATE)
    grown = place.put(job(store.images, 2, receipt(done)), store)
    assert (grown.note, len(grown.files)) == ("committed", len(store.images))
    assert [each.ReferencedSOPInstanceUID for each in keeper.questions[1].ReferencedSOPSequence] == uids(LATE)


def test_a_report_is_answered_before_the_association_is_released(
    node: Keeper, made: list[DicomTarget], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """After our release request nothing may be sent (PS3.8 9.2, state 7), and the node would report again for ever."""
    node.begin("same")
    releasing, ask = threading.Event(), Wire.release

    def release(wire: Wire, patience: float) -> None:
        releasing.set()
        ask(wire, patience)

    class Slow(Ledger):
        def answer(self, report: Report) -> None:
            super().answer(report)
            releasing.wait(0.5)

    monkeypatch.setattr(Wire, "release", release)
    monkeypatch.setattr(target, "Ledger", Slow)
    assert of(node, made).put(job(IMAGES), store).note == "committed"
    wait_until(lambda: node.answered == [0x0000])


def test_what_the_node_lost_is_sent_again_alone(keeper: Keeper, made: list[DicomTarget], store: Store) -> None:
    keeper.loses = 2
    place = of(keeper, made)
    with pytest.raises(
        TryLater, match=r"does not keep 2 images: it does not have them \(0x0112\); what it lacks is sent again"
    ):
        place.put(job(IMAGES), store)
    assert place.put(job(IMAGES), store).note == "committed"
    assert keeper.stored == [*uids(IMAGES), *uids(IMAGES)[:2]]
    assert len(keeper.questions[1].ReferencedSOPSequence) == 2


def test_what_an_answer_does_not_name_is_not_committed(keeper: Keeper, made: list[DicomTarget], store: Store) -> None:
    keeper.unnamed = 1
    place = of(keeper, made)
    with pytest.raises(TryLater, match="has not answered yet"):
        place.put(job(IMAGES), store)
    keeper.unnamed = 0
    assert place.put(job(IMAGES), store).note == "committed"
    assert len(keeper.stored) == len(IMAGES)


def test_an_answer_may_come_hours_later(silent: Keeper, made: list[DicomTarget], store: Store) -> None:
    place = of(silent, made)
    for _ in range(3):
        with pytest.raises(TryLater, match="was asked whether it keeps them; it has not answered yet"):
            place.put(job(IMAGES), store)
        assert place.waits
    assert (len(silent.questions), silent.stored) == (1, uids(IMAGES))  # neither asked nor sent again
    assert silent.tell(silent.questions[0], transaction="2.25.1") == 0  # nobody's question: taken, and worth nothing
    with pytest.raises(TryLater):
        place.put(job(IMAGES), store)
    assert silent.tell(silent.questions[0]) == 0
    assert place.put(job(IMAGES), store).note == "committed"
    assert not place.waits


def test_without_an_answer_it_is_asked_again_and_the_first_counts_still(
    silent: Keeper, made: list[DicomTarget], store: Store
) -> None:
    place = of(silent, made, commitment_wait=1e-9)
    for _ in range(2):
        with pytest.raises(TryLater):
            place.put(job(IMAGES), store)
    first, second = silent.questions
    assert first.TransactionUID != second.TransactionUID
    assert silent.stored == uids(IMAGES)
    silent.tell(first)
    assert place.put(job(IMAGES), store).note == "committed"
    silent.tell(second)  # nobody waits for it any more


def test_over_a_restart_it_is_sent_and_asked_again(silent: Keeper, made: list[DicomTarget], store: Store) -> None:
    """A process that ended knows nothing of what was sent, so it claims nothing."""
    first = of(silent, made)
    with pytest.raises(TryLater):
        first.put(job(IMAGES), store)
    assert first._ear is not None
    first._ear.close()
    silent.how = "new"
    again = of(silent, made)
    target._AT_HAND = 30.0  # the fixture puts it back
    assert again.put(job(IMAGES), store).note == "committed"
    assert silent.stored == [*uids(IMAGES), *uids(IMAGES)]


def test_a_question_that_is_refused_is_no_answer(keeper: Keeper, made: list[DicomTarget], store: Store) -> None:
    keeper.status = 0x0213
    place = of(keeper, made)
    with pytest.raises(TryLater, match="status 0x0213"):
        place.put(job(IMAGES), store)
    keeper.status = 0x0000
    assert place.put(job(IMAGES), store).note == "committed"
    assert keeper.stored == uids(IMAGES)


def test_a_node_that_breaks_off_when_asked(silent: Keeper, made: list[DicomTarget], store: Store) -> None:
    place = of(silent, made)

    def abort(event: evt.Event) -> tuple[int, None]:
        event.assoc.abort()
        return 0, None

    silent.server.bind(evt.EVT_N_ACTION, abort)
    with pytest.raises(TryLater, match="broke off when it was asked"):
        place.put(job(IMAGES), store)
    silent.server.bind(evt.EVT_N_ACTION, silent._asked)
    with pytest.raises(TryLater, match="has not answered yet"):
        place.put(job(IMAGES), store)


def test_two_contents_under_one_uid_are_never_committed(keeper: Keeper, made: list[DicomTarget], store: Store) -> None:
    """The node may keep either; its word on the UID says nothing of the other."""
    other = IMAGES[0][:-1] + bytes([IMAGES[0][-1] ^ 1])
    place = of(keeper, made)
    store.images = (*IMAGES, other)
    done = place.put(job(store.images), store)
    assert [each.state for each in done.files] == ["written", *["committed"] * (len(IMAGES) - 1), "written"]
    assert done.note.startswith(f"{len(IMAGES) - 1} committed, 2 sent, answered 0x0000; 2 share their SOP Instance UID")

    store.images = (other, *IMAGES[1:])
    before = receipt(place.put(job(LATE), Store(store._folder, LATE)))
    before = replace(
        before, files=tuple(replace(each, name=uid) for each, uid in zip(before.files, uids(IMAGES), strict=False))
    )
    done = place.put(job(store.images, 2, before), store)  # all had another content before
    assert {each.state for each in done.files[:3]} == {"written"}


def test_two_contents_under_one_uid_in_two_series_are_not_both_committed(
    keeper: Keeper, made: list[DicomTarget], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    place = of(keeper, made)
    assert place.put(job(IMAGES), store).note == "committed"
    other = IMAGES[0][:-1] + bytes([IMAGES[0][-1] ^ 1])
    store.images = (other,)
    for _ in range(2):
        assert [each.state for each in place.put(job(store.images), store).files] == ["written"]
    monkeypatch.setattr(committed, "MOST_DONE", 2)
    store.images = IMAGES
    place.put(job(store.images), store)
    assert place._ledger._done.keys() == set(uids(IMAGES[-2:]))


def test_not_offered_and_not_asked_for_are_told_apart(made: list[DicomTarget], store: Store) -> None:
    entity = AE(ae_title="NODE")
    entity.add_supported_context(Verification)
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0x0000)])
    settings = {"host": "127.0.0.1", "port": server.socket.getsockname()[1], "ae_title": "NODE"}
    try:
        assert DicomTarget(settings).put(job(IMAGES), store).note == "sent, answered 0x0000"
        made.append(DicomTarget({**settings, "commitment_port": free_port()}))
        says = "sent, answered 0x0000; the node offers no storage commitment"
        assert made[0].put(job(IMAGES), store).note == says
        assert made[0].check().remarks[0].startswith("it offers no storage commitment")
    finally:
        server.shutdown()


def test_check_says_what_is_offered_and_whether_the_port_can_be_had(keeper: Keeper, made: list[DicomTarget]) -> None:
    assert of(keeper, made).check().remarks[0].startswith("it offers storage commitment")
    [says] = of(keeper, made).check().remarks
    assert says.startswith(f"port {keeper.port_of_sorter}, on which KEEPER")


def test_a_port_that_is_taken_means_later(keeper: Keeper, made: list[DicomTarget], store: Store) -> None:
    of(keeper, made).check()
    with pytest.raises(TryLater, match="another program, or another target, has it"):
        of(keeper, made).put(job(IMAGES), store)
    assert keeper.stored == []


def test_the_worker_is_small(node: Keeper, store: Store) -> None:
    """After images, the question whether they are kept, and its answer: all that such a worker ever does."""
    node.begin("new")
    answers: queue.Queue[Result] = queue.Queue()
    lane = Lane(
        "kept", "sorter.scu.target:DicomTarget", node.settings(),
        lambda put, file: os.dup(store(put.files.index(file))), lambda _, result: answers.put(result), stay=True,
    )  # fmt: skip
    try:
        lane.submit(job(IMAGES))
        done = answers.get(timeout=60)
        assert isinstance(done, Done)
        assert done.note == "committed"
        rollup = Path(f"/proc/{lane.pid}/smaps_rollup").read_text()
        assert next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) <= 25 * 1024
        maps = Path(f"/proc/{lane.pid}/maps").read_text()
        assert not [each for each in ("pydantic", "numpy") if each in maps]
    finally:
        lane.stop(10)


@pytest.mark.peers  # it waits for seconds
def test_the_worker_stays_while_it_waits(silent: Keeper, store: Store) -> None:
    answers: list[Any] = []
    lane = Lane(
        "kept", "sorter.scu.target:DicomTarget", silent.settings(),
        lambda put, file: os.dup(store(put.files.index(file))), lambda _, result: answers.append(result),
        patience=Patience(idle=0.0),
    )  # fmt: skip
    try:
        lane.submit(job(IMAGES))
        wait_until(lambda: answers, 60)
        assert isinstance(answers[0], Later)
        assert not answers[0].away
        worker = lane.pid
        assert worker is not None
        silent.tell(silent.questions[0])
        lane.submit(job(IMAGES))
        wait_until(lambda: len(answers) == 2, 60)
        assert isinstance(answers[1], Done)
        wait_until(lambda: lane.pid is None, 60)  # nothing is waited for any more
    finally:
        lane.stop(10)
    assert len(silent.stored) == len(IMAGES)


def test_the_port_takes_no_more_than_so_many_connections(
    silent: Keeper, made: list[DicomTarget], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(ear, "MOST_CONNECTIONS", 2)
    place = of(silent, made)
    place.check()
    listens = place._ear
    assert listens is not None
    with Raw(silent.port_of_sorter), Raw(silent.port_of_sorter) as second:
        wait_until(lambda: len(listens._connections) == 2)  # each is opened on a thread of its own
        with Raw(silent.port_of_sorter) as third:
            third.drain()  # it is closed at once
        second.socket.sendall(b"\1\0\xff\xff\xff\xff")  # a PDU of 4 GB is announced
        second.drain()
    wait_until(lambda: not listens._connections)
    with pytest.raises(TryLater):
        place.put(job(IMAGES), store)
    silent.tell(silent.questions[0])
    assert place.put(job(IMAGES), store).note == "committed"


def test_strangers_at_the_port_keep_the_node_from_nothing(
    silent: Keeper, made: list[DicomTarget], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(ear, "MOST_CONNECTIONS", 3)
    place = of(silent, made)
    with pytest.raises(TryLater):
        place.put(job(IMAGES), store)
    listens = place._ear
    assert listens is not None
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(Raw(silent.port_of_sorter, "127.0.0.2")) for _ in range(3)]
        wait_until(lambda: len(listens._connections) == 3)
        assert silent.tell(silent.questions[0]) == 0
        strangers[0].drain()  # the oldest had to go
    assert place.put(job(IMAGES), store).note == "committed"


def test_of_what_a_report_names_as_kept_and_as_lost_nothing_is_kept() -> None:
    one, other = Reference("1.2", "1.2.1"), Reference("1.2", "1.2.2")
    ledger = Ledger()
    kept, lost = ledger.add(one, "a"), ledger.add(other, "b")
    data = encode(IMPLICIT, ledger.question([kept, lost]), [one, other], {Reference("1.3", "1.2.2"): 0x0119})
    assert ledger.hear(data, IMPLICIT) == 0
    assert (kept.safe, kept.failure) == (True, None)
    assert (lost.safe, lost.failure) == (False, 0x0119)


def test_a_node_that_never_answers_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "MOST_QUESTIONS", 3)
    ledger = Ledger()
    sent = [ledger.add(Reference("1.2", "1.2.1"), "a")]
    asked = [ledger.question(sent) for _ in range(5)]
    assert list(ledger._questions) == asked[2:]
    ledger.answer(Report(asked[0], frozenset({sent[0].reference}), {}))
    assert not sent[0].safe
    ledger.answer(Report(asked[2], frozenset({sent[0].reference}), {}))
    assert sent[0].safe


@pytest.mark.parametrize("data", [b"", b"\x08\0\x95\x11\xff\xff\0\0", b"no data set at all"])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        parse_report(data, IMPLICIT)


def test_the_ledger_remembers_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "MOST_REMEMBERED", 2)
    ledger = Ledger()
    for number in range(3):
        ledger.add(Reference("1.2", f"1.2.{number}"), str(number))
    assert [ledger.find(str(number)) is None for number in range(3)] == [True, False, False]
