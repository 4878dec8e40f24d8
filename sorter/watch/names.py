"""What a name or a kind of entry says before the content is looked at."""

from __future__ import annotations

import os
import re
import stat

DONE = ".done"
"""In a drop's folder, or as `NAME.done` beside it: the drop is complete."""

LARGEST_MARK = 1024
"""Bytes of a file that says that a drop is complete: a word, a time. No image is as small, and some programs call what
they are done with NAME.done.
"""

KEEP = ".keep"
"""In a folder: it is never removed, however empty."""

_ENDS = (
    ".part", ".partial", ".filepart", ".tmp", ".temp", ".crdownload", ".download", ".opdownload", ".cyberduckpart",
    ".incomplete", ".inprogress", ".swp", ".aria2", ".!sync", ".lftp-pget-status",
)  # fmt: skip
_STARTS = ("~$", ".~", ".nfs", ".smbdelete", ".smb", ".fuse_hidden", ".in.", ".syncthing.", "~syncthing~", ".unison.")
_RSYNC = re.compile(r"\..+\.[A-Za-z0-9]{6}", re.DOTALL)  # .NAME.XXXXXX; rsync has no way to be asked
_IMPORT = re.compile(r"import-[0-9a-f]{12}-[0-9]{6,}")
_FOLDERS = frozenset({".~tmp~", ".rsync-tmp", ".rsync-partial"})


def is_temporary(name: str) -> bool:
    """Is this how rsync, sftp clients, file servers, browsers or office programs call what is not finished?"""
    lower = name.lower()
    return lower.endswith(_ENDS) or lower.startswith(_STARTS) or _RSYNC.fullmatch(name) is not None


def is_temporary_folder(name: str) -> bool:
    return name in _FOLDERS


def drop_of_import(run: str, number: int) -> str:
    """What `sorter import` calls what it hands over: renamed into place once every file in it is whole."""
    return f"import-{run}-{number:06d}"


def is_import(drop: str) -> bool:
    return _IMPORT.fullmatch(drop) is not None


def is_own(name: str) -> bool:
    """Is this how sorter calls what it writes beside what it delivers: manifests, checksums, the marker's folder?"""
    return name == ".sorter" or (name.startswith(".sorter-") and name.endswith(".json"))


def marks(name: str) -> str | None:
    """The drop that a top entry of this name could mark as complete: "x" for "x.done"."""
    return name.removesuffix(DONE) if name.endswith(DONE) and name != DONE else None


def may_mark(info: os.stat_result) -> bool:
    """Is it a file that can be a mark, whatever it is called?"""
    return stat.S_ISREG(info.st_mode) and info.st_size <= LARGEST_MARK


def strange_kind(mode: int) -> str | None:
    """Why an entry of this mode is not looked into; None for regular files and folders."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    if stat.S_ISLNK(mode):
        return "a symbolic link; sorter does not follow it"
    if stat.S_ISFIFO(mode):
        return "a named pipe, not a file"
    if stat.S_ISSOCK(mode):
        return "a socket, not a file"
    return "a device, not a file"
