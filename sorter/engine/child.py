"""The process of one job: a supervisor, and below it the worker that runs the maker.

`supervise` runs in a process of its own, in the job's own folder: forked by `sorter.engine.keeper`, or, elsewhere, as
`python -P -m sorter.engine.child` with the job as JSON on standard input. The supervisor runs no plugin code. It lives
until nothing of the job does: it adopts what the worker orphans, looks every second whether all of it is within its
limits, and ends it when the worker is done, when time is over, on SIGTERM, and when the process that started it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from sorter.durable import PART, Files
from sorter.engine.scratch import OUT, OUTCOME, TMP, clear, collect, excess
from sorter.engine.work import NO_ROOM, Limits
from sorter.processes import adopt_orphans, descendants, die_with, end_descendants, name_of, take_more_memory

WHY = 500  # characters of a sentence

_FIRST_LOOK = 0.25  # seconds after its begin that all of a job is looked at together
_LOOK_EVERY = 1.0  # seconds
_MODESTY = 20  # times what the last look at its files took, before the next one

_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Stopped(BaseException):
    """SIGTERM: the job is not wanted any more."""


@dataclass
class Log:
    """The first and the last part of what is written to it."""

    limit: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    dropped: int = 0
    added: int = 0

    def add(self, data: bytes) -> None:
        self.added += len(data)
        room = self.limit // 2 - len(self.head)
        self.head += data[:room] if room > 0 else b""
        self.tail += data[room:] if room > 0 else data
        too_long = len(self.tail) - self.limit // 2
        if too_long > 0:
            del self.tail[:too_long]
            self.dropped += too_long

    def text(self) -> str:
        cut = f"\n… {self.dropped} bytes left out …\n".encode() if self.dropped else b""
        return showable(bytes(self.head + cut + self.tail).decode(errors="replace"))


@dataclass
class Watch:
    """Looks now and then at all of a job together: what no limit of a single process holds."""

    limits: Limits
    memory: int  # bytes
    log: int | None = None  # a file to keep the log in while the job runs, for those who cannot see it otherwise
    _files_next: float = 0.0
    _next: float = field(default_factory=lambda: time.monotonic() + _FIRST_LOOK)
    _said: int = 0

    def rest(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._next - time.monotonic())

    def look(self, log: Log) -> dict[str, Any] | None:
        """What there is too much of, if it is time to look."""
        if time.monotonic() < self._next:
            return None
        if self.log is not None and log.added != self._said:
            self._tell(self.log, log.text().encode())
            self._said = log.added
        said = self._processes()
        begun = time.monotonic()
        if said is None and begun >= self._files_next:
            said = self._files()
            self._files_next = time.monotonic() + _MODESTY * (time.monotonic() - begun)
        self._next = time.monotonic() + _LOOK_EVERY
        return said

    def _tell(self, file: int, text: bytes) -> None:
        """In place, for the job could put anything, a pipe too, where another file is to take its name. Whoever reads
        it meanwhile may see a part of it."""
        with contextlib.suppress(OSError):  # a disk that is full ends no job for this
            Files().truncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            Files().write_all(file, text)
            Files().fsync(file)  # it stays open, and until then a share may show it to nobody else

    def _processes(self) -> dict[str, Any] | None:
        below = descendants(os.getpid())
        if len(below) > self.limits.processes:
            return _failed(f"more than {self.limits.processes} processes")
        if take_more_memory(below, self.memory):
            return _failed(f"more than {self.memory >> 20} MiB of memory")
        return None

    def _files(self) -> dict[str, Any] | None:
        said = excess((OUT, TMP), self.limits, Files())
        if said:
            return _failed(said)
        if self.limits.free:
            space = Files().space(".")
            if space.f_bavail * space.f_frsize < self.limits.free:
                return _failed(NO_ROOM, later=True)
        return None


def showable(text: str) -> str:
    """Without the characters that a terminal would act on."""
    return _UNSHOWABLE.sub("?", text.replace("\r\n", "\n").replace("\r", "\n"))


def main() -> int:
    return supervise(json.load(sys.stdin))


def supervise(description: dict[str, Any]) -> int:
    """Make what `description` says, and write down how it went. `parent` in it is who started this process."""
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})  # until there is something to end
    signal.signal(signal.SIGTERM, _stop)
    if not die_with(description["parent"], signal.SIGTERM):
        return 1
    adopt_orphans()
    try:
        _leave(_make(description))
    except _Stopped:
        return 1
    finally:
        end_descendants()
    return 0


def _leave(outcome: dict[str, Any]) -> None:
    """Write it down. The job, of which nothing runs any more, may have put something where it is to stand."""
    files = Files()
    files.chmod(".", 0o700)
    for name in (OUTCOME, f"{OUTCOME}{PART}"):
        clear(Path(name), files)
    files.write_file(OUTCOME, json.dumps(outcome).encode(), durable=False)


def _stop(_sign: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _make(description: dict[str, Any]) -> dict[str, Any]:
    """Run the worker to its end, end what it left, and say how it went."""
    limits = Limits(**description["limits"])
    log = Log(limits.log)
    log_in, log_out = os.pipe()
    result_in, result_out = os.pipe()
    supervisor, shown = os.getpid(), _shown(description.get("log"))
    worker = os.fork()  # one thread only, so a fork is safe
    if worker == 0:
        os.close(log_in)
        os.close(result_in)
        if shown is not None:
            os.close(shown)
        _work({**description, "supervisor": supervisor}, log_out, result_out)
    os.close(log_out)
    os.close(result_out)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    watch = Watch(limits, description["memory"] << 20, shown)
    ended = _wait(worker, log_in, log, description["timeout"], watch)
    end_descendants()
    _drain(log_in, log)
    result = _result(result_in, ended, description)
    if result["state"] == "made":
        made, said = collect(limits, Files())
        if not made and not said:
            said = 'it made no file; a maker answers "nothing" when there is nothing to make'
        result = {"state": "failed", "why": said} if said else {"state": "made", "files": made}
    return {**result, "why": showable(result.get("why", ""))[:WHY], "log": log.text()}


def _shown(log: str | None) -> int | None:
    return None if log is None else Files().open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)


def _work(description: dict[str, Any], log: int, result: int) -> NoReturn:
    """The forked worker; never returns."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        from sorter.engine import worker

        worker.run(description, log, result)
        code = 0
    finally:
        os._exit(code)  # whatever the maker left behind: no handler, no thread, no finaliser runs on


