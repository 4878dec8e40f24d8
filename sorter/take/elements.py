"""A walk over the elements of a data set (PS3.5 section 7), in one pass, in bounded memory.

It never builds a data set: sequences are stepped over, pixel values are digested, and only the top-level elements that
were asked for are kept, as bytes. Whatever the bytes are, the walk ends: in a result, or in `Quarantine` with a reason.

`sorter.take.inflate` runs this module in a limited child process, so it imports quickly: the standard library only.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from sorter.errors import Quarantine

STEP = 256 << 10
"""Bytes read at a time; what the walk holds in memory is about twice this."""

LONGEST = 16 << 10
"""Bytes kept of one wanted value, where its reader asks for no more; what is longer is cut there."""

SHORT = 256
"""Bytes up to which `outline` gives a value itself."""

MOST_OUTLINED = 50_000
"""Top-level elements that `outline` gives."""

DEEPEST = 64
"""Levels of nested sequences and items without a length; real images have fewer than ten."""

MOST = 300_000
"""Elements and items walked in any file; a larger file may have one more for every `BYTES_EACH` of its bytes.

A frame of an enhanced image has about 150 of them, and 70 bytes and more for each, its pixels included. Made only of
empty items, a file has 8: it is refused after a second for every 20 MB.
"""

BYTES_EACH = 32

UNDEFINED = 0xFFFFFFFF

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
_PIXELS = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009, 0x56000020})  # and float, double, spectroscopy data
_WITH_CARE = frozenset({0x0000, 0xFFFE, 0x7FE0, 0x5600})  # groups of padding, items and pixels
_LONG_LENGTH = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_FAR = 1 << 62

LONGEST_TEXT = 1024
"""Characters kept of one text value."""

LATIN = "iso8859"
CONTROL = dict.fromkeys((*range(32), *range(127, 160))) | dict.fromkeys((9, 10, 11, 12, 13), " ")
"""What becomes of control characters in text, as `str.translate` takes it."""

_MOST_ZEROS = 1 << 20  # of padding after the pixels: some writers fill up to a block of their medium
_MOST_ZEROS_BARE = 4096  # without pixels: zeros may be room set aside for what is still to be written


Read: TypeAlias = Callable[[int], bytes]
"""Gives up to so many of the next bytes; none at the end."""


class Truncated(Quarantine):
    """The file ends too early: broken, or still being written. More bytes could mend it."""


class Sink(Protocol):
    """What bytes are digested into."""

    def update(self, data: bytes, /) -> None: ...


class Codec(NamedTuple):
    """How element headers are written: with the VR or without, and in which byte order (PS3.5 annex A)."""

    explicit: bool
    order: str  # "<" or ">"
    head: struct.Struct  # explicit: group, element, VR, 16-bit length; implicit: group, element, 32-bit length
    long: struct.Struct


def _codec(explicit: bool, order: str) -> Codec:
    return Codec(explicit, order, struct.Struct(order + ("HH2sH" if explicit else "HHL")), struct.Struct(order + "L"))


IMPLICIT = _codec(False, "<")
EXPLICIT = _codec(True, "<")
BIG_ENDIAN = _codec(True, ">")


class _NoSink:
    def update(self, data: bytes, /) -> None:
        pass


class Stream:
    """Bytes in order through a window of `STEP`, digested as they pass.

    `end` is the offset at which the bytes end, None where that is not known before. Everything read goes into `whole`;
    what the walk has passed goes into the current sink (`divert`).
    """

    def __init__(self, read: Read, end: int | None, whole: Sink | None = None) -> None:
        self._read, self._whole = read, whole
        self.end = end
        self.buf, self.pos, self._mark = b"", 0, 0
        self._base = 0  # offset of buf[0]
        self._sink: Sink = _NoSink()

    @property
    def offset(self) -> int:
        return self._base + self.pos

    def left(self) -> int:
        """Bytes from here to the end; a large number where the end is not known."""
        return _FAR if self.end is None else self.end - self._base - self.pos

    def _block(self) -> bytes:
        block = self._read(STEP)
        if self._whole is not None:
            self._whole.update(block)
        return block

    def _settle(self) -> None:
        if self._mark < self.pos:
            whole = self._mark == 0 and self.pos == len(self.buf)
            self._sink.update(self.buf if whole else self.buf[self._mark : self.pos])
            self._mark = self.pos

    def divert(self, sink: Sink) -> None:
        """What is passed from here on goes into `sink`."""
        self._settle()
        self._sink = sink

    def fill(self, size: int) -> int:
        """Bytes at `pos` that are in the window: at least `size` unless the file ends before."""
        have = len(self.buf) - self.pos
        if have >= size:
            return have
        self._settle()
        rest = self.buf[self.pos :]
        self._base += self.pos
        while len(rest) < size and (block := self._block()):
            rest += block
        self.buf, self.pos, self._mark = rest, 0, 0
        return len(rest)

    def skip(self, size: int) -> int:
        """Pass `size` bytes; the number that was missing at the end of the file."""
        have = len(self.buf) - self.pos
        while size > have:
            self.pos += have
            size -= have
            self._settle()
            block = self._block()
            if not block:
                return size
            self._base += len(self.buf)
            self.buf, self.pos, self._mark = block, 0, 0
            have = len(block)
        self.pos += size
        return 0

    def drain(self) -> None:
        """Pass everything that is left."""
        while self.skip(STEP) == 0:
            pass
        self._settle()

    def element(self, codec: Codec) -> tuple[int, bytes, int]:
        """Tag, VR (b"" where none is written) and length of the element at `pos`, which is then behind its header."""
        if len(self.buf) - self.pos < 12 and (have := self.fill(12)) < 8:
            raise Truncated(f"truncated: {have} bytes are left at the end, too few for an element")
        if not codec.explicit:
            group, element, length = codec.head.unpack_from(self.buf, self.pos)
            self.pos += 8
            return group << 16 | element, b"", length
        group, element, vr, length = codec.head.unpack_from(self.buf, self.pos)
        if group == 0xFFFE:
            (length,) = codec.long.unpack_from(self.buf, self.pos + 4)
            self.pos += 8
            return group << 16 | element, b"", length
        if vr in _LONG_LENGTH:
            if len(self.buf) - self.pos < 12:
                raise Truncated(f"truncated: the file ends within the head of element {name(group << 16 | element)}")
            (length,) = codec.long.unpack_from(self.buf, self.pos + 8)
            self.pos += 4
        self.pos += 8
        return group << 16 | element, vr, length

    def pass_whole(self, codec: Codec, wanted: Mapping[int, int], values: dict[int, tuple[bytes, bytes]]) -> int:
        """Pass the elements that lie whole in the window and need no care, keep the wanted ones; how many.

        This is `element` and `value` in one tight loop: most of the time of a walk is spent here.
        """
        buf, pos, passed = self.buf, self.pos, 0
        size, explicit, head, long = len(buf), codec.explicit, codec.head.unpack_from, codec.long.unpack_from
        vr = b""
        while pos <= size - 12:
            start = pos + 8
            if explicit:
                group, element, vr, length = head(buf, pos)
                if vr in _LONG_LENGTH:
                    (length,) = long(buf, start)
                    start += 4
            else:
                group, element, length = head(buf, pos)
            end, tag = start + length, group << 16 | element
            if end > size or group in _WITH_CARE:
                break
            if tag in wanted:
                values[tag] = vr, buf[start : min(end, start + wanted[tag])]
            pos = end
            passed += 1
        self.pos = pos
        return passed

    def value(self, tag: int, length: int) -> None:
        """Pass a value of `length` bytes."""
        end = self.pos + length
        if end <= len(self.buf):
            self.pos = end
            return
        here, left = self.offset, self.left()
        missing = length - left if length > left else self.skip(length)
        if missing > 0:
            there = length - missing if length <= left else left
            raise Truncated(
                f"truncated: element {name(tag)} at byte {here} says {length} bytes, the file ends after {there}"
            )


def name(tag: int) -> str:
    """A tag as people write it: (7FE0,0010)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def text(raw: bytes) -> str:
    """A value without character set: an AE title, a UID, a code."""
    return raw.decode(LATIN).translate(CONTROL).strip()[:LONGEST_TEXT]


