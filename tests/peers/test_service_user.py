"""A lab whose files are written by its own service user, with real accounts: owner, quota, and what it may not see."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conftest import Account, made_account, opened
from sorter.deliver.lane import Lane
from sorter.deliver.target import Done, Result
from sorter.deliver.workers import Awaited
from sorter.durable import Files
from sorter.testing.running import RunningSorter
from sorter.testing.targets import IMAGES, Store, job
from sorter.testing.waiting import wait_until
from tests.peers.places import (
    SOON,
    Fault,
    FuseShare,
    config,
    delivered,
    digests,
    drop,
    fuse_share,
    lying,
    out,
    receipts,
    status,
)

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

SORTER, SERVICE = f"sorter-{os.getpid()}", f"svc-{os.getpid()}"


@dataclass
class Site:
    """A sorter of one account, and a lab of another one."""

    base: Path
    sorter_account: Account
    service: Account
    share: FuseShare
    keepers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.base / "root"

    def config(self) -> str:
        """The lab `far` is the service user's; `well` has a folder of sorter's own account."""
        labs = config(far=self.share.root, well=self.base / "well")
        return f"[sorter]\nroot = {json.dumps(str(self.home))}\n" + labs.replace(
            "[labs.far]\n", f'[labs.far]\nuser = "{SERVICE}"\n'
        )

    def keeper(self) -> subprocess.Popen[str]:
        """As systemd would start it."""
        folder = self.home / "spool" / "workers" / SERVICE
        made = subprocess.Popen(
            [*self.service.prefix, sys.executable, "-P", "-m", "sorter.deliver.keeper", folder, "--of", SORTER],
            stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        self.keepers.append(made)
        return made

    def command(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*opened(), sys.executable, "-m", "sorter", *words, "-c", self.home / "sorter.toml"],
            capture_output=True, text=True, timeout=SOON,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as made:
        base = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="sorter-")))
        base.chmod(0o711)
        sorter, service = (made.enter_context(made_account(name)) for name in (SORTER, SERVICE))
        share = made.enter_context(fuse_share(base / "share", "nfs"))
        found = Site(base, sorter, service, share)
        for folder, owner, mode in (
            (found.home, sorter, 0o755), (found.home / "spool", sorter, 0o711), (base / "well", sorter, 0o755),
            (share.behind, service, 0o700),
        ):  # fmt: skip
            folder.mkdir(exist_ok=True)
            os.chown(folder, owner.uid, owner.gid)
            folder.chmod(mode)
        (found.home / "sorter.toml").write_text(found.config())
        yield found
        for each in found.keepers:
            each.kill()
            each.communicate()
        wait_until(lambda: not running_as(service), SOON, "its processes to end")


def running_as(account: Account) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            found += [path.name] * (path.stat().st_uid == account.uid)
    return found


@pytest.fixture
def checked(site: Site) -> Site:
    """With the markers that a person has made."""
    said = site.command("check", "--targets")
    assert f"written by {SERVICE}): good" in said
    return site


def test_the_one_who_will_write_checks_and_writes_and_owns(checked: Site) -> None:
    site = checked
    assert (site.share.behind / ".sorter/id").stat().st_uid == site.service.uid
    with RunningSorter(site.home, config=site.config(), prefix=site.sorter_account.prefix) as sorter:
        images = drop(sorter, "far", 1, part=slice(2))
        drop(sorter, "well", 2)
        says = f"the worker of far, to be run as {SERVICE}, has not come; systemctl start sorter-worker@{SERVICE}"
        told = wait_until(lambda: out(sorter), SOON)
        assert (told["target"], told["why"]) == ("far", says)
        wait_until(lambda: says in status(sorter)["problems"], SOON)
        assert f"WARNING: {says}" in site.command("check")
        wait_until(lambda: delivered(sorter, "well", 1), SOON)
        assert not receipts(sorter, "far")
        site.keeper()
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        wait_until(lambda: says not in status(sorter)["problems"], SOON)
        assert "WARNING" not in site.command("check")
        images += drop(sorter, "far", 1, part=slice(2, None))
        wait_until(lambda: set(receipts(sorter, "far").values()) == {2} and delivered(sorter, "far", 1), SOON)
        assert lying(site.share.behind) == digests(images)
        for path in site.share.behind.rglob("*"):
            info = path.stat()
            assert (info.st_uid, info.st_gid) == (site.service.uid, site.service.gid), path
            assert stat.S_IMODE(info.st_mode) == (0o755 if path.is_dir() else 0o644)
        assert {each.stat().st_uid for each in (site.base / "well").rglob("*")} == {site.sorter_account.uid}


def test_its_quota_is_what_counts(checked: Site) -> None:
    site = checked
    site.keeper()
    with RunningSorter(site.home, config=site.config(), prefix=site.sorter_account.prefix) as sorter:
        site.share.answer(Fault(("write",), "EDQUOT", uid=site.sorter_account.uid))
        images = drop(sorter, "far", 1)  # sorter's own account is over its quota: that is nothing to this lab
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        site.share.answer(Fault(("write",), "EDQUOT", uid=site.service.uid))
        images += drop(sorter, "far", 2)
        told = wait_until(lambda: out(sorter), SOON)
        assert "is over its quota" in told["why"]
        assert len(receipts(sorter, "far")) == 1
        site.share.answer()
        wait_until(lambda: delivered(sorter, "far", 2), SOON)
        assert lying(site.share.behind) == digests(images)


def test_keeper_worker_and_sorter_may_end_at_any_time(checked: Site) -> None:
    site = checked
    keeper = site.keeper()
    with RunningSorter(site.home, config=site.config(), prefix=site.sorter_account.prefix) as sorter:
        images = drop(sorter, "far", 1)
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        for pid in below(keeper.pid):
            os.kill(pid, 9)
        images += drop(sorter, "far", 2)
        wait_until(lambda: delivered(sorter, "far", 2), SOON)
        for pid in [*below(keeper.pid), keeper.pid]:
            os.kill(pid, 9)
        keeper.wait()
        images += drop(sorter, "far", 3)
        wait_until(lambda: out(sorter), SOON)
        site.keeper()
        wait_until(lambda: delivered(sorter, "far", 3), SOON)
        assert sorter.stop() == 0
        sorter.start()
        images += drop(sorter, "far", 4)
        wait_until(lambda: delivered(sorter, "far", 4), SOON)
        sorter.kill()
        sorter.start()
        images += drop(sorter, "far", 5)
        wait_until(lambda: delivered(sorter, "far", 5), SOON)
        assert lying(site.share.behind) == digests(images)


def below(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [*below(int(child)), int(child)]
    return found


def test_a_worker_that_hangs_is_told_of_and_delays_nobody_else(checked: Site) -> None:
    site = checked
    site.keeper()
    with RunningSorter(site.home, config=site.config(), prefix=site.sorter_account.prefix) as sorter:
        images = drop(sorter, "far", 1)
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        site.share.answer(Fault(("fsync",), hang=True))
        images += drop(sorter, "far", 2)
        drop(sorter, "well", 3)
        wait_until(lambda: delivered(sorter, "well", 1), SOON)
        says = "target far has not moved for more than 30 s: does its mount hang?"
        wait_until(lambda: says in status(sorter)["problems"], SOON)
        assert sorter.stop() == 0  # nobody waits for it
        sorter.start()
        site.share.answer()
        wait_until(lambda: delivered(sorter, "far", 2), SOON)
        assert lying(site.share.behind) == digests(images)


OWN = """
import os
from sorter import Identity, hookimpl

