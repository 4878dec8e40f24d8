"""A lab's daily scan and a sender that is silent, over the whole of sorter, with clocks that a test moves.

The machine is in Berlin. `World.wait` lets time pass for both of its clocks, `World.set_by` sets the one on the wall.
"""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.completion.alarms import BELIEVED, GRACE
from sorter.config import Config, load
from sorter.daemon import assembly
from sorter.model import Event
from sorter.pipeline.alarms import Clocks
from sorter.plugins import Plugins
from tests.crash.memory import Memory
from tests.crash.scenario import Life, begin, data_set, settings_of
from tests.crash.test_completion_properties import Dies

HOUR, DECADE = 3600.0, 3.15e8
CONFIG = """
[labs.qa]
match = ["PatientID=QA*"]
products = ["dicom"]
expect_daily = "09:00 QA-PHANTOM*"

[labs.memory]
match = ["Modality=MR"]
products = ["dicom"]

[[senders]]
ae = "SCANNER"
silent_after = "8h"

[[senders]]
ae = "OTHER"
"""


class World:
    """A machine, sorter on it, and the events that plugins were told of: without those of series and studies."""

    def __init__(self, config: Config, start: str) -> None:
        self.config, self.events = config, []
        self.wall_ahead = datetime.datetime.fromisoformat(start).timestamp() - 1000.0
        self.boot_ahead, self.boot_id = 0.0, "boot 1"
        self.life: Life = begin(Memory(), config)
        self.events: list[Event] = []

    @property
    def now(self) -> float:
        return self.life.now if hasattr(self, "life") else 1000.0

    def clocks(self) -> Clocks:
        return Clocks(
            lambda: self.now + self.boot_ahead + self.wall_ahead, lambda: self.now + self.boot_ahead, self.boot_id
        )

    @property
    def time(self) -> str:
        return datetime.datetime.fromtimestamp(self.now + self.boot_ahead + self.wall_ahead).isoformat(" ", "minutes")

    # --- what happens -------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Minute by minute, of a long time only the end."""
        end = self.life.now + seconds
        self.life.turns(seconds - 900, 300.0)
        self.life.turns(end - self.life.now, 60.0)

    def wait_until(self, when: str) -> None:
        self.wait(datetime.datetime.fromisoformat(when).timestamp() - (self.now + self.boot_ahead + self.wall_ahead))

    def set_by(self, seconds: float) -> None:
        self.wall_ahead += seconds

    def suspend(self, seconds: float) -> None:
        """What sorter measures its waits by stands still, but for some seconds."""
        self.boot_ahead += seconds

    def restart(self, *, down: float = 0.0, reboot: bool = False) -> None:
        self.life.disk.before = lambda: None
        self.life.disk.sync_file_system("/")
        image = next(self.life.disk.states(1, random.Random(0)))
        self.boot_ahead += self.life.now - 10.0 + down
        if reboot:
            self.wall_ahead, self.boot_ahead, self.boot_id = self.wall_ahead + self.boot_ahead, 0.0, "boot 2"
        self.life.now = 10.0
        life = begin(Memory.of(image), self.config)
        life.now = 10.0
        self.life = life

    def scan(self, subject: str = "QA-PHANTOM-1", calling: str = "SCANNER") -> None:
        number = int(self.now + self.boot_ahead) + len(self.events)
        association = self.life.associate(calling=calling)
        association.store(data_set(1, study=f"1.2.{number}", subject=subject))
        association.end("released")

    # --- what was told ------------------------------------------------------------------------------------------

    def told(self, *kinds: str) -> list[str]:
        found = [each for each in self.events if each.kind in kinds]
        return [each.details.get("day") or each.details.get("sender") or each.details["lab"] for each in found]

    @property
    def raised(self) -> list[str]:
        return [each.says for each in self.life.parts.pipeline.alarms.state.raised.values()]


@pytest.fixture
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _berlin: None) -> World:
    settings_of(tmp_path, monkeypatch)
    path = tmp_path / "sorter.toml"
    path.write_text(CONFIG)
    config = load(path, Path("/site"))
    plugins = Plugins.load({}, None, Memory(), builtin_of(config))
    monkeypatch.setattr(assembly, "load_plugins", lambda *_: plugins)
    made: list[World] = []
    monkeypatch.setattr(assembly, "clocks_of", lambda _: made[0].clocks())
    world = World.__new__(World)
    made.append(world)
    monkeypatch.setattr(Plugins, "event", lambda _, event: world.events.append(event) or ())
    world.__init__(config, "2026-11-26T07:00")  # type: ignore[misc]
    return world


def builtin_of(config: Config) -> dict[str, dict[str, object]]:
    return {
        "identity": {"labs": [{"name": name, "match": lab.match} for name, lab in config.labs.items()]},
        "routing": {"labs": {name: [name] for name in config.labs}, "default": None},
    }


