"""DCMTK's senders against the receiver: bytes unchanged, four at once, private classes, a full disk, a killed sender.

DCMTK's senders encode anew what they read (lengths, padding, group lengths). What must arrive is therefore what its own
storescp writes with +B, bit for bit as received, of the same command. tests/peers/test_receive_pynetdicom.py sends the
files' own bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian

from sorter.durable import Buffer, Files
from sorter.receive import Receiver, ReceiveSettings
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.dcmtk

PRIVATE = "1.2.840.113619.4.30"


@contextmanager
def serving(received: Path, files: Files) -> Generator[int, None, None]:
    receiver = Receiver(ReceiveSettings(port=0), received, files)
    try:
        yield receiver.start()
    finally:
        receiver.stop(5)


@pytest.fixture
def port(tmp_path: Path, files: Files) -> Generator[int, None, None]:
    with serving(tmp_path / "received", files) as port:
        yield port


@pytest.fixture
def received(tmp_path: Path) -> Path:
    return tmp_path / "received"


@dataclasses.dataclass(frozen=True)
class Storescp:
    """DCMTK's receiver, writing what it gets bit for bit."""

    port: int
    folder: Path


@pytest.fixture
def storescp(dcmtk: Any, tmp_path: Path, free_port: int) -> Generator[Storescp, None, None]:
    folder = tmp_path / "storescp"
    folder.mkdir()
    command = dcmtk.command("storescp", "+B", "-uf", "-pm", "-od", folder, free_port)
    with subprocess.Popen(command, env=dcmtk.environment(), stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: dcmtk.run("echoscu", "127.0.0.1", free_port).returncode == 0, what="storescp")
            yield Storescp(free_port, folder)
        finally:
            server.kill()


def data_set(path: Path) -> bytes:
    """What follows the file meta information."""
    data = path.read_bytes()
    return data[144 + int.from_bytes(data[140:144], "little") :]


def images(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[128:132] == b"DICM"]


def leftovers(received: Path) -> list[str]:
    return [path.name for path in received.rglob("*.part")]


def test_echoscu_is_answered(dcmtk: Any, port: int) -> None:
    assert dcmtk.run("echoscu", "-aec", "SORTER", "127.0.0.1", port).returncode == 0


SENDERS = [("storescu", ["-nh", "+sd", "+r"]), ("dcmsend", ["-nh", "-dn", "+sd", "+r"])]


@pytest.mark.parametrize(("tool", "options"), SENDERS)
def test_images_arrive_byte_for_byte(
    dcmtk: Any, sample: Path, received: Path, port: int, storescp: Storescp, tool: str, options: list[str]
) -> None:
    folder = sample / "data" / "philips-epi"
    for to in (port, storescp.port):
        done = dcmtk.run(tool, "-aet", "ACHIEVA", "-aec", "SORTER", *options, "127.0.0.1", to, folder)
        assert done.returncode == 0, done.stderr
    came = images(received)
    assert len(came) == len(images(folder)) == 27
    assert Counter(map(data_set, came)) == Counter(map(data_set, images(storescp.folder)))
    for path in came:
        meta = read_file_meta_info(path)
        assert meta.SourceApplicationEntityTitle == meta.SendingApplicationEntityTitle == "ACHIEVA"
        assert meta.ReceivingApplicationEntityTitle == "SORTER"
        assert meta.SourcePresentationAddress.startswith("dicom://127.0.0.1:")
        assert meta.MediaStorageSOPInstanceUID == dcmread(path, stop_before_pixels=True).SOPInstanceUID


def test_four_senders_at_once(dcmtk: Any, sample: Path, received: Path, port: int, storescp: Storescp) -> None:
    sets = ["nih-siemens", "philips-epi", "ge-b0map", "multiecho-qt2"]
    folders = [sample / "data" / name for name in sets]

    def command(folder: Path, to: int) -> list[str]:
        options = ["-nh", "-dn", "-aec", "SORTER", "+sd", "+r"]
        return list(dcmtk.command("dcmsend", *options, "127.0.0.1", to, folder))

    senders = [
        subprocess.Popen(
            command(folder, port), env=dcmtk.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for folder in folders
    ]
    for sender in senders:
        said, _ = sender.communicate(timeout=60)
        assert sender.returncode == 0, said
    for folder in folders:
        subprocess.run(command(folder, storescp.port), env=dcmtk.environment(), check=True, capture_output=True)
    assert len(images(received)) == sum(len(images(folder)) for folder in folders)
    assert Counter(map(data_set, images(received))) == Counter(map(data_set, images(storescp.folder)))
    assert leftovers(received) == []


@pytest.mark.parametrize("option", ["-xs", "-xb", "-xd", "-xi"])
def test_the_transfer_syntaxes_that_storescu_offers_first_are_taken(
    dcmtk: Any, sample: Path, port: int, received: Path, option: str
) -> None:
    """The image decodes in the syntax that its file meta names."""
    image = images(sample / "data" / "philips-epi")[0]
    done = dcmtk.run("storescu", option, "-aec", "SORTER", "127.0.0.1", port, image)
    assert done.returncode == 0, done.stderr
    [came] = images(received)
    read, sent = dcmread(came), dcmread(image)
    assert read.SOPInstanceUID == sent.SOPInstanceUID
    assert (read.pixel_array == sent.pixel_array).all()


def test_a_private_sop_class_is_taken(
    dcmtk: Any, sample: Path, port: int, received: Path, storescp: Storescp, tmp_path: Path
) -> None:
    image = dcmread(images(sample / "data" / "philips-epi")[0])
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = PRIVATE
    assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    image.save_as(tmp_path / "private.dcm")
    for to in (port, storescp.port):
        done = dcmtk.run("dcmsend", "-aec", "SORTER", "127.0.0.1", to, tmp_path / "private.dcm")
        assert done.returncode == 0, done.stderr
    [came] = images(received)
    assert read_file_meta_info(came).MediaStorageSOPClassUID == PRIVATE
    assert [data_set(came)] == [data_set(path) for path in images(storescp.folder)]


class FullDisk(Files):
    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_to_the_sender(dcmtk: Any, sample: Path, received: Path) -> None:
    image = images(sample / "data" / "philips-epi")[0]
    with serving(received, FullDisk()) as port:
        done = dcmtk.run("storescu", "-v", "-aec", "SORTER", "127.0.0.1", port, image)
    assert "Refused: OutOfResources" in done.stdout + done.stderr
    assert images(received) == []
    assert leftovers(received) == []


def test_a_sender_killed_in_mid_instance_leaves_nothing(
    dcmtk: Any, sample: Path, port: int, received: Path, tmp_path: Path
) -> None:
    """The sender is stopped as soon as a part is there; 200 MB are never through by then."""
    image = dcmread(images(sample / "data" / "philips-epi")[0])
    image.PixelData, image.NumberOfFrames = bytes(200 << 20), 1
    image.save_as(tmp_path / "large.dcm")
    sender = subprocess.Popen(
        dcmtk.command("storescu", "-aec", "SORTER", "127.0.0.1", port, tmp_path / "large.dcm"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: leftovers(received), what="a part")
    finally:
        sender.kill()
        sender.wait(10)
    log = wait_until(lambda: list(received.rglob("arrivals.jsonl")))[0]
    wait_until(lambda: '"lost"' in log.read_text(), what="the association's end")
    assert leftovers(received) == []
    assert images(received) == []
