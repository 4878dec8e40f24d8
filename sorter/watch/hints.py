"""Hints that something happened in a folder tree: when to look, never what is there.

Events get lost: queues overflow, watches run out, a removed and recreated folder is deaf, a share's other writers raise
none. So nothing here is trusted but the waking, and what is found out about deafness is said.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from sorter.durable import Files

CHECK_EVERY = 1.0
"""Seconds between two checks that the observer still watches what it should."""

RETRY_EVERY = 60.0
"""Seconds until watching is tried again after it failed."""

_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent, FileMovedEvent, FileClosedEvent, DirCreatedEvent, DirMovedEvent,
]  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)
_DEAF_AFTER = 3  # looks in a row that found something no event had told of


_LIMIT = "the system's limit is reached; raise fs.inotify.{} (sysctl). Until then it is looked at every few seconds"


class _Limits:
    """Can the kernel give one more watch? watchdog does not say when it cannot, and new folders are deaf from then on.

    So one is asked for, and given back, on an inotify instance of our own.
    """

    _IN_UNMOUNT = 0x2000  # an event that the root folder never has

    def __init__(self) -> None:
        self.full = -RETRY_EVERY  # when there was none
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(_libc, "inotify_init1") else -1

    def look(self, now: float) -> None:
        if self._fd < 0:
            return
        watch = _libc.inotify_add_watch(self._fd, b"/", self._IN_UNMOUNT)
        if watch >= 0:
            _libc.inotify_rm_watch(self._fd, watch)
        elif ctypes.get_errno() == errno.ENOSPC:
            self.full = now

    def close(self) -> None:
        if self._fd >= 0:
            self._fd, fd = -1, self._fd
            Files().close(fd)


class _Wake(FileSystemEventHandler):
    def __init__(self, happened: Callable[[], None]) -> None:
        self._happened = happened

    def dispatch(self, event: FileSystemEvent) -> None:  # noqa: ARG002  (which event it was does not matter)
        self._happened()


class _Overflow(logging.Handler):
    """watchdog's log, which names paths, goes nowhere; that its queue overflowed is worth a look."""

    def __init__(self, happened: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._happened = happened

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.msg:
            self._happened()


class Hints:
    """Calls `wake` from another thread when something happens below the folders; calls it too often rather than not.

    A folder that cannot be watched is no error: `problems` says so, and the caller's own looks find what is there.
    """

    def __init__(self, folders: Sequence[Path], wake: Callable[[], None], files: Files | None = None) -> None:
        self._folders, self._wake, self._files = list(folders), wake, files or Files()
        self._lock = threading.Lock()
        self._events = 0  # that came so far
        self._compared = 0  # of them, at the last look
        self._unheard = 0  # looks in a row that found what no event had told
        self._observer: BaseObserver | None = None
        self._watches: dict[Path, tuple[ObservedWatch, tuple[int, int]]] = {}
        self._problems: dict[Path, str] = {}  # of those that cannot be watched
        self._away: set[Path] = set()
        self._limits = _Limits()
        self._checked = self._tried = -RETRY_EVERY
        self._quiet = _Overflow(self._happened)
        _silence(self._quiet)
        self._check(time.monotonic())

    def _happened(self) -> None:
        with self._lock:
            self._events += 1
        self._wake()

    def problems(self) -> list[str]:
        """Sentences on what cannot be watched; also checks, at most every second, that the rest still is. Cheap."""
        now = time.monotonic()
        if now - self._checked >= CHECK_EVERY:
            self._check(now)
        said = [f"{folder} is not there" for folder in self._folders if folder in self._away]
        said += self._problems.values()
        if now - self._limits.full < RETRY_EVERY and not self._problems:
            said.append(f"new folders are not watched for events: {_LIMIT.format('max_user_watches')}")
        if self._unheard >= _DEAF_AFTER:
            said.append(
                "files arrive without any event, so they are found by looking at the folders every few seconds "
                "(writers on other machines raise none)"
            )
        return said

    def compare(self, fresh: int) -> None:
        """Told after each look how many files it saw for the first time: had an event told of them?"""
        with self._lock:
            heard = self._events != self._compared
            self._compared = self._events
        if heard:
            self._unheard = 0
        elif fresh:
            self._unheard += 1

    def stop(self) -> None:
        """Returns when no thread of it runs any more."""
        self._end()
        logging.getLogger("watchdog").removeHandler(self._quiet)
        self._limits.close()

    # --- watching -----------------------------------------------------------------------------------------------

    def _check(self, now: float) -> None:
        self._checked = now
        self._limits.look(now)
        if self._observer is not None and not self._alive(self._observer):
            self._end()
        for folder in self._folders:
            identity = self._identity(folder)
            watched = self._watches.get(folder)
            if watched is not None and watched[1] != identity:
                self._end()  # removed or made anew: watchdog would stay with the old one
                break
        if now - self._tried >= RETRY_EVERY:
            self._tried, self._problems = now, {}
        self._start([each for each in self._folders if each not in self._watches and each not in self._problems])

    def _alive(self, observer: BaseObserver) -> bool:
        return observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)

    def _identity(self, folder: Path) -> tuple[int, int] | None:
        try:
            info = self._files.stat(folder)
        except OSError:
            return None
        return info.st_dev, info.st_ino

    def _start(self, folders: list[Path]) -> None:
        for folder in folders:
            identity = self._identity(folder)
            if identity is None:
                self._away.add(folder)
                continue
            try:
                watch = self._running().schedule(
                    _Wake(self._happened), str(folder), recursive=True, event_filter=_EVENTS
                )
            except OSError as error:
                self._problems[folder] = _cannot(folder, error)
                continue
            self._away.discard(folder)
            self._watches[folder] = watch, identity
            self._happened()  # what came before the watch stood

    def _running(self) -> BaseObserver:
        if self._observer is None:
            self._observer = Observer()
            self._observer.daemon = True
            self._observer.start()
        return self._observer

    def _end(self) -> None:
        observer, self._observer = self._observer, None
        self._watches = {}
        if observer is not None:
            observer.stop()
            observer.join(5.0)


def _cannot(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EMFILE):
        which = "max_user_watches" if error.errno == errno.ENOSPC else "max_user_instances"
        return f"{folder} cannot be watched for events: {_LIMIT.format(which)}"
    return f"{folder} cannot be watched for events ({error.strerror}); it is looked at every few seconds"


def _silence(handler: logging.Handler) -> None:
    """watchdog's warnings and log lines name paths, and those name patients."""
    log = logging.getLogger("watchdog")
    log.propagate = False
    log.addHandler(handler)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"watchdog\.")
