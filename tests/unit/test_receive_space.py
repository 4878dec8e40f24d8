"""Room on the disk: the forecast, what is told, and who is refused on a disk that fills up."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import MRImageStorage

from sorter.cli.look import status_command
from sorter.durable import Files, PathLike
from sorter.receive import Keep, Receiver, ReceiveSettings
from sorter.receive.space import (
    DAY,
    SLOWEST,
    SPACE,
    Gauge,
    Ledger,
    Outlook,
    Room,
    Sample,
    forecast,
    mark_of,
    told,
    warning,
)
from sorter.spool import Spool
from sorter.testing.peer import Peer, store
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until
from tests.peers.sender import pause_reactor

GB, HOUR, NOW = 1_000_000_000, 3600.0, 1_800_000_000.0
MARK = Room(10 * GB, 1000)


def falling(*free: float, every: float = HOUR, inodes: int = 1 << 20) -> list[Sample]:
    """Gigabytes that were free, hour by hour."""
    return [Sample(NOW + number * every, Room(round(each * GB), inodes)) for number, each in enumerate(free)]


# --- the forecast ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "hours"),
    [
        (falling(100), None),
        (falling(100, 100, 100), None),
        (falling(100, 110, 120), None),
        (falling(100, 90, 80, 70), 6),
        (falling(100, 90, 140, 130), 18),  # 20 GB in 3 hours: what was freed meanwhile is no rate
        (falling(*range(130, 100, -1)), 91),  # steadily, for 29 hours
        (falling(*([200] * 20), 200, 190, 180, 170), 16),  # of late faster than over the day
        (falling(*range(200, 100, -10), *([100] * 4)), 13 * 90 / 100),  # over the day; of late nothing
        (falling(20, 15, every=600), 1),  # of ten minutes, as if it had been an hour
        (falling(12, 9), 0),
    ],
)
def test_the_mark_is_foreseen(samples: Sequence[Sample], hours: float | None) -> None:
    left = forecast(samples, MARK)
    assert left is None if hours is None else left == pytest.approx(hours * HOUR, rel=0.01)


def test_inodes_are_foreseen_too_where_they_are_counted() -> None:
    samples = [Sample(NOW, Room(100 * GB, 8000)), Sample(NOW + HOUR, Room(100 * GB, 7000))]
    assert forecast(samples, MARK) == 6 * HOUR
    assert forecast(samples, Room(10 * GB, 0)) is None


@given(
    st.lists(st.tuples(st.floats(0, 2 * DAY), st.integers(0, 1 << 60), st.integers(0, 1 << 40)), min_size=1),
    st.builds(Room, st.integers(0, 1 << 60), st.integers(0, 1 << 40)),
)
def test_whatever_was_seen_gives_a_time_ahead_or_none(seen: list[tuple[float, int, int]], mark: Room) -> None:
    samples = [Sample(at, Room(size, inodes)) for at, size, inodes in sorted(seen)]
    left = forecast(samples, mark)
    assert left is None or left >= 0
    said = warning(samples, mark)
    short = samples[-1].free.bytes < mark.bytes or samples[-1].free.inodes < mark.inodes
    assert ("are rejected" in said) == short
    assert ("will be rejected" in said) == (not short and left is not None and left < DAY)


def statvfs(free: int, inodes: int = 1 << 20, size: int = 1000 * GB, files: int = 1 << 24) -> os.statvfs_result:
    blocks, left = size // 4096, free // 4096
    return os.statvfs_result((4096, 4096, blocks, left, left, files, inodes, inodes, 0, 255))


@pytest.mark.parametrize(
    ("space", "keep", "mark"),
    [
        (statvfs(0), Keep(), Room(10 * GB, 100_000)),
        (statvfs(0, size=4096 * 1000, files=400), Keep(), Room(4096 * 50, 20)),
        (statvfs(0), Keep(7, 8), Room(7, 8)),
        (statvfs(0), Keep(0, 0), Room(0, 0)),
        (statvfs(0, files=0), Keep(7, 8), Room(7, 0)),  # it counts no inodes, as Btrfs
    ],
)
def test_what_stays_free(space: os.statvfs_result, keep: Keep, mark: Room) -> None:
    assert mark_of(space, keep) == mark


# --- what is told ---------------------------------------------------------------------------------------------------


class Filling(Files):
    """A disk of which as much is free as is said."""

    def __init__(self, free: int, inodes: int = 1 << 20) -> None:
        self.free, self.inodes = free, inodes

    def space(self, path: PathLike) -> os.statvfs_result:
        return statvfs(self.free, self.inodes)


def test_the_gauge_has_two_marks() -> None:
    disk = Filling(100 * GB)
    gauge = Gauge(Path("/"), disk, Keep(8 * GB, 800))
    for free, inodes, seen in [
        (100 * GB, 1 << 20, (False, False)),
        (8 * GB, 800, (False, False)),
        (8 * GB - 4096, 1 << 20, (True, False)),
        (100 * GB, 799, (True, False)),
        (GB // 2, 1 << 20, (True, True)),
        (100 * GB, 99, (True, True)),
        (9 * GB, 900, (False, False)),
    ]:
        disk.free, disk.inodes = free, inodes
        gauge.look()
        assert (gauge.short, gauge.out) == seen, (free, inodes)


def test_the_nearer_to_the_mark_the_slower() -> None:
    disk = Filling(100 * GB)
    gauge = Gauge(Path("/"), disk, Keep(8 * GB, 800))
    pauses = []
    for free, inodes in [(100, 1 << 20), (10, 1 << 20), (10, 900), (9, 1 << 20), (8, 1 << 20), (7, 1 << 20)]:
        disk.free, disk.inodes = free * GB, inodes
        gauge.look()
        pauses.append(round(gauge.pause / SLOWEST, 2))
    assert pauses == [0, 0, 0.5, 0.5, 1, 1]


def test_a_day_ahead_it_is_said_once_and_remembered_over_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "sorter.receive")
    disk, keep = Filling(100 * GB), Keep(10 * GB, 0)
    for hour in range(4):  # each with a new process
        Ledger(tmp_path, disk, keep).note(NOW + hour * HOUR)
        disk.free -= 2 * GB
    assert caplog.messages == []  # 82 GB, 2 GB an hour
    assert told(tmp_path, disk, keep, NOW + 4 * HOUR) == ""
    disk.free = 50 * GB
    ledger = Ledger(tmp_path, disk, keep)
    for hour in range(4, 6):
        ledger.note(NOW + hour * HOUR)
        ledger.note(NOW + hour * HOUR + 1)
        disk.free -= GB
    [said] = caplog.messages
    assert said.startswith("50.0 GB and 1,048,576 inodes free for the spool: at the rate of the last hours")
    assert said.endswith("rejected in 2 hours")
    assert "rejected in 2 hours" in told(tmp_path, disk, keep, NOW + 6 * HOUR)
    assert told(tmp_path, disk, keep, NOW + 3 * DAY) == ""  # a receiver that long stood still says nothing of today
    disk.free = 9 * GB
    assert "scanners are rejected until there is room" in told(tmp_path, disk, keep, NOW + 3 * DAY)


def test_that_no_inode_is_left_is_said_where_some_are_to_stay_free() -> None:
    none_left, uncounted = Room(5_000_000_000, 0), Room(20_000_000, 0)
    assert warning([Sample(NOW, none_left)], Room(10_000_000, 100)).startswith(
        "5.0 GB and 0 inodes free for the spool, 0.010 GB and 100 inodes stay free: scanners are rejected"
    )
    assert str(Outlook(none_left, uncounted, None)) == "5.0 GB free, of which 0.020 GB stay free"


def test_the_samples_are_of_one_day(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, Filling(100 * GB), Keep())
    for step in range(400):
        ledger.note(NOW + step * 600)
    assert len(json.loads((tmp_path / SPACE).read_text())) == 145
    ledger.note(NOW)  # the clock was set back: what lies ahead of it is no sample
    assert len(json.loads((tmp_path / SPACE).read_text())) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[1]", '[{"at": 1}]', '[{"at": "x", "free": {}}]', "\0" * 99])
def test_a_torn_file_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / SPACE).write_text(text)
    assert told(tmp_path, Filling(100 * GB), Keep(), NOW) == ""
    Ledger(tmp_path, Filling(100 * GB), Keep()).note(NOW)
    assert len(json.loads((tmp_path / SPACE).read_text())) == 1


def test_status_says_it(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", Files()).create()
    config = tmp_path / "sorter.toml"
    for keep, says in ((0, False), (1e6, True)):
        config.write_text(f"[receive]\nkeep_free = {keep}\nkeep_inodes = 0\n")
        ended = CliRunner().invoke(status_command, ["-c", str(config), "--root", str(tmp_path)])
        assert ended.exit_code == 0, ended.output
        assert ("scanners are rejected until there is room" in ended.output) == says


# --- a scanner and a disk that fills up -----------------------------------------------------------------------------


@pytest.fixture
def image() -> Dataset:
    return dcmread(io.BytesIO(localizer(Plan()).files[0]))


@contextmanager
def serving(received: Path, files: Files, keep: Keep) -> Generator[int, None, None]:
    receiver = Receiver(ReceiveSettings(port=0, keep=keep), received, files)
    port = receiver.start()
    try:
        yield port
    finally:
        receiver.stop(5)


def associate(port: int) -> Association:
    scanner = AE("SCANNER")
    scanner.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    association = scanner.associate("127.0.0.1", port, ae_title="SORTER")
    if association.is_established:
        pause_reactor(association)  # which takes an answer that comes at once for a request
    return association


def rejection(port: int) -> tuple[int, int, int] | None:
    """(result, source, reason) of PS3.8 9.3.4, or None where an association began."""
    answer = None
    while answer is None:  # pynetdicom drops an answer that is there, and the connection closed, before it looked
        asked = associate(port)
        if asked.is_established:
            asked.release()
            return None
        answer = asked.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


FOR_THE_MOMENT = (2, 3, 2)  # transient, service provider (presentation), local limit exceeded


def test_below_the_mark_associations_wait_and_below_its_last_part_images_too(tmp_path: Path, image: Dataset) -> None:
    disk = Filling(100 * GB)
    with serving(tmp_path, disk, Keep(8 * GB, 0)) as port:
        scanner = associate(port)
        assert scanner.send_c_store(image).Status == 0x0000
        disk.free = 7 * GB
        wait_until(lambda: rejection(port) == FOR_THE_MOMENT, what="a rejection")
        assert scanner.send_c_store(image).Status == 0x0000  # who is in may go on
        disk.free = GB // 2
        wait_until(lambda: scanner.send_c_store(image).Status == 0xA700, what="a refusal")
        disk.free = 9 * GB
        wait_until(lambda: rejection(port) is None, what="an association")
        assert scanner.send_c_store(image).Status == 0x0000
        scanner.release()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("step", [4000, 120_000])
def test_a_large_image_on_its_way_leaves_the_last_part_free_too(tmp_path: Path, step: int) -> None:
    """Small PDVs are written from a buffer, large ones are moved through a pipe."""
    disk = Filling(100 * GB)
    with serving(tmp_path, disk, Keep(8 * GB, 0)) as port, Peer(port).associate() as scanner:
        message = store(bytes(12_000_000), step)
        scanner.send(message[:2_000_000])
        [part] = wait_until(lambda: list(tmp_path.rglob("*.part")), what="a part")
        wait_until(lambda: part.stat().st_size > 1_000_000, what="its bytes")
        disk.free = GB // 2
        scanner.send(message[2_000_000:])
        assert scanner.status() == 0xA700
        assert not list(tmp_path.rglob("*.dcm*"))
        disk.free = 100 * GB
        scanner.send(store())
        assert scanner.status() == 0
        scanner.release()


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path, None, None]:
    """16 MB, 400 inodes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=400", "sorter-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(("pixels", "runs_out_of"), [(256, "bytes"), (16, "inodes")])
