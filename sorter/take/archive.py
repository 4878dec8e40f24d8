"""Archives: read by a limited child process, entry by entry, a bounded part of it unpacked at any time.

`sorter.take.unpack` is the child. It is given descriptors and no path, so what it can do is to write into files that
were made here and to say what their names were in the archive. Those names are text for people: they become a part of
where a file came from, never of a path that is opened.

    unpacking = Unpacking(spool, archive)
    while unpacking.end is None:
        for path, name in unpacking.entries(time.monotonic()):   # never waits
            …                                                    # file it, which takes `path` away
    unpacking.close()
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sorter
from sorter.durable import Files
from sorter.take.unpack import BUNCH, LONGEST_NAME

STALLED = 300.0
"""Seconds without a word, and without a byte unpacked, after which the child is ended."""

_FIRST_FILES = 4  # most compressed single images need one; more are made as they are used
_ANSWER = 1 << 20  # bytes of a message at most
_SECONDS = 30  # of processor for any archive, and one more for each of these bytes
_BYTES_A_SECOND = 1 << 20
_ENDED_BY_OTHERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
"""Whoever shuts the machine down, or needs its last memory. A limit of the child's own ends it by SIGXCPU."""

_TOO_MUCH = "reading it needs more memory or time than an archive of images does; if it is one, unpack it by hand"


@dataclass(frozen=True, slots=True)
class End:
    """How the reading of an archive ended.

    "whole": every entry was given. "truncated": more bytes could mend it. "broken": it cannot be read, or not all of
    it. "later": the disk is full or fails, or the child was ended from outside, or could not do its work; to be read
    again. `other` is the number of entries that have no content: links, devices.
    """

    how: str
    why: str = ""
    other: int = 0


class Unpacking:
    """One archive that is being read, or, with `copy`, copied into the spool as it is; not for several threads."""

    def __init__(self, files: Files, folder: Path, archive: int, *, copy: bool = False) -> None:
        """`archive` is an open descriptor, closed by the caller; entries are written into `folder`, under our names."""
        self._files, self._folder = files, folder
        self.end: End | None = None
        self._paths: deque[Path] = deque()  # of the files that the child has, in their order
        self._given = False  # is the last bunch with the caller?
        self._want = 1 if copy else _FIRST_FILES
        self._heard: float | None = None
        self._unpacked = 0  # bytes in the files that it has, when they were last looked at
        scratch = self._scratch()
        self._link, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        try:
            seconds = _SECONDS + files.stat(archive).st_size // _BYTES_A_SECOND
            self._child = _start("copy" if copy else "read", there.fileno(), seconds)
            self._go([archive, scratch])
            self._go([])
        except BaseException:
            self._link.close()
            raise
        finally:
            there.close()
            files.close(scratch)

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._child.pid

    def entries(self, now: float) -> list[tuple[Path, str]]:
        """(file, name in the archive) of the next bunch, synced; none while there is none. `now`: monotonic seconds.

        Each file is the caller's, to move or to remove. To ask again says that the last bunch is not unpacked any more.
        """
        if self.end is not None:
            return []
        self._heard = now if self._heard is None else self._heard
        if self._given:
            self._given, self._heard = False, now  # however long the caller had the last bunch
            self._go([])
            if self.end is not None:
                return []
        try:
            message = self._link.recv(_ANSWER)
        except BlockingIOError:
            if now - self._heard > STALLED:
                self._stalled(now)
            return []
        except ConnectionError:
            message = b""
        self._heard = now
        return self._understood(message) if message else self._died()

    def close(self) -> None:
        """End the child, if it still runs, and remove what it was given and did not use."""
        if self.end is None:
            self._ended(End("later", "it was stopped"))

    # --- messages -----------------------------------------------------------------------------------------------

    def _stalled(self, now: float) -> None:
        """Nothing was said for long. A large entry that grows may take hours: where the archive is copied it is one."""
        unpacked = sum(self._files.stat(path).st_size for path in self._paths)
        if unpacked > self._unpacked:
            self._heard, self._unpacked = now, unpacked
        else:
            self._ended(End("broken", _TOO_MUCH))

    def _understood(self, message: bytes) -> list[tuple[Path, str]]:
        try:
            said: dict[str, Any] = json.loads(message)
            names = [_plain(str(name)) for name in said["entries"]]
            end = End(str(said["end"]), _shown(str(said["why"])), int(said["other"])) if "end" in said else None
            found = [(self._paths.popleft(), name) for name in names]
        except (ValueError, TypeError, KeyError, IndexError):
            self._ended(End("broken", "the process that reads archives said what cannot be understood"))
            return []
        self._unpacked = 0
        if end is not None:
            self._ended(end)
        else:
            self._want = min(2 * BUNCH, 2 * self._want)
            self._given = True
        return found

    def _go(self, first: list[int]) -> None:
        """A bunch more may be written; with it go the files for that."""
        paths: list[Path] = []
        fds: list[int] = []
        try:
            for _ in range(min(self._want - len(self._paths), BUNCH)):
                paths.append(self._next_path())
                fds.append(self._files.open(paths[-1], os.O_RDWR | os.O_CREAT | os.O_EXCL))
            socket.send_fds(self._link, [b"go"], [*first, *fds])
        except ConnectionError:
            pass  # it has ended; what it said last is still to be read
        except OSError as error:
            self._ended(End("later", error.strerror or "error"))
        finally:
            for fd in fds:
                self._files.close(fd)
            self._paths.extend(paths[: len(fds)])
            if self.end is not None:
                self._forget_files()

    def _died(self) -> list[tuple[Path, str]]:
        """Its end of the socket closed without a word that it was finished."""
        code = self._child.wait()
        if code < 0 and -code in _ENDED_BY_OTHERS:
            self._ended(End("later", "the process that reads it was ended"))
        elif code < 0:
            self._ended(End("broken", _TOO_MUCH))
        else:  # what is wrong with an archive it says itself
            self._ended(End("later", f"the process that reads archives ended with code {code}"))
        return []

    def _ended(self, end: End) -> None:
        self.end = end
        self._link.close()
        self._child.kill()
        self._child.wait()
        self._forget_files()

    def _forget_files(self) -> None:
        while self._paths:
            self._files.unlink(self._paths.popleft())

    # --- files --------------------------------------------------------------------------------------------------

    def _next_path(self) -> Path:
        return self._folder / f"entry-{os.getpid()}-{next(_numbers):08x}"

    def _scratch(self) -> int:
        """A file without a name."""
        path = self._next_path()
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._files.unlink(path)
        return fd


_numbers = itertools.count(1)  # of files made by this process, whose archives may all use one folder


def _start(mode: str, link: int, seconds: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "sorter.take.unpack", mode, str(link), str(seconds)]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(Path(sorter.__file__).parent.parent)}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        pass_fds=[link],
        start_new_session=True,  # a Ctrl-C is for the sorter, which then ends it
    )


def _shown(text: str) -> str:
    """As it may be shown on a terminal: without control characters, marks of direction, or halves of characters."""
    return "".join(each if each.isprintable() else "?" for each in text[-4 * LONGEST_NAME :])


def _plain(name: str) -> str:
    """The name of an entry as text in the way of a path below the archive: nothing in it leads upwards."""
    parts = _shown(name[-LONGEST_NAME:]).replace("\\", "/").split("/")
    return "/".join("_" if set(part) <= {"."} else part for part in parts if part)
