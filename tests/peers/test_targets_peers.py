"""Real places that fail: a full file system, a share whose server goes and comes, a mount or a worker that hangs."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sorter.builtin.path_target import mark
from sorter.durable import Files
from sorter.spool.unit import UnitSummary
from sorter.testing.ports import free_port
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.targets import TargetSuite
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.peers

SOON = 60.0


def run(*command: str | Path, check: bool = True) -> int:
    return subprocess.run(list(map(str, command)), check=check, capture_output=True, timeout=30).returncode


def config(**roots: Path) -> str:
    """A lab for each root; a series is a lab's whose PatientID begins with its name."""
    return "\n".join(
        f'[labs.{lab}]\nmatch = ["PatientID={lab}*"]\nroot = {json.dumps(str(root))}\nproducts = ["dicom"]'
        for lab, root in roots.items()
    )


def drop(sorter: RunningSorter, lab: str, seed: int, size: int = 8) -> None:
    """A series of this lab into incoming/, as one folder that is whole."""
    series = localizer(Plan(seed=seed, size=size, patient_id=f"{lab}{seed}"))
    outside = sorter.root / f"{lab}{seed}"
    outside.mkdir()
    for number, image in enumerate(series.files):
        (outside / f"{number}.dcm").write_bytes(image)
    outside.rename(sorter.spool.incoming / outside.name)


def of(sorter: RunningSorter, lab: str) -> list[UnitSummary]:
    with contextlib.suppress(FileNotFoundError):
        return [each for each in sorter.series() if each.lab == lab]
    return []


def delivered(sorter: RunningSorter, lab: str, count: int) -> bool:
    return [each.state for each in of(sorter, lab)] == ["delivered"] * count