def refused(path):
    try:
        os.listdir(path)
    except OSError as error:
        return error.strerror.replace(" ", "-")
    return "allowed"

@hookimpl
def sorter_identify(series):
    if series.PatientID == "far2":
        while True: pass
    return Identity(subject=f"u{os.getuid()}-{refused(SPOOL)}")
"""


def test_python_of_the_lab_runs_as_its_account_and_holds_nobody_else(checked: Site) -> None:
    site = checked
    site.keeper()
    plugins = site.share.root / ".sorter" / "plugins"
    store = site.home / "spool" / "store"
    subprocess.run([*site.service.prefix, "mkdir", plugins], check=True, cwd="/")
    code = f"SPOOL = {str(store)!r}\n" + OWN
    (site.share.behind / ".sorter" / "plugins" / "own.py").write_text("def broken(:\n")
    with RunningSorter(
        site.home, config=site.config() + "\n[delivery]\nlook_every = 0.5\n", prefix=site.sorter_account.prefix
    ) as sorter:
        images = drop(sorter, "far", 1)
        drop(sorter, "well", 3)
        wait_until(lambda: delivered(sorter, "well", 1), SOON)
        errors = site.share.behind / ".sorter" / "ERRORS.txt"
        wait_until(lambda: errors.exists() and "own.py:1: SyntaxError" in errors.read_text(), SOON)
        assert not receipts(sorter, "far")
        (site.share.behind / ".sorter" / "plugins" / "own.py").write_text(code)
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        wait_until(lambda: not errors.exists(), SOON)
        assert lying(site.share.behind) == digests(images)
        [folder] = site.share.behind.glob("u*")
        assert folder.name.startswith(f"u{site.service.uid}-Permission-denied")
        drop(sorter, "far", 2)  # this one hangs it
        drop(sorter, "well", 4)
        wait_until(lambda: delivered(sorter, "well", 2), SOON)
        wait_until(lambda: "did not answer within 3 s" in site.command("status"), SOON)
        assert len(receipts(sorter, "far")) == 1


NOSY = """
import json, os, sys
from sorter.builtin.path_target import PathTarget

