"""Where everything is in a spool, who may see it, and what starts and ends a life on it."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sorter.accounts import name_of
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.spool.decisions import Claims, Decisions
from sorter.spool.keys import Keys
from sorter.spool.left_alone import LeftAlone
from sorter.spool.lines import line as line
from sorter.spool.lines import now as now
from sorter.spool.quarantine import Quarantine
from sorter.spool.recovered import Recoveries
from sorter.spool.withdrawals import Withdrawals

PROBLEMS = "problems.json"
VERSION = 2
"""Of the layout. An older spool is always read; a newer one is refused. 2: images may have left (`mark_left`)."""


class Spool:
    """A spool folder. It must lie on one local file system: links and flocks have to work in it."""

    def __init__(self, root: Path, files: Files) -> None:
        self.root, self.files = root, files
        self.received = root / "received"
        self.incoming = root / "incoming"
        self.store = root / "store"
        self.quarantine = root / "quarantine"
        self.journal = root / "journal"
        self.commitments = root / "commitments"
        self.labs = root / "labs"
        self.owed = root / "owed"
        self.taking = root / "taking"
        self.scratch = root / "scratch"
        self.workers = root / "workers"  # sockets that workers of other accounts come to; see `sorter.deliver.workers`
        self.requests = root / "requests"  # what commands ask of the sorting process
        self.imports = root / "imports"  # what `sorter import` remembers
        self.aside = Quarantine(self.quarantine, files)
        self.withdrawals = Withdrawals(root / "withdrawn", files)
        self.decisions = Decisions(root / "decided", files)
        self.claims = Claims(root / "claims", files)
        self.recoveries = Recoveries(root / "recovered", files)
        self.groups = root / "groups"  # which series were put together, made with the first
        self.studies = root / "studies"  # what was told of each study; see `sorter.spool.studies`
        self.alarms = root / "alarms.json"  # what should have come and did not; see `sorter.spool.alarms`
        self.run = root / "run"  # where those knock who may not read all this
        self.access = root / "access"  # what they read
        self.exports = root / "exports"  # what a target is to be given copies of; see `sorter.spool.exports`
        self.days = root / "days.json"  # how many days passed; see `sorter.spool.days`
        self.left_alone = LeftAlone(root / "left-alone.json", files)
        self.left = root / "left"  # of each followed folder: which files were taken, and lie there still

    # --- a life on it -------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make what is missing, with its modes; refuse a spool of a newer sorter, and one that is another account's."""
        try:
            self._make()
        except PermissionError as error:
            account, where = name_of(os.geteuid()), os.fsdecode(error.filename or self.root)
            raise SorterError(
                f"the spool {self.root} cannot be used: {account} may not make or read {where}; run sorter as its "
                f"owner, or make it as root: install -d -o {account} -m 0711 {self.root}"
            ) from None
        except OSError as error:
            where = os.fsdecode(error.filename or self.root)
            raise SorterError(f"the spool {self.root} cannot be used: {where}: {error.strerror}") from None

    def _make(self) -> None:
        files = self.files
        files.make_folders(self.root, 0o711)
        with files.opened(self.root, os.O_RDONLY | os.O_DIRECTORY) as fd:
            files.lock(fd, wait=True)  # `receive` and `sort` may start at the same moment
            if not files.exists(self.root / "version"):
                files.write_file(self.root / "version", b"1\n")
            self.check_version()
        for folder in (
            self.received,
            self.store,
            self.quarantine,
            self.journal,
            self.labs,
            self.owed,
            self.left,
            self.requests,
            self.imports,
            self.access,
            self.exports,
        ):
            files.make_folders(folder, 0o700)
        if not files.exists(self.run):
            files.make_folders(self.run)
            files.chmod(self.run, 0o711)  # whatever the umask is
        for folder in (self.taking, self.scratch):  # scratch/ is the engine's, which empties it itself
            files.make_folders(folder, 0o700)
        if not files.exists(self.incoming):
            files.make_folders(self.incoming)
            files.chmod(self.incoming, 0o3770)  # whoever is in its group may drop, nobody may move others' files

    def mark_left(self) -> None:
        """Images are about to leave: a sorter that would call them lost is to refuse this spool from now on."""
        if self._version() < VERSION:
            self.files.write_file(self.root / "version", f"{VERSION}\n".encode())

    def check_version(self) -> None:
        """SorterError where a newer sorter made this spool: its records may say what this one would not heed."""
        found = self._version()
        if found > VERSION:
            raise SorterError(
                f"{self.root} was written by a newer sorter (layout {found}; this one knows {VERSION}): "
                "start that version, or give another --root"
            )

    def _version(self) -> int:
        path = self.root / "version"
        try:
            return int(self.files.read_file(path, limit=64))
        except ValueError:
            raise SorterError(
                f"{path} does not hold a number; put {VERSION} into it if this is sorter's spool"
            ) from None

    def lock(self) -> int:
        """The descriptor that keeps a second `sort` away; SorterError if one is running."""
        fd = self.files.open(self.root / "lock", os.O_RDWR | os.O_CREAT)
        if not self.files.lock(fd):
            self.files.close(fd)
            raise SorterError(f"another sorter is sorting {self.root}; stop it first, or give another --root")
        return fd

    def is_sorting(self) -> bool:
        """Does a `sort` hold the lock?"""
        try:
            with self.files.opened(self.root / "lock") as fd:
                return not self.files.lock(fd, shared=True)
        except FileNotFoundError:
            return False

    def clear_temporary(self) -> None:
        """Remove copies that a dead process was in the middle of taking; their originals are still there."""
        for name in self.files.names(self.taking):
            self.files.unlink(self.taking / name)

    # --- the store ----------------------------------------------------------------------------------------------

    def unit_folder(self, key: str) -> Path:
        return self.store / key[:2] / key

    def keys(self) -> Keys:
        """Every unit in the store. A walk: for the start and for people, never for the daily work."""
        return Keys(self.store, self.files)

    # --- quarantine ---------------------------------------------------------------------------------------------

    def set_aside(self, path: Path, reason: str, origin: str) -> Path:
        """Move a file into quarantine; see `Quarantine.set_aside`."""
        return self.aside.set_aside(path, reason, origin)

    def quarantined(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """(file, {reason, origin, at}) of everything set aside, oldest day first."""
        for each in self.aside.entries():
            yield each.path, {"reason": each.reason, "origin": each.origin, "at": each.at}

    # --- what is wrong now --------------------------------------------------------------------------------------

    def write_problems(self, problems: Sequence[str]) -> None:
        """What keeps the sorting process from its work at the moment, in sentences, for `status`."""
        self.files.write_file(self.root / PROBLEMS, line({"at": now(), "problems": list(problems)}), durable=False)

    def problems(self) -> list[str]:
        """The same, read by another process; only true while a sorting process runs."""
        try:
            return [str(each) for each in json.loads(self.files.read_file(self.root / PROBLEMS))["problems"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []

    # --- journal ------------------------------------------------------------------------------------------------

    def note(self, kind: str, **details: Any) -> None:
        """One line in today's journal: an association, a unit's event, an attempt. Never one an image."""
        path = self.journal / f"{datetime.date.today().isoformat()}.jsonl"
        self.files.append(path, line({"at": now(), "kind": kind, **details}), durable=False)
