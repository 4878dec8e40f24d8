"""`sorter import` beside a sorter that runs: killed and begun again, stopped, waiting for one, from CTN's own store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, write_session
from sorter.testing.waiting import wait_until

ONLY_DICOM = """
[labs.all]
match = ["PatientID=*"]
products = ["dicom"]
"""


SMALL_PARCELS = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from sorter.importing import walk; walk.MOST = 150; from sorter.cli.main import main; main()"
)
"""The command with parcels of 150 files: so a small archive has several, and no series is cut. It listens to Ctrl-C
also where the tests run in the background of a shell, which has such processes ignore it."""


def command(sorter: RunningSorter, *arguments: object) -> list[str]:
    return [sys.executable, "-c", SMALL_PARCELS, "import", "--root", str(sorter.root), *map(str, arguments)]


def run(sorter: RunningSorter, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(command(sorter, "--json", *arguments), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def contents(folder: Path) -> Counter[str]:
    """SHA-256 of every file below, hidden ones and product folders left out."""
    files = (each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))
    return Counter(hashlib.sha256(each.read_bytes()).hexdigest() for each in files if each.parent.name != ".sorter")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions; nothing in it may be written to."""
    folder = tmp_path_factory.mktemp("old") / "archive"
    for seed in range(2):
        write_session(folder / f"{2000 + seed}", Plan(seed=seed, size=8))
    subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
    return folder


def kill_when(sorter: RunningSorter, archive: Path, happened: Callable[[], object], what: str) -> None:
    """Begin an import, and kill -9 it once something has happened."""
    process = subprocess.Popen(command(sorter, "--rate", "200files/s", archive), stderr=subprocess.DEVNULL)
    try:
        wait_until(happened, 60, what)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_begun_again_and_every_image_is_delivered_once(tmp_path: Path, archive: Path) -> None:
    before = contents(archive)
    with RunningSorter(tmp_path / "root", quiet=60, config=ONLY_DICOM) as sorter:
        imports = sorter.spool.imports
        kill_when(sorter, archive, lambda: any(imports.rglob("*.dcm")), "a file to be copied")
        kill_when(sorter, archive, lambda: (imports / "done").exists(), "a parcel to be handed over")
        told = run(sorter, archive)
        assert told["known"] > 0
        assert told["handed"] > 0
        assert told["known"] + told["handed"] == before.total()
        found = sorter.wait_delivered(before.total())
        assert {each.verdict for each in found} == {"listed"}
        assert {each.revision for each in found} == {1}
        assert contents(sorter.labs) == before
        assert run(sorter, archive)["known"] == before.total()
        assert sorter.wait_delivered(before.total()) == found
        assert contents(archive) == before
        assert not list(sorter.spool.quarantined())


def test_stopped_by_hand_it_says_how_to_go_on(tmp_path: Path, archive: Path) -> None:
    with RunningSorter(tmp_path / "root", config=ONLY_DICOM) as sorter:
        process = subprocess.Popen(
            command(sorter, "--rate", "20files/s", archive), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        staged = sorter.spool.imports / "staging"
        wait_until(lambda: staged.exists() and any(staged.rglob("*.dcm")), 30, "a file to be copied")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "The same command goes on" in said
        assert "Traceback" not in said
        assert not staged.exists()


@pytest.mark.slow
def test_without_a_sorter_it_waits_and_says_so(tmp_path: Path, archive: Path) -> None:
    with RunningSorter(tmp_path / "root", config=ONLY_DICOM) as sorter:
        sorter.stop()
        process = subprocess.Popen(command(sorter, "--json", archive), stdout=subprocess.PIPE, text=True)
        wait_until(lambda: any(sorter.spool.incoming.iterdir()), 60, "the first parcel")
        assert process.poll() is None
        sorter.start()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert json.loads(said)["waiting"] == 0
        sorter.wait_delivered(contents(archive).total())


# --- CTN --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[list[str]]:
    """A command prefix: a network of its own with nothing but loopback, for servers that listen everywhere."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("a network namespace needs root and iproute2")
    name = f"sorter-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "netns", "exec", name, "ip", "link", "set", "lo", "up"], check=True)
    yield ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "del", name], check=True)


def ctn_store(root: Path, sample: Path, dcmtk: Any, alone: list[str]) -> Path:
    """What CTN's simple_storage keeps of the sample: sent as implicit, explicit and big endian data sets."""
    if not shutil.which("simple_storage"):
        pytest.skip("CTN is missing: install the package ctn")
    for number, (option, names) in enumerate(CTN_GETS):
        store, port = root / f"PATIENT{number}", 10400 + number
        store.mkdir(parents=True)
        server = subprocess.Popen(
            [
                *alone,
                "simple_storage",
                "-s",
                "-i",
                "-c",
                "CTN",
                "-C",
                "/etc/ctn/runtime/ctn_cfg.txt",
                "-x",
                store,
                str(port),
            ],
            cwd=store,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            send = dcmtk.command("storescu", option, "-aec", "CTN", "+sd", "+r", "127.0.0.1", port)
            ready = [*alone, *dcmtk.command("echoscu", "-aec", "CTN", "127.0.0.1", port)]
            wait_until(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 20, "CTN to answer")  # noqa: B023
            folders = [str(sample / "data" / name) for name in names]
            subprocess.run([*alone, *send, *folders], env=dcmtk.environment(), capture_output=True, timeout=100)
        finally:
            server.kill()
            server.wait()
    return root


CTN_CONFIGURATION = "/etc/ctn/runtime/ctn_cfg.txt"
CTN_GETS = (("-xi", ("nih-siemens", "multiecho-qt2")), ("-xe", ("philips-epi",)), ("-xb", ("ge-b0map",)))
"""How it is sent, and what."""


def pixels(folder: Path) -> Counter[tuple[str, str]]:
    """(SOP Instance UID, SHA-256 of the pixel value) of every image below."""
    found: Counter[tuple[str, str]] = Counter()
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and path.parent.name not in ("nifti", ".sorter"):
            dataset = pydicom.dcmread(path, force=True)
            found[str(dataset.SOPInstanceUID), hashlib.sha256(dataset.PixelData).hexdigest()] += 1
    return found


@pytest.mark.peers
def test_a_store_that_ctn_wrote(tmp_path: Path, sample: Path, dcmtk: Any, alone: list[str]) -> None:
    """Debian's own CTN receives images; what it keeps, implicit data sets without file meta too, is imported."""
    store = ctn_store(tmp_path / "ctn", sample, dcmtk, alone)
    kept = [each for each in store.rglob("*") if each.is_file()]
    bare = [each for each in kept if each.read_bytes()[128:132] != b"DICM"]
    assert len(kept) > 50
    assert bare, "CTN keeps implicit data sets without file meta"
    before = contents(store)
    with RunningSorter(tmp_path / "root", quiet=60, config=ONLY_DICOM) as sorter:
        looked = subprocess.run(command(sorter, "--dry-run", "--json", store), capture_output=True, text=True)
        told = json.loads(looked.stdout)
        assert (told["images"], told["not_images"]) == (len(kept), 0)
        assert run(sorter, store)["set_aside"] == 0
        found = sorter.wait_delivered(len(kept), timeout=100)
        assert {each.verdict for each in found} == {"listed"}
        assert pixels(sorter.labs) == pixels(store)
        assert contents(store) == before
