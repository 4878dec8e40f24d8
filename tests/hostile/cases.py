"""The hostile set: what a broken writer, a broken disk or an enemy could leave in incoming/, and what becomes of it.

Every file is made here, byte by byte, the same for every run. A case says how many images must be taken of it, what
must be set aside for which reason, and what must wait because more bytes could mend it.
"""

from __future__ import annotations

import gzip
import io
import itertools
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import zstandard
from pydicom.datadict import dictionary_VR, tag_for_keyword

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
JPEG = "1.2.840.10008.1.2.4.50"
MR = "1.2.840.10008.5.1.4.1.1.4"
DIRECTORY = "1.2.840.10008.1.3.10"
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
PIXELS = bytes(range(128))


@dataclass(frozen=True)
class Case:
    """Files by their names below the case's folder, and what must hold of them. `aside`: a pattern for each reason."""

    name: str
    files: dict[str, bytes] = field(repr=False)
    taken: int = 0
    aside: tuple[str, ...] = ()
    waits: int = 0


def taken(name: str, *contents: bytes) -> Case:
    return Case(name, {f"{number}": content for number, content in enumerate(contents)}, taken=len(contents))


def aside(name: str, content: bytes, reason: str, file: str = "file") -> Case:
    return Case(name, {file: content}, aside=(reason,))


def waits(name: str, content: bytes) -> Case:
    return Case(name, {"file": content}, waits=1)


# --- bytes of DICOM ---------------------------------------------------------------------------------------------------

_numbers = itertools.count(1)


def element(tag: int, vr: str, value: bytes, length: int | None = None, syntax: str = EXPLICIT) -> bytes:
    """One element (PS3.5 7.1). `length` is what it says of itself, where that is not the truth."""
    order = ">" if syntax == BIG else "<"
    length = len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<L", length) + value
    if vr in LONG:
        return head + vr.encode() + struct.pack(f"{order}HL", 0, length) + value
    return head + vr.encode("latin-1") + struct.pack(f"{order}H", length) + value


def even(value: bytes, padding: bytes = b" ") -> bytes:
    return value + padding if len(value) % 2 else value


Values = dict[str, bytes | None]


def values(**changes: bytes | None) -> Values:
    """An image of a series of its own; None leaves an element out."""
    number = next(_numbers)
    found: Values = {
        "SOPClassUID": even(MR.encode(), b"\0"),
        "SOPInstanceUID": even(b"1.2.9.%d.1" % number, b"\0"),
        "StudyDate": b"20260102",
        "StudyTime": b"1011",
        "Modality": b"MR",
        "SeriesDescription": b"T1",
        "PatientName": b"Two^Patient ",
        "PatientID": b"P2",
        "StudyInstanceUID": even(b"1.2.9.%d" % number, b"\0"),
        "SeriesInstanceUID": even(b"1.2.9.%d.0" % number, b"\0"),
        "SeriesNumber": b"7 ",
        "InstanceNumber": b"1 ",
        "Rows": struct.pack("<H", 8),
        "Columns": struct.pack("<H", 8),
        "BitsAllocated": struct.pack("<H", 16),
        "PixelData": PIXELS,
    }
    return {**found, **changes}


def data_set(syntax: str = EXPLICIT, more: bytes = b"", **changes: bytes | None) -> bytes:
    """Its bytes; `more` comes before the pixels, in their order by a tag between (0029,0000) and (7FE0,0010)."""
    parts = []
    for keyword, value in values(**changes).items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        vr = "OW" if keyword == "PixelData" else dictionary_VR(tag)
        if value is not None:
            if syntax == BIG and vr == "US":
                value = value[::-1]
            parts.append((tag, element(tag, vr, value, syntax=syntax)))
    return b"".join(
        (more if tag == 0x7FE00010 else b"") + content for tag, content in sorted(parts, key=lambda part: part[0])
    )


