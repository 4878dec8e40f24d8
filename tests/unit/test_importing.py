"""An import without a sorter beside: how an archive is cut, what is remembered, what is never touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sorter.cli.main import sorter
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.importing import Import, Pace, Tally, walk
from sorter.importing.walk import Found, Parcel, Walk
from sorter.spool import Spool
from sorter.take.received import ARRIVALS
from sorter.testing.synthetic import Plan, localizer, write_session
from sorter.watch import Taken
from sorter.watch.names import is_temporary


@pytest.fixture(autouse=True)
def _stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command lets everybody else go first, for ever: in this process all later tests would."""
    monkeypatch.setattr("sorter.cli.importing._step_back", lambda: None)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return made(tmp_path / "spool")


def made(root: Path, files: Files | None = None) -> Spool:
    Spool(root, Files()).create()
    return Spool(root, files or Files())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three studies, one of them with two series."""
    root = tmp_path / "archive"
    for folder, count in (("1999/a", 3), ("1999/b/1", 2), ("1999/b/2", 2), ("2004/c", 4)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number:02d}").write_bytes(f"{folder} {number}".encode())
    return root


def parcels(root: Path, done: Container[bytes] = frozenset()) -> list[Parcel]:
    return list(Walk(root, Files(), done, lambda *_: None).parcels())


def paths(parcel: Parcel, root: Path) -> list[str]:
    return [os.path.relpath(each.path, root) for each in parcel.files]


def everything(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Of every file: content, mtime, mode."""
    files = (each for each in sorted(root.rglob("*")) if each.is_file())
    return {
        str(each.relative_to(root)): (each.read_bytes(), each.stat().st_mtime_ns, each.stat().st_mode) for each in files
    }


# --- the walk ---------------------------------------------------------------------------------------------------------


def test_folders_stay_whole_and_go_together_while_they_fit(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MOST", 7)
    found = parcels(archive)
    assert [sorted({os.path.dirname(each) for each in paths(parcel, archive)}) for parcel in found] == [
        ["1999/a", "1999/b/1", "1999/b/2"],
        ["2004/c"],
    ]
    assert all(parcel.whole for parcel in found)


def test_a_large_folder_is_cut_and_not_called_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MOST", 10)
    (tmp_path / "flat").mkdir()
    for number in range(64):
        (tmp_path / "flat" / f"{number:03d}").write_bytes(b"x")
    found = parcels(tmp_path / "flat")
    assert sum(parcel.count for parcel in found) == 64
    assert max(parcel.count for parcel in found) <= 10
    assert not any(parcel.whole for parcel in found)


def test_one_more_file_in_a_large_folder_changes_only_what_is_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "MOST", 40)
    (tmp_path / "flat").mkdir()
    for number in range(400):
        (tmp_path / "flat" / f"{number:05d}").touch()
    before = parcels(tmp_path / "flat")
    done = {portion.mark for parcel in before for portion in parcel.portions}
    (tmp_path / "flat" / "00070a").touch()
    changed = {path for parcel in parcels(tmp_path / "flat", done) for path in paths(parcel, tmp_path / "flat")}
    assert "00070a" in changed
    assert len(changed) <= 200


def test_parcels_are_cut_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "LARGE", 100)
    for number, size in enumerate((40, 40, 40, 400, 10)):
        (tmp_path / f"{number}").write_bytes(b"x" * size)
    assert [paths(parcel, tmp_path) for parcel in parcels(tmp_path)] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_a_very_large_folder_is_not_held_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_LISTED", 7)
    for number in range(50):
        (tmp_path / f"{number:03d}").touch()
        (tmp_path / f"d{number:03d}").mkdir()
        (tmp_path / f"d{number:03d}" / "x").touch()
    assert len({each.path for parcel in parcels(tmp_path) for each in parcel.files}) == 100


def test_what_is_no_file_is_left_out_and_said(archive: Path, spool: Spool) -> None:
    os.symlink("/etc/passwd", archive / "link")
    os.symlink(archive, archive / "1999" / "loop")
    os.mkfifo(archive / "pipe")
    shutil.move(spool.root, archive / "spool")
    said: dict[str, str] = {}
    found = Walk(archive, Files(), frozenset(), lambda path, why, _: said.update({os.path.relpath(path, archive): why}))
    found.keep_out_of(archive / "spool")
    assert sum(parcel.count for parcel in found.parcels()) == 11
    assert {path: why.partition(";")[0] for path, why in said.items()} == {
        "link": "a symbolic link",
        "1999/loop": "a symbolic link",
        "pipe": "a named pipe, not a file",
        "spool": "sorter's own spool, or a folder that contains itself",
    }