def test_on_a_real_small_disk(small_disk: Path, image: Dataset, pixels: int, runs_out_of: str) -> None:
    """Images until it is full: rejections first, refusals last, and every image that was acknowledged is whole."""
    image.Rows = image.Columns = pixels
    image.PixelData = bytes(2 * pixels * pixels)
    received = small_disk / "received"
    received.mkdir()
    stored, first_rejection = 0, 0
    with serving(received, Files(), Keep(4_000_000, 80)) as port:
        scanner = associate(port)
        while (status := scanner.send_c_store(image).Status) == 0x0000:
            stored += 1
            if not first_rejection and rejection(port) is not None:
                assert rejection(port) == FOR_THE_MOMENT
                first_rejection = stored
            assert stored < 500
        assert status == 0xA700
        assert 0 < first_rejection < stored
        images = list(received.rglob("*.dcm"))
        assert len(images) == stored
        assert len({path.stat().st_size for path in images}) == 1
        assert not list(received.rglob("*.part"))
        space = os.statvfs(small_disk)
        assert space.f_bavail * space.f_frsize > 0, runs_out_of
        assert space.f_favail > 0, runs_out_of
        for path in images:
            path.unlink()
        wait_until(lambda: rejection(port) is None, what="an association")
        assert scanner.send_c_store(image).Status == 0x0000
        scanner.release()
