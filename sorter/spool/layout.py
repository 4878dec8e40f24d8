"""Where everything is in a spool, who may see it, and what starts and ends a life on it."""

from __future__ import annotations

import datetime
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sorter.durable import PART, Files
from sorter.errors import SorterError

MOST_ASIDE = 8192
"""Entries of one folder of the quarantine, each file with its reason."""

VERSION = 1
"""Of the layout. An older spool is always read; a newer one is refused."""


class Spool:
    """A spool folder. It must lie on one local file system: links and flocks have to work in it."""

    def __init__(self, root: Path, files: Files) -> None:
        self.root, self.files = root, files
        self.received = root / "received"
        self.incoming = root / "incoming"
        self.store = root / "store"
        self.quarantine = root / "quarantine"
        self.journal = root / "journal"
        self.labs = root / "labs"
        self.owed = root / "owed"
        self.taking = root / "taking"
        self.scratch = root / "scratch"
        self.left = root / "left"  # of each followed folder: which files were taken, and lie there still
        self._aside: tuple[str, int, int] | None = None  # day, number of the folder, entries in it

    # --- a life on it -------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make what is missing, with its modes; refuse a spool of a newer sorter."""
        files = self.files
        files.make_folders(self.root, 0o711)
        with files.opened(self.root, os.O_RDONLY | os.O_DIRECTORY) as fd:
            files.lock(fd, wait=True)  # `receive` and `sort` may start at the same moment
            self._check_version()
        for folder in (self.received, self.store, self.quarantine, self.journal, self.labs, self.owed, self.left):
            files.make_folders(folder, 0o700)
        for folder in (self.taking, self.scratch):  # scratch/ is the engine's, which empties it itself
            files.make_folders(folder, 0o700)
        if not files.exists(self.incoming):
            files.make_folders(self.incoming)
            files.chmod(self.incoming, 0o3770)  # whoever is in its group may drop, nobody may move others' files

    def _check_version(self) -> None:
        path = self.root / "version"
        try:
            found = int(self.files.read_file(path, limit=64))
        except FileNotFoundError:
            self.files.write_file(path, f"{VERSION}\n".encode())
            return
        except ValueError:
            raise SorterError(
                f"{path} does not hold a number; put {VERSION} into it if this is sorter's spool"
            ) from None
        if found > VERSION:
            raise SorterError(
                f"{self.root} was written by a newer sorter (layout {found}; this one knows {VERSION}): "
                "start that version, or give another --root"
            )

    def lock(self) -> int:
        """The descriptor that keeps a second `sort` away; SorterError if one is running."""
        fd = self.files.open(self.root / "lock", os.O_RDWR | os.O_CREAT)
        if not self.files.lock(fd):
            self.files.close(fd)
            raise SorterError(f"another sorter is sorting {self.root}; stop it first, or give another --root")
        return fd

    def clear_temporary(self) -> None:
        """Remove copies that a dead process was in the middle of taking; their originals are still there."""
        for name in self.files.names(self.taking):
            self.files.unlink(self.taking / name)

    # --- the store ----------------------------------------------------------------------------------------------

    def unit_folder(self, key: str) -> Path:
        return self.store / key[:2] / key

    def keys(self) -> Iterator[str]:
        """Every unit in the store. A walk: for the start and for people, never for the daily work."""
        for shard in self.files.names(self.store):
            if len(shard) == 2:
                yield from (name for name in self.files.names(self.store / shard) if not name.endswith(PART))

    # --- quarantine ---------------------------------------------------------------------------------------------

    def set_aside(self, path: Path, reason: str, origin: str) -> Path:
        """Move a file of this file system into quarantine, with its reason beside it; returns where it lies now.

        `origin` says where it came from, relative to the spool; it is kept in the reason and decides the name, so that
        the same file set aside twice, after a crash in between, lies there once.
        """
        folder = self._aside_today()
        target = self._free_name(folder, path, origin)
        note = {"reason": reason, "origin": origin, "at": now()}
        self.files.write_file(target.with_name(f"{target.name}.reason.json"), line(note))
        try:
            self.files.link(path, target)
        except FileExistsError:
            pass  # the same bytes: `_free_name` gives no other's
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(path, target)
        self.files.fsync_folder(folder)
        self.files.unlink(path)
        return target

    def _aside_today(self) -> Path:
        """quarantine/<day>/, or quarantine/<day>-001/ and so on where that is full."""
        day, number = datetime.date.today().isoformat(), 0
        if self._aside is not None and self._aside[0] == day:
            number = self._aside[1]
        while True:
            folder = self.quarantine / (f"{day}-{number:03d}" if number else day)
            if self._aside is None or self._aside[:2] != (day, number):
                self.files.make_folders(folder)
                self._aside = (day, number, len(self.files.names(folder)))
            if self._aside[2] < MOST_ASIDE:
                self._aside = (day, number, self._aside[2] + 2)
                return folder
            number += 1

    def _free_name(self, folder: Path, path: Path, origin: str) -> Path:
        base = (
            "".join(each if each.isalnum() or each in "._+-" else "_" for each in origin)[-100:].lstrip(".") or "file"
        )
        for number in range(1, 1_000_000):
            target = folder / (base if number == 1 else f"{number}-{base}")
            if not self.files.exists(target) or self._equal(target, path):
                return target
        raise SorterError(f"{folder} is full of files named {base}; look at them with `sorter quarantine`")

    def _equal(self, one: Path, other: Path) -> bool:
        """The same bytes."""
        first, second = self.files.stat(one), self.files.stat(other)
        if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino):
            return True
        if first.st_size != second.st_size:
            return False
        with self.files.opened(one) as here, self.files.opened(other) as there:
            return all(piece == self.files.read(there, len(piece)) for piece in self.files.chunks(here))

    def _copy(self, source: Path, target: Path) -> None:
        part = target.with_name(f"{target.name}{PART}")
        with (
            self.files.opened(source, os.O_RDONLY | os.O_NOFOLLOW) as reading,
            self.files.opened(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as writing,
        ):
            self.files.copy(reading, writing)
            self.files.fsync(writing)
        self.files.rename(part, target)

    def quarantined(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """(file, {reason, origin, at}) of everything set aside, oldest day first."""
        for day in self.files.names(self.quarantine):
            folder = self.quarantine / day
            names = self.files.names(folder)
            for name in names:
                if name.endswith(".reason.json") and name.removesuffix(".reason.json") in names:
                    with_reason = json.loads(self.files.read_file(folder / name))
                    yield folder / name.removesuffix(".reason.json"), with_reason

    # --- journal ------------------------------------------------------------------------------------------------

    def note(self, kind: str, **details: Any) -> None:
        """One line in today's journal: an association, a unit's event, an attempt. Never one an image."""
        path = self.journal / f"{datetime.date.today().isoformat()}.jsonl"
        self.files.append(path, line({"at": now(), "kind": kind, **details}), durable=False)


def now() -> str:
    """Local wall clock with its offset, to the second: for people to read, never to decide by."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def line(value: Any) -> bytes:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape") + b"\n"
