"""A hundred thousand conversations that are nearly right, with a receiver of two processes as it runs.

What holds after each batch of them: no process has died or complained, nobody waited in vain, nothing lies anywhere but
whole instances, the receiver is as large as before, and a scanner is served. That these checks see what they are for is
shown by receivers that were made worse on purpose.

The seed is told at the end and wherever a case fails: SORTER_FUZZ_SEED=… repeats a run, SORTER_FUZZ_CASE=… one case of
it. With SORTER_RESULTS=FOLDER the page of the long run is written there as fuzz.md.
"""

from __future__ import annotations

import datetime
import os
import re
import secrets
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from hostile.conversations import ESCAPED, NO_TLS, PLAIN, TLS, Case, a_case

from sorter.receive.arrivals import ARRIVALS
from sorter.receive.crew import KEPT
from sorter.receive.refusals import DOOR
from sorter.receive.space import SPACE
from sorter.testing.peer import Peer, store
from sorter.testing.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
FEW, MANY = 2500, 100_000
BATCH = 500
PLAYERS = 8  # cases at once
HANG = 5.0  # seconds
MOST_GROWTH = 100e6  # bytes
OURS = re.compile(r"w[12]-[0-9a-f]+-[0-9a-f]+-[0-9]+\.dcm")
STATUS_OF_STORE = re.compile(
    rb"\x00\x00\x00\x01\x02\x00\x00\x00\x01\x80.{0,40}\x00\x00\x00\x09\x02\x00\x00\x00(..)", re.DOTALL
)

RECEIVE = """{mutant}
import logging, ssl, sys
from pathlib import Path
from sorter.durable import Files
from sorter.receive import Job, ReceiveSettings, Tls, run
logging.basicConfig(level="ERROR")
spool = Path(sys.argv[1])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
settings = ReceiveSettings(
    port=0, tls=Tls(context, port=0), commitments=spool / "commitments", max_instance=1 << 18,
    stall_timeout=0.25, idle_timeout=0.25, request_timeout=0.25,  # what it waits for never comes
)
run(Job(settings, spool / "received", Files()), lambda *ports: print(*ports, flush=True))
"""


# --- who speaks -----------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """How cases ended, as their senders saw it."""

    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def add(self, answer: bytes, seconds: float) -> None:
        first = {2: "accepted", 3: "rejected", 7: "aborted at once", 21: "alert of TLS"}
        self.answers[first.get(answer[0], "else") if answer else "cut without a word"] += 1
        for status in STATUS_OF_STORE.findall(answer):
            self.answers[f"C-STORE {int.from_bytes(status, 'little'):04X}"] += 1
        self.slowest = max(self.slowest, seconds)


def played(ports: dict[str, int], case: Case, trusting: ssl.SSLContext) -> bytes:
    """Say it all, and read to the end. TimeoutError where the receiver does not end the conversation in time."""
    heard = bytearray()
    with Peer(ports[case.door], timeout=HANG) as peer:
        with _whatever_becomes_of_it():
            _say(peer, case, trusting)
        with _whatever_becomes_of_it():
            while case.end != "breaks" and (more := peer.socket.recv(1 << 16)):
                heard += more
    return bytes(heard)


def _say(peer: Peer, case: Case, trusting: ssl.SSLContext) -> None:
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if case.door == TLS:
        peer.socket = trusting.wrap_socket(peer.socket)
    for piece in case.pieces:
        peer.send(piece)
    if case.end == "breaks":
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif case.end == "closes its side":
        socket.socket.shutdown(peer.socket, socket.SHUT_WR)  # that of TLS would be deaf from then on


