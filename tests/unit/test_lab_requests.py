"""What a lab asks for in its own folder, and the pages that answer it: below its root, of its own series, done once."""

from __future__ import annotations

import datetime
import errno
import grp
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

from sorter.builtin import _path_lab
from sorter.builtin.path_target import PathTarget, mark
from sorter.cli.main import sorter as command
from sorter.deliver.target import Copied, Copies, LabLook, LabSeen, Wanted
from sorter.durable import Files
from sorter.errors import ConfigError, Held, TryLater
from sorter.labs.asking import Request, read_request, written
from sorter.labs.requests import Requests
from sorter.labs.scans import MOST_ROWS, Scans, line_of
from sorter.model import UnitKind
from sorter.spool import Spool, UnitSummary
from sorter.spool.labs import LabRecords
from sorter.spool.unit import DeliveryState
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.crash.scenario import as_file, data_set

# --- what a request says --------------------------------------------------------------------------------------------


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as said:
        read_request(text.encode(), "mine.toml")
    return said.value.faults


def test_the_flags_of_rename_are_its_keys() -> None:
    found = read_request(
        b'subject = ["A", "B,new"]\ndest = "pilot/2026"\nseries = "3,5-7"\nname = "flat"\nas = ""\nforce = true\n', "r"
    )
    assert [(each.text, each.new_name) for each in found.subjects] == [("A", ""), ("B", "new")]
    assert (found.dest, found.asked.choice.series, found.force) == ("pilot/2026", "3,5-7", True)


def test_a_name_with_a_comma_is_one_subject() -> None:
    assert [each.text for each in Request(subject="Doe, Jane", list=True).subjects] == ["Doe, Jane"]


def test_what_the_command_writes_is_what_is_read() -> None:
    asked = {"subject": 'O"Neill\\\x1b\n', "dest": "a b/ü", "as": "x", "list": False, "force": True, "series": ""}
    found = read_request(written(asked).encode(), "r")
    assert (found.subject, found.dest, found.as_, found.force) == (asked["subject"], "a b/ü", "x", True)


@pytest.mark.parametrize(
    "dest",
    ["..", "../x", "a/../b", "/etc", "~root", "a\\b", ".sorter", ".sorter/requests", "a/.hidden", "a//b", "x" * 300,
     "a\nb", "\u202eb", "/".join("abcdefghijklmnopq"), "a\0b"],
)  # fmt: skip
def test_no_destination_leaves_the_labs_folder(dest: str) -> None:
    [said] = faults(written({"subject": "A", "dest": dest}))
    assert said.startswith("mine.toml:2: dest: ")
    assert "no folder below the lab's own" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('dest = "x"', "mine.toml: subject: must be given"),
        ('subject = "A"', "mine.toml: dest: must be given"),
        ('subject = "@/etc/passwd"\ndest = "x"', "mine.toml:1: subject: a list is written here itself"),
        ('subject = "A"\ndest = "target:pacs"\nforce = true', "mine.toml:3: force: is for folders"),
        ('subject = "A\ndest = "x"', "mine.toml:1: this is not TOML: a text in quotes does not end in this line"),
        ('subject = "A"\ndest = "x"\nsince = "soon"', "mine.toml:3: since: "),
        ('subject = "A"\ndest = "x"\nstudy = "soon"', "mine.toml:3: study: 'soon' is no day"),
        ('subject = "A"\ndest = "x"\nseries = "9-3"', "mine.toml:3: series: in '9-3' the range 9-3 ends before"),
        ('subject = "A"\ndest = "x"\nname = "{subject.__class__}"', "mine.toml:3: name: "),
        ('subject = "A"\ndest = "x"\nname = "../{subject}/{InstanceNumber}.dcm"', "mine.toml:3: name: "),
        ('subject = "A"\ndest = "x"\nfrom = "/etc"', "mine.toml:3: from: there is no such key"),
        ('subject = "A"\ndest = "x"\nlab = "other"', "mine.toml:3: lab: there is no such key"),
        ('subject = "A"\ndest = "x"\nas = 3', "mine.toml:3: as: must be text"),
        ("subject = []\nlist = true", "mine.toml:1: subject"),
        ("subject = [" + '"A",' * 2000 + "]\nlist = true", "mine.toml:1: subject"),
        ("[", "mine.toml:1: this is not TOML"),
        ("\0", "mine.toml:1: this is not TOML"),
    ],
)
def test_every_fault_is_told_with_its_line(text: str, says: str) -> None:
    assert faults(text)[0].startswith(says)


