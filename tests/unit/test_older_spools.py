"""A spool as an earlier sorter left it, kept beside this test: it is read, nothing moves, and it goes on from there.

`spool_layout_1.json` holds its files: a grown series with a conflict, a dropped one, a corrected one, a file in
quarantine. In `spool_layout_2.json` their images have left the store, as far as they may. A later layout gets a file of
its own beside them; those that are here are never made anew.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from sorter.config import load
from sorter.daemon import assembly
from sorter.daemon.assembly import assemble
from sorter.durable import Files
from sorter.pipeline import outlets
from sorter.spool import Spool, Unit
from tests.crash.scenario import CONFIG, Idle, Life, Near, data_set

KEPT = sorted(Path(__file__).parent.glob("spool_layout_*.json"))


def lay_out(path: Path, root: Path) -> None:
    kept = json.loads(path.read_text())
    for folder in kept["folders"]:
        (root / folder).mkdir(parents=True)
    for name, content in kept["files"].items():
        coded = content.startswith("base64:")
        (root / name).write_bytes(base64.b64decode(content[7:]) if coded else content.encode())


@pytest.mark.parametrize("path", KEPT, ids=lambda each: each.stem)
def test_an_older_spool_is_read_and_goes_on(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "LocalEngine", Idle)
    monkeypatch.setattr(outlets, "Lane", Near)
    lay_out(path, tmp_path)
    (tmp_path / "sorter.toml").write_text(CONFIG)
    config = load(tmp_path / "sorter.toml", tmp_path)
    spool = Spool(config.spool, Files())
    spool.create()
    images = {each: each.stat().st_ino for each in tmp_path.rglob("*.dcm")}
    before = {key: Unit.load(spool, key) for key in spool.keys()}  # noqa: SIM118
    assert sorted(len(unit.instances) for unit in before.values()) == [1, 2, 4]
    for unit in before.values():
        assert unit.latest_revision() and unit.latest_plan() and unit.receipts()  # noqa: PT018
        assert unit.summary() is not None

    life = Life(spool.files, assemble(config, spool, lambda: None))  # type: ignore[arg-type]
    life.turns(200)
    assert {each: each.stat().st_ino for each in tmp_path.rglob("*.dcm")} == images
    assert {key: len(Unit.load(spool, key).revisions()) for key in before} == {
        key: len(unit.revisions()) for key, unit in before.items()
    }
    life.receive(data_set(4), data_set(2))
    life.turns(80)
    assert len(list((tmp_path / "labs").rglob("*.dcm"))) == 7
