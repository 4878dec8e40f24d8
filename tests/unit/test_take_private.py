"""The private elements that say how many images there will be: found by their creator, whatever is around them."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset

from sorter.durable import Files
from sorter.take import private
from sorter.take.header import examine
from sorter.take.private import protocol

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
MR = "1.2.840.10008.5.1.4.1.1.4"

PROTOCOL = b"""### ASCCONV BEGIN object=MrProtDataImpl@MrProtocolData version=51130001 ###
ulVersion\t = \t51130001
lContrasts\t = \t2
lRepetitions\t = \t299
sSliceArray.lSize                        = 36
sDiffusion.ulMode                        = 0x100
lRepetitionsToo = 7
### ASCCONV END ###
"""
SAYS = {"SiemensContrasts": 2, "SiemensRepetitions": 299, "SiemensSlices": 36, "SiemensDiffusionMode": 256}


def written(elements: dict[int, tuple[str, Any]], syntax: str = EXPLICIT) -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MR, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.9"
    for tag, (vr, value) in elements.items():
        ds.add_new(tag, vr, value)
    ds.add_new(0x7FE00010, "OW", bytes(32))
    ds.file_meta, ds.preamble = FileMetaDataset(), bytes(128)
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = syntax, MR
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def header(content: bytes) -> dict[str, Any]:
    fd = os.memfd_create("image")
    try:
        os.write(fd, content)
        found = examine(Files(), fd).header
    finally:
        os.close(fd)
    return {name: value for name, value in found.items() if name in private.NAMES}


GE = {0x00210010: ("LO", "GEMS_RELA_01"), 0x0021104F: ("SS", 15)}
PHILIPS = {
    0x20010010: ("LO", "Philips Imaging DD 001"),
    0x20011014: ("SL", 1), 0x20011017: ("SL", 1), 0x20011018: ("SL", 9), 0x20011081: ("IS", "3"), 0x20011003: ("FL", 0),
}  # fmt: skip
PHILIPS_SAYS = {
    "PhilipsNumberOfEchoes": 1, "PhilipsNumberOfPhases": 1, "PhilipsNumberOfSlices": 9, "PhilipsNumberOfDynamics": 3,
    "PhilipsDiffusionBFactor": 0.0,
}  # fmt: skip
SIEMENS = {
    0x00190010: ("LO", "SIEMENS MR HEADER"), 0x0019100A: ("US", 36),
    0x00290010: ("LO", "SIEMENS CSA HEADER"), 0x00291020: ("OB", b"SV10" + bytes(30_000) + PROTOCOL + bytes(60_000)),
}  # fmt: skip


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
def test_in_every_native_transfer_syntax(syntax: str) -> None:
    assert header(written(GE, syntax)) == {"GELocationsInAcquisition": 15}
    assert header(written(PHILIPS, syntax)) == PHILIPS_SAYS
    assert header(written(SIEMENS, syntax)) == {**SAYS, "SiemensImagesInMosaic": 36}


def test_in_another_block_and_beside_another_creator() -> None:
    moved = {0x00210010: ("LO", "SOMEBODY ELSE"), 0x0021104F: ("SS", 99),
             0x00210012: ("LO", "GEMS_RELA_01 "), 0x0021124F: ("SS", 15)}  # fmt: skip
    assert header(written(moved)) == {"GELocationsInAcquisition": 15}


@pytest.mark.parametrize(
    "elements",
    [
        {0x0021104F: ("SS", 15)},
        {0x00210010: ("LO", "GEMS_RELA_02"), 0x0021104F: ("SS", 15)},
        {0x00210010: ("LO", "GEMS_RELA_01")},
        {0x00210011: ("LO", "GEMS_RELA_01"), 0x0021104F: ("SS", 15)},
        {0x00210010: ("LO", "GEMS_RELA_01"), 0x0021104F: ("UN", b"")},
        {0x00210010: ("LO", "GEMS_RELA_01"), 0x0021104F: ("UN", b"\x0f")},
    ],
    ids=["no creator", "another creator", "no element", "another block", "empty", "cut short"],
)
def test_without_its_creator_or_value_it_is_nothing(elements: dict[int, tuple[str, Any]]) -> None:
    assert header(written(elements)) == {}


def test_an_archive_that_wrote_it_as_unknown() -> None:
    assert header(written({0x00210010: ("LO", "GEMS_RELA_01"), 0x0021104F: ("UN", struct.pack("<h", 15))})) == {
        "GELocationsInAcquisition": 15
    }
    assert header(written({0x20010010: ("UN", b"Philips Imaging DD 001"), 0x20011018: ("UN", struct.pack("<l", 9)),
                           0x20011081: ("UN", b"3 ")})) == {
        "PhilipsNumberOfSlices": 9, "PhilipsNumberOfDynamics": 3,
    }  # fmt: skip


def test_values_that_are_no_numbers_stay_what_they_are() -> None:
    assert header(written({0x20010010: ("LO", "Philips Imaging DD 001"), 0x20011081: ("LO", "three")})) == {
        "PhilipsNumberOfDynamics": "three"
    }


# --- the protocol ---------------------------------------------------------------------------------------------------


def test_the_protocol() -> None:
    assert protocol(b"\0" * 5000 + PROTOCOL + b"\0" * 100) == SAYS
    assert protocol(PROTOCOL.replace(b"\n", b"\r\n")) == SAYS
    assert protocol(PROTOCOL + PROTOCOL.replace(b"299", b"5")) == SAYS


def test_what_a_whole_protocol_leaves_out_is_its_default() -> None:
    assert protocol(b"### ASCCONV BEGIN ###\nulVersion = 0x14b44b6\n### ASCCONV END ###") == {
        "SiemensRepetitions": 0, "SiemensContrasts": 1, "SiemensDiffusionMode": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [b"", b"### ASCCONV BEGIN ###", PROTOCOL[:150], PROTOCOL[60:], PROTOCOL[::-1], b"lRepetitions = 5\n"],
)
def test_half_a_protocol_says_nothing(raw: bytes) -> None:
    assert protocol(raw) == {}


@pytest.mark.parametrize(
    "line",
    [b"-1", b"1.5", b"", b"many", b"9" * 40, b"0x", b"1 2", b" " * 500 + b"1", b'""3""'],
)
def test_a_line_that_cannot_be_read_is_not_taken_for_the_default(line: bytes) -> None:
    assert "SiemensRepetitions" not in protocol(PROTOCOL.replace(b"299", line))


def test_a_header_longer_than_any_is_cut_and_says_nothing() -> None:
    far = {0x00290010: ("LO", "SIEMENS CSA HEADER"), 0x00291020: ("OB", bytes(private.PROTOCOL_BYTES) + PROTOCOL)}
    assert header(written(far)) == {}


@given(st.binary(max_size=200), st.integers(0, len(PROTOCOL)), st.randoms())
def test_any_bytes_are_read_to_an_end(noise: bytes, cut: int, rng: random.Random) -> None:
    raw = bytearray(PROTOCOL[:cut] + noise + PROTOCOL[cut:])
    for _ in range(rng.randint(0, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    assert all(isinstance(each, int) and 0 <= each < 1 << 33 for each in protocol(bytes(raw)).values())


def test_a_hostile_protocol_takes_no_time() -> None:
    hostile = b"### ASCCONV BEGIN\n" + b"lRepetitions" + b" " * private.PROTOCOL_BYTES + b"\n### ASCCONV END ###"
    many = b"### ASCCONV BEGIN\n" + b"\nlRepetitions =" * (private.PROTOCOL_BYTES // 15) + b"\n### ASCCONV END ###"
    before = time.process_time()
    for _ in range(20):
        protocol(hostile)
        protocol(many)
    assert time.process_time() - before < 1
