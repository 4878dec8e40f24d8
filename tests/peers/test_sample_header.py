"""The hand parse on real images: as their publishers' manifest says, and as pydicom reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pydicom
import pytest

from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.take.header import NEEDED, Parsed, examine


def parse(path: Path) -> Parsed:
    with Files().opened(path, os.O_RDONLY) as fd:
        return examine(Files(), fd)


def test_every_file_is_read_as_the_manifest_says(sample: Path, sample_manifest: dict[str, Any]) -> None:
    images = 0
    for record in sample_manifest["files"]:
        path = sample / record["path"]
        if not record["dicom"]:
            with pytest.raises(Quarantine, match="text file"):
                parse(path)
            continue
        parsed = parse(path)
        images += 1
        assert parsed.sop_uid == record["SOPInstanceUID"]
        assert parsed.series_uid == record["SeriesInstanceUID"]
        assert parsed.study_uid == record["StudyInstanceUID"]
        assert parsed.sop_class == record["SOPClassUID"]
        assert parsed.transfer_syntax == record["TransferSyntaxUID"]
        assert parsed.sha256 == record["file_sha256"]
        assert parsed.pixels == record["pixel_sha256"]
        assert parsed.header.get("PatientID") == record["PatientID"]
        assert (parsed.has_meta, parsed.bare) == (True, False)
    assert images == 378


def test_header_values_agree_with_pydicom(sample: Path, sample_manifest: dict[str, Any]) -> None:
    for record in sample_manifest["files"][::5]:
        if not record["dicom"]:
            continue
        parsed = parse(sample / record["path"])
        ds = pydicom.dcmread(sample / record["path"], stop_before_pixels=True)
        for keyword in NEEDED:
            if keyword not in ds or ds[keyword].VM == 0:
                assert keyword not in parsed.header
            elif isinstance(parsed.header[keyword], tuple):
                assert parsed.header[keyword] == tuple(_one(each) for each in ds[keyword].value), keyword
            else:
                assert parsed.header[keyword] == _one(ds[keyword].value), keyword


def _one(value: Any) -> Any:
    return value if isinstance(value, int | float) else str(value).strip()
