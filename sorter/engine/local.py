"""The engine of this machine: `jobs` processes at a time, each job in a fresh one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.engine import scratch
from sorter.engine.work import Limits, Made, Outcome, Work, check_relative
from sorter.model import Job, plain
from sorter.naming import safe_component
from sorter.processes import descendants, end, kill, started_in

KEPT = ("PATH", "LD_LIBRARY_PATH", "TZ")
"""What a job sees of our environment; besides, all that Python itself needs to find the same packages."""

_SUPERVISOR_GRACE = 300  # seconds beyond a job's own time, for ending it and for the digests of what it made
_STOP_GRACE = 10  # seconds between asking a supervisor to end its job and ending it ourselves


@dataclass
class _Running:
    work: Work
    process: subprocess.Popen[bytes]
    ended: int  # pidfd
    deadline: float  # monotonic
    cancelled: bool = False


@dataclass
class _State:
    """Shared between the caller's threads and the engine's own, under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    queue: deque[Work] = field(default_factory=deque)
    starting: set[str] = field(default_factory=set)
    running: dict[str, _Running] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    done: dict[str, Outcome] = field(default_factory=dict)
    news: list[Outcome] = field(default_factory=list)
    stopping: bool = False


class LocalEngine:
    """Makes products in child processes. One thread of its own copies, starts and reaps; the callers never wait for it.

    `scratch` must lie on the file system that products are adopted into. What a dead process left there is removed.
    `wake` is called from the engine's thread whenever `finished` has something new.
    """

    def __init__(
        self,
        jobs: int,
        scratch: Path,
        files: Files,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        wake: Callable[[], None] | None = None,
    ) -> None:
        self.jobs, self.scratch, self.files, self.limits, self.wake = jobs, scratch.absolute(), files, limits, wake
        self._state = _State()
        self._clear_leftovers()
        self._poke = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    def _clear_leftovers(self) -> None:
        self.files.make_folders(self.scratch)
        end(started_in(self.scratch))
        for name, _ in self.files.scan(self.scratch):
            scratch.clear(self.scratch / name, self.files)

    # --- for the caller -----------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Queue a job. ValueError where its names are not plain, or its id is in use.

        A finished job of the same id that was not adopted, perhaps because that failed, is dropped for the new one.
        """
        work.check()
        state = self._state
        with state.lock:
            finished = work.id in state.done
        if finished:
            self.drop(work.id)
        with state.lock:
            if self._known(work.id):
                raise ValueError(f"there is a job {work.id} already")
            state.queue.append(work)
        self._nudge()

    def _known(self, job: str) -> bool:
        state = self._state
        waiting = any(work.id == job for work in state.queue)
        return waiting or job in state.starting or job in state.running or job in state.done

    def finished(self) -> list[Outcome]:
        """Jobs that ended since the last call; never waits. Each is then to be adopted or dropped."""
        with self._state.lock:
            news, self._state.news = self._state.news, []
        return news

    def busy(self) -> tuple[int, int]:
        """(running, waiting) jobs."""
        with self._state.lock:
            return len(self._state.running), len(self._state.queue)

    def adopt(self, job: str, into: Path) -> tuple[Made, ...]:
        """Move what a job made to the folder `into`, durably, and remove its scratch.

        What stood at `into` before is replaced. KeyError where there is no such finished job, ValueError where it
        made nothing, OSError where a file is not what it was when the job ended.
        """
        with self._state.lock:
            outcome = self._state.done[job]
        if outcome.state != "made":
            raise ValueError(f"job {job} made nothing: {outcome.why}")
        files, out = self.files, self.scratch / job / scratch.OUT
        folders = {out}
        for made in outcome.files:
            path = out / made.name
            folders.update(parent for parent in path.parents if parent.is_relative_to(out))
            with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                if files.stat(fd).st_size != made.size:
                    raise OSError(f"{made.name} of job {job} has changed since the job ended")
                files.fsync(fd)
        files.fsync_folders(folders)
        files.make_folders(into.parent)
        scratch.clear(into, files)
        files.rename(out, into)
        files.fsync_folder(into.parent)
        self.drop(job)
        return outcome.files

    def drop(self, job: str) -> None:
        """Forget a finished job and remove its scratch. KeyError where there is none."""
        with self._state.lock:
            del self._state.done[job]
            self._state.news = [outcome for outcome in self._state.news if outcome.id != job]
        scratch.clear(self.scratch / job, self.files)

    def cancel(self, job: str) -> None:
        """End a job wherever it is; it has no outcome. Nothing happens where there is no such job."""
        state = self._state
        with state.lock:
            state.queue = deque(work for work in state.queue if work.id != job)
            if job in state.running or job in state.starting:
                state.cancelled.add(job)
            finished = job in state.done
        if finished:
            self.drop(job)
        self._nudge()

    def stop(self) -> None:
        """End every job and the engine's thread; what was not adopted is lost."""
        if not self._thread.is_alive():
            return
        with self._state.lock:
            self._state.stopping = True
            self._state.queue.clear()
            self._state.cancelled.update(self._state.running, self._state.starting)
        self._nudge()
        self._thread.join()
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
            with self._state.lock:
                running = list(self._state.running.values())
                if self._state.stopping and not running:
                    return
            self._wait(running)

    def _next(self) -> Work | None:
        state = self._state
        with state.lock:
            if state.stopping or not state.queue or len(state.running) >= self.jobs:
                return None
            work = state.queue.popleft()
            state.starting.add(work.id)
            return work

    def _wait(self, running: list[_Running]) -> None:
        poll = select.poll()
        poll.register(self._poke, select.POLLIN)
        for each in running:
            poll.register(each.ended, select.POLLIN)
        nearest = min((each.deadline for each in running), default=None)
        patience = None if nearest is None else max(0.0, nearest - time.monotonic()) * 1000 + 1
        ended = {fd for fd, _ in poll.poll(patience)}
        if self._poke in ended:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._poke)
        for each in running:
            if each.ended in ended:
                self._reap(each)
            elif time.monotonic() > each.deadline:
                self._end(each)

    def _start(self, work: Work) -> None:
        folder = self.scratch / work.id
        try:
            scratch.lay_out(work, folder, self.files)
            running = self._spawn(work, folder)
        except FileNotFoundError:
            self._finish(Outcome(work.id, "failed", "an input is gone", later=True))
        except OSError as error:
            why = f"the job could not be started: {os.strerror(error.errno or 0)}"
            self._finish(Outcome(work.id, "failed", why, later=True))
        except Exception as error:  # noqa: BLE001 (a worker's loop: a bug here must not stop every other job)
            why = f"the job could not be started: {type(error).__name__}"
            self._finish(Outcome(work.id, "failed", why, traceback.format_exc()[-2000:]))
        else:
            with self._state.lock:
                self._state.starting.discard(work.id)
                self._state.running[work.id] = running

    def _spawn(self, work: Work, folder: Path) -> _Running:
        description = os.memfd_create("job", os.MFD_CLOEXEC)  # never in arguments, environment or a file
        try:
            self.files.write_all(description, json.dumps(self._description(work)).encode())
            os.lseek(description, 0, os.SEEK_SET)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sorter.engine.child"],
                cwd=folder,
                env=_environment(folder, work.product.cpus),
                stdin=description,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            self.files.close(description)
        deadline = time.monotonic() + work.product.timeout + _SUPERVISOR_GRACE
        return _Running(work, process, os.pidfd_open(process.pid), deadline)

    def _description(self, work: Work) -> dict[str, Any]:
        product = work.product
        inputs = {name: f"{scratch.IN}/{name}" for name in work.inputs}
        job = Job(product.name, inputs, scratch.OUT, work.settings, work.header, product.cpus)
        return {
            "job": plain(job),
            "make": product.make,
            "timeout": product.timeout,
            "memory": product.memory,
            "limits": dataclasses.asdict(self.limits),
            "parent": os.getpid(),
        }

    def _end_cancelled(self) -> None:
        state = self._state
        with state.lock:
            wanted = [state.running[job] for job in state.cancelled if job in state.running]
            ended = [job for job in state.cancelled if job in state.done]
            state.cancelled.clear()
        for job in ended:
            self.drop(job)
        for each in wanted:
            if not each.cancelled:
                each.cancelled = True
                each.deadline = time.monotonic() + _STOP_GRACE
                kill(each.process.pid, signal.SIGTERM)

    def _end(self, running: _Running) -> None:
        """The supervisor does not end its job: end both. Its pidfd tells when it is gone."""
        pid = running.process.pid
        for below in (*descendants(pid), pid):
            kill(below)
        running.deadline = time.monotonic() + _STOP_GRACE

    def _reap(self, running: _Running) -> None:
        code = running.process.wait()
        os.close(running.ended)
        folder = self.scratch / running.work.id
        if code != 0:
            end(started_in(folder))
        with self._state.lock:
            del self._state.running[running.work.id]
        if running.cancelled:
            scratch.clear(folder, self.files)
            return
        self._finish(self._outcome(running.work, code))

    def _outcome(self, work: Work, code: int) -> Outcome:
        """What the supervisor wrote; checked, because the job could have reached its folder."""
        try:
            said = json.loads(self.files.read_file(self.scratch / work.id / scratch.OUTCOME, limit=16 << 20))
            files = tuple(Made(str(name), str(sha256), int(size)) for name, sha256, size in said.get("files", ()))
            outcome = Outcome(work.id, said["state"], said["why"], said["log"], files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Outcome(work.id, "failed", f"the process of the job was ended from outside ({how})", later=code < 0)
        if outcome.state not in ("made", "nothing", "failed"):
            return Outcome(work.id, "failed", "the job's outcome is none that there is")
        unsafe = next((made.name for made in files if not _is_safe(made.name)), None)
        if unsafe is not None:
            why = f"it made a file with a name that is not safe: {unsafe[:80]!a}"
            return Outcome(work.id, "failed", why, outcome.log)
        return outcome

    def _finish(self, outcome: Outcome) -> None:
        with self._state.lock:
            self._state.starting.discard(outcome.id)
            self._state.done[outcome.id] = outcome
            self._state.news.append(outcome)
        if self.wake is not None:
            self.wake()


def _is_safe(name: str) -> bool:
    """A relative name whose every step could be the name of a file at any target."""
    try:
        check_relative(name)
    except ValueError:
        return False
    return all(safe_component(step) == step for step in name.split("/"))


def _environment(folder: Path, cpus: int) -> dict[str, str]:
    """No secret of ours, and every temporary file inside the job's own folder."""
    found = {name: os.environ[name] for name in KEPT if name in os.environ}
    if "PYTHONPATH" in os.environ:
        paths = os.environ["PYTHONPATH"].split(os.pathsep)
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths)
    inside = str(folder / scratch.TMP)
    threads = {name: str(cpus) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**found, **threads, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "HOME": inside, "TMPDIR": inside}
