"""incoming/ with a clock of our own: what is ready, what is whole, what is left alone."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sorter.durable import Files, PathLike
from sorter.watch import Incoming, Look, Ready, Taken
from sorter.watch import incoming as incoming_module
from sorter.watch.names import is_temporary
from sorter.watch.state import Drop, Folder, Habits

STEP = 2.0
USUAL = Habits()


class Bench:
    """A folder, its follower, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "incoming"
        self.folder.mkdir()
        self.now = 1000.0
        self.incoming = self.follow()
        self.strange: dict[str, str] = {}
        self.whole: list[str] = []

    def follow(self, habits: Habits = USUAL, clock: Callable[[], float] = lambda: 0.0) -> Incoming:
        """As the next life of sorter would; `clock` says how long a look takes: no time at all."""
        return Incoming(self.folder, Files(), Taken(self.root / "left", Files()), habits, clock)

    def look(self, later: float = STEP) -> Look:
        self.now += later
        look = self.incoming.look(self.now)
        for path, why in look.strange:
            assert self.strange.pop(path, None) is None or not why, "it is said once"
            if why:
                self.strange[path] = why
        self.whole += look.whole
        return look

    def ready(self, later: float = STEP) -> list[str]:
        return [each.path for each in self.look(later).ready]

    def settle(self) -> list[Ready]:
        """What comes in the next looks."""
        return [each for _ in range(3) for each in self.look().ready]

    def take(self, *ready: Ready) -> None:
        for each in ready:
            assert self.incoming.remove(each)
            self.incoming.gone(each)

    def take_all(self) -> list[str]:
        taken = []
        while ready := self.settle():
            self.take(*ready)
            taken += [each.path for each in ready]
        return sorted(taken)

    def tick(self) -> None:
        """Wait until the file system's clock has moved on."""
        probe = self.root / "probe"
        probe.touch()
        before = probe.stat().st_ctime_ns
        while probe.stat().st_ctime_ns == before:
            probe.chmod(0o600)

    def source(self, name: str = "scan", *, files: int = 3) -> Path:
        """A folder outside of incoming/, with a folder in it."""
        folder = self.root / name
        (folder / "sub").mkdir(parents=True)
        for number in range(files):
            (folder / f"{number}.dcm").write_bytes(b"x" * 100)
            (folder / "sub" / f"{number}.dcm").write_bytes(b"y" * 100)
        self.tick()
        return folder


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


SIX = sorted(f"scan/{where}{number}.dcm" for where in ("", "sub/") for number in range(3))


# --- when a file is ready ---------------------------------------------------------------------------------------------


