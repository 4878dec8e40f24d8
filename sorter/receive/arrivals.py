"""Segments: where received files lie until they are sorted, and the file that says how they came.

`received/<worker>/<segment>/` holds parts (being written), finished files, and `arrivals.jsonl`: one JSON object a
line, only ever appended to, its flock held for as long as the segment is open.

    {"event":"opened","association":ID,"calling":...,"called":...,"address":...,"at":...}
    {"event":"stored","association":ID,"file":NAME,"at":...}     its bytes and name are durable; not answered yet
    {"event":"released"|"aborted"|"lost","association":ID,"at":...}
    {"event":"closed","at":...}                                   the last line

A free lock without "closed" means that the process died: its associations are lost. A segment is followed by another
after so many files or so much time; associations still open are opened again in the new one, marked "continued":true.
Files are named by association and count, never by anything received.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sorter.durable import PART, Buffer, Files
from sorter.receive.file_meta import Route
from sorter.receive.settings import ReceiveSettings
from sorter.receive.space import Gauge

ARRIVALS = "arrivals.jsonl"
_STORED = '{"event":"stored",'  # of a line that is written for each image; names of ours need no escapes
_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one for each line
_EARLY = 8 << 20  # bytes of an instance that are given to the disk before it is whole
_STEP = 128 << 10  # bytes that are copied at a time
_LOOK_EVERY = 16  # images, for room on the disk: a look costs as much as to create a file
_MOST_UNWRITTEN = 1 << 20  # bytes of lines kept for later while the disk is full


class Segment:
    """One folder and its arrivals file. But for `commit`, not for use without `lock`, that of its `Arrivals`."""

    def __init__(self, path: Path, files: Files, lock: threading.Lock) -> None:
        self.path, self._files, self._lock = path, files, lock
        self.begun = time.monotonic()
        self.given = self.told = 0  # file names given out, and associations opened
        self.in_flight = 0  # parts that are neither stored nor dropped yet
        self.over = False  # another has followed
        self.spoilt = False  # its folder could not be synced, or is gone: nothing more is acknowledged in it
        self._unwritten = b""
        files.mkdir(path)
        try:
            files.fsync_folder(path.parent)  # before anything in it is acknowledged
            self.folder, self._log = self._opened()
        except OSError:
            files.remove_tree(path)
            raise
        self.commit = Commit(files, self, self._stored)

    def _opened(self) -> tuple[int, int]:
        folder = self._files.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
        try:
            log = self._files.open(ARRIVALS, flags, at=folder)
        except OSError:
            self._files.close(folder)
            raise
        if not self._files.lock(log):  # a process that begins sweeps it: without a lock it would be taken for dead
            self._files.close(log)
            self._files.close(folder)
            raise FileExistsError(errno.EEXIST, "somebody else holds a new segment", os.fspath(self.path))
        return folder, log

    def write(self, event: str, **details: Any) -> None:
        """Append a line. On OSError it is not written, or torn and ended by the next."""
        self._append(_line(event, details))

    def write_or_keep(self, event: str, **details: Any) -> None:
        """Append a line now, or with the next one that can be written."""
        line = _line(event, details)
        try:
            self._append(line)
        except OSError:
            if len(self._unwritten) < _MOST_UNWRITTEN:
                self._unwritten += line

    def _stored(self, parts: Sequence[Part]) -> None:
        at = _now()
        lines = [f'{_STORED}"association":"{each.association}","file":"{each.name}","at":"{at}"}}\n' for each in parts]
        with self._lock:
            self._append("".join(lines).encode())

    def _append(self, line: bytes) -> None:
        try:
            self._files.write_all(self._log, self._unwritten + line)
        except OSError:
            self._unwritten = b"\n" + self._unwritten.lstrip(b"\n")
            raise
        self._unwritten = b""

    def close(self) -> None:
        self.write_or_keep("closed")
        self._files.close(self._log)
        self._files.close(self.folder)


class Part:
    """A file being received: bytes go in, then it is either made durable under its final name, or gone."""

    def __init__(self, files: Files, segment: Segment, association: str, name: str) -> None:
        self.segment, self.association, self.name = segment, association, name
        self._files = files
        self.size = self._on_its_way = 0  # bytes written, and of them those that the disk has been given
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self.fd = files.open(self.part, flags, at=segment.folder)

    @property
    def part(self) -> str:
        return self.name + PART

    def write(self, buffers: list[Buffer]) -> None:
        """All of `buffers`, of which writev takes 1,024 at most, with as few system calls as may be."""
        size = sum(map(len, buffers))
        done = self._files.writev(self.fd, buffers)
        while done < sum(map(len, buffers)):
            buffers = _after(buffers, done)
            done = self._files.writev(self.fd, buffers)
        self._grown(size)

    def pour(self, pipe: int, size: int) -> None:
        """`size` bytes that wait in a pipe."""
        left = size
        while left:
            try:
                left -= self._files.splice(pipe, self.fd, left)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                left -= self._copy(pipe, left)  # a file system that takes nothing from a pipe, as eCryptfs
        self._grown(size)

    def _copy(self, pipe: int, most: int) -> int:
        data = bytearray(min(most, _STEP))
        got = self._files.readinto(pipe, data)
        self._files.write_all(self.fd, memoryview(data)[:got])
        return got

    def _grown(self, size: int) -> None:
        """What came so far goes to the disk while more is coming: the sync at the end waits for the rest alone."""
        self.size += size
        if self.size - self._on_its_way >= _EARLY:
            self._files.start_writeback(self.fd, self._on_its_way, self.size - self._on_its_way)
            self._on_its_way = self.size

    def close(self) -> None:
        """Give the descriptor back; harmless when done before."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._files.close(fd)


