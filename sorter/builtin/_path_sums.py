"""Checksums beside delivered files, for whoever has no sorter: `cd FOLDER && sha256sum -c .sorter/*.sha256`.

A file for each unit and product that lies in the folder, named as its hidden manifest is. It goes where the folder
goes, so it is right wherever the lab moved or copied it. It is written for people: sorter itself reads it nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from sorter.builtin._path_folders import MARKER
from sorter.builtin._path_stage import Stage
from sorter.durable import Files
from sorter.model import Delivered

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def write_sums(stage: Stage, folder: int, manifest: str, files: Sequence[Delivered]) -> None:
    """Write the checksums of what lies in `folder`. What a lab put in their way is said, and stops no delivery."""
    disk, name = stage.files, sums_name(manifest)
    made = not disk.exists(MARKER, at=folder)
    if made:
        with contextlib.suppress(FileExistsError):  # an answer that was lost: it is there nevertheless
            disk.mkdir(MARKER, stage.visit.access.folder_mode & 0o777, at=folder)
    try:
        hidden = disk.open(MARKER, _FOLDER, at=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        stage.visit.note("the checksums could not be written: something that is no folder is called .sorter there")
        return
    try:
        if made:
            stage.visit.own_folder(hidden)
        stage.put_bytes(name, sums_text(files))
        stage.move_over(name, hidden, name)
        disk.fsync_folder(hidden)
    finally:
        disk.close(hidden)


def remove_sums(files: Files, folder: int, manifest: str) -> None:
    """Remove them, and their folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        with files.opened(MARKER, _FOLDER, at=folder) as hidden:
            files.unlink(sums_name(manifest), at=hidden)
        files.rmdir(MARKER, at=folder)


def sums_name(manifest: str) -> str:
    return manifest.removeprefix(f"{MARKER}-").removesuffix(".json") + ".sha256"


def sums_text(files: Sequence[Delivered]) -> bytes:
    """As `sha256sum` writes it; names with a backslash or a line's end are escaped as it does."""
    lines = []
    for each in files:
        if each.state == "removed" or (each.state == "kept" and not each.beside):
            continue
        name = each.beside or each.name
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{chr(92) if escaped != name else ''}{each.sha256}  {escaped}\n")
    return "".join(lines).encode("utf-8", "surrogateescape")
