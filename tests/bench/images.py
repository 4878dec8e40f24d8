"""What is sent: made-up MR images of three sizes, as data sets in Explicit VR little endian."""

from __future__ import annotations

import random

import load
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import MRImageStorage


def image(side: int, frames: int = 1) -> bytes:
    """`side` × `side` pixels of 16 bits, `frames` of them."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = MRImageStorage, load.first_uid().decode()
    made.Modality, made.Manufacturer, made.SeriesDescription = "MR", "SORTER", "bench"
    made.StudyDate, made.StudyTime = "20260314", "100000"
    made.PatientName, made.PatientID = "Phantom^Bench", "BENCH"
    made.StudyInstanceUID, made.SeriesInstanceUID = "2.25.1001", load.first_series()[0].decode()
    made.StudyID, made.SeriesNumber, made.InstanceNumber = "1", "0000", 1
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = side, side
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    if frames > 1:
        made.NumberOfFrames = frames
    frame = random.Random(side).randbytes(2 * side * side)
    made.add_new("PixelData", "OW", frame * frames)
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    write_dataset(out, made)
    return out.getvalue()


def small() -> bytes:
    """179 KB, as of a 3D volume's slice."""
    return image(299)


def mosaic() -> bytes:
    """1.27 MB, as of a Siemens mosaic."""
    return image(797)


def multiframe() -> bytes:
    """500 MB in one instance."""
    return image(1000, 250)
