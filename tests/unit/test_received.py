"""What the sorter makes of the receiver's segments when the disk, or a person, comes in between."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from sorter.durable import Files, PathLike
from sorter.receive.arrivals import Arrivals
from sorter.receive.file_meta import Route
from sorter.receive.settings import ReceiveSettings
from sorter.take.filing import Candidate
from sorter.take.received import ARRIVALS, Ended, Received
from sorter.testing.waiting import wait_until

SCANNER = Route("SCANNER", "SORTER", "127.0.0.1", 4711)


def arrivals(received: Path, worker: str = "w1", files: Files | None = None) -> Arrivals:
    made = Arrivals(received, worker, files or Files(), ReceiveSettings())
    made.begin()
    return made


def store(into: Arrivals, association: str, count: int) -> None:
    part = into.part(association, count)
    part.write([b"an image"])
    into.store(part)


class Unlisted(Files):
    """One folder cannot be listed while `broken`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.broken = folder, True

    def names(self, path: PathLike | int) -> list[str]:
        if self.broken and path == self.folder:
            raise OSError(errno.EIO, "an error of the disk")
        return super().names(path)


@pytest.mark.parametrize("which", ["segment", "worker"])
def test_a_folder_that_cannot_be_looked_at_keeps_nobody_from_the_others(tmp_path: Path, which: str) -> None:
    """One that root owns, or on a bad sector: what came otherwise is taken meanwhile, and nothing is called lost."""
    first, second = arrivals(tmp_path, "w2"), arrivals(tmp_path, "w1")
    for each in (first, second):
        store(each, each.opened(SCANNER), 1)
    [segment] = (tmp_path / "w1").iterdir()
    bad = segment if which == "segment" else segment.parent
    received = Received(tmp_path, files := Unlisted(bad))
    found = received.look(relist=True)
    assert "w2" in [each.path.parts[-3] for each in found if isinstance(each, Candidate)]
    assert received.problems() == [f"{bad} cannot be looked at: an error of the disk"]
    files.broken = False
    found += received.look(relist=True)
    assert len(found) == len([each for each in found if isinstance(each, Candidate)]) == 2
    assert received.problems() == []
    files.broken = True
    assert received.look(relist=True) == []
    assert len(received.open_sources()) == 2
    first.close()
    second.close()


def test_a_segment_that_cannot_be_removed_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    class Ill(Files):
        def rmdir(self, path: PathLike, *, at: int | None = None) -> None:
            if Path(path).parent.name == "w1":
                raise OSError(errno.EIO, "an error of the disk")
            super().rmdir(path, at=at)

    for worker in ("w1", "w2"):
        made = arrivals(tmp_path, worker)
        made.ended(made.opened(SCANNER), "released")
        made.close()
    received = Received(tmp_path, Ill())
    assert len(received.look()) == 2
    received.tidy()
    [bad] = (tmp_path / "w1").iterdir()
    assert received.problems() == [f"{bad} cannot be removed: an error of the disk"]
    assert list((tmp_path / "w2").iterdir()) == []


def test_lines_that_a_bad_disk_interrupted_are_read_again(tmp_path: Path) -> None:
    class Ill(Files):
        broken = True

        def exists(self, path: PathLike, *, at: int | None = None) -> bool:
            if self.broken:
                raise OSError(errno.EIO, "an error of the disk")
            return super().exists(path, at=at)

    made = arrivals(tmp_path)
    association = made.opened(SCANNER)
    store(made, association, 1)
    made.ended(association, "released")
    received = Received(tmp_path, files := Ill())
    assert received.look() == []
    files.broken = False
    image, ended = received.look()
    assert isinstance(image, Candidate)
    assert (image.source.calling, ended) == ("SCANNER", Ended(association, "released"))
    made.close()


def test_a_segment_that_somebody_removed_stops_nothing_and_its_associations_are_lost(tmp_path: Path) -> None:
    first, second = arrivals(tmp_path, "w1"), arrivals(tmp_path, "w2")
    association = first.opened(SCANNER)
    second.opened(SCANNER)
    received = Received(tmp_path, Files())
    assert received.look() == []
    second.close()
    received.look()
    for worker in ("w1", "w2"):
        [folder] = (tmp_path / worker).iterdir()
        Files().remove_tree(folder)
    received.tidy()
    assert received.look() == [Ended(association, "lost")]
    assert not received.is_open(association)
    first.close()


