"""`sort`'s socket for those who may not read the spool. Nobody answers there until somebody knocks.

The socket is `sort`'s own from its start; the process that answers is started by the first connection, and ends when
nobody came for a while. So the door costs nothing where nobody uses it, and whatever happens behind it happens beside
the sorting.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path

from sorter.config import Config
from sorter.door import Members, Terms
from sorter.durable import PART, Files
from sorter.errors import SorterError
from sorter.model import plain
from sorter.spool import Spool

log = logging.getLogger("sorter.sort")

_BACKLOG = 128
_PAUSE = 5.0  # seconds before the next process is started after one that failed


def terms_of(config: Config) -> Terms:
    """Who may see what. A lab's own group counts, and the account that its files belong to."""
    labs = {
        name: Members(
            groups=tuple(str(each) for each in (lab.group, *lab.groups) if each is not None),
            users=tuple(str(each) for each in (lab.user, *lab.users) if each is not None),
        )
        for name, lab in config.labs.items()
    }
    targets = {name: config.granted(name) for name in config.labs}
    roots = {name: str(root) for name, root in config.folders().items()}
    return Terms(labs, tuple(map(str, config.door.admins)), targets, roots)


class Doorkeeper:
    """Listens from its making until `stop`. SorterError: the socket cannot be made."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self._spool, self._path = spool, config.socket
        self._terms = terms_of(config)
        self._listener = listen(config.socket, spool.files)
        self._stopping = threading.Event()
        self._woken, self._wake = os.pipe()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="door", daemon=True)
        self._thread.start()

    def configure(self, config: Config) -> None:
        """Answer by these terms from now on; what is being answered is cut off, and asked again."""
        with self._lock:
            self._terms = terms_of(config)
            if self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        os.close(self._wake)
        self._thread.join(5.0)
        self._listener.close()
        with contextlib.suppress(OSError):
            self._spool.files.unlink(self._path)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            ready, _, _ = select.select([self._listener.fileno(), self._woken], [], [])
            if self._woken in ready:
                break
            if self._answering() != 0 and not self._stopping.is_set():
                self._stopping.wait(_PAUSE)
        os.close(self._woken)

    def _answering(self) -> int:
        """From the start of the process to its end; 0 where it ended because nobody came, or because we ended it."""
        try:
            with self._lock:
                if self._stopping.is_set():
                    return 0
                process = self._process = self._start()
        except OSError as error:
            log.error("nobody can be answered at the door: %s", error.strerror)
            return 1
        code = process.wait()
        with self._lock:
            self._process = None
        assert process.stdin is not None
        process.stdin.close()
        return max(code, 0)

    def _start(self) -> subprocess.Popen[bytes]:
        fd = self._listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sorter.door"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[fd], cwd="/",
        )  # fmt: skip
        told = {"listener": fd, "spool": str(self._spool.root), "terms": plain(self._terms)}
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(told).encode() + b"\n")
            process.stdin.flush()
        return process


def listen(path: Path, files: Files) -> socket.socket:
    """A listening socket that everybody may connect to, in the place of one that a life before left there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made = path.name + PART
    try:
        with files.opened(path.parent, os.O_PATH | os.O_DIRECTORY) as folder:
            at = f"/proc/self/fd/{folder}"  # a socket's path has 108 bytes at most, a folder's has 4,096
            with contextlib.suppress(FileNotFoundError):
                files.unlink(made, at=folder)
            listener.bind(f"{at}/{made}")
            files.chmod(f"{at}/{made}", 0o666)
            listener.listen(_BACKLOG)
            files.rename(made, path.name, at=folder, to=folder)
    except OSError as error:
        listener.close()
        raise SorterError(
            f"the socket {path} cannot be made: {error.strerror}; make its folder, or change socket in [door]"
        ) from None
    return listener
