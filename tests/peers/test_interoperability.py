"""Every sender there is, with the sample and with each transfer syntax it offers: what arrives is what it sent.

A relay between sender and receiver keeps every byte of both directions. What the sender really sent is taken from
there, by a reader of a few lines that shares nothing with the receiver: each data set on the wire must lie in a file of
ours, bit for bit, and its pixels must be those of the file that the sender was given. A sender that puts nothing on the
wire does not offer that syntax; that is its own choice only if the receiver had accepted all it proposed.

With SORTER_RESULTS=FOLDER the matrix is written there as peers-receive.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import UID

from sorter.durable import Files
from sorter.receive import Receiver, ReceiveSettings
from sorter.testing.namespace import own_network
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.peers.orthanc import Orthanc

pytestmark = [pytest.mark.peers, pytest.mark.sample, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / ".peers" / "node_modules"
JAVA = Path("/usr/share/java")

# --- what passes the wire -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Passed:
    """One connection's bytes, in both directions."""

    sent: bytearray
    answered: bytearray


class Relay:
    """Passes connections on to `port`, and keeps what passes."""

    def __init__(self, port: int) -> None:
        self._to, self.passed = port, list[Passed]()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            passed = Passed(bytearray(), bytearray())
            self.passed.append(passed)
            self._start(self._pass_on, client, server, passed.sent)
            self._start(self._pass_on, server, client, passed.answered)

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, keep: bytearray) -> None:
        try:
            while data := source.recv(1 << 18):
                keep += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            for each in (source, target):
                each.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


def pdus(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 6 <= len(data):
        kind, length = struct.unpack_from(">BxI", data, at)
        yield kind, bytes(data[at + 6 : at + 6 + length])
        at += 6 + length


def refused(answered: bytes) -> list[tuple[int, int]]:
    """(context, result) of every presentation context of the A-ASSOCIATE-AC that was not accepted."""
    found = []
    for kind, body in pdus(answered):
        at = 68
        while kind == 2 and at + 4 <= len(body):
            item, length = struct.unpack_from(">BxH", body, at)
            if item == 0x21 and body[at + 6] != 0:
                found.append((body[at + 4], body[at + 6]))
            at += 4 + length
    return found


def data_sets(sent: bytes) -> Iterator[bytes]:
    """The data sets of the C-STORE requests of one association."""
    command, data, storing = bytearray(), bytearray(), False
    for kind, body in pdus(sent):
        at = 0
        while kind == 4 and at + 6 <= len(body):
            length, control = struct.unpack_from(">IxB", body, at)
            piece = body[at + 6 : at + 4 + length]
            at += 4 + length
            if control & 1:
                command += piece
                if control & 2:
                    storing, command = b"\0\0\0\1\2\0\0\0\1\0" in command, bytearray()
                continue
            data += piece
            if control & 2:
                if storing:
                    yield bytes(data)
                data = bytearray()


# --- files ----------------------------------------------------------------------------------------------------------


def after_meta(path: Path) -> bytes:
    data = path.read_bytes()
    return data[144 + int.from_bytes(data[140:144], "little") :]


def is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return path.is_file() and file.read(132)[128:] == b"DICM"


def pixels(path: Path, scratch: Path) -> tuple[str, str]:
    """(SOP Instance UID, digest of the decoded pixels); GDCM decodes what is compressed."""
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.is_compressed and not dataset.file_meta.TransferSyntaxUID.is_deflated:
        raw = scratch / "raw.dcm"
        subprocess.run(["gdcmconv", "--raw", path, raw], check=True, capture_output=True, timeout=60)
        dataset = pydicom.dcmread(raw)
    return str(dataset.SOPInstanceUID), hashlib.sha256(dataset.pixel_array.astype("<i4").tobytes()).hexdigest()


SYNTAXES: dict[str, tuple[str, Sequence[str]]] = {
    "1.2.840.10008.1.2": ("implicit", ("dcmconv", "+ti")),
    "1.2.840.10008.1.2.1": ("explicit", ("dcmconv", "+te")),
    "1.2.840.10008.1.2.2": ("big endian", ("dcmconv", "+tb")),
    "1.2.840.10008.1.2.1.99": ("deflated", ("dcmconv", "+td")),
    "1.2.840.10008.1.2.5": ("RLE", ("dcmcrle",)),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless", ("dcmcjpeg", "+e1")),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless 14", ("dcmcjpeg", "+el")),
    "1.2.840.10008.1.2.4.51": ("JPEG 12 bit", ("dcmcjpeg", "+ee")),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS", ("dcmcjpls", "+el")),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near", ("dcmcjpls", "+en")),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000", ("gdcmconv", "--j2k")),
}
"""By UID: a short name, and the command that makes such a file of any."""

