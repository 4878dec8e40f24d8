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


class _Batch:
    """Some copies: all written, synced together, compared, and given their names."""

    def __init__(self, files: Files, dest: Path, report: Report, force: bool) -> None:
        self._files, self._dest, self._report, self._force = files, str(dest), report, force
        self._folders: set[str] = set()

    def run(self, pool: ThreadPoolExecutor, batch: Sequence[Copy]) -> None:
        todo = list(self._through(pool, self._look, batch))
        for copy in todo:
            self._make_folder(copy)
        written = list(self._through(pool, self._write, todo))
        try:
            self._files.fsync_all([self._part(copy) for copy in written])
        except OSError as error:
            self._report.failed += [(copy.name, f"the disk does not keep it: {error.strerror}") for copy in written]
            return
        equal = list(self._through(pool, self._compare, written))
        for _ in self._through(None, self._place, equal):
            pass
        self._files.fsync_folders(self._folders)

    def _through(
        self, pool: ThreadPoolExecutor | None, step: Callable[[Copy], bool], batch: Sequence[Copy]
    ) -> Iterator[Copy]:
        """Those that go on after this step; what fails is reported."""

        def attempt(copy: Copy) -> bool | str:
            try:
                return step(copy)
            except OSError as error:
                return error.strerror or str(error)
            except SorterError as error:
                return str(error)

        for copy, went in zip(batch, pool.map(attempt, batch) if pool else map(attempt, batch), strict=True):
            if isinstance(went, str):
                self._report.failed.append((copy.name, went))
            elif went:
                yield copy

    def _target(self, copy: Copy) -> str:
        return contained(self._dest, copy.name)

    def _part(self, copy: Copy) -> str:
        folder, name = os.path.split(self._target(copy))
        return os.path.join(folder, f".{name}{PART}")

    def _look(self, copy: Copy) -> bool:
        """Is there something to do?"""
        target = self._target(copy)
        if not self._files.exists(target):
            return True
        if self._digest(target) == copy.sha256:
            self._report.same.append(copy.name)
            return False
        if not self._force:
            self._report.taken.append(copy.name)
        return self._force

    def _make_folder(self, copy: Copy) -> None:
        folder = os.path.dirname(self._target(copy))
        if folder not in self._folders:
            try:
                self._files.make_folders(folder, 0o777)
            except OSError:
                return  # writing says what is wrong, of each file
            self._folders.add(folder)

    def _write(self, copy: Copy) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with self._files.opened(copy.source) as reading, self._files.opened(self._part(copy), flags, 0o666) as writing:
            self._files.copy(reading, writing)
        return True

    def _compare(self, copy: Copy) -> bool:
        part = self._part(copy)
        if self._digest(part) == copy.sha256:
            return True
        self._files.unlink(part)
        raise SorterError("what was written does not equal the original; is the disk all right?")

    def _place(self, copy: Copy) -> bool:
        part, target = self._part(copy), self._target(copy)
        if self._force:
            self._files.rename(part, target)
        else:
            self._rename_new(part, target)
        self._report.written.append(copy.name)
        return True

    def _rename_new(self, part: str, target: str) -> None:
        try:
            self._files.rename_new(part, target)
        except FileExistsError:
            self._files.unlink(part)
            raise SorterError("something else has come there meanwhile; it was not overwritten") from None
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            if self._files.exists(target):  # a mount that cannot rename only where nothing is: NFS, sshfs, FAT
                raise SorterError("something else has come there meanwhile; it was not overwritten") from None
            self._files.rename(part, target)

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._files.opened(path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
            for piece in self._files.chunks(fd):
                digest.update(piece)
        return digest.hexdigest()