def _wait(worker: int, log_in: int, log: Log, timeout: float, watch: Watch) -> int | dict[str, Any]:
    """The worker's wait status, or why it is to be ended: time is over, or it took too much."""
    deadline = time.monotonic() + timeout
    ended = os.pidfd_open(worker)
    poll = select.poll()
    poll.register(log_in, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return _failed(f"it took longer than {timeout} s and was ended")
        too_much = watch.look(log)
        if too_much is not None:
            return too_much
        for fd, _ in poll.poll(min(left, watch.rest()) * 1000):
            if fd == ended:
                return os.waitpid(worker, 0)[1]
            data = os.read(log_in, 1 << 16)
            log.add(data)
            if not data:
                poll.unregister(log_in)


def _drain(fd: int, log: Log) -> None:
    """What is still in the pipe; nobody writes to it any more."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 1 << 16):
            log.add(data)


def _result(fd: int, status: int | dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    product = description["job"]["product"]
    if isinstance(status, dict):
        return {**status, "why": f"making {product} was ended: {status['why']}"}
    if os.WIFSIGNALED(status):
        sign = os.WTERMSIG(status)
        spent = f"more than {description['timeout']} s of each processor"
        return _failed(f"making {product} was ended: {spent if sign == signal.SIGXCPU else name_of(sign)}")
    os.set_blocking(fd, False)
    try:
        said = json.loads(os.read(fd, 1 << 16))
        state, why = str(said["state"]), str(said["why"])
    except (OSError, ValueError, TypeError, KeyError):
        return _failed(f"making {product} ended early with exit code {os.WEXITSTATUS(status)}")
    if state in ("made", "nothing"):
        return {"state": state, "why": why}
    return _failed(why)


def _failed(why: str, *, later: bool = False) -> dict[str, Any]:
    return {"state": "failed", "why": why, "later": later}


if __name__ == "__main__":
    sys.exit(main())
