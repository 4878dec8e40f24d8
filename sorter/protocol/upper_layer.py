"""The DICOM upper layer (PS3.8), of whoever asks for an association and of whoever is asked: PDUs in, PDUs out.

Written by hand where pynetdicom has codecs too: its decoder takes 10 ms for the 128 presentation contexts of a usual
proposal, and answers junk with bare assertions and KeyErrors. The tests hold the two against each other.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLEMENTATION_CLASS_UID = "2.25.69988629887158946819400123722328831240"
IMPLEMENTATION_VERSION_NAME = "SORTER"

_ITEM = struct.Struct(">BxH")
PDU = struct.Struct(">BxI")
PDV = struct.Struct(">IBB")
_REQUEST_HEAD = 68  # of an A-ASSOCIATE-RQ or -AC, after type and length, before its first item

RELEASE_REQUEST = PDU.pack(RELEASE_RQ, 4) + bytes(4)
RELEASE_REPLY = PDU.pack(RELEASE_RP, 4) + bytes(4)


class AbortReason:
    """Reasons of an A-ABORT by the service provider (PS3.8 9.3.8)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class ProtocolError(Exception):
    """The peer broke PS3.8 or PS3.7: the association is aborted with `reason`."""

    def __init__(self, says: str, reason: int = AbortReason.INVALID_PARAMETER) -> None:
        self.reason = reason
        super().__init__(says)


class Released(Exception):
    """The peer asked to release the association, or (`confirmed`) agreed to our own request."""

    def __init__(self, *, confirmed: bool = False) -> None:
        self.confirmed = confirmed
        super().__init__("released")


class Aborted(Exception):
    """The peer aborted the association."""


class Lost(Exception):
    """The connection is gone, or was silent for too long."""


class Stopping(Exception):
    """This process is to end, and no message is in flight."""


# --- association requests and their answers -------------------------------------------------------------------------


class Rejection(Exception):
    """An A-ASSOCIATE-RJ: result 1 permanent or 2 transient, source and reason as in PS3.8 9.3.4."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.pdu = PDU.pack(ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))
        super().__init__(f"rejected: result {result}, source {source}, reason {reason}")


VERSION_NOT_SUPPORTED = (1, 2, 2)
APPLICATION_CONTEXT_NOT_SUPPORTED = (1, 1, 2)
CALLING_NOT_RECOGNIZED = (1, 1, 3)
CALLED_NOT_RECOGNIZED = (1, 1, 7)
TEMPORARY_CONGESTION = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)

REJECTED_BECAUSE = {
    (1, 1): "No reason given",
    (1, 2): "Application context name not supported",
    (1, 3): "Calling AE title not recognised",
    (1, 7): "Called AE title not recognised",
    (2, 1): "No reason given",
    (2, 2): "Protocol version not supported",
    (3, 1): "Temporary congestion",
    (3, 2): "Local limit exceeded",
}
"""By source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

