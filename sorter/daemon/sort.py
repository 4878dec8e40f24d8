"""The sorting process: one loop around the pipeline, woken by hints, signals and the answers of its helpers."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from sorter.builtin.path_target import mark
from sorter.config import Config
from sorter.daemon.assembly import assemble
from sorter.daemon.doorkeeper import Doorkeeper
from sorter.daemon.requests import answer_requests
from sorter.durable import Files
from sorter.errors import ConfigError, SorterError
from sorter.spool import Spool
from sorter.watch import Hints, Written

log = logging.getLogger("sorter.sort")

LONGEST_NAP = 1.0
"""Seconds: hints can be lost, requests come without one, and a look that finds nothing is cheap."""

TABLES_EVERY = 5.0
"""Seconds between looks at plugins' tables."""

BREATH = 0.05
"""Seconds between two turns when the first did all there was: what comes meanwhile is filed with one sync together."""

LONGEST_GAP = 5.0
"""Seconds that count, of any time in which nothing was looked at."""


class Awake:
    """The monotonic seconds that all waits are measured in: those in which sorter was there to see something come.

    A machine that was suspended, a process that was stopped, a disk that did not answer: whatever came meanwhile is not
    seen yet, and no sender may have had the time to send. So of any gap between two readings only `LONGEST_GAP` counts.
    """

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._last = self._now = read()

    def __call__(self) -> float:
        at = self._read()
        self._now += min(at - self._last, LONGEST_GAP)
        self._last = at
        return self._now


class Sort:
    """Runs a pipeline until it is told to stop. The spool's lock is held as long."""

    def __init__(self, config: Config, reload: Callable[[], Config]) -> None:
        self._files = Files()
        self._reload_config = reload
        self._wake, self._stop, self._reload = threading.Event(), threading.Event(), threading.Event()
        self._spool = Spool(config.spool, self._files)
        self._spool.create()
        self._lock = self._spool.lock()
        self._spool.clear_temporary()
        self._arrivals = Written(self._wake.set)
        self._parts = assemble(config, self._spool, self._wake.set, self._arrivals.add)
        self._parts.reread = self._take_up_configuration
        mark_defaults(config, self._files)
        self._door: Doorkeeper | None = None
        self._socket = config.socket
        self._open_door(config)

    def on_signals(self) -> None:
        """SIGTERM and SIGINT end the loop, SIGHUP reloads; call from the main thread."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGINT, lambda *_: self.stop())
        signal.signal(signal.SIGHUP, lambda *_: self.reload())

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def reload(self) -> None:
        self._reload.set()
        self._wake.set()

    def run(self) -> None:
        """Turn after turn. A full disk or an error of the spool's disk is waited out, and said once."""
        hints = Hints([self._spool.incoming], self._wake.set)
        said: tuple[str, ...] | None = None
        clock = Awake()
        tables = clock()
        try:
            while not self._stop.is_set():
                self._wake.clear()
                if self._reload.is_set():
                    self._take_up_configuration()
                now = clock()
                if now - tables >= TABLES_EVERY:
                    tables = now
                    self._look_at_tables()
                until = self._turn(now)
                intake = self._parts.pipeline.intake
                hints.compare(intake.fresh)
                self._say_left_alone(intake.strange)
                said = self._say_new([*hints.problems(), *self._parts.pipeline.problems()], said)
                rest = min(until - clock(), LONGEST_NAP)
                if rest > 0:
                    self._stop.wait(min(rest, BREATH))
                    self._wake.wait(max(0.0, rest - BREATH))
        finally:
            self._close_door()
            hints.stop()
            self._arrivals.stop()
            self._parts.pipeline.stop(10.0)
            self._files.close(self._lock)

    def _say_left_alone(self, strange: deque[tuple[Path, str, str]]) -> None:
        """A line for each reason, without a name; the names are for `status`."""
        said = Counter[tuple[Path, str]]()
        while strange:
            folder, path, why = strange.popleft()
            self._spool.left_alone.note(f"{folder}/{path}", why)
            said.update([(folder, why)] if why else [])
        for (folder, why), count in said.items():
            what = "something is left where it is" if count == 1 else f"{count} things are left where they are"
            log.warning("%s: %s: %s; `sorter status` names it", folder, what, why)
            self._spool.note("left alone", why=why, count=count)
        with contextlib.suppress(OSError):  # the disk is full, which others say
            self._spool.left_alone.write()

    def _say_new(self, problems: list[str], said: tuple[str, ...] | None) -> tuple[str, ...]:
        """Each problem once in the log; those that there are now, for `status`."""
        now = tuple(problems)
        for problem in now:
            if problem not in (said or ()):
                log.warning("%s", problem)
        if now != said:
            with contextlib.suppress(OSError):  # the disk is full: that is among what was just said
                self._spool.write_problems(now)
        return now

    def _turn(self, now: float) -> float:
        try:
            until = answer_requests(self._spool, self._parts)
            until = min(until, self._parts.pipeline.turn(now), self._parts.turn(now))
            if self._parts.commitments is not None:
                until = min(until, self._parts.commitments.turn(now, self._parts.pipeline.looked_around))
            return until
        except OSError as error:
            log.error("the spool cannot be used (%s); trying again in 5 s", error.strerror)
            self._stop.wait(5.0)
            return now

    def _take_up_configuration(self) -> None:
        """All or nothing."""
        self._reload.clear()
        try:
            config = self._reload_config()
            self._parts.reload(config, self._files)
        except ConfigError as error:
            log.error("the new configuration is not used, the old one stays in force:\n%s", error)
            return
        log.info("configuration reloaded")
        self._open_door(config)
        try:
            mark_defaults(config, self._files)
        except (SorterError, OSError) as error:  # what goes there waits; all else goes on
            log.error("a lab's folder cannot be made ready: %s", error)

    def _open_door(self, config: Config) -> None:
        """Or answer by other terms there. Without a socket all else goes on."""
        if self._door is not None and config.socket == self._socket:
            self._door.configure(config)
            return
        self._close_door()
        self._socket = config.socket
        try:
            self._door = Doorkeeper(config, self._spool)
        except SorterError as error:
            log.error("labs' users cannot ask: %s", error)

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.stop()
            self._door = None

    def _look_at_tables(self) -> None:
        changed = self._parts.rules.plugins.refresh()
        if changed:
            log.info("tables changed: %s", ", ".join(changed))
            self._parts.pipeline.ask_again()


def mark_defaults(config: Config, files: Files) -> None:
    """Mark the roots that sorter itself chose, below its own root, as present; other roots are marked by a person.

    Once: whoever mounts a share there must not find its empty mount point marked when the share is away, and a mount
    that hangs must not be touched here. What was marked is remembered in the spool.
    """
    for name, target in config.all_targets().items():
        root = str(target.settings.get("root", ""))
        known = config.spool / "labs" / name / "root"
        if config.is_default_root(name) and not (files.exists(known) and files.read_file(known) == root.encode()):
            files.make_folders(root, 0o755)
            mark(root, files)
            files.make_folders(known.parent)
            files.write_file(known, root.encode())
