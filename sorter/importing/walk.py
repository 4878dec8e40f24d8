"""An archive of any size, walked in bounded memory and cut into parcels.

A parcel holds whole folders with all that is below them, as many as fit beside each other, so that a study or a series
is handed over in one piece wherever its folder allows. Only a folder that has more files than a parcel takes is cut.

What was handed over is remembered by 16 bytes for each folder: a digest of its path and of the name, size and times of
each file in it. A folder that is known is passed over without opening a file; one that changed is read again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from sorter.durable import Files
from sorter.watch.names import is_own, strange_kind

MOST = 1000
"""Files of a parcel."""

LARGE = 256 << 20
"""Bytes of a parcel; a single file may have more."""

DEEPEST = 58
"""Folders within folders: what is handed over has to be found in incoming/, a few levels deeper."""

_LISTED = 50_000  # entries of one folder that are held at a time
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

LeftOut = Callable[[str, str, bool], None]
"""Told the path and the reason of what is not taken, and whether it may hold images that should have been."""

Own = Callable[[str, str], bool]
"""Told the folder and the name of what sorter itself wrote beside what it delivered, before what lies there is cut.
False where the files beside it are not known to be all that there is."""


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file. It lies in `folder`; `below` is that folder seen from what is imported."""

    folder: str
    below: str
    name: str
    size: int
    mtime_ns: int
    mark: bytes

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)


@dataclass(frozen=True, slots=True)
class Portion:
    """Files of one folder, all of them unless it has too many for a parcel."""

    mark: bytes
    files: tuple[Found, ...]
    size: int
    whole: bool


@dataclass(slots=True)
class Parcel:
    """What is handed over at once. `whole`: no folder in it was cut."""

    portions: list[Portion] = field(default_factory=list)
    count: int = 0
    size: int = 0
    whole: bool = True

    @property
    def files(self) -> Iterator[Found]:
        for portion in self.portions:
            yield from portion.files

    @property
    def marks(self) -> set[bytes]:
        """Of all its files."""
        return {found.mark for found in self.files}

    def takes(self, count: int, size: int) -> bool:
        """Is there room for so much more?"""
        return not self.count or (self.count + count <= MOST and self.size + size <= LARGE)

    def add(self, *portions: Portion) -> None:
        for portion in portions:
            self.portions.append(portion)
            self.count += len(portion.files)
            self.size += portion.size
            self.whole = self.whole and portion.whole


