"""A folder below `.sorter/` of a remote, where files are written and proved before they get their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sorter.builtin._path_folders import digest, unread
from sorter.builtin._rclone import Entry, Remote, at_once
from sorter.deliver.target import Source, Wanted
from sorter.durable import Files
from sorter.errors import Held, TryLater


@dataclass(frozen=True, slots=True)
class Item:
    """A file to write: its place in the put, and what it has to be."""

    index: int
    wanted: Wanted

    @property
    def name(self) -> str:
        """In the stage, which names nobody."""
        return f"{self.index:06d}-{self.wanted.sha256[:16]}"


class Stage:
    """The stage `path`. What an earlier attempt left there whole is used again."""

    def __init__(self, remote: Remote, path: str, files: Files) -> None:
        self._remote, self.path, self._files = remote, path, files

    def fill(self, items: Sequence[Item], source: Source, keep: str = "") -> None:
        """Write all, and read each back. TryLater where one reads back differently. What else lies there goes, but for
        the file called `keep`."""
        ready = self._tidy({item.name: item for item in items}, keep)
        todo = [item for item in items if item.name not in ready]
        source.will_need([item.index for item in todo])

        def handed_over() -> Iterator[tuple[Item, int]]:
            for item in todo:
                yield item, os.dup(source(item.index))

        at_once(lambda pair: self._write(*pair), handed_over())

    def put_bytes(self, name: str, content: bytes, path: str) -> None:
        """A small file of our own making, proved before and after it gets the name `path`."""
        sha256 = hashlib.sha256(content).hexdigest()
        self._remote.write(f"{self.path}/{name}", content)
        self.prove(f"{self.path}/{name}", sha256)
        self.give(name, path)
        self.prove(path, sha256)

    def give(self, name: str, path: str) -> None:
        """Give a staged file its name, in place of what has it: which may be away for a moment."""
        self._remote.move(f"{self.path}/{name}", path)

    def prove(self, path: str, sha256: str) -> None:
        """TryLater where this does not read back as it should."""
        if self._remote.digest(path) != sha256:
            raise TryLater(f"{self._remote.name} does not give back what was written to it; it is tried again")

    def end(self) -> None:
        self._remote.purge(self.path)

    def _tidy(self, items: dict[str, Item], keep: str) -> set[str]:
        """Which of the items lie here already, whole."""
        ready: set[str] = set()

        def look(name: str, entry: Entry) -> None:
            item, path = items.get(name), f"{self.path}/{name}"
            if entry.is_folder:
                self._remote.purge(path)
            elif item is not None and self._remote.digest(path) == item.wanted.sha256:
                ready.add(name)
            elif name != keep:
                self._remote.delete(path)

        at_once(lambda pair: look(*pair), self._remote.listed(self.path).items())
        return ready

    def _write(self, item: Item, fd: int) -> None:
        path = f"{self.path}/{item.name}"
        try:
            try:
                stored = digest(self._files, fd)
            except OSError as error:
                raise unread(error) from error
            if stored != item.wanted.sha256:
                raise Held("a file in the store has no longer the digest it came with; run `sorter verify --deep`")
            self._remote.send(fd, path, item.wanted.size)
        finally:
            os.close(fd)
        self.prove(path, item.wanted.sha256)
