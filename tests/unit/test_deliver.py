"""The wire, the worker and the lane: real sockets, real processes, real folders."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.builtin.path_target import mark
from sorter.deliver.backoff import backoff
from sorter.deliver.lane import Lane, Patience
from sorter.deliver.target import Checked, Done, Later, Put, Refused, Removed, Result, Verified, Wanted
from sorter.deliver.worker import BATCH
from sorter.deliver.workers import Started, Worker
from sorter.durable import Files
from sorter.errors import Held, TryLater
from sorter.model import Delivered, Receipt, build, plain
from sorter.testing.waiting import wait_until
from sorter.wire import MOST_DESCRIPTORS, Channel, WireError

PATH = "sorter.builtin.path_target:PathTarget"
KEY = "aaaaaaaa11112222333344445555ffff"
SOON = 20.0  # seconds: a deadline, never a wait


# --- back-off -------------------------------------------------------------------------------------------------------


@given(st.integers(min_value=-3, max_value=10_000), st.integers())
def test_backoff_stays_between_5_s_and_10_min(attempt: int, seed: int) -> None:
    assert 5.0 <= backoff(attempt, random.Random(seed)) <= 600.0


def test_backoff_grows_to_10_min() -> None:
    chance = random.Random(1)
    waits = [backoff(attempt, chance) for attempt in range(1, 12)]
    assert waits[0] == 5.0
    assert waits[1] > waits[0]
    assert all(wait >= 450.0 for wait in waits[8:])
    assert len(set(waits[8:])) > 1


# --- plain values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Put(
            "1", KEY, "dicom", 2, "a/b", (Wanted("x", "00", 3, "f"),),
            Receipt(KEY, "dicom", "lab", 1, "a/b", (Delivered("x", "00", 3, "f", "kept", "x.new"),), "now"),
            {"key": KEY, "series_uids": ["1.2"], "identity": {"lab": "m"}}, True,
        ),
        Put("1", KEY, "dicom", 1, "", ()),
        Done("a", (Delivered("x", "00", 3, "f"),), "said"),
        Verified("a", ("x",), (), ("y",), ("z",)),
        Removed("a", ("x",), ("y",), "said"),
        Later("why"),
        Refused("why"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_cross_the_wire_unchanged(value: Any) -> None:
    here, there = socket.socketpair()
    with here, there:
        Channel(here).send({"value": plain(value)})
        message, _ = Channel(there, SOON).receive()
    assert build(type(value), message["value"]) == value


# --- wire -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Channel]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, Channel(there, SOON)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_250_descriptors_in_one_frame(pair: tuple[socket.socket, Channel], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        Channel(pair[0]).send({"n": 1}, [file.fileno()] * MOST_DESCRIPTORS)
        message, descriptors = pair[1].receive(MOST_DESCRIPTORS)
    assert message == {"n": 1}
    assert len(set(descriptors)) == MOST_DESCRIPTORS
    for descriptor in descriptors:
        assert os.pread(descriptor, 10, 0) == b"content"
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    with pytest.raises(WireError):
        Channel(pair[0]).send({}, [0] * (MOST_DESCRIPTORS + 1))


def test_a_frame_in_single_bytes_arrives(pair: tuple[socket.socket, Channel]) -> None:
    def dribble() -> None:
        for byte in b'\0\0\0\x07{"a":1}':
            pair[0].sendall(bytes([byte]))

    sender = threading.Thread(target=dribble)
    sender.start()
    assert pair[1].receive() == ({"a": 1}, [])
    sender.join()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"\xff\xff\xff\xff", WireError), (b"\0\0\0\x02[]", WireError), (b"\0\0\0\x01{", WireError),
        (b"\0\0\0\x02\xff\xff", WireError), (b"\0\0", EOFError), (b"\0\0\0\x09{}", EOFError), (b"", EOFError),
        (b"\0\x01\0\0" + b"[" * 65536, WireError),
    ],
)  # fmt: skip
def test_what_is_no_frame(pair: tuple[socket.socket, Channel], sent: bytes, error: type[Exception]) -> None:
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(error):
        pair[1].receive()


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_frame_or_an_error(sent: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(sent)
        here.shutdown(socket.SHUT_WR)
        try:
            while True:
                message, _ = Channel(there, SOON).receive()
                assert isinstance(message, dict)
        except (WireError, EOFError):
            pass


def test_descriptors_that_nobody_asked_for_are_refused_and_closed(pair: tuple[socket.socket, Channel]) -> None:
    before = open_descriptors()
    for allowed in (0, 2):
        here, there = socket.socketpair()
        with here, there:
            Channel(here).send({}, [0] * 5)
            with pytest.raises(WireError, match="not asked for"):
                Channel(there, SOON).receive(allowed)
    assert open_descriptors() == before


def test_silence_is_a_timeout(pair: tuple[socket.socket, Channel]) -> None:
    with pytest.raises(TimeoutError):
        Channel(pair[0], 0.01).receive()


# --- the lane -------------------------------------------------------------------------------------------------------


class Lab:
    """A root, a store, and a lane between them."""

    def __init__(self, base: Path) -> None:
        self.root, self.store = base / "root", base / "store"
        self.root.mkdir()
        self.store.mkdir()
        mark(self.root, Files())
        self.results: queue.Queue[tuple[Put, Result]] = queue.Queue()
        self.opened: list[str] = []
        self.opening: Callable[[Put, Wanted], None] = lambda put, wanted: None
        self.lanes: list[Lane] = []

    def lane(self, code: str = PATH, **options: Any) -> Lane:
        settings = options.pop("settings", {"root": str(self.root)})
        lane = Lane("lab", code, settings, self._open, lambda put, result: self.results.put((put, result)), **options)
        self.lanes.append(lane)
        return lane

    def _open(self, put: Put, wanted: Wanted) -> int:
        self.opening(put, wanted)
        self.opened.append(wanted.file)
        return os.open(self.store / wanted.file, os.O_RDONLY)

    def job(self, count: int, *, key: str = KEY, revision: int = 1, size: int = 100, **changes: Any) -> Put:
        wanted = []
        for number in range(count):
            content = b"%d of %s " % (number, key.encode()) * (size // 40 + 1)
            (self.store / f"{key[:4]}{number}").write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            wanted.append(Wanted(f"{number:06d}.dcm", digest, len(content), f"{key[:4]}{number}"))
        return Put(f"{key}-{revision}", key, "dicom", revision, f"S1/{key[:4]}", tuple(wanted), **changes)

    def result(self) -> tuple[Put, Result]:
        return self.results.get(timeout=SOON)

    def names(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if path.is_file() or path.name.endswith(".part"))
        return sorted(path.name for path in found if path.name != "id" and path.suffix not in (".json", ".sha256"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for lane in lab.lanes:
        assert lane.stop(SOON)
        assert lane.pid is None


def test_a_delivery_through_a_real_worker(lab: Lab) -> None:
    lane = lab.lane()
    job = lab.job(2 * BATCH + 5)
    lane.submit(job)
    put, result = lab.result()
    assert put == job
    assert isinstance(result, Done)
    assert [each.name for each in result.files] == [each.name for each in job.files] == lab.names()
    assert lab.opened == [each.file for each in job.files]


def test_the_worker_asks_only_for_what_is_needed(lab: Lab) -> None:
    lane = lab.lane()
    lane.submit(lab.job(10))
    _, first = lab.result()
    assert isinstance(first, Done)
    held = Receipt(KEY, "dicom", "lab", 1, first.folder, first.files, "2026-01-02T03:04:05+00:00")
    lab.opened.clear()
    lane.submit(lab.job(12, revision=2, previous=held))
    _, second = lab.result()
    assert isinstance(second, Done)
    assert lab.opened == ["aaaa10", "aaaa11"]


def test_the_worker_is_small(lab: Lab) -> None:
    lane = lab.lane(stay=True)
    lane.submit(lab.job(300))
    assert isinstance(lab.result()[1], Done)
    rollup = Path(f"/proc/{lane.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss <= 25 * 1024
    assert "pydantic" not in Path(f"/proc/{lane.pid}/maps").read_text()


@pytest.mark.parametrize("target", ["sorter.builtin.path_target", "sorter.builtin.rclone_target", "sorter.scu.target"])
def test_what_a_worker_imports(target: str) -> None:
    modules = f"import sys, sorter.deliver.worker, {target}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "pydantic_core", "pydicom", "pynetdicom", "numpy", "click", "rich"} & set(loaded)


def test_its_arguments_and_environment_name_nothing(lab: Lab) -> None:
    lane = lab.lane(stay=True)
    lane.submit(lab.job(1))
    lab.result()
    command = Path(f"/proc/{lane.pid}/cmdline").read_bytes()
    assert str(lab.root).encode() not in command
    assert KEY.encode() not in command
    targets = [os.readlink(entry) for entry in Path(f"/proc/{lane.pid}/fd").iterdir()]
    assert not [each for each in targets if str(lab.store) in each]  # every descriptor of the store is closed again


def test_kill_9_in_mid_copy_then_again(lab: Lab) -> None:
    lane = lab.lane()

    def die(put: Put, wanted: Wanted) -> None:
        if len(lab.opened) == BATCH:
            assert lane.pid is not None
            os.kill(lane.pid, signal.SIGKILL)
            lab.opening = lambda put, wanted: None

    lab.opening = die
    job = lab.job(2 * BATCH)
    lane.submit(job)
    _, result = lab.result()
    assert result == Later("the worker of target lab ended by signal 9")
    assert not (lab.root / job.folder).exists()
    assert any(name.endswith(".part") for name in lab.names())
    lab.opened.clear()
    lane.submit(job)
    assert isinstance(lab.result()[1], Done)
    assert lab.names() == [each.name for each in job.files]
    assert len(lab.opened) < len(job.files)  # what the dead one had staged was used


def test_a_worker_that_died_while_idle_is_not_noticed(lab: Lab) -> None:
    lane = lab.lane(stay=True)
    lane.submit(lab.job(1))
    lab.result()
    first = lane.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{first}/exe"))
    lane.submit(lab.job(1, key="bbbb" * 8))
    assert isinstance(lab.result()[1], Done)
    assert lane.pid != first


def test_a_stopped_worker_is_ended_after_its_silence(lab: Lab) -> None:
    lane = lab.lane(patience=Patience(silence=2.0))
    lane.submit(lab.job(1))
    assert isinstance(lab.result()[1], Done)
    first = lane.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    job = lab.job(3000, key="bbbb" * 8)  # a frame larger than the socket's buffer: sending waits too
    lane.submit(job)
    result = lab.result()[1]
    assert isinstance(result, Later)
    assert "did not move for 2 s" in result.why
    lab.lane(patience=Patience(silence=SOON)).submit(lab.job(2, key="cccc" * 8))
    assert isinstance(lab.result()[1], Done)


def test_a_worker_at_work_says_how_long_it_was_silent(lab: Lab) -> None:
    lane = lab.lane(stay=True)
    lane.submit(lab.job(1))
    assert isinstance(lab.result()[1], Done)
    wait_until(lambda: lane.silence() == 0.0)
    assert lane.pid is not None
    os.kill(lane.pid, signal.SIGSTOP)
    lane.submit(lab.job(1, key="bbbb" * 8))
    wait_until(lambda: lane.silence() > 0.2)
    os.kill(lane.pid, signal.SIGCONT)
    assert isinstance(lab.result()[1], Done)
    wait_until(lambda: lane.silence() == 0.0)


def test_an_idle_worker_ends_and_comes_back(lab: Lab) -> None:
    lane = lab.lane(patience=Patience(idle=0.01))
    lane.submit(lab.job(1))
    assert isinstance(lab.result()[1], Done)
    wait_until(lambda: lane.pid is None)
    lane.submit(lab.job(1, key="bbbb" * 8))
    assert isinstance(lab.result()[1], Done)


def test_a_newer_revision_takes_the_place_of_one_that_waits(lab: Lab) -> None:
    lane = lab.lane()
    entered, go = threading.Event(), threading.Event()

    def wait(put: Put, wanted: Wanted) -> None:
        entered.set()
        assert go.wait(SOON)

    lab.opening = wait
    lane.submit(lab.job(1, key="bbbb" * 8))
    assert entered.wait(SOON)
    lane.submit(lab.job(1, revision=2))
    lane.submit(lab.job(2, revision=4))
    lane.submit(lab.job(1, revision=3))
    assert lane.waiting() == 1
    go.set()
    assert [lab.result()[0].revision for _ in range(2)] == [1, 4]
    assert lab.results.empty()


def test_what_waits_of_one_unit_is_withheld_and_nothing_else(lab: Lab) -> None:
    lane = lab.lane()
    entered, go = threading.Event(), threading.Event()

    def wait(put: Put, wanted: Wanted) -> None:
        entered.set()
        assert go.wait(SOON)

    lab.opening = wait
    lane.submit(lab.job(1))
    assert entered.wait(SOON)
    other, mine = lab.job(1, key="bbbb" * 8), lab.job(2, revision=2)
    old = Receipt(mine.key, "dicom", "lab", 1, "elsewhere", (), "")
    lane.submit(mine)
    lane.submit(other)
    lane.remove(old, lambda _: pytest.fail("it was removed"))
    assert lane.withhold(mine.key) == ([mine], [old])
    assert lane.waiting() == 1
    go.set()
    assert [lab.result()[0].id for _ in range(2)] == [lab.job(1).id, other.id]  # what was begun is finished
    assert lab.results.empty()


def test_verify_remove_and_check(lab: Lab) -> None:
    lane = lab.lane()
    lane.submit(lab.job(3))
    _, done = lab.result()
    assert isinstance(done, Done)
    held = Receipt(KEY, "dicom", "lab", 1, done.folder, done.files, "2026-01-02T03:04:05+00:00")
    told: queue.Queue[Any] = queue.Queue()
    lane.check(told.put)
    assert isinstance(told.get(timeout=SOON), Checked)
    lane.verify(held, told.put)
    assert told.get(timeout=SOON) == Verified(done.folder, tuple(each.name for each in done.files))
    lane.remove(held, told.put)
    assert told.get(timeout=SOON).removed == tuple(each.name for each in done.files)
    assert lab.names() == []
    (lab.root / ".sorter" / "id").unlink()
    lane.check(told.put)
    assert isinstance(told.get(timeout=SOON), Later)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (TryLater("the store is busy"), Later, "the store is busy"),
        (Held("the image was withdrawn"), Refused, "the image was withdrawn"),
        (FileNotFoundError(errno.ENOENT, "no"), Later, "not in the store any more"),
        (OSError(errno.EMFILE, "Too many open files"), Later, "Too many open files"),
        (ZeroDivisionError(), Later, "sorter itself failed"),
    ],
)
def test_an_input_that_cannot_be_opened(lab: Lab, error: Exception, kind: type, says: str) -> None:
    lane = lab.lane()

    def refuse(put: Put, wanted: Wanted) -> None:
        lab.opening = lambda put, wanted: None
        raise error

    lab.opening = refuse
    lane.submit(lab.job(2))
    _, result = lab.result()
    assert isinstance(result, kind)
    assert says in getattr(result, "why", "")
    lane.submit(lab.job(2))
    assert isinstance(lab.result()[1], Done)
    assert len(lab.names()) == 2


def test_a_writable_descriptor_is_never_handed_over(lab: Lab) -> None:
    lane = Lane(
        "lab", PATH, {"root": str(lab.root)}, lambda put, wanted: os.open(lab.store / wanted.file, os.O_RDWR),
        lambda put, result: lab.results.put((put, result)),
    )  # fmt: skip
    lab.lanes.append(lane)
    lane.submit(lab.job(1))
    assert isinstance(lab.result()[1], Later)
    assert lab.names() == []


@pytest.mark.parametrize("code", ["no.such.module:X", "sorter.builtin.path_target:Nothing", "json", ":", "..:X"])
def test_code_that_cannot_be_loaded_is_refused(lab: Lab, code: str) -> None:
    lab.lane(code).submit(lab.job(1))
    result = lab.result()[1]
    assert isinstance(result, Refused)
    assert "cannot be loaded" in result.why


def test_settings_that_cannot_be_are_refused(lab: Lab) -> None:
    lab.lane(settings={"root": "relative"}).submit(lab.job(1))
    assert isinstance(lab.result()[1], Refused)


ROGUE = """
import os
from sorter.deliver.target import Done
from sorter.model import Delivered

