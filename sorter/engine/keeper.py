"""The process below which every job of this machine runs: it has all imports done, and forks.

`python -P -m sorter.engine.keeper PARENT`, started by `sorter.engine.local` with a unix socket as standard input. It
runs no plugin code. For each job that it is told of it forks a supervisor (`sorter.engine.child`). What a supervisor
leaves behind, because the job killed it, becomes the keeper's, and is ended; and it ends everything when the one who
started it goes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import tempfile
import time
from types import FrameType
from typing import Any, NoReturn

from sorter.durable import Files
from sorter.engine import child, worker
from sorter.processes import (
    adopt_orphans,
    children,
    descendants,
    die_with,
    end_descendants,
    kill,
    kill_all,
    tasks_of_account,
)
from sorter.wire import Channel

__all__ = ["main", "worker"]  # the latter is imported for the sake of those that are forked

_COUNT_EVERY = 10.0
"""Seconds between two counts of what this account runs: a look at each process of the machine."""


def main() -> int:
    if not die_with(int(sys.argv[1]), signal.SIGTERM):
        return 1
    signal.signal(signal.SIGTERM, _stop)
    adopt_orphans()
    keeper = Keeper(Channel(socket.socket(fileno=os.dup(0))))
    with Files().opened(os.devnull, os.O_RDONLY) as nothing:
        os.dup2(nothing, 0)
    gc.freeze()  # so that those that are forked write to less of this memory
    try:
        while True:
            keeper.turn()
    except EOFError:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()


def _stop(_sign: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


class Keeper:
    """Forks supervisors, and says of each with which code it ended, once nothing of its job is left."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._supervisors: dict[int, str] = {}  # process id: job
        self._tasks, self._counted = 0, -_COUNT_EVERY
        self._bell, bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._inherited = (self._bell, bell)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell)
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def turn(self) -> None:
        """Wait for something, and do it. EOFError when the one who started us has gone."""
        ready = {fd for fd, _ in self._poll.poll()}
        if self._bell in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 4096)
            self._reap()
        if self._channel.fileno() in ready:
            asked, _ = self._channel.receive()
            if "begin" in asked:
                self._begin(asked)
            else:
                self._end(asked["end"], signal.Signals(asked["sign"]))

    def _begin(self, asked: dict[str, Any]) -> None:
        job = asked["begin"]
        if time.monotonic() - self._counted >= _COUNT_EVERY:
            self._tasks, self._counted = tasks_of_account(), time.monotonic()
        try:
            pid = os.fork()  # one thread only, so a fork is safe
        except OSError as error:
            self._channel.send({"ended": job, "error": error.errno})
            return
        if pid == 0:
            self._supervise(asked)
        self._supervisors[pid] = job

    def _supervise(self, asked: dict[str, Any]) -> NoReturn:
        """In the forked process."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._channel.close()
            for fd in self._inherited:
                os.close(fd)
            os.setsid()
            os.chdir(asked["folder"])
            os.environ.update(asked["environment"])
            tempfile.tempdir = None
            description = {**asked["description"], "parent": os.getppid(), "tasks": self._tasks}
            code = child.supervise(description)
        finally:
            os._exit(code)

    def _end(self, job: str, sign: signal.Signals) -> None:
        """SIGTERM asks a supervisor to end its job; after SIGKILL what is left of it is ours."""
        for pid, known in self._supervisors.items():
            if known == job:
                kill(pid, sign)

    def _reap(self) -> None:
        ended = []
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                job = self._supervisors.pop(found[0], None)
                if job is not None:
                    ended.append((job, os.waitstatus_to_exitcode(found[1])))
        if any(code != 0 for _, code in ended):
            self._end_orphans()
        for job, code in ended:
            self._channel.send({"ended": job, "code": code})

    def _end_orphans(self) -> None:
        """Every process below us that no living supervisor is above of."""
        while orphans := self._orphans():
            kill_all(lambda: [below for pid in self._orphans() for below in (pid, *descendants(pid))])
            for pid in orphans:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _orphans(self) -> list[int]:
        return [pid for pid in children(os.getpid()) if pid not in self._supervisors]


if __name__ == "__main__":
    sys.exit(main())