def seems_explicit(head: bytes) -> bool:
    """Does an element that starts with `head` say its VR? Two capital letters as a length would be 16 KB and more."""
    return len(head) >= 6 and 0x40 < head[4] < 0x5B and 0x40 < head[5] < 0x5B


@dataclass
class Walked:
    """What a walk found. `values` are the VR as the file gives it (b"" where it gives none) and the bytes, by tag."""

    values: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    dataset: str = ""
    pixels: str = ""
    order: str = "<"  # of numbers: "<" or ">"
    compressed: bool = False  # the pixel value is encapsulated (PS3.5 A.4)


class _Walk:
    def __init__(self, stream: Stream, codec: Codec, wanted: Mapping[int, int]) -> None:
        self.stream, self.codec, self.wanted = stream, codec, wanted
        self.found = Walked(order=codec.order)
        self.rest, self.pixels = hashlib.sha256(), hashlib.sha256()
        self.pixel_bytes = 0
        self.steps = 0
        self.most = MOST + (stream.end or 0) // BYTES_EACH

    def run(self) -> Walked:
        stream = self.stream
        stream.divert(self.rest)
        while stream.fill(12) >= 8:
            self.step(stream.pass_whole(self.codec, self.wanted, self.found.values))
            if stream.fill(12) < 8:
                break
            tag, vr, length = stream.element(self.codec)
            self.step()
            if tag == 0 and self.zeros_follow(length):
                break
            self.top(tag, vr, length)
        self.end()
        found = self.found
        stream.divert(self.rest)
        if self.pixel_bytes:
            found.pixels = self.pixels.hexdigest()
            self.rest.update(found.pixels.encode())
        found.dataset = self.rest.hexdigest()
        return found

    def outline(self) -> dict[int, tuple[bytes, bytes]]:
        stream, found = self.stream, dict[int, tuple[bytes, bytes]]()
        while stream.fill(12) >= 8:
            tag, vr, length = stream.element(self.codec)
            self.step()
            if tag == 0 and self.zeros_follow(length):
                break
            digest = hashlib.sha256()
            stream.divert(digest)
            if tag not in _PIXELS and length <= SHORT and stream.fill(length) >= length:
                found[tag] = vr, stream.buf[stream.pos : stream.pos + length]
            self.top(tag, vr, length)
            stream.divert(_NoSink())
            if tag not in _PIXELS and tag not in found:
                found[tag] = vr, digest.digest()
            if len(found) > MOST_OUTLINED:
                raise Quarantine(f"more than {MOST_OUTLINED:,} elements outside of sequences: no image has as many")
        return found

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > self.most:
            raise Quarantine(f"more than {self.most:,} elements: no image of its size has as many")

    def top(self, tag: int, vr: bytes, length: int) -> None:
        stream = self.stream
        if tag in _PIXELS:
            self.pixel_value(tag, length)
        elif length == UNDEFINED:
            self.nested(tag, vr)
        else:
            if tag in self.wanted:
                keep = min(length, self.wanted[tag])
                stream.fill(min(keep, max(stream.left(), 0)))
                self.found.values[tag] = vr, stream.buf[stream.pos : stream.pos + keep]
            stream.value(tag, length)

    def pixel_value(self, tag: int, length: int) -> None:
        if length == UNDEFINED:
            self.found.compressed = True
            self.fragments(tag)
            return
        self.pixel_bytes += length
        self.stream.divert(self.pixels)
        self.stream.value(tag, length)
        self.stream.divert(self.rest)

    def fragments(self, tag: int) -> None:
        """Encapsulated pixel data (PS3.5 A.4): the items but the first, which is the table of offsets."""
        stream, first = self.stream, True
        while True:
            found, _, length = self.item_head(tag)
            if found == _SEQUENCE_END:
                return
            if found != _ITEM or length == UNDEFINED:
                raise Quarantine(f"broken pixel data: {name(found)} at byte {stream.offset - 8} is no fragment")
            stream.fill(4)
            if first and (length < 4 or stream.buf[stream.pos : stream.pos + 4] == b"\0\0\0\0"):
                stream.value(
                    tag, length
                )  # offsets start with 0; anything else is a fragment where the table is missing
            else:
                self.pixel_bytes += length
                stream.divert(self.pixels)
                stream.value(tag, length)
                stream.divert(self.rest)
            first = False

    def item_head(self, tag: int) -> tuple[int, bytes, int]:
        if self.stream.fill(8) < 8:
            raise Truncated(f"truncated: the file ends within element {name(tag)}, before its end is marked")
        self.step()
        return self.stream.element(self.codec)

    def nested(self, tag: int, vr: bytes) -> None:
        """Step over a sequence without a length (PS3.5 7.5), without recursion.

        `levels` holds the codec of the sequence, of its item, of a sequence in that item, and so on; so an odd number
        of levels means: an item or the sequence's end comes next.
        """
        stream = self.stream
        levels = [self.inner(self.codec, vr)]
        while levels:
            if len(levels) % 2 == 0:
                self.step(stream.pass_whole(levels[-1], {}, self.found.values))
            if stream.fill(12) < 8:
                raise Truncated(f"truncated: the file ends within sequence {name(tag)}")
            self.step()
            found, inner_vr, length = stream.element(levels[-1])
            if len(levels) % 2:
                self.in_sequence(levels, found, length)
            elif found == _ITEM_END:
                levels.pop()
            elif found in (_ITEM, _SEQUENCE_END):
                raise Quarantine(
                    f"broken sequence {name(tag)}: {name(found)} at byte {stream.offset - 8} within an item"
                )
            elif length == UNDEFINED:
                self.deeper(levels, self.inner(levels[-1], inner_vr))
            else:
                stream.value(found, length)

    def in_sequence(self, levels: list[Codec], found: int, length: int) -> None:
        stream = self.stream
        if found == _SEQUENCE_END:
            levels.pop()
        elif found != _ITEM:
            raise Quarantine(f"broken sequence: {name(found)} at byte {stream.offset - 8} where an item should start")
        elif length == UNDEFINED:
            stream.fill(8)
            self.deeper(levels, self.item_codec(levels[-1], stream.buf[stream.pos : stream.pos + 8]))
        else:
            stream.value(_ITEM, length)

    def deeper(self, levels: list[Codec], codec: Codec) -> None:
        if len(levels) >= 2 * DEEPEST:
            raise Quarantine(f"sequences nested more than {DEEPEST} deep")
        levels.append(codec)

    @staticmethod
    def inner(outer: Codec, vr: bytes) -> Codec:
        """Of a sequence: UN without a length holds implicit VR little endian, whatever is around it (PS3.5 6.2.2)."""
        return IMPLICIT if vr == b"UN" else outer

    @staticmethod
    def item_codec(outer: Codec, head: bytes) -> Codec:
        """Of an item: some scanners write private sequences without VRs into an explicit data set."""
        if not outer.explicit or len(head) < 8 or head[:2] in (b"\xfe\xff", b"\xff\xfe") or seems_explicit(head):
            return outer
        return _codec(False, outer.order)

    def zeros_follow(self, length: int) -> bool:
        """At an element (0000,0000): is it padding? Then pass it, to the end of the file."""
        stream = self.stream
        if length:
            return False
        most = _MOST_ZEROS if self.pixel_bytes else _MOST_ZEROS_BARE
        passed = 0
        while have := stream.fill(1):
            if stream.buf.count(b"\0", stream.pos) != have:
                raise Quarantine(f"zeros and then other bytes after the last element, from byte {stream.offset - 8} on")
            passed += have
            if passed > most:
                raise Truncated(f"truncated: more than {most} zero bytes follow the last element")
            stream.skip(have)
        return True

    def end(self) -> None:
        """At most seven bytes are left: padding, or the file is broken."""
        stream = self.stream
        have = stream.fill(8)
        if have and stream.buf.count(b"\0", stream.pos) != have:
            raise Truncated(f"truncated: {have} bytes are left at the end, too few for an element")
        stream.skip(have)
        if stream.end is not None and stream.left() > 0:
            raise Truncated(f"truncated: the file became shorter while it was read, {stream.left()} bytes are missing")


def true_codec(stream: Stream, codec: Codec) -> Codec:
    """Corrected where the first element shows that the file meta information is wrong about it, as pydicom does."""
    stream.fill(8)
    head = stream.buf[stream.pos : stream.pos + 8]
    if codec.explicit and len(head) == 8 and head[:2] != b"\0\0" and not seems_explicit(head):
        return _codec(False, codec.order)
    return EXPLICIT if not codec.explicit and seems_explicit(head) else codec


def walk(stream: Stream, codec: Codec, wanted: Mapping[int, int]) -> Walked:
    """Walk the data set at the stream's position to the end of the file.

    `wanted` are tags as numbers (0x00100010), with the bytes to keep of each value. Quarantine, Truncated: the reason.
    """
    return _Walk(stream, true_codec(stream, codec), wanted).run()


def outline(stream: Stream, codec: Codec) -> dict[int, tuple[bytes, bytes]]:
    """VR and value of every top-level element but pixel values, of the data set at the stream's position.

    A value of more than `SHORT` bytes, and every sequence without a length, is given as its SHA-256. Quarantine: the
    elements are broken, or more than `MOST_OUTLINED`.
    """
    return _Walk(stream, true_codec(stream, codec), {}).outline()
