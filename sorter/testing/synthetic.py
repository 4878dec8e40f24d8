"""A made-up MR session: a phantom head, scanned as several vendors' sequences come over the wire.

Nothing here was ever a person. The same seed gives the same bytes. Positions, orientation and spacing are consistent,
so that dcm2niix converts every series. Pixels are made without numpy; with the default sizes a session takes about a
second.

The series, in order: `localizer` (three planes), `T1_MPRAGE` (a 3D volume), `rest_bold` (an EPI time series, one file a
slice), `T2star_multiecho` (three echoes in one series), `gre_field_mapping` (two magnitude echoes and a phase image in
one series whose InstanceNumbers repeat), `task_bold` (Siemens mosaics, one file a volume) and `T2_FLAIR` (one Enhanced
MR file with all frames).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import random
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from sorter.durable import Files

IMPLEMENTATION = UID("2.25.305828488182831875890203105390285383139")  # PS3.5 B.2: a UUID as an integer

Vector: TypeAlias = tuple[float, float, float]
Pixels: TypeAlias = "array[int]"
Contrast: TypeAlias = tuple[int, int, int, int, int]
"""Brightness of air, scalp, grey matter, white matter, cerebrospinal fluid (0 to 4095)."""

T1: Contrast = (12, 900, 1150, 1750, 350)
T2: Contrast = (15, 700, 1300, 950, 2600)
EPI: Contrast = (20, 250, 1200, 1000, 1700)
FLAIR: Contrast = (15, 800, 1450, 1050, 200)

AXIAL: tuple[Vector, Vector, Vector] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
SAGITTAL: tuple[Vector, Vector, Vector] = ((0, 1, 0), (0, 0, -1), (-1, 0, 0))
CORONAL: tuple[Vector, Vector, Vector] = ((1, 0, 0), (0, 0, -1), (0, 1, 0))


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """One series: its SeriesNumber, its SeriesDescription, and its files in the order a scanner would send them."""

    number: int
    name: str
    uid: str
    files: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a session is made from. `size` is the matrix (pixels a side), `slices` and `volumes` of the time series."""

    seed: int = 0
    size: int = 32
    slices: int = 12
    volumes: int = 10
    patient_id: str = ""
    patient_name: str = "Phantom^Demo"
    date: str = "20260314"
    study_description: str = "Demo^Phantom head"

    def uid(self, *parts: object) -> str:
        """A UID below 2.25 that only the seed and `parts` decide (PS3.5 B.2)."""
        text = "\0".join(str(part) for part in ("sorter synthetic", self.seed, *parts))
        return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"

    def noise(self, *parts: object) -> random.Random:
        return random.Random(self.uid("noise", *parts))  # noqa: S311  # a phantom needs no secrets


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """Where pixels lie, in mm of the patient's LPS system (PS3.3 C.7.6.2): the phantom's centre is (0, 0, 0)."""

    size: int
    slices: int
    field: float = 220.0
    thickness: float = 6.0
    axes: tuple[Vector, Vector, Vector] = AXIAL  # along a row, along a column, from slice to slice

    @property
    def spacing(self) -> float:
        return self.field / self.size

    def position(self, column: float, row: float, slice_: float) -> Vector:
        """The centre of a pixel."""
        steps = (
            (column - (self.size - 1) / 2) * self.spacing,
            (row - (self.size - 1) / 2) * self.spacing,
            (slice_ - (self.slices - 1) / 2) * self.thickness,
        )
        x, y, z = (sum(step * axis[i] for step, axis in zip(steps, self.axes, strict=True)) for i in range(3))
        return (x, y, z)


# --- the phantom ----------------------------------------------------------------------------------------------------


def tissue(x: float, y: float, z: float) -> int:
    """Index into a `Contrast` at a point in mm: a head of nested ellipsoids, not quite the same left and right."""
    head = (x / 78) ** 2 + (y / 98) ** 2 + (z / 88) ** 2
    if head > 1:
        return 0
    if head > 0.88:
        return 1
    if head > 0.80:
        return 0  # bone is as dark as air
    for side in (-1, 1):  # ventricles
        if ((x - side * 14) / 7) ** 2 + ((y + 5) / 26) ** 2 + ((z - 6) / 14) ** 2 < 1:
            return 4
    if ((x - 34) / 8) ** 2 + ((y - 30) / 8) ** 2 + ((z - 10) / 8) ** 2 < 1:
        return 4  # the phantom's one landmark: on its left
    folded = 0.58 + 0.05 * math.sin(9 * math.atan2(y, x)) * math.cos(z / 12)
    return 2 if head > folded else 3


