"""Waiting for something to become true, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP = 0.01  # seconds between two looks


def wait_until(condition: Callable[[], T | None], timeout: float = 10.0, what: str = "") -> T:
    """Call `condition` until its answer is true, and return that answer.

    `timeout` is in seconds; when it is over AssertionError names `what` was waited for and the last answer. A folder
    that goes while the condition walks through it, as one in which something was being written, is looked at again.
    """
    deadline = time.monotonic() + timeout
    nobody_sets_it = threading.Event()
    while True:
        answer: T | FileNotFoundError | None
        try:
            answer = condition()
        except FileNotFoundError as error:
            answer = error
        if answer and not isinstance(answer, FileNotFoundError):
            return answer
        if time.monotonic() > deadline:
            name = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"waited {timeout:g} s in vain for {name}; the last answer was {answer!r}")
        nobody_sets_it.wait(STEP)
