"""Measure what the local engine adds to a command: the same commands by `xargs -P`, and as jobs.

A job is more than its command: copies of its inputs, a process of its own inside limits, digests of what it made, and
its adoption into the store, synced. All of that is counted, until the last product lies there.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

warnings.simplefilter("ignore")  # of pydicom, on the made-up images

from sorter.durable import Files  # noqa: E402
from sorter.engine.local import LocalEngine  # noqa: E402
from sorter.engine.work import Work  # noqa: E402
from sorter.model import Product  # noqa: E402
from sorter.testing.synthetic import Plan, localizer, write_series  # noqa: E402

GOAL = 0.050
"""Seconds that a job may take beyond its command."""


@dataclass(frozen=True)
class Row:
    """The same command in two ways: for xargs with the paths of inputs and result, and as a product."""

    name: str
    jobs: int
    command: Callable[[Path, Path], Sequence[str]]  # (folder of inputs, folder for the result)
    make: str
    settings: dict[str, object]


def copying() -> Row:
    made = {"run": ["cp", "{in}/000001.dcm", "{out}/out.dcm"], "needs": ["dicom"], "env": {}, "nothing": [], "bind": [],
            "container": None}  # fmt: skip
    return Row(
        "`cp` of one image, as a product of sorter-command",
        100,
        lambda images, out: ["cp", f"{images}/000001.dcm", f"{out}/out.dcm"],
        "sorter_command.run:make",
        {"products": {"made": made}},
    )


def converting() -> Row | None:
    try:
        from dcm2niix import bin as program
    except ImportError:
        return None
    return Row(
        "`dcm2niix` of a localizer, as sorter-dcm2niix runs it",
        40,
        lambda images, out: [os.fspath(program), "-b", "y", "-z", "y", "-6", "-f", "out", "-o", str(out), str(images)],
        "sorter_dcm2niix.convert:make",
        {},
    )


def main() -> None:
    given = arguments()
    lines = []
    for row in filter(None, (copying(), converting())):
        for places in given.places:
            with tempfile.TemporaryDirectory(dir=given.disk) as folder:
                lines.append(Bench(Path(folder), row, places).line(given.rounds))
                print(lines[-1], file=sys.stderr, flush=True)
    page = "\n".join([*HEAD, machine(given), "", *TABLE, *lines, ""])
    print(page)
    if given.out:
        Path(given.out).write_text(page)


HEAD = (
    "# What a job costs beside its command, as measured",
    "",
    "Made by `.venv/bin/python tests/bench/engine.py`; nothing was typed. The same commands are run by `xargs -P`,",
    "and as jobs of the local engine: with copies of their inputs, limits, digests, and their adoption, synced.",
    "Overhead is how much longer a job keeps one of the P places: P × (engine − xargs) / jobs; the median of the",
    "rounds, least and most behind it. The goal is 50 ms.",
    "",
)

TABLE = ("| what | P | jobs | xargs | engine | overhead per job | goal |", "|---|--:|--:|--:|--:|--:|---|")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of both, interleaved")
    parser.add_argument("--places", type=int, nargs="+", default=[1, 2], help="how many at a time")
    parser.add_argument("--disk", default="/var/tmp", help="a folder on the disk to measure on")
    parser.add_argument("--out", help="write the page of results here, too")
    return parser.parse_args()


def machine(given: argparse.Namespace) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (
        f"- {datetime.date.today().isoformat()}, commit {commit or 'unknown'}, {os.cpu_count()} processors, Linux "
        f"{platform.release()}, Python {platform.python_version()}; {given.rounds} rounds, interleaved; "
        f"load of the machine at the end {os.getloadavg()[0]:.1f}"
    )


class Bench:
    """One row with so many places."""

    def __init__(self, folder: Path, row: Row, places: int) -> None:
        self.folder, self.row, self.places = folder, row, places
        self.images = folder / "images"
        self.images.mkdir()
        for number, path in enumerate(write_series(folder / "made", localizer(Plan(seed=1, size=64))), 1):
            Path(path).rename(self.images / f"{number:06d}.dcm")

    def line(self, rounds: int) -> str:
        theirs, ours = [], []
        self.engine_once()  # both once unmeasured: programs and modules come from the disk only then
        self.xargs_once()
        for _ in range(rounds):
            theirs.append(self.xargs_once())
            ours.append(self.engine_once())
        over = [self.places * (b - a) / self.row.jobs for a, b in zip(theirs, ours, strict=True)]
        overhead = statistics.median(over)
        met = "met" if overhead <= GOAL else "missed"
        return (
            f"| {self.row.name} | {self.places} | {self.row.jobs} | {statistics.median(theirs):.2f} s | "
            f"{statistics.median(ours):.2f} s | {overhead * 1e3:.1f} ms ({min(over) * 1e3:.1f} to "
            f"{max(over) * 1e3:.1f}) | {met} |"
        )

    def xargs_once(self) -> float:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            commands = []
            for number in range(self.row.jobs):
                out = Path(place, f"{number:04d}")
                out.mkdir()
                commands.append([str(each) for each in self.row.command(self.images, out)])
            program, words = commands[0][0], len(commands[0]) - 1
            text = b"".join(os.fsencode(word) + b"\0" for command in commands for word in command[1:])
            begun = time.monotonic()
            subprocess.run(
                ["xargs", "-0", "-P", str(self.places), "-n", str(words), program],
                input=text, stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            took = time.monotonic() - begun
            assert all(any(Path(place, name).iterdir()) for name in os.listdir(place))
            return took

    def engine_once(self) -> float:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            engine = LocalEngine(self.places, Path(place, "scratch"), Files())
            try:
                return self._jobs(engine, Path(place))
            finally:
                engine.stop()

    def _jobs(self, engine: LocalEngine, place: Path) -> float:
        images = [(path, path.name) for path in sorted(self.images.iterdir())]
        product = Product("made", self.row.make)
        begun = time.monotonic()
        for number in range(self.row.jobs):
            engine.submit(Work(f"{number:04d}", product, {"dicom": images}, self.row.settings))
        made = 0
        while made < self.row.jobs:
            for outcome in engine.finished():
                assert outcome.state == "made", outcome
                engine.adopt(outcome.id, place / "store" / outcome.id)
                made += 1
            time.sleep(0.001)
        return time.monotonic() - begun


if __name__ == "__main__":
    main()