@pytest.mark.parametrize(
    "bad",
    [b"null", b"[]", b"7", b"{}", b'{"event":"opened"}', b'{"event":"stored","association":"a"}', b"\0\0\0\0", b"{"],
)
def test_a_line_that_is_damaged_stops_nothing(tmp_path: Path, bad: bytes) -> None:
    into = arrivals(tmp_path)
    association = into.opened(SCANNER)
    [segment] = (tmp_path / "w1").iterdir()
    Files().append(segment / ARRIVALS, bad + b"\n")
    store(into, association, 1)
    [found] = Received(tmp_path, Files()).look()
    assert isinstance(found, Candidate)
    assert found.source.calling == SCANNER.calling
    into.close()


class Swept(Files):
    """Somebody else holds the lock of the first segment while it is made, as a process that sweeps does."""

    def __init__(self) -> None:
        self.swept = False

    def lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        if not self.swept:
            self.swept = True
            return False
        return super().lock(fd, shared=shared, wait=wait)


def test_a_segment_is_used_only_with_its_lock(tmp_path: Path) -> None:
    """Without it the sorter would take its process for dead, and remove what is on its way."""
    into = arrivals(tmp_path, files=Swept())
    association = into.opened(SCANNER)
    received = Received(tmp_path, Files())
    part = into.part(association, 1)
    assert received.look() == []
    assert received.is_open(association)
    part.write([b"an image"])
    into.store(part)
    assert [type(each) for each in received.look()] == [Candidate]
    into.close()


class Full(Files):
    """No folder can be made while `full`."""

    full = False

    def mkdir(self, path: PathLike, mode: int = 0o700, *, at: int | None = None) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "the disk is full")
        super().mkdir(path, mode, at=at)


def test_an_association_that_ends_where_no_segment_can_be_made_is_told_to_have_ended(tmp_path: Path) -> None:
    """Else a series that it brought would wait for it for a quarter of an hour."""
    files = Full()
    into = Arrivals(tmp_path, "w1", files, ReceiveSettings(segment_files=1))
    into.begin()
    association = into.opened(SCANNER)
    store(into, association, 1)
    files.full = True
    with pytest.raises(OSError, match="full"):
        into.part(association, 2)
    into.ended(association, "released")
    received = Received(tmp_path, Files())
    assert received.look()[1:] == [Ended(association, "released")]
    files.full = False
    another = into.opened(SCANNER)
    store(into, another, 1)
    assert [type(each) for each in received.look()] == [Candidate]
    assert received.is_open(another)
    assert not received.is_open(association)
    into.close()


class OneBadSync(Files):
    """The first sync of a segment's folder waits, then fails; later ones say that all is well."""

    def __init__(self) -> None:
        self.armed, self.reached, self.go_on = False, threading.Event(), threading.Event()

    def fsync_folder(self, path: PathLike | int) -> None:
        if self.armed and isinstance(path, int):
            self.armed = False
            self.reached.set()
            assert self.go_on.wait(20)
            raise OSError(errno.EIO, "an error of the disk")
        super().fsync_folder(path)


def test_a_name_made_while_a_sync_of_its_folder_failed_is_not_acknowledged(tmp_path: Path) -> None:
    """The kernel says an error once: the sync after it would succeed, and the name may be lost all the same."""
    files = OneBadSync()
    into = arrivals(tmp_path, files=files)
    association = into.opened(SCANNER)
    failures: list[int | None] = []

    def storing(count: int) -> None:
        try:
            store(into, association, count)
        except OSError as error:
            failures.append(error.errno)

    files.armed = True
    threads = [threading.Thread(target=storing, args=(count,)) for count in (1, 2)]
    threads[0].start()
    assert files.reached.wait(20)
    threads[1].start()
    [segment] = (tmp_path / "w1").iterdir()
    wait_until(lambda: (segment / f"{association}-2.dcm").exists(), 20, "the second name")
    files.go_on.set()
    for each in threads:
        each.join(20)
    assert failures == [errno.EIO, errno.EIO]
    assert not list(segment.glob("*.dcm"))
    store(into, association, 3)  # in the next segment
    into.close()
