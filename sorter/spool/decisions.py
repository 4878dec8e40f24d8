"""What people decided of series in place of their headers: whose they are, and what their subject is called.

    decided/<key>.json              of a unit, until it stands in the unit's own evidence
    decided/study-<hash>.json       of a study: of whatever comes of it later, for good
    claims/<code>.json              what a lab asked for, and nobody has granted or refused yet

The sorting process is the only one that writes here. What it wrote holds at once, and after any crash: a decision is
written for all that it is of before the first of them is touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sorter.durable import PART, Files
from sorter.model import Identity, Value, build, plain
from sorter.spool.lines import line


@dataclass(frozen=True, slots=True)
class Decision:
    """`lab` and `subject` as a person says, None as the header and the rules say. `id` tells two decisions apart.

    One that says neither is that the rules are to be asked again; `undo`: that what was said before counts no more.
    """

    id: str
    lab: str | None = None
    subject: str | None = None
    undo: bool = False
    by: str = ""
    at: str = ""

    def after(self, before: Decision | None) -> Decision | None:
        """What holds once this was decided too; None for nothing."""
        if self.undo:
            return None
        if before is None:
            return self if self.lab or self.subject else None
        return replace(self, lab=self.lab or before.lab, subject=self.subject or before.subject)

    def over(self, identity: Identity) -> Identity:
        """Whose it is, with what a person said in place of what the rules did."""
        return replace(identity, lab=self.lab or identity.lab, subject=self.subject or identity.subject)

    @property
    def instead(self) -> dict[str, Value]:
        """Header values that names are made of in place of those that were sent."""
        return {"PatientID": self.subject, "PatientName": self.subject} if self.subject else {}


class Decisions:
    """The folder decided/ of a spool."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files
        self._names: set[str] | None = None

    def leave(self, keys: Iterable[str], studies: Iterable[str], decision: Decision) -> None:
        """Durable when this returns: it holds of these units, and of what comes later of these studies."""
        self._files.make_folders(self._folder)
        fresh, again = [], {_of_study(uid): decision.after(self._read(_of_study(uid))) for uid in studies}
        for key in dict.fromkeys(keys):
            before = self._read(key)
            if before is None:
                fresh.append(key)
            else:
                again[key] = decision.after(before) or decision
        for name, each in again.items():
            if each is None:
                self._remove(name)
            else:
                self._files.write_file(self._folder / f"{name}.json", line(plain(each)))
                self._known().add(name)
        self._link(fresh, decision)

    def _link(self, keys: Sequence[str], decision: Decision) -> None:
        """One file under the names of all: of thousands of units, a sync each would take minutes."""
        if not keys:
            return
        whole = self._folder / f"{decision.id}{PART}"
        self._files.write_file(whole, line(plain(decision)))
        for key in keys:
            self._files.link(whole, self._folder / f"{key}.json")
            self._known().add(key)
        self._files.unlink(whole)
        self._files.fsync_folder(self._folder)

    def waiting(self, key: str) -> Decision | None:
        """What was decided of this unit and is not in its own evidence yet."""
        return self._read(key)

    def of_study(self, study_uid: str) -> Decision | None:
        """What was decided of this study, for those of its series that come later."""
        return self._read(_of_study(study_uid))

    def taken_up(self, key: str) -> None:
        """It stands in the unit's own evidence now."""
        self._remove(key)

    def _read(self, name: str) -> Decision | None:
        if name not in self._known():
            return None
        return build(Decision, json.loads(self._files.read_file(self._folder / f"{name}.json")))

    def _remove(self, name: str) -> None:
        if name in self._known():
            self._files.unlink(self._folder / f"{name}.json")
            self._files.fsync_folder(self._folder)
            self._known().discard(name)

    def _known(self) -> set[str]:
        if self._names is None:
            found = self._files.names(self._folder) if self._files.exists(self._folder) else []
            self._names = {name.removesuffix(".json") for name in found if name.endswith(".json")}
        return self._names


def _of_study(study_uid: str) -> str:
    return f"study-{hashlib.sha256(study_uid.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A lab says that these units are its own."""

    lab: str
    keys: tuple[str, ...]
    by: str
    at: str

    @property
    def code(self) -> str:
        """What it is called: the same for the same units and lab, however often it is asked for."""
        return hashlib.sha256("\0".join((self.lab, *sorted(self.keys))).encode()).hexdigest()[:8]


class Claims:
    """The folder claims/ of a spool."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files
        self._waiting: dict[str, Claim] | None = None  # by code; of the sorting process alone, which is who writes

    def add(self, claim: Claim) -> None:
        """Durable when this returns."""
        self._files.make_folders(self._folder)
        self._files.write_file(self._folder / f"{claim.code}.json", line(plain(claim)))
        self.waiting()[claim.code] = claim

    def remove(self, code: str) -> None:
        waiting, self._waiting = self.waiting(), None  # read anew where the disk fails now
        self._files.unlink(self._folder / f"{code}.json")
        self._files.fsync_folder(self._folder)
        waiting.pop(code, None)
        self._waiting = waiting

    def of(self, key: str) -> list[Claim]:
        """Those that this unit is claimed by."""
        return [each for each in self.waiting().values() if key in each.keys]

    def waiting(self) -> dict[str, Claim]:
        """All of them, by code, read once. For the sorting process: what others write is not seen."""
        if self._waiting is None:
            self._waiting = {each.code: each for each in self.all()}
        return self._waiting

    def all(self) -> list[Claim]:
        """The oldest first."""
        names = self._files.names(self._folder) if self._files.exists(self._folder) else []
        found = [build(Claim, json.loads(self._files.read_file(self._folder / each)))
                 for each in names if each.endswith(".json")]  # fmt: skip
        return sorted(found, key=lambda each: (each.at, each.code))

    def find(self, code: str) -> Claim | None:
        return next((each for each in self.all() if each.code == code), None)
