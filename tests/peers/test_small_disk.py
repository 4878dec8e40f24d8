"""A spool on a really small disk, a sorter that runs, DCMTK's storescu: what was not delivered stays, full or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from conftest import Dcmtk
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until

CONFIG = """
[receive]
keep_free = {free}
keep_inodes = {inodes}
[store]
keep = 1
[labs.here]
match = ["PatientID=here"]
products = ["dicom"]
[labs.away]
root = "{away}"
match = ["PatientID=away"]
products = ["dicom"]
"""

BATCH = 20


class Scanner:
    """Sends batches of images of one series by DCMTK's storescu; `acknowledged` are those of batches that went well."""

    def __init__(self, dcmtk: Dcmtk, folder: Path, subject: str, pixels: int) -> None:
        self.dcmtk, self.folder, self.subject, self.pixels = dcmtk, folder, subject, pixels
        self.study, self.series = generate_uid(), generate_uid()
        self.sent = 0
        self.seconds: list[float] = []  # an image, by batch

    def batch(self, port: int) -> bool:
        """Was all of a batch of new images acknowledged?"""
        paths = [self._image() for _ in range(BATCH)]
        begun = time.monotonic()
        done = self.dcmtk.run("storescu", "-v", "-aec", "SORTER", "127.0.0.1", port, *paths)
        self.seconds.append((time.monotonic() - begun) / BATCH)
        self.said = done.stdout + done.stderr
        if done.returncode == 0:
            self.sent += BATCH
        for path in paths:
            path.unlink()
        return done.returncode == 0

    def _image(self) -> Path:
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = self.study, self.series
        data.PatientID, data.PatientName = self.subject, "Phantom^Disk"
        data.StudyDate, data.StudyTime, data.SeriesNumber = "20260102", "101112", 1
        data.Modality, data.SeriesDescription = "MR", "T1"
        data.Rows = data.Columns = self.pixels
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelData = bytes(2 * self.pixels * self.pixels)
        data["PixelData"].VR = "OW"
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = self.folder / f"{data.SOPInstanceUID}.dcm"
        data.save_as(path, enforce_file_format=True)
        return path


@pytest.fixture(params=["bytes", "inodes"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RunningSorter, int, str]]:
    """A sorter whose spool is a tmpfs that runs out of bytes or of inodes; pixels a side of its images; which it is."""
    size, mark, pixels = {
        "bytes": ("size=24m,nr_inodes=20000", {"free": 0.006, "inodes": 100}, 256),
        "inodes": ("size=60m,nr_inodes=700", {"free": 0.001, "inodes": 200}, 32),
    }[request.param]
    spool = tmp_path / "site/spool"
    spool.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", size, "sorter-test", str(spool)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    (tmp_path / "nas").mkdir()
    try:
        yield (
            RunningSorter(tmp_path / "site", config=CONFIG.format(**mark, away=tmp_path / "nas")),
            pixels,
            request.param,
        )
    finally:
        subprocess.run(["umount", "-l", str(spool)], check=True)


def stored(running: RunningSorter) -> int:
    return len(list(running.spool.store.rglob("images/*/*.dcm")))


def waiting(running: RunningSorter) -> int:
    return len(list(running.spool.received.rglob("*.dcm*")))


def days_pass(running: RunningSorter, day: int) -> None:
    """Between two lives."""
    (running.spool.root / "days.json").write_text(json.dumps({"days": day, "seconds": 0}))


def says(running: RunningSorter) -> str:
    command = [sys.executable, "-m", "sorter", "status", "-c", str(running.root / "sorter.toml")]
    return subprocess.run([*command, "--root", str(running.root)], capture_output=True, text=True, timeout=60).stdout


@pytest.mark.peers
@pytest.mark.timeout(500)
def test_a_full_spool_refuses_and_only_what_was_delivered_makes_room(
    site: tuple[RunningSorter, int, str], dcmtk: Dcmtk, tmp_path: Path
) -> None:
    running, pixels, runs_out_of = site
    here, away = (Scanner(dcmtk, tmp_path, subject, pixels) for subject in ("here", "away"))
    with running:
        for _ in range(3):
            assert here.batch(running.port)
        running.wait_delivered(here.sent)
        while away.batch(running.port):
            assert away.sent < 700
        assert "Rejected" in away.said or "Refused" in away.said or "Out of Resources" in away.said, away.said
        print(
            f"{runs_out_of}: seconds an image, by batch, until the rejection:",
            *(f"{each:.3f}" for each in away.seconds),
        )
        wait_until(lambda: stored(running) >= here.sent + away.sent and not waiting(running), 60)
        assert "scanners are rejected until there is room" in says(running)
        kept = stored(running)
    days_pass(running, 5)
    with running:
        wait_until(lambda: stored(running) == kept - here.sent, 60, "what was delivered to leave")
        wait_until(lambda: away.batch(running.port), 60, "an association to be accepted again")
        while away.batch(running.port):
            assert away.sent < 700
        wait_until(lambda: not waiting(running), 60)
        print(says(running))
        full = stored(running)
        assert full >= away.sent
    days_pass(running, 50)
    with running:  # full of what was not delivered: nothing leaves, however many days pass
        wait_until(lambda: [each.state for each in running.series() if each.subject == "away"] == ["owed"], 60)
        wait_until(lambda: "something of it is owed" in says(running), 60)
        assert stored(running) == full
        (tmp_path / "nas/.sorter").mkdir()
        (tmp_path / "nas/.sorter/id").write_text(f"{'0' * 32}\n")
        running.wait_delivered(here.sent + full)
        assert len(list((tmp_path / "nas").rglob("*.dcm"))) == full
    days_pass(running, 60)
    with running:
        wait_until(lambda: stored(running) == 0, 60, "all to leave")
        wait_until(lambda: away.batch(running.port), 60, "an association to be accepted again")
        running.wait_delivered(here.sent + full + BATCH)
