"""What anybody outside can make the log say is said so many times a minute: a flood of it fills no disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

MOST = 30
"""Lines of one kind a minute, in each process."""

_MINUTE = 60.0


class Seldom(logging.Filter):
    """A kind is what the code says before names and numbers are put in, so there are few. What was left out is counted,
    and told with the next line of its kind."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}  # when its minute began, and the lines of it since

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg), self._clock()
        with self._lock:
            began, count = self._kinds.get(kind, (now, 0))
            over = now - began >= _MINUTE
            self._kinds[kind] = (now, 1) if over else (began, count + 1)
        if over and count > MOST and isinstance(record.args, tuple):
            record.msg, record.args = f"{kind} (%d more of these were not told)", (*record.args, count - MOST)
        return over or count < MOST