# --- the lab's corner -----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "lab"
    root.mkdir()
    mark(root, Files())
    return root


class Given:
    """A `Source` of texts."""

    def __init__(self, folder: Path, texts: list[bytes]) -> None:
        self.folder, self.texts, self.asked = folder, texts, 0

    def __call__(self, index: int) -> int:
        self.asked += 1
        path = self.folder / f"given-{index}"
        path.write_bytes(self.texts[index])
        return os.open(path, os.O_RDONLY)  # the test's process ends soon enough

    def will_need(self, indices: object) -> None:
        """Nothing is fetched ahead."""


def wanted(name: str, data: bytes) -> Wanted:
    return Wanted(name, hashlib.sha256(data).hexdigest(), len(data), "x")


def look(
    root: Path, target: PathTarget | None = None, answered: dict[str, str] | None = None, **pages: bytes
) -> tuple[LabSeen, int]:
    """What a look finds, and how many pages it had to be given. "__" in their names is "/", "_" is "."."""
    names = [each.replace("__", "/").replace("_", ".") for each in pages]
    source = Given(root.parent, list(pages.values()))
    job = LabLook("", answered or {}, tuple(map(wanted, names, pages.values())))
    return (target or PathTarget({"root": str(root)})).look_at_lab(job, source), source.asked


ASK = b'subject = "A"\ndest = "x"\n'


def test_a_request_is_brought_until_it_was_answered(root: Path) -> None:
    look(root)
    (root / ".sorter/requests/mine.toml").write_bytes(ASK)
    (root / ".sorter/requests/notes.txt").write_text("mine")
    [seen] = look(root)[0].requests
    assert (seen.name, bytes.fromhex(seen.text)) == ("mine.toml", ASK)
    [again] = look(root, answered={"mine.toml": seen.sha256})[0].requests
    assert (again.name, again.text, again.sha256) == ("mine.toml", "", seen.sha256)


def hostile_link(path: Path) -> None:
    (path.parents[2] / "secret").write_bytes(ASK)
    path.symlink_to(path.parents[2] / "secret")


def hostile_hard_link(path: Path) -> None:
    (path.parents[3] / "secret").write_bytes(ASK)
    path.hardlink_to(path.parents[3] / "secret")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (hostile_link, "symbolic link"),
        (hostile_hard_link, "second name"),
        (huge, "longer than 64 KiB"),
        (os.mkfifo, "is no file"),
        (Path.mkdir, "is no file"),
        (lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
    ],
)
def test_what_is_no_plain_file_of_the_lab_is_answered_unread(
    make: Callable[[Path], object], says: str, root: Path
) -> None:
    look(root)
    make(root / ".sorter/requests/bad.toml")
    [seen] = look(root)[0].requests
    assert says in seen.why
    assert seen.text == ""
    assert seen.sha256


def test_floods_are_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_path_lab, "MOST_REQUESTS", 20)
    monkeypatch.setattr(_path_lab, "MOST_NAMES", 60)
    monkeypatch.setattr(_path_lab, "MOST_OF_ALL", 10 * len(ASK))
    look(root)
    requests = root / ".sorter/requests"
    (requests / "Jürgen\u202e.toml").write_bytes(ASK)
    for number in range(25):
        (requests / f"{number:03}.toml").write_bytes(ASK)
    seen, _ = look(root)
    assert [each.name for each in seen.requests] == [f"{number:03}.toml" for number in range(10)]
    assert any("more than 20 requests" in each for each in seen.beside)
    assert any("1 file has a name" in each for each in seen.beside)
    for number in range(60):
        (requests / f"note-{number}").touch()
    assert len(seen.names or ()) == 25
    seen, _ = look(root)
    assert (seen.requests, seen.names) == ((), None)
    assert "more than 60 names" in seen.beside[0]


