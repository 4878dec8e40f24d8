"""The product `nifti`: its settings, and through the local engine on real images."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dcm2niix import bin as program
from sorter_dcm2niix.convert import arguments
from sorter_dcm2niix.settings import ALLOWED, OURS

from sorter.durable import Files
from sorter.engine.local import LocalEngine
from sorter.engine.work import Outcome, Work
from sorter.errors import ConfigError
from sorter.model import Product, Series, UnitKind, Verdict
from sorter.plugins import Plugins, matches
from sorter.testing.synthetic import Plan, multiecho
from sorter.testing.waiting import wait_until


def load(**settings: Any) -> Plugins:
    return Plugins.load({"dcm2niix": settings}, None, Files(), {})


def nifti(plugins: Plugins) -> Product:
    product: Product = next(value for name, value in plugins.products().answers if name == "dcm2niix")
    return product


# --- what it says -----------------------------------------------------------------------------------------------------


def test_it_is_found_as_an_installed_distribution() -> None:
    line = next(line for line in load().listing() if line.name == "dcm2niix")
    assert (line.source, line.version) == ("distribution sorter-dcm2niix", "0.1.0")
    assert line.hooks == ("sorter_config", "sorter_products")


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ({"Modality": "MR", "BitsAllocated": 16}, True),
        ({"Modality": "PT", "BitsAllocated": 16}, True),
        ({"Modality": "MR"}, False),  # spectroscopy has Rows, but no pixels
        ({"Modality": "SR"}, False),
        ({"Modality": "US", "BitsAllocated": 8}, False),
    ],
)
def test_which_series_it_is_made_of(header: dict[str, Any], asked: bool) -> None:
    assert matches(nifti(load()), Series("k", UnitKind.SERIES, "1", ("2",), header, 1)) is asked


def test_settings() -> None:
    plugins = load(compress=False, extra=["-x", "y"], timeout=5, memory=300, min_verdict="quiet")
    product = nifti(plugins)
    assert (product.timeout, product.memory, product.min_verdict) == (5, 300, Verdict.QUIET)
    assert arguments(plugins.settings("dcm2niix"), "out", "in/dicom") == [
        "-b", "y", "-z", "n", "-x", "y", "-f", "out", "-o", "out", "in/dicom"
    ]  # fmt: skip
    told = arguments({"echoes": "together", "derived": False}, "out", "in")
    assert told == ["-b", "y", "-z", "y", "-6", "-m", "y", "-i", "y", "-f", "out", "-o", "out", "in"]
    assert arguments({}, "out", "in") == ["-b", "y", "-z", "y", "-6", "-f", "out", "-o", "out", "in"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"extra": ["-o", "/tmp"]}, "-o is not possible here: sorter names folders; possible are"),
        ({"extra": ["-e", "y"]}, "not by 'y'"),
        ({"extra": ["-x"]}, "-x is followed by one of y, n, i"),
        ({"extra": ["-x", "/etc"]}, "not by '/etc'"),
        ({"compres": True}, "did you mean compress"),
        ({"level": 10}, "less than or equal to 9"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(**settings)


def test_every_option_of_dcm2niix_is_possible_or_is_refused_with_a_reason() -> None:
    told = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    options = re.findall(r"^ +(-[^ ]+) :", told, re.MULTILINE)
    assert len(options) > 25
    assert set(options) == set(ALLOWED) | set(OURS)


# --- what it makes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    engine = LocalEngine(2, tmp_path / "scratch", Files())
    yield engine
    engine.stop()


def run(engine: LocalEngine, *works: Work) -> dict[str, Outcome]:
    for work in works:
        engine.submit(work)
    found: dict[str, Outcome] = {}

    def all_ended() -> bool:
        found.update({outcome.id: outcome for outcome in engine.finished()})
        return len(found) == len(works)

    wait_until(all_ended, 100, "the conversions to end")
    return found


def image_sha256(path: Path) -> str:
    """Of a NIfTI-1 file's image data: what follows vox_offset (byte 108 of the header)."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    (offset,) = struct.unpack_from("<f", data, 108)
    return hashlib.sha256(data[int(offset) :]).hexdigest()


def work_of(job: str, plugins: Plugins, paths: list[Path]) -> Work:
    copies = [(path, f"{number:06d}.dcm") for number, path in enumerate(paths)]
    return Work(job, nifti(plugins), {"dicom": copies}, plugins.settings("dcm2niix"))


