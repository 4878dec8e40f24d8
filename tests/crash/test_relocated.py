"""Power cuts while a lab's tree is moved and more images come: each image is delivered once, where the tree lies."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from sorter.config import Config, with_lab_root
from sorter.config import load as load_config
from sorter.plugins import Plugins
from tests.crash import scenario
from tests.crash.memory import Memory
from tests.crash.scenario import CONFIG, ROOT, Life, begin, data_set, settings_of
from tests.crash.test_enumeration import SEED, STORE, Cut, cuts

pytestmark = pytest.mark.soak

OLD, NEW = f"{ROOT}/labs/memory", "/nas/memory"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


@pytest.fixture
def relocated(tmp_path: Path, settings: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """As `sorter relocate memory /nas/memory` leaves it."""
    monkeypatch.setattr(Plugins, "close", lambda _: None)  # all lives share their process: a reload would begin it anew
    path = tmp_path / "relocated.toml"
    path.write_text(with_lab_root(CONFIG, "memory", NEW) or "")
    return load_config(path, Path(ROOT))


def moved(life: Life, relocated: Config) -> None:
    """Two series are delivered, the tree is moved while one of them grows, and the configuration is told."""
    disk = life.disk
    life.receive(data_set(1), data_set(2), data_set(1, series=2))
    life.turns(40)
    life.receive(data_set(3))
    life.turns(5)
    disk.make_folders("/nas")
    disk.rename(OLD, NEW)
    disk.fsync_folder("/nas")
    disk.fsync_folder(f"{ROOT}/labs")
    life.turns(40)  # it waits: the marker is gone
    life.parts.reload(relocated, disk)
    life.turns(20)
    life.receive(data_set(1, series=3), data_set(2))
    life.turns(40)


def judge(cut: Cut, settings: Config, relocated: Config) -> list[str]:
    """Whether the configuration was told before or after the power cut: sorter starts with the old one.

    While the move was not synced the disk may show one tree under both names: what counts is the place that is told. Or
    under none: then nothing is delivered, for it may be a mount that is away.
    """
    life = begin(Memory.of(cut.image), settings)
    life.turns(60, 20)
    place = NEW if f"{NEW}/.sorter/id" in cut.files else OLD
    if place == NEW:
        life.parts.reload(relocated, life.disk)
        life.turns(700, 50)
    life.turns(1200, 60)
    after = Cut(next(iter(life.disk.states(1, random.Random(SEED)))), cut.acknowledged, cut.dropped)
    stored = [content for path, content in after.files.items() if path.startswith(STORE)]
    given = [content for path, content in after.files.items() if path.startswith(place) and path.endswith(".dcm")]
    marked = f"{ROOT}/spool/labs/memory/root" in cut.files
    times = 0 if marked and not any(path.startswith((OLD, NEW)) for path in cut.files) else 1
    wrong = []
    for data in cut.acknowledged:
        if sum(content.endswith(data) for content in stored) != 1:
            wrong.append("an image is not in the store")
        if (count := sum(content.endswith(data) for content in given)) != times:
            wrong.append(f"an image was delivered {count} times")
    return wrong


def states(settings: Config, relocated: Config) -> list[Cut]:
    found = list(cuts(settings, lambda life: moved(life, relocated), 2).values())
    random.Random(SEED).shuffle(found)
    return found


@pytest.mark.timeout(600)
def test_no_power_cut_delivers_twice_or_never(settings: Config, relocated: Config) -> None:
    found = states(settings, relocated)
    print(f"{len(found):,} distinct states")
    assert Counter(each for cut in found for each in judge(cut, settings, relocated)) == Counter()
    assert len(found) >= 1500


@pytest.mark.timeout(600)
def test_a_root_that_is_taken_for_granted_is_found_out(
    settings: Config, relocated: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is worth something: without the marker what waits would be delivered to the empty place."""
    from sorter.builtin._path_folders import Visit

    monkeypatch.setattr(Visit, "_marker", lambda _: None)
    monkeypatch.setattr(scenario, "mark_defaults", lambda config, disk: disk.make_folders(OLD, 0o755))
    assert any(judge(cut, settings, relocated) for cut in states(settings, relocated))