def test_pages_are_written_once_and_again_when_they_are_not_as_they_should(root: Path) -> None:
    target, corner = PathTarget({"root": str(root)}), root / ".sorter"
    assert look(root, target, scans_tsv=b"one", requests__mine_answer_txt=b"done\n")[1] == 2
    assert (corner / "scans.tsv").read_bytes() == b"one"
    assert (corner / "requests" / "mine.answer.txt").read_bytes() == b"done\n"
    assert look(root, target, scans_tsv=b"one")[1] == 0
    assert look(root, scans_tsv=b"one")[1] == 0  # a new worker compares
    assert look(root, target, scans_tsv=b"two")[1] == 1
    (corner / "scans.tsv").unlink()
    assert look(root, target, scans_tsv=b"two")[1] == 1
    (corner / "scans.tsv").write_bytes(b"TWO")
    assert look(root, target, scans_tsv=b"two")[1] == 1
    assert (corner / "scans.tsv").read_bytes() == b"two"


def test_nothing_in_the_place_of_a_page_or_of_its_folder_leads_out(root: Path, tmp_path: Path) -> None:
    victim, corner = tmp_path / "victim", root / ".sorter"
    victim.mkdir()
    (victim / "kept").write_bytes(b"kept")
    (corner / "requests").symlink_to(victim)
    for name in ("scans.tsv", ".scans.tsv.part"):
        (corner / name).symlink_to(victim / "kept")
    look(root, scans_tsv=b"one", requests__a_answer_txt=b"done\n")
    assert [each.name for each in victim.iterdir()] == ["kept"]
    assert (victim / "kept").read_bytes() == b"kept"
    assert not (corner / "requests").is_symlink()
    assert (corner / "scans.tsv").read_bytes() == b"one"
    (corner / "scans.tsv").unlink()
    (corner / "scans.tsv").hardlink_to(victim / "kept")
    look(root, scans_tsv=b"two!")
    assert (victim / "kept").read_bytes() == b"kept"
    assert (corner / "scans.tsv").read_bytes() == b"two!"
    (corner / "scans.tsv").unlink()
    (corner / "scans.tsv").mkdir()
    (corner / "scans.tsv" / "mine").touch()
    look(root, scans_tsv=b"three")
    assert (corner / "scans.tsv").read_bytes() == b"three"
    assert list(corner.glob("scans.tsv.folder-*/mine"))  # the lab's own is not removed


