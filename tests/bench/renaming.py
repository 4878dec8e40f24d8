"""Measure `sorter rename` on this machine, beside what people type: `cp -r`, `sync -f` and `sha256sum`.

Both make copies that are synced and whose content was read again. They run in turn, on the same images, and each round
begins with an empty destination.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

warnings.simplefilter("ignore")  # of pydicom, on the made-up images

from sorter.testing.running import RunningSorter  # noqa: E402
from sorter.testing.synthetic import many  # noqa: E402
from sorter.testing.waiting import wait_until  # noqa: E402

BY_HAND = 'cp -r "$1" "$2" && sync -f "$2" && find "$2" -type f -print0 | xargs -0 sha256sum > "$3"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=179_000, help="of pixels added to each image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on the disk to measure")
    parser.add_argument("--out", help="write the page of results here, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.disk) as folder:
        root = Path(folder)
        store = fill(root, given.images, given.bytes)
        rename = [sys.executable, "-m", "sorter", "rename", "*", str(root / "out")]
        by_hand = ["sh", "-c", BY_HAND, "sh", str(store), str(root / "copy"), str(root / "sums")]
        took: dict[str, list[float]] = {"rename": [], "rename by the socket": [], "by hand": []}
        with site(root) as sorter:
            socket = {"SORTER_SOCKET": str(sorter.spool.root / "run/sock")}
            for round_ in range(given.rounds):
                took["rename"].append(timed([*rename, "--root", str(root / "site")], root / "out"))
                took["rename by the socket"].append(timed(rename, root / "out", socket))
                took["by hand"].append(timed(by_hand, root / "copy"))
                times = ", ".join(f"{name} {each[-1]:.1f} s" for name, each in took.items())
                print(f"round {round_ + 1}: {times}", file=sys.stderr)
    told = page(given, took)
    print(told)
    if given.out:
        Path(given.out).write_text(told + "\n")


def site(root: Path) -> RunningSorter:
    """Of a sorter that has nothing to do but to take images, and to answer at its socket."""
    return RunningSorter(root / "site", config="[labs.nobody]\nmatch = ['PatientID=nobody']\n", quiet=600)


def fill(root: Path, count: int, more: int) -> Path:
    """A store with so many images; its folder."""
    made = root / "made"
    made.mkdir()
    padding = b"\xfc\xff\xfc\xff" + b"OB\0\0" + more.to_bytes(4, "little") + bytes(more)  # Data Set Trailing Padding
    for name, content in many(count, a_series=500):
        (made / name).write_bytes(content + padding)
    with site(root) as sorter:
        made.rename(sorter.spool.incoming / "made")
        wait_until(lambda: stored(sorter.spool.store) >= count, 3600, "all images in the store")
        return sorter.spool.store


def stored(store: Path) -> int:
    return sum(len(files) for folder, _, files in os.walk(store) if Path(folder).parent.name == "images")


def timed(command: Sequence[str], out: Path, more: Mapping[str, str] = MappingProxyType({})) -> float:
    """Seconds, from an empty destination and a disk that is done with what came before. `more` is its environment."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **more})
    return time.monotonic() - begun


def page(given: argparse.Namespace, took: dict[str, list[float]]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = [
        f"| {name} | {statistics.median(each):.1f} | {min(each):.1f} – {max(each):.1f} |" for name, each in took.items()
    ]
    ratios = {name: statistics.median(hand / a for a, hand in zip(each, took["by hand"], strict=True))
              for name, each in took.items() if name != "by hand"}  # fmt: skip
    load = os.getloadavg()[0]
    return "\n".join([
        "# Renaming, as measured",
        "",
        "Made by `.venv/bin/python tests/bench/renaming.py`; nothing was typed.",
        f"{datetime.date.today().isoformat()}, commit {commit}, {os.cpu_count()} processors, load {load:.1f};",
        f"{given.images} images of {given.bytes / 1000:.0f} KB, {given.rounds} rounds in turn.",
        "",
        f"`{BY_HAND}`",
        "",
        "| | s, median | s, spread |",
        "|---|--:|--:|",
        *rows,
        "",
        *(f"{name} is {ratio:.2f} × as fast (median of the rounds; goal ≥ 1.0)." for name, ratio in ratios.items()),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
