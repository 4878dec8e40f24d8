"""Compare sorter's receiver with others on this machine: `.venv/bin/python tests/bench --help`.

As root it first enters a network namespace of its own, because some of the receivers listen on every address.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # of pydicom, on the made-up images

import bench  # noqa: E402
import report  # noqa: E402

_INSIDE = "SORTER_BENCH_NAMESPACE"


def main() -> int:
    given = arguments()
    enter_namespace()
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    results, idle, notes = [], None, []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory(dir=given.disk) as disk:
        cost = bench.fsync_cost(Path(disk))
        slow = cost > bench.REALLY_COSTS
        notes.append(f"an fsync of a new 179 KB file in {given.disk} takes {cost * 1e3:.2f} ms (median of 200)")
        if not slow:
            notes.append("that is no disk: its rows are left out; give --disk FOLDER on one whose fsync really costs")
        for scenario in bench.scenarios(given.seconds):
            place = {"tmpfs": memory, "disk": disk}[scenario.place]
            title = f"{scenario.place}, {scenario.name}"
            if (scenario.place == "disk" and not slow) or not re.search(given.only, title):
                continue
            say(title)
            with tempfile.TemporaryDirectory(dir=place) as folder:
                results += bench.measure(scenario, Path(folder), given.rounds, say)
        if re.search(given.only, "idle"):
            with tempfile.TemporaryDirectory(dir=memory) as folder:
                idle = bench.idle_cpu(Path(folder))
    page = report.page(bench.Results(results), idle, [machine(given), *notes])
    print(page)
    if given.out:
        Path(given.out).write_text(page)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each receiver in each scenario")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run")
    parser.add_argument("--only", default="", help="a regular expression: scenarios to run, as 'tmpfs, 179 KB'")
    parser.add_argument("--disk", default="/var/tmp", help="a folder on a disk whose fsync really costs")
    parser.add_argument("--out", help="write the page of results here, too")
    return parser.parse_args()


def enter_namespace() -> None:
    """Run this again with no network but a loopback of its own."""
    if os.geteuid() != 0 or os.environ.get(_INSIDE) or not shutil.which("unshare") or not shutil.which("ip"):
        return
    os.environ[_INSIDE] = "1"
    again = [sys.executable, *sys.orig_argv[1:]]
    os.execvp("unshare", ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *again])


def machine(given: argparse.Namespace) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    day = datetime.date.today().isoformat()
    system = f"{os.cpu_count()} processors, Linux {platform.release()}, Python {platform.python_version()}"
    runs = f"{given.rounds} runs of {given.seconds:g} s each, interleaved"
    return f"{day}, commit {commit or 'unknown'}, {system}; {runs}"


if __name__ == "__main__":
    sys.exit(main())
