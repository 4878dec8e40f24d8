"""kill -9 of a whole `sorter serve` at random moments, while a scanner sends: nothing acknowledged is lost, nothing is
delivered twice, and it is ready again within five seconds.

    SORTER_KILLS=1000 python3 packaging/run.py soak tests/crash/test_kill_serve.py -s

A kill takes three seconds or so. SORTER_SEED repeats a run whose seed was printed. With SORTER_RESULTS=FOLDER each run
adds its line to kills.md there, so a thousand may be put together from several runs.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import random
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.crash.scenario import CONFIG, as_file, data_set, sop_uid

KILLS = int(os.environ.get("SORTER_KILLS", "1000"))
SEED = int(os.environ.get("SORTER_SEED") or random.SystemRandom().randrange(1 << 32))
ROUND = 25
"""Kills between two judgements."""

LONGEST_LIFE = 1.0  # seconds from `ready` until a kill
RESTART = 5.0


class Scanner(threading.Thread):
    """Sends three series of a study, image by image in turn, until it is told to stop; keeps what was answered with
    success."""

    def __init__(self, port: int, study: str, first: int, acknowledged: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.port, self.study, self.number, self.acknowledged = port, study, first, acknowledged
        self.over = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(Exception):  # the other side is killed in the middle of it: that is what this is for
            self._send()

    def _send(self) -> None:
        ae = AE("SCANNER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
        ae.add_requested_context(MRImageStorage, "1.2.840.10008.1.2.1")
        association = ae.associate("127.0.0.1", self.port)
        while association.is_established and not self.over.is_set():
            data = data_set(self.number, series=1 + self.number % 3, study=self.study)
            answer = association.send_c_store(pydicom.dcmread(io.BytesIO(as_file(data))))
            if "Status" in answer and answer.Status == 0:
                self.acknowledged[sop_uid(data)] = data
            self.number += 1
        association.release()


def images(folder: Path) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in folder.rglob("*.dcm") if path.is_file())


def parts(folder: Path) -> Iterator[Path]:
    """What is called so: the stage of a delivery, which is a folder, or a file that is being written."""
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in [*folders, *files] if name.endswith(".part"))


def judge(sorter: RunningSorter, acknowledged: dict[str, bytes]) -> None:
    """Once everything is delivered."""

    def at_rest() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return not list(sorter.spool.received.rglob("*.dcm")) and all(
                each.state == "delivered" for each in sorter.series()
            )
        return False

    wait_until(at_rest, 120, "everything to be delivered")
    given = Counter(sop_uid(content) for content in images(sorter.labs))
    assert not [uid for uid, count in given.items() if count != 1], "delivered twice"
    assert not set(acknowledged) - set(given), "acknowledged, and not delivered"
    stored = set(images(sorter.spool.store))
    assert all(any(content.endswith(data) for content in stored) for data in list(acknowledged.values())[-100:])
    assert all(content.endswith(b"END.") for content in stored), "torn"
    assert not [each for each in parts(sorter.labs) if each.is_dir()], "a stage is left"
    wait_until(lambda: not list(parts(sorter.labs)), 60, "a lab's page that was half written to be written again")


@dataclass
class Run:
    """What came of it so far."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    restarts: list[float] = field(default_factory=list)  # seconds from the command to `ready`, one for each kill
    wrong: str = ""
    begun: float = field(default_factory=time.monotonic)

    def says(self) -> str:
        return (
            f"{len(self.restarts)} kills, seed {SEED}, {len(self.acknowledged)} images acknowledged; restart: median "
            f"{statistics.median(self.restarts):.1f} s, slowest {max(self.restarts):.1f} s; "
            f"{(time.monotonic() - self.begun) / len(self.restarts):.1f} s a kill"
        )


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_a_thousand_kills(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    run = Run()
    try:
        kill_often(tmp_path / "site", run)
    except AssertionError as error:
        run.wrong = str(error).partition("\n")[0]
        raise
    finally:
        if run.restarts:
            print(run.says())
            folder = os.environ.get("SORTER_RESULTS")
            if folder:
                add_to_page(Path(folder) / "kills.md", run)
    assert run.acknowledged
    assert max(run.restarts) < RESTART


def kill_often(root: Path, run: Run) -> None:
    dice, number = random.Random(SEED), 1
    sorter = RunningSorter(root, quiet=0.3, config=CONFIG)
    sorter.start()
    try:
        for kill in range(1, KILLS + 1):
            scanner = Scanner(sorter.port, f"1.2.3.{kill // ROUND}", number, run.acknowledged)
            scanner.start()
            scanner.over.wait(dice.uniform(0.0, LONGEST_LIFE))
            sorter.kill()
            scanner.over.set()
            scanner.join(20)
            number = scanner.number + 1
            begun = time.monotonic()
            sorter.start()
            run.restarts.append(time.monotonic() - begun)
            if kill % ROUND == 0 or kill == KILLS:
                judge(sorter, run.acknowledged)
    finally:
        sorter.stop()


# --- the page -------------------------------------------------------------------------------------------------------

HEAD = """# kill -9 at random moments

Each line is one run of

    SORTER_KILLS=N SORTER_RESULTS=docs/results python3 packaging/run.py soak tests/crash/test_kill_serve.py -s

A scanner (pynetdicom) sends small images of three series, one after the other; a moment of at most {life:g} s after
`ready` every process of `sorter serve` gets SIGKILL, and it is started again, on the same folder. Every {round} kills
everything has to be delivered: each acknowledged image once, each byte for byte in the store, none torn, no stage left;
then a new study begins. A restart is the time from the command until it prints `ready`; the goal is 5 s.

{total:,} kills in all.

| date, commit | processors, load | seed | kills | acknowledged | lost, doubled or torn | restart: median | slowest |
|---|---|--:|--:|--:|---|--:|--:|
"""
_ROW = "| 20"


def add_to_page(path: Path, run: Run) -> None:
    rows = [line for line in path.read_text().splitlines() if line.startswith(_ROW)] if path.exists() else []
    load = f"{os.cpu_count()}, {os.getloadavg()[0]:.1f}"
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    cells = (
        f"{datetime.date.today().isoformat()}, {said.stdout.strip() or 'unknown'}", load, SEED, len(run.restarts),
        len(run.acknowledged), run.wrong or 0, f"{statistics.median(run.restarts):.2f} s", f"{max(run.restarts):.2f} s",
    )  # fmt: skip
    rows.append(f"| {' | '.join(map(str, cells))} |")
    total = sum(int(row.split("|")[4]) for row in rows)
    path.write_text(HEAD.format(life=LONGEST_LIFE, round=ROUND, total=total) + "\n".join(rows) + "\n")
