"""The hand parse against pydicom, and against anything else that bytes can be."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import data as pydicom_data
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.model import Source
from sorter.take import elements
from sorter.take.header import NEEDED, Parsed, Truncated, examine, file_meta

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
JPEG = "1.2.840.10008.1.2.4.50"
NATIVE = (IMPLICIT, EXPLICIT, BIG)
MR = "1.2.840.10008.5.1.4.1.1.4"
HARM = [b"\xff\xff\xff\xff", b"\0", b"\xfe\xff\x00\xe0", b"SQ", b"UN\0\0", b"\x1b$)C"]
WHEEL = Path(pydicom_data.__file__).parent


def parse(content: bytes) -> Parsed:
    fd = os.memfd_create("image")
    try:
        os.write(fd, content)
        return examine(Files(), fd)
    finally:
        os.close(fd)


def image(**values: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MR, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.9"
    ds.Modality, ds.Rows, ds.Columns = "MR", 4, 4
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PixelData = bytes(range(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, at values that the standard forbids
        for keyword, value in values.items():
            setattr(ds, keyword, value)
    return ds


def written(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = syntax, MR, "9.9"
    out = io.BytesIO()
    ds.file_meta, ds.preamble = meta, bytes(128)
    if "PixelData" in ds and not ds["PixelData"].is_undefined_length:
        ds["PixelData"].VR = "OW"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def only_data_set(content: bytes) -> bytes:
    return content[parse(content).dataset_offset :]


def as_pydicom_says(ds: Dataset, keyword: str) -> Any:
    """The value in the shape that `Parsed.header` has; None where it is left out."""
    element = ds.get(keyword) if keyword in ds else None
    if element is None or element == "" or ds[keyword].VM == 0:
        return None
    parts = list(element) if isinstance(element, MultiValue) else [element]
    plain = [_plain(part) for part in parts]
    return plain[0] if len(plain) == 1 else tuple(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return _tidy(str(value))


def _tidy(text: str) -> str:
    spaced = "".join(" " if char in "\t\n\v\f\r" else char for char in text)
    return "".join(char for char in spaced if ord(char) >= 32 and not 127 <= ord(char) < 160).strip()[:1024]


def agree(content: bytes, parsed: Parsed) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(io.BytesIO(content), force=True)
        for keyword in NEEDED:
            theirs, ours = as_pydicom_says(ds, keyword), parsed.header.get(keyword)
            assert ours == theirs or (theirs in (None, "") and ours is None), keyword
        assert parsed.sop_uid == str(ds.SOPInstanceUID)
        assert parsed.study_uid == str(ds.StudyInstanceUID)
        assert parsed.series_uid == str(ds.SeriesInstanceUID)
        assert parsed.sop_class == str(ds.SOPClassUID)


# --- generated data sets ----------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="latin-1", exclude_characters="\\", min_codepoint=32), max_size=16)
unicode_words = st.text(st.characters(exclude_characters="\\=^\x1b", exclude_categories=["C"]), max_size=16)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda number: float(f"{number:.9g}"))


@st.composite
def data_sets(draw: st.DrawFn) -> Dataset:
    ds = image()
    utf8 = draw(st.booleans())
    ds.SpecificCharacterSet = "ISO_IR 192" if utf8 else "ISO_IR 100"
    text = unicode_words if utf8 else words
    for keyword in draw(
        st.sets(st.sampled_from(["StudyDescription", "SeriesDescription", "PatientID", "StationName"]))
    ):
        setattr(ds, keyword, draw(text))
    ds.PatientComments = draw(text)
    ds.ImageType = draw(st.lists(st.sampled_from(["ORIGINAL", "M", "ND", "MOSAIC"]), max_size=5))
    ds.InstanceNumber = draw(st.integers(-(2**31), 2**31 - 1))
    ds.EchoTime = draw(numbers)
    ds.ImagePositionPatient = [f"{draw(numbers):.6g}" for _ in range(3)]
    ds.Rows = draw(st.integers(0, 65535))
    ds.add_new(0x00090010, "LO", "A PRIVATE CREATOR")
    ds.add_new(0x00091001, draw(st.sampled_from(["OB", "UN"])), draw(st.binary(max_size=50)))
    ds.ReferencedImageSequence = draw(nested(3))
    ds["ReferencedImageSequence"].is_undefined_length = draw(st.booleans())
    ds.PixelData = draw(st.binary(min_size=2, max_size=64).filter(lambda value: len(value) % 2 == 0))
    return ds


@st.composite
def nested(draw: st.DrawFn, depth: int) -> Sequence:
    items = []
    for _ in range(draw(st.integers(0, 2))):
        item = Dataset()
        item.PatientID = "NOT THE PATIENT"
        item.is_undefined_length_sequence_item = draw(st.booleans())
        if depth and draw(st.booleans()):
            item.ReferencedSeriesSequence = draw(nested(depth - 1))
            item["ReferencedSeriesSequence"].is_undefined_length = draw(st.booleans())
        items.append(item)
    return Sequence(items)


@given(data_sets(), st.sampled_from(NATIVE))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_generated_data_sets_read_as_by_pydicom(ds: Dataset, syntax: str) -> None:
    content = written(ds, syntax)
    parsed = parse(content)
    agree(content, parsed)
    assert json.loads(json.dumps(parsed.header)) is not None
    assert parsed.sha256 == hashlib.sha256(content).hexdigest()
    assert parsed.pixels == hashlib.sha256(ds.PixelData).hexdigest()
    assert (parsed.transfer_syntax, parsed.size, parsed.has_meta) == (syntax, len(content), True)
    bare = content[parsed.dataset_offset :]
    again = parse(bare)
    assert not again.has_meta
    assert (again.transfer_syntax, again.dataset, again.pixels) == (syntax, parsed.dataset, parsed.pixels)
    assert again.header == parsed.header


@given(data_sets(), st.sampled_from(NATIVE), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_bytes_end_in_a_result_or_in_quarantine(ds: Dataset, syntax: str, data: st.DataObject) -> None:
    content = bytearray(written(ds, syntax))
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(
            st.sampled_from([b"\xff\xff\xff\xff", b"\0", b"\xfe\xff\x00\xe0", b"SQ", b"UN\0\0", b"\x1b$)C"])
        )
        content[position : position + len(change)] = change
    began = time.monotonic()
    with contextlib.suppress(Quarantine):
        json.dumps(parse(bytes(content)).header, allow_nan=False)
    assert time.monotonic() - began < 1


@given(st.binary(max_size=400), st.sampled_from([b"", bytes(128) + b"DICM", b"\x08\0\x05\0CS"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_quarantine(content: bytes, start: bytes) -> None:
    with pytest.raises(Quarantine):
        parse(start + content)


@pytest.mark.parametrize("syntax", NATIVE)
def test_an_image_cut_anywhere_is_truncated_or_bare(syntax: str) -> None:
    content = written(image(StudyDescription="brain", SOPInstanceUID="1.2.3.44"), syntax)
    whole = parse(content)
    for end in range(len(content)):
        try:
            part = parse(content[:end])
        except Quarantine:
            continue
        assert part.bare
        assert part.dataset != whole.dataset


def test_the_reason_says_what_is_missing() -> None:
    content = written(image())
    with pytest.raises(Truncated, match=r"element \(7FE0,0010\) at byte \d+ says 32 bytes, the file ends after 27"):
        parse(content[:-5])


# --- digests ----------------------------------------------------------------------------------------------------------


def test_digests_by_their_definition() -> None:
    content = written(image(DataSetTrailingPadding=b"\0\0"))
    parsed = parse(content)
    pixels = bytes(range(32))
    rest = content[parsed.dataset_offset :].replace(pixels, b"")
    assert parsed.dataset == hashlib.sha256(rest + hashlib.sha256(pixels).hexdigest().encode()).hexdigest()


def test_a_changed_header_changes_the_data_set_and_not_the_pixels() -> None:
    one, other = parse(written(image(PatientID="a"))), parse(written(image(PatientID="b")))
    assert (one.dataset != other.dataset, one.pixels == other.pixels) == (True, True)


def test_changed_pixels_change_both() -> None:
    one, other = parse(written(image())), parse(written(image(PixelData=bytes(32))))
    assert one.dataset != other.dataset
    assert one.pixels != other.pixels


def test_other_meta_information_is_the_same_data_set() -> None:
    content = written(image())
    parsed = parse(content)
    moved = file_meta(parsed, Source(calling="OTHER")) + content[parsed.dataset_offset :]
    again = parse(moved)
    assert (again.dataset, again.pixels, again.calling) == (parsed.dataset, parsed.pixels, "OTHER")
    assert again.sha256 != parsed.sha256


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData", "SpectroscopyData"])
def test_other_kinds_of_pixel_values(keyword: str) -> None:
    ds = image()
    del ds.PixelData
    setattr(ds, keyword, bytes(range(64)))
    assert parse(written(ds)).pixels == hashlib.sha256(bytes(range(64))).hexdigest()


def test_pixels_of_an_icon_are_not_the_pixels() -> None:
    ds = image()
    icon = Dataset()
    icon.Rows, icon.Columns, icon.BitsAllocated, icon.PixelRepresentation = 1, 2, 8, 0
    icon.PixelData = b"\1\2"
    ds.IconImageSequence = [icon]
    ds["IconImageSequence"].is_undefined_length = True
    assert parse(written(ds)).pixels == hashlib.sha256(bytes(range(32))).hexdigest()


def encapsulated(frames: list[bytes], *, table: bool = True) -> bytes:
    ds = image(NumberOfFrames=len(frames))
    ds.PixelData = encapsulate(frames, has_bot=table)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return written(ds, JPEG)


def test_fragments_are_the_pixels_of_a_compressed_image() -> None:
    frames = [b"\xff\xd8 one \xff\xd9\0", b"\xff\xd8 other \xff\xd9\0"]
    frames = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    with_table, without = parse(encapsulated(frames)), parse(encapsulated(frames, table=False))
    assert with_table.pixels == without.pixels == hashlib.sha256(b"".join(frames)).hexdigest()
    assert with_table.dataset != without.dataset
    assert with_table.transfer_syntax == JPEG


def test_fragments_without_a_table_of_offsets_are_all_pixels() -> None:
    content = encapsulated([b"\xff\xd8 one\xff\xd9"], table=False)
    empty_table = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    at = content.rindex(empty_table)
    content = content[:at] + content[at + 8 :]
    assert parse(content).pixels == hashlib.sha256(b"\xff\xd8 one\xff\xd9").hexdigest()


def test_a_compressed_image_cut_between_fragments_is_truncated() -> None:
    with pytest.raises(Truncated, match="before its end is marked"):
        parse(encapsulated([b"\xff\xd8 one\xff\xd9"])[:-8])


def test_a_large_pixel_value_passes_in_pieces() -> None:
    pixels = os.urandom(3 * elements.STEP + 10)
    parsed = parse(written(image(PixelData=pixels, PatientID="x")))
    assert parsed.pixels == hashlib.sha256(pixels).hexdigest()
    assert parsed.header["PatientID"] == "x"


@pytest.mark.parametrize("shift", range(0, 24, 2))
def test_elements_across_the_edge_of_the_window(shift: int) -> None:
    ds = image(PatientID="edge", SeriesDescription="beyond", StudyDescription="before")
    ds.add_new(0x00090010, "LO", "CREATOR")
    ds.add_new(0x00091001, "OB", bytes(elements.STEP - 700 + shift * 20))
    content = written(ds)
    parsed = parse(content)
    agree(content, parsed)
    assert parsed.pixels == hashlib.sha256(ds.PixelData).hexdigest()


# --- real devices' ways -----------------------------------------------------------------------------------------------


def test_the_data_sets_uid_counts_not_the_metas() -> None:
    assert parse(written(image(SOPInstanceUID="1.2.3.4.5"))).sop_uid == "1.2.3.4.5"


def test_who_brought_it_is_read_from_the_meta_information() -> None:
    content = written(image())
    parsed = parse(content)
    source = Source(calling="SCANNER", called="SORTER", address="192.0.2.7:104")
    again = parse(file_meta(parsed, source) + content[parsed.dataset_offset :])
    assert (again.calling, again.called, again.address) == ("SCANNER", "SORTER", "192.0.2.7:104")


@pytest.mark.parametrize("syntax", NATIVE)
def test_meta_information_is_made_for_a_bare_data_set(syntax: str) -> None:
    bare = only_data_set(written(image(PatientID="p"), syntax))
    parsed = parse(bare)
    with_meta = file_meta(parsed) + bare
    ds = pydicom.dcmread(io.BytesIO(with_meta))
    assert ds.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4"
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert ds.file_meta.FileMetaInformationGroupLength == len(with_meta) - len(bare) - 132 - 12
    assert ds.PatientID == "p"
    assert parse(with_meta).dataset == parsed.dataset
    assert parse(with_meta).has_meta


def test_uids_with_padding_and_leading_zeros_are_taken() -> None:
    content = written(image(SOPInstanceUID="1.2.3.04 "))
    assert parse(content).sop_uid == "1.2.3.04"


def test_a_data_set_whose_meta_is_wrong_about_the_vr() -> None:
    implicit = written(image(PatientID="p"), IMPLICIT)
    lying = implicit.replace(IMPLICIT.encode() + b"\0", EXPLICIT.encode()[:17])
    parsed = parse(implicit)
    data = implicit[parsed.dataset_offset :]
    meta = file_meta(parsed).replace(struct.pack("<HH2sH", 2, 0x10, b"UI", 18) + IMPLICIT.encode() + b"\0", b"")
    assert lying != implicit
    again = parse(meta + data)
    assert (again.header["PatientID"], again.has_meta, again.transfer_syntax) == ("p", False, IMPLICIT)


def test_a_private_sequence_without_vrs_in_an_explicit_data_set() -> None:
    inner = struct.pack("<HHL", 0x0009, 0x1002, 4) + b"abcd" + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    for vr in (b"UN", b"SQ"):
        private = struct.pack("<HH2sHL", 0x0009, 0x1001, vr, 0, 0xFFFFFFFF) + item
        content = written(image())
        at = content.index(struct.pack("<HH", 0x0020, 0x000D))
        assert parse(content[:at] + private + content[at:]).study_uid == "1.2.3"


def test_zero_padding_after_the_pixels_is_no_truncation() -> None:
    parsed = parse(written(image()) + bytes(2000))
    assert parsed.pixels


def test_zeros_instead_of_pixels_are() -> None:
    ds = image()
    del ds.PixelData
    with pytest.raises(Truncated, match="zero bytes follow"):
        parse(written(ds) + bytes(100_000))


def test_an_image_without_pixels_is_bare() -> None:
    ds = image()
    del ds.PixelData
    parsed = parse(written(ds))
    assert (parsed.bare, parsed.pixels) == (True, "")


def test_header_values_are_clean_and_bounded() -> None:
    content = written(image(PatientComments="x" * 9000, StudyDescription="a\x00b\x1b[31mc\x7f\x85\r\nd"))
    header = parse(content).header
    assert header["PatientComments"] == "x" * 1024
    assert header["StudyDescription"] == "ab[31mc  d"


def test_bad_numbers_stay_text() -> None:
    ds = image()
    for tag, vr, value in ((0x00200013, "LO", "7a"), (0x00180081, "LO", "1e999"), (0x00200011, "LO", "1_0")):
        ds.add_new(tag, vr, value)
    content = (
        written(ds)
        .replace(b"\x13\0LO", b"\x13\0IS")
        .replace(b"\x81\0LO", b"\x81\0DS")
        .replace(b"\x11\0LO", b"\x11\0IS")
    )
    header = parse(content).header
    assert (header["InstanceNumber"], header["EchoTime"], header["SeriesNumber"]) == ("7a", "1e999", "1_0")


# --- what is set aside ------------------------------------------------------------------------------------------------


def without(keyword: str) -> bytes:
    ds = image()
    delattr(ds, keyword)
    return written(ds)


def listing() -> bytes:
    return (WHEEL / "test_files" / "dicomdirtests" / "DICOMDIR").read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"Some notes about the study.\n" * 20, "text file"),
        ("Messung wiederholt, Gerät gestört\n".encode(), "text file"),
        (b"PK\x03\x04" + bytes(200), "ZIP archive"),
        (b"\x89PNG\r\n" + bytes(300), "PNG"),
        (b"\x01\xff\x00\x01" * 200, "not DICOM"),
        (bytes(128) + b"DICM", "ends before the data set"),
        (bytes(128) + b"DICM" + b"junk" * 50, "no data set"),
        (bytes(100), "zeros"),
        (without("SOPInstanceUID"), "no SOP Instance UID"),
        (without("StudyInstanceUID"), "no Study Instance UID"),
        (without("SeriesInstanceUID"), "no Series Instance UID"),
        (written(image()).replace(b"1.2.3.9\0", b"1.2.x.9\0"), "Series Instance UID is not a valid UID"),
        (written(image(StudyInstanceUID="1." * 40 + "1")), "Study Instance UID is not a valid UID"),
    ],
)
def test_reasons_in_words(content: bytes, reason: str) -> None:
    with pytest.raises(Quarantine, match=reason):
        parse(content)


def test_a_media_directory_is_named_as_such() -> None:
    with pytest.raises(Quarantine, match="media directory"):
        parse(listing())
    meta_end = listing().index(b"\x04\x00\x30\x11")
    with pytest.raises(Quarantine, match="media directory"):
        parse(listing()[meta_end:])


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(Quarantine, match="not a regular file"):
            examine(Files(), fd)
    finally:
        os.close(fd)


def deep(levels: int) -> bytes:
    begin = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    content = written(image())
    at = content.index(struct.pack("<HH", 0x0020, 0x000D))
    return content[:at] + begin * levels + end * levels + content[at:]


def test_depth_is_bounded() -> None:
    assert parse(deep(elements.DEEPEST)).study_uid
    with pytest.raises(Quarantine, match="nested more than"):
        parse(deep(5000))


def test_the_number_of_elements_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "MOST", 1000)
    content = written(image())
    many = struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0) * 2000
    at = content.index(struct.pack("<HH", 0x0020, 0x000D))
    with pytest.raises(Quarantine, match=r"more than 1,\d\d\d elements"):
        parse(content[:at] + many + content[at:])


# --- deflated ---------------------------------------------------------------------------------------------------------


def deflated(data: bytes) -> bytes:
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = machine.compress(data) + machine.flush()
    parsed = parse(written(image()))
    meta = file_meta(parsed).replace(_syntax_element(EXPLICIT), _syntax_element(DEFLATED))
    return meta + packed


def _syntax_element(syntax: str) -> bytes:
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    return struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value


@pytest.mark.parametrize("vr", [b"UI\0\0", bytes(4)], ids=["explicit", "implicit"])
def test_the_number_of_elements_of_the_meta_information_is_bounded(vr: bytes) -> None:
    """Whoever sends a data set that begins with such elements would have the sorter for himself for an hour."""
    content, one = written(image()), b"\2\0\x10\0" + vr
    at = len(content) - len(only_data_set(content))
    assert parse(content[:at] + 900 * one + content[at:]).sop_uid
    began = time.process_time()
    with pytest.raises(Quarantine, match="meta information: more than 1,000"):
        parse(content[:at] + (1 << 20) * one + content[at:])
    assert time.process_time() - began < 0.5


def test_a_deflated_data_set_is_read_by_a_child() -> None:
    data = only_data_set(written(image(PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100")))
    content = deflated(data)
    parsed = parse(content)
    assert (parsed.transfer_syntax, parsed.sop_uid) == (DEFLATED, "1.2.3.4")
    assert parsed.header["PatientName"] == "Müller^Jörg"
    assert parsed.pixels == hashlib.sha256(bytes(range(32))).hexdigest()
    assert parsed.dataset == hashlib.sha256(content[parsed.dataset_offset :]).hexdigest()
    assert parsed.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", range((256 << 10) + 1, (256 << 10) + 300, 23))
def test_a_deflated_value_may_end_anywhere(size: int) -> None:
    """The last bytes of the deflated stream may still owe a part of a value when all of them are read."""
    ds = image(PixelData=bytes(size + size % 2))
    assert parse(written(ds, DEFLATED)).pixels == hashlib.sha256(bytes(size + size % 2)).hexdigest()


def test_a_deflate_bomb_is_set_aside() -> None:
    bomb = deflated(only_data_set(written(image(PixelData=bytes(300 << 20)))))
    assert len(bomb) < 400_000
    with pytest.raises(Quarantine, match="times larger inflated"):
        parse(bomb)


def test_a_torn_deflated_data_set_is_truncated() -> None:
    content = deflated(only_data_set(written(image(PixelData=os.urandom(5000)))))
    with pytest.raises(Truncated, match="has no end"):
        parse(content[:-100])


def test_what_cannot_be_inflated_is_set_aside() -> None:
    meta_and_junk = deflated(b"")[:-2] + b"\xff" * 500
    with pytest.raises(Quarantine, match="cannot be inflated"):
        parse(meta_and_junk)


# --- everything that pydicom ships ------------------------------------------------------------------------------------


def shipped() -> list[Path]:
    kinds = {".py", ".pyc", ".json", ".txt", ".md", ".dump"}
    return [path for path in sorted(WHEEL.rglob("*")) if path.is_file() and path.suffix not in kinds]


SET_ASIDE = {
    "MR_truncated.dcm": "truncated",
    "rtplan_truncated.dcm": "truncated",
    "chrSQEncoding.dcm": "ends before its SOP",
    "chrSQEncoding1.dcm": "ends before its SOP",
    "UN_sequence.dcm": "ends before its SOP",
    "no_meta_group_length.dcm": "ends before its SOP",
    "priv_SQ.dcm": "ends before its SOP",
    "nested_priv_SQ.dcm": "ends before its SOP",
    "empty_charset_LEI.dcm": "ends before its SOP",
    "JPEGLSNearLossless_08.dcm": "no Study Instance UID",
    "JPEGLSNearLossless_16.dcm": "no Study Instance UID",
    "SC_rgb_jls_lossy_line.dcm": "no Study Instance UID",
    "SC_rgb_jls_lossy_sample.dcm": "no Study Instance UID",
    "meta_missing_tsyntax.dcm": "no data set",
    "no_meta.dcm": "not DICOM",
    "crayons.icc": "not DICOM",
    "zipMR.gz": "gzip file",
    "README": "text file",
}


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.name)
def test_what_pydicom_ships(path: Path) -> None:
    content = path.read_bytes()
    expected = SET_ASIDE.get(path.name)
    if path.name.startswith("DICOMDIR"):
        expected = "media directory"
    if path.parent.name == "palettes":
        expected = "no Study Instance UID"
    if expected is not None:
        with pytest.raises(Quarantine, match=expected):
            parse(content)
        return
    parsed = parse(content)
    agree(content, parsed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(io.BytesIO(content), force=True)
    if "PixelData" in ds and not ds["PixelData"].is_undefined_length and ds.PixelData:
        assert parsed.pixels == hashlib.sha256(ds.PixelData).hexdigest()
