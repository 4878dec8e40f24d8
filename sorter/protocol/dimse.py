"""DIMSE command sets (PS3.7): the few that we send or answer, by hand."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

from sorter.protocol.upper_layer import ProtocolError

C_STORE_RQ, C_FIND_RQ, C_MOVE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0020, 0x0021, 0x0030, 0x0FFF
N_EVENT_REPORT_RQ, N_ACTION_RQ = 0x0100, 0x0130
RESPONSE = 0x8000
NO_DATA_SET = 0x0101

_GROUP_LENGTH, _CLASS_UID, _FIELD, _MESSAGE_ID, _RESPONDED_ID = 0x0000, 0x0002, 0x0100, 0x0110, 0x0120
_DATA_SET_TYPE, _STATUS, _COMMENT, _INSTANCE_UID = 0x0800, 0x0900, 0x0902, 0x1000
_REQUESTED_CLASS_UID, _REQUESTED_INSTANCE_UID = 0x0003, 0x1001  # of N-services; answered as the affected ones
_PRIORITY, _EVENT_TYPE, _ACTION_TYPE = 0x0700, 0x1002, 0x1008
_DESTINATION, _SUB_OPERATIONS = 0x0600, (0x1020, 0x1021, 0x1022, 0x1023)
_LOW = 2  # priority

_ELEMENT = struct.Struct("<HHI")
_US = struct.Struct("<HHIH")
_NUMBER = struct.Struct("<H")
_UL = struct.Struct("<I")
_GROUP_LENGTH_IS = _ELEMENT.pack(0, _GROUP_LENGTH, 4)


class Status:
    """Statuses we answer with (PS3.4 B.2.3, PS3.7 annex C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    INVALID_ARGUMENT = 0x0115
    INVALID_INSTANCE = 0x0117
    NO_SUCH_CLASS = 0x0118
    CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    UNRECOGNIZED_OPERATION = 0x0211
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True, slots=True)
class Outcome:
    """A status and, for failures, a comment that names no patient."""

    status: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A request, or a response. What was decoded has the UIDs as sent, without padding: see `uids.is_uid`.

    `message_id` is its own, of a response that of its request, of a C-CANCEL 0. `action` is the Action Type ID of an
    N-ACTION, the Event Type ID of an N-EVENT-REPORT.
    """

    field: int
    message_id: int
    class_uid: str
    instance_uid: str
    has_data_set: bool
    action: int = 0
    status: int = 0  # of a response
    destination: str = ""  # of a C-MOVE request: an AE title
    sub_operations: tuple[int, ...] = ()  # of a response to it: remaining, completed, failed, with a warning


def decode_command(data: bytes) -> Command:
    """The command set (PS3.7 6.3, implicit VR little endian). ProtocolError where it is neither an answerable request
    nor a response."""
    elements = _elements(data)
    field = _number(elements, _FIELD)
    return Command(
        field=field,
        message_id=_message_id(field, elements),
        class_uid=_text(elements.get(_CLASS_UID) or elements.get(_REQUESTED_CLASS_UID)),
        instance_uid=_text(elements.get(_INSTANCE_UID) or elements.get(_REQUESTED_INSTANCE_UID)),
        has_data_set=_number(elements, _DATA_SET_TYPE) != NO_DATA_SET,
        action=int.from_bytes((elements.get(_ACTION_TYPE) or elements.get(_EVENT_TYPE, b""))[:2], "little"),
        status=_number(elements, _STATUS) if field & RESPONSE else 0,
        sub_operations=_sub_operations(elements) if field == C_MOVE_RQ | RESPONSE else (),
    )


def encode_request(request: Command) -> bytes:
    """A request's command set. Its UIDs are the requested ones of an N-ACTION, else the affected ones."""
    asks = request.field == N_ACTION_RQ
    elements = [
        _uid_element(_REQUESTED_CLASS_UID if asks else _CLASS_UID, request.class_uid),
        _US.pack(0, _FIELD, 2, request.field),
        _US.pack(0, _MESSAGE_ID, 2, request.message_id),
    ]
    if request.destination:
        elements.append(_value_element(_DESTINATION, request.destination[:16].encode("ascii", "replace"), b" "))
    if request.field in (C_STORE_RQ, C_FIND_RQ, C_MOVE_RQ):
        elements.append(_US.pack(0, _PRIORITY, 2, _LOW))
    elements.append(_US.pack(0, _DATA_SET_TYPE, 2, 1 if request.has_data_set else NO_DATA_SET))
    if request.instance_uid:
        elements.append(_uid_element(_REQUESTED_INSTANCE_UID if asks else _INSTANCE_UID, request.instance_uid))
    if request.action:
        elements.append(_US.pack(0, _ACTION_TYPE if asks else _EVENT_TYPE, 2, request.action))
    body = b"".join(elements)
    return _GROUP_LENGTH_IS + _UL.pack(len(body)) + body


def encode_response(command: Command, status: int, comment: str = "") -> bytes:
    """The response to `command`, without a data set. `comment` (LO, 64 characters) goes with failures."""
    before, after = _response(command.class_uid[:64], command.field, status, comment)
    instance = _uid_element(_INSTANCE_UID, command.instance_uid) if command.instance_uid else b""
    size = len(before) + 2 + len(after) + len(instance)
    return b"".join((_GROUP_LENGTH_IS, _UL.pack(size), before, _NUMBER.pack(command.message_id), after, instance))


@functools.lru_cache(maxsize=256)
def _response(class_uid: str, field: int, status: int, comment: str) -> tuple[bytes, bytes]:
    """What is the same in many responses: before and after the number of the message responded to."""
    before = _uid_element(_CLASS_UID, class_uid) if class_uid else b""
    before += _US.pack(0, _FIELD, 2, field | RESPONSE) + _ELEMENT.pack(0, _RESPONDED_ID, 2)
    after = _US.pack(0, _DATA_SET_TYPE, 2, NO_DATA_SET) + _US.pack(0, _STATUS, 2, status)
    if comment:
        after += _value_element(_COMMENT, comment[:64].encode("ascii", "replace"), b" ")
    return before, after


def _elements(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        if at + 8 > end:
            raise ProtocolError("a command element is cut short")
        group, element, length = _ELEMENT.unpack_from(data, at)
        start = at + 8
        at = start + length
        if group != 0 or at > end:
            raise ProtocolError("a command set holds what is no command element")
        found[element] = data[start:at]
    return found


def _number(elements: dict[int, bytes], element: int) -> int:
    value = elements.get(element)
    if value is None or len(value) != 2:
        raise ProtocolError(f"a command set without (0000,{element:04X})")
    number: int = _NUMBER.unpack(value)[0]
    return number


def _message_id(field: int, elements: dict[int, bytes]) -> int:
    if field == C_CANCEL_RQ:  # has none of its own (PS3.7 9.3.2.3), and that of what it cancels is asked for by nobody
        return 0
    return _number(elements, _RESPONDED_ID if field & RESPONSE else _MESSAGE_ID)


def _sub_operations(elements: dict[int, bytes]) -> tuple[int, ...]:
    return tuple(int.from_bytes(elements.get(each, b"")[:2], "little") for each in _SUB_OPERATIONS)


def _text(value: bytes | None) -> str:
    return value.rstrip(b"\0 ").decode("ascii", "replace") if value else ""


def _uid_element(element: int, uid: str) -> bytes:
    return _value_element(element, uid[:64].encode("ascii", "replace"), b"\0")


def _value_element(element: int, value: bytes, pad: bytes) -> bytes:
    value += pad * (len(value) % 2)
    return _ELEMENT.pack(0, element, len(value)) + value
