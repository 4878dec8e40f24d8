"""A unit that cannot be read stops no other: it is said, and taken up again once it is mended."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sorter.config import Config
from sorter.model import UnitKind, unit_key
from sorter.spool import Unit
from sorter.spool.by_sop import BySop
from tests.crash.memory import Memory
from tests.crash.scenario import Life, as_file, begin, data_set, settings_of

BAD, GOOD = (unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{series}") for series in (1, 2))


def state(life: Life, key: str) -> str:
    summary = life.parts.pipeline.units.get(key, life.now).unit.summary()
    return summary.state if summary else ""


@pytest.mark.parametrize("record", ["rev-0001.json", "plan-0001.json", "receipts/dicom.memory.json"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_damaged_record_holds_up_its_own_series_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str, restart: bool
) -> None:
    settings = settings_of(tmp_path, monkeypatch)
    life = begin(Memory(), settings)
    life.receive(data_set(1))
    life.turns(60)
    path = life.spool.unit_folder(BAD) / record
    whole = life.disk.read_file(path)
    life.disk.write_file(path, b"\0" * len(whole))
    if restart:
        life.disk.unlink(life.spool.unit_folder(BAD) / "series.json")
        life = begin(life.disk, settings)
    life.receive(data_set(2), worker="w2")
    life.drop("disk", as_file(data_set(1, series=2)))
    life.turns(120)
    assert state(life, GOOD) == "delivered"
    [said] = [each for each in life.parts.pipeline.problems() if each.startswith("series")]
    assert said == f"series {BAD[:8]} cannot be worked on, and wait: {record} is damaged; put it back from a backup"
    life.disk.write_file(path, whole)
    life.turns(180)
    assert life.parts.pipeline.problems() == []
    assert state(life, BAD) == "delivered"
    assert life.disk.exists("/site/labs/memory/P1/20260102_1011/001_T1/000-0001-000002.dcm")


# --- a disk that fails for a while, or lost something ----------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


def failing(monkeypatch: pytest.MonkeyPatch, primitive: str, pattern: str) -> Callable[[], None]:
    """From now on this primitive fails wherever this pattern is found in a path; call what is returned to mend it."""
    works, broken = getattr(Memory, primitive), [True]

    def fails(self: Memory, path: Any, *rest: Any, **more: Any) -> Any:
        if broken and re.search(pattern, str(path)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return works(self, path, *rest, **more)

    monkeypatch.setattr(Memory, primitive, fails)
    return broken.clear


@pytest.mark.parametrize("where", ["/site/spool/store", f"/store/{BAD[:2]}"])
def test_a_store_that_cannot_be_listed_at_the_start_is_looked_through_later(
    settings: Config, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    life = begin(Memory(), settings)
    life.receive(data_set(1), data_set(1, series=2))
    life.turns(5)
    assert (state(life, BAD), state(life, GOOD)) == ("open", "open")
    mend = failing(monkeypatch, "names", f"{where}$")
    life = begin(life.disk, settings)
    life.receive(data_set(1, series=3), worker="w2")
    life.turns(100)
    third = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.3")
    found = [state(life, key) for key in (BAD, GOOD, third)]
    assert found == ["open", "open" if where.endswith("store") else "delivered", "delivered"]
    assert [each for each in life.parts.pipeline.problems() if "cannot be looked through (Input/output error)" in each]
    assert not life.parts.pipeline.looked_around
    mend()
    life.turns(200)
    assert life.parts.pipeline.problems() == []
    assert [state(life, key) for key in (BAD, GOOD, third)] == ["delivered"] * 3
    assert life.parts.pipeline.looked_around


def test_an_index_is_not_called_whole_before_all_was_listed(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    life = begin(Memory(), settings)
    life.receive(data_set(1), data_set(1, series=2))
    life.turns(60)
    index = BySop(life.spool)
    index.begin()
    mend = failing(monkeypatch, "names", f"/store/{BAD[:2]}$")
    with pytest.raises(OSError, match="Input/output"):
        index.go_on(10)
    assert not index.whole
    mend()
    assert not index.go_on(10)
    assert index.find(["1.2.3.1.1", "1.2.3.2.1"]) == {"1.2.3.1.1": {BAD}, "1.2.3.2.1": {GOOD}}


def test_a_list_of_several_series_is_heard_where_one_of_them_cannot_be_read(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin(Memory(), settings)
    life.receive(data_set(1), data_set(2), data_set(1, series=2))
    life.turns(5)
    failing(monkeypatch, "append", f"/{BAD}/")
    failing(monkeypatch, "write_file", f"/{BAD}/")
    life.parts.pipeline.hear("commitment", "SCANNER@127.0.0.1", ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.2.1"])
    life.turns(1200, 30)  # a first list is believed when nothing came for the longest wait
    assert state(life, GOOD) == "delivered"
    revision = Unit.load(life.spool, GOOD).latest_revision()
    assert revision is not None
    assert revision.verdict == "listed"
    assert [each for each in life.parts.pipeline.problems() if BAD[:8] in each]


def test_an_image_whose_evidence_and_bytes_are_lost_keeps_its_place_and_is_left_at_the_lab(settings: Config) -> None:
    """The lab's copy is the last one: growth must neither fail nor take it for superseded."""
    life = begin(Memory(), settings)
    life.receive(data_set(1), data_set(2))
    life.turns(60)
    assert state(life, BAD) == "delivered"
    unit = Unit.load(life.spool, BAD)
    lost = unit.by_sop["1.2.3.1.2"][0]
    lines = life.disk.read_file(unit.evidence).splitlines(keepends=True)
    life.disk.write_file(unit.evidence, b"".join(each for each in lines if b"1.2.3.1.2" not in each))
    life.disk.unlink(unit.images / lost)
    life = begin(life.disk, settings)
    life.receive(data_set(3), worker="w2")
    life.turns(200)
    assert state(life, BAD) == "delivered"
    folder = "/site/labs/memory/P1/20260102_1011/001_T1"
    there = [name for name in life.disk.names(folder) if name.endswith(".dcm")]
    assert there == [f"000-0001-{number:06d}.dcm" for number in (1, 2, 3)]
    unit = Unit.load(life.spool, BAD)
    assert [each.sop_uid for each in unit.revision(2).deliverable] == [f"1.2.3.1.{number}" for number in (1, 2, 3)]
    assert sum("entered again from its manifest" in each["says"] for each in unit.story()) == 1
    life.receive(data_set(2), worker="w3")  # sent again, it is whole again
    life.turns(200)
    assert state(life, BAD) == "delivered"
    assert len({life.disk.read_file(path) for path in _images(life, unit)}) == 3


def _images(life: Life, unit: Unit) -> list[Path]:
    return [unit.images / shard / name for shard in life.disk.names(unit.images)
            for name in life.disk.names(unit.images / shard)]  # fmt: skip
