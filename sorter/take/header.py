"""What sorter needs to know of a file, read in one pass: its UIDs, some header values, three digests.

A hand parse (`sorter.take.elements`) of the tags that are needed, and nothing else: no data set is built, no pixel is
decoded, a deflated data set is inflated only in a limited child process. The bytes may be anything; the answer is a
`Parsed`, or `Quarantine` with the reason in words (`Truncated` where more bytes could mend it).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.datadict import dictionary_VR, tag_for_keyword

import sorter
from sorter.durable import Files
from sorter.errors import Quarantine, TryLater
from sorter.model import Instance, Source, Value
from sorter.take import elements, private, values
from sorter.take.elements import Stream, Truncated, Walked

__all__ = ["NEEDED", "Parsed", "Truncated", "examine", "file_meta"]

NEEDED: tuple[str, ...] = (
    # whose it is
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight",
    "PatientComments", "OtherPatientIDs", "ResponsiblePerson", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID",
    "AccessionNumber", "StudyID", "StudyDescription", "StudyComments", "ReferringPhysicianName", "OperatorsName",
    "PerformingPhysicianName", "RequestedProcedureDescription", "PerformedProcedureStepDescription",
    "PerformedProcedureStepID", "InstitutionName", "InstitutionalDepartmentName",
    # what made it
    "Modality", "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "StationName", "DeviceSerialNumber",
    "MagneticFieldStrength", "BodyPartExamined", "PatientPosition", "ReceiveCoilName",
    # when
    "StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime",
    "ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime",
    # which series
    "SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName", "ScanningSequence",
    "SequenceVariant", "MRAcquisitionType", "FrameOfReferenceUID", "ImageType", "ImageComments",
    # which instance of it, and how many there should be
    "InstanceNumber", "AcquisitionNumber", "EchoNumbers", "EchoTime", "EchoTrainLength", "RepetitionTime",
    "InversionTime", "FlipAngle", "DiffusionBValue", "TriggerTime", "TemporalPositionIdentifier",
    "NumberOfTemporalPositions", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances", "StackID",
    "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SliceThickness",
    "SpacingBetweenSlices", "PixelSpacing", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber", "ConversionType",
    "BurnedInAnnotation", "SpecificCharacterSet",
)  # fmt: skip
"""The keywords of `Parsed.header`, beside the names of `sorter.take.private`. Only elements of the data set itself are
read, not those within sequences."""

_UIDS = {"SOPClassUID": 0x00080016, "SOPInstanceUID": 0x00080018}
_UIDS |= {"StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E}


def _needed() -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    for keyword in NEEDED:
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise AssertionError(f"{keyword} is no DICOM keyword")
        found[tag] = keyword, dictionary_VR(tag)
    return found


_TAGS = _needed()
_WANTED = {**private.wanted(), **dict.fromkeys((*_TAGS, *_UIDS.values()), elements.LONGEST)}
_CHARSET = 0x00080005

IMPLEMENTATION_UID = "2.25.39180519682098639016273818486552732752"
"""Of sorter, in the file meta information it writes (0002,0012)."""

_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_CODECS = {
    _IMPLICIT_LITTLE: elements.IMPLICIT,
    "1.2.840.113619.5.2": elements.IMPLICIT,  # GE's own: implicit little endian, pixels big endian
    _EXPLICIT_BIG: elements.BIG_ENDIAN,
}
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Transfer syntaxes whose data set is deflated as a whole (PS3.5 A.5)."""
SAME_PIXELS = frozenset({_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, "1.2.840.10008.1.2.1.99"})
"""Transfer syntaxes in which the same pixels are the same bytes: native, little endian (PS3.5 A.1, A.2, A.5)."""

