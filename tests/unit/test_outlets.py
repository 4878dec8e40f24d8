"""Targets that are out: asked by one small check at a time, remembered, told, and all delivered on their return."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.builtin.path_target import mark
from sorter.deliver import workers
from sorter.deliver.target import Checked, Done, Later, Put, Refused, Removed, Result, Wanted
from sorter.deliver.workers import start_worker
from sorter.durable import Files
from sorter.model import Delivered, Receipt
from sorter.pipeline import outlets as room
from sorter.pipeline.outages import LONGEST, Outages, outages
from sorter.pipeline.outlets import Outlet, Outlets
from sorter.spool import Spool
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

PATH = "sorter.builtin.path_target:PathTarget"
AWAY = Later("/data/lab is away", away=True)
KEYS = [digit * 32 for digit in "abcdef"]


def put_of(key: str, revision: int = 1) -> Put:
    return Put(f"{key}-{revision}", key, "dicom", revision, key[:4], ())


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    return spool


# --- what is known of an outage ---------------------------------------------------------------------------------------


@given(seed=st.integers(), failures=st.integers(1, 200))
def test_checks_come_after_5_s_at_first_and_never_after_more_than_4_min(
    tmp_path_factory: pytest.TempPathFactory, seed: int, failures: int
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"), Files())
    spool.create()
    out, now, waits = Outages(spool, 1e9, Random(seed)), 1000.0, []
    for _ in range(failures):
        out.failed("lab", "away", now)
        assert out.due(now + 4.9) == []
        due = out.next
        assert due is not None
        waits.append(due - now)
        now = due
        assert out.due(now) == ["lab"]
        assert out.due(now) == []  # once, until it is answered
    assert waits[0] == pytest.approx(5, abs=0.1)
    assert max(waits) <= LONGEST < 300


def test_the_next_life_goes_on_where_this_one_was(spool: Spool) -> None:
    out = Outages(spool, 900, Random(1))
    for _ in range(8):
        out.failed("lab", "/data/lab is away", 1000.0)
        out.due(10_000.0)
    [written] = outages(spool)
    assert (written.target, written.failures, written.why) == ("lab", 8, "/data/lab is away")
    again = Outages(spool, 900, Random(1))
    again.configure({"lab": None}, set())
    assert "lab" in again
    assert again.due(5.0) == []  # the clock of another life
    assert again.due(5.0 + LONGEST) == ["lab"]
    again.failed("lab", "/data/lab is full", 300.0)
    [later] = outages(spool)
    assert (later.failures, later.since, later.why) == (9, written.since, "/data/lab is full")
    again.ended("lab", 400.0)
    assert outages(spool) == []


def test_a_target_that_is_no_more_is_forgotten(spool: Spool) -> None:
    Outages(spool, 900, Random(1)).failed("lab", "away", 0.0)
    Outages(spool, 900, Random(1)).configure({"other": None}, set())
    assert outages(spool) == []


def test_what_is_half_written_is_nothing(spool: Spool) -> None:
    (spool.owed / "lab.json").write_text('{"target": "la')
    (spool.owed / "other.json").write_text("[]")
    assert outages(spool) == []


def test_an_outage_is_told_once_it_has_lasted_and_once_when_it_ends(spool: Spool) -> None:
    out = Outages(spool, 60, Random(1))
    out.failed("lab", "away", 1000.0)
    assert out.news(1059.0) == []
    [away] = out.news(1061.0)
    assert (away.kind, away.outage.target, round(away.outage.lasted)) == ("target away", "lab", 61)
    assert out.news(2000.0) == []
    again = Outages(spool, 60, Random(1))
    again.configure({"lab": None}, set())
    again.due(5.0)
    assert again.news(500.0) == []  # the last life told it
    again.ended("lab", 600.0)
    [back] = again.news(600.0)
    assert back.kind == "target back"
    again.failed("lab", "away", 700.0)
    again.ended("lab", 710.0)
    assert again.news(800.0) == []  # too short to be told


# --- the way out ------------------------------------------------------------------------------------------------------


class Script:
    """A lane that does what a test says, at once."""

    lanes: ClassVar[dict[str, Script]] = {}

    def __init__(
        self, target: str, code: str, settings: Mapping[str, Any], opens: object, report: Callable[[Put, Result], None],
        *, stay: bool = False, workers: object = None, after: object = None,
    ) -> None:  # fmt: skip
        Script.lanes[target] = self
        self.report, self.stay = report, stay
        self.held: list[Put] = []
        self.silent, self.lacks, self.came = 0.0, "", False
        self.checks: list[Callable[[Any], None]] = []

    def submit(self, put: Put) -> None:
        self.held.append(put)

    def answer(self, result: Result | None = None) -> Put:
        put = self.held.pop(0)
        self.report(put, result or Done(put.folder, ()))
        return put

    def check(self, tell: Callable[[Any], None]) -> None:
        self.checks.append(tell)

    def take_back(self, only: tuple[str, str] | None = None) -> list[Put]:
        back = [put for put in self.held if only in (None, (put.key, put.product))]
        self.held = [put for put in self.held if put not in back]
        return back

    def begin(self) -> Put:
        """The worker is at this one now."""
        return self.held.pop(0)

    def silence(self) -> float:
        return self.silent

    def problem(self) -> str:
        return self.lacks

    def worker_came(self) -> bool:
        return self.came

    def stop(self, timeout: float) -> bool:
        return True


@pytest.fixture
def out(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Outlets:
    monkeypatch.setattr(room, "Lane", Script)
    made = Outlets(spool, lambda: None)
    made.configure({"lab": Outlet(PATH, {}, stay=True), "other": Outlet(PATH, {})})
    return made


def test_a_labs_worker_stays_and_anothers_does_not(out: Outlets) -> None:
    assert {name: lane.stay for name, lane in Script.lanes.items()} == {"lab": True, "other": False}


def test_one_failure_parks_all_and_the_other_lab_goes_on(out: Outlets) -> None:
    for key in KEYS[:3]:
        assert out.submit("lab", put_of(key)) == ""
    Script.lanes["lab"].answer(AWAY)
    answers = list(out.answers(100.0))
    assert [(put.key, result) for _, put, result in answers] == [(key, AWAY) for key in (KEYS[0], *KEYS[1:3])]
    assert out.submit("lab", put_of(KEYS[3])) == AWAY.why
    assert out.submit("other", put_of(KEYS[3])) == ""
    assert all(out.busy((key, "dicom", "lab"), 7) for key in KEYS[:4])  # whatever its revision: it is sent when due
    assert out.due(104.9) == []
    assert Script.lanes["lab"].checks == []
    assert out.due(106.0) == []
    assert len(Script.lanes["lab"].checks) == 1
    assert Script.lanes["lab"].held == []


def test_on_its_return_all_are_due_and_what_failed_comes_last(out: Outlets) -> None:
    for key in KEYS[:3]:
        out.submit("lab", put_of(key))
    Script.lanes["lab"].answer(AWAY)
    list(out.answers(100.0))
    out.due(106.0)
    Script.lanes["lab"].checks.pop()(AWAY)
    assert out.due(107.0) == []
    out.due(107.0 + LONGEST)
    Script.lanes["lab"].checks.pop()(Checked())
    due = out.due(108.0 + LONGEST)
    assert [key for key, _, _ in due] == [KEYS[1], KEYS[2], KEYS[0]]
    assert "lab" not in out.outages
    assert not any(out.busy(errand, 1) for errand in due)


def test_a_check_that_never_answers_delays_nobody_else(out: Outlets) -> None:
    out.submit("lab", put_of(KEYS[0]))
    Script.lanes["lab"].answer(AWAY)
    list(out.answers(0.0))
    out.due(1000.0)
    assert len(Script.lanes["lab"].checks) == 1
    out.due(2000.0)
    assert len(Script.lanes["lab"].checks) == 1  # the lane itself says when it was silent for too long
    out.submit("other", put_of(KEYS[0]))
    Script.lanes["other"].answer()
    [(target, _, result)] = list(out.answers(2000.0))
    assert (target, isinstance(result, Done)) == ("other", True)


def test_what_fails_by_itself_keeps_nobody_waiting(out: Outlets) -> None:
    busy = Later("/data/lab is busy: a file is open elsewhere")
    for key in KEYS[:2]:
        out.submit("lab", put_of(key))
    Script.lanes["lab"].answer(busy)
    list(out.answers(0.0))
    assert "lab" not in out.outages
    assert [put.key for put in Script.lanes["lab"].held] == [KEYS[1]]
    assert out.due(4.9) == []
    assert out.due(5.1) == [(KEYS[0], "dicom", "lab")]


def test_nearly_full_goes_on_waiting_longer(out: Outlets) -> None:
    """Small checks succeed and large deliveries fail: the count of failures is kept while anything waits."""
    out.submit("lab", put_of(KEYS[0]))
    now, waits = 0.0, []
    for _ in range(7):
        Script.lanes["lab"].answer(AWAY)
        list(out.answers(now))
        due = out.outages.next
        assert due is not None
        waits.append(due - now)
        out.due(due)
        Script.lanes["lab"].checks.pop()(Checked())
        now = due
        assert out.due(now) == [(KEYS[0], "dicom", "lab")]
        out.submit("lab", put_of(KEYS[0]))
    assert waits[-1] > 100
    Script.lanes["lab"].answer()
    list(out.answers(now))
    out.submit("lab", put_of(KEYS[1]))
    Script.lanes["lab"].answer(AWAY)
    list(out.answers(now))
    due = out.outages.next
    assert due is not None
    assert due - now < 6


def test_a_target_that_does_not_move_is_told_of_before_it_is_given_up(out: Outlets) -> None:
    Script.lanes["lab"].silent = 29.0
    assert out.problems() == []
    Script.lanes["lab"].silent = 31.0
    assert out.problems() == ["target lab has not moved for more than 30 s: does its mount hang?"]


def test_a_target_whose_worker_has_not_come_is_told_of_and_asked_when_it_does(out: Outlets) -> None:
    lane = Script.lanes["lab"]
    lane.lacks = "the worker of lab has not come"
    assert out.problems() == [lane.lacks]
    out.submit("lab", put_of("a" * 32))
    lane.answer(Later(lane.lacks, away=True))
    list(out.answers(0.0))
    out.due(0.0)
    assert lane.checks == []
    lane.came = True
    out.due(0.1)
    assert len(lane.checks) == 1


def test_what_was_done_is_on_its_way_until_its_answer_is_taken(out: Outlets) -> None:
    for key in KEYS[:2]:
        out.submit("lab", put_of(key))
        Script.lanes["lab"].answer()
    answers = out.answers(0.0)
    next(answers)  # whoever takes it looks what else is owed, and has no receipt of the second yet
    assert [out.busy((key, "dicom", "lab"), 1) for key in KEYS[:2]] == [False, True]
    next(answers)
    assert not out.busy((KEYS[1], "dicom", "lab"), 1)


def test_a_revision_grows_the_receipt_of_the_one_before_and_not_what_was_known_earlier(out: Outlets) -> None:
    """Else what the lab edited of that one would be somebody else's, and what this one has no more would stay."""
    errand, lane = (KEYS[0], "dicom", "lab"), Script.lanes["lab"]
    out.submit("lab", put_of(KEYS[0], 1))
    out.submit("lab", put_of(KEYS[0], 2))
    assert [put.revision for put in lane.held] == [2]  # while it only waits the next one takes its place
    at_work = lane.begin()
    out.submit("lab", put_of(KEYS[0], 3))
    assert lane.held == []
    lane.report(at_work, Done(at_work.folder, ()))
    out.submit("lab", put_of(KEYS[0], 3))
    assert lane.held == []  # nobody has taken the answer yet, and so nobody has its receipt
    assert [put.revision for _, put, _ in out.answers(0.0)] == [2]
    assert not out.busy(errand, 3)
    out.submit("lab", put_of(KEYS[0], 3))
    assert [put.revision for put in lane.held] == [3]
    lane.report(lane.begin(), AWAY)
    list(out.answers(0.0))
    assert out.busy(errand, 3)  # it waits for the end of the outage