class Nosy(PathTarget):
    def put(self, job, source):
        said = {"uid": os.getuid(), "groups": os.getgroups()}
        fd = source(0)
        for what, path, flags in (
            ("again", f"/proc/self/fd/{fd}", os.O_RDWR), ("spool", os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")),
            os.O_RDONLY), ("write", "", 0),
        ):
            try:
                os.write(fd, b"x") if what == "write" else os.open(path, flags)
                said[what] = "allowed"
            except OSError as error:
                said[what] = error.strerror
        with open(os.path.join(self._root, "said.json"), "w") as file:
            json.dump(said, file)
        return super().put(job, source)
"""


def test_the_account_may_read_nothing_but_what_it_is_given(site: Site) -> None:
    """A target that tries to see more than it was given, in the hands of the service user."""
    code, spool = site.base / "code", site.base / "spool"
    code.mkdir()
    (code / "nosy.py").write_text(NOSY)
    spool.mkdir(mode=0o700)
    store = Store(spool, IMAGES)
    workers = Awaited("far", SERVICE, site.base / "workers", Files())
    answers: queue.Queue[Result] = queue.Queue()
    share = site.share.root
    subprocess.run([*site.service.prefix, "mkdir", share / ".sorter"], check=True, cwd="/")
    subprocess.run([*site.service.prefix, "touch", share / ".sorter/id"], check=True, cwd="/")
    lane = Lane(
        "far", "nosy:Nosy", {"root": str(share)}, lambda put, file: os.dup(store(put.files.index(file))),
        lambda _, result: answers.put(result), workers=workers,
    )  # fmt: skip
    keeper = subprocess.Popen(
        [*site.service.prefix, sys.executable, "-P", "-m", "sorter.deliver.keeper", site.base / "workers" / SERVICE,
         "--of", "root"],
        env={**os.environ, "PYTHONPATH": f"{code}:{os.environ.get('PYTHONPATH', '')}"}, stderr=subprocess.PIPE,
        text=True, cwd="/",
    )  # fmt: skip
    site.keepers.append(keeper)
    lane.submit(job(IMAGES))
    assert isinstance(answers.get(timeout=SOON), Done)
    assert lane.stop(SOON)
    store.close()
    said = json.loads((site.share.behind / "said.json").read_text())
    refused = {"again": "Permission denied", "spool": "Permission denied", "write": "Bad file descriptor"}
    assert said == {"uid": site.service.uid, "groups": [site.service.gid], **refused}


def test_a_sorter_that_is_root_needs_no_keeper(site: Site) -> None:
    for folder in (site.home, site.home / "spool"):
        os.chown(folder, 0, 0)
    os.chown(site.base / "well", 0, 0)
    site.command("check", "--targets")
    with RunningSorter(site.home, config=site.config(), prefix=opened()) as sorter:
        images = drop(sorter, "far", 1)
        drop(sorter, "well", 2)
        wait_until(lambda: delivered(sorter, "far", 1) and delivered(sorter, "well", 1), SOON)
        assert lying(site.share.behind) == digests(images)
        assert {each.stat().st_uid for each in site.share.behind.rglob("*")} == {site.service.uid}
        [worker] = [pid for pid in sorter.workers() if os.stat(f"/proc/{pid}").st_uid == site.service.uid]
        groups = [line for line in Path(f"/proc/{worker}/status").read_text().splitlines() if line.startswith("Groups")]
        assert groups == [f"Groups:\t{site.service.gid} "]


def test_whoever_else_comes_is_turned_away(checked: Site) -> None:
    site = checked
    with RunningSorter(site.home, config=site.config(), prefix=site.sorter_account.prefix) as sorter:
        drop(sorter, "far", 1)
        wait_until(lambda: out(sorter), SOON)
        site.service = site.sorter_account  # the wrong one
        site.keeper()
        says = f"has not come: one came as account {site.sorter_account.uid} instead and was turned away"
        wait_until(lambda: any(says in each for each in status(sorter)["problems"]), SOON)
        assert not receipts(sorter, "far")


def test_check_by_an_account_that_may_not_be_the_one_says_so(site: Site) -> None:
    done = subprocess.run(
        [*site.sorter_account.prefix, sys.executable, "-m", "sorter", "check", "--targets",
         "-c", site.home / "sorter.toml"],
        capture_output=True, text=True, timeout=SOON, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    assert "this account may not write as the one that will: run `sorter check --targets` as root" in done.stdout
    assert "well" in done.stdout
