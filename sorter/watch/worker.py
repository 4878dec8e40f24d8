"""The process that follows one tree of `[[watch]]`, so that a share that hangs, blinks or lies can hurt nothing else.

It is told everything in lines of JSON on its standard input: first {folder, stays, polling, taking, left, apart}, then
what became of each copy it offered: {do: gone|not_yet|again, copy}, and {do: tidy, drop}. It answers in lines of JSON,
one a look: {ready: [{…, copy} …], whole, strange, empty, problems}, and {} now and then as a sign of life. What it
calls ready it has copied into the spool and synced, so that nobody else need touch the tree. It ends with its input.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from sorter.durable import Buffer, Files, PathLike
from sorter.watch import beneath
from sorter.watch.hints import Hints
from sorter.watch.incoming import Incoming
from sorter.watch.state import Habits, Ready
from sorter.watch.taken import Taken

BATCH = 128
"""Files copied, synced and told of at a time."""

BATCH_BYTES = 256 << 20
"""The same in bytes: so that a sign of life comes in between."""

MOST_OUT = 512
"""Copies that lie in the spool and were not taken yet."""

REST = 15.0
"""Seconds between two scans at most, where one takes long: then looking is a fifth of the time."""

LONGEST_NAP = 2.0
_BEAT = 2.0  # seconds between two signs of life
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Beating(Files):
    """Files that give a sign of life: a long scan, or a large copy, is told apart from a share that hangs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._last >= _BEAT:
            self.say({})

    def say(self, message: dict[str, Any]) -> None:
        self._last = time.monotonic()
        self.write_all(1, json.dumps(message).encode() + b"\n")

    def stat(self, path: PathLike | int, *, at: int | None = None) -> os.stat_result:
        self.beat()
        return super().stat(path, at=at)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self.beat()
        return super().pread(fd, size, offset)

    def write(self, fd: int, data: Buffer) -> int:
        if fd != 1:
            self.beat()
        return super().write(fd, data)


