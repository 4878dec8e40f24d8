"""Our PDU and DIMSE codecs against pynetdicom's, and against junk."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom import dcmread
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    UserIdentityNegotiation,
)

from sorter.protocol import dimse, upper_layer
from sorter.protocol.uids import is_uid
from sorter.protocol.upper_layer import ProtocolError, Rejection
from sorter.receive.file_meta import Route, file_head, tail_of_meta
from sorter.receive.negotiation import choose_transfer_syntax, is_storage, negotiate

MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def proposal(contexts: list[tuple[str, list[str]]], *extra: Any) -> bytes:
    """An A-ASSOCIATE-RQ as pynetdicom encodes it."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SCANNER", "SORTER"
    listed = []
    for number, (abstract, transfers) in enumerate(contexts):
        context = build_context(abstract, transfers)
        context.context_id = 2 * number + 1
        listed.append(context)
    primitive.presentation_context_definition_list = listed
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.3.4"
    primitive.user_information = [length, implementation, *extra]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def all_extras() -> list[Any]:
    role, window, user = (
        SCP_SCU_RoleSelectionNegotiation(),
        AsynchronousOperationsWindowNegotiation(),
        UserIdentityNegotiation(),
    )
    role.sop_class_uid, role.scu_role, role.scp_role = MR, True, True
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    user.user_identity_type, user.primary_field, user.secondary_field = 2, b"name", b"word"
    user.positive_response_requested = True
    return [role, window, user]


def test_a_request_of_pynetdicom_is_understood_and_its_answer_is_understood_by_pynetdicom() -> None:
    data = proposal([(MR, [EXPLICIT, IMPLICIT]), (VERIFICATION, [IMPLICIT]), (FIND, [IMPLICIT])], *all_extras())
    assert upper_layer.pdu_head(data) == (upper_layer.ASSOCIATE_RQ, len(data) - 6)
    request = upper_layer.decode_request(data[6:])
    assert (request.calling, request.called, request.version) == ("SCANNER", "SORTER", 1)
    agreement = negotiate(request, 131072)
    assert agreement.max_length == 16382
    answer = A_ASSOCIATE_AC()
    answer.decode(upper_layer.encode_accept(request.titles, agreement.answers))
    assert [(c.context_id, c.result) for c in answer.presentation_context] == [(1, 0), (3, 0), (5, 3)]
    assert answer.presentation_context[0].transfer_syntax == EXPLICIT
    assert answer.to_primitive().maximum_length_received == 131072
    assert answer.encode()[10:42] == data[10:42]  # the titles come back as they were sent


def test_refusals_and_aborts_are_those_of_pynetdicom() -> None:
    ours = Rejection(*upper_layer.LOCAL_LIMIT_EXCEEDED).pdu
    rejection = A_ASSOCIATE_RJ()
    rejection.decode(ours)
    assert (rejection.result, rejection.source, rejection.reason_diagnostic) == (2, 3, 2)
    assert rejection.encode() == ours
    abort = A_ABORT_RQ()
    abort.decode(upper_layer.encode_abort(upper_layer.AbortReason.UNEXPECTED_PDU))
    assert (abort.source, abort.reason_diagnostic) == (2, 2)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ((slice(6, 8), b"\0\2"), upper_layer.VERSION_NOT_SUPPORTED),
        ((slice(78, 79), b"9"), upper_layer.APPLICATION_CONTEXT_NOT_SUPPORTED),
    ],
)
def test_what_is_no_dicom_association_is_rejected(change: tuple[slice, bytes], answer: tuple[int, int, int]) -> None:
    data = bytearray(proposal([(MR, [IMPLICIT])]))
    data[change[0]] = change[1]
    with pytest.raises(Rejection) as caught:
        negotiate(upper_layer.decode_request(bytes(data[6:])), 16384)
    assert caught.value.pdu == Rejection(*answer).pdu


def test_titles_that_are_no_ae_titles_stay_harmless() -> None:
    data = bytearray(proposal([(MR, [IMPLICIT])]))
    data[26:42] = b"M\xdcLLER\\\n\0\0\0\0\0\0\0\0"
    assert upper_layer.decode_request(bytes(data[6:])).calling == "M?LLER??"


