"""What was copied out of the store, by unit: nothing that a copy needs, but a withdrawal has to know of it."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.naming import contained
from sorter.spool import Unit


@dataclass(frozen=True, slots=True)
class Exported:
    """What was once copied out of one unit: `files` are (path below `dest`, SHA-256); `sizes` in bytes, by SHA-256, as
    far as they are known.

    Whoever made the copies said where they went, and may have meant harm: what he said ends no withdrawal.
    """

    disk: Files
    dest: str
    at: str
    files: tuple[tuple[str, str], ...]
    sizes: Mapping[str, int] = field(default_factory=dict)

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
        try:
            folder, base = os.path.split(contained(self.dest, name))
            with self.disk.opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as at:
                if self._digest(base, at, self.sizes.get(sha256)) != sha256:
                    return "changed"
                if remove:
                    self.disk.unlink(base, at=at)
            return "same"
        except (FileNotFoundError, NotADirectoryError, SorterError, ValueError):  # also no name that a file can have
            return "gone"
        except OSError:
            return "changed"

    def _digest(self, name: str, at: int, size: int | None) -> str:
        """ "" of what need not be read, as it can be none of them: a device, or a file without end."""
        digest = hashlib.sha256()
        with self.disk.opened(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, at=at) as fd:
            info = self.disk.stat(fd)
            if not stat.S_ISREG(info.st_mode) or size not in (None, info.st_size):
                return ""
            for piece in self.disk.chunks(fd):
                digest.update(piece)
        return digest.hexdigest()


def can_be(dest: str, name: str) -> bool:
    """Can there be a file `name` below the folder `dest`? Of what somebody else says, before it is remembered."""
    try:
        os.fsencode(posixpath.join(dest, name))
        return dest[:1] == "/" and "\0" not in dest and contained(dest, name) != posixpath.normpath(dest)
    except (SorterError, ValueError):
        return False


def exported(unit: Unit) -> list[Exported]:
    """Every copy that was made of a unit, as far as it is known."""
    sizes = {each.sha256: each.size for each in unit.instances.values()}
    return [
        Exported(
            unit.spool.files, each["dest"], each["at"], tuple((name, sha256) for name, sha256 in each["files"]), sizes
        )
        for each in unit.exports()
    ]
