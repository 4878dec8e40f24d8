"""What is known of studies: one file each, written when a study settles, and again when it grew and settled again.

studies/<2 hex>/<key>.json    truth: the table as it was told, and which revisions of its series that was
studies/begun                 there since the first start that kept such records; what was here before is not told
studies/overview.json         cache: what `status` shows
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sorter.durable import Files
from sorter.model import Study, UnitKind, build, plain, unit_key
from sorter.spool.lines import line


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study that has settled. `members` are the keys of its series, with the revision that was told of each."""

    study: Study
    members: Mapping[str, int] = field(default_factory=dict)
    at: str = ""
    why: str = ""
    told: bool = False  # plugins were told of it
    left: tuple[str, ...] = ()  # senders who had gone on to another study
    returned: tuple[str, ...] = ()  # senders who came back to it after that


@dataclass(frozen=True, slots=True)
class Overview:
    """What `status` shows: keys of the studies that wait to settle, and the latest that settled without something."""

    waiting: tuple[str, ...] = ()
    lacking: tuple[StudyRecord, ...] = ()


def study_key(study_uid: str) -> str:
    return unit_key(UnitKind.STUDY, study_uid)


class StudyRecords:
    """The folder `studies/` of a spool."""

    def __init__(self, root: Path, files: Files) -> None:
        self._root, self._files = root, files

    # --- since when ---------------------------------------------------------------------------------------------

    def begun(self) -> bool:
        """Has a life before this one looked through the whole store for studies?"""
        return self._files.exists(self._root / "begun")

    def begin(self) -> None:
        """All that was here before has a record, or needs none."""
        self._files.make_folders(self._root)
        self._files.sync_file_system(self._root)
        self._files.write_file(self._root / "begun", b"")

    # --- one study ----------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.json"

    def read(self, key: str) -> StudyRecord | None:
        """None where the study never settled."""
        try:
            return build(StudyRecord, json.loads(self._files.read_file(self._path(key), limit=1 << 26)))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, record: StudyRecord, *, durable: bool = True) -> None:
        path = self._path(record.study.key)
        self._files.make_folders(path.parent)
        self._files.write_file(path, line(plain(record)), durable=durable)

    # --- for status ---------------------------------------------------------------------------------------------

    def overview(self) -> Overview:
        try:
            return build(Overview, json.loads(self._files.read_file(self._root / "overview.json", limit=1 << 26)))
        except (FileNotFoundError, ValueError):
            return Overview()

    def write_overview(self, overview: Overview) -> None:
        self._files.make_folders(self._root)
        self._files.write_file(self._root / "overview.json", line(plain(overview)), durable=False)
