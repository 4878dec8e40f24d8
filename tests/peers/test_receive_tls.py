"""The second port: DCMTK, pynetdicom and sockets that speak TLS well, badly, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage, Verification

from sorter.cli.check import check_command
from sorter.config import load, server_context
from sorter.daemon.receive import settings_of
from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.receive import Job, Known, Receiver, ReceiveSettings, Tls, gate, open_doors, run
from sorter.receive.refusals import told
from sorter.receive.server import open_to_everybody
from sorter.testing.peer import pdu, request
from sorter.testing.waiting import wait_until
from tests.peers.sender import Sender


@dataclasses.dataclass(frozen=True)
class Papers:
    """Certificates and keys, each in a file of its own, by what they are."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name}.pem"


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    found = Papers(folder)
    for ca_name in ("ca", "other_ca"):
        ca = trustme.CA()
        ca.cert_pem.write_to_path(getattr(found, ca_name))
        prefix = "" if ca_name == "ca" else "other_"
        for who, name in (("127.0.0.1", "server"), ("scanner.example", "client")):
            issued = ca.issue_cert(who)
            issued.private_key_pem.write_to_path(getattr(found, f"{prefix}{name}_key"))
            for number, blob in enumerate(issued.cert_chain_pems):
                blob.write_to_path(getattr(found, f"{prefix}{name}"), append=number > 0)
    key = serialization.load_pem_private_key(found.server_key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    found.locked_key.write_bytes(locked)
    found.der.write_bytes(ssl.PEM_cert_to_DER_cert(found.ca.read_text()))
    return found


def context_of(papers: Papers, folder: Path, *, ca: bool = True) -> ssl.SSLContext:
    """By way of the configuration."""
    lines = ["[receive.tls]", f'cert = "{papers.server}"', f'key = "{papers.server_key}"']
    path = folder / "sorter.toml"
    path.write_text("\n".join([*lines, f'ca = "{papers.ca}"' if ca else ""]))
    context = server_context(load(path, folder))
    assert context is not None
    return context


@dataclasses.dataclass
class Served:
    plain: int
    port: int
    received: Path
    receiver: Receiver

    def images(self) -> list[Path]:
        return sorted(self.received.rglob("*.dcm"))

    def refused(self) -> list[str]:
        self.receiver._refusals.close()
        return [each.reason for each in told(self.received, Files()).refused]

    def ends(self) -> str:
        return "".join(path.read_text() for path in self.received.rglob("arrivals.jsonl"))


@contextmanager
def serving(papers: Papers, folder: Path, *, ca: bool = True, **options: Any) -> Generator[Served, None, None]:
    tls = Tls(context_of(papers, folder, ca=ca), port=0)
    settings = ReceiveSettings(port=0, tls=tls, **options)
    receiver = Receiver(settings, folder / "received", Files())
    doors = open_doors(settings)
    port = doors[1].listener.getsockname()[1]
    plain = receiver.start(doors)
    try:
        yield Served(plain, port, folder / "received", receiver)
    finally:
        receiver.stop(5)


@pytest.fixture
def served(papers: Papers, tmp_path: Path) -> Generator[Served, None, None]:
    with serving(papers, tmp_path) as served:
        yield served


def client_context(papers: Papers, *, certificate: str = "client") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(papers.ca))
    if certificate:
        context.load_cert_chain(getattr(papers, certificate), getattr(papers, f"{certificate}_key"))
    return context


# --- DCMTK ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image of our own, as DCMTK's storescu will send it."""
    dataset = an_image(200_000)
    path = tmp_path / "image.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def an_image(size: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, "2.25.1"
    dataset.PatientID, dataset.Modality = "X", "MR"
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored = size // 100, 50, 16, 16
    dataset.SamplesPerPixel, dataset.PixelRepresentation, dataset.HighBit = 1, 0, 15
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = os.urandom(size)
    return dataset


