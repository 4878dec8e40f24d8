"""What the labs' own files said when they were last right, and what is wrong with them now."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sorter.durable import PART, Files
from sorter.spool.lines import line, now

_MOST = 1 << 20  # bytes read of a record
_KEPT = 3600.0  # seconds that an answer waits for whoever asked


class LabRecords:
    """`labs/<name>/lab.toml` is truth: the last good copy, as are `answered.json`, which requests were answered, and
    `answers/`, what the lab was not told of them yet. `faults.json` is what a person should know; `pages/` is a cache
    of what the lab's worker writes beside the lab's file, `trials/` holds answers for a moment."""

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

    def python(self, lab: str) -> str | None:
        """The mark of what lay among the lab's plugins when it was last seen ("": nothing); None: never seen."""
        try:
            return self._files.read_file(self._folder / lab / "python", limit=_MOST).decode(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def note_python(self, lab: str, mark: str) -> None:
        self._files.make_folders(self._folder / lab)
        self._files.write_file(self._folder / lab / "python", f"{mark}\n".encode())

    # --- pages that its worker brings the lab ---------------------------------------------------------------------

    def write_page(self, lab: str, name: str, data: bytes) -> None:
        folder = self._folder / lab / "pages"
        self._files.make_folders(folder)
        self._files.write_file(folder / name, data, durable=False)

    def read_page(self, lab: str, name: str) -> bytes:
        """b"" where there is none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._files.read_file(self._folder / lab / "pages" / name)
        return b""

    def open(self, lab: str, file: str) -> int:
        """A read-only descriptor of a page or an answer: "pages/scans.tsv"."""
        return self._files.open(self._folder / lab / file)

    # --- what labs asked for ----------------------------------------------------------------------------------------

    def answered(self, lab: str) -> dict[str, str]:
        """The requests that were answered and may still lie there: name and SHA-256 of what was asked."""
        try:
            found = json.loads(self._files.read_file(self._folder / lab / "answered.json", limit=_MOST))
            return {str(name): str(digest) for name, digest in found.items()}
        except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
            return {}

    def note_answered(self, lab: str, answered: Mapping[str, str]) -> None:
        """Durable: none of them is done again."""
        self._files.make_folders(self._folder / lab)
        self._files.write_file(self._folder / lab / "answered.json", line(dict(answered)))

    def write_answer(self, lab: str, name: str, data: bytes) -> None:
        """Durable, until the lab has it."""
        self._files.make_folders(self._folder / lab / "answers")
        self._files.write_file(self._folder / lab / "answers" / name, data)

    def answers(self, lab: str) -> dict[str, bytes]:
        """What the lab was not told yet."""
        folder = self._folder / lab / "answers"
        if not self._files.exists(folder):
            return {}
        names = [each for each in self._files.names(folder) if not each.endswith(PART)]
        return {name: self._files.read_file(folder / name) for name in names}

    def told(self, lab: str, name: str) -> None:
        """The lab has this answer."""
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(self._folder / lab / "answers" / name)

    # --- what its members try -----------------------------------------------------------------------------------------

    def write_trial(self, lab: str, code: str, data: bytes) -> None:
        """For whoever asked, who takes it; what nobody took goes with a later one."""
        folder = self._folder / lab / "trials"
        self._files.make_folders(folder)
        for name in self._files.names(folder):
            if time.time() - self._files.stat(folder / name).st_mtime > _KEPT:
                self._files.unlink(folder / name)
        self._files.write_file(folder / code, data, durable=False)

    def take_trial(self, lab: str, code: str) -> bytes | None:
        """The answer, once; None: it is not there yet."""
        path = self._folder / lab / "trials" / code
        try:
            data = self._files.read_file(path)
        except FileNotFoundError:
            return None
        self._files.unlink(path)
        return data
