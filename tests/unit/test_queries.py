"""Which series are asked about, when, and how often: the times of `Queries`, without a network."""

from __future__ import annotations

import dataclasses
import datetime
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.completion import AssociationEnded, Published, step
from sorter.config import Node
from sorter.durable import Files
from sorter.model import Instance, Revision, Source, UnitKind, Verdict, unit_key
from sorter.pipeline.queries import LONGEST, RETRIES, Answer, Case, Queries, Question
from sorter.pipeline.units import Live, arrival
from sorter.spool import Spool, Unit
from sorter.spool.unit import Asked, took
from sorter.testing.waiting import wait_until

GE = Source("GE750", "SORTER", "dicom://10.1.2.3:4711", association="a1")
PRISMA = Source("PRISMA", "SORTER", "dicom://10.1.2.4:4711", association="a2")
NODES = {GE.sender: Node("GE750", "10.1.2.3", 104), PRISMA.sender: Node("PACS", "10.9.9.9", 104)}
QUIET = 30.0


class Site:
    """Units, senders that are connected or not, and nodes that answer when the test lets them."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.nodes = dict(NODES)
        self.connected: list[Source] = []
        self.asked: list[Question] = []
        self.answer = Answer(frozenset({"1.2.3.1"}))
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.woken = threading.Event()
        self.queries = Queries(lambda sender: self.nodes.get(sender), self._ask, lambda: self.connected, self.woken.set)

    def _ask(self, question: Question) -> Answer:
        self.asked.append(question)
        self.may_answer.wait(20)
        return self.answer

    def series(self, number: int = 3, source: Source = GE) -> Live:
        key = unit_key(UnitKind.SERIES, "1.2", f"1.2.{number}")
        unit = Unit(self.spool, key, "1.2")
        self.spool.files.make_folders(unit.folder)
        return Live(unit, senders={source.sender: None})

    def image(self, live: Live, number: int, now: float, source: Source = GE) -> None:
        name = f"1.2.3.{number}"
        instance = Instance(
            study_uid="1.2", series_uid="1.2.3", sop_uid=name, sop_class="1.2", transfer_syntax="1.2",
            file=f"00/{number}.dcm", size=1, sha256="a", dataset=name, pixels="b",
            arrived="2026-01-02T10:00:00", source=source, header={"PatientID": "P1"},
        )  # fmt: skip
        live.unit.add_evidence([took(instance)])
        live.unit.admit(instance)
        live.state, _ = step(live.state, arrival(instance), now)
        self.queries.consider(live, QUIET, now)

    def publish(self, live: Live, verdict: Verdict, now: float, made: datetime.datetime | None = None) -> None:
        when = (made or datetime.datetime.now().astimezone()).isoformat(timespec="seconds")
        live.revision = Revision(live.key, UnitKind.SERIES, 1, when, verdict, (), tuple(live.unit.instances.values()))
        live.state, _ = step(live.state, Published(1, verdict), now)
        self.queries.consider(live, QUIET, now)

    def begin(self, live: Live, now: float) -> bool:
        """Ask what is due; was it about this unit?"""
        due = list(self.queries.due(QUIET, now))
        for key, sender in due:
            assert key == live.key
            self.queries.begin(live, sender)
        return bool(due)

    def answers(self, now: float) -> list[tuple[Case, Answer]]:
        wait_until(self.woken.is_set, 10, "an answer")
        self.woken.clear()
        return list(self.queries.answers(now))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    site = Site(spool)
    yield site
    site.may_answer.set()


def test_a_series_is_asked_about_once_it_is_silent(site: Site) -> None:
    live = site.series()
    site.image(live, 1, 0)
    site.image(live, 2, 10)
    assert live.asking
    assert not site.begin(live, 39)
    assert site.begin(live, 40)
    [(case, answer)] = site.answers(41)
    assert (case.key, case.sender, case.images, answer) == (live.key, GE.sender, 2, site.answer)
    [question] = site.asked
    assert question == Question(NODES[GE.sender], "1.2", ("1.2.3",), "P1")


def test_what_was_answered_is_not_asked_again_until_more_comes(site: Site) -> None:
    live = site.series()
    site.image(live, 1, 0)
    live.unit.note_asked(GE.sender, Asked(1))
    site.publish(live, Verdict.QUIET, 30)
    assert not live.asking
    assert not site.begin(live, 100)
    loaded = dataclasses.replace(live, unit=Unit.load(site.spool, live.key))
    site.queries.consider(loaded, QUIET, 100)
    assert not loaded.asking
    site.image(live, 2, 200)
    assert live.asking
    assert site.begin(live, 230)


@pytest.mark.parametrize(
    ("verdict", "wanted"),
    [
        (Verdict.LISTED, False),
        (Verdict.COUNTED, False),
        (Verdict.QUIET, True),
        (Verdict.STOPPED, True),
        (Verdict.INCOMPLETE, True),
    ],
)
def test_only_a_verdict_by_silence_is_asked_about(site: Site, verdict: Verdict, wanted: bool) -> None:
    live = site.series()
    site.image(live, 1, 0)
    site.publish(live, verdict, 2)
    assert live.asking is wanted
    assert site.begin(live, 100) is wanted


def test_old_series_are_left_to_people(site: Site) -> None:
    live = site.series()
    site.image(live, 1, 0)
    site.publish(live, Verdict.QUIET, 30, datetime.datetime.now().astimezone() - datetime.timedelta(days=2))
    assert not live.asking
    site.queries.again(live, 40)
    site.queries.consider(live, QUIET, 40)
    assert live.asking
    assert site.begin(live, 40)


def test_nothing_is_asked_while_the_sender_is_connected_or_sends_something_else(site: Site) -> None:
    live, other = site.series(), site.series(4)
    site.image(live, 1, 0)
    site.connected = [dataclasses.replace(GE, association="another")]
    assert not site.begin(live, 100)
    site.connected = [PRISMA]  # somebody else
    site.image(other, 1, 99)
    assert not site.begin(live, 101)
    assert {key for key, _ in site.queries.due(QUIET, 129)} == {live.key}


def test_one_question_at_a_time_goes_to_each_node(site: Site) -> None:
    site.may_answer.clear()
    first, second, third = site.series(), site.series(4), site.series(5, PRISMA)
    for live, source in ((first, GE), (second, GE), (third, PRISMA)):
        site.image(live, 1, 0, source)
    lives = {live.key: live for live in (first, second, third)}
    due = list(site.queries.due(QUIET, 50))
    assert sorted(sender for _, sender in due) == sorted([GE.sender, PRISMA.sender])
    for key, sender in due:
        site.queries.begin(lives[key], sender)
    assert list(site.queries.due(QUIET, 60)) == []


def test_a_few_tries_are_all_and_each_waits_longer(site: Site) -> None:
    live = site.series()
    site.image(live, 1, 0)
    site.answer = Answer(why="nothing answers")
    now = 30.0
    for pause in RETRIES:
        assert site.begin(live, now)
        assert site.answers(now) == []
        assert not site.begin(live, now + pause - 1)
        now += pause
    assert site.begin(live, now)
    [(case, answer)] = site.answers(now)
    assert (case.images, answer.why, len(site.asked)) == (1, "nothing answers", 1 + len(RETRIES))
    live.unit.note_asked(case.sender, Asked(case.images, answer.why))
    site.queries.consider(live, QUIET, now)
    assert not site.begin(live, now + 1e6)


def test_a_fault_of_ours_is_a_failure_like_others(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    live = site.series()
    site.image(live, 1, 0)
    site.answer = None  # type: ignore[assignment]
    site.queries.ask = lambda _: {}["no such key"]
    assert site.begin(live, 30)
    assert site.answers(30) == []
    assert "by a fault of ours" in caplog.text


def test_a_sender_that_is_never_silent_is_given_up_after_a_day(site: Site) -> None:
    live = site.series()
    site.image(live, 1, 0)
    site.connected = [GE]
    assert not site.begin(live, LONGEST)
    assert not site.begin(live, LONGEST + 1)
    [(case, answer)] = site.queries.answers(LONGEST + 1)
    assert (case.key, answer.why) == (live.key, "GE750@10.1.2.3 was never without an association for a day")


def test_a_new_configuration_counts_at_once(site: Site) -> None:
    live = site.series()
    site.image(live, 1, 0)
    site.nodes[GE.sender] = Node("OTHER", "10.1.2.3", 11112)
    assert site.begin(live, 30)
    [_] = site.answers(30)
    assert site.asked[0].node.ae == "OTHER"
    again = site.series(4)
    site.image(again, 1, 50)
    site.nodes.clear()
    assert not site.begin(again, 100)
    assert list(site.queries.due(QUIET, 1e6)) == []


def test_a_wait_after_an_abort_or_a_learned_pause_holds_for_questions_too(site: Site) -> None:
    live = site.series()
    site.image(live, 1, 0)
    live.state, _ = step(live.state, AssociationEnded("a1", "aborted"), 1)
    site.queries.consider(live, 300, 1)
    assert not site.begin(live, 299)
    assert site.begin(live, 300)