ACCEPTED, ABSTRACT_NOT_SUPPORTED, TRANSFER_NOT_SUPPORTED = 0, 3, 4
"""Results of a presentation context (PS3.8 9.3.3.2)."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A presentation context as proposed: its odd number, an abstract syntax, transfer syntaxes in the peer's order."""

    number: int
    abstract: str
    transfers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context: its number, abstract and transfer syntax."""

    number: int
    abstract: str
    transfer: str


@dataclass(frozen=True, slots=True)
class Role:
    """Which roles of a SOP class the requestor of an association takes (PS3.7 D.3.3.4); without it, that of an SCU."""

    abstract: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class UserItems:
    """The variable items of an A-ASSOCIATE-RQ. `max_length` is the longest P-DATA-TF the peer takes, 0 for any.

    Role selection (see `decode_roles`), asynchronous operations, extended negotiation and user identity are read over:
    without an answer their defaults hold (PS3.7 D.3.3), which are what we do.
    """

    application_context: str
    proposals: tuple[Proposal, ...]
    max_length: int


@dataclass(frozen=True, slots=True)
class Request:
    """An A-ASSOCIATE-RQ: titles as text for people and as sent, and its items, still encoded."""

    calling: str
    called: str
    version: int
    titles: bytes  # called and calling AE title and the reserved bytes, which the answer repeats
    items: bytes


def decode_request(body: bytes) -> Request:
    """The fixed part of an A-ASSOCIATE-RQ (PS3.8 9.3.2), from what follows its length. ProtocolError if cut short."""
    if len(body) < _REQUEST_HEAD:
        raise ProtocolError("association request cut short")
    return Request(
        calling=_title(body[20:36]),
        called=_title(body[4:20]),
        version=int.from_bytes(body[0:2], "big"),
        titles=body[4:_REQUEST_HEAD],
        items=body[_REQUEST_HEAD:],
    )


def decode_items(items: bytes) -> UserItems:
    """The items of an A-ASSOCIATE-RQ (PS3.8 9.3.2); ProtocolError where they do not parse."""
    application, max_length = "", 0
    proposals: dict[int, Proposal] = {}
    for kind, value in _items(items):
        if kind == 0x10:
            application = _uid(value)
        elif kind == 0x20:
            proposal = _proposal(value)
            if proposal.number in proposals:
                raise ProtocolError("a presentation context number was proposed twice")
            proposals[proposal.number] = proposal
        elif kind == 0x50:
            max_length = _max_length(value)
    if not proposals:
        raise ProtocolError("association request without a presentation context")
    return UserItems(application, tuple(proposals.values()), max_length)


def decode_roles(items: bytes) -> tuple[Role, ...]:
    """The roles that the items of an A-ASSOCIATE-RQ propose; ProtocolError where they do not parse."""
    return tuple(
        _role(value) for kind, user in _items(items) if kind == 0x50 for inner, value in _items(user) if inner == 0x54
    )


def encode_request(
    titles: tuple[str, str], proposals: Sequence[Proposal], max_pdu: int, roles: Sequence[Role] = ()
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2). `titles`: called, and calling, AE title, of which 16 characters are sent."""
    called, calling = (title.encode("ascii", "replace")[:16].ljust(16) for title in titles)
    items = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for each in proposals:
        syntaxes = b"".join(_item(0x40, transfer.encode()) for transfer in each.transfers)
        items.append(_item(0x20, bytes((each.number, 0, 0, 0)) + _item(0x30, each.abstract.encode()) + syntaxes))
    body = b"".join((b"\0\1\0\0", called, calling, bytes(32), *items, _user_information(max_pdu, roles)))
    return PDU.pack(ASSOCIATE_RQ, len(body)) + body


def decode_accept(body: bytes) -> tuple[dict[int, tuple[int, str]], int]:
    """What an A-ASSOCIATE-AC (PS3.8 9.3.3) says, from what follows its length: by context number the result and the
    transfer syntax; and the longest P-DATA-TF that the peer takes, 0 for any. ProtocolError where it does not parse."""
    if len(body) < _REQUEST_HEAD:
        raise ProtocolError("the answer to an association request is cut short")
    results: dict[int, tuple[int, str]] = {}
    max_length = 0
    for kind, value in _items(body[_REQUEST_HEAD:]):
        if kind == 0x21:
            if len(value) < 4:
                raise ProtocolError("the answer to a presentation context is cut short")
            transfers = [_uid(sub) for inner, sub in _items(value[4:]) if inner == 0x40]
            results[value[0]] = value[2], next(iter(transfers), "")
        elif kind == 0x50:
            max_length = _max_length(value)
    return results, max_length


def encode_accept(titles: bytes, answers: bytes) -> bytes:
    """An A-ASSOCIATE-AC (PS3.8 9.3.3) of the request's own `titles` and of `encode_answers`."""
    return PDU.pack(ASSOCIATE_AC, 4 + len(titles) + len(answers)) + b"\0\1\0\0" + titles + answers


def encode_answers(results: dict[int, tuple[int, str]], max_pdu: int, roles: Sequence[Role] = ()) -> bytes:
    """The items of an A-ASSOCIATE-AC: by context number the result (PS3.8 9.3.3.2) and the transfer syntax; `roles`
    that were proposed, and are accepted."""
    out = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for number, (result, transfer) in results.items():
        out.append(_item(0x21, bytes((number, 0, result, 0)) + _item(0x40, transfer.encode())))
    return b"".join([*out, _user_information(max_pdu, roles)])


