"""The path target on real folders: what a lab, a full disk or a power cut may do to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sorter.builtin._path_decide import called
from sorter.builtin.path_target import PathTarget, mark
from sorter.deliver.target import Done, Put, Wanted
from sorter.deliver.worker import Beating
from sorter.durable import NFS, SMB2, Files
from sorter.errors import Away, Held, SorterError, TryLater
from sorter.model import Delivered, Receipt
from sorter.wire import Channel

KEY = "aaaaaaaa11112222333344445555ffff"
OTHER = "bbbbbbbb11112222333344445555ffff"
FOLDER = "S1/20260102_0900/004_T1"


class Bytes:
    """A `Source` of files written to a folder; remembers what was asked for."""

    def __init__(self, folder: Path, contents: Sequence[bytes]) -> None:
        self.paths = []
        for number, content in enumerate(contents):
            path = folder / f"{number}-{hashlib.sha256(content).hexdigest()}"
            path.write_bytes(content)
            self.paths.append(path)
        self.asked: list[int] = []
        self._fd: int | None = None

    def will_need(self, indices: Sequence[int]) -> None:
        pass

    def __call__(self, index: int) -> int:
        self.close()
        self.asked.append(index)
        self._fd = os.open(self.paths[index], os.O_RDONLY)
        return self._fd

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class World:
    """A root with its marker, and short words for what a test does to it."""

    def __init__(self, base: Path) -> None:
        self.root, self.store = base / "root", base / "store"
        self.root.mkdir()
        self.store.mkdir()
        mark(self.root, Files())

    def target(self, files: Files | None = None, **settings: Any) -> PathTarget:
        return PathTarget({"root": str(self.root), "threads": 1, **settings}, files)

    def job(self, contents: dict[str, bytes], **changes: Any) -> tuple[Put, Bytes]:
        wanted = tuple(
            Wanted(name, hashlib.sha256(content).hexdigest(), len(content), f"src/{name}")
            for name, content in contents.items()
        )
        given = {"id": "1", "key": KEY, "product": "dicom", "revision": 1, "folder": FOLDER, "files": wanted, **changes}
        given.setdefault("manifest", {"key": given["key"], "kind": "series", "study_uid": "1.2"})
        return Put(**given), Bytes(self.store, list(contents.values()))

    def put(self, contents: dict[str, bytes], *, files: Files | None = None, **changes: Any) -> Done:
        job, source = self.job(contents, **changes)
        try:
            return self.target(files).put(job, source)
        finally:
            source.close()

    def grow(self, before: Receipt, contents: dict[str, bytes], **changes: Any) -> Done:
        given = {"key": before.key, "product": before.product, "revision": before.revision + 1, "previous": before}
        return self.put(contents, **{**given, **changes})

    def tree(self) -> dict[str, bytes]:
        """What a person sees below the root, and hidden stages, but neither marker, manifests nor checksums."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            manifest = path.name.startswith(".sorter-") and path.name.endswith(".json")
            if path.is_symlink():
                found[name] = b"-> " + os.fsencode(os.readlink(path))
            elif path.is_file() and not manifest and ".sorter" not in path.parts:
                found[name] = path.read_bytes()
            elif path.is_dir() and path.name.endswith(".part"):
                found[name] = b"a stage"
        return found

    def manifest(self, folder: str = FOLDER, key: str = KEY, product: str = "dicom") -> dict[str, Any]:
        loaded = json.loads((self.root / folder / f".sorter-{key[:8]}.{product}.json").read_text())
        assert isinstance(loaded, dict)
        return loaded


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def receipt(done: Done, job_key: str = KEY, product: str = "dicom", revision: int = 1) -> Receipt:
    return Receipt(job_key, product, "lab", revision, done.folder, done.files, "2026-01-02T03:04:05+00:00", done.note)


def below(contents: dict[str, bytes], folder: str = FOLDER) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in contents.items()}


TWO = {"001.dcm": b"one" * 1000, "002.dcm": b"two" * 1000}


# --- the first delivery ---------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_with_its_manifest(world: World) -> None:
    done = world.put(TWO)
    assert done == Done(FOLDER, tuple(
        Delivered(name, hashlib.sha256(data).hexdigest(), len(data), f"src/{name}") for name, data in TWO.items()
    ))  # fmt: skip
    assert world.tree() == below(TWO)
    manifest = world.manifest()
    assert (manifest["key"], manifest["product"], manifest["revision"], manifest["study_uid"]) == (
        KEY,
        "dicom",
        1,
        "1.2",
    )
    assert [each["name"] for each in manifest["files"]] == list(TWO)
    assert stat.S_IMODE((world.root / FOLDER).stat().st_mode) & 0o777 == 0o755
    assert stat.S_IMODE((world.root / FOLDER / "001.dcm").stat().st_mode) == 0o644


def test_the_final_name_is_never_seen_half_full(world: World) -> None:
    seen: list[list[str]] = []

    class Looking(Files):
        def fsync(self, fd: int) -> None:
            seen.append(os.listdir(world.root / FOLDER) if (world.root / FOLDER).exists() else [])
            super().fsync(fd)

    world.put(TWO, files=Looking())
    assert {len(names) for names in seen} == {0, 4}  # two images, manifest, checksums


def test_a_job_that_comes_twice_changes_nothing(world: World) -> None:
    first = world.put(TWO)
    before = {path: path.stat().st_ino for path in world.root.rglob("*.dcm")}
    job, source = world.job(TWO)
    assert world.target().put(job, source).files == first.files
    assert source.asked == []
    assert {path: path.stat().st_ino for path in world.root.rglob("*.dcm")} == before
    assert world.tree() == below(TWO)


def test_group_and_modes(world: World) -> None:
    job, source = world.job(TWO)
    world.target(group=str(os.getgid())).put(job, source)
    assert stat.S_IMODE((world.root / FOLDER / "001.dcm").stat().st_mode) == 0o640
    assert stat.S_IMODE((world.root / FOLDER).stat().st_mode) == 0o2750
    assert stat.S_IMODE((world.root / "S1").stat().st_mode) == 0o2750


def test_a_group_that_cannot_be_given_is_said_once(world: World) -> None:
    class Rooted(Files):
        def chown(self, path: Any, uid: int, gid: int) -> None:
            raise PermissionError(errno.EPERM, "no")

    job, source = world.job(TWO)
    done = world.target(Rooted(), group=str(os.getgid() + 1)).put(job, source)
    assert done.note == "the group of the files could not be set"


def test_umask(world: World) -> None:
    job, source = world.job(TWO)
    world.target(umask="027").put(job, source)
    assert stat.S_IMODE((world.root / FOLDER / "001.dcm").stat().st_mode) == 0o640
    assert stat.S_IMODE((world.root / FOLDER).stat().st_mode) & 0o777 == 0o750


@pytest.mark.parametrize(("umask", "file", "folder"), [(None, 0o640, 0o2750), ("007", 0o660, 0o2770)])
def test_a_group_and_a_umask(world: World, umask: str | None, file: int, folder: int) -> None:
    settings = {"group": os.getgid()} if umask is None else {"group": os.getgid(), "umask": umask}
    job, source = world.job(TWO)
    world.target(**settings).put(job, source)
    source.close()
    assert stat.S_IMODE((world.root / FOLDER / "001.dcm").stat().st_mode) == file
    assert {stat.S_IMODE(path.stat().st_mode) for path in (world.root / FOLDER, world.root / "S1")} == {folder}


ALICE = 54321


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as the kernel keeps it (linux/posix_acl_xattr.h): version 2, then tag, perm and id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
DEFAULT_ACL = acl((1, 7, NOBODY), (2, 7, ALICE), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY))
"""u::rwx u:ALICE:rwx g::r-x m::rwx o::---"""