MISSING, CAME = "daily_missing", "daily_came"


# --- by nine o'clock ------------------------------------------------------------------------------------------------


def test_an_alarm_a_day_until_it_comes(world: World) -> None:
    world.scan("P1", "OTHER")  # another lab's
    world.wait_until("2026-11-26T08:59")
    assert world.told(MISSING) == []
    world.wait_until("2026-11-26T20:00")
    assert world.told(MISSING) == ["2026-11-26"]
    assert world.raised[0] == "nothing of QA-PHANTOM* came to lab qa by 09:00 on 2026-11-26"
    world.wait_until("2026-11-27T12:00")
    assert world.told(MISSING) == ["2026-11-26", "2026-11-27"]
    world.scan("QA-SOMEBODY", "OTHER")
    world.wait(120)
    assert world.told(CAME) == []
    world.scan(calling="OTHER")
    world.wait(120)
    assert world.told(CAME) == ["qa"]
    assert not any("qa" in each for each in world.raised)
    world.wait_until("2026-11-28T08:00")
    world.scan(calling="OTHER")
    world.wait_until("2026-11-28T22:00")
    assert world.told(MISSING) == ["2026-11-26", "2026-11-27"]


def test_what_is_still_arriving_has_come(world: World) -> None:
    world.wait_until("2026-11-26T08:58")
    association = world.life.associate()
    association.store(data_set(1, subject="QA-PHANTOM-1"))
    world.wait(300)
    association.end("released")
    world.wait(HOUR)
    assert world.told(MISSING) == []


def test_what_came_after_the_time_while_sorter_was_down_is_looked_at_first(world: World) -> None:
    """Received all the same, by the process that receives."""
    world.wait_until("2026-11-26T08:30")
    world.scan()
    world.restart(down=1.5 * HOUR)
    world.wait(2 * HOUR)
    assert world.told(MISSING) == []


@pytest.mark.parametrize("reboot", [False, True])
def test_a_restart_neither_repeats_nor_loses_an_alarm(world: World, reboot: bool) -> None:
    world.wait_until("2026-11-26T08:30")
    world.restart(down=HOUR, reboot=reboot)
    world.wait(GRACE - 60)
    assert world.told(MISSING) == []
    world.wait(HOUR)
    assert world.told(MISSING) == ["2026-11-26"]
    world.restart()
    world.wait(HOUR)
    assert world.told(MISSING) == ["2026-11-26"]
    world.wait_until("2026-11-27T08:00")
    world.scan()
    world.wait(300)
    world.restart()
    world.wait_until("2026-11-27T12:00")
    assert world.told(MISSING) == ["2026-11-26"]


@pytest.mark.parametrize("step", [HOUR, -HOUR, DECADE, -DECADE])
def test_a_clock_that_is_set_raises_nothing_when_it_came(world: World, step: float) -> None:
    world.wait_until("2026-11-26T07:30")
    world.scan()
    world.wait(300)
    world.set_by(step)
    world.wait(6 * HOUR)
    world.set_by(-step)
    world.wait(12 * HOUR)
    assert world.told(MISSING) == []


@pytest.mark.parametrize("step", [HOUR, DECADE, -DECADE])
def test_a_clock_that_is_set_past_the_time_raises_nothing_before_it(world: World, step: float) -> None:
    world.wait_until("2026-11-26T07:58")
    world.set_by(step + 300)
    world.wait(HOUR - 600)  # it is not nine yet, whatever the wall says
    assert world.told(MISSING, "sender_silent") == []
    world.set_by(-step - 300)
    world.wait_until("2026-11-26T09:10")
    assert world.told(MISSING) == ["2026-11-26"]


def test_a_clock_that_stays_as_it_was_set_is_believed_in_the_end(world: World) -> None:
    world.set_by(2 * HOUR)
    world.wait(BELIEVED + 60)
    assert world.told(MISSING) == ["2026-11-26"]
    assert world.time == "2026-11-26 15:01"
    world.wait_until("2026-11-27T08:59")
    assert world.told(MISSING) == ["2026-11-26"]
    world.wait_until("2026-11-27T09:05")
    assert world.told(MISSING) == ["2026-11-26", "2026-11-27"]


def test_a_machine_that_starts_in_another_year_judges_no_time_that_is_past(world: World) -> None:
    world.wait_until("2026-11-26T08:00")
    world.set_by(-DECADE)
    world.restart(down=4 * HOUR, reboot=True)
    world.wait(8 * HOUR)
    assert world.told(MISSING) == []


def test_a_machine_that_was_asleep_looks_first_at_what_came(world: World) -> None:
    world.wait_until("2026-11-26T08:30")
    world.suspend(HOUR)
    world.wait(GRACE - 120)
    assert world.told(MISSING) == []
    world.scan()
    world.wait(3 * HOUR)
    assert world.told(MISSING) == []