_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "4.1", "4.3", "4.4", "7", "2", "2.1", "128"))
"""MR (enhanced, enhanced colour, legacy converted), secondary capture, CT, PET: never without pixels."""
_META = frozenset({0x0002, 0x0010, 0x0012, 0x0013, 0x0016, 0x0017, 0x0018, 0x0026})
"""What is read of group 0002: SOP class, transfer syntax, who wrote it, the senders' AE titles and address."""

_USUAL_META = frozenset({b"OB", b"UL", b"UI", b"SH", b"AE"})
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"

_LARGEST = 16 << 30  # bytes; a native pixel value ends at 4 GiB
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an Office document",
    b"SQLite format 3": "a database",
}
_CHILD_SECONDS = 20
_CHILD_SAYS_AT_MOST = 8 << 20


class IsDirectory(Quarantine):
    """A list of images, of use to a person alone: `sorter.take.directory`."""

    def __init__(self) -> None:
        super().__init__("a media directory (DICOMDIR): the images beside it are taken by themselves")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What `examine` found.

    The data set's own UIDs count, whatever the file meta information says. `sha256` is of the file. `pixels` is the
    SHA-256 of the pixel value ("" where there is none): the value of (7FE0,0010), float or double pixel data or
    spectroscopy data; of encapsulated pixel data (PS3.5 A.4) all fragments one after the other, without item headers
    and offset table. `dataset` is the SHA-256 of all other bytes after the file meta information, in order, followed by
    `pixels` in hex: as every length stays among the other bytes, it is equal exactly if the data sets are equal byte
    for byte (of one transfer syntax). Of a deflated data set, it is the SHA-256 of the deflated bytes.

    Header text is decoded, without control characters, stripped, at most 1,024 characters; at most 64 values of one
    element are kept. Numbers are numbers where the text is one.
    """

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    transfer_syntax: str  # guessed where there is no file meta information
    header: Mapping[str, Value]
    calling: str  # (0002,0016), else (0002,0017)
    called: str  # (0002,0018)
    address: str  # (0002,0026)
    dataset_offset: int  # where the data set begins in the file
    size: int
    sha256: str
    dataset: str
    pixels: str
    has_meta: bool  # preamble, prefix and file meta information are there and say the transfer syntax (PS3.10 7.1)

    @property
    def bare(self) -> bool:
        """It says it is an image, but no pixel value follows: perhaps the file is still being written."""
        return not self.pixels and ("Rows" in self.header or self.sop_class in _IMAGES)


_NOBODY = Source()


def instance_of(parsed: Parsed, source: Source = _NOBODY, *, file: str = "", arrived: str = "") -> Instance:
    """What was read, as an instance of a unit; its place and its standing are decided by whoever takes it."""
    return Instance(
        study_uid=parsed.study_uid,
        series_uid=parsed.series_uid,
        sop_uid=parsed.sop_uid,
        sop_class=parsed.sop_class,
        transfer_syntax=parsed.transfer_syntax,
        file=file,
        size=parsed.size,
        sha256=parsed.sha256,
        dataset=parsed.dataset,
        pixels=parsed.pixels,
        arrived=arrived,
        source=source,
        header=parsed.header,
    )


@dataclass(frozen=True, slots=True)
class Meta:
    """The file meta information as far as it is there, and where the data set begins."""

    offset: int = 0
    prefix: bool = False  # the file starts with 128 bytes and DICM
    values: Mapping[int, str] = field(default_factory=dict)

    @property
    def transfer_syntax(self) -> str:
        return self.values.get(0x00020010, "")


def examine(files: Files, fd: int, content: bytes | None = None) -> Parsed:
    """Read the open regular file once, from its start, in bounded memory. `content` is all of it, where the caller has
    just written it.

    Quarantine: it cannot be an image of ours; the subclass Truncated: it ends too early. OSError: it cannot be read.
    """
    whole = hashlib.sha256()
    stream, meta = start(files, fd, whole, content)
    if meta.transfer_syntax in DEFLATED:
        walked = _inflated(stream, fd, meta)
        codec = elements.EXPLICIT
    else:
        codec = codec_of(stream, meta)
        walked = elements.walk(stream, codec, _WANTED)
        if walked.compressed and not meta.transfer_syntax:
            raise Quarantine("compressed pixel data, and no file meta information that says how they are compressed")
    size = stream.end or 0
    return _parsed(meta, walked, codec, (size, whole.hexdigest()))


def start(
    files: Files, fd: int, whole: elements.Sink | None = None, content: bytes | None = None
) -> tuple[Stream, Meta]:
    """The stream of a regular file at its data set, and the file meta information before it. Quarantine: no image."""
    info = files.stat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise Quarantine("not a regular file")
    if info.st_size > _LARGEST:
        raise Quarantine(f"{info.st_size} bytes: larger than any image")
    read = _reader(files, fd, info.st_size) if content is None else io.BytesIO(content).read
    stream = Stream(read, info.st_size, whole)
    meta = _read_meta(stream)
    if meta.values.get(0x00020002) == _MEDIA_DIRECTORY:
        raise IsDirectory
    return stream, meta


def codec_of(stream: Stream, meta: Meta) -> elements.Codec:
    """How the data set at the stream's position is written. Quarantine: there is none."""
    if meta.transfer_syntax:
        return _CODECS.get(meta.transfer_syntax, elements.EXPLICIT)
    return _guess(stream)


