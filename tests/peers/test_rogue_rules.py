"""Rules that are wrong, and series that nobody wants: every image stays, and a sentence says why, in a real sorter."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import pytest
from pydicom import dcmread

from sorter.config import load
from sorter.daemon import assembly
from sorter.pipeline import outlets
from sorter.spool import Unit, UnitSummary
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until
from tests.crash.memory import Memory
from tests.crash.scenario import Idle, Near, begin, data_set
from tests.peers.test_clocks import DECADE, Clock

PLUGIN = """
from pathlib import Path
from sorter import Add, Hold, Identity, Name, Only, Product, Skip, hookimpl

def make(job):
    Path(job.scratch, "out.txt").write_text("made")

@hookimpl
def sorter_products(settings):
    return [Product("sums", "rogue:make")]

@hookimpl
def sorter_identify(series, settings):
    if series.PatientID == "stranger":
        return Identity(lab="elsewhere")

@hookimpl
def sorter_route(series, settings):
    match series.subject:
        case "unknown": return Only(("nowhere",))
        case "empty": return Only(())
        case "skipped": return Skip("a rule says that nobody wants it")
        case "raises": return 1 / 0
        case "held": return Hold("a rule says that a person has to look")
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
    "held": ("held", "a rule says that a person has to look"),
    "stranger": ("held", "lab elsewhere is not configured"),
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


