"""Who read what: spool/access/<month>.jsonl, which only sorter's account can read. Accounts and keys, no names."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence

from sorter.errors import SorterError
from sorter.spool import Spool
from sorter.spool.lines import line, now

MOST_A_DAY = 16 << 20
"""Bytes that one account may have written of it in a day: more than millions of images, less than a disk."""


class AccessLog:
    """Written to by several threads."""

    def __init__(self, spool: Spool, most: int = MOST_A_DAY) -> None:
        self._files, self._folder, self._most = spool.files, spool.access, most
        self._lock = threading.Lock()
        self._day = ""
        self._written: dict[int, int] = {}  # by account, today

    def write(self, uid: int, what: str, keys: Sequence[str] = (), **more: int) -> None:
        """One line, before the answer. SorterError: not another one of this account today."""
        text = line({"at": now(), "uid": uid, "ask": what, **({"keys": list(keys)} if keys else {}), **more})
        day = datetime.date.today().isoformat()
        with self._lock:
            if day != self._day:
                self._day, self._written = day, {}
            so_far = self._written.get(uid, 0) + len(text)
            if so_far > self._most:
                raise SorterError("you have asked so often today that it cannot be written down any more")
            self._written[uid] = so_far
        self._files.append(self._folder / f"{day[:7]}.jsonl", text, durable=False)
