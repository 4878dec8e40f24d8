"""Rules that are wrong, and series that nobody wants: every image stays, and a sentence says why, in a real sorter."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from sorter.spool import Unit, UnitSummary
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

PLUGIN = """
from pathlib import Path
from sorter import Add, Name, Only, Product, Skip, hookimpl

def make(job):
    Path(job.scratch, "out.txt").write_text("made")

@hookimpl
def sorter_products(settings):
    return [Product("sums", "rogue:make")]

@hookimpl
def sorter_route(series, settings):
    match series.subject:
        case "unknown": return Only(("nowhere",))
        case "empty": return Only(())
        case "skipped": return Skip("a rule says that nobody wants it")
        case "raises": return 1 / 0
        case "nonsense": return "memory"

@hookimpl
def sorter_name(series, product, target, settings):
    match series.subject:
        case "template": return Name("{Nope}", "{InstanceNumber}")
        case "climbs": return Name("../../{PatientID}", "../{InstanceNumber}")
        case "names": raise RuntimeError("no name")
"""

CONFIG = """
[sorter]
plugins = {plugins}
[labs.first]
match = ["PatientID=two*"]
products = ["dicom"]
[labs.second]
match = ["PatientID=two*", "PatientID=second*"]
products = ["dicom"]
[labs.sums]
match = ["PatientID=sums*"]
products = ["sums"]
[labs.file]
match = ["PatientID=file*"]
root = {file}
products = ["dicom"]
"""

SENTENCES = {
    # subject: (state, what is said)
    "unknown": ("held", "nowhere, which is no configured target"),
    "empty": ("held", "answer None for no opinion, Skip"),
    "skipped": ("kept", "a rule says that nobody wants it"),
    "raises": ("held", "sorter_route failed: ZeroDivisionError"),
    "nonsense": ("held", "sorter_route failed"),
    "template": ("held", "Nope"),
    "names": ("held", "sorter_name failed: RuntimeError: no name"),
    "file": ("owed", "is a file, not a folder; give the target another root"),
    "two": ("delivered", ""),
    "sums": ("delivered", ""),
    "nobody": ("delivered", ""),
    "climbs": ("held", '".." can be no name'),
    "conflict": ("delivered", ""),
    "superseded": ("delivered", ""),
}


def series(subject: str, seed: int) -> list[bytes]:
    return list(localizer(Plan(seed=seed, size=8, patient_id=subject)).files)


def changed(image: bytes, *, pixels: bool) -> bytes:
    """The same SOP Instance UID with other pixels, or with another header alone."""
    made, out = dcmread(BytesIO(image)), BytesIO()
    if pixels:
        made.PixelData = made.PixelData[:-1] + bytes([made.PixelData[-1] ^ 1])
    else:
        made.StudyDescription = "Another^Study"
    made.save_as(out)
    return out.getvalue()


@pytest.mark.slow
def test_no_rule_however_wrong_costs_an_image(tmp_path: Path) -> None:
    plugins, file = tmp_path / "plugins", tmp_path / "a-file"
    plugins.mkdir(mode=0o700)
    (plugins / "rogue.py").write_text(PLUGIN)
    file.write_text("no folder")
    config = CONFIG.format(plugins=json.dumps(str(plugins)), file=json.dumps(str(file)))
    given = {subject: series(subject, 40 + seed) for seed, subject in enumerate(SENTENCES)}
    given["conflict"].append(changed(given["conflict"][0], pixels=True))
    given["superseded"].append(changed(given["superseded"][0], pixels=False))
    with RunningSorter(tmp_path / "root", config=config) as sorter:
        for subject, images in given.items():
            folder = tmp_path / subject
            folder.mkdir()
            for number, image in enumerate(images):
                (folder / f"{number}.dcm").write_bytes(image)
            folder.rename(sorter.spool.incoming / subject)

        def settled() -> dict[str, UnitSummary] | None:
            found = {str(each.subject): each for each in sorter.series()}
            right = all(
                subject in found and found[subject].state == state and says in found[subject].why
                for subject, (state, says) in SENTENCES.items()
            )
            return found if right else None

        try:
            found = wait_until(settled, 60)
        except AssertionError as error:
            states = "\n".join(f"{each.subject}: {each.state}: {each.why}" for each in sorter.series())
            raise AssertionError(f"{error}\n{states}") from None
        for subject, images in given.items():
            kept = {
                hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (sorter.spool.unit_folder(found[subject].key) / "images").rglob("*.dcm")
            }
            assert kept == {hashlib.sha256(image).hexdigest() for image in images}, subject
        assert not list(sorter.spool.quarantine.rglob("*.dcm"))
        assert file.read_text() == "no folder"

        def delivered(subject: str, lab: str) -> list[Path]:
            return list((sorter.labs / lab).glob(f"{subject}/**/*.dcm"))

        assert found["two"].lab == "first"  # in the order of the file
        assert (len(delivered("two", "first")), len(delivered("two", "second"))) == (3, 0)
        assert not delivered("sums", "sums")
        assert [path.read_text() for path in (sorter.labs / "sums").rglob("*.txt")] == ["made"]
        assert len(delivered("nobody", "unassigned")) == 3
        assert len(delivered("conflict", "unassigned")) == 4
        assert len(delivered("superseded", "unassigned")) == 3
        assert not list(tmp_path.rglob("climbs/*/*.dcm"))
        said = Unit.load(sorter.spool, found["superseded"].key).story()
        assert any("another copy of an image came" in event["says"] for event in said)
