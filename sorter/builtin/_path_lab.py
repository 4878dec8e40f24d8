"""The lab's own corner, `<root>/.sorter/`: what stands in `lab.toml`, and `ERRORS.txt` for what is wrong with it.

Everything in it may be made by anybody in the lab, at any moment: so no link is followed, nothing that is no plain file
is opened for long, nothing is read beyond its bound, and what is written is written beside and renamed over.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import pwd
import stat
from dataclasses import replace

from sorter.builtin._path_folders import MARKER, Visit
from sorter.deliver.target import LabSeen
from sorter.durable import PART, Files
from sorter.errors import TryLater

LAB_FILE = "lab.toml"
ERRORS = "ERRORS.txt"
PLUGINS = "plugins"

PYTHON = f"{PLUGINS}/: Python of a lab's own is not run so far; remove it, and write rules into {LAB_FILE}"

MOST = 256 << 10
"""Bytes that are read of the lab's file."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe must not make us wait


def look_at_lab(visit: Visit, known: str, errors: str) -> LabSeen:
    """The lab's file, unless its SHA-256 is `known`; `errors` is what ERRORS.txt shall say, "" for no such file."""
    files = visit.files
    try:
        folder = files.open(MARKER, _FOLDER, at=visit.fd)
    except OSError as error:
        raise TryLater(f"{visit.root}: .sorter cannot be opened: {error.strerror}") from error
    try:
        _open_to_group(visit, folder)
        found = _read(files, visit, folder, known)
        _write_errors(files, visit, folder, errors)
        return replace(found, beside=PYTHON) if _has_python(files, folder) else found
    finally:
        files.close(folder)


def _open_to_group(visit: Visit, folder: int) -> None:
    """Where the lab has a group, its members may write here: it is the place for what they say."""
    files, gid = visit.files, visit.access.gid
    info = files.stat(folder)
    if gid is None or info.st_uid != os.geteuid():
        return
    wanted = stat.S_IMODE(info.st_mode) | 0o2070
    with contextlib.suppress(OSError):  # a mount that knows no groups, or has its own
        if info.st_gid != gid:
            files.chown(folder, -1, gid)
        if stat.S_IMODE(files.stat(folder).st_mode) != wanted:
            files.chmod(folder, wanted)


# --- reading --------------------------------------------------------------------------------------------------------


def _read(files: Files, visit: Visit, folder: int, known: str) -> LabSeen:
    try:
        fd = files.open(LAB_FILE, _LOOK, at=folder)
    except FileNotFoundError:
        return LabSeen("none")
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _refused("is a symbolic link; put the file itself here")
        if error.errno in (errno.EACCES, errno.EPERM):
            return _refused("cannot be read by sorter; give its account, or the lab's group, the right to")
        if error.errno == errno.ENXIO:
            return _refused("is no file; put a text file here")
        raise
    try:
        info = files.stat(fd)
        said = _unfit(files, visit, info, fd)
        if said:
            return _refused(said)
        data = files.pread(fd, MOST + 1, 0)
        after = files.stat(fd)
    finally:
        files.close(fd)
    if len(data) > MOST:
        return _refused(f"is longer than {MOST >> 10} KiB; this is no place for data")
    if (info.st_size, info.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        return LabSeen("same")  # it is being written; the next look finds it whole
    if hashlib.sha256(data).hexdigest() == known:
        return LabSeen("same")
    return LabSeen("new", data.hex())


def _refused(why: str) -> LabSeen:
    return LabSeen("refused", why=f"{LAB_FILE} {why}")


def _has_python(files: Files, folder: int) -> bool:
    try:
        with files.opened(PLUGINS, _FOLDER, at=folder) as fd:
            return any(each.name.endswith((".py", ".pyc", ".so")) for each in files.entries(fd))
    except OSError:  # there is none, or nothing that can be looked into: then nothing is run either
        return False


def _unfit(files: Files, visit: Visit, info: os.stat_result, fd: int) -> str:
    if not stat.S_ISREG(info.st_mode):
        return "is no file; put a text file here"
    if info.st_size > MOST:
        return f"is longer than {MOST >> 10} KiB; this is no place for data"
    if files.is_shared(fd):  # owners and links there are the server's matter, which has let this account in
        return ""
    if info.st_nlink > 1:
        return "has a second name elsewhere (a hard link); put a copy of it here"
    if info.st_mode & stat.S_IWOTH:
        return "may be written by everybody on this machine; chmod o-w it"
    if not _is_the_labs(files.stat(visit.fd), info.st_uid, visit.access.gid):
        return f"belongs to account {info.st_uid}, which is not of this lab; a member of the lab has to write it"
    return ""


def _is_the_labs(root: os.stat_result, uid: int, gid: int | None) -> bool:
    """Is it root, ourselves, the owner of the lab's folder, or a member of its group?"""
    if uid in (0, os.geteuid(), root.st_uid):
        return True
    try:
        entry = pwd.getpwuid(uid)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, OSError):
        return False
    wanted = root.st_gid if gid is None else gid
    try:
        grp.getgrgid(wanted)
    except KeyError:
        return False
    return wanted in groups


# --- writing --------------------------------------------------------------------------------------------------------


def _write_errors(files: Files, visit: Visit, folder: int, errors: str) -> None:
    if not errors:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            files.unlink(ERRORS, at=folder)
        return
    data = errors.encode()
    if _content(files, folder, ERRORS, len(data)) != data:
        replace_file(visit, folder, ERRORS, data)


def _content(files: Files, folder: int, name: str, most: int) -> bytes | None:
    try:
        with files.opened(name, _LOOK, at=folder) as fd:
            return files.pread(fd, most + 1, 0) if stat.S_ISREG(files.stat(fd).st_mode) else None
    except OSError:
        return None


def replace_file(visit: Visit, folder: int, name: str, data: bytes) -> None:
    """Write a whole file of ours in the lab's corner; whatever had its name, a link too, is replaced, not followed."""
    files, part = visit.files, f".{name}{PART}"
    with contextlib.suppress(FileNotFoundError):
        files.unlink(part, at=folder)
    with files.opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, at=folder) as fd:
        files.write_all(fd, data)
        visit.own_file(fd)
        files.fsync(fd)
    files.rename(part, name, at=folder, to=folder)
    files.fsync_folder(folder)
