"""Small files as their writers make them, for what is then done to them."""

from __future__ import annotations

import functools
import io
import warnings
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage


@functools.cache
def image(number: int = 1) -> bytes:
    """One of a series of small MR images, as a file (PS3.10)."""
    return written(data_set(number))


def data_set(number: int = 1, **changes: Any) -> Dataset:
    """The data set of one of a series of small MR images. A value of None leaves the element out."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, f"1.2.3.{number}"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.0"
    data.PatientID, data.PatientName = "P1", "One^Patient"
    data.StudyDate, data.StudyTime, data.Modality = "20260102", "101112", "MR"
    data.SeriesNumber, data.SeriesDescription, data.InstanceNumber = 4, "T1", number
    data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 16, 12, 11
    data.PixelRepresentation, data.SamplesPerPixel, data.PhotometricInterpretation = 0, 1, "MONOCHROME2"
    data.PixelData = bytes((number * 7 + each) % 251 for each in range(128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, at values that the standard forbids
        for keyword, value in changes.items():
            if value is None:
                del data[keyword]
            else:
                setattr(data, keyword, value)
    return data


def written(data: Dataset, syntax: str = ExplicitVRLittleEndian, preamble: bytes = bytes(128)) -> bytes:
    """As a file (PS3.10 7) of this transfer syntax."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = data.get("SOPInstanceUID", "") or "1.2.3.4"
    data.file_meta, data.preamble = meta, preamble
    if "PixelData" in data and not data["PixelData"].is_undefined_length:
        data["PixelData"].VR = "OW"
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(out, enforce_file_format=False)
    return out.getvalue()