def test_storescu_sends_by_tls_and_by_the_plain_port(dcmtk: Any, papers: Papers, served: Served, image: Path) -> None:
    with_tls = ["+tls", papers.client_key, papers.client]
    trusting = ["-ic"]
    for arguments in ([*with_tls, "+cf", papers.ca], [*with_tls, *trusting]):
        ended = dcmtk.run("storescu", *arguments, "-aec", "SORTER", "127.0.0.1", served.port, image)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = dcmtk.run("storescu", "-aec", "SORTER", "127.0.0.1", served.plain, image)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [dcmread(path).PixelData for path in served.images()] == [dcmread(image).PixelData] * 3
    wait_until(lambda: served.ends().count('"released"') == 3, what="three releases")
    assert served.refused() == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["+tls", "other_client_key", "other_client", "+cf", "ca"], gate.NO_CERTIFICATE),
        (["+tla", "+cf", "ca"], gate.NO_CERTIFICATE),
        (["+tls", "client_key", "client", "+cf", "other_ca"], gate.UNTRUSTED),
        ([], gate.SPEAKS_NO_TLS),
    ],
)
def test_storescu_with_the_wrong_papers_is_refused(
    dcmtk: Any, papers: Papers, served: Served, image: Path, arguments: list[str], reason: gate.Refusal
) -> None:
    found = [each if each[:1] in "+-" else getattr(papers, each) for each in arguments]
    ended = dcmtk.run("storescu", *found, "-aec", "SORTER", "127.0.0.1", served.port, image)
    assert ended.returncode != 0
    assert served.images() == []
    wait_until(lambda: served.refused() == [reason.reason], what=reason.reason)
    ended = dcmtk.run("storescu", "+tls", papers.client_key, papers.client, "-ic", "127.0.0.1", served.port, image)
    assert ended.returncode == 0


def test_without_a_ca_storescu_needs_no_certificate(dcmtk: Any, papers: Papers, tmp_path: Path, image: Path) -> None:
    with serving(papers, tmp_path, ca=False) as served:
        ended = dcmtk.run("storescu", "+tla", "+cf", papers.ca, "127.0.0.1", served.port, image)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert len(served.images()) == 1


def test_storescu_that_speaks_tls_at_the_plain_port_is_told_so(
    dcmtk: Any, papers: Papers, served: Served, image: Path
) -> None:
    assert dcmtk.run("storescu", "+tla", "-ic", "127.0.0.1", served.plain, image).returncode != 0
    wait_until(lambda: served.refused() == [gate.SPEAKS_TLS.reason], what="a refusal")


# --- pynetdicom -----------------------------------------------------------------------------------------------------


def a_scanner(*classes: str, kind: type[AE] = AE) -> AE:
    ae = kind("SCANNER")
    for uid in classes:
        ae.add_requested_context(uid, ImplicitVRLittleEndian)
    return ae


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_large_images_come_through_unchanged(papers: Papers, served: Served, version: ssl.TLSVersion) -> None:
    context = client_context(papers)
    context.minimum_version = context.maximum_version = version
    images = [an_image(size) for size in (3_000_000, 100, 70_000)]
    sender = a_scanner(MRImageStorage, kind=Sender).associate("127.0.0.1", served.port, tls_args=(context, "127.0.0.1"))
    assert sender.is_established
    assert [sender.send_c_store(each).Status for each in images] == [0, 0, 0]
    sender.release()
    assert sorted(len(dcmread(path).PixelData) for path in served.images()) == [100, 70_000, 3_000_000]
    assert {dcmread(path).PixelData for path in served.images()} == {each.PixelData for each in images}


def test_titles_are_checked_behind_tls_too(papers: Papers, tmp_path: Path) -> None:
    with (  # by hand: pynetdicom can miss an answer that its TLS has read already
        serving(papers, tmp_path, senders=(Known("PRISMA", None),), strangers=False) as served,
        socket.create_connection(("127.0.0.1", served.port), 10) as plain,
        client_context(papers).wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        tls.makefile("rwb", buffering=0) as peer,
    ):
        peer.write(request())
        assert peer.read(10) == pdu(3, bytes((0, 1, 1, 3)))  # PS3.8 9.3.4: calling AE title not recognised


