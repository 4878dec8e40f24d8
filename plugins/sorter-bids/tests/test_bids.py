"""What the plugin says, and what it does around a converter; test_converters.py runs the real ones."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sorter_bids.convert import Way, arguments, make, way_of
from sorter_bids.dataset import Labels

from sorter.errors import ConfigError
from sorter.model import Identity, Job, UnitKind
from sorter.plugins import matches
from sorter.testing.plugins import check_plugin, load_plugin, made_up

README = Path(__file__).parents[1] / "README.md"
ME = Identity(lab="memory", subject="P_01", session="pre scan")


def settings(**given: Any) -> dict[str, Any]:
    return dict(load_plugin("bids", **given).settings("bids"))


# --- what it says -----------------------------------------------------------------------------------------------------


def test_one_product_of_a_study_with_images() -> None:
    plugin = load_plugin("bids", timeout=5, memory=300)
    [product] = [answer.value for answer in plugin.products().answers if answer.plugin == "bids"]
    assert (product.name, product.of, product.timeout, product.memory) == ("bids", UnitKind.STUDY, 5, 300)
    assert matches(product, made_up(Modality="MR", BitsAllocated=16))
    assert not matches(product, made_up(Modality="MR"))
    assert not matches(product, made_up(Modality="SR"))


def test_one_dataset_below_the_root_and_no_say_of_other_products() -> None:
    plugin = load_plugin("bids")
    folders = {product: plugin.name(made_up(), product, "memory")[0] for product in ("bids", "nifti", "dicom")}
    assert folders["bids"] is not None
    assert folders["bids"].folder == "bids"
    assert [getattr(folders[other], "folder", "") == "bids" for other in ("nifti", "dicom")] == [False, False]


def test_the_readme_is_a_configuration() -> None:
    [text] = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    given = tomllib.loads(text)["plugins"]["bids"]
    check_plugin("bids", **given)
    found = settings(**given)
    assert found["labs"]["memory"]["dcm2bids"] == "/etc/sorter/memory/dcm2bids.json"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"heuristic": "mine.py"}, "whole path of a Python file"),
        ({"heuristic": "/a/b.py", "dcm2bids": "/a/c.json"}, "give one of them"),
        ({"labs": {"memory": {"dcm2bids": "c.json"}}}, "whole path"),
        ({"programs": {"heudiconv": "bin/heudiconv"}}, "found in PATH, or a whole path"),
        ({"session": "number"}, "identity"),
        ({"heuristics": "reproin"}, "heuristics"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_plugin("bids", **given)


# --- how a session is converted ---------------------------------------------------------------------------------------


def ours(tmp_path: Path, name: str, text: str = "") -> str:
    path = tmp_path / "ours" / name
    path.parent.mkdir(exist_ok=True)
    path.parent.chmod(0o755)
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def test_a_lab_has_a_way_of_its_own(tmp_path: Path) -> None:
    config, heuristic = ours(tmp_path, "c.json"), ours(tmp_path, "h.py")
    found = settings(heuristic=heuristic, session="date", labs={"memory": {"dcm2bids": config},
                     "pain": {"session": "identity"}})  # fmt: skip
    assert way_of(found, "memory") == Way("dcm2bids", "dcm2bids", config, "date")
    assert way_of(found, "pain") == Way("heudiconv", "heudiconv", heuristic, "identity")
    assert way_of(settings(), "") == Way("heudiconv", "heudiconv", "reproin", "identity")


@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_heuristic_that_others_may_write_is_not_run(tmp_path: Path, which: str) -> None:
    heuristic = ours(tmp_path, "h.py")
    (Path(heuristic) if which == "file" else Path(heuristic).parent).chmod(0o777)
    with pytest.raises(RuntimeError, match="can be written by others"):
        way_of(settings(heuristic=heuristic), "memory")


@pytest.mark.parametrize(
    ("identity", "header", "by_date", "labels"),
    [
        (ME, {}, False, ("P01", "prescan")),
        (ME, {"StudyDate": "20260314"}, True, ("P01", "prescan")),
        (replace(ME, session=None), {"StudyDate": "20260314"}, True, ("P01", "20260314")),
        (replace(ME, session=None), {"StudyDate": "20260314"}, False, ("P01", "")),
        (Identity(), {"PatientID": "Zoë/../1"}, False, ("Zoe1", "")),
        (Identity(subject="--"), {"PatientID": "..", "PatientName": "A^B"}, True, ("AB", "")),
    ],
)
def test_labels_are_of_letters_and_digits(identity: Identity, header: Any, by_date: bool, labels: Any) -> None:
    assert Labels.of(identity, header, by_date=by_date) == Labels(*labels)


def test_a_subject_without_any_is_asked_for() -> None:
    with pytest.raises(ValueError, match="sorter fix"):
        Labels.of(Identity(subject="被験者"), {}, by_date=False)


def test_heudiconv_gets_files_where_the_heuristic_takes_them(tmp_path: Path) -> None:
    labels = Labels("s1", "s2")
    told = arguments(Way("heudiconv", "heudiconv", "reproin", ""), "in/dicom", tmp_path, labels)
    assert told == ["--files", "in/dicom", "-f", "reproin", "--bids", "notop", "-o", str(tmp_path / "out"), "-s", "s1",
                    "-ss", "s2", "--minmeta", "-l", "x"]  # fmt: skip
    knows = ours(tmp_path, "knows.py", "def infotoids(seqinfos, outdir): ...")
    assert arguments(Way("heudiconv", "", knows, ""), "in", tmp_path, labels)[:2] == ["--files", "in"]
    images = tmp_path / "images" / "002-1a2b3c4d"
    images.mkdir(parents=True)
    (images / "000001.dcm").touch()
    plain = ours(tmp_path, "plain.py", "def infotodict(seqinfo): ...")
    option, template = arguments(Way("heudiconv", "", plain, ""), str(tmp_path / "images"), tmp_path, labels)[:2]
    assert option == "-d"
    assert [path.name for path in tmp_path.glob(os.path.relpath(template.format(subject="s1"), tmp_path))] == [
        "000001.dcm"
    ]


CONVERTER = """#!/bin/sh
printf '%s\\n' "$*" > {told}
while [ $# -gt 0 ]; do case $1 in -o) out=$2;; -s) who=$2;; -ss) when=$2;; esac; shift; done
{does}
"""

MAKES = """
place=$out/x/sub-$who/ses-$when
mkdir -p $place/anat $out/x/sourcedata/sub-$who $out/x/.heudiconv
echo "{\\"IntendedFor\\": [\\"ses-$when/anat/sub-${who}_ses-${when}_T1w.nii.gz\\"]}" > $place/anat/sub-${who}_ses-${when}_T1w.json
echo $who > $place/anat/sub-${who}_ses-${when}_T1w.nii.gz
chmod a-w $place/anat/*
"""  # noqa: E501


def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> tuple[Job, Path]:
    """A job with a program in the converter's place, which writes down what it was told."""
    told = tmp_path / "told"
    program = Path(ours(tmp_path, "heudiconv", CONVERTER.format(told=told, does=does)))
    program.chmod(0o755)
    for folder in ("in", "out", "tmp"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    given = settings(programs={"heudiconv": str(program)})
    header = {"PatientID": "P_01", "PatientName": "Planted^Name", "PatientSex": "F", "StudyDate": "20260314"}
    images, scratch = str(tmp_path / "in"), str(tmp_path / "out")
    return Job("bids", {"dicom": images}, scratch, given, header, identity=ME), told


def test_what_was_made_has_the_real_names_and_no_argument_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, told = job(tmp_path, monkeypatch, MAKES)
    assert make(work) is None
    made = {path.relative_to(work.scratch).as_posix(): path.read_text()
            for path in Path(work.scratch).rglob("*") if path.is_file()}  # fmt: skip
    stem = "sub-P01/ses-prescan/anat/sub-P01_ses-prescan_T1w"
    assert set(made) == {
        f"{stem}.json", f"{stem}.nii.gz", "README", ".bidsignore", "participants.tsv", "dataset_description.json"
    }  # fmt: skip
    assert json.loads(made[f"{stem}.json"]) == {"IntendedFor": ["ses-prescan/anat/sub-P01_ses-prescan_T1w.nii.gz"]}
    assert made["participants.tsv"] == "participant_id\tsex\nsub-P01\tF\n"
    assert json.loads(made["dataset_description.json"])["Name"] == "memory"
    assert not re.search("P_?01|Planted|prescan", told.read_text().replace(str(tmp_path), ""))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_nothing_that_fits_is_nothing_to_deliver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, _ = job(tmp_path, monkeypatch, "true")
    assert make(work) == "nothing"
    assert list(Path(work.scratch).iterdir()) == []


def test_a_converter_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = 'echo "ERROR: no ShimSetting here"; echo later; echo "KeyError: x" >&2; exit 3'
    work, _ = job(tmp_path, monkeypatch, MAKES + fails)
    with pytest.raises(RuntimeError, match=r"exit code 3: no ShimSetting here / KeyError: x$"):
        make(work)
    assert list(Path(work.scratch).iterdir()) == []


def test_a_converter_that_is_not_there_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, _ = job(tmp_path, monkeypatch, "true")
    missing = {**work.settings, "programs": {"heudiconv": "heudiconv-not-here"}}
    with pytest.raises(RuntimeError, match="there is no program heudiconv-not-here here"):
        make(replace(work, settings=missing))
