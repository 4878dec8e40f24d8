"""Asking a sender what it has, and fetching what is missing: DCMTK's dcmqrscp holds it, sorter really runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (
    MRImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from sorter.cli.main import sorter as command
from sorter.errors import SorterError
from sorter.model import Verdict
from sorter.spool import Unit
from sorter.testing.namespace import own_network
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Made, Plan, session, write_series
from sorter.testing.waiting import wait_until
from tests.peers.sender import Sender

DCMQRSCP = """\
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
{host}
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
PACS {folder} RW (200, 1024mb) ANY
AETable END
"""

CONFIG = """\
[[senders]]
ae = "SCANNER"
query = "PACS@127.0.0.1:{port}"

[[senders]]
ae = "PACS"
query = "PACS@127.0.0.1:{port}"
"""


@pytest.fixture(scope="module", autouse=True)
def network() -> Generator[None, None, None]:
    """dcmqrscp listens on every address: where it may be, in a network that has only the loopback."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            stack.enter_context(own_network())
        yield


@dataclasses.dataclass
class Pacs:
    """A dcmqrscp that holds what it was sent, and a sorter that may ask it."""

    dcmtk: Any
    root: Path
    port: int
    sorter: RunningSorter

    @contextlib.contextmanager
    def running(self, host: str | None = None) -> Iterator[None]:
        """`host`: the line of its HostTable. By default it knows the sorter."""
        folder = self.root / "pacs"
        folder.mkdir(exist_ok=True)
        host = f"sorter = (SORTER, 127.0.0.1, {self.sorter.port})" if host is None else host
        config = self.root / "dcmqrscp.cfg"
        config.write_text(DCMQRSCP.format(port=self.port, host=host, folder=folder))
        server = self.dcmtk.command("dcmqrscp", "-c", config)
        with subprocess.Popen(server, env=self.dcmtk.environment(), stderr=subprocess.DEVNULL) as running:
            try:
                wait_until(self.answers, what="dcmqrscp")
                yield
            finally:
                running.kill()

    def answers(self) -> bool:
        return bool(self.dcmtk.run("echoscu", "-aec", "PACS", "127.0.0.1", self.port).returncode == 0)

    def store(self, files: list[Path], port: int, called: str) -> None:
        done = self.dcmtk.run("storescu", "-aet", "SCANNER", "-aec", called, "127.0.0.1", port, *files)
        assert done.returncode == 0, done.stderr

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and what it said."""
        where = ["-c", str(self.root / "sorter" / "sorter.toml"), "--root", str(self.root / "sorter")]
        done = CliRunner().invoke(command, ["ask", *arguments, *where])
        if done.exception is not None and not isinstance(done.exception, SorterError | SystemExit):
            raise done.exception
        return done.exit_code, done.output + (str(done.exception) if isinstance(done.exception, SorterError) else "")

    def say(self, what: str, *arguments: str) -> str:
        done = CliRunner().invoke(command, [what, *arguments, "--root", str(self.root / "sorter")])
        assert done.exit_code == 0, done.output
        return done.output

    def unit(self) -> Unit:
        [key] = self.sorter.spool.keys()
        return Unit.load(self.sorter.spool, key)

    def wait_for_missing(self, images: int) -> None:
        def reached() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return [each.missing for each in self.sorter.series()] == [images]
            return False

        wait_until(reached, 30, f"{images} images to be missed")

    def wait_for(self, verdict: Verdict, images: int) -> None:
        def reached() -> bool:
            with contextlib.suppress(ValueError, FileNotFoundError):
                revision = self.unit().latest_revision()
                return revision is not None and (revision.verdict, len(revision.instances)) == (verdict, images)
            return False

        wait_until(reached, 30, f"{images} images that are {verdict}")


@pytest.fixture
def pacs(dcmtk: Any, tmp_path: Path, free_port: int) -> Generator[Pacs, None, None]:
    if not Path(dcmtk.tool("dcmqrscp")).exists():
        pytest.skip("this DCMTK has no dcmqrscp")
    config = CONFIG.format(port=free_port)
    with RunningSorter(tmp_path / "sorter", quiet=0.5, config=config) as sorter:
        yield Pacs(dcmtk, tmp_path, free_port, sorter)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, list[Path]]:
    made = next(each for each in session(Plan()) if each.name == "T1_MPRAGE")
    folder = tmp_path_factory.mktemp("series")
    return made, [folder / name for name in write_series(folder, made)]


def delivered(sorter: RunningSorter) -> set[str]:
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in sorter.labs.rglob("*.dcm")}


def test_what_is_missing_is_known_fetched_and_delivered(pacs: Pacs, series: tuple[Made, list[Path]]) -> None:
    made, files = series
    with pacs.running():
        pacs.store(files, pacs.port, "PACS")
        pacs.store([*files[:5], *files[8:]], pacs.sorter.port, "SORTER")
        pacs.wait_for_missing(3)
        asks = f"3 images that its sender has are not here; `sorter ask {made.uid}` fetches what is missing"
        assert asks in pacs.say("status")
        assert asks in pacs.say("why", made.uid)
        pacs.wait_for(Verdict.INCOMPLETE, len(files) - 3)
        assert asks in pacs.say("status")
        [lacking] = json.loads(pacs.say("status", "--json"))["missing"]
        assert (lacking["missing"], lacking["series"]) == (3, [made.uid])

        code, said = pacs.ask(made.uid, "--dry-run")
        assert (code, len(pacs.unit().by_sop)) == (1, len(files) - 3)
        assert f"has {len(files)} images of it, and is asked to send 3 to SORTER" in said
        code, said = pacs.ask(made.uid)
        assert (code, said.splitlines()[-1].strip()) == (0, "PACS says that it sent 3 of 3 images.")
        pacs.wait_for(Verdict.LISTED, len(files))
        code, said = pacs.ask(made.uid)
        assert (code, said.splitlines()[-1].strip()[-24:]) == (0, "Nothing is missing here.")
    pacs.sorter.wait_delivered(len(files))
    assert delivered(pacs.sorter) == {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}
    assert "ask" not in pacs.say("status").lower()


def test_a_quiet_series_that_is_whole_becomes_listed(pacs: Pacs, series: tuple[Made, list[Path]]) -> None:
    made, files = series
    with pacs.running():
        pacs.store(files, pacs.port, "PACS")
        pacs.store(files, pacs.sorter.port, "SORTER")
        pacs.wait_for(Verdict.LISTED, len(files))
    assert "The list that SCANNER@127.0.0.1 answered with names" in pacs.say("why", made.uid)


def test_nothing_is_asked_while_an_association_of_the_sender_is_open(
    pacs: Pacs, series: tuple[Made, list[Path]]
) -> None:
    _, files = series
    with pacs.running():
        pacs.store(files, pacs.port, "PACS")
        idle = AE("SCANNER").associate("127.0.0.1", pacs.sorter.port, [build_context(MRImageStorage)])
        assert idle.is_established
        pacs.store(files[:-1], pacs.sorter.port, "SORTER")
        pacs.sorter.wait_delivered(len(files) - 1)  # silence is enough to deliver, and not to ask
        assert pacs.sorter.series()[0].asking
        assert (pacs.unit().lists, pacs.unit().asked) == ({}, {})
        idle.release()
        pacs.wait_for(Verdict.INCOMPLETE, len(files) - 1)


def test_a_node_that_is_away_is_asked_again_over_a_restart(pacs: Pacs, series: tuple[Made, list[Path]]) -> None:
    _, files = series
    pacs.store(files, pacs.sorter.port, "SORTER")
    wait_until(lambda: "it is asked again later" in pacs.sorter.log.read_text(), 30, "the first try")
    pacs.sorter.wait_delivered(len(files))
    pacs.sorter.stop()
    with pacs.running():
        pacs.store(files, pacs.port, "PACS")
        pacs.sorter.start()
        pacs.wait_for(Verdict.LISTED, len(files))


def test_a_node_that_does_not_know_sorter_is_told_what_to_add(pacs: Pacs, series: tuple[Made, list[Path]]) -> None:
    made, files = series
    with pacs.running(host="other = (OTHER, 127.0.0.1, 104)"):
        pacs.store(files, pacs.port, "PACS")
        pacs.store(files[:-1], pacs.sorter.port, "SORTER")
        pacs.sorter.wait_delivered(len(files) - 1)
        code, said = pacs.ask(made.uid)
    assert code == 1
    assert "PACS does not know SORTER as a move destination (0xA801): add SORTER, with the address" in said


def test_whoever_cannot_be_asked_is_said(pacs: Pacs, series: tuple[Made, list[Path]]) -> None:
    made, files = series
    code, said = pacs.ask("1.2.3")
    assert (code, said[:44]) == (1, "no series of 1.2.3 is here to ask about; `so")
    done = pacs.dcmtk.run("storescu", "-aet", "PACS", "127.0.0.1", pacs.sorter.port, files[0])
    assert done.returncode == 0
    pacs.sorter.wait_delivered(1)
    code, said = pacs.ask(made.uid)
    assert code == 1
    assert "nothing answers as PACS" in said
    pacs.sorter.reload('[[senders]]\nae = "PACS"\n')
    code, said = pacs.ask(made.uid)
    assert code == 1
    assert 'add query = "AE@host:port" to the [[senders]] of who sent it (PACS@127.0.0.1)' in said


# --- nodes that are no dcmqrscp -------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_node(port: int, handlers: list[Any], *services: Any) -> Iterator[None]:
    """pynetdicom's SCP as the node that is asked."""
    ae = Sender("PACS")
    for each in services:
        ae.add_supported_context(each)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield
    finally:
        server.shutdown()


