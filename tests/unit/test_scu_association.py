"""Associations that we ask for, against a node of a few lines that says what it is told to, well or badly."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import dimse_messages
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_RQ

from sorter.errors import SorterError
from sorter.protocol import dimse, upper_layer
from sorter.protocol.commitment import Reference, encode, parse, parse_report
from sorter.protocol.dimse import C_ECHO_RQ, C_STORE_RQ, N_ACTION_RQ, N_EVENT_REPORT_RQ, Command
from sorter.protocol.uids import COMMITMENT_INSTANCE, EXPLICIT, IMPLICIT, STORAGE_COMMITMENT, VERIFICATION
from sorter.protocol.upper_layer import Proposal, ProtocolError, Role
from sorter.scu import association as association_module
from sorter.scu.association import USUAL, Association, Limits, Peer, associated
from sorter.testing.peer import ABORT, RELEASE, element, item, pdu, pdv
from sorter.testing.peer import Peer as Raw
from sorter.testing.waiting import wait_until

MR = "1.2.840.10008.5.1.4.1.1.4"
CONTEXTS = [(VERIFICATION, (IMPLICIT,)), (MR, (EXPLICIT,)), (STORAGE_COMMITMENT, (EXPLICIT, IMPLICIT))]
SHORT = Limits(message=0.6, seconds=1.2, octets=1 << 20)
STORE = Command(C_STORE_RQ, 0, MR, "1.2.3", True)
REPORT = Command(N_EVENT_REPORT_RQ, 0, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, True, 2)
ECHO = Command(C_ECHO_RQ, 0, VERIFICATION, "", False)

Says = Callable[[Raw], None]


def accept(max_length: int = 16384, answers: dict[int, tuple[int, bytes]] | None = None) -> bytes:
    """An A-ASSOCIATE-AC, to `CONTEXTS` unless told otherwise."""
    given = answers or {1: (0, IMPLICIT.encode()), 3: (0, EXPLICIT.encode()), 5: (0, EXPLICIT.encode())}
    body = b"\0\1\0\0" + b" " * 32 + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, (result, transfer) in given.items():
        body += item(0x21, bytes((number, 0, result, 0)) + item(0x40, transfer))
    return pdu(2, body + item(0x50, item(0x51, struct.pack(">I", max_length)) + item(0x52, b"1.2.3")))


def response(field: int, message_id: int, status: int = 0, context: int = 1) -> bytes:
    values = {0x0100: field | 0x8000, 0x0120: message_id, 0x0800: 0x0101, 0x0900: status}
    return pdu(4, pdv(context, 3, b"".join(element(n, struct.pack("<H", value)) for n, value in values.items())))


class Connected(Raw):
    """The node's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def message(self) -> tuple[dict[int, bytes], bytes]:
        """A command set, and its data set."""
        command, data = b"", b""
        while True:
            _, body = self.pdu()
            at = 0
            while at < len(body):
                length, _, control = struct.unpack_from(">IBB", body, at)
                piece, at = body[at + 6 : at + 4 + length], at + 4 + length
                command, data = (command + piece, data) if control & 1 else (command, data + piece)
                if control & 2 and (not control & 1 or dimse._elements(command)[0x0800] == b"\1\1"):
                    return dimse._elements(command), data


