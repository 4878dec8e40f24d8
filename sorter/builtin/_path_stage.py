"""A hidden folder on the target's own file system, where files are written and proved before they get their names."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sorter.builtin._path_folders import Look, Visit, digest, look, remove_tree, unread
from sorter.deliver.target import Source, Wanted
from sorter.errors import Held, TryLater

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_MOST_FILES = 64  # written before they are synced together, and
_MOST_BYTES = 128 << 20
_SYNC = 128 << 20  # bytes of one file; who syncs more at once is silent for minutes where the line is slow
_MOST_ASIDE = 100
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_THREADS = 8  # fsyncs that wait for a disk or a server at once: together they cost little more than one

_CANNOT_KEEP = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What renameat2 answers where the mount knows no RENAME_NOREPLACE (NFS, sshfs)."""

_CANNOT_LINK = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EMLINK, errno.EACCES}


@dataclass(frozen=True, slots=True)
class Item:
    """A file to write: its place in the put, its name in the stage, and what it has to be."""

    index: int
    name: str
    wanted: Wanted


class Stage:
    """The hidden folder `name` in the folder `above`. What a dead worker left there is used again, or removed."""

    def __init__(self, visit: Visit, above: int, name: str, threads: int = _THREADS) -> None:
        self.visit, self.files, self.above, self.name = visit, visit.files, above, name
        self.fd = -1
        self.listed = visit.files.has_default_acl(above)  # then that ACL alone says who may what
        self._file_mode = 0o666 if self.listed else visit.access.file_mode
        self._threads = threads

    @contextlib.contextmanager
    def opened(self) -> Iterator[Stage]:
        """The stage while it is needed; where the work fails, it is cleared away as far as the target lets us."""
        self.fd = self._make()
        try:
            yield self
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(self.files, self.name, self.above)
            raise
        finally:
            self.files.close(self.fd)

    def _make(self) -> int:
        mode = 0o777 if self.listed else self.visit.access.folder_mode & 0o777
        try:
            self.files.mkdir(self.name, mode, at=self.above)
        except FileExistsError:
            if not self.files.is_folder(self.name, at=self.above):
                self.files.unlink(self.name, at=self.above)
                self.files.mkdir(self.name, mode, at=self.above)
        return self.files.open(self.name, _FOLDER, at=self.above)

    # --- writing ------------------------------------------------------------------------------------------------

    def fill(self, items: Sequence[Item], source: Source) -> None:
        """Write all, sync them, and read each back past the page cache. TryLater when one reads back differently."""
        with self.filling(items, source):
            pass

    @contextlib.contextmanager
    def filling(self, items: Sequence[Item], source: Source) -> Iterator[None]:
        """`fill`, over at the end of the block: what is written to the stage within it costs no time of its own."""
        ready = self._tidy({item.name: item.wanted for item in items})
        todo = [item for item in items if item.name not in ready]
        source.will_need([item.index for item in todo])
        with contextlib.ExitStack() as before:  # a group is proved while the next one is written
            for group in _groups(todo):
                with self._write(group, source) as written:
                    before.close()
                    before.push(written.pop_all())
            yield

    def put_bytes(self, name: str, content: bytes) -> None:
        """One small file of our own making, synced."""
        remove_tree(self.files, name, self.fd)
        with self.files.opened(name, _NEW, self._file_mode, at=self.fd) as fd:
            self.files.write_all(fd, content)
            self.visit.own_file(fd, listed=self.listed)
            self.files.fsync(fd)

    def _tidy(self, wanted: dict[str, Wanted]) -> set[str]:
        """Which of `wanted` a dead worker left here whole; everything else in the stage is removed."""
        ready = set()
        mine = self.files.stat(self.fd).st_uid
        for name in self.files.names(self.fd):
            want = wanted.get(name)
            if want is not None and self._whole(name, want, mine):
                ready.add(name)
            else:
                remove_tree(self.files, name, self.fd)
        return ready

    def _whole(self, name: str, want: Wanted, mine: int) -> bool:
        if not _is_alone(self.files.stat(name, at=self.fd), want, mine):
            return False
        with self.files.opened(name, _READ, at=self.fd) as fd:
            if not _is_alone(self.files.stat(fd), want, mine):  # somebody has just put another in its place
                return False
            self.visit.own_file(fd, listed=self.listed)  # who wrote it may have died before he did
        seen = look(self.files, name, self.fd, settle=True)
        return seen is not None and seen.sha256 == want.sha256

    def _write(self, group: Sequence[Item], source: Source) -> contextlib.ExitStack:
        """Write these files; they are synced and read back beside, and proved when what is returned is closed."""
        files = self.files
        written: list[int] = []
        with contextlib.ExitStack() as opened:
            for item in group:
                fd = files.open(item.name, _NEW, self._file_mode, at=self.fd)
                opened.callback(files.close, fd)
                self._copy(item, source, fd)
                files.start_writeback(fd, 0, item.wanted.size)
                self.visit.own_file(fd, listed=self.listed)
                written.append(fd)

            def prove(number: int) -> None:
                files.fsync(written[number])
                if digest(files, written[number]) != group[number].wanted.sha256:
                    raise _Differs(number)

            opened.callback(self._end, _Together(prove, len(group), self._threads), group, source)
            return opened.pop_all()

    def _copy(self, item: Item, source: Source, fd: int) -> None:
        try:
            self.files.copy_synced(source(item.index), fd, _SYNC)
        except OSError as error:
            if error.errno == errno.EIO and not self.files.can_be_read(source(item.index)):
                raise unread(error) from error  # no fault of this target's
            raise

    def _end(self, proof: _Together, group: Sequence[Item], source: Source) -> None:
        try:
            proof.end()
        except _Differs as error:
            raise self._wrong(group[error.number], source) from None

    def _wrong(self, item: Item, source: Source) -> Exception:
        """Who changed the bytes: this target, or the store itself?"""
        try:
            stored = digest(self.files, source(item.index))
        except OSError as error:
            return unread(error)
        if stored != item.wanted.sha256:
            return Held("a file in the store has no longer the digest it came with; run `sorter verify --deep`")
        return TryLater(f"{self.visit.root} gave back other bytes than were written; they were removed again")

    # --- moving -------------------------------------------------------------------------------------------------

    def move_new(self, name: str, to: int, new: str) -> None:
        """Give a staged file its name in the folder `to`. FileExistsError where something has it already."""
        files = self.files
        mine = files.stat(name, at=self.fd)
        try:
            files.rename_new(name, new, at=self.fd, to=to)
        except OSError as error:
            if self._arrived(mine, name, to, new):
                return
            if error.errno not in _CANNOT_KEEP:
                raise
            self._link_new(name, to, new)

    def move_over(self, name: str, to: int, new: str) -> None:
        """Give a staged file its name in the folder `to`, in place of what has it."""
        mine = self.files.stat(name, at=self.fd)
        try:
            self.files.rename(name, new, at=self.fd, to=to)
        except OSError:
            if not self._arrived(mine, name, to, new):
                raise

    def keep_aside(self, name: str, folder: int, new: str) -> None:
        """What has this name in `folder` gets a second one, unless it has it, before another file takes the first."""
        seen = look(self.files, name, folder)
        for free in (new, *(f"{new}-{number}" for number in range(2, _MOST_ASIDE))):
            try:
                self.files.link(name, free, at=folder, to=folder)
            except FileExistsError:
                there = look(self.files, free, folder)
                if seen is None or there is None or there.sha256 != seen.sha256:
                    continue
            except OSError as error:
                if error.errno not in _CANNOT_LINK:
                    raise
                self._copy_aside(name, folder, free)
            self.files.fsync_folder(folder)
            return
        raise Held(f"{self.visit.root}: too many damaged copies of a file lie there; move them away, then try again")

    def _copy_aside(self, name: str, folder: int, new: str) -> None:
        files = self.files
        with (
            files.opened(name, _READ, at=folder) as old,
            files.opened(new, _NEW, self.visit.access.file_mode, at=self.fd) as fd,
        ):
            files.copy(old, fd)
            files.fsync(fd)
        self.move_new(new, folder, new)

    def become(self, new: str, proof: str) -> None:
        """Give the whole stage its final name beside itself. FileExistsError where something has it already.

        `proof` names a file in the stage by which it is known again where inode numbers do not last.
        """
        content = look(self.files, proof, self.fd)
        self.visit.own_folder(self.fd)
        self.files.fsync_folder(self.fd)
        try:
            self.files.rename_new(self.name, new, at=self.above, to=self.above)
        except OSError as error:
            if self._became(new, proof, content):
                return
            if error.errno not in _CANNOT_KEEP:
                raise
            self._rename_folder(new, proof, content)

    def end(self) -> None:
        """The stage is empty now: remove it."""
        self.files.rmdir(self.name, at=self.above)

    def _link_new(self, name: str, to: int, new: str) -> None:
        files = self.files
        mine = files.stat(name, at=self.fd)
        try:
            files.link(name, new, at=self.fd, to=to)
        except OSError as error:
            if not self._is(mine, to, new):
                if error.errno not in _CANNOT_LINK:
                    raise
                if files.exists(new, at=to):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                self.move_over(name, to, new)
                return
        with contextlib.suppress(FileNotFoundError):
            files.unlink(name, at=self.fd)

    def _rename_folder(self, new: str, proof: str, content: Look | None) -> None:
        """Where there is no RENAME_NOREPLACE: a folder that has something in it is never replaced by rename anyway."""
        if self.files.exists(new, at=self.above):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        try:
            self.files.rename(self.name, new, at=self.above, to=self.above)
        except OSError:
            if not self._became(new, proof, content):
                raise

    def _arrived(self, mine: os.stat_result, name: str, to: int, new: str) -> bool:
        """After a failed rename, look: a lost reply says that it failed although it was done."""
        return not self.files.exists(name, at=self.fd) and self._is(mine, to, new)

    def _is(self, mine: os.stat_result, to: int, new: str) -> bool:
        try:
            there = self.files.stat(new, at=to)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino, there.st_size) == (mine.st_dev, mine.st_ino, mine.st_size)

    def _became(self, new: str, proof: str, content: Look | None) -> bool:
        if content is None or self.files.exists(self.name, at=self.above):
            return False
        try:
            with self.files.opened(new, _FOLDER, at=self.above) as fd:
                there = look(self.files, proof, fd)
        except OSError:
            return False
        return there is not None and there.sha256 == content.sha256


