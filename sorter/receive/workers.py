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
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.receive.lobby import Door
from sorter.receive.seldom import Seldom
from sorter.receive.server import Receiver, open_doors, renew_certificates
from sorter.receive.settings import ReceiveSettings
from sorter.receive.space import Ledger
from sorter.receive.tally import Tally

log = logging.getLogger("sorter.receive")

GRACE = 25.0
"""Seconds that associations have to end once SIGTERM came; whoever waits for us waits 28 to 30."""

_LOOK = 0.2  # seconds between two looks at the workers
_START = 60.0  # seconds that a worker has to answer
_SHORTEST_LIFE = 10.0  # seconds; one that ends sooner is replaced after a pause that grows
_LONGEST_PAUSE = 30.0

_OF_ASSOCIATION = 4  # descriptors: its connection, a file, both ends of a pipe
_OF_PROCESS = 200  # descriptors: segments, doors, pipes of threads that wait

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker is given. With `reload`, which makes new settings or raises SorterError, SIGHUP is heeded."""

    settings: ReceiveSettings
    received: Path
    files: Files
    grace: float = GRACE
    reload: Callable[[], ReceiveSettings] | None = None


def run(job: Job, ready: Callable[..., None], over: Callable[[], bool] = lambda: False) -> None:
    """Receive until SIGTERM or SIGINT, or until `over`; then stop within the grace. For the main thread of a process.

    `ready` is called with the port, and that with TLS if there is one, once every worker answers. SorterError says why
    one cannot. At SIGHUP the workers are told who may come in from now on, see `Receiver.admit_from_now_on`.
    """
    ended = threading.Event()
    hangup = _Hangup()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hangup.came)
    doors = open_doors(job.settings)
    seldom = Seldom()
    log.addFilter(seldom)
    _allow_descriptors(job.settings)
    gc.freeze()  # what is there now is never looked at again, so its pages stay shared
    tally = Tally(job.settings.processes, job.settings.associations)
    ledger = Ledger(job.received, job.files, job.settings.keep)
    workers = [_Worker(number, job, doors, tally) for number in range(1, job.settings.processes + 1)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.await_ready()
        ready(*(int(door.listener.getsockname()[1]) for door in doors))
        while not (ended.wait(_LOOK) or over()):
            changed = hangup.settings(job)
            if changed is not None:
                job = replace(job, settings=changed)
                renew_certificates(doors, changed)  # a worker that takes another's place gets these
                log.info("who may send here was read again")
                for worker in workers:
                    worker.reload(job)
            for worker in workers:
                worker.look_after(time.monotonic())
            ledger.note(time.time())
    finally:
        for door in doors:
            door.listener.close()  # the last worker to close its own closes the port
        deadline = time.monotonic() + job.grace + _LOOK
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join(deadline)
        for number, handler in before.items():
            signal.signal(number, handler)
        log.removeFilter(seldom)


def _allow_descriptors(settings: ReceiveSettings) -> None:
    """Each worker may have all connections there may be; what a process usually may open, 1,024 files, is too few."""
    waiting = 2 * settings.waiting  # those that leave count too
    needed = waiting + _OF_ASSOCIATION * settings.associations + _OF_PROCESS
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if most == resource.RLIM_INFINITY else min(needed, most)
    if now != resource.RLIM_INFINITY and now < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    if allowed < needed:
        says = "a process may open %d files here, and %d are needed for %d associations: "
        do = "raise that (LimitNOFILE= of systemd, or ulimit -n), or have fewer associations in [receive]"
        log.warning(says + do, allowed, needed, settings.associations)


class _Worker:
    """One of the workers, as its parent sees it."""

    def __init__(self, number: int, job: Job, doors: Sequence[Door], tally: Tally) -> None:
        self._number, self._job, self._doors, self._tally = number, job, doors, tally
        self._process: BaseProcess | None = None
        self._says: Connection | None = None
        self._started = self._again_at = self._pause = 0.0

    def start(self) -> None:
        self._says, tell = _fork.Pipe(duplex=False)
        self._started, self._again_at = time.monotonic(), 0.0
        receiver = Receiver(self._job.settings, self._job.received, self._job.files, self._number, self._tally)
        with tell:
            self._process = _fork.Process(target=_work, args=(receiver, self._doors, self._job, tell))
            self._process.start()

    def await_ready(self) -> None:
        """Until it answers; SorterError with its own sentence where it cannot."""
        assert self._says is not None
        try:
            why = self._says.recv() if self._says.poll(_START) else "it does not answer"
        except EOFError:
            why = "it ended; its reason is above"
        if why:
            raise SorterError(why)

    def reload(self, job: Job) -> None:
        """Heed what was read again; a successor will do so too."""
        self._job = job
        if self._process is not None and self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGHUP)

    def look_after(self, now: float) -> None:
        """Replace it if it died: at once, or after 1, 2, 4 … s while it keeps dying early."""
        if self._process is not None and not self._process.is_alive():
            early = now - self._started < _SHORTEST_LIFE
            self._pause = min(max(1.0, self._pause * 2), _LONGEST_PAUSE) if early else 0.0
            self._again_at = now + self._pause
            says = "receiver w%d ended with %s%s; replaced in %.0f s"
            log.error(says, self._number, self._process.exitcode, self._why(), self._pause)
            self._forget()
        if self._process is None and now >= self._again_at:
            try:
                self.start()
            except OSError as error:  # no more processes or descriptors: the other workers go on
                self._pause = min(max(1.0, self._pause * 2), _LONGEST_PAUSE)
                self._again_at = now + self._pause
                says = "receiver w%d cannot be replaced now: %s; it is tried again in %.0f s"
                log.error(says, self._number, error.strerror, self._pause)
                self._forget()

    def _why(self) -> str:
        """What it said of why it could not begin, if it did; whoever began has said that all is well."""
        try:
            says = self._says.recv() if self._says is not None and self._says.poll() else ""
        except (EOFError, OSError):
            says = ""
        return f" ({says})" if says else ""

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


class _Hangup:
    """SIGHUP, and the settings that it asks to be read again."""

    def __init__(self) -> None:
        self._came = False

    def came(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True

    def settings(self, job: Job) -> ReceiveSettings | None:
        """New settings, once for every time that it came; None where they stay as they were."""
        if not self._came or job.reload is None:
            return None
        self._came = False
        try:
            return job.reload()
        except SorterError as error:
            log.error("who may send here stays as it was, as the configuration cannot be used:\n%s", error)
            return None


def _work(receiver: Receiver, doors: Sequence[Door], job: Job, tell: Connection) -> None:
    """The whole life of a worker. It ends with its parent, too."""
    parent, ended, hangup = os.getppid(), threading.Event(), _Hangup()
    signal.signal(signal.SIGHUP, hangup.came)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it reaches us all; the parent decides
    try:
        receiver.start(doors)
    except SorterError as error:
        tell.send(str(error))
        return
    tell.send("")
    try:
        while not ended.wait(_LOOK) and os.getppid() == parent:
            if not receiver.alive:
                raise RuntimeError("the receiver takes no connections any more")  # a bug, shown by its own traceback
            changed = hangup.settings(job)
            if changed is not None:
                receiver.admit_from_now_on(changed)
    finally:
        receiver.stop(job.grace)
