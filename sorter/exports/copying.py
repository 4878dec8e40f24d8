"""Copies that are synced, compared with what was taken in, and only then given their names."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from sorter.durable import PART, Files
from sorter.errors import SorterError
from sorter.naming import contained

BATCH = 256
"""Copies that one sync serves."""

_THREADS = 4
_NO_SUCH_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Copy:
    """One image to copy: from where its giver has it, to a path relative to the destination. `sha256`: of the file.

    `delivered`: where its delivered copy lies, once the store has it no more.
    """

    source: Path
    name: str
    sha256: str
    size: int
    delivered: Path | None = None


class Giver(Protocol):
    """Who has what is copied; see `sorter.exports.source`."""

    def opened(self, copies: Sequence[Copy]) -> AbstractContextManager[Mapping[str, int | str]]:
        """Read-only descriptors of what is copied, by the copies' names; a sentence for each that cannot be had."""

    def remember(self, copies: Sequence[Copy], dest: str) -> None:
        """These are about to be written below `dest`."""


@dataclass(slots=True)
class Report:
    """What became of the copies: written now, there already, not overwritten, failed (with a sentence each)."""

    written: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def copy_all(
    giver: Giver, copies: Sequence[Copy], dest: Path, progress: Callable[[int], None], *, force: bool = False,
    files: Files | None = None, waits: Callable[[], None] = lambda: None,
) -> Report:  # fmt: skip
    """Copy to `dest`. A file that is there with other content is overwritten only with `force`.

    An interrupted run goes on where it stopped: what is there and equal is left. One bad file never stops the others.
    `progress` is called with the bytes of each copy when it is through; `files` are the effects on `dest`; `waits` is
    called where somebody else copies into `dest` just now, who is waited for.
    """
    report, rest = Report(), iter(copies)
    if not copies:
        return report
    disk, before = files or Files(), _Settling(progress)
    with (
        _alone(disk, dest, waits),
        ThreadPoolExecutor(_THREADS, "copy") as pool,
        ThreadPoolExecutor(1, "sync") as beside,
    ):
        while copying := list(islice(rest, BATCH)):
            batch = _Batch(disk, Path(os.path.abspath(dest)), report, force)
            batch.write(pool, giver, copying)
            before.wait()
            before = _Settling(progress, copying, beside.submit(batch.settle, pool))
        before.wait()
    return report


