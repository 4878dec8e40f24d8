"""What the receiver takes and what it does not: at the last byte of each limit and one beyond, on real sockets."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import ssl
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner

from sorter.cli.look import status_command
from sorter.config import load
from sorter.daemon.receive import settings_without_tls
from sorter.durable import Files, PathLike
from sorter.receive import Known, Receiver, ReceiveSettings, Tls, lobby, open_doors, open_to_everybody
from sorter.receive.crew import Crew
from sorter.receive.tally import Tally
from sorter.spool import Spool
from sorter.testing.peer import (
    C_ECHO,
    C_STORE,
    Peer,
    command,
    echo,
    element,
    item,
    pdu,
    pdv,
    request,
    store,
)
from sorter.testing.waiting import wait_until

SETTINGS = ReceiveSettings()
REJECTED, ACCEPTED, ABORTED = 3, 2, 7


def test_the_limits_are_those_that_the_docs_promise() -> None:
    said = (Path(__file__).parents[2] / "docs" / "receiving.md").read_text()
    minutes = f"{SETTINGS.idle_timeout / 60:g} minutes"
    gone = (lobby.KEEPALIVE[0] + lobby.KEEPALIVE[1] * lobby.KEEPALIVE[2]) / 60
    for promise in (
        f"{SETTINGS.request_timeout:g} s after it connected, TLS handshake included",
        f"when {SETTINGS.waiting_per_address} others of its address, or {SETTINGS.waiting} in all",
        f"more than {SETTINGS.max_request >> 10} KiB before its association",
        f"less than {SETTINGS.least_rate / 1024:g} KiB/s there | after {SETTINGS.stall_timeout:g} s",
        f"is silent between messages | after {minutes}",
        f"after {gone:g} minutes, by TCP keep-alive",
        f"a command above {SETTINGS.max_command >> 10} KiB, an instance above {SETTINGS.max_instance >> 30} GiB",
    ):
        assert promise in said


@contextmanager
def started(receiver: Receiver, doors: Sequence[lobby.Door] = ()) -> Generator[int, None, None]:
    try:
        yield receiver.start(doors)
    finally:
        receiver.stop(5)


@contextmanager
def serving(received: Path, files: Files | None = None, **options: Any) -> Generator[int, None, None]:
    with started(Receiver(ReceiveSettings(port=0, **options), received, files or Files())) as port:
        yield port


@pytest.fixture
def port(tmp_path: Path) -> Generator[int, None, None]:
    with serving(tmp_path / "received") as port:
        yield port


# --- sizes ----------------------------------------------------------------------------------------------------------


def long_request(size: int) -> bytes:
    """An A-ASSOCIATE-RQ of `size` bytes behind its head: items that nobody knows fill it up."""
    body = request()[6:]
    while len(body) < size:
        body += item(0x70, bytes(min(60_000, size - len(body) - 4)))
    assert len(body) == size
    return pdu(1, body)


@pytest.mark.parametrize(("more", "answer"), [(0, ACCEPTED), (1, ABORTED)])
def test_a_request_of_256_kib_is_the_longest(port: int, more: int, answer: int) -> None:
    with Peer(port) as peer:
        peer.send(long_request(SETTINGS.max_request + more))
        assert peer.pdu()[0] == answer


@pytest.mark.parametrize(("more", "answer"), [(0, 4), (1, ABORTED)])
def test_a_pdu_of_the_length_that_was_agreed_is_the_longest(port: int, more: int, answer: int) -> None:
    with Peer(port) as peer:
        peer.send(request())
        kind, accept = peer.pdu()
        assert kind == ACCEPTED
        agreed = int.from_bytes(accept[accept.index(b"\x51\0\0\4") + 4 :][:4], "big")
        assert agreed == SETTINGS.max_pdu
        peer.send(store(bytes(1_000_000), step=agreed - 6 + more))
        assert peer.pdu()[0] == answer


@pytest.mark.parametrize(("more", "answer"), [(0, 4), (2, ABORTED)])
def test_a_command_set_of_64_kib_is_the_longest(port: int, more: int, answer: int) -> None:
    own = command(C_ECHO, 0x0101)
    long = own + element(0x9000, bytes(SETTINGS.max_command - len(own) - 8 + more))
    assert len(long) == SETTINGS.max_command + more
    with Peer(port).associate() as peer:
        pieces = [long[at : at + 16_000] for at in range(0, len(long), 16_000)]
        for at, piece in enumerate(pieces, 1):
            peer.send(pdu(4, pdv(3, 3 if at == len(pieces) else 1, piece)))
        assert peer.pdu()[0] == answer


def test_one_message_is_in_flight_and_the_next_waits_in_the_kernel(tmp_path: Path) -> None:
    class Waiting(Files):
        may_go_on = threading.Event()

        def rename(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
            assert not str(new).endswith(".dcm") or self.may_go_on.wait(30)
            super().rename(old, new, at=at, to=to)

    received, files = tmp_path / "received", Waiting()
    with serving(received, files) as port, Peer(port).associate() as peer:
        peer.send(store() + store() + echo())
        [part] = wait_until(lambda: list(received.rglob("*.part")), what="a part")
        peer.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.pdu()
        assert list(received.rglob("*.part")) == [part]
        peer.socket.settimeout(10)
        files.may_go_on.set()
        assert [peer.status() for _ in range(3)] == [0, 0, 0]
        peer.release()
    assert len(list(received.rglob("*.dcm"))) == 2


# --- time -----------------------------------------------------------------------------------------------------------


class Clock:
    """The lobby's own, which stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        own = types.SimpleNamespace(monotonic=lambda: self.now, sleep=lobby.time.sleep)
        monkeypatch.setattr(lobby, "time", own)


