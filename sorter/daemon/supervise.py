"""`serve`: a small supervisor of the two processes that do the work, each of which may crash or restart alone."""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sorter.durable import Files

log = logging.getLogger("sorter.serve")

STOP_WITHIN = 28.0
"""Seconds that the two have to finish what was acknowledged; systemd and people wait 30."""

YIELD = 5
"""How much nicer the receiver is than `sort` (nice(2)): where processors are short, senders are answered as fast as
their images are sorted and delivered, instead of faster and faster than anything leaves for its lab."""

SHORTEST_LIFE = 10.0
"""Seconds; a process that ends sooner is started again only after a pause that grows."""

LONGEST_PAUSE = 60.0


@dataclass(slots=True)
class _Child:
    """`receive` or `sort`, as a process of its own; it ends when the pipe to its parent does."""

    name: str
    arguments: Sequence[str]
    on_ready: Callable[[str], None]
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    pause: float = 0.0
    again_at: float = 0.0
    been_ready: bool = False  # in any of its lives

    def start(self) -> None:
        self.started = time.monotonic()
        handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited: a reload must not end it while it starts
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sorter", self.name, *self.arguments, "--supervised"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        signal.signal(signal.SIGHUP, handler)
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith("ready"):
                self.been_ready = True
                self.on_ready(text.strip())

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def plan_restart(self, now: float) -> None:
        """After a crash: at once the first time, then after 1, 2, 4 … 60 s while it keeps ending early."""
        early = now - self.started < SHORTEST_LIFE
        self.pause = min(max(1.0, self.pause * 2), LONGEST_PAUSE) if early else 0.0
        self.again_at = now + self.pause

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def wait(self, timeout: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, timeout))
        except subprocess.TimeoutExpired:
            log.error("%s did not end in time and is killed; nothing that was acknowledged is lost", self.name)
            self.process.kill()
            self.process.wait()


class Supervisor:
    """Runs both until SIGTERM or SIGINT. A configuration that cannot be used (exit code 2) ends it all at the start.

    Once both have been ready, nothing that ends one of them ends the other: the port stays open while `sort` is mended.
    """

    def __init__(self, receive: Sequence[str], sort: Sequence[str], ready: Callable[[str], None]) -> None:
        self._stop = threading.Event()
        sorting = threading.Event()

        def receiving(line: str) -> None:
            sorting.wait(STOP_WITHIN)  # the first line waits for both; a restart of one alone waits for nothing
            ready(line)

        self._children = [_Child("sort", sort, lambda _: sorting.set()), _Child("receive", receive, receiving)]

    def run(self) -> int:
        """The exit code: 0 when it was told to stop, that of a child which could not start otherwise."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self._reload())
        for child in self._children:
            child.start()
        code = 0
        while not self._stop.wait(0.2):
            code = self._look_after(time.monotonic())
            if code:
                break
        deadline = time.monotonic() + STOP_WITHIN
        for child in self._children:
            child.signal(signal.SIGTERM)
        for child in self._children:
            child.wait(deadline - time.monotonic())
        return code

    def _reload(self) -> None:
        for child in self._children:
            child.signal(signal.SIGHUP)

    def _look_after(self, now: float) -> int:
        for child in self._children:
            if not child.ended():
                continue
            assert child.process is not None
            if child.again_at == 0.0:
                code = child.process.returncode
                if code in (1, 2) and not child.been_ready:
                    return code  # it said why: a port in use, a spool in use, a configuration that cannot be used
                child.plan_restart(now)
                log.error("%s ended with %s; started again in %.0f s", child.name, code, child.pause)
            elif now >= child.again_at:
                child.again_at = 0.0
                child.start()
        return 0


def end_with_parent(stop: Callable[[], None]) -> None:
    """In a supervised process: call `stop` when the supervisor is gone; no orphan keeps the port or the lock."""

    files = Files()

    def watch() -> None:
        while files.read(0, 1):  # not sys.stdin, whose lock a daemon thread would hold while the process ends
            pass
        stop()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def supervisor_is_gone() -> bool:
    """In a supervised process that may have no threads: whether its standard input, a pipe, has ended."""
    readable, _, _ = select.select([0], [], [], 0)
    return bool(readable)
