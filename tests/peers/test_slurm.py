"""Products by a real Slurm: every one is made once, whatever is killed, drained or cancelled meanwhile."""

from __future__ import annotations

import fnmatch
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Account
from sorter import __version__
from sorter.spool import Unit
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer, write_series
from sorter.testing.waiting import wait_until
from tests.peers import slurm
from tests.peers.slurm import Cluster
from tests.peers.test_main_job import delivered_nifti, expected_nifti

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]

PLUGIN = """
import os, socket, time
from pathlib import Path
from sorter import Product, hookimpl

def sees(job):
    found = sorted(os.listdir(SPOOL))
    Path(job.scratch, "out.txt").write_text(f"{found} {os.environ.get('SECRET_TOKEN')}")

def waits(job):
    print("step 3 of 7", flush=True)
    while not Path(GO).exists(): time.sleep(0.1)
    Path(job.scratch, "out.txt").write_text("waited")

def leads_out(job):
    os.symlink("/etc", Path(job.scratch, "sub"))

@hookimpl
def sorter_products(settings):
    return [Product(name, f"nodes:{name}") for name in ("sees", "waits", "leads_out")]
"""

CONFIG = """
[sorter]
plugins = "{place}/plugins"
[engine]
kind = "slurm"
[engine.slurm]
shared = "{place}/share/jobs"
jobs = {jobs}
[engine.slurm.labs.second]
partition = "other"
[labs.first]
match = ["PatientID=A*"]
products = ["dicom", "nifti"]
[labs.second]
match = ["PatientID=B*"]
products = ["dicom", "nifti"]
[labs.sees]
match = ["PatientID=S*"]
products = ["dicom", "sees", "waits", "leads_out"]
[labs.sample]
match = ["PatientID=*"]
products = ["dicom", "nifti"]
"""

MANY = 200


@pytest.fixture
def cluster(account: Account) -> Iterator[tuple[Cluster, Path]]:
    with slurm.running(account) as found:
        yield found


def sorter_of(place: Path, account: Account, jobs: int = 20) -> RunningSorter:
    plugins = place / "plugins"
    plugins.mkdir()
    code = PLUGIN.replace("SPOOL", repr(str(place / "root" / "spool"))).replace("GO", repr(str(place / "go")))
    (plugins / "nodes.py").write_text(code)
    for each in (plugins, plugins / "nodes.py"):
        os.chown(each, account.uid, account.uid)
    return RunningSorter(place / "root", config=CONFIG.format(place=place, jobs=jobs), prefix=account.prefix)


def status(sorter: RunningSorter) -> str:
    command = [sys.executable, "-m", "sorter", "status", "-c", sorter.root / "sorter.toml", "--root", sorter.root]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def why(sorter: RunningSorter, subject: str) -> str:
    command = [sys.executable, "-m", "sorter", "why", subject, "-c", sorter.root / "sorter.toml", "--root", sorter.root]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def drop(sorter: RunningSorter, account: Account, plans: list[Plan]) -> None:
    """The series of these, as one dropped folder."""
    folder = sorter.root / f"drop-{plans[0].patient_id}"
    for plan in plans:
        write_series(folder / plan.patient_id, localizer(plan))
    for each in (folder, *folder.rglob("*")):
        os.chown(each, account.uid, account.uid)
    folder.rename(sorter.spool.incoming / folder.name)


def at_labs(sorter: RunningSorter, pattern: str) -> int:
    """Counted by `os.walk`: a folder that is renamed meanwhile is none of its business."""
    return sum(len(fnmatch.filter(files, pattern)) for _, _, files in os.walk(sorter.labs))


def shared(place: Path) -> list[str]:
    return [name for name in os.listdir(place / "share" / "jobs") if not name.startswith(".")]


def test_two_hundred_jobs(cluster: tuple[Cluster, Path], account: Account) -> None:
    nodes, place = cluster
    sorter = sorter_of(place, account)
    plans = [Plan(seed=n, size=32, patient_id=f"{'AB'[n % 2]}{n:03d}") for n in range(MANY)]
    sorter.start()
    try:
        # A drained node: images are delivered, and it is said what the products wait for.
        nodes.node("drain")
        drop(sorter, account, plans[:20])
        wait_until(lambda: at_labs(sorter, "*.dcm") == 60, 120, "the images of 20 series")
        said = wait_until(lambda: "takes jobs" in (text := status(sorter)) and text, 60, "it to be said")
        assert "no node of the partition that is the usual one of Slurm takes jobs (1 drained)" in said
        assert "no node of the partition other of Slurm takes jobs" in said
        assert "20 products wait; images are delivered meanwhile" in said
        assert "of Slurm waits (" in why(sorter, "A000")
        assert nodes.submitted() == 20
        nodes.node_again()

        # All the others, and sorter killed in their middle.
        drop(sorter, account, plans[20:])
        wait_until(lambda: at_labs(sorter, "*.nii.gz") >= 180, 300, "the first products")
        sorter.kill()
        at_the_end = set(nodes.jobs())
        assert at_the_end, "some were in Slurm's hands"
        sorter.start()

        # A job that somebody cancels, and a node that fails below its jobs.
        cancelled = wait_until(lambda: nodes.jobs("RUNNING"), 120, "a running job")[0]
        nodes.says("scancel", cancelled)
        wait_until(lambda: at_labs(sorter, "*.nii.gz") >= 300, 600, "more products")
        failing = wait_until(lambda: nodes.jobs("RUNNING"), 120, "a running job")
        nodes.node("down")
        wait_until(lambda: not nodes.jobs("RUNNING", "COMPLETING"), 120, "the node's jobs to be over")
        nodes.node_again()

        sorter.wait_delivered(3 * MANY, timeout=900)
        for series in sorter.series():
            made = [each["says"] for each in Unit(sorter.spool, series.key).story() if "nifti was made" in each["says"]]
            assert len(made) == 1, (series.subject, made)
        assert len(list(sorter.labs.glob("*/*/*/nifti/*.nii.gz"))) == at_labs(sorter, "*.nii.gz")
        assert {path.parts[len(sorter.labs.parts) + 1] for path in sorter.labs.rglob("*.nii.gz")} == {
            plan.patient_id for plan in plans
        }
        wait_until(lambda: shared(place) == [], 60, "the share to be empty")
        assert nodes.jobs() == []
        print(f"{nodes.submitted()} jobs were submitted for {MANY} products; {len(at_the_end)} outlived a kill -9")
        assert MANY < nodes.submitted() <= MANY + 1 + len(failing) + 4
        assert "takes jobs" not in status(sorter)
    finally:
        sorter.stop()