def meta(syntax: str | bytes = EXPLICIT, more: bytes = b"", preamble: bytes = bytes(128), group: bytes = b"") -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1)."""
    raw = syntax.encode() if isinstance(syntax, str) else syntax
    body = element(0x00020002, "UI", even(MR.encode(), b"\0")) + element(0x00020003, "UI", b"1.2.9.1\0")
    body += element(0x00020010, "UI", even(raw, b"\0")) + more
    head = group or element(0x00020000, "UL", struct.pack("<L", len(body)))
    return preamble.ljust(128, b"\0")[:128] + b"DICM" + head + body


def file(syntax: str = EXPLICIT, more: bytes = b"", **changes: bytes | None) -> bytes:
    return meta(syntax) + data_set(syntax, more, **changes)


def items(depth: int, inner: bytes = b"") -> bytes:
    """Sequences without lengths within each other, in the private element (0029,1010)."""
    opening = element(0x00291010, "SQ", b"", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return opening * depth + inner + closing * depth


def measured(depth: int) -> bytes:
    """The same with lengths."""
    content = b""
    for _ in range(depth):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
        content = element(0x00291010, "SQ", item)
    return content


def fragments(*parts: bytes, end: bool = True) -> bytes:
    """Encapsulated pixel data (PS3.5 A.4)."""
    content = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in (b"", *parts))
    content += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if end else b""
    return element(0x7FE00010, "OB", content, 0xFFFFFFFF)


def deflated(content: bytes, zeros: int = 0) -> bytes:
    """A deflated data set, with so many MB of zeros behind it."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta(DEFLATED) + machine.compress(content) + squeezed(machine, zeros) + machine.flush()


def gzipped(content: bytes, zeros: int) -> bytes:
    machine = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return machine.compress(content) + squeezed(machine, zeros) + machine.flush()


def squeezed(machine: zlib._Compress | zstandard.ZstdCompressionObj, zeros: int) -> bytes:
    """So many MB of zeros, never in memory at once."""
    return b"".join(machine.compress(bytes(1 << 20)) for _ in range(zeros))


# --- headers ----------------------------------------------------------------------------------------------------------

TEXTS = {
    "up": b"../../../../../../tmp/escaped ",
    "absolute": b"/etc/cron.d/escaped ",
    "dots": b"..",
    "nul": b"a\0b\0../c ",
    "control": b"\x1b]0;title\x07\x1b[2J\r\n\x08x ",
    "4000": b"x" * 4000,
    "reserved": b"CON ",
    "device": b"aux.dcm ",
    "hidden": b".ssh",
    "option": b"-rf ",
    "shell": b"$(touch /tmp/escaped);`id` ",
    "format": b"{0.__class__.__init__.__globals__} ",
    "windows": b"C:\\..\\..\\x ",
    "spaces": b"      ",
}
FIELDS = (
    "PatientID", "PatientName", "StudyDescription", "SeriesDescription", "ProtocolName", "SequenceName", "StudyDate",
    "StudyTime", "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "AccessionNumber",
)  # fmt: skip


def headers() -> Iterator[Case]:
    for keyword in FIELDS:
        for what, text in TEXTS.items():
            change: Values = {keyword: text}
            if keyword in ("ProtocolName", "SequenceName"):
                change["SeriesDescription"] = None
            if keyword == "PatientName":
                change["PatientID"] = None
            yield taken(f"{keyword} {what}", file(**change))


