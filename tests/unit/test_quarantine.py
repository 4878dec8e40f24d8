"""Quarantine: the path is kept, nothing there ever takes another's place, no folder grows too far, no crash loses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest
from click.testing import CliRunner, Result
from hostile.bench import Life

from sorter.cli.main import sorter
from sorter.durable import Files
from sorter.spool import Spool
from sorter.spool import quarantine as quarantine_module
from sorter.spool.left_alone import MOST
from sorter.take.directory import Listed, listed
from sorter.testing.synthetic import Plan, localizer
from sorter.watch import Incoming, Taken
from sorter.watch.taken import facts, mark_of


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "spool", Files())
    made.create()
    return made


def aside(spool: Spool, origin: str, content: bytes = b"junk", reason: str = "a text, not an image") -> str:
    """Set a file aside that came by `origin`; its name in quarantine, without the day."""
    path = spool.taking / "x"
    path.write_bytes(content)
    target = spool.set_aside(path, reason, origin)
    assert target.read_bytes() == content
    assert not path.exists()
    return str(target.relative_to(spool.quarantine)).partition("/")[2]


def contents(folder: Path) -> list[bytes]:
    return sorted(each.read_bytes() for each in folder.rglob("*") if each.is_file() and ".reason" not in each.name)


# --- where it lies ----------------------------------------------------------------------------------------------------


def test_the_relative_path_and_the_reason_are_kept(spool: Spool) -> None:
    assert aside(spool, "incoming/disk/study 1/notes.txt") == "0001/incoming/disk/study_1/notes.txt"
    [found] = spool.aside.entries()
    assert (found.reason, found.origin) == ("a text, not an image", "incoming/disk/study 1/notes.txt")
    assert spool.aside.count() == 1


@pytest.mark.parametrize(
    "origin",
    [
        "incoming/../../../etc/passwd",
        "/etc/passwd",
        "incoming/" + "a/" * 2000 + "x",
        "incoming/" + "ä" * 4000,
        "incoming/\udcff\udcfe/\x00\n\x1b[2J",
        "incoming/.hidden/..",
        "",
        "incoming/CON/NUL.txt",
    ],
)
def test_whatever_the_path_says_it_lies_within_quarantine(spool: Spool, origin: str) -> None:
    aside(spool, origin)
    [found] = spool.aside.entries()
    assert found.origin == origin
    assert found.path.resolve().is_relative_to(spool.quarantine)
    assert all(len(part.encode()) <= 255 for part in found.path.parts)
    assert not [part for part in found.path.relative_to(spool.quarantine).parts if part.startswith(".")]


def test_nothing_takes_the_place_of_another(spool: Spool) -> None:
    """Same names, a file where a folder is and the other way round, names that look like reasons or parts."""
    origins = ["a/b", "a/b", "a b/b", "a_b/b", "a/b/c", "x/y/z", "x/y", "x/y", "n", "n.reason.json", "n.part", "n.part"]
    origins += ["n.reason.json/deep", "n.reason.json.reason.json", "m.reason.json", "m"]
    for number, origin in enumerate(origins):
        aside(spool, origin, str(number).encode())
    found = list(spool.aside.entries())
    assert sorted(each.path.read_bytes() for each in found) == sorted(
        str(each).encode() for each in range(len(origins))
    )
    assert sorted(each.origin for each in found) == sorted(origins)
    assert {origins[int(each.path.read_bytes())] for each in found} == {each.origin for each in found}


def test_the_same_file_again_after_a_crash_lies_there_once(spool: Spool) -> None:
    first = aside(spool, "incoming/d/x")
    again = Spool(spool.root, Files())
    assert aside(again, "incoming/d/x") == first
    assert spool.aside.count() == 1


def test_many_files_of_one_path_cost_no_more_than_the_first(tmp_path: Path) -> None:
    """An archive may hold as many, of one size; while they are set aside nothing else is taken."""

    class Counting(Files):
        opened_files = 0

        def open(self, *args: Any, **kwargs: Any) -> int:
            self.opened_files += 1
            return super().open(*args, **kwargs)

    files = Counting()
    spool = Spool(tmp_path / "spool", files)
    spool.create()
    costs = []
    for number in range(100):
        before = files.opened_files
        aside(spool, "incoming/a.zip/x", b"%04d" % number)
        costs.append(files.opened_files - before)
    assert max(costs[50:]) <= 2 * quarantine_module._MOST_NUMBERED + costs[0] + 2
    assert sorted(contents(spool.quarantine)) == [b"%04d" % number for number in range(100)]
    first = aside(spool, "incoming/a.zip/x", b"0099")
    assert aside(Spool(spool.root, Files()), "incoming/a.zip/x", b"0099") == first
    assert spool.aside.count() == 100


def test_no_folder_grows_beyond_its_limit(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "PER_FOLDER", 3)
    names = [aside(spool, f"incoming/d/{number}", str(number).encode()) for number in range(5)]
    spool = Spool(spool.root, Files())  # what today's folder holds is counted again
    names += [aside(spool, f"incoming/d/{number}", str(number).encode()) for number in range(5, 8)]
    assert [name[:4] for name in names] == ["0001"] * 3 + ["0002"] * 3 + ["0003"] * 2
    assert spool.aside.count() == 8


def test_files_of_an_older_layout_and_without_a_reason_are_found(spool: Spool) -> None:
    day = spool.quarantine / "2026-01-02"
    day.mkdir()
    (day / "incoming_disk_a.txt").write_bytes(b"1")
    (day / "incoming_disk_a.txt.reason.json").write_text('{"reason": "a text", "origin": "incoming/disk/a.txt"}')
    (day / "bare").write_bytes(b"2")
    (day / "torn").write_bytes(b"3")
    (day / "torn.reason.json").write_bytes(b'{"rea')
    (day / "orphan.reason.json").write_bytes(b"{}")
    assert [(each.name[11:], each.reason) for each in spool.aside.entries()] == [
        ("bare", "no reason was recorded"),
        ("incoming_disk_a.txt", "a text"),
        ("torn", "no reason was recorded"),
    ]


def test_counting_reads_no_reason(tmp_path: Path) -> None:
    class Deaf(Files):
        def read_file(self, *args: Any, **kwargs: Any) -> bytes:
            raise AssertionError("a reason was read")

    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    for number in range(10):
        aside(spool, f"incoming/{number}")
    assert Spool(spool.root, Deaf()).aside.count() == 10


# --- trying again -----------------------------------------------------------------------------------------------------


def test_what_is_put_back_has_the_path_it_came_by(spool: Spool) -> None:
    for origin in ("incoming/2024/a.txt", "incoming/again-0123456789ab/2024/b.txt", "received/w/s/c"):
        aside(spool, origin, origin.encode())
    assert spool.aside.put_back(spool.aside.entries(), spool.incoming) == 3
    [base] = spool.incoming.iterdir()
    assert base.name.startswith("again-")
    found = {str(each.relative_to(base)): each.read_bytes() for each in base.rglob("*") if each.is_file()}
    assert sorted(found) == ["2024/a.txt", "2024/b.txt", "received/w/s/c"]
    assert not list(spool.aside.entries())


@pytest.mark.parametrize("name", ["IM1.tmp", "x.download", "x.swp", "a/" * 90 + "x"], ids=["tmp", "web", "swp", "deep"])
def test_what_is_put_back_is_looked_at_whatever_it_is_called(spool: Spool, name: str) -> None:
    """In an archive it was looked at under that name."""
    aside(spool, f"incoming/a.zip/{name}")
    assert spool.aside.put_back(spool.aside.entries(), spool.incoming) == 1
    incoming = Incoming(spool.incoming, spool.files, Taken(spool.left / "incoming", spool.files))
    ready = [each for now in (10.0, 13.0, 16.0) for each in incoming.look(now).ready]
    assert len(ready) == 1


def test_two_days_of_one_name_are_both_put_back(spool: Spool) -> None:
    for day in ("2026-01-02", "2026-01-03"):
        folder = spool.quarantine / day / "0001" / "incoming" / "d"
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(day.encode())
    assert spool.aside.put_back(spool.aside.entries(), spool.incoming) == 2
    assert contents(spool.incoming) == [b"2026-01-02", b"2026-01-03"]
    assert list(spool.quarantine.iterdir()) == []  # the emptied folders of past days are gone


class PowerCut(Exception):
    pass


class Failing(Files):
    """The power goes before the effect number `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCut

    def link(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().link(*args, **kwargs)

    def unlink(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().unlink(*args, **kwargs)

    def mkdir(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().mkdir(*args, **kwargs)

    def fsync(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().fsync(*args, **kwargs)

    def write(self, *args: Any, **kwargs: Any) -> int:
        self._count()
        return super().write(*args, **kwargs)


def test_a_crash_at_any_effect_of_a_retry_loses_nothing(tmp_path: Path) -> None:
    at, ended = 0, False
    while not ended:
        at += 1
        spool = Spool(tmp_path / str(at), Files())
        spool.create()
        for number in range(3):
            aside(spool, f"incoming/d/{number}", str(number).encode())
        cut = Spool(spool.root, Failing(at))
        try:
            cut.aside.put_back(cut.aside.entries(), cut.incoming)
            ended = True
        except PowerCut:
            pass
        assert set(contents(spool.quarantine) + contents(spool.incoming)) == {b"0", b"1", b"2"}
    assert at > 10


def test_a_crash_at_any_effect_of_setting_aside_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    at, ended = 0, False
    while not ended:
        at += 1
        spool = Spool(tmp_path / str(at), Files())
        spool.create()
        path = spool.taking / "x"
        path.write_bytes(b"junk")
        try:
            Spool(spool.root, Failing(at)).set_aside(path, "why", "incoming/d/x")
            ended = True
        except PowerCut:
            assert path.exists() or spool.aside.count()
            if path.exists():
                Spool(spool.root, Files()).set_aside(path, "why", "incoming/d/x")
        [found] = spool.aside.entries()
        assert found.path.read_bytes() == b"junk"
        assert found.reason == "why"
    assert at > 5


# --- the command ------------------------------------------------------------------------------------------------------


def run(spool: Spool, *arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(sorter, ["quarantine", "--root", str(spool.root.parent), *arguments])
    assert result.exit_code == exit_code, result.output
    return result


def test_the_list_is_by_reason_and_bounded(spool: Spool) -> None:
    for number in range(20):
        aside(spool, f"incoming/d/{number}.txt", str(number).encode(), f"{number * 1000} bytes: larger than any image")
    aside(spool, "incoming/d/\x1b[2Jodd", b"x", "a text")
    said = run(spool).output
    assert "20  " in said
    assert "and 17 more" in said
    assert said.count("larger than any image") == 1
    assert "\x1b" not in said
    everything = json.loads(run(spool, "--json").output)
    assert len(everything) == 21
    assert [each["reason"] for each in json.loads(run(spool, "--reason", "A TEXT", "--json").output)] == ["a text"]


def test_show_tells_what_can_be_told(spool: Spool) -> None:
    name = aside(spool, "incoming/d/notes.txt", b"dear diary " * 20)
    [found] = spool.aside.entries()
    told = json.loads(run(spool, "show", found.name, "--json").output)
    assert told["size"] == 220
    assert told["from"] == "incoming/d/notes.txt"
    assert told["begins"].startswith("dear diary")
    assert len(told["sha256"]) == 64
    assert "set aside again" in told["now"]
    assert name in run(spool, "show", found.name).output
    run(spool, "show", "2020-01-01/none", exit_code=1)


def test_show_never_names_a_patient(spool: Spool) -> None:
    aside(spool, "incoming/d/image", localizer(Plan(patient_name="Canary^Kim", patient_id="CANARY")).files[0])
    [found] = spool.aside.entries()
    said = run(spool, "show", found.name).output
    assert "could be taken now" in said
    assert "anary" not in said.lower()


def test_the_place_may_be_named_before_or_after_the_subcommand(spool: Spool) -> None:
    aside(spool, "incoming/d/notes.txt")
    [found] = spool.aside.entries()
    place = ["--root", str(spool.root.parent)]
    for words in (["quarantine", *place, "show", found.name], ["quarantine", "show", found.name, *place]):
        result = CliRunner().invoke(sorter, words)
        assert result.exit_code == 0, result.output
        assert "notes.txt" in result.output
    assert CliRunner().invoke(sorter, ["quarantine", "show", "--help"]).exit_code == 0


def test_retry_by_name_by_folder_and_by_reason(spool: Spool) -> None:
    for origin, reason in (("incoming/d/a", "one"), ("incoming/d/b", "two"), ("incoming/e/c", "two"), ("f", "three")):
        aside(spool, origin, origin.encode(), reason)
    names = {each.origin: each.name for each in spool.aside.entries()}
    run(spool, "retry", exit_code=2)
    run(spool, "retry", "no/such", exit_code=1)
    run(spool, "retry", names["incoming/d/a"])
    assert contents(spool.incoming) == [b"incoming/d/a"]
    run(spool, "retry", "--reason", "TW*", str(Path(names["incoming/e/c"]).parent))
    assert contents(spool.incoming) == [b"incoming/d/a", b"incoming/e/c"]
    run(spool, "retry", "--all")
    assert spool.aside.count() == 0


def test_export_keeps_paths_and_writes_a_table(spool: Spool, tmp_path: Path) -> None:
    aside(spool, "incoming/d/a", b"1", "tab\there\nand a line")
    aside(spool, "incoming/d/deep/b", b"2", "two")
    run(spool, "export", str(tmp_path / "out"))
    rows = [row.split("\t") for row in (tmp_path / "out" / "reasons.tsv").read_text().splitlines()]
    assert rows[0] == ["file", "reason", "from", "at"]
    assert [row[1] for row in rows[1:]] == ["tab here and a line", "two"]
    assert [(tmp_path / "out" / row[0]).read_bytes() for row in rows[1:]] == [b"1", b"2"]
    assert spool.aside.count() == 2
    run(spool, "export", str(tmp_path / "out"), exit_code=1)


def test_status_says_what_may_not_be_removed(spool: Spool) -> None:
    (spool.incoming / "d").mkdir()
    for name in ("d/stuck", "d/other"):
        (spool.incoming / name).write_bytes(b"1")
    taken = Taken(spool.left / "incoming", Files())
    taken.add(mark_of("d/stuck", facts((spool.incoming / "d/stuck").lstat())))
    taken.keep()
    aside(spool, "incoming/x")
    result = CliRunner().invoke(sorter, ["status", "--root", str(spool.root.parent)])
    assert "1 file was set aside" in result.output
    assert "may not be removed" in result.output
    assert "d/stuck" in result.output
    assert "other" not in result.output
    as_json = CliRunner().invoke(sorter, ["status", "--json", "--root", str(spool.root.parent)])
    assert json.loads(as_json.output)["not_removable"] == ["d/stuck"]


DIRECTORIES = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests"


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-reordered"])
def test_show_compares_what_a_media_directory_lists_with_what_came(tmp_path: Path, name: str) -> None:
    """The images of the medium but two, as pydicom's own reader says."""
    life = Life(tmp_path / "spool")
    records = pydicom.dcmread(DIRECTORIES / "DICOMDIR").DirectoryRecordSequence
    images = {each.ReferencedSOPInstanceUIDInFile: each for each in records if "ReferencedFileID" in each}
    paths = {uid: DIRECTORIES.joinpath(*each.ReferencedFileID) for uid, each in images.items()}
    life.drop("medium/DICOMDIR", (DIRECTORIES / name).read_bytes())
    late = list(paths)[3:5]
    for number, (uid, path) in enumerate(paths.items()):
        if uid not in late:
            life.drop(f"medium/{number}", path.read_bytes())
    life.settle()
    [aside] = life.spool.aside.entries()
    said = json.loads(run(life.spool, "show", aside.name, "--json").output)["lists"]
    assert said.startswith("31 images of 13 series; 2 of them are not known here")
    assert all(uid in said for uid in late)
    for uid in late:
        life.drop(uid, paths[uid].read_bytes())
    life.settle()
    said = json.loads(run(life.spool, "show", aside.name, "--json").output)["lists"]
    assert said == "31 images of 13 series; all of them have come"


def test_a_media_directory_that_lies_says_nothing_wrong() -> None:
    tag = b"\x04\x00\x11\x15"
    hostile = tag + b"UI\xff\xff" + tag + b"UI\x04\x00../." + tag + b"\x00\xff\xff\xff" + tag + b"UI\x02\x001.2"
    assert listed(hostile + tag * 10_000 + tag[:-1]) == Listed((), (), ("1.",))


def test_status_names_what_is_left_where_it_is(spool: Spool) -> None:
    """While a sorter runs, for another process; no name moves a terminal's cursor, and none needs to be UTF-8."""
    folder = str(spool.incoming)
    for number in range(MOST + 1):
        spool.left_alone.note(f"{folder}/{number:05}", "a symbolic link")
    spool.left_alone.note(f"{folder}/00001", "")
    spool.left_alone.note(f"{folder}/\x1b[2J\udcff", "a named pipe")
    spool.left_alone.write()
    assert len(Spool(spool.root, Files()).left_alone.read()[1]) == MOST
    for number in range(MOST + 1):
        spool.left_alone.note(f"{folder}/{number:05}", "")
    spool.left_alone.write()
    assert Spool(spool.root, Files()).left_alone.read() == (1, [(f"{folder}/\x1b[2J\udcff", "a named pipe")])
    status = ["status", "--root", str(spool.root.parent)]
    assert "a named pipe" not in CliRunner().invoke(sorter, status).output, "nobody looks after it now"
    lock = spool.lock()
    try:
        said, told = CliRunner().invoke(sorter, status), CliRunner().invoke(sorter, [*status, "--json"])
    finally:
        os.close(lock)
    assert f"1 thing that was found is left where it is:\n          {folder}/�[2J�: a named pipe" in said.output
    assert json.loads(told.output)["left_alone"]["count"] == 1
