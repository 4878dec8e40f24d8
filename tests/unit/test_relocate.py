"""`relocate`: a lab's tree that was moved is found again, nothing is delivered twice, the configuration says where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli

from sorter.config import load, with_lab_root
from tests.crash.scenario import CONFIG, Near, data_set
from tests.unit.test_withdraw import Site
from tests.unit.test_withdraw import site as site


@pytest.mark.parametrize(
    "text",
    [
        '[labs.memory]\nroot = "/old" # here\nmatch = []\n',
        "[labs.memory]\r\nmatch = []\r\nroot='/old'\r\n",
        '# labs\n[labs.memory] # of Doe\nmatch = ["Modality=MR"]\n[labs.other]\nroot = "/other"\n',
        '\ufeff[labs]\nmemory.root = "/old"\nother.root = "/x"\n',
    ],
)
def test_one_key_changes_and_nothing_else(text: str) -> None:
    new = with_lab_root(text, "memory", '/new "place"/ä')
    assert new is not None
    was, now = (tomli.loads(each.removeprefix("\ufeff")) for each in (text, new))
    assert now["labs"]["memory"]["root"] == '/new "place"/ä'
    del now["labs"]["memory"]["root"]
    was["labs"]["memory"].pop("root", None)
    assert now == was
    assert ("# here" in new) == ("# here" in text)


@pytest.mark.parametrize(
    "text", ['labs = {memory = {root = "/old"}, other = {root = "/x"}}', '[labs.memory]\nroot = """/o"""\n']
)
def test_what_is_written_otherwise_is_left_to_a_person(text: str) -> None:
    new = with_lab_root(text, "memory", "/new")
    assert new is None or tomli.loads(new)["labs"]["memory"]["root"] == "/new"


def images(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*.dcm"))


def reloaded(site: Site) -> Site:
    site.parts.reload(load(site.root / "sorter.toml", site.root), site.disk)
    return site


def test_a_tree_that_was_moved(site: Site, tmp_path: Path) -> None:
    old, new = site.root / "labs/memory", tmp_path / "nas" / "memory"
    before, receipts = images(old), sorted(site.spool.store.rglob("receipts/*.json"))
    content = [path.read_bytes() for path in receipts]
    new.parent.mkdir()
    old.rename(new)
    site.receive(data_set(3), data_set(1, series=3))
    site.turns(80)  # what is owed waits: the marker is gone
    done = site.command("relocate", "memory", str(new))
    assert done.exit_code == 0, done.output
    assert "2 deliveries were compared: 3 files are as they were delivered" in done.output
    assert f'root = "{new}"' in (site.root / "sorter.toml").read_text()
    assert [path.read_bytes() for path in receipts] == content  # receipts are relative to the root
    reloaded(site).turns(80)
    assert images(new) == sorted([*before, f"{Path(before[0]).parent}/000-0001-000003.dcm",
                                  "P1/20260102_1011/003_T1/000-0003-000001.dcm"])  # fmt: skip
    assert not old.exists()
    assert site.command("verify").exit_code == 0
    assert site.command("relocate", "memory", str(new)).exit_code == 0  # again: only compared


def test_a_tree_that_was_copied_must_be_whole(site: Site, tmp_path: Path) -> None:
    old, new = site.root / "labs/memory", tmp_path / "new"
    shutil.copytree(old, new)
    site.receive(data_set(1, series=3))
    site.turns(80)  # delivered to the old place after the copy
    site.delivered()[0].unlink()  # the lab's own decision, which is none of ours
    done = site.command("relocate", "memory", str(new))
    assert done.exit_code == 1
    assert "1 file is missing in" in str(done.exception)
    assert "003_T1/000-0003-000001.dcm" in str(done.exception)
    assert load(site.root / "sorter.toml", site.root).lab_root("memory") == old
    shutil.copytree(old, new, dirs_exist_ok=True)
    assert site.command("relocate", "memory", str(new)).exit_code == 0
    reloaded(site).receive(data_set(1, series=4))
    site.turns(80)
    assert "P1/20260102_1011/004_T1/000-0004-000001.dcm" in images(new)
    assert len(images(old)) == 3


def test_a_tree_that_was_copied_before_a_series_grew_is_not_whole(site: Site, tmp_path: Path) -> None:
    """What lies beside says that it is as an earlier revision left it; what came since is missing all the same."""
    old, new = site.root / "labs/memory", tmp_path / "new"
    shutil.copytree(old, new)
    site.receive(data_set(3))
    site.turns(80)
    done = site.command("relocate", "memory", str(new))
    assert done.exit_code == 1
    assert "1 file is missing in" in str(done.exception)
    assert "001_T1/000-0001-000003.dcm" in str(done.exception)
    shutil.copytree(old, new, dirs_exist_ok=True)
    assert site.command("relocate", "memory", str(new)).exit_code == 0


def test_what_was_badly_copied_is_told_before_the_old_place_is_removed(site: Site, tmp_path: Path) -> None:
    """It looks as if the lab had edited it; where the images have left the store, the old copy may be the only one."""
    old, new = site.root / "labs/memory", tmp_path / "new"
    shutil.copytree(old, new)
    site.delivered()[1].write_bytes(b"edited before the copy")
    cut, edited = (new / name for name in images(new)[:2])
    cut.write_bytes(cut.read_bytes()[:100])
    edited.write_bytes(b"edited before the copy")
    done = site.command("relocate", "memory", str(new))
    assert done.exit_code == 0, done.output
    assert "1 of them lie in" in done.output
    assert f"(first {cut.relative_to(new)})" in done.output


def test_what_is_not_the_lab_s_tree(site: Site, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    assert "has no .sorter/id" in str(site.command("relocate", "memory", str(empty)).exception)
    (empty / ".sorter").mkdir()
    (empty / ".sorter/id").write_text("another\n")
    assert "is another folder than" in str(site.command("relocate", "memory", str(empty)).exception)
    (site.root / "labs/memory").rename(tmp_path / "away")
    assert "nothing of what was delivered" in str(site.command("relocate", "memory", str(empty)).exception)
    assert "lies inside" in str(site.command("relocate", "memory", str(site.root / "spool/x")).exception)
    assert 'did you mean "memory"' in str(site.command("relocate", "memroy", str(empty)).exception)


def test_what_the_old_place_says_of_the_lab_is_not_heard_any_more(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at its corner was under way, and ends when the lab's root is another."""
    waiting: list[Callable[[], None]] = []
    look = Near.look_at_lab
    monkeypatch.setattr(Near, "look_at_lab", lambda self, *asked: waiting.append(lambda: look(self, *asked)))
    old, new = site.root / "labs/memory", tmp_path / "new"
    shutil.copytree(old, new)
    (old / ".sorter/lab.toml").write_text("[deliver]\nproducts = []\n")
    site.parts.lab_corners.turn(site.now)
    assert len(waiting) == 1
    (site.root / "sorter.toml").write_text(with_lab_root(CONFIG, "memory", str(new)) or "")
    reloaded(site)
    waiting.pop(0)()
    site.parts.lab_corners.turn(site.now)
    assert not (site.spool.labs / "memory/lab.toml").exists()
    while waiting:
        waiting.pop(0)()
    site.parts.lab_corners.turn(site.now)
    site.receive(data_set(1, series=5))
    site.turns(80)
    assert "P1/20260102_1011/005_T1/000-0005-000001.dcm" in images(new)