def _reader(files: Files, fd: int, size: int) -> elements.Read:
    """Pieces of the file in order, up to the size it had at first: a file that grows is not followed."""
    offset = 0

    def read(most: int) -> bytes:
        nonlocal offset
        piece = files.pread(fd, min(most, size - offset), offset)
        offset += len(piece)
        return piece

    return read


def _parsed(meta: Meta, walked: Walked, codec: elements.Codec, whole: tuple[int, str]) -> Parsed:
    found = walked.values
    charset = values.encodings(found[_CHARSET][1]) if _CHARSET in found else values.encodings(b"")
    header: dict[str, Value] = {}
    for tag, raw in found.items():
        known = _TAGS.get(tag)
        if known is not None:
            read = _value if len(raw[1]) <= _SHORT else _value.__wrapped__
            value = read(raw, known[1], charset, walked.order)
            if value is not None:
                header[known[0]] = value
    header.update(private.read(found, walked.order))
    uids = {keyword: _uid(keyword, found, meta) for keyword in _UIDS}
    size, sha256 = whole
    return Parsed(
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        sop_uid=uids["SOPInstanceUID"],
        sop_class=uids["SOPClassUID"],
        transfer_syntax=meta.transfer_syntax or _SYNTAX_OF[codec.explicit, codec.order],
        header=header,
        calling=meta.values.get(0x00020016) or meta.values.get(0x00020017, ""),
        called=meta.values.get(0x00020018, ""),
        address=meta.values.get(0x00020026, ""),
        dataset_offset=meta.offset,
        size=size,
        sha256=sha256,
        dataset=walked.dataset,
        pixels=walked.pixels,
        has_meta=meta.prefix and bool(meta.transfer_syntax),
    )


_SHORT = 64  # bytes of a value that is remembered

_SYNTAX_OF = {
    (False, "<"): _IMPLICIT_LITTLE,
    (True, "<"): _EXPLICIT_LITTLE,
    (True, ">"): _EXPLICIT_BIG,
}


@functools.lru_cache(maxsize=4096)  # most values of an image are those of the image before
def _value(found: tuple[bytes, bytes], vr: str, charset: tuple[str, ...], order: str) -> Value | None:
    """By the VR that the file gives, unless that is no text or number where the dictionary says one."""
    given = found[0].decode("latin-1")
    if given and given != vr and values.known(given):
        return values.value(given, found[1], charset, order)
    return values.value(vr, found[1], charset, order)