def test_folders_too_deep_are_left_out_and_said(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 70)
    deep.mkdir(parents=True)
    (deep / "x").touch()
    (tmp_path / "d" / "y").touch()
    said: list[tuple[str, bool]] = []
    found = Walk(tmp_path, Files(), frozenset(), lambda _, why, failed: said.append((why, failed)))
    assert [each.name for parcel in found.parcels() for each in parcel.files] == ["y"]
    assert said == [("folders within folders, more than 58 deep", True)]


def test_a_change_is_noticed_and_nothing_else_is_read_again(archive: Path) -> None:
    done = {portion.mark for parcel in parcels(archive) for portion in parcel.portions}
    assert parcels(archive, done) == []
    (archive / "1999/a/00").write_bytes(b"corrected")
    assert {os.path.dirname(path) for parcel in parcels(archive, done) for path in paths(parcel, archive)} == {"1999/a"}


# --- handing over -----------------------------------------------------------------------------------------------------


def run(spool: Spool, *roots: Path) -> tuple[Tally, Import]:
    work = Import(spool, Pace(spool), lambda _: None)
    return work(roots), work


def handed(spool: Spool) -> dict[str, bytes]:
    """What lies in incoming/, by its path below a drop of an import."""
    found = (each for each in spool.incoming.rglob("*") if each.is_file() and each.name != ".done")
    return {"/".join(each.relative_to(spool.incoming).parts[1:]): each.read_bytes() for each in found}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sorter runs beside these tests, and none is waited for."""
    monkeypatch.setattr("sorter.importing._IDLE", 0.0)


@pytest.mark.usefixtures("hurried")
def test_everything_lies_in_incoming_in_one_drop_that_ends_by_done(archive: Path, spool: Spool) -> None:
    before = everything(archive)
    tally, _ = run(spool, archive)
    assert (tally.handed, tally.known, tally.failed, tally.waiting) == (11, 0, 0, 11)
    assert handed(spool) == {f"archive/{path}": content for path, (content, _, _) in before.items()}
    [drop] = spool.incoming.iterdir()
    assert (drop / ".done").is_file()
    assert everything(archive) == before
    assert not (spool.imports / "staging").exists()


@pytest.mark.usefixtures("hurried")
def test_a_second_run_opens_nothing(archive: Path, spool: Spool) -> None:
    run(spool, archive)
    shutil.rmtree(next(spool.incoming.iterdir()))

    class Blind(Files):
        def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
            assert flags & os.O_DIRECTORY or not str(path).startswith(str(archive))
            return super().open(path, flags, mode, at=at)

    tally, _ = run(Spool(spool.root, Blind()), archive, archive / "1999")
    assert (tally.handed, tally.known) == (0, 11 + 7)
    assert handed(spool) == {}


@pytest.mark.usefixtures("hurried")
def test_a_single_file_and_several_folders(archive: Path, spool: Spool) -> None:
    run(spool, archive / "1999/a/00")
    assert handed(spool) == {"00": b"1999/a 0"}
    shutil.rmtree(next(spool.incoming.iterdir()))
    run(spool, archive / "1999" / "b" / "1")
    assert sorted(handed(spool)) == ["1/00", "1/01"]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("name", ["x.part", ".done", ".keep", "x.done", "~$x", ".x.dcm.aB3dE6", ".~tmp~/a", "y" * 250])
def test_names_that_incoming_would_take_for_unfinished_are_changed(tmp_path: Path, spool: Spool, name: str) -> None:
    path = tmp_path / "archive" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    run(spool, tmp_path / "archive")
    [found] = (each for each in spool.incoming.rglob("*") if each.is_file() and each.name != ".done")
    assert not is_temporary(found.name)
    assert found.parent.name != ".~tmp~"
    assert found.read_bytes() == b"x"


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "names",
    [
        ("x.part", "_x.part_"),
        ("y" * 210 + "1.tmp", "y" * 210 + "2.tmp"),
        ("s.done/a", "_s.done_/a"),
        (".done", "_.done_"),
    ],
    ids=["changed", "cut", "folders", "marker"],
)
def test_a_changed_name_is_not_that_of_another_file(tmp_path: Path, spool: Spool, names: tuple[str, str]) -> None:
    for name in names:
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    tally, _ = run(spool, tmp_path / "archive")
    assert (tally.handed, tally.failed) == (2, 0)
    assert sorted(handed(spool).values()) == sorted(each.encode() for each in names)


@pytest.mark.usefixtures("hurried")
def test_a_file_never_takes_the_place_of_another(archive: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where two of them are to have one name: the first is kept, and the other is said, and tried again."""
    monkeypatch.setattr("sorter.importing.handover._visible", lambda _: "same")
    tally, work = run(spool, archive / "1999" / "a")
    assert (tally.handed, tally.failed) == (1, 2)
    assert list(handed(spool).values()) == [b"1999/a 0"]
    assert len(work.first_failures) == 2