def test_summer_time_is_no_step(world: World) -> None:
    world.set_by(datetime.datetime(2027, 3, 27, 7).timestamp() - datetime.datetime(2026, 11, 26, 7).timestamp())
    world.restart(reboot=True)
    world.events.clear()
    world.wait_until("2027-03-30T08:00")
    assert world.told(MISSING) == ["2027-03-27", "2027-03-28", "2027-03-29"]


# --- silence --------------------------------------------------------------------------------------------------------


def test_a_sender_that_is_silent_and_sends_again(world: World) -> None:
    world.scan("P1")
    world.wait(7 * HOUR)
    world.scan("P2", "OTHER")
    world.wait(HOUR / 2)
    assert world.told("sender_silent") == []
    world.wait(HOUR)
    assert world.told("sender_silent") == ["SCANNER"]
    assert "SCANNER has sent nothing for 8 h" in world.raised
    world.wait(12 * HOUR)
    assert world.told("sender_silent") == ["SCANNER"]
    world.scan("P1")
    world.wait(60)
    assert world.told("sender_sends") == ["SCANNER"]
    assert not any("SCANNER" in each for each in world.raised)
    world.wait(7.5 * HOUR)
    assert world.told("sender_silent") == ["SCANNER"]


def test_an_identical_resend_is_no_silence(world: World) -> None:
    world.scan("P1")
    for _ in range(3):
        world.wait(7 * HOUR)
        association = world.life.associate()
        association.store(data_set(1, study="1.2.9", subject="P1"))
        association.end("released")
    assert world.told("sender_silent") == []


@pytest.mark.parametrize("step", [HOUR, -HOUR, DECADE, -DECADE])
def test_silence_is_no_matter_of_the_wall_clock(world: World, step: float) -> None:
    world.scan("P1")
    world.wait(6 * HOUR)
    world.set_by(step)
    world.wait(1.5 * HOUR)
    assert world.told("sender_silent") == []
    world.wait(HOUR)
    assert world.told("sender_silent") == ["SCANNER"]


def test_silence_goes_on_over_restarts_and_is_said_once(world: World) -> None:
    for _ in range(4):
        world.wait(2 * HOUR)
        assert world.told("sender_silent") == []
        world.restart()
    world.wait(2.5 * HOUR)
    assert world.told("sender_silent") == ["SCANNER"]
    world.restart(reboot=True)
    world.wait(2 * HOUR)
    world.scan("P1")
    world.wait(60)
    world.restart()
    world.wait(2 * HOUR)
    assert world.told("sender_silent") == ["SCANNER"]
    assert world.told("sender_sends") == ["SCANNER"]


def test_who_sent_just_before_a_restart_is_not_silent(world: World) -> None:
    world.wait(7.9 * HOUR)
    world.scan("P1")
    world.wait(60)
    world.restart()
    world.wait(HOUR)
    assert world.told("sender_silent") == []


# --- whatever happens -----------------------------------------------------------------------------------------------


def test_whatever_effect_it_dies_before_no_alarm_is_lost_and_none_told_twice(world: World) -> None:
    """But for the one that was told in the very moment before it died."""
    died = 0
    for effects in (0, 1, 2, 3, 5, 7, 9, 12):
        world.events.clear()
        world.scan(calling="OTHER")
        world.wait_until(f"{_after(world, 1)}T08:55")
        left = effects

        def before() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Dies

        day = _after(world, 0)
        world.life.disk.before = before
        try:
            world.wait(HOUR)
        except Dies:
            died += 1
            world.restart()
        world.life.disk.before = lambda: None
        world.wait(2 * HOUR)
        told = world.told(MISSING)
        assert told in ([day], [day, day]), effects
    assert died > 4


def _after(world: World, days: int) -> str:
    today = datetime.datetime.fromtimestamp(world.now + world.boot_ahead + world.wall_ahead).date()
    return (today + datetime.timedelta(days=days)).isoformat()


def test_what_is_expected_can_be_changed_while_it_runs(world: World, tmp_path: Path) -> None:
    world.wait_until("2026-11-26T10:00")
    assert world.raised == ["nothing of QA-PHANTOM* came to lab qa by 09:00 on 2026-11-26"]
    path = tmp_path / "sorter.toml"

    def reload(text: str) -> None:
        path.write_text(text)
        world.life.parts.reload(load(path, Path("/site")), world.life.disk)
        world.wait(HOUR)

    reload(CONFIG.replace("expect_daily", "# expect_daily").replace("silent_after", "# silent_after"))
    assert world.raised == []
    reload(CONFIG.replace("09:00", "08:00"))
    assert world.told(MISSING) == ["2026-11-26"]
    assert world.raised == []
    world.wait_until("2026-11-27T08:10")
    assert world.told(MISSING) == ["2026-11-26", "2026-11-27"]