def draw(grid: Grid, slice_: int, value: Callable[[float, float, float], int]) -> Pixels:
    """One slice of 16-bit pixels, row by row."""
    columns = range(grid.size)
    return array("H", (value(*grid.position(column, row, slice_)) for row in columns for column in columns))


def magnitude(contrast: Contrast, rng: random.Random) -> Callable[[float, float, float], int]:
    return lambda x, y, z: contrast[tissue(x, y, z)] + rng.randrange(40)


def phase(rng: random.Random) -> Callable[[float, float, float], int]:
    """A smooth field inside the head, noise outside it; 0 to 4095 stand for -π to π as Siemens scales them."""
    return lambda x, y, z: (
        (round(2048 + 9 * x + 4 * y) + rng.randrange(20) if tissue(x, y, z) else rng.randrange(4096)) & 0xFFF
    )


def shimmer(pixels: Pixels, rng: random.Random, scale: float) -> Pixels:
    """The same slice a moment later."""
    return array("H", (int(value * scale) + rng.randrange(40) for value in pixels))


def raw(pixels: Pixels) -> bytes:
    """As OW little endian (PS3.5 8.2)."""
    if sys.byteorder == "big":
        pixels = array("H", pixels)
        pixels.byteswap()
    return pixels.tobytes()


# --- data sets ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """What all images of one series share."""

    plan: Plan
    number: int
    name: str
    tr: float = 2000.0
    te: float = 3.0

    @property
    def uid(self) -> str:
        return self.plan.uid("series", self.number)

    def clock(self, seconds: float = 0.0) -> str:
        """A time of day (VR TM): series start 4 minutes apart."""
        total = 10 * 3600 + 240 * self.number + seconds
        return f"{int(total // 3600):02d}{int(total // 60) % 60:02d}{total % 60:09.6f}"

    def dataset(self, instance: int, key: object = "") -> Dataset:
        """The header of one image without its pixels; `key` tells apart images with one InstanceNumber."""
        plan, made = self.plan, Dataset()
        made.SpecificCharacterSet = "ISO_IR 192"
        made.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        made.SOPClassUID = MRImageStorage
        made.SOPInstanceUID = plan.uid("instance", self.number, instance, key)
        made.StudyDate = made.SeriesDate = made.AcquisitionDate = made.ContentDate = plan.date
        made.StudyTime = "100000"
        made.SeriesTime = made.AcquisitionTime = made.ContentTime = self.clock()
        made.Modality = "MR"
        made.Manufacturer = "SIEMENS"  # so that converters read the private elements of a mosaic
        made.ManufacturerModelName = "Synthetic"
        made.InstitutionName = "No such hospital"
        made.StationName = "DEMO"
        made.StudyDescription = plan.study_description
        made.SeriesDescription = made.ProtocolName = self.name
        made.PatientName = plan.patient_name
        made.PatientID = plan.patient_id or f"DEMO{plan.seed:03d}"
        made.PatientSex = "O"
        made.PatientPosition = "HFS"
        made.BodyPartExamined = "HEAD"
        made.StudyInstanceUID = plan.uid("study")
        made.SeriesInstanceUID = self.uid
        made.FrameOfReferenceUID = plan.uid("frame of reference")
        made.StudyID = "1"
        made.SeriesNumber = self.number
        made.AcquisitionNumber = 1
        made.InstanceNumber = instance
        return self._scanned(made)

    def _scanned(self, made: Dataset) -> Dataset:
        made.ScanningSequence = "GR"
        made.SequenceVariant = "SP"
        made.MRAcquisitionType = "2D"
        made.SequenceName = self.name[:16]
        made.MagneticFieldStrength = "3"
        made.RepetitionTime = f"{self.tr:g}"
        made.EchoTime = f"{self.te:g}"
        made.EchoNumbers = 1
        made.FlipAngle = "60"
        return made


