"""The process of one job: a supervisor, and below it the worker that runs the maker.

`python -P -m sorter.engine.child`, started in the job's own folder with the job as JSON on standard input. The
supervisor runs no plugin code. It lives until nothing of the job does: it adopts what the worker orphans, and ends it
all when the worker is done, when time is over, on SIGTERM, and when the process that started it dies.
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
from types import FrameType
from typing import Any, NoReturn

from sorter.durable import Files
from sorter.engine.scratch import OUTCOME, collect
from sorter.engine.work import Limits
from sorter.processes import adopt_orphans, die_with, end_descendants

WHY = 500  # characters of a sentence

LAZY = 15
"""How much nicer a job is than `sort` (nice(2)): what is computed may wait, a scanner and a delivery may not."""

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

    def add(self, data: bytes) -> None:
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


def showable(text: str) -> str:
    """Without the characters that a terminal would act on."""
    return _UNSHOWABLE.sub("?", text.replace("\r\n", "\n").replace("\r", "\n"))


def main() -> int:
    os.nice(LAZY)
    description = json.load(sys.stdin)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})  # until there is something to end
    signal.signal(signal.SIGTERM, _stop)
    if not die_with(description["parent"], signal.SIGTERM):
        return 1
    adopt_orphans()
    try:
        outcome = _supervise(description)
        Files().write_file(OUTCOME, json.dumps(outcome).encode(), durable=False)
    except _Stopped:
        end_descendants()
        return 1
    return 0


def _stop(_sign: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _supervise(description: dict[str, Any]) -> dict[str, Any]:
    """Run the worker to its end, end what it left, and say how it went."""
    limits = Limits(**description["limits"])
    log = Log(limits.log)
    log_in, log_out = os.pipe()
    result_in, result_out = os.pipe()
    supervisor = os.getpid()
    worker = os.fork()  # one thread only, so a fork is safe
    if worker == 0:
        os.close(log_in)
        os.close(result_in)
        _work({**description, "supervisor": supervisor}, log_out, result_out)
    os.close(log_out)
    os.close(result_out)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    status = _wait(worker, log_in, log, description["timeout"])
    end_descendants()
    _drain(log_in, log)
    result = _result(result_in, status, description)
    if result["state"] == "made":
        made, said = collect(limits, Files())
        if not made and not said:
            said = 'it made no file; a maker answers "nothing" when there is nothing to make'
        result = {"state": "failed", "why": said} if said else {"state": "made", "files": made}
    return {**result, "why": showable(result.get("why", ""))[:WHY], "log": log.text()}


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


def _wait(worker: int, log_in: int, log: Log, timeout: float) -> int | None:
    """The worker's wait status, or None when time was over."""
    deadline = time.monotonic() + timeout
    ended = os.pidfd_open(worker)
    poll = select.poll()
    poll.register(log_in, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        for fd, _ in poll.poll(left * 1000):
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


def _result(fd: int, status: int | None, description: dict[str, Any]) -> dict[str, Any]:
    product = description["job"]["product"]
    if status is None:
        return _failed(f"making {product} took longer than {description['timeout']} s and was ended")
    if os.WIFSIGNALED(status):
        sign = signal.Signals(os.WTERMSIG(status))
        why = {signal.SIGXCPU: f"more than {description['timeout']} s of each processor"}.get(sign, sign.name)
        return _failed(f"making {product} was ended: {why}")
    os.set_blocking(fd, False)
    try:
        said = json.loads(os.read(fd, 1 << 16))
        state, why = str(said["state"]), str(said["why"])
    except (OSError, ValueError, TypeError, KeyError):
        return _failed(f"making {product} ended early with exit code {os.WEXITSTATUS(status)}")
    if state in ("made", "nothing"):
        return {"state": state, "why": why}
    return _failed(why)


def _failed(why: str) -> dict[str, Any]:
    return {"state": "failed", "why": why}


if __name__ == "__main__":
    sys.exit(main())
