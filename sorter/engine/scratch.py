"""The folder of one job: copies of its inputs, what it makes, and its end.

<scratch>/<id>/in/<product>/…   copies, read-only
               out/…            what the job makes
               tmp/             its $TMPDIR and home
               outcome.json     how it ended, written by its supervisor when nothing of it runs any more
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from sorter.durable import Files
from sorter.engine.work import Limits, Made, Work

IN, OUT, TMP, OUTCOME = "in", "out", "tmp", "outcome.json"


def lay_out(work: Work, folder: Path, files: Files) -> None:
    """Make the folder with its copies. Nothing is synced: after a power cut it is thrown away.

    What is left of an earlier job of this id, because the disk failed when it was to be removed, goes first.
    """
    clear(folder, files)
    for path in (folder, folder / IN, folder / OUT, folder / TMP):
        files.mkdir(path, 0o700)
    for product, copies in work.inputs.items():
        made = {folder / IN}
        for source, name in copies:
            target = folder / IN / product / name
            _folders(target.parent, made, files)
            with (
                files.opened(source, os.O_RDONLY | os.O_NOFOLLOW) as old,
                files.opened(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400) as new,
            ):
                files.copy(old, new)
        _folders(folder / IN / product, made, files)


def _folders(path: Path, made: set[Path], files: Files) -> None:
    if path in made:
        return
    _folders(path.parent, made, files)
    if not files.is_folder(path):
        files.mkdir(path, 0o700)
    made.add(path)


def clear(path: Path, files: Files) -> None:
    """Remove a folder that a job may have left in any state: modes taken away, or nested beyond any path's length.

    Folders two levels down are lifted up instead of walked into, so that no path grows. Their names there are new ones:
    what an interrupted run left has those of that run, and process numbers come again.
    """
    if not files.is_folder(path):
        if files.exists(path):
            files.unlink(path)
        return
    files.chmod(path, 0o700)
    run, lifted = secrets.token_hex(8), 0
    while entries := files.scan(path):
        for name, info in entries:
            if not stat.S_ISDIR(info.st_mode):
                files.unlink(path / name)
                continue
            files.chmod(path / name, 0o700)
            for inner, below in files.scan(path / name):
                if stat.S_ISDIR(below.st_mode):
                    files.chmod(path / name / inner, 0o700)  # to be moved, a folder must be writable itself
                    lifted += 1
                    files.rename(path / name / inner, path / f".lifted-{run}-{lifted}")
                else:
                    files.unlink(path / name / inner)
            files.rmdir(path / name)
    files.rmdir(path)


def collect(limits: Limits, files: Files) -> tuple[list[Made], str]:
    """What stands in ./out, or a sentence why it cannot be taken. Call when nothing writes there any more."""
    made: list[Made] = []
    size = 0
    if not files.is_folder(OUT):  # a link would lead out of the scratch
        return [], "it removed or replaced its folder for what it makes"
    todo = [OUT]
    while todo:
        folder = todo.pop()
        files.chmod(folder, 0o700)
        for name, info in files.scan(folder):
            path = f"{folder}/{name}"
            relative = path.removeprefix(f"{OUT}/")
            if stat.S_ISDIR(info.st_mode):
                todo.append(path)
                if len(todo) > limits.files or path.count("/") > _DEPTH:
                    return [], "it made too many folders"
                continue
            said = _unfit(info)
            size += info.st_size
            if said:
                return [], f"{relative[:80]!r} {said}"
            if len(made) >= limits.files or size > limits.bytes:
                return [], f"it made more than {limits.files} files or {limits.bytes >> 20} MiB"
            made.append(Made(relative, _digest(path, files), info.st_size))
    return sorted(made), ""


def fetch(made: Iterable[Made], source: Path, target: Path, files: Files) -> str:
    """Copy what a job elsewhere made to the new folder `target`; a sentence where it is not what its outcome says.

    No step of a path may be a link, so nothing is read that does not lie below `source`.
    """
    files.mkdir(target, 0o700)
    folders = {target}
    for each in made:
        place = target / each.name
        _folders(place.parent, folders, files)
        try:
            fd = _open_below(source, each.name, files)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                return f"{each.name[:80]!r} is not there any more as a regular file"
            raise
        try:
            if not stat.S_ISREG(files.stat(fd).st_mode) or files.stat(fd).st_size != each.size:
                return f"{each.name[:80]!r} has changed since the job ended"
            with files.opened(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600) as new:
                files.copy(fd, new)
        finally:
            files.close(fd)
        if _digest(str(place), files) != each.sha256:
            return f"{each.name[:80]!r} has changed since the job ended"
    return ""


def _open_below(folder: Path, name: str, files: Files) -> int:
    at = files.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    steps = name.split("/")
    for number, step in enumerate(steps, 1):
        flags = os.O_RDONLY | os.O_NOFOLLOW | (os.O_NONBLOCK if number == len(steps) else os.O_DIRECTORY)
        try:
            inner = files.open(step, flags, at=at)
        finally:
            files.close(at)
        at = inner
    return at


def left(path: Path, limit: int, files: Files) -> bytes:
    """What a job left in a file; OSError where it is none. A job may have put anything there, a pipe too."""
    with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
        info = files.stat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
            raise OSError(errno.EINVAL, "no regular file, or too large a one", os.fspath(path))
        return files.pread(fd, info.st_size, 0)


def excess(roots: Iterable[str], limits: Limits, files: Files) -> str:
    """What there is too much of below these folders while a job may still write there, "" if nothing."""
    count = size = 0
    todo = list(roots)
    while todo:
        folder = todo.pop()
        try:
            found = files.scan(folder)
        except OSError:  # it is gone, its mode was taken away, or it is nested too deep: that is for the end
            continue
        for name, info in found:
            count += 1
            size += info.st_blocks * 512
            if stat.S_ISDIR(info.st_mode):
                todo.append(f"{folder}/{name}")
            if count > limits.files or size > limits.bytes:
                return f"it made more than {limits.files} files or {limits.bytes >> 20} MiB"
    return ""


_DEPTH = 16


def _unfit(info: os.stat_result) -> str:
    if not stat.S_ISREG(info.st_mode):
        return "is no regular file"
    if info.st_nlink > 1:
        return "is a hard link; make a copy"
    return ""


def _digest(path: str, files: Files) -> str:
    digest = hashlib.sha256()
    files.chmod(path, 0o600)
    with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
        for piece in files.chunks(fd):
            digest.update(piece)
    return digest.hexdigest()
