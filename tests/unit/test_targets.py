"""Every kind of target that sorter brings passes the suite that it ships; and `check --targets` asks them."""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom import dcmread

from conftest import Account, Dcmtk
from sorter.cli.main import sorter
from sorter.durable import Files
from sorter.model import UnitKind
from sorter.spool import UnitSummary
from sorter.spool.unit import DeliveryState
from sorter.testing.targets import Place, TargetSuite
from sorter.testing.waiting import wait_until


class Folder:
    """A `Place`: a root on a real file system."""

    code = "sorter.builtin.path_target:PathTarget"
    comparable = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = {"root": str(root)}
        root.mkdir()

    def _having(self, image: bytes) -> list[Path]:
        found = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return [path for path in found if path.read_bytes() == image]

    def count(self, image: bytes) -> int:
        return len(self._having(image))

    def lose(self, image: bytes) -> bool:
        for path in self._having(image):
            path.unlink()
        return True

    def go_away(self) -> None:
        self.root.rename(self.root.with_name("away"))
        self.root.mkdir()  # as a mount point is, with nothing mounted

    def come_back(self) -> None:
        self.root.rmdir()
        self.root.with_name("away").rename(self.root)


class TestFolder(TargetSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path / "root")


class Node:
    """A `Place`: another program's Storage SCP, which writes what it gets into a folder."""

    code = "sorter.scu.target:DicomTarget"
    comparable = False

    def __init__(self, command: Callable[[int, Path], list[str]], folder: Path, port: int) -> None:
        self.folder, self._command, self._port = folder, command, port
        self.settings = {"host": "127.0.0.1", "port": port, "ae_title": "NODE"}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        self.come_back()

    def come_back(self) -> None:
        self._process = subprocess.Popen(
            self._command(self._port, self.folder), cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip
        wait_until(self._answers, 30)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def go_away(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def count(self, image: bytes) -> int:
        """By what the data set holds: each program writes a file meta of its own."""
        want = dcmread(BytesIO(image))
        found = [dcmread(path) for path in self.folder.iterdir()]
        return sum(each == want for each in found)

    def lose(self, image: bytes) -> bool:
        return False


class TestStorescp(TargetSuite):
    """DCMTK's storescp."""

    @pytest.fixture
    def place(self, tmp_path: Path, dcmtk: Dcmtk, free_port: int) -> Iterator[Node]:
        node = Node(lambda port, folder: dcmtk.command("storescp", "-od", folder, port), tmp_path / "node", free_port)
        yield node
        node.go_away()


def pynetdicom_scp(port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "pynetdicom", "storescp", str(port), "-od", str(folder), "-q"]


class TestPynetdicom(TargetSuite):
    """pynetdicom's storescp."""

    @pytest.fixture
    def place(self, tmp_path: Path, free_port: int) -> Iterator[Node]:
        node = Node(pynetdicom_scp, tmp_path / "node", free_port)
        yield node
        node.go_away()


def no_rename_new(self: Files, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
    raise OSError(errno.EINVAL, "no RENAME_NOREPLACE")


def no_link(self: Files, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
    raise OSError(errno.EPERM, "no links")


class TestShare(TestFolder):
    """The same where there is neither RENAME_NOREPLACE nor a link, nor a folder that can be synced (SMB, simulated)."""

    @pytest.fixture(autouse=True)
    def poor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fsync(self: Files, fd: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                raise OSError(errno.EINVAL, "cannot sync a folder")
            os.fsync(fd)

        monkeypatch.setattr(Files, "rename_new", no_rename_new)
        monkeypatch.setattr(Files, "link", no_link)
        monkeypatch.setattr(Files, "fsync", fsync)

    test_through_a_worker_as_sorter_does = None  # another process, where nothing is simulated


def test_a_folder_is_a_place(tmp_path: Path) -> None:
    place: Place = Folder(tmp_path / "root")
    assert place.count(b"") == 0


# --- check --targets ------------------------------------------------------------------------------------------------


def check(base: Path, *labs: str) -> subprocess.CompletedProcess[str]:
    tables = [f"[labs.{lab}]\nmatch = ['StudyDescription={lab}']\nroot = {json.dumps(str(base / lab))}" for lab in labs]
    (base / "sorter.toml").write_text("\n".join([f"[sorter]\nspool = {json.dumps(str(base / 'spool'))}", *tables]))
    command = [sys.executable, "-m", "sorter", "check", "--targets", "-c", str(base / "sorter.toml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_check_targets_marks_what_is_there_and_fails_for_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    first = check(tmp_path, "here", "away")
    assert first.returncode == 1
    assert f"here ({tmp_path}/here): good" in first.stdout
    assert "the marker" in first.stdout
    assert f"away ({tmp_path}/away): FAILED" in first.stdout
    assert "mount it, or make it, first" in first.stdout
    assert "nothing can be delivered to away now" in first.stderr
    assert [path.name for path in (tmp_path / "here").rglob("*")] == [".sorter", "id"]
    again = check(tmp_path, "here")
    assert (again.returncode, "the marker" in again.stdout) == (0, False)


def test_where_images_were_delivered_no_marker_is_made_anew_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share is away: a marker on its mount point would have this machine's disk filled in its place."""
    (tmp_path / "spool/store").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "sorter.toml").write_text("[sorter]\nspool = 'spool'\n[labs.here]\nroot = 'here'\n")
    there = DeliveryState("dicom", "here", "delivered", "", "S1/001")
    known = UnitSummary("k", UnitKind.SERIES, "1", ("1.1",), "delivered", lab="here", deliveries=(there,))
    monkeypatch.setattr("sorter.cli.checking.summaries", lambda spool: iter([known]))
    command = ["check", "--targets", "-c", str(tmp_path / "sorter.toml")]
    told = CliRunner().invoke(sorter, command)
    assert told.exit_code == 1
    assert "sorter check --targets --anew here" in told.stdout
    assert not list((tmp_path / "here").iterdir())
    assert CliRunner().invoke(sorter, [*command, "--anew", "here"]).exit_code == 0
    assert (tmp_path / "here/.sorter/id").exists()
    assert CliRunner().invoke(sorter, command).exit_code == 0


def test_names_that_this_machine_does_not_know_are_told_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "sorter.toml").write_text(
        "[sorter]\nroot = 'r'\n[labs.here]\ngroup = 'no-such'\ngroups = ['root', 4711]\nusers = ['nobody-here']\n"
        "[targets.there]\nkind = 'path'\nroot = 'x'\ngroup = 'none-such'\n"
    )
    told = CliRunner().invoke(sorter, ["check", "-c", str(tmp_path / "sorter.toml")])
    assert told.exit_code == 0, "others can be delivered to"
    warnings = [line for line in told.stdout.splitlines() if line.startswith("WARNING: ")]
    no_group, no_account = "there is no group {} on this machine", 'there is no account "nobody-here" on this machine'
    mend, waits = "make it, or name another", "nothing is delivered to {} until it is there"
    assert warnings == [
        f'WARNING: sorter.toml:{line}: {key}: {no_group.format(name)}; {mend}; {waits.format(target)}'
        for line, key, name, target in (
            (4, "labs.here.group", '"no-such"', "here"), (10, "targets.there.group", '"none-such"', "there")
        )
    ] + [f"WARNING: sorter.toml:6: labs.here.users.0: {no_account}; {mend}"]  # fmt: skip


def test_root_checks_as_the_account_that_runs_sorter(tmp_path: Path, account: Account) -> None:
    (tmp_path / "spool").mkdir()
    os.chown(tmp_path / "spool", account.uid, account.uid)
    program = (
        "import os, sys; from pathlib import Path; from sorter.config import load; from sorter.durable import Files;"
        "from sorter.cli.checking import become_writer; become_writer(load(None, Path(sys.argv[1])), Files());"
        "print(os.getresuid(), os.getresgid(), os.getgroups())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    group = pwd.getpwuid(account.uid).pw_gid
    assert done.stdout.strip() == f"{(account.uid,) * 3} {(group,) * 3} {[group]}"
