from __future__ import annotations

import threading

import pytest

from sorter.testing.waiting import wait_until


def test_returns_the_answer_of_the_condition_once_it_is_true() -> None:
    answers = iter(["", "", "here"])
    assert wait_until(lambda: next(answers)) == "here"


def test_sees_what_another_thread_does() -> None:
    seen: list[int] = []
    go = threading.Event()
    worker = threading.Thread(target=lambda: (go.wait(5), seen.append(1)))
    worker.start()
    go.set()
    assert wait_until(lambda: len(seen), what="the worker") == 1
    worker.join()


def test_says_what_was_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.02 s in vain for the moon; the last answer was 0"):
        wait_until(lambda: 0, timeout=0.02, what="the moon")
