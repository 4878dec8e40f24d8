"""A spool that was lost, rebuilt from the folders that were delivered: what `sorter import --delivered` does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sorter.config import Config, load
from sorter.daemon import assembly
from sorter.daemon.assembly import assemble
from sorter.daemon.sort import mark_defaults
from sorter.durable import Files
from sorter.importing.delivered import Manifests
from sorter.importing.walk import Walk
from sorter.model import Identity
from sorter.pipeline import outlets
from sorter.spool import Spool, Unit
from sorter.spool.recovered import Recoveries
from tests.crash.scenario import Idle, Life, Near, data_set

CONFIG = """
[labs.memory]
match = ["CalledAE=SORTER"]
products = ["dicom"]
"""
"""A rule that no file can fit which was dropped."""


def settings(root: Path) -> Config:
    return load(root / "sorter.toml", root)


def life(root: Path) -> Life:
    config = settings(root)
    spool = Spool(config.spool, Files())
    spool.create()
    parts = assemble(config, spool, lambda: None)
    mark_defaults(config, spool.files)
    return Life(spool.files, parts)  # type: ignore[arg-type]


def receipts(spool: Spool) -> dict[str, list[tuple[str, str]]]:
    return {key: sorted((each.name, each.sha256) for receipt in Unit(spool, key).receipts().values()
                        for each in receipt.files) for key in spool.keys()}  # fmt: skip  # noqa: SIM118


def manifests(root: Path, spool: Spool) -> Manifests:
    roots = {name: Path(target.settings["root"]) for name, target in settings(root).all_targets().items()}
    return Manifests(spool.files, roots, frozenset(settings(root).labs), spool.recoveries)


def untouched(lab: Path) -> dict[Path, tuple[int, int]]:
    """Inode and last change of every image."""
    return {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in lab.rglob("*.dcm")}


def test_a_lost_spool_comes_back_from_the_labs_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grown, with a conflict, in a folder that the lab moved, for a rule that looks at who was called."""
    monkeypatch.setattr(assembly, "LocalEngine", Idle)
    monkeypatch.setattr(outlets, "Lane", Near)
    (tmp_path / "sorter.toml").write_text(CONFIG)
    first = life(tmp_path)
    first.receive(data_set(1), data_set(2), data_set(1, series=2))
    first.turns(80)
    first.receive(data_set(3), data_set(1, pixels=b"\4\3\2\1"))
    first.turns(80)
    before = receipts(first.spool)
    assert sorted(len(files) for files in before.values()) == [1, 4]
    lab = tmp_path / "labs/memory"
    (lab / "P1/20260102_1011/001_T1").rename(lab / "analysed")
    images = untouched(lab)
    shutil.rmtree(first.spool.root)

    second = life(tmp_path)
    left_out: list[str] = []
    believed = manifests(tmp_path, second.spool)
    walk = Walk(lab, second.disk, frozenset(), lambda path, why, important: left_out.append(path), believed)
    found = [each for parcel in walk.parcels() for each in parcel.files]
    assert sorted(each.path for each in found) == sorted(map(str, images))  # and nothing of sorter's own
    assert (believed.found, left_out) == (2, [])
    second.drop("import", *(Path(each.path).read_bytes() for each in found))
    second.turns(200)
    assert receipts(second.spool) == before
    assert untouched(lab) == images
    assert not list(second.spool.quarantined())
    assert len(list(second.spool.store.rglob("*.dcm"))) == 5

    second.receive(data_set(4), data_set(2))  # it goes on as if nothing had been
    second.turns(80)
    assert len(list(lab.rglob("*.dcm"))) == 6
    assert images.items() <= untouched(lab).items()
    assert len(list((lab / "analysed").glob("*.dcm"))) == 5


@pytest.mark.parametrize(
    ("verdict", "whole"), [("listed", True), ("counted", True), ("quiet", False), ("incomplete", False)]
)
def test_to_be_found_again_makes_no_series_whole(tmp_path: Path, verdict: str, whole: bool) -> None:
    lab, files = tmp_path / "memory", Files()
    for name in ("one", "two"):
        (lab / name).mkdir(parents=True)
        (lab / name / "1.dcm").write_bytes(b"")
    (lab / "one/.sorter-x.dicom.json").write_text(json.dumps({**GOOD, "verdict": verdict}))
    believed = Manifests(files, {"memory": lab}, frozenset({"memory"}), Recoveries(tmp_path / "spool", files))
    parcels = Walk(lab, files, frozenset(), lambda *_: None, believed).parcels()
    assert {each.folder: parcel.whole for parcel in parcels for each in parcel.files} == {
        str(lab / "one"): whole,
        str(lab / "two"): True,
    }


KEY = "a" * 32
GOOD: dict[str, Any] = {
    "key": KEY, "product": "dicom", "identity": {"lab": "memory", "subject": "P1"}, "revision": 1,
    "files": [{"name": "1.dcm", "sha256": "d", "size": 1, "file": "00/x.dcm"}],
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "../../etc"}, {"key": 5}, {"product": "../x"}, {"files": "none"}, {"files": [5]}, {"identity": 3},
        {"identity": {"lab": ["memory"]}},
    ],
)  # fmt: skip
def test_what_no_sorter_wrote_is_not_believed(tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / ".sorter-x.dicom.json").write_text(json.dumps({**GOOD, **changed}))
    believed = Manifests(Files(), {"memory": tmp_path}, frozenset({"memory"}), Recoveries(tmp_path / "spool", Files()))
    believed(str(tmp_path), ".sorter-x.dicom.json")
    assert believed.found == 0
    assert not (tmp_path / "spool").exists()


def test_a_manifest_speaks_for_its_own_place_alone(tmp_path: Path) -> None:
    """Another lab's name, and names that lead elsewhere, are not taken from it."""
    files = [*GOOD["files"], {"name": "../../x.dcm", "sha256": "e", "size": 1, "file": "00/y.dcm"}]
    folder = tmp_path / "lab/here"
    folder.mkdir(parents=True)
    (folder / ".sorter-x.dicom.json").write_text(json.dumps({**GOOD, "identity": {"lab": "other"}, "files": files}))
    recoveries = Recoveries(tmp_path / "spool", Files())
    believed = Manifests(Files(), {"memory": tmp_path / "lab"}, frozenset({"memory", "other"}), recoveries)
    believed(str(folder), ".sorter-x.dicom.json")
    [found] = recoveries.of(KEY).values()
    assert (found.target, found.folder, found.names) == ("memory", "here", {"d": "1.dcm"})
    assert found.identity == Identity(lab="memory")
    believed(str(tmp_path), ".sorter-x.dicom.json")  # below no target's root
    assert believed.found == 1
