from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from sorter.testing.synthetic import MAKERS, Made, Plan, many, session, write_series, write_session

SMALL = Plan(size=16, slices=4, volumes=2)


@pytest.fixture(scope="module")
def small() -> dict[str, Made]:
    return {made.name: made for made in session(SMALL)}


def headers(made: Made) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True) for data in made.files]


def test_the_same_seed_gives_the_same_bytes(small: dict[str, Made]) -> None:
    assert {made.name: made for made in session(SMALL)} == small
    other = next(session(Plan(seed=1, size=16, slices=4, volumes=2), ["T2_FLAIR"]))
    assert other.uid != small["T2_FLAIR"].uid
    assert other.files != small["T2_FLAIR"].files


def test_a_series_can_be_made_alone(small: dict[str, Made]) -> None:
    assert list(session(SMALL, ["task_bold"])) == [small["task_bold"]]


def test_every_series_has_its_name_number_and_uids(small: dict[str, Made]) -> None:
    counts = {name: len(made.files) for name, made in small.items()}
    assert list(small) == list(MAKERS)
    assert counts == {
        "localizer": 3,
        "T1_MPRAGE": 16,
        "rest_bold": 8,
        "T2star_multiecho": 12,
        "gre_field_mapping": 12,
        "task_bold": 2,
        "T2_FLAIR": 1,
    }
    sop = set()
    for number, made in enumerate(small.values(), 1):
        for header in headers(made):
            assert (header.SeriesNumber, header.SeriesDescription) == (number, made.name)
            assert header.SeriesInstanceUID == made.uid
            assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
            assert header.SOPInstanceUID.is_valid
            sop.add(header.SOPInstanceUID)
    assert len(sop) == sum(counts.values())


def test_instance_numbers_repeat_in_the_field_map_alone(small: dict[str, Made]) -> None:
    repeating = []
    for made in small.values():
        numbers = [header.InstanceNumber for header in headers(made)]
        if len(set(numbers)) < len(numbers):
            repeating.append(made.name)
    assert repeating == ["gre_field_mapping"]


def test_writes_a_folder_a_series(tmp_path: Path, small: dict[str, Made]) -> None:
    paths = write_series(tmp_path / "new", small["rest_bold"])
    assert [str(Path(path).relative_to(tmp_path)) for path in paths[:2]] == [
        "new/003_rest_bold/0001.dcm",
        "new/003_rest_bold/0002.dcm",
    ]
    assert [Path(path).read_bytes() for path in paths] == list(small["rest_bold"].files)


def test_dcm2niix_converts_every_series(tmp_path: Path) -> None:
    tool = Path(sys.executable).parent / "dcm2niix"
    program = str(tool) if tool.exists() else shutil.which("dcm2niix")
    if program is None:
        pytest.skip("dcm2niix is missing: install plugins/sorter-dcm2niix")
    write_session(tmp_path / "dicom", SMALL)
    (tmp_path / "nifti").mkdir()
    command = [program, "-b", "n", "-z", "n", "-f", "%s_%d", "-o", str(tmp_path / "nifti"), str(tmp_path / "dicom")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    made = {}
    for path in (tmp_path / "nifti").glob("*.nii"):
        head = path.read_bytes()[:348]
        made[path.stem] = tuple(
            int.from_bytes(head[i : i + 2], "little") for i in range(42, 50, 2)
        )  # NIfTI-1 dim[1..4]
    volume = (16, 16, 4, 1)
    assert made == {
        "1_localizer_i00001": (16, 16, 1, 1),
        "1_localizer_i00002": (16, 16, 1, 1),
        "1_localizer_i00003": (16, 16, 1, 1),
        "2_T1_MPRAGE": (16, 16, 16, 1),
        "3_rest_bold": (16, 16, 4, 2),
        "4_T2star_multiecho_e1": volume,
        "4_T2star_multiecho_e2": volume,
        "4_T2star_multiecho_e3": volume,
        "5_gre_field_mapping_e1": volume,
        "5_gre_field_mapping_e2": volume,
        "5_gre_field_mapping_e2_ph": volume,
        "6_task_bold": (16, 16, 4, 2),
        "7_T2_FLAIR": volume,
    }


def test_many_images_are_readable_and_each_is_another() -> None:
    made = [pydicom.dcmread(io.BytesIO(data)) for _, data in many(5, a_series=2)]
    assert len({each.SOPInstanceUID for each in made}) == 5
    assert len({each.SeriesInstanceUID for each in made}) == 3
    assert all(pydicom.uid.UID(each.SOPInstanceUID).is_valid for each in made)