@pytest.mark.usefixtures("hurried")
def test_a_path_too_long_for_the_spool_stops_no_other(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    deep = root
    while len(str(deep)) < 3900:
        deep /= "d" * 90
    deep.mkdir(parents=True)
    (deep / "deep").write_bytes(b"1")
    (root / "z").mkdir()
    (root / "z" / "x").write_bytes(b"2")
    spool = made(tmp_path / ("s" * 200))
    tally, work = run(spool, root)
    assert (tally.handed, tally.failed) == (1, 1)
    assert list(handed(spool).values()) == [b"2"]
    assert "too long" in work.first_failures[0][1]


@pytest.mark.usefixtures("hurried")
def test_names_that_are_no_utf8_are_carried_over(tmp_path: Path, spool: Spool) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / os.fsdecode(b"M\xfcller.ima")).write_bytes(b"x")
    run(spool, tmp_path / "archive")
    assert list(handed(spool)) == ["archive/" + os.fsdecode(b"M\xfcller.ima")]


class Denied(Files):
    """One file that may not be read, and one that the disk cannot give."""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}

    def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        if str(path) in self.faults and not flags & os.O_CREAT:
            raise OSError(self.faults[str(path)], os.strerror(self.faults[str(path)]))
        return super().open(path, flags, mode, at=at)


@pytest.mark.usefixtures("hurried")
def test_what_cannot_be_read_is_reported_and_tried_again_alone(archive: Path, spool: Spool) -> None:
    files = Denied()
    files.faults = {str(archive / "1999/a/01"): errno.EACCES, str(archive / "2004/c/02"): errno.EIO}
    tally, work = run(Spool(spool.root, files), archive)
    assert (tally.handed, tally.failed) == (9, 2)
    report = [json.loads(each) for each in work.report.read_text().splitlines()]
    assert sorted(each["path"] for each in report) == sorted(files.faults)
    assert "Permission denied" in report[0]["why"]
    assert work.report.stat().st_mode & 0o777 == 0o600
    assert str(archive) not in "".join(each.read_text() for each in spool.journal.iterdir())
    shutil.rmtree(next(spool.incoming.iterdir()))
    tally, _ = run(spool, archive)
    assert (tally.handed, tally.known) == (2, 9)
    assert sorted(handed(spool)) == ["archive/1999/a/01", "archive/2004/c/02"]


@pytest.mark.usefixtures("hurried")
def test_a_file_that_changes_while_it_is_read_is_left_for_a_later_run(archive: Path, spool: Spool) -> None:
    class Growing(Files):
        def copy(self, source: int, target: int) -> None:
            super().copy(source, target)
            if self.stat(source).st_ino == (archive / "1999/a/01").stat().st_ino:
                (archive / "1999/a/01").write_bytes(b"more than it was")

    tally, work = run(Spool(spool.root, Growing()), archive)
    assert (tally.handed, tally.failed) == (10, 1)
    assert "changed" in work.first_failures[0][1]
    assert "archive/1999/a/01" not in handed(spool)


def test_a_full_disk_ends_the_run_with_a_sentence(archive: Path, spool: Spool) -> None:
    class Full(Files):
        def space(self, path: Any) -> os.statvfs_result:
            found = list(super().space(path))
            found[4] = 0
            return os.statvfs_result(found)

    with pytest.raises(SorterError, match="make room"):
        run(Spool(spool.root, Full()), archive)
    assert not list(spool.incoming.iterdir())


def test_two_imports_at_once_are_refused(archive: Path, spool: Spool) -> None:
    with spool.files.opened(spool.imports / "lock", os.O_RDWR | os.O_CREAT) as fd:
        spool.files.lock(fd)
        with pytest.raises(SorterError, match="another import"):
            run(spool, archive)


class PowerCut(BaseException):
    pass


