"""What was copied out of the store, by unit: nothing that a copy needs, but a withdrawal has to know of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from sorter.durable import Files
from sorter.naming import contained
from sorter.spool import Unit


@dataclass(frozen=True, slots=True)
class Exported:
    """What was once copied out of one unit: `files` are (path below `dest`, SHA-256)."""

    disk: Files
    dest: str
    at: str
    files: tuple[tuple[str, str], ...]

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many are as they were written, how many somebody changed, how many are gone or out of sight."""
        standing = [self._standing(name, sha256) for name, sha256 in self.files]
        return standing.count("same"), standing.count("changed"), standing.count("gone")

    def remove(self) -> list[str]:
        """Remove those that are as they were written; the paths of those that are left."""
        standing = [(name, self._standing(name, sha256, remove=True)) for name, sha256 in self.files]
        return [contained(self.dest, name) for name, each in standing if each == "changed"]

    def _standing(self, name: str, sha256: str, *, remove: bool = False) -> str:
        """From the folder's descriptor: what is removed is what was looked at, whoever moves folders meanwhile."""
        folder, base = os.path.split(contained(self.dest, name))
        try:
            with self.disk.opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as at:
                if self._digest(base, at) != sha256:
                    return "changed"
                if remove:
                    self.disk.unlink(base, at=at)
            return "same"
        except (FileNotFoundError, NotADirectoryError):
            return "gone"
        except OSError:
            return "changed"

    def _digest(self, name: str, at: int) -> str:
        digest = hashlib.sha256()
        with self.disk.opened(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, at=at) as fd:
            for piece in self.disk.chunks(fd):
                digest.update(piece)
        return digest.hexdigest()


def exported(unit: Unit) -> list[Exported]:
    """Every copy that was made of a unit, as far as it is known."""
    return [
        Exported(unit.spool.files, each["dest"], each["at"], tuple((name, sha256) for name, sha256 in each["files"]))
        for each in unit.exports()
    ]
