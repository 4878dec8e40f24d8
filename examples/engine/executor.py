"""Another engine in a page: jobs run wherever a `concurrent.futures.Executor` runs them, as Dask's or a cluster's do.

The executor's processes need sorter and the same plugins installed, and have to see `scratch` under the same path.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from sorter.durable import Files
from sorter.engine import remote
from sorter.engine.engine import Engine, outcome_in
from sorter.engine.work import Limits, Outcome, Work


class ExecutorEngine(Engine):
    """Hands each job to the executor as a call of `sorter.engine.remote.run` with the job's folder."""

    def __init__(self, executor: Executor, scratch: Path, files: Files, wake: Callable[[], None] | None = None) -> None:
        super().__init__(scratch, files, Limits(), wake)
        files.make_folders(self.scratch)
        self.executor = executor
        self.here = ThreadPoolExecutor(1)  # copies, so that whoever submits does not wait
        self.wanted: set[str] = set()

    def _begin(self, work: Work) -> None:
        if work.id in self.wanted:
            raise ValueError(f"there is a job {work.id} already")
        self.wanted.add(work.id)
        self.here.submit(self._start, work)

    def _start(self, work: Work) -> None:
        folder = self.scratch / work.id
        try:
            remote.stage(work, folder, self.limits, work.product.timeout, self.files)
        except OSError as error:
            self._end(Outcome(work.id, "failed", f"it could not be staged: {error.strerror}", later=True))
            return
        future = self.executor.submit(remote.run, str(folder))
        future.add_done_callback(lambda done: self._ended(work, done))

    def _ended(self, work: Work, future: Future[int]) -> None:
        found = None if future.cancelled() else outcome_in(self.scratch / work.id, work, self.files)
        self._end(found or Outcome(work.id, "failed", "the job ended without a result", later=True))

    def _end(self, outcome: Outcome) -> None:
        if outcome.id in self.wanted:
            self.wanted.discard(outcome.id)
            self._finish(outcome)

    def cancel(self, job: str) -> None:
        """One that is running runs on in a folder that is gone, and nobody hears of it."""
        if job in self.wanted:
            self.wanted.discard(job)
            self._sweep(job)
        elif job in self._done:
            self.drop(job)

    def stop(self) -> None:
        self.here.shutdown(cancel_futures=True)
        self.executor.shutdown(cancel_futures=True)