Given: TypeAlias = dict[str, list[bytes]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What a lab has for a root."""
    file = tmp_path / "a-file"
    file.write_text("no folder")
    return file


def rogue(tmp_path: Path, file: Path, prefix: Sequence[str] = ()) -> RunningSorter:
    """A sorter with all these rules, that does not run yet."""
    plugins = tmp_path / "plugins"
    plugins.mkdir(mode=0o700)
    (plugins / "rogue.py").write_text(PLUGIN)
    config = CONFIG.format(plugins=json.dumps(str(plugins)), file=json.dumps(str(file)))
    return RunningSorter(tmp_path / "root", config=config, prefix=prefix)


def give(tmp_path: Path, sorter: RunningSorter) -> Given:
    """A series of each subject into incoming/."""
    given = {subject: series(subject, 40 + seed) for seed, subject in enumerate(SENTENCES)}
    given["conflict"].append(changed(given["conflict"][0], pixels=True))
    given["superseded"].append(changed(given["superseded"][0], pixels=False))
    for subject, images in given.items():
        drop(tmp_path, sorter, subject, images)
    return given


def drop(tmp_path: Path, sorter: RunningSorter, subject: str, images: Sequence[bytes]) -> None:
    folder = tmp_path / subject
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number}.dcm").write_bytes(image)
    folder.rename(sorter.spool.incoming / subject)


def settled(sorter: RunningSorter) -> dict[str, UnitSummary]:
    """By subject, once each is in its state and says its sentence."""

    def right() -> dict[str, UnitSummary] | None:
        with contextlib.suppress(FileNotFoundError):  # it is just being started
            found = {str(each.subject): each for each in sorter.series()}
            if all(
                subject in found and found[subject].state == state and says in found[subject].why
                for subject, (state, says) in SENTENCES.items()
            ):
                return found
        return None

    try:
        return wait_until(right, 60)
    except AssertionError as error:
        states = "\n".join(f"{each.subject}: {each.state}: {each.why}" for each in sorter.series())
        raise AssertionError(f"{error}\n{states}") from None


def everything_is_kept(sorter: RunningSorter, given: Given, found: Mapping[str, UnitSummary]) -> None:
    for subject, images in given.items():
        kept = {
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (sorter.spool.unit_folder(found[subject].key) / "images").rglob("*.dcm")
        }
        assert kept == {hashlib.sha256(image).hexdigest() for image in images}, subject
    assert not list(sorter.spool.quarantine.rglob("*.dcm"))


def states(sorter: RunningSorter, subject: str) -> list[str]:
    return [each.state for each in sorter.series() if each.subject == subject]


def images(found: Mapping[str, int]) -> int:
    return sum(name.endswith(".dcm") for name in found)


def delivered(sorter: RunningSorter) -> dict[str, int]:
    """What lies at the labs, and by how many bytes; what is hidden there comes and goes."""
    found = {}
    for folder, below, names in os.walk(sorter.labs):
        below[:] = [name for name in below if not name.startswith(".sorter")]
        for path in (Path(folder, name) for name in names if not name.startswith(".sorter")):
            found[str(path.relative_to(sorter.labs))] = path.stat().st_size
    return found


@pytest.mark.slow
def test_no_rule_however_wrong_costs_an_image(tmp_path: Path, file: Path) -> None:
    with rogue(tmp_path, file) as sorter:
        given = give(tmp_path, sorter)
        found = settled(sorter)
        everything_is_kept(sorter, given, found)
        assert file.read_text() == "no folder"

        def count(subject: str, lab: str) -> int:
            return len(list((sorter.labs / lab).glob(f"{subject}/**/*.dcm")))

        assert found["two"].lab == "first"  # in the order of the file
        assert (count("two", "first"), count("two", "second")) == (3, 0)
        assert count("sums", "sums") == 0
        assert [path.read_text() for path in (sorter.labs / "sums").rglob("*.txt")] == ["made"]
        assert count("nobody", "unassigned") == 3
        assert count("conflict", "unassigned") == 4
        assert count("superseded", "unassigned") == 3
        assert not list(tmp_path.rglob("climbs/*/*.dcm"))
        said = Unit.load(sorter.spool, found["superseded"].key).story()
        assert any("another copy of an image came" in event["says"] for event in said)


@pytest.mark.peers
def test_nor_does_a_clock_that_is_ten_years_ahead(tmp_path: Path, file: Path) -> None:
    """Whatever counts days, or compares times, deletes nothing: neither while it runs, nor at the next start."""
    clock = Clock(tmp_path)
    sorter = rogue(tmp_path, file, clock.prefix)
    with sorter:
        given = give(tmp_path, sorter)
        everything_is_kept(sorter, given, settled(sorter))
        there = delivered(sorter)
        assert images(there) == 13
        for number in (1, 2):
            clock.set(number * DECADE)
            later = series(f"later{number}", 60 + number)
            drop(tmp_path, sorter, f"later{number}", later)
            year = str(datetime.date.today().year + 10 * number)
            wait_until(lambda: list(sorter.spool.journal.glob(f"{year}*.jsonl")), 60)  # noqa: B023  it lives in that year
            wait_until(lambda: "delivered" in states(sorter, f"later{number}"), 60)  # noqa: B023
            everything_is_kept(sorter, given, settled(sorter))
            assert delivered(sorter).items() >= there.items()
            assert images(delivered(sorter)) == 13 + 3 * number
            sorter.stop()
            sorter.start()
        everything_is_kept(sorter, given, settled(sorter))
        assert delivered(sorter).items() >= there.items()


def test_a_series_that_nothing_says_a_target_of_stays_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without [sorter] root there is no `unassigned` either."""
    path = tmp_path / "sorter.toml"
    path.write_text("[sorter]\nspool = '/spool'\n[labs.far]\nroot = '/far'\nmatch = ['PatientID=Q*']\n")
    monkeypatch.setattr(assembly, "LocalEngine", Idle)
    monkeypatch.setattr(outlets, "Lane", Near)
    life = begin(Memory(), load(path))
    life.receive(data_set(1), data_set(2))
    life.turns(600)
    (key,) = life.spool.keys()
    unit = Unit.load(life.spool, key)
    summary = unit.summary()
    assert summary is not None
    assert (summary.state, summary.why) == ("kept", "no lab's match fits it; it stays in the store until a rule does")
    assert all(unit.digest_of(name) == each.sha256 for name, each in unit.instances.items())
    assert len(unit.instances) == 2
