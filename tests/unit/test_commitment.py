"""Storage commitment: the parser of requests, the folder they are kept in, the decision, and the index it rests on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import struct
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid
from pynetdicom.dsutils import encode

from sorter.completion import Habits, Tracker
from sorter.durable import Files
from sorter.pipeline import commitments as provider
from sorter.pipeline import evidence
from sorter.pipeline.commitments import Standing, judge
from sorter.plugins import Plugins
from sorter.protocol import commitment as lists
from sorter.protocol.commitment import MOST_INSTANCES, Reference, Unreadable, parse
from sorter.protocol.uids import BIG_ENDIAN, COMMITMENT_INSTANCE, EXPLICIT, IMPLICIT, STORAGE_COMMITMENT
from sorter.receive import Receiver, ReceiveSettings
from sorter.receive import commitment as desk
from sorter.spool import Spool, commitments
from sorter.spool.by_sop import BySop
from sorter.spool.commitments import MOST_WAITING, Commitments, TooMany
from sorter.spool.unit import sop_hash
from sorter.testing.peer import Peer, element, pdu, pdv, request
from sorter.testing.waiting import wait_until
from sorter.trust import Ledger

MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
WHO = ("SCANNER", "SORTER", "10.1.2.3")


# --- the parser -----------------------------------------------------------------------------------------------------


def a_request(references: list[Reference], *, undefined: bool, extra: bool) -> Dataset:
    found = Dataset()
    found.TransactionUID = "1.2.3"
    items = []
    for each in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = each
        item.is_undefined_length_sequence_item = undefined
        items.append(item)
    found.ReferencedSOPSequence = Items(items)
    found["ReferencedSOPSequence"].is_undefined_length = undefined
    if extra:  # what else a request may hold, and a sequence of the same elements that is not the one
        found.RetrieveAETitle = "ELSEWHERE"
        inner, other = Dataset(), Dataset()
        inner.ReferencedSOPClassUID, inner.ReferencedSOPInstanceUID = CT, "9.9.9"
        other.ReferencedSeriesSequence = Items([inner])
        other["ReferencedSeriesSequence"].is_undefined_length = undefined
        found.ReferencedPerformedProcedureStepSequence = Items([other])
        found["ReferencedPerformedProcedureStepSequence"].is_undefined_length = undefined
    return found


SYNTAXES = {IMPLICIT: (True, True), EXPLICIT: (False, True), BIG_ENDIAN: (False, False)}
references = st.builds(
    Reference,
    st.sampled_from([MR, CT]),
    st.from_regex(r"[12]\.[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){0,4}", fullmatch=True),
)


@given(st.lists(references, min_size=1, max_size=8), st.sampled_from(sorted(SYNTAXES)), st.booleans(), st.booleans())
def test_what_pydicom_writes_is_read(found: list[Reference], transfer: str, undefined: bool, extra: bool) -> None:
    data = encode(a_request(found, undefined=undefined, extra=extra), *SYNTAXES[transfer])
    assert data is not None
    assert parse(data, transfer) == ("1.2.3", tuple(dict.fromkeys(found)))


@given(st.binary(max_size=300), st.sampled_from(sorted(SYNTAXES)))
def test_junk_is_refused_and_never_more(data: bytes, transfer: str) -> None:
    with pytest.raises(Unreadable):
        parse(data, transfer)


@given(st.data())
def test_a_request_with_a_flipped_byte_is_read_or_refused(data: st.DataObject) -> None:
    whole = encode(a_request([Reference(MR, "1.2.3")] * 2, undefined=True, extra=True), True, True)
    assert whole is not None
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(broken[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(Unreadable):
        parse(cut, IMPLICIT)


def test_deep_nesting_and_endless_lists_are_refused() -> None:
    deeper = struct.pack("<HHL", 0x0008, 0x1199, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(Unreadable, match="nested"):
        parse(deeper * 20_000, IMPLICIT)
    with pytest.raises(Unreadable, match="too many elements"):
        parse(struct.pack("<HHL", 8, 0x16, 0) * (5 << 17), IMPLICIT)


def test_a_long_list_is_read_and_a_longer_one_is_not() -> None:
    def item(number: int) -> bytes:
        uid = f"1.2.{number:08d}".encode()
        body = struct.pack("<HHL", 8, 0x1150, 4) + b"1.23" + struct.pack("<HHL", 8, 0x1155, len(uid)) + uid
        end = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
        return struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + body + end

    def request(count: int) -> bytes:
        head = struct.pack("<HHL", 8, 0x1195, 6) + b"1.2.3\0" + struct.pack("<HHL", 8, 0x1199, 0xFFFFFFFF)
        return head + b"".join(map(item, range(count))) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)

    assert len(parse(request(MOST_INSTANCES), IMPLICIT)[1]) == MOST_INSTANCES
    with pytest.raises(Unreadable, match="instances"):
        parse(request(MOST_INSTANCES + 1), IMPLICIT)


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, files: Files) -> Commitments:
    kept = Commitments(tmp_path, files)
    kept.create()
    return kept


ASKED = (Reference(MR, "1.2.3.1"), Reference(CT, "1.2.3.2"))


def test_a_request_is_kept_decided_and_told(kept: Commitments) -> None:
    request = kept.add("1.2.3", WHO, ASKED)
    assert kept.waiting() == [request.id]
    assert kept.read(request.id) == request
    decided = kept.decide(request, {"1.2.3.2": 0x0112})
    assert kept.read(request.id) == decided
    kept.finish(kept.trouble(decided, "it does not listen"))
    assert kept.waiting() == []
    assert list(kept.open()) == []
    [found] = kept.all()
    assert (found.failed, found.trouble, bool(found.told)) == ({"1.2.3.2": 0x0112}, "", True)


def test_what_was_given_up_is_kept_and_may_wait_again(kept: Commitments) -> None:
    request = kept.decide(kept.add("1.2.3", WHO, ASKED), {})
    kept.give_up(request, "it does not listen")
    assert kept.waiting() == []
    assert [each.given_up for each in kept.open()] == ["it does not listen"]
    kept.revive()
    assert kept.read(request.id) == request
    assert len(kept.all()) == 1


def test_nothing_failed_is_another_answer_than_none(kept: Commitments) -> None:
    request = kept.add("1.2.3", WHO, ASKED)
    assert kept.read(request.id).failed is None
    kept.decide(request, {})
    assert kept.read(request.id).failed == {}


def test_a_request_is_durable_before_it_is_answered(tmp_path: Path) -> None:
    done: list[str] = []

    class Watched(Files):
        def fsync(self, fd: int) -> None:
            done.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "fsync")
            super().fsync(fd)

        def rename(self, old: object, new: object, **at: object) -> None:
            done.append("rename")
            super().rename(old, new, **at)  # type: ignore[arg-type]

    kept = Commitments(tmp_path, Watched())
    kept.create()
    done.clear()
    kept.add("1.2.3", WHO, ASKED)
    assert done == ["fsync", "rename", "fsync folder"]


@pytest.mark.parametrize("effect", ["fsync", "write", "rename", "fsync_folder"])
def test_what_could_not_be_kept_leaves_nothing(tmp_path: Path, effect: str) -> None:
    class Failing(Files):
        pass

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files = Failing()
    kept = Commitments(tmp_path, files)
    kept.create()
    setattr(files, effect, fail)
    with pytest.raises(OSError, match="space"):
        kept.add("1.2.3", WHO, ASKED)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_crash_in_mid_move_means_told(kept: Commitments, tmp_path: Path) -> None:
    request = kept.decide(kept.add("1.2.3", WHO, ASKED), {})
    waiting = tmp_path / "waiting" / f"{request.id}.json"
    before = waiting.read_bytes()
    kept.finish(request)
    waiting.write_bytes(before)
    kept.tidy()
    assert kept.waiting() == []
    assert len(kept.all()) == 1


def test_whoever_looks_in_mid_move_finds_it_once(tmp_path: Path) -> None:
    """Each of the folders is read while the request is on its way from the first to the last."""
    mover, looks = Commitments(tmp_path, Files()), list[str]()

    class Looking(Files):
        """While this one looks, right before it lists the given folder, the request is told."""

        def names(self, path: Any) -> list[str]:
            looks.append(Path(path).name)
            if looks[-1] == self.moves_at:
                mover.finish(request)
            return super().names(path)

        moves_at = ""

    class Moving(Files):
        """At each step of the move somebody looks."""

        def _look(self) -> None:
            seen.append([each.id for each in Commitments(tmp_path, Files()).all()])

        def rename(self, old: Any, new: Any, **at: Any) -> None:
            self._look()
            super().rename(old, new, **at)
            self._look()

    mover.create()
    for moves_at in ("waiting", "given-up", "told"):
        request = mover.decide(mover.add("1.2.3", WHO, ASKED), {})
        files = Looking()
        files.moves_at = moves_at
        assert [each.id for each in Commitments(tmp_path, files).all()].count(request.id) == 1, moves_at
    request, seen = mover.decide(mover.add("1.2.3", WHO, ASKED), {}), list[list[str]]()
    Commitments(tmp_path, Moving()).finish(request)
    assert len(seen) == 2
    assert all(ids.count(request.id) == 1 for ids in seen)


def test_what_is_no_request_is_left_where_it_is(kept: Commitments, tmp_path: Path) -> None:
    for name, content in [("a", b"{}"), ("b", b"junk"), ("c", json.dumps({"instances": [["1"]]}).encode())]:
        (tmp_path / "waiting" / f"{name}.json").write_bytes(content)
        with pytest.raises(ValueError):  # noqa: PT011  a JSON error is one too
            kept.read(name)
    assert kept.all() == []


def test_there_is_a_limit_to_what_waits(kept: Commitments, tmp_path: Path) -> None:
    for number in range(MOST_WAITING):
        (tmp_path / "waiting" / f"{number}.json").touch()
    with pytest.raises(TooMany):
        kept.add("1.2.3", WHO, ASKED)


def test_there_is_a_limit_to_what_waits_together(kept: Commitments, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sorter has it all in memory."""
    size = len(commitments._encoded(kept.add("1.2.3", WHO, ASKED)))
    monkeypatch.setattr(commitments, "MOST_BYTES_WAITING", 2 * size - 10)
    other = ("SCANNER", "SORTER", "10.1.2.4")
    second = kept.add("1.2.4", other, ASKED)
    with pytest.raises(TooMany):
        kept.add("1.2.5", ("SCANNER", "SORTER", "10.1.2.5"), ASKED)
    kept.finish(kept.decide(second, {}))
    kept.add("1.2.5", other, ASKED)


