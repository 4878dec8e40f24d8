"""`sorter rename`: copies of chosen series under names a person can read. The originals stay where they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from sorter.durable import PART, Files
from sorter.errors import SorterError
from sorter.model import Identity
from sorter.naming import DEFAULT_FILE, DEFAULT_FOLDER, Pattern, contained, folder_name, instance_names, values_of
from sorter.spool import Spool, Unit, UnitSummary


@dataclass(frozen=True, slots=True)
class Copy:
    """One image to copy: from the store, to a path relative to the destination."""

    source: Path
    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the copies: written now, there already, not overwritten, failed (with a sentence each)."""

    written: tuple[str, ...]
    same: tuple[str, ...]
    taken: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def plan_copies(spool: Spool, units: Sequence[UnitSummary], pattern: str | None = None) -> list[Copy]:
    """What `rename` would do. `pattern` is folders and file name in one, as "{subject}/{SeriesNumber:03d}/{…}.dcm".

    Two series that want one folder are kept apart: the later one's folder gets a suffix of its key.
    """
    folder, file = split_pattern(pattern) if pattern else (DEFAULT_FOLDER, DEFAULT_FILE)
    owners: dict[str, str] = {}
    found: list[Copy] = []
    for summary in units:
        found += _of_unit(Unit.load(spool, summary.key), summary, folder, file, owners)
    return found


def split_pattern(pattern: str) -> tuple[str, str]:
    """(folder, file) of a pattern; one that ends in "/" or names no file keeps the default file names."""
    folder, _, file = pattern.rpartition("/")
    if not file:
        return folder, DEFAULT_FILE
    if "." not in file.rpartition("}")[2] and "{InstanceNumber" not in file:
        return pattern, DEFAULT_FILE
    return folder, file


def _of_unit(unit: Unit, summary: UnitSummary, folder: str, file: str, owners: dict[str, str]) -> Iterator[Copy]:
    identity = Identity(lab=summary.lab, subject=summary.subject, session=summary.session)
    values = values_of(unit.face, identity)
    where = folder_name(Pattern(folder, file=False), values) if folder else ""
    if owners.setdefault(where.casefold(), unit.key) != unit.key:
        where = f"{where}_{unit.key[:6]}" if where else unit.key[:6]
    images = [replace(each, header=unit.header(each)) for each in unit.deliverable]
    names = instance_names(Pattern(file, file=True), images, values_of({}, identity), {})
    for each in images:
        yield Copy(unit.images / each.file, os.path.join(where, names[each.file]), each.sha256, each.size)


def copy_all(files: Files, copies: Sequence[Copy], dest: Path, progress: Callable[[int], None]) -> Report:
    """Copy to `dest`: synced, compared, and renamed into place; a file that is there is never overwritten.

    A copy that was interrupted goes on where it stopped: what is there and equal is left. One bad file never stops the
    others. `progress` is called with the bytes of each copy when it is through.
    """
    done: dict[str, list[str]] = {"written": [], "same": [], "taken": []}
    failed: list[tuple[str, str]] = []
    folders: set[str] = set()
    for copy in copies:
        try:
            done[_copy(files, copy, contained(str(dest), copy.name), folders)].append(copy.name)
        except (OSError, SorterError) as error:
            failed.append((copy.name, error.strerror or str(error) if isinstance(error, OSError) else str(error)))
        progress(copy.size)
    if folders:
        files.fsync_folders(folders)
    return Report(tuple(done["written"]), tuple(done["same"]), tuple(done["taken"]), tuple(failed))


def _copy(files: Files, copy: Copy, target: str, folders: set[str]) -> str:
    if files.exists(target):
        return "same" if _digest(files, target) == copy.sha256 else "taken"
    folder = os.path.dirname(target)
    if folder not in folders:
        files.make_folders(folder, 0o777)
        folders.add(folder)
    part = os.path.join(folder, f".{os.path.basename(target)}{PART}")
    with (
        files.opened(copy.source) as reading,
        files.opened(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666) as writing,
    ):
        files.copy(reading, writing)
        files.fsync(writing)
    if _digest(files, part) != copy.sha256:
        files.unlink(part)
        raise SorterError("what was written does not equal the original; is the disk all right?")
    files.link(part, target)
    files.unlink(part)
    return "written"


def _digest(files: Files, path: str) -> str:
    digest = hashlib.sha256()
    with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
        for piece in files.chunks(fd):
            digest.update(piece)
    return digest.hexdigest()


def chosen(units: Sequence[UnitSummary], study: str | None, series: str | None) -> list[UnitSummary]:
    """Those of a study (its day, YYYY-MM-DD, or UID) and of series ("3,5-7", or a glob of the description)."""
    found = list(units)
    if study:
        found = [each for each in found if study.replace("-", "") == each.study_date or study == each.study_uid]
    if series:
        numbers = _numbers(series)
        wanted = series.casefold()
        found = [
            each
            for each in found
            if (numbers is not None and each.number.isdigit() and int(each.number) in numbers)
            or (numbers is None and fnmatchcase(each.description.casefold(), wanted))
        ]
    return found


def _numbers(text: str) -> set[int] | None:
    """{3, 5, 6, 7} of "3,5-7"; None where it is no list of numbers."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            return None
        found.update(range(int(first), min(int(last or first), int(first) + 100_000) + 1))
    return found
