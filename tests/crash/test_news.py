"""What came is noted in the order in which it came, however much of it one turn takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sorter.model import UnitKind, unit_key
from sorter.spool import Unit
from tests.crash.memory import Memory
from tests.crash.scenario import begin, data_set, settings_of


@pytest.mark.parametrize("how", ["released", "aborted", "lost"])
def test_an_end_that_is_taken_with_the_last_image_is_evidence_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """After an abort a retry is likely, so what came is not called quiet before five minutes."""
    life = begin(Memory(), settings_of(tmp_path, monkeypatch))
    association = life.associate()
    association.store(data_set(1))
    association.end(how)
    life.turns(100)
    unit = Unit.load(life.spool, unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1"))
    assert list(unit.associations.values()) == [how]
    assert (unit.latest_revision() is not None) == (how == "released")
    life.turns(300)
    assert Unit.load(life.spool, unit.key).latest_revision() is not None
