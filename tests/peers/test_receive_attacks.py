"""Whoever means harm, against `sorter receive` as it runs: a scanner's image is stored within a second all the while,
and memory does not grow.

The door stands open to everybody, which is the harder case: with listed senders these attackers would be refused before
a byte is read. They come from the scanner's own address where that makes it worse.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sorter.receive.crew import KEPT
from sorter.receive.seldom import MOST
from sorter.testing.peer import ABORT, Peer, command, echo, pdu, pdv, request, store
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

STRANGER = "127.0.0.2"
MOST_GROWTH = 100 << 20
IMAGE = os.urandom(200_000)


class Receiving:
    """`sorter receive`: its parent and its workers, as /proc shows them."""

    def __init__(self, process: subprocess.Popen[str], port: int, received: Path, log: Path) -> None:
        self.process, self.port, self.received, self.log = process, port, received, log
        self.pids = [process.pid, *_children(process.pid)]
        self.usual = 0.0  # seconds for a store when nobody attacks

    def pss(self) -> int:
        """Bytes of memory, shared pages counted once."""
        return sum(_pss(pid) for pid in self.pids)

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)

    def threads(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self.pids)

    def parts(self) -> list[Path]:
        return list(self.received.rglob("*.dcm.part"))

    def store(self) -> float:
        """An association of its own for one image, as some scanners do; the seconds it took."""
        began = time.monotonic()
        with Peer(self.port) as scanner:
            scanner.associate()
            scanner.send(store(IMAGE))
            assert scanner.status() == 0
            scanner.release()
        return time.monotonic() - began

    @contextmanager
    def unharmed(self, times: int = 12) -> Iterator[None]:
        """What is in the block goes on while images are stored; afterwards everything is as before."""
        pss, descriptors, threads = self.pss(), self.descriptors(), self.threads()
        stored = len(list(self.received.rglob("*.dcm")))
        yield
        slowest, most = 0.0, 0
        for _ in range(times):
            slowest = max(slowest, self.store())
            most = max(most, self.pss())
        assert slowest < max(1.0, 10 * self.usual), f"{slowest:.2f} s, usually {self.usual:.3f} s"
        assert most - pss < MOST_GROWTH, f"{(most - pss) >> 20} MB more"
        print(f"slowest store {slowest * 1000:.0f} ms, memory {(most - pss) / 1e6:+.1f} MB")
        self._after = (descriptors, threads, stored + times)

    def settled(self) -> None:
        """To be called when the attackers are gone."""
        descriptors, threads, stored = self._after
        wait_until(lambda: not self.parts(), 10, "parts to go")
        wait_until(lambda: self.threads() <= threads + KEPT * len(self.pids), 10, "threads to end")
        wait_until(lambda: self.descriptors() <= descriptors + len(self.pids), 10, "descriptors to be closed")
        assert len(list(self.received.rglob("*.dcm"))) >= stored
        assert [self.process.pid, *_children(self.process.pid)] == self.pids  # nobody had to be replaced
        assert "Traceback" not in self.log.read_text()


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


@pytest.fixture(scope="module")
def receiving(tmp_path_factory: pytest.TempPathFactory) -> Generator[Receiving, None, None]:
    root = tmp_path_factory.mktemp("attacked")
    config, log = root / "sorter.toml", root / "log"
    config.write_text("[receive]\nport = 0\nprocesses = 2\n")
    arguments = [sys.executable, "-m", "sorter", "receive", "-c", str(config), "--root", str(root)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))  # for our own side of it
    with log.open("w") as err, subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=err, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split(" on ")[1].split(",")[0].rpartition(":")[2])
            found = Receiving(process, port, root / "spool" / "received", log)
            found.usual = max(found.store() for _ in range(10))
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def going_on(what: Callable[[], None]) -> Iterator[None]:
    """`what` again and again, in a thread."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                what()
            over.wait(0.05)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)


def connected(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0))


def test_a_thousand_idle_connections(receiving: Receiving) -> None:
    with ExitStack() as stack, receiving.unharmed():
        for number in range(1000):
            stack.enter_context(connected(receiving.port, STRANGER if number % 2 else "127.0.0.1"))
    receiving.settled()


def test_a_thousand_that_connect_and_close(receiving: Receiving) -> None:
    def many() -> None:
        for _ in range(100):
            connected(receiving.port, "127.0.0.1").close()

    with receiving.unharmed():
        for _ in range(9):
            many()
        attack = going_on(many)
        attack.__enter__()
    attack.__exit__(None, None, None)
    receiving.settled()