CHARSETS = {
    "overlong slash in UTF-8": (b"ISO_IR 192", b"..\xc0\xaf..\xc0\xafx "),
    "broken UTF-8": (b"ISO_IR 192", b"\xff\xfe\x80\xe2\x82 "),
    "right-to-left override": (b"ISO_IR 192", "a\u202egpj.exe".encode() + b" "),
    "separator of full width": (b"ISO_IR 192", "..／..／x".encode() + b" "),
    "zero width": (b"ISO_IR 192", "a\u200b\u200d\ufeffb".encode()),
    "lone surrogates": (b"ISO_IR 192", b"\xed\xa0\x80\xed\xb0\x80"),
    "ISO 2022 Japanese": (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "ISO 2022 with a slash in two bytes": (b"\\ISO 2022 IR 87", b"\x1b$B././././\x1b(B"),
    "ISO 2022 without its end": (b"\\ISO 2022 IR 87", b"\x1b$B;3E"),
    "escape to nowhere": (b"\\ISO 2022 IR 87", b"\x1b\x1b\x1b$\x1b%G../x"),
    "Korean escape": (b"\\ISO 2022 IR 149", b"Hong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7 "),
    "GB18030": (b"GB18030 ", b"\x81\x30\x81\x30/../\xff\xff"),
    "katakana, where a backslash is a yen": (b"ISO_IR 13 ", b"..\\..\\\xd4\xcf\xc0"),
    "unknown": (b"ISO_IR 9999", b"abc "),
    "4000 sets": (b"ISO 2022 IR 87\\" * 400, b"\x1b$B;3ED\x1b(B"),
    "a path": (b"../../../etc/passwd ", b"abc "),
}


def charsets() -> Iterator[Case]:
    for what, (charset, text) in CHARSETS.items():
        yield taken(f"charset {what}", file(SpecificCharacterSet=charset, PatientName=text, PatientID=None))


UIDS = {
    "with slashes": b"1.2/../../../x",
    "with a backslash": b"1.2\\1.3 ",
    "of letters": b"abc.def ",
    "of 65 characters": b"1." + b"2" * 64,
    "of 4000 characters": b"1." * 2000,
    "of dots": b"....",
    "with a NUL in it": b"1.2\x001.3",
    "with control characters": b"1.2\x1b[2J",
    "with spaces in it": b"1.2 .3",
    "negative": b"-1.2",
    "of digits that are not ASCII": "١.٢".encode() + b" ",
}


def uids() -> Iterator[Case]:
    words = {"SOPInstanceUID": "SOP Instance", "StudyInstanceUID": "Study", "SeriesInstanceUID": "Series"}
    for keyword, word in words.items():
        for what, text in UIDS.items():
            yield (
                aside(f"{keyword} {what}", file(**{keyword: text}), f"{word}.*is not a valid UID")
                if (what != "with a NUL in it")
                else taken(f"{keyword} {what}", file(**{keyword: text}))
            )
        for what, nothing in {"missing": None, "empty": b"", "of spaces": b"    ", "of NULs": b"\0\0"}.items():
            yield aside(f"{keyword} {what}", file(**{keyword: nothing}), f"has no {word}")
        for what, text in {"with zeros in front": b"1.02.0003.%d ", "with spaces around": b" 1.2.4.%d "}.items():
            yield taken(f"{keyword} {what}", file(**{keyword: even(text % next(_numbers))}))
    yield taken("SOP Class UID missing in the data set alone", file(SOPClassUID=None))
    yield aside("SOP Class UID missing", data_set(SOPClassUID=None), "SOP Class UID")
    yield aside("SOP Class UID a path", file(SOPClassUID=b"../../x "), "SOP Class UID is not a valid UID")
    yield taken("SOP Class UID private", file(SOPClassUID=b"1.3.12.2.1107.5.9.1\0"))


# --- the start of the file --------------------------------------------------------------------------------------------

PREAMBLES = {
    "TIFF": b"II*\0\x08\0\0\0",
    "TIFF of the other order": b"MM\0*",
    "PE": b"MZ\x90\0",
    "ELF": b"\x7fELF\x02\x01\x01",
    "PDF": b"%PDF-1.7\n",
    "ZIP": b"PK\x03\x04\x14\0\0\0\x08\0",
    "gzip": b"\x1f\x8b\x08\0",
    "Zstandard": b"\x28\xb5\x2f\xfd",
    "JPEG": b"\xff\xd8\xff\xe0",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "script": b"#!/bin/sh\nrm -rf /tmp/escaped\n",
    "HTML": b"<html><script>alert(1)</script>",
    "text": b"A" * 128,
    "data set": b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
}


def starts() -> Iterator[Case]:
    for what, preamble in PREAMBLES.items():
        yield taken(f"preamble {what}", meta(preamble=preamble) + data_set())
    yield taken("prefix without preamble", meta()[128:] + data_set())
    for what, syntax in {"implicit": IMPLICIT, "explicit": EXPLICIT, "big endian": BIG}.items():
        yield taken(f"neither preamble nor meta, {what}", data_set(syntax))
        yield taken(f"meta without preamble, {what}", meta(syntax)[132:] + data_set(syntax))
    yield taken("preamble and no meta", bytes(128) + b"DICM" + data_set())
    yield taken("meta says implicit, data set explicit", meta(IMPLICIT) + data_set())
    yield taken("meta says explicit, data set implicit", meta(EXPLICIT) + data_set(IMPLICIT))
    yield waits("meta says big endian, data set little", meta(BIG) + data_set())
    yield waits("meta says little endian, data set big", meta() + data_set(BIG))
    yield taken("unknown transfer syntax", meta("1.2.3.4.5") + data_set())
    yield taken("transfer syntax a path", meta("../../../etc/passwd") + data_set())
    yield taken("transfer syntax of 4000 characters", meta("1." * 2000) + data_set())
    yield taken("transfer syntax empty", meta(b"") + data_set())
    yield taken("compressed by its meta, native by its pixels", meta(JPEG) + data_set())
    yield taken("meta names another instance", meta().replace(b"1.2.9.1\0", b"9.9.9.9\0") + data_set())
    yield taken("meta names another class", meta().replace(MR.encode(), MR.replace(".4", ".2").encode()) + data_set())
    yield taken("meta without its length", meta(group=b"\x02\0\x01\0OB\0\0\2\0\0\0\0\1") + data_set())
    for length in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        group = element(0x00020000, "UL", struct.pack("<L", length))
        yield taken(f"meta says it has {length} bytes", meta(group=group) + data_set())
    for what, title in {"a path": b"../../x ", "control": b"\x1b[2J\r\n", "4000": b"A" * 4000}.items():
        yield taken(f"sender's title {what}", meta(more=element(0x00020016, "AE", title)) + data_set())
    endless = element(0x00020102, "OB", b"", 0xFFFFFFFF)
    yield aside("meta with an element without length", meta(more=endless) + data_set(), "has no length")
    yield waits("meta with an element of 4 GB", meta(more=element(0x00020102, "OB", b"", 0xFFFFFFFE)) + data_set())
    yield taken("meta with 1 MB in it", meta(more=element(0x00020102, "OB", bytes(1 << 20))) + data_set())
    many = element(0x00020102, "OB", b"")
    yield taken("meta with 10,000 elements", meta(more=many * 10_000) + data_set())
    yield waits("meta alone", meta())
    yield waits("preamble and prefix alone", bytes(128) + b"DICM")


OTHERS = {
    "text": (b"Dear colleague,\n" * 40, "text"),
    "text with DICM in its place": (b"x" * 128 + b"DICM" + b" is a standard. " * 40, "not DICOM|no data set"),
    "XML": (b"<?xml version='1.0'?><a/>" + b"\n" * 200, "text"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4, "JPEG"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "PNG"),
    "PDF": (b"%PDF-1.4\n" + bytes(range(256)) * 4, "PDF"),
    "Office": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(range(256)) * 4, "Office"),
    "database": (b"SQLite format 3\0" + bytes(range(256)) * 4, "database"),
    "NIfTI": (bytes([92, 1, 0, 0]) + bytes(340) + b"n+1\0" + bytes(100), "NIfTI"),
    "ELF": (b"\x7fELF" + bytes(range(256)) * 4, "not DICOM"),
    "noise": (bytes((each * 7919 + 13) % 251 for each in range(4000)), "not DICOM"),
    "a directory": (meta().replace(MR.encode().ljust(26, b"\0"), DIRECTORY.encode().ljust(26, b"\0")), "DICOMDIR"),
    "a directory without preamble": (b"\x04\0\0\0\x04\0\0\0abcd" + bytes(200), "DICOMDIR"),
}


