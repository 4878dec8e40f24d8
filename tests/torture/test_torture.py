"""Everything at once into `incoming/` and a watched tree: all of it is found, whole, and nothing else waits for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torture.arrivals import SHAPES, WAYS, Image, Way, fast_mkdir, uploaded, write

from sorter.model import UnitKind, unit_key
from sorter.spool import Spool
from sorter.take.header import examine
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import many
from sorter.testing.waiting import wait_until

FOUND_WITHIN = 60.0
"""Seconds after the last file came."""

ALONE_WITHIN = 5.0
"""Seconds until a single image is in the store, whatever comes beside it, where nothing else keeps the machine busy."""

ON_A_BUSY_MACHINE = 4
"""So many times as long as that may take where other tests run at the same time."""

NOWHERE = "[labs.nobody]\nmatch = ['PatientID=nobody']\n"
LIMITS = {"max_user_watches": "/proc/sys/user/max_inotify_watches", "queue": "/proc/sys/fs/inotify/max_queued_events"}

pytestmark = pytest.mark.timeout(1800)


def images(count: int, seed: int) -> list[Image]:
    return list(many(count, seed=seed, a_series=500))


class Stored:
    """Counts the images in the store, by the folders alone: twice a second, and it lists only those that changed. What
    is measured has the same processors and the same disk.
    """

    EVERY = 0.5  # seconds
    DEPTH = 4  # store/<2 hex>/<key>/images/<hex>/

    def __init__(self, spool: Spool) -> None:
        self._top = os.fspath(spool.store)
        self._known: dict[str, tuple[int, list[str], int]] = {}  # of a folder: mtime, folders or none, how many files
        self._counted, self._at = 0, -self.EVERY

    def __call__(self) -> int:
        if time.monotonic() - self._at >= self.EVERY:
            self._counted, self._at = self._count(self._top, 0), time.monotonic()
        return self._counted

    def _count(self, folder: str, depth: int) -> int:
        try:
            mtime = os.stat(folder).st_mtime_ns
            if mtime > time.time_ns() - 100_000_000:  # what comes within the same tick of the clock may be missed
                mtime = -1
            if mtime < 0 or self._known.get(folder, (0, [], 0))[0] != mtime:
                names = os.listdir(folder)
                inner = [f"{folder}/{name}" for name in names if depth != 2 or name == "images"]
                self._known[folder] = (mtime, [], len(names)) if depth == self.DEPTH else (mtime, inner, 0)
        except FileNotFoundError:
            return 0
        _, inner, files = self._known[folder]
        return files + sum(self._count(each, depth + 1) for each in inner)


def ways() -> tuple[Way, ...]:
    there = all(shutil.which(each) for each in ("rsync", "sftp")) and Path("/usr/sbin/sshd").exists()
    return WAYS if there else tuple(way for way in WAYS if way is not uploaded and way.__name__ != "rsynced")


class Probe:
    """Drops one image of a series of its own now and then, and measures how long each takes into the store."""

    def __init__(self, sorter: RunningSorter) -> None:
        self.sorter, self.waits, self.dropped = sorter, [], 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.waits: list[float] = []

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        for number, (name, content) in enumerate(many(10_000, seed=999, a_series=1)):
            if self._over.wait(0.5):
                return
            folder = self.sorter.spool.unit_folder(_key(content, self.sorter.root))
            begun = time.monotonic()
            write(self.sorter.spool.incoming / f"alone-{number}", [(name, content)])
            self.dropped += 1
            wait_until(folder.exists, 120, "a single image")
            self.waits.append(time.monotonic() - begun)


def _key(content: bytes, root: Path) -> str:
    from sorter.durable import Files

    path = root / "probe.dcm"
    path.write_bytes(content)
    with Files().opened(path) as fd:
        parsed = examine(Files(), fd)
    return unit_key(UnitKind.SERIES, parsed.study_uid, parsed.series_uid)


def check(sorter: RunningSorter, sent: Sequence[Image], begun: float) -> float:
    """Seconds from `begun` until all of it was in the store; every file there is one that was sent, whole."""
    stored = Stored(sorter.spool)
    wait_until(lambda: stored() >= len(sent), 1200, f"{len(sent)} images in the store")
    took = time.monotonic() - begun
    there = {path.read_bytes() for path in sorter.spool.store.rglob("*.dcm")}
    assert {content for _, content in sent} <= there
    assert not list(sorter.spool.quarantined()), "nothing was taken half"
    return took


def bring(sorter: RunningSorter, count: int, chosen: Sequence[Way]) -> list[Image]:
    """The same number by each way, one way after another."""
    sent: list[Image] = []
    for seed, way in enumerate(chosen, 1):
        some, apart = images(count // len(chosen), seed), sorter.root / "apart" / way.__name__
        apart.mkdir(parents=True)
        way(sorter.spool.incoming, some, apart)
        sent += some
    return sent


def run(tmp_path: Path, count: int, chosen: Sequence[Way]) -> tuple[float, list[float]]:
    """(seconds from the last file until all were in the store, the waits of single images, in order)."""
    with RunningSorter(tmp_path / "site", quiet=300, config=NOWHERE) as sorter:
        with Probe(sorter) as probe:
            sent = bring(sorter, count, chosen)
            last = time.monotonic()
            stored = Stored(sorter.spool)
            wait_until(lambda: stored() >= len(sent) + len(probe.waits), 1200, "everything in the store")
        took = check(sorter, sent, last)
        for folder, folders, files in os.walk(sorter.spool.root):
            if Path(folder) != sorter.spool.incoming:  # what lies there is how people left it
                assert len(folders) + len(files) <= 10_000, folder
    return took, sorted(probe.waits)


def test_a_few_thousand_in_every_way(tmp_path: Path) -> None:
    took, waits = run(tmp_path, 3500, ways())
    print(f"all found {took:.1f} s after the last; a single image took {max(waits):.1f} s at most, of {len(waits)}")
    assert took <= FOUND_WITHIN
    assert waits
    assert max(waits) <= ALONE_WITHIN * ON_A_BUSY_MACHINE


@pytest.mark.soak
def test_a_hundred_thousand_in_every_way(tmp_path: Path) -> None:
    begun = time.monotonic()
    took, waits = run(tmp_path, 100_000, ways())
    _say(f"watchdog {_watchdog()}: 100,000 files", begun, took, waits)
    assert took <= FOUND_WITHIN
    assert waits[-1] <= ALONE_WITHIN


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES, ids=lambda each: each.__name__)
def test_a_hundred_thousand_in_a_shape_that_nobody_would_choose(tmp_path: Path, shape: Way) -> None:
    begun = time.monotonic()
    took, waits = run(tmp_path, 100_000, [shape])
    _say(f"{shape.__name__}: 100,000 files", begun, took, waits)
    assert waits[-1] <= ALONE_WITHIN


def _say(what: str, begun: float, took: float, waits: Sequence[float]) -> None:
    print(
        f"{what}, {time.monotonic() - begun:.0f} s in all; the last was in the store {took:.1f} s after it came; of "
        f"{len(waits)} single images meanwhile the median took {waits[len(waits) // 2]:.1f} s, the slowest "
        f"{waits[-1]:.1f} s"
    )


def _watchdog() -> str:
    code = "import watchdog.version as v; print(v.VERSION_STRING)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# --- when the kernel says nothing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(which: str, value: int) -> Iterator[list[str]]:
    """A command prefix under which sorter runs with this limit of inotify."""
    path = LIMITS[which]
    if which == "max_user_watches":  # counted for each user namespace
        command = ["unshare", "-Ur", "sh", "-c", f'echo {value} > {path} && exec "$@"', "sh"]
        if subprocess.run([*command, "true"], capture_output=True).returncode:
            pytest.skip("no user namespaces here")
        yield command
        return
    if os.geteuid() != 0:
        pytest.skip("only root may shorten the queue of inotify")
    before = Path(path).read_text()
    Path(path).write_text(str(value))
    try:
        yield []
    finally:
        Path(path).write_text(before)


def test_with_fifty_watches_everything_is_found_and_the_deafness_is_said(tmp_path: Path) -> None:
    with (
        limited("max_user_watches", 50) as prefix,
        RunningSorter(tmp_path, quiet=300, config=NOWHERE, prefix=prefix) as sorter,
    ):
        sent = images(1200, 1)
        fast_mkdir(sorter.spool.incoming, sent, tmp_path)
        assert check(sorter, sent, time.monotonic()) <= FOUND_WITHIN
        wait_until(lambda: any("max_user_watches" in each for each in sorter.spool.problems()), 30, "it to be said")


@pytest.mark.soak
def test_with_a_queue_that_overflows_everything_is_found(tmp_path: Path) -> None:
    with limited("queue", 16), RunningSorter(tmp_path, quiet=300, config=NOWHERE) as sorter:
        sent = images(20_000, 1)
        fast_mkdir(sorter.spool.incoming, sent, tmp_path)
        assert check(sorter, sent, time.monotonic()) <= FOUND_WITHIN


def test_a_root_that_is_renamed_and_made_again_is_not_deaf(tmp_path: Path) -> None:
    with RunningSorter(tmp_path, quiet=300, config=NOWHERE) as sorter:
        first, second = images(100, 1), images(100, 2)
        fast_mkdir(sorter.spool.incoming, first, tmp_path)
        check(sorter, first, time.monotonic())
        sorter.spool.incoming.rename(tmp_path / "old")
        sorter.spool.incoming.mkdir()
        fast_mkdir(sorter.spool.incoming, second, tmp_path)
        assert check(sorter, [*first, *second], time.monotonic()) <= FOUND_WITHIN


def test_a_share_that_vanishes_and_returns_is_followed_and_said(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    config = f'{NOWHERE}[[watch]]\npath = "{share}"\ntake = "copy"\nobserver = "polling"\n'
    with RunningSorter(tmp_path / "site", quiet=300, config=config) as sorter:
        first, second = images(100, 1), images(100, 2)
        fast_mkdir(share, first, tmp_path)
        check(sorter, first, time.monotonic())
        share.rename(tmp_path / "away")
        wait_until(lambda: any(str(share) in each for each in sorter.spool.problems()), 60, "it to be said")
        alone = images(1, 3)
        write(sorter.spool.incoming / "beside", alone)
        assert check(sorter, [*first, *alone], time.monotonic()) <= FOUND_WITHIN
        (tmp_path / "away").rename(share)
        fast_mkdir(share / "more", second, tmp_path)
        assert check(sorter, [*first, *alone, *second], time.monotonic()) <= FOUND_WITHIN
        wait_until(lambda: not sorter.spool.problems(), 60, "the problem to be over")
        assert len(list(share.rglob("*.*"))) >= 200, "what is copied stays"
