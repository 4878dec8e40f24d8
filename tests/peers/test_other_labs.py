"""While one lab's folder hangs, is full or fails: how long do the others wait?

Five alternating runs each, with and without; their medians may differ by a tenth, or a quarter of a second. With
SORTER_RESULTS=FOLDER the page is written there as faults.md.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sorter.builtin.path_target import mark
from sorter.durable import Files
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.peers.places import (
    SOON,
    Fault,
    config,
    delivered,
    digests,
    drop,
    fuse_share,
    loop_image,
    lying,
    of,
    receipts,
    sshfs,
    status,
    tmpfs,
)

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
RUNS = 5


@dataclass
class Failing:
    """Where the lab `bad` has its folder, and how that is made to fail and mended."""

    root: Path
    behind: Path
    fail: Callable[[int], None]  # given the process that delivers there
    mend: Callable[[int], None]


@contextlib.contextmanager
def hung_share(base: Path) -> Iterator[Failing]:
    with sshfs(base) as share:

        def send(what: int) -> Callable[[int], None]:
            return lambda _: share.sshfs.send_signal(what) if share.sshfs else None

        yield Failing(share.root, share.behind, send(signal.SIGSTOP), send(signal.SIGCONT))


@contextlib.contextmanager
def faulty(base: Path, fault: Fault) -> Iterator[Failing]:
    with fuse_share(base, "nfs") as share:
        yield Failing(share.root, share.behind, lambda _: share.answer(fault), lambda _: share.answer())


@contextlib.contextmanager
def stopped_worker(base: Path) -> Iterator[Failing]:
    base.mkdir()

    yield Failing(
        base, base, lambda worker: os.kill(worker, signal.SIGSTOP), lambda worker: os.kill(worker, signal.SIGCONT)
    )


@contextlib.contextmanager
def full(base: Path, place: contextlib.AbstractContextManager[Path]) -> Iterator[Failing]:
    """Somebody else's file takes all the room that there is."""
    with place as root:
        filler = root / "somebody's"

        def fill(_: int) -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                for step in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(step)):
                            pass

        yield Failing(root, root, fill, lambda _: filler.unlink())


FAILURES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Failing]]] = {
    "an sshfs whose process is stopped": hung_share,
    "a worker that is stopped": stopped_worker,
    "a share that never answers a read (simulated)": lambda base: faulty(base, Fault(("read",), hang=True)),
    "a share that never answers an fsync (simulated)": lambda base: faulty(base, Fault(("fsync",), hang=True)),
    "a stale share (simulated)": lambda base: faulty(base, Fault(("*",), "ESTALE")),
    "a share over its quota (simulated)": lambda base: faulty(base, Fault(("write",), "EDQUOT")),
    "a share that flips a bit after fsync (simulated)": lambda base: faulty(
        base, Fault(("fsync",), flip=True, name="*.dcm")
    ),
    "a tmpfs that is full": lambda base: full(base, tmpfs(base, "8m")),
    "an ext4 that is full": lambda base: full(base, loop_image(base, 8, "-O", "^has_journal")),
}
_rows: list[str] = []


def timed(sorter: RunningSorter, number: int) -> float:
    """Seconds from a folder in incoming/ to its delivery at the lab `well`, as its `number`-th series."""
    drop(sorter, "well", 1000 + number)
    begun = time.monotonic()
    wait_until(lambda: delivered(sorter, "well", number), SOON)
    return time.monotonic() - begun


@pytest.mark.parametrize("what", FAILURES)
def test_other_labs_do_not_wait(tmp_path: Path, what: str) -> None:
    (tmp_path / "well").mkdir()
    with FAILURES[what](tmp_path / "bad") as bad:
        roots = {"bad": bad.root, "well": tmp_path / "well"}
        for root in roots.values():
            mark(root, Files())
        with RunningSorter(tmp_path / "root", config=config(bad=bad.root)) as sorter:
            images = [drop(sorter, "bad", 1)]
            wait_until(lambda: delivered(sorter, "bad", 1), SOON)
            [worker] = sorter.workers()
            sorter.reload(config(**roots))
            wait_until(lambda: len(sorter.workers()) == 2, SOON, "the other lab's worker, which stays too")
            took: dict[bool, list[float]] = {True: [], False: []}
            for number in range(1, 2 * RUNS + 1):
                failing = number % 2 == 1
                if failing:
                    bad.fail(worker)
                try:
                    images.append(drop(sorter, "bad", 1 + number))
                    if failing:
                        wait_until(lambda: "owed" in [each.state for each in of(sorter, "bad")], SOON)
                    else:
                        wait_until(lambda: delivered(sorter, "bad", number + 1), SOON)  # noqa: B023
                    took[failing].append(timed(sorter, number))
                    assert len(receipts(sorter, "bad")) == number + (not failing)
                finally:
                    if failing:
                        bad.mend(worker)
                wait_until(lambda: delivered(sorter, "bad", number + 1), SOON)  # noqa: B023
            assert lying(bad.behind) == digests(image for series in images for image in series)
            assert not status(sorter)["targets"]
    usual, meanwhile = statistics.median(took[False]), statistics.median(took[True])
    within = meanwhile - usual <= max(0.1 * usual, 0.25)
    _rows.append(
        f"| {what} | {usual:.2f} | {meanwhile:.2f} | {max(took[True]):.2f} | {'yes' if within else '**no**'} |"
    )
    print(_rows[-1], took)
    write_page()
    assert within


def write_page() -> None:
    """With what this run measured, and an earlier one of the same commit."""
    folder = os.environ.get("SORTER_RESULTS")
    if not folder:
        return
    run = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit, page = run.stdout.strip(), Path(folder, "faults.md")
    before = page.read_text() if page.exists() else ""
    here = {
        row.split("|")[1].strip(): row
        for row in before.splitlines()
        if f"commit {commit}," in before and row[:3] == "| a"
    }
    here |= {row.split("|")[1].strip(): row for row in _rows}
    rows = "\n".join(here[what] for what in FAILURES if what in here)
    facts = datetime.date.today().isoformat(), commit, os.cpu_count(), os.getloadavg()[0]
    page.write_text(PAGE.format(*facts, rows, len(here), len(FAILURES)))


PAGE = """\
# One lab's folder fails: do the others wait?

Measured on {}, commit {}, {} processors, load {:.1f} at the end. Made by
`python3 packaging/run.py peers tests/peers/test_other_labs.py` with SORTER_RESULTS=docs/results.

Seconds from a series' appearance in incoming/ until it is delivered to a lab whose folder is well: medians of five runs
while the other lab's folder is well too, and of five in turn with them while it fails and a series waits for it. The
goal is a median that is later by no more than a tenth, or a quarter of a second. Meanwhile the failing lab gets no
receipt; afterwards, by itself, each of its images once. *Simulated*: the server's answers are those of a FUSE file
system made for it (`tests/peers/fuse_share.py`); the mount, the kernel's waiting and everything else are real.

| the other lab's folder is on | usual | meanwhile | longest | within the goal |
|---|--:|--:|--:|---|
{}

{} of {} cases. They may be measured one after the other, on one commit: `-k "tmpfs"`.
"""