def test_a_default_acl_alone_says_who_may(world: World) -> None:
    """A chmod would take from Alice, through the mask, what the folder's owner gave her."""
    try:
        os.setxattr(world.root, "system.posix_acl_default", DEFAULT_ACL)
    except OSError:
        pytest.skip("this file system knows no ACLs")
    grown = world.grow(receipt(world.put(REV1)), REV2)
    assert [each.state for each in grown.files] == ["written"] * 3
    folders = [world.root / "S1", world.root / "S1/20260102_0900", world.root / FOLDER]
    assert [os.getxattr(folder, "system.posix_acl_default") for folder in folders] == [DEFAULT_ACL] * 3
    assert [os.getxattr(folder, "system.posix_acl_access") for folder in folders] == [DEFAULT_ACL] * 3
    file = acl((1, 6, NOBODY), (2, 7, ALICE), (4, 5, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))
    for path in (each for each in (world.root / FOLDER).rglob("*") if each.is_file()):
        assert os.getxattr(path, "system.posix_acl_access") == file  # she may read and write: 7 within the mask of 6
    assert "default ACL" in world.target().check().remarks[-1]


# --- is the mount really there? -------------------------------------------------------------------------------------


def test_no_marker_means_later_and_makes_nothing(world: World) -> None:
    (world.root / ".sorter" / "id").unlink()
    with pytest.raises(TryLater, match=r"the marker \.sorter/id is missing"):
        world.put(TWO)
    assert world.tree() == {}
    assert not (world.root / ".sorter" / "id").exists()


def test_no_root_means_later(tmp_path: Path, world: World) -> None:
    job, source = world.job(TWO)
    with pytest.raises(TryLater, match="is not there"):
        PathTarget({"root": str(tmp_path / "away")}).put(job, source)


def test_a_root_that_is_a_file_is_held(tmp_path: Path, world: World) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Held, match="is a file, not a folder"):
        PathTarget({"root": str(tmp_path / "file")}).check()


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"root": "here"}, "absolute"), ({}, "absolute"), ({"root": "/x", "group": "no-such-group"}, "there is no group")],
)
def test_settings_that_cannot_be(settings: dict[str, str], says: str) -> None:
    with pytest.raises(Held, match=says):
        PathTarget(settings)


def test_mark_is_made_once_and_never_through_a_link(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    assert mark(root, Files())
    text = (root / ".sorter" / "id").read_text()
    assert len(text) == 33
    assert not mark(root, Files())
    assert (root / ".sorter" / "id").read_text() == text
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".sorter").symlink_to(elsewhere)
    with pytest.raises(SorterError, match="link"):
        mark(tmp_path / "linked", Files())
    with pytest.raises(SorterError, match="is not there"):
        mark(tmp_path / "nothing", Files())
    assert os.listdir(elsewhere) == []


