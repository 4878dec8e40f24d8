"""The file object: what its compound operations promise."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sorter.durable import Files, files_of_owner


class Recorder(Files):
    """Writes down the order of the effects that decide what survives."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fsync(self, fd: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"
        self.calls.append(f"fsync {kind}")
        super().fsync(fd)

    def rename(self, old, new, **kwargs) -> None:  # type: ignore[no-untyped-def]
        self.calls.append("rename")
        super().rename(old, new, **kwargs)


def test_a_new_file_is_synced_renamed_and_its_folder_synced(tmp_path: Path) -> None:
    files = Recorder()
    files.write_file(tmp_path / "a", b"one")
    assert files.calls == ["fsync file", "rename", "fsync folder"]
    assert files.read_file(tmp_path / "a") == b"one"
    assert files.names(tmp_path) == ["a"]


def test_append_ends_a_torn_line_first(tmp_path: Path) -> None:
    files = Files()
    (tmp_path / "log").write_bytes(b"whole\nhalf a li")
    files.append(tmp_path / "log", b"next\n")
    assert (tmp_path / "log").read_bytes() == b"whole\nhalf a li\nnext\n"


def test_rename_new_never_replaces(tmp_path: Path) -> None:
    files = Files()
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        files.rename_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"


def test_a_symbolic_link_is_never_read_nor_its_target_removed(tmp_path: Path) -> None:
    files = Files()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "image").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "tree" / "file").symlink_to(tmp_path / "precious" / "image")
    with pytest.raises(OSError, match="symbolic"):
        files.read_file(tmp_path / "tree" / "file")
    assert not files.is_folder(tmp_path / "tree" / "link")
    files.remove_tree(tmp_path / "tree")
    assert (tmp_path / "precious" / "image").read_text() == "x"


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(100))
    with pytest.raises(OSError, match="too large") as caught:
        Files().read_file(tmp_path / "big", limit=99)
    assert caught.value.errno == errno.EFBIG


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    files = Files()
    first = files.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    second = files.open(tmp_path / "lock", os.O_RDWR)
    assert files.lock(first)
    assert not files.lock(second)
    files.close(first)
    assert files.lock(second)
    files.close(second)


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (8 << 20) + 1])
def test_copy_copies_all(tmp_path: Path, size: int) -> None:
    files = Files()
    (tmp_path / "a").write_bytes(os.urandom(size))
    with (
        files.opened(tmp_path / "a") as source,
        files.opened(tmp_path / "b", os.O_RDWR | os.O_CREAT) as target,
    ):
        files.copy(source, target)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_many_folders_are_synced_at_once(tmp_path: Path) -> None:
    class Counting(Files):
        folders = systems = 0

        def fsync_folder(self, path) -> None:  # type: ignore[no-untyped-def]
            self.folders += 1

        def sync_file_system(self, path) -> None:  # type: ignore[no-untyped-def]
            self.systems += 1

    files = Counting()
    files.fsync_folders([tmp_path / str(number) for number in range(3)])
    files.fsync_folders([tmp_path / str(number) for number in range(300)])
    assert (files.folders, files.systems) == (3, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_root_makes_in_a_folder_of_another_account_is_that_accounts(tmp_path: Path) -> None:
    spool, beside = tmp_path / "spool", tmp_path / "spool-2"
    spool.mkdir()
    os.chown(spool, 4711, -1)
    files = files_of_owner(spool)
    files.make_folders(spool / "journal/old")
    files.append(spool / "journal/day.jsonl", b"{}\n")
    files.append(spool / "journal/day.jsonl", b"{}\n")
    files.write_file(spool / "version", b"1\n")
    with files.opened(spool / "journal", os.O_RDONLY | os.O_DIRECTORY) as folder:
        files.mkdir("new", at=folder)
        files.close(files.open("new/part", os.O_WRONLY | os.O_CREAT, at=folder))
    made = list(spool.rglob("*"))
    assert len(made) == 6
    assert {each.stat().st_uid for each in made} == {4711}
    files.make_folders(beside)
    files.write_file(beside / "copy.dcm", b"")
    assert {each.stat().st_uid for each in (beside, beside / "copy.dcm")} == {0}
    assert type(files_of_owner(beside)) is Files
    assert type(files_of_owner(tmp_path / "none")) is Files