def test_a_person_who_mended_it_need_not_wait(out: Outlets) -> None:
    out.submit("lab", put_of(KEYS[0]))
    Script.lanes["lab"].answer(AWAY)
    list(out.answers(100.0))
    out.try_all_now()
    out.due(100.0)
    assert len(Script.lanes["lab"].checks) == 1


def test_other_settings_end_the_outage_and_lose_no_errand(out: Outlets) -> None:
    out.submit("lab", put_of(KEYS[0]))
    out.submit("lab", put_of(KEYS[1]))
    Script.lanes["lab"].answer(AWAY)
    list(out.answers(0.0))
    out.submit("other", put_of(KEYS[2]))
    out.configure({"lab": Outlet(PATH, {"root": "/elsewhere"}), "other": Outlet(PATH, {"root": "/there"})})
    assert "lab" not in out.outages
    assert sorted(out.due(0.0)) == [(KEYS[0], "dicom", "lab"), (KEYS[1], "dicom", "lab")]
    assert not out.busy((KEYS[2], "dicom", "other"), 1)  # what the old lane was to do is asked for anew


def test_refused_is_asked_again_by_itself(out: Outlets) -> None:
    out.submit("lab", put_of(KEYS[0]))
    Script.lanes["lab"].answer(Refused("move it away"))
    list(out.answers(0.0))
    assert "lab" not in out.outages
    assert out.due(6.0) == [(KEYS[0], "dicom", "lab")]


