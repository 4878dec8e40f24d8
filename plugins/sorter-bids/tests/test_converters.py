"""Sessions by real converters, delivered by a sorter that really runs; the BIDS validator has the last word."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from sorter.model import UnitKind
from sorter.spool import UnitSummary
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Made, Plan, field_map, mosaic_bold, mprage
from sorter.testing.waiting import wait_until

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
PLACES = os.pathsep.join((str(ROOT / ".peers" / "bids" / "bin"), os.environ.get("PATH", os.defpath)))
"""Where the tools are: run.py peers brings them into .peers/bids."""


def tool(name: str) -> str:
    found = shutil.which(name, path=PLACES)
    if found is None:
        pytest.skip(f"no {name}: python packaging/run.py peers installs it into .peers/bids")
    return found


# --- made-up sessions whose scans are named as ReproIn says -----------------------------------------------------------

PROTOCOL = {
    **{f"sGRADSPEC.asGPAData[0].lOffset{axis}": value for axis, value in {"X": 11, "Y": -22, "Z": 33}.items()},
    **{f"sGRADSPEC.alShimCurrent[{number}]": 7 * number + 1 for number in range(5)},
    "lContrasts": 2,
    "alTE[0]": 4920,
    "alTE[1]": 7380,
}
"""What a Siemens scanner writes into its CSA header: dcm2niix finds there what ReproIn and the validator ask for."""

PLAN = Plan(size=16, slices=6, volumes=6)


def session(plan: Plan) -> list[Made]:
    return [anat(plan), *fmaps(plan), bold(plan)]


def anat(plan: Plan) -> Made:
    return called(plan, mprage(plan).files, 2, "anat-T1w")


def bold(plan: Plan) -> Made:
    return called(plan, mosaic_bold(plan).files, 6, "func-bold_task-rest")


def fmaps(plan: Plan) -> list[Made]:
    """A scanner sends the two magnitudes and the phase as two series of one name."""
    files = field_map(plan).files
    cut = 2 * len(files) // 3
    return [called(plan, files[:cut], 4, "fmap_acq-gre"), called(plan, files[cut:], 5, "fmap_acq-gre")]


def called(plan: Plan, files: Sequence[bytes], number: int, name: str) -> Made:
    uid = plan.uid("reproin", number)
    text = "".join(f"{key} = {value}\n" for key, value in PROTOCOL.items())
    csa = f"<XProtocol>\n### ASCCONV BEGIN ###\n{text}### ASCCONV END ###\n".ljust(2048).encode()

    def changed(file: bytes) -> bytes:
        found = dcmread(io.BytesIO(file))
        found.SeriesNumber, found.SeriesInstanceUID = number, uid
        found.SeriesDescription = found.ProtocolName = name
        found.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x20, "OB", csa)
        written = io.BytesIO()
        found.save_as(written, enforce_file_format=True)
        return written.getvalue()

    return Made(number, name, uid, tuple(map(changed, files)))


def in_study_of(plan: Plan, file: bytes) -> bytes:
    found = dcmread(io.BytesIO(file))
    found.StudyInstanceUID, found.FrameOfReferenceUID = plan.uid("study"), plan.uid("frame of reference")
    written = io.BytesIO()
    found.save_as(written, enforce_file_format=True)
    return written.getvalue()


def plans() -> list[Plan]:
    """Two subjects, each on two days."""
    days = ("20260314", "20260321")
    return [replace(PLAN, seed=10 * who + day, patient_id=f"P_0{who}", patient_name="Planted^Name", date=days[day])
            for who in (1, 2) for day in (0, 1)]  # fmt: skip


# --- a running sorter -----------------------------------------------------------------------------------------------


@dataclass
class Site:
    running: RunningSorter

    @property
    def dataset(self) -> Path:
        return self.running.labs / "memory" / "bids"

    def studies(self) -> list[UnitSummary]:
        return [each for each in self.running.series() if each.kind is UnitKind.STUDY]

    def wait(self, studies: int, revision: int = 1) -> None:
        """Until so many studies are delivered, and one of them is of this revision."""

        def delivered() -> bool:
            found = self.studies()
            return [each.state for each in found] == ["delivered"] * studies and max(
                each.revision for each in found
            ) == revision

        try:
            wait_until(delivered, 240, "the sessions to be delivered")
        except AssertionError as error:
            raise AssertionError(f"{error}: {[(each.state, each.why) for each in self.studies()]}") from None

    def names(self) -> set[str]:
        return {path.relative_to(self.dataset).as_posix() for path in self.dataset.rglob("*")
                if path.is_file() and not path.name.startswith(".sorter") and ".sorter" not in path.parts}  # fmt: skip

    def valid(self) -> None:
        """0 errors of the BIDS validator, which is told nothing but the folder."""
        nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        said = subprocess.run(
            [tool("bids-validator-deno"), "--format", "json", str(self.dataset)],
            env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        report = json.loads(said.stdout)
        errors = [each for each in report["issues"]["issues"] if each["severity"] == "error"]
        assert not errors, json.dumps(errors, indent=1)
        assert said.returncode == 0
        assert report["summary"]["totalFiles"] > 0


def configuration(more: str = "", session: str = "date") -> str:
    return f"""
        [completion]
        study = 3
        [labs.memory]
        match = ["Modality=MR"]
        products = ["dicom", "bids"]
        [plugins.bids]
        session = "{session}"
        {more}
        [plugins.bids.programs]
        heudiconv = "{shutil.which("heudiconv", path=PLACES) or "heudiconv"}"
        dcm2bids = "{shutil.which("dcm2bids", path=PLACES) or "dcm2bids"}"
        """


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    tool("heudiconv")
    with RunningSorter(tmp_path / "root", quiet=0.5, config=configuration()) as running:
        yield Site(running)


def send(site: Site, *made: Made) -> None:
    for each in made:
        site.running.send(each)


def expected(who: str, day: str) -> set[str]:
    stem, place = f"sub-{who}_ses-{day}", f"sub-{who}/ses-{day}"
    of = ("anat/{}_T1w", "fmap/{}_acq-gre_magnitude1", "fmap/{}_acq-gre_magnitude2", "fmap/{}_acq-gre_phasediff",
          "func/{}_task-rest_bold")  # fmt: skip
    images = {f"{place}/{each.format(stem)}{end}" for each in of for end in (".nii.gz", ".json")}
    return {f"{place}/{stem}_scans.tsv", *images}


TOP = {"README", "dataset_description.json", "participants.tsv", ".bidsignore"}


def test_sessions_of_two_subjects_become_one_valid_dataset_that_grows(site: Site) -> None:
    first, *others = plans()
    send(site, *session(first)[:-1])  # its bold comes late
    for plan in others:  # four sessions are made at once, as processors allow
        send(site, *session(plan))
    site.wait(4)
    days = [(who, day) for who in ("P01", "P02") for day in ("20260314", "20260321")]
    whole = TOP.union(*(expected(*each) for each in days))
    late = {each for each in expected(*days[0]) if each.startswith("sub-P01/ses-20260314/func/")}
    assert site.names() == whole - late
    site.valid()
    rows = (site.dataset / "participants.tsv").read_text().splitlines()
    assert sorted(rows) == ["participant_id\tsex", "sub-P01\tO", "sub-P02\tO"]

    # The lab makes it its own.
    sidecar = site.dataset / "sub-P01/ses-20260314/fmap/sub-P01_ses-20260314_acq-gre_phasediff.json"
    told = {**json.loads(sidecar.read_text()), "IntendedFor": "ses-20260314/anat/sub-P01_ses-20260314_T1w.nii.gz"}
    sidecar.write_text(json.dumps(told))
    described = site.dataset / "dataset_description.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "Authors": ["The lab"]}))
    (site.dataset / "participants.tsv").write_text(
        "participant_id\thandedness\tsex\nsub-P02\tleft\tO\nsub-P01\tright\tO\n"
    )
    (site.dataset / "README").write_text("Our study of memory.\n")
    mine = {path: path.read_bytes() for path in (sidecar, described, site.dataset / "participants.tsv")}

    # Images come late, and so does another subject.
    send(site, bold(first))
    site.wait(4, revision=2)
    newcomer = replace(first, seed=91, patient_id="P_03")
    send(site, *session(newcomer))
    site.wait(5, revision=2)
    beside = f"{sidecar.relative_to(site.dataset)}.new-rev2"
    assert site.names() == whole | expected("P03", "20260314") | {beside}
    rows = (site.dataset / "participants.tsv").read_bytes()
    assert rows == mine.pop(site.dataset / "participants.tsv") + b"sub-P03\tn/a\tO\n"
    assert {path: path.read_bytes() for path in mine} == mine
    assert (site.dataset / "README").read_text() == "Our study of memory.\n"
    intended = json.loads((site.dataset / beside).read_text())["IntendedFor"]
    assert intended == ["ses-20260314/func/sub-P01_ses-20260314_task-rest_bold.nii.gz"]
    site.valid()
    assert not [path for path in site.dataset.rglob("*.json") if "Planted" in path.read_text()]


def test_a_scan_that_is_repeated_takes_the_name_and_the_first_is_put_aside(site: Site) -> None:
    plan = replace(PLAN, seed=51, patient_id="P01")
    send(site, anat(plan))
    site.wait(1)
    image = site.dataset / "sub-P01/ses-20260314/anat/sub-P01_ses-20260314_T1w.nii.gz"
    first = image.read_bytes()
    again = anat(replace(plan, seed=52)).files
    send(site, called(plan, [in_study_of(plan, each) for each in again], 7, "anat-T1w"))
    site.wait(1, revision=2)
    assert image.read_bytes() != first
    assert image.with_name("sub-P01_ses-20260314_T1w__dup-01.nii.gz").read_bytes() == first
    site.valid()


def test_two_studies_of_one_session_never_touch_each_other(tmp_path: Path) -> None:
    tool("heudiconv")
    first, second = (replace(PLAN, seed=seed, patient_id="P01") for seed in (21, 22))
    with RunningSorter(tmp_path / "root", quiet=0.5, config=configuration(session="identity")) as running:
        site = Site(running)
        send(site, anat(first))
        site.wait(1)
        before = {name: (site.dataset / name).read_bytes() for name in site.names()}
        send(site, anat(second))

        def held() -> str:
            return next((each.why for each in site.studies() if "another unit's" in each.why), "")

        assert "sorter fix" in wait_until(held, 120, "the second to be held")
        assert {name: (site.dataset / name).read_bytes() for name in site.names()} == before
        site.valid()


LABS_OWN = """
from heudiconv.heuristics.reproin import *

