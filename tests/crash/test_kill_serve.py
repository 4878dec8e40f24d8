"""kill -9 of a whole `sorter serve` at random moments, while a scanner sends: nothing acknowledged is lost, nothing is
delivered twice, and it is ready again within five seconds.

    SORTER_KILLS=1000 pytest -m soak tests/crash/test_kill_serve.py
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.crash.scenario import CONFIG, as_file, data_set, sop_uid

KILLS = int(os.environ.get("SORTER_KILLS", "1000"))
ROUND = 25
"""Kills between two judgements."""

RESTART = 5.0
SEED = 20260102


class Scanner(threading.Thread):
    """Sends three series, image by image in turn, until it is told to stop; keeps what was answered with success."""

    def __init__(self, port: int, first: int, acknowledged: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.port, self.number, self.acknowledged = port, first, acknowledged
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
            data = data_set(self.number, series=1 + self.number % 3)
            answer = association.send_c_store(pydicom.dcmread(io.BytesIO(as_file(data))))
            if "Status" in answer and answer.Status == 0:
                self.acknowledged[sop_uid(data)] = data
            self.number += 1
        association.release()


def images(folder: Path) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in folder.rglob("*.dcm") if path.is_file())


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
    assert not list(sorter.labs.rglob("*.part")), "a stage is left"


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_a_thousand_kills(tmp_path: Path) -> None:
    dice, acknowledged = random.Random(SEED), dict[str, bytes]()
    number, slowest = 1, 0.0
    sorter = RunningSorter(tmp_path / "site", quiet=0.3, config=CONFIG)
    sorter.start()
    try:
        for kill in range(1, KILLS + 1):
            scanner = Scanner(sorter.port, number, acknowledged)
            scanner.start()
            scanner.over.wait(dice.uniform(0.0, 1.5))
            sorter.kill()
            scanner.over.set()
            scanner.join(20)
            number = scanner.number + 1
            begun = time.monotonic()
            sorter.start()
            slowest = max(slowest, time.monotonic() - begun)
            if kill % ROUND == 0 or kill == KILLS:
                judge(sorter, acknowledged)
    finally:
        sorter.stop()
    print(f"{KILLS} kills, {len(acknowledged)} images acknowledged, slowest restart {slowest:.1f} s")
    assert acknowledged
    assert slowest < RESTART