class Full(Files):
    """A mount without any room left."""

    def write(self, fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def copy(self, source: int, target: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ReadOnly(Full):
    """A mount that lets nobody write."""

    def mkdir(self, path: object, mode: int = 0, *, at: int | None = None) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("files", [Full(), ReadOnly()], ids=["full", "read-only"])
def test_where_no_page_can_be_written_the_lab_is_heard(root: Path, files: Files) -> None:
    (root / ".sorter" / "lab.toml").write_bytes(b'[naming]\nfolder = "x"\n')
    seen, _ = look(root, PathTarget({"root": str(root)}, files), scans_tsv=b"one")
    assert (seen.state, seen.unwritten) == ("new", ("scans.tsv",))
    assert "sorter cannot write there" in seen.beside[0]
    assert look(root, scans_tsv=b"one")[0].unwritten == ()


def test_what_was_answered_is_known_while_it_lies_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    records = LabRecords(spool.labs, spool.files)
    records.note_answered("memory", {"mine.toml": "digest"})
    requests = Requests(spool, records, None, lambda: None, lambda *_: ("", ()), lambda _: ())  # type: ignore[arg-type]
    requests.configure({"memory": "/lab"})
    requests.heed("memory", [], None)  # nobody could look
    requests.heed("memory", [], ("mine.toml",))  # it was not read this time
    assert records.answered("memory") == {"mine.toml": "digest"}
    requests.heed("memory", [], ())
    assert records.answered("memory") == {}


def test_pages_go_to_the_corner_alone(root: Path) -> None:
    with pytest.raises(Held):
        look(root, other__page_txt=b"x")


def test_the_corner_is_open_to_the_labs_group(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("to give a folder to a group that one is not in needs root")
    gid = next(each.gr_gid for each in grp.getgrall() if each.gr_gid not in (0, root.stat().st_gid))
    PathTarget({"root": str(root), "group": str(gid)}).look_at_lab(LabLook(), Given(root, []))
    for folder in (root / ".sorter", root / ".sorter/requests"):
        info = folder.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_gid) == (0o2775, gid)


# --- copies ---------------------------------------------------------------------------------------------------------


def copied(root: Path, files: dict[str, bytes], *, force: bool = False) -> Copied:
    job = Copies(tuple(wanted(name, data) for name, data in files.items()), force)
    return PathTarget({"root": str(root)}).copy_for_lab(job, Given(root.parent, list(files.values())))


def test_copies_never_go_over_what_is_there(root: Path) -> None:
    files = {"a/1.dcm": b"one", "a/2.dcm": b"two", "b/c/3.dcm": b"three", "4.dcm": b"four"}
    assert copied(root, files) == Copied(written=(0, 1, 2, 3))
    assert copied(root, files) == Copied(same=(0, 1, 2, 3))
    (root / "a/2.dcm").write_bytes(b"the lab's own")
    (root / "a/1.dcm").unlink()
    assert copied(root, files) == Copied(written=(0,), same=(2, 3), taken=(1,))
    assert (root / "a/2.dcm").read_bytes() == b"the lab's own"
    assert copied(root, files, force=True) == Copied(written=(1,), same=(0, 2, 3))
    assert (root / "a/2.dcm").read_bytes() == b"two"
    assert not list(root.rglob("*.part"))
    assert not [each for each in root.iterdir() if each.name.startswith(".sorter-")]


def test_copies_that_are_there_are_durable_when_that_is_said(root: Path) -> None:
    """Who made them may have died before he had synced the folders."""

    class Syncing(Files):
        synced: ClassVar[list[int]] = []

        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            self.synced.append(os.fstat(fd).st_ino)

    files = {"a/b/1.dcm": b"one"}
    copied(root, files)
    job = Copies((wanted("a/b/1.dcm", b"one"),))
    assert PathTarget({"root": str(root)}, Syncing()).copy_for_lab(job, Given(root.parent, [])).same == (0,)
    paths = (root / "a/b/1.dcm", root / "a/b", root / "a", root)
    assert {path.stat().st_ino for path in paths} <= set(Syncing.synced)


def test_links_are_neither_followed_nor_replaced(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "out").symlink_to(outside)
    with pytest.raises(Held):
        copied(root, {"out/1.dcm": b"one"})
    (outside / "x").write_bytes(b"theirs")
    (root / "a").mkdir()
    (root / "a/1.dcm").symlink_to(outside / "x")
    for force in (False, True):
        assert copied(root, {"a/1.dcm": b"one"}, force=force) == Copied(taken=(0,))
    assert (outside / "x").read_bytes() == b"theirs"
    assert [each.name for each in outside.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", ".sorter/id", "a/.sorter-1/x", "a/..", "a/\0", "a/.sorter"]
)
def test_no_name_leaves_the_root_or_takes_sorters_own(root: Path, name: str) -> None:
    with pytest.raises(Held):
        copied(root, {name: b"one"})


def test_a_root_that_is_away_is_no_place_for_copies(root: Path) -> None:
    (root / ".sorter").rename(root / "away")
    with pytest.raises(TryLater):
        copied(root, {"a/1": b"one"})


# --- scans.tsv ------------------------------------------------------------------------------------------------------


def summary(key: str = "k1", lab: str | None = "memory", state: str = "delivered", **more: str) -> UnitSummary:
    there = DeliveryState("dicom", lab or "", "delivered", "", "S1/20260105_1011/003_T1")
    values = {"subject": "S1", "study_date": "20260105", "number": "3", "description": "T1", "verdict": "listed"}
    deliveries = (there,) if state == "delivered" else ()
    return UnitSummary(
        key, UnitKind.SERIES, "1", ("1.1",), state, lab=lab, images=5, deliveries=deliveries, **{**values, **more}  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_line_says_where_and_why() -> None:
    assert line_of(summary()) == "2026-01-05\tS1\t\t3 T1\t5\tlisted\tS1/20260105_1011/003_T1\t\n"
    assert line_of(summary(state="held", why="a person holds it")).endswith("\tlisted\t\ta person holds it\n")


def test_no_value_breaks_a_line_or_is_a_formula() -> None:
    cells = line_of(summary(subject="=cmd|' /C calc'!A0", description="a\tb\nc\x1b[2J\u202e", session="+1")).split("\t")
    assert len(cells) == 8
    assert cells[1].startswith("'=")
    assert cells[2] == "'+1"
    assert cells[3] == "3 a b c [2J"


def test_the_table_is_written_once_for_all_that_changed(tmp_path: Path) -> None:
    ready = False
    scans = Scans(LabRecords(tmp_path, Files()), lambda: ready)
    scans.configure(["memory", "other"])
    assert scans.pages("memory") == []  # half a table would answer wrong
    ready = True
    for number in range(50):
        scans.heed(summary(f"k{number}", study_date=f"202601{number % 28 + 1:02}"))
    [page] = scans.pages("memory")
    written_at = (tmp_path / "memory/pages/scans.tsv").stat().st_ino
    scans.heed(summary("k1", study_date="20260102"))
    assert scans.pages("memory") == [page]
    assert (tmp_path / "memory/pages/scans.tsv").stat().st_ino == written_at
    scans.heed(summary("k1", lab="other"))  # it was another's
    scans.heed(summary("k2", state="withdrawn"))
    assert scans.pages("memory") != [page]
    lines = (tmp_path / "memory/pages/scans.tsv").read_text().splitlines()
    assert len(lines) == 1 + 48
    assert lines[1].split("\t")[0] == "2026-01-28"  # the newest first
    scans.pages("other")
    assert len((tmp_path / "other/pages/scans.tsv").read_text().splitlines()) == 2


def test_the_newest_are_kept_of_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sorter.labs.scans.MOST_ROWS", 10)
    assert MOST_ROWS > 10
    scans = Scans(LabRecords(tmp_path, Files()), lambda: True)
    for number in range(50):
        day = datetime.date(2000, 1, 1) + datetime.timedelta(days=number)
        scans.heed(summary(f"k{number}", study_date=f"{day:%Y%m%d}"))
    scans.pages("memory")
    lines = (tmp_path / "memory/pages/scans.tsv").read_text().splitlines()[1:]
    assert len(lines) == 10
    assert lines[0].startswith("2000-02-19")
    assert len(scans._whose) <= 11


# --- in a sorter that runs ------------------------------------------------------------------------------------------

COUNT = 3
CONFIG = """
[delivery]
look_every = 0.1

[completion]
study = 1

[labs.memory]
match = ["PatientID=MINE*"]
products = ["dicom"]
on_demand = ["archive"]

[targets.archive]
kind = "path"
root = "archive"

[labs.other]
match = ["PatientID=THEIRS*"]
products = ["dicom"]
"""


@pytest.fixture(scope="module")
def sorter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSorter]:
    with RunningSorter(tmp_path_factory.mktemp("site") / "root", quiet=0.3, config=CONFIG) as running:
        for study, subject in (("1.2.7", "MINE01"), ("1.2.8", "THEIRS01")):
            for number in range(1, COUNT + 1):
                image = as_file(data_set(number, subject=subject, study=study))
                (running.spool.incoming / f"{subject}-{number}.dcm").write_bytes(image)
        running.wait_delivered(2 * COUNT)
        yield running


def answer(sorter: RunningSorter, name: str, text: str) -> str:
    folder = sorter.labs / "memory/.sorter/requests"
    wait_until(folder.exists, 60)
    (folder / f"{name}.toml").write_text(text)
    found = folder / f"{name}.answer.txt"
    wait_until(found.exists, 60, f"the answer to {name}")
    return found.read_text()


def tree(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def test_a_request_is_answered_and_done_once(sorter: RunningSorter) -> None:
    mine = sorter.labs / "memory"
    said = answer(sorter, "flat", 'subject = "mine*"\ndest = "pilot/2026"\nname = "flat"\nas = "P01"\n')
    assert said.startswith("done\n")
    assert f"{COUNT} images of 1 series were copied to pilot/2026; 0 were there already." in said
    assert 'subject = "mine*"' in said
    assert len(tree(mine / "pilot")) == COUNT
    assert all(each.startswith("2026/P01_") for each in tree(mine / "pilot"))
    [unit] = [each for each in sorter.series() if each.lab == "memory"]
    assert b"pilot/2026/P01" in (sorter.spool.unit_folder(unit.key) / "exports.jsonl").read_bytes()
    page = mine / ".sorter/requests/flat.answer.txt"
    answers = sorter.spool.labs / "memory/answers"
    wait_until(lambda: not list(answers.iterdir()), 60, "sorter to know that the lab has its answer")
    for each in (*(mine / "pilot").rglob("*.dcm"), page):
        each.unlink()
    sorter.stop()
    sorter.start()
    assert answer(sorter, "again", 'subject = "MINE01"\nlist = true\n').startswith("done\n")
    assert not page.exists()  # it was told; nobody does it a second time
    assert not tree(mine / "pilot")


def test_a_lab_gets_its_own_series_alone(sorter: RunningSorter) -> None:
    said = answer(sorter, "theirs", 'subject = "THEIRS*"\ndest = "x"\n')
    assert said.startswith("not done\n")
    assert "no series of this lab fits" in said
    everything = answer(sorter, "every", 'subject = "*"\nlist = true\n')
    assert "MINE01" in everything
    assert "THEIRS01" not in everything.partition("This answers")[0]
    assert not (sorter.labs / "memory" / "x").exists()


def test_what_would_be_overwritten_and_what_is_wrong_is_said(sorter: RunningSorter) -> None:
    mine = sorter.labs / "memory"
    assert answer(sorter, "dry", 'subject = "MINE01"\ndest = "y"\ndry_run = true\n').startswith("done\n")
    assert not (mine / "y").exists()
    assert answer(sorter, "one", 'subject = "MINE01"\ndest = "y"\nname = "flat"\n').startswith("done\n")
    first = next((mine / "y").rglob("*.dcm"))
    first.write_bytes(b"the lab's own")
    said = answer(sorter, "two", 'subject = ["MINE01", "NOBODY"]\ndest = "y"\nname = "flat"\n')
    assert said.startswith("done in part\n")
    assert f"not overwritten: y/{first.name}" in said
    assert "not found: NOBODY" in said
    assert first.read_bytes() == b"the lab's own"
    assert "bad.toml:2: dest: " in answer(sorter, "bad", 'subject = "MINE01"\ndest = "../other"\n')
    (mine / "out").symlink_to(sorter.labs / "other")
    before = tree(sorter.labs / "other")
    said = answer(sorter, "link", 'subject = "MINE01"\ndest = "out"\n')
    assert said.startswith("not done\n")
    assert "a link where a folder belongs" in said
    assert [each for each in tree(sorter.labs / "other") if ".dcm" in each] == [
        each for each in before if ".dcm" in each
    ]


def test_a_request_reaches_the_targets_that_the_lab_was_granted(sorter: RunningSorter) -> None:
    (sorter.root / "archive").mkdir()
    mark(sorter.root / "archive", Files())
    said = answer(sorter, "archive", 'subject = "MINE01"\ndest = "target:archive/pilot"\nname = "flat"\n')
    assert said.startswith("done\n")
    assert f"{COUNT} images of 1 series are copied to target:archive/pilot" in said
    wait_until(lambda: len([each for each in tree(sorter.root / "archive/pilot") if each[0] != "."]) == COUNT, 60)
    [unit] = [each for each in sorter.series() if each.lab == "memory"]
    told = sorter.spool.unit_folder(unit.key) / "story.jsonl"
    wait_until(lambda: "in pilot, as a request file of lab memory had asked" in told.read_text(), 60)
    for name, dest in (
        ("a-lab", "target:other"),
        ("no-target", "target:nowhere/x"),
        ("no-folder", "target:archive/../x"),
    ):
        said = answer(sorter, name, f'subject = "MINE01"\ndest = "{dest}"\n')
        assert said.startswith("not done\n"), said
    assert "is no target of your labs" in answer(sorter, "others-target", 'subject = "MINE01"\ndest = "target:other"\n')
    assert "can be no folder of a target" in said
    assert not [each for each in (sorter.labs / "memory").iterdir() if each.name.startswith("target")]


def test_the_pages_of_each_lab_are_current(sorter: RunningSorter) -> None:
    corner = sorter.labs / "memory/.sorter"
    wait_until(lambda: "MINE01" in (corner / "scans.tsv").read_text(), 60)
    titles, line = (corner / "scans.tsv").read_text().splitlines()
    row = dict(zip(titles.split("\t"), line.split("\t"), strict=True))
    assert (sorter.labs / "memory" / row["where"]).is_dir()
    assert (row["subject"], row["why"]) == ("MINE01", "")
    wait_until(lambda: (corner / "NEWS.txt").exists() and "MINE01" in (corner / "NEWS.txt").read_text(), 60)
    assert "THEIRS" not in (corner / "NEWS.txt").read_text() + (corner / "scans.tsv").read_text()
    assert "THEIRS01" in (sorter.labs / "other/.sorter/scans.tsv").read_text()


def test_the_command_asks_by_a_file_where_it_sees_no_more(
    sorter: RunningSorter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder without a configuration, and without a socket: as on any machine that mounts the lab's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sorter.cli.common.SYSTEM_SOCKET", tmp_path / "none")
    monkeypatch.setattr("sorter.config.reading.SYSTEM_CONFIG", tmp_path / "none")
    monkeypatch.delenv("SORTER_SOCKET", raising=False)
    monkeypatch.setattr("sorter.cli.by_letter._LOOK", 0.05)
    dest = sorter.labs / "memory" / "by letter"
    told = CliRunner().invoke(command, ["rename", "MINE01", str(dest), "--name", "flat"])
    assert told.exit_code == 0, told.output
    assert "were copied to by letter" in told.output
    assert len(tree(dest)) == COUNT
    assert not [each for each in tree(sorter.labs / "memory/.sorter/requests") if each[:2] == "20"]
    told = CliRunner().invoke(command, ["rename", "THEIRS01", str(dest)])
    assert told.exit_code == 1
    assert "no series of this lab fits" in told.output
    told = CliRunner().invoke(command, ["rename", "MINE01", str(tmp_path / "nowhere")])
    assert "there is no configuration" in str(told.exception)
    told = CliRunner().invoke(command, ["rename", "MINE01", str(dest), "--list", "--json"])
    assert (json.loads(told.output)["answer"], "MINE01" in json.loads(told.output)["says"][1]) == ("done", True)


def test_in_the_labs_folder_it_is_listed_told_and_claimed(
    sorter: RunningSorter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sorter.labs / "memory")
    monkeypatch.setattr("sorter.cli.common.SYSTEM_SOCKET", tmp_path / "none")
    monkeypatch.setattr("sorter.config.reading.SYSTEM_CONFIG", tmp_path / "none")
    monkeypatch.delenv("SORTER_SOCKET", raising=False)
    monkeypatch.setattr("sorter.cli.by_letter._LOOK", 0.05)

    def run(*words: str, code: int = 0) -> str:
        told = CliRunner().invoke(command, words)
        assert told.exit_code == code, told.output
        return told.output + str(told.exception or "")

    assert "MINE01" in run("list")
    assert [row["subject"] for row in json.loads(run("list", "mine*", "--json"))] == ["MINE01"]
    assert "no series of THEIRS01 that fits" in run("list", "THEIRS01", code=1)
    assert "MINE01" in run("rename", "MINE01", "--list")
    assert "dicom at memory: delivered to MINE01/" in run("why", "MINE01")
    assert "no series of this lab fits" in run("why", "THEIRS01", code=1)
    said = [run("claim", what).replace(what, "") for what in ("NOBODY7", "THEIRS01")]
    assert said[0] == said[1], "nothing is told of what there is"
    assert "claim a subject, a study or a series" in run("claim", "*", code=1)
    assert "leave out the rest" in run("claim", "NOBODY7", "--lab", "memory", code=1)
    monkeypatch.setattr("sorter.durable.Files.exists", _closed)
    assert "there is no configuration" in run("list", code=1)


def _closed(*_: object, **__: object) -> bool:
    raise PermissionError(13, "Permission denied")


def test_what_goes_on_in_the_worker_needs_little(sorter: RunningSorter) -> None:
    for pid in sorter.workers():
        pages = Path(f"/proc/{pid}/smaps_rollup").read_text()
        used = next(int(line.split()[1]) for line in pages.splitlines() if line.startswith("Pss:"))
        assert used <= 25_000, pages
