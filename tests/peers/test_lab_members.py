"""The labs' corners among real accounts and groups: who may write there, what a member can do to others from there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import queue
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import made_account
from sorter.builtin._path_lab import MOST, MOST_OF_ALL, MOST_REQUESTS
from sorter.builtin.path_target import mark
from sorter.deliver.lane import Lane
from sorter.deliver.target import LabLook, LabSeen, Wanted
from sorter.durable import Files
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.crash.scenario import as_file, data_set

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

SOON = 60.0
CONFIG = """
[delivery]
look_every = 0.3

[labs.memory]
match = ["PatientID=MEM*"]
root = "{memory}"
group = "{memory_group}"
umask = "007"
products = ["dicom"]

[labs.vision]
match = ["PatientID=VIS*"]
root = "{vision}"
group = "{vision_group}"
umask = "007"
products = ["dicom"]
"""


@contextlib.contextmanager
def acting(name: str) -> Iterator[None]:
    """This process is that account meanwhile, with all its groups."""
    entry, groups = pwd.getpwnam(name), os.getgroups()
    os.setgroups(os.getgrouplist(name, entry.pw_gid))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


class Site:
    """A sorter of root's; ann is of lab memory, vic of lab vision, eve of none."""

    def __init__(self, place: Path, stack: contextlib.ExitStack) -> None:
        self.roots = {lab: place / lab for lab in ("memory", "vision")}
        self.groups = {lab: f"lm{os.getpid()}{lab[0]}" for lab in self.roots}
        for lab, root in self.roots.items():
            subprocess.run(["groupadd", "--system", self.groups[lab]], check=True)
            stack.callback(subprocess.run, ["groupdel", self.groups[lab]], check=True)
            root.mkdir()
            subprocess.run(["chgrp", self.groups[lab], root], check=True)
            root.chmod(0o2770)
            mark(root, Files())
        self.names = {who: f"lm{os.getpid()}{who}" for who in ("ann", "vic", "eve")}
        for who, groups in (("ann", [self.groups["memory"]]), ("vic", [self.groups["vision"]]), ("eve", [])):
            stack.enter_context(made_account(self.names[who], *groups))
        config = CONFIG.format(**self.roots, **{f"{lab}_group": group for lab, group in self.groups.items()})
        self.sorter = stack.enter_context(RunningSorter(place / "root", quiet=0.3, config=config))
        for study, subject in (("1.2.7", "MEM01"), ("1.2.8", "VIS01")):
            self.drop(subject, study)
        self.sorter.wait_delivered(4)
        for lab, subject in (("memory", "MEM01"), ("vision", "VIS01")):
            wait_until(lambda: subject in self.scans(lab), SOON)  # noqa: B023

    def drop(self, subject: str, study: str) -> None:
        for number in (1, 2):
            image = as_file(data_set(number, subject=subject, study=study))
            (self.sorter.spool.incoming / f"{subject}-{study}-{number}.dcm").write_bytes(image)

    def corner(self, lab: str) -> Path:
        return self.roots[lab] / ".sorter"

    def scans(self, lab: str) -> str:
        path = self.corner(lab) / "scans.tsv"
        return path.read_text() if path.exists() else ""

    def asks(self, who: str, lab: str, name: str, text: str) -> None:
        with acting(self.names[who]):
            (self.corner(lab) / "requests" / f"{name}.toml").write_text(text)

    def answer(self, lab: str, name: str) -> str:
        path = self.corner(lab) / "requests" / f"{name}.answer.txt"
        wait_until(path.exists, SOON)
        return path.read_text()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.skip("accounts and groups are made by root")
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sorter-")))
        place.chmod(0o711)
        yield Site(place, stack)