def _uid(keyword: str, found: Mapping[int, tuple[bytes, bytes]], meta: Meta) -> str:
    """Digits and dots, at most 64: zeros in front and the like are left as real devices write them."""
    uid = elements.text(found.get(_UIDS[keyword], (b"", b""))[1])
    if not uid and keyword == "SOPClassUID":
        uid = meta.values.get(0x00020002, "")
    if not uid and not any(tag > _UIDS[keyword] for tag in found):
        raise Truncated(f"truncated, or no image: it ends before its {_IN_WORDS[keyword]}")
    if not uid:
        raise Quarantine(f"it has no {_IN_WORDS[keyword]}, so it is no image that could be filed")
    if not _UID.fullmatch(uid) or not uid.strip("."):
        raise Quarantine(f"its {_IN_WORDS[keyword]} is not a valid UID (digits and dots, at most 64)")
    return uid


_IN_WORDS = {
    "SOPClassUID": "SOP Class UID",
    "SOPInstanceUID": "SOP Instance UID",
    "StudyInstanceUID": "Study Instance UID",
    "SeriesInstanceUID": "Series Instance UID",
}


# --- the start of the file -------------------------------------------------------------------------------------------


def _read_meta(stream: Stream) -> Meta:
    """Pass preamble and file meta information (PS3.10 7.1), each as far as it is there; else say what the file is."""
    if stream.fill(512) == 0:
        raise Truncated("an empty file")
    head = stream.buf[:512]
    prefix = head[128:132] == b"DICM"
    if prefix:
        stream.skip(132)
    elif head.startswith(b"DICM"):
        stream.skip(4)
    elif head[:4] == b"\x04\x00\x00\x00" or (head[:2] == b"\x04\x00" and elements.seems_explicit(head)):
        raise IsDirectory
    elif head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise _not_dicom(head)
    found = _meta_values(stream)
    return Meta(stream.offset, prefix, found)


def _meta_values(stream: Stream) -> dict[int, str]:
    """Group 0002, always explicit little endian; where it ends is seen by the group, not by its length."""
    found = _usual_meta_values(stream)
    while stream.fill(12) >= 8 and stream.buf[stream.pos : stream.pos + 2] == b"\x02\x00":
        explicit = elements.seems_explicit(stream.buf[stream.pos : stream.pos + 8])
        tag, _, length = stream.element(elements.EXPLICIT if explicit else elements.IMPLICIT)
        if length == elements.UNDEFINED:
            raise Quarantine(f"broken file meta information: element {elements.name(tag)} has no length")
        if length <= 4096:
            stream.fill(min(length, stream.left()))
            found[tag] = elements.text(stream.buf[stream.pos : stream.pos + length])
        stream.value(tag, length)
    return found


def _usual_meta_values(stream: Stream) -> dict[int, str]:
    """The elements that lie whole in the window and are as nearly every file has them, in one tight loop."""
    found: dict[int, str] = {}
    buf, pos = stream.buf, stream.pos
    while pos <= len(buf) - 12:
        group, element, vr, length = elements.EXPLICIT.head.unpack_from(buf, pos)
        start = pos + 8
        if vr == b"OB":
            (length,), start = elements.EXPLICIT.long.unpack_from(buf, start), start + 4
        if group != 2 or vr not in _USUAL_META or length > 4096 or start + length > len(buf):
            break
        pos = start + length
        if element in _META:
            found[2 << 16 | element] = elements.text(buf[start:pos])
    stream.pos = pos
    return found


def _guess(stream: Stream) -> elements.Codec:
    """How a data set without file meta information is written: it starts in group 0008, or is none."""
    stream.fill(12)
    head = stream.buf[stream.pos : stream.pos + 12]
    if head[:2] == b"\x08\x00":
        return elements.EXPLICIT if elements.seems_explicit(head) else elements.IMPLICIT
    if head[:2] == b"\x00\x08" and elements.seems_explicit(head):
        return elements.BIG_ENDIAN
    if len(head) < 8:
        raise Truncated("truncated: the file ends before the data set")
    raise Quarantine("not DICOM: no transfer syntax, and what follows is no data set")