@given(st.binary(max_size=300))
@example(proposal([(MR, [IMPLICIT])])[6:])
def test_a_junk_request_ends_in_a_clean_error(junk: bytes) -> None:
    for body in (junk, bytes(2) + bytes(66) + junk, b"\0\1" + bytes(66) + junk):
        with contextlib.suppress(ProtocolError, Rejection):
            negotiate(upper_layer.decode_request(body), 16384)


@given(st.integers(6, 400), st.integers(0, 255), st.integers(1, 300))
def test_a_request_with_a_wrong_byte_or_end_ends_in_a_clean_error(at: int, value: int, cut: int) -> None:
    data = bytearray(proposal([(MR, [EXPLICIT, IMPLICIT]), (VERIFICATION, [IMPLICIT])], *all_extras()))
    data[min(at, len(data) - 1)] = value
    for body in (bytes(data[6:]), bytes(data[6:-cut])):
        with contextlib.suppress(ProtocolError, Rejection):
            negotiate(upper_layer.decode_request(body), 16384)


# --- command sets ---------------------------------------------------------------------------------------------------


def command_of(message: Any, primitive: Any) -> bytes:
    """The command set as pynetdicom encodes it."""
    message.primitive_to_message(primitive)
    pdata = next(iter(message.encode_msg(1, 0)))
    pdu = P_DATA_TF()
    pdu.from_primitive(pdata)
    return bytes(pdu.presentation_data_value_items[0].data)[1:]


def a_store(**changes: Any) -> C_STORE:
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = 7, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = MR, "1.2.3.4.5"
    primitive.DataSet = io.BytesIO(b"\x08\0\x18\0\0\0\0\0")
    for name, value in changes.items():
        setattr(primitive, name, value)
    return primitive


def test_commands_of_pynetdicom_are_understood() -> None:
    command = dimse.decode_command(command_of(C_STORE_RQ(), a_store(MoveOriginatorApplicationEntityTitle="MOVER")))
    assert command == dimse.Command(dimse.C_STORE_RQ, 7, MR, "1.2.3.4.5", has_data_set=True)
    echo = C_ECHO()
    echo.MessageID, echo.AffectedSOPClassUID = 9, VERIFICATION
    command = dimse.decode_command(command_of(C_ECHO_RQ(), echo))
    assert command == dimse.Command(dimse.C_ECHO_RQ, 9, VERIFICATION, "", has_data_set=False)


def test_a_response_is_byte_for_byte_that_of_pynetdicom() -> None:
    primitive = a_store(MessageIDBeingRespondedTo=7, Status=0x0000)
    theirs = command_of(C_STORE_RSP(), primitive)
    ours = dimse.encode_response(dimse.Command(dimse.C_STORE_RQ, 7, MR, "1.2.3.4.5", True), 0)
    assert ours == theirs


def test_a_failure_carries_status_and_comment() -> None:
    answer = dimse.encode_response(dimse.Command(dimse.C_STORE_RQ, 7, "", "", True), 0xA700, "disk full")
    read = decode(io.BytesIO(answer), is_implicit_vr=True, is_little_endian=True)
    assert (read.Status, read.ErrorComment, read.MessageIDBeingRespondedTo) == (0xA700, "disk full", 7)
    assert "AffectedSOPInstanceUID" not in read


@pytest.mark.parametrize("limit", [0, 7, 20, 60, 4096])
def test_a_response_is_cut_to_what_the_peer_takes(limit: int) -> None:
    answer = dimse.encode_response(dimse.Command(dimse.C_STORE_RQ, 7, MR, "1.2.3.4.5", True), 0)
    rest, back, last = upper_layer.encode_data(5, answer, limit), b"", False
    while rest:
        assert not last
        kind, length = upper_layer.pdu_head(rest)
        assert kind == upper_layer.P_DATA
        assert not limit or length <= limit
        assert rest[10] == 5
        last = rest[11] == 3
        back += rest[12 : 6 + length]
        rest = rest[6 + length :]
    assert last
    assert back == answer


