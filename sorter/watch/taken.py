"""What was taken and lies where it lay: files that may not be removed, or are not to be. Remembered over restarts.

Of each file 16 bytes are kept: a digest of its path and of its size, times and inode. So a file that changes in any way
is another file, to be looked at anew; and what is kept says nothing about a patient.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sorter.durable import Files

_SIZE = 16


class Taken:
    """A set of files, kept in the file `path`. What `add` was told is durable once `keep` returns."""

    def __init__(self, path: Path, files: Files) -> None:
        self._path, self._files = path, files
        self._known = _read(path, files)
        self._new: list[bytes] = []
        self._stale = 0  # records on disk of files that are forgotten

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, mark: object) -> bool:
        return mark in self._known

    def add(self, mark: bytes) -> None:
        if mark not in self._known:
            self._known.add(mark)
            self._new.append(mark)

    def forget(self, mark: bytes) -> None:
        """The file is gone, or is another by now."""
        if mark in self._known:
            self._known.discard(mark)
            self._stale += 1

    def only(self, seen: set[bytes]) -> None:
        """Forget whatever is not among `seen`, which is all there is."""
        self._stale += len(self._known - seen)
        self._known &= seen

    def keep(self) -> None:
        """Write what is new. OSError: it is not durable, and is written with the next call."""
        if 2 * self._stale > len(self._known):
            self._files.write_file(self._path, b"".join(sorted(self._known)))
            self._stale = 0
        elif self._new:
            self._append(b"".join(self._new))
        self._new = []

    def _append(self, records: bytes) -> None:
        """At the end of the last whole record: a power cut may have left a part of one."""
        new = not self._files.exists(self._path)
        with self._files.opened(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW) as fd:
            torn = self._files.stat(fd).st_size % _SIZE
            if torn:
                self._files.truncate(fd, self._files.stat(fd).st_size - torn)
            self._files.write_all(fd, records)
            self._files.fsync(fd)
        if new:
            self._files.fsync_folder(self._path.parent)


def mark_of(path: str, info: tuple[int, int, int, int]) -> bytes:
    """Of a file: `path` relative to the folder that is followed, and its `facts`."""
    text = "\0".join((path, *map(str, info)))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_SIZE).digest()


def still_there(path: Path, folder: Path, files: Files) -> Iterator[str]:
    """The paths, relative to `folder`, of the files there that are remembered in `path`."""
    known = _read(path, files)
    rest = [""] if known else []
    while rest:
        inner = rest.pop()
        try:
            found = files.scan(folder / inner)
        except OSError:
            continue
        for name, info in found:
            below = f"{inner}/{name}" if inner else name
            if stat.S_ISDIR(info.st_mode):
                rest.append(below)
            elif mark_of(below, facts(info)) in known:
                yield below


def facts(info: os.stat_result) -> tuple[int, int, int, int]:
    """What of a file must not change."""
    return info.st_size, info.st_mtime_ns, info.st_ino, info.st_ctime_ns


def _read(path: Path, files: Files) -> set[bytes]:
    try:
        data = files.read_file(path, limit=1 << 34)
    except FileNotFoundError:
        return set()
    return {data[at : at + _SIZE] for at in range(0, len(data) - _SIZE + 1, _SIZE)}
