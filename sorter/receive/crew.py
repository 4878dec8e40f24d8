"""Threads that serve one association after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from sorter.protocol.wire import Basin

Job = TypeVar("Job")

KEPT = 16
"""Threads that wait for a job, at the most: beyond that, those that are done end."""


class Crew(Generic[Job]):
    """Does jobs, each in a thread of its own that lends it a basin. `work` must not raise.

    A thread that is done waits for the next job: to start one costs the thread that listens more than a scanner's
    whole association, if there is one for each image.
    """

    def __init__(self, work: Callable[[Job, Basin], None]) -> None:
        self._work = work
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.idle = 0  # threads that wait, less the jobs that wait for them
        self._over = False

    def begin(self, job: Job) -> None:
        """Have it done, from now on. RuntimeError where the system gives no more threads."""
        with self._lock:
            found = self.idle > 0
            self.idle -= found
        if found:
            self._jobs.put(job)
        else:
            threading.Thread(target=self._serve, args=(job,), name="association", daemon=True).start()

    def end(self) -> None:
        """No job will come any more: threads end as soon as they are done."""
        with self._lock:
            self._over = True
            for _ in range(self.idle):
                self._jobs.put(None)
            self.idle = 0

    def _serve(self, job: Job | None) -> None:
        """A thread's whole life."""
        basin = Basin()
        try:
            while job is not None:
                self._work(job, basin)
                with self._lock:
                    if self._over or self.idle >= KEPT:
                        return
                    self.idle += 1
                job = self._jobs.get()
        finally:
            basin.drop_pipe()