@contextmanager
def _whatever_becomes_of_it() -> Iterator[None]:
    """The receiver may end it at any time, but must not let anybody wait."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError:
        pass


# --- who listens, and what must hold --------------------------------------------------------------------------------


class Fuzzed:
    """A receiver that runs, how it was before, and what has been heard of it."""

    def __init__(self, process: subprocess.Popen[str], root: Path) -> None:
        assert process.stdout is not None
        plain, tls = map(int, process.stdout.readline().split())
        self.ports = {PLAIN: plain, TLS: tls, NO_TLS: tls}
        self.root, self.received = root, root / "deep" / "spool" / "received"
        self._process, self._parent = process, process.pid
        self.pids = self._running()
        self.heard, self.stored, self.asked = Heard(), 0, 0
        self._serves()
        self._descriptors, self._threads, self._memory = self._count("fd"), self._count("task"), 0

    def unharmed(self) -> None:
        """Nothing is left of what was said, nothing lies anywhere else, and a scanner is served."""
        self._serves()
        said = (self.root / "log").read_text()
        assert not said, said[-2000:]
        assert self._running() == self.pids, "a worker had to be replaced"
        wait_until(lambda: not list(self.root.rglob("*.part")), HANG, "parts to go")
        wait_until(lambda: self._count("task") <= self._threads + KEPT * len(self.pids), HANG, "threads to end")
        most = self._descriptors + (2 * KEPT + 1) * len(self.pids)  # each thread keeps its pipe
        wait_until(lambda: self._count("fd") <= most, HANG, "descriptors to be closed")
        self._nothing_else_lies_there()
        self._each_image_is_whole()
        self._memory = self._memory or self._pss()  # once all that is made once is there
        assert self.growth() < MOST_GROWTH, f"{self.growth() / 1e6:+.0f} MB of memory"

    def growth(self) -> int:
        """Bytes of memory since the first batch."""
        return self._pss() - self._memory if self._memory else 0

    def _serves(self) -> None:
        with Peer(self.ports[PLAIN]) as scanner:
            scanner.associate()
            scanner.send(store())
            assert scanner.status() == 0
            scanner.release()

    def _nothing_else_lies_there(self) -> None:
        assert not (Path("/tmp") / ESCAPED).exists()
        assert sorted(os.listdir(self.root)) == ["deep", "log", "papers.pem", "tmp", "work"]
        assert sorted(os.listdir(self.received.parent)) == ["commitments", "received"]
        assert [*os.listdir(self.root / "tmp"), *os.listdir(self.root / "work")] == []
        assert os.listdir(self.root / "deep") == ["spool"]
        names = [path.name for path in self.received.rglob("*") if path.is_file()]
        assert {name for name in names if not OURS.fullmatch(name)} <= {ARRIVALS, DOOR, SPACE}
        kept = list((self.received.parent / "commitments").iterdir())
        assert all(re.fullmatch(r"[0-9a-f.-]+\.json", each.name) for each in kept if each.is_file())

    def _each_image_is_whole(self) -> None:
        """As many as are noted. They are removed: the disk is not what is tried here."""
        images = list(self.received.rglob("*.dcm"))
        assert all(path.read_bytes()[128:132] == b"DICM" for path in images)
        for path in images:
            path.unlink()
        self.stored += len(images)
        noted = sum(path.read_text().count('"event":"stored"') for path in self.received.rglob(ARRIVALS))
        assert noted == self.stored

    def _running(self) -> list[int]:
        children = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text().split()
        return [self._parent, *map(int, children)]

    def _count(self, what: str) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/{what}")) for pid in self.pids)

    def _pss(self) -> int:
        found = 0
        for pid in self.pids:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        return found


@contextmanager
def receiving(root: Path, mutant: str = "") -> Generator[Fuzzed, None, None]:
    for folder in ("deep/spool", "tmp", "work"):
        (root / folder).mkdir(parents=True)
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(root / "papers.pem")
    command = [sys.executable, "-c", RECEIVE.format(mutant=mutant), root / "deep" / "spool", root / "papers.pem"]
    surroundings = {**os.environ, "TMPDIR": str(root / "tmp"), "PYTHONPATH": str(ROOT)}
    with (
        (root / "log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=root / "work", env=surroundings
        ) as process,
    ):
        try:
            yield Fuzzed(process, root)
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def fuzz(fuzzed: Fuzzed, seed: int, numbers: range) -> None:
    """Play these cases, some at a time. AssertionError names the seed, and the case or the batch of cases."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    def play(number: int) -> None:
        case, began = a_case(seed, number), time.monotonic()
        try:
            answer = played(fuzzed.ports, case, trusting)
        except (TimeoutError, ConnectionRefusedError) as error:
            raise AssertionError(f"seed {seed}, case {number}: {error} ({HANG:g} s are given)") from error
        if case.end != "breaks":
            fuzzed.heard.add(answer, time.monotonic() - began)

    with ThreadPoolExecutor(PLAYERS) as players:
        for batch in _batches(numbers):
            list(players.map(play, batch))
            try:
                fuzzed.unharmed()
            except (AssertionError, OSError, EOFError) as error:
                raise AssertionError(f"seed {seed}, cases {batch[0]} to {batch[-1]}: {error!r}") from error


def _batches(numbers: range) -> list[range]:
    return [numbers[at : at + BATCH] for at in range(0, len(numbers), BATCH)]


# --- the runs -------------------------------------------------------------------------------------------------------


def a_run(cases: int, root: Path) -> str:
    """The row of a table that tells of it."""
    seed = int(os.environ.get("SORTER_FUZZ_SEED") or secrets.randbelow(1 << 32))
    only = os.environ.get("SORTER_FUZZ_CASE")
    numbers = range(int(only), int(only) + 1) if only else range(cases)
    began = time.monotonic()
    with receiving(root) as fuzzed:
        fuzz(fuzzed, seed, numbers)
        grown = fuzzed.growth()
    heard, seconds = fuzzed.heard, time.monotonic() - began
    print(f"seed {seed}: {len(numbers):,} cases in {seconds:.0f} s, {dict(heard.answers)}")
    if not only:
        _fair(heard, cases)
    answers = [heard.answers[each] for each in ANSWERS]
    columns = [seed, f"{cases:,}", *(f"{each:,}" for each in answers), f"{fuzzed.stored:,}"]
    return (
        "| " + " | ".join(map(str, [*columns, f"{heard.slowest:.1f}", f"{grown / 1e6:+.1f}", f"{seconds:.0f}"])) + " |"
    )


