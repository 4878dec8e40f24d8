"""From a file that came to an instance in its unit's folder; durable before the file it came from goes.

A batch is decided first, in memory, and then committed in an order that survives a power cut at any point:

1. what was dropped is copied into the spool, and all copies are synced (what sorter received itself already is);
2. each image gets its name in the store (a copy is moved there, anything else linked), and the folders are synced;
3. each unit's evidence is appended: it never mentions an image whose name a power cut could take;
4. only then the names they came under are removed.

After a crash anywhere in between, the file is simply found and taken again; an instance that is there already, with the
same data set, changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.model import Instance, Source, Standing
from sorter.spool import Spool, Unit
from sorter.spool.layout import now
from sorter.spool.unit import IMAGES_PER_FOLDER, image_of, took
from sorter.take import kinds
from sorter.take.compare import header_change, is_correction, sketch
from sorter.take.groups import Groups
from sorter.take.header import SAME_PIXELS, Parsed, Truncated, examine, file_meta, instance_of

UNKNOWN = Source()

SMALL = 256 << 10
"""Bytes up to which the content of another's file is kept in memory while it is copied and read."""

_HANDS = 8  # threads that remove files, and
_RUN = 16  # how many of a batch one of them removes, one after the other: mostly of one folder

NOT_THAT_FILE = (errno.ESTALE, errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EACCES)
"""Somebody removed it, or put something else in its place, since it was found."""


class _Changed(Exception):
    """Another's file is not what it was when it was found ready."""


class _Unreadable(Exception):
    """Another's file cannot be read to its end."""


class _IsArchive(Exception):
    """Another's file holds other files."""


class Rules(Protocol):
    """What filing asks of the rest: the configuration's say, and the plugins'."""

    def group(self, instance: Instance) -> str | None:
        """The key that several SeriesInstanceUIDs share, if they are one series."""

    def may_correct(self, first: Source, newer: Source) -> bool:
        """May this sender replace a header that `first` sent?"""


class Door(Protocol):
    """The way to a file in a folder that others may write to, and swap under our feet."""

    def open(self) -> int:
        """A descriptor for reading that very file. OSError where something else is there by now."""

    def remove(self) -> bool:
        """Remove that very file as it was found; False where it has changed or is gone. OSError: it may not be.

        Called by several threads at once.
        """


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to take. One of our own is moved; another's has a `door`, is copied, and goes when the copy is safe."""

    path: Path
    source: Source = UNKNOWN
    door: Door | None = None
    found: tuple[int, int] = (0, 0)  # size and mtime_ns of another's file, when it was found ready
    final: bool = False  # another's file that stood still for long: what is truncated now stays so
    copy: Path | None = None  # a synced copy of another's file that lies in the spool already, for the tree to remove
    origin: str = ""  # in words, for quarantine, where `path` does not say it: of a file that came in an archive
    aside: str = ""  # why it is to be set aside, whatever it holds

    @property
    def own(self) -> bool:
        return self.door is None


@dataclass(frozen=True, slots=True)
class Filed:
    """What became of it: "new", "same" (an identical resend), "aside" (quarantine), "changed" (look again) or
    "unreadable" (another's file, on a disk that does not give it).

    Or "archive": another's file that has to be unpacked first (`sorter.take.archive`); it lies where it lay. Or
    "later": it could not be set aside. `again`: it is to be taken again, whatever became of it, for the name that it
    came under is still there.
    """

    candidate: Candidate
    outcome: str
    instance: Instance | None = None
    key: str = ""
    why: str = ""
    again: bool = False


@dataclass(slots=True)
class _Step:
    """One candidate on its way: `file` is what will be linked into the store, `fresh` while it is not synced."""

    candidate: Candidate
    file: Path
    filed: Filed
    fresh: bool = False


@dataclass(slots=True)
class _Batch:
    at: str  # when it was taken
    units: dict[str, Unit] = field(default_factory=dict)
    evidence: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)

    def of(self, unit: Unit) -> list[dict[str, Any]]:
        """The evidence to be written for this unit."""
        self.units[unit.key] = unit
        return self.evidence.setdefault(unit.key, [])


