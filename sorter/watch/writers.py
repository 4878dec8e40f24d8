"""Which files have a writer, from /proc, for file systems where a lease does not tell (`Files.has_writer`)."""

from __future__ import annotations

import contextlib
import os

from sorter.durable import Files

_WRITING = os.O_WRONLY | os.O_RDWR


def open_for_writing(files: Files) -> frozenset[str]:
    """The paths that processes hold open for writing: of every process we may look into, which may be none."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for process in files.names("/proc"):
            if process.isdecimal():
                with contextlib.suppress(OSError):
                    found.update(_of(files, f"/proc/{process}"))
    return frozenset(found)


def _of(files: Files, process: str) -> set[str]:
    found: set[str] = set()
    for number in files.names(f"{process}/fdinfo"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            path = os.readlink(f"{process}/fd/{number}")
            if path.startswith("/") and _flags(files, f"{process}/fdinfo/{number}") & _WRITING:
                found.add(path)
    return found


def _flags(files: Files, path: str) -> int:
    with files.opened(path) as fd:
        lines = files.read(fd, 4096).decode("ascii", "replace").splitlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), 0)