class Commit:
    """Makes the parts of one segment durable: bytes, then name (PS3.4 B.2.3: both survive a power cut before Success).

    Every thread syncs the bytes of its own part, which the kernel does well for several at once, and gives it its name.
    The folder is then synced for all that wait, and their lines are written together. Whoever comes meanwhile waits for
    the next time; who is alone waits for nobody.
    """

    def __init__(self, files: Files, segment: Segment, write: Callable[[Sequence[Part]], None]) -> None:
        self._files, self._segment, self._write = files, segment, write
        self._lock = threading.Lock()  # of the group that gathers
        self._turn = threading.Lock()  # to sync the folder
        self._gathering = _Group()

    def store(self, part: Part) -> None:
        """Returns when `part` is durable, or raises OSError, after which it must be dropped.

        A sync that failed is never tried again on that descriptor: the kernel has marked the pages clean.
        """
        folder = self._segment.folder
        self._files.fsync(part.fd)
        self._files.rename(part.part, part.name, at=folder, to=folder)
        group = self._gather(part)
        if group.failure is not None:
            raise OSError(group.failure.errno, group.failure.strerror) from group.failure

    def _gather(self, part: Part) -> _Group:
        """The group that `part` was in, once it is over. The first to come waits for its turn and works for all.

        Locks alone, as each thread is then woken once, when its own group is over.
        """
        with self._lock:
            group = self._gathering
            group.parts.append(part)
            first = len(group.parts) == 1
        if not first:
            with group.going_on:
                return group
        with self._turn:
            with self._lock:
                self._gathering = _Group()
            self._settle(group)
        return group

    def _settle(self, group: _Group) -> None:
        try:
            self._sync()
            self._write(group.parts)
        except OSError as error:
            group.failure = error
        except BaseException as error:
            group.failure = OSError(errno.EIO, f"{type(error).__name__} while others waited")
            raise
        finally:
            group.going_on.release()

    def _sync(self) -> None:
        if self._segment.spoilt:  # names made while that sync ran may be lost, and the next sync would not say so
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        try:
            self._files.fsync_folder(self._segment.folder)
        except OSError:
            self._segment.spoilt = True
            raise