@contextlib.contextmanager
def _alone(files: Files, dest: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Two that copy one image to one place have one temporary name for it: each would give its name to what the other
    is still writing."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a mount without locks; what is wrong with the place is said of each file
            files.make_folders(dest, 0o777)
            held = stack.enter_context(files.opened(dest, os.O_RDONLY | os.O_DIRECTORY))
            if not files.lock(held):
                waits()
                files.lock(held, wait=True)
        yield


@dataclass(frozen=True, slots=True)
class _Settling:
    """A batch that is synced and compared while the next one is written: the disk and the processor at once."""

    progress: Callable[[int], None]
    copies: Sequence[Copy] = ()
    end: Future[None] | None = None

    def wait(self) -> None:
        if self.end is not None:
            self.end.result()
        for copy in self.copies:
            self.progress(copy.size)


@dataclass(frozen=True, slots=True)
class _Item:
    """A copy, its name there, and the name it has until it is known to be right."""

    copy: Copy
    target: str
    part: str


class _Batch:
    """Some copies: all written, synced together, compared, and given their names."""

    def __init__(self, files: Files, dest: Path, report: Report, force: bool) -> None:
        self._files, self._dest, self._report, self._force = files, str(dest), report, force
        self._folders: set[str] = set()
        self._written: list[_Item] = []
        self._mounts: dict[int, int] = {}  # by device: a folder of it, open since before the first byte

    def write(self, pool: ThreadPoolExecutor, giver: Giver, batch: Sequence[Copy]) -> None:
        """What is not there yet, under temporary names."""
        items = [item for item, absent in self._through(pool, self._is_absent, list(self._items(batch))) if absent]
        if not items:
            return
        try:
            giver.remember([item.copy for item in items], self._dest)
        except (OSError, SorterError) as error:
            self._fail(items, f"where it is copied to cannot be remembered: {_sentence(error)}")
            return
        with giver.opened([item.copy for item in items]) as given:
            went = self._through(pool, lambda item: self._write(item, given), items)
            self._written = [item for item, written in went if written]

    def settle(self, pool: ThreadPoolExecutor) -> None:
        """On the disk, compared, and under their names."""
        try:
            self._sync(pool)
        except OSError as error:
            self._fail(self._written, f"the disk does not keep it: {error.strerror}")
            return
        for item, placed in self._through(pool, self._place, self._written):
            if placed:
                self._report.written.append(item.copy.name)
        self._files.fsync_folders(self._folders)

    def _sync(self, pool: ThreadPoolExecutor) -> None:
        """What was written is on the disk. An error of the disk is told to whoever had the file system open when it
        came (syncfs(2)); on a mount of the network each file is asked for by itself."""
        mounts = list(self._mounts.values())
        try:
            if not any(self._files.is_shared(each) for each in mounts):
                for each in mounts:
                    self._files.sync_file_system(each)
                return
        finally:
            for each in mounts:
                self._files.close(each)
        for _ in pool.map(lambda item: self._files.fsync_all([item.part]), self._written):
            pass

    def _fail(self, items: Sequence[_Item], why: str) -> None:
        self._report.failed += [(each.copy.name, why) for each in items]

    def _items(self, batch: Sequence[Copy]) -> Iterator[_Item]:
        """With their folders made."""
        for copy in batch:
            try:
                target = contained(self._dest, copy.name)
                folder, name = os.path.split(target)
                if folder not in self._folders:
                    self._make(folder)
                yield _Item(copy, target, f"{folder}/.{name}{PART}")
            except (OSError, SorterError) as error:
                self._report.failed.append((copy.name, _sentence(error)))

    def _make(self, folder: str) -> None:
        self._files.make_folders(folder, 0o777)
        device = self._files.stat(folder).st_dev
        if device not in self._mounts:
            self._mounts[device] = self._files.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._folders.add(folder)

    def _through(
        self, pool: ThreadPoolExecutor, step: Callable[[_Item], bool], items: Sequence[_Item]
    ) -> Iterator[tuple[_Item, bool]]:
        """What the step said of each item; what failed is reported."""

        def attempt(item: _Item) -> bool | str:
            try:
                return step(item)
            except (OSError, SorterError) as error:
                return _sentence(error)

        for item, went in zip(items, pool.map(attempt, items), strict=True):
            if isinstance(went, str):
                self._report.failed.append((item.copy.name, went))
            else:
                yield item, went

    def _is_absent(self, item: _Item) -> bool:
        """False where it is there already, or something else is."""
        try:
            info = self._files.stat(item.target)
        except (FileNotFoundError, NotADirectoryError):
            return True
        if not stat.S_ISREG(info.st_mode):
            raise SorterError("something that is no file is there; it was not overwritten")
        if info.st_size == item.copy.size and self._digest(item.target) == item.copy.sha256:
            self._report.same.append(item.copy.name)
            return False
        if not self._force:
            self._report.taken.append(item.copy.name)
        return self._force

    def _write(self, item: _Item, given: Mapping[str, int | str]) -> bool:
        """Under its temporary name."""
        source = given.get(item.copy.name, "it was not given")
        if isinstance(source, str):
            raise SorterError(source)
        writing = self._new(item.part)
        try:
            self._files.copy(source, writing)
            self._files.start_writeback(writing, 0, item.copy.size)
        finally:
            self._files.close(writing)
        return True

    def _new(self, path: str) -> int:
        """What an interrupted run left under this name goes, and is not written to: it may have another name, too."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            return self._files.open(path, flags, 0o666)
        except FileExistsError:
            self._files.unlink(path)
            return self._files.open(path, flags, 0o666)

    def _place(self, item: _Item) -> bool:
        if self._digest(item.part) != item.copy.sha256:
            self._files.unlink(item.part)
            if item.copy.delivered is not None:
                raise SorterError("it has left the store, and its delivered copy was changed since; it was not copied")
            raise SorterError("what was written does not equal the original; is the disk all right?")
        if self._force:
            self._files.rename(item.part, item.target)
        else:
            self._rename_new(item)
        return True

    def _rename_new(self, item: _Item) -> None:
        try:
            self._files.rename_new(item.part, item.target)
        except OSError as error:
            came = isinstance(error, FileExistsError)
            if not came and error.errno not in _NO_SUCH_RENAME:
                raise
            if came or self._files.exists(item.target):
                self._files.unlink(item.part)
                raise SorterError("something else has come there meanwhile; it was not overwritten") from None
            self._files.rename(item.part, item.target)  # a mount that knows no other way: NFS, sshfs, FAT

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._files.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            for piece in self._files.chunks(fd):
                digest.update(piece)
        return digest.hexdigest()


def _sentence(error: OSError | SorterError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