POPULATE_INTENDED_FOR_OPTS = {"matching_parameters": ["ImagingVolume"], "criterion": "Closest"}
"""

WITHOUT_IDS = """
def infotodict(seqinfo):
    key = ("sub-{subject}/{session}/anat/sub-{subject}_{session}_T1w", ("nii.gz",), None)
    return {key: [each.series_id for each in seqinfo if "T1w" in each.protocol_name]}
"""

DCM2BIDS = {
    "descriptions": [
        {"datatype": "anat", "suffix": "T1w", "criteria": {"SeriesDescription": "anat-T1w"}},
        {"datatype": "func", "suffix": "bold", "custom_entities": "task-rest",
         "criteria": {"SeriesDescription": "func-bold*"}, "sidecar_changes": {"TaskName": "rest"}},
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "name", "text", "needs", "ends"),
    [
        ("heuristic", "own.py", LABS_OWN, "heudiconv", ("T1w", "bold")),
        ("heuristic", "plain.py", WITHOUT_IDS, "heudiconv", ("T1w",)),
        ("dcm2bids", "config.json", json.dumps(DCM2BIDS), "dcm2bids", ("T1w", "bold")),
    ],
)
def test_a_way_of_the_labs_own(tmp_path: Path, key: str, name: str, text: str, needs: str, ends: Any) -> None:
    tool(needs)
    (tmp_path / "ours").mkdir(mode=0o755)
    (tmp_path / "ours" / name).write_text(text)
    (tmp_path / "ours" / name).chmod(0o644)
    more = f'[plugins.bids.labs.memory]\n{key} = "{tmp_path / "ours" / name}"'
    plan = replace(PLAN, seed=31, patient_id="P01")
    with RunningSorter(tmp_path / "root", quiet=0.5, config=configuration(more)) as running:
        site = Site(running)
        send(site, anat(plan), bold(plan))
        site.wait(1)
        images = {each for each in site.names() if each.endswith(".nii.gz")}
        stem = "sub-P01_ses-20260314"
        places = {"T1w": f"anat/{stem}_T1w", "bold": f"func/{stem}_task-rest_bold"}
        assert images == {f"sub-P01/ses-20260314/{places[end]}.nii.gz" for end in ends}
        site.valid()


def test_a_study_that_no_scan_of_fits_makes_nothing_and_says_so(site: Site) -> None:
    plan = replace(PLAN, seed=41, patient_id="P01")
    send(site, called(plan, mprage(plan).files, 2, "nothing_of_reproin"))
    site.wait(1)
    assert not site.dataset.exists()
