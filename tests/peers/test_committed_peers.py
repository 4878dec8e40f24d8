"""Deliveries to real nodes that commit themselves to what they have, or do not: sorter, Orthanc, dcmqrscp."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Dcmtk
from sorter.model import DICOM, Receipt
from sorter.spool import Unit
from sorter.testing.namespace import own_network
from sorter.testing.ports import free_port
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until
from tests.peers.orthanc import Orthanc

pytestmark = pytest.mark.peers

SOON = 90.0
REPORTS = 11113


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """Orthanc and dcmqrscp listen on all addresses: a network namespace that has only the loopback."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace of one's own needs root")
    with own_network():
        yield


def delivering_to(ae_title: str, port: int, reports: int = REPORTS) -> str:
    node = f'kind = "dicom"\nhost = "127.0.0.1"\nport = {port}\nae_title = "{ae_title}"\n'
    return (
        f'[labs.study]\nmatch = ["PatientID=*"]\ntargets = ["node"]\nproducts = ["dicom"]\n'
        f"[targets.node]\n{node}commitment_port = {reports}\n"
    )


def drop(sorter: RunningSorter, seed: int = 1) -> int:
    """A series into incoming/, as one folder that is whole; how many images it has."""
    files = localizer(Plan(seed=seed, size=16)).files
    outside = sorter.root / f"dropped{seed}"
    outside.mkdir()
    for number, image in enumerate(files):
        (outside / f"{number}.dcm").write_bytes(image)
    outside.rename(sorter.spool.incoming / outside.name)
    return len(files)


def receipt(sorter: RunningSorter) -> Receipt | None:
    """That of the one series at the node."""
    with contextlib.suppress(FileNotFoundError):
        for each in sorter.series():
            return Unit(sorter.spool, each.key).receipts().get((DICOM, "node"))
    return None


def images(sorter: RunningSorter) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(each.images for each in sorter.series())
    return 0


def why(sorter: RunningSorter) -> str:
    with contextlib.suppress(FileNotFoundError):
        return " ".join(each.why for each in sorter.series())
    return ""


def states(found: Receipt) -> set[str]:
    return {each.state for each in found.files}


@pytest.mark.parametrize("commitment", ["stored", "off"])
def test_from_sorter_to_sorter(tmp_path: Path, commitment: str) -> None:
    knows = f'[[senders]]\nae = "SORTER"\naddress = "127.0.0.1"\nport = {REPORTS}\n'
    archive = f'[receive]\nae_title = "ARCHIVE"\ncommitment = "{commitment}"\ncommitment_wait = 5\n{knows}'
    with (
        RunningSorter(tmp_path / "archive", config=archive) as node,
        RunningSorter(tmp_path / "near", config=delivering_to("ARCHIVE", node.port)) as sorter,
    ):
        count = drop(sorter)
        found = wait_until(lambda: receipt(sorter), SOON)
        assert len(found.files) == count
        wait_until(lambda: images(node) == count, SOON)  # what is received is not filed at once
    if commitment == "off":
        assert (states(found), found.note) == (
            {"written"}, "sent, answered 0x0000; the node offers no storage commitment",
        )  # fmt: skip
    else:
        assert (states(found), found.note) == ({"committed"}, "committed")


def test_a_node_that_cannot_report_is_asked_again_over_restarts(tmp_path: Path) -> None:
    """The archive does not know where to report to; then it is told. Both sides are killed meanwhile."""
    text = '[receive]\nae_title = "ARCHIVE"\ncommitment = "stored"\ncommitment_wait = 5\n'
    knows = f'[[senders]]\nae = "SORTER"\naddress = "127.0.0.1"\nport = {REPORTS}\n'
    with (
        RunningSorter(tmp_path / "archive", config=text) as node,
        RunningSorter(tmp_path / "near", config=delivering_to("ARCHIVE", node.port)) as sorter,
    ):
        count = drop(sorter)
        wait_until(lambda: "it has not answered yet" in why(sorter), SOON)
        assert receipt(sorter) is None
        sorter.kill()
        node.kill()
        sorter.start()
        wait_until(lambda: "nothing answers as ARCHIVE" in why(sorter), SOON)
        assert receipt(sorter) is None
        (node.root / "sorter.toml").write_text(text + knows)
        node.start()
        found = wait_until(lambda: receipt(sorter), SOON)
        assert (len(found.files), states(found), found.note) == (count, {"committed"}, "committed")
        assert images(node) == count


def test_to_orthanc(tmp_path: Path) -> None:
    orthanc = Orthanc(tmp_path / "orthanc")
    try:
        orthanc.peer(REPORTS)
        with RunningSorter(tmp_path / "near", config=delivering_to("ORTHANC", Orthanc.DICOM)) as sorter:
            count = drop(sorter)
            found = wait_until(lambda: receipt(sorter), SOON)
            assert (len(found.files), states(found), found.note) == (count, {"committed"}, "committed")
        there = [orthanc.ask("GET", f"/instances/{each}") for each in orthanc.ask("GET", "/instances")]
        assert {each["MainDicomTags"]["SOPInstanceUID"] for each in there} == {each.name for each in found.files}
    finally:
        orthanc.close()


def test_dcmqrscp_offers_none(tmp_path: Path, dcmtk: Dcmtk) -> None:
    folder, port = tmp_path / "archive", free_port()
    folder.mkdir()
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQR {folder} RW (200, 1024mb) ANY\nAETable END\n"
    )
    node = subprocess.Popen(dcmtk.command("dcmqrscp", "-c", config), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), 30)
        with RunningSorter(tmp_path / "near", config=delivering_to("QR", port)) as sorter:
            count = drop(sorter)
            found = wait_until(lambda: receipt(sorter), SOON)
        assert (len(found.files), states(found)) == (count, {"written"})
        assert found.note == "sent, answered 0x0000; the node offers no storage commitment"
        assert len(list(folder.glob("*.dcm")) or list(folder.glob("MR*"))) == count
    finally:
        node.kill()
        node.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
