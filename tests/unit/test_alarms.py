"""What should have come and did not: clocks that are set, days that have 23 hours, and what may be written."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.completion.alarms import BELIEVED, STEP, Times, Wall, last_due, long, overdue
from sorter.config import load
from sorter.errors import ConfigError
from sorter.expected import Daily, ExpectedDaily, span

NINE = ExpectedDaily(9, 0)
HOUR, DAY, DECADE = 3600.0, 86400.0, 3.15e8


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def both(text: str) -> Times:
    return Times(at(text), at(text))


# --- the clock ------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_along_is_followed_however_slowly_it_drifts() -> None:
    wall = Wall(1000.0)
    for number in range(1, 100):
        wall = wall.seen(1000.0 + number * 3600 + number * 30.0, number * 3600.0)
    assert wall.steady(99 * 3600.0) == 1000 + 99 * 3600 + 99 * 30


@pytest.mark.parametrize("step", [HOUR, -HOUR, DECADE, -DECADE, 61.0])
def test_a_clock_that_was_set_is_believed_after_it_went_on_evenly(step: float) -> None:
    wall = Wall(1000.0).seen(1000.0 + 10 + step, 10.0)
    assert wall.steady(10.0) == 1010
    wall = wall.seen(1000.0 + BELIEVED + step, BELIEVED)
    assert wall.steady(BELIEVED) == 1000 + BELIEVED
    wall = wall.seen(1010.0 + BELIEVED + step, 10 + BELIEVED)
    assert wall.steady(10 + BELIEVED) == 1010 + BELIEVED + step


def test_a_clock_that_is_set_back_was_right_all_the_time() -> None:
    wall = Wall(1000.0).seen(1000.0 + DECADE, 0.0).seen(1000.0 + HOUR, HOUR)
    assert wall == Wall(1000.0)


def test_one_that_is_set_again_and_again_is_not_believed() -> None:
    wall = Wall(0.0)
    for number in range(1, 20):
        wall = wall.seen(number * 4 * HOUR + number * 100, number * 4 * HOUR)
        assert wall.offset == 0 or number == 0


@given(st.lists(st.tuples(st.floats(1, DAY), st.sampled_from([0.0, 10.0, -10.0, HOUR, -HOUR, DECADE, -DECADE]))))
def test_the_steady_clock_jumps_only_after_the_other_was_even_for_long(steps: list[tuple[float, float]]) -> None:
    wall, boot, offset, set_at = Wall(0.0), 0.0, 0.0, -BELIEVED
    for pause, step in steps:
        boot += pause
        if abs(step) > STEP:
            set_at = boot
        offset += step
        before = wall.steady(boot)
        wall = wall.seen(boot + offset, boot)
        jumped = abs(wall.steady(boot) - before) > 3 * STEP
        assert not jumped or boot - set_at >= BELIEVED or wall.steady(boot) == boot + offset


# --- by nine o'clock ------------------------------------------------------------------------------------------------


def test_once_a_day_when_nothing_came() -> None:
    known = Daily(since=at("2026-11-20T12:00"))
    assert overdue(NINE, known, both("2026-11-26T08:59:59")) == "2026-11-25"
    assert overdue(NINE, known, both("2026-11-26T09:00")) == "2026-11-26"
    assert overdue(NINE, known.with_told("2026-11-26"), both("2026-11-26T09:01")) is None
    assert overdue(NINE, known.with_told("2026-11-26"), both("2026-11-27T09:00")) == "2026-11-27"
    assert overdue(NINE, known.with_came("2026-11-26"), both("2026-11-26T09:00")) is None


def test_not_of_a_time_before_it_was_expected() -> None:
    known = Daily(since=at("2026-11-26T14:00"))
    assert overdue(NINE, known, both("2026-11-26T14:00")) is None
    assert overdue(NINE, known, both("2026-11-27T09:00")) == "2026-11-27"


def test_both_clocks_have_to_be_past_it() -> None:
    known, early, late = Daily(since=at("2026-11-20T12:00")), at("2026-11-26T08:30"), at("2026-11-26T09:30")
    assert overdue(NINE, known, Times(wall=late, steady=early)) is None
    assert overdue(NINE, known, Times(wall=early, steady=late)) is None
    assert overdue(NINE, known, Times(wall=late + DECADE, steady=late)) is None
    assert overdue(NINE, known, Times(wall=late - DECADE, steady=late)) is None


def test_the_time_of_the_evening_is_not_lost_at_midnight() -> None:
    known = Daily(since=at("2026-11-20T12:00"), told=("2026-11-24",))
    assert overdue(ExpectedDaily(23, 58), known, both("2026-11-26T00:04")) == "2026-11-25"


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_a_day_with_23_or_25_hours_is_one_day(day: str) -> None:
    """Also of an hour that there is not, or twice."""
    for expected in (NINE, ExpectedDaily(2, 30), ExpectedDaily(0, 0), ExpectedDaily(23, 59)):
        known, told = Daily(since=at("2026-01-01T00:00")), []
        moment = at(f"{day}T00:00") - DAY / 2
        known = known.with_told(last_due(expected, moment).isoformat())
        while moment < at(f"{day}T00:00") + 2.4 * DAY:
            found = overdue(expected, known, Times(moment, moment))
            if found is not None:
                told.append(found)
                known = known.with_told(found)
            moment += 300
        assert told == sorted(set(told))
        assert day in told
        assert len(told) in (2, 3)


# --- what may be written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("09:00", NINE), ("9:00", NINE), (" 23:59 ", ExpectedDaily(23, 59)), ("9:00 PH*", ExpectedDaily(9, 0, "PH*"))],
)  # fmt: skip
def test_a_time_of_day(text: str, expected: ExpectedDaily) -> None:
    assert ExpectedDaily.parse(text) == expected
    assert ExpectedDaily.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "9", "24:00", "09:60", "09:00PHANTOM", "nine", "09:00:00", "٠٩:٠٠", "09:00 [a"])
def test_no_time_of_day(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time of day|is never closed"):
        ExpectedDaily.parse(text)


def test_spans() -> None:
    assert [span(text) for text in ("90m", "8h", " 3 d ", "60d")] == [5400, 28800, 259200, 5184000]
    for text in ("", "8", "h", "0h", "1s", "61d", "8.5h", "-8h", "8h30m"):
        with pytest.raises(ValueError, match="is no time; write minutes, hours or days"):
            span(text)
    assert [long(each) for each in (5400, 28800, 86400, 259200)] == ["90 min", "8 h", "24 h", "3 days"]


def test_faults_have_their_line(tmp_path: Path) -> None:
    path = tmp_path / "sorter.toml"
    path.write_text(
        '[sorter]\nroot = "r"\n[labs.qa]\nexpect_daily = "25:00"\n'
        '[[senders]]\nae = "A"\nsilent_after = "8 weeks"\n[[senders]]\nae = "B"\nsilent_after = 8\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [each.split('"')[0] for each in caught.value.faults] == [
        "sorter.toml:4: labs.qa.expect_daily: ",
        "sorter.toml:7: senders.0.silent_after: ",
        "sorter.toml:10: senders.1.silent_after: must be a time in quotes, as ",
    ]
    path.write_text(
        '[sorter]\nroot = "r"\n[labs.qa]\nexpect_daily = "9:00  PH*"\n[[senders]]\nae = "A"\nsilent_after = "8h"\n'
    )
    config = load(path)
    assert config.labs["qa"].expect_daily == "09:00 PH*"
    assert config.senders[0].silent_after == 28800
    assert config.with_receive(port=0).senders == config.senders