class Walk:
    """Everything below `root`, a folder or a single file. `known`: files passed over because `done` has them."""

    def __init__(
        self, root: Path, files: Files, done: Container[bytes], left_out: LeftOut, own: Own = lambda *_: True
    ) -> None:
        self._root, self._files, self._done, self._left_out = Path(os.path.realpath(root)), files, done, left_out
        self._own = own
        self._in_part: set[str] = set()  # folders whose files are not known to be all
        self._not_into: set[tuple[int, int]] = set()
        self.known = self.known_size = 0

    def keep_out_of(self, folder: Path) -> None:
        """Never enter this one."""
        info = self._files.stat(folder)
        self._not_into.add((info.st_dev, info.st_ino))

    def parcels(self) -> Iterator[Parcel]:
        """In an order that is the same each time, as long as nothing changes. OSError: the root cannot be read."""
        if not self._files.is_folder(self._root):
            yield from self._single(self._files.stat(self._root))
            return
        with self._files.opened(self._root, _FOLDER) as fd:
            rest = yield from self._below(fd, str(self._root), self._root.name or "root", 0)
        if rest.count:
            yield rest

    def _single(self, info: os.stat_result) -> Iterator[Parcel]:
        for portion in self._new(self._portions(str(self._root.parent), "", [(self._root.name, info)])):
            parcel = Parcel()
            parcel.add(portion)
            yield parcel

    def _below(self, fd: int, folder: str, below: str, depth: int) -> Generator[Parcel, None, Parcel]:
        """Yields what has grown to a parcel; returns the rest, to go with what lies beside this folder."""
        rest = Parcel()
        for entries in self._listed(fd, folder):
            regular, folders = self._told_apart(entries, folder)
            for portion in self._new(self._portions(folder, below, regular)):
                if not rest.takes(len(portion.files), portion.size) or not portion.whole:
                    yield from _if_any(rest)
                    rest = Parcel()
                rest.add(portion)
            for name in folders:
                inner = yield from self._enter(fd, (os.path.join(folder, name), f"{below}/{name}"), depth + 1)
                if not rest.takes(inner.count, inner.size) or rest.whole != inner.whole:
                    yield from _if_any(rest)
                    rest = inner
                else:
                    rest.add(*inner.portions)
        return rest

    def _enter(self, fd: int, where: tuple[str, str], depth: int) -> Generator[Parcel, None, Parcel]:
        folder, below = where
        if depth > DEEPEST:
            self._left_out(folder, f"folders within folders, more than {DEEPEST} deep", True)
            return Parcel()
        try:
            inner = self._files.open(os.path.basename(folder), _FOLDER, at=fd)
        except OSError as error:
            self._left_out(folder, f"a folder that cannot be opened: {error.strerror}", True)
            return Parcel()
        try:
            info = self._files.stat(inner)
            here = (info.st_dev, info.st_ino)
            if here in self._not_into:
                self._left_out(folder, "sorter's own spool, or a folder that contains itself", False)
                return Parcel()
            self._not_into.add(here)
            rest = yield from self._below(inner, folder, below, depth)
            self._not_into.discard(here)
        finally:
            self._files.close(inner)
        return rest

    # --- one folder ---------------------------------------------------------------------------------------------

    def _listed(self, fd: int, folder: str) -> Iterator[list[tuple[str, os.stat_result]]]:
        """Its entries by name; of a very large folder piece by piece, each by name."""
        entries = self._files.entries(fd)
        try:
            while piece := list(islice(entries, _LISTED)):
                yield sorted(self._looked_at(piece, folder), key=lambda item: item[0])
        except OSError as error:
            self._left_out(folder, f"a folder that cannot be read: {error.strerror}", True)

    def _looked_at(self, entries: list[os.DirEntry[str]], folder: str) -> Iterator[tuple[str, os.stat_result]]:
        for entry in entries:
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._left_out(os.path.join(folder, entry.name), f"it cannot be looked at: {error.strerror}", True)

    def _told_apart(
        self, entries: list[tuple[str, os.stat_result]], folder: str
    ) -> tuple[list[tuple[str, os.stat_result]], list[str]]:
        """Regular files, and names of folders; what sorter wrote for itself beside what it delivered in neither."""
        regular, folders = [], []
        for name, info in entries:
            why = strange_kind(info.st_mode)
            if is_own(name):
                if not self._own(folder, name):
                    self._in_part.add(folder)
                continue
            if why is not None:
                self._left_out(os.path.join(folder, name), why, False)
            elif stat.S_ISDIR(info.st_mode):
                folders.append(name)
            else:
                regular.append((name, info))
        return regular, folders

    def _portions(self, folder: str, below: str, regular: list[tuple[str, os.stat_result]]) -> Iterator[Portion]:
        """All in one, or cut where there are too many: at names that some digest picks, so that a new file changes one
        portion and not all that follow it.
        """
        fits = len(regular) <= MOST and sum(info.st_size for _, info in regular) <= LARGE
        whole = fits and folder not in self._in_part
        files: list[Found] = []
        size = 0
        for name, info in regular:
            found = _found(folder, below, name, info)
            if files and size + found.size > LARGE:
                yield _portion(files, whole)
                files, size = [], 0
            files.append(found)
            size += found.size
            if len(files) == MOST or (not fits and _ends_a_portion(found.mark, len(files))):
                yield _portion(files, whole)
                files, size = [], 0
        if files:
            yield _portion(files, whole)

    def _new(self, portions: Iterable[Portion]) -> Iterator[Portion]:
        """Without what was handed over before: the whole portion, or files of it one by one."""
        for portion in portions:
            known = portion.mark in self._done
            new = () if known else tuple(each for each in portion.files if each.mark not in self._done)
            self.known += len(portion.files) - len(new)
            size = sum(each.size for each in new)
            self.known_size += portion.size - size
            if new:
                yield Portion(portion.mark, new, size, portion.whole)


def _if_any(parcel: Parcel) -> Iterator[Parcel]:
    if parcel.count:
        yield parcel


def _ends_a_portion(mark: bytes, count: int) -> bool:
    """One name in so many, whatever comes before it."""
    least = max(1, MOST // 4)
    return count >= least and int.from_bytes(mark[:4], "big") % least == 0


def _found(folder: str, below: str, name: str, info: os.stat_result) -> Found:
    facts = (os.path.join(folder, name), info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    return Found(folder, below, name, info.st_size, info.st_mtime_ns, _digest(*facts))


def _portion(files: list[Found], whole: bool) -> Portion:
    return Portion(_digest(*(each.mark for each in files)), tuple(files), sum(each.size for each in files), whole)


def _digest(*parts: object) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape") + b"\0")
    return digest.digest()