def test_members_write_there_and_nobody_else(site: Site) -> None:
    corner = site.corner("memory")
    for folder in (corner, corner / "requests"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o2775
        assert folder.group() == site.groups["memory"]
    for who in ("vic", "eve"):
        with acting(site.names[who]), pytest.raises(PermissionError):
            (corner / "lab.toml").write_text("")
        with pytest.raises(PermissionError):
            site.asks(who, "memory", "theirs", 'subject = "*"\ndest = "x"\n')
        with acting(site.names[who]), pytest.raises(PermissionError):
            (corner / "scans.tsv").read_text()
    with acting(site.names["ann"]):
        assert "MEM01" in (corner / "scans.tsv").read_text()
        (corner / "lab.toml").write_text('[naming]\nfolder = "ours/{subject}"\n')
    wait_until((site.sorter.spool.labs / "memory" / "lab.toml").exists, SOON)
    site.drop("MEM02", "1.2.9")
    site.sorter.wait_delivered(6)
    assert (site.roots["memory"] / "ours/MEM02").is_dir()
    site.asks("ann", "memory", "mine", 'subject = "*"\ndest = "pilot"\nname = "flat"\n')
    assert site.answer("memory", "mine").startswith("done\n")
    copies = [each for each in (site.roots["memory"] / "pilot").rglob("*") if each.is_file()]
    assert len(copies) == 4
    assert {(each.group(), stat.S_IMODE(each.stat().st_mode)) for each in copies} == {(site.groups["memory"], 0o660)}
    with acting(site.names["ann"]):
        (corner / "requests" / "mine.toml").unlink()
        (corner / "requests" / "mine.answer.txt").unlink()


def test_a_file_that_a_stranger_slipped_in_is_not_obeyed(site: Site) -> None:
    """A member opens the door to all: what others leave there counts for nothing."""
    requests = site.corner("memory") / "requests"
    path = requests / "slipped.toml"
    path.write_text('subject = "*"\ndest = "slipped"\n')
    os.chown(path, pwd.getpwnam(site.names["eve"]).pw_uid, -1)
    assert "which is not of this lab" in site.answer("memory", "slipped")
    assert not (site.roots["memory"] / "slipped").exists()


def test_from_a_labs_corner_no_way_leads_to_another_lab(site: Site) -> None:
    """sorter runs as root, who could write anywhere: links of a lab's member must not make it do so."""
    corner, other = site.corner("memory"), site.roots["vision"]
    before = sorted((each, each.stat().st_mtime_ns) for each in other.rglob("*") if each.name != "scans.tsv")
    with acting(site.names["ann"]):
        (corner / "requests").rename(corner / "requests-of-old")
        (corner / "requests").symlink_to(other / ".sorter" / "requests")
        (site.roots["memory"] / "way").symlink_to(other)
    wait_until(lambda: not (corner / "requests").is_symlink() and (corner / "requests").is_dir(), SOON)
    wait_until(lambda: stat.S_IMODE((corner / "requests").stat().st_mode) == 0o2775, SOON)
    for name, dest in (("link", "way"), ("below", "way/VIS01"), ("up", "../vision"), ("abs", str(other))):
        site.asks("ann", "memory", name, f'subject = "MEM01"\ndest = "{dest}"\nforce = true\n')
        assert site.answer("memory", name).startswith("not done\n")
    with acting(site.names["ann"]):
        (corner / "scans.tsv").unlink()
        (corner / "scans.tsv").symlink_to(other / "stolen")
        (corner / "lab.toml").unlink()
        (corner / "lab.toml").symlink_to(other / ".sorter" / "id")
    wait_until(lambda: not (corner / "scans.tsv").is_symlink() and (corner / "scans.tsv").exists(), SOON)
    page = corner / "ERRORS.txt"
    wait_until(lambda: page.exists() and "symbolic link" in page.read_text(), SOON)
    after = sorted((each, each.stat().st_mtime_ns) for each in other.rglob("*") if each.name != "scans.tsv")
    assert [each for each in after if each[0].is_file()] == [each for each in before if each[0].is_file()]
    assert [each for each, _ in after] == [each for each, _ in before]


def test_a_lab_that_breaks_its_own_corner_hurts_no_other(site: Site) -> None:
    corner = site.corner("memory")
    with acting(site.names["ann"]):
        corner.rename(site.roots["memory"] / "gone")
    site.drop("MEM03", "1.2.10")
    site.drop("VIS02", "1.2.11")
    wait_until(lambda: "VIS02" in site.scans("vision"), SOON)
    assert not list(site.roots["memory"].rglob("*MEM03*"))
    with acting(site.names["ann"]):
        (site.roots["memory"] / "gone").rename(corner)
    site.sorter.wait_delivered(10)
    wait_until(lambda: "MEM03" in site.scans("memory"), SOON)


def test_a_worker_stays_small_whatever_a_lab_heaps_up(tmp_path: Path) -> None:
    """As many and as large requests as are read at a look, the largest lab.toml, a table of 20,000 series."""
    root, table = tmp_path / "lab", b"2026-01-05\tS0001\t\t3 T1w\t192\tlisted\tS0001/20260105_1011/003_T1w\t\n" * 20_000
    root.mkdir()
    mark(root, Files())
    (tmp_path / "table").write_bytes(table)
    page = Wanted("scans.tsv", hashlib.sha256(table).hexdigest(), len(table), "table")
    answers: queue.Queue[object] = queue.Queue()
    code = "sorter.builtin.path_target:PathTarget"
    lane = Lane("memory", code, {"root": str(root)}, lambda *_: 0, lambda *_: None, stay=True)

    def look() -> LabSeen:
        lane.look_at_lab(LabLook(pages=(page,)), lambda _: os.open(tmp_path / "table", os.O_RDONLY), answers.put)
        seen = answers.get(timeout=SOON)
        assert isinstance(seen, LabSeen)
        return seen

    try:
        assert look().unwritten == ()
        for number in range(MOST_REQUESTS):
            (root / ".sorter/requests" / f"{number:03}.toml").write_bytes(b"#" * (MOST_OF_ALL // MOST_REQUESTS))
        (root / ".sorter/lab.toml").write_bytes(b"#" * MOST)
        for _ in range(10):
            assert len(look().requests) == MOST_REQUESTS
        lines = Path(f"/proc/{lane.pid}/smaps_rollup").read_text().splitlines()
        assert next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) <= 25_000
    finally:
        lane.stop(10.0)