def others() -> Iterator[Case]:
    for what, (content, reason) in OTHERS.items():
        yield aside(f"no DICOM: {what}", content, reason)
    lying = OTHERS["a directory"][0] + element(0x00041500, "CS", b"..\\..\\..\\ETC\\PASSWD ")
    yield aside("a directory that lists /etc/passwd", lying, "DICOMDIR", "DICOMDIR")
    yield waits("empty", b"")
    yield waits("one byte", b"\x08")
    yield waits("zeros", bytes(4096))
    yield waits("1 MB of zeros", bytes(1 << 20))


# --- files that end too early -----------------------------------------------------------------------------------------


def truncated() -> Iterator[Case]:
    for what, syntax in {"implicit": IMPLICIT, "explicit": EXPLICIT, "big endian": BIG}.items():
        start, content = (
            len(meta(syntax)),
            file(syntax, items(2, element(0x00291011, "LO", b"ab")) * (syntax == EXPLICIT)),
        )
        pixels = content.index(PIXELS)
        places = {
            "in the preamble": 100, "in the prefix": 130, "in the meta": 150, "after the meta": start,
            "in the first head": start + 3, "in the first value": start + 20, "before the pixels' head": pixels - 4,
            "before the pixels": pixels, "in the pixels": pixels + 60, "before the last byte": len(content) - 1,
        }  # fmt: skip
        for where, place in places.items():
            yield waits(f"{what} cut {where}", content[:place])
    nested = items(3, element(0x00291011, "LO", b"ab"))
    whole = file(more=nested)
    start = whole.index(nested)
    for place in range(1, len(nested), 9):
        yield waits(f"cut in nested sequences, byte {place}", whole[: start + place])
    compressed = meta(JPEG) + data_set(PixelData=None) + fragments(b"\xff\xd8" * 8, b"\xff\xd9" * 8)
    start = compressed.index(b"\xe0\x7f\x10\0")
    for place in range(4, len(compressed) - start, 9):
        yield waits(f"cut in fragments, byte {place}", compressed[: start + place])
    yield waits("pixels never written", file(PixelData=None))
    yield waits("zeros where pixels should be", file(PixelData=None) + bytes(8192))
    yield waits("says 4 GB of pixels", file(PixelData=None) + element(0x7FE00010, "OW", PIXELS, 0xFFFFFFFE))
    yield waits("says 4 GB of text", file(more=element(0x00291010, "UT", b"abc ", 0xFFFFFFFE)))


