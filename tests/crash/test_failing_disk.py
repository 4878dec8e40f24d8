"""The disk of the spool fails at any effect of sorting, or is full for a minute: nothing is lost, nothing stops."""

from __future__ import annotations

import datetime
import errno
import itertools
import math
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from sorter.config import Config
from tests.crash.memory import Memory
from tests.crash.scenario import Life, begin, data_set, settings_of
from tests.crash.test_enumeration import SEED, STORIES, Cut, Story, _false_receipts, _lost, _torn

FULL_FOR = 60.0  # seconds


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The wall clock is a second further whenever it is asked: what is tried again is tried at another time."""
    seconds, begin = itertools.count(), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    monkeypatch.setattr(
        "sorter.pipeline.wall_clock", lambda: (begin + datetime.timedelta(seconds=next(seconds))).isoformat()
    )
    return settings_of(tmp_path, monkeypatch)


class Failing:
    """While `life` sorts, its effect number `first` fails, and those of so many seconds after it."""

    def __init__(self, life: Life, first: int, seconds: float) -> None:
        self.life, self.first, self.seconds = life, first, seconds
        self.code = errno.ENOSPC if first % 2 else errno.EIO
        self.seen, self.until = 0, -math.inf

    def __call__(self) -> None:
        if not self.life.turning:
            return
        self.seen += 1
        if self.seen == self.first:
            self.until = self.life.now + self.seconds
        if self.seen == self.first or self.life.now < self.until:
            raise OSError(self.code, os.strerror(self.code))


def live(settings: Config, story: Story, first: int, seconds: float) -> tuple[set[str], int]:
    """What is wrong after this story on such a disk, and how many effects it had."""
    disk = Memory()
    life = begin(disk, settings)
    failing = disk.before = Failing(life, first, seconds)
    story(life)
    life.turns(1200, 60)
    disk.sync_file_system("/")  # what is there now, not what a power cut would leave
    after = Cut(next(iter(disk.states(1, random.Random(SEED)))), tuple(life.acknowledged), frozenset(life.dropped))
    wrong = {*_torn(after), *_false_receipts(after), *_lost(after)}
    if list(life.parts.pipeline.units):
        wrong.add("something is still going on")
    return wrong, failing.seen


def corrected_twice(life: Life) -> None:
    """Each correction gives the series another place: neither of the earlier ones may keep an image."""
    for subject in ("P1", "P2", "P3"):
        life.receive(data_set(1, subject=subject), data_set(2, subject=subject))
        life.turns(40)
    life.turns(60)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "step"), [(0.0, 1), (FULL_FOR, 9)])
@pytest.mark.parametrize("story", [*STORIES, corrected_twice], ids=lambda each: each.__name__)
def test_a_disk_that_fails_loses_nothing_and_stops_nothing(
    settings: Config, story: Story, seconds: float, step: int
) -> None:
    wrong, effects = live(settings, story, 0, 0.0)
    assert not wrong
    found = Counter[str]()
    for first in range(1, effects + 1, step):
        found.update(f"{first}: {each}" for each in live(settings, story, first, seconds)[0])
    assert not found
