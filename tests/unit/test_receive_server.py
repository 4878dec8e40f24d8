"""The receiver in this process, with a client of a few lines that can also behave badly."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sorter.durable import PART, Buffer, Files, PathLike
from sorter.errors import SorterError
from sorter.receive import Receiver, ReceiveSettings, open_doors, workers
from sorter.receive.tally import Tally
from sorter.take import contents
from sorter.testing.waiting import wait_until

MR = b"1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = b"1.2.840.10008.1.1"
IMPLICIT = b"1.2.840.10008.1.2"
DATA_SET = b"\x08\0\x18\0\x0a\0\0\x001.2.3.4.5\0" + bytes(range(256)) * 40


# --- a client -------------------------------------------------------------------------------------------------------


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(value)) + value


def request(abstracts: Sequence[bytes] = (MR, VERIFICATION), max_length: int = 16384, padding: int = 0) -> bytes:
    body = b"\0\1\0\0" + b"SORTER".ljust(16) + b"SCANNER".ljust(16) + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract in enumerate(abstracts):
        body += item(0x20, bytes((2 * number + 1, 0, 0, 0)) + item(0x30, abstract) + item(0x40, IMPLICIT))
    body += item(0x50, item(0x51, struct.pack(">I", max_length)) + item(0x52, b"1.2.3"))
    while padding > 0:
        body += item(0x99, bytes(min(padding, 60000)))
        padding -= 60000
    return pdu(1, body)


def element(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def command(field: int = 1, data_set: int = 0, **elements: bytes) -> bytes:
    """A C-STORE-RQ, or what the arguments make of it; `e1000=b""` leaves an element out."""
    values = {0x0002: MR, 0x0100: struct.pack("<H", field), 0x0110: b"\7\0", 0x0700: b"\2\0"}
    values |= {0x0800: struct.pack("<H", data_set), 0x1000: b"1.2.3.4.5"}
    values |= {int(name[1:], 16): value for name, value in elements.items()}
    return b"".join(element(number, value) for number, value in sorted(values.items()) if value)


def pdv(context: int, control: int, data: bytes) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context, control) + data


def a_store(data: bytes = DATA_SET, step: int = 4000, **elements: bytes) -> bytes:
    out = pdu(4, pdv(1, 3, command(**elements)))
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        out += pdu(4, pdv(1, 2 if start + step >= len(data) else 0, piece))
    return out


class Client:
    """A socket that speaks PDUs."""

    def __init__(self, port: int, first: bytes | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        if first is not None:
            self.send(first)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def pdu(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxI", self.take(6))
        return kind, self.take(length)

    def status(self) -> int:
        kind, body = self.pdu()
        assert kind == 4
        found = re.search(rb"\x00\x00\x00\x09\x02\x00\x00\x00(..)", body, re.DOTALL)
        assert found is not None
        return int.from_bytes(found[1], "little")

    def associate(self, **options: Any) -> Client:
        self.send(request(**options))
        assert self.pdu()[0] == 2
        return self

    def release(self) -> None:
        self.send(pdu(5, bytes(4)))
        assert self.pdu() == (6, bytes(4))


class Served:
    """A running receiver and what lies in its folder."""

    def __init__(self, port: int, received: Path, receiver: Receiver) -> None:
        self.port, self.received, self.receiver = port, received, receiver

    def names(self) -> list[str]:
        files = (path for path in self.received.rglob("*") if path.is_file() and path.suffix != ".jsonl")
        return sorted(path.name for path in files if not path.name.startswith(("door.json", "space.json")))

    def images(self) -> list[Path]:
        return sorted(self.received.rglob("*.dcm"))

    def parts(self) -> list[str]:
        return [name for name in self.names() if name.endswith(PART)]

    def lines(self) -> list[dict[str, Any]]:
        logs = sorted(self.received.rglob("arrivals.jsonl"))
        return [json.loads(line) for log in logs for line in log.read_text().splitlines() if line]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines()]

    def wait_for(self, event: str) -> dict[str, Any]:
        wait_until(lambda: event in self.events(), what=event)
        return next(line for line in self.lines() if line["event"] == event)


@contextmanager
def serving(received: Path, files: Files | None = None, **options: Any) -> Generator[Served, None, None]:
    receiver = Receiver(ReceiveSettings(port=0, **options), received, files or Files())
    port = receiver.start()
    try:
        yield Served(port, received, receiver)
    finally:
        receiver.stop(5)


@pytest.fixture
def served(tmp_path: Path) -> Generator[Served, None, None]:
    with serving(tmp_path / "received") as served:
        yield served


# --- storing --------------------------------------------------------------------------------------------------------


def data_set_of(path: Path) -> bytes:
    """What follows the file meta information."""
    data = path.read_bytes()
    assert data[128:132] == b"DICM"
    return data[144 + int.from_bytes(data[140:144], "little") :]


@pytest.mark.parametrize("step", [1, 250, 4000, 16378, 100_000])
def test_an_instance_is_stored_unchanged_however_it_is_cut(served: Served, step: int) -> None:
    with Client(served.port).associate() as client:
        client.send(a_store(step=step))
        assert client.status() == 0
        assert [data_set_of(path) for path in served.images()] == [DATA_SET]
        client.release()
    served.wait_for("released")
    assert served.parts() == []


def test_many_pdvs_in_one_pdu_and_bytes_one_by_one(served: Served) -> None:
    pieces = [DATA_SET[at : at + 9] for at in range(0, len(DATA_SET), 9)]
    together = b"".join(pdv(1, 2 if piece is pieces[-1] else 0, piece) for piece in pieces)
    stream = pdu(4, pdv(1, 1, command()[:30]) + pdv(1, 3, command()[30:])) + pdu(4, together)
    with Client(served.port).associate() as client:
        for at in range(400):
            client.send(stream[at : at + 1])
        client.send(stream[400:])
        assert client.status() == 0
    assert [data_set_of(path) for path in served.images()] == [DATA_SET]


def test_an_instance_longer_than_the_buffer(served: Served) -> None:
    data = os.urandom(1 << 20) * 3
    with Client(served.port).associate() as client:
        client.send(a_store(data, step=131066) + a_store(step=77))
        assert (client.status(), client.status()) == (0, 0)
    assert sorted(data_set_of(path) for path in served.images()) == sorted([data, DATA_SET])


def test_the_arrivals_file_tells_what_came_and_how(served: Served) -> None:
    with Client(served.port).associate() as client:
        client.send(a_store())
        assert client.status() == 0
        stored = served.lines()
        client.release()
    served.wait_for("released")
    served.receiver.stop(5)
    opened, line = stored
    assert (opened["event"], opened["calling"], opened["called"]) == ("opened", "SCANNER", "SORTER")
    assert opened["address"] == "127.0.0.1"
    assert line["event"] == "stored"
    assert line["association"] == opened["association"]
    assert [path.name for path in served.images()] == [line["file"]]
    assert served.events() == ["opened", "stored", "released", "closed"]


def test_the_answer_comes_after_bytes_name_folder_and_line(tmp_path: Path) -> None:
    steps: list[str] = []

    class Watched(Files):
        def fsync(self, fd: int) -> None:
            steps.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "fsync file")
            super().fsync(fd)

        def rename(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
            steps.append("rename")
            super().rename(old, new, at=at, to=to)

        def write(self, fd: int, data: Buffer) -> int:
            steps.append(json.loads(bytes(data).splitlines()[-1]).get("event"))
            return super().write(fd, data)

    with serving(tmp_path / "received", Watched()) as served, Client(served.port).associate() as client:
        steps.clear()
        client.send(a_store())
        assert client.status() == 0
        assert steps == ["fsync file", "rename", "fsync folder", "stored"]


def test_an_echo_and_stores_may_be_mixed(served: Served) -> None:
    echo = pdu(4, pdv(3, 3, command(0x30, 0x0101, e0002=VERIFICATION, e1000=b"")))
    with Client(served.port).associate() as client:
        client.send(echo + a_store() + echo)
        assert [client.status() for _ in range(3)] == [0, 0, 0]
        client.release()


def test_a_second_image_has_its_own_file_though_it_is_the_same(served: Served) -> None:
    with Client(served.port).associate() as client:
        client.send(a_store() * 2)
        assert [client.status() for _ in range(2)] == [0, 0]
    assert len(served.images()) == 2


def test_a_data_set_that_begins_as_a_file_does_says_nothing_of_its_sender(served: Served) -> None:
    """Who sent it, and in which transfer syntax, is what the association says."""

    def short(number: int, vr: bytes, value: bytes) -> bytes:
        return struct.pack("<HH2sH", 2, number, vr, len(value)) + value

    own = short(0x10, b"UI", b"1.2.840.10008.1.2.1\0") + short(0x16, b"AE", b"ANOTHER ") + short(0x18, b"AE", b"LAB2")
    own += struct.pack("<HH2sHL", 2, 0x26, b"UR", 0, 18) + b"dicom://10.1.2.3:1"
    with Client(served.port).associate() as client:
        client.send(a_store(own + DATA_SET))
        assert client.status() == 0
    [path] = served.images()
    assert data_set_of(path) == own + DATA_SET
    with path.open("rb") as file:
        _, meta = contents.start(Files(), file.fileno())
    assert meta.transfer_syntax == IMPLICIT.decode()
    assert (meta.values[0x00020016], meta.values[0x00020018]) == ("SCANNER", "SORTER")
    assert meta.values[0x00020026].startswith("dicom://127.0.0.1:")


# --- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "status"),
    [
        ({"e1000": b""}, 0x0117),
        ({"e1000": b"../../etc"}, 0x0117),
        ({"e1000": b"1." * 40}, 0x0117),
        ({"e1000": b"..."}, 0x0117),
        ({"e0002": b""}, 0x0122),
        ({"e0002": VERIFICATION}, 0x0122),
    ],
)
def test_a_store_that_names_nothing_is_refused_and_the_association_goes_on(
    served: Served, elements: dict[str, bytes], status: int
) -> None:
    with Client(served.port).associate() as client:
        client.send(a_store(**elements) + a_store())
        assert (client.status(), client.status()) == (status, 0)
    assert len(served.images()) == 1
    assert served.parts() == []


@pytest.mark.parametrize("uid", [b"1.2.840..7", b"1.2.840.", b"01.002", b"1"])
def test_an_instance_whose_uid_is_not_quite_one_is_taken(served: Served, uid: bytes) -> None:
    """As it is where it comes by another way; refused it would stay at its scanner."""
    with Client(served.port).associate() as client:
        client.send(a_store(e1000=uid))
        assert client.status() == 0
    assert uid in served.images()[0].read_bytes()[:400]


def test_a_store_without_a_data_set_is_refused(served: Served) -> None:
    with Client(served.port).associate() as client:
        client.send(pdu(4, pdv(1, 3, command(data_set=0x0101))))
        client.send(pdu(4, pdv(1, 3, command())) + pdu(4, pdv(1, 2, b"")))
        assert (client.status(), client.status()) == (0xC000, 0xC000)
    assert served.names() == []


def test_other_operations_are_answered_as_unknown(served: Served) -> None:
    with Client(served.port).associate() as client:
        client.send(pdu(4, pdv(1, 3, command(0x20))) + pdu(4, pdv(1, 2, DATA_SET[:100])))
        # A C-CANCEL names the request that it cancels, has no number of its own (PS3.7 9.3.2.3), and no answer.
        client.send(pdu(4, pdv(1, 3, command(0x0FFF, 0x0101, e0002=b"", e0110=b"", e0120=b"\7\0", e1000=b""))))
        client.send(pdu(4, pdv(1, 3, command(0x0FFF, 0x0101))))  # as some write it
        client.send(a_store())
        assert (client.status(), client.status()) == (0x0211, 0)


class Failing(Files):
    """Fails as told: `fail(name of the effect, its arguments)` may raise."""

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}

    def _maybe(self, effect: str) -> None:
        if effect in self.broken:
            raise OSError(self.broken[effect], os.strerror(self.broken[effect]))

    def open(self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        if flags & os.O_CREAT:
            self._maybe("open")
        return super().open(path, flags, mode, at=at)

    def write(self, fd: int, data: Buffer) -> int:
        self._maybe("write")
        return super().write(fd, data)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        self._maybe("writev")
        if "short" in self.broken:  # a disk that fills up takes what it can first
            return super().writev(fd, [bytes(buffers[0])[: self.broken["short"]]])
        return super().writev(fd, buffers)

    def splice(self, pipe: int, fd: int, size: int) -> int:
        self._maybe("splice")
        return super().splice(pipe, fd, min(size, self.broken.get("short", size)))

    def fsync(self, fd: int) -> None:
        self._maybe("fsync")
        super().fsync(fd)

    def rename(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        self._maybe("rename")
        super().rename(old, new, at=at, to=to)


@pytest.mark.parametrize("effect", ["open", "writev", "fsync", "rename", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_out_of_resources_is_said_and_nothing_is_left(tmp_path: Path, effect: str, code: int) -> None:
    files = Failing()
    big = os.urandom(600_000)
    with serving(tmp_path / "received", files) as served, Client(served.port).associate() as client:
        files.broken = {effect: code}
        client.send(a_store() + a_store(big, step=100_000))
        assert (client.status(), client.status()) == (0xA700, 0xA700)
        assert served.names() == []
        files.broken = {}
        client.send(a_store())
        assert client.status() == 0
        client.release()
    assert len(served.images()) == 1
    assert [line["event"] for line in served.lines()] == ["opened", "stored", "released", "closed"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_under_a_large_pdv_leaves_the_association_whole(tmp_path: Path, code: int) -> None:
    """What waits in the pipe then is thrown away, and the next instance is not mixed with it."""
    files, big = Failing(), os.urandom(600_000)
    with serving(tmp_path / "received", files) as served, Client(served.port).associate() as client:
        files.broken = {"splice": code}
        client.send(a_store(big, step=100_000))
        assert client.status() == 0xA700
        assert served.names() == []
        files.broken = {"short": 1000}
        client.send(a_store(big, step=100_000))
        assert client.status() == 0
        assert [data_set_of(path) for path in served.images()] == [big]
        client.release()


def test_where_nothing_can_be_spliced_a_large_pdv_is_copied(tmp_path: Path) -> None:
    """Not every file system takes bytes from a pipe."""
    files, big = Failing(), os.urandom(600_000)
    files.broken = {"splice": errno.EINVAL}
    with serving(tmp_path / "received", files) as served, Client(served.port).associate() as client:
        client.send(a_store(big, step=100_000) + a_store())
        assert (client.status(), client.status()) == (0, 0)
        assert sorted(data_set_of(path) for path in served.images()) == sorted([big, DATA_SET])
        client.release()


class Gathering(Files):
    """Holds the first sync of a folder with images back until `others` more have been renamed, and counts them all."""

    def __init__(self, others: int, fails: bool) -> None:
        self.others, self.fails = others, fails
        self.renamed = 0
        self.synced: list[int] = []
        self._lock = threading.Lock()

    def rename(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        super().rename(old, new, at=at, to=to)
        with self._lock:
            self.renamed += at is not None  # parts, and nothing else, are named from their folder's descriptor

    def fsync_folder(self, path: PathLike | int) -> None:
        if isinstance(path, int):
            self.synced.append(path)
            if len(self.synced) == 1:
                wait_until(lambda: self.renamed == 1 + self.others, what="the others' names")
            elif self.fails and len(self.synced) == 2:
                raise OSError(errno.EIO, "a broken disk")
        super().fsync_folder(path)


def test_instances_that_wait_for_one_sync_share_the_next(tmp_path: Path) -> None:
    files = Gathering(others=5, fails=False)
    with serving(tmp_path / "received", files) as served, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(served.port).associate()) for _ in range(6)]
        for client in clients:
            client.send(a_store())
        assert [client.status() for client in clients] == [0] * 6
        assert len(files.synced) == 2
        assert served.events().count("stored") == len(served.images()) == 6


def test_a_failed_sync_refuses_all_that_waited_for_it_and_is_not_tried_again(tmp_path: Path) -> None:
    files = Gathering(others=3, fails=True)
    with serving(tmp_path / "received", files) as served, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(served.port).associate()) for _ in range(4)]
        for client in clients:
            client.send(a_store())
        assert sorted(client.status() for client in clients) == [0, 0xA700, 0xA700, 0xA700]
        assert len(served.names()) == 1
        for client in clients:
            client.send(a_store())
        assert [client.status() for client in clients] == [0] * 4
        assert len(list(served.received.rglob("arrivals.jsonl"))) == 2  # a new segment, with a descriptor of its own
        assert len(served.images()) == 5


def test_short_writes_are_continued(tmp_path: Path) -> None:
    files = Failing()
    files.broken = {"short": 100}
    with serving(tmp_path / "received", files) as served, Client(served.port).associate() as client:
        client.send(a_store(step=300))
        assert client.status() == 0
        assert [data_set_of(path) for path in served.images()] == [DATA_SET]


@pytest.mark.parametrize("step", [4000, 100_000], ids=["copied", "piped"])
def test_a_large_instance_is_on_its_way_to_the_disk_before_it_is_whole(tmp_path: Path, step: int) -> None:
    begun: list[tuple[int, int, bool]] = []

    class Watched(Files):
        def start_writeback(self, fd: int, offset: int, size: int) -> None:
            there = os.fstat(fd).st_size >= offset + size
            begun.append((offset, size, there))
            super().start_writeback(fd, offset, size)

    with serving(tmp_path / "received", Watched()) as served, Client(served.port).associate() as client:
        client.send(a_store())
        assert client.status() == 0
        assert not begun
        data = DATA_SET + bytes(20 << 20)
        client.send(a_store(data, step))
        assert client.status() == 0
    assert all(there for _, _, there in begun)
    assert len(begun) == 2
    assert begun[0][0] == 0
    assert begun[1][0] == begun[0][1] >= 8 << 20
    assert data_set_of(served.images()[-1]) == data


def test_no_association_begins_that_cannot_be_written_down(tmp_path: Path) -> None:
    files = Failing()
    with serving(tmp_path / "received", files) as served:
        files.broken = {"write": errno.ENOSPC}
        with Client(served.port, request()) as client:
            assert client.pdu() == (3, bytes((0, 2, 3, 1)))
        files.broken = {}
        with Client(served.port).associate() as client:
            client.release()


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "end"), [(pdu(7, bytes(4)), "aborted"), (pdu(5, bytes(4)), "released"), (b"", "lost")]
)
def test_an_end_in_mid_instance_leaves_nothing(served: Served, last: bytes, end: str) -> None:
    with Client(served.port).associate() as client:
        client.send(a_store(os.urandom(700_000), step=100_000)[:500_000][: 6 + 6 + len(command()) + 2 * 100_012])
        wait_until(served.parts, what="a part")
        client.send(last)
        if not last:
            client.socket.shutdown(socket.SHUT_RDWR)
        served.wait_for(end)
    assert served.names() == []


@pytest.mark.parametrize(
    "junk",
    [
        pdu(4, pdv(9, 3, command())),  # a context nobody accepted
        pdu(4, pdv(1, 2, DATA_SET)),  # a data set without a command
        pdu(4, pdv(1, 3, command())) + pdu(4, pdv(1, 3, command())),  # a command instead of the data set
        pdu(4, pdv(1, 3, command())) + pdu(4, pdv(3, 2, DATA_SET)),  # a data set in another context
        pdu(4, pdv(1, 3, b"\1" * 20)),
        pdu(4, pdv(1, 3, command(0x8001))),
        pdu(4, b""),
        pdu(4, b"\0\0\0\1\1\3"),
        pdu(4, b"\0\1\0\0\1\3" + bytes(20)),
        struct.pack(">BxI", 4, 0xFFFFFFFF),
        struct.pack(">BxI", 4, 131073),
        pdu(1, bytes(100)),
        pdu(2, bytes(100)),
        pdu(6, bytes(4)),
        pdu(5, bytes(5)),
        pdu(0x77, bytes(100)),
        b"".join(pdu(4, pdv(1, 1, bytes(60_000))) for _ in range(2)),  # a command set without an end
    ],
)
def test_whoever_breaks_the_protocol_is_aborted_and_others_are_served(served: Served, junk: bytes) -> None:
    with Client(served.port).associate() as client:
        client.send(junk)
        kind, body = client.pdu()
        assert (kind, body[2]) == (7, 2)
        with pytest.raises(EOFError):
            client.take(1)
    served.wait_for("lost")
    assert served.names() == []
    with Client(served.port).associate() as client:
        client.send(a_store())
        assert client.status() == 0


def test_an_instance_without_end_is_cut_off(tmp_path: Path) -> None:
    with serving(tmp_path / "received", max_instance=300_000) as served, Client(served.port).associate() as client:
        client.send(a_store(bytes(300_000), step=100_000))
        assert client.status() == 0
        client.send(a_store(bytes(300_001), step=100_000))
        assert client.pdu()[0] == 7
        served.wait_for("lost")
        assert len(served.names()) == 1


@pytest.mark.parametrize(("sent", "option"), [(b"", "idle_timeout"), (a_store()[:3000], "stall_timeout")])
def test_silence_ends_an_association(tmp_path: Path, sent: bytes, option: str) -> None:
    with serving(tmp_path / "received", **{option: 0.2}) as served, Client(served.port).associate() as client:
        client.send(sent)
        assert client.pdu()[0] == 7
        served.wait_for("lost")
        assert served.names() == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(min_size=1, max_size=400), established=st.booleans())
def test_junk_never_ends_the_receiver(served: Served, junk: bytes, established: bool) -> None:
    with Client(served.port) as client:
        if established:
            client.associate()
        with contextlib.suppress(OSError):  # it may be cut off before it has said all
            client.send(junk)
            client.socket.shutdown(socket.SHUT_WR)
            while client.socket.recv(4096):
                pass
    assert served.receiver.alive
    assert served.parts() == []


def test_a_fault_of_ours_ends_one_association_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(Files):
        armed = True

        def fsync(self, fd: int) -> None:
            if self.armed and not os.path.isdir(f"/proc/self/fd/{fd}"):
                raise KeyError("a bug")
            super().fsync(fd)

    files = Buggy()
    with serving(tmp_path / "received", files) as served:
        with Client(served.port).associate() as client:
            client.send(a_store())
            assert client.pdu()[0] == 7
        served.wait_for("lost")
        assert served.names() == []
        assert "a fault of ours" in caplog.text
        files.armed = False
        with Client(served.port).associate() as client:
            client.send(a_store())
            assert client.status() == 0


# --- the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n\r\n", pdu(4, b"x" * 80), struct.pack(">BxI", 1, 0xFFFFFFFF), request(padding=300_000)],
)
def test_what_is_no_request_is_turned_away(served: Served, first: bytes) -> None:
    with Client(served.port) as client:
        client.send(first[:74])
        assert client.pdu()[0] == 7
    assert served.events() == []


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        (pdu(1, b"\0\0" + request()[8:]), 3),  # no version of the protocol
        (request().replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2"), 3),
        (pdu(1, request()[6:] + b"\x20\0\xff\xff"), 7),  # an item without end
    ],
)
def test_whoever_is_turned_away_and_does_not_go_keeps_no_place(served: Served, wrong: bytes, answer: int) -> None:
    with Client(served.port, wrong) as client:
        assert client.pdu()[0] == answer
        wait_until(lambda: not served.receiver._serving, 5, "the association's end")
        assert served.receiver._row.count("127.0.0.1") == (0, 0)


def test_whoever_broke_the_protocol_keeps_his_place_until_he_is_gone(tmp_path: Path) -> None:
    """For a second at most: else those who come again and again would each leave a thread and a buffer behind."""
    with serving(tmp_path / "received", per_address=1) as served:
        with Client(served.port).associate() as client:
            client.send(b"\x63\0\0\0\0\1x")
            assert client.pdu()[0] == 7
            with Client(served.port, request()) as another:
                assert another.pdu()[0] == 3

        def is_taken() -> bool:
            with Client(served.port, request()) as another:
                return another.pdu()[0] == 2

        wait_until(is_taken)


def test_a_large_request_is_taken_and_a_silent_connection_is_not(tmp_path: Path) -> None:
    with serving(tmp_path / "received", request_timeout=0.3) as served:
        with Client(served.port) as silent, Client(served.port, request()[:40]) as slow:
            for client in (silent, slow):
                with pytest.raises(EOFError):
                    client.take(1)
        with Client(served.port).associate(padding=200_000) as client:
            client.release()


def test_a_request_in_single_bytes_is_taken(served: Served) -> None:
    with Client(served.port) as client:
        for byte in request():
            client.send(bytes((byte,)))
        assert client.pdu()[0] == 2


def test_a_hundred_and_twenty_associations_at_once_while_many_only_connect(tmp_path: Path) -> None:
    with serving(tmp_path / "received", waiting=30) as served:
        idle = [Client(served.port) for _ in range(60)]
        clients = [Client(served.port).associate() for _ in range(120)]
        for client in clients:
            client.send(a_store())
        assert [client.status() for client in clients] == [0] * 120
        for client in clients:
            client.release()
        for client in [*idle, *clients]:
            client.socket.close()
        wait_until(lambda: served.events().count("released") == 120)
    assert len(served.images()) == 120


def test_one_association_too_many_is_rejected_for_now(tmp_path: Path) -> None:
    with serving(tmp_path / "received", associations=1) as served:
        with Client(served.port).associate() as first:
            with Client(served.port, request()) as second:
                assert second.pdu() == (3, bytes((0, 2, 3, 2)))
            first.release()
        served.wait_for("released")

        def again() -> bool:
            with Client(served.port, request()) as third:
                return third.pdu()[0] == 2

        wait_until(again, what="a free place")


def test_whoever_is_released_may_return_at_once(tmp_path: Path) -> None:
    """As scanners do that open an association for each image."""
    with serving(tmp_path / "received", associations=1) as served:
        for _ in range(100):
            with Client(served.port).associate() as client:
                client.release()
        wait_until(lambda: served.events().count("released") == 100)


# --- starting and stopping ------------------------------------------------------------------------------------------


def test_stop_finishes_the_instance_and_releases(tmp_path: Path) -> None:
    with serving(tmp_path / "received") as served, Client(served.port).associate() as client:
        stream = a_store()
        client.send(stream[:5000])
        wait_until(lambda: "opened" in served.events())
        stopper = threading.Thread(target=served.receiver.stop, args=(10,))
        stopper.start()
        wait_until(lambda: _refused(served.port), what="a closed port")
        client.send(stream[5000:])
        assert client.status() == 0
        assert client.pdu() == (5, bytes(4))
        client.send(pdu(6, bytes(4)))
        stopper.join()
    assert served.events() == ["opened", "stored", "released", "closed"]


def test_stop_releases_an_idle_association_and_cuts_a_stalled_one(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "received") as served,
        Client(served.port).associate() as idle,
        Client(served.port).associate() as stalled,
    ):
        stalled.send(a_store()[:5000])
        wait_until(served.parts, what="a part")
        served.receiver.stop(1.5)
        assert idle.pdu() == (5, bytes(4))
    assert served.events()[-1] == "closed"
    assert served.events().count("lost") == 2  # the idle one did not answer our release
    assert served.names() == []


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it closed just then: the next one will be refused
        return False
    return False


def test_a_port_in_use_is_said_in_a_sentence(served: Served, tmp_path: Path) -> None:
    second = Receiver(ReceiveSettings(port=served.port), tmp_path / "other", Files())
    with pytest.raises(SorterError, match=rf"127\.0\.0\.1 port {served.port}: another program answers there"):
        second.start()


@pytest.mark.parametrize(("host", "says"), [("no such host", "not known"), ("192.0.2.1", "no such address")])
def test_a_host_that_is_not_ours_is_said_in_a_sentence(tmp_path: Path, host: str, says: str) -> None:
    with pytest.raises(SorterError, match=says):
        Receiver(ReceiveSettings(host=host, port=0), tmp_path, Files()).start()


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "received").write_text("a file")
    with pytest.raises(SorterError, match="received cannot be used for received images"):
        Receiver(ReceiveSettings(port=0), tmp_path / "received", Files()).start()


PROGRAM = """
import sys
from pathlib import Path
from sorter.durable import Files
from sorter.receive import Job, ReceiveSettings, run
settings = ReceiveSettings(port=0, processes=int(sys.argv[2]))
run(Job(settings, Path(sys.argv[1]), Files()), lambda port: print(port, flush=True))
"""


@contextmanager
def process(received: Path, processes: int = 1) -> Generator[tuple[subprocess.Popen[str], int], None, None]:
    command = [sys.executable, "-c", PROGRAM, str(received), str(processes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, int(child.stdout.readline())
        finally:
            child.kill()


def on_disk(received: Path) -> Served:
    """What lies in the folder of a receiver of another process."""
    return Served(0, received, None)  # type: ignore[arg-type]


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_sigterm_ends_the_process_in_order(tmp_path: Path) -> None:
    with process(tmp_path) as (parent, port):
        with Client(port).associate() as client:
            client.send(a_store())
            assert client.status() == 0
            client.release()
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(10) == 0
    assert on_disk(tmp_path).events() == ["opened", "stored", "released", "closed"]


def test_sigterm_lets_every_worker_finish_its_instance_and_release(tmp_path: Path) -> None:
    stream, served = a_store(), on_disk(tmp_path)
    with process(tmp_path, 2) as (parent, port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(port).associate()) for _ in range(8)]
        for client in clients:
            client.send(stream[:5000])
        wait_until(lambda: len(served.parts()) == 8, what="eight parts")
        parent.send_signal(signal.SIGTERM)
        wait_until(lambda: _refused(port), what="a closed port")
        for client in clients:
            client.send(stream[5000:])
        assert [client.status() for client in clients] == [0] * 8
        for client in clients:
            assert client.pdu() == (5, bytes(4))
            client.send(pdu(6, bytes(4)))
        assert parent.wait(10) == 0
    assert len(served.images()) == 8
    assert served.events().count("closed") == len({path.parent.parent for path in served.images()})


def test_each_process_gets_its_share(tmp_path: Path) -> None:
    with process(tmp_path, 2) as (_, port), contextlib.ExitStack() as stack:
        for most in (4, 16):
            for client in [stack.enter_context(Client(port)) for _ in range(most)]:
                client.associate()
                client.send(a_store())
                assert client.status() == 0
    shares = [len(list((tmp_path / worker).rglob("*.dcm"))) for worker in ("w1", "w2")]
    assert sum(shares) == 20
    assert min(shares) >= 8


def test_what_a_killed_worker_left_is_cleared_by_its_successor_and_its_images_stay(tmp_path: Path) -> None:
    served = on_disk(tmp_path)
    with process(tmp_path) as (parent, port), Client(port).associate() as client:
        client.send(a_store())
        assert client.status() == 0
        client.send(a_store(os.urandom(900_000), step=100_000)[:800_000])
        wait_until(served.parts, what="a part")
        other = tmp_path / "w1" / "alive"
        other.mkdir()
        (other / "x.dcm.part").write_bytes(b"")
        with (other / "arrivals.jsonl").open("w") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            (dead,) = workers_of(parent.pid)
            os.kill(dead, signal.SIGKILL)
            with Client(port) as next_one:  # the port stays open: it waits for the successor
                next_one.associate()
                next_one.send(a_store())
                assert next_one.status() == 0
                next_one.release()
            assert served.parts() == ["x.dcm.part"]
        assert workers_of(parent.pid) != [dead]
    assert len(served.images()) == 2
    logs = sorted(tmp_path.rglob("arrivals.jsonl"))
    with logs[0].open() as log:  # free and not closed: whoever reads it knows that its association is lost
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert [json.loads(line)["event"] for line in log] == ["opened", "stored"]


def test_why_a_worker_could_not_begin_in_anothers_place_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ReceiveSettings(port=0)
    (tmp_path / "received").mkdir()
    (tmp_path / "received" / "w1").write_text("no folder")
    job, doors = workers.Job(settings, tmp_path / "received", Files()), open_doors(settings)
    worker = workers._Worker(1, job, doors, Tally(1))
    worker.look_after(100.0)
    assert worker._process is not None
    worker._process.join(30)
    worker.look_after(101.0)
    assert "receiver w1 ended with 0 (" in caplog.text
    assert "cannot be used for received images" in caplog.text


def test_a_worker_that_cannot_be_replaced_now_is_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system gives no more processes: that ends nobody else."""
    settings = ReceiveSettings(port=0)
    job, doors = workers.Job(settings, tmp_path / "received", Files()), open_doors(settings)
    worker = workers._Worker(1, job, doors, Tally(1))

    def none_left(*_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patched:
        patched.setattr(workers._fork.Process, "start", none_left)
        worker.look_after(100.0)
        worker.look_after(100.5)  # not before a second is over
    assert caplog.text.count("receiver w1 cannot be replaced now: Resource temporarily unavailable") == 1
    worker.look_after(101.5)
    worker.await_ready()
    with Client(doors[0].listener.getsockname()[1]).associate() as client:
        client.release()
    worker.end()
    worker.join(time.monotonic() + 10)


def test_workers_end_when_their_parent_was_killed(tmp_path: Path) -> None:
    with process(tmp_path, 2) as (parent, port):
        workers = workers_of(parent.pid)
        assert len(workers) == 2
        parent.kill()
        parent.wait(10)
        wait_until(lambda: _refused(port), what="a closed port")
        wait_until(lambda: all(is_gone(pid) for pid in workers), what="the workers' end")


def test_a_folder_that_no_worker_can_use_ends_it_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "w2").write_text("a file")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "cannot be used for received images" in ended.stderr
    assert ended.stdout == ""