SAMPLE = "sample"


@pytest.fixture(scope="module")
def sources(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """What is sent: one file in each transfer syntax, and the whole sample, one file a SOP Instance UID."""
    folder = tmp_path_factory.mktemp("sources")
    whole = sorted(path for path in (sample / "data").rglob("*") if path.is_file() and is_dicom(path))
    first = next(path for path in whole if pydicom.dcmread(path, stop_before_pixels=True).get("BitsStored") == 12)
    found = {SAMPLE: whole}
    for uid, (name, command) in SYNTAXES.items():
        made = folder / f"{uid}.dcm"
        done = subprocess.run([*command, first, made], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert pydicom.dcmread(made, stop_before_pixels=True).file_meta.TransferSyntaxUID == uid
        found[uid] = [made]
    return found


# --- senders --------------------------------------------------------------------------------------------------------


class Missing(Exception):
    """This sender is not installed."""


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(name)
    return found


def dcmtk(name: str) -> str:
    return str(Path(tool("dcmsend")).resolve().parent / name)  # pynetdicom has a storescu too


STORESCU = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
}


def storescu(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    option = STORESCU.get(syntax, "-x=")
    return [dcmtk("storescu"), "-nh", option, "-aec", "SORTER", "127.0.0.1", str(port), *map(str, files)]


def dcmsend(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    return [tool("dcmsend"), "-nh", "-dn", "-nuc", "-aec", "SORTER", "127.0.0.1", str(port), *map(str, files)]


def gdcmscu(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    inputs = [word for path in files for word in ("-i", str(path))]
    return [tool("gdcmscu"), "--store", "--call", "SORTER", "127.0.0.1", str(port), *inputs]


def odil(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    return [tool("odil"), "store", "127.0.0.1", str(port), "ODIL", "SORTER", *map(str, files)]


def ctn(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    proposed = ["-X", syntax] if syntax in SYNTAXES else []
    return [tool("send_image"), "-a", "CTN", "-c", "SORTER", *proposed, "127.0.0.1", str(port), *map(str, files)]


def pixelmed(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    jars = (
        "pixelmed",
        "vecmath",
        "commons-codec",
        "jai",
        "jai_imageio",
        "hsqldb",
        "commons-compress",
        "bzip2",
        "jmdns",
    )
    if not (JAVA / "pixelmed.jar").exists():
        raise Missing("pixelmed")
    path = ":".join(str(JAVA / f"{jar}.jar") for jar in jars)
    return [
        *(tool("java"), "-cp", path, "com.pixelmed.network.StorageSOPClassSCU"),
        *("127.0.0.1", str(port), "SORTER", "PIXELMED", *map(str, files)),
    ]


DCMJS = """
const { Client, requests, Dataset } = require('dcmjs-dimse');
const fs = require('fs');
const [port, ...files] = process.argv.slice(1);
const client = new Client();
for (const file of files) client.addRequest(new requests.CStoreRequest(file));
client.on('networkError', (error) => { console.error(String(error)); process.exitCode = 1; });
client.send('127.0.0.1', Number(port), 'DCMJS', 'SORTER');
"""


def dcmjs(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    if not (NODE_MODULES / "dcmjs-dimse").exists():
        raise Missing("dcmjs-dimse")
    return [tool("node"), "-e", DCMJS, str(port), *map(str, files)]


def pynetdicom(port: int, files: Sequence[Path], syntax: str) -> list[str]:
    # by default its application proposes 128 classes in native syntaxes; -cx makes it ask for what the files are
    options = ["-aec", "SORTER", "-cx"]
    return [sys.executable, "-m", "pynetdicom", "storescu", "127.0.0.1", str(port), *map(str, files), *options]


SENDERS: dict[str, Callable[[int, Sequence[Path], str], list[str]]] = {
    "DCMTK storescu": storescu,
    "DCMTK dcmsend": dcmsend,
    "GDCM gdcmscu": gdcmscu,
    "odil": odil,
    "CTN send_image": ctn,
    "pixelmed": pixelmed,
    "dcmjs-dimse": dcmjs,
    "pynetdicom": pynetdicom,
}

ONE_BY_ONE = {"pixelmed"}
"""Senders that take one file a call."""


# --- the matrix -----------------------------------------------------------------------------------------------------


class Matrix:
    """What was seen, by sender and by what was sent."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}

    def markdown(self) -> str:
        columns = [SAMPLE, *SYNTAXES]
        names = [SAMPLE, *(name for name, _ in SYNTAXES.values())]
        rows = [sender for sender in [*SENDERS, "Orthanc"] if any(each == sender for each, _ in self.cells)]
        lines = ["| sender | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        lines += [
            f"| {row} | " + " | ".join(self.cells.get((row, each), "") for each in columns) + " |" for row in rows
        ]
        return "\n".join(lines)


@pytest.fixture(scope="module")
def matrix() -> Generator[Matrix, None, None]:
    found = Matrix()
    yield found
    folder = os.environ.get("SORTER_RESULTS")
    if folder and found.cells:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        head = f"Measured on {datetime.date.today().isoformat()}, commit {commit.stdout.strip()}.\n"
        text = f"# Senders against the receiver\n\n{head}\n{found.markdown()}\n\n{LEGEND}\n## Versions\n\n{versions()}"
        (Path(folder) / "peers-receive.md").write_text(text)


LEGEND = """\
- `=` every data set on the wire lies in a file of ours bit for bit, and it is the data set of the file that was given.
- `≈` the same, but the sender encoded the file anew (lengths, padding, another transfer syntax); the decoded pixels are
  those of the file.
- `n/m` so many of the files were sent at all; the rest the sender refused by itself, with every context accepted.
- `✗` what the sender put on the wire is stored bit for bit, and is broken: odil sends compressed fragments in a native
  transfer syntax, dcmjs-dimse a deflated data set that is no deflate stream.
- `–` nothing was sent: the sender does not offer this syntax. All that it proposed had been accepted.

The sample column is all images of the sample, the others one 12-bit MR image in that transfer syntax. Made by
`python3 packaging/run.py peers tests/peers/test_interoperability.py` with SORTER_RESULTS=docs/results.

"""


def versions() -> str:
    found = [f"- pynetdicom {__import__('pynetdicom').__version__}, pydicom {pydicom.__version__}"]
    for package in ("dcmtk", "libgdcm-tools", "odil", "ctn", "pixelmed-apps", "orthanc"):
        said = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
        found += [f"- {package} {said.stdout}"] if said.returncode == 0 else []
    package = NODE_MODULES / "dcmjs-dimse" / "package.json"
    if package.exists():
        found.append(f"- dcmjs-dimse {json.loads(package.read_text())['version']}")
    return "\n".join(found) + "\n"


@dataclasses.dataclass
class Case:
    """A receiver, the relay before it, and where its files are."""

    relay: Relay
    received: Path
    scratch: Path

    def images(self) -> list[Path]:
        return list(self.received.rglob("*.dcm"))

    def judge(self, files: Sequence[Path]) -> str:
        """The cell; AssertionError where anything is not as it was sent."""
        sent = [data for each in self.relay.passed for data in data_sets(each.sent)]
        not_taken = [each for passed in self.relay.passed for each in refused(passed.answered)]
        assert not_taken == [], "every storage context with a usable transfer syntax must be accepted"
        came = self.images()
        assert Counter(map(digest, sent)) == Counter(digest(after_meta(path)) for path in came)
        assert not list(self.received.rglob("*.part"))
        if not sent:
            return "–"
        given = Counter(pixels(path, self.scratch) for path in files)
        try:
            arrived = Counter(pixels(path, self.scratch) for path in came)
        except (ValueError, zlib.error):
            return "✗"
        assert not arrived - given, "pixels that are not those of any file that was sent"
        as_given = Counter(digest(after_meta(path)) for path in files)
        unchanged = not Counter(map(digest, sent)) - as_given
        missing = sum((given - arrived).values())
        return ("=" if unchanged else "≈") + (f" {len(came)}/{len(files)}" if missing else "")


def digest(data: bytes) -> str:
    """Of a data set; a pad byte at the end is none of it (PS3.8: fragments are of even length)."""
    return hashlib.sha256(data.removesuffix(b"\0") if len(data) % 2 == 0 else data).hexdigest()


@pytest.fixture(scope="module")
def network() -> Generator[None, None, None]:
    """Some peers listen on all addresses: everything runs in a network namespace that has only the loopback."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace of one's own needs root")
    with own_network():
        yield


@pytest.fixture
def case(network: None, tmp_path: Path) -> Generator[Case, None, None]:
    receiver = Receiver(ReceiveSettings(port=0), tmp_path / "received", Files())
    relay = Relay(receiver.start())
    try:
        yield Case(relay, tmp_path / "received", tmp_path)
    finally:
        receiver.stop(5)
        relay.close()


@pytest.mark.timeout(900)  # a Java machine for each file of the sample
@pytest.mark.parametrize("what", [SAMPLE, *SYNTAXES], ids=lambda uid: SYNTAXES.get(uid, (uid,))[0])
@pytest.mark.parametrize("sender", SENDERS)
def test_what_is_sent_arrives_unchanged(
    sender: str, what: str, sources: dict[str, list[Path]], case: Case, matrix: Matrix
) -> None:
    files = sources[what]
    try:
        command = functools.partial(SENDERS[sender], case.relay.port)
        batches = [[each] for each in files] if sender in ONE_BY_ONE else [files]
        said = [run(command(batch, what)) for batch in batches]
    except Missing as missing:
        pytest.skip(f"{missing} is not installed")
    cell = case.judge(files)
    matrix.cells[sender, what] = cell
    assert cell == EXPECTED.get((sender, what), cell if cell in ("=", "≈") else "="), f"{cell}: {said[0][-2000:]}"


def run(command: Sequence[str]) -> str:
    """What it printed; the return codes of these programs say little (gdcmscu always aborts)."""
    environment = {**os.environ, "TCP_NODELAY": "1", "NODE_PATH": str(NODE_MODULES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=280)
    return f"{done.returncode}\n{done.stdout}\n{done.stderr}"


_COMPRESSED = [uid for uid in SYNTAXES if UID(uid).is_encapsulated]

EXPECTED = {
    ("DCMTK storescu", "1.2.840.10008.1.2.4.57"): "–",  # it has no option for it
    ("CTN send_image", "1.2.840.10008.1.2.1.99"): "–",  # younger than the program
    ("odil", "1.2.840.10008.1.2.1.99"): "–",
    **{("odil", uid): "✗" for uid in _COMPRESSED},  # it proposes native syntaxes, and sends the fragments as they are
    ("dcmjs-dimse", "1.2.840.10008.1.2.1.99"): "✗",  # its deflated data set is no deflate stream
}
"""Cells that are the sender's own doing."""


# --- Orthanc --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orthanc(network: None, tmp_path_factory: pytest.TempPathFactory) -> Generator[Orthanc, None, None]:
    running = Orthanc(tmp_path_factory.mktemp("orthanc") / "data")
    try:
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("what", [SAMPLE, *SYNTAXES], ids=lambda uid: SYNTAXES.get(uid, (uid,))[0])
def test_orthanc_sends(what: str, sources: dict[str, list[Path]], case: Case, orthanc: Orthanc, matrix: Matrix) -> None:
    orthanc.peer(case.relay.port)
    held = orthanc.hold(sources[what])
    done = orthanc.ask("POST", "/modalities/sorter/store", {"Resources": held, "Synchronous": True})
    assert done["FailedInstancesCount"] == 0
    cell = case.judge(sources[what])
    matrix.cells["Orthanc", what] = cell
    assert cell == EXPECTED.get(("Orthanc", what), cell if cell in ("=", "≈") else "=")


COMMITTING = """
[receive]
commitment = "stored"
commitment_wait = 3
[[senders]]
ae = "ORTHANC"
address = "127.0.0.1"
port = 4242
"""


def reported(orthanc: Orthanc, transaction: str) -> dict[str, Any] | None:
    said: dict[str, Any] = orthanc.ask("GET", f"/storage-commitment/{transaction}")
    return said if said["Status"] != "Pending" else None


def ask_for(orthanc: Orthanc, resources: Sequence[str]) -> str:
    said = orthanc.ask("POST", "/modalities/sorter/storage-commitment", {"Resources": list(resources)})
    return str(said["ID"])


def test_orthanc_gets_its_storage_commitment(sources: dict[str, list[Path]], orthanc: Orthanc, tmp_path: Path) -> None:
    files = [path for path in sources[SAMPLE] if "philips-epi" in str(path)]
    held = orthanc.hold(files)
    with RunningSorter(tmp_path, quiet=0.5, config=COMMITTING) as sorter:
        orthanc.peer(sorter.port)
        orthanc.ask("POST", "/modalities/sorter/store", {"Resources": held[:-1], "Synchronous": True})
        transaction = ask_for(orthanc, held[:-1])
        said = wait_until(lambda: reported(orthanc, transaction), 60, "the report")
        assert (said["Status"], len(said["Success"]), said["Failures"]) == ("Success", len(held) - 1, [])
        transaction = ask_for(orthanc, held)  # one of them was never sent
        said = wait_until(lambda: reported(orthanc, transaction), 60, "the second report")
    assert (said["Status"], len(said["Success"])) == ("Failure", len(held) - 1)
    assert "was not available" in said["Failures"][0]["Description"]  # Orthanc's words for 0112
    assert len(said["Failures"]) == 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_orthanc_gets_its_storage_commitment_across_a_restart(
    sources: dict[str, list[Path]], orthanc: Orthanc, tmp_path: Path, end: str
) -> None:
    """Between N-ACTION and N-EVENT-REPORT sorter ends, and begins again on another port."""
    files = [path for path in sources[SAMPLE] if "philips-epi" in str(path)]
    held = orthanc.hold(files)
    config = COMMITTING.replace("commitment_wait = 3", "commitment_wait = 300")
    with RunningSorter(tmp_path, quiet=0.5, config=config) as sorter:
        orthanc.peer(sorter.port)
        transaction = ask_for(orthanc, held)  # before they come: it cannot be answered yet
        assert reported(orthanc, transaction) is None
        getattr(sorter, end)()
        sorter.port = 0
        sorter.start()
        orthanc.peer(sorter.port)
        assert reported(orthanc, transaction) is None
        orthanc.ask("POST", "/modalities/sorter/store", {"Resources": held, "Synchronous": True})
        said = wait_until(lambda: reported(orthanc, transaction), 60, "the report")
    assert (said["Status"], len(said["Success"]), said["Failures"]) == ("Success", len(held), [])