ANSWERS = ("accepted", "rejected", "aborted at once", "cut without a word")


def _fair(heard: Heard, cases: int) -> None:
    """Many come far, and all kinds of end are reached."""
    assert heard.answers["accepted"] > cases // 4
    assert heard.answers["C-STORE 0000"] > cases // 20
    assert all(heard.answers[each] for each in (*ANSWERS, "C-STORE 0117", "C-STORE 0122"))
    assert not heard.answers["else"]


def test_nearly_right_conversations(tmp_path: Path) -> None:
    a_run(FEW, tmp_path)


HEAD = ("seed", "cases", *ANSWERS, "instances stored", "slowest, s", "memory, MB", "all, s")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_nearly_right_conversations(tmp_path: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    row = a_run(MANY, tmp_path)
    folder = os.environ.get("SORTER_RESULTS")
    if folder:
        table = "\n".join(["| " + " | ".join(HEAD) + " |", "|--:" * len(HEAD) + "|", row])
        when = f"{datetime.date.today():%Y-%m-%d}, commit {commit.stdout.strip()}, {os.cpu_count()} cores"
        (Path(folder) / "fuzz.md").write_text(PAGE.format(when=when, table=table))


PAGE = """# Conversations that are nearly right

{when}. Made by `python3 packaging/run.py soak tests/peers/test_receive_fuzz.py` with SORTER_RESULTS=docs/results.

{table}

*Accepted*, *rejected* and so on: the first that was heard of the receiver. *Memory*: all its processes, from the first
500 cases to the last. No process died or said anything, no sender waited in vain for the end of its conversation, and
after every 500 cases there lay whole instances, what is noted of them, and nothing else.
"""


# --- what the checks see --------------------------------------------------------------------------------------------


MUTANTS = {
    "a field that is taken for granted": (
        """
from sorter.protocol import dimse
def number(elements, element):
    return int.from_bytes(elements[element][:2], "little")
dimse._number = number
""",
        "KeyError",
    ),
    "a worker that dies": (
        """
from sorter.protocol import upper_layer
items = upper_layer._items
def dies(data):
    for kind, value in items(data):
        if kind == 0x51 and len(value) != 4:
            import os
            os._exit(1)
        yield kind, value
upper_layer._items = dies
""",
        "ended with 1|replaced|Connection",
    ),
    "parts are left": (
        """
from sorter.receive.arrivals import Arrivals
def drop(self, part):
    part.close()
    self._landed(part.segment)
Arrivals.drop = drop
""",
        "parts to go",
    ),
    "patience without an end": (
        """
from sorter.protocol.wire import Wire
Wire._nothing_came = lambda self: None
""",
        "timed out",
    ),
    "a file called as was received": (
        """
from sorter.receive import exchange
from sorter.receive.incoming import Intake
exchange.is_uid = lambda text: True
right = Intake.receive
def receive(self, command, context):
    if "/" in command.instance_uid:
        (self._arrivals._folder / "segment" / command.instance_uid).resolve().touch()
    return right(self, command, context)
Intake.receive = receive
""",
        ESCAPED,
    ),
    "all is remembered": (
        """
from sorter.receive.exchange import Exchange
right, remembered = Exchange._request, []
def request(self):
    remembered.append(b'x' * 200_000)
    return right(self)
Exchange._request = request
""",
        "MB of memory",
    ),
    "descriptors are lost": (
        """
from sorter.receive.association import Association
import os
right = Association.run
def run(self, *rest):
    os.dup(self._socket.fileno())
    return right(self, *rest)
Association.run = run
""",
        "descriptors to be closed|timed out",
    ),
}


RARE = ("descriptors are lost", "all is remembered", "a file called as was received")


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.soak if each in RARE else ()) for each in MUTANTS]
)
def test_what_is_wrong_is_seen(tmp_path: Path, name: str) -> None:
    mutant, said = MUTANTS[name]
    try:
        with pytest.raises(AssertionError, match=said), receiving(tmp_path, mutant) as fuzzed:
            fuzz(fuzzed, 1, range(FEW))
    finally:
        (Path("/tmp") / ESCAPED).unlink(missing_ok=True)


def test_a_case_is_the_same_for_the_same_seed() -> None:
    cases = [a_case(1, number) for number in range(100)]
    assert cases == [a_case(1, number) for number in range(100)]
    assert cases != [a_case(2, number) for number in range(100)]