def place(made: Dataset, grid: Grid, slice_: int) -> None:
    """Image Plane and Pixel modules of one slice (PS3.3 C.7.6.2, C.7.6.3)."""
    made.ImageOrientationPatient = [*grid.axes[0], *grid.axes[1]]
    made.ImagePositionPatient = [round(value, 4) for value in grid.position(0, 0, slice_)]
    made.SliceLocation = f"{(slice_ - (grid.slices - 1) / 2) * grid.thickness:.4f}"
    made.SliceThickness = made.SpacingBetweenSlices = f"{grid.thickness:g}"
    made.PixelSpacing = [round(grid.spacing, 4)] * 2


def paint(made: Dataset, rows: int, columns: int, pixels: bytes) -> None:
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.Rows, made.Columns = rows, columns
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation = 0
    made.WindowCenter, made.WindowWidth = "1000", "2000"
    made.add_new("PixelData", "OW", pixels)


def encode(made: Dataset) -> bytes:
    """The whole file, Explicit VR Little Endian (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = made.SOPClassUID
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = "SORTER_SYNTHETIC"
    made.file_meta = meta
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def finish(sequence: Scan, files: Sequence[bytes]) -> Made:
    return Made(sequence.number, sequence.name, sequence.uid, tuple(files))


# --- the series -----------------------------------------------------------------------------------------------------


def localizer(plan: Plan) -> Made:
    sequence = Scan(plan, 1, "localizer", tr=8.6, te=4.0)
    files = []
    for instance, axes in enumerate((SAGITTAL, CORONAL, AXIAL), 1):
        grid = Grid(plan.size, 1, field=260, thickness=7, axes=axes)
        made = sequence.dataset(instance)
        place(made, grid, 0)
        pixels = draw(grid, 0, magnitude(T1, plan.noise(1, instance)))
        paint(made, grid.size, grid.size, raw(pixels))
        files.append(encode(made))
    return finish(sequence, files)


def mprage(plan: Plan) -> Made:
    sequence = Scan(plan, 2, "T1_MPRAGE", tr=2300, te=2.98)
    grid = Grid(plan.size, plan.size, axes=SAGITTAL, thickness=180 / plan.size)
    files = []
    for slice_ in range(grid.slices):
        made = sequence.dataset(slice_ + 1)
        made.MRAcquisitionType = "3D"
        made.ScanningSequence = ["GR", "IR"]
        made.InversionTime = "900"
        place(made, grid, slice_)
        paint(made, grid.size, grid.size, raw(draw(grid, slice_, magnitude(T1, plan.noise(2, slice_)))))
        files.append(encode(made))
    return finish(sequence, files)


def rest_bold(plan: Plan) -> Made:
    """An EPI time series, one file a slice; InstanceNumber runs on from volume to volume."""
    sequence = Scan(plan, 3, "rest_bold", tr=2000, te=30)
    grid = Grid(plan.size, plan.slices)
    still = [draw(grid, slice_, magnitude(EPI, plan.noise(3, slice_))) for slice_ in range(grid.slices)]
    files = []
    for volume in range(plan.volumes):
        for slice_, pixels in enumerate(still):
            instance = volume * grid.slices + slice_ + 1
            made = sequence.dataset(instance)
            made.ScanningSequence = "EP"
            made.AcquisitionNumber = made.TemporalPositionIdentifier = volume + 1
            made.NumberOfTemporalPositions = plan.volumes
            made.AcquisitionTime = made.ContentTime = sequence.clock(2.0 * volume)
            place(made, grid, slice_)
            moment = shimmer(pixels, plan.noise(3, volume, slice_), 1 + 0.02 * math.sin(volume))
            paint(made, grid.size, grid.size, raw(moment))
            files.append(encode(made))
    return finish(sequence, files)


def multiecho(plan: Plan) -> Made:
    """Three echoes in one series; T2* decay makes each darker."""
    sequence = Scan(plan, 4, "T2star_multiecho", tr=700, te=5)
    grid = Grid(plan.size, plan.slices)
    files = []
    for echo in range(3):
        for slice_ in range(grid.slices):
            made = sequence.dataset(echo * grid.slices + slice_ + 1)
            made.EchoNumbers = echo + 1
            made.EchoTime = f"{5 + 7.5 * echo:g}"
            place(made, grid, slice_)
            pixels = draw(grid, slice_, magnitude(T2, plan.noise(4, slice_)))
            paint(made, grid.size, grid.size, raw(shimmer(pixels, plan.noise(4, echo, slice_), 0.75**echo)))
            files.append(encode(made))
    return finish(sequence, files)


def field_map(plan: Plan) -> Made:
    """Two magnitude echoes and the phase between them, each with the InstanceNumbers 1, 2, 3 …"""
    sequence = Scan(plan, 5, "gre_field_mapping", tr=488, te=4.92)
    grid = Grid(plan.size, plan.slices)
    files = []
    for part, kind, echo in (("M1", "M", 1), ("M2", "M", 2), ("P2", "P", 2)):
        for slice_ in range(grid.slices):
            made = sequence.dataset(slice_ + 1, part)
            made.ImageType = ["ORIGINAL", "PRIMARY", kind, "ND"]
            made.EchoNumbers = echo
            made.EchoTime = "4.92" if echo == 1 else "7.38"
            place(made, grid, slice_)
            rng = plan.noise(5, part, slice_)
            pixels = draw(grid, slice_, phase(rng) if kind == "P" else magnitude(T1, rng))
            paint(made, grid.size, grid.size, raw(pixels))
            files.append(encode(made))
    return finish(sequence, files)


def tile(slices: Sequence[Pixels], size: int, across: int) -> Pixels:
    """The slices side by side in a square of `across` × `across` tiles; unused tiles are black."""
    whole = array("H", bytes(2 * (size * across) ** 2))
    for index, pixels in enumerate(slices):
        top, left = (index // across) * size, (index % across) * size
        for row in range(size):
            start = (top + row) * size * across + left
            whole[start : start + size] = pixels[row * size : (row + 1) * size]
    return whole


def mosaic_bold(plan: Plan) -> Made:
    """Siemens mosaics: one file a volume, its position that of a single slice as large as the whole square."""
    sequence = Scan(plan, 6, "task_bold", tr=1500, te=30)
    grid = Grid(plan.size, plan.slices)
    across = math.ceil(math.sqrt(grid.slices))
    still = [draw(grid, slice_, magnitude(EPI, plan.noise(6, slice_))) for slice_ in range(grid.slices)]
    corner = -grid.size * (across - 1) / 2
    files = []
    for volume in range(plan.volumes):
        made = sequence.dataset(volume + 1)
        made.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        made.ScanningSequence = "EP"
        made.AcquisitionNumber = volume + 1
        made.AcquisitionTime = made.ContentTime = sequence.clock(1.5 * volume)
        place(made, grid, 0)
        made.ImagePositionPatient = [round(value, 4) for value in grid.position(corner, corner, 0)]
        private = made.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        private.add_new(0x0A, "US", grid.slices)  # NumberOfImagesInMosaic
        scale = 1 + 0.02 * math.cos(volume)
        moment = [shimmer(pixels, plan.noise(6, volume, slice_), scale) for slice_, pixels in enumerate(still)]
        paint(made, grid.size * across, grid.size * across, raw(tile(moment, grid.size, across)))
        files.append(encode(made))
    return finish(sequence, files)


def item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def enhanced_flair(plan: Plan) -> Made:
    """One Enhanced MR object with a frame for each slice (PS3.3 A.36)."""
    sequence = Scan(plan, 7, "T2_FLAIR", tr=9000, te=125)
    grid = Grid(plan.size, plan.slices)
    made = sequence.dataset(1)
    made.SOPClassUID = EnhancedMRImageStorage
    made.ImageType = ["ORIGINAL", "PRIMARY", "T2", "NONE"]
    made.NumberOfFrames = grid.slices
    made.AcquisitionDateTime = f"{plan.date}{sequence.clock()}"
    for keyword in ("EchoTime", "RepetitionTime", "FlipAngle", "EchoNumbers", "SequenceName", "ScanningSequence"):
        delattr(made, keyword)  # in an Enhanced object these stand in the functional groups
    organization = plan.uid("dimensions", 7)
    made.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organization)]
    made.DimensionIndexSequence = [
        item(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=0x00209057,  # In-Stack Position Number
            FunctionalGroupPointer=0x00209111,  # Frame Content Sequence
        )
    ]
    made.SharedFunctionalGroupsSequence = [shared_groups(sequence, grid)]
    made.PerFrameFunctionalGroupsSequence = [frame_groups(sequence, grid, slice_) for slice_ in range(grid.slices)]
    frames = (raw(draw(grid, slice_, magnitude(FLAIR, plan.noise(7, slice_)))) for slice_ in range(grid.slices))
    paint(made, grid.size, grid.size, b"".join(frames))
    return finish(sequence, [encode(made)])


def shared_groups(sequence: Scan, grid: Grid) -> Dataset:
    return item(
        PixelMeasuresSequence=[
            item(
                PixelSpacing=[round(grid.spacing, 4)] * 2,
                SliceThickness=grid.thickness,
                SpacingBetweenSlices=grid.thickness,
            )
        ],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[*grid.axes[0], *grid.axes[1]])],
        MRTimingAndRelatedParametersSequence=[item(RepetitionTime=sequence.tr, FlipAngle=150.0)],
        MREchoSequence=[item(EffectiveEchoTime=sequence.te)],
    )


def frame_groups(sequence: Scan, grid: Grid, slice_: int) -> Dataset:
    position = [round(value, 4) for value in grid.position(0, 0, slice_)]
    return item(
        FrameContentSequence=[
            item(
                FrameAcquisitionNumber=1,
                FrameAcquisitionDateTime=f"{sequence.plan.date}{sequence.clock()}",
                DimensionIndexValues=[slice_ + 1],
                StackID="1",
                InStackPositionNumber=slice_ + 1,
                TemporalPositionIndex=1,
            )
        ],
        PlanePositionSequence=[item(ImagePositionPatient=position)],
        PixelValueTransformationSequence=[item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")],
        MRImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "T2", "NONE"])],
    )


# --- a session ------------------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Plan], Made]] = {
    "localizer": localizer,
    "T1_MPRAGE": mprage,
    "rest_bold": rest_bold,
    "T2star_multiecho": multiecho,
    "gre_field_mapping": field_map,
    "task_bold": mosaic_bold,
    "T2_FLAIR": enhanced_flair,
}
"""How each series is made, by name, in the order of their numbers."""


def session(plan: Plan | None = None, names: Sequence[str] = tuple(MAKERS)) -> Iterator[Made]:
    """The series of one session, each made when it is asked for. KeyError for a name that is not in `MAKERS`."""
    for name in names:
        yield MAKERS[name](plan or Plan())


def write_series(folder: str | os.PathLike[str], series: Made, files: Files | None = None) -> list[str]:
    """Write one series as `folder`/003_rest_bold/0001.dcm …; the paths, in the order of `series.files`."""
    files = files or Files()
    home = os.path.join(folder, f"{series.number:03d}_{series.name}")
    files.make_folders(home)
    paths = [os.path.join(home, f"{index:04d}.dcm") for index in range(1, len(series.files) + 1)]
    for path, data in zip(paths, series.files, strict=True):
        files.write_file(path, data, durable=False)
    return paths


def write_session(folder: str | os.PathLike[str], plan: Plan | None = None) -> list[str]:
    """Write a whole session below `folder`; the paths of all its files, in the order a scanner would send them."""
    return [path for series in session(plan) for path in write_series(folder, series)]


def many(count: int, *, a_series: int = 1000, seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """(name, file) of so many small images, fast: one image with ever other UIDs, `a_series` of them in each series."""
    [template, *_] = localizer(Plan(seed=seed, size=16)).files
    uids = _uids(template)
    for number in range(count):
        sop = _numbered(uids["sop"], 1, number)
        series = _numbered(uids["series"], 2, number // a_series)
        made = template.replace(uids["sop"], sop).replace(uids["series"], series)
        yield f"{number // a_series:04d}-{number:06d}.dcm", made


def _uids(file: bytes) -> dict[str, bytes]:
    """The SOP and the Series Instance UID of a file, as they stand in it."""
    read = dcmread(io.BytesIO(file), stop_before_pixels=True)
    return {"sop": read.SOPInstanceUID.encode(), "series": read.SeriesInstanceUID.encode()}


def _numbered(uid: bytes, kind: int, number: int) -> bytes:
    """The same UID with other last digits: its length stays."""
    return uid[:-10] + b"%d%09d" % (kind, number)
