"""A sender whose series suddenly belong to no lab: said once, over restarts, until one belongs to a lab again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.config import Config
from sorter.model import Event
from sorter.plugins import Plugins
from sorter.strays import LEAST, REMEMBERED, UNLIKELY, Strays
from tests.crash import scenario
from tests.crash.memory import Memory
from tests.crash.scenario import Life, begin, data_set, settings_of

SENDER = "SCANNER@127.0.0.1"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(scenario, "CONFIG", '[labs.memory]\nmatch = ["PatientID=P*"]\nproducts = ["dicom"]\n')
    return settings_of(tmp_path, monkeypatch)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    found: list[Event] = []

    def event(_: Plugins, each: Event) -> tuple[()]:
        found.extend([each] if each.kind.startswith("sender_") else [])
        return ()

    monkeypatch.setattr(Plugins, "event", event)
    return found


def send(life: Life, subject: str, *studies: int) -> None:
    for study in studies:
        life.receive(data_set(1, subject=subject, study=f"1.2.{study}"))
        life.turns(40, 10)


def restarted(life: Life, settings: Config) -> Life:
    life.disk.sync_file_system("/")
    again = begin(Memory.of(next(iter(life.disk.states(1, random.Random(1))))), settings)
    again.turns(20)
    return again


def raised(life: Life) -> list[str]:
    return [each.says for each in life.parts.pipeline.alarms.state.raised.values()]


def test_it_is_said_once_and_until_a_lab_owns_one_again(settings: Config, told: list[Event]) -> None:
    life = begin(Memory(), settings)
    send(life, "P1", *range(10))
    send(life, "X", 10, 11, 12)
    life = restarted(life, settings)
    assert (told, raised(life)) == ([], [])
    send(life, "X", 13, 14, 15)
    assert [(each.kind, each.details["sender"], each.details["series"]) for each in told] == [
        ("sender_unassigned", SENDER, "5")
    ]
    assert raised(life)[0].startswith(f"{SENDER}: 6 of 6 series unassigned since 20")
    assert raised(life)[0].endswith("(usually 0%)")
    life = restarted(life, settings)
    send(life, "P2", 20)
    assert [each.kind for each in told] == ["sender_unassigned", "sender_assigned"]
    assert raised(life) == []


def test_without_labs_everything_is_nobodys_and_nothing_is_said(
    settings: Config, told: list[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin(Memory(), settings)
    send(life, "X", *range(10))
    assert len(raised(life)) == 1
    monkeypatch.setattr(scenario, "CONFIG", "")
    (tmp_path / "none").mkdir()
    life.parts.reload(settings_of(tmp_path / "none", monkeypatch), life.disk)
    assert raised(life) == []
    send(life, "X", *range(10, 30))
    assert (len(told), raised(life)) == (1, [])


def test_one_study_of_many_series_is_not_yet_a_reason(settings: Config, told: list[Event]) -> None:
    life = begin(Memory(), settings)
    send(life, "P1", *range(5))
    for series in range(8):
        life.receive(data_set(1, subject="X", series=series, study="1.2.99"))
    life.turns(1000, 50)
    assert told == []
    send(life, "X", 100)
    life.turns(1000, 50)
    assert len(told) == 1


def _after(before: list[bool], row: int) -> Strays:
    known = Strays()
    for number, owned in enumerate(before):
        known = known.with_owned() if owned else known.with_stray(str(number), "")
    known = known.with_owned()
    for number in range(row):
        known = known.with_stray(f"new {number}", "2026-01-02T10:02:03")
    return known


@pytest.mark.parametrize(
    ("before", "row", "unusual"),
    [([True] * 50, LEAST, True), ([True] * 50, LEAST - 1, False), ([True, False] * 50, 9, False),
     ([True, False] * 50, 10, True), ([False] * 50, 14, False), ([], 6, False), ([], 7, True)],
)  # fmt: skip
def test_what_is_unusual(before: list[bool], row: int, unusual: bool) -> None:
    assert _after(before, row).is_unusual is unusual


def test_the_sentence() -> None:
    says = str(_after([True] * 48 + [False], 14))
    assert says == "14 of 14 series unassigned since 2026-01-02 10:02 (usually 2%)"


STEPS = (Strays.with_owned, Strays.ended, lambda each: each.with_stray("s", "t"))


@given(st.lists(st.sampled_from(STEPS), max_size=60), st.integers(0, 3 * REMEMBERED))
def test_never_more_than_there_were(steps: list[Callable[[Strays], Strays]], first: int) -> None:
    known = Strays(min(first, REMEMBERED - 1), 0)
    for step in steps:
        known = step(known)
        assert 0 <= known.unassigned <= known.series <= 2 * REMEMBERED
        assert not known.is_unusual or ((known.unassigned + 1) / (known.series + 2)) ** known.row < UNLIKELY