# --- structure --------------------------------------------------------------------------------------------------------


def structures() -> Iterator[Case]:
    yield aside("5,000 sequences within each other", file(more=items(5000)), "nested more than")
    yield aside("1,000 sequences in 20 KB", file(more=items(1000)), "nested more than")
    yield taken("60 sequences within each other", file(more=items(30)))
    yield taken("2,000 sequences with lengths", file(more=measured(2000)))
    yield aside("1,000 openings and no end", file(more=items(1000)[: 20 * 1000]), "nested more than|broken")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    endless = element(0x00291010, "SQ", b"", 0xFFFFFFFF)
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    yield aside("1,000,000 empty items", file(more=endless + item * 1_000_000 + end), "more than .* elements")
    yield taken("10,000 empty items", file(more=endless + item * 10_000 + end))
    private = b"".join(element(0x00290000 + each, "UN", b"") for each in range(0x10, 0xF000))
    yield taken("60,000 private elements", file(more=private))
    yield aside("element of a sequence without items", file(more=endless + element(0x00291011, "LO", b"ab")), "broken")
    yield aside("end of an item within nothing", file(more=endless + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)), "broken")
    yield aside(
        "an item in an item", file(more=endless + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + item), "broken"
    )
    yield taken("an end of a sequence outside of any", file(more=end))
    yield taken("an item outside of any sequence", file(more=item))
    yield waits("an item longer than the file", file(more=endless + struct.pack("<HHL", 0xFFFE, 0xE000, 1 << 30)))
    yield aside("a text without length", file(more=element(0x00291010, "UT", b"", 0xFFFFFFFF)), "broken sequence")
    for vr in ("ZZ", "lo", "\0\0", "  ", "S\xff"):
        yield Case(f"VR {vr!r}", {"x": file(more=element(0x00291010, vr, b"ab"))}, taken=-1)
    yield taken("odd lengths", file(PatientID=b"P", more=element(0x00291010, "LO", b"abc")))
    yield taken("the same element twice", file(more=element(0x00100020, "LO", b"P3") * 2))
    yield taken("elements in disorder", meta() + element(0x00180050, "DS", b"1 ") + data_set())
    yield taken("10,000 values of one element", file(ImageType=b"A\\" * 10_000))
    yield taken("16 MB in a private element", file(more=element(0x00291010, "OB", bytes(16 << 20))))
    yield taken("pixels twice", file() + element(0x7FE00010, "OW", PIXELS))
    yield taken("padding after the pixels", file() + bytes(512))
    yield taken("padding as an element", file() + element(0xFFFCFFFC, "OB", bytes(100)))
    yield waits("a ZIP after the pixels", file() + zipped({"a": b"b" * 50}))
    noise = bytes((each * 7919 + 13) % 251 for each in range(400))
    yield waits("noise after the pixels", file() + noise)
    yield aside("zeros, then bytes", file() + bytes(64) + b"more bytes", "zeros and then other bytes")
    yield taken("compressed", meta(JPEG) + data_set(PixelData=None) + fragments(b"\xff\xd8" * 8))
    yield aside("compressed, and no meta", data_set(PixelData=None) + fragments(b"\xff\xd8"), "no file meta")
    yield waits("fragments without end", meta(JPEG) + data_set(PixelData=None) + fragments(b"\xff\xd8" * 8, end=False))
    broken = element(0x7FE00010, "OB", struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF), 0xFFFFFFFF)
    yield aside("a fragment without length", meta(JPEG) + data_set(PixelData=None) + broken, "no fragment")
    yield taken("100,000 fragments", meta(JPEG) + data_set(PixelData=None) + fragments(*[b"\xff\xd8"] * 100_000))


