"""Is a second copy a correction of the patient, or another header?"""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from sorter.durable import Files
from sorter.take import elements
from sorter.take.compare import HeaderChange, header_change, is_correction, sketch

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))


def image(syntax: str = EXPLICIT, **changes: Any) -> bytes:
    """An image as bytes; a change to None leaves the attribute out."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.9"
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientID, ds.PatientName, ds.StudyDescription = "007", "Doe^Jane", "Memory^study"
    ds.SeriesDescription, ds.EchoTime, ds.Rows, ds.Columns = "T1", "2.5", 0, 4
    ds.ReferencedSeriesSequence = Sequence([Dataset()])
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.10"
    ds.add_new(0x00291010, "OB", b"private ")
    ds.BitsAllocated, ds.PixelRepresentation = 16, 0
    ds.PixelData = bytes(32)
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds["PixelData"].VR = "OW"
    ds.file_meta, ds.preamble = FileMetaDataset(), bytes(128)
    ds.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def compared(old: bytes, new: bytes) -> HeaderChange:
    fds = [os.memfd_create("image") for _ in range(2)]
    try:
        for fd, content in zip(fds, (old, new), strict=True):
            os.write(fd, content)
        return header_change(Files(), *fds)
    finally:
        for fd in fds:
            os.close(fd)


def from_sketches(old: bytes, new: bytes) -> bool:
    """The same from what is known of an image that has left."""
    found = []
    for content in (old, new):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            found.append(json.loads(json.dumps(sketch(Files(), file.fileno()))))
    assert "Doe" not in json.dumps(found)
    return is_correction(*found)


@pytest.mark.parametrize("new", [
    {}, {"PatientID": "008"}, {"PatientID": ""}, {"PatientName": None}, {"PatientID": "008", "PatientName": None},
    {"SeriesDescription": "T2"}, {"PatientID": "008", "Rows": 4}, {"PatientSex": "O"}, {"StudyDescription": "x"},
    {"PatientID": "008", "SpecificCharacterSet": "ISO_IR 192"}, {"SpecificCharacterSet": "ISO_IR 192"},
    {"PatientID": "008", "SeriesDescription": None}, {"PatientID": "008", "EchoTime": "3"},
])  # fmt: skip
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_a_sketch_says_what_the_comparison_says(syntax: str, new: dict[str, Any]) -> None:
    for pair in ((image(syntax), image(syntax, **new)), (image(syntax, **new), image(syntax))):
        assert from_sketches(*pair) == compared(*pair).demographic_only


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_a_corrected_patient_is_demographic(syntax: str) -> None:
    change = compared(image(syntax), image(syntax, PatientID="008", StudyDescription="Reward^study"))
    assert change == HeaderChange(("StudyDescription", "PatientID"), (), True)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("change", [{"SeriesDescription": "T2"}, {"EchoTime": "3"}, {"Rows": 4}])
def test_anything_else_is_not(syntax: str, change: dict[str, Any]) -> None:
    found = compared(image(syntax), image(syntax, PatientID="008", **change))
    assert set(found.changed) == {"PatientID", *change}
    assert not found.demographic_only


def test_what_is_missing_or_empty_is_lost() -> None:
    gone = compared(image(), image(PatientName=None))
    emptied = compared(image(), image(PatientName=""))
    assert gone == emptied == HeaderChange(("PatientName",), ("PatientName",), False)


def test_what_is_added_is_a_change_and_no_loss() -> None:
    assert compared(image(), image(PatientComments="left-handed")) == HeaderChange(("PatientComments",), (), True)
    assert not compared(image(), image(ProtocolName="t1_mprage")).demographic_only


def test_padding_and_empty_elements_are_no_difference() -> None:
    assert compared(image(PatientID="007"), image(PatientID="007  ", AccessionNumber="")).changed == ()


def test_another_character_set_is_no_other_name() -> None:
    latin = image(PatientName="Müller^Jörg")
    unicode = image(PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 192")
    assert compared(latin, unicode) == HeaderChange(("SpecificCharacterSet",), (), False)
    corrected = image(PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 192")
    assert compared(latin, corrected).demographic_only


def test_sequences_and_private_elements_are_compared_as_bytes() -> None:
    other = Dataset()
    other.SeriesInstanceUID = "1.2.3.11"
    change = compared(image(), image(ReferencedSeriesSequence=Sequence([other])))
    assert change == HeaderChange(("ReferencedSeriesSequence",), (), False)
    change = compared(image(), image().replace(b"private ", b"PRIVATE "))
    assert change == HeaderChange(("(0029,1010)",), (), False)


def test_long_values_are_compared_too() -> None:
    one, other = "x" * 3000 + "a", "x" * 3000 + "b"
    assert compared(image(PatientComments=one), image(PatientComments=other)).changed == ("PatientComments",)
    assert compared(image(PatientComments=one), image(PatientComments=one)).changed == ()


def test_a_zero_is_a_value() -> None:
    assert compared(image(IMPLICIT), image(IMPLICIT, Rows=None)).lost == ("Rows",)


def test_what_cannot_be_walked_is_not_demographic(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = HeaderChange((), (), False)
    assert compared(image(DEFLATED), image(DEFLATED, PatientID="8")) == nothing
    assert compared(image(), b"junk") == nothing
    monkeypatch.setattr(elements, "MOST_OUTLINED", 5)
    assert compared(image(), image(PatientID="8")) == nothing
