"""A count has to earn trust, and loses it at once."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.model import Expectation
from sorter.structure import Structure, structure_of
from sorter.trust import KEPT, MOST_LIKES, Ledger, Like, Outcome, judged, like_of, order

HEADER: dict[str, Any] = {
    "Manufacturer": "SIEMENS", "SoftwareVersions": ("27", "LX"), "SequenceName": "epfid2d1_72", "PatientID": "P1",
}  # fmt: skip
LIKE = Like("siemens", "27\\LX", "epfid2d1_72", "expectations/siemens mosaic")


def outcome(number: int, expected: int = 300, came: int = 300, key: str = "") -> Outcome:
    return Outcome(f"2026-11-{number:02d}T10:00:00+01:00", key or f"unit{number}", expected, came)


def test_what_counts_have_in_common() -> None:
    assert like_of(HEADER, "expectations", Expectation(300, rule="siemens mosaic")) == LIKE
    assert like_of({}, "mine", Expectation(300)) == Like("", "", "", "mine")
    xa = {**HEADER, "PulseSequenceName": "*epfid2d1_64", "Manufacturer": "Siemens Healthineers"}
    assert like_of(xa, "mine", Expectation(1)) == Like("siemens healthineers", "27\\LX", "*epfid2d1_64", "mine")
    assert len(like_of({"Manufacturer": "x" * 5000}, "mine", Expectation(1)).vendor) == 200
    assert str(LIKE) == "expectations/siemens mosaic for siemens, 27\\LX, epfid2d1_72"


def test_trust_comes_with_the_third_right_count_in_a_row() -> None:
    ledger = Ledger()
    assert [ledger.note(LIKE, outcome(each)) for each in (1, 2)] == ["", ""]
    assert not ledger.trusted(LIKE)
    assert ledger.note(LIKE, outcome(3)) == f"{LIKE}: right 3 times in a row; from now on it counts"
    assert ledger.trusted(LIKE)
    other = Like("siemens", "XA30", LIKE.sequence, LIKE.rule)
    assert not ledger.trusted(other)
    assert ledger.note(LIKE, outcome(4)) == ""


def test_a_wrong_count_loses_it_at_once_and_is_reported() -> None:
    ledger = Ledger()
    for each in range(1, 9):
        ledger.note(LIKE, outcome(each))
    said = ledger.note(LIKE, outcome(9, 300, 301))
    assert said == f"{LIKE}: it said 300 images, 301 came; it counts again once it was right 3 times in a row"
    assert not ledger.trusted(LIKE)
    assert [ledger.note(LIKE, outcome(each)) for each in (10, 11)] == ["", ""]
    assert not ledger.trusted(LIKE)
    ledger.note(LIKE, outcome(12))
    assert ledger.trusted(LIKE)


def test_a_later_word_on_a_unit_takes_the_place_of_the_earlier() -> None:
    ledger = Ledger()
    for each in (1, 2):
        ledger.note(LIKE, outcome(each))
    ledger.note(LIKE, outcome(3, came=150))
    assert not ledger.trusted(LIKE)
    ledger.note(LIKE, outcome(3))  # the rest came after all
    assert ledger.trusted(LIKE)
    ledger.note(LIKE, outcome(1))  # the same unit again is no further time
    assert len(ledger.likes[LIKE]) == 3
    ledger.forget(LIKE, "unit3")
    assert not ledger.trusted(LIKE)
    for each in (1, 2):
        ledger.forget(LIKE, f"unit{each}")
    assert ledger == Ledger()


def test_what_a_clock_in_the_future_wrote_is_not_the_latest_for_ever() -> None:
    ledger, now = Ledger(), datetime.datetime.fromisoformat("2026-11-20T00:00:00+01:00").timestamp()
    for each in range(1, 4):
        ledger.note(LIKE, Outcome(f"2036-11-0{each}T10:00:00+01:00", f"unit{each}", 300, 300))
    assert ledger.trusted(LIKE)
    ledger.note(LIKE, outcome(4, came=150), now)
    assert not ledger.trusted(LIKE)
    ledger.forget(LIKE, "another")
    assert not ledger.trusted(LIKE)


def test_times_are_in_order_over_the_end_of_summer_time() -> None:
    before, after = "2026-10-25T02:50:00+02:00", "2026-10-25T02:10:00+01:00"
    assert order(before) < order(after)
    assert order("no time") < order(before)
    assert order("0001-01-01T00:00:00")[0] == 0.0  # before what can be counted


def structure(kind: str) -> Structure:
    whole = [{"InstanceNumber": each} for each in range(1, 11)]
    return structure_of({"whole": whole, "hole": whole[:3] + whole[4:], "unknown": whole[:1]}[kind])


@pytest.mark.parametrize(
    ("expected", "came", "kind", "right"),
    [
        (10, 10, "whole", True),
        (10, 10, "unknown", True),
        (12, 10, "whole", False),
        (12, 10, "unknown", False),
        (12, 10, "hole", None),
        (8, 10, "whole", False),
        (8, 10, "hole", False),
    ],
)
def test_what_makes_a_count_right(expected: int, came: int, kind: str, right: bool | None) -> None:
    assert judged(expected, structure(kind), came) is right


OUTCOMES = st.builds(
    lambda day, key, came: (key, Outcome(f"2026-01-{day:02d}", f"u{key}", 9, came)),
    st.integers(1, 28),
    st.integers(0, 40),
    st.sampled_from([9, 9, 9, 8]),
)


@given(st.dictionaries(st.integers(0, 40), OUTCOMES), st.randoms())
def test_the_order_of_noting_changes_nothing(found: dict[int, Any], shuffled: Any) -> None:
    notes = [(Like("v", "s", "q", f"r{key % 2}"), each) for key, (_, each) in found.items()]
    notes = list({each.key: (like, each) for like, each in notes}.values())
    one, other = Ledger(), Ledger()
    for like, each in notes:
        one.note(like, each)
    shuffled.shuffle(notes)
    for like, each in notes:
        other.note(like, each)
    assert one == other
    assert Ledger.of(json.loads(json.dumps(one.plain()))) == one
    assert all(len(outcomes) <= KEPT for outcomes in one.likes.values())


@pytest.mark.parametrize(
    "data", [{}, [1], [{"like": {}}], [{"like": {"vendor": 1}, "outcomes": []}], [{"like": 1, "outcomes": 2}]]
)
def test_anything_else_is_no_ledger(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        Ledger.of(data)


def test_invented_headers_do_not_fill_it() -> None:
    ledger = Ledger()
    for each in range(MOST_LIKES + 50):
        ledger.note(Like("v", "s", str(each), "r"), Outcome(f"2026-01-01T{each:06d}", str(each), 1, 1))
    assert len(ledger.likes) == MOST_LIKES
    assert Like("v", "s", "0", "r") not in ledger.likes
