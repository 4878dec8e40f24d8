"""Taking files into the store: standing of copies, crashes between the steps, what others dropped."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile.bench import Life
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from sorter.durable import Buffer, Files, PathLike
from sorter.model import Instance, Source, Standing
from sorter.pipeline.intake import _Door
from sorter.spool import Spool, Unit
from sorter.take import contents
from sorter.take.filing import Candidate, Filed, Filing
from sorter.watch import Incoming, Ready, Taken


def image(
    number: int = 1, *, pixels: bytes = b"\1\2\3\4", syntax: UID = ExplicitVRLittleEndian, **changes: Any
) -> bytes:
    """A small MR image as a file (PS3.10)."""
    data = Dataset()
    data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = f"1.2.3.{number}"
    data.StudyInstanceUID = "1.2.3"
    data.SeriesInstanceUID = "1.2.3.0"
    data.PatientID = "P1"
    data.PatientName = "One^Patient"
    data.SeriesNumber = 4
    data.InstanceNumber = number
    data.Modality = "MR"
    data.Rows, data.Columns, data.BitsAllocated = 1, 2, 16
    data.PixelData = pixels
    for keyword, value in changes.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Rules:
    """The first sender may correct; nothing is grouped."""

    def group(self, instance: Instance) -> str | None:
        return None

    def may_correct(self, first: Source, newer: Source) -> bool:
        return not newer.dropped and newer.calling == first.calling


class Bench:
    """A spool with filing on it, as one life of the sorter sees it."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self.spool = Spool(root, files or Files())
        self.spool.create()
        self.spool.clear_temporary()
        self.units: dict[str, Unit] = {}
        self.filing = Filing(self.spool, Rules(), self.unit, lambda key: self.units.pop(key, None))
        self.count = len(list(self.spool.received.iterdir()))

    def unit(self, key: str) -> Unit:
        if key not in self.units:
            unit = self.units[key] = Unit.load(self.spool, key)
            if unit.unmentioned:
                self.filing.adopt(unit)
        return self.units[key]

    def received(self, data: bytes, calling: str = "SCANNER") -> Candidate:
        self.count += 1
        path = self.spool.received / f"{self.count}.dcm"
        path.write_bytes(data)
        return Candidate(path, Source(calling, "SORTER", "10.0.0.1:104", association="a1"))

    def dropped(self, data: bytes, name: str = "d/x") -> Candidate:
        path = self.spool.incoming / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return self.ready(path)

    def ready(self, path: Path) -> Candidate:
        """As the intake makes it of a file in incoming/ that is finished."""
        info = path.lstat()
        name = str(path.relative_to(self.spool.incoming))
        ready = Ready(name, info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev, info.st_uid, "d")
        door = _Door(
            Incoming(self.spool.incoming, self.spool.files, Taken(self.spool.left / "incoming", self.spool.files)),
            ready,
        )
        return Candidate(path, Source(uid=info.st_uid, drop="d"), door, (info.st_size, info.st_mtime_ns))

    def take(self, *candidates: Candidate) -> list[Filed]:
        return self.filing.take(candidates)

    def standings(self) -> list[str]:
        [key] = self.spool.keys()
        return sorted(each.standing.value for each in Unit.load(self.spool, key).instances.values())

    def stored(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.spool.store.rglob("*.dcm"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "spool")


def test_a_received_file_moves_unchanged_and_its_evidence_says_who_sent_it(bench: Bench) -> None:
    data = image()
    [filed] = bench.take(bench.received(data))
    assert filed.outcome == "new"
    assert bench.stored() == [data]
    assert not list(bench.spool.received.iterdir())
    unit = Unit.load(bench.spool, filed.key)
    [instance] = unit.instances.values()
    assert instance.source.calling == "SCANNER"
    assert unit.base["PatientID"] == "P1"


def test_only_what_differs_from_the_first_header_is_kept_of_the_others(bench: Bench) -> None:
    bench.take(
        bench.received(image(1)), bench.received(image(2, EchoNumbers=2)), bench.received(image(3, PatientName=""))
    )
    [key] = bench.spool.keys()
    unit = Unit.load(bench.spool, key)
    first, second, third = unit.instances.values()
    assert first.header == {}
    assert second.header == {"InstanceNumber": 2, "EchoNumbers": 2}
    assert unit.header(second)["PatientName"] == "One^Patient"
    assert "PatientName" not in unit.header(third)


def test_an_identical_resend_changes_nothing_whoever_sends_it(bench: Bench) -> None:
    bench.take(bench.received(image()))
    again = bench.take(bench.received(image(), calling="ELSE"), bench.dropped(image()))
    assert [each.outcome for each in again] == ["same", "same"]
    assert len(bench.stored()) == 1
    assert not (bench.spool.incoming / "d" / "x").exists()


def test_a_batch_that_could_not_be_taken_leaves_no_copies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = [bench.dropped(image(number), f"d/{number}") for number in range(8)]
    with monkeypatch.context() as patched:
        patched.setattr(bench.filing, "_commit", lambda batch: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            bench.take(*dropped)
    assert list(bench.spool.taking.iterdir()) == []
    assert all(each.instance is not None for each in bench.take(*dropped))
    assert len(bench.stored()) == 8
    assert list(bench.spool.taking.iterdir()) == []


def test_other_pixels_are_a_conflict_and_both_are_kept(bench: Bench) -> None:
    bench.take(bench.received(image()), bench.received(image(pixels=b"\4\3\2\1")))
    assert bench.standings() == ["conflict", "current"]
    assert len(bench.stored()) == 2


def test_a_corrected_patient_name_supersedes_only_if_its_sender_may(bench: Bench) -> None:
    bench.take(bench.received(image()))
    bench.take(bench.received(image(PatientName="Right^Name"), calling="ELSE"))
    assert bench.standings() == ["current", "superseded"]
    [filed] = bench.take(bench.received(image(PatientName="Other^Name"), calling="SCANNER"))
    assert filed.instance is not None
    assert filed.instance.standing is Standing.CURRENT
    assert bench.standings() == ["current", "superseded", "superseded"]


class Foreign(Files):
    """A received file that somebody else owns: the receiver once ran as root."""

    may_open = False

    def open(self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        if not self.may_open and str(path).endswith("/1.dcm"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return super().open(path, flags, mode, at=at)


def test_a_received_file_that_may_not_be_read_is_not_forgotten(tmp_path: Path) -> None:
    files = Foreign()
    bench = Bench(tmp_path / "spool", files)
    candidate = bench.received(image())
    with pytest.raises(PermissionError):
        bench.take(candidate)
    gone = bench.received(image(2))
    gone.path.unlink()
    assert [each.outcome for each in bench.take(gone)] == ["changed"]  # its receiver took it back
    files.may_open = True
    assert [each.outcome for each in bench.take(candidate)] == ["new"]


@pytest.mark.parametrize(("how", "code"), [("exit 1", 1), ("kill -9 $$", -9)])
def test_a_deflated_file_whose_reader_could_not_do_its_work_is_taken_later(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, code: int
) -> None:
    """No memory for a process, say: that ends neither the sorter nor the image."""
    candidate = bench.received(image(syntax=DeflatedExplicitVRLittleEndian))
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{how}\n")
    program.chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr(contents.sys, "executable", str(program))
        with pytest.raises(OSError, match=f"ended with code {code}"):
            bench.take(candidate)
    assert [each.outcome for each in bench.take(candidate)] == ["new"]


def test_a_header_that_changed_elsewhere_never_supersedes(bench: Bench) -> None:
    bench.take(bench.received(image()))
    [filed] = bench.take(bench.received(image(EchoTime=4.0)))
    assert filed.instance is not None
    assert filed.instance.standing is Standing.SUPERSEDED


def test_another_transfer_syntax_is_no_conflict(bench: Bench) -> None:
    bench.take(bench.received(image()), bench.received(image(syntax=ImplicitVRLittleEndian)))
    assert bench.standings() == ["current", "transcoded"]


def test_the_same_bytes_in_another_transfer_syntax_are_another_image(bench: Bench) -> None:
    """Whoever had called them wrongly sent them first, and twice."""
    right = image(syntax=ExplicitVRLittleEndian)
    wrong, worse = (
        right.replace(b"1.2.840.10008.1.2.1\0", each) for each in (b"1.2.840.10008.1.2.9\0", b"1.2.840.10008.1.2.8\0")
    )
    assert len({right, wrong, worse}) == 3
    for each in (wrong, right, worse, wrong, right, worse):
        bench.take(bench.received(each))
    assert bench.stored() == sorted([wrong, right, worse])
    assert bench.standings() == ["current", "transcoded", "transcoded"]
    assert list(bench.spool.quarantined()) == []


def test_other_pixels_in_another_native_transfer_syntax_are_a_conflict(bench: Bench) -> None:
    other = image(pixels=b"\4\3\2\1", syntax=ImplicitVRLittleEndian)
    bench.take(bench.received(image()), bench.received(other))
    assert sorted(bench.standings()) == ["conflict", "current"]


def test_what_is_no_image_is_set_aside_with_its_reason_and_stops_nothing(bench: Bench) -> None:
    outcomes = [each.outcome for each in bench.take(bench.dropped(b"dear diary, " * 20), bench.received(image()))]
    assert outcomes == ["aside", "new"]
    [(path, note)] = bench.spool.quarantined()
    assert path.read_bytes() == b"dear diary, " * 20
    assert "text" in note["reason"]
    assert note["origin"] == "incoming/d/x"
    assert not (bench.spool.incoming / "d" / "x").exists()


def test_a_file_that_changes_while_it_is_read_is_looked_at_again(bench: Bench) -> None:
    candidate = bench.dropped(image())
    os.utime(candidate.path, ns=(1, 1))
    [filed] = bench.take(candidate)
    assert filed.outcome == "changed"
    assert candidate.path.exists()
    assert not list(bench.spool.keys())
    assert not list(bench.spool.taking.iterdir())


def test_a_truncated_drop_waits_and_is_set_aside_only_in_the_end(bench: Bench) -> None:
    candidate = bench.dropped(image()[:-2])
    assert [each.outcome for each in bench.take(candidate)] == ["changed"]
    assert candidate.path.exists()
    from dataclasses import replace

    [filed] = bench.take(replace(candidate, final=True))
    assert filed.outcome == "aside"
    assert "truncated" in filed.why


def test_no_link_is_followed_out_of_incoming(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(image())
    link = bench.spool.incoming / "link"
    link.symlink_to(tmp_path / "secret")
    [filed] = bench.take(bench.ready(link))
    assert filed.outcome == "changed"
    assert not list(bench.spool.keys())
    assert (tmp_path / "secret").exists()


def test_a_data_set_without_file_meta_gets_one(bench: Bench) -> None:
    data = image(syntax=ImplicitVRLittleEndian)
    bare = data[data.index(b"\x08\x00\x16\x00") :]
    [filed] = bench.take(bench.dropped(bare))
    assert filed.outcome == "new"
    [stored] = bench.stored()
    assert stored[128:132] == b"DICM"
    assert stored.endswith(bare)


def test_a_disk_that_is_full_holds_no_copy_of_what_cannot_be_taken(tmp_path: Path) -> None:
    """At whichever byte it is: a file without file meta information is copied twice."""

    class Full(Files):
        room = 0

        def write(self, fd: int, data: Buffer) -> int:
            written = super().write(fd, memoryview(data)[: self.room])
            self.room -= written
            if not written:
                raise OSError(errno.ENOSPC, "full")
            return written

    files = Full()
    files.room = 1 << 20
    bench = Bench(tmp_path / "spool", files)
    data = image(syntax=ImplicitVRLittleEndian)
    bare = data[data.index(b"\x08\x00\x16\x00") :]
    for room in range(0, 2 * len(bare), 50):
        files.room = room
        with pytest.raises(OSError, match="full"):
            bench.take(bench.dropped(bare))
        assert list(bench.spool.taking.iterdir()) == []
    files.room = 1 << 20
    assert [each.outcome for each in bench.take(bench.dropped(bare))] == ["new"]


@pytest.mark.parametrize("size", [0, 1 << 20], ids=["small", "large"])
def test_a_dropped_file_that_the_disk_does_not_give_is_said_and_stops_no_other(tmp_path: Path, size: int) -> None:
    class Ill(Files):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/bad"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().pread(fd, size, offset)

    life = Life(tmp_path / "spool", Ill())
    life.drop("d/bad", image(1) + bytes(size))
    life.drop("d/good", image(2))
    life.settle(20)
    assert life.images() == [image(2)]
    assert [(path, why) for _, path, why in life.intake.strange] == [("d/bad", "it cannot be read: Input/output error")]
    assert life.intake.problem == ""
    assert life.left() == ["incoming/d", "incoming/d/bad"]


class Slow(Files):
    """A disk on which a file is removed from `incoming` only while another one is; one of them may not be removed."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2, timeout=20)
        self.mentioned: list[int] = []  # lines of evidence that were there at each removal

    def unlink(self, path: Any, *, at: int | None = None) -> None:
        if at is not None:
            self.both.wait()
            [evidence] = self.store.rglob("evidence.jsonl")
            self.mentioned.append(evidence.read_bytes().count(b"\n"))
            if path == "7.dcm":
                raise PermissionError(errno.EACCES, "it may not be")
        super().unlink(path, at=at)

    store = Path()


def test_the_names_of_a_batch_go_by_several_hands_after_its_evidence(tmp_path: Path) -> None:
    disk = Slow()
    bench = Bench(tmp_path / "spool", disk)
    disk.store = bench.spool.store
    candidates = [bench.dropped(image(number), f"d/{number}.dcm") for number in range(1, 33)]
    os.utime(candidates[2].path)  # it changes: it stays, and so does a second one
    os.utime(candidates[20].path)
    filed = bench.take(*candidates)
    assert [each.candidate for each in filed] == candidates, "in their order"
    assert [each.outcome for each in filed].count("new") == 30
    assert [each.why for each in filed if each.outcome == "new" and each.why] == [
        "it could not be removed: it may not be"
    ]
    assert sorted(each.name for each in (bench.spool.incoming / "d").iterdir()) == ["21.dcm", "3.dcm", "7.dcm"]
    assert len(bench.stored()) == 30
    assert min(disk.mentioned) >= 30, "all of it was written before the first one was removed"
    assert not list(bench.spool.taking.iterdir())


class PowerCut(BaseException):
    """The process ends here, whatever it was about to do."""


def crashing(at: int, effects: tuple[str, ...], disk: type[Files] = Files) -> tuple[Files, Callable[[], int]]:
    """A file object that ends the process just before its `at`-th effect of these names."""
    count = 0

    def wrap(name: str) -> Callable[..., Any]:
        def effect(self: Files, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise PowerCut
            return getattr(disk, name)(self, *args, **kwargs)

        return effect

    kind = type("Crashing", (disk,), {name: wrap(name) for name in effects})
    return kind(), lambda: count


class Sparing(Files):
    """A share that gives half of what it is asked for, as it may."""

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return super().pread(fd, max(1, size // 2), offset)


def test_a_share_that_gives_less_than_it_is_asked_for_loses_no_byte(tmp_path: Path) -> None:
    """What is cut off here would not be missed: it stands behind the pixels, and the file parses to its end."""
    data = image()
    more = len(data) - 12  # so that half of it ends where the image could
    data += b"\xfc\xff\xfc\xffOB\0\0" + more.to_bytes(4, "little") + bytes(more)
    sparing = Bench(tmp_path / "spool", Sparing())
    [filed] = sparing.take(sparing.dropped(data))
    assert filed.outcome == "new", filed
    assert sparing.stored() == [data]


class Forgetful(Files):
    """A disk that keeps every removal at once, and of every new name nothing until its folder was synced."""

    def __init__(self) -> None:
        self.unsynced: dict[str, set[str]] = {}

    def link(self, old: Any, new: Any, **kwargs: Any) -> None:
        super().link(old, new, **kwargs)
        self._new(new)

    def rename_new(self, old: Any, new: Any, **kwargs: Any) -> None:
        super().rename_new(old, new, **kwargs)
        self._new(new)

    def mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().mkdir(path, *args, **kwargs)
        self._new(path)

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.unsynced.pop(os.readlink(f"/proc/self/fd/{fd}"), None)

    def sync_file_system(self, path: Any) -> None:
        super().sync_file_system(path)
        self.unsynced.clear()

    def _new(self, path: Any) -> None:
        self.unsynced.setdefault(os.path.dirname(path), set()).add(os.fspath(path))

    def cut_power(self) -> None:
        for path in sorted(each for names in self.unsynced.values() for each in names):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)


EFFECTS = ("link", "unlink", "write", "mkdir", "fsync", "rename", "rename_new", "sync_file_system")


def test_a_crash_before_any_effect_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """Received and dropped files, a conflict, a correction and junk; the process ends before each effect in turn."""
    contents = [image(1), image(2), image(1, pixels=b"\4\3\2\1"), image(2, PatientName="Right^Name"), b"junk, " * 50]

    def life(bench: Bench) -> None:
        received = [Candidate(path) for path in sorted(bench.spool.received.iterdir())]
        dropped = [bench.ready(path) for path in sorted(bench.spool.incoming.rglob("*")) if path.is_file()]
        bench.take(*received, *dropped)

    at, ended = 0, False
    while not ended:
        at += 1
        root = tmp_path / str(at)
        bench = Bench(root)
        for data in contents[:3]:
            bench.received(data)
        for number, data in enumerate(contents[3:]):
            bench.dropped(data, f"d/{number}")
        files, _ = crashing(at, EFFECTS)
        unlucky = Bench.__new__(Bench)
        try:
            unlucky.__init__(root, files)  # type: ignore[misc]
            life(unlucky)
            ended = True
        except PowerCut:
            pass
        after = Bench(root)
        life(after)
        kept = after.stored() + [path.read_bytes() for path, _ in after.spool.quarantined()]
        assert sorted(kept) == sorted(contents), f"after a crash before effect {at}"
        assert not list(after.spool.received.iterdir())
        assert not list(after.spool.taking.iterdir())
        [key] = after.spool.keys()
        assert len(Unit.load(after.spool, key).instances) == 4
    assert at > 30


def test_a_power_cut_before_any_effect_loses_nothing(tmp_path: Path) -> None:
    """As above, on a disk that forgets every name whose folder was not synced."""
    contents = [image(1), image(2), b"junk, " * 50, image(3)]
    at, ended = 0, False
    while not ended:
        at += 1
        root = tmp_path / str(at)
        bench = Bench(root)
        for data in contents:
            bench.received(data)
        files, _ = crashing(at, EFFECTS, Forgetful)
        assert isinstance(files, Forgetful)
        unlucky = Bench(root, Files())
        unlucky.spool.files = unlucky.filing._files = files
        try:
            unlucky.take(*[Candidate(path) for path in sorted(bench.spool.received.iterdir())])
            ended = True
        except PowerCut:
            files.cut_power()
        after = Bench(root)
        after.take(*[Candidate(path) for path in sorted(after.spool.received.iterdir())])
        kept = after.stored() + [path.read_bytes() for path, _ in after.spool.quarantined()]
        assert sorted(kept) == sorted(contents), f"after a power cut before effect {at}"
        [key] = after.spool.keys()
        assert all((after.unit(key).images / each).is_file() for each in after.unit(key).instances)
    assert at > 12


def test_an_image_that_the_disk_lost_is_taken_again_when_it_comes_again(bench: Bench) -> None:
    [filed] = bench.take(bench.received(image(1)))
    [stored] = bench.spool.store.rglob("*.dcm")
    stored.unlink()
    [again] = bench.take(bench.received(image(1)))
    assert (again.outcome, again.key) == ("new", filed.key)
    assert bench.stored() == [image(1)]
    assert bench.standings() == ["current", "superseded"]


def test_a_correction_of_an_image_that_the_disk_lost_is_taken(bench: Bench) -> None:
    bench.take(bench.received(image(1)))
    [stored] = bench.spool.store.rglob("*.dcm")
    stored.unlink()
    corrected = image(1, PatientName="Another^Patient")
    [filed] = bench.take(bench.received(corrected))
    assert filed.outcome == "new"
    assert bench.stored() == [corrected]
    assert bench.standings() == ["current", "superseded"], "with what is lost it cannot be compared"


def test_a_crash_while_what_the_disk_lost_is_taken_again(bench: Bench) -> None:
    """Between the name and the evidence."""
    bench.take(bench.received(image(1)))
    [stored] = bench.spool.store.rglob("*.dcm")
    stored.rename(stored.with_name(f"{stored.stem}-{'f' * 32}.dcm"))
    life = Bench(bench.spool.root)
    [again] = life.take(life.received(image(1)))
    assert again.outcome == "same"
    assert life.standings() == ["current", "superseded"]
    [key] = life.spool.keys()
    [current] = [each for each in life.unit(key).instances.values() if each.standing is Standing.CURRENT]
    assert life.unit(key).digest_of(current.file) == current.sha256


def test_torn_evidence_is_read_as_far_as_it_is_whole(bench: Bench) -> None:
    bench.take(bench.received(image(1)), bench.received(image(2)))
    [key] = bench.spool.keys()
    path = bench.spool.unit_folder(key) / "evidence.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    after = Bench(bench.spool.root)
    assert len(after.unit(key).instances) == 2
    assert [json.loads(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]
