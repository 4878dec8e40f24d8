"""The same crashes and faults for sorter's receiver and for others, on real file systems: what of it is still there?

Each receiver gets images over one association and answers each with success or not; then

* the power fails: its disk is an ext4 on a loop device, and what has reached the device at this moment is mounted anew;
* it is killed (SIGKILL, every process) while images are on their way;
* its disk is full: a tmpfs, which gets room again afterwards;
* its disk fails: the file behind the loop device has no more room, so that writing to the device ends in EIO.

An image counts as *lost* if it was answered with success and no file holds its pixels whole; a file is *torn* if it is
no whole image and bears a final name. Whoever crashed is not started again: only its disk is looked at, in its favour.

    python3 packaging/run.py peers tests/peers/test_rivals_crash.py

With SORTER_RESULTS=FOLDER the table is written there as rivals-crash.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pydicom
import pytest
from pynetdicom.dsutils import encode

from sorter.testing.namespace import own_network
from sorter.testing.peer import Peer, command, pdu, pdv
from sorter.testing.ports import free_port
from sorter.testing.synthetic import many
from sorter.testing.waiting import wait_until
from tests.bench import receivers
from tests.bench.receivers import Kind, Receiver

pytestmark = [pytest.mark.peers, pytest.mark.timeout(900)]

ROUNDS = 5
SEED = 20260102
SMALL, LARGE = 64 << 10, 2 << 20  # bytes of pixels
DISK = 256 << 20  # bytes of the loop device
ROOM = 16 << 20  # bytes of a disk that gets full, or fails
MEMORY = Path("/dev/shm")

KINDS = (
    receivers.SORTER,
    receivers.PLAIN,
    receivers.PLAIN_BEST,
    receivers.PYNETDICOM_APP,
    receivers.ORTHANC,
    receivers.ORTHANC_SYNCED,
)
NOT_IMAGES = (".part", ".jsonl", ".json", ".log", "version", "lock")


# --- what is sent ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Image:
    uid: str
    data_set: bytes  # implicit VR little endian
    pixels: bytes


class Images:
    """As many different ones as are asked for."""

    def __init__(self, dice: random.Random) -> None:
        _, file = next(iter(many(1)))
        self._template, self._dice, self._made = pydicom.dcmread(io.BytesIO(file)), dice, 0

    def make(self, size: int) -> Image:
        self._made += 1
        image = self._template
        image.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{self._made}"
        image.Rows, image.Columns = size // 512, 256
        image.PixelData = self._dice.randbytes(size)
        image["PixelData"].VR = "OW"
        encoded = encode(image, is_implicit_vr=True, is_little_endian=True)
        assert encoded is not None
        return Image(image.SOPInstanceUID, encoded, image.PixelData)


@dataclasses.dataclass
class Sending:
    """One association; what was sent, and which of it was answered with success, with something else, or not at all."""

    port: int
    images: Iterator[Image]
    sent: dict[str, Image] = dataclasses.field(default_factory=dict)
    acknowledged: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)

    def run(self) -> None:
        """All of them, or until the other side is gone."""
        with contextlib.suppress(OSError, EOFError, AssertionError), Peer(self.port, timeout=30) as peer:
            peer.associate()
            for image in self.images:
                self.sent[image.uid] = image
                peer.send(pdu(4, pdv(1, 3, command(instance=image.uid.encode()))))
                for at in range(0, len(image.data_set), 16_000):
                    last = at + 16_000 >= len(image.data_set)
                    peer.send(pdu(4, pdv(1, 2 if last else 0, image.data_set[at : at + 16_000])))
                (self.acknowledged if peer.status() == 0 else self.refused).append(image.uid)
            peer.release()


# --- what is still there --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Found:
    """Sums of all rounds."""

    acknowledged: int = 0
    lost: int = 0
    torn: int = 0
    refused: int = 0
    note: str = ""

    def add(self, sending: Sending, folder: Path) -> None:
        whole, torn = look(folder, sending.sent)
        self.acknowledged += len(sending.acknowledged)
        self.refused += len(sending.refused)
        self.lost += len(set(sending.acknowledged) - whole)
        self.torn += torn


def look(folder: Path, sent: dict[str, Image]) -> tuple[set[str], int]:
    """(the images that some file holds whole, how many files are no whole image)."""
    whole, torn = set[str](), 0
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.endswith(NOT_IMAGES) or "index" in path.relative_to(folder).as_posix():
            continue
        try:
            found = pydicom.dcmread(path)
            image = sent[found.SOPInstanceUID]
        except Exception:  # noqa: BLE001 - whatever reading half a file raises
            torn += 1
            continue
        if found.get("PixelData") == image.pixels:
            whole.add(image.uid)
        else:
            torn += 1
    return whole, torn


# --- disks ----------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> str:
    return subprocess.run(list(map(str, arguments)), check=True, capture_output=True, text=True, timeout=60).stdout


@contextlib.contextmanager
def mounted(what: Path | str, at: Path, *options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    run("mount", *options, what, at)
    try:
        yield at
    finally:
        gone = [
            "umount",
            str(at),
        ]  # not -l, which would let the kernel write on while a test goes on with what is behind
        wait_until(lambda: subprocess.run(gone, capture_output=True).returncode == 0, 60, f"{at} to be unmounted")
        wait_until(lambda: not run("losetup", "-j", what), 60, "the loop device to be done with it")


@contextlib.contextmanager
def memory(size: int, at: Path) -> Iterator[Path]:
    with mounted("none", at, "-t", "tmpfs", "-o", f"size={size}"):
        yield at


def disk(image: Path, size: int) -> Path:
    """A file with an empty ext4 in it, its blocks given out only when they are written."""
    with image.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", image)
    return image


LOOP = ("-o", "loop,commit=1")
"""ext4 commits each second instead of each fifth: a power cut within two seconds of sending shows what one within ten
would."""


def frozen(receiver: Receiver) -> None:
    for pid in receiver.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def killed(receiver: Receiver) -> None:
    for pid in receiver.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    receiver.stop()


# --- the four scripts -----------------------------------------------------------------------------------------------


def power_cut(kind: Kind, place: Path, dice: random.Random) -> Found:
    """Right after a success: what has reached the device by then is all there is."""
    found, made = Found(), Images(dice)
    for round_ in range(ROUNDS):
        folder = place / str(round_)
        folder.mkdir()
        image = disk(folder / "disk", DISK)
        seconds = dice.uniform(0.5, 2.5)
        with mounted(image, folder / "mounted", *LOOP) as root:
            receiver = Receiver(kind, root, free_port())
            try:
                sending = Sending(receiver.port, for_seconds(seconds, lambda: made.make(SMALL)))
                sending.run()
                frozen(receiver)
                run("cp", "--sparse=always", image, folder / "cut")
            finally:
                killed(receiver)
        with mounted(folder / "cut", folder / "after", "-o", "loop") as root:
            found.add(sending, root / receiver.folder.name)
        shutil.rmtree(folder)
    return found


def for_seconds(seconds: float, make: Callable[[], Image]) -> Iterator[Image]:
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    while not over.is_set():
        yield make()


def kill_9(kind: Kind, place: Path, dice: random.Random) -> Found:
    """Of every process, while images are on their way; the page cache, and with it all that was written, stays."""
    found, made = Found(), Images(dice)
    for round_ in range(4 * ROUNDS):
        folder = place / str(round_)
        folder.mkdir()
        receiver = Receiver(kind, folder, free_port())
        sending = Sending(receiver.port, iter(lambda: made.make(LARGE), None))
        timer = threading.Timer(dice.uniform(0.2, 1.2), killed, [receiver])
        timer.start()
        sending.run()
        timer.join()
        found.add(sending, receiver.folder)
        shutil.rmtree(folder)
    return found


def full(kind: Kind, place: Path, dice: random.Random) -> Found:
    """A tmpfs, with twice as much to store as there is room; then there is room again, and one image more comes."""
    found, made = Found(), Images(dice)
    with memory(ROOM, place / "small") as root:
        receiver = Receiver(kind, root, free_port())
        try:
            sending = Sending(receiver.port, iter([made.make(LARGE >> 1) for _ in range(2 * ROOM // (LARGE >> 1))]))
            sending.run()
            found.add(sending, receiver.folder)
            run("mount", "-o", f"remount,size={8 * ROOM}", root)
            found.note = again(sending, receiver, made)
        finally:
            killed(receiver)
    return found


def failing(kind: Kind, place: Path, dice: random.Random) -> Found:
    """An ext4 whose device has less room than it says: writing it back ends in EIO. Then the device is whole again."""
    found, made = Found(), Images(dice)
    with memory(ROOM, place / "thin") as thin:
        image = disk(thin / "disk", DISK)
        with mounted(image, place / "mounted", *LOOP) as root:
            receiver = Receiver(kind, root, free_port())
            try:
                sending = Sending(receiver.port, iter([made.make(LARGE >> 1) for _ in range(2 * ROOM // (LARGE >> 1))]))
                sending.run()
            finally:
                killed(receiver)
            with contextlib.suppress(subprocess.CalledProcessError):
                run("sync", "-f", root)  # what the kernel still had, as it would write it half a minute later
        run("mount", "-o", f"remount,size={2 * DISK}", thin)
        with contextlib.suppress(subprocess.CalledProcessError):
            run("e2fsck", "-fy", image)
        with mounted(image, place / "after", "-o", "loop") as root:
            found.add(sending, root / receiver.folder.name)
    return found


def again(before: Sending, receiver: Receiver, made: Images) -> str:
    """Does it go on by itself?"""
    after = Sending(receiver.port, iter([made.make(SMALL)]), dict(before.sent))
    with contextlib.suppress(AssertionError):
        wait_until(lambda: after.run() or after.acknowledged, 10)
        return "goes on by itself" if look(receiver.folder, after.sent)[0] >= set(after.acknowledged) else "loses"
    return "does not go on"


SCRIPTS: dict[str, Callable[[Kind, Path, random.Random], Found]] = {
    "power cut after a success": power_cut,
    "kill -9 in mid transfer": kill_9,
    "disk full": full,
    "disk fails (EIO)": failing,
}


# --- the table ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Table:
    found: dict[tuple[str, str], Found] = dataclasses.field(default_factory=dict)

    def markdown(self) -> str:
        lines = []
        for script, does in SCRIPTS.items():
            lines += [f"## {script[:1].upper()}{script[1:]}", "", str(does.__doc__), ""]
            lines += [
                "| receiver | acknowledged | of them lost | torn files | refused | |",
                "|---|--:|--:|--:|--:|---|",
            ]
            for kind in KINDS:
                each = self.found.get((script, kind.name))
                if each is not None:
                    cells = (each.acknowledged, each.lost, each.torn, each.refused, each.note)
                    lines.append(f"| {kind.name} | {' | '.join(map(str, cells))} |")
            lines.append("")
        return "\n".join(lines)


@pytest.fixture(scope="module")
def table() -> Generator[Table, None, None]:
    found = Table()
    yield found
    print(found.markdown())
    folder = os.environ.get("SORTER_RESULTS")
    if folder and found.found:
        (Path(folder) / "rivals-crash.md").write_text(page(found))


HEAD = """# Crashes and faults: sorter's receiver and others