def test_a_hundred_slow_senders(receiving: Receiving) -> None:
    """Half of them drip their request, half the command of a C-STORE."""
    message = pdu(4, pdv(1, 3, command()))
    with ExitStack() as stack, receiving.unharmed():
        asking = [stack.enter_context(connected(receiving.port, STRANGER)) for _ in range(50)]
        inside = [stack.enter_context(Peer(receiving.port, STRANGER).associate()) for _ in range(50)]
        drips = iter(range(10_000))

        def drip() -> None:
            at = next(drips)
            for sock in asking:
                with contextlib.suppress(OSError):
                    sock.sendall(request()[at % 200 : at % 200 + 1])
            for peer in inside:
                peer.send(message[at % 100 : at % 100 + 1])

        stack.enter_context(going_on(drip))
    receiving.settled()


def test_a_pdu_that_announces_4_gib(receiving: Receiving) -> None:
    with ExitStack() as stack, receiving.unharmed():
        for announced in (struct.pack(">BxI", 1, 0xFFFFFFFF), struct.pack(">BxI", 4, 0xFFFFFFFF)):
            asking = stack.enter_context(Peer(receiving.port))
            asking.send(announced)
            assert asking.pdu()[0] == 7
            inside = stack.enter_context(Peer(receiving.port).associate())
            inside.send(announced)
            assert inside.pdu()[0] == 7
        # and one that keeps to the agreed length, but says that the PDV in it is as long
        inside = stack.enter_context(Peer(receiving.port).associate())
        inside.send(pdu(4, struct.pack(">IBB", 0xFFFFFFFF, 1, 3) + bytes(100)))
        assert inside.pdu()[0] == 7
    receiving.settled()


def test_a_data_set_without_end(receiving: Receiving) -> None:
    """It grows on disk, not in memory, and is gone with its sender."""
    piece = pdu(4, pdv(1, 0, bytes(120_000))) * 8
    sent = 0
    with ExitStack() as stack:
        with receiving.unharmed():
            peer = stack.enter_context(Peer(receiving.port, STRANGER).associate())
            peer.send(pdu(4, pdv(1, 3, command())))

            def go_on() -> None:
                nonlocal sent
                if sent < 200 << 20:  # enough to be seen in memory, little enough for a small disk
                    peer.send(piece)
                    sent += len(piece)

            stack.enter_context(going_on(go_on))
            wait_until(lambda: sent > 10 << 20, 20, "the first 10 MB")
        assert receiving.parts()
    receiving.settled()


def test_hundreds_that_break_the_protocol_fill_no_log(receiving: Receiving) -> None:
    before = len(receiving.log.read_text().splitlines())
    with receiving.unharmed():
        for _ in range(300):
            with Peer(receiving.port, STRANGER) as peer:
                peer.send(pdu(1, request()[6:] + b"\x20\0\xff\xff"))
                assert peer.pdu()[0] == 7
    receiving.settled()
    lines = receiving.log.read_text().splitlines()[before:]
    assert 0 < sum("broke the protocol" in each for each in lines) <= 2 * MOST
    assert len(lines) < 3 * MOST


def test_a_thousand_pipelined_stores(receiving: Receiving) -> None:
    """Sent without waiting for an answer: they stay in the sender's and the kernel's buffers, and each is answered."""
    with ExitStack() as stack:
        with receiving.unharmed():
            peer = stack.enter_context(Peer(receiving.port, STRANGER, timeout=60).associate())
            sender = threading.Thread(target=lambda: peer.send(store() * 1000), daemon=True)
            sender.start()
        assert {peer.status() for _ in range(1000)} == {0}
        sender.join(10)
        peer.release()
    receiving.settled()


def test_whoever_brings_nothing_leaves_nothing(tmp_path: Path) -> None:
    """A line for each of a thousand associations a second would fill the disk within days."""
    with RunningSorter(tmp_path, quiet=0.5) as sorter:
        for how in ("release", "abort") * 3:
            with Peer(sorter.port).associate() as peer:
                peer.send(echo())
                assert peer.status() == 0
                peer.release() if how == "release" else peer.send(ABORT)
        sorter.send(localizer(Plan(seed=1, size=8)))
        assert sorter.wait_event("association")["images"] == 3
        wait_until(lambda: len(sorter.events("published")) == 1)
        assert len(sorter.events("association")) == 1
