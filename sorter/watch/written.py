"""Hints that one of a few files was written to, for little: see `sorter.watch.hints` for what a hint is worth."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from sorter.durable import Files

REST = 0.05
"""Seconds after a hint in which no other is given: whoever was woken looks at everything anyway."""

_IN_MODIFY = 0x2
_libc = ctypes.CDLL(None, use_errno=True)


class Written:
    """Calls `wake`, from a thread of its own, when one of the files that were added is written to (inotify(7)).

    watchdog follows folders, and tells of every file in them: its three events for a received image take as long as to
    file it. Where the kernel has no watch to give, nobody is woken, and whoever looks now and then finds it.
    """

    def __init__(self, wake: Callable[[], None], files: Files | None = None) -> None:
        self._wake, self._files = wake, files or Files()
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(_libc, "inotify_init1") else -1
        self._end, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="written", daemon=True)
        self._thread.start()

    def add(self, path: Path) -> bool:
        """From now on this file is watched, until it is removed; False where it is not there, or cannot be."""
        return self._fd >= 0 and _libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY) >= 0

    def stop(self) -> None:
        """Returns when its thread runs no more."""
        self._end.close()
        self._thread.join()
        self._ended.close()
        if self._fd >= 0:
            self._fd, fd = -1, self._fd
            self._files.close(fd)

    def _run(self) -> None:
        end, both = select.poll(), select.poll()
        for poll in (end, both):
            poll.register(self._ended, select.POLLIN)
        if self._fd >= 0:
            both.register(self._fd, select.POLLIN)
        while not end.poll(REST * 1000):
            if any(fd == self._fd for fd, _ in both.poll()):
                with contextlib.suppress(BlockingIOError):
                    self._files.read(self._fd, 1 << 16)
                self._wake()
