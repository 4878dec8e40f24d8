"""Other receivers write into incoming/ under final names, and are killed within a file: nothing torn is taken.

DCMTK's storescp and CTN's simple_storage write as the bytes come, so a sender that stalls holds the file half;
pynetdicom's storescp writes a whole instance at its end, so it is caught while a large one is being written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom.dsutils import encode

from sorter.testing.namespace import own_network
from sorter.testing.peer import Peer, command, pdu, pdv
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import many
from sorter.testing.waiting import wait_until

LARGE = 64 << 20  # bytes of pixels: to be written takes long enough to be caught at it
SIDE = 8192  # pixels


@dataclasses.dataclass(frozen=True)
class Sent:
    """One instance on its way: its UID, its data set (implicit VR little endian), and its pixels alone."""

    uid: str
    data_set: bytes
    pixels: bytes


def instance(number: int, pixels: int = 0) -> Sent:
    """Of a small series; `pixels` bytes of pixel data instead of its own."""
    _, file = list(many(number + 1, seed=7, a_series=100))[number]
    dataset = pydicom.dcmread(io.BytesIO(file))
    if pixels:
        rows = pixels // (2 * SIDE)
        dataset.Rows, dataset.Columns = rows, SIDE
        dataset.PixelData = bytes(range(256)) * (rows * SIDE * 2 // 256)
        dataset["PixelData"].VR = "OW"
    encoded = encode(dataset, is_implicit_vr=True, is_little_endian=True)
    assert encoded is not None
    return Sent(str(dataset.SOPInstanceUID), encoded, dataset.PixelData)


def pieces(sent: Sent, step: int = 16_000) -> Iterator[bytes]:
    """The PDUs of its C-STORE."""
    yield pdu(4, pdv(1, 3, command(instance=sent.uid.encode())))
    for at in range(0, len(sent.data_set), step):
        last = at + step >= len(sent.data_set)
        yield pdu(4, pdv(1, 2 if last else 0, sent.data_set[at : at + step]))


def send(peer: Peer, sent: Sent) -> None:
    for piece in pieces(sent):
        peer.send(piece)
    assert peer.status() == 0


@dataclasses.dataclass(frozen=True)
class Receiver:
    """Another SCP: how it is started, and whether it writes while the bytes come."""

    name: str
    command: Callable[[Any, Path, int], Sequence[str]]
    streams: bool


def _storescp(dcmtk: Any, folder: Path, port: int) -> Sequence[str]:
    return dcmtk.command("storescp", "+B", "-aet", "SORTER", "-od", folder, port)  # type: ignore[no-any-return]


def _pynetdicom(dcmtk: Any, folder: Path, port: int) -> Sequence[str]:
    return [sys.executable, "-m", "pynetdicom", "storescp", str(port), "-od", str(folder), "-aet", "SORTER", "-q"]


def _ctn(dcmtk: Any, folder: Path, port: int) -> Sequence[str]:
    if not shutil.which("simple_storage"):
        pytest.skip("CTN is missing: install the package ctn")
    configuration = "/etc/ctn/runtime/ctn_cfg.txt"
    return ["simple_storage", "-s", "-i", "-c", "SORTER", "-C", configuration, "-x", str(folder), str(port)]


RECEIVERS = [
    pytest.param(Receiver("storescp", _storescp, True), id="dcmtk", marks=pytest.mark.dcmtk),
    pytest.param(Receiver("pynetdicom", _pynetdicom, False), id="pynetdicom"),
    pytest.param(Receiver("ctn", _ctn, True), id="ctn", marks=pytest.mark.peers),
]


@contextlib.contextmanager
def running(receiver: Receiver, tools: Any, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """It, until the end of the block or until it is killed, writing into `folder`."""
    folder.mkdir(exist_ok=True)
    server = subprocess.Popen(
        receiver.command(tools, folder, port), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "TCP_NODELAY": "1"},
    )  # fmt: skip
    try:
        wait_until(lambda: _answers(port), 30, f"{receiver.name} to answer")
        yield server
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    try:
        with Peer(port) as peer:
            peer.associate().release()
    except (OSError, EOFError, AssertionError):
        return False
    return True


def half_a_file(receiver: Receiver, folder: Path, large: Sent, peer: Peer, server: subprocess.Popen[bytes]) -> Path:
    """Kill the receiver while it has written a part of the large instance: the file that is left."""
    known = set(files(folder))
    todo = list(pieces(large))
    for piece in todo[: len(todo) // 2] if receiver.streams else todo:
        peer.send(piece)

    def begun() -> list[Path]:
        return [path for path in files(folder) - known if path.stat().st_size > 0]

    deadline = time.monotonic() + 60
    while not (found := begun()):  # without a pause: a whole instance is written in a tenth of a second
        assert time.monotonic() < deadline, f"{receiver.name} writes no file"
    server.kill()
    server.wait()
    return found[0]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def stored(sorter: RunningSorter) -> dict[str, bytes]:
    """The pixels of every image in the store, by SOP Instance UID."""
    images = (pydicom.dcmread(path) for path in sorter.spool.store.rglob("*.dcm"))
    return {image.SOPInstanceUID: image.PixelData for image in images}


@pytest.mark.slow
@pytest.mark.parametrize("receiver", RECEIVERS)
def test_none_of_it_is_taken_half(receiver: Receiver, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tools = request.getfixturevalue("dcmtk") if receiver.name == "storescp" else None
    alone = own_network() if receiver.name == "ctn" else contextlib.nullcontext()  # it listens on every address
    good, large = [instance(number) for number in range(6)], instance(9, LARGE)
    with alone, RunningSorter(tmp_path / "site", quiet=1) as sorter:
        port = request.getfixturevalue("free_port")
        folder = sorter.spool.incoming / receiver.name
        with running(receiver, tools, folder, port) as server, Peer(port, timeout=60) as peer:
            peer.associate()
            for each in good[:3]:
                send(peer, each)
            torn = half_a_file(receiver, folder, large, peer, server)
        left = torn.stat().st_size
        assert 0 < left < len(large.data_set)
        with running(receiver, tools, folder / "again", port), Peer(port, timeout=60) as peer:
            peer.associate()
            for each in good[3:]:
                send(peer, each)
                wait_until(lambda uid=each.uid: uid in stored(sorter), 60, "an image that came whole")  # type: ignore[misc]
        assert torn.stat().st_size == left, "what is torn stays where it is"
        assert stored(sorter) == {each.uid: each.pixels for each in good}
        assert not list(sorter.spool.quarantined())
        torn.unlink()
        with running(receiver, tools, folder / "more", port), Peer(port, timeout=60) as peer:
            peer.associate()
            send(peer, large)
            wait_until(lambda: large.uid in stored(sorter), 60, "the large image, sent again")
        assert stored(sorter)[large.uid] == large.pixels