def test_a_real_folder_that_goes_and_comes_back(spool: Spool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    content, folder = b"an image", spool.unit_folder(KEYS[0]) / "images" / "00"
    folder.mkdir(parents=True)
    (folder / "1.dcm").write_bytes(content)
    wanted = Wanted("1.dcm", hashlib.sha256(content).hexdigest(), len(content), "00/1.dcm")
    put = Put("1", KEYS[0], "dicom", 1, "S1", (wanted,))
    out = Outlets(spool, lambda: None)
    try:
        out.configure({"lab": Outlet(PATH, {"root": str(root)}, stay=True)})
        out.submit("lab", put)
        [(_, _, result)] = wait_until(lambda: list(out.answers(0.0)))
        assert isinstance(result, Later)
        assert result.away
        assert "sorter check --targets" in result.why
        mark(root, Files())
        due = wait_until(lambda: out.due(1000.0))
        assert due == [(KEYS[0], "dicom", "lab")]
        out.submit("lab", put)
        [(_, _, result)] = wait_until(lambda: list(out.answers(0.0)))
        assert isinstance(result, Done)
        assert (root / "S1" / "1.dcm").read_bytes() == content
    finally:
        out.stop(5.0)


class Waited(threading.Thread):
    """Whose end somebody may wait for."""

    waited = threading.Event()

    def join(self, timeout: float | None = None) -> None:
        Waited.waited.set()
        super().join(timeout)


def test_what_is_removed_does_not_come_from_the_lane_of_before(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on its way when the target gets other settings, and its worker has not begun yet."""
    root, begun = tmp_path / "root", list[str]()
    root.mkdir()
    mark(root, Files())
    content, folder = b"an image", spool.unit_folder(KEYS[0]) / "images" / "00"
    folder.mkdir(parents=True)
    (folder / "1.dcm").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    put = Put("1", KEYS[0], "dicom", 1, "S1", (Wanted("1.dcm", digest, len(content), "00/1.dcm"),))
    receipt = Receipt(KEYS[0], "dicom", "lab", 1, "S1", (Delivered("1.dcm", digest, len(content), "00/1.dcm"),), "")
    out = Outlets(spool, lambda: None)

    def start(*given: Any, **more: Any) -> Any:
        begun.append("worker")
        if len(begun) == 1:
            wait_until(lambda: Waited.waited.is_set() or out._removals)
        return start_worker(*given, **more)

    monkeypatch.setattr(workers, "start_worker", start)
    monkeypatch.setattr(room, "threading", SimpleNamespace(Thread=Waited))
    try:
        out.configure({"lab": Outlet(PATH, {"root": str(root)}, stay=True)})
        out.submit("lab", put)
        wait_until(lambda: begun)
        out.configure({"lab": Outlet(PATH, {"root": str(root), "threads": 2}, stay=True)})
        out.remove(receipt)
        [(_, result)] = wait_until(lambda: list(out.removals(0.0)))
        assert isinstance(result, Removed)
        assert result.removed == ("1.dcm",)
        assert not (root / "S1").exists()
    finally:
        Waited.waited.set()
        out.stop(5.0)


# --- the whole --------------------------------------------------------------------------------------------------------


def status(sorter: RunningSorter) -> dict[str, Any]:
    command = [sys.executable, "-m", "sorter", "status", "--json", "--root", str(sorter.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_status_says_what_waits_and_why_over_a_restart_and_retry_delivers(tmp_path: Path) -> None:
    with RunningSorter(tmp_path / "root") as sorter:
        marker = sorter.labs / "unassigned" / ".sorter"
        wait_until(lambda: (marker / "id").exists())
        marker.rename(marker.with_name("away"))
        series = localizer(Plan(seed=3, size=8))
        for number, image in enumerate(series.files):
            (sorter.spool.incoming / f"{number}.dcm").write_bytes(image)
        [target] = wait_until(lambda: status(sorter)["targets"], 30)
        assert target["target"] == "unassigned"
        assert target["waiting"] > 0
        assert "marker .sorter/id is missing" in target["why"]
        wait_until(lambda: [each["why"] for each in status(sorter)["waiting"]] == [target["why"]], 30)
        sorter.kill()
        sorter.start()
        assert status(sorter)["targets"][0]["since"] == target["since"]
        assert not marker.exists()  # it was made once: now its absence says that the mount is away
        marker.with_name("away").rename(marker)
        subprocess.run([sys.executable, "-m", "sorter", "retry", "--root", str(sorter.root)], check=True, timeout=60)
        sorter.wait_delivered(len(series.files))
        wait_until(lambda: not status(sorter)["targets"])