def _not_dicom(head: bytes) -> Quarantine:
    for magic, words in _MAGIC.items():
        if head.startswith(magic):
            return Quarantine(f"{words}, not DICOM")
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return Quarantine("a NIfTI file, not DICOM")
    if not head.strip(b"\0"):
        return Truncated("nothing but zeros so far: perhaps still being written")
    if _is_text(head):
        return Quarantine("a text file, not DICOM")
    if len(head) < 132:
        return Truncated(f"not DICOM: only {len(head)} bytes, and no data set")
    return Quarantine("not DICOM: no DICM after 128 bytes, and what it starts with is no data set")


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character is cut at the end
            return head.startswith((b"\xff\xfe", b"\xfe\xff"))
    return not any(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head)


# --- a deflated data set ---------------------------------------------------------------------------------------------


def _inflated(stream: Stream, fd: int, meta: Meta) -> Walked:
    """Digest the deflated bytes here; have them inflated and walked by a child with limits (PS3.5 A.5)."""
    rest = hashlib.sha256()
    stream.divert(rest)
    stream.drain()
    wanted = ",".join(f"{tag:x}={most}" for tag, most in _WANTED.items())
    command = [sys.executable, "-P", "-m", "sorter.take.inflate", str(meta.offset), wanted]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(Path(sorter.__file__).parent.parent)}
    try:
        child = subprocess.run(
            command, stdin=fd, capture_output=True, env=environment, timeout=_CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Quarantine(f"its deflated data set took more than {_CHILD_SECONDS} s to read") from None
    return _child_said(child, rest.hexdigest())


def _child_said(child: subprocess.CompletedProcess[bytes], dataset: str) -> Walked:
    if child.returncode < 0 or child.returncode == 3:
        raise Quarantine("its deflated data set needs more memory or time than an image does")
    if child.returncode != 0 or len(child.stdout) > _CHILD_SAYS_AT_MOST:
        raise TryLater(f"the process that reads deflated data sets ended with code {child.returncode}")
    answer = json.loads(child.stdout)
    if "truncated" in answer:
        raise Truncated(answer["truncated"])
    if "reason" in answer:
        raise Quarantine(answer["reason"])
    found = {int(tag): (bytes.fromhex(vr), bytes.fromhex(raw)) for tag, (vr, raw) in answer["values"].items()}
    return Walked(found, dataset, answer["pixels"], answer["order"])


# --- file meta information for a file that has none ------------------------------------------------------------------


def file_meta(parsed: Parsed, source: Source = _NOBODY) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1) to put in front of the data set of `parsed`.

    The AE titles and the address are those of `source`, else those that the file itself had.
    """
    calling, called = source.calling or parsed.calling, source.called or parsed.called
    address = source.address or parsed.address
    body = _element(0x0001, b"OB", b"\x00\x01")
    body += _element(0x0002, b"UI", _padded(parsed.sop_class, b"\0"))
    body += _element(0x0003, b"UI", _padded(parsed.sop_uid, b"\0"))
    body += _element(0x0010, b"UI", _padded(parsed.transfer_syntax, b"\0"))
    body += _element(0x0012, b"UI", _padded(IMPLEMENTATION_UID, b"\0"))
    body += _element(0x0013, b"SH", _padded(f"SORTER_{sorter.__version__}"[:16], b" "))
    for number, title in ((0x0016, calling), (0x0017, calling), (0x0018, called)):
        if title:
            body += _element(number, b"AE", _padded(title[:16], b" "))
    if address:
        body += _element(0x0026, b"UR", _padded(address, b" "))
    return bytes(128) + b"DICM" + _element(0x0000, b"UL", struct.pack("<L", len(body))) + body


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if vr in (b"OB", b"UR"):
        return struct.pack("<HH2sHL", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def _padded(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding if len(value) % 2 else value
