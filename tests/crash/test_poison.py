"""A unit that cannot be read stops no other: it is said, and taken up again once it is mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from sorter.model import UnitKind, unit_key
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
