"""Many associations at once, of which some break off: nothing lost, nothing torn, nothing left over."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from sorter.durable import PART, Files
from sorter.receive import Job, ReceiveSettings, run
from sorter.receive.arrivals import Arrivals, Route
from sorter.take.filing import Candidate
from sorter.take.received import Ended, Received
from sorter.testing.waiting import wait_until

MR, IMPLICIT = b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.1.2"
SUCCESS = b"\0\0\0\x09\x02\0\0\0\0\0"  # (0000,0900), as it lies in a C-STORE-RSP

_fork = get_context("fork")


# --- a receiver of two processes ------------------------------------------------------------------------------------


def _receive(received: Path, tell: Connection) -> None:
    settings = ReceiveSettings(port=0, processes=2, per_address=500)
    run(Job(settings, received, Files()), tell.send)


@contextmanager
def receiving(received: Path) -> Generator[tuple[int, int], None, None]:
    """(port, process identifier); ended by SIGTERM, in order."""
    hear, tell = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_receive, args=(received, tell))
    process.start()
    assert process.pid is not None
    try:
        assert hear.poll(60)
        yield hear.recv(), process.pid
        process.terminate()
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


# --- scanners -------------------------------------------------------------------------------------------------------


def pdu(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(value)) + value


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def request() -> bytes:
    context = bytes((1, 0, 0, 0)) + item(0x30, MR) + item(0x40, IMPLICIT)
    body = b"\0\1\0\0" + b"SORTER".ljust(16) + b"SCANNER".ljust(16) + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    return pdu(1, body + item(0x20, context) + item(0x50, item(0x51, struct.pack(">I", 16384))))


def store(uid: bytes, data: bytes) -> list[bytes]:
    """A C-STORE-RQ (PS3.7 9.3.1.1) and its data set, in PDUs of 16 KB."""
    uid += b"\0" * (len(uid) % 2)
    values = {0x0002: MR + b"\0", 0x0100: b"\1\0", 0x0110: b"\7\0", 0x0700: b"\2\0", 0x0800: b"\0\0", 0x1000: uid}
    command = b"".join(struct.pack("<HHI", 0, number, len(each)) + each for number, each in values.items())
    out = [pdu(4, struct.pack(">IBB", len(command) + 2, 1, 3) + command)]
    for at in range(0, len(data), 16000):
        piece = data[at : at + 16000]
        out.append(pdu(4, struct.pack(">IBB", len(piece) + 2, 1, 2 if at + 16000 >= len(data) else 0) + piece))
    return out


def image(uid: bytes, size: int) -> bytes:
    """A data set that is known by its SOP Instance UID, with `size` bytes that nobody else has."""
    uid += b"\0" * (len(uid) % 2)
    return struct.pack("<HHI", 8, 0x18, len(uid)) + uid + os.urandom(size)


class Scanner:
    """Sends so many images over one association. Aborts, or is gone, in the middle of image `breaks_at`."""

    def __init__(self, number: int, images: int, breaks_at: int | None, size: int = 20_000) -> None:
        self.number, self.images, self.breaks_at, self.size = number, images, breaks_at, size
        self.acknowledged: set[str] = set()
        self.accepted = False

    def run(self, port: int) -> str:
        """How it ended; "unanswered" is cut off before its association was accepted."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                return self._talk(sock)
        except (ConnectionError, EOFError):
            return "cut" if self.accepted else "unanswered"

    def _talk(self, sock: socket.socket) -> str:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request())
        assert _answer(sock)[0] == 2
        self.accepted = True
        for count in range(self.images):
            uid = f"1.2.{self.number + 1}.{count + 1}".encode()
            data = image(uid, self.size)
            pdus = store(uid, data)
            if count == self.breaks_at:
                if self.number % 2:
                    sock.sendall(b"".join([*pdus[:2], pdu(7, bytes(4))]))
                    return "aborted"
                sock.sendall(b"".join(pdus)[: self.size // 2])  # and is switched off
                return "lost"
            sock.sendall(b"".join(pdus))
            kind, body = _answer(sock)
            assert kind == 4
            assert SUCCESS in body
            self.acknowledged.add(hashlib.sha256(data).hexdigest())
        sock.sendall(pdu(5, bytes(4)))
        assert _answer(sock)[0] == 6
        return "released"


def _answer(sock: socket.socket) -> tuple[int, bytes]:
    head = sock.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        raise EOFError
    return head[0], sock.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL)


def send(scanners: Sequence[Scanner], port: int) -> Counter[str]:
    with ThreadPoolExecutor(len(scanners)) as pool:
        return Counter(pool.map(lambda each: each.run(port), scanners))


# --- what came ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Found:
    """What sorting is told by the folder of a receiver that ended."""

    images: list[str]
    ends: Counter[str]
    rest: list[str]  # files that are neither an image nor a record of the receiver's


def found(received: Path) -> Found:
    reader = Received(received, Files())
    news = reader.look()
    images, ends = [], Counter[str]()
    for each in news:
        match each:
            case Candidate():
                images.append(hashlib.sha256(data_set_of(each.path)).hexdigest())
                each.path.unlink()  # as sorting moves it
            case Ended():
                ends[each.how] += 1
    reader.tidy()
    records = {"door.json", "space.json"}
    rest = [path.name for path in received.rglob("*") if path.is_file() and path.name not in records]
    return Found(images, ends, rest)


def test_to_look_at_what_was_received_wakes_nobody(tmp_path: Path) -> None:
    """To close what was open for writing raises an event: sorting would wake itself at every turn, for ever."""

    class ForReading(Files):
        def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
            assert flags & os.O_ACCMODE == os.O_RDONLY, path
            return super().open(path, flags, mode, at=at)

    arrivals = Arrivals(tmp_path, "1", Files(), ReceiveSettings())
    arrivals.begin()
    association = arrivals.opened(Route("SCANNER", "SORTER", "127.0.0.1", 1))
    reader = Received(tmp_path, ForReading())
    assert reader.look(relist=True) == []
    assert reader.is_open(association)
    arrivals.close()


def data_set_of(path: Path) -> bytes:
    """What follows the file meta information."""
    data = path.read_bytes()
    assert data[128:132] == b"DICM"
    return data[144 + int.from_bytes(data[140:144], "little") :]


@pytest.mark.parametrize(
    ("associations", "images"),
    [(50, 10), pytest.param(50, 200, marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
)
def test_many_associations_of_which_some_break_off(tmp_path: Path, associations: int, images: int) -> None:
    chance = random.Random(images)
    broken = set(range(0, associations, 17))  # one in seventeen; those with an odd number by A-ABORT
    scanners = [
        Scanner(number, images, chance.randrange(images) if number in broken else None)
        for number in range(associations)
    ]
    with receiving(tmp_path) as (port, _):
        ends = send(scanners, port)
        wait_until(lambda: not list(tmp_path.rglob(f"*{PART}")), what="the parts of what broke off to go")
    assert ends["released"] == associations - len(broken)
    assert min(ends["aborted"], ends["lost"]) >= 1
    came = found(tmp_path)
    acknowledged = set().union(*(each.acknowledged for each in scanners))
    assert len(acknowledged) == sum(images if each.breaks_at is None else each.breaks_at for each in scanners)
    assert set(came.images) == acknowledged  # none is lost; none is torn, as its bytes would be others
    assert len(came.images) == len(acknowledged)
    assert came.rest == []
    assert came.ends == ends


def test_workers_killed_while_many_send_lose_nothing_they_acknowledged(tmp_path: Path) -> None:
    """Both workers are killed, again and again; what a scanner was told to be safe is there, whole."""
    scanners = [Scanner(number, 100, None) for number in range(16)]
    with receiving(tmp_path) as (port, pid), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, scanners, port)
        for _ in range(2):
            before = sum(len(each.acknowledged) for each in scanners)
            wait_until(lambda: sum(len(each.acknowledged) for each in scanners) > before + 50, what="50 images")  # noqa: B023
            [dead, *_] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            os.kill(int(dead), SIGKILL)
            wait_until(lambda: not Path(f"/proc/{dead}").exists(), what="a successor in its place")  # noqa: B023
        ends = sending.result(100)
        last = Scanner(99, 3, None)
        assert last.run(port) == "released"  # the port is open, and a successor answers
    assert ends["cut"] >= 1
    came = found(tmp_path)
    acknowledged = set().union(last.acknowledged, *(each.acknowledged for each in scanners))
    assert acknowledged <= set(came.images)
    assert len(came.images) == len(set(came.images))
    assert len(came.images) <= len(acknowledged) + ends["cut"]  # stored, and killed before the answer
    assert came.ends["released"] == ends["released"] + 1
    assert came.ends["lost"] == ends["cut"]
    assert came.rest == []
