"""The processes of the receiver: children of one parent that take connections from one listening socket.

The parent opens the socket, forks `processes` workers and does nothing but look after them: one that dies is replaced,
and the socket stays open meanwhile, so that no connection is refused. Each worker has threads, a lobby and segments of
its own, and shares nothing with the others but that socket and a few counters.

They are forked rather than started anew: the parent has no threads of its own, its modules (60 MB of them) exist once
for all, and a worker that died is replaced within milliseconds.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.receive.server import Receiver, listen
from sorter.receive.settings import ReceiveSettings
from sorter.receive.tally import Tally

log = logging.getLogger("sorter.receive")

GRACE = 25.0
"""Seconds that associations have to end once SIGTERM came; whoever waits for us waits 28 to 30."""

_LOOK = 0.2  # seconds between two looks at the workers
_START = 60.0  # seconds that a worker has to answer
_SHORTEST_LIFE = 10.0  # seconds; one that ends sooner is replaced after a pause that grows
_LONGEST_PAUSE = 30.0

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker is given."""

    settings: ReceiveSettings
    received: Path
    files: Files
    grace: float = GRACE


def run(job: Job, ready: Callable[[int], None], over: Callable[[], bool] = lambda: False) -> None:
    """Receive until SIGTERM or SIGINT, or until `over`; then stop within the grace. For the main thread of a process.

    `ready` is called with the port once every worker answers. SorterError says why one cannot.
    """
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    listener = listen(job.settings)
    port = int(listener.getsockname()[1])
    gc.freeze()  # what is there now is never looked at again, so its pages stay shared
    tally = Tally(job.settings.processes)
    workers = [_Worker(number, job, listener, tally) for number in range(1, job.settings.processes + 1)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.await_ready()
        ready(port)
        while not (ended.wait(_LOOK) or over()):
            for worker in workers:
                worker.look_after(time.monotonic())
    finally:
        listener.close()  # the last worker to close its own closes the port
        deadline = time.monotonic() + job.grace + _LOOK
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join(deadline)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Worker:
    """One of the workers, as its parent sees it."""

    def __init__(self, number: int, job: Job, listener: socket.socket, tally: Tally) -> None:
        self._number, self._job, self._listener, self._tally = number, job, listener, tally
        self._process: BaseProcess | None = None
        self._says: Connection | None = None
        self._started = self._again_at = self._pause = 0.0

    def start(self) -> None:
        self._says, tell = _fork.Pipe(duplex=False)
        self._started, self._again_at = time.monotonic(), 0.0
        receiver = Receiver(self._job.settings, self._job.received, self._job.files, self._number, self._tally)
        self._process = _fork.Process(target=_work, args=(receiver, self._listener, self._job.grace, tell))
        self._process.start()
        tell.close()

    def await_ready(self) -> None:
        """Until it answers; SorterError with its own sentence where it cannot."""
        assert self._says is not None
        try:
            why = self._says.recv() if self._says.poll(_START) else "it does not answer"
        except EOFError:
            why = "it ended; its reason is above"
        if why:
            raise SorterError(why)

    def look_after(self, now: float) -> None:
        """Replace it if it died: at once, or after 1, 2, 4 … s while it keeps dying early."""
        if self._process is not None and not self._process.is_alive():
            early = now - self._started < _SHORTEST_LIFE
            self._pause = min(max(1.0, self._pause * 2), _LONGEST_PAUSE) if early else 0.0
            self._again_at = now + self._pause
            code = self._process.exitcode
            log.error("receiver w%d ended with %s; replaced in %.0f s", self._number, code, self._pause)
            self._forget()
        if self._process is None and now >= self._again_at:
            self.start()

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def join(self, deadline: float) -> None:
        if self._process is None:
            return
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            says = "receiver w%d did not end in time and is killed; nothing that was acknowledged is lost"
            log.error(says, self._number)
            self._process.kill()
            self._process.join()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.close()
        if self._says is not None:
            self._says.close()
        self._process = self._says = None


def _work(receiver: Receiver, listener: socket.socket, grace: float, tell: Connection) -> None:
    """The whole life of a worker. It ends with its parent, too."""
    parent, ended = os.getppid(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it reaches us all; the parent decides
    try:
        receiver.start(listener)
    except SorterError as error:
        tell.send(str(error))
        return
    tell.send("")
    try:
        while not ended.wait(_LOOK) and os.getppid() == parent:
            if not receiver.alive:
                raise RuntimeError("the receiver takes no connections any more")  # a bug, shown by its own traceback
    finally:
        receiver.stop(grace)