def test_the_sample_becomes_the_publishers_own_nifti(
    engine: LocalEngine, sample: Path, sample_manifest: dict[str, Any], sample_expected: dict[str, Any], tmp_path: Path
) -> None:
    plugins = load()
    works = []
    for number, series in enumerate(sample_expected["series"]):
        uids = (series["StudyInstanceUID"], series["SeriesInstanceUID"])
        records = [
            each
            for each in sample_manifest["files"]
            if each["dicom"] and (each["StudyInstanceUID"], each["SeriesInstanceUID"]) == uids
        ]
        works.append(work_of(f"s{number}", plugins, [sample / each["path"] for each in records]))

    outcomes = run(engine, *works)

    for number, series in enumerate(sample_expected["series"]):
        outcome = outcomes[f"s{number}"]
        assert outcome.state == "made", outcome.why
        into = tmp_path / "products" / f"s{number}"
        made = engine.adopt(outcome.id, into)
        images = sorted(each.name for each in made if each.name.endswith(".nii.gz"))
        expected = {item["out"].replace("S", "out", 1) + ".gz": item["image_sha256"] for item in series["nifti"]}
        assert {name: image_sha256(into / name) for name in images} == expected
        sidecars = {name.replace(".nii.gz", ".json") for name in images if "_Eq_" not in name}  # resampled: none
        assert sidecars <= {each.name for each in made}
        assert all(b"PatientName" not in (into / name).read_bytes() for name in sidecars)
    assert len(sample_expected["series"]) == 10


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({}, ["out_e1.json", "out_e1.nii.gz", "out_e2.json", "out_e2.nii.gz", "out_e3.json", "out_e3.nii.gz"]),
        ({"echoes": "together"}, ["out.json", "out.nii.gz", "out_e3.json", "out_e3.nii.gz"]),
        ({"derived": False, "extra": ["-e", "o"]}, ["out_e1.json", "out_e1.mgz", "out_e2.json", "out_e2.mgz"]),
    ],
)
def test_each_echo_by_itself_and_what_is_derived(
    settings: dict[str, Any], made: list[str], engine: LocalEngine, tmp_path: Path
) -> None:
    """The third echo is made a derived image here."""
    paths = []
    for number, each in enumerate(multiecho(Plan(seed=1, slices=3)).files):
        image = pydicom.dcmread(io.BytesIO(each))
        if image.EchoNumbers == 3:
            image.ImageType = ["DERIVED", "SECONDARY", "M", "ND"]
        paths.append(tmp_path / f"{number}.dcm")
        image.save_as(paths[-1])
    outcome = run(engine, work_of("x", load(**settings), paths))["x"]
    assert sorted(each.name for each in outcome.files) == made


@pytest.mark.parametrize("settings", [{"derived": False}, {"extra": ["-i", "y"]}])
def test_a_series_of_derived_images_alone_is_nothing_to_make_where_these_are_left_out(
    settings: dict[str, Any], engine: LocalEngine, tmp_path: Path
) -> None:
    paths = []
    for number, each in enumerate(multiecho(Plan(seed=1, slices=3)).files):
        image = pydicom.dcmread(io.BytesIO(each))
        image.ImageType = ["DERIVED", "SECONDARY", "M", "ND"]
        paths.append(tmp_path / f"{number}.dcm")
        image.save_as(paths[-1])
    outcome = run(engine, work_of("x", load(**settings), paths))["x"]
    assert (outcome.state, outcome.why) == ("nothing", "there is nothing to make of it")
    assert run(engine, work_of("y", load(), paths))["y"].state == "made"


def test_uncompressed(engine: LocalEngine, sample: Path, sample_manifest: dict[str, Any], tmp_path: Path) -> None:
    paths = [
        sample / each["path"] for each in sample_manifest["files"] if each["set"] == "siemens-xa10" and each["dicom"]
    ]
    outcome = run(engine, work_of("x", load(compress=False), paths))["x"]
    assert [made.name for made in outcome.files] == ["out.json", "out.nii"]


def test_nothing_to_convert_is_not_a_failure(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image at all")
    outcome = run(engine, work_of("x", load(), [tmp_path / "text"]))["x"]
    assert (outcome.state, outcome.why) == ("nothing", "there is nothing to make of it")
    assert "Unable to find any DICOM images" in outcome.log


def test_a_hole_in_a_series_is_said_and_nothing_is_made(
    engine: LocalEngine, sample: Path, sample_manifest: dict[str, Any]
) -> None:
    paths = [
        sample / each["path"]
        for each in sample_manifest["files"]
        if each["set"] == "nih-ge" and each["dicom"] and each["SeriesNumber"] == "4"
    ]
    outcome = run(engine, work_of("x", load(), sorted(paths)[:9] + sorted(paths)[10:]))["x"]
    assert outcome.state == "failed"
    assert "dcm2niix ended with exit code 1: " in outcome.why
    assert outcome.files == ()
