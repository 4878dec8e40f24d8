"""`sorter verify` beside a sorter that runs: damage, loss, a target put back to an earlier day, and what labs do."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sorter import verifying
from sorter.deliver.lane import Patience
from sorter.deliver.target import Later, Refused
from sorter.model import Receipt
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.crash.scenario import as_file, data_set


class Site(RunningSorter):
    """One with a lab, and short words for what a test does to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, quiet=0.3, config='[labs.memory]\nmatch = ["Modality=MR"]\nproducts = ["dicom"]\n')
        self.lab = self.labs / "memory"
        self.given = 0

    def give(self, *data_sets: bytes) -> None:
        for data in data_sets:
            self.given += 1
            part = self.spool.root / f"given-{self.given}"
            part.write_bytes(as_file(data))
            part.rename(self.spool.incoming / f"{self.given}.dcm")
        self.wait_delivered(self.given)

    def run(self, *arguments: str) -> tuple[int, Any]:
        """A command's exit code, and what it says in JSON."""
        command = [sys.executable, "-m", "sorter", *arguments, "-c", str(self.root / "sorter.toml")]
        done = subprocess.run(
            [*command, "--root", str(self.root), "--json"], capture_output=True, text=True, timeout=60
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def verify(self, *arguments: str) -> tuple[int, list[tuple[str, str, int]]]:
        """Its exit code, and (where, standing, files) of each finding."""
        code, said = self.run("verify", *arguments)
        return code, sorted((each["where"], each["standing"], len(each["names"])) for each in said["findings"])

    def images(self) -> dict[str, Path]:
        return {path.name: path for path in sorted(self.lab.rglob("*.dcm"))}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site") as running:
        yield running


def damage(path: Path) -> None:
    """Other bytes, as a disk gives them back: nobody wrote to the file."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_labs_do_is_no_fault_and_damage_is_mended(site: Site) -> None:
    site.give(*(data_set(number) for number in range(1, 5)))
    assert site.verify("--deep") == (0, [])
    first, second, third, fourth = site.images().values()
    whole = third.read_bytes()
    first.unlink()
    second.write_bytes(b"the lab's own work")
    os.utime(second, (2e9, 2e9))
    assert site.verify() == (0, [("memory", "edited by the lab", 1), ("memory", "removed by the lab", 1)])
    damage(third)
    assert site.verify()[0] == 0  # not seen without reading
    found = [("memory", "damaged", 1), ("memory", "edited by the lab", 1), ("memory", "removed by the lab", 1)]
    assert site.verify("memory", "--deep") == (1, found)
    assert site.verify("P1", "--deep", "--repair")[0] == 1
    wait_until(lambda: third.read_bytes() == whole, 20)
    site.wait_delivered(4)
    assert third.with_name(f"{third.name}.damaged").exists()
    assert site.verify("--deep") == (0, [])  # the new receipt knows what the lab did
    assert second.read_bytes() == b"the lab's own work"
    assert fourth.exists()
    assert not first.exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_target_put_back_to_an_earlier_day_is_brought_up_to_date(site: Site, tmp_path: Path) -> None:
    site.give(data_set(1), data_set(2))
    next(iter(site.images().values())).unlink()  # by the lab, long before
    shutil.copytree(site.lab, tmp_path / "backup")
    site.give(data_set(3))
    site.give(data_set(1, series=2))
    before = {name: path.read_bytes() for name, path in site.images().items()}
    assert len(before) == 3  # what the lab removed is not among them
    shutil.rmtree(site.lab)
    shutil.copytree(tmp_path / "backup", site.lab)
    assert len(site.images()) == 1
    assert site.verify() == (1, [("memory", "its folder is gone", 1), ("memory", "outdated", 1)])
    assert site.verify("--repair")[0] == 1  # what is known for sure
    wait_until(lambda: len(site.images()) == 2, 20)
    site.wait_delivered(4)
    code, found = site.verify("--target", "memory", "--since", "yesterday", "--repair")
    assert (code, ("memory", "lost", 1) in found) == (1, True)
    wait_until(lambda: len(site.images()) == 3, 20)
    site.wait_delivered(4)
    assert site.verify("--deep") == (0, [])
    assert {name: path.read_bytes() for name, path in site.images().items()} == before


@pytest.mark.timeout(120)
def test_damage_in_the_store_is_set_aside_and_what_comes_again_takes_its_place(site: Site) -> None:
    site.give(data_set(1), data_set(2))
    first, second = sorted(site.spool.store.rglob("*.dcm"))
    original = second.read_bytes()
    damage(first)
    second.unlink()
    assert site.verify("--deep", "--repair") == (1, [("store", "damaged", 1), ("store", "lost", 1)])
    wait_until(lambda: not first.exists(), 20)
    assert site.spool.aside.count() == 1
    for path in list(site.images().values()):  # as the sentence says
        shutil.copyfile(path, site.spool.incoming / path.name)
    wait_until(lambda: site.verify("--deep") == (0, []), 40)
    assert original in [path.read_bytes() for path in site.spool.store.rglob("*.dcm")]
    site.wait_delivered(2)
    assert len(site.images()) == 2


def test_a_kind_of_target_that_gives_nothing_back_is_no_fault() -> None:
    held = Receipt("k", "dicom", "pacs", 1, "PACS", (), "2026-01-02")
    answers = (Refused("it gives back nothing", never=True), Refused("a link is in the way"), Later("it is away"))
    found = [list(verifying.at_target(held, answer, was_lost=False)) for answer in answers]
    assert [each.standing.is_fault for [each] in found] == [False, True, True]


def test_a_target_that_is_away_is_a_fault_with_a_sentence(site: Site) -> None:
    site.give(data_set(1))
    (site.lab / ".sorter/id").rename(site.lab / ".sorter/away")
    code, said = site.run("verify", "--deep")
    assert (code, said["findings"][0]["standing"]) == (1, "could not be compared")
    assert "the mount is away" in said["findings"][0]["why"]


@dataclasses.dataclass(frozen=True)
class Hung:
    """A target whose mount hangs, and that writes down how often it was asked."""

    asked: Path
    code: str = "hung_target:Hung"
    account: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return {"asked": str(self.asked)}


HUNG = """
import os, time

class Hung:
    def __init__(self, settings, files):
        self.asked = settings["asked"]

    def verify(self, receipt, deep=False):
        os.close(os.open(self.asked + "/" + receipt.key[:8], os.O_CREAT))
        while True:
            time.sleep(60)
"""


def test_a_target_that_hangs_is_asked_a_time_or_two_whatever_there_is_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hung_target.py").write_text(HUNG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outlet = Hung(tmp_path / "asked")
    outlet.asked.mkdir()
    receipts = [Receipt(f"{n:032x}"[::-1], "dicom", "nas", 1, "S1", (), "2026-01-02") for n in range(50)]
    targets = verifying.Targets({"nas": outlet}, deep=False, patience=Patience(silence=0.5))
    try:
        answers = [answer for _, answer in targets.compare(receipts)]
    finally:
        targets.stop()
    assert len(answers) == 50
    assert all(isinstance(each, Later) and "did not move" in each.why for each in answers)
    assert 1 <= len(list(outlet.asked.iterdir())) <= verifying.AT_ONCE
