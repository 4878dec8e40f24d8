"""From the last image to the lab's folder, with real senders, beside Orthanc and a folder timer in the same run.

The same files go to sorter, to Orthanc, which calls a series stable after 60 s (`StableAge`), and to DCMTK's storescp,
whose folders are watched by a timer of 60 s. The images are those of a real GE time series under new UIDs; three copies
are sent first, so that sorter has seen that their count is right, and three whose sender then asks for commitment, so
that its lists have proved final. With SORTER_RESULTS=FOLDER the page is written there
as completion-latency.md.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid
from pynetdicom.sop_class import MRImageStorage

from conftest import Dcmtk
from sorter.testing.namespace import own_network
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.peers.orthanc import Orthanc
from tests.peers.sender import Sender
from tests.peers.test_commitment import Scanner, a_scanner

pytestmark = [pytest.mark.peers, pytest.mark.sample, pytest.mark.dcmtk, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
AGE = 60.0
"""Seconds without an image until the rivals call a series complete: the default of both Orthanc and mercure."""

CAP = 150.0
"""Seconds: sorter's longest wait here, after which a list has proved final; by default 15 minutes."""

WITHIN = 5.0
"""Seconds from the last image to the delivery, where sorter knows that it is the last."""


# --- what is sent ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A series under UIDs of its own, in a study of its own."""

    study: str
    series: str
    files: tuple[Path, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(MRImageStorage, path.stem) for path in self.files]


def copy(source: Path, into: Path, *, counted: bool) -> Copy:
    """The images of `source` anew, with the elements that give their number away, or without."""
    study, series = generate_uid(), generate_uid()
    folder = into / series
    folder.mkdir(parents=True)
    files = []
    for data in sorted(map(pydicom.dcmread, source.glob("*.dcm")), key=lambda each: int(each.InstanceNumber)):
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID = study, series, generate_uid()
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        if not counted:
            data.pop("NumberOfTemporalPositions", None)
            data.pop("ImagesInAcquisition", None)
        files.append(folder / f"{data.SOPInstanceUID}.dcm")
        data.save_as(files[-1])
    return Copy(study, series, tuple(files))


# --- who sends it ---------------------------------------------------------------------------------------------------

Send = Callable[[Sequence[Path], int], float]
"""Sends files to a port of this machine; the time (monotonic seconds) of the answer to the last one."""


def storescu(dcmtk: Dcmtk, calling: str, *, each_alone: bool = False) -> Send:
    """DCMTK: one association, or one for each image as GE does."""

    def push(files: Sequence[Path], port: int) -> float:
        command = dcmtk.command("storescu", "-v", "-aet", calling, "-aec", "SORTER", "127.0.0.1", port, *files)
        last, answered = 0.0, 0
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dcmtk.environment()
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if "Received Store Response (Success)" in line:
                    last, answered = time.monotonic(), answered + 1
        assert (running.returncode, answered) == (0, len(files))
        return last

    def send(files: Sequence[Path], port: int) -> float:
        return max(push([path], port) for path in files) if each_alone else push(files, port)

    return send


def pynetdicom(calling: str) -> Send:
    """One association of the library."""

    def send(files: Sequence[Path], port: int) -> float:
        sender = Sender(ae_title=calling)
        images = [pydicom.dcmread(each) for each in files]
        for sop_class, syntax in {(each.SOPClassUID, each.file_meta.TransferSyntaxUID) for each in images}:
            sender.add_requested_context(sop_class, syntax)
        association = sender.associate("127.0.0.1", port, ae_title="SORTER")
        assert association.is_established
        answers = [(association.send_c_store(each).Status, time.monotonic()) for each in images]
        association.release()
        assert {status for status, _ in answers} == {0}
        return answers[-1][1]

    return send


# --- who receives it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """`at` (monotonic seconds) it was said that a series is complete, or delivered, as it was then."""

    at: float
    images: int
    verdict: str = ""


class Rule:
    """Looks, again and again, at what one receiver says of its series, by SeriesInstanceUID or StudyInstanceUID."""

    def __init__(self, look: Callable[[Rule], None]) -> None:
        self.said: dict[str, list[Word]] = {}
        self._stop = threading.Event()
        self._look = look
        self._thread = threading.Thread(target=self._run)

    def note(self, uid: str, images: int, verdict: str = "") -> None:
        words = self.said.setdefault(uid, [])
        if not words or (words[-1].images, words[-1].verdict) != (images, verdict):
            words.append(Word(time.monotonic(), images, verdict))

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            with contextlib.suppress(FileNotFoundError):  # replaced in this moment
                self._look(self)

    def __enter__(self) -> Rule:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def delivered_by(sorter: RunningSorter) -> Rule:
    """The receipt is durable."""

    def look(rule: Rule) -> None:
        for each in sorter.series():
            if each.state == "delivered":
                rule.note(each.series_uids[0], each.images, each.verdict)

    return Rule(look)


