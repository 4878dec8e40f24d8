"""How fast an import goes: as fast as it may, and hardly at all while scanners send."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from sorter.durable import Files
from sorter.spool import Spool
from sorter.take.received import ARRIVALS

LATELY = 3.0
"""Seconds since a scanner's last image for which the import holds back."""

TRICKLE = 0.25
"""Seconds between two files meanwhile: enough to get on during a night of scanning, too little to be felt."""

_LOOK_EVERY = 0.1  # seconds


@dataclass(slots=True)
class Pace:
    """Waits before each file. `files` and `megabytes` are the most a second; None: as fast as it goes."""

    spool: Spool
    files: float | None = None
    megabytes: float | None = None
    held: float = 0.0  # seconds spent waiting for scanners
    _free_at: float = 0.0  # in monotonic seconds
    _looked: float = field(default=-1.0)
    _busy: bool = False

    def before(self, size: int) -> None:
        """Wait until a file of `size` bytes may be copied."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now)
        if self._free_at > now:
            time.sleep(self._free_at - now)
        self._free_at += self._cost(size)
        self._hold_back()

    def _cost(self, size: int) -> float:
        by_files = 1 / self.files if self.files else 0.0
        by_bytes = size / (self.megabytes * 1e6) if self.megabytes else 0.0
        return max(by_files, by_bytes)

    def _hold_back(self) -> None:
        until = time.monotonic() + TRICKLE
        while self.scanners_send() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)
            self.held += _LOOK_EVERY

    def scanners_send(self) -> bool:
        """Did the receiver write a line in the last seconds? Each image and each association has one."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY:
            self._looked, self._busy = now, time.time() - _newest(self.spool, self.spool.files) < LATELY
        return self._busy


def _newest(spool: Spool, files: Files) -> float:
    """When the receiver last wrote to one of its arrivals files, in seconds of the wall clock; 0.0 for never."""
    newest = 0.0
    with contextlib.suppress(OSError):
        for worker in files.names(spool.received):
            for segment in files.names(spool.received / worker):
                with contextlib.suppress(OSError):
                    newest = max(newest, files.stat(spool.received / worker / segment / ARRIVALS).st_mtime)
    return newest