@given(st.binary(max_size=200))
def test_a_junk_command_ends_in_a_clean_error(junk: bytes) -> None:
    for data in (junk, command_of(C_STORE_RQ(), a_store())[: -len(junk) or None] + junk):
        try:
            command = dimse.decode_command(data)
        except ProtocolError:
            continue
        dimse.encode_response(command, 0xC000)  # whatever was understood can be answered


# --- policy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uid",
    [
        MR,
        "1.2.840.10008.5.1.4.1.1.66",  # Raw Data
        "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound, retired
        "1.2.840.10008.5.1.4.1.1.12.77",  # retired, without a name in the dictionary
        "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image Storage, retired
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol Storage
        "1.2.840.10008.5.1.4.1.1.9999.1",  # the standard's next one
        "1.3.12.2.1107.5.9.1",  # Siemens CSA Non-Image
        "1.2.840.113619.4.30",  # private of another vendor
    ],
)
def test_storage_classes_are_taken(uid: str) -> None:
    assert is_storage(uid)


@pytest.mark.parametrize(
    "uid",
    [
        VERIFICATION,
        FIND,
        "1.2.840.10008.1.20.1",  # Storage Commitment
        "1.2.840.10008.1.20.2",  # Storage Commitment Pull, retired
        "1.2.840.10008.5.1.4.31",  # Worklist
        "1.2.840.10008.3.1.2.3.3",  # MPPS
        "1.2.840.10008.5.1.1.9",  # print
        "1.2.840.10008.3.1.2.3.1",  # Detached Study Management, retired
        "1.2.840.10008.1.3.10",  # DICOMDIR
        "1.2.840.10008.4.2",  # the service class
        IMPLICIT,
        "",
        "MR",
        "1.2.",
        "1." * 40 + "1",
    ],
)
def test_what_is_known_to_be_something_else_is_not(uid: str) -> None:
    assert not is_storage(uid)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((EXPLICIT, IMPLICIT), EXPLICIT),
        ((IMPLICIT, EXPLICIT), IMPLICIT),
        (("1.2.840.113619.5.2", IMPLICIT), "1.2.840.113619.5.2"),
        (("1.2.840.10008.1.2.4.94", IMPLICIT), IMPLICIT),
        (("1.2.840.10008.1.2.4.94",), "1.2.840.10008.1.2.4.94"),
        (("1.2.840.10008.1.2.7.1", MR, "junk", ""), None),
        ((), None),
    ],
)
def test_the_first_sensible_transfer_syntax_is_chosen(offered: tuple[str, ...], chosen: str | None) -> None:
    assert choose_transfer_syntax(offered) == chosen


def test_uids_as_the_field_writes_them() -> None:
    assert is_uid("1.2.03.4")
    assert not is_uid("1..2")
    assert not is_uid("1.2\n")
    assert not is_uid("\u0661.2")


def test_pydicom_reads_the_file_meta() -> None:
    head = file_head(MR, "1.2.3.4.5", EXPLICIT, tail_of_meta(Route("SCANNER1", "SORTER", "::1", 104)))
    meta = dcmread(io.BytesIO(head)).file_meta
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (MR, "1.2.3.4.5")
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.SourceApplicationEntityTitle == meta.SendingApplicationEntityTitle == "SCANNER1"
    assert meta.ReceivingApplicationEntityTitle == "SORTER"
    assert meta.SourcePresentationAddress == meta.SendingPresentationAddress == "dicom://[::1]:104"
    assert meta.FileMetaInformationGroupLength == len(head) - 132 - 12


@pytest.mark.parametrize(
    "remember",
    [is_storage, lambda text: dimse.encode_response(dimse.Command(0x0001, 1, text, "1.2.3", False), 0x0122)],
    ids=["SOP classes", "responses"],
)
def test_what_is_remembered_of_a_peer_is_small_whatever_it_says(remember: Callable[[str], object]) -> None:
    """A command set may be 64 KiB long, all of it one value."""
    tracemalloc.start()
    try:
        for number in range(500):
            remember(f"1.2.{number}" + ".1" * 30_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000
