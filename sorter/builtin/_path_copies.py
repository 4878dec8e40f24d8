"""Copies that a lab asked for, below its root: written beside, proved, and renamed; never over what is there."""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sorter.builtin._path_folders import MARKER, Visit, components, file_name, look, one_name
from sorter.builtin._path_stage import Item, Stage
from sorter.deliver.target import Copied, Copies, Source
from sorter.durable import PART
from sorter.errors import Held


@dataclass(slots=True)
class _Sorted:
    """What became of the files, by their places in the job."""

    written: list[int] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)


def copy_for_lab(visit: Visit, job: Copies, source: Source, threads: int) -> Copied:
    """Copy each file to its name below the root. What is there and equal is left."""
    found, folders = _Sorted(), _by_folder(job)
    for folder, items in folders.items():
        above = visit.make(folder)
        todo = dict(_absent(visit, above, job, items, found))
        if todo:
            stage = Stage(visit, above, _stage_name(folder), threads)
            with stage.opened():
                stage.fill([Item(index, f"f{index}", job.files[index]) for index in todo], source)
                for index, name in todo.items():
                    _place(stage, above, (index, name), found, force=job.force)
                with contextlib.suppress(OSError):  # what was not placed lies in it
                    stage.end()
        visit.settle(folder)  # also of what is there: who made it may have died before he did
    return Copied(tuple(found.written), tuple(found.same), tuple(sorted(found.taken)))


def _by_folder(job: Copies) -> Mapping[str, dict[int, str]]:
    folders: dict[str, dict[int, str]] = {}
    for index, wanted in enumerate(job.files):
        folder, name = posixpath.split(wanted.name)
        if any(part.startswith(MARKER) for part in components(folder)):
            raise Held("copies were to go to sorter's own folder; name another one")
        folders.setdefault(folder, {})[index] = file_name(name)
    return folders


def _absent(
    visit: Visit, folder: int, job: Copies, items: Mapping[int, str], found: _Sorted
) -> Iterator[tuple[int, str]]:
    """Those that are to be written; of the others it is noted why not."""
    fold = one_name if visit.folds() else str
    before: dict[str, int] = {}
    for index, name in items.items():
        seen = look(visit.files, name, folder, settle=True)
        if seen is not None and seen.sha256 == job.files[index].sha256:
            found.same.append(index)
        elif (seen is not None and not (job.force and seen.sha256)) or fold(name) in before:
            found.taken.append(index)
        else:
            before[fold(name)] = index
            yield index, name


def _place(stage: Stage, folder: int, item: tuple[int, str], found: _Sorted, *, force: bool) -> None:
    index, name = item
    if force:
        stage.move_over(f"f{index}", folder, name)
        found.written.append(index)
        return
    try:
        stage.move_new(f"f{index}", folder, name)
    except FileExistsError:  # it has come there meanwhile
        stage.files.unlink(f"f{index}", at=stage.fd)
        found.taken.append(index)
    else:
        found.written.append(index)


def _stage_name(folder: str) -> str:
    return f"{MARKER}-asked-{hashlib.sha256(folder.encode()).hexdigest()[:8]}{PART}"
