"""The main job, end to end: real images, real senders, real processes, and kill -9 in between."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pydicom
import pytest

from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.sample


def delivered_images(labs: Path) -> list[tuple[str, str]]:
    """(SOP Instance UID, SHA-256 of the pixel value) of every image below `labs`.

    Every file counts, suffixes and hidden ones included: whatever is neither an image, nor a product, nor a manifest,
    nor checksums, nor a root's marker, is something left over, and fails.
    """
    found = []
    for path in sorted(path for path in labs.rglob("*") if path.is_file() or path.is_symlink()):
        name = path.name
        if path.parent.name == ".sorter" and (name == "id" or name.endswith(".sha256")):
            continue
        if re.fullmatch(r"\.sorter-[0-9a-f]{8}\.[a-z0-9]+\.json", name) or path.parent.name == "nifti":
            continue
        assert name.endswith(".dcm"), f"left over: {path}"
        dataset = pydicom.dcmread(path)
        value = next(bytes(dataset[tag].value) for tag in ("PixelData", "SpectroscopyData") if tag in dataset)
        found.append((str(dataset.SOPInstanceUID), hashlib.sha256(value).hexdigest()))
    return found


def expected_images(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["SOPInstanceUID"], each["pixel_sha256"]) for each in manifest["files"] if each["dicom"]]


def delivered_nifti(labs: Path) -> Counter[str]:
    """SHA-256 of the image data, from vox_offset on, of every NIfTI file below `labs`."""
    found: Counter[str] = Counter()
    for path in labs.rglob("*.nii.gz"):
        data = gzip.decompress(path.read_bytes())
        offset = int(memoryview(data)[108:112].cast("f")[0])
        found[hashlib.sha256(data[offset:]).hexdigest()] += 1
    return found


def expected_nifti(expected: dict[str, Any]) -> Counter[str]:
    return Counter(each["image_sha256"] for series in expected["series"] for each in series["nifti"])


def tree(labs: Path) -> list[str]:
    return sorted(str(path.relative_to(labs)) for path in labs.rglob("*"))


SETS = ("nih-siemens", "nih-ge", "philips-epi", "ge-b0map", "siemens-xa10", "multiecho-qt2")


def test_four_senders_at_once_and_everything_arrives_once(
    tmp_path: Path, sample: Path, sample_manifest: dict[str, Any], sample_expected: dict[str, Any], dcmtk: Any
) -> None:
    with RunningSorter(tmp_path) as sorter:
        where = ("-aec", "SORTER", "127.0.0.1", sorter.port)
        store = [sample / "data" / name for name in ("siemens-xa10", "multiecho-qt2")]
        commands = [
            dcmtk.command(
                "dcmsend", "-nh", "+sd", "+r", "-aec", "SORTER", "127.0.0.1", sorter.port, sample / "data/nih-ge"
            ),
            dcmtk.command("dcmsend", "-nh", "+sd", "+r", *where, *(sample / "data" / name for name in SETS[2:4])),
            dcmtk.command("dcmsend", "-nh", "+sd", "+r", *where, sample / "data/nih-siemens"),
            dcmtk.command("storescu", *where, "+sd", "+r", *store),
        ]
        running = [
            subprocess.Popen(command, env=dcmtk.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for command in commands
        ]
        for process in running:
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0, said.decode(errors="replace")
        series = sorter.wait_delivered(378)

        assert Counter(delivered_images(sorter.labs)) == Counter(expected_images(sample_manifest))
        assert delivered_nifti(sorter.labs) == expected_nifti(sample_expected)
        assert len(series) == 10
        session = sorter.labs / "unassigned/DEV/20180918_1212"
        assert len(list((session / "004_EPI_PE_PA").glob("*.dcm"))) == 2
        assert (session / "nifti/004_EPI_PE_PA.nii.gz").is_file()
        assert (session / "nifti/004_EPI_PE_PA.json").is_file()
        check_caches(sorter)


def check_caches(sorter: RunningSorter) -> None:
    """All caches deleted, restart: the same tree, the same status."""
    before, status = tree(sorter.labs), sorted(map(repr, sorter.series()))
    assert sorter.stop() == 0
    for pattern in ("series.json", "products", "by-*", "owed"):
        for path in sorter.spool.root.rglob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sorter.start()
    summarised = sorter.spool.store.rglob
    wait_until(lambda: len(list(summarised("series.json"))) == len(status), 60, "the summaries to be made again")
    sorter.wait_delivered(378)
    assert tree(sorter.labs) == before
    assert sorted(map(repr, sorter.series())) == status


def test_a_folder_copied_into_incoming_and_the_text_files_are_set_aside(
    tmp_path: Path, sample: Path, sample_manifest: dict[str, Any], sample_expected: dict[str, Any]
) -> None:
    with RunningSorter(tmp_path) as sorter:
        subprocess.run(["cp", "-r", str(sample / "data"), str(sorter.spool.incoming / "disk")], check=True)
        subprocess.run(["chmod", "-R", "u+w", str(sorter.spool.incoming / "disk")], check=True)
        sorter.wait_delivered(378)
        assert Counter(delivered_images(sorter.labs)) == Counter(expected_images(sample_manifest))
        assert delivered_nifti(sorter.labs) == expected_nifti(sample_expected)
        aside = list(sorter.spool.quarantined())
        junk = {each["file_sha256"] for each in sample_manifest["files"] if not each["dicom"]}
        assert {hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in aside} == junk
        assert len(aside) == 8
        assert not [path for path in sorter.spool.incoming.rglob("*") if path.is_file()]


def test_a_folder_moved_in_by_one_rename_needs_no_quiet_wait(tmp_path: Path, sample: Path) -> None:
    with RunningSorter(tmp_path, quiet=600) as sorter:
        made = sorter.spool.root / "made"
        shutil.copytree(sample / "data/nih-siemens", made)
        made.rename(sorter.spool.incoming / "disk")
        found = sorter.wait_delivered(8, timeout=30)
        assert {each.verdict for each in found} == {"listed"}


def acknowledged(said: str) -> list[str]:
    """The files that storescu -v was told are stored."""
    sending, found = "", []
    for line in said.splitlines():
        if "Sending file: " in line:
            sending = line.rpartition("Sending file: ")[2].strip()
        elif "Received Store Response (Success)" in line:
            found.append(sending)
    return found


@pytest.mark.slow
def test_kill_9_at_ten_moments_loses_and_doubles_nothing(
    tmp_path: Path, sample: Path, sample_manifest: dict[str, Any], dcmtk: Any
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    by_path = {str(sample / each["path"]): each for each in sample_manifest["files"] if each["dicom"]}
    paths = sorted(by_path)
    moments.shuffle(paths)
    sorter = RunningSorter(tmp_path, quiet=0.5)
    promised: set[str] = set()
    for number in range(10):
        sorter.start()
        part = paths[number::10]
        command = dcmtk.command("storescu", "-v", "-aec", "SORTER", "127.0.0.1", sorter.port, *part)
        with subprocess.Popen(
            command, env=dcmtk.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as sender:
            assert sender.stdout is not None
            after = moments.randrange(1, 2 * len(part))  # beyond the last image: while it is sorted and delivered
            lines: list[str] = []
            for line in sender.stdout:
                lines.append(line)
                if "Received Store Response (Success)" in line:
                    after -= 1
                if after == 0:
                    break
            if after > 0:
                _wait_a_moment(sorter, moments.random() * 3)
            sorter.kill()
            lines += sender.stdout.readlines()
        promised.update(acknowledged("".join(lines)))

    sorter.start()
    expected = Counter((by_path[path]["SOPInstanceUID"], by_path[path]["pixel_sha256"]) for path in promised)
    arrived = _wait_all_delivered(sorter)
    images = Counter(delivered_images(sorter.labs))
    assert not expected - images, "acknowledged and not delivered"
    assert max(images.values()) == 1, "delivered twice"
    assert sum(images.values()) == arrived
    assert len(promised) > 100
    _check_the_check(sorter.labs)
    sorter.stop()


def _wait_a_moment(sorter: RunningSorter, seconds: float) -> None:
    """Something between receiving and delivery: as long as it takes `status` to be asked a few times."""
    threading.Event().wait(seconds)


def _wait_all_delivered(sorter: RunningSorter) -> int:
    """Nothing is sent any more: wait until every image in the store is delivered; the number of images.

    What was never acknowledged is missing, so that some series cannot be converted: only the images count here.
    """

    def settled() -> int:
        if any(path.suffix == ".dcm" for path in sorter.spool.received.rglob("*")):
            return 0
        found = sorter.series()
        every = [each for series in found for each in series.deliveries]
        images = [each for each in every if each.product == "dicom"]
        done = len(images) == len(found) and all(each.state == "delivered" for each in images)
        done = done and all(each.state != "owed" for each in every)  # no product is on its way
        return sum(each.images for each in found) if done and all(each.state != "open" for each in found) else 0

    return wait_until(settled, 60, "everything to be delivered")


def _check_the_check(labs: Path) -> None:
    """A duplicate, put in by hand, has to be noticed."""
    image = next(labs.rglob("*.dcm"))
    copy = image.with_name(f"{image.stem}_again.dcm")
    shutil.copyfile(image, copy)
    assert max(Counter(delivered_images(labs)).values()) == 2
    copy.rename(copy.with_suffix(".dcm.part"))
    with pytest.raises(AssertionError, match="left over"):
        delivered_images(labs)
    copy.with_suffix(".dcm.part").unlink()


def completed(root: Path, line: str) -> list[str]:
    """What bash offers for the last word of `sorter LINE`."""
    words = {"COMP_WORDS": f"sorter {line.replace('ROOT', str(root))}", "COMP_CWORD": str(len(line.split(" ")))}
    environment = {**os.environ, **words, "_SORTER_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [Path(sys.executable).with_name("sorter")], env=environment, capture_output=True, text=True, check=False
    )
    return [each.removeprefix("plain,") for each in done.stdout.split()]


def test_commands_as_a_user_types_them(tmp_path: Path, sample: Path) -> None:
    """send, status, list, why, rename, quarantine: the words a user reads."""

    def run(*arguments: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sorter", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env=None,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    with RunningSorter(tmp_path / "root") as sorter:
        root = ("--root", sorter.root)
        assert "answers" in run("echo", "127.0.0.1", sorter.port)
        assert "8 images were sent" in run("send", sample / "data/nih-siemens", "127.0.0.1", sorter.port)
        sorter.wait_delivered(8)
        assert "4 series delivered" in run("status", *root)
        assert json.loads(run("status", "--json", *root))["series"]["delivered"] == 4
        assert "EPI PE=PA" in run("list", "DEV", *root)
        assert "delivered to unassigned" in run("why", "dev", *root)
        assert "nothing of NOBODY has arrived" in run("why", "NOBODY", *root, code=1)
        dest = tmp_path / "mine"
        assert "would be copied" in run("rename", "DEV", dest, "--series", "3,5-6", "--dry-run", *root)
        assert not dest.exists()
        assert "6 images were copied" in run("rename", "DEV", dest, "--series", "3,5-6", *root)
        assert "0 images were copied" in run("rename", "DEV", dest, "--series", "3,5-6", *root)
        assert len(list(dest.rglob("*.dcm"))) == 6
        assert "EPI PE=PA" in run("rename", "DEV", "--list", *root)
        assert "8 images were copied" in run("rename", "DEV", tmp_path / "flat", "--name", "flat", "--as", "x", *root)
        assert all(each.name.startswith("x_") for each in (tmp_path / "flat").iterdir())
        assert completed(sorter.root, "rename --root ROOT D") == ["DEV"]
        assert completed(sorter.root, "rename --root ROOT DEV --series ") == ["3", "4", "5", "6"]
        assert "another sorter is sorting" in run("sort", *root, code=1)