def is_open(peer: Peer) -> bool:
    peer.socket.settimeout(0.3)
    try:
        return peer.socket.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def visitors(receiver: Receiver) -> int:
    """How many have not asked yet."""
    assert receiver._lobby is not None
    return len(receiver._lobby._visitors)


def test_five_seconds_are_for_all_of_it_though_bytes_come_all_the_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    receiver = Receiver(ReceiveSettings(port=0), tmp_path / "received", Files())
    with started(receiver) as port, Peer(port) as peer:
        wait_until(lambda: visitors(receiver) == 1, what="it to be in")
        for byte in request()[:40]:
            peer.send(bytes((byte,)))
            clock.now += 4.9 / 40
        assert is_open(peer)
        clock.now += 0.2
        wait_until(lambda: not is_open(peer), what="the end of it")


def test_the_handshake_of_tls_is_within_the_five_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ca = Clock(monkeypatch), trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.issue_cert("127.0.0.1").configure_cert(ours)
    ca.configure_trust(theirs)
    settings = ReceiveSettings(port=0, tls=Tls(ours, port=0))
    receiver, doors = Receiver(settings, tmp_path / "received", Files()), open_doors(settings)
    port = doors[1].listener.getsockname()[1]
    with started(receiver, doors), Peer(port) as late, Peer(port) as peer:
        wait_until(lambda: visitors(receiver) == 2, what="both to be in")
        clock.now += 4.0
        for each in (late, peer):
            each.socket = theirs.wrap_socket(each.socket, server_hostname="127.0.0.1")
        late.send(request()[:50])
        peer.send(request())
        assert peer.pdu()[0] == ACCEPTED
        assert is_open(late)
        clock.now += 1.1
        wait_until(lambda: not is_open(late), what="the end of it")
        peer.send(echo())
        assert peer.status() == 0


# --- places ---------------------------------------------------------------------------------------------------------


def test_the_places_of_an_address_are_counted_over_all_processes(tmp_path: Path) -> None:
    """Each has a port of its own here, so that it is known who is asked."""
    settings, tally = ReceiveSettings(port=0, per_address=3), Tally(2, 500)
    receivers = [Receiver(settings, tmp_path, Files(), number, tally) for number in (1, 2)]
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(started(each)) for each in receivers)

        def ask(port: int, source: str = "127.0.0.1") -> tuple[int, bytes]:
            peer = stack.enter_context(Peer(port, source))
            peer.send(request())
            return peer.pdu()

        assert [ask(port)[0] for port in (one, one, other)] == [ACCEPTED] * 3
        assert [ask(port) for port in (one, other)] == [(REJECTED, bytes((0, 2, 3, 2)))] * 2
        assert [ask(port, "127.0.0.2")[0] for port in (one, other)] == [ACCEPTED] * 2


def test_without_a_thread_an_association_is_rejected_for_now_and_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with serving(tmp_path / "received", associations=1) as port:
        with monkeypatch.context() as patch:
            patch.setattr(Crew, "begin", fails)
            for _ in range(3):
                with Peer(port) as peer:
                    peer.send(request())
                    assert peer.pdu() == (REJECTED, bytes((0, 2, 3, 1)))
        with Peer(port).associate() as peer:
            peer.release()