# --- segments -------------------------------------------------------------------------------------------------------


def test_a_segment_is_followed_by_another_and_open_associations_go_on_there(tmp_path: Path) -> None:
    with serving(tmp_path / "received", segment_files=2) as served, Client(served.port).associate() as client:
        client.send(a_store() * 5)
        assert [client.status() for _ in range(5)] == [0] * 5
        client.release()
        served.wait_for("released")
    segments = sorted(each for each in (tmp_path / "received" / "w1").iterdir() if each.is_dir())
    assert [len(list(segment.glob("*.dcm"))) for segment in segments] == [2, 2, 1]
    lines = [[json.loads(line) for line in (s / "arrivals.jsonl").read_text().splitlines()] for s in segments]
    assert [[line["event"] for line in each] for each in lines] == [
        ["opened", "stored", "stored", "closed"],
        ["opened", "stored", "stored", "closed"],
        ["opened", "stored", "released", "closed"],
    ]
    assert [each[0].get("continued", False) for each in lines] == [False, True, True]
    assert len({each[0]["association"] for each in lines}) == 1


def test_associations_that_bring_nothing_do_not_make_a_segment_grow_for_ever(tmp_path: Path) -> None:
    with serving(tmp_path / "received", segment_files=2) as served:
        for count in range(1, 6):
            with Client(served.port).associate() as client:
                client.release()
            wait_until(lambda count=count: served.events().count("released") == count, what="its end")
    segments = sorted(each for each in (tmp_path / "received" / "w1").iterdir() if each.is_dir())
    lines = [(segment / "arrivals.jsonl").read_text().splitlines() for segment in segments]
    assert [len(each) for each in lines] == [5, 5, 3]


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_folder_that_somebody_removed_refuses_nothing(tmp_path: Path, above: int) -> None:
    with serving(tmp_path / "received") as served, Client(served.port).associate() as client:
        client.send(a_store())
        assert client.status() == 0
        Files().remove_tree(served.images()[0].parents[above])
        client.send(a_store() * 2)
        assert (client.status(), client.status()) == (0, 0)
        assert len(served.images()) == 2
        client.release()
        assert [line["event"] for line in served.lines()][:3] == ["opened", "stored", "stored"]


def test_the_lock_is_held_while_the_segment_is_open(served: Served) -> None:
    with Client(served.port).associate():
        log = wait_until(lambda: list(served.received.rglob("arrivals.jsonl")))[0]
        with log.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    served.receiver.stop(5)
    with log.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_old_segment_that_nothing_uses_is_closed_without_traffic(tmp_path: Path) -> None:
    with serving(tmp_path / "received", segment_age=0.1) as served:
        with Client(served.port).associate() as client:
            client.release()
        served.wait_for("closed")
        assert served.receiver.alive


def test_an_end_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    files = Failing()
    with serving(tmp_path / "received", files) as served:
        with Client(served.port).associate() as client:
            files.broken = {"write": errno.ENOSPC}
            client.release()
        wait_until(lambda: not served.receiver._serving, what="the association's end")
        assert served.events() == ["opened"]
        files.broken = {}
    assert served.events() == ["opened", "released", "closed"]