def _is_alone(info: os.stat_result, want: Wanted, mine: int) -> bool:
    """A file of ours, of the size that is wanted, which has no other name."""
    return stat.S_ISREG(info.st_mode) and (info.st_nlink, info.st_uid, info.st_size) == (1, mine, want.size)


def _groups(items: Sequence[Item]) -> Iterator[list[Item]]:
    group: list[Item] = []
    size = 0
    for item in items:
        if group and (len(group) == _MOST_FILES or size + item.wanted.size > _MOST_BYTES):
            yield group
            group, size = [], 0
        group.append(item)
        size += item.wanted.size
    if group:
        yield group


class _Differs(Exception):
    """What was written reads back as something else."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Together:
    """`work` for each of 0 … count-1, several at once, beside whoever began it and goes on until `end`."""

    def __init__(self, work: Callable[[int], None], count: int, threads: int) -> None:
        self._work, self._numbers, self._taking = work, iter(range(count)), threading.Lock()
        self._failed: list[BaseException] = []
        self._helpers = [threading.Thread(target=self._run) for _ in range(min(threads, count) - 1)]
        for helper in self._helpers:
            helper.start()

    def end(self) -> None:
        """Help with the rest; what one raised is raised here, after all have ended."""
        self._run()
        for helper in self._helpers:
            helper.join()
        if self._failed:
            raise self._failed[0]

    def _run(self) -> None:
        while not self._failed:
            with self._taking:
                number = next(self._numbers, None)
            if number is None:
                return
            try:
                self._work(number)
            except BaseException as error:  # noqa: BLE001 - raised in `end`, on the thread that waits for all
                self._failed.append(error)