def test_stop_releases_an_association_that_speaks_tls(papers: Papers, served: Served) -> None:
    tls = (client_context(papers), "127.0.0.1")
    idle = a_scanner(Verification).associate("127.0.0.1", served.port, tls_args=tls)
    assert idle.is_established
    served.receiver.stop(5)
    wait_until(lambda: idle.is_released, what="a release")
    assert '"released"' in served.ends()


# --- the handshake --------------------------------------------------------------------------------------------------


def shake(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")


def weak(papers: Papers, **what: Any) -> ssl.SSLContext:
    context = client_context(papers)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(what.get("ciphers", "DEFAULT:@SECLEVEL=0"))
    if "version" in what:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = what["version"]
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_only_the_profile_is_spoken(papers: Papers, served: Served) -> None:
    with shake(served.port, weak(papers)) as sock:
        cipher = sock.cipher()
        assert cipher is not None
        assert cipher[0].startswith("ECDHE")
        assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
    for what in ({"ciphers": "ECDHE+AES:!AESGCM:!AESCCM"}, {"version": ssl.TLSVersion.TLSv1_1}):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            shake(served.port, weak(papers, **what))
    wait_until(lambda: served.refused() == [gate.OLD_TLS.reason], what="a refusal")


def test_a_handshake_that_does_not_end_is_ended_in_time(papers: Papers, tmp_path: Path) -> None:
    with serving(papers, tmp_path, request_timeout=0.4) as served:
        outgoing = ssl.MemoryBIO()
        shaking = client_context(papers).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            shaking.do_handshake()
        hello = outgoing.read()
        for sent in (b"", hello[:30], hello):
            with socket.create_connection(("127.0.0.1", served.port), 10) as sock:
                sock.sendall(sent)
                while sock.recv(4096):  # our part of the handshake, then the end
                    pass
        assert served.refused() == [gate.SILENT.reason]
        with shake(served.port, client_context(papers)) as sock:  # and who shakes hands, but asks for nothing
            assert sock.recv(1) == b""


def test_slow_handshakes_keep_nobody_waiting(papers: Papers, served: Served, image: Path) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 10))
            sock.sendall(bytes.fromhex("16030100f8")[: number % 6])
        tls = (client_context(papers), "127.0.0.1")
        sender = a_scanner(MRImageStorage, kind=Sender).associate("127.0.0.1", served.port, tls_args=tls)
        assert sender.send_c_store(dcmread(image)).Status == 0
        sender.release()


