"""A parcel on its way: copied into the spool, synced, and put into incoming/ by one rename.

From there on it is the sorter's, like anything that is dropped. The originals are only read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.importing.walk import Found, Parcel
from sorter.naming import short_hash
from sorter.spool import Spool
from sorter.watch.beneath import FOLDER, remove_empty
from sorter.watch.names import DONE, KEEP, drop_of_import, is_temporary, is_temporary_folder, marks

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
RESERVE = 2 << 30
"""Bytes left to the scanners; a fiftieth of a smaller disk."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class NotCopied(Exception):
    """This file cannot be copied now; the reason in words."""


@dataclass(slots=True)
class Handover:
    """The parcels of one run, one after the other."""

    spool: Spool
    run: str
    number: int = 0
    drop: str = ""  # the one that is being filled
    whole: bool = True

    @property
    def _files(self) -> Files:
        return self.spool.files

    @property
    def _staging(self) -> Path:
        return self.spool.imports / "staging"

    def clear(self) -> None:
        """Remove what a run that ended in the middle of a parcel had copied; its originals are where they were."""
        if self._files.exists(self._staging):
            self._files.remove_tree(self._staging)

    def begin(self, parcel: Parcel) -> None:
        """SorterError: there is no room for it."""
        space = self._files.space(self.spool.root)
        free, whole = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
        if free < 2 * parcel.size + min(RESERVE, whole // 50):
            raise SorterError(f"{free >> 20} MB are free for {self.spool.root}; make room and start the same again")
        self.number += 1
        self.drop, self.whole = drop_of_import(self.run, self.number), parcel.whole
        self._make(self._staging / self.drop)

    def copy(self, found: Found) -> None:
        """Copy and sync one file. NotCopied: it cannot be read. SorterError: the spool's disk is full."""
        try:
            reading = self._files.open(found.path, _READ)
        except OSError as error:
            raise NotCopied(f"it cannot be opened: {error.strerror}") from None
        try:
            writing, target = self._new(found)
            try:
                self._copy((reading, writing), found, target)
            finally:
                self._files.close(writing)
        finally:
            self._files.close(reading)

    def _new(self, found: Found) -> tuple[int, Path]:
        """A new file for it: its descriptor, and where it is."""
        folder = self._staging / self.drop / Path(*(_visible(part) for part in found.below.split("/") if part))
        target = folder / _visible(found.name)
        try:
            self._make(folder)
            return self._files.open(target, _NEW), target
        except OSError as error:  # what is there is another's, and stays
            raise self._why_not(error) from None

    def _copy(self, fds: tuple[int, int], found: Found, target: Path) -> None:
        reading, writing = fds
        try:
            _expect(self._files.stat(reading), found)
            self._files.copy(reading, writing)
            self._files.fsync(writing)
            _expect(self._files.stat(reading), found)
        except OSError as error:
            self._files.unlink(target)
            raise self._why_not(error) from None
        except NotCopied:
            self._files.unlink(target)
            raise

    def _why_not(self, error: OSError) -> SorterError | NotCopied:
        if error.errno in _NO_ROOM:
            return SorterError(f"the disk of {self.spool.root} is full; make room and start again")
        return NotCopied(f"it cannot be copied: {error.strerror}")

    def give(self) -> str:
        """Put what was copied into incoming/, in one step and durably; the name of the drop.

        A whole one ends with `.done`. One that is cut lies a level deeper, in a folder of its own: nothing about it
        says that it is complete.
        """
        staged, place = self._staging / self.drop, self.spool.incoming / self.drop
        if self.whole:
            self._files.write_file(staged / DONE, b"", durable=False)
        self._files.fsync_folders(_folders(self._files, staged))
        if self.whole:
            self._files.rename(staged, place)
        else:
            self._make(place)
            for name in self._files.names(staged):
                self._files.rename(staged / name, place / name)
            self._files.fsync_folder(place)
            self._files.rmdir(staged)
        self._files.fsync_folder(self.spool.incoming)
        return self.drop

    # --- afterwards ---------------------------------------------------------------------------------------------

    def waiting(self, drop: str) -> int:
        """How many files of a drop the sorter has not taken yet."""
        return sum(1 for _ in _regular(self._files, self.spool.incoming / drop))

    def tidy(self, drop: str) -> None:
        """Remove the emptied folders of a cut drop; a whole one is the sorter's, who is to see that it is."""
        if self._files.exists(self.spool.incoming / drop / DONE):
            return
        with self._files.opened(self.spool.incoming, FOLDER) as fd:
            remove_empty(self._files, fd, drop, 64)

    # --- folders ------------------------------------------------------------------------------------------------

    def _make(self, folder: Path) -> None:
        if self._files.is_folder(folder):
            return
        self._make(folder.parent)
        self._files.mkdir(folder)


def _visible(name: str) -> str:
    """A name that nobody takes for unfinished or for a mark: an archive's files are what they are. No other file's name
    becomes the same.
    """
    special = name in (DONE, KEEP) or is_temporary(name) or is_temporary_folder(name) or marks(name) is not None
    return f"_{os.fsdecode(os.fsencode(name)[:200])}_{short_hash(name)}" if special else name


def _expect(info: os.stat_result, found: Found) -> None:
    if not stat.S_ISREG(info.st_mode) or (info.st_size, info.st_mtime_ns) != (found.size, found.mtime_ns):
        raise NotCopied("it changed while it was read")


def _folders(files: Files, folder: Path) -> Iterator[Path]:
    yield folder
    for entry in files.entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _folders(files, folder / entry.name)


def _regular(files: Files, folder: Path) -> Iterator[str]:
    try:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in files.entries(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, is_folder in found:
        if is_folder:
            yield from _regular(files, folder / name)
        elif name != DONE:
            yield name