def test_one_address_has_half_of_what_may_wait(kept: Commitments, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner that asks and never takes its reports keeps no other from asking."""
    monkeypatch.setattr(commitments, "MOST_WAITING", 4)
    for number, address in enumerate(("2001:db8::1", "2001:db8::2")):  # of one host
        kept.add(f"1.2.{number}", ("SCANNER", "SORTER", address), ASKED)
    with pytest.raises(TooMany):
        kept.add("1.2.3", ("ANOTHER", "SORTER", "2001:db8::3"), ASKED)
    for number in range(2):
        kept.add(f"1.3.{number}", WHO, ASKED)
    with pytest.raises(TooMany):
        kept.add("1.4.1", ("SCANNER", "SORTER", "10.1.2.4"), ASKED)


# --- asking much ------------------------------------------------------------------------------------------------------


def asking() -> bytes:
    """The A-ASSOCIATE-RQ and the N-ACTION-RQ of a scanner that asks; its data set is still to come."""
    values = {0x0003: STORAGE_COMMITMENT.encode() + b"\0", 0x0100: b"\x30\1", 0x0110: b"\7\0", 0x0800: b"\1\0"}
    values |= {0x1001: COMMITMENT_INSTANCE.encode(), 0x1008: b"\1\0"}
    action = b"".join(element(tag, value) for tag, value in values.items())
    return request([STORAGE_COMMITMENT.encode()]) + pdu(4, pdv(1, 3, action))


def test_whoever_asks_slowly_from_one_address_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    settings = ReceiveSettings(port=0, commitments=tmp_path / "commitments")
    receiver = Receiver(settings, tmp_path / "received", Files())
    port = receiver.start()
    question = lists.encode(IMPLICIT, "1.2.3", ASKED, {})
    try:
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(Peer(port)) for _ in range(10)]
            for each in slow:
                each.send(asking())
                assert each.pdu()[0] == 2
                each.send(pdu(4, pdv(1, 0, question[:10])))
            wait_until(lambda: desk._ROOM._taken["127.0.0.1"] == desk._MOST_OF_ADDRESS)
            with Peer(port, "127.0.0.2", timeout=5) as scanner:
                scanner.send(asking() + pdu(4, pdv(1, 2, question)))
                assert scanner.pdu()[0] == 2
                assert scanner.status() == 0
        wait_until(lambda: not desk._ROOM._taken.total(), 15)
    finally:
        receiver.stop(5)
    assert len(os.listdir(tmp_path / "commitments" / "waiting")) == 1


def test_a_question_that_does_not_come_to_its_end_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    room = desk._Room()
    asked = desk.Asked(lambda: room.give_back("10.1.2.3"))
    assert room.take("10.1.2.3")
    asked.add(memoryview(b"some"))
    assert asked.refusal is None
    monkeypatch.setattr(desk.time, "monotonic", lambda: asked._until + 1)
    with asked:
        asked.add(memoryview(b"more"))
        assert asked.refusal is not None
        assert asked.refusal.status == 0x0213
        assert not room._taken.total()
        asked.add(memoryview(b"and more"))
        assert not asked.data
    assert not room._taken.total()


def test_a_turn_looks_for_so_many_and_the_rest_comes_next(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a thousand lists of images that are not here: what else there is to do is done in between."""
    monkeypatch.setattr(provider, "LOOK_STEP", 2)
    kept, index, looked = Commitments(spool.commitments, spool.files), an_index(spool), list[int]()
    kept.create()
    for number in range(4):
        kept.add(f"1.2.{number}", WHO, ASKED)
    answers = provider.CommitmentProvider(spool, index, provider.Terms(False, 600.0, lambda _: None), _never, _nothing)
    heard = list[object]()
    answers.heard = heard.append
    answers.begin()
    monkeypatch.setattr(index, "find", lambda uids: looked.append(len(list(uids))) or {})
    for turn in range(1, 4):
        assert answers.turn(100.0, settled=True) == 100.0
        assert (len(heard), len(looked)) == (turn, turn)
    assert answers.turn(100.0, settled=True) > 100.0
    assert (len(heard), looked) == (4, [2] * 4)


def test_one_series_that_cannot_be_read_is_no_promise_and_ends_no_turn(spool: Spool) -> None:
    kept, index = Commitments(spool.commitments, spool.files), an_index(spool)
    kept.create()
    request = kept.add("1.2.3", WHO, ASKED)
    (spool.unit_folder(KEYS[0]) / "evidence.jsonl").mkdir(parents=True)
    index.note(ASKED[0].sop_uid, KEYS[0])
    index.flush()
    terms = provider.Terms(False, 600.0, lambda _: None)
    answers = provider.CommitmentProvider(spool, index, terms, _never, _nothing)
    answers.begin()
    answers.turn(100.0, settled=True)
    assert kept.read(request.id).failed is None  # perhaps the disk gives it later
    answers.turn(800.0, settled=True)
    assert kept.read(request.id).failed == dict.fromkeys((each.sop_uid for each in ASKED), 0x0112)


def test_whoever_asks_again_while_he_is_told_is_told_once_more(spool: Spool) -> None:
    """The report that is under way may have been answered before: then nobody would answer this question."""
    kept, told, go_on = Commitments(spool.commitments, spool.files), list[str](), threading.Event()

    def report(_: provider.Peer, request: commitments.Commitment) -> str:
        told.append(request.id)
        assert go_on.wait(20)
        return ""

    terms = provider.Terms(False, 0.0, lambda _: provider.Peer("127.0.0.1", 104))
    answers = provider.CommitmentProvider(spool, an_index(spool), terms, report, _nothing)
    answers.begin()
    asked = [kept.add("1.2.3", WHO, ASKED).id]
    answers.turn(100.0, settled=True)
    wait_until(lambda: told == asked)
    asked.append(kept.add("1.2.3", WHO, ASKED).id)
    answers.turn(101.0, settled=True)
    kept.add("1.2.3", WHO, ASKED)  # this one is answered with the second
    go_on.set()
    times = itertools.count(102.0)

    def all_told() -> bool:
        answers.turn(next(times), settled=True)
        return not kept.waiting()

    wait_until(all_told)
    assert told == asked


def _never(*_: object) -> str:
    raise AssertionError("there is nobody to be told")


def _nothing() -> None:
    pass


def test_what_senders_name_is_remembered_up_to_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MOST_NAMES", 5)
    witness = evidence.Witness(Tracker(Habits(), 900.0), Ledger(), lambda: cast(Plugins, None), lambda _: None)
    for number in range(4):
        witness.hear("commitment", "A@10.1.2.3", [f"1.2.{number}.{image}" for image in range(2)])
    assert [min(each.names) for each in witness.lists] == ["1.2.2.0", "1.2.3.0"]
    witness.hear("commitment", "A@10.1.2.3", map(str, range(9)))
    assert [len(each.names) for each in witness.lists] == [9]


# --- the decision ---------------------------------------------------------------------------------------------------

A, B = ASKED


@pytest.mark.parametrize(
    ("one", "other", "waited", "answer"),
    [
        (Standing.SAFE, Standing.SAFE, False, {}),
        (Standing.SAFE, Standing.SAFE, True, {}),
        (Standing.SAFE, Standing.ABSENT, False, None),
        (Standing.SAFE, Standing.ABSENT, True, {B.sop_uid: 0x0112}),
        (Standing.NOT_DELIVERED, Standing.SAFE, False, None),
        (Standing.NOT_DELIVERED, Standing.ABSENT, True, {A.sop_uid: 0x0110, B.sop_uid: 0x0112}),
        (Standing.OTHER_CLASS, Standing.SAFE, False, {A.sop_uid: 0x0119}),
        (Standing.OTHER_CLASS, Standing.ABSENT, False, None),
    ],
)
def test_what_is_promised_and_when(one: Standing, other: Standing, waited: bool, answer: dict[str, int] | None) -> None:
    assert judge({A: one, B: other}, waited) == answer


@given(st.lists(st.sampled_from(Standing), min_size=1, max_size=5), st.booleans())
def test_nothing_is_promised_that_is_not_safe(standing: list[Standing], waited: bool) -> None:
    asked = {Reference(MR, f"1.2.{number}"): each for number, each in enumerate(standing)}
    answer = judge(asked, waited)
    if answer is None:
        assert not waited
    else:
        assert set(answer) == {each.sop_uid for each, said in asked.items() if said is not Standing.SAFE}


# --- the index ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path, files: Files) -> Spool:
    spool = Spool(tmp_path / "spool", files)
    spool.create()
    return spool


def an_index(spool: Spool) -> BySop:
    index = BySop(spool)
    index.begin()
    while index.go_on(10):
        pass
    return index


KEYS = ["0" * 32, "f" * 32]


def test_what_was_noted_is_found_in_this_life_and_the_next(spool: Spool) -> None:
    index = an_index(spool)
    index.note("1.2.3", KEYS[0])
    index.note("1.2.3", KEYS[1])
    assert index.find(["1.2.3"]) == {}
    index.flush()
    assert index.find(["1.2.3", "1.2.4"]) == {"1.2.3": set(KEYS)}
    again = BySop(spool)
    again.begin()
    assert again.whole
    assert again.find(["1.2.3"]) == {"1.2.3": set(KEYS)}


def test_it_is_made_anew_from_the_names_in_the_store(spool: Spool) -> None:
    images = spool.unit_folder(KEYS[0]) / "images" / "00"
    images.mkdir(parents=True)
    uids = [str(generate_uid()) for _ in range(5)]
    for uid in uids:
        (images / f"{sop_hash(uid)}.dcm").touch()
    (images / f"{sop_hash(uids[0])}-{'0' * 32}.dcm").touch()  # another copy
    assert an_index(spool).find(uids) == {uid: {KEYS[0]} for uid in uids}


def test_after_a_reboot_it_is_not_trusted(spool: Spool) -> None:
    an_index(spool)
    (spool.root / "by-sop" / "whole").write_bytes(b"another boot\n")
    index = BySop(spool)
    index.begin()
    assert not index.whole


def test_a_full_disk_means_that_it_is_made_anew(spool: Spool) -> None:
    index = an_index(spool)
    (spool.root / "by-sop" / sop_hash("1.2.3")[:3]).mkdir()  # nothing can be appended to a folder
    index.note("1.2.3", KEYS[0])
    with pytest.raises(OSError):  # noqa: PT011
        index.flush()
    assert not index.whole
    while index.go_on(10):
        pass
    assert index.whole
    index.note_all(KEYS[0], ["1.2.3", "1.2.4"])
    index.flush()
    assert set(index.find(["1.2.3", "1.2.4"])) == {"1.2.3", "1.2.4"}


def test_a_torn_line_says_nothing(spool: Spool) -> None:
    index = an_index(spool)
    name = sop_hash("1.2.3")
    (spool.root / "by-sop" / name[:3]).write_bytes(f"{name} 0000".encode())
    index.note("1.2.3", KEYS[1])
    index.flush()
    assert index.find(["1.2.3"]) == {"1.2.3": {KEYS[1]}}
