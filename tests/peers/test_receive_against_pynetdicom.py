"""The receiver beside pynetdicom's SCP: the same bytes to both, the same answers, but for what is listed with reasons.

Proposals are made by hypothesis as bytes, not by a library: contexts and transfer syntaxes in any mixture, roles, and
other items. What a standard SCU may ask has one right answer. Where ours differs on purpose, the answers of both are
written down here, and a test fails when either side gives another; docs/interoperability.md lists all of these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynetdicom import AE, evt

from sorter.durable import Files
from sorter.receive import Receiver, ReceiveSettings

VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"
MR, ENHANCED_MR, RAW, PDF = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("4", "4.1", "66", "104.1"))
WORKLIST, FIND, FILM = "1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.1.1"
PRIVATE, YOUNGER = "1.2.840.113619.4.30", "1.2.840.10008.5.1.4.1.1.999.1"
STORED = (MR, ENHANCED_MR, RAW, PDF)

IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".2", ".1.99"))
JPEG, J2K, RLE, JPIP = (f"1.2.840.10008.1.2{tail}" for tail in (".4.70", ".4.90", ".5", ".4.94"))
PRIVATE_SYNTAX, MIME, LIVE = "1.2.840.113619.5.2", "1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.7.1"
KNOWN = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, JPEG, J2K, RLE)

DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "interoperability.md"

PATIENCE = 1.0
"""Seconds after which pynetdicom is taken not to answer."""

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # pynetdicom's, of junk

# --- the same bytes to both -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ports:
    ours: int
    theirs: int


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Generator[Ports, None, None]:
    folder = tmp_path_factory.mktemp("against")
    receiver = Receiver(ReceiveSettings(port=0, commitments=folder / "commitments"), folder / "received", Files())
    ae = AE("SORTER")
    ae.maximum_associations = 1000
    for uid in STORED:
        ae.add_supported_context(uid, [*KNOWN, JPIP])
    ae.add_supported_context(VERIFICATION, [*KNOWN, JPIP])
    ae.add_supported_context(COMMITMENT, [IMPLICIT, EXPLICIT, BIG_ENDIAN])
    handlers: list[Any] = [(evt.EVT_C_STORE, lambda _: 0x0000), (evt.EVT_N_ACTION, lambda _: (0x0000, None))]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    assert server.socket is not None
    try:
        yield Ports(receiver.start(), server.socket.getsockname()[1])
    finally:
        server.shutdown()
        receiver.stop(5)


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(value)) + value


Proposal: TypeAlias = tuple[int, str, Sequence[str]]


def context(proposal: Proposal) -> bytes:
    number, abstract, transfers = proposal
    inner = b"".join(item(0x40, each.encode()) for each in transfers)
    return item(0x20, bytes((number, 0, 0, 0)) + item(0x30, abstract.encode()) + inner)


def request(proposals: Sequence[Proposal], extras: Sequence[bytes] = (), version: int = 1) -> bytes:
    """An A-ASSOCIATE-RQ; `extras` are sub-items of the user information beside the ones that must be there."""
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3") + b"".join(extras)
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + b"".join(map(context, proposals)) + item(0x50, user)
    return pdu(1, struct.pack(">HH", version, 0) + b"SORTER".ljust(16) + b"SCANNER".ljust(16) + bytes(32) + items)


class Peer:
    """A connection to one of the two."""

    def __init__(self, port: int, patience: float = 10.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=patience)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(pdu(7, bytes(4)))
        self._socket.close()

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """Type and body of the PDU that comes back; 0 where the connection ends instead."""
        try:
            self._socket.sendall(data)
            kind, length = struct.unpack(">BxI", self._take(6))
            return kind, self._take(length)
        except (OSError, EOFError):
            return 0, b""

    def _take(self, size: int) -> bytes:
        out = b""
        while len(out) < size:
            data = self._socket.recv(size - len(out))
            if not data:
                raise EOFError
            out += data
        return out


def items(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        yield kind, body[at + 4 : at + 4 + length]
        at += 4 + length


Answer: TypeAlias = dict[int, tuple[int, str]]


def patience(expected: object) -> float:
    """Seconds to wait for an answer; short only where none is expected."""
    return PATIENCE if expected == "no answer" else 10.0


def outcome(port: int, asked: bytes, patience: float = 10.0) -> Answer | str:
    """By context the result, and the transfer syntax where it is accepted; else how the association was refused."""
    with Peer(port, patience) as peer:
        kind, body = peer.ask(asked)
    if kind == 3:
        return f"rejected {tuple(body[1:4])}"
    if kind != 2:
        return {7: "aborted", 0: "no answer"}.get(kind, str(kind))
    found = {}
    for item_kind, value in items(body[68:]):
        if item_kind == 0x21:
            [(_, transfer)] = items(value[4:])
            found[value[0]] = (value[2], transfer.decode() if value[2] == 0 else "")
    return found


# --- what is the same, and what is not ------------------------------------------------------------------------------


CHOICE = "which of several usable syntaxes is for the acceptor to say (PS3.8 9.3.3.2)"
YOUNG = "private and new SOP classes are images too: refusing them loses them"
AS_IT_IS = "what comes in a private transfer syntax is stored as it is"


def why_not_the_same(proposal: Proposal, ours: tuple[int, str], theirs: tuple[int, str]) -> str:
    """The reason for which these two answers may differ; "" where there is none."""
    _, abstract, offered = proposal
    if ours[0] == theirs[0] == 0 and {ours[1], theirs[1]} <= set(offered):
        return CHOICE
    if abstract in (PRIVATE, YOUNGER) and theirs == (3, ""):
        return YOUNG
    if theirs == (4, "") and ours == (0, PRIVATE_SYNTAX):
        return AS_IT_IS
    return ""


def wanted(proposal: Proposal) -> tuple[int, str]:
    """Our answer: the sender's first that carries a whole data set; what leaves the pixels elsewhere comes last."""
    _, abstract, offered = proposal
    native = [each for each in offered if each in (IMPLICIT, EXPLICIT, BIG_ENDIAN)]
    whole = [each for each in offered if each in (*KNOWN, PRIVATE_SYNTAX)]
    usable = native if abstract == COMMITMENT else whole or [each for each in offered if each == JPIP]
    if abstract not in (*STORED, VERIFICATION, COMMITMENT, PRIVATE, YOUNGER):
        return 3, ""
    return (0, usable[0]) if usable else (4, "")