class Raises:
    def __init__(self, settings, files): pass
    def put(self, job, source): raise RuntimeError("/labs/memory/Jane_Doe")

class Exits(Raises):
    def put(self, job, source): os._exit(7)

class Prints(Raises):
    def put(self, job, source):
        os.write(1, b"noise"); os.write(2, b"noise")
        files = tuple(Delivered(each.name, each.sha256, each.size, each.file) for each in job.files)
        return Done(os.read(source(0), 1000).decode(), files)

class Forgets(Raises):
    def put(self, job, source): return Done(job.folder, ())

class Greedy(Raises):
    def put(self, job, source): return source(99)

class Nonsense(Raises):
    def put(self, job, source): return {"folder": 3}
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Raises", "RuntimeError at rogue_target.py:8"), ("Exits", "ended with status 7"), ("Greedy", "ValueError"),
        ("Nonsense", "spoke nonsense"), ("Forgets", "it said nothing of some of the files"), ("Prints", ""),
    ],
)  # fmt: skip
def test_a_rogue_target_hurts_only_itself(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    (tmp_path / "rogue_target.py").write_text(ROGUE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lane = lab.lane(f"rogue_target:{name}")
    lane.submit(lab.job(1))
    _, result = lab.result()
    if name == "Prints":
        assert isinstance(result, Done)
        assert result.folder == (lab.store / "aaaa0").read_text()
        return
    assert isinstance(result, Later)
    assert says in result.why
    assert "Jane_Doe" not in result.why


def test_a_report_that_fails_does_not_end_the_lane(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    told: queue.Queue[Put] = queue.Queue()

    def report(put: Put, result: Result) -> None:
        told.put(put)
        raise ValueError("pipeline")

    lane = Lane("lab", PATH, {"root": str(lab.root)}, lab._open, report)
    lab.lanes.append(lane)
    for key in (KEY, "bbbb" * 8):
        lane.submit(lab.job(1, key=key))
        assert told.get(timeout=SOON).key == key


def test_a_stop_that_ends_a_hung_worker_starts_no_other(lab: Lab) -> None:
    class Counting(Started):
        count = 0

        def start(self, silence: float) -> Worker:
            self.count += 1
            return super().start(silence)

    workers = Counting()
    lane = lab.lane(stay=True, workers=workers)
    lane.submit(lab.job(1))
    assert isinstance(lab.result()[1], Done)
    assert lane.pid is not None
    os.kill(lane.pid, signal.SIGSTOP)
    lane.submit(lab.job(1, key="bbbb" * 8))
    wait_until(lambda: lane.silence() > 0.0)
    assert lane.stop(0.05)
    assert workers.count == 1


def test_stop_ends_a_job_that_does_not_end(lab: Lab) -> None:
    lane = lab.lane()
    entered, go = threading.Event(), threading.Event()

    def wait(put: Put, wanted: Wanted) -> None:
        if not entered.is_set():
            entered.set()
            assert go.wait(SOON)

    lab.opening = wait
    lane.submit(lab.job(1))
    lane.submit(lab.job(1, key="bbbb" * 8))
    assert entered.wait(SOON)
    pid = lane.pid
    stopper = threading.Thread(target=lane.stop, args=(0.05,))
    stopper.start()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/exe"))
    go.set()
    stopper.join(SOON)
    assert lane.stop(SOON)
    assert lab.results.empty()  # still owed; no failure of theirs


def test_the_worker_ends_when_sort_has_gone() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        worker = subprocess.Popen(
            [sys.executable, "-m", "sorter.deliver.worker", "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
    worker.send_signal(0)
    ours.close()
    assert worker.wait(SOON) == 0


def test_every_descriptor_is_closed_again(lab: Lab) -> None:
    lane = lab.lane()
    lane.submit(lab.job(1))
    lab.result()
    before = open_descriptors()
    for number in range(5):
        lane.submit(lab.job(80, key=f"{number:04d}" * 8))
        assert isinstance(lab.result()[1], Done)
    assert open_descriptors() == before