def stable_in(orthanc: Orthanc) -> Rule:
    """Its change StableSeries."""
    seen = 0

    def look(rule: Rule) -> None:
        nonlocal seen
        found = orthanc.ask("GET", f"/changes?since={seen}&limit=100")
        for change in found["Changes"]:
            if change["ChangeType"] == "StableSeries":
                series = orthanc.ask("GET", f"/series/{change['ID']}")
                rule.note(series["MainDicomTags"]["SeriesInstanceUID"], len(series["Instances"]))
        seen = found["Last"]

    return Rule(look)


def timer_on(folder: Path) -> Rule:
    """A folder of a study is complete when it has had no new file for so long."""
    have: dict[str, tuple[int, float]] = {}

    def look(rule: Rule) -> None:
        now = time.monotonic()
        for below in folder.iterdir():
            study, count = below.name.rpartition("_")[2], len(os.listdir(below))
            if have.get(study, (0, 0.0))[0] != count:
                have[study] = count, now
            if count and now - have[study][1] >= AGE:
                rule.note(study, count)

    return Rule(look)


@pytest.fixture(scope="module")
def network() -> Generator[None, None, None]:
    """Orthanc and storescp listen on all addresses."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace of one's own needs root")
    with own_network():
        yield


@dataclass
class Site:
    """The three of them, with those who look."""

    sorter: RunningSorter
    delivered: Rule
    stable: Rule
    timer: Rule
    folder: Path  # storescp's
    storescp: int


@pytest.fixture
def scanner(network: None) -> Generator[Scanner, None, None]:
    with a_scanner() as scanner:
        yield scanner


@pytest.fixture
def site(scanner: Scanner, dcmtk: Dcmtk, tmp_path: Path) -> Generator[Site, None, None]:
    config = scanner.config(strangers="true") + '\n[labs.scans]\nmatch = ["Modality=MR"]\nproducts = ["dicom"]\n'
    config += f"\n[completion]\ncap = {CAP}\n"
    folder = tmp_path / "storescp"
    folder.mkdir()
    orthanc = Orthanc(tmp_path / "orthanc", StableAge=int(AGE))
    command = dcmtk.command("storescp", "-od", folder, "--sort-on-study-uid", "study", "11113")
    storescp = subprocess.Popen(command, env=dcmtk.environment())
    try:
        with (
            RunningSorter(tmp_path / "sorter", quiet=30, config=config) as sorter,
            delivered_by(sorter) as delivered,
            stable_in(orthanc) as stable,
            timer_on(folder) as timer,
        ):
            yield Site(sorter, delivered, stable, timer, folder, 11113)
    finally:
        storescp.terminate()
        storescp.wait(10)
        orthanc.close()


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One way of sending. `last`: when the last image was answered by sorter, by Orthanc, by storescp."""

    title: str
    expected: str
    copy: Copy
    last: dict[str, float] = field(default_factory=dict)

    def send(self, site: Site, send: Send, files: Sequence[Path], then: Callable[[], object] = lambda: None) -> None:
        """To all three; sorter gets what its sender does `then`, too."""
        self.last["sorter"] = send(files, site.sorter.port)
        then()
        self.last["Orthanc"] = send(files, Orthanc.DICOM)
        self.last["timer"] = send(files, site.storescp)

    def said(self, site: Site) -> dict[str, list[Word]]:
        series, study = self.copy.series, self.copy.study
        return {
            "sorter": site.delivered.said.get(series, []),
            "Orthanc": site.stable.said.get(series, []),
            "timer": site.timer.said.get(study, []),
        }

    def told(self, site: Site, images: int) -> bool:
        """Did the rivals call it complete with so many?"""
        words = self.said(site)
        return all(
            words[each] and words[each][-1].images == images for each in ("Orthanc", "timer") if each in self.last
        )

    def row(self, site: Site) -> Row:
        words = self.said(site)
        whole = len(self.copy.files)
        waits = {each: words[each][-1].at - at for each, at in self.last.items()}
        early = {each: sum(word.images < whole for word in words[each]) for each in self.last}
        return Row(self, words["sorter"][-1].verdict, waits, early)


@dataclass(frozen=True)
class Row:
    case: Case
    verdict: str
    waits: dict[str, float]
    early: dict[str, int]

    def __str__(self) -> str:
        cells = [
            f"{self.waits[each]:.1f}{' **early before**' * bool(self.early[each])}" if each in self.waits else "–"
            for each in ("sorter", "Orthanc", "timer")
        ]
        return f"| {self.case.title} | {len(self.case.copy.files)} | {self.verdict} | {' | '.join(cells)} |"


def teach(site: Site, source: Path, into: Path, scanner: Scanner, send: Send) -> list[Copy]:
    """Three series whose counts are right, and three whose lists are; returns the latter.

    From then on such counts are believed at once, and such lists when nothing came for the longest wait.
    """
    committed = [copy(source, into, counted=False) for _ in range(3)]
    for each in committed:
        pynetdicom("SCANNER")(each.files, site.sorter.port)
        assert scanner.ask(site.sorter.port, each.pairs)[0] == 0
    counted = [copy(source, into, counted=True) for _ in range(3)]
    for each in counted:
        send(each.files, site.sorter.port)
    found = site.sorter.wait_delivered(sum(len(each.files) for each in committed + counted), 90)
    assert {each.verdict for each in found} == {"quiet"}
    return committed