def test_where_only_retrieval_is_offered_the_whole_series_is_fetched(
    pacs: Pacs, series: tuple[Made, list[Path]]
) -> None:
    made, files = series
    asked: list[Any] = []

    def move(event: Any) -> Iterator[Any]:
        asked.append(event.identifier)
        yield "127.0.0.1", pacs.sorter.port, {"contexts": [build_context(MRImageStorage, ExplicitVRLittleEndian)]}
        yield len(files)
        yield from ((0xFF00, dcmread(path)) for path in files)

    with a_node(pacs.port, [(evt.EVT_C_MOVE, move)], StudyRootQueryRetrieveInformationModelMove):
        pacs.store(files[:-2], pacs.sorter.port, "SORTER")
        pacs.sorter.wait_delivered(len(files) - 2)
        code, said = pacs.ask(made.uid)
    assert (code, said.splitlines()[-1].strip()) == (0, f"PACS says that it sent {len(files)} images.")
    assert "but nothing that is to be done over it" in said
    assert [(each.QueryRetrieveLevel, each.SeriesInstanceUID) for each in asked] == [("SERIES", made.uid)]
    pacs.sorter.wait_delivered(len(files))
    assert len(delivered(pacs.sorter)) == len(files)


def test_an_answer_of_which_nothing_is_here_is_not_believed_and_nothing_of_a_patient_is_said(
    pacs: Pacs, series: tuple[Made, list[Path]]
) -> None:
    made, files = series

    def find(event: Any) -> Iterator[Any]:
        for number in range(3):
            named = Dataset()
            named.SOPInstanceUID, named.PatientName = f"1.2.3.{number}", "Phantom^Hostile"
            yield 0xFF00, named
        yield 0, None

    with a_node(pacs.port, [(evt.EVT_C_FIND, find)], StudyRootQueryRetrieveInformationModelFind):
        pacs.store(files, pacs.sorter.port, "SORTER")
        pacs.sorter.wait_delivered(len(files))
        wait_until(lambda: pacs.unit().asked, 30, "an answer")
    assert pacs.unit().lists == {}
    assert pacs.unit().missing == frozenset()
    assert "answers with 3 images, none of which is here; it is not believed" in pacs.say("why", made.uid)
    journal = "".join(path.read_text() for path in pacs.sorter.spool.journal.iterdir())
    assert "Phantom" not in pacs.sorter.log.read_text() + journal