def deflates() -> Iterator[Case]:
    whole = deflated(data_set())
    yield taken("deflated", whole)
    yield waits("deflated, cut", whole[:-20])
    yield aside("deflated, not really", meta(DEFLATED) + b"\xff" * 400, "cannot be inflated")
    bomb = data_set(PixelData=None) + element(0x7FE00010, "OW", b"", 0x20000000)
    yield aside("deflate bomb of 500 MB", deflated(bomb, 512), "times larger")
    yield aside("deflated, 5,000 deep", deflated(data_set(more=items(5000))), "nested more than")
    yield waits("deflated nothing", deflated(b""))


# --- files together ---------------------------------------------------------------------------------------------------


def together() -> Iterator[Case]:
    same = file()
    yield Case("the same twice", {"a": same, "b": same}, taken=2)
    uid = {"SOPInstanceUID": b"1.2.8.1", "StudyInstanceUID": b"1.2.8 ", "SeriesInstanceUID": b"1.2.8.0 "}
    first, other = file(**uid), file(**uid, PixelData=PIXELS[::-1])
    yield Case(
        "other pixels, same UID", {"a": first, "b": other, "c": file(**uid, PixelData=PIXELS[1:] + b"\0")}, taken=3
    )
    uid = {name: value.replace(b".8", b".7") for name, value in uid.items()}
    yield Case("other headers, same UID", {"a": file(**uid), "b": file(**uid, PatientID=b"P9")}, taken=2)
    uid = {name: value.replace(b".7", b".6") for name, value in uid.items()}
    yield Case("other syntax, same UID", {"a": file(**uid), "b": file(IMPLICIT, **uid)}, taken=2)
    uid["SeriesInstanceUID"] = b"1.2.6.9 "
    yield Case("same UID in another series", {"a": file(**uid)}, taken=1)
    names = {
        "NFC and NFD": ("M\u00fcller", "Mu\u0308ller"),
        "two cases": ("ANNA", "Anna"),
        "look-alikes": ("A", "\u0391"),
    }
    for what, pair in names.items():
        files = {}
        for name in pair:
            raw = even(name.encode())
            files[name] = file(SpecificCharacterSet=b"ISO_IR 192", PatientID=raw, StudyInstanceUID=b"1.2.5 ")
        yield Case(f"twins: {what}", files, taken=2)
    for what, name in {
        "a newline": "a\nb", "escapes": "\x1b[2J\x07", "bytes that are no UTF-8": "\udcff\udcfe",
        "255 bytes": "x" * 255,
        "a dash": "-rf", "a wildcard": "*", "quotes": "';\"", "no dot": "IM_0001", "IMA": "1.2.IMA", "img": "1.img",
        "right to left": "\u202egpj.mcd", "spaces": " ", "reserved": "nul.dcm",
    }.items():  # fmt: skip
        yield Case(f"a file named with {what}", {name: file()}, taken=1)
        yield Case(f"junk named with {what}", {name: b"junk, %d, " % next(_numbers) * 30}, aside=("text",))
    deep = "/".join(["d"] * 55)
    yield Case("55 folders deep", {f"{deep}/x": file()}, taken=1)


