"""Files that several units have in common, as those at the top of a dataset: they belong to the lab.

None of them stands in a receipt, so none is ever replaced, mended or taken back. What a unit brings is joined to what
is there, while the root is locked: a file that is missing is written, one that is there gets what it lacks.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sorter.builtin._path_folders import Look, Visit, file_name, look, unchanged
from sorter.builtin._path_nested import Part
from sorter.builtin._path_stage import Stage
from sorter.deliver.target import Put, Source, Wanted
from sorter.errors import Held, TryLater

_MOST = 16 << 20  # bytes of one such file
_NOT_FOR_US = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.EFBIG)
_NOTHING_KNOWN = "n/a"  # how BIDS says so in a table


@dataclass(frozen=True, slots=True)
class Some:
    """Some files of a put, with their places in it."""

    files: tuple[Wanted, ...]
    places: tuple[int, ...]

    def source(self, whole: Source) -> Source:
        return Part(whole, self.places)


def apart(job: Put) -> tuple[Some, Some]:
    """The unit's own files, and those that it has in common with others."""

    def those(*, shared: bool) -> Some:
        found = [(each, at) for at, each in enumerate(job.files) if bool(each.merge) is shared]
        return Some(tuple(each for each, _ in found), tuple(at for _, at in found))

    return those(shared=False), those(shared=True)


def join(visit: Visit, folder: str, shared: Sequence[Wanted], source: Source, stage_name: str) -> None:
    """Join each file with what has its name in `folder`. What cannot be joined stays as it is; the visit notes it."""
    for wanted in shared:
        file_name(wanted.name)
    above = visit.make(folder)
    stage = Stage(visit, above, stage_name)
    with stage.opened():
        stage.fill([], source)  # what a dead worker left there goes
        for index, wanted in enumerate(shared):
            _join(stage, above, wanted, _content(visit, source(index), wanted))
        stage.end()
    visit.settle(folder)


def _content(visit: Visit, fd: int, wanted: Wanted) -> bytes:
    if wanted.size > _MOST:
        raise Held(
            f"a file that units have in common is larger than {_MOST >> 20} MiB; the plugin should make less of it"
        )
    content = visit.files.pread(fd, wanted.size, 0)
    if hashlib.sha256(content).hexdigest() != wanted.sha256:
        raise Held("a file in the store has no longer the digest it came with; run `sorter verify --deep`")
    return content


def _join(stage: Stage, folder: int, wanted: Wanted, mine: bytes) -> None:
    name = wanted.name
    seen = look(stage.files, name, folder, read=False)
    if seen is None:
        stage.put_bytes(name, mine)
        stage.move_new(name, folder, name)
        return _compare(stage, folder, name, mine)
    try:
        there = _theirs(stage, folder, name, seen)
        content = joined(wanted.merge, there, mine)
    except ValueError as error:
        return stage.visit.note(f"{name} was left as it is: {error}")
    if content == there:
        return None
    stage.put_bytes(name, content)
    mode = stat.S_IMODE(stage.files.stat(name, at=folder).st_mode)
    with stage.files.opened(name, os.O_RDONLY | os.O_NOFOLLOW, at=stage.fd) as fd:
        stage.files.chmod(fd, mode)  # who may write to it is the lab's to say
    if not unchanged(stage.files, name, folder, seen):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))  # edited just now: later
    stage.move_over(name, folder, name)
    return _compare(stage, folder, name, content)


def _theirs(stage: Stage, folder: int, name: str, seen: Look) -> bytes:
    """What the lab has. ValueError where that is nothing that could be joined with anything."""
    try:
        if seen.size < 0:
            raise ValueError("it is no regular file")
        return stage.files.read_file(name, at=folder, limit=_MOST)
    except OSError as error:
        if error.errno not in _NOT_FOR_US:
            raise
        raise ValueError("it cannot be read, or is too large") from None


def _compare(stage: Stage, folder: int, name: str, content: bytes) -> None:
    """Read back what has the name now."""
    seen = look(stage.files, name, folder)
    if seen is None or seen.sha256 != hashlib.sha256(content).hexdigest():
        raise TryLater(f"{stage.visit.root} gave back other bytes than were written, or they were edited just now")


# --- how --------------------------------------------------------------------------------------------------------------


def joined(how: str, there: bytes, mine: bytes) -> bytes:
    """`there` with what it lacks of `mine`; all that is in it stays. ValueError where it makes no sense."""
    return _WAYS[how](there, mine)


def _once(there: bytes, _mine: bytes) -> bytes:
    return there


def _lines(there: bytes, mine: bytes) -> bytes:
    known = {line.strip() for line in there.splitlines()}
    return _with(there, [line for line in mine.splitlines() if line.strip() not in known])


def _rows(there: bytes, mine: bytes) -> bytes:
    """A row is known by the first column of ours. Columns that only we have are left out."""
    theirs, ours = list(_table(there)), list(_table(mine))
    if not theirs or not ours:
        raise ValueError("it has no line that names its columns")
    key, columns = ours[0][0], theirs[0]
    if key not in columns:
        raise ValueError(f"it has no column {key}")
    at = columns.index(key)
    known = {row[at] for row in theirs[1:] if len(row) > at}
    new = [dict(zip(ours[0], row, strict=False)) for row in ours[1:] if row[0] not in known]
    return _with(there, ["\t".join(row.get(name, _NOTHING_KNOWN) for name in columns).encode() for row in new])


def _table(content: bytes) -> Iterator[list[str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    for line in text.split("\n"):
        if line.strip():
            yield line.rstrip("\r").split("\t")


def _with(there: bytes, new: Sequence[bytes]) -> bytes:
    """Lines added at the end, which end as those there do."""
    if not new:
        return there
    end = b"\r\n" if b"\r\n" in there else b"\n"
    whole = there if not there or there.endswith(b"\n") else there + end
    return whole + b"".join(line + end for line in new)


_WAYS: Mapping[str, Callable[[bytes, bytes], bytes]] = {"once": _once, "lines": _lines, "rows": _rows}
