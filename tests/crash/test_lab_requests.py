"""A request of a lab, and the machine that ends before each effect on the way to its answer: it is done, and once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sorter.config import Config
from sorter.labs import requests as asked
from sorter.spool import Unit
from tests.crash.memory import Memory
from tests.crash.scenario import ROOT, Life, begin, data_set, settings_of
from tests.crash.test_completion_properties import Dies

LAB = f"{ROOT}/labs/memory"
REQUEST = f"{LAB}/.sorter/requests/mine.toml"
ANSWER = f"{LAB}/.sorter/requests/mine.answer.txt"
ASK = b'subject = "P1"\ndest = "pilot"\nname = "flat"\n'


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


def start(disk: Memory, settings: Config) -> Life:
    life = begin(disk, settings)
    life.parts.lab_corners.requests.start = lambda run: run()
    return life


def go_on(life: Life, seconds: float = 120.0) -> None:
    """Turns, with what `sort` does beside the pipeline."""
    end = life.now + seconds
    while life.now < end:
        life.turns(5.0)
        life.parts.lab_corners.turn(life.now)
        life.parts.lab_corners.turn(life.now)


@pytest.fixture
def delivered(settings: Config) -> Life:
    life = start(Memory(), settings)
    life.receive(*(data_set(number) for number in (1, 2, 3)))
    go_on(life)
    assert life.disk.names(f"{LAB}/P1")
    life.disk.write_file(REQUEST, ASK)
    life.disk.sync_file_system("/")
    return life


def copy_of(life: Life, dice: random.Random) -> Memory:
    return Memory.of(next(life.disk.states(1, dice)))


def pilot(life: Life) -> list[str]:
    return [each for each in life.disk.names(f"{LAB}/pilot") if not each.startswith(".")]


def test_whenever_the_machine_ends_the_request_is_done_once(delivered: Life, settings: Config) -> None:
    dice = random.Random(7)
    effects = ends = 0
    while True:
        life = start(copy_of(delivered, dice), settings)
        left = effects

        def count() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Dies

        life.turns(10.0)  # the effects of a start are for other tests
        life.disk.before = count
        try:
            go_on(life)
            break
        except Dies:
            ends += 1
        life.disk.before = lambda: None
        again = start(copy_of(life, dice), settings)
        go_on(again)
        assert again.disk.read_file(ANSWER).startswith(b"done\n")
        assert len(pilot(again)) == 3
        for name in pilot(again):
            again.disk.unlink(f"{LAB}/pilot/{name}")
        again.disk.sync_file_system("/")
        last = start(copy_of(again, dice), settings)
        go_on(last)
        assert pilot(last) == []  # it was answered: nobody does it again
        effects += 3
    assert ends > 10


def test_a_request_that_is_removed_ends_and_one_that_changes_is_done_anew(
    delivered: Life, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "PIECE_FILES", 1)
    life, corners = delivered, delivered.parts.lab_corners
    for _ in range(20):
        life.now += 5.0
        corners.turn(life.now)
        if life.disk.exists(f"{LAB}/pilot"):
            break
    assert 0 < len(pilot(life)) < 3
    life.disk.unlink(REQUEST)
    for _ in range(20):
        life.now += 30.0
        corners.turn(life.now)
    assert not life.disk.exists(ANSWER)
    life.disk.write_file(REQUEST, ASK)
    go_on(life)
    assert life.disk.read_file(ANSWER).startswith(b"done\n")
    life.disk.write_file(REQUEST, ASK.replace(b"pilot", b"other"))
    go_on(life)
    assert b"copied to other" in life.disk.read_file(ANSWER)


def test_what_was_withdrawn_since_it_was_looked_for_is_named_and_keeps_no_other_request_waiting(
    delivered: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "PIECE_FILES", 1)
    life, corners = delivered, delivered.parts.lab_corners
    while not life.disk.exists(f"{LAB}/pilot"):
        life.now += 5.0
        corners.turn(life.now)
    [unit] = [Unit.load(life.spool, key) for key in life.spool.keys()]  # noqa: SIM118  (a spool is no mapping)
    for each in unit.instances:
        life.disk.unlink(unit.images / each)
    life.disk.write_file(f"{LAB}/.sorter/requests/other.toml", b'subject = "P1"\nlist = true\n')
    go_on(life)
    said = life.disk.read_file(ANSWER)
    assert said.startswith(b"done in part\n")
    assert b"2 images have left the store" in said
    assert life.disk.read_file(ANSWER.replace("mine", "other")).startswith(b"done\n")


def test_who_changes_a_request_again_and_again_has_one_thread(delivered: Life) -> None:
    life, corners = delivered, delivered.parts.lab_corners
    begun: list[Callable[[], None]] = []
    corners.requests.start = begun.append
    for number in range(10):
        life.disk.write_file(REQUEST, ASK.replace(b"pilot", b"pilot%d" % number))
        life.now += 60.0
        corners.turn(life.now)
        corners.turn(life.now)
    assert len(begun) == 1
    corners.requests.start = lambda run: run()
    begun.pop()()
    go_on(life)
    assert b"copied to pilot9" in life.disk.read_file(ANSWER)