@contextmanager
def a_process(root: Path, descriptors: int, *, hard: bool = False) -> Generator[tuple[int, Path], None, None]:
    """The port and the log of `sorter receive` as it starts where a process may open so few files at first."""
    (root / "sorter.toml").write_text("[receive]\nport = 0\nprocesses = 1\n")
    limit = f'ulimit {"-n" if hard else "-Sn"} {descriptors} && exec "$@"'
    command = [sys.executable, "-m", "sorter", "receive", "-c", str(root / "sorter.toml"), "--root", str(root)]
    with (
        (root / "log").open("w") as log,
        subprocess.Popen(["sh", "-c", limit, "sh", *command], stdout=subprocess.PIPE, stderr=log, text=True) as child,
    ):
        try:
            assert child.stdout is not None
            yield int(child.stdout.readline().split(" on ")[1].split(",")[0].rpartition(":")[2]), root / "log"
        finally:
            child.terminate()
        assert child.wait(30) == 0


def test_the_few_descriptors_of_a_usual_process_are_no_limit(tmp_path: Path) -> None:
    """An association has a connection, a file and, for large PDVs, both ends of a pipe."""
    with a_process(tmp_path, 100) as (port, log), contextlib.ExitStack() as stack:
        message = store(bytes(360_000), 120_000)
        scanners = [stack.enter_context(Peer(port, timeout=30)).associate() for _ in range(60)]
        for scanner in scanners:
            scanner.send(message[:300_000])
        wait_until(lambda: len(list(tmp_path.rglob("*.part"))) == 60, 30, "all to be under way")
        for scanner in scanners:
            scanner.send(message[300_000:])
        assert [scanner.status() for scanner in scanners] == [0] * 60
        for scanner in scanners:
            scanner.release()
        assert log.read_text() == ""


def test_too_few_descriptors_are_told_with_what_to_do(tmp_path: Path) -> None:
    with a_process(tmp_path, 1000, hard=True) as (port, log), Peer(port) as scanner:
        scanner.associate()
        assert "may open 1000 files" in log.read_text()
        assert "LimitNOFILE" in log.read_text()


def test_without_a_descriptor_for_a_pipe_large_images_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    received = tmp_path / "received"
    with serving(received) as port, Peer(port).associate() as peer:
        data = os.urandom(1_000_000)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pipe", fails)
            for _ in range(2):
                peer.send(store(data, 120_000))
                assert peer.status() == 0
        peer.send(store(data, 120_000))  # and through a pipe again
        assert peer.status() == 0
        peer.release()
    assert [each.read_bytes()[-len(data) :] == data for each in received.rglob("*.dcm")] == [True] * 3
    assert caplog.text == ""


# --- who may come in ------------------------------------------------------------------------------------------------


def test_a_refused_scanner_is_admitted_by_what_status_says_to_paste(tmp_path: Path) -> None:
    spool, config = Spool(tmp_path / "spool", Files()), tmp_path / "sorter.toml"
    spool.create()
    config.write_text('[receive]\nport = 0\n[[senders]]\nae = "PRISMA"\naddress = "127.0.0.1"\n')

    def ask(calling: bytes, times: int) -> list[int]:
        answers = []
        with started(Receiver(settings_without_tls(load(config, tmp_path)), spool.received, Files())) as port:
            for _ in range(times):
                with Peer(port) as peer:
                    peer.send(request(calling=calling))
                    answers.append(peer.pdu()[0])
        return answers

    assert ask(b"PRISMA", 1) == [ACCEPTED]
    assert ask(b"GE750", 3) == [REJECTED] * 3
    told = CliRunner().invoke(status_command, ["-c", str(config), "--root", str(tmp_path)]).output
    assert "refused 3 × GE750 from 127.0.0.1 calling SORTER: unknown sender" in told
    said = json.loads(CliRunner().invoke(status_command, ["-c", str(config), "--root", str(tmp_path), "--json"]).output)
    [refused] = said["refused"]
    config.write_text(config.read_text() + refused["toml"] + "\n")
    assert ask(b"GE750", 1) == [ACCEPTED]
    assert ask(b"PRISMA", 1) == [ACCEPTED]
    assert ask(b"SKYRA", 1) == [REJECTED]


@pytest.mark.parametrize("everywhere", ["0.0.0.0/0", "::/0"])
def test_a_sender_that_is_everywhere_is_everybody(everywhere: str) -> None:
    open_wide = ReceiveSettings(host="0.0.0.0", strangers=False, senders=(Known(None, everywhere),))
    assert open_to_everybody(open_wide)
    assert not open_to_everybody(ReceiveSettings(host="0.0.0.0", strangers=False, senders=(Known("A", everywhere),)))


def test_a_store_is_a_message_of_its_own(port: int) -> None:
    """A command in the middle of a data set ends the association: there is no second message before the first ends."""
    with Peer(port).associate() as peer:
        peer.send(pdu(4, pdv(1, 3, command(C_STORE))) + pdu(4, pdv(1, 0, bytes(100))) + echo())
        kind, body = peer.pdu()
        assert (kind, struct.unpack("BB", body[2:4])[0]) == (ABORTED, 2)
