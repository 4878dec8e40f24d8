from __future__ import annotations

import threading
from pathlib import Path

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


def test_what_goes_while_it_is_looked_at_is_looked_at_again(tmp_path: Path) -> None:
    looks = iter([tmp_path / "went", tmp_path])
    assert wait_until(lambda: next(looks).stat().st_mode)
    with pytest.raises(AssertionError, match=r"in vain for it; the last answer was FileNotFoundError"):
        wait_until(lambda: (tmp_path / "away").read_text(), timeout=0.02, what="it")