class Filing:
    """Takes files into the store. `unit` gives the one in-memory `Unit` of a key; `forget` drops it after a failure."""

    def __init__(
        self, spool: Spool, rules: Rules, unit: Callable[[str], Unit], forget: Callable[[str], object]
    ) -> None:
        self._spool, self._rules, self._unit, self._forget = spool, rules, unit, forget
        self._files: Files = spool.files
        self._groups = Groups(spool, lambda instance: self._rules.group(instance))
        self._copies = 0
        self._hands = ThreadPoolExecutor(_HANDS, "remove")  # it starts none before there is work for it

    def take(self, candidates: Sequence[Candidate]) -> list[Filed]:
        """Take a batch. OSError (a full disk, say) leaves every file where it was, to be taken again later."""
        batch, steps = _Batch(now()), [_Step(each, each.copy or each.path, Filed(each, "new")) for each in candidates]
        try:
            read = [self._read(step) for step in steps]
            self._files.fsync_all([step.file for step in steps if step.fresh])
            for step, parsed in zip(steps, read, strict=True):
                if parsed is not None:
                    self._decide(step, parsed, batch)
            self._commit(batch)
        except BaseException as error:
            for key in batch.units:
                self._forget(key)
            if isinstance(error, OSError):
                for step in steps:
                    if step.fresh:
                        self._drop(step.file)
            raise
        return self._release_all(steps)

    # --- deciding -----------------------------------------------------------------------------------------------

    def _read(self, step: _Step) -> Parsed | None:
        """What the file says, read from a copy if it is another's; None if the step says that it goes no further."""
        candidate = step.candidate
        try:
            if candidate.aside:
                raise Quarantine(candidate.aside)
            if candidate.door is not None and candidate.copy is None:
                parsed = self._copy(step, candidate.door)
            else:
                with self._files.opened(step.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                    if candidate.copy is not None:
                        self._refuse_archive(self._files.pread(fd, kinds.HEAD, 0))
                    parsed = examine(self._files, fd)
            if parsed.bare and not (candidate.own or candidate.final):
                raise Truncated("its pixels are not there yet")
            if not parsed.has_meta:
                self._add_meta(step, parsed)
                with self._files.opened(step.file) as fd:
                    parsed = examine(self._files, fd)
            return parsed
        except _IsArchive:
            step.filed = Filed(candidate, "archive")
        except _Changed as changed:
            step.filed = Filed(candidate, "changed", why=str(changed))
        except _Unreadable as why:
            step.filed = Filed(candidate, "unreadable", why=str(why))
        except Quarantine as reason:
            unfinished = isinstance(reason, Truncated) and not (candidate.own or candidate.final)
            step.filed = Filed(candidate, "changed" if unfinished else "aside", why=str(reason))
        except OSError as error:
            if error.errno not in NOT_THAT_FILE or (candidate.own and error.errno != errno.ENOENT):
                raise  # what we received ourselves is offered once: it is said, and tried again
            step.filed = Filed(candidate, "changed", why="it is not what it was")
        return None

    def _decide(self, step: _Step, parsed: Parsed, batch: _Batch) -> None:
        try:
            step.filed = self._file(step, parsed, batch)
        except Quarantine as reason:
            step.filed = Filed(step.candidate, "aside", why=str(reason))

    def _file(self, step: _Step, parsed: Parsed, batch: _Batch) -> Filed:
        source = step.candidate.source
        if parsed.calling and not source.dropped:  # the file meta is the durable word on who sent it
            source = dataclasses.replace(
                source, calling=parsed.calling, called=parsed.called, address=parsed.address or source.address
            )
        instance = instance_of(parsed, source, arrived=batch.at)
        key = self._groups.key(instance)
        if why := self._spool.withdrawals.refuses(key, instance.study_uid):
            raise Quarantine(why)
        unit = self._unit(key)
        copies = [unit.instances[name] for name in unit.by_sop.get(instance.sop_uid, ())]
        same = [each for each in copies if image_of(each) == image_of(instance)]
        here = next((each for each in same if self._is_there(unit, each)), None)
        if here is not None:
            return Filed(step.candidate, "same", here, key)
        if any(each.file in unit.left for each in same):
            return self._take_again(step, unit, instance, same, batch)
        for each in same:
            self._give_up(unit, each, batch)
        place = unit.place(instance.sop_uid, instance.dataset)
        if any(each.dataset == instance.dataset and each not in same for each in copies):
            place = unit.place_of_another(instance.sop_uid, instance.sha256)
        self._put(step, unit, place, batch)
        instance = self._enter(unit, instance, place, step.file, batch.of(unit))
        return Filed(step.candidate, "new", instance, key)

    def _is_there(self, unit: Unit, instance: Instance) -> bool:
        """Does the store still hold the bytes of this copy? A disk that failed may have lost what evidence knows."""
        try:
            return self._files.stat(unit.images / instance.file).st_size == instance.size
        except FileNotFoundError:
            return False

    def _give_up(self, unit: Unit, lost: Instance, batch: _Batch) -> None:
        """A copy whose bytes are lost stands back, so that the one that came again is taken as a new one."""
        batch.of(unit).append({"stands": lost.file, "as": Standing.SUPERSEDED.value})
        unit.restand(lost.file, Standing.SUPERSEDED)

    def _take_again(
        self, step: _Step, unit: Unit, instance: Instance, same: Sequence[Instance], batch: _Batch
    ) -> Filed:
        """An image comes again that left after its delivery: it is known, and stays until that copy is verified again.

        Byte for byte the same it takes its old place; under another file meta it gets one of its own.
        """
        evidence = batch.of(unit)
        equal = next((each for each in same if each.sha256 == instance.sha256), None)
        if equal is not None:
            self._put(step, unit, equal.file, batch)
            evidence.append({"back": [equal.file]})
            unit.left.pop(equal.file)
            return Filed(step.candidate, "same", equal, unit.key)
        place = unit.place_of_another(instance.sop_uid, instance.sha256)
        self._put(step, unit, place, batch)
        return Filed(step.candidate, "same", self._enter(unit, instance, place, step.file, evidence), unit.key)

    def _enter(
        self, unit: Unit, instance: Instance, place: str, file: Path, evidence: list[dict[str, Any]]
    ) -> Instance:
        """Count an instance, whose bytes are in `file`, as one of the unit's, with its place and its standing."""
        copies = [unit.instances[name] for name in unit.by_sop.get(instance.sop_uid, ())]
        if not unit.instances:
            unit.group = self._groups.group(instance)
            evidence.append({"unit": unit.kind.value, "study": instance.study_uid, "group": unit.group})
        standing, demoted = self._standing(unit, instance, copies, file)
        header = unit.difference(instance.header)
        instance = dataclasses.replace(instance, file=place, standing=standing, header=header)
        evidence.append(took(instance))
        unit.admit(instance)
        if demoted is not None:
            evidence.append({"stands": demoted, "as": Standing.SUPERSEDED.value})
            unit.restand(demoted, Standing.SUPERSEDED)
        return instance

    def _standing(
        self, unit: Unit, instance: Instance, copies: list[Instance], file: Path
    ) -> tuple[Standing, str | None]:
        """What this copy is to those there already, and which of them it takes the place of."""
        if any(image_of(each) == image_of(instance) and each.file in unit.left for each in copies):
            return Standing.AGAIN, None
        rival = next((each for each in copies if each.standing is Standing.CURRENT), None)
        if rival is None:
            return Standing.CURRENT, None
        if image_of(rival) == image_of(instance) and not self._is_there(
            unit, rival
        ):  # a crash came before that was written
            return Standing.CURRENT, rival.file
        if rival.transfer_syntax != instance.transfer_syntax and (
            rival.pixels == instance.pixels or not {rival.transfer_syntax, instance.transfer_syntax} <= SAME_PIXELS
        ):
            return Standing.TRANSCODED, None
        if any(each.pixels == instance.pixels and each.standing is Standing.CONFLICT for each in copies):
            return Standing.SUPERSEDED, None
        if rival.pixels != instance.pixels:
            return Standing.CONFLICT, None
        if not self._rules.may_correct(rival.source, instance.source):
            return Standing.SUPERSEDED, None
        if self._corrects(unit, rival, file):
            return Standing.CURRENT, rival.file
        return Standing.SUPERSEDED, None

    def _corrects(self, unit: Unit, rival: Instance, file: Path) -> bool:
        """Does the header in `file` differ from the current one in nothing but the patient or the study?"""
        with self._files.opened(file) as new:
            if rival.file in unit.left:
                return is_correction((unit.tombstone(rival.file) or {}).get("sketch"), sketch(self._files, new))
            if not self._is_there(unit, rival):
                return False  # with what the disk lost nothing can be compared
            with self._files.opened(unit.images / rival.file) as old:
                change = header_change(self._files, old, new)
        return change.demographic_only and not change.lost

    def adopt(self, unit: Unit) -> None:
        """Count the images that a crash left in the store between their link and their line of evidence."""
        batch = _Batch(now())
        waiting, unit.unmentioned = unit.unmentioned, []
        for name in waiting:
            path = unit.images / name
            try:
                with self._files.opened(path) as fd:
                    parsed = examine(self._files, fd)
            except Quarantine as reason:
                self._spool.set_aside(path, str(reason), os.path.relpath(path, self._spool.root))
                continue
            source = Source(calling=parsed.calling, called=parsed.called, address=parsed.address)
            batch.folders.update(self._way_to(unit, path))
            self._enter(unit, instance_of(parsed, source, arrived=batch.at), name, path, batch.of(unit))
        self._commit(batch)

    # --- copies of what others dropped --------------------------------------------------------------------------

    def _copy(self, step: _Step, door: Door) -> Parsed:
        """Copy another's file into the spool, and read the copy; _IsArchive, before anything is copied; _Changed if it
        changed. The bytes of a small file are read once, for both.
        """
        reading, size = door.open(), step.candidate.found[0]
        try:
            content = self._files.pread(reading, size, 0) if size <= SMALL else None
            if content is not None and len(content) < size:  # a share may give less than it was asked for
                content = None
            self._refuse_archive(self._files.pread(reading, kinds.HEAD, 0) if content is None else content)
            with self._new_copy(step) as writing:
                if content is None:
                    self._files.copy(reading, writing)
                else:
                    self._files.write_all(writing, content)
                info = self._files.stat(reading)
                if (info.st_size, info.st_mtime_ns) != step.candidate.found:
                    raise _Changed("it is still changing")
                return examine(self._files, writing, content)
        except OSError as error:
            if error.errno == errno.EIO and not self._files.can_be_read(reading):
                raise _Unreadable(error.strerror) from None
            raise
        finally:
            self._files.close(reading)

    def _refuse_archive(self, head: bytes) -> None:
        if kinds.archive(head):
            raise _IsArchive

    def _add_meta(self, step: _Step, parsed: Parsed) -> None:
        """The same data set behind a file meta (PS3.10 7.1) of ours, in a new file."""
        bare = step.file
        try:
            with self._files.opened(bare) as reading, self._new_copy(step) as writing:
                self._files.write_all(writing, file_meta(parsed, step.candidate.source))
                offset = parsed.dataset_offset
                while piece := self._files.pread(reading, 1 << 20, offset):
                    self._files.write_all(writing, piece)
                    offset += len(piece)
        finally:  # on a disk that is full, too: it is tried again and again
            if bare not in (step.candidate.path, step.candidate.copy):
                self._drop(bare)

    @contextlib.contextmanager
    def _new_copy(self, step: _Step) -> Iterator[int]:
        """A new file in the spool, for writing, that the step goes on with."""
        self._copies += 1
        step.file, step.fresh = self._spool.taking / f"{self._copies:08x}", True
        with self._files.opened(step.file, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            yield fd

    # --- committing ---------------------------------------------------------------------------------------------

    def _put(self, step: _Step, unit: Unit, place: str, batch: _Batch) -> None:
        """Under its name in the store: a copy that only we know of is moved there; what lies elsewhere keeps its other
        name until all of the batch is durable.
        """
        path = unit.images / place
        folder = path.parent
        if folder not in batch.folders:
            self._make_folder(folder)
        try:
            if not (step.fresh and self._moved(step.file, path)):
                self._files.link(step.file, path)
            else:
                step.file, step.fresh = path, False
        except FileExistsError:
            if self._files.stat(path).st_ino != self._files.stat(step.file).st_ino:
                raise Quarantine("its place in the store is taken by a file that the unit does not know") from None
        if folder not in batch.folders or len(unit.instances) % IMAGES_PER_FOLDER == 0:
            batch.folders.update(self._way_to(unit, path))

    def _moved(self, copy: Path, path: Path) -> bool:
        """False where the file system cannot move a file without replacing another."""
        try:
            self._files.rename_new(copy, path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _make_folder(self, folder: Path) -> None:
        """Like `Files.make_folders`, but synced once with the batch."""
        if not self._files.is_folder(folder):
            self._make_folder(folder.parent)
            self._files.mkdir(folder)

    def _way_to(self, unit: Unit, path: Path) -> Iterator[Path]:
        """The folders to sync, so that an image is found: its own, and with the first in it all those above. Who made
        them may have failed, or died, before they were synced.
        """
        yield path.parent
        if len(unit.instances) % IMAGES_PER_FOLDER == 0:
            yield from (unit.images, unit.folder, unit.folder.parent, self._spool.store)

    def _commit(self, batch: _Batch) -> None:
        self._files.fsync_folders(batch.folders)
        for key, entries in batch.evidence.items():
            batch.units[key].add_evidence(entries, durable=False)
        units = [batch.units[key] for key in batch.evidence]
        self._files.fsync_all([unit.evidence for unit in units], [unit.folder for unit in units])

    # --- releasing ----------------------------------------------------------------------------------------------

    def _release_all(self, steps: Sequence[_Step]) -> list[Filed]:
        """What became of each, once the names that they came under are gone.

        By several hands: to remove a file can take as long as a disk needs to free its blocks, ten times as long as all
        the rest, and disks do that well for several at once.
        """
        for step in steps:
            if step.filed.outcome == "aside":
                self._set_aside(step)
        runs = [steps[at : at + _RUN] for at in range(0, len(steps), _RUN)]
        released = map(self._release_run, runs) if len(runs) < 2 else self._hands.map(self._release_run, runs)
        return [filed for run in released for filed in run]

    def _set_aside(self, step: _Step) -> None:
        candidate, filed = step.candidate, step.filed
        origin = candidate.origin or os.path.relpath(candidate.path, self._spool.root)
        try:
            self._spool.set_aside(candidate.path if candidate.own else step.file, filed.why, origin)
        except OSError as error:
            step.filed = dataclasses.replace(filed, outcome="later", why=_stays(error), again=True)

    def _release_run(self, steps: Sequence[_Step]) -> list[Filed]:
        return [self._release(step) for step in steps]

    def _release(self, step: _Step) -> Filed:
        """The last step: the name that the file came under goes, unless the file has changed meanwhile. Whatever the
        disk does now, an image that is in the store is never forgotten for that.
        """
        candidate, filed = step.candidate, step.filed
        try:
            if candidate.own and filed.outcome in ("new", "same"):
                self._files.unlink(candidate.path)
            if candidate.door is not None:
                filed = self._remove_from_its_place(filed, candidate.door)
            if step.fresh:
                self._drop(step.file)
        except OSError as error:
            return dataclasses.replace(filed, why=_stays(error), again=True)
        return filed

    def _remove_from_its_place(self, filed: Filed, door: Door) -> Filed:
        if filed.outcome in ("changed", "archive", "later", "unreadable"):
            return filed
        try:
            if not door.remove():
                return dataclasses.replace(filed, why=filed.why or "it changed, or went, after it was taken")
        except OSError as error:  # a folder we may not write to: taken all the same
            return dataclasses.replace(filed, why=f"it could not be removed: {error.strerror}")
        return filed

    def _drop(self, copy: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(copy)


def _stays(error: OSError) -> str:
    return f"the name it came under cannot be removed now: {error.strerror}"