class Worker:
    """Looks at the tree, copies what is ready, and does what it is told of it; one thread, which may hang."""

    def __init__(self, told: dict[str, Any], orders: Orders, files: Beating) -> None:
        self._folder, self._taking = Path(told["folder"]), Path(told["taking"])
        self._stays, self._polling = bool(told["stays"]), bool(told["polling"])
        self._files, self._orders = files, orders
        taken = Taken(Path(told["left"]), files)
        self._tree = Incoming(self._folder, files, taken, Habits(self._stays, REST))
        self._apart = [Path(each) for each in told["apart"]]
        self._hints: Hints | None = None
        self._device: int | None = None  # of the file system that held something
        self._waiting: deque[Ready] = deque()
        self._out: dict[str, Ready] = {}  # by copy: of a file that changes there may be several, under one path
        self._copies = 0
        self._trouble = ""  # why nothing is copied into the spool, "" if it is

    def run(self) -> None:
        while True:
            self._orders.wake.clear()
            now = time.monotonic()
            self._obey()
            message, until = self._look(now)
            copied = self._copy_batch()
            message["ready"] = [{**dataclasses.asdict(ready), "copy": copy} for ready, copy in copied]
            self._files.say(message)
            if not copied:
                self._orders.wake.wait(max(0.0, min(until - time.monotonic(), LONGEST_NAP)))

    def _obey(self) -> None:
        for order in self._orders.take():
            if order["do"] == "tidy":
                if not self._stays:
                    self._tree.tidy(order["drop"])
                continue
            ready = self._out.pop(order["copy"], None)
            if ready is None:
                continue
            if order["do"] == "gone":
                if not self._stays:
                    with contextlib.suppress(OSError):  # the next look finds that it is still there, and says so
                        self._tree.remove(ready)
                self._tree.gone(ready)
            elif order["do"] == "not_yet":
                self._tree.not_yet(ready)
            else:
                self._tree.again(ready)

    # --- looking ------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> tuple[dict[str, Any], float]:
        if into := self._leads_into():
            return {"problems": [f"{self._folder} leads into {into}; it is not looked into"]}, now + REST
        try:
            look = self._tree.look(now)
        except OSError as error:
            away = f"{self._folder} cannot be read ({error.strerror}); it is waited for"
            return {"problems": [away]}, now + LONGEST_NAP
        self._waiting.extend(look.ready)
        self._listen(look.fresh)
        message = {"whole": look.whole, "strange": look.strange, "empty": look.empty, "problems": self._problems()}
        return message, look.next

    def _leads_into(self) -> Path | None:
        """By a symbolic link that the configuration does not show: then sorter would take what it took, or delivered,
        and even remove it there.
        """
        real = Path(os.path.realpath(self._folder))
        return next(
            (each for each in self._apart if each == real or each in real.parents or real in each.parents), None
        )

    def _listen(self, fresh: int) -> None:
        """Events of a tree that lies on this machine; those of a share would tell of this machine's writers alone."""
        wanted = not self._polling and self._tree.there and not self._tree.shared
        if wanted and self._hints is None:
            self._hints = Hints([self._folder], self._orders.wake.set, self._files)
        elif not wanted and self._hints is not None:
            self._hints.stop()
            self._hints = None
        if self._hints is not None:
            self._hints.compare(fresh)

    def _problems(self) -> list[str]:
        if not self._tree.there:
            return [f"{self._folder} is not there; it is waited for"]
        said = self._hints.problems() if self._hints is not None else []
        if not self._tree.empty:
            self._device = self._tree.lies_on
        elif self._device not in (None, self._tree.lies_on):
            said.append(f"{self._folder} is empty, and on another file system than before: is its share not mounted?")
        return [*said, self._trouble] if self._trouble else said

    # --- copying ------------------------------------------------------------------------------------------------

    def _copy_batch(self) -> list[tuple[Ready, str]]:
        """The next files, copied into the spool and synced."""
        batch: list[tuple[Ready, str]] = []
        size = 0
        while self._waiting and len(batch) < BATCH and size < BATCH_BYTES and len(self._out) + len(batch) < MOST_OUT:
            ready = self._waiting.popleft()
            copy = self._copy(ready)
            if copy:
                batch.append((ready, copy))
                size += ready.size
        try:
            self._files.fsync_all(self._taking / copy for _, copy in batch)
        except OSError as error:
            self._trouble = f"{self._folder}: nothing can be copied into the spool ({error.strerror})"
            for ready, copy in batch:
                self._files.unlink(self._taking / copy)
                self._tree.again(ready)
            return []
        self._out.update((copy, ready) for ready, copy in batch)
        return batch

    def _copy(self, ready: Ready) -> str:
        """Its name in taking/; "" where the file is not what it was, or cannot be copied now."""
        try:
            reading = self._tree.open(ready)
        except OSError as error:
            (self._tree.again if error.errno in beneath.AWAY else self._tree.not_yet)(ready)
            return ""
        self._copies += 1
        name = f"{os.getpid()}-{self._copies:08x}"
        try:
            with self._files.opened(self._taking / name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as writing:
                self._files.copy(reading, writing)
                info = self._files.stat(reading)
                self._files.set_times(writing, info.st_mtime_ns, info.st_mtime_ns)
        except OSError as error:
            self._drop(name)
            self._trouble = ""
            if error.errno in beneath.AWAY:
                self._tree.again(ready)
            elif error.errno in (errno.ENOSPC, errno.EDQUOT) or self._files.can_be_read(reading):
                self._trouble = f"{self._folder}: nothing can be copied into the spool ({error.strerror})"
                self._tree.again(ready)
            else:
                self._tree.unreadable(ready, error.strerror or "error")
            return ""
        finally:
            self._files.close(reading)
        self._trouble = ""
        if (info.st_size, info.st_mtime_ns) != (ready.size, ready.mtime_ns):
            self._drop(name)
            self._tree.not_yet(ready)
            return ""
        return name

    def _drop(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(self._taking / name)


class Orders:
    """What comes on standard input, read by a thread of its own, which ends the process with it."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._came: deque[dict[str, Any]] = deque()

    def first(self) -> dict[str, Any]:
        """The first line; then the thread starts."""
        told: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
        threading.Thread(target=self._read, name="orders", daemon=True).start()
        return told

    def take(self) -> list[dict[str, Any]]:
        return [self._came.popleft() for _ in range(len(self._came))]

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            self._came.append(json.loads(line))
            self.wake.set()
        os._exit(0)  # whatever the other thread hangs in; every effect of it may end anywhere


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # the sorting process ends this one, when its own work is done
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    orders = Orders()
    told = orders.first()
    with contextlib.suppress(BrokenPipeError):
        Worker(told, orders, Beating()).run()


if __name__ == "__main__":
    main()