def test_junk_after_the_handshake_harms_nobody(papers: Papers, served: Served) -> None:
    with shake(served.port, client_context(papers)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(1) == b"\7"
    raw = socket.create_connection(("127.0.0.1", served.port), 10)
    raw.sendall(os.urandom(3000))
    with raw, contextlib.suppress(ConnectionResetError):
        while raw.recv(4096):
            pass
    assert served.receiver.alive
    assert not [each for each in threading.enumerate() if each.name == "association"]


def test_new_certificates_are_those_of_a_worker_that_takes_anothers_place_too(papers: Papers, tmp_path: Path) -> None:
    """One that died after SIGHUP: its successor must not go back to the papers of the start."""
    fork = multiprocessing.get_context("fork")
    hear, tell = fork.Pipe(duplex=False)
    first, second = (server_side(papers, prefix) for prefix in ("", "other_"))

    def settings(context: ssl.SSLContext) -> ReceiveSettings:
        return ReceiveSettings(port=0, processes=1, tls=Tls(context, port=0))

    def receive() -> None:
        job = Job(settings(first), tmp_path / "received", Files(), reload=lambda: settings(second))
        run(job, lambda *ports: tell.send(ports))

    process = fork.Process(target=receive)
    process.start()
    try:
        assert hear.poll(60)
        port = hear.recv()[1]

        def shown() -> str:
            """By whose papers the receiver is known."""
            for prefix in ("", "other_"):
                trusting = ssl.create_default_context(cafile=str(getattr(papers, f"{prefix}ca")))
                with contextlib.suppress(ssl.SSLError), shake(port, trusting):
                    return f"{prefix}ca"
            return "nobody's"

        assert process.pid is not None
        assert shown() == "ca"
        os.kill(process.pid, signal.SIGHUP)
        wait_until(lambda: shown() == "other_ca", 10, "the new papers")
        [worker] = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: children(process.pid) not in ([], [worker]), 10, "its successor")
        assert shown() == "other_ca"
        process.terminate()
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def server_side(papers: Papers, prefix: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(getattr(papers, f"{prefix}server"), getattr(papers, f"{prefix}server_key"))
    return context


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# --- the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"cert": "nowhere"}, r"sorter.toml:2: receive.tls.cert: .*nowhere.pem cannot be read: No such file"),
        ({"cert": "server_key"}, r"sorter.toml:2: receive.tls.cert: .* but a private key; were cert and key exchanged"),
        ({"cert": "der"}, r"sorter.toml:2: receive.tls.cert: .*in DER: openssl x509 -inform der -in .*der.pem -out"),
        ({"key": "server"}, r"sorter.toml:3: receive.tls.key: .* holds no private key in PEM"),
        ({"key": "nowhere"}, r"sorter.toml:3: receive.tls.key: .*nowhere.pem cannot be read: No such file"),
        (
            {"key": "client_key"},
            r"sorter.toml:3: receive.tls.key: .* is not the key of the certificate in .*server.pem",
        ),
        ({"key": "locked_key"}, r"sorter.toml:3: receive.tls.key: .* is locked by a passphrase.* openssl pkey"),
        ({"ca": "client_key"}, r"sorter.toml:4: receive.tls.ca: .* holds no certificate in PEM"),
    ],
)
def test_papers_that_cannot_be_used_are_said_with_their_line(
    papers: Papers, tmp_path: Path, files: dict[str, str], fault: str
) -> None:
    named = {"cert": "server", "key": "server_key", "ca": "ca", **files}
    lines = ["[receive.tls]", *(f'{key} = "{getattr(papers, name)}"' for key, name in named.items())]
    path = tmp_path / "sorter.toml"
    path.write_text("\n".join(lines))
    config = load(path, tmp_path)  # whoever asks for the status needs no key
    with pytest.raises(ConfigError, match=fault) as caught:
        server_context(config)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("begins", "ends", "says"),
    [
        (-10, 100, ""),
        (-10, 20.5, r"sorter.toml:2: receive.tls.cert: .*dated.pem expires in 20 days: .*a new one there, then SIGHUP"),
        (-10, -1, r"sorter.toml:2: receive.tls.cert: .*dated.pem: certificate has expired; .*will refuse it"),
        (10, 100, r"sorter.toml:2: receive.tls.cert: .*dated.pem: certificate is not yet valid; .*will refuse it"),
    ],
)
def test_a_certificate_that_is_out_of_date_is_told_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, begins: float, ends: float, says: str
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    issued = trustme.CA().issue_cert("127.0.0.1", not_before=now + begins * day, not_after=now + ends * day)
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "dated.pem")
    path = tmp_path / "sorter.toml"
    path.write_text('[receive.tls]\ncert = "dated.pem"\nkey = "dated.pem"\n')
    checked = CliRunner().invoke(check_command, ["-c", str(path), "--root", str(tmp_path)])
    assert checked.exit_code == 0
    assert re.search(says, checked.output)
    assert ("WARNING" in checked.output) == bool(says)
    assert settings_of(load(path, tmp_path)).tls is not None
    assert re.search(says, caplog.text)


def test_paths_are_those_of_the_configuration(papers: Papers) -> None:
    path = papers.folder / "sorter.toml"
    path.write_text('[receive.tls]\ncert = "server.pem"\nkey = "server_key.pem"\n')
    assert server_context(load(path, papers.folder)) is not None


def test_who_shows_a_certificate_is_not_everybody(papers: Papers, tmp_path: Path) -> None:
    for ca, everybody in ((True, False), (False, True)):
        tls = Tls(context_of(papers, tmp_path, ca=ca), host="0.0.0.0")
        assert open_to_everybody(ReceiveSettings(tls=tls)) is everybody