abstracts = st.sampled_from([*STORED, *STORED, VERIFICATION, COMMITMENT, WORKLIST, FIND, FILM, PRIVATE, YOUNGER])
transfers = st.lists(
    st.sampled_from([*KNOWN, *KNOWN, JPIP, PRIVATE_SYNTAX, MIME, LIVE]), min_size=1, max_size=5, unique=True
)


@st.composite
def proposals(draw: st.DrawFn) -> list[Proposal]:
    numbers = draw(st.lists(st.integers(0, 127).map(lambda n: 2 * n + 1), min_size=1, max_size=10, unique=True))
    return [(number, draw(abstracts), draw(transfers)) for number in numbers]


def role(uid: str, scu: int, scp: int) -> bytes:
    return item(0x54, struct.pack(">H", len(uid)) + uid.encode() + bytes((scu, scp)))


def extended(uid: str, info: bytes) -> bytes:
    return item(0x56, struct.pack(">H", len(uid)) + uid.encode() + info)


extras = st.lists(
    st.one_of(
        st.builds(role, st.sampled_from([MR, COMMITMENT, VERIFICATION]), st.integers(0, 1), st.integers(0, 1)),
        st.builds(lambda a, b: item(0x53, struct.pack(">HH", a, b)), st.integers(0, 9), st.integers(0, 9)),
        st.builds(extended, st.sampled_from([MR, FIND]), st.binary(min_size=1, max_size=6)),
        st.just(item(0x55, b"SOMETHING_1.0")),
        st.just(item(0x58, b"\2\0" + struct.pack(">H", 4) + b"name" + struct.pack(">H", 4) + b"word")),
    ),
    max_size=3,
    unique_by=lambda each: each[0],
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(asked=proposals(), more=extras)
def test_the_same_proposals_have_the_same_answers(ports: Ports, asked: list[Proposal], more: list[bytes]) -> None:
    sent = request(asked, more)
    ours, theirs = outcome(ports.ours, sent), outcome(ports.theirs, sent)
    assert isinstance(ours, dict), ours
    assert isinstance(theirs, dict), theirs
    assert list(ours) == [number for number, _, _ in asked]
    for proposal in asked:
        mine, other = ours[proposal[0]], theirs[proposal[0]]
        assert mine == wanted(proposal), proposal
        assert mine == other or why_not_the_same(proposal, mine, other), f"{proposal}: {other}"


A_CONTEXT = [(1, MR, [EXPLICIT])]
ACCEPTED: Answer = {1: (0, EXPLICIT)}


def with_items(*found: bytes) -> bytes:
    return pdu(1, b"\0\1\0\0" + b"SORTER".ljust(16) + b"SCANNER".ljust(16) + bytes(32) + b"".join(found))


NAME, USER = item(0x10, b"1.2.840.10008.3.1.1.1"), item(0x50, item(0x51, b"\0\0\x40\0") + item(0x52, b"1.2.3"))
ONE = context((1, MR, [EXPLICIT]))

ODD: dict[str, tuple[bytes, Answer | str, Answer | str]] = {
    # what: bytes, ours, theirs
    "usual": (request(A_CONTEXT), ACCEPTED, ACCEPTED),
    "items in another order": (with_items(USER, ONE, NAME), {1: (0, EXPLICIT)}, {1: (0, EXPLICIT)}),
    "128 contexts": (
        request([(2 * n + 1, MR, [IMPLICIT]) for n in range(128)]),
        {2 * n + 1: (0, IMPLICIT) for n in range(128)},
        {2 * n + 1: (0, IMPLICIT) for n in range(128)},
    ),
    "one class in three contexts": (
        request([(1, MR, [EXPLICIT]), (3, MR, [IMPLICIT]), (5, MR, [RLE])]),
        {1: (0, EXPLICIT), 3: (0, IMPLICIT), 5: (0, RLE)},
        {1: (0, EXPLICIT), 3: (0, IMPLICIT), 5: (0, RLE)},
    ),
    "UIDs padded with NUL": (
        with_items(NAME, context((1, f"{MR}\0", [f"{EXPLICIT}\0"])), USER), {1: (0, EXPLICIT)}, {1: (0, EXPLICIT)}
    ),
    # PS3.8 9.3.2: only bit 0 of the protocol version is to be tested; pynetdicom compares the whole
    "version 3": (request(A_CONTEXT, version=3), ACCEPTED, "rejected (1, 2, 2)"),
    "version 2": (request(A_CONTEXT, version=2), "rejected (1, 2, 2)", "rejected (1, 2, 2)"),
    # PS3.8 9.3.4: application context name not supported; pynetdicom does not look at it
    "another application context": (
        with_items(item(0x10, b"1.2.3.4"), ONE, USER), "rejected (1, 1, 2)", {1: (0, EXPLICIT)}
    ),
    "an item that nobody knows": (with_items(NAME, ONE, item(0x77, b"x"), USER), {1: (0, EXPLICIT)}, "aborted"),
    # pynetdicom's thread dies of a ValueError, and the peer waits
    "an even context number": (with_items(NAME, context((2, MR, [EXPLICIT])), USER), "aborted", "no answer"),
    "a number twice": (with_items(NAME, ONE, ONE, USER), "aborted", {1: (0, EXPLICIT)}),
    "no context": (with_items(NAME, USER), "aborted", {}),
    "an item longer than the request": (with_items(NAME, ONE, b"\x50\0\xff\xff"), "aborted", "aborted"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_odd_and_hostile_requests(ports: Ports, what: str) -> None:
    sent, ours, theirs = ODD[what]
    assert (outcome(ports.ours, sent), outcome(ports.theirs, sent, patience(theirs))) == (ours, theirs)


# --- messages -------------------------------------------------------------------------------------------------------


def element(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def message(number: int, field: int, data: bytes = b"", **given: str | int | None) -> bytes:
    """A request in context `number`; `e1000="1.2"` sets (0000,1000), None leaves it out."""
    values: dict[int, bytes] = {0x0100: struct.pack("<H", field), 0x0110: b"\7\0"}
    values[0x0800] = b"\0\0" if data else b"\1\1"
    for name, value in given.items():
        if value is not None:
            values[int(name[1:], 16)] = value.encode() if isinstance(value, str) else struct.pack("<H", value)
    body = b"".join(element(each, value) for each, value in sorted(values.items()))
    whole = element(0, struct.pack("<I", len(body))) + body
    out = pdu(4, struct.pack(">IBB", len(whole) + 2, number, 3) + whole)
    return out + (pdu(4, struct.pack(">IBB", len(data) + 2, number, 2) + data) if data else b"")


def status(body: bytes) -> int:
    """(0000,0900) of a response's command set."""
    at = 6
    while at + 8 <= len(body):
        group, number, length = struct.unpack_from("<HHI", body, at)
        if (group, number) == (0, 0x0900):
            return int.from_bytes(body[at + 8 : at + 8 + length], "little")
        at += 8 + length
    raise AssertionError("a response without a status")


CONTEXTS = [(1, VERIFICATION, [IMPLICIT]), (3, MR, [IMPLICIT]), (5, COMMITMENT, [IMPLICIT])]
IMAGE = struct.pack("<HHI", 8, 0x18, 8) + b"1.2.3.4\0" + struct.pack("<HHI", 0x10, 0x10, 4) + b"A^B "
ASKED = (
    struct.pack("<HHI", 8, 0x1195, 6) + b"1.2.3\0" + struct.pack("<HHI", 8, 0x1199, 8 + 8 + 26 + 8 + 8)
    + struct.pack("<HHI", 0xFFFE, 0xE000, 8 + 26 + 8 + 8)
    + struct.pack("<HHI", 8, 0x1150, 26) + MR.encode() + b"\0" + struct.pack("<HHI", 8, 0x1155, 8) + b"1.2.3.4\0"
)  # fmt: skip
STORE: dict[str, Any] = {"e0002": MR, "e0700": 2, "e1000": "1.2.3.4"}
ACTION: dict[str, Any] = {"e0003": COMMITMENT, "e1001": f"{COMMITMENT}.1", "e1008": 1}

MESSAGES: dict[str, tuple[bytes, int | str, int | str]] = {
    # what: bytes, ours, theirs (a status, or how the association ended)
    "C-ECHO": (message(1, 0x0030, e0002=VERIFICATION), 0, 0),
    "C-STORE": (message(3, 0x0001, IMAGE, **STORE), 0, 0),
    "C-STORE, priority missing": (message(3, 0x0001, IMAGE, **{**STORE, "e0700": None}), 0, 0),
    # PS3.4 B.2.3: ours names what is wrong
    "C-STORE of another service's class": (message(3, 0x0001, IMAGE, **{**STORE, "e0002": FIND}), 0x0122, "aborted"),
    "C-STORE without a SOP Instance UID": (message(3, 0x0001, IMAGE, **{**STORE, "e1000": None}), 0x0117, "no answer"),
    "C-STORE without a data set": (message(3, 0x0001, **STORE), 0xC000, 0),
    "N-ACTION": (message(5, 0x0130, ASKED, **ACTION), 0, 0),
    "C-FIND in a storage context": (message(3, 0x0020, IMAGE, e0002=FIND, e0700=2), 0x0211, "aborted"),
    "a command that nobody knows": (message(3, 0x0777), 0x0211, "no answer"),
    "a context that was not proposed": (message(9, 0x0030, e0002=VERIFICATION), "aborted", "aborted"),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_messages(ports: Ports, what: str) -> None:
    sent, ours, theirs = MESSAGES[what]
    assert (said(ports.ours, sent), said(ports.theirs, sent, patience(theirs))) == (ours, theirs)


def said(port: int, sent: bytes, patience: float = 10.0) -> int | str:
    with Peer(port, patience) as peer:
        kind, _ = peer.ask(request(CONTEXTS))
        assert kind == 2
        kind, body = peer.ask(sent)
    return status(body) if kind == 4 else {7: "aborted", 0: "no answer"}.get(kind, str(kind))


# --- the list -------------------------------------------------------------------------------------------------------


def words(answer: Answer | int | str) -> str:
    """An answer as the documentation writes it."""
    if isinstance(answer, dict):
        return "accepted" if answer else "accepted, no context"
    return f"{answer:04X}" if isinstance(answer, int) else answer


def test_every_intended_difference_is_documented() -> None:
    differing = {
        what: (ours, theirs) for what, (_, ours, theirs) in (*ODD.items(), *MESSAGES.items()) if ours != theirs
    }
    lines = DOCUMENTED.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    listed = {row[0]: (row[1], row[2]) for row in rows if len(row) == 4 and row[0] in {*ODD, *MESSAGES}}
    assert listed == {what: (words(ours), words(theirs)) for what, (ours, theirs) in differing.items()}
    assert {CHOICE, YOUNG, AS_IT_IS} <= {row[-1] for row in rows}