def test_a_file_is_ready_when_it_stood_still_over_two_looks(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1234")
    os.chmod(bench.folder / "a", 0o640)
    assert bench.ready() == []
    assert bench.ready(1.9) == []
    [found] = bench.look(0.5).ready
    info = (bench.folder / "a").stat()
    assert found == Ready("a", 4, info.st_mtime_ns, info.st_ino, info.st_dev, os.getuid(), "a")
    assert bench.ready() == []


def test_looking_all_the_time_makes_nothing_ready_earlier(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    assert [bench.ready(0.1) for _ in range(19)] == [[]] * 19


def test_a_file_that_grows_slowly_is_never_taken_early(bench: Bench) -> None:
    path = bench.folder / "a"
    for size in range(1, 40):
        path.write_bytes(b"x" * size)
        assert bench.ready(1.9) == []
    assert bench.ready() == ["a"]


def test_a_file_rewritten_with_the_same_size_counts_as_changed(bench: Bench) -> None:
    path = bench.folder / "a"
    path.write_bytes(b"1")
    bench.look()
    bench.tick()
    path.write_bytes(b"2")
    assert bench.ready() == []
    assert bench.ready() == ["a"]


def test_a_file_that_somebody_holds_open_for_writing_waits(bench: Bench) -> None:
    with (bench.folder / "a").open("wb") as writer:
        writer.write(b"x" * 50)
        writer.flush()
        assert bench.settle() == []
        assert bench.ready(3600) == []
    assert bench.ready() == ["a"]


def test_a_reader_does_not_keep_a_file_waiting(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    with (bench.folder / "a").open("rb"):
        bench.look()
        assert bench.ready() == ["a"]


def test_a_writer_is_found_in_proc_where_a_lease_does_not_tell(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Files, "has_writer", lambda self, fd: None)
    (bench.folder / "b").write_bytes(b"1")
    with (bench.folder / "a").open("wb") as writer:
        writer.write(b"x")
        writer.flush()
        assert [each.path for each in bench.settle()] == ["b"]
    assert [each.path for each in bench.settle()] == ["a"]


@pytest.mark.parametrize(
    "name",
    ["a.part", "a.dcm.filepart", "a.TMP", "a.crdownload", "~$a", ".nfs0001", ".smbdelete1", ".IM001.dcm.aB3xY9"],
)
def test_temporary_names_wait_until_they_are_renamed(bench: Bench, name: str) -> None:
    path = bench.folder / name
    path.write_bytes(b"1")
    assert bench.settle() == []
    assert bench.ready(3700) == []
    assert "unfinished" in bench.strange[name]
    path.rename(bench.folder / "final")
    assert [each.path for each in bench.settle()] == ["final"]


@pytest.mark.parametrize(
    "name", ["IM0001", "a.dcm", "scan.img", "x.part1.dcm", ".hidden", "1.2.840.113619", "a.abcdef"]
)
def test_ordinary_names_are_not_temporary(name: str) -> None:
    assert not is_temporary(name)


def test_an_unfinished_file_is_offered_again_when_it_changed(bench: Bench) -> None:
    path = bench.folder / "a"
    path.write_bytes(b"1")
    [found] = bench.settle()
    bench.incoming.not_yet(found)
    assert bench.settle() == []
    path.write_bytes(b"12")
    [again] = bench.settle()
    assert (again.size, again.final) == (2, False)


def test_an_unfinished_file_is_offered_for_the_last_time_after_long(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    [found] = bench.settle()
    bench.incoming.not_yet(found)
    assert bench.ready(500) == []
    [last] = bench.look(200).ready
    assert last.final
    bench.incoming.not_yet(last)
    assert bench.ready(500) == []
    assert bench.ready(200) == ["a"]


def test_a_stalled_writer_is_never_final(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    [found] = bench.settle()
    bench.incoming.not_yet(found)
    with (bench.folder / "a").open("ab"):
        assert [bench.ready(599) for _ in range(6)] == [[]] * 6
    [last] = [each for _ in range(7) for each in bench.look(100).ready]
    assert last.final


def test_an_unfinished_file_whose_writer_cannot_be_known_is_never_final(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a share: it stands still for a day, is left where it is, is said once, and goes on."""
    monkeypatch.setattr(Files, "has_writer", lambda self, fd: None)
    path = bench.folder / "a"
    path.write_bytes(b"half")
    [found] = bench.settle()
    bench.incoming.not_yet(found)
    assert [bench.ready(600.0) for _ in range(144)] == [[]] * 144
    assert "ends too early" in bench.strange.pop("a")
    assert path.exists()
    path.write_bytes(b"half and half")
    bench.look(100)
    assert [each.size for each in bench.settle()] == [13]
    assert not bench.strange


def test_a_lease_says_nothing_on_a_share(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS refuses a lease as if there were a writer: then nothing would ever be taken."""
    monkeypatch.setattr(Files, "is_shared", lambda self, fd: True)
    monkeypatch.setattr(Files, "has_writer", lambda self, fd: True)
    (bench.folder / "a").write_bytes(b"1")
    assert [each.path for each in bench.settle()] == ["a"]


def test_a_file_system_of_this_machine_is_not_shared(tmp_path: Path) -> None:
    files = Files()
    with files.opened(tmp_path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert files.is_shared(fd) is False


def test_what_could_not_be_taken_is_offered_again_soon(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    [found] = bench.settle()
    bench.incoming.again(found)
    assert bench.ready() == ["a"]


def test_a_taken_file_that_is_still_there_is_told_once_and_not_taken_again(bench: Bench) -> None:
    path = bench.folder / "a"
    path.write_bytes(b"1")
    [found] = bench.settle()
    bench.incoming.gone(found)
    assert bench.settle() == []
    assert "could not be removed" in bench.strange.pop("a")
    assert bench.ready(3600) == []
    assert not bench.strange
    path.write_bytes(b"another")
    bench.look(100)
    assert [each.path for each in bench.settle()] == ["a"]


def test_what_could_not_be_removed_is_remembered_over_restarts_until_it_changes(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        (bench.folder / name).write_bytes(b"1")
    found = {each.path: each for each in bench.settle()}
    for name in ("a", "b"):
        bench.incoming.gone(found[name])
    bench.look()
    assert len(bench.strange) == 2
    bench.incoming, bench.strange = bench.follow(), {}
    assert [each.path for each in bench.settle()] == ["c"]
    assert bench.ready(3600) == []
    assert not bench.strange
    bench.tick()
    (bench.folder / "a").chmod(0o604)  # a change of whatever kind
    bench.look(100)
    assert [each.path for each in bench.settle()] == ["a"]
    (bench.folder / "b").unlink()
    bench.look(100)
    bench.look(100)
    assert len(Taken(bench.root / "left", Files())) == 0


def test_what_was_removed_while_nobody_looked_is_forgotten(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    [found] = bench.settle()
    bench.incoming.gone(found)
    bench.look()
    assert len(Taken(bench.root / "left", Files())) == 1
    (bench.folder / "a").unlink()
    bench.incoming = bench.follow()
    bench.look()
    assert len(Taken(bench.root / "left", Files())) == 0


def test_what_is_to_stay_is_remembered_without_a_word(bench: Bench) -> None:
    habits = Habits(stays=True)
    bench.incoming = bench.follow(habits)
    for name in ("a", "b", "c"):
        (bench.folder / name).write_bytes(b"1")
    for each in bench.settle():
        bench.incoming.gone(each)
    bench.look()
    bench.incoming = bench.follow(habits)
    assert bench.settle() == []
    assert bench.strange == {}
    bench.tick()
    (bench.folder / "a").write_bytes(b"2")  # in place: no folder changes by that
    (bench.folder / "d").write_bytes(b"1")
    bench.look(60)
    assert sorted(each.path for each in bench.settle()) == ["a", "d"]
    assert sorted(each.name for each in bench.folder.iterdir()) == ["a", "b", "c", "d"]


def test_a_share_that_is_mounted_late_is_not_taken_again(bench: Bench) -> None:
    """At the start its empty mount point was found: what was taken must not be forgotten by that."""
    (bench.folder / "a").write_bytes(b"1")
    bench.incoming = bench.follow(Habits(stays=True))
    [found] = bench.settle()
    bench.incoming.gone(found)
    bench.look()
    share = bench.root / "share"
    bench.folder.rename(share)
    bench.folder.mkdir()
    bench.incoming = bench.follow(Habits(stays=True))
    bench.look()
    bench.folder.rmdir()
    share.rename(bench.folder)
    assert bench.settle() == []


def test_on_a_share_another_inode_is_not_another_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """sshfs numbers its files anew with every mount."""
    monkeypatch.setattr(Files, "is_shared", lambda self, fd: True)
    bench.incoming = bench.follow(Habits(stays=True))
    path = bench.folder / "a"
    path.write_bytes(b"1")
    [found] = bench.settle()
    bench.incoming.gone(found)
    bench.look()
    copy = bench.folder / "copy"
    shutil.copy2(path, copy)
    copy.rename(path)
    bench.incoming = bench.follow(Habits(stays=True))
    assert bench.settle() == []


def test_looking_over_what_stays_costs_the_same_however_much_it_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_module, "_OVER_AT_ONCE", 10)
    bench.incoming = bench.follow(Habits(stays=True))
    paths = [bench.folder / f"{folder}" / f"{number}" for folder in range(3) for number in range(15)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
    for each in bench.settle():
        bench.incoming.gone(each)
    bench.look(60)
    for path in paths:
        path.write_bytes(b"22")
    found = [len(bench.look(60).ready) for _ in range(9)]
    assert max(found) <= 10
    assert sum(found) == 45


def test_half_a_record_left_by_a_power_cut_says_nothing(tmp_path: Path) -> None:
    taken = Taken(tmp_path / "left", Files())
    taken.add(b"1" * 16)
    taken.keep()
    with (tmp_path / "left").open("ab") as file:
        file.write(b"torn")
    again = Taken(tmp_path / "left", Files())
    again.add(b"2" * 16)
    again.keep()
    last = Taken(tmp_path / "left", Files())
    assert len(last) == 2
    assert b"1" * 16 in last
    assert b"2" * 16 in last


def test_the_same_name_again_is_another_file(bench: Bench) -> None:
    path = bench.folder / "a"
    for _ in range(3):
        path.write_bytes(b"1")
        os.utime(path, ns=(10**18, 10**18))
        [found] = bench.settle()
        bench.take(found)


def test_names_that_are_not_utf8(bench: Bench) -> None:
    folder = os.fsencode(bench.folder) + b"/M\xfcller"
    os.mkdir(folder)
    with open(folder + b"/bild\xff.dcm", "wb") as file:
        file.write(b"1")
    [found] = bench.settle()
    assert os.fsencode(found.path) == b"M\xfcller/bild\xff.dcm"
    assert os.fsencode(found.drop) == b"M\xfcller"
    bench.take(found)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_any_depth(bench: Bench) -> None:
    deep = bench.folder.joinpath(*"abcdefghij")
    deep.mkdir(parents=True)
    (deep / "x").write_bytes(b"1")
    assert bench.take_all() == ["a/b/c/d/e/f/g/h/i/j/x"]


def test_what_comes_later_into_a_known_folder_is_found(bench: Bench) -> None:
    (bench.folder / "d" / "e").mkdir(parents=True)
    bench.settle()
    for number in range(5):
        (bench.folder / "d" / "e" / str(number)).write_bytes(b"1")
        assert bench.take_all() == [f"d/e/{number}"]


def test_a_file_made_in_the_same_tick_as_the_listing_is_found(bench: Bench) -> None:
    folder = bench.folder / "d"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    times = folder.stat()
    bench.look(0.6)
    (folder / "b").write_bytes(b"1")
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if the clock had not moved
    bench.look(0.6)
    assert bench.take_all() == ["d/a", "d/b"]


def test_hard_links_are_files_like_any_other(bench: Bench) -> None:
    source = bench.source()
    shutil.copytree(source, bench.folder / "scan", copy_function=os.link)
    assert bench.take_all() == SIX
    assert len(list(source.rglob("*.dcm"))) == 6


def test_a_file_that_becomes_a_folder_and_back(bench: Bench) -> None:
    path = bench.folder / "a"
    path.write_bytes(b"1")
    bench.look()
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"1")
    assert [each.path for each in bench.settle()] == ["a/x"]
    shutil.rmtree(path)
    path.write_bytes(b"1")
    assert [each.path for each in bench.settle()] == ["a"]


def test_the_folder_itself_removed_and_made_anew(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    bench.settle()
    shutil.rmtree(bench.folder)
    assert bench.ready() == []
    bench.folder.mkdir()
    (bench.folder / "a").write_bytes(b"1")
    assert [each.path for each in bench.settle()] == ["a"]


# --- strange things ---------------------------------------------------------------------------------------------------


def test_what_became_of_a_file_says_nothing_of_another_that_is_offered_under_its_name(bench: Bench) -> None:
    (bench.folder / "a").write_bytes(b"1")
    [first] = bench.settle()
    shutil.rmtree(bench.folder)
    bench.look()
    bench.folder.mkdir()
    (bench.folder / "a").write_bytes(b"another")
    [second] = bench.settle()
    bench.incoming.gone(first)
    assert bench.settle() == []
    bench.incoming.again(second)
    assert bench.settle() == [second]


def test_links_pipes_and_sockets_are_told_once_and_not_opened(bench: Bench) -> None:
    secret = bench.root / "secret"
    secret.mkdir()
    (secret / "image").write_bytes(b"1")
    (bench.folder / "d").mkdir()
    (bench.folder / "d" / "link").symlink_to(secret / "image")
    (bench.folder / "folder").symlink_to(secret)
    (bench.folder / "loop").symlink_to(bench.folder)
    os.mkfifo(bench.folder / "d" / "pipe")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(bench.folder / "s"))
    found = [each for _ in range(3) for each in bench.look().strange]
    assert sorted(path for path, _ in found) == ["d/link", "d/pipe", "folder", "loop", "s"]
    assert "symbolic link" in bench.strange["folder"]
    assert "named pipe" in bench.strange["d/pipe"]
    assert bench.settle() == []
    for name in ("loop", "s", "d/pipe"):
        (bench.folder / name).unlink()
    bench.settle()
    assert set(bench.strange) == {"d/link", "folder"}, "what went away is told, too"
    shutil.rmtree(bench.folder / "d")
    bench.settle()
    assert set(bench.strange) == {"folder"}


def test_a_folder_swapped_for_a_link_leads_nowhere(bench: Bench) -> None:
    secret = bench.root / "secret"
    secret.mkdir()
    (bench.folder / "d").mkdir()
    (bench.folder / "d" / "a").write_bytes(b"1")
    os.link(bench.folder / "d" / "a", secret / "a")
    [found] = bench.settle()
    shutil.rmtree(bench.folder / "d")
    (bench.folder / "d").symlink_to(secret)
    with pytest.raises(OSError, match=r"symbolic|Not a directory"):
        bench.incoming.open(found)
    assert not bench.incoming.remove(found)
    assert (secret / "a").exists()
    assert bench.settle() == []


def test_open_gives_the_file_that_was_found(bench: Bench) -> None:
    (bench.folder / "d").mkdir()
    path = bench.folder / "d" / "a"
    path.write_bytes(b"1")
    [found] = bench.settle()
    fd = bench.incoming.open(found)
    assert os.read(fd, 10) == b"1"
    os.close(fd)
    path.rename(bench.root / "kept")
    path.write_bytes(b"2")
    with pytest.raises(OSError, match="another file"):
        bench.incoming.open(found)
    assert not bench.incoming.remove(found)
    assert path.exists()


def test_more_folders_within_folders_than_anybody_needs(bench: Bench) -> None:
    path = bench.folder
    for _ in range(incoming_module.DEEPEST + 5):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "x").write_bytes(b"1")
    assert bench.settle() == []
    [(_, reason)] = bench.strange.items()
    assert "deep" in reason


def test_what_may_not_be_read_is_told_and_taken_when_it_may(bench: Bench) -> None:
    (bench.folder / "d").mkdir()
    (bench.folder / "a").write_bytes(b"1")
    (bench.folder / "a").chmod(0)
    if os.access(bench.folder / "a", os.R_OK):
        pytest.skip("root may read everything")
    (bench.folder / "d").chmod(0)
    assert bench.settle() == []
    assert set(bench.strange) == {"a", "d"}
    (bench.folder / "a").chmod(0o600)
    (bench.folder / "d").chmod(0o700)
    bench.look(100)
    assert [each.path for each in bench.settle()] == ["a"]


def test_what_could_not_be_read_for_a_while_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that is ill says so of a file that has not changed, and changes nothing of it when it is well."""
    really = Files.open

    def ill(self: Files, path: PathLike, *args: int, **more: int) -> int:
        if str(path) in ("a", "b"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(self, path, *args, **more)

    (bench.folder / "d").mkdir()
    for name in ("a", "d/b"):
        (bench.folder / name).write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(Files, "open", ill)
        assert [bench.ready(60.0) for _ in range(10)] == [[]] * 10
        assert set(bench.strange) == {"a", "d/b"}
    found = [each for _ in range(3) for each in bench.look(60.0).ready]
    assert sorted(each.path for each in found) == ["a", "d/b"]
    assert not bench.strange


def test_what_cannot_be_read_to_its_end_is_told_once_and_offered_again_seldom(bench: Bench) -> None:
    (bench.folder / "scan").mkdir()
    (bench.folder / "scan" / "a").write_bytes(b"1")
    (bench.folder / "scan" / ".done").touch()
    [ready] = bench.settle()
    for _ in range(3):
        bench.incoming.unreadable(ready, "Input/output error")
        assert bench.ready(30.0) == []
        [ready] = [each for _ in range(3) for each in bench.look(30.0).ready]
        assert bench.strange == {"scan/a": "it cannot be read: Input/output error"}
    assert bench.whole == []
    bench.incoming.not_yet(ready)  # it was read, and ends too early
    bench.look()
    assert bench.strange == {}
    (bench.folder / "scan" / "a").write_bytes(b"22")
    bench.look(10.0)
    [ready] = bench.settle()
    bench.take(ready)
    bench.settle()
    assert bench.strange == {}
    assert bench.whole == ["scan"]


# --- drops that are whole ---------------------------------------------------------------------------------------------


def test_a_folder_moved_in_by_one_rename_is_whole(bench: Bench) -> None:
    bench.source().rename(bench.folder / "scan")
    assert bench.take_all() == SIX
    assert bench.whole == ["scan"]
    assert bench.incoming.tidy("scan")
    assert list(bench.folder.iterdir()) == []


def test_it_is_told_when_the_last_file_is_gone_and_not_before(bench: Bench) -> None:
    bench.source().rename(bench.folder / "scan")
    first, *others = bench.settle()
    bench.take(*others)
    bench.incoming.not_yet(first)
    bench.settle()
    assert bench.whole == []
    [last] = bench.look(700).ready
    bench.take(last)
    assert bench.look(0).whole == ("scan",)


def test_a_moved_folder_is_still_known_as_whole_after_a_restart(bench: Bench) -> None:
    bench.source().rename(bench.folder / "scan")
    bench.look()
    bench.incoming = bench.follow()
    bench.take_all()
    assert bench.whole == ["scan"]


@pytest.mark.parametrize("command", [["cp", "-r"], ["mkdir-and-write"]])
def test_a_folder_filled_in_place_is_not_whole(bench: Bench, command: list[str]) -> None:
    if command == ["cp", "-r"]:
        subprocess.run([*command, bench.source(), bench.folder / "scan"], check=True)
    else:
        (bench.folder / "scan" / "sub").mkdir(parents=True)
        for path in SIX:
            (bench.folder / path).write_bytes(b"1")
    assert bench.take_all() == SIX
    assert bench.whole == []


@pytest.mark.parametrize("seen", [False, True])
def test_a_folder_copied_with_its_times_is_whole_at_the_end(bench: Bench, seen: bool) -> None:
    source = bench.source()
    for folder in (source / "sub", source):
        os.utime(folder, ns=(10**18, 10**18))
    if seen:
        (bench.folder / "scan").mkdir()
        bench.look()
        bench.tick()
        subprocess.run(["cp", "-a", f"{source}/.", bench.folder / "scan"], check=True)
    else:
        subprocess.run(["cp", "-a", source, bench.folder / "scan"], check=True)
    assert bench.take_all() == SIX
    assert bench.whole == ["scan"]


def test_a_copy_with_times_that_is_not_at_its_end_is_not_whole(bench: Bench) -> None:
    """The top folder is restored last: until then it is newer than what is in it."""
    top = bench.folder / "scan"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_bytes(b"1")
    os.utime(top / "a", ns=(10**18, 10**18))
    os.utime(top / "sub", ns=(10**18, 10**18))
    bench.take_all()
    assert bench.whole == []


def test_a_folder_with_an_empty_folder_restored_by_rsync_is_not_whole(bench: Bench) -> None:
    """rsync makes all folders first, and may restore the top folder before what is below is there."""
    top = bench.folder / "scan"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_bytes(b"1")
    for path in (top / "a", top / "sub", top):
        os.utime(path, ns=(10**18, 10**18))
    bench.take_all()
    assert bench.whole == []


def test_a_moved_folder_that_goes_on_growing_is_not_whole(bench: Bench) -> None:
    bench.source().rename(bench.folder / "scan")
    bench.look()
    (bench.folder / "scan" / "sub" / "late").write_bytes(b"1")
    assert len(bench.take_all()) == 7
    assert bench.whole == []


def test_a_moved_folder_with_an_unfinished_file_is_not_whole(bench: Bench) -> None:
    source = bench.source()
    (source / "sub" / "x.part").write_bytes(b"1")
    bench.tick()
    source.rename(bench.folder / "scan")
    assert bench.take_all() == SIX
    assert bench.whole == []


@pytest.mark.parametrize("marker", ["scan/.done", "scan.done"])
def test_a_done_file_ends_a_drop(bench: Bench, marker: str) -> None:
    shutil.copytree(bench.source(), bench.folder / "scan")
    first = bench.take_all()
    assert bench.whole == []
    (bench.folder / "scan" / "late").write_bytes(b"1")
    (bench.folder / marker).write_text("complete\n")
    assert [*first, *bench.take_all()] == [*SIX, "scan/late"]
    assert bench.whole == ["scan"]
    assert bench.incoming.tidy("scan")
    assert list(bench.folder.iterdir()) == []
    bench.settle()
    assert bench.whole == ["scan"]


def test_a_done_file_of_a_drop_that_was_taken_already(bench: Bench) -> None:
    shutil.copytree(bench.source(), bench.folder / "scan")
    bench.take_all()
    shutil.rmtree(bench.folder / "scan")
    bench.settle()
    (bench.folder / "scan.done").touch()
    assert bench.settle() == []
    assert bench.whole == ["scan"]
    assert bench.incoming.tidy("scan")
    assert list(bench.folder.iterdir()) == []


def test_a_done_file_of_nothing_waits_for_its_folder(bench: Bench) -> None:
    (bench.folder / "scan.done").touch()
    assert bench.settle() == []
    shutil.copytree(bench.source(), bench.folder / "scan")
    assert bench.take_all() == SIX
    assert bench.whole == ["scan"]


def test_a_done_file_that_is_written_again_ends_what_came_since(bench: Bench) -> None:
    (bench.folder / "scan").mkdir()
    for number in (1, 2):
        (bench.folder / "scan" / f"{number}").write_bytes(b"1")
        (bench.folder / "scan" / ".done").write_text(f"{number}")
        bench.look(61.0)
        assert bench.take_all() == [f"scan/{number}"]
        assert bench.whole == ["scan"] * number


def test_drops_that_are_done_and_stay_do_not_stand_before_what_is_new(bench: Bench) -> None:
    """Of a tree that stays each folder may have a mark: they are looked at in the rounds."""
    bench.incoming = bench.follow(Habits(stays=True))
    for number in range(3):
        (bench.folder / f"{number}").mkdir()
        (bench.folder / f"{number}" / "a").write_bytes(b"1")
        (bench.folder / f"{number}" / ".done").touch()
    for each in bench.settle():
        bench.incoming.gone(each)
    bench.look(60)
    assert sorted(bench.whole) == ["0", "1", "2"]
    assert bench.incoming._small == {}
    (bench.folder / "1" / ".done").write_text("again")
    bench.look(60)
    bench.look()
    assert bench.whole[3:] == ["1"]


@pytest.mark.parametrize("early", [False, True], ids=["whole", "begun when it is seen first"])
@pytest.mark.parametrize("name", ["scan.done", "scan/.done"])
def test_what_is_too_large_for_a_mark_is_a_file_like_any_other(bench: Bench, name: str, early: bool) -> None:
    """Some programs call so what they are done with: it may be an image."""
    (bench.folder / "scan").mkdir()
    (bench.folder / "scan" / "a").write_bytes(b"1")
    image = bench.folder / name
    if early:
        image.touch()
        bench.look()
    image.write_bytes(b"x" * 10_000)
    taken = bench.take_all()
    bench.incoming.tidy("scan")
    bench.look(61.0)
    assert sorted([*taken, *bench.take_all()]) == sorted(["scan/a", name])
    assert not image.exists()


def test_a_done_file_waits_for_what_is_still_written(bench: Bench) -> None:
    (bench.folder / "scan").mkdir()
    (bench.folder / "scan" / ".done").touch()
    with (bench.folder / "scan" / "a").open("wb") as writer:
        writer.write(b"1")
        writer.flush()
        bench.settle()
        assert bench.whole == []
    assert bench.take_all() == ["scan/a"]
    assert bench.whole == ["scan"]


# --- tidying ----------------------------------------------------------------------------------------------------------


def test_tidy_removes_empty_folders_and_markers_only(bench: Bench) -> None:
    (bench.folder / "scan" / "empty" / "deeper").mkdir(parents=True)
    (bench.folder / "scan" / "full").mkdir()
    (bench.folder / "scan" / "full" / "notes").write_text("x")
    (bench.folder / "scan" / ".done").touch()
    assert not bench.incoming.tidy("scan")
    assert sorted(path.name for path in (bench.folder / "scan").rglob("*")) == [".done", "full", "notes"]
    (bench.folder / "scan" / "full" / "notes").unlink()
    assert bench.incoming.tidy("scan")
    assert list(bench.folder.iterdir()) == []
    assert bench.incoming.tidy("scan")


def test_tidy_keeps_what_is_marked_and_follows_nothing(bench: Bench) -> None:
    outside = bench.root / "outside" / "empty"
    outside.mkdir(parents=True)
    (bench.folder / "scan").symlink_to(outside.parent)
    assert not bench.incoming.tidy("scan")
    (bench.folder / "scanner").mkdir()
    (bench.folder / "scanner" / ".keep").touch()
    assert bench.settle() == []
    assert not bench.incoming.tidy("scanner")
    assert outside.exists()
    for bad in ("", ".", "..", "../outside", "scan/x"):
        with pytest.raises(ValueError, match="a drop is"):
            bench.incoming.tidy(bad)


def test_a_folder_of_quarantine_retry_goes_soon_after_its_files(bench: Bench) -> None:
    """A person's folder of nearly that name does not."""
    for name in ("again-0123456789ab", "again-0123456789abc"):
        shutil.copytree(bench.source(name), bench.folder / name)
    bench.take_all()
    assert [bench.look(60).empty for _ in range(2)][-1] == ("again-0123456789ab",)


def test_an_emptied_folder_may_go_after_a_day(bench: Bench) -> None:
    shutil.copytree(bench.source(), bench.folder / "scan")
    bench.take_all()
    assert bench.look(3600).empty == ()
    assert bench.look(86400).empty == ("scan",)


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_files_come_in_portions_and_a_single_one_is_not_kept_waiting(bench: Bench) -> None:
    (bench.folder / "many").mkdir()
    for number in range(2000):
        (bench.folder / "many" / f"{number:05}").write_bytes(b"1")
    bench.look()
    first = bench.look().ready
    assert len(first) == incoming_module.MOST_OFFERED
    (bench.folder / "zzz").write_bytes(b"1")
    bench.look()
    assert bench.ready() == []
    bench.take(*first[:3])
    assert "zzz" in bench.ready(0)


def test_next_says_when_to_look_again(bench: Bench) -> None:
    look = bench.look()
    assert look.next == bench.now + incoming_module.POLL
    (bench.folder / "a").write_bytes(b"1")
    look = bench.look()
    assert look.next == bench.now + incoming_module.STILL
    assert look.fresh == 1
    [found] = bench.look().ready
    assert found.path == "a"


class Slow(Bench):
    """A bench whose time goes on by `step` with each few entries that are looked at, and by a twentieth between looks.

    So a look is over before all was looked at.
    """

    def __init__(self, root: Path, step: float) -> None:
        self.step, self.taking = step, True
        super().__init__(root)
        self.incoming = self.follow(clock=self.tick_on)

    def tick_on(self) -> float:
        self.now += self.step
        return self.now

    def look_on(self, until: Callable[[], object], looks: int = 2000) -> dict[str, float]:
        """Look until something is true: when each file was ready; each is taken at once, if `taking`."""
        found: dict[str, float] = {}
        for _ in range(looks):
            ready = self.look(0.05).ready
            assert not found.keys() & {each.path for each in ready}, "each is offered once"
            found |= {each.path: self.now for each in ready}
            if self.taking:
                self.take(*ready)
            if until():
                return found
        raise AssertionError(f"{looks} looks in vain; found {sorted(found)}")


@pytest.mark.parametrize("step", [0.0, 0.06, 0.2])
def test_looks_that_are_short_find_the_same(tmp_path: Path, step: float) -> None:
    bench = Slow(tmp_path, step)
    for number in range(6):
        source = bench.source(f"scan{number}", files=15 * number)
        source.rename(bench.folder / source.name)
    wanted = {str(each.relative_to(bench.folder)) for each in bench.folder.rglob("*.dcm")}
    assert bench.look_on(lambda: len(bench.whole) == 5).keys() == wanted
    assert sorted(bench.whole) == [f"scan{number}" for number in range(1, 6)]


class Lagging(Files):
    """Reading a folder takes three seconds."""

    def __init__(self, bench: Slow) -> None:
        self.bench = bench

    def names(self, path: PathLike | int) -> list[str]:
        self.bench.now += 3.0
        return super().names(path)


def test_between_two_looks_at_a_file_are_two_seconds_however_long_a_look_takes(tmp_path: Path) -> None:
    bench = Slow(tmp_path, 0.0)
    bench.incoming = Incoming(bench.folder, Lagging(bench), Taken(tmp_path / "left", Files()), clock=bench.tick_on)
    for name in ("a", "b"):
        (bench.folder / name).mkdir()
        (bench.folder / name / "1").write_bytes(b"1")
    met: dict[str, float] = {}
    looked = bench.incoming._meet

    def meet(folder: Folder, name: str, fd: int, where: tuple[Drop, int]) -> None:
        met[f"{folder.path}/{name}"] = bench.now
        looked(folder, name, fd, where)

    bench.incoming._meet = meet  # type: ignore[method-assign]
    found = bench.look_on(lambda: not list(bench.folder.rglob("1")))
    assert len(found) == 2
    assert all(at - met[path] >= 2.0 for path, at in found.items())


def test_a_drop_ended_by_a_file_beside_it_is_not_whole_before_all_of_it_was_seen(tmp_path: Path) -> None:
    bench = Slow(tmp_path, 0.2)
    shutil.copytree(bench.source(files=80), bench.folder / "scan")
    bench.look_on(lambda: bench.incoming._round is not None)
    (bench.folder / "scan.done").touch()
    bench.look_on(lambda: bench.whole)
    assert not list(bench.folder.rglob("*.dcm"))
    assert bench.whole == ["scan"]


def test_a_single_file_is_found_while_a_large_drop_is_looked_through(tmp_path: Path) -> None:
    bench = Slow(tmp_path, 0.05)
    for number in range(100):
        (bench.folder / "many" / str(number)).mkdir(parents=True)
        for each in range(40):
            (bench.folder / "many" / str(number) / str(each)).write_bytes(b"1")
    bench.look_on(lambda: bench.incoming._round is not None)
    (bench.folder / "alone").mkdir()
    (bench.folder / "alone" / "x").write_bytes(b"1")
    begun = bench.now
    found = bench.look_on(lambda: not list((bench.folder / "alone").iterdir()))
    assert found.keys() == {"alone/x"}, "the large one is not through yet"
    assert found["alone/x"] - begun <= 4.0


def test_a_single_file_is_found_while_small_drops_come_faster_than_they_are_looked_at(tmp_path: Path) -> None:
    bench = Slow(tmp_path, 0.05)
    for look in range(60):
        if look == 20:
            (bench.folder / "alone").mkdir()
            (bench.folder / "alone" / "x").write_bytes(b"1")
            begun = bench.now
        for number in range(12):
            (bench.folder / f"{look}-{number}").mkdir()
            for each in range(2):
                (bench.folder / f"{look}-{number}" / str(each)).write_bytes(b"1")
        ready = bench.look(0.1).ready
        bench.take(*ready)
        if any(each.path == "alone/x" for each in ready):
            break
    assert len(bench.incoming._new) > 50, "more came than could be looked at"
    assert bench.now - begun <= 6.0


@pytest.mark.parametrize("folder", ["", "alone"])
def test_a_single_file_is_found_beside_many_that_lie_in_incoming_itself(tmp_path: Path, folder: str) -> None:
    """As another SCP leaves them, that went on while sorter did not."""
    bench = Slow(tmp_path, 0.02)
    for number in range(3000):
        (bench.folder / f"{number:05}").write_bytes(b"1")
    for _ in range(10):
        bench.take(*bench.look(0.1).ready[:20])
    (bench.folder / folder).mkdir(exist_ok=True)
    (bench.folder / folder / "x").write_bytes(b"1")
    begun = bench.now
    offered: list[Ready] = []
    while not any(each.path.endswith("x") for each in offered):
        offered = [*offered[20:], *bench.look(0.1).ready]
        bench.take(*offered[:20])
    assert bench.now - begun <= 5.0
    assert len(list(bench.folder.iterdir())) > 1500, "the others are not through yet"
