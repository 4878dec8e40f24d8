"""Products whose makers do the worst that they can: nothing of it reaches the images, the scanner, or the next job."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, Account
from sorter.durable import Files
from sorter.engine.local import LocalEngine
from sorter.engine.work import Outcome, Work
from sorter.model import Product
from sorter.spool import Unit
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

sys.path.append(str(ROOT / "tests" / "bench"))  # its modules know each other by their bare names

import images
import load

ROGUES = {
    "exits": "ended early with exit code 3",
    "segfaults": "SIGSEGV",
    "hangs": "took longer than 6 s",
    "hogs": "more than 512 MiB of memory",
    "bombs": "more than 256 processes",
    "daemonises": "",
    "deletes": "",
    "links": "is no regular file",
    "logs": "",
    "raises": "ValueError: on purpose",
}
"""What each is, and what is said of it; "" where its product is made all the same."""

PLUGIN = """
import ctypes, os, signal, sys
from pathlib import Path
from sorter import Product, hookimpl

def done(job):
    Path(job.scratch, "out.txt").write_text(job.product)

def exits(job): os._exit(3)
def segfaults(job): ctypes.string_at(0)
def hangs(job):
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(sign, signal.SIG_IGN)
    while True: signal.pause()
def hogs(job):
    held = []
    for _ in range(4):  # each of these is within the limit of one process
        if os.fork() == 0:
            held.append(b"x" * (300 << 20)); signal.pause()
    signal.pause()
def bombs(job):
    while True:
        try: os.fork()
        except OSError: pass
