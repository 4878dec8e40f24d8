"""A lab that changes its own rules: what waits goes as they say now, what was delivered stays, over restarts too."""

from __future__ import annotations

from pathlib import Path

import pytest

from sorter.config import Config
from sorter.model import UnitKind, unit_key
from sorter.spool import Unit, UnitSummary
from tests.crash.memory import Memory
from tests.crash.scenario import ROOT, Life, begin, data_set, settings_of

NOT_THE_LOCALIZER = b'[[rules]]\nseries = "1"\nproducts = []\n'
MINE = b'[naming]\nfolder = "mine/{SeriesNumber:02d}"\n'
USUAL = f"{ROOT}/labs/memory/P1/20260102_1011/001_T1"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


@pytest.fixture
def life(settings: Config) -> Life:
    return begin(Memory(), settings)


def summary(life: Life, series: int = 1) -> UnitSummary:
    found = Unit(life.spool, unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{series}")).summary()
    assert found is not None
    return found


def events(life: Life) -> list[str]:
    """The lines of the journal about labs' files."""
    lines = [line for name in life.disk.names(life.spool.journal)
             for line in life.disk.read_file(life.spool.journal / name).decode().splitlines()]  # fmt: skip
    return [line for line in lines if '"lab file"' in line]


def test_what_a_lab_does_not_want_waits_and_goes_as_its_next_rules_say(life: Life, settings: Config) -> None:
    assert life.parts.take_lab_file("memory", NOT_THE_LOCALIZER) == ()
    life.receive(data_set(1))
    life.turns(60)
    assert (summary(life).state, summary(life).lab) == ("kept", "memory")
    assert "wants nothing of it" in summary(life).why
    life = begin(life.disk, settings)  # the last good copy is in force from the start
    life.turns(60)
    assert summary(life).state == "kept"
    assert life.parts.take_lab_file("memory", MINE) == ()
    life.turns(60)
    assert summary(life).state == "delivered"
    assert life.disk.names(f"{ROOT}/labs/memory/mine/01")
    assert not life.disk.exists(USUAL)
    assert len(events(life)) == 2
    assert '"asked":1' in events(life)[1].replace(" ", "")
    assert '"going":1' in events(life)[1].replace(" ", "")


def test_what_was_delivered_stays_where_it_is_and_grows_there(life: Life) -> None:
    life.receive(data_set(1))
    life.turns(60)
    life.parts.take_lab_file("memory", MINE)
    life.receive(data_set(2), data_set(1, series=2), worker="w2")
    life.turns(60)
    assert len([name for name in life.disk.names(USUAL) if name.endswith(".dcm")]) == 2
    assert life.disk.names(f"{ROOT}/labs/memory/mine") == ["02"]


def test_a_mistake_changes_nothing_and_no_lab_is_not_heard(life: Life) -> None:
    life.parts.take_lab_file("memory", MINE)
    assert life.parts.take_lab_file("memory", b'[naming]\nfolder = "../other"\n')[0].startswith(
        "lab.toml:2: naming.fol"
    )
    assert life.parts.take_lab_file("unassigned", b'[naming]\nfolder = "x"\n') == ()
    life.receive(data_set(1))
    life.turns(60)
    assert life.disk.names(f"{ROOT}/labs/memory/mine") == ["01"]


def test_a_new_configuration_of_the_admin_leaves_the_labs_word_in_force(life: Life, settings: Config) -> None:
    life.parts.take_lab_file("memory", MINE)
    life.parts.reload(settings, life.disk)
    life.receive(data_set(1))
    life.turns(60)
    assert life.disk.names(f"{ROOT}/labs/memory/mine") == ["01"]


def test_a_copy_that_the_disk_damaged_holds_the_labs_series_until_the_file_comes_again(
    life: Life, settings: Config
) -> None:
    life.parts.take_lab_file("memory", MINE)
    life.disk.write_file(life.spool.labs / "memory" / "lab.toml", b"\0\0")
    life = begin(life.disk, settings)
    life.receive(data_set(1))
    life.turns(60)
    assert summary(life).state == "held"
    assert "lab memory" in summary(life).why
    life.parts.take_lab_file("memory", MINE)
    life.turns(60)
    assert summary(life).state == "delivered"
    assert life.disk.names(f"{ROOT}/labs/memory/mine") == ["01"]