def proved_final(site: Site, lists: Sequence[Copy]) -> bool:
    found = {each.series_uids[0]: each.verdict for each in site.sorter.series()}
    return all(found[each.series] == "listed" for each in lists)


@pytest.mark.timeout(900)
def test_what_is_known_to_be_whole_is_delivered_within_five_seconds(
    site: Site, scanner: Scanner, dcmtk: Dcmtk, sample: Path, tmp_path: Path
) -> None:
    source, into = sample / "data" / "nih-ge" / "mr_0004", tmp_path / "copies"
    taught = teach(site, source, into, scanner, storescu(dcmtk, "TEACHER"))

    def new(title: str, expected: str) -> Case:
        return Case(title, expected, copy(source, into, counted=expected == "counted"))

    paused = new("DCMTK storescu, a pause of more than 60 s, count in the header", "counted")
    cut = 3 * len(paused.copy.files) // 5
    paused.send(site, storescu(dcmtk, "PAUSES"), paused.copy.files[:cut])

    cases = [paused]
    for title, expected, send in (
        ("DCMTK storescu, one association, count in the header", "counted", storescu(dcmtk, "DCMTK")),
        ("pynetdicom, one association, count in the header", "counted", pynetdicom("PYNETDICOM")),
        (
            "DCMTK storescu, an association an image, count in the header",
            "counted",
            storescu(dcmtk, "GE", each_alone=True),
        ),
        ("DCMTK storescu, nothing known", "quiet", storescu(dcmtk, "SILENT")),
    ):
        cases.append(new(title, expected))
        cases[-1].send(site, send, cases[-1].copy.files)

    wait_until(lambda: paused.told(site, cut), AGE + 60, "the rivals to call it complete in the pause")
    paused.send(site, storescu(dcmtk, "PAUSES"), paused.copy.files[cut:])

    wait_until(lambda: proved_final(site, taught), 2 * CAP, "the lists of a sender to prove final")
    cases.append(new("pynetdicom, then Storage Commitment", "listed"))
    pairs, asked = cases[-1].copy.pairs, list[int]()
    cases[-1].send(
        site, pynetdicom("SCANNER"), cases[-1].copy.files, lambda: asked.append(scanner.ask(site.sorter.port, pairs)[0])
    )
    assert asked == [0]

    cases.append(new("a folder, by one rename", "listed"))
    move_in(cases[-1], site)

    for each in cases:
        wait_until(lambda each=each: each.told(site, len(each.copy.files)), AGE + 60, f"the rivals: {each.title}")

    rows = [each.row(site) for each in cases]
    table = page(rows)
    print(table)
    folder = os.environ.get("SORTER_RESULTS")
    if folder:
        Path(folder, "completion-latency.md").write_text(table)
    assert [row.verdict for row in rows] == [each.expected for each in cases]
    assert [row.case.title for row in rows if row.early["sorter"]] == []
    late = {row.case.title: row.waits["sorter"] for row in rows if row.verdict != "quiet"}
    assert max(late.values()) <= WITHIN, late
    assert rows[0].early == {"sorter": 0, "Orthanc": 1, "timer": 1}
    assert min(wait for row in rows for name, wait in row.waits.items() if name != "sorter") >= AGE - 1


def move_in(case: Case, site: Site) -> None:
    """Orthanc has no such folder."""
    parent = case.copy.files[0].parent
    beside = site.folder.parent / "beside" / f"study_{case.copy.study}"
    shutil.copytree(parent, beside)
    parent.rename(site.sorter.spool.incoming / case.copy.series)
    case.last["sorter"] = time.monotonic()
    beside.rename(site.folder / beside.name)
    case.last["timer"] = time.monotonic()


def page(rows: Sequence[Row]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    load = os.getloadavg()[0]
    return PAGE.format(
        datetime.date.today().isoformat(), commit.stdout.strip(), os.cpu_count(), load, "\n".join(map(str, rows))
    )


PAGE = """\
# From the last image to the lab's folder

Measured on {}, commit {}, {} processors, load {:.1f} at the end. Made by
`python3 packaging/run.py peers tests/peers/test_completion_latency.py` with SORTER_RESULTS=docs/results.

Seconds from the answer to the last image until sorter has delivered the whole series, receipt and all; until Orthanc
calls it stable (StableAge 60); until the folder where DCMTK's storescp puts it has had no new file for 60 s. All
receive the same files in the same run. *Early before*: it had been called complete before, too soon. Each series is a
copy of a real GE time series; three were sent first, to teach that the count in their headers is right, and three with
commitment, to teach that the lists of that sender are final (`cap` is 150 s here).

| sending | images | verdict | sorter, delivered | Orthanc, stable | 60 s folder timer |
|---|--:|---|--:|--:|--:|
{}
"""
