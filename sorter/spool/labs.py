"""What the labs' own files said when they were last right, and what is wrong with them now."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from sorter.durable import Files
from sorter.spool.lines import line, now

_MOST = 1 << 20  # bytes read of a record


class LabRecords:
    """`labs/<name>/lab.toml` is truth: the last good copy. `faults.json` beside it is what a person should know."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files

    def good(self, lab: str) -> bytes | None:
        """The last good copy; None where the lab never had one, or removed its file."""
        try:
            return self._files.read_file(self._folder / lab / "lab.toml", limit=_MOST)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keep(self, lab: str, data: bytes | None) -> None:
        """The file was right, or (None) the lab has none any more. Durable."""
        path = self._folder / lab / "lab.toml"
        if data is not None:
            self._files.make_folders(path.parent)
            self._files.write_file(path, data)
        elif self._files.exists(path):
            self._files.unlink(path)
            self._files.fsync_folder(path.parent)

    def say(self, lab: str, faults: Sequence[str]) -> None:
        """What is wrong with the lab's file now, for `status`; () when nothing is any more."""
        path = self._folder / lab / "faults.json"
        if faults:
            self._files.make_folders(path.parent)
            self._files.write_file(path, line({"at": now(), "faults": list(faults)}), durable=False)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._files.unlink(path)

    def faults(self, lab: str) -> tuple[str, ...]:
        try:
            found = json.loads(self._files.read_file(self._folder / lab / "faults.json", limit=_MOST))
            return tuple(str(each) for each in found["faults"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return ()
