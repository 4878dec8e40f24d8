"""What was withdrawn, so that nothing of it is taken again: a tombstone for each series and each study.

    withdrawn/<key>.json            of a unit
    withdrawn/study-<hash>.json     of a study, where all of it was withdrawn

A tombstone says when, why, and at whose word; its name is a hash, and no patient is named in it. None is ever removed.
The sorting process is the only one that writes here; what it wrote holds at once, and after any crash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from sorter.durable import Files
from sorter.spool.lines import line, now


class Withdrawals:
    """The folder withdrawn/ of a spool."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files
        self._names: set[str] | None = None

    def add(self, keys: Iterable[str], studies: Iterable[str], why: str, by: str) -> None:
        """Durable when this returns: nothing of these units, and of these whole studies, is taken from now on."""
        self._files.make_folders(self._folder)
        for name in [*keys, *map(_of_study, studies)]:
            if not self._files.exists(self._folder / f"{name}.json"):
                self._files.write_file(self._folder / f"{name}.json", line({"at": now(), "why": why, "by": by}))
            self._known().add(name)

    def holds(self, key: str) -> bool:
        """Is there a tombstone of this unit on the disk?"""
        return self._files.exists(self._folder / f"{key}.json")

    def refuses(self, key: str, study_uid: str) -> str:
        """Why nothing of this unit is taken; "" where it is."""
        known = self._known()
        if not known:
            return ""
        name = next((each for each in (key, _of_study(study_uid)) if each in known), None)
        if name is None:
            return ""
        at = str(json.loads(self._files.read_file(self._folder / f"{name}.json")).get("at", ""))[:10]
        return f"it was withdrawn on {at}: it is not taken again"

    def _known(self) -> set[str]:
        if self._names is None:
            found = self._files.names(self._folder) if self._files.exists(self._folder) else []
            self._names = {name.removesuffix(".json") for name in found if name.endswith(".json")}
        return self._names


def _of_study(study_uid: str) -> str:
    return f"study-{hashlib.sha256(study_uid.encode()).hexdigest()[:32]}"