def _user_information(max_pdu: int, roles: Sequence[Role]) -> bytes:
    """The item 50H (PS3.8 annex D), its own items in the order of their numbers."""
    selected = (
        len(each.abstract).to_bytes(2, "big") + each.abstract.encode() + bytes((each.scu, each.scp)) for each in roles
    )
    user = (
        _item(0x51, max_pdu.to_bytes(4, "big")),
        _item(0x52, IMPLEMENTATION_CLASS_UID.encode()),
        *(_item(0x54, each) for each in selected),
        _item(0x55, IMPLEMENTATION_VERSION_NAME.encode()),
    )
    return _item(0x50, b"".join(user))


def encode_abort(reason: int | None = None) -> bytes:
    """An A-ABORT (PS3.8 9.3.8) by the service provider for `reason`, by the service user without one."""
    source = (0, 0) if reason is None else (2, reason)
    return PDU.pack(ABORT, 4) + bytes((0, 0, *source))


def encode_data(context: int, command: bytes, max_length: int) -> bytes:
    """A command set as P-DATA-TF PDUs, none longer than `max_length` (0: any length)."""
    if len(command) + 6 <= max_length or not max_length:
        return PDU.pack(P_DATA, len(command) + 6) + PDV.pack(len(command) + 2, context, 3) + command
    return _fragments(context, command, max_length, (1, 3))


def encode_data_set(context: int, data: bytes, max_length: int, *, last: bool) -> bytes:
    """Bytes of a data set, its last or not, as P-DATA-TF PDUs, none longer than `max_length` (0: any length)."""
    return _fragments(context, data, max_length or len(data) + 6, (0, 2 if last else 0))


def _fragments(context: int, data: bytes, max_length: int, controls: tuple[int, int]) -> bytes:
    """`controls`: the message control header (PS3.8 E.2) of each fragment, and of the last."""
    step, size, view, out = max(1, max_length - 6), len(data), memoryview(data), list[bytes | memoryview]()
    for start in range(0, size, step) if size else (0,):
        piece = view[start : start + step]
        control = controls[start + step >= size]
        out += (PDU.pack(P_DATA, len(piece) + 6), PDV.pack(len(piece) + 2, context, control), piece)
    return b"".join(out)


def pdu_head(data: bytes | bytearray) -> tuple[int, int]:
    """Type and length of a PDU, from its first six bytes."""
    kind, length = PDU.unpack_from(data)
    return kind, length


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ProtocolError("an item is cut short")
        kind, length = _ITEM.unpack_from(data, at)
        at += 4 + length
        if at > len(data):
            raise ProtocolError("an item is longer than what holds it")
        yield kind, data[at - length : at]


def _proposal(value: bytes) -> Proposal:
    if len(value) < 4 or value[0] % 2 == 0:
        raise ProtocolError("a presentation context has no odd number")
    abstract, transfers = "", []
    for kind, sub in _items(value[4:]):
        if kind == 0x30:
            abstract = _uid(sub)
        elif kind == 0x40:
            transfers.append(_uid(sub))
    return Proposal(value[0], abstract, tuple(transfers))


def _role(value: bytes) -> Role:
    size = int.from_bytes(value[:2], "big")
    if len(value) != size + 4:
        raise ProtocolError("a role selection is not as long as its UID says")
    return Role(_uid(value[2:-2]), scu=value[-2] == 1, scp=value[-1] == 1)


def _max_length(user: bytes) -> int:
    for kind, value in _items(user):
        if kind == 0x51:
            if len(value) != 4:
                raise ProtocolError("the maximum length is not four bytes")
            return int.from_bytes(value, "big")
    return 0


def _uid(value: bytes) -> str:
    """As text; old peers pad with NUL or spaces. What is no UID stays recognisable as none."""
    return value.rstrip(b"\0 ").decode("ascii", "replace")


@functools.lru_cache(maxsize=1024)
def _title(value: bytes) -> str:
    """An AE title for people and headers: what its VR forbids becomes "?" (PS3.5 6.2)."""
    text = value.replace(b"\0", b" ").strip(b" ").decode("ascii", "replace")
    return "".join(char if " " <= char <= "~" and char != "\\" else "?" for char in text)
