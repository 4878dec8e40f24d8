"""A lab whose folder is a real network mount (sshfs): it writes on its own machine, and sorter obeys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from sorter.builtin.path_target import mark
from sorter.durable import Files
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.crash.scenario import as_file, data_set
from tests.peers.test_targets_peers import Share, out
from tests.peers.test_targets_peers import share as share

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.timeout(400)]

SOON = 60.0


def config(root: Path, other: Path) -> str:
    return f"""
[delivery]
look_every = 0.5

[completion]
study = 2

[labs.far]
match = ["PatientID=FAR*"]
root = "{root}"
products = ["dicom"]

[labs.near]
match = ["PatientID=NEAR*"]
root = "{other}"
products = ["dicom"]
"""


def drop(sorter: RunningSorter, subject: str, study: str, *, series: int = 1, description: str = "T1") -> None:
    for number in (1, 2):
        image = as_file(data_set(number, subject=subject, study=study, series=series, description=description))
        (sorter.spool.incoming / f"{subject}-{study}-{series}-{number}.dcm").write_bytes(image)


def tree(folder: Path) -> dict[str, str]:
    """Of a lab's folder, without its corner and what is hidden: name and digest of each file."""
    return {
        str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in folder.rglob("*")
        if each.is_file() and not any(part.startswith(".") for part in each.relative_to(folder).parts)
    }


def says(path: Path, text: str) -> Callable[[], bool]:
    return lambda: path.exists() and text in path.read_text()


def test_a_lab_on_a_share_has_its_say(tmp_path: Path, share: Share) -> None:
    """`behind` is the folder on the lab's server, which the lab edits there; sorter sees it through the mount alone."""
    near, behind = tmp_path / "near", share.behind
    near.mkdir()
    for root in (share.root, near):
        mark(root, Files())
    corner = behind / ".sorter"
    with RunningSorter(tmp_path / "root", quiet=0.5, config=config(share.root, near)) as sorter:
        # the lab edits its file; the next delivery heeds it, and the other lab's do not
        (corner / "lab.toml").write_text(
            '[naming]\nfolder = "{subject}/{SeriesNumber:03d}"\n[[rules]]\nseries = "*rest*"\nbelow = "rest"\n'
        )
        wait_until((sorter.spool.labs / "far" / "lab.toml").exists, SOON)
        drop(sorter, "FAR01", "1.2.1")
        drop(sorter, "FAR01", "1.2.1", series=2, description="rest_run1")
        drop(sorter, "NEAR01", "1.2.2")
        sorter.wait_delivered(6)
        assert {name.rpartition("/")[0] for name in tree(behind)} == {"FAR01/001", "rest/FAR01/002"}
        assert {name.rpartition("/")[0] for name in tree(near)} == {"NEAR01/20260102_1011/001_T1"}

        # a mistake is said there, with its line, and hurts nothing
        (corner / "lab.toml").write_text('[naming]\nfolder = "../near"\n')
        wait_until(says(corner / "ERRORS.txt", "lab.toml:2: naming.folder"), SOON)
        drop(sorter, "FAR02", "1.2.3")
        sorter.wait_delivered(8)
        assert len(tree(behind)) == 6
        assert len(tree(near)) == 2
        wait_until(says(corner / "scans.tsv", "FAR02/001"), SOON)
        wait_until(says(corner / "NEWS.txt", "FAR02"), SOON)
        assert "NEAR01" not in (corner / "scans.tsv").read_text() + (corner / "NEWS.txt").read_text()

        # a request is answered beside it
        before = tree(behind)
        (corner / "requests" / "pilot.toml").write_text('subject = "FAR*"\ndest = "pilot"\nname = "flat"\n')
        wait_until(says(corner / "requests" / "pilot.answer.txt", "done\n"), SOON)
        added = {name: digest for name, digest in tree(behind).items() if name not in before}
        assert len(added) == 6
        assert sorted(added.values()) == sorted(before.values())
        assert all(name.startswith("pilot/FAR0") for name in added)

        # the server ends while the lab asks; it is back, and so is the answer
        share.end_server()
        (corner / "requests" / "later.toml").write_text('subject = "FAR01"\ndest = "later"\nname = "flat"\n')
        (corner / "lab.toml").write_text('[naming]\nfolder = "anew/{subject}/{SeriesNumber:03d}"\n')
        drop(sorter, "FAR03", "1.2.4")
        drop(sorter, "NEAR02", "1.2.5")
        wait_until(lambda: len(tree(near)) == 4, SOON)
        wait_until(lambda: (told := out(sorter)) and told["target"] == "far", SOON)
        share.unmount()
        wait_until(lambda: not (share.root / ".sorter").exists(), SOON)  # the empty mount point is no lab's folder
        share.come_back()
        wait_until(says(corner / "requests" / "later.answer.txt", "done\n"), 2 * SOON)
        sorter.wait_delivered(12, 2 * SOON)
        wait_until(lambda: not (corner / "ERRORS.txt").exists(), SOON)
        assert len([name for name in tree(behind) if name.startswith("later/")]) == 4
        assert {name.rpartition("/")[0] for name in tree(behind) if "FAR03" in name} <= {"FAR03/001", "anew/FAR03/001"}
        drop(sorter, "FAR04", "1.2.6")
        sorter.wait_delivered(14)
        assert any(name.startswith("anew/FAR04/001/") for name in tree(behind))
        assert not [each for each in share.behind.rglob("*") if each.name.endswith(".part")]
