"""Who may come in: the decider, the places, what is kept of refusals, and the door of a real receiver."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sorter.cli.look import status_command
from sorter.durable import Buffer, Files
from sorter.receive import Known, Receiver, ReceiveSettings, gate
from sorter.receive.gate import Caller, Gate, Refusal, is_loopback, plain_address
from sorter.receive.refusals import DOOR, MANY, Open, Refusals, Refused, told
from sorter.receive.server import open_to_everybody
from sorter.receive.tally import Tally
from sorter.testing.waiting import wait_until

PRISMA = Known("PRISMA", "10.20.1.11/32")
WORKSTATIONS = Known(None, "10.20.7.0/24")
ANYWHERE = Known("ROAMER", None)
SIX = Known(None, "2001:db8::/64")


def a_gate(*senders: Known, **options: Any) -> Gate:
    return Gate(ReceiveSettings(senders=senders, **{"strangers": not senders, **options}))


# --- the decider ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("senders", "address", "refusal"),
    [
        ((), "192.0.2.1", None),
        ((PRISMA, WORKSTATIONS), "10.20.1.11", None),
        ((PRISMA, WORKSTATIONS), "10.20.7.200", None),
        ((PRISMA, WORKSTATIONS), "10.20.1.12", gate.UNKNOWN_ADDRESS),
        ((PRISMA,), "2001:db8::1", gate.UNKNOWN_ADDRESS),
        ((SIX,), "2001:db8::1", None),
        ((SIX,), "10.20.1.11", gate.UNKNOWN_ADDRESS),
        ((PRISMA, ANYWHERE), "192.0.2.1", None),  # whoever it is has to say so first
    ],
)
def test_addresses_are_decided_at_the_door(senders: tuple[Known, ...], address: str, refusal: Refusal | None) -> None:
    assert a_gate(*senders).at_the_door(address) is refusal
    assert a_gate(*senders, strangers=True).at_the_door(address) is None


@pytest.mark.parametrize(
    ("address", "calling", "refusal"),
    [
        ("10.20.1.11", "PRISMA", None),
        ("10.20.1.11", "prisma", gate.UNKNOWN_SENDER),
        ("10.20.1.11", "SKYRA", gate.UNKNOWN_SENDER),
        ("10.20.7.3", "PRISMA", None),
        ("10.20.7.3", "", None),
        ("10.20.1.12", "PRISMA", gate.UNKNOWN_SENDER),
        ("192.0.2.1", "ROAMER", None),
        ("192.0.2.1", "PRISMA", gate.UNKNOWN_SENDER),
    ],
)
def test_titles_are_decided_at_the_request(address: str, calling: str, refusal: Refusal | None) -> None:
    asked = a_gate(PRISMA, WORKSTATIONS, ANYWHERE)
    assert asked.at_the_request(Caller(address, calling, "SORTER"), 0, 0) is refusal
    if refusal is not None:
        assert refusal.rejection == (1, 1, 3)


def test_the_called_title_is_checked_where_that_is_configured() -> None:
    own = a_gate(called=frozenset({"SORTER", "MEMORY"}))
    assert own.at_the_request(Caller("10.1.1.1", "A", "MEMORY"), 0, 0) is None
    refusal = own.at_the_request(Caller("10.1.1.1", "A", "OTHER"), 0, 0)
    assert refusal is gate.OTHER_CALLED
    assert refusal.rejection == (1, 1, 7)
    assert a_gate().at_the_request(Caller("10.1.1.1", "A", "OTHER"), 0, 0) is None


def test_places_are_counted_and_the_last_are_for_those_who_are_listed() -> None:
    limits = {"associations": 10, "per_address": 4, "reserve": 3, "strangers": True}
    listed, stranger = Caller("10.20.1.11", "PRISMA"), Caller("192.0.2.1", "X")
    asked = a_gate(PRISMA, **limits)
    assert asked.at_the_request(stranger, 3, 6) is None
    assert asked.at_the_request(stranger, 4, 6) is gate.ADDRESS_FULL
    assert asked.at_the_request(stranger, 0, 7) is gate.RESERVED
    assert asked.at_the_request(listed, 3, 9) is None
    assert asked.at_the_request(listed, 3, 10) is gate.FULL
    assert a_gate(**limits).at_the_request(stranger, 0, 9) is None  # nobody is listed, so nothing is reserved
    for refusal in (gate.ADDRESS_FULL, gate.RESERVED, gate.FULL):
        assert refusal.rejection == (2, 3, 2)


@pytest.mark.parametrize(
    ("seen", "plain"),
    [("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("fe80::1%eth0", "fe80::1"), ("", "")],
)
def test_addresses_are_written_as_people_do(seen: str, plain: str) -> None:
    assert plain_address(seen) == plain


def test_who_is_open_to_everybody() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "scanhost")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert open_to_everybody(ReceiveSettings(host="0.0.0.0"))
    assert not open_to_everybody(ReceiveSettings(host="127.0.0.1"))
    assert not open_to_everybody(ReceiveSettings(host="0.0.0.0", strangers=False, senders=(PRISMA,)))


# --- places ---------------------------------------------------------------------------------------------------------


def test_places_are_shared_by_workers_and_freed_by_a_successor() -> None:
    tally = Tally(3, 4)
    rows = [tally.row(number) for number in range(3)]
    places = [row.take("10.0.0.1") for row in rows] + [rows[1].take("10.0.0.2")]
    assert rows[2].count("10.0.0.1") == (3, 4)
    assert rows[0].count("10.0.0.2") == (1, 4)
    assert places[1] is not None
    rows[1].give_back(places[1])
    assert rows[0].count("10.0.0.1") == (2, 3)
    rows[1].clear()
    assert rows[0].count("10.0.0.2") == (0, 2)
    assert [rows[1].take("10.0.0.3") is not None for _ in range(5)] == [True] * 4 + [False]


def test_a_host_with_many_addresses_of_ipv6_is_one() -> None:
    row = Tally(1, 10).row(0)
    row.take("2001:db8::1")
    row.take("2001:db8::2")
    assert row.count("2001:db8::3") == (2, 2)
    assert row.count("2001:db8:0:1::3") == (0, 2)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def received(tmp_path: Path) -> Path:
    (tmp_path / "received" / "w1").mkdir(parents=True)
    (tmp_path / "received" / "w2").mkdir()
    return tmp_path / "received"


def test_refusals_are_counted_put_together_and_kept_over_restarts(received: Path, files: Files) -> None:
    ge = Caller("10.1.2.3", "GE750", "SORTER")
    for worker, times in (("w1", 1), ("w2", 2), ("w1", 4)):
        refusals = Refusals(received / worker, files)
        refusals.begin(Open("0.0.0.0", 104, True, time.time()))
        for _ in range(times):
            refusals.note(ge, gate.UNKNOWN_SENDER)
        refusals.note(Caller("10.9.9.9"), gate.SILENT)
        refusals.close()
    door = told(received, files)
    assert sorted(map(str, door.refused)) == [
        "refused 3 × 10.9.9.9: asked for no association in time",
        "refused 7 × GE750 from 10.1.2.3 calling SORTER: unknown sender",
    ]
    assert door.open is not None
    assert door.open.everybody


def test_a_refusal_is_forgotten_after_a_day(received: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = Refusals(received / "w1", files)
    refusals.note(Caller("10.1.2.3", "OLD"), gate.UNKNOWN_SENDER)
    refusals.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_390)
    assert len(told(received, files).refused) == 1
    monkeypatch.setattr(time, "time", lambda: now + 86_410)
    assert told(received, files).refused == []
    refusals.note(Caller("10.1.2.3", "NEW"), gate.UNKNOWN_SENDER)
    refusals.close()
    assert "OLD" not in (received / "w1" / DOOR).read_text()


def test_a_flood_of_refusals_fills_neither_memory_nor_disk(
    received: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    writes = []

    class Counting(Files):
        def write(self, fd: int, data: Buffer) -> int:
            writes.append(len(data))
            return super().write(fd, data)

    refusals = Refusals(received / "w1", Counting())
    refusals.note(Caller("10.1.2.3", "GE750", "SORTER"), gate.UNKNOWN_SENDER)
    for number in range(100_000):
        caller = Caller(f"10.66.{number % 40}.{number % 7}", f"T{number}", "SORTER")
        refusals.note(caller, gate.UNKNOWN_SENDER)
        if number % 100 == 0:
            refusals.tick()
    refusals.close()
    assert sum(writes) < 1_000_000
    assert (received / "w1" / DOOR).stat().st_size < 100_000
    door = told(received, files)
    assert sum(each.count for each in door.refused) == 100_001
    assert len(door.refused) < 300
    assert "refused 1 × GE750 from 10.1.2.3 calling SORTER: unknown sender" in map(str, door.refused)
    assert any(each.address == MANY for each in door.refused)
    assert len(caplog.records) < 1000


def test_titles_of_one_address_are_not_told_apart_for_ever(received: Path, files: Files) -> None:
    refusals = Refusals(received / "w1", files)
    for number in range(1000):
        refusals.note(Caller("10.1.2.3", f"T{number}", "SORTER"), gate.UNKNOWN_SENDER)
    refusals.close()
    kinds = told(received, files).refused
    assert len(kinds) == 17
    assert str(max(kinds, key=lambda each: each.count)) == (
        "refused 984 × callers of many titles from 10.1.2.3: unknown sender"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"refused": 5, "open": null}', '{"refused": [{"x": 1}]}', "\0" * 99])
def test_a_torn_file_is_as_none(received: Path, files: Files, text: str) -> None:
    (received / "w1" / DOOR).write_text(text)
    assert told(received, files).refused == []
    refusals = Refusals(received / "w1", files)
    refusals.begin(Open("127.0.0.1", 1, False, 0.0))
    assert told(received, files).open is not None


def test_a_full_disk_is_waited_out(received: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Files):
        broken = True

        def write(self, fd: int, data: Buffer) -> int:
            if self.broken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(fd, data)

    files = Full()
    refusals = Refusals(received / "w1", files)
    refusals.begin(Open("127.0.0.1", 1, False, 0.0))
    refusals.note(Caller("10.1.2.3"), gate.SILENT)
    refusals.tick()
    files.broken = False
    now = time.monotonic()
    refusals.tick()
    assert told(received, files).refused == []  # not again at once
    monkeypatch.setattr(time, "monotonic", lambda: now + 3.1)
    refusals.tick()
    assert len(told(received, files).refused) == 1


# --- the command ----------------------------------------------------------------------------------------------------


def status(root: Path, *arguments: str, config: str = "") -> str:
    (root / "sorter.toml").write_text(config)
    ended = CliRunner().invoke(status_command, ["-c", str(root / "sorter.toml"), "--root", str(root), *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.fixture
def spool(tmp_path: Path, files: Files) -> Path:
    from sorter.spool import Spool

    Spool(tmp_path / "spool", files).create()
    (tmp_path / "spool" / "received" / "w1").mkdir()
    return tmp_path / "spool"


def test_status_tells_who_was_refused_and_what_to_write(tmp_path: Path, spool: Path, files: Files) -> None:
    refusals = Refusals(spool / "received" / "w1", files)
    refusals.begin(Open("0.0.0.0", 104, True, time.time()))
    for caller, refusal in [
        (Caller("10.1.2.3", "GE750", "SORTER"), gate.UNKNOWN_SENDER),
        (Caller("10.1.2.4", '[b]"x" = [y]', "[red]"), gate.UNKNOWN_SENDER),
        (Caller("10.1.2.5"), gate.UNKNOWN_ADDRESS),
        (Caller("10.1.2.6", "A", "MEMORY"), gate.OTHER_CALLED),
        (Caller("10.1.2.7", "A", "SORTER"), gate.ADDRESS_FULL),
        (Caller("10.1.2.8", "A", "SORTER"), gate.FULL),
        (Caller("10.1.2.9"), gate.SILENT),
    ]:
        refusals.note(caller, refusal)
    refusals.close()
    said = status(tmp_path)
    assert "WARNING: whoever reaches 0.0.0.0 port 104 may send images here; list your scanners" in said
    assert "refused 1 × GE750 from 10.1.2.3 calling SORTER: unknown sender (last 20" in said
    assert '        [[senders]]\n        ae = "GE750"\n        address = "10.1.2.3"\n' in said
    assert 'refused 1 × [b]"x" = [y] from 10.1.2.4 calling [red]: unknown sender' in said

    said_json = json.loads(status(tmp_path, "--json"))
    assert said_json["open_to_everybody"] is True
    by_address = {each["address"]: each for each in said_json["refused"]}
    tables = {address: each["toml"] for address, each in by_address.items()}
    assert tables["10.1.2.5"] == '[[senders]]\naddress = "10.1.2.5"'
    assert tables["10.1.2.6"] == '[receive]\ncalled = ["MEMORY"]'
    assert tables["10.1.2.7"] == "[receive]\nper_address = 256"
    assert tables["10.1.2.8"] == "[receive]\nassociations = 1000"
    assert tables["10.1.2.9"] == ""
    for toml in tables.values():
        status(tmp_path, config=toml)  # it can be pasted as it is


def test_status_warns_of_nothing_where_there_is_nothing(tmp_path: Path, spool: Path, files: Files) -> None:
    Refusals(spool / "received" / "w1", files).begin(Open("127.0.0.1", 104, False, time.time()))
    said = status(tmp_path)
    assert "WARNING" not in said
    assert "refused" not in said
    assert json.loads(status(tmp_path, "--json"))["refused"] == []


# --- a real door ----------------------------------------------------------------------------------------------------


def a_request(calling: bytes = b"SCANNER", called: bytes = b"SORTER") -> bytes:
    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(value)) + value

    context = bytes((1, 0, 0, 0)) + item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2")
    body = b"\0\1\0\0" + called.ljust(16) + calling.ljust(16) + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    body += item(0x20, context) + item(0x50, item(0x51, struct.pack(">I", 16384)))
    return struct.pack(">BxI", 1, len(body)) + body


@contextmanager
def serving(received: Path, **options: Any) -> Generator[int, None, None]:
    receiver = Receiver(ReceiveSettings(port=0, **options), received, Files())
    port = receiver.start()
    try:
        yield port
    finally:
        receiver.stop(5)


def ask(port: int, first: bytes, source: str = "127.0.0.1") -> tuple[bytes, socket.socket]:
    """The whole first PDU of the answer, b"" where the connection is closed, and the connection."""
    sock = socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0))
    with contextlib.suppress(OSError):
        sock.sendall(first)
    with contextlib.suppress(ConnectionResetError):
        head = sock.recv(6, socket.MSG_WAITALL)
        if head:
            return head + sock.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL), sock
    return b"", sock


def rejection(*values: int) -> bytes:
    return bytes((3, 0, 0, 0, 0, 4, 0, *values))


def abort(reason: int) -> bytes:
    return bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, reason))


def test_only_listed_senders_come_in_and_each_refusal_has_its_answer(received: Path, files: Files) -> None:
    senders = (Known("PRISMA", "127.0.0.1/32"), Known(None, "127.0.0.2/32"))
    options = {"senders": senders, "strangers": False, "called": frozenset({"SORTER"})}
    with serving(received, **options) as port, contextlib.ExitStack() as stack:

        def answer(calling: bytes, called: bytes, source: str) -> bytes:
            answer, sock = ask(port, a_request(calling, called), source)
            stack.enter_context(sock)
            return answer

        assert answer(b"PRISMA", b"SORTER", "127.0.0.1")[0] == 2
        assert answer(b" PRISMA", b"SORTER", "127.0.0.1")[0] == 2  # spaces before and behind mean nothing
        assert answer(b"ANY", b"SORTER", "127.0.0.2")[0] == 2
        assert answer(b"SKYRA", b"SORTER", "127.0.0.1") == rejection(1, 1, 3)
        assert answer(b"PRISMA", b"OTHER", "127.0.0.1") == rejection(1, 1, 7)
        assert answer(b"PRISMA", b"SORTER", "127.0.0.3") == b""
    assert sorted(map(str, told(received, files).refused)) == [
        "refused 1 × 127.0.0.3: unknown address",
        "refused 1 × PRISMA from 127.0.0.1 calling OTHER: calls another AE title",
        "refused 1 × SKYRA from 127.0.0.1 calling SORTER: unknown sender",
    ]


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        (a_request(b"SKYRA"), rejection(1, 1, 3)),
        (b"GET / HTTP/1.1\r\n", abort(1)),
        (struct.pack(">BxI", 1, 1 << 30), abort(6)),
    ],
    ids=["a stranger", "no DICOM", "a request of 1 GiB"],
)
def test_whoever_is_refused_can_read_why_though_it_sends_on(received: Path, first: bytes, answer: bytes) -> None:
    with serving(received, senders=(Known("PRISMA", None),), strangers=False) as port:
        for _ in range(3):
            said, sock = ask(port, first + bytes(100_000))
            with sock:
                assert said == answer
                sock.sendall(bytes(100_000))  # not reset
                assert sock.recv(1) == b""
                sock.shutdown(socket.SHUT_WR)
        accept, sock = ask(port, a_request(b"PRISMA"))
        sock.close()
        assert accept[0] == 2


def test_a_refused_peer_that_goes_on_and_on_is_cut(received: Path, files: Files) -> None:
    options = {"senders": (Known("PRISMA", None),), "strangers": False, "waiting": 3}
    with serving(received, **options) as port, contextlib.ExitStack() as stack:

        def refused() -> socket.socket:
            said, sock = ask(port, a_request(b"SKYRA"))
            assert said == rejection(1, 1, 3)
            return stack.enter_context(sock)

        flood = refused()
        with pytest.raises(ConnectionError):
            flood.sendall(bytes(64 << 20))
        waiting = [refused() for _ in range(4)]  # one more than there is room for

        def is_cut(sock: socket.socket) -> bool:
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"x")
                return False
            return True

        wait_until(lambda: is_cut(waiting[0]), what="the oldest to make room")
        wait_until(lambda: all(map(is_cut, waiting)), what="the others to be cut")


def test_an_address_has_so_many_places_and_strangers_never_the_last(received: Path) -> None:
    options = {"senders": (Known(None, "127.0.0.1/32"),), "associations": 5, "per_address": 3, "reserve": 2}
    with serving(received, **options) as port, contextlib.ExitStack() as stack:

        def answer(source: str) -> bytes:
            answer, sock = ask(port, a_request(), source)
            stack.enter_context(sock)
            return answer

        assert [answer("127.0.0.2")[0] for _ in range(2)] == [2, 2]
        assert answer("127.0.0.1")[0] == 2
        assert answer("127.0.0.3") == rejection(2, 3, 2)  # the last two are reserved
        assert [answer("127.0.0.1")[0] for _ in range(2)] == [2, 2]
        assert answer("127.0.0.1") == rejection(2, 3, 2)


def is_over(sock: socket.socket) -> bool:
    """Whether the peer, which never sends anything, has closed the connection."""
    return bool(select.select([sock], [], [], 0)[0])


def test_idle_connections_of_strangers_never_crowd_out_a_known_address(received: Path, files: Files) -> None:
    known = (Known(None, "127.0.0.1/32"),)
    options = {"senders": known, "waiting": 12, "waiting_per_address": 6, "waiting_reserve": 4, "request_timeout": 30.0}
    with serving(received, **options) as port, contextlib.ExitStack() as stack:

        def connect(source: str) -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0)))

        patient = [connect("127.0.0.1") for _ in range(4)]
        strangers = [connect(f"127.0.0.{10 + number % 8}") for number in range(40)]
        wait_until(lambda: sum(map(is_over, strangers)) == 40 - 8, what="strangers to be turned away")
        for sock in patient:
            sock.sendall(a_request())
            assert sock.recv(1) == b"\2"
    crowded = [each for each in told(received, files).refused if each.reason == gate.CROWDED_OUT.reason]
    assert sum(each.count for each in crowded) == 40 - 8
    assert all(each.address.startswith("127.0.0.1") and each.address != "127.0.0.1" for each in crowded)


def test_the_oldest_of_an_address_goes_when_it_has_too_many(received: Path) -> None:
    with serving(received, waiting_per_address=3, request_timeout=30.0) as port, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(4)]
        assert idle[0].recv(1) == b""
        idle[1].sendall(a_request())
        assert idle[1].recv(1) == b"\2"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"", gate.SILENT),
        (a_request()[:50], gate.SILENT),
        (b"GET / HTTP/1.1\r\n\r\n", gate.NOT_DICOM),
        (bytes.fromhex("16030100f8010000f40303"), gate.SPEAKS_TLS),
    ],
)
def test_who_asks_for_nothing_is_told_too(received: Path, files: Files, first: bytes, reason: Refusal) -> None:
    with serving(received, request_timeout=0.2) as port:
        answer, sock = ask(port, first)
        sock.close()
    assert (answer[:1] == b"\7") == (reason is not gate.SILENT)
    assert [each.reason for each in told(received, files).refused] == [reason.reason]


def test_a_connection_that_goes_by_itself_is_no_refusal(received: Path, files: Files) -> None:
    with serving(received) as port:
        for _ in range(20):
            socket.create_connection(("127.0.0.1", port), 10).close()
        answer, sock = ask(port, a_request())
        sock.close()
        assert answer[0] == 2
    assert told(received, files).refused == []


def test_the_kernel_looks_after_the_peer(received: Path) -> None:
    found: list[int] = []

    class Looking(Receiver):
        def _begin(self, sock: socket.socket, *rest: Any) -> Any:
            options = (socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
            found.extend(sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
            found.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            return super()._begin(sock, *rest)

    receiver = Looking(ReceiveSettings(port=0), received, Files())
    port = receiver.start()
    answer, sock = ask(port, a_request())
    sock.close()
    receiver.stop(5)
    assert answer[0] == 2
    assert found == [1, 60, 60_000, 1]


@pytest.mark.parametrize("refused", [Refused("", "", "10.0.0.1", "x", 1234), Refused(MANY, MANY, MANY, "x", 2)])
def test_a_refusal_reads_as_a_sentence(refused: Refused) -> None:
    assert str(refused) in ("refused 1,234 × 10.0.0.1: x", "refused 2 × callers of many titles from many addresses: x")


def test_a_drip_inside_a_message_is_ended_and_a_pause_between_messages_is_not(received: Path) -> None:
    with serving(received, stall_timeout=0.6, least_rate=100.0) as port:
        accept, sock = ask(port, a_request())
        assert accept[0] == 2
        with sock:
            echo = bytes.fromhex("0000000004000000380000000000020012000000") + b"1.2.840.10008.1.1\0"
            echo += bytes.fromhex("00000001020000003000" + "00001001020000000700" + "00000008020000000101")
            message = struct.pack(">BxIIBB", 4, len(echo) + 6, len(echo) + 2, 1, 3) + echo
            sock.settimeout(1.0)
            with pytest.raises(TimeoutError):  # longer than `stall_timeout` of silence, and nobody minds
                sock.recv(1)
            sock.settimeout(10)
            sock.sendall(message)
            assert sock.recv(1) == b"\4"
            drip = iter(message + message)
            said = sock.recv(65536)

            def dripped() -> bool:
                with contextlib.suppress(OSError):
                    sock.sendall(bytes((next(drip),)))
                sock.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    return sock.recv(1) in (b"\7", b"")
                return False

            assert said
            wait_until(dripped, 5, "the end of a sender that drips")


# --- as a process ---------------------------------------------------------------------------------------------------


LISTED = "[receive]\nport = 0\nprocesses = 2\n[[senders]]\naddress = '{}'\n"


def test_senders_are_read_again_at_sighup_and_associations_go_on(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "sorter.toml"
    path.write_text(LISTED.format("127.0.0.1"))
    command = [sys.executable, "-m", "sorter", "receive", "-c", str(path), "--root", str(tmp_path)]
    log = tmp_path / "log"
    with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline().split(" on ")[1].split(",")[0].rpartition(":")[2])
            doors = [tmp_path / "spool" / "received" / worker / DOOR for worker in ("w1", "w2")]

            def answers(source: str) -> bool:
                answer, sock = ask(port, a_request(), source)
                sock.close()
                return answer[:1] == b"\2"

            def opened() -> list[float]:
                """When each process took up what it heeds."""
                return [float(json.loads(each.read_text())["open"]["since"]) for each in doors]

            assert answers("127.0.0.1")
            assert not answers("127.0.0.2")
            _, old = ask(port, a_request())

            at_first = opened()
            path.write_text("[[senders]]\naddress = 'nonsense'\n")
            child.send_signal(signal.SIGHUP)
            wait_until(lambda: "stays as it was" in log.read_text(), 60, "the fault to be said")
            assert "sorter.toml:2: senders.0.address" in log.read_text()
            assert answers("127.0.0.1")
            assert opened() == at_first

            path.write_text(LISTED.format("127.0.0.2"))
            child.send_signal(signal.SIGHUP)
            wait_until(lambda: all(map(float.__gt__, opened(), at_first)), 60, "both processes to heed it")
            assert not any(answers("127.0.0.1") for _ in range(8))
            assert all(answers("127.0.0.2") for _ in range(8))
            with old:
                old.sendall(bytes.fromhex("050000000004" + "00000000"))
                assert old.recv(1) == b"\6"
        finally:
            child.terminate()
        assert child.wait(60) == 0
    found = {str(each).partition("×")[2] for each in told(tmp_path / "spool" / "received", files).refused}
    assert found == {" 127.0.0.1: unknown address", " 127.0.0.2: unknown address"}
