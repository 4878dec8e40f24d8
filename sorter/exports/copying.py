"""Copies that are synced, compared with what was taken in, and only then given their names."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from sorter.durable import PART, Files
from sorter.errors import SorterError
from sorter.naming import contained

BATCH = 256
"""Copies that one sync serves."""

_THREADS = 4
_NO_SUCH_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Copy:
    """One image to copy: from where it is kept, to a path relative to the destination. `sha256`: of the whole file."""

    source: Path
    name: str
    sha256: str
    size: int


@dataclass(slots=True)
class Report:
    """What became of the copies: written now, there already, not overwritten, failed (with a sentence each)."""

    written: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def copy_all(
    files: Files, copies: Sequence[Copy], dest: Path, progress: Callable[[int], None], *, force: bool = False
) -> Report:
    """Copy to `dest`. A file that is there with other content is overwritten only with `force`.

    An interrupted run goes on where it stopped: what is there and equal is left. One bad file never stops the others.
    `progress` is called with the bytes of each copy when it is through.
    """
    report, rest = Report(), iter(copies)
    with ThreadPoolExecutor(_THREADS, "copy") as pool:
        while batch := list(islice(rest, BATCH)):
            _Batch(files, dest, report, force).run(pool, batch)
            for copy in batch:
                progress(copy.size)
    return report


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

    def run(self, pool: ThreadPoolExecutor, batch: Sequence[Copy]) -> None:
        items = list(self._items(batch))
        written = [item for item, went in self._through(pool, self._write, items) if went]
        try:
            self._files.fsync_all([item.part for item in written])
        except OSError as error:
            self._report.failed += [
                (each.copy.name, f"the disk does not keep it: {error.strerror}") for each in written
            ]
            return
        for item, placed in self._through(pool, self._place, written):
            if placed:
                self._report.written.append(item.copy.name)
        self._files.fsync_folders(self._folders)

    def _items(self, batch: Sequence[Copy]) -> Iterator[_Item]:
        """With their folders made."""
        for copy in batch:
            try:
                target = contained(self._dest, copy.name)
                folder, name = os.path.split(target)
                if folder not in self._folders:
                    self._files.make_folders(folder, 0o777)
                    self._folders.add(folder)
                yield _Item(copy, target, f"{folder}/.{name}{PART}")
            except (OSError, SorterError) as error:
                self._report.failed.append((copy.name, _sentence(error)))

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

    def _write(self, item: _Item) -> bool:
        """Under its temporary name; False where it is there already, or something else is."""
        if self._files.exists(item.target):
            if self._digest(item.target) == item.copy.sha256:
                self._report.same.append(item.copy.name)
                return False
            if not self._force:
                self._report.taken.append(item.copy.name)
                return False
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with self._files.opened(item.copy.source) as reading, self._files.opened(item.part, flags, 0o666) as writing:
            self._files.copy(reading, writing)
        return True

    def _place(self, item: _Item) -> bool:
        if self._digest(item.part) != item.copy.sha256:
            self._files.unlink(item.part)
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
        with self._files.opened(path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
            for piece in self._files.chunks(fd):
                digest.update(piece)
        return digest.hexdigest()


def _sentence(error: OSError | SorterError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
