"""Where a path really leads, without touching a share: one that hangs must hold up no command, and not the sorter."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

_MOST_LINKS = 40  # as the kernel
_MEMORY = frozenset({"tmpfs", "ramfs", "rootfs", "overlay", "zfs", "devtmpfs"})
"""File systems without a device of their own whose names are nevertheless looked up on this machine alone."""


def leads_to(path: Path) -> Path:
    """`path` with its symbolic links followed, as far as this machine's own disks go.

    The first folder on the way that a share is mounted on (NFS, SMB, FUSE, an automounter's) ends it: what is behind
    may hang for ever, so the rest of the path stays as it was written.
    """
    shares = _shares()
    at, rest, links = Path("/"), deque(path.parts[1:]), 0
    while rest:
        part = rest.popleft()
        if part == "..":
            at = at.parent
            continue
        at /= part
        if os.fspath(at) in shares:
            return Path(os.path.normpath(at.joinpath(*rest)))
        try:
            target = Path(os.readlink(at))
        except OSError:  # no link, or nothing there yet
            continue
        links += 1
        if links > _MOST_LINKS:
            return path
        at = Path("/") if target.is_absolute() else at.parent
        rest.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    return at


def _shares() -> frozenset[str]:
    """Where something is mounted that others than this kernel answer for (proc_pid_mountinfo(5))."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        kinds = Path("/proc/filesystems").read_text().splitlines()
    except OSError:
        return frozenset()
    local = {kind.strip() for kind in kinds if not kind.startswith("nodev") and "fuse" not in kind} | _MEMORY
    found = set()
    for line in mounts:
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] not in local:
            found.add(_plain(before.split(" ")[4]))
    return frozenset(found)


def _plain(octal: str) -> str:
    """A mount point without the escapes of its blanks and backslashes."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        octal = octal.replace(code, character)
    return octal
