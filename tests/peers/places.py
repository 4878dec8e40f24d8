"""Places to deliver to that can be made to fail, and short words for a sorter that delivers to them."""

from __future__ import annotations

import contextlib
import fnmatch
import getpass
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from sorter.builtin.path_target import mark
from sorter.durable import Files
from sorter.spool.unit import UnitSummary
from sorter.testing.ports import free_port
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

SOON = 60.0
FUSE_SHARE = Path(__file__).with_name("fuse_share.py")
DEBIANS = "/usr/bin/python3"  # the Python that its package python3-fusepy is for


def run(*command: str | Path, check: bool = True) -> int:
    return subprocess.run(list(map(str, command)), check=check, capture_output=True, timeout=30).returncode


# --- a sorter ---------------------------------------------------------------------------------------------------------


def config(**roots: Path) -> str:
    """A lab for each root; a series is a lab's whose PatientID begins with its name."""
    return "\n".join(
        f'[labs.{lab}]\nmatch = ["PatientID={lab}*"]\nroot = {json.dumps(str(root))}\nproducts = ["dicom"]'
        for lab, root in roots.items()
    )


def drop(
    sorter: RunningSorter, lab: str, seed: int, *, size: int = 8, patient: str = "", part: slice = slice(None)
) -> tuple[bytes, ...]:
    """A series of this lab, or a part of its three images, into incoming/, as one folder that is whole."""
    images = localizer(Plan(seed=seed, size=size, patient_id=patient or f"{lab}{seed}")).files[part]
    outside = sorter.root / f"{lab}{seed}-{len(list(sorter.root.iterdir()))}"
    outside.mkdir()
    for image in images:
        (outside / f"{hashlib.sha256(image).hexdigest()}.dcm").write_bytes(image)
    owner = sorter.spool.root.stat().st_uid
    for path in (outside, *outside.iterdir()):
        os.chown(path, owner, -1)
    outside.rename(sorter.spool.incoming / outside.name)
    return images


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


def receipts(sorter: RunningSorter, lab: str) -> dict[str, int]:
    """The revision of each series' receipt, by the series' key."""
    found = {}
    for unit in of(sorter, lab):
        for path in sorter.spool.unit_folder(unit.key).glob(f"receipts/dicom.{lab}.json"):
            found[unit.key] = json.loads(path.read_text())["revision"]
    return found


def below(root: Path, pattern: str) -> list[Path]:
    """Files and folders of such names; one that is renamed or removed meanwhile is minded by `rglob`, and not here."""
    return [
        Path(folder, name)
        for folder, folders, files in os.walk(root)
        for name in fnmatch.filter([*folders, *files], pattern)
    ]


def lying(root: Path) -> Counter[bytes]:
    """The digests of the images that lie below a root under their final names."""
    paths = [path for path in below(root, "*.dcm") if not any(part.endswith(".part") for part in path.parts)]
    return Counter(hashlib.sha256(path.read_bytes()).digest() for path in paths)


def digests(images: Iterable[bytes]) -> Counter[bytes]:
    return Counter(hashlib.sha256(image).digest() for image in images)


# --- file systems -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(root: Path, *arguments: str | Path) -> Iterator[Path]:
    """`mount ARGUMENTS root`, with the marker of a target."""
    root.mkdir()
    if os.geteuid() != 0 or run("mount", *arguments, root, check=False):
        pytest.skip("to mount a file system needs root")
    try:
        mark(root, Files())
        yield root
    finally:
        run("umount", "-l", root)


@contextlib.contextmanager
def tmpfs(root: Path, size: str) -> Iterator[Path]:
    with mounted(root, "-t", "tmpfs", "-o", f"size={size},mode=755", "none") as place:
        yield place


@contextlib.contextmanager
def loop_image(root: Path, size: int, *options: str) -> Iterator[Path]:
    """An ext4 of its own, of `size` MB, in a file beside."""
    image = root.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size << 20)
    if not shutil.which("mkfs.ext4") or run("mkfs.ext4", "-q", "-m", "0", *options, image, check=False):
        pytest.skip("no mkfs.ext4 here")
    with mounted(root, "-o", "loop", image) as place:
        yield place


@dataclass(frozen=True)
class Fault:
    """What goes wrong; see fuse_share.py."""

    ops: tuple[str, ...]
    error: str = "EIO"
    name: str = "*"
    uid: int | None = None
    times: int = 1 << 60
    skip: int = 0
    done: bool = False
    hang: bool = False
    flip: bool = False
    short: bool = False


class FuseShare:
    """A folder `behind`, mounted at `root` by fuse_share.py: a server of NFS or SMB that does what it is told."""

    def __init__(self, base: Path, kind: str) -> None:
        self.behind, self.root = base / "behind", base / "mounted"
        for folder in (self.behind, self.root):
            folder.mkdir(parents=True)
        self.behind.chmod(0o777)
        if os.geteuid() != 0 or run(DEBIANS, "-c", "import fusepy", check=False) or not os.path.exists("/dev/fuse"):
            pytest.skip("a share by FUSE needs root, /dev/fuse and Debian's python3-fusepy")
        self.process = subprocess.Popen(
            [DEBIANS, FUSE_SHARE, self.behind, self.root, kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._held, self._fired = threading.Semaphore(0), Counter[int]()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_mounted(self) -> None:
        wait_until(lambda: os.path.ismount(self.root), 20, "the share to be mounted")
        self.answer()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                self._fired[int(line)] += 1
            else:
                self._held.release()

    def answer(self, *faults: Fault) -> None:
        """From now on these faults, and no others; none: everything is well again."""
        assert self.process.stdin is not None
        self._fired.clear()
        self.process.stdin.write(json.dumps([asdict(each) for each in faults]) + "\n")
        self.process.stdin.flush()
        if not self._held.acquire(timeout=SOON):
            raise AssertionError("the share does not listen")

    def fired(self) -> int:
        """How many calls met one of the faults."""
        return sum(self._fired.values())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.answer()
        run("umount", "-l", self.root, check=False)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def fuse_share(base: Path, kind: str) -> Iterator[FuseShare]:
    share = FuseShare(base, kind)
    try:
        share.wait_mounted()
        yield share
    finally:
        share.close()


# --- sshfs ------------------------------------------------------------------------------------------------------------


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
        self.serve()
        self.mount()

    def serve(self) -> None:
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

    def mount(self, *options: str) -> None:
        ssh = f"ssh -p {self.port} -i {self.base / 'mine'} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        arguments = [each for option in (f"ssh_command={ssh}", *options) for each in ("-o", option)]
        self.sshfs = subprocess.Popen(
            ["sshfs", "-f", *arguments, f"{getpass.getuser()}@127.0.0.1:{self.behind}", str(self.root)],
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


@contextlib.contextmanager
def sshfs(base: Path) -> Iterator[Share]:
    needed = [shutil.which(name) for name in ("sshfs", "ssh-keygen", "umount")]
    if os.geteuid() != 0 or not all(needed) or not os.path.exists("/usr/sbin/sshd") or not os.path.exists("/dev/fuse"):
        pytest.skip("a share needs root, sshfs, an sshd and /dev/fuse")
    share = Share(base)
    try:
        share.come_back()
        yield share
    finally:
        share.close()
