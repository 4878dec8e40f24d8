"""Measure `sorter import` on this machine: how fast it is, and what a scanner feels of it.

A parcel is the worst moment for a scanner: a thousand files lie in incoming/, and the sorter works. So each round waits
for one, and has the scanner begin then.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # of pydicom, on the made-up images

import images  # noqa: E402
import load  # noqa: E402

from sorter.testing.running import RunningSorter  # noqa: E402
from sorter.testing.synthetic import Plan, write_session  # noqa: E402
from sorter.testing.waiting import wait_until  # noqa: E402

ONLY_DICOM = '[labs.all]\nmatch = ["PatientID=*"]\nproducts = ["dicom"]\n'


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(dir=given.disk) as folder:
        rows = Bench(Path(folder), given).rows()
    page = "\n".join([*HEAD, machine(given), "", "| what | measured |", "|---|---|", *rows, ""])
    print(page)
    if given.out:
        Path(given.out).write_text(page)


HEAD = (
    "# Bringing an archive over, as measured",
    "",
    "Made by `.venv/bin/python tests/bench/importing.py`; nothing was typed. An answer is counted from the last byte",
    "that the kernel took to the whole C-STORE-RSP. A scanner here sends images of 179 KB over one association, each",
    "as soon as the last one is answered: faster than any real one, which leaves the disk time between.",
    "",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=40, help="sessions of the made-up archive")
    parser.add_argument("--rounds", type=int, default=5, help="of a scanner alone and beside an import, interleaved")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a scanner sends in a round")
    parser.add_argument("--disk", default="/var/tmp", help="a folder on the disk to measure on")
    parser.add_argument("--out", help="write the page of results here, too")
    return parser.parse_args()


def machine(given: argparse.Namespace) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (
        f"- {datetime.date.today().isoformat()}, commit {commit or 'unknown'}, {os.cpu_count()} processors, Linux "
        f"{platform.release()}, Python {platform.python_version()}; {given.rounds} rounds of {given.seconds:g} s; "
        f"load of the machine at the end {os.getloadavg()[0]:.1f}"
    )


class Bench:
    """An archive, and a sorter for each thing that is measured."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        self.archive = folder / "archive"
        for seed in range(given.sessions):
            write_session(self.archive / f"{seed:04d}", Plan(seed=seed, size=64))
        self.files = [each for each in self.archive.rglob("*") if each.is_file()]
        self.size = sum(each.stat().st_size for each in self.files)

    def rows(self) -> list[str]:
        rows = [("archive", f"{len(self.files)} files, {self.size / 1e6:.0f} MB")]
        with RunningSorter(self.folder / "alone", quiet=60, config=ONLY_DICOM) as sorter:
            rows.append(self.timed(sorter, "`--dry-run`", "--dry-run"))
            rows.append(self.timed(sorter, "first run, until all is in the store"))
            rows.append(self.timed(sorter, "second run: nothing is new"))
            rows.append(self.timed(sorter, "`--again`: everything read, and equal", "--again"))
            sorter.wait_delivered(len(self.files), timeout=300)
            delivered = sum(each.images for each in sorter.series())
            rows.append(("images delivered after both", f"{delivered} of {len(self.files)}"))
            rows.append(("memory of an import, the largest of these four", f"{peak() / 1e6:.0f} MB"))
        return [f"| {what} | {measured} |" for what, measured in [*rows, *self.beside()]]

    def timed(self, sorter: RunningSorter, what: str, *options: str) -> tuple[str, str]:
        begun = time.monotonic()
        done = subprocess.run(self.command(sorter, "--json", *options), capture_output=True, check=True)
        took, told = time.monotonic() - begun, json.loads(done.stdout)
        counted = told.get("files", told.get("handed", 0) + told.get("known", 0))
        assert counted == len(self.files), told
        return what, f"{took:.1f} s, {len(self.files) / took:.0f} files/s, {self.size / 1e6 / took:.0f} MB/s"

    def command(self, sorter: RunningSorter, *options: str) -> list[str]:
        return [sys.executable, "-m", "sorter", "import", "--root", str(sorter.root), *options, str(self.archive)]

    # --- a scanner beside it ------------------------------------------------------------------------------------

    def beside(self) -> list[tuple[str, str]]:
        """Answers alone, while a parcel is filed, and later, while the import only trickles."""
        found: dict[str, list[load.Outcome]] = {
            "alone": [],
            "while a parcel is filed": [],
            "after it, while it trickles": [],
        }
        with RunningSorter(self.folder / "beside", quiet=600, config=ONLY_DICOM) as sorter:
            for _ in range(self.given.rounds):
                wait_until(lambda: self.left(sorter) == 0 and settled(sorter), 300, "the sorter to be idle")
                found["alone"].append(self.scan(sorter))
                importing = subprocess.Popen(
                    self.command(sorter, "--again"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                wait_until(lambda: self.left(sorter) > 500, 120, "a parcel")
                while self.left(sorter):
                    found["while a parcel is filed"].append(self.scan(sorter))
                found["after it, while it trickles"].append(self.scan(sorter))
                importing.send_signal(signal.SIGINT)
                importing.wait()
        return [(f"a scanner {when}", says(outcomes)) for when, outcomes in found.items()]

    def left(self, sorter: RunningSorter) -> int:
        return sum(len(names) for _, _, names in os.walk(sorter.spool.incoming))

    def scan(self, sorter: RunningSorter) -> load.Outcome:
        return load.run(sorter.port, load.Load(images.small(), seconds=self.given.seconds))


def settled(sorter: RunningSorter) -> bool:
    """Nothing that was received waits to be filed."""
    names = (name for _, _, names in os.walk(sorter.spool.received) for name in names)
    return all(name.endswith((".json", ".jsonl")) for name in names)  # what is kept about images, and none


def says(outcomes: list[load.Outcome]) -> str:
    """Of all rounds together."""
    answers = sorted(answer for each in outcomes for answer in each.answers)
    half, most, longest = (answers[min(len(answers) - 1, int(part * len(answers)))] * 1e3 for part in (0.5, 0.99, 1))
    refused = sum(each.refused for each in outcomes)
    rate = len(answers) / sum(each.seconds for each in outcomes)
    return (
        f"{len(outcomes)} times; {rate:.0f} images/s; "
        f"median {half:.1f} ms, p99 {most:.1f} ms, longest {longest:.1f} ms; "
        f"{len(answers)} images, {refused} refused"
    )


def peak() -> float:
    """Bytes, of the children of this process that have ended: resident, the largest of them."""
    usage: Any = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(usage.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