# --- archives ---------------------------------------------------------------------------------------------------------

IMAGE = file()  # one and the same in all of them: what counts is what becomes of the rest


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def tarred(*entries: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry in entries:
            if isinstance(entry, tuple):
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
            else:
                archive.addfile(entry)
    return buffer.getvalue()


def special(kind: bytes, name: str, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tar_header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header whose size field is as given."""
    raw = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    raw += b" " * 8 + kind + bytes(100) + b"ustar  \0" + bytes(247)
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def overlapping() -> bytes:
    """Many entries of the directory, one content: each is unpacked from the same bytes."""
    content = zipped({"a": bytes(100_000)})
    start = content.index(b"PK\x01\x02")
    record, end = content[start : content.index(b"PK\x05\x06")], content[content.index(b"PK\x05\x06") :]
    many = record * 500
    return content[:start] + many + end[:8] + struct.pack("<HHLL", 500, 500, len(many), start) + end[20:]


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as entry:
        for _ in range(200):
            entry.write(bytes(1 << 20))
    return buffer.getvalue()


def nested_zips(levels: int) -> bytes:
    content = bytes(1 << 20)
    for level in range(levels):
        content = zipped({f"{level}-{number}.zip": content for number in range(4)})
    return content


def archives() -> Iterator[Case]:
    names = (
        "../../../../tmp/escaped",
        "/tmp/escaped",
        "a/../../../../../tmp/escaped",
        "..\\..\\escaped",
        "C:/escaped",
        "",
    )
    for number, name in enumerate(names[:-1]):
        yield aside_in(f"ZIP with {name}", zipped({name: b"junk %d, " % number * 99}), "text")
        yield aside_in(f"tar with {name}", tarred((name, b"rubbish %d, " % number * 99)), "text")
        yield Case(f"ZIP with an image at {name}", {"a": zipped({name: IMAGE, str(number): IMAGE})}, taken=2)
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("link/x", IMAGE)
    yield Case("ZIP with a file below a symbolic link", {"a.zip": buffer.getvalue()}, taken=1)
    yield Case(
        "tar with a file below a symbolic link",
        {"a.tar": tarred(special(tarfile.SYMTYPE, "link", "/tmp"), ("link/escaped", IMAGE))},
        taken=1,
    )
    for kind, what in {tarfile.LNKTYPE: "hard link", tarfile.CHRTYPE: "device", tarfile.FIFOTYPE: "pipe"}.items():
        yield Case(f"tar with a {what}", {"a": tarred(special(kind, "x", "/etc/shadow"), ("i", IMAGE))}, taken=1)
    yield aside("ZIP bomb, flat", zip_bomb(), "times larger")
    yield aside("ZIP bomb, overlapping", overlapping(), "on top of each other")
    yield Case("ZIP bomb, nested", {"a": nested_zips(3)}, aside=("ZIP archive",) * 4 * 4)
    yield aside("gzip bomb that starts as DICOM", gzipped(bytes(128) + b"DICM", 200), "times larger")
    yield aside("gzip bomb with a tar", gzipped(tar_header(b"a", b"01440000000\0"), 200), "times larger")
    yield aside("gzip in gzip in gzip", gzip.compress(gzip.compress(gzip.compress(IMAGE))), "neither")
    machine = zstandard.ZstdCompressor().compressobj()
    bomb = machine.compress(meta()) + squeezed(machine, 200) + machine.flush()
    yield aside("Zstandard bomb", bomb, "times larger")
    window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    )
    stream = window.compressobj()
    yield aside("Zstandard with a window of 1 GB", stream.compress(IMAGE * 50) + stream.flush(), "broken|memory")
    encrypted = bytearray(zipped({"a": IMAGE}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    yield aside("ZIP, encrypted", bytes(encrypted), "encrypted")
    damaged = bytearray(zipped({"a": IMAGE}, zipfile.ZIP_STORED))
    damaged[400] ^= 1
    yield aside("ZIP with a wrong checksum", bytes(damaged), "could not be read")
    method = zipped({"a": IMAGE}).replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0")
    yield aside("ZIP with an unknown compression", method, "could not be read.*compressed in a way")
    yield aside("ZIP without entries", zipped({}), "without a file")
    yield waits("ZIP without a directory", zipped({"a": IMAGE})[:-60])
    yield waits("ZIP whose head alone is there", b"PK\x03\x04" + bytes(100))
    directory = zipped({"a": IMAGE})
    at = directory.index(b"PK\x05\x06")
    behind = directory[: at + 16] + b"\xff\xff\xff\x7f" + directory[at + 20 :]
    yield aside("ZIP whose directory lies behind its end", behind, "directory is broken|no whole directory")
    lying = bytearray(zipped({"a": IMAGE}))
    lying[lying.index(b"PK\x01\x02") + 24 : lying.index(b"PK\x01\x02") + 28] = b"\xff\xff\xff\xfe"
    yield aside("ZIP that says 4 GB of a small entry", bytes(lying), "times larger")
    short = bytearray(zipped({"a": IMAGE}))
    short[short.index(b"PK\x01\x02") + 24 : short.index(b"PK\x01\x02") + 28] = b"\x10\0\0\0"
    yield aside("ZIP that says 16 bytes of a large entry", bytes(short), "could not be read")
    yield Case("ZIP with one name twice", {"a": zipped_twice()}, taken=1, aside=("text",))
    junk = {f"{number}.txt": b"junk %d " % number * 20 for number in range(300)}
    yield Case("ZIP with 300 files of junk", {"a": zipped(junk)}, aside=("text",) * 300)

    yield waits("tar that says 8 EB", tar_header(b"a", b"\x80" + b"\x7f" * 11) + IMAGE.ljust(2048, b"\0"))
    yield aside(
        "tar with a size below zero", tar_header(b"a", b"\xff" * 12) + bytes(2048), "below zero|broken|no entry"
    )
    yield waits(
        "tar with a longer name than the file", tar_header(b"././@LongLink", b"00077777777\0", b"L") + bytes(2048)
    )
    yield aside(
        "tar with a map of holes", tar_header(b"a", b"00000000000\0", b"S") + bytes(10240), "holes|broken|without"
    )
    yield waits(
        "tar with an endless pax header", tar_header(b"p", b"07777777777\0", b"x") + b"30 path=../../../escaped\n" * 99
    )
    pax = special(tarfile.REGTYPE, "a")
    pax.pax_headers, pax.size = {"path": "../../../../tmp/escaped", "size": "0"}, 0
    yield aside_in("tar whose pax header names a path", tarred(pax, form=tarfile.PAX_FORMAT), "empty")
    yield Case("tar, cut", {"a": tarred(("a", IMAGE), ("b", b"x" * 5000))[:3000]}, taken=1, waits=1)
    twice = tarred(("a", IMAGE)) * 2
    yield Case("tar, and another behind it", {"a": twice}, taken=1, aside=("other bytes follow",))
    yield Case("tar with a broken header", {"a": break_second_header()}, taken=1, aside=("no entry",))
    yield waits("gzip, cut", gzip.compress(IMAGE)[:-9])
    wrong = bytearray(gzip.compress(IMAGE))
    wrong[-6] ^= 1
    yield aside("gzip with a wrong checksum", bytes(wrong), "broken")
    yield aside("gzip with bytes behind it", gzip.compress(IMAGE) + b"more", "other bytes follow")
    yield waits("gzip whose head alone is there", gzip.compress(IMAGE)[:12])


def aside_in(name: str, archive: bytes, reason: str) -> Case:
    """Of an archive that is read to its end, one entry that is set aside."""
    return Case(name, {"archive": archive}, aside=(reason,))


def zipped_twice() -> bytes:
    """Two entries of one name: an image and a text."""
    return zipped({"aaaa": IMAGE, "bbbb": b"text, " * 50}, zipfile.ZIP_STORED).replace(b"bbbb", b"aaaa")


def break_second_header() -> bytes:
    content = bytearray(tarred(("a", IMAGE), ("b", IMAGE)))
    second = 512 + (len(IMAGE) + 511) // 512 * 512
    content[second + 148 : second + 156] = b"7777777\0"
    return bytes(content)


ALL = (headers, charsets, uids, starts, others, truncated, structures, deflates, together, archives)
"""The set in groups; each call makes the files of one, anew."""
