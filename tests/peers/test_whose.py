"""Whose it is, on real images: sent by DCMTK to a sorter that runs, claimed, fixed, and moved to another folder."""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from conftest import Account, made_account
from sorter.cli.main import sorter as command
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until

pytestmark = [pytest.mark.peers, pytest.mark.sample, pytest.mark.dcmtk, pytest.mark.timeout(300)]

CONFIG = """
[delivery]
look_every = 1

[plugins.identity]
extract = ["siemens", "xnat", 'StationName ~ ^(?P<lab>[a-z]+)bay(?P<bay>\\d)$', "CalledAE"]
table = "{folder}/subjects.csv"

[labs.fmrif]
root = "{folder}/roots/fmrif"
{more}

[labs.phantoms]
projects = ["DCM*", "PHANTOMS"]

[labs.gehc]

[labs.xa]
may_claim = ["StationName=fmrif*"]
"""
TABLE = "StudyDescription,StationName,lab,subject\nKonvertertest,3T-PHILIPSMR,phantoms,P-02\n"
SENT = {
    "nih-siemens/mr_0003": 2, "nih-siemens/mr_0004": 2, "multiecho-qt2": 4, "philips-epi": 3, "ge-b0map": 2,
    "nih-ge/mr_0005": 3, "siemens-xa10": 2,
}  # fmt: skip


class Site(RunningSorter):
    """A sorter, and whoever sends to it and asks it."""

    dcmtk: Any
    sample: Path

    def send(self, folder: str, most: int, called: str = "SORTER") -> None:
        files = sorted(path for path in (self.sample / "data" / folder).iterdir() if "README" not in path.name)[:most]
        assert files
        done = self.dcmtk.run("storescu", "-aet", "SCANNER", "-aec", called, "127.0.0.1", self.port, *files)
        assert done.returncode == 0, done.stderr

    def say(self, *arguments: str) -> str:
        where = ["-c", str(self.root / "sorter.toml"), "--root", str(self.root)]
        done = CliRunner().invoke(command, [*arguments, *where])
        assert done.exception is None, f"{done.output}{done.exception}"
        return done.output

    def places(self) -> dict[str, list[str]]:
        """Lab to subjects that it has folders of."""
        roots = {path.name: path for path in [*self.labs.iterdir(), *(self.root / "roots").iterdir()]}
        return {
            lab: found
            for lab, root in roots.items()
            if (found := sorted(each.name for each in root.iterdir() if each.name[0] != "."))
        }


@contextlib.contextmanager
def running(folder: Path, dcmtk: Any, sample: Path, more: str = "") -> Iterator[Site]:
    (folder / "subjects.csv").write_text(TABLE)
    made = Site(folder, config=CONFIG.format(folder=folder, more=more))
    made.dcmtk, made.sample = dcmtk, sample
    made.start()
    try:
        made.say("check", "--targets")
        yield made
    finally:
        made.stop()


@pytest.fixture
def site(tmp_path: Path, dcmtk: Any, sample: Path) -> Iterator[Site]:
    (tmp_path / "site/roots/fmrif").mkdir(parents=True)
    with running(tmp_path / "site", dcmtk, sample) as made:
        yield made


def test_a_day_of_the_admin(site: Site) -> None:
    for folder, most in SENT.items():
        site.send(folder, most, "XA" if folder == "siemens-xa10" else "SORTER")
    site.wait_delivered(18)
    assert site.places() == {
        "fmrif": ["DEV"], "phantoms": ["P-02", "PHANTOM003"], "gehc": ["ANON2339"], "xa": ["IRC_-_Slice_Timing"],
        "unassigned": ["DEV"],
    }  # fmt: skip
    before = {path: path.read_bytes() for path in site.spool.store.rglob("*.dcm")}

    said = site.say("fix", "PHANTOM003", "--as", "QT2-1")
    assert "The images are unchanged" in said
    wait_until(lambda: site.places()["phantoms"] == ["P-02", "QT2-1"], 60, "the subject to be called otherwise")
    site.send("multiecho-qt2", 6)  # two more, of which nobody said anything
    site.wait_delivered(20)
    assert site.places()["phantoms"] == ["P-02", "QT2-1"]
    assert {path: path.read_bytes() for path in before} == before
    assert "says that its subject is QT2-1" in site.say("why", "QT2-1")
    assert list((site.labs / "phantoms/QT2-1").rglob("*.nii.gz"))  # made anew, under the new name

    site.say("claim", "DEV", "--lab", "xa")  # of DEV only what belongs to nobody
    wait_until(lambda: "unassigned" not in site.places(), 60, "what was claimed to move")
    assert site.places() == {
        "fmrif": ["DEV"], "phantoms": ["P-02", "QT2-1"], "gehc": ["ANON2339"], "xa": ["DEV", "IRC_-_Slice_Timing"],
    }  # fmt: skip

    old, new = site.root / "roots/fmrif", site.root / "roots/elsewhere"
    inodes = sorted(path.stat().st_ino for path in old.rglob("*.dcm"))
    shutil.move(old, new)
    assert "4 deliveries were compared: 8 files are as they were delivered" in site.say("relocate", "fmrif", str(new))
    site.send("nih-siemens/mr_0005", 2)
    site.wait_delivered(22)
    now = sorted(path.stat().st_ino for path in new.rglob("*.dcm"))
    assert len(now) == 6
    assert set(inodes) < set(now)
    assert not old.exists()
    site.say("verify", "--deep")