@contextlib.contextmanager
def a_node(says: Says, accepts: bytes | None = None) -> Iterator[Peer]:
    """One connection is taken, its request read, and `accepts` sent; the rest is as `says` says it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError, EOFError), Connected(listener.accept()[0]) as node:
            node.pdu()
            node.send(accept() if accepts is None else accepts)
            says(node)
            node.drain()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Peer("127.0.0.1", listener.getsockname()[1], "NODE", "SORTER")
    finally:
        listener.close()
        thread.join(20)
        assert not thread.is_alive()


def silent(node: Raw) -> None:
    """It says nothing any more."""


def stores(peer: Peer, pieces: list[bytes], limits: Limits = SHORT) -> Command | None:
    with associated(peer, CONTEXTS, limits) as association:
        return store(association, pieces)


def store(association: Association, pieces: list[bytes]) -> Command | None:
    context = association.context(MR, EXPLICIT)
    assert context is not None
    return association.request(context, STORE, pieces)


# --- how it begins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (pdu(3, b"\0\1\1\7"), "rejects the association of SORTER: Called AE title not recognised"),
        (pdu(3, b"\0\2\3\2"), "rejects the association of SORTER: Local limit exceeded"),
        (pdu(3, b"\0\1\7\7"), "rejects the association of SORTER: no reason given"),
        (pdu(3, b""), "rejects the association of SORTER: no reason given"),
        (ABORT, "nothing answers as NODE"),
        (b"\2\0\xff\xff\xff\xff", "does not answer as DICOM wants it: a PDU of 4294967295 bytes"),
        (b"\2\0\0\0\2\0half", "nothing answers as NODE"),
        (b"", "nothing answers as NODE"),
        (pdu(2, b"\0\1"), "does not answer as DICOM wants it: .* cut short"),
        (pdu(2, bytes(68) + b"\x21\0\xff\xff"), "does not answer as DICOM wants it: an item is longer"),
        (pdu(4, pdv(1, 3, b"")), "does not answer as DICOM wants it: PDU type 4"),
        (accept(answers={1: (3, b""), 3: (4, b"")}), "takes the association of SORTER, but nothing that is to be done"),
        (accept(answers={1: (0, b"1.2.3"), 7: (0, b"1.2")}), "but nothing that is to be done"),  # nobody proposed that
    ],
)
def test_a_request_that_is_not_accepted_has_its_sentence(answers: bytes, says: str) -> None:
    with a_node(silent, answers) as peer, pytest.raises(SorterError, match=says):  # noqa: SIM117
        with associated(peer, CONTEXTS, SHORT):
            pass


def test_nobody_at_the_port_and_a_name_without_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    for host, says in (("127.0.0.1", "nothing answers as NODE at"), ("no-such.invalid", "cannot be reached")):
        with pytest.raises(SorterError, match=says), associated(Peer(host, port, "NODE", "SORTER"), CONTEXTS, SHORT):
            pass


# --- an answer --------------------------------------------------------------------------------------------------------


def answering(*bad: bytes) -> Says:
    def says(node: Raw) -> None:
        assert isinstance(node, Connected)
        node.message()
        for each in bad:
            node.send(each)

    return says


@pytest.mark.parametrize(
    "answer",
    [
        response(C_STORE_RQ, 2, context=3),  # to another message
        response(C_ECHO_RQ, 1, context=3),  # to another request
        response(C_STORE_RQ, 1, context=7),  # in a context that nobody accepted
        pdu(4, pdv(3, 2, b"data")),  # a data set without its command
        pdu(4, pdv(3, 1, b"half") + pdv(5, 3, b"")),  # one message in two contexts
        pdu(4, pdv(3, 3, b"no command")),
        pdu(4, pdv(3, 1, bytes(60000))) * 2,
        pdu(4, pdv(3, 1, b"")) * 100,  # nothing, and never its end
        accept(),
        b"\4\0\xff\xff\xff\xff",
        b"\4\0\0\0\0\3abc",
        b"\4\0\0\0\0\x0c\xff\xff\xff\xff\3\3",
        b"\x63\0\0\0\0\1x",
        b"\4\0\0",  # half a PDU
        b"",
        ABORT,
        RELEASE,
    ],
    ids=range(17),
)
def test_what_is_no_answer_ends_the_association_and_nothing_else(answer: bytes) -> None:
    with a_node(answering(answer)) as peer, associated(peer, CONTEXTS, SHORT) as association:
        assert store(association, [b"12"]) is None
        assert association.ended
        assert store(association, [b"12"]) is None


def test_an_abort_in_the_middle_of_what_we_send() -> None:
    def aborts(node: Raw) -> None:
        node.pdu()
        node.send(ABORT)
        node.socket.close()

    with a_node(aborts) as peer:
        assert stores(peer, [bytes(1 << 20)] * 16) is None


def test_whoever_reads_nothing_or_little_is_cut() -> None:
    done = threading.Event()

    def crawls(node: Raw) -> None:
        node.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError, EOFError):
            while not done.is_set():
                node.take(1)

    for says in (silent, crawls):
        done.clear()

        def waits(node: Raw, says: Says = says) -> None:
            says(node)
            done.wait(30)
            node.socket.close()  # what is under way would come by four kilobytes

        with a_node(waits) as peer:
            assert stores(peer, [bytes(1 << 20)] * 64) is None
            done.set()


def test_whoever_may_think_for_long_may_not_stop_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(association_module, "_STALL", 0.3)
    began = time.monotonic()
    with a_node(answering(response(C_STORE_RQ, 1, context=3)[:20])) as peer:
        assert stores(peer, [b"12"], Limits(message=60, seconds=60, octets=1 << 20)) is None
    assert time.monotonic() - began < 30


def test_endless_bytes_and_endless_time_have_their_sentence() -> None:
    def floods(node: Raw) -> None:
        report = Command(N_EVENT_REPORT_RQ, 1, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, True)
        message = pdu(4, pdv(5, 3, dimse.encode_request(report))) + pdu(4, pdv(5, 2, bytes(100_000)))
        with contextlib.suppress(OSError):
            while True:
                node.send(message)

    def asked(peer: Peer, limits: Limits) -> None:
        with associated(peer, CONTEXTS, limits) as association:
            if store(association, [b"12"]) is None:
                raise SorterError("it broke off")

    with a_node(floods) as peer, pytest.raises(SorterError, match=r"^NODE at .* sends more than an answer can be$"):
        asked(peer, Limits(message=30, seconds=60, octets=1 << 20))
    with a_node(silent) as peer, pytest.raises(SorterError, match=r"^NODE at .* does not come to an end in 0\.3 s$"):
        asked(peer, Limits(message=30, seconds=0.3, octets=1 << 20))


# --- what goes over it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [0, 7, 16384, 1 << 17, (1 << 32) - 1])
def test_a_data_set_goes_in_pdus_that_the_peer_takes(max_length: int) -> None:
    sent = [bytes([n]) * size for n, size in enumerate((700, 1, 2048))]
    came: list[tuple[dict[int, bytes], bytes]] = []
    lengths: list[int] = []

    def says(node: Raw) -> None:
        assert isinstance(node, Connected)
        take = node.pdu

        def measured() -> tuple[int, bytes]:
            kind, body = take()
            lengths.append(len(body))
            return kind, body

        node.pdu = measured  # type: ignore[method-assign]
        for number in (1, 2):
            came.append(node.message())
            node.send(response(C_STORE_RQ, number, 0xB000, context=3))
        assert node.pdu() == (5, bytes(4))
        node.send(pdu(6, bytes(4)))

    with a_node(says, accept(max_length)) as peer, associated(peer, CONTEXTS, USUAL) as association:
        for _ in range(2):
            answer = store(association, sent)
            assert answer is not None
            assert answer.status == 0xB000
    assert [data for _, data in came] == [b"".join(sent)] * 2
    assert [command[0x0110] for command, _ in came] == [b"\1\0", b"\2\0"]
    assert max(lengths) <= (max_length or 1 << 20)


def test_reports_are_answered_while_we_wait_and_when_we_look() -> None:
    heard: list[tuple[bytes, str]] = []

    def hear(data: bytes, transfer: str) -> int:
        heard.append((data, transfer))
        return 0x0115

    def report(number: int) -> bytes:
        command = Command(N_EVENT_REPORT_RQ, number, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, True, 1)
        return pdu(4, pdv(5, 3, dimse.encode_request(command))) + pdu(4, pdv(5, 2, b"report"))

    answered: list[dict[int, bytes]] = []

    def says(node: Raw) -> None:
        assert isinstance(node, Connected)
        node.message()
        node.send(report(7) + pdu(4, pdv(1, 3, dimse.encode_request(Command(0x0020, 9, MR, "", False)))))
        answered.extend(node.message()[0] for _ in range(2))
        node.send(response(C_ECHO_RQ, 1))
        node.send(report(8))
        answered.append(node.message()[0])
        node.send(RELEASE)
        assert node.pdu() == (6, bytes(4))

    with a_node(says) as peer, associated(peer, CONTEXTS, Limits(10, 30, 1 << 20), hear=hear) as association:
        answer = association.request(association.contexts[0], ECHO)
        assert answer is not None
        assert answer.status == 0

        def has_ended() -> bool:
            association.hear()
            return association.ended

        wait_until(has_ended)
    assert heard == [(b"report", EXPLICIT)] * 2
    assert [(each[0x0120], each[0x0900]) for each in answered] == [
        (b"\7\0", b"\x15\1"), (b"\x09\0", b"\x11\2"), (b"\x08\0", b"\x15\1"),
    ]  # fmt: skip


# --- the encodings, beside those of pynetdicom and pydicom ------------------------------------------------------------


def test_a_request_for_an_association_as_pynetdicom_reads_it() -> None:
    roles = [Role(STORAGE_COMMITMENT, scu=False, scp=True)]
    data = upper_layer.encode_request(
        ("NODE", "A TITLE THAT IS TOO LONG"), [Proposal(1, MR, (EXPLICIT, IMPLICIT))], 131072, roles
    )
    read = A_ASSOCIATE_RQ()
    read.decode(data)
    assert (read.called_ae_title.strip(), read.calling_ae_title) == ("NODE", "A TITLE THAT IS")
    [context] = read.presentation_context
    assert (context.context_id, context.abstract_syntax, context.transfer_syntax) == (1, MR, [EXPLICIT, IMPLICIT])
    assert read.user_information.maximum_length == 131072
    [role] = read.user_information.role_selection.values()
    assert (role.uid, role.scu_role, role.scp_role) == (STORAGE_COMMITMENT, False, True)
    assert upper_layer.decode_roles(upper_layer.decode_request(data[6:]).items) == tuple(roles)


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\xff1.2\0\1", b"\0\0"])
def test_a_role_that_is_none_breaks_the_protocol(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        upper_layer.decode_roles(item(0x50, item(0x54, value)))


@pytest.mark.parametrize(
    ("message", "command"),
    [
        (dimse_messages.C_STORE_RQ, STORE),
        (dimse_messages.N_ACTION_RQ, Command(N_ACTION_RQ, 0, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, True, 1)),
        (
            dimse_messages.N_EVENT_REPORT_RQ,
            Command(N_EVENT_REPORT_RQ, 0, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, True, 2),
        ),
    ],
)
def test_requests_as_pynetdicom_reads_them(message: Any, command: Command) -> None:
    data = dimse.encode_request(command)
    assert dimse.decode_command(data) == command
    read = message()
    read.command_set = decode(io.BytesIO(data), True, True)
    read.data_set, read.context_id = io.BytesIO(b"data"), 1
    primitive = read.message_to_primitive()
    assert primitive.is_valid_request
    assert read.command_set.CommandGroupLength == len(data) - 12
    assert (primitive.MessageID, read.command_set.CommandDataSetType) == (0, 1)


UIDS = st.from_regex(r"[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){1,4}", fullmatch=True)
REFERENCES = st.lists(st.builds(Reference, UIDS, UIDS), max_size=5, unique_by=lambda each: each.sop_uid)


@pytest.mark.parametrize("transfer", [EXPLICIT, IMPLICIT])
@settings(max_examples=20)
@given(transaction=UIDS, safe=REFERENCES, reasons=st.lists(st.integers(0, 0xFFFF), max_size=5))
def test_what_is_asked_and_reported_is_what_pydicom_reads(
    transfer: str, transaction: str, safe: list[Reference], reasons: list[int]
) -> None:
    failed = {Reference("1.2", f"1.2.{n}"): reason for n, reason in enumerate(reasons)}
    data = encode(transfer, transaction, safe, failed)
    read = decode(io.BytesIO(data), transfer == IMPLICIT, True)
    assert read.TransactionUID == transaction
    assert [pair(each) for each in read.get("ReferencedSOPSequence", [])] == safe
    assert {pair(each): each.FailureReason for each in read.get("FailedSOPSequence", [])} == failed
    if safe and not failed:
        assert parse(data, transfer) == (transaction, tuple(safe))
    assert parse_report(data, transfer).failed == failed


def pair(read: Dataset) -> Reference:
    return Reference(str(read.ReferencedSOPClassUID), str(read.ReferencedSOPInstanceUID))