def test_what_a_job_sees_and_says(
    cluster: tuple[Cluster, Path], account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, place = cluster
    monkeypatch.setenv("SECRET_TOKEN", "canary-secret")
    with sorter_of(place, account) as sorter:
        drop(sorter, account, [Plan(seed=1, size=16, patient_id="S1")])
        sorter.wait_event("delivered", 120, product="sees")
        made = [each.read_text() for each in sorter.labs.rglob("*.txt")]
        assert made == ["[] None"], "it sees no spool, and no secret of ours"
        wait_until(lambda: "leads_out could not be made" in why(sorter, "S1"), 60, "a link to be refused")
        assert "'sub' is no regular file" in why(sorter, "S1")
        said = wait_until(lambda: "step 3 of 7" in (text := why(sorter, "S1")) and text, 60, "what it prints")
        assert "of Slurm is running on " in said
        assert "of Slurm is running on " in status(sorter)
        folder = next(path for path in (place / "share" / "jobs").iterdir() if path.name.endswith("waits"))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert "S1" not in "".join(nodes.says("scontrol", "show", "jobs"))

        # Withdrawn: its job is cancelled.
        [series] = sorter.series()
        where = ["-c", str(sorter.root / "sorter.toml"), "--root", str(sorter.root)]
        command = [*account.prefix, sys.executable, "-m", "sorter", "withdraw", series.series_uids[0], *where]
        code = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd="/", timeout=60)
        confirm = json.loads(code.stdout)["code"]
        subprocess.run([*command, "--confirm", confirm], check=True, capture_output=True, cwd="/", timeout=60)
        wait_until(lambda: not nodes.jobs() and not shared(place), 60, "its jobs to be gone")


def test_a_lab_whose_terms_slurm_refuses_holds_up_no_other(cluster: tuple[Cluster, Path], account: Account) -> None:
    _, place = cluster
    sorter = sorter_of(place, account)
    path = sorter.root / "sorter.toml"
    path.write_text(path.read_text().replace('partition = "other"', 'partition = "nowhere"'))
    with sorter:
        drop(sorter, account, [Plan(seed=n, size=16, patient_id=f"{'AB'[n % 2]}{n:03d}") for n in range(16)])
        wait_until(lambda: at_labs(sorter, "*.nii.gz") == 24, 40, "the products of the other lab")
        said = status(sorter)
        assert "Slurm does not take a job of lab second: " in said
        assert "8 products wait; images are delivered meanwhile" in said


def test_a_check_says_whether_a_job_could_run(cluster: tuple[Cluster, Path], account: Account) -> None:
    _, place = cluster
    sorter = sorter_of(place, account)
    path = sorter.root / "sorter.toml"
    command = [*account.prefix, sys.executable, "-m", "sorter", "check", "--targets", "-c", path, "--root", sorter.root]

    def says(code: int) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=180)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    good = says(0)
    assert f"Slurm ({place}/share/jobs): good" in good
    assert f"{socket.gethostname()} runs sorter {__version__} with Python " in good
    path.write_text(path.read_text().replace("[engine.slurm]", '[engine.slurm]\npython = "/usr/bin/nopython"'))
    bad = says(1)
    assert "no product can be made by Slurm now: job 2 of Slurm ended there without a result (FAILED)" in bad
    assert "/usr/bin/nopython: No such file or directory" in bad
    assert shared(place) == []


def test_the_sample_as_on_this_machine(
    cluster: tuple[Cluster, Path], account: Account, sample: Path, sample_expected: dict[str, Any]
) -> None:
    _, place = cluster
    with sorter_of(place, account) as sorter:
        subprocess.run(["cp", "-r", sample / "data", sorter.root / "sample"], check=True)
        for each in (sorter.root / "sample", *(sorter.root / "sample").rglob("*")):
            os.chown(each, account.uid, account.uid)
        (sorter.root / "sample").rename(sorter.spool.incoming / "sample")
        sorter.wait_delivered(378, timeout=300)
        assert delivered_nifti(sorter.labs) == expected_nifti(sample_expected) != Counter()
