"""Every unit in the store, one after another, on a disk that may fail while they are listed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from sorter.durable import PART, Files


class Keys(Iterator[str]):
    """The keys of all units: a walk, for the start and for people, never for the daily work.

    What can be listed comes first. Then `next` raises the OSError of what cannot, and, asked again, tries that again:
    it ends only when everything was listed.
    """

    def __init__(self, store: Path, files: Files) -> None:
        self._store, self._files = store, files
        self._shards: deque[str] | None = None  # not listed yet; None: nor is the store itself
        self._failed: deque[str] = deque()
        self._error = OSError()
        self._keys: Iterator[str] = iter(())

    def __next__(self) -> str:
        if self._shards is None:
            self._shards = deque(name for name in self._files.names(self._store) if len(name) == 2)
        while (key := next(self._keys, None)) is None:
            if self._shards:
                self._list(self._shards.popleft())
            elif self._failed:
                self._shards, self._failed = self._failed, deque()
                raise self._error
            else:
                raise StopIteration
        return key

    def _list(self, shard: str) -> None:
        try:
            names = self._files.names(self._store / shard)
        except OSError as error:
            self._failed.append(shard)
            self._error = error
        else:
            self._keys = iter([name for name in names if not name.endswith(PART)])
