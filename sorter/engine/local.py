"""The engine of this machine: `jobs` at a time, each in a fresh process below one keeper."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sorter.durable import Files
from sorter.engine import scratch
from sorter.engine.engine import Engine, description, environment, environment_in, outcome_in
from sorter.engine.turns import Turns
from sorter.engine.work import NO_ROOM, Limits, Outcome, Work
from sorter.processes import end, name_of, started_in
from sorter.wire import Channel

_SUPERVISOR_GRACE = 300  # seconds beyond a job's own time, for ending it and for the digests of what it made
_STOP_GRACE = 10  # seconds between asking a supervisor to end its job and ending it ourselves
_IDLE = 60.0  # seconds without a job after which the keeper ends: the next one is begun by another


@dataclass
class _Running:
    work: Work
    deadline: float  # monotonic
    sign: signal.Signals = signal.SIGTERM  # to be sent when it is over
    cancelled: bool = False


@dataclass
class _State:
    """Shared between the caller's thread and the engine's own, under the engine's lock."""

    turns: Turns = field(default_factory=Turns)
    starting: set[str] = field(default_factory=set)
    running: dict[str, _Running] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    stopping: bool = False


class LocalEngine(Engine):
    """Makes products on this machine. One thread of its own copies, begins and reaps.

    What a dead process left in `scratch` is removed.
    """

    def __init__(
        self,
        jobs: int,
        scratch: Path,
        files: Files,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        wake: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(scratch, files, limits, wake)
        self.jobs = jobs
        self._state = _State()
        self._keeper: _Keeper | None = None
        end(started_in(self.scratch))
        self._sweep_leftovers()
        self._poke = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    # --- for the caller -----------------------------------------------------------------------------------------

    def _begin(self, work: Work) -> None:
        with self._lock:
            if self._known(work.id):
                raise ValueError(f"there is a job {work.id} already")
            self._state.turns.waiting.append(work)
        self._nudge()

    def _known(self, job: str) -> bool:
        state = self._state
        return job in state.turns or job in state.starting or job in state.running or job in self._done

    def busy(self) -> tuple[int, int]:
        """(running, waiting) jobs."""
        with self._lock:
            return len(self._state.running), len(self._state.turns.waiting)

    def cancel(self, job: str) -> None:
        state = self._state
        with self._lock:
            state.turns.remove(job)
            if job in state.running or job in state.starting:
                state.cancelled.add(job)
            finished = job in self._done
        if finished:
            self.drop(job)
        self._nudge()

    def stop(self) -> None:
        """End every job and the engine's thread; what was not adopted is lost."""
        if not self._thread.is_alive():
            return
        with self._lock:
            self._state.stopping = True
            self._state.turns.waiting.clear()
            self._state.cancelled.update(self._state.running, self._state.starting)
        self._nudge()
        self._thread.join()
        self._put_broom_away()
        os.close(self._poke)

    def _nudge(self) -> None:
        os.eventfd_write(self._poke, 1)

    # --- the engine's own thread ----------------------------------------------------------------------------------

    def _live(self) -> None:
        """Start what may start, wait until something ends, again. The thread that starts a child must outlive it."""
        while True:
            self._end_cancelled()
            work = self._next()
            if work is not None:
                self._start(work)
                continue
            with self._lock:
                running = list(self._state.running.values())
                if self._state.stopping and not running:
                    break
            self._wait(running)
        self._close_keeper()

    def _next(self) -> Work | None:
        state = self._state
        with self._lock:
            if state.stopping or len(state.running) >= self.jobs:
                return None
            work = state.turns.take(each.work.lab for each in state.running.values())
            if work is not None:
                state.starting.add(work.id)
            return work

    def _wait(self, running: list[_Running]) -> None:
        poll = select.poll()
        poll.register(self._poke, select.POLLIN)
        if self._keeper is not None:
            poll.register(self._keeper.channel.fileno(), select.POLLIN)
        nearest = min((each.deadline for each in running), default=None)
        patience = _IDLE if self._keeper is not None else None
        if nearest is not None:
            patience = max(0.0, nearest - time.monotonic())
        ready = {fd for fd, _ in poll.poll(None if patience is None else patience * 1000 + 1)}
        if self._poke in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._poke)
        if self._keeper is not None and self._keeper.channel.fileno() in ready:
            self._hear(self._keeper)
        elif not ready and not running:
            self._close_keeper()
        for each in running:
            if time.monotonic() > each.deadline:
                self._end(each)

    def _start(self, work: Work) -> None:
        folder = self.scratch / work.id
        try:
            if not self._has_room():
                self._finish(Outcome(work.id, "failed", NO_ROOM, later=True))
                return
            scratch.lay_out(work, folder, self.files)
            self._keeper = self._keeper or _Keeper()
            self._keeper.channel.send(
                {
                    "begin": work.id,
                    "folder": str(folder),
                    "environment": environment_in(folder, work.product.cpus),
                    "description": description(work, self.limits),
                }
            )
        except FileNotFoundError:
            self._finish(Outcome(work.id, "failed", "an input is gone", later=True))
        except OSError as error:
            self._finish(_not_started(work, error.errno))
        except EOFError:
            self._lose_keeper()
            self._finish(Outcome(work.id, "failed", "the job could not be started: its keeper has gone", later=True))
        except Exception as error:  # noqa: BLE001 (a worker's loop: a bug here must not stop every other job)
            why = f"the job could not be started: {type(error).__name__}"
            self._finish(Outcome(work.id, "failed", why, traceback.format_exc()[-2000:]))
        else:
            with self._lock:
                self._state.starting.discard(work.id)
                deadline = time.monotonic() + work.product.timeout + _SUPERVISOR_GRACE
                self._state.running[work.id] = _Running(work, deadline)

    def _has_room(self) -> bool:
        """Else each attempt would copy a whole series, to be ended at the first look."""
        space = self.files.space(self.scratch)
        return space.f_bavail * space.f_frsize >= self.limits.free

    def _end_cancelled(self) -> None:
        state = self._state
        with self._lock:
            wanted = [state.running[job] for job in state.cancelled if job in state.running]
            ended = [job for job in state.cancelled if job in self._done]
            state.cancelled.clear()
        for job in ended:
            with contextlib.suppress(OSError, KeyError):  # the caller may have just dropped it
                self.drop(job)
        for each in wanted:
            if not each.cancelled:
                each.cancelled = True
                self._end(each)

    def _end(self, running: _Running) -> None:
        """Have its supervisor end it; one that does not is ended itself, with all that it leaves."""
        if self._keeper is not None:
            with contextlib.suppress(EOFError):
                self._keeper.channel.send({"end": running.work.id, "sign": running.sign})
        running.sign = signal.SIGKILL
        running.deadline = time.monotonic() + _STOP_GRACE

    def _hear(self, keeper: _Keeper) -> None:
        try:
            said, _ = keeper.channel.receive()
        except EOFError:
            self._lose_keeper()
            return
        with self._lock:
            running = self._over(said["ended"])
        if running.cancelled:
            self._forget(running)
        elif "error" in said:
            self._finish(_not_started(running.work, said["error"]))
        else:
            self._finish(self._outcome(running.work, said["code"]))

    def _lose_keeper(self) -> None:
        """Somebody ended it: so every job of it is over."""
        self._close_keeper()
        end(started_in(self.scratch))
        with self._lock:
            lost = [self._over(job) for job in list(self._state.running)]
        for running in lost:
            if running.cancelled:
                self._forget(running)
            else:
                self._finish(self._outcome(running.work, -signal.SIGKILL))

    def _over(self, job: str) -> _Running:
        """It runs no more. One that was cancelled just now is nobody's: whoever cancelled it asks for no outcome."""
        running = self._state.running.pop(job)
        running.cancelled |= job in self._state.cancelled
        self._state.cancelled.discard(job)
        return running

    def _forget(self, running: _Running) -> None:
        """It was cancelled. Scratch that the disk does not let go now is in the way of its own next job alone, which
        removes it, or of nobody until the next start."""
        with contextlib.suppress(OSError):
            self._sweep(running.work.id)

    def _close_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def _outcome(self, work: Work, code: int) -> Outcome:
        found = outcome_in(self.scratch / work.id, work, self.files) if code == 0 else None
        if found is not None:
            return found
        how = name_of(-code) if code < 0 else f"exit code {code}"
        return Outcome(work.id, "failed", f"the process of the job was ended from outside ({how})", later=code < 0)

    def _finish(self, outcome: Outcome) -> None:
        super()._finish(outcome)
        with self._lock:
            self._state.starting.discard(outcome.id)


class _Keeper:
    """The process below which jobs run, and the channel to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sorter.engine.keeper", str(os.getpid())],
                cwd="/",
                env=environment(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def close(self) -> None:
        """It ends what runs below it."""
        self.channel.close()
        try:
            self._process.wait(_STOP_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _not_started(work: Work, error: int | None) -> Outcome:
    return Outcome(work.id, "failed", f"the job could not be started: {os.strerror(error or 0)}", later=True)
