"""Threads that serve one association after the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from sorter.protocol.wire import Basin
from sorter.receive.crew import KEPT, Crew
from sorter.testing.waiting import wait_until


class Work:
    """Jobs that say who does them and then wait until they may end."""

    def __init__(self) -> None:
        self.done: list[tuple[int, Basin]] = []
        self.go = threading.Semaphore(0)
        self.crew = Crew(self.do)

    def do(self, job: int, basin: Basin) -> None:
        self.go.acquire()
        self.done.append((job, basin))

    def threads(self) -> int:
        return sum(thread.name == "association" for thread in threading.enumerate())


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.crew.end()
    made.go.release(1000)
    wait_until(lambda: made.threads() == 0, what="threads to end")


def test_one_thread_and_its_basin_do_one_job_after_the_other(work: Work) -> None:
    for job in range(20):
        work.crew.begin(job)
        work.go.release()
        wait_until(lambda job=job: work.crew.idle == 1 and len(work.done) == job + 1)
    assert [job for job, _ in work.done] == list(range(20))
    assert len({id(basin) for _, basin in work.done}) == 1
    assert work.threads() == 1


def test_a_job_never_waits_for_another(work: Work) -> None:
    for job in range(50):
        work.crew.begin(job)
    assert work.threads() == 50
    work.go.release(50)
    wait_until(lambda: len(work.done) == 50)
    assert len({id(basin) for _, basin in work.done}) == 50


def test_only_so_many_threads_wait_for_more(work: Work) -> None:
    for job in range(KEPT + 10):
        work.crew.begin(job)
    work.go.release(KEPT + 10)
    wait_until(lambda: work.threads() == KEPT)
    assert work.crew.idle == KEPT


def test_at_the_end_nobody_waits_and_what_was_begun_is_finished(work: Work) -> None:
    work.crew.begin(1)
    work.go.release()
    wait_until(lambda: work.crew.idle == 1)
    for job in range(2, 5):
        work.crew.begin(job)
    work.crew.end()
    work.go.release(3)
    wait_until(lambda: work.threads() == 0)
    assert sorted(job for job, _ in work.done) == [1, 2, 3, 4]


def test_a_thread_that_ends_gives_its_pipe_back() -> None:
    ends = list[tuple[int, int]]()
    crew = Crew[int](lambda job, basin: ends.append(basin.pipe()))
    crew.begin(1)
    wait_until(lambda: crew.idle == 1)
    crew.end()
    wait_until(lambda: not any(os.path.exists(f"/proc/self/fd/{end}") for end in ends[0]))