def status(sorter: RunningSorter) -> dict[str, Any]:
    command = [sys.executable, "-m", "sorter", "status", "--json", "-c", str(sorter.root / "sorter.toml")]
    done = subprocess.run(
        [*command, "--root", str(sorter.root)], capture_output=True, text=True, timeout=SOON, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def out(sorter: RunningSorter) -> dict[str, Any] | None:
    """What `status` says of the one target that is out."""
    found = status(sorter)["targets"]
    return found[0] if found else None


# --- a full file system ----------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KB, with its marker."""
    root = tmp_path / "small"
    root.mkdir()
    if os.geteuid() != 0 or run("mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "none", root, check=False):
        pytest.skip("to mount a tmpfs needs root")
    try:
        mark(root, Files())
        yield root
    finally:
        run("umount", "-l", root)


def test_a_full_file_system_delays_its_own_lab_and_is_delivered_to_when_there_is_room(
    tmp_path: Path, small: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    mark(other, Files())
    with RunningSorter(tmp_path / "root", config=config(full=small, other=other)) as sorter:
        drop(sorter, "full", 1, size=256)  # three images of 128 KB
        drop(sorter, "other", 2)
        wait_until(lambda: delivered(sorter, "other", 1), SOON)
        told = wait_until(lambda: out(sorter), SOON)
        assert told["target"] == "full"
        assert "is full" in told["why"]
        [waiting] = of(sorter, "full")
        assert waiting.state == "owed"
        assert "make room there" in waiting.why
        assert not list(small.rglob("*.dcm"))  # no half of it under a final name
        assert not list(sorter.spool.unit_folder(waiting.key).rglob("receipts/*.json"))
        run("mount", "-o", "remount,size=64m", small)
        wait_until(lambda: delivered(sorter, "full", 1), SOON)
        assert len(list(small.rglob("*.dcm"))) == 3
        assert not status(sorter)["targets"]


# --- a share ---------------------------------------------------------------------------------------------------------


class Share:
    """A folder of an sshd on loopback, mounted by sshfs. It is a `Place`."""

    code = "sorter.builtin.path_target:PathTarget"
    comparable = True

    def __init__(self, base: Path) -> None:
        self.base, self.behind, self.root = base, base / "behind", base / "mounted"
        self.settings = {"root": str(self.root)}
        for folder in (self.behind, self.root):
            folder.mkdir(parents=True)
        for name in ("host", "mine"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", base / name)
        shutil.copy(base / "mine.pub", base / "authorized")
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self.sshfs: subprocess.Popen[bytes] | None = None

    def come_back(self) -> None:
        options = [
            "Port=" + str(self.port), "ListenAddress=127.0.0.1", f"HostKey={self.base / 'host'}", "StrictModes=no",
            f"AuthorizedKeysFile={self.base / 'authorized'}", "UsePAM=no", "PidFile=none",
            "Subsystem=sftp internal-sftp", "PermitRootLogin=yes",
        ]  # fmt: skip
        arguments = [each for option in options for each in ("-o", option)]
        os.makedirs("/run/sshd", exist_ok=True)
        self._server = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *arguments],
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_until(self._answers)
        ssh = f"ssh -p {self.port} -i {self.base / 'mine'} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        self.sshfs = subprocess.Popen(
            ["sshfs", "-f", "-o", f"ssh_command={ssh}", f"{getpass.getuser()}@127.0.0.1:{self.behind}", str(self.root)],
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_until(lambda: os.path.ismount(self.root), 20)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end_server(self) -> None:
        """The server and its connections are gone at once; the mount stays, and answers nothing good."""
        assert self._server is not None
        for pid in [*_below(self._server.pid), self._server.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait()
        self._server = None

    def go_away(self) -> None:
        self.end_server()
        self.unmount()

    def unmount(self) -> None:
        if self.sshfs is not None:
            run("umount", "-l", self.root, check=False)
            self.sshfs.kill()
            self.sshfs.wait()
            self.sshfs = None

    def close(self) -> None:
        if self._server is not None:
            self.end_server()
        self.unmount()

    def count(self, image: bytes) -> int:
        return sum(path.read_bytes() == image for path in self.behind.rglob("*") if path.is_file())

    def lose(self, image: bytes) -> bool:
        for path in self.behind.rglob("*.dcm"):
            if path.read_bytes() == image:
                path.unlink()
        return True


def _below(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [*_below(int(child)), int(child)]
    return found


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    needed = [shutil.which(name) for name in ("sshfs", "ssh-keygen", "umount")]
    if os.geteuid() != 0 or not all(needed) or not os.path.exists("/usr/sbin/sshd") or not os.path.exists("/dev/fuse"):
        pytest.skip("a share needs root, sshfs, an sshd and /dev/fuse")
    share = Share(tmp_path / "share")
    try:
        share.come_back()
        yield share
    finally:
        share.close()


class TestSshfs(TargetSuite):
    """The suite for targets on a real network mount: neither RENAME_NOREPLACE nor lasting inode numbers."""

    @pytest.fixture
    def place(self, share: Share) -> Share:
        return share


def test_a_share_whose_server_ends_in_mid_copy_and_returns(tmp_path: Path, share: Share) -> None:
    mark(share.root, Files())
    with RunningSorter(tmp_path / "root", config=config(far=share.root)) as sorter:
        drop(sorter, "far", 1, size=1024)  # three images of 2 MB
        wait_until(lambda: list(share.behind.rglob("*.part/*.dcm")), SOON)
        share.end_server()
        told = wait_until(lambda: out(sorter), SOON)
        assert told["target"] == "far"
        [waiting] = of(sorter, "far")
        assert waiting.state == "owed"
        assert not list(sorter.spool.unit_folder(waiting.key).rglob("receipts/*.json"))
        assert not [path for path in share.behind.rglob("*.dcm") if ".part" not in str(path)]
        share.unmount()
        share.come_back()
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        there = [path for path in share.behind.rglob("*.dcm") if ".part" not in str(path)]
        assert len(there) == 3
        assert not list(share.behind.rglob("*.part"))


# --- what hangs ------------------------------------------------------------------------------------------------------


def timed(sorter: RunningSorter, number: int) -> float:
    """Seconds from a folder in incoming/ to its delivery at the lab `well`, as its `number`-th series."""
    drop(sorter, "well", 100 + number)
    begun = time.monotonic()
    wait_until(lambda: delivered(sorter, "well", number), SOON)
    return time.monotonic() - begun


def delay(sorter: RunningSorter, stop: Callable[[int], None]) -> None:
    """Five alternating runs, while the other lab, `bad`, is well and while it hangs; their medians may hardly differ.

    `stop` sends a signal to whatever makes it hang.
    """
    took: dict[int, list[float]] = {signal.SIGCONT: [], signal.SIGSTOP: []}
    for number in range(1, 11):
        what = signal.SIGSTOP if number % 2 else signal.SIGCONT
        stop(what)
        try:
            drop(sorter, "bad", 200 + number)
            if what == signal.SIGSTOP:
                wait_until(lambda: "owed" in [each.state for each in of(sorter, "bad")], SOON)
            else:
                wait_until(lambda: delivered(sorter, "bad", number + 1), SOON)  # noqa: B023
            took[what].append(timed(sorter, number))
            assert [each.state for each in of(sorter, "bad")].count("owed") == (what == signal.SIGSTOP)
        finally:
            stop(signal.SIGCONT)
        wait_until(lambda: delivered(sorter, "bad", number + 1), SOON)  # noqa: B023
    usual, meanwhile = (statistics.median(each) for each in took.values())
    print(f"{usual:.2f} s, while another lab hangs {meanwhile:.2f} s; {took}")
    assert meanwhile - usual <= max(0.1 * usual, 0.25)


def test_a_mount_that_hangs_delays_no_other_lab(tmp_path: Path, share: Share) -> None:
    """The sshfs is stopped, so that every call on its mount waits in the kernel."""
    (tmp_path / "well").mkdir()
    roots = {"bad": share.root, "well": tmp_path / "well"}
    for root in roots.values():
        mark(root, Files())
    with RunningSorter(tmp_path / "root", config=config(**roots)) as sorter:
        drop(sorter, "bad", 1)
        wait_until(lambda: delivered(sorter, "bad", 1), SOON)
        assert share.sshfs is not None
        delay(sorter, share.sshfs.send_signal)


@pytest.mark.timeout(400)
def test_a_stopped_worker_delays_no_other_lab(tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in ("bad", "well")}
    for root in roots.values():
        root.mkdir()
        mark(root, Files())
    with RunningSorter(tmp_path / "root", config=config(bad=roots["bad"])) as sorter:
        drop(sorter, "bad", 1)
        wait_until(lambda: delivered(sorter, "bad", 1), SOON)
        [worker] = sorter.workers()
        sorter.reload(config(**roots))
        wait_until(lambda: len(sorter.workers()) == 2, SOON)  # the other lab's, which looks at that lab's own file
        delay(sorter, lambda what: os.kill(worker, what))
        assert worker in sorter.workers()  # a lab's stays
        os.kill(worker, signal.SIGSTOP)
        try:
            drop(sorter, "bad", 300)
            wait_until(lambda: any("target bad has not moved" in each for each in status(sorter)["problems"]), SOON)
        finally:
            os.kill(worker, signal.SIGCONT)
        wait_until(lambda: not status(sorter)["problems"], SOON)