def daemonises(job):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        os.chdir("/")
        os.environ.clear()
        for fd in range(3): os.close(fd)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execve(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"], {})
    os.wait()
    done(job)
def deletes(job):
    for each in sorted(Path("in").rglob("*"), reverse=True):
        each.parent.chmod(0o700)
        if each.is_dir(): each.rmdir()
        else:
            each.chmod(0o600); each.write_bytes(b"spoilt"); each.unlink()
    done(job)
def links(job): os.symlink("/etc/passwd", Path(job.scratch, "out.txt"))
def logs(job):
    piece = b"x" * (1 << 20)
    for _ in range(LOG):
        left = memoryview(piece)
        while left: left = left[os.write(1, left):]
    done(job)
def raises(job): raise ValueError("on purpose")

LOG = 10_000  # MB
ALL = (exits, segfaults, hangs, hogs, bombs, daemonises, deletes, links, logs, raises)

@hookimpl
def sorter_products(settings):
    return [Product("good", "rogues:done")] + [
        Product(each.__name__, f"rogues:{each.__name__}", timeout=60 if each is logs else 6, memory=512) for each in ALL
    ]
"""

CONFIG = """
[sorter]
plugins = "{plugins}"
[labs.rogues]
match = ["PatientID=DEMO*"]
products = {products}
[labs.bench]
match = ["PatientID=BENCH"]
products = ["dicom"]
[engine]
jobs = 2
"""

UNDISTURBED = 0.050
"""Seconds: 99 of a hundred images are answered sooner while all of that goes on, on a disk, as without it."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other accounts may pass through, as they may not through pytest's."""
    with tempfile.TemporaryDirectory(prefix="sorter-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.mark.peers
@pytest.mark.timeout(400)
def test_ten_rogues(place: Path, account: Account) -> None:
    """The bomb is what needs an account of its own: root has no limit of processes."""
    plugins, root = place / "plugins", place / "root"
    for folder in (plugins, root):
        folder.mkdir()
    (plugins / "rogues.py").write_text(textwrap.dedent(PLUGIN))
    for each in (plugins, plugins / "rogues.py", root):
        os.chown(each, account.uid, account.uid)
    config = CONFIG.format(plugins=plugins, products=["dicom", "good", *ROGUES])
    with RunningSorter(root, config=config, prefix=account.prefix) as sorter:
        alone = scan(sorter, 3)
        sorter.send(localizer(Plan(seed=5, size=64)))
        beside: list[float] = []
        wait_until(lambda: sorter.events("published"), 60, "the series to be published")
        while not all_told(sorter):
            beside += scan(sorter, 1)
        [series] = [each for each in sorter.series() if each.lab == "rogues"]
        unit = Unit(sorter.spool, series.key)
        states = {each.product: each for each in series.deliveries}
        said = {name: states[name].why or states[name].state for name in ROGUES}
        print(f"p99 alone {p99(alone) * 1e3:.1f} ms, beside ten rogues {p99(beside) * 1e3:.1f} ms; {said}")
        for name, why in ROGUES.items():
            told = [line["says"] for line in lines(unit) if line["says"].startswith(f"{name} ")]
            assert any(why in line if why else "was made" in line for line in told), (name, told)
        logs = next(line["log"] for line in lines(unit) if line["says"].startswith("logs was made"))
        assert "bytes left out" in logs
        assert len(logs) < 100_000
        assert unit_is_whole(unit)
        lab = sorter.labs / "rogues"
        delivered = {hashlib.sha256(each.read_bytes()).hexdigest() for each in lab.rglob("*.dcm")}
        assert {image.sha256 for image in unit.instances.values()} <= delivered
        assert sorted(each.read_text() for each in lab.rglob("*.txt")) == ["daemonises", "deletes", "good", "logs"]
        assert p99(beside) < max(UNDISTURBED, 2 * p99(alone))
    assert sorter.stop() == 0
    assert running_as(account) == []
    assert os.listdir(sorter.spool.scratch) == []


def all_told(sorter: RunningSorter) -> bool:
    """Has each product failed once, or been delivered?"""
    failed = {each["product"] for each in sorter.events("product failed")}
    done = {each["product"] for each in sorter.events("delivered") if "product" in each}
    return {*ROGUES, "good"} <= failed | done


def lines(unit: Unit) -> list[dict[str, str]]:
    return [{"says": each["says"], "log": each.get("log", "")} for each in unit.story()]


def unit_is_whole(unit: Unit) -> bool:
    return all(unit.digest_of(name) == image.sha256 for name, image in unit.instances.items())


def scan(sorter: RunningSorter, seconds: float) -> list[float]:
    """Seconds until each image of a scanner that sends as fast as it is answered had its answer."""
    outcome = load.run(sorter.port, load.Load(images.small(), seconds=seconds))
    assert not outcome.refused
    return list(outcome.answers)


def p99(answers: list[float]) -> float:
    return sorted(answers)[int(len(answers) * 0.99)]


def running_as(account: Account) -> list[bytes]:
    """The command lines of all processes of the account."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == account.uid:
                found.append((path / "cmdline").read_bytes())
    return found


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_thousand_jobs_leave_nothing(tmp_path: Path) -> None:
    """Good ones and bad ones, 4 at a time, for three labs: no process, descriptor, thread or scratch stays."""
    (tmp_path / "rogues.py").write_text(textwrap.dedent(PLUGIN).replace("LOG = 10_000", "LOG = 10"))
    (tmp_path / "image").write_bytes(images.small())
    before = (open_descriptors(), below(), threads())
    engine = LocalEngine(4, tmp_path / "scratch", Files())
    makers = ["done"] * 8 + ["daemonises", "deletes", "raises", "exits", "segfaults", "links", "logs", "hogs"]
    ended: dict[str, Outcome] = {}
    for number in range(1000):
        maker = makers[number % len(makers)] if number % 100 else "hangs"
        product = Product(maker, f"{tmp_path}/rogues.py:{maker}", timeout=2, memory=512)
        images_of = {"dicom": [(tmp_path / "image", "000001.dcm")]}
        engine.submit(Work(f"job-{number}", product, images_of, lab=f"lab{number % 3}"))

    def collect() -> bool:
        for outcome in engine.finished():
            ended[outcome.id] = outcome
            if outcome.state == "made":
                engine.adopt(outcome.id, tmp_path / "store" / outcome.id)
            else:
                engine.drop(outcome.id)
        return len(ended) == 1000

    wait_until(collect, 800, "a thousand jobs")
    made = sum(outcome.state == "made" for outcome in ended.values())
    assert made == sum(1 for number in range(1000) if number % 100 and not ROGUES.get(makers[number % len(makers)], ""))
    assert not any(outcome.later for outcome in ended.values())
    assert len(os.listdir(tmp_path / "store")) == made
    wait_until(lambda: os.listdir(tmp_path / "scratch") == [], 10, "the scratch of the last ones to be swept")
    running = below() - before[1]
    assert len(running) == 1, "only the keeper is left, and nothing below it"
    engine.stop()
    # A thread that was joined is the kernel's for a moment more.
    wait_until(lambda: (open_descriptors(), below(), threads()) == before, 10, "the last thread to be gone")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def below() -> set[int]:
    """The processes below this one."""
    from sorter.processes import descendants

    return set(descendants(os.getpid()))
