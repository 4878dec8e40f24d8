"""What sorter needs to know of a file, read in one pass: its UIDs, some header values, three digests.

A hand parse (`sorter.take.contents`) of the tags that are needed, and nothing else. The bytes may be anything; the
answer is a `Parsed`, or `Quarantine` with the reason in words (`Truncated` where more bytes could mend it).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, tag_for_keyword

import sorter
from sorter.durable import Files
from sorter.model import Instance, Source, Value
from sorter.take import contents, elements, private, values
from sorter.take.contents import EXPLICIT_LITTLE, IMPLICIT_LITTLE, UIDS
from sorter.take.elements import Truncated, Walked

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


def _needed() -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    for keyword in NEEDED:
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise AssertionError(f"{keyword} is no DICOM keyword")
        found[tag] = keyword, dictionary_VR(tag)
    return found


_TAGS = _needed()
_WANTED = {**private.wanted(), **dict.fromkeys((*_TAGS, *UIDS.values()), elements.LONGEST)}
_CHARSET = 0x00080005

IMPLEMENTATION_UID = "2.25.39180519682098639016273818486552732752"
"""Of sorter, in the file meta information it writes (0002,0012)."""

SAME_PIXELS = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, "1.2.840.10008.1.2.1.99"})
"""Transfer syntaxes in which the same pixels are the same bytes: native, little endian (PS3.5 A.1, A.2, A.5)."""

_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "4.1", "4.3", "4.4", "7", "2", "2.1", "128"))
"""MR (enhanced, enhanced colour, legacy converted), secondary capture, CT, PET: never without pixels."""


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


def examine(files: Files, fd: int, content: bytes | None = None) -> Parsed:
    """Read the open regular file once, as `contents.read` does, and as it raises."""
    found = contents.read(files, fd, _WANTED, content)
    meta, walked, uids = found.meta, found.walked, found.uids()
    return Parsed(
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        sop_uid=uids["SOPInstanceUID"],
        sop_class=uids["SOPClassUID"],
        transfer_syntax=found.transfer_syntax,
        header=_header(walked),
        calling=meta.values.get(0x00020016) or meta.values.get(0x00020017, ""),
        called=meta.values.get(0x00020018, ""),
        address=meta.values.get(0x00020026, ""),
        dataset_offset=meta.offset,
        size=found.size,
        sha256=found.sha256,
        dataset=walked.dataset,
        pixels=walked.pixels,
        has_meta=meta.prefix and bool(meta.transfer_syntax),
    )


def _header(walked: Walked) -> dict[str, Value]:
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
    return header


_SHORT = 64  # bytes of a value that is remembered


@functools.lru_cache(maxsize=4096)  # most values of an image are those of the image before
def _value(found: tuple[bytes, bytes], vr: str, charset: tuple[str, ...], order: str) -> Value | None:
    """By the VR that the file gives, unless that is no text or number where the dictionary says one."""
    given = found[0].decode("latin-1")
    if given and given != vr and values.known(given):
        return values.value(given, found[1], charset, order)
    return values.value(vr, found[1], charset, order)


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