def test_a_rule_that_is_mended_and_a_table_that_changes_move_what_is_nobodys(site: Site) -> None:
    site.send("nih-ge/mr_0005", 3)
    site.wait_delivered(3)
    assert site.places() == {"unassigned": ["DEV"]}
    (site.root / "subjects.csv").write_text(f"{TABLE},fmrif3tb,gehc,G1\n")
    wait_until(lambda: site.places() == {"gehc": ["G1"]}, 60, "the table to be read again")
    assert "the rules were asked again for 1 series: 1 go to lab gehc" in site.log.read_text()


def test_flags_become_a_rule_that_the_lab_s_worker_finds_and_apply_moves_what_was_delivered(site: Site) -> None:
    site.send("nih-siemens/mr_0003", 2)
    site.wait_delivered(2)
    lab = site.root / "roots/fmrif"
    said = site.say(
        "rename", "DEV", str(lab / "pe"), "--series", "EPI PE=*", "--name", "flat", "--from-now-on", "--yes"
    )
    assert "Series of subject DEV, called EPI PE=*, come into pe and have files called" in said
    wait_until(lambda: "lab fmrif has other rules now" in site.log.read_text(), 60, "the rule to be found")
    site.send("nih-siemens/mr_0004", 2)
    site.wait_delivered(4)
    assert len(list((lab / "pe").glob("DEV_*.dcm"))) == 2
    assert len(list((lab / "DEV").rglob("*.dcm"))) == 2  # what was delivered stays
    assert "1 series would lie elsewhere" in site.say("rules", "apply", "--yes")
    wait_until(lambda: len(list(lab.glob("pe*/DEV_*.dcm"))) == 4, 60, "it to be moved")
    wait_until(lambda: not list((lab / "DEV").rglob("*.dcm")), 60, "the old place to be left")
    assert "1 rule in" in site.say("rules", "--lab", "fmrif")
    site.say("verify", "--deep")


def test_a_member_of_the_lab_writes_lists_and_removes_a_rule_without_a_right_on_the_spool(
    dcmtk: Any, sample: Path
) -> None:
    group = f"st{os.getpid()}f"
    with contextlib.ExitStack() as stack:
        if os.geteuid() != 0:
            pytest.skip("accounts and groups are made by root")
        subprocess.run(["groupadd", "--system", group], check=True)
        stack.callback(subprocess.run, ["groupdel", group], check=True)
        amy, eve = (stack.enter_context(made_account(f"st{os.getpid()}{who}", *of)) for who, of in
                    (("amy", (group,)), ("eve", ())))  # fmt: skip
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sorter-")))
        lab = place / "site/roots/fmrif"
        lab.mkdir(parents=True)
        place.chmod(0o711)
        os.chown(lab, 0, grp.getgrnam(group).gr_gid)
        lab.chmod(0o2770)
        site = stack.enter_context(running(place / "site", dcmtk, sample, f'group = "{group}"'))
        site.send("nih-siemens/mr_0003", 2)
        site.wait_delivered(2)

        def typed(who: Account, *words: str) -> tuple[int, str]:
            prefix = [each.replace("--clear-groups", "--init-groups") for each in who.prefix]
            done = subprocess.run([*prefix, sys.executable, "-m", "sorter", *words], capture_output=True, text=True,
                                  cwd=lab if who is amy else "/", timeout=100,
                                  env={**os.environ, "SORTER_SOCKET": str(site.spool.root / "run/sock")})  # fmt: skip
            return done.returncode, done.stdout + done.stderr

        asked = ["rename", "DEV", str(lab / "pe"), "--series", "EPI*", "--from-now-on", "--yes"]
        wait_until(
            lambda: os.access(lab / ".sorter", os.X_OK) and (lab / ".sorter").stat().st_mode & 0o020, 60, "corner"
        )
        code, said = typed(amy, *asked)
        assert code == 0, said
        assert "Series of subject DEV, called EPI*, come into pe/{subject}/" in said
        assert typed(eve, *asked)[0] == 1
        wait_until(lambda: "lab fmrif has other rules now" in site.log.read_text(), 60, "the rule to be found")
        site.send("nih-siemens/mr_0004", 2)
        site.wait_delivered(4)
        assert len(list((lab / "pe").rglob("*.dcm"))) == 2
        assert f"By st{os.getpid()}amy" in typed(amy, "rules")[1]
        assert typed(amy, "rules", "remove", "1")[0] == 0
        assert "no rules" in typed(amy, "rules")[1]
