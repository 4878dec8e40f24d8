"""Files below an open folder, reached one name at a time: no symbolic link on the way is followed, nothing blocks.

Who fills incoming/ may at any moment put a link where a folder was. So what is opened or removed there is reached from
a descriptor of incoming/ itself, and is compared with what was found ready.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from sorter.durable import Files
from sorter.watch.names import DONE, may_mark
from sorter.watch.state import Ready

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
AWAY = frozenset(
    {
        errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN,
        errno.ECONNABORTED, errno.ECONNRESET, errno.ETIMEDOUT, errno.ESHUTDOWN,
    }
)  # fmt: skip
"""Errors that are not a file's own: the share that it lies on has gone."""

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def open_folder(files: Files, top: Path, path: str) -> int:
    """A descriptor of the folder `path` below `top`; "" for `top` itself."""
    at = files.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for each in path.split("/") if path else ():
            below = files.open(each, FOLDER, at=at)
            files.close(at)
            at = below
    except BaseException:
        files.close(at)
        raise
    return at


def open_file(files: Files, at: int, name: str, ready: Ready) -> int:
    """A descriptor of the file that was found ready, `name` in the folder `at`. OSError ESTALE: another is there."""
    fd = files.open(name, FILE, at=at)
    info = files.stat(fd)
    if (info.st_ino, info.st_dev) != (ready.inode, ready.device) or not stat.S_ISREG(info.st_mode):
        files.close(fd)
        raise OSError(errno.ESTALE, "another file is there by now", ready.path)
    return fd


def remove_file(files: Files, at: int, name: str, ready: Ready) -> bool:
    """Remove the file that was found ready, `name` in the folder `at`; False if another is there by now. OSError: it
    may not be removed.
    """
    info = files.stat(name, at=at)
    found = (info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev)
    if found != (ready.size, ready.mtime_ns, ready.inode, ready.device):
        return False
    files.unlink(name, at=at)
    return True


def remove_empty(files: Files, at: int, name: str, depth: int) -> bool:
    """Remove a folder that holds nothing but empty folders, `depth` deep, and `.done`; True if it is not there now."""
    try:
        fd = files.open(name, FOLDER, at=at)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        left = [each for each in files.names(fd) if not (each == DONE and may_mark(files.stat(each, at=fd)))]
        if not depth or not all(remove_empty(files, fd, each, depth - 1) for each in left):
            return False
        with contextlib.suppress(FileNotFoundError):
            files.unlink(DONE, at=fd)
        files.rmdir(name, at=at)
    except OSError:
        return False
    finally:
        files.close(fd)
    return True