{when}. Made by

    SORTER_RESULTS=docs/results python3 packaging/run.py peers tests/peers/test_rivals_crash.py

and nothing was typed. Each receiver gets made-up MR images over one association, {small} KB each where the power
fails, else one or two MB, one after the other as fast as it answers. An image is *lost* if it was answered with
success (0x0000) and no file holds its pixels whole afterwards; a file is *torn* if it has a final name and holds no
whole image. Only the disk is looked at, in favour of whoever has an index besides: an image that its index does not
know counts as there.

The power cut, {rounds} times: the receiver's disk is an ext4 (`commit=1`, so that two seconds of sending show what
ten do with the usual 5) on a loop device in memory. Right after the last success its processes are stopped and the
file behind the device is copied. The copy is what a disk without a cache of its own holds at that moment, and is
mounted. The kill: four times as often, at a random moment within a second.

"""


def page(found: Table) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    when = f"{datetime.date.today().isoformat()}, commit {commit}, Linux {platform.release()}, seed {SEED}"
    lines = [HEAD.format(when=when, small=SMALL >> 10, rounds=ROUNDS), found.markdown(), "## Command lines", ""]
    for kind in KINDS:
        given = (
            shlex.join(kind.command(Path("FOLDER"), 11112)) if "Orthanc" not in kind.name else "Orthanc orthanc.json"
        )
        environment = "".join(f"{name}={value} " for name, value in kind.environment.items())
        lines.append(f"- {kind.name}: `{environment}{given.replace(sys.executable, 'python')}`")
    lines += ["", "Orthanc's file has SyncStorageArea true where it is called synced (its default), else false.", ""]
    for package in ("dcmtk", "orthanc"):
        said = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
        lines.append(f"- {package} {said.stdout}")
    lines.append(f"- pynetdicom {__import__('pynetdicom').__version__}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """In memory: no disk but the modelled one plays a part."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not MEMORY.is_dir():
        pytest.skip("to mount needs root, and mkfs.ext4")
    place = MEMORY / f"sorter-rivals-{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("script", SCRIPTS)
def test_crash(script: str, kind: Kind, place: Path, table: Table) -> None:
    if not kind.there:
        pytest.skip(f"{kind.name} is not installed")
    with own_network():
        found = table.found[script, kind.name] = SCRIPTS[script](kind, place, random.Random(SEED))
    print(found)
    assert found.acknowledged, "nothing was stored: the script shows nothing"
    if kind is receivers.SORTER:
        assert (found.lost, found.torn) == (0, 0)
    elif kind is receivers.PLAIN and script.startswith("power"):
        assert found.lost, "a receiver that never syncs loses nothing: this is no power cut"
