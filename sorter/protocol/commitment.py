"""The data sets of storage commitment (PS3.4 annex J): which instances are asked for, and what a node keeps of them.

Such a data set is a short list, and may be anything: it is read by a parser of its own that keeps a few kinds of
element, never recurses deeper than real lists are nested, and counts its steps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sorter.protocol.elements import LONG, element, item
from sorter.protocol.uids import BIG_ENDIAN, EXPLICIT, IMPLICIT, is_uid, names_an_instance

SYNTAXES = (EXPLICIT, IMPLICIT)
"""What we propose to speak in, and write."""

MOST_BYTES = 4 << 20
"""Of a data set: about 25,000 instances."""

MOST_INSTANCES = 30_000

_TRANSACTION, _SEQUENCE, _FAILED = 0x00081195, 0x00081199, 0x00081198
_CLASS, _SOP_UID, _REASON = 0x00081150, 0x00081155, 0x00081197
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_DEEPEST = 8
_MOST_STEPS = 20 * MOST_INSTANCES  # a list without lengths is walked three times


class Reference(NamedTuple):
    """One SOP instance that is asked for."""

    sop_class: str
    sop_uid: str


class Unreadable(Exception):
    """The data set is no list of storage commitment; the reason names no value of it."""


def parse(data: bytes, transfer: str) -> tuple[str, tuple[Reference, ...]]:
    """Transaction UID and instances (PS3.4 table J.3-1), each instance once; Unreadable where there are none."""
    elements = _Elements(data, transfer)
    transaction, found = "", dict[Reference, None]()
    for tag, start, end in elements.of(0, len(data)):
        if tag == _TRANSACTION:
            transaction = _uid(data[start:end])
        elif tag == _SEQUENCE:
            for item, item_end in elements.items(start, end):
                found[_reference(elements, data, item, item_end)] = None
                if len(found) > MOST_INSTANCES:
                    raise Unreadable(f"more than {MOST_INSTANCES} instances")
    if not is_uid(transaction):
        raise Unreadable("Transaction UID missing or not a UID")
    if not found:
        raise Unreadable("no Referenced SOP Sequence")
    return transaction, tuple(found)


class Report(NamedTuple):
    """What a node answers: what it keeps, and what it does not, with the failure reason (PS3.3 C.14.1.1)."""

    transaction: str
    safe: frozenset[Reference]
    failed: dict[Reference, int]


def parse_report(data: bytes, transfer: str) -> Report:
    """The event information of an N-EVENT-REPORT (PS3.4 table J.3-2); Unreadable where it is none."""
    elements = _Elements(data, transfer)
    transaction, safe, failed = "", set[Reference](), dict[Reference, int]()
    for tag, start, end in elements.of(0, len(data)):
        if tag == _TRANSACTION:
            transaction = _uid(data[start:end])
        elif tag == _SEQUENCE:
            safe.update(_reference(elements, data, *item) for item in elements.items(start, end))
        elif tag == _FAILED:
            for item in elements.items(start, end):
                failed[_reference(elements, data, *item)] = elements.number(*item, _REASON)
    if not is_uid(transaction):
        raise Unreadable("Transaction UID missing or not a UID")
    lost = {each.sop_uid for each in failed}  # under whichever SOP class: of what is named twice the worse is believed
    return Report(transaction, frozenset(each for each in safe if each.sop_uid not in lost), failed)


def _reference(elements: _Elements, data: bytes, start: int, end: int) -> Reference:
    uids = {tag: _uid(data[at:to]) for tag, at, to in elements.of(start, end) if tag in (_CLASS, _SOP_UID)}
    reference = Reference(uids.get(_CLASS, ""), uids.get(_SOP_UID, ""))
    if not (is_uid(reference.sop_class) and names_an_instance(reference.sop_uid)):
        raise Unreadable("a referenced instance without SOP Class and Instance UID")
    return reference


def encode(transfer: str, transaction: str, safe: Iterable[Reference], failed: Mapping[Reference, int]) -> bytes:
    """A question (PS3.4 table J.3-1; nothing has `failed`), or a report (table J.3-2), in one of `SYNTAXES`."""
    parts = [element(transfer, _TRANSACTION, b"UI", transaction.encode())]
    if failed:
        parts.append(_sequence(transfer, _FAILED, ((*each, reason) for each, reason in failed.items())))
    kept = [(*each, None) for each in safe]
    if kept:
        parts.append(_sequence(transfer, _SEQUENCE, kept))
    return b"".join(parts)


def _sequence(transfer: str, tag: int, items: Iterable[tuple[str, str, int | None]]) -> bytes:
    """Of SOP classes and instances, with the failure reason where there is one (PS3.3 C.14)."""
    return element(transfer, tag, b"SQ", b"".join(_item(transfer, *each) for each in items))


def _item(transfer: str, sop_class: str, sop_uid: str, reason: int | None) -> bytes:
    body = element(transfer, _CLASS, b"UI", sop_class.encode()) + element(transfer, _SOP_UID, b"UI", sop_uid.encode())
    if reason is not None:
        body += element(transfer, _REASON, b"US", reason.to_bytes(2, "little"))
    return item(body)


class _Elements:
    """The elements of a data set in memory, native transfer syntaxes (PS3.5 annex A.1 and A.2, and big endian)."""

    def __init__(self, data: bytes, transfer: str) -> None:
        order = ">" if transfer == BIG_ENDIAN else "<"
        self._data, self._explicit = data, transfer != IMPLICIT
        self._tag, self._short, self._word = (struct.Struct(order + each) for each in ("HH", "H", "L"))
        self._steps = 0

    def of(self, start: int, end: int, depth: int = 0) -> Iterator[tuple[int, int, int]]:
        """Tag, start and end of each value between `start` and `end`, or until the item's end is marked."""
        at = start
        while at < end:
            tag, at, length = self._head(at, end)
            if tag == _ITEM_END:
                return
            stop = self._end_of_sequence(at, end, depth + 1) if length == _UNDEFINED else at + length
            if stop > end:
                raise Unreadable("an element is longer than what holds it")
            yield tag, at, stop
            at = stop

    def number(self, start: int, end: int, wanted: int) -> int:
        """The value of an element of VR US; 0 where there is none."""
        for tag, at, stop in self.of(start, end):
            if tag == wanted and stop - at == self._short.size:
                return int(self._short.unpack_from(self._data, at)[0])
        return 0

    def items(self, start: int, end: int, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Start and end of what each item of a sequence holds (PS3.5 7.5)."""
        at = start
        while at < end:
            tag, at, length = self._head(at, end)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise Unreadable("a sequence holds what is no item")
            stop = self._end_of_item(at, end, depth) if length == _UNDEFINED else at + length
            if stop > end:
                raise Unreadable("an item is longer than what holds it")
            yield at, stop
            at = stop

    def _end_of_sequence(self, start: int, end: int, depth: int) -> int:
        """Behind the delimiter of a sequence without a length."""
        if depth > _DEEPEST:
            raise Unreadable("sequences are nested too deeply")
        at = start
        for _, stop in self.items(start, end, depth):
            at = stop
        return self._behind(at, end, _SEQUENCE_END)

    def _end_of_item(self, start: int, end: int, depth: int) -> int:
        at = start
        for _, _, stop in self.of(start, end, depth):
            at = stop
        return self._behind(at, end, _ITEM_END)

    def _behind(self, at: int, end: int, delimiter: int) -> int:
        tag, after, _ = self._head(at, end)
        if tag != delimiter:
            raise Unreadable("a sequence or an item has no end")
        return after

    def _head(self, at: int, end: int) -> tuple[int, int, int]:
        """Tag, start of the value, and its length."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise Unreadable("too many elements")
        if at + 8 > end:
            raise Unreadable("an element is cut short")
        group, element = self._tag.unpack_from(self._data, at)
        vr = self._data[at + 4 : at + 6]
        if group == 0xFFFE or not self._explicit:
            (length,) = self._word.unpack_from(self._data, at + 4)
            return group << 16 | element, at + 8, length
        if vr not in LONG:
            (length,) = self._short.unpack_from(self._data, at + 6)
            return group << 16 | element, at + 8, length
        if at + 12 > end:
            raise Unreadable("an element is cut short")
        (length,) = self._word.unpack_from(self._data, at + 8)
        return group << 16 | element, at + 12, length


def _uid(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("ascii", "replace")
