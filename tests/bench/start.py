"""How long a start takes with 100,000 instances of open series in the spool: until it is ready, and until all are at
work again.

    python -m tests.bench.start [--series 500] [--images 200] [--root DIR]

The series are open: their evidence is there, and nothing was published yet, as after a crash in a busy hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sorter.config import load
from sorter.daemon.assembly import assemble
from sorter.daemon.sort import mark_defaults
from sorter.durable import Files, PathLike
from sorter.model import Instance, Source, UnitKind, unit_key
from sorter.spool import Spool
from sorter.spool.lines import line
from sorter.spool.unit import IMAGES_PER_FOLDER, sop_hash, took

HEADER = {
    "PatientID": "P1", "StudyDate": "20260102", "StudyTime": "101112", "SeriesNumber": 1, "SeriesDescription": "EPI",
    "Modality": "MR", "Manufacturer": "SIEMENS", "EchoTime": 30.0, "RepetitionTime": 2000.0, "Rows": 64, "Columns": 64,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """Seconds: until the pipeline stood (`ready` is printed), the longest turn, and until every series is at work.

    `looked`: how often anything was opened, listed or asked for until it was ready.
    """

    instances: int
    looked: int
    ready: float
    longest_turn: float
    at_work: float
    cpu: float  # of that, processor time: what it takes where nothing else runs


class Counted(Files):
    """Counts what is opened, listed or asked for."""

    def __init__(self) -> None:
        self.looked = 0

    def open(self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        self.looked += 1
        return super().open(path, flags, mode, at=at)

    def stat(self, path: PathLike | int, *, at: int | None = None) -> os.stat_result:
        self.looked += 1
        return super().stat(path, at=at)

    def scan(self, path: PathLike | int) -> list[tuple[str, os.stat_result]]:
        found = super().scan(path)
        self.looked += 1 + len(found)
        return found

    def entries(self, path: PathLike | int) -> Iterator[os.DirEntry[str]]:
        for entry in super().entries(path):
            self.looked += 1
            yield entry

    def names(self, path: PathLike | int) -> list[str]:
        found = super().names(path)
        self.looked += 1 + len(found)
        return found


def fill(spool: Spool, series: int, images: int) -> None:
    """Make the folders of open series, image files with nothing in them included."""
    for number in range(1, series + 1):
        uid = f"1.2.840.99.{number}"
        folder = spool.unit_folder(unit_key(UnitKind.SERIES, "1.2.840.9", uid))
        evidence = [line({"unit": "series", "study": "1.2.840.9", "group": None})]
        for image in range(images):
            name = f"{image // IMAGES_PER_FOLDER:02x}/{sop_hash(f'{uid}.{image}')}.dcm"
            path = folder / "images" / name
            if image % IMAGES_PER_FOLDER == 0:
                path.parent.mkdir(parents=True)
            path.touch()
            evidence.append(line(took(_instance(uid, image, name))))
        (folder / "evidence.jsonl").write_bytes(b"".join(evidence))


def _instance(uid: str, image: int, name: str) -> Instance:
    header = HEADER if image == 0 else {"InstanceNumber": image + 1, "ImagePositionPatient": (0.0, 0.0, float(image))}
    source = Source("SCANNER", "SORTER", "10.1.2.3:4711", association=f"w1-{uid}-1")
    digests = ("a" * 64, "b" * 64, "c" * 64)
    return Instance("1.2.840.9", uid, f"{uid}.{image}", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1", name, 0,
                    *digests, "2026-01-02T10:11:12+00:00", source, header)  # fmt: skip


def measure(root: Path, series: int, images: int) -> Result:
    """Fill a new spool below `root`, and start on it."""
    config = load(None, root)
    files = Counted()
    spool = Spool(config.spool, files)
    spool.create()
    fill(spool, series, images)
    files.looked = 0
    begun, cpu = time.monotonic(), time.process_time()
    lock = spool.lock()
    spool.clear_temporary()
    parts = assemble(config, spool, lambda: None)
    mark_defaults(config, spool.files)
    ready, longest, looked = time.monotonic() - begun, 0.0, files.looked
    while not parts.pipeline.looked_around:
        turn = time.monotonic()
        parts.pipeline.turn(1000.0)
        longest = max(longest, time.monotonic() - turn)
    at_work, cpu = time.monotonic() - begun, time.process_time() - cpu
    instances = sum(len(live.unit.instances) for live in parts.pipeline.units)
    parts.pipeline.stop(1.0)
    spool.files.close(lock)
    return Result(instances, looked, ready, longest, at_work, cpu)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=500)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--root", type=Path)
    given = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="start-", dir=given.root))
    try:
        print(json.dumps(dataclasses.asdict(measure(root, given.series, given.images))))
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
