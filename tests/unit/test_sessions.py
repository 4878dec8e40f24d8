"""A session split in two studies is proposed, and only where everything speaks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sorter.cli.main import sorter
from sorter.durable import Files
from sorter.model import UnitKind
from sorter.sessions import Split, split_sessions
from sorter.spool import Spool, Unit, UnitSummary


def unit(study: str, time: str, **changes: Any) -> UnitSummary:
    given = {"subject": "P1", "study_date": "20260314", "scanner": "175689", **changes}
    return UnitSummary(f"{study}-{time}", UnitKind.SERIES, study, (), "delivered", study_time=time, **given)


BOTH = [unit("1.1", "091500.25"), unit("1.1", "091500.25"), unit("1.2", "1020")]


def test_two_studies_of_one_morning() -> None:
    [split] = split_sessions(BOTH)
    assert split == Split("P1", "175689", "20260314", ("09:15", "10:20"), ("1.1", "1.2"))
    assert str(split) == (
        "P1 20260314: 2 studies, begun at 09:15 and 10:20 on scanner 175689, may be one session. Nothing is merged"
    )
    assert split_sessions(BOTH[::-1]) == [split]


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "P2"},
        {"subject": "no-id"},
        {"subject": None},
        {"scanner": "175690"},
        {"scanner": ""},
        {"study_date": "20260315"},
        {"study_date": ""},
    ],
)
def test_where_anything_differs_nothing_is_proposed(change: dict[str, Any]) -> None:
    assert split_sessions([BOTH[0], unit("1.2", "102000", **change)]) == []
    if None in change.values() or "no-id" in change.values() or "" in change.values():
        assert split_sessions([unit("1.1", "091500", **change), unit("1.2", "102000", **change)]) == []


@pytest.mark.parametrize("time", ["111500", "230000", "", "9:15", "morning", "256000", "0960", "09", "１０２０"])
def test_two_hours_apart_or_at_no_time_nothing_is_proposed(time: str) -> None:
    assert split_sessions([BOTH[0], unit("1.2", time)]) == []


def test_a_day_is_cut_where_two_hours_lie_between() -> None:
    times = ["080000", "095900", "115800", "140000", "150000", "200000"]
    found = split_sessions([unit(f"1.{number}", time) for number, time in enumerate(times)])
    assert [each.times for each in found] == [("08:00", "09:59", "11:58"), ("14:00", "15:00")]
    assert "3 studies, begun at 08:00, 09:59 and 11:58" in str(found[0])


def test_the_latest_day_comes_first() -> None:
    days = [unit(f"{day}.{each}", f"1{each}0000", study_date=f"202603{day}") for day in (14, 16, 15) for each in (0, 1)]
    assert [each.date for each in split_sessions(days)] == ["20260316", "20260315", "20260314"]


def test_status_proposes_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    for number, each in enumerate([*BOTH, *(unit(f"{day}.{time}", f"{time}0000", study_date=f"202602{day}")
                                            for day in range(10, 17) for time in (10, 11))]):  # fmt: skip
        mine = Unit(spool, f"{number:02x}{'0' * 30}")
        spool.files.make_folders(mine.folder)
        mine.write_summary(each)
    said = CliRunner().invoke(sorter, ["status", "--root", str(tmp_path)])
    assert said.exit_code == 0
    assert "P1 20260314: 2 studies, begun at 09:15 and 10:20 on scanner 175689" in said.output
    assert "… and 3 more such days" in said.output
    found = json.loads(CliRunner().invoke(sorter, ["status", "--root", str(tmp_path), "--json"]).output)
    assert len(found["split_sessions"]) == 8
    assert found["split_sessions"][0]["studies"] == ["1.1", "1.2"]