class _Group:
    """Parts whose names are made durable together."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.going_on = threading.Lock()
        self.going_on.acquire()
        self.failure: OSError | None = None


class Arrivals:
    """The segments of one receiving process, for all its associations. Every method may be called from any thread."""

    def __init__(self, received: Path, worker: str, files: Files, settings: ReceiveSettings) -> None:
        self._folder, self._files, self._settings = received / worker, files, settings
        self.space = Gauge(received, files, settings.keep)
        self._lock = threading.Lock()
        self._segment: Segment | None = None
        self._open: dict[str, Route] = {}
        self._parts = itertools.count(1)
        life = f"{worker}-{time.time_ns() // 1000:x}{secrets.token_hex(2)}"
        self._ids = (f"{life}-{n:x}" for n in itertools.count(1))

    def begin(self) -> None:
        """Make the worker's folder, and remove the parts that a process of this worker left when it died."""
        self._files.make_folders(self._folder)
        for name in self._files.names(self._folder):
            if self._files.is_folder(self._folder / name):
                self._sweep(self._folder / name)
        self.space.look()

    def opened(self, route: Route) -> str:
        """An association begins; its identifier. OSError where that cannot be written down: then it must not begin."""
        with self._lock:
            association = next(self._ids)
            segment = self._current()
            segment.write("opened", association=association, **_who(route))
            segment.told += 1
            self._open[association] = route
            return association

    def ended(self, association: str, how: str) -> None:
        """An association was "released", "aborted" by the peer, or "lost". Written now, or once that is possible."""
        with self._lock:
            del self._open[association]
            if self._segment is not None:
                self._segment.write_or_keep(how, association=association)

    def part(self, association: str, count: int) -> Part:
        """A new part for the association's `count`-th instance. OSError where there can be none.

        Where room gets scarce it takes its time: whoever sends is slowed down, and nothing is refused.
        """
        self.check_room(look=self.space.pause > 0 or next(self._parts) % _LOOK_EVERY == 0)
        if self.space.pause:
            time.sleep(self.space.pause)
        try:
            return self._part(association, count)
        except FileNotFoundError:  # somebody has removed the segment's folder: it goes into another one
            return self._part(association, count)

    def _part(self, association: str, count: int) -> Part:
        with self._lock:
            segment = self._current()
            segment.given += 1
            segment.in_flight += 1
        try:
            return Part(self._files, segment, association, f"{association}-{count}.dcm")
        except OSError as error:
            segment.spoilt = segment.spoilt or isinstance(error, FileNotFoundError)
            self._landed(segment)
            raise

    def check_room(self, *, look: bool) -> None:
        """OSError where only the last of the disk is left: as far as is known, or after a `look` at it."""
        if look:
            self.space.look()
        if self.space.out:
            raise OSError(errno.ENOSPC, "the last of the disk is kept free")

    def store(self, part: Part) -> None:
        """Make `part` durable under its name and write that down. On OSError nothing is left of it."""
        try:
            part.segment.commit.store(part)
        except BaseException:
            self._remove(part.segment, part.name)
            self.drop(part)
            raise
        part.close()
        self._landed(part.segment)

    def drop(self, part: Part) -> None:
        """Remove a part that will not be finished. What cannot be removed now goes with the next start."""
        part.close()
        self._remove(part.segment, part.part)
        self._landed(part.segment)

    def tick(self) -> None:
        """To be called about once a second: looks at the disk; ends a segment whose time is over and that is unused."""
        self.space.look()
        with self._lock:
            if self._segment is not None and not self._open and self._is_full(self._segment):
                self._follow(self._segment)

    def close(self) -> None:
        """The end of this process. A segment with parts in flight stays unclosed: its lock says the rest."""
        with self._lock:
            if self._segment is not None:
                self._follow(self._segment)

    def _current(self) -> Segment:
        old = self._segment
        if old is not None and not self._is_full(old):
            return old
        new = self._new()  # where there can be none, what ends is still written into the old one
        for association, route in self._open.items():
            new.write_or_keep("opened", association=association, **_who(route), continued=True)
        if old is not None:
            self._follow(old)
        self._segment = new
        return new

    def _new(self) -> Segment:
        self._files.make_folders(self._folder)  # it may have been removed, too
        for name in _segment_names():
            try:
                return Segment(self._folder / name, self._files, self._lock)
            except FileExistsError:
                continue
        raise OSError(errno.EEXIST, "no name for a new segment", os.fspath(self._folder))

    def _is_full(self, segment: Segment) -> bool:
        age = time.monotonic() - segment.begun
        most = max(segment.given, segment.told)  # those that bring nothing must not let it grow either
        return most >= self._settings.segment_files or age >= self._settings.segment_age or segment.spoilt

    def _follow(self, segment: Segment) -> None:
        self._segment = None
        segment.over = True
        if not segment.in_flight:
            segment.close()

    def _landed(self, segment: Segment) -> None:
        with self._lock:
            segment.in_flight -= 1
            if segment.over and not segment.in_flight:
                segment.close()

    def _remove(self, segment: Segment, name: str) -> None:
        with contextlib.suppress(OSError):  # gone already, or a disk that fails here too: parts go at the next start
            self._files.unlink(name, at=segment.folder)

    def _sweep(self, segment: Path) -> None:
        if not self._files.exists(segment / ARRIVALS):  # a power cut took it, or came before it was made
            self._remove_parts(segment)
            if not self._files.names(segment):
                self._files.rmdir(segment)
            return
        with self._files.opened(segment / ARRIVALS, os.O_RDWR | os.O_NOFOLLOW) as log:
            if not self._files.lock(log):
                return  # another process of this worker lives
            self._remove_parts(segment)
            empty = self._files.stat(log).st_size == 0  # it died before its first line: nobody else would remove it
            if empty and self._files.names(segment) == [ARRIVALS]:
                self._files.remove_tree(segment)

    def _remove_parts(self, segment: Path) -> None:
        for name in self._files.names(segment):
            if name.endswith(PART):
                self._files.unlink(segment / name)


def _after(buffers: Sequence[Buffer], done: int) -> list[Buffer]:
    """What follows the first `done` bytes."""
    rest: list[Buffer] = []
    for buffer in buffers:
        if done < len(buffer):
            rest.append(memoryview(buffer)[done:])
        done = max(0, done - len(buffer))
    return rest


def _who(route: Route) -> dict[str, str]:
    return {"calling": route.calling, "called": route.called, "address": route.address}


def _segment_names() -> Iterator[str]:
    now = datetime.datetime.now().strftime("%Y%m%dT%H%M%S")
    return (f"{now}-{n:04x}" for n in range(1 << 16))


def _line(event: str, details: dict[str, Any]) -> bytes:
    return _encode({"event": event, **details, "at": _now()}).encode() + b"\n"


def _now() -> str:
    return datetime.datetime.now().isoformat(timespec="milliseconds")
