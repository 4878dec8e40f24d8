"""When a study settles, and what a lab may expect of it: the pure parts."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sorter.cli.main import sorter
from sorter.completion import Timing
from sorter.completion.studies import RETURNS, Moves, StudyState, came, ended, left, settles
from sorter.config import load
from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.expected import ExpectedSeries, missing_of
from sorter.exports.source import of_lab, study_of
from sorter.labs.news import News
from sorter.model import Event, Missing, Study, StudySeries, UnitKind, build, plain, unit_key
from sorter.pipeline.studies import MOST_ROWS, READ_STEP, Studies
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.alarms import AlarmFile, AlarmState, Raised
from sorter.spool.labs import LabRecords
from sorter.spool.studies import Overview, StudyRecord, StudyRecords, study_key

TIMING = Timing(quiet=30, cap=900, study=1200)
ONE, OTHER = "MR1@10.0.0.1 4711", "MR1@10.0.0.1 4712"


def sent(*senders: str, association: str = "") -> StudyState:
    """An image of each, at 100 s."""
    state = StudyState(100.0)
    for each in senders:
        state = came(state, each, association, 100.0, TIMING)
    return state


# --- when -----------------------------------------------------------------------------------------------------------


def test_silence_settles_a_study() -> None:
    assert settles(sent(ONE), Moves(), TIMING).due == 1300
    assert settles(sent(ONE), Moves(), TIMING).why == "nothing came of it for 20 min"
    assert settles(came(sent(ONE), ONE, "", 500, TIMING), Moves(), TIMING).due == 1700


def test_a_sender_that_went_on_settles_it_sooner() -> None:
    found = settles(left(sent(ONE), ONE, 110), Moves(), TIMING)
    assert (found.due, found.why) == (130, "its sender went on to another study")


def test_all_who_brought_some_of_it_have_to_go_on() -> None:
    state = left(sent(ONE, OTHER), ONE, 110)
    assert settles(state, Moves(), TIMING).due == 1300
    assert settles(left(state, OTHER, 120), Moves(), TIMING).due == 130


def test_what_was_dropped_or_came_in_an_earlier_life_is_left_by_nobody() -> None:
    assert settles(left(sent(ONE, ""), ONE, 110), Moves(), TIMING).due == 1300
    assert settles(replace(left(sent(ONE), ONE, 110), unseen=True), Moves(), TIMING).due == 1300


def test_an_open_association_is_waited_for_as_long_as_for_a_series() -> None:
    timing = replace(TIMING, study=60)
    state = sent(ONE, association="a")
    assert settles(state, Moves(), timing).due == 1000
    assert settles(ended(state, "a"), Moves(), timing).due == 160


def test_a_sender_that_comes_back_is_not_believed_until_it_left_others_for_good() -> None:
    state = came(left(sent(ONE), ONE, 110), ONE, "", 200, TIMING)
    assert state.returned == {ONE}
    moves = Moves()
    moves.come_back(ONE)
    gone = left(sent(ONE), ONE, 110)
    for _ in range(RETURNS):
        assert settles(gone, moves, TIMING).due == 1300
        moves.learn([ONE], [])
    assert settles(gone, moves, TIMING).due == 130
    moves.learn([ONE], [ONE])
    assert settles(gone, moves, TIMING).due == 1300


def test_two_associations_that_overlap_are_no_coming_back() -> None:
    state = came(left(sent(ONE), ONE, 110), ONE, "", 120, TIMING)
    assert not state.returned
    assert settles(state, Moves(), TIMING).due == 1320


def test_only_the_sender_itself_leaves_a_study() -> None:
    moves = Moves()
    assert moves.came("a", ONE) is None
    assert moves.came("b", OTHER) is None
    assert moves.came("a", ONE) is None
    assert moves.came("b", ONE) == "a"
    moves.forget("b", [ONE, OTHER])
    assert moves.came("c", ONE) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([ONE, OTHER, ""]), st.floats(0, 2000)), min_size=1))
def test_never_before_the_quiet_time_and_never_later_than_the_longest(steps: list[tuple[int, str, float]]) -> None:
    state, now, last = StudyState(0.0), 0.0, 0.0
    for what, sender, pause in steps:
        now += pause
        if what == 0:
            state, last = came(state, sender, "a" if pause > 1000 else "", now, TIMING), now
        elif what == 1:
            state = left(state, sender, now) if sender in state.senders else state
        else:
            state = ended(state, "a")
        assert last + TIMING.quiet <= settles(state, Moves(), TIMING).due <= last + TIMING.study


# --- a study of two labs ----------------------------------------------------------------------------------------------

MIXED = Study(
    "key", "1.2", 1, "memory", "P1", "20260102",
    series=(StudySeries("a", "1", "T1", 3, "quiet", 1, "memory", "P1"), StudySeries("b", "2", "T2", 4, "quiet", 1),
            StudySeries("c", "3", "T3", 5, "quiet", 1, "vision", "V7")),
    missing=(Missing("memory", "rest", 1, 0, "expected rest"), Missing("vision", "dots", 1, 0, "expected dots")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("lab", "subject", "series", "missing"), [("memory", "P1", ["a"], ["rest"]), ("vision", "V7", ["c"], ["dots"])]
)
def test_each_lab_sees_its_own_part_of_a_study(lab: str, subject: str, series: list[str], missing: list[str]) -> None:
    part = study_of(MIXED, of_lab(lab))
    assert (part.lab, part.subject) == (lab, subject)
    assert ([each.key for each in part.series], [each.series for each in part.missing]) == (series, missing)
    assert study_of(MIXED, of_lab("other")) == replace(MIXED, lab=None, subject=None, series=(), missing=())


def test_each_lab_hears_of_its_own_part_of_a_study(tmp_path: Path) -> None:
    records = LabRecords(tmp_path, Files())
    News(records, lambda _: None).heed(Event("study_settled", "key", "2026-01-02T10:11", {"lab": "memory"}, MIXED))
    assert {lab: records.read_page(lab, "NEWS.txt").decode() for lab in ("memory", "vision")} == {
        "memory": "2026-01-02 10:11  P1 of 2026-01-02: 1 series, 3 images; missing: expected rest\n",
        "vision": "2026-01-02 10:11  V7 of 2026-01-02: 1 series, 5 images; missing: expected dots\n",
    }


# --- what is expected -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "glob", "times"),
    [("T1*", "T1*", 1), (" rest* x2 ", "rest* ", 2), ("rest*  ×3", "rest*", 3), ("T2 xspace", "T2 xspace", 1),
     ("fMRI x1", "fMRI", 1), ("ax [x]2", "ax [x]2", 1), ("x*", "x*", 1)],
)  # fmt: skip
def test_what_can_be_expected(text: str, glob: str, times: int) -> None:
    assert ExpectedSeries.parse(text) == ExpectedSeries(glob.strip(), times)
    assert ExpectedSeries.parse(str(ExpectedSeries.parse(text))) == ExpectedSeries.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "names no series"), ("  ", "names no series"), ("x2", "names no series"), ("rest* x0", "whole number"),
     ("rest* x", "whole number"), ("rest* x-1", "whole number"), ("rest* x1.5", "whole number"),
     ("rest* x101", "whole number"), ("rest* x2*", "whole number"), ("rest* x٢", "whole number"),
     ("rest[ab", "never closed"), ("a\0b", "control character")],
)  # fmt: skip
def test_what_cannot(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ExpectedSeries.parse(text)


def series(*descriptions: str, verdict: str = "quiet") -> list[StudySeries]:
    return [StudySeries("k", str(number), each, 3, verdict, 1, "memory") for number, each in enumerate(descriptions)]


def says(expected: str, *found: StudySeries) -> list[str]:
    return [each.says for each in missing_of("memory", [ExpectedSeries.parse(expected)], found)]


def test_what_is_missing_is_said_in_words() -> None:
    assert says("rest* x2", *series("rest_1")) == ["expected rest* twice, came once"]
    assert says("rest* x2", *series("REST_1", "Rest_2")) == []
    assert says("rest* x2", *series("rest_1", "rest_2", "rest_3")) == []
    assert says("T1*", *series("rest_1")) == ["expected T1*, which did not come"]
    assert says("dwi x3", *series("DWI", "dwi ")) == ["expected dwi 3 times, came twice"]
    assert missing_of("memory", [ExpectedSeries("T1*")], []) == (
        Missing("memory", "T1*", 1, 0, "expected T1*, which did not come"),
    )


def test_a_run_that_was_stopped_is_not_what_was_expected() -> None:
    stopped = series("rest_1", verdict="stopped")
    assert says("rest*", *stopped, *series("rest_1")) == []
    assert says("rest*", *stopped) == ["expected rest*, came only once stopped or with holes"]
    assert says("rest* x2", *stopped, *series("rest_1")) == [
        "expected rest* twice, came once, and once stopped or with holes"
    ]


# --- as it is kept --------------------------------------------------------------------------------------------------


def test_a_record_and_an_event_are_read_back_as_they_were_written() -> None:
    missing = missing_of("memory", [ExpectedSeries("T1*")], [])
    study = Study("k", "1.2", 2, "memory", "P1", "20260102", "101112", "4711", tuple(series("rest")), missing)
    record = StudyRecord(study, {"a": 1}, "2026-01-02T10:00:00+01:00", "why", True, (ONE,), (OTHER,))
    assert build(StudyRecord, plain(record)) == record
    event = Event("study_settled", "k", "2026", {"revision": "2"}, study)
    assert build(Event, plain(event)) == event
    assert study.images == 3


def test_the_words_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "sorter.toml"
    path.write_text('[sorter]\nroot = "r"\n[labs.m]\nexpect = ["T1*",\n  "rest* x0"]\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    where, _, says = caught.value.faults[0].partition(": in ")
    assert where == "sorter.toml:5: labs.m.expect.1"
    assert says == '"rest* x0" there should be a whole number from 1 to 100 behind the x, as "rest* x2"'
    path.write_text('[sorter]\nroot = "r"\n[labs.m]\nexpect = ["T1*", " rest*  x2"]\n[completion]\nstudy = 600\n')
    config = load(path)
    assert config.labs["m"].expect == ("T1*", "rest* x2")
    assert config.completion.study == 600


# --- as people see it -----------------------------------------------------------------------------------------------


def test_status_and_why_of_a_study(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    key = unit_key(UnitKind.SERIES, "1.2", "1.2.3")
    unit = Unit(spool, key, "1.2")
    spool.files.make_folders(unit.folder)
    unit.write_summary(UnitSummary(key, UnitKind.SERIES, "1.2", ("1.2.3",), "delivered", subject="P1", revision=1))

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(sorter, [*arguments, "--root", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "Its study has not settled yet." in said("why", "P1")
    missing = missing_of("memory", [ExpectedSeries.parse("rest* x2")], series("rest"))
    study = Study(study_key("1.2"), "1.2", 2, "memory", "P1", "20260102", series=tuple(series("rest")), missing=missing)
    today = datetime.datetime.now().isoformat(timespec="seconds")
    record = StudyRecord(study, {key: 1}, today, "nothing came of it for 20 min", told=True)
    records = StudyRecords(spool.studies, spool.files)
    records.write(record)
    records.write_overview(Overview(("a", "b"), (record, replace(record, at="2020-01-01T10:00:00"))))
    at = today.replace("T", " ")
    settled = f"Its study settled on {at}, for the 2nd time, with 1 series: nothing came of it for 20 min."
    assert settled in said("why", "P1")
    assert "The lab memory expected rest* twice, came once." in said("why", "P1")
    unit.write_summary(UnitSummary(key, UnitKind.SERIES, "1.2", ("1.2.3",), "delivered", subject="P1", revision=2))
    assert "More of the study came since; it has not settled again yet." in said("why", "P1")

    alarms = AlarmState("", 0.0, 0.0, raised={"silent A": Raised("A has sent nothing for 8 h", today)})
    AlarmFile(spool.alarms, spool.files).write(alarms)
    status = said("status")
    assert "     2 studies wait to settle" in status
    assert status.count("P1 20260102: memory expected rest* twice, came once") == 1, "that of years ago is not told"
    assert "now: A has sent nothing for 8 h" in status
    assert json.loads(said("status", "--json"))["alarms"] == [{"says": "A has sent nothing for 8 h", "at": today}]


# --- of any size ----------------------------------------------------------------------------------------------------


class Counting(StudyRecords):
    """Records that say how often one was read."""

    reads = 0

    def read(self, key: str) -> StudyRecord | None:
        self.reads += 1
        return super().read(key)


def test_a_study_of_very_many_series_takes_many_short_turns_and_says_what_its_table_shows(tmp_path: Path) -> None:
    many = 3 * MOST_ROWS
    known = {
        f"{number:032x}": UnitSummary(
            f"{number:032x}", UnitKind.SERIES, "1.2.3", (f"1.2.3.{number}",), "delivered", number=str(number),
            images=1, revision=1, lab="memory", senders=("SCANNER",),
        )
        for number in range(1, many + 1)
    }  # fmt: skip

    def life() -> tuple[Studies, Counting, list[str], list[StudyRecord]]:
        records, read, told = Counting(tmp_path / "studies", Files()), list[str](), list[StudyRecord]()
        made = Studies(records, Timing(), lambda _: None, lambda key: read.append(key) or known[key], told.append)
        return made, records, read, told

    StudyRecords(tmp_path / "studies", Files()).begin()
    studies, records, read, told = life()
    for summary in known.values():
        studies.remember(summary, 0.0)
    turns = 0
    while not told:
        before = len(read)
        studies.turn(10_000.0, walked=True)
        assert len(read) - before <= READ_STEP
        turns += 1
    assert turns == many // READ_STEP
    (record,) = told
    assert len(record.members) == many
    assert [each.number for each in record.study.series] == [str(number) for number in range(1, MOST_ROWS + 1)]
    assert f"its table shows {MOST_ROWS:,} of its {many:,} series" in record.why
    studies, records, read, told = life()  # after a restart
    for summary in known.values():
        studies.remember(summary, 0.0)
    assert records.reads == 1
    studies.turn(10_000.0, walked=True)
    assert (read, told) == ([], [])