def test_check_makes_the_marker_where_a_person_says_that_this_is_the_place(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    target = PathTarget({"root": str(tmp_path / "root")})
    with pytest.raises(TryLater, match="sorter check --targets"):
        target.check()
    assert "was made" in target.check(prepare=True).remarks[0]
    assert target.check(prepare=True).remarks == ()
    with pytest.raises(SorterError, match="mount it, or make it, first"):
        PathTarget({"root": str(tmp_path / "away")}).check(prepare=True)
    assert not (tmp_path / "away").exists()


def test_what_a_mount_keeps_for_a_moment_of_a_removed_file_fails_no_check(world: World) -> None:
    """FUSE and NFS give a file that is open a hidden name when it is removed, until nobody has it open."""

    class Keeping(Files):
        def unlink(self, path: Any, *, at: int | None = None) -> None:
            if path == "second":
                os.rename(path, ".fuse_hidden0001", src_dir_fd=at, dst_dir_fd=at)
            else:
                super().unlink(path, at=at)

    stage = world.root / ".sorter" / "check.part"
    assert world.target(Keeping()).check().remarks == ()
    assert os.listdir(stage) == [".fuse_hidden0001"]
    assert world.target().check().remarks == ()
    assert not stage.exists()


class Server(Files):
    """A mount that does with owner and permissions what it likes."""

    def __init__(self, **facts: int) -> None:
        self.facts = facts

    def stat(self, path: Any, *, at: int | None = None) -> os.stat_result:
        info = super().stat(path, at=at)
        if not stat.S_ISREG(info.st_mode):
            return info
        mode = stat.S_IFREG | self.facts["mode"] if "mode" in self.facts else info.st_mode
        return os.stat_result((mode, *info[1:4], self.facts.get("uid", info.st_uid), *info[5:]))

    def file_system(self, fd: int) -> int:
        return self.facts.get("kind", super().file_system(fd))

    def lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        if "locks" in self.facts:
            raise OSError(errno.ENOLCK, "no locks available")
        return super().lock(fd, shared=shared, wait=wait)


@pytest.mark.parametrize(
    ("account", "facts", "says"),
    [
        (0, {"uid": 65534}, r"root's files belong to account 65534 there \(root squash\)"),
        (1000, {"uid": 1001}, "files belong to account 1001 there, whoever writes them"),
        (
            1000,
            {"uid": 1000, "mode": 0o755},
            r"permissions are the mount's own \(0755 where 0644 was asked for\), as on",
        ),
        (1000, {"uid": 1000, "kind": NFS}, "in 17 groups, and NFS hands on 16"),
        (1000, {"uid": 1000, "locks": 0}, "knows no locks"),
    ],
)
def test_check_remarks_on(
    world: World, monkeypatch: pytest.MonkeyPatch, account: int, facts: dict[str, int], says: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: account)
    monkeypatch.setattr("os.getgroups", lambda: list(range(17)))
    [remark] = world.target(Server(**facts)).check().remarks
    assert re.search(says, remark)


def test_16_groups_and_a_local_folder_are_no_remark(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getgroups", lambda: list(range(17)))
    assert world.target().check().remarks == ()
    monkeypatch.setattr("os.getgroups", lambda: list(range(16)))
    assert world.target(Server(kind=NFS)).check().remarks == ()


def test_check_leaves_nothing_and_finds_what_a_delivery_would(world: World) -> None:
    world.target().check()
    assert os.listdir(world.root / ".sorter") == ["id"]

    class ReadOnly(Files):
        def mkdir(self, path: Any, mode: int = 0o700, *, at: int | None = None) -> None:
            raise OSError(errno.EROFS, "read-only")

    with pytest.raises(TryLater, match="mounted read-only"):
        world.target(ReadOnly()).check()


def test_a_second_writer_waits_its_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with (world.root / ".sorter" / "id").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr("time.sleep", lambda seconds: fcntl.flock(held, fcntl.LOCK_UN))
        world.put(TWO)
    assert world.tree() == below(TWO)


def test_a_second_writer_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sorter.builtin._path_folders.TURN", 0.0)
    with (world.root / ".sorter" / "id").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TryLater, match="another sorter is delivering"):
            world.put(TWO)
    world.put(TWO)


@pytest.mark.parametrize("writable", [True, False])
def test_smb_calls_a_lock_that_somebody_has_a_lack_of_rights(
    world: World, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    """As it calls any lock of what is open for reading alone: then it says nothing."""

    class Smb(Files):
        def file_system(self, fd: int) -> int:
            return SMB2

        def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
            if path == "id" and flags & os.O_RDWR and not writable:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return super().open(path, flags, mode, at=at)

    def denied(fd: int, operation: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("sorter.builtin._path_folders.TURN", 0.0)
    monkeypatch.setattr("sorter.durable.fcntl.flock", denied)
    if writable:
        with pytest.raises(TryLater, match="another sorter is delivering"):
            world.put(TWO, files=Smb())
    else:
        assert world.put(TWO, files=Smb()).files
    assert world.put(TWO).files  # a mount without locks


# --- nothing leads out of the root ----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["../out", "a/../../out", "/etc", "a/./b", "a/\0"])
def test_folders_that_lead_out(world: World, folder: str) -> None:
    with pytest.raises(Held, match="leads out"):
        world.put(TWO, folder=folder)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", ".sorter-x"])
def test_names_that_lead_out(world: World, name: str) -> None:
    with pytest.raises(Held, match="file name"):
        world.put({name: b"x"})


def test_a_link_in_the_way_is_never_followed(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (world.root / "S1").symlink_to(outside)
    with pytest.raises(Held, match="a file or a link where a folder belongs"):
        world.put(TWO)
    assert os.listdir(outside) == []


def test_a_link_swapped_in_for_a_file_is_the_labs_edit(world: World, tmp_path: Path) -> None:
    done = world.put(TWO)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (world.root / FOLDER / "001.dcm").unlink()
    (world.root / FOLDER / "001.dcm").symlink_to(secret)
    world.grow(receipt(done), {**TWO, "001.dcm": b"newer"})
    assert secret.read_bytes() == b"secret"
    assert world.tree()[f"{FOLDER}/001.dcm.new-rev2"] == b"newer"


def test_a_folder_swapped_for_a_link_in_mid_delivery(world: World, tmp_path: Path) -> None:
    """The lab moves the parent away and puts a link there while files are being staged."""
    outside = tmp_path / "outside"
    outside.mkdir()

    class Swapping(Files):
        swapped = False

        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            if not self.swapped:
                self.swapped = True
                (world.root / "S1").rename(world.root / "moved")
                (world.root / "S1").symlink_to(outside)

    world.put(TWO, files=Swapping())
    assert os.listdir(outside) == []
    assert world.tree()["moved/20260102_0900/004_T1/001.dcm"] == TWO["001.dcm"]


def test_a_named_pipe_or_a_folder_in_a_files_place_does_not_hang(world: World) -> None:
    done = world.put(TWO)
    for name in TWO:
        (world.root / FOLDER / name).unlink()
    os.mkfifo(world.root / FOLDER / "001.dcm")
    (world.root / FOLDER / "002.dcm").mkdir()
    again = world.grow(receipt(done), TWO)
    assert [each.state for each in again.files] == ["kept", "kept"]


# --- growth is polite -----------------------------------------------------------------------------------------------


def test_late_images_join_the_same_folder(world: World) -> None:
    done = world.put(TWO)
    three = {**TWO, "003.dcm": b"three"}
    job, source = world.job(three, revision=2, previous=receipt(done))
    grown = world.target().put(job, source)
    assert source.asked == [2]
    assert world.tree() == below(three)
    assert grown.folder == FOLDER
    assert world.manifest()["revision"] == 2
    assert "earlier" not in world.manifest()


def test_ours_unchanged_is_replaced_and_the_superseded_name_goes(world: World) -> None:
    done = world.put(TWO)
    grown = world.grow(receipt(done), {"001.dcm": b"corrected", "005.dcm": b"five"})
    assert world.tree() == below({"001.dcm": b"corrected", "005.dcm": b"five"})
    assert grown.note == ""


def test_what_the_lab_removed_is_not_brought_back(world: World) -> None:
    done = world.put(TWO)
    (world.root / FOLDER / "001.dcm").unlink()
    grown = world.grow(receipt(done), {**TWO, "003.dcm": b"three"})
    assert world.tree() == below({"002.dcm": TWO["002.dcm"], "003.dcm": b"three"})
    assert [each.state for each in grown.files] == ["removed", "written", "written"]
    assert grown.note == "1 file that the lab removed was not brought back"
    again = world.grow(receipt(grown, revision=2), {**TWO, "003.dcm": b"three", "001.dcm": b"other"})
    assert "001.dcm" not in os.listdir(world.root / FOLDER)
    assert again.files[0].state == "removed"


def test_what_the_lab_edited_stays_and_ours_lies_beside(world: World) -> None:
    done = world.put(TWO)
    edited = world.root / FOLDER / "001.dcm"
    edited.write_bytes(b"the lab's own")
    second = world.grow(receipt(done), {**TWO, "001.dcm": b"rev 2"})
    assert edited.read_bytes() == b"the lab's own"
    assert world.tree()[f"{FOLDER}/001.dcm.new-rev2"] == b"rev 2"
    assert (second.files[0].state, second.files[0].beside) == ("kept", "001.dcm.new-rev2")
    third = world.grow(receipt(second, revision=2), {**TWO, "001.dcm": b"rev 2"})
    assert third.files[0] == second.files[0]  # nothing new: nothing more beside it
    fourth = world.grow(receipt(third, revision=3), {**TWO, "001.dcm": b"rev 4"})
    assert world.tree() == below({"001.dcm": b"the lab's own", "001.dcm.new-rev4": b"rev 4", "002.dcm": TWO["002.dcm"]})
    edited.write_bytes(b"rev 4")  # the lab takes ours
    fifth = world.grow(receipt(fourth, revision=4), {**TWO, "001.dcm": b"rev 4"})
    assert world.tree() == below({**TWO, "001.dcm": b"rev 4"})
    assert fifth.files[0].state == "written"


def test_what_is_too_large_to_be_ours_is_not_read_for_hours(world: World) -> None:
    """A sparse file of any size is made in no time, and its lab's deliveries would wait for it."""

    class Reading(Files):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            assert offset < 2 << 30
            return super().pread(fd, size, offset)

    held, path = receipt(world.put(TWO)), world.root / FOLDER / "001.dcm"
    os.truncate(path, 1 << 40)
    files = Reading()
    assert world.target(files).verify(held).changed == ("001.dcm",)
    done = world.grow(held, REV2, files=files)
    assert (done.files[0].state, done.files[0].beside) == ("kept", "001.dcm.new-rev2")
    assert path.stat().st_size == 1 << 40
    assert world.target(files).remove(receipt(done, revision=2)).left == ("001.dcm",)
    assert path.stat().st_size == 1 << 40


def test_a_superseded_file_that_the_lab_edited_is_left(world: World) -> None:
    done = world.put(TWO)
    (world.root / FOLDER / "002.dcm").write_bytes(b"mine")
    grown = world.grow(receipt(done), {"001.dcm": TWO["001.dcm"]})
    assert world.tree()[f"{FOLDER}/002.dcm"] == b"mine"
    assert grown.note == "1 file of an earlier revision was left: the lab edited it"


def test_an_edit_at_the_last_moment_is_not_overwritten(world: World) -> None:
    done = world.put(TWO)
    edited = world.root / FOLDER / "001.dcm"

    class Editing(Files):
        def write(self, fd: int, data: Any) -> int:
            edited.write_bytes(b"just now")
            return super().write(fd, data)

    with pytest.raises(TryLater, match="changed while"):
        world.grow(receipt(done), {**TWO, "001.dcm": b"rev 2"}, files=Editing())
    assert edited.read_bytes() == b"just now"
    world.grow(receipt(done), {**TWO, "001.dcm": b"rev 2"})
    assert world.tree() == below({**TWO, "001.dcm": b"just now", "001.dcm.new-rev2": b"rev 2"})


def test_a_moved_folder_is_found_and_grows_where_it_is(world: World) -> None:
    done = world.put(TWO)
    (world.root / "analysis" / "mine").mkdir(parents=True)
    (world.root / FOLDER).rename(world.root / "analysis" / "mine" / "anatomy")
    grown = world.grow(receipt(done), {**TWO, "003.dcm": b"three"})
    assert grown.folder == "analysis/mine/anatomy"
    assert grown.note == "the lab moved the folder; the new files went to where it is now"
    assert world.tree() == below({**TWO, "003.dcm": b"three"}, "analysis/mine/anatomy")
    world.grow(receipt(grown, revision=2), {**TWO, "003.dcm": b"three", "004.dcm": b"four"})
    assert len(world.tree()) == 4


def test_a_moved_folder_is_not_mistaken_for_its_successor(world: World) -> None:
    """The lab moved ours away, and another unit was delivered to the name that became free."""
    done = world.put(TWO)
    (world.root / FOLDER).rename(world.root / "moved")
    world.put({"001.dcm": b"of another"}, key=OTHER)
    grown = world.grow(receipt(done), {**TWO, "003.dcm": b"three"})
    assert grown.folder == "moved"
    assert world.tree() == {**below({"001.dcm": b"of another"}), **below({**TWO, "003.dcm": b"three"}, "moved")}


def test_a_search_in_a_slow_share_is_no_silence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call there may take a second, and thousands of folders are looked into: whoever moves gives signs of life."""
    clock, ours, theirs = [0.0], *socket.socketpair()
    monkeypatch.setattr("sorter.deliver.worker.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Slow(Beating):
        def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
            clock[0] += 1
            return super().open(path, flags, mode, at=at)

    held = receipt(world.put(TWO))
    for number in range(100):
        (world.root / f"S{number:03}").mkdir()
    shutil.rmtree(world.root / FOLDER)
    with ours, theirs:
        assert world.target(Slow(Channel(theirs))).verify(held).missing
        ours.setblocking(False)
        signs = ours.recv(1 << 16).count(b"alive")
    assert signs > 20


def test_a_large_file_is_synced_piece_by_piece(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync of all of it takes minutes by a slow line, without a sign of life: that looks as if the mount hung."""
    monkeypatch.setattr("sorter.durable._COPY_STEP", 1 << 10)
    monkeypatch.setattr("sorter.builtin._path_stage._SYNC", 4 << 10)

    class Counting(Files):
        waiting, most = 0, 0

        def reflink(self, source: int, target: int) -> bool:
            return False

        def write(self, fd: int, data: Any) -> int:
            self.waiting += (done := super().write(fd, data))
            self.most = max(self.most, self.waiting)
            return done

        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            self.waiting = 0

    files, large = Counting(), {"001.dcm": b"large" * 5000}
    world.put(large, files=files)
    assert files.most <= 4 << 10
    assert world.tree() == below(large)


def test_a_vanished_folder_comes_whole_and_says_so(world: World) -> None:
    done = world.put(TWO)
    (world.root / FOLDER).rename(world.root.parent / "taken out of the root")
    grown = world.grow(receipt(done), {**TWO, "003.dcm": b"three"})
    assert grown.folder == FOLDER
    assert "delivered anew" in grown.note
    assert world.tree() == below({**TWO, "003.dcm": b"three"})


def test_growth_without_the_manifest(world: World) -> None:
    done = world.put(TWO)
    (world.root / FOLDER / f".sorter-{KEY[:8]}.dicom.json").unlink()
    (world.root / FOLDER / "001.dcm").unlink()
    world.grow(receipt(done), {**TWO, "003.dcm": b"three"})
    assert world.tree() == below({"002.dcm": TWO["002.dcm"], "003.dcm": b"three"})
    assert world.manifest()["revision"] == 2


def test_a_manifest_full_of_nonsense_stops_nothing(world: World) -> None:
    done = world.put(TWO)
    path = world.root / FOLDER / f".sorter-{KEY[:8]}.dicom.json"
    for nonsense in ('{"key": ', "[]", "[" * 100_000, json.dumps({"key": KEY, "product": "dicom", "files": [1]})):
        path.write_text(nonsense)
        world.grow(receipt(done), {**TWO, "003.dcm": b"three"})
        assert world.tree() == below({**TWO, "003.dcm": b"three"})


# --- clashes and shared folders -------------------------------------------------------------------------------------


def nifti(world: World, key: str, content: bytes, **changes: Any) -> Done:
    files = {"004_T1.nii.gz": content, "004_T1.json": b"{}" + content}
    return world.put(files, **{"key": key, "product": "nifti", "folder": "S1/nifti", **changes})


def test_units_share_a_folder_and_a_clash_goes_to_the_newcomer(world: World) -> None:
    first = nifti(world, KEY, b"first")
    second = nifti(world, OTHER, b"second")
    assert [each.name for each in first.files] == ["004_T1.nii.gz", "004_T1.json"]
    assert [each.name for each in second.files] == ["004_T1_bbbbbb.nii.gz", "004_T1_bbbbbb.json"]
    assert len(world.tree()) == 4
    again = nifti(world, OTHER, b"second")
    assert again.files == second.files
    grown = nifti(world, OTHER, b"second, newer", revision=2, previous=receipt(second, OTHER, "nifti"))
    assert [each.name for each in grown.files] == [each.name for each in second.files]
    assert len(world.tree()) == 4
    assert world.tree()["S1/nifti/004_T1.nii.gz"] == b"first"


def test_equal_bytes_of_another_unit_are_still_its_own(world: World) -> None:
    nifti(world, KEY, b"same")
    second = nifti(world, OTHER, b"same")
    world.target().remove(receipt(second, OTHER, "nifti"))
    assert world.tree() == {"S1/nifti/004_T1.nii.gz": b"same", "S1/nifti/004_T1.json": b"{}same"}


def test_a_labs_own_file_of_that_name_is_never_touched(world: World) -> None:
    (world.root / "S1" / "nifti").mkdir(parents=True)
    (world.root / "S1" / "nifti" / "004_T1.json").write_bytes(b"the lab's")
    done = nifti(world, KEY, b"ours")
    assert [each.name for each in done.files] == ["004_T1_aaaaaa.nii.gz", "004_T1_aaaaaa.json"]
    assert world.tree()["S1/nifti/004_T1.json"] == b"the lab's"


def test_only_the_newcomer_of_a_growth_gives_way(world: World) -> None:
    first = nifti(world, KEY, b"first")
    (world.root / "S1" / "nifti" / "004_T1.bval").write_bytes(b"the lab's")
    files = {"004_T1.nii.gz": b"first", "004_T1.json": b"{}first", "004_T1.bval": b"ours"}
    grown = world.put(files, product="nifti", folder="S1/nifti", revision=2, previous=receipt(first, product="nifti"))
    assert [each.name for each in grown.files] == ["004_T1.nii.gz", "004_T1.json", "004_T1_aaaaaa.bval"]


def test_what_lies_beside_an_edit_is_removed_though_its_receipt_was_lost(world: World) -> None:
    """Who withdraws knows from the plan what there should be; the manifest knows where it is."""
    first = world.put(TWO)
    (world.root / FOLDER / "001.dcm").write_bytes(b"the lab's own")
    newer = {**TWO, "001.dcm": b"rev 2"}
    second = receipt(world.grow(receipt(first), newer), revision=2)
    planned = tuple(replace(each, state="written", beside="") for each in second.files)
    removed = world.target().remove(replace(second, files=planned))
    assert (removed.removed, removed.left) == (("002.dcm", "001.dcm.new-rev2"), ("001.dcm",))
    assert world.tree() == below({"001.dcm": b"the lab's own"})


def test_after_a_newcomer_gave_way_all_others_keep_their_names(world: World) -> None:
    """What the lab removed stays removed, what it edited stays, and nothing comes again under another name."""
    first = nifti(world, KEY, b"first")
    folder = world.root / "S1" / "nifti"
    (folder / "004_T1.bval").write_bytes(b"the lab's")
    files = {"004_T1.nii.gz": b"first", "004_T1.json": b"{}first", "004_T1.bval": b"ours"}
    grown = world.put(files, product="nifti", folder="S1/nifti", revision=2, previous=receipt(first, product="nifti"))
    (folder / "004_T1.json").unlink()
    (folder / "004_T1.nii.gz").write_bytes(b"edited")
    files["004_T1.bvec"] = b"more"
    done = world.put(files, product="nifti", folder="S1/nifti", revision=3, previous=receipt(grown, product="nifti"))
    assert [each.state for each in done.files] == ["kept", "removed", "written", "written"]
    assert world.tree() == {
        "S1/nifti/004_T1.nii.gz": b"edited",
        "S1/nifti/004_T1.nii.gz.new-rev3": b"first",
        "S1/nifti/004_T1.bval": b"the lab's",
        "S1/nifti/004_T1_aaaaaa.bval": b"ours",
        "S1/nifti/004_T1.bvec": b"more",
    }


def test_images_never_join_another_units_folder(world: World) -> None:
    world.put(TWO)
    done = world.put({"001.dcm": b"other"}, key=OTHER)
    assert done.folder == f"{FOLDER}_bbbbbb"
    assert world.put({"001.dcm": b"other"}, key=OTHER).folder == done.folder
    assert world.tree() == {**below(TWO), f"{FOLDER}_bbbbbb/001.dcm": b"other"}


def test_images_share_a_folder_where_the_plan_means_it(world: World) -> None:
    world.put(TWO)
    done = world.put({"101.dcm": b"other"}, key=OTHER, shared=True)
    assert done.folder == FOLDER
    assert world.tree() == below({**TWO, "101.dcm": b"other"})


class Folding(Files):
    """A mount that takes `A` and `a` for one name, as SMB does: each name is looked up as it stands in the folder."""

    def _seen(self, path: Any, at: int | None) -> Any:
        if not isinstance(path, str) or "/" in path:
            return path
        return next((name for name in os.listdir(at) if name.casefold() == path.casefold()), path)

    def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        return super().open(self._seen(path, at), flags, mode, at=at)

    def stat(self, path: Any, *, at: int | None = None) -> os.stat_result:
        return super().stat(path if isinstance(path, int) else self._seen(path, at), at=at)

    def rename_new(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        super().rename_new(self._seen(old, at), self._seen(new, to), at=at, to=to)


def test_names_are_compared_as_the_file_system_does(world: World) -> None:
    both = {"a.dcm": b"lower", "A.dcm": b"upper"}
    assert [each.name for each in world.put(both).files] == ["a.dcm", "A.dcm"]
    done = world.put(both, files=Folding(), folder="smb")
    names = [each.name for each in done.files]
    assert names[0] == "a.dcm"
    assert len({name.casefold() for name in names}) == 2
    more = {**both, "b.dcm": b"b"}
    grown = world.put(more, files=Folding(), folder="smb", revision=2, previous=receipt(done))
    assert [each.name for each in grown.files][:2] == names
    assert set(world.tree().values()) == {b"lower", b"upper", b"b"}


def test_one_name_twice_never_loses_a_file(world: World) -> None:
    job, _ = world.job({"a.dcm": b"first"})
    twice = (job.files[0], Wanted("a.dcm", hashlib.sha256(b"second").hexdigest(), 6, "src/second"))
    source = Bytes(world.store, [b"first", b"second"])
    done = world.target().put(Put("1", KEY, "dicom", 1, FOLDER, twice), source)
    source.close()
    assert len({each.name for each in done.files}) == 2
    assert sorted(world.tree().values()) == [b"first", b"second"]


# --- faults ---------------------------------------------------------------------------------------------------------


class Failing(Files):
    """The n-th changing call, counted from 0, fails with `code`; with `after`, although it was done (a lost reply)."""

    def __init__(self, nth: int, code: int, *, after: bool = False, forever: bool = False) -> None:
        self.left, self.code, self.after, self.forever = nth, code, after, forever
        self.fired = False

    def _count(self, effect: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left == -1 or (self.forever and self.left < 0):
            self.fired = True
            if self.after:
                effect()
            raise OSError(self.code, os.strerror(self.code))
        return effect()

    def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        if flags & os.O_CREAT:
            if self.after:
                return super().open(path, flags, mode, at=at)
            return int(self._count(lambda: super(Failing, self).open(path, flags, mode, at=at)))
        return super().open(path, flags, mode, at=at)

    def write(self, fd: int, data: Any) -> int:
        return int(self._count(lambda: super(Failing, self).write(fd, data)))

    def fsync(self, fd: int) -> None:
        self._count(lambda: super(Failing, self).fsync(fd))

    def mkdir(self, path: Any, mode: int = 0o700, *, at: int | None = None) -> None:
        self._count(lambda: super(Failing, self).mkdir(path, mode, at=at))

    def rmdir(self, path: Any, *, at: int | None = None) -> None:
        self._count(lambda: super(Failing, self).rmdir(path, at=at))

    def unlink(self, path: Any, *, at: int | None = None) -> None:
        self._count(lambda: super(Failing, self).unlink(path, at=at))

    def chmod(self, path: Any, mode: int) -> None:
        self._count(lambda: super(Failing, self).chmod(path, mode))

    def rename(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        self._count(lambda: super(Failing, self).rename(old, new, at=at, to=to))

    def rename_new(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        self._count(lambda: super(Failing, self).rename_new(old, new, at=at, to=to))

    def link(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        self._count(lambda: super(Failing, self).link(old, new, at=at, to=to))


class Oldest(Failing):
    """Failing, on a mount that knows neither RENAME_NOREPLACE nor links."""

    def rename_new(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        raise OSError(errno.EINVAL, "no RENAME_NOREPLACE")

    def link(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        raise OSError(errno.EPERM, "no links")


class Linking(Failing):
    """Failing, on a mount that has links but not RENAME_NOREPLACE."""

    def rename_new(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        raise OSError(errno.EINVAL, "no RENAME_NOREPLACE")


REV1 = {"001.dcm": b"one", "002.dcm": b"two", "003.dcm": b"three"}
REV2 = {"001.dcm": b"one, corrected", "002.dcm": b"two", "004.dcm": b"four"}


def scenario(base: Path, files: Files) -> tuple[World, int]:
    """Two revisions, each tried again without faults after `files` failed it; returns how many attempts failed."""
    world, said = World(base), list[str]()
    before: Receipt | None = None
    for number, contents in enumerate((REV1, REV2), 1):
        done = None
        for attempt in (files, Files()):
            try:
                done = world.put(contents, files=attempt, revision=number, previous=before)
                break
            except (TryLater, Held) as error:
                said.append(str(error))
        assert done is not None
        before = receipt(done, revision=number)
        assert {each.state for each in done.files} == {"written"}
    assert all(str(world.root) in sentence and "T1" not in sentence for sentence in said)
    return world, len(said)


def every_fault(tmp_path: Path, make: Callable[[int], Failing], step: int = 1) -> Iterator[tuple[World, int]]:
    for nth in range(0, 2000, step):
        files = make(nth)
        base = tmp_path / str(nth)
        base.mkdir()
        result = scenario(base, files)
        if not files.fired:
            assert nth > 15
            return
        yield result
    raise AssertionError("no end of effects")


CODES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EINTR, errno.EACCES]


class EveryCall(Failing):
    """Failing, and what only looks or reads is counted too."""

    def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        return int(self._count(lambda: Files.open(self, path, flags, mode, at=at)))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._count(lambda: Files.pread(self, fd, size, offset)))

    def readinto(self, fd: int, buffer: Any) -> int:
        return int(self._count(lambda: Files.readinto(self, fd, buffer)))

    def stat(self, path: Any, *, at: int | None = None) -> os.stat_result:
        found: os.stat_result = self._count(lambda: Files.stat(self, path, at=at))
        return found

    def scan(self, path: Any) -> list[tuple[str, os.stat_result]]:
        return list(self._count(lambda: Files.scan(self, path)))

    def names(self, path: Any) -> list[str]:
        return list(self._count(lambda: Files.names(self, path)))

    def lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        return bool(self._count(lambda: Files.lock(self, fd, shared=shared, wait=wait)))


@pytest.mark.parametrize(
    ("code", "step"), [(errno.EIO, 5), *(pytest.param(code, 1, marks=pytest.mark.soak) for code in CODES)]
)
def test_a_fault_at_every_call(tmp_path: Path, code: int, step: int) -> None:
    """No call of a delivery may fail so that a file is lost, doubled, or wrongly said to be there."""
    calls = 0
    for world, _ in every_fault(tmp_path, lambda nth: EveryCall(nth, code), step):
        calls += step
        assert world.tree() == below(REV2)
        assert world.manifest()["revision"] == 2
    assert calls > 100


def test_what_stops_every_delivery_is_told_from_what_stops_one(world: World) -> None:
    whole = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)
    for code in (*whole, errno.EACCES, errno.ETXTBSY, errno.EBUSY, errno.EINTR):
        with pytest.raises(TryLater) as said:
            world.put(TWO, files=Failing(3, code))
        assert isinstance(said.value, Away) == (code in whole)


@pytest.mark.parametrize("owner", ["ours", "the lab's"])
def test_a_file_that_cannot_be_read_now_is_no_edit_where_it_is_ours(world: World, owner: str) -> None:
    """Simulated: an SMB server lets nobody read what somebody has open for himself alone."""

    class Locked(Server):
        def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
            if path == "001.dcm" and not flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "permission denied")
            return super().open(path, flags, mode, at=at)

    first = receipt(world.put(REV1))
    if owner == "ours":
        with pytest.raises(TryLater):
            world.grow(first, REV2, files=Locked())
        world.grow(first, REV2)
        assert world.tree() == below(REV2)
        return
    done = world.grow(first, REV2, files=Locked(uid=os.geteuid() + 1))
    assert {each.name: each.state for each in done.files}["001.dcm"] == "kept"
    assert world.tree() == below({**REV2, "001.dcm": REV1["001.dcm"], "001.dcm.new-rev2": REV2["001.dcm"]})


@pytest.mark.parametrize("mine", [True, False])
def test_whose_a_folder_is_waits_for_a_manifest_that_somebody_has_open(world: World, mine: bool) -> None:
    """Simulated, as above: a backup, or what looks for viruses. Nothing joins what may be another series' folder."""

    class Locked(Files):
        def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
            if str(path) == f".sorter-{KEY[:8]}.dicom.json" and not flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "permission denied")
            return super().open(path, flags, mode, at=at)

    held = receipt(world.put(TWO))
    other = {"009.dcm": b"other"}
    with pytest.raises(TryLater):
        world.grow(held, REV1, files=Locked()) if mine else world.put(other, key=OTHER, files=Locked())
    assert world.tree() == below(TWO)
    (world.root / FOLDER / f".sorter-{KEY[:8]}.dicom.json").chmod(0o200)  # what a lab did on purpose stops nothing
    world.grow(held, TWO, files=Locked()) if mine else world.put(other, key=OTHER, files=Locked())


@pytest.mark.parametrize("code", [errno.ETXTBSY, errno.EBUSY, errno.EACCES])
def test_a_file_that_is_open_on_smb_waits_and_is_replaced_when_it_is_closed(world: World, code: int) -> None:
    """Simulated: a rename onto a file that somebody has open fails there."""

    class Open(Files):
        def rename(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
            if new == "001.dcm":
                raise OSError(code, os.strerror(code))
            super().rename(old, new, at=at, to=to)

    first = receipt(world.put(REV1))
    with pytest.raises(TryLater) as said:
        world.grow(first, REV2, files=Open())
    assert not isinstance(said.value, Away)
    assert world.tree()[f"{FOLDER}/001.dcm"] == REV1["001.dcm"]
    world.grow(first, REV2)
    assert world.tree() == below(REV2)


@pytest.mark.parametrize(
    ("kind", "code"),
    [*((Failing, code) for code in CODES), (Linking, errno.ENOSPC), (Oldest, errno.ENOSPC)],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value.__name__,
)
def test_a_fault_at_every_effect(tmp_path: Path, kind: type[Failing], code: int) -> None:
    for world, failed in every_fault(tmp_path, lambda nth: kind(nth, code)):
        assert failed == 1 or code == errno.EACCES  # permissions that cannot be set are only said
        assert world.tree() == below(REV2)
        assert world.manifest()["revision"] == 2


@pytest.mark.parametrize("kind", [Failing, Linking, Oldest])
@pytest.mark.parametrize("code", [errno.ENOENT, errno.EEXIST])
def test_a_lost_reply_at_every_effect(tmp_path: Path, kind: type[Failing], code: int) -> None:
    for world, _ in every_fault(tmp_path, lambda nth: kind(nth, code, after=True)):
        assert world.tree() == below(REV2)


def test_an_outage_from_every_effect_on(tmp_path: Path) -> None:
    """The target stays away, so nothing can be cleared either; the next put finds what was left."""
    for world, _ in every_fault(tmp_path, lambda nth: Failing(nth, errno.EIO, forever=True)):
        assert world.tree() == below(REV2)


class Dies(BaseException):
    """kill -9, or a power cut: nothing after it runs."""


class Dead(Failing):
    def _count(self, effect: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left < 0:
            self.fired = True
            raise Dies
        return effect()


def test_death_at_every_effect_then_a_newer_revision(tmp_path: Path) -> None:
    """No receipt of the attempt that died, and what comes next is not even the same revision."""
    rev3 = {**REV2, "001.dcm": b"one, corrected twice", "004.dcm": b"four, newer"}
    for nth in range(1000):
        base = tmp_path / str(nth)
        base.mkdir()
        world = World(base)
        first = receipt(world.put(REV1))
        dead = Dead(nth, 0)
        try:
            world.put(REV2, files=dead, revision=2, previous=first)
        except Dies:
            pass
        else:
            assert not dead.fired
            assert nth > 15
            return
        done = world.put(rev3, revision=3, previous=first)
        assert {each.state for each in done.files} == {"written"}
        assert world.tree() == below(rev3), nth


def test_short_writes(world: World) -> None:
    class Short(Files):
        def write(self, fd: int, data: Any) -> int:
            return super().write(fd, memoryview(data)[:7])

        def reflink(self, source: int, target: int) -> bool:
            return False

    world.put(TWO, files=Short())
    assert world.tree() == below(TWO)


def test_a_target_that_flips_a_byte_after_fsync_gets_no_receipt(world: World) -> None:
    class Flipping(Files):
        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            if stat.S_ISREG(os.fstat(fd).st_mode) and os.fstat(fd).st_size == len(TWO["002.dcm"]):
                os.pwrite(fd, b"X", 17)

    with pytest.raises(TryLater, match="other bytes than were written"):
        world.put(TWO, files=Flipping())
    assert world.tree() == {}
    world.put(TWO)
    assert world.tree() == below(TWO)


def test_a_damaged_store_is_told_from_a_damaged_target(world: World) -> None:
    job, source = world.job(TWO)
    source.paths[1].write_bytes(b"rot" * 1000)
    with pytest.raises(Held, match="store"):
        world.target().put(job, source)
    source.close()
    assert world.tree() == {}


def test_a_dead_workers_stage_is_used_again(world: World) -> None:
    stage = world.root / "S1/20260102_0900" / f".sorter-{KEY[:8]}-dicom.part"
    (stage / "deep" / "er").mkdir(parents=True)
    (stage / "001.dcm").write_bytes(TWO["001.dcm"])
    (stage / "002.dcm").write_bytes(b"half")
    (stage / "stranger").symlink_to("/etc/passwd")
    job, source = world.job(TWO)
    world.target().put(job, source)
    source.close()
    assert source.asked == [1]
    assert world.tree() == below(TWO)


def test_what_a_dead_worker_left_whole_gets_its_permissions_too(world: World) -> None:
    class Dying(Files):
        dead = False

        def chmod(self, path: Any, mode: int) -> None:
            if stat.S_ISREG(self.stat(path).st_mode):
                self.dead = True
                raise Dies
            super().chmod(path, mode)

        def unlink(self, path: Any, *, at: int | None = None) -> None:
            if self.dead:
                raise Dies
            super().unlink(path, at=at)

    for files in (Dying(), Files()):
        job, source = world.job(TWO)
        with contextlib.suppress(Dies), contextlib.closing(source):
            world.target(files, umask="002").put(job, source)
    assert source.asked == [1]
    assert {stat.S_IMODE((world.root / FOLDER / name).stat().st_mode) for name in TWO} == {0o664}


def test_what_takes_the_place_of_what_a_dead_worker_left_keeps_its_permissions(world: World) -> None:
    """Between two looks at the stage, whoever may write to the folder gives the name to a file with another name."""
    other = world.root / "of somebody.dcm"
    stage = world.root / FOLDER / f".sorter-{KEY[:8]}-dicom.part"
    stage.mkdir(parents=True)
    (stage / "001.dcm").write_bytes(TWO["001.dcm"])
    other.write_bytes(TWO["001.dcm"])
    other.chmod(0o600)

    class Swapped(Files):
        def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
            if path == "001.dcm" and flags & os.O_NONBLOCK and other.stat().st_nlink == 1:
                (stage / path).unlink()
                (stage / path).hardlink_to(other)
            return super().open(path, flags, mode, at=at)

    world.put(TWO, files=Swapped(), folder=FOLDER)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert other.read_bytes() == TWO["001.dcm"]
    assert {name: (world.root / FOLDER / name).read_bytes() for name in TWO} == TWO


def test_a_store_that_cannot_be_read_is_no_outage_of_the_target(world: World) -> None:
    """Else one image on a bad disk would keep all others of its lab waiting, for ever again."""

    class Ill(Files):
        def reflink(self, source: int, target: int) -> bool:
            return False

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            if os.readlink(f"/proc/self/fd/{fd}") == str(source.paths[1]):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().pread(fd, size, offset)

    job, source = world.job(TWO)
    with pytest.raises(TryLater, match=r"^the store cannot be read: Input/output error") as said:
        world.target(Ill()).put(job, source)
    assert not isinstance(said.value, Away)
    source.close()
    assert world.tree() == {}


def test_a_fault_is_a_sentence_of_its_own(world: World) -> None:
    for code, says in ((errno.ENOSPC, "is full"), (errno.EDQUOT, "quota"), (errno.ENOTCONN, "is away")):
        with pytest.raises(TryLater, match=says):
            world.put(TWO, files=Failing(3, code))
    with pytest.raises(Held, match="names this long"):
        world.put({"x" * 300: b""})


# --- verify and remove ----------------------------------------------------------------------------------------------


def test_verify_tells_edited_removed_and_damaged_apart(world: World) -> None:
    contents = {f"{number}.dcm": b"x%d" % number * 100 for number in range(5)}
    held = Receipt(KEY, "dicom", "lab", 1, FOLDER, world.put(contents).files, "2026-01-02T03:04:05+00:00")
    folder = world.root / FOLDER
    for name in contents:
        os.utime(folder / name, (1, 1))
    assert world.target().verify(held).whole
    (folder / "1.dcm").unlink()
    (folder / "2.dcm").write_bytes(b"edited")
    (folder / "3.dcm").write_bytes(b"y3" * 100)
    os.utime(folder / "3.dcm", (1, 1))
    found = world.target().verify(held)
    assert (found.same, found.missing, found.changed, found.damaged) == (
        ("0.dcm", "4.dcm"), ("1.dcm",), ("2.dcm",), ("3.dcm",)
    )  # fmt: skip
    assert not found.whole
    quick = world.target().verify(held, deep=False)
    assert (quick.missing, quick.changed) == (("1.dcm",), ("2.dcm",))
    assert "3.dcm" in quick.same
    folder.rename(world.root / "moved")
    assert world.target().verify(held).folder == "moved"


def test_verify_looks_beside_a_delivery(world: World) -> None:
    held = receipt(world.put(TWO))
    with open(world.root / ".sorter/id", "r+") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        assert world.target().verify(held).whole


def as_a_backup_would(world: World, to: Path) -> None:
    """The root as it was when it was copied there."""
    shutil.rmtree(world.root)
    shutil.copytree(to, world.root)


def test_a_target_put_back_to_an_earlier_day_is_seen_and_mended(world: World, tmp_path: Path) -> None:
    first = receipt(world.put({**TWO, "own.dcm": b"1"}))
    (world.root / FOLDER / "001.dcm").unlink()  # by the lab, before the backup
    shutil.copytree(world.root, tmp_path / "backup")
    newer = {**TWO, "own.dcm": b"corrected", "003.dcm": b"three"}
    second = receipt(world.grow(first, newer), revision=2)
    as_a_backup_would(world, tmp_path / "backup")
    for deep in (True, False):
        found = world.target().verify(second, deep=deep)
        assert (found.outdated, found.missing, found.there) == (("own.dcm", "003.dcm"), (), True)
    mended = world.put(newer, revision=2, previous=second, mend=found.outdated)
    assert world.target().verify(receipt(mended, revision=2)).whole
    assert world.tree() == below({name: content for name, content in newer.items() if name != "001.dcm"})


def test_a_folder_that_is_gone_is_told_from_one_that_was_emptied(world: World) -> None:
    held = receipt(world.put(TWO))
    for name in TWO:
        (world.root / FOLDER / name).unlink()
    emptied = world.target().verify(held)
    assert (emptied.missing, emptied.there) == (tuple(TWO), True)
    shutil.rmtree(world.root / FOLDER)
    assert not world.target().verify(held).there


def test_what_is_damaged_is_moved_aside_and_never_lost(world: World) -> None:
    held = receipt(world.put(TWO))
    for damage in (b"flipped", b"and again"):
        (world.root / FOLDER / "001.dcm").write_bytes(damage)
        (world.root / FOLDER / "002.dcm").write_bytes(b"the lab's own work")
        done = world.put(TWO, previous=held, mend=("001.dcm",))
        assert "NAME.damaged" in done.note
        held = receipt(done)
    names = {f"{FOLDER}/001.dcm.damaged": b"flipped", f"{FOLDER}/001.dcm.damaged-2": b"and again"}
    edits = {f"{FOLDER}/002.dcm": b"the lab's own work", f"{FOLDER}/002.dcm.new-rev1": TWO["002.dcm"]}
    assert world.tree() == {f"{FOLDER}/001.dcm": TWO["001.dcm"], **names, **edits}
    taken = world.target().remove(held)  # what is left of it is named, whoever withdraws it has to know
    assert taken.left == ("001.dcm.damaged", "001.dcm.damaged-2", "002.dcm")
    assert set(world.tree()) == {f"{FOLDER}/{name}" for name in taken.left}


def test_only_what_is_asked_for_is_mended(world: World) -> None:
    held = receipt(world.put(TWO))
    (world.root / FOLDER / "001.dcm").unlink()
    (world.root / FOLDER / "002.dcm").unlink()
    world.put(TWO, previous=held, mend=("002.dcm", "of nobody.dcm"))
    assert world.tree() == below({"002.dcm": TWO["002.dcm"]})


def sums(world: World) -> subprocess.CompletedProcess[bytes]:
    listed = sorted((world.root / FOLDER / ".sorter").glob("*.sha256"))
    return subprocess.run(["sha256sum", "--check", "--strict", *listed], cwd=world.root / FOLDER, capture_output=True)


def test_checksums_are_what_sha256sum_reads(world: World) -> None:
    held = receipt(world.put({"001.dcm": b"one", "a\\b c.dcm": b"strange"}))
    assert sums(world).returncode == 0
    grown = world.grow(held, {"001.dcm": b"one", "003.dcm": b"three"})
    assert (sums(world).returncode, len(sums(world).stdout.splitlines())) == (0, 2)
    (world.root / FOLDER / "003.dcm").write_bytes(b"Three")
    assert sums(world).returncode == 1
    (world.root / FOLDER / "003.dcm").write_bytes(b"three")
    world.target().remove(receipt(grown, revision=2))
    assert not (world.root / FOLDER / ".sorter").exists()


def test_something_in_the_way_of_checksums_stops_no_delivery(world: World, tmp_path: Path) -> None:
    held = receipt(world.put(TWO))
    shutil.rmtree(world.root / FOLDER / ".sorter")
    (world.root / FOLDER / ".sorter").symlink_to(tmp_path)
    done = world.grow(held, {**TWO, "003.dcm": b"three"})
    assert "checksums could not be written" in done.note
    assert not list(tmp_path.glob("*.sha256"))


def test_remove_takes_only_what_equals_its_receipt(world: World) -> None:
    held = receipt(world.put(TWO))
    (world.root / FOLDER / "001.dcm").write_bytes(b"the lab's")
    gone = world.target().remove(held)
    assert (gone.removed, gone.left) == (("002.dcm",), ("001.dcm",))
    assert "1 file was left" in gone.note
    assert world.tree() == below({"001.dcm": b"the lab's"})
    assert os.listdir(world.root / FOLDER) == ["001.dcm"]


def test_remove_takes_the_empty_folders_too_and_may_come_twice(world: World) -> None:
    held = receipt(world.put(TWO))
    world.target().remove(held)
    assert os.listdir(world.root) == [".sorter"]
    assert world.target().remove(held).note == "its folder is not there any more"


# --- what only shows when something else goes wrong too -------------------------------------------------------------


def test_a_stage_of_before_the_folder_was_there_is_cleared(world: World) -> None:
    stage = world.root / "S1/20260102_0900" / f".sorter-{KEY[:8]}-dicom.part"
    stage.mkdir(parents=True)
    (stage / "001.dcm").write_bytes(b"half")
    (world.root / FOLDER).mkdir()
    world.put(TWO)
    assert world.tree() == below(TWO)


def test_two_deaths_and_a_third_revision(tmp_path: Path) -> None:
    """The digest of an attempt that died is still known as ours after the next attempt has died too."""
    versions = [{"001.dcm": b"version %d" % number} for number in range(5)]

    class DiesThen(Files):  # after the file was replaced, before the manifest is made final
        def rename(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
            super().rename(old, new, at=at, to=to)
            if new == "001.dcm":
                raise Dies

    for nth in range(1000):
        base = tmp_path / str(nth)
        base.mkdir()
        world = World(base)
        first = receipt(world.put(versions[1]))
        with pytest.raises(Dies):
            world.put(versions[2], files=DiesThen(), revision=2, previous=first)
        assert world.tree()[f"{FOLDER}/001.dcm"] == versions[2]["001.dcm"]
        try:
            world.put(versions[3], files=Dead(nth, 0), revision=3, previous=first)
        except Dies:
            pass
        else:
            assert nth > 9
            return
        world.put(versions[4], revision=4, previous=first)
        assert world.tree() == below(versions[4]), nth


def test_a_successor_at_our_place_is_left_alone_when_ours_is_gone(world: World) -> None:
    done = world.put(TWO)
    (world.root / FOLDER).rename(world.root.parent / "taken out of the root")
    world.put(TWO, key=OTHER)
    grown = world.grow(receipt(done), {**TWO, "003.dcm": b"three"})
    assert grown.folder == f"{FOLDER}_{KEY[:6]}"
    assert world.tree() == {**below(TWO), **below({**TWO, "003.dcm": b"three"}, grown.folder)}


def test_a_labs_backup_is_not_grown_while_the_original_stands(world: World) -> None:
    done = world.put(TWO)
    manifest = f".sorter-{KEY[:8]}.dicom.json"
    (world.root / "S1" / "backup").mkdir()
    (world.root / FOLDER / manifest).rename(world.root / "S1" / "backup" / manifest)
    assert world.grow(receipt(done), {**TWO, "003.dcm": b"three"}).folder == FOLDER


def test_keys_that_begin_alike_keep_their_own_manifests(world: World) -> None:
    twin = KEY[:8] + "f" * 24
    first = nifti(world, KEY, b"first")
    second = nifti(world, twin, b"second")
    third = nifti(world, KEY, b"first, newer", revision=2, previous=receipt(first, KEY, "nifti"))
    assert [each.state for each in third.files] == ["written", "written"]
    assert world.manifest("S1/nifti", KEY, "nifti")["key"] == KEY
    world.target().remove(receipt(second, twin, "nifti"))
    assert len(world.tree()) == 2
    assert world.manifest("S1/nifti", KEY, "nifti")["revision"] == 2


class Logging(Files):
    """Writes down fsyncs of folders (by their inode) and renames, in order."""

    def __init__(self) -> None:
        self.done: list[int | str] = []

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.done.append(os.fstat(fd).st_ino)

    def rename(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        super().rename(old, new, at=at, to=to)
        self.done.append(str(new))

    def rename_new(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
        super().rename_new(old, new, at=at, to=to)
        self.done.append(str(new))


def test_the_order_of_a_whole_folder(world: World) -> None:
    files = Logging()
    world.put(TWO, files=files)
    folder = world.root / FOLDER
    inodes = [path.stat().st_ino for path in (folder, folder.parent, folder.parent.parent, world.root)]
    assert files.done[-5:] == [inodes[0], "004_T1", *inodes[1:]]
    contents = {path.stat().st_ino for path in folder.rglob("*")}
    assert contents == {each for each in files.done[:-5] if isinstance(each, int)}


def test_a_receipt_that_was_lost_makes_every_folder_above_durable(world: World) -> None:
    world.put(TWO)
    files = Logging()
    world.put(TWO, files=files)
    folder = world.root / FOLDER
    above = [path.stat().st_ino for path in (folder, folder.parent, folder.parent.parent, world.root)]
    assert files.done[-4:] == above


@pytest.mark.parametrize("links", [True, False], ids=["link", "rename"])
def test_a_lost_reply_costs_no_second_attempt(world: World, links: bool) -> None:
    """NFS: it was done, its answer was lost, and the repeated request finds nothing to rename, or a link that is."""

    class Lost(Files):
        def link(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
            super().link(old, new, at=at, to=to)
            raise FileExistsError(errno.EEXIST, "file exists")

        def rename_new(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
            if links:
                raise OSError(errno.EINVAL, "no RENAME_NOREPLACE")
            super().rename_new(old, new, at=at, to=to)
            raise FileNotFoundError(errno.ENOENT, "no such file")

        def rename(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
            super().rename(old, new, at=at, to=to)
            raise FileNotFoundError(errno.ENOENT, "no such file")

    done = world.put(REV1, files=Lost())
    world.grow(receipt(done), REV2, files=Lost())
    assert world.tree() == below(REV2)


def test_a_name_taken_at_the_last_moment_on_the_oldest_mount(world: World) -> None:
    """Without RENAME_NOREPLACE and without links, it is looked for before the rename."""
    done = world.put(TWO)
    taken = world.root / FOLDER / "003.dcm"

    class Taking(Oldest):
        def write(self, fd: int, data: Any) -> int:
            taken.write_bytes(b"the lab's")
            return super().write(fd, data)

    with pytest.raises(TryLater, match="changed while"):
        world.grow(receipt(done), {**TWO, "003.dcm": b"three"}, files=Taking(10**9, 0))
    assert taken.read_bytes() == b"the lab's"


def test_a_link_swapped_in_between_two_looks(world: World, tmp_path: Path) -> None:
    done = world.put(TWO)
    secret = tmp_path / "secret"
    secret.write_bytes(b"rev 2")
    ours = world.root / FOLDER / "001.dcm"

    class Swapping(Files):
        def stat(self, path: Any, *, at: int | None = None) -> os.stat_result:
            found = super().stat(path, at=at)
            if path == "001.dcm" and not ours.is_symlink():
                ours.unlink()
                ours.symlink_to(secret)
            return found

    grown = world.grow(receipt(done), {**TWO, "001.dcm": b"rev 2"}, files=Swapping())
    assert grown.files[0].state == "kept"  # what a link leads to is never taken for a delivered file


def test_a_name_once_given_is_kept_although_the_other_one_is_free_now() -> None:
    lower, upper = Wanted("a.dcm", "00", 1, "src/1"), Wanted("A.dcm", "11", 1, "src/2")
    names = called([lower, upper], {}, KEY, str.casefold)
    before = {"src/2": Delivered(names[1], "11", 1, "src/2")}
    assert names[0] == "a.dcm"
    assert called([upper], before, KEY, str.casefold) == [names[1]]
    assert called([lower, upper], before, KEY, str.casefold) == names
