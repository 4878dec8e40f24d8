"""A tree of `[[watch]]`, seen from the sorting process, which never touches it: a worker process looks, and copies.

A share that hangs holds up its worker alone; that is said, and waited out. A worker that dies is started again: the
files that it had offered are offered anew, and one that was taken already changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sorter.spool import Spool
from sorter.watch.incoming import POLL
from sorter.watch.state import Look, Ready

SILENT = 60.0
"""Seconds without a sign of life after which a share is said to hang."""

SHORTEST_LIFE = 10.0
"""Seconds; a worker that ends sooner is started again only after a pause that grows."""

LONGEST_PAUSE = 60.0
_BEGINS = "begins"  # what Lookout itself puts before all that a new worker tells
_LONGEST_LINE = 64 << 20  # bytes: no worker has as much to tell at once
_END_WITHIN = 1.0  # seconds until a worker that hangs is left to the kernel, which ends it when the share answers


@dataclass(frozen=True, slots=True)
class Watched:
    """What the configuration says of a tree."""

    folder: Path
    stays: bool = True  # take = "copy"
    polling: bool = False
    apart: tuple[Path, ...] = ()  # folders that it must not lead into: what lies there was taken already


class Lookout:
    """Follows a tree like `Incoming`, at one remove. `wake` is called from another thread when something was told."""

    def __init__(self, watched: Watched, spool: Spool, wake: Callable[[], None]) -> None:
        self.watched, self.folder = watched, watched.folder
        self._spool, self._wake = spool, wake
        self._told: deque[dict[str, Any]] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._heard = self._again_at = 0.0
        self._pause = 0.0
        self._unsent = bytearray()
        self._copies: set[Path] = set()  # that it told of, and nobody answered for
        self._problems: list[str] = []
        self._strange: dict[str, None] = {}  # paths of what the worker told to be left where it is
        self._ended = self._why = ""  # what became of the last worker; what was wrong with it
        self._reader: threading.Thread | None = None

    # --- as Incoming --------------------------------------------------------------------------------------------

    def look(self, now: float) -> Look:
        """What the worker has told since the last look. Never blocks."""
        dead = self._process is not None and self._process.poll() is not None
        if dead and self._reader is not None:
            self._reader.join()  # it has read all that the dead one said
        look = self._hear(now)
        try:
            self._look_after(time.monotonic())
        except OSError as error:  # no more processes or descriptors; what was heard is told once
            self._ended = f"{self.folder}: the process that follows it cannot be started now: {error.strerror}"
        self._flush()
        return look

    def _hear(self, now: float) -> Look:
        ready: list[Ready] = []
        whole: list[str] = []
        strange: list[tuple[str, str]] = []
        empty: list[str] = []
        while self._told:
            message = self._told.popleft()
            ready += [self._ready(each) for each in message.get("ready", ())]
            whole += [self._called(drop) for drop in message.get("whole", ())]
            strange += self._left_where_it_is(message)
            empty += [self._called(drop) for drop in message.get("empty", ())]
            self._problems = message.get("problems", self._problems)
        return Look(tuple(ready), tuple(whole), tuple(strange), tuple(empty), next=now + POLL)

    def _left_where_it_is(self, message: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if _BEGINS in message:  # this worker tells everything anew
            yield from ((path, "") for path in self._strange)
            self._strange = {}
        for path, why in message.get("strange", ()):
            self._strange.pop(path, None)
            if why:
                self._strange[path] = None
            yield path, why

    def not_yet(self, ready: Ready) -> None:
        self._answer("not_yet", ready)

    def again(self, ready: Ready) -> None:
        self._answer("again", ready)

    def unreadable(self, ready: Ready, why: str) -> None:  # noqa: ARG002
        """The copy in the spool: another is to be made. What the file itself says to its reader the worker hears."""
        self._answer("again", ready)

    def gone(self, ready: Ready) -> None:
        """It is safe: the worker removes it from its place, or remembers it there."""
        self._answer("gone", ready)

    def open(self, ready: Ready) -> int:
        """A descriptor of the copy in the spool."""
        assert ready.copy is not None
        return self._spool.files.open(ready.copy)

    def remove(self, ready: Ready) -> bool:  # noqa: ARG002
        """The worker does, when it is told that the file is `gone`."""
        return True

    def tidy(self, drop: str) -> bool:
        self._send({"do": "tidy", "drop": drop.removeprefix(f"{self.folder}/")})
        return False

    # --- besides ------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Sentences on what keeps this tree from being followed; [] while it is."""
        if self._ended:
            return [self._ended]
        silent = time.monotonic() - self._heard
        if self._process is not None and silent > SILENT:
            return [f"{self.folder} does not answer: the share that it lies on hangs. Everything else goes on"]
        return self._problems

    def stop(self) -> None:
        """End the worker; one that hangs in the kernel is left to it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        self._flush_to(process)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_WITHIN)
        with contextlib.suppress(OSError):
            process.stdin.close()

    # --- the worker ---------------------------------------------------------------------------------------------

    def _look_after(self, now: float) -> None:
        if self._process is not None and self._process.poll() is not None:
            why = self._why or f"ended with {self._process.returncode}"
            self._ended = f"{self.folder}: the process that follows it {why}"
            early = now - self._started < SHORTEST_LIFE
            self._pause = min(max(1.0, 2 * self._pause), LONGEST_PAUSE) if early else 0.0
            self._again_at = now + self._pause
            self._clear_after(self._process.pid)
            self.stop()
        if self._process is None and now >= self._again_at:
            self._start(now)

    def _clear_after(self, dead: int) -> None:
        """Copies that a dead worker had no time to tell of."""
        for name in self._spool.files.names(self._spool.taking):
            copy = self._spool.taking / name
            if name.startswith(f"{dead}-") and copy not in self._copies:
                self._drop(copy)

    def _start(self, now: float) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sorter.watch.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", bufsize=0,
        )  # fmt: skip
        self._process, self._started, self._heard, self._problems = process, now, now, []
        self._ended = self._why = ""
        self._told.append({_BEGINS: True})
        assert process.stdin is not None
        self._spool.files.set_blocking(process.stdin.fileno(), blocking=False)
        name = hashlib.sha256(str(self.folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        first = {
            "folder": str(self.folder),
            "stays": self.watched.stays,
            "polling": self.watched.polling,
            "taking": str(self._spool.taking),
            "left": str(self._spool.left / name),
            "apart": [os.path.realpath(self._spool.root), *map(str, self.watched.apart)],
        }
        self._unsent = bytearray(json.dumps(first).encode() + b"\n")
        self._reader = threading.Thread(target=self._listen, args=(process,), name="lookout", daemon=True)
        self._reader.start()
        self._flush()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stdout:
            rest = b""
            while data := self._spool.files.read(stdout.fileno(), 1 << 20):
                *lines, rest = (rest + data).split(b"\n")
                self._heard = time.monotonic()
                if len(rest) > _LONGEST_LINE or not all(map(self._take_note, lines)):
                    self._why = "spoke nonsense and was ended; another one follows it"
                    process.kill()
                    break
        self._wake()

    def _take_note(self, line: bytes) -> bool:
        """Keep what the worker told in a line; False where it is nothing that a worker says."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(message, dict):
            return False
        if message:
            self._told.append(message)
            if any(message.get(each) for each in ("ready", "whole", "strange", "empty")):
                self._wake()
        return True

    def _ready(self, told: dict[str, Any]) -> Ready:
        told["drop"] = self._called(told["drop"])
        told["copy"] = self._spool.taking / told["copy"]
        self._copies.add(told["copy"])
        return Ready(**told)

    def _called(self, drop: str) -> str:
        """The name of one of its drops, unlike that of any other tree's."""
        return f"{self.folder}/{drop}"

    def _answer(self, what: str, ready: Ready) -> None:
        assert ready.copy is not None
        self._copies.discard(ready.copy)
        self._drop(ready.copy)
        self._send({"do": what, "copy": ready.copy.name})

    def _drop(self, copy: Path) -> None:
        with contextlib.suppress(OSError):  # what a bad disk keeps of it goes with the next start
            self._spool.files.unlink(copy)

    def _send(self, order: dict[str, str]) -> None:
        self._unsent += json.dumps(order).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        if self._process is not None:
            self._flush_to(self._process)

    def _flush_to(self, process: subprocess.Popen[bytes]) -> None:
        """As much as the pipe takes: a worker that hangs does not read."""
        assert process.stdin is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                del self._unsent[: self._spool.files.write(process.stdin.fileno(), self._unsent)]
