"""A configuration that changes while deliveries are owed: none is lost, none stops the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sorter.config import Config, load
from sorter.daemon.sort import mark_defaults
from sorter.deliver.target import Put
from sorter.model import UnitKind, unit_key
from sorter.pipeline import outlets
from sorter.spool import Unit
from tests.crash.memory import Memory
from tests.crash.scenario import CONFIG, ROOT, Life, Near, begin, data_set, settings_of

IMAGE = f"{ROOT}/labs/memory/P1/20260102_1011/001_T1/000-0001-000001.dcm"


class Busy(Near):
    """A lane that has other things to do: what is submitted waits."""

    def submit(self, put: Put) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


@pytest.fixture
def life(settings: Config, monkeypatch: pytest.MonkeyPatch) -> Life:
    """One image is owed to a target that is busy."""
    with monkeypatch.context() as patch:
        patch.setattr(outlets, "Lane", Busy)
        life = begin(Memory(), settings)
        life.receive(data_set(1))
        life.turns(60)
    assert standing(life) == ("owed", "on its way")
    return life


def standing(life: Life) -> tuple[str, str]:
    summary = Unit(life.spool, unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")).summary()
    assert summary is not None
    return summary.state, summary.why


def configured(text: str, folder: Path) -> Config:
    path = folder / "other.toml"
    path.write_text(text)
    return load(path, Path(ROOT))


def test_what_waited_for_a_target_that_changed_is_sent_again(life: Life, tmp_path: Path) -> None:
    changed = configured(f"{CONFIG}group = {os.getgid()}\n", tmp_path)
    life.parts.reload(changed, life.disk)
    life.turns(60)
    assert standing(life) == ("delivered", "")
    assert life.disk.exists(IMAGE)


def test_what_is_owed_to_a_target_that_is_gone_waits_until_it_is_back(
    life: Life, settings: Config, tmp_path: Path
) -> None:
    life.parts.reload(configured("", tmp_path), life.disk)
    life.receive(data_set(1, series=2), worker="w2")
    life.turns(60)
    assert standing(life) == ("owed", "memory is no configured target any more; configure it again")
    life = begin(life.disk, configured("", tmp_path))  # nor does the next life stop at it
    life.turns(60)
    life.parts.reload(settings, life.disk)
    mark_defaults(settings, life.disk)
    life.turns(60)
    assert standing(life) == ("delivered", "")
    assert life.disk.exists(IMAGE)