class Failing(Files):
    """The power goes before the effect number `at`, and with it what was not synced of the folder of done marks."""

    def __init__(self, at: int) -> None:
        self.at = at

    def _count(self) -> None:
        self.at -= 1
        if self.at == 0:
            raise PowerCut
        if self.at < 0:
            raise OSError(errno.EIO, "no power")

    def write(self, *args: Any, **kwargs: Any) -> int:
        self._count()
        return super().write(*args, **kwargs)

    def rename(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().rename(*args, **kwargs)

    def fsync(self, fd: int) -> None:
        self._count()  # and no more than that: the disk of the test keeps its power

    def mkdir(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().mkdir(*args, **kwargs)

    def unlink(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().unlink(*args, **kwargs)


@pytest.mark.usefixtures("hurried")
def test_a_run_may_end_before_any_effect_and_the_next_brings_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parcels, one of them cut; no sorter takes the first before the second is given."""
    monkeypatch.setattr(walk, "MOST", 2)
    monkeypatch.setattr(Import, "_wait", lambda *_, **__: None)
    archive = tmp_path / "archive"
    for name in ("a/1", "b/1", "b/2", "b/3"):
        (archive / name).parent.mkdir(parents=True, exist_ok=True)
        (archive / name).write_bytes(name.encode())
    monkeypatch.setattr(Files, "fsync", lambda *_: None)
    before, at, ended = everything(archive), 0, False
    while not ended:
        at += 1
        spool = made(tmp_path / str(at), Failing(at))
        try:
            run(spool, archive)
            ended = True
        except (PowerCut, OSError):
            pass
        whole = set(handed(spool))
        assert all(handed(spool)[path] == before[path.removeprefix("archive/")][0] for path in whole)
        run(made(spool.root), archive)
        assert {path.removeprefix("archive/") for path in handed(spool)} == set(before)
        assert everything(archive) == before
        known = Taken(spool.imports / "done", Files())
        assert parcels(archive, known) == []
        shutil.rmtree(spool.root)
    assert at > 25


# --- the pace ---------------------------------------------------------------------------------------------------------


def test_scanners_that_send_are_noticed(spool: Spool) -> None:
    assert not Pace(spool).scanners_send()
    arrivals = spool.received / "0" / "1" / ARRIVALS
    arrivals.parent.mkdir(parents=True)
    arrivals.touch()
    assert Pace(spool).scanners_send()
    os.utime(arrivals, (time.time() - 10, time.time() - 10))
    assert not Pace(spool).scanners_send()


def test_a_rate_is_kept(spool: Spool) -> None:
    pace = Pace(spool, files=100)
    begun = time.monotonic()
    for _ in range(21):
        pace.before(10**9)
    assert 0.2 <= time.monotonic() - begun < 2
    pace = Pace(spool, megabytes=10)
    begun = time.monotonic()
    for _ in range(3):
        pace.before(10**6)
    assert 0.2 <= time.monotonic() - begun < 2


# --- the dry run ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
def test_the_dry_run_tells_what_is_there_and_writes_nothing(tmp_path: Path) -> None:
    archive, root = tmp_path / "archive", tmp_path / "root"
    count = len(write_session(archive / "one", Plan(seed=1, size=8, slices=3, volumes=2)))
    first = localizer(Plan(seed=1, size=8)).files
    (archive / "two").mkdir()
    (archive / "two/twice").write_bytes(first[0])
    (archive / "two/conflict").write_bytes(first[1][:-2] + b"\x07\x01")
    (archive / "two/header").write_bytes(first[2].replace(b"No such hospital", b"An old hospital."))
    (archive / "two/truncated").write_bytes(first[2][:-20])
    (archive / "two/junk.txt").write_bytes(b"dear diary, " * 30)
    with zipfile.ZipFile(archive / "two/images.zip", "w") as packed:
        packed.writestr("1", first[0])
    os.symlink("one", archive / "two/link")
    before = everything(tmp_path)
    result = CliRunner().invoke(sorter, ["import", "--dry-run", "--json", "--root", str(root), str(archive)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["files"] == count + 6
    assert told["archives"] == 1
    assert (told["patients"], told["studies"], told["series"]) == (1, 1, 7)
    assert (told["images"], told["new"]) == (count + 3, count)
    assert (told["duplicates"], told["conflicts"], told["other_headers"]) == (1, 1, 1)
    assert (told["not_images"], told["unreadable"], told["left_out"]) == (2, 0, 1)
    assert told["by_patient"] == {"DEMO001": {"studies": 1, "series": 7, "images": count + 3}}
    assert {os.path.basename(each["path"]) for each in told["listed"]} == {
        "conflict", "header", "truncated", "junk.txt", "images.zip", "link",
    }  # fmt: skip
    assert everything(tmp_path) == before
    assert not root.exists()
    words = CliRunner().invoke(sorter, ["import", "--dry-run", "--root", str(root), str(archive)]).stdout
    assert "1  of them with the SOP Instance UID of another" in words


def test_a_wrong_rate_is_a_fault_of_usage(tmp_path: Path) -> None:
    for rate in ("fast", "0MB", "-3files", "10"):
        result = CliRunner().invoke(sorter, ["import", "--root", str(tmp_path), "--rate", rate, str(tmp_path)])
        assert result.exit_code == 2
        assert "rate" in result.output


def test_found_has_a_path() -> None:
    assert Found("/a", "a", "b", 1, 2, b"").path == "/a/b"
