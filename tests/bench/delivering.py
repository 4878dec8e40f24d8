"""Measure delivery on this machine: a tree beside what people type, and images from C-STORE to verified delivery.

The first half: a store with nothing delivered yet, because its lab's root has no marker. Then the root gets one, and
`sorter retry` begins. It is over when every series has its receipt: each file was copied, synced, read back past the
page cache, and renamed. `cp`, `sync` and `sha256sum` do as much; `rsync -c` compares checksums and syncs nothing by
itself. All run in turn, each into an empty folder, on a disk that is done with what came before.

The second half: senders as fast as they are answered, each series on an association of its own, everything on the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

warnings.simplefilter("ignore")  # of pydicom, on the made-up images

import bench  # noqa: E402
import images  # noqa: E402
import load  # noqa: E402

from sorter.builtin.path_target import mark  # noqa: E402
from sorter.daemon.requests import request  # noqa: E402
from sorter.durable import Files  # noqa: E402
from sorter.testing.running import RunningSorter  # noqa: E402
from sorter.testing.synthetic import many  # noqa: E402
from sorter.testing.waiting import wait_until  # noqa: E402

BY_HAND = {
    "`cp -r`, `sync -f`, `sha256sum`": (
        'cp -r "$1" "$2" && sync -f "$2" && find "$2" -type f -print0 | xargs -0 sha256sum > "$3"'
    ),
    "`rsync -c`": 'rsync -r -c "$1" "$2"',
    "`rsync -c`, `sync -f`, `rsync -c` again": 'rsync -rc "$1" "$2" && sync -f "$2" && rsync -rc "$1" "$2"',
}
SORTER = "sorter"
CONFIG = '[labs.all]\nmatch = ["Modality=MR"]\nproducts = ["dicom"]\n'
SLACK = 5.0  # seconds of arrivals that may wait at the end
RATE = 500.0  # images/s


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(dir=given.disk) as folder:
        place = Path(folder)
        tree = trees(place, given) if given.rounds else []
        flow = flows(place, given) if given.seconds else []
    page = "\n".join([*HEAD, machine(given), "", *tree, *flow, ""])
    print(page)
    if given.out:
        Path(given.out).write_text(page)


HEAD = (
    "# Delivery, as measured",
    "",
    "Made by `.venv/bin/python tests/bench/delivering.py`; nothing was typed.",
    "",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8_000, help="of the tree")
    parser.add_argument("--bytes", type=int, default=179_000, help="of pixels added to each")
    parser.add_argument("--rounds", type=int, default=5, help="of each, in turn; 0 leaves the tree out")
    parser.add_argument("--seconds", type=float, default=60.0, help="of sending; 0 leaves it out")
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--series", type=int, default=176, help="images of each series that is sent")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on the disk to measure")
    parser.add_argument("--out", help="write the page of results here, too")
    return parser.parse_args()


def machine(given: argparse.Namespace) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cost = bench.fsync_cost(given.disk)
    return (
        f"- {datetime.date.today().isoformat()}, commit {commit or 'unknown'}, {os.cpu_count()} processors, Linux "
        f"{platform.release()}, Python {platform.python_version()}; load at the end {os.getloadavg()[0]:.1f}\n"
        f"- an fsync of a new 179 KB file in {given.disk} takes {cost * 1e3:.2f} ms (median of 200)"
    )


# --- a tree ---------------------------------------------------------------------------------------------------------


def trees(place: Path, given: argparse.Namespace) -> list[str]:
    site = fill(place, given.images, given.bytes)
    took: dict[str, list[float]] = {name: [] for name in (SORTER, *BY_HAND)}
    for round_ in range(given.rounds):
        took[SORTER].append(delivered(place, site))
        for name, command in BY_HAND.items():
            took[name].append(by_hand(place, site / "spool" / "store", command))
        print(
            f"round {round_ + 1}: " + ", ".join(f"{name} {each[-1]:.1f} s" for name, each in took.items()),
            file=sys.stderr,
        )
    shutil.rmtree(site)
    return table(given, took)


def fill(place: Path, count: int, more: int) -> Path:
    """A site with so many images in its store, and a lab whose root is away."""
    made, site = place / "made", place / "site"
    made.mkdir()
    padding = b"\xfc\xff\xfc\xff" + b"OB\0\0" + more.to_bytes(4, "little") + bytes(more)  # Data Set Trailing Padding
    for name, content in many(count, a_series=500):
        (made / name).write_bytes(content + padding)
    config = f"{CONFIG}root = {json.dumps(str(place / 'out'))}\n"
    with RunningSorter(site, config=config) as sorter:
        made.rename(sorter.spool.incoming / "made")

        def waits() -> bool:
            with contextlib.suppress(FileNotFoundError):
                found = sorter.series()
                return sum(each.images for each in found) == count and all(each.state == "owed" for each in found)
            return False

        wait_until(waits, 3600, "all images in the store, and owed")
    return site


def delivered(place: Path, site: Path) -> float:
    """Seconds from when sorter takes up `sorter retry`, after the return of the root, to the last receipt.

    On a copy of the site. It looks for such requests once a second, which is no part of delivering.
    """
    copy, out = place / "copy", place / "out"
    clone(site, copy)
    with RunningSorter(copy, config=(site / "sorter.toml").read_text()) as sorter:
        series = len(sorter.series())
        wait_until(lambda: (sorter.spool.owed / "all.json").exists(), 60, "the sorter to find that the root is away")
        out.mkdir()
        os.sync()
        mark(out, Files())
        request(sorter.spool, "retry", {"do": "retry"})
        wait_until(lambda: not os.listdir(sorter.spool.requests) or len(os.listdir(out)) > 1, 60, "it to be taken up")
        begun = time.monotonic()
        wait_until(lambda: receipts(sorter.spool.store) == series, 3600, "all receipts")
        took = time.monotonic() - begun
    shutil.rmtree(copy)
    shutil.rmtree(out)
    return took


def clone(site: Path, copy: Path) -> None:
    """Images are never written to: a link is as good as a copy of them."""

    def link_images(old: str, new: str) -> None:
        os.link(old, new) if old.endswith(".dcm") else shutil.copy2(old, new)

    shutil.copytree(site, copy, copy_function=link_images)


def receipts(store: Path) -> int:
    return sum(1 for _ in store.glob("*/*/receipts/*.json"))


def by_hand(place: Path, store: Path, command: str) -> float:
    os.sync()
    begun = time.monotonic()
    subprocess.run(["sh", "-c", command, "sh", str(store), str(place / "hand"), str(place / "sums")], check=True)
    took = time.monotonic() - begun
    shutil.rmtree(place / "hand")
    return took


def table(given: argparse.Namespace, took: dict[str, list[float]]) -> list[str]:
    size = given.images * given.bytes / 1e6
    rows = [
        f"| {name} | {statistics.median(each):.1f} | {min(each):.1f} – {max(each):.1f} | "
        f"{size / statistics.median(each):.0f} |"
        for name, each in took.items()
    ]
    first = next(iter(BY_HAND))
    ratio = statistics.median(hand / ours for ours, hand in zip(took[SORTER], took[first], strict=True))
    return [
        "## A tree",
        "",
        f"{given.images} images of {given.bytes / 1000:.0f} KB, 500 a series; {given.rounds} rounds.",
        "",
        "| | s, median | s, spread | MB/s |",
        "|---|--:|--:|--:|",
        *rows,
        "",
        f"sorter is {ratio:.2f} × as fast as {first} (median of the rounds; goal ≥ 1.0).",
        "",
        *(f"    {command}" for command in BY_HAND.values()),
        "",
    ]


# --- from C-STORE to delivery ---------------------------------------------------------------------------------------


def flows(place: Path, given: argparse.Namespace) -> list[str]:
    site = place / "flow"
    with RunningSorter(site, quiet=1.0, config=CONFIG) as sorter:
        counted = Counting(sorter)
        with counting(counted):
            outcome = send(sorter.port, given)
            at_end = counted.look()
        begun = time.monotonic()
        wait_until(lambda: counted.look() >= outcome.images, 600, "all that was acknowledged to be delivered")
        after = time.monotonic() - begun
        files = sum(name.endswith(".dcm") for _, _, names in os.walk(sorter.labs) for name in names)
    rate = outcome.images / outcome.seconds
    waiting = (outcome.images - at_end) / rate
    steady = counted.rate(outcome.seconds)
    answers = sorted(outcome.answers)
    p50, p99 = (1e3 * answers[min(len(answers) - 1, int(part * len(answers)))] for part in (0.5, 0.99))
    return [
        "## From C-STORE to verified delivery",
        "",
        f"{given.senders} senders of 179 KB images on the same {os.cpu_count()} processors, each series of",
        f"{given.series} images on an association of its own; {outcome.seconds:.0f} s; quiet = 1 s; no products;",
        "spool and target on the same disk.",
        "",
        "| | measured | goal |",
        "|---|--:|--:|",
        f"| images acknowledged | {outcome.images} ({outcome.refused} refused) | |",
        f"| received, images/s | {rate:.0f} | ≥ {RATE:.0f} |",
        f"| delivered with a receipt, images/s, in the last two thirds | {steady:.0f} | ≥ {RATE:.0f} |",
        f"| backlog at the end, seconds of arrivals | {waiting:.1f} | ≤ {SLACK:g} |",
        f"| until the last one was delivered, s | {after:.1f} | |",
        f"| answer: median, p99 | {p50:.1f} ms, {p99:.1f} ms | |",
        f"| files at the lab | {files} | {outcome.images} |",
        "",
    ]


def send(port: int, given: argparse.Namespace) -> load.Outcome:
    """From a process of its own."""
    asked = load.Load(images.small(), given.senders, given.seconds, series=given.series)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(load.run, (port, asked))


class Counting:
    """How many images the receipts name, and how many they named when."""

    def __init__(self, sorter: RunningSorter) -> None:
        self._store, self._known = sorter.spool.store, dict[Path, tuple[int, int]]()
        self.begun, self.seen = time.monotonic(), list[tuple[float, int]]()

    def look(self) -> int:
        """Each receipt is read when it is new, or was replaced because its series grew."""
        for path in self._store.glob("*/*/receipts/*.json"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                written = path.stat().st_mtime_ns
                if self._known.get(path, (0, 0))[0] != written:
                    self._known[path] = written, len(json.loads(path.read_bytes())["files"])
        found = sum(count for _, count in self._known.values())
        self.seen.append((time.monotonic() - self.begun, found))
        return found

    def rate(self, seconds: float) -> float:
        """Images a second in the last two thirds of the sending."""
        inside = [each for each in self.seen if seconds / 3 <= each[0] <= seconds]
        (first, before), (last, after) = inside[0], inside[-1]
        return (after - before) / (last - first)


@contextlib.contextmanager
def counting(what: Counting) -> Iterator[None]:
    """Once a second, beside."""
    over = threading.Event()

    def run(look: Callable[[], int]) -> None:
        while not over.wait(1.0):
            look()

    thread = threading.Thread(target=run, args=(what.look,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
