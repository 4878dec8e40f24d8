"""Targets that nothing can be delivered to at the moment: since when, why, and when to ask again.

One that is away, full or hung is asked by one small check at a time, not by all that waits for it: so it costs the same
whether one series waits or ten thousand, and all are delivered soon after its return. What is known is kept in the
spool's `owed/`, one small file a target: a cache, without which the waiting starts anew.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from sorter.deliver.backoff import backoff
from sorter.model import build, plain
from sorter.spool import Spool
from sorter.spool.layout import now as wall_clock

LONGEST = 240.0
"""Seconds between two checks at most: what waits is to be delivered within five minutes of the target's return."""


@dataclass(frozen=True, slots=True)
class Outage:
    """`since` and `next` are of the wall clock (ISO 8601, seconds since 1970), `lasted` is in seconds."""

    target: str
    since: str
    why: str
    failures: int = 1
    lasted: float = 0.0
    next: float = 0.0
    told: bool = False  # to the plugins, as an event


@dataclass(frozen=True, slots=True)
class Told:
    """What the plugins are to hear: `kind` is "target away" or "target back"."""

    kind: str
    outage: Outage


def outages(spool: Spool) -> list[Outage]:
    """Those that were last written down, for `status`."""
    return sorted(_read(spool), key=lambda each: each.target)


def _read(spool: Spool) -> Iterator[Outage]:
    for name in spool.files.names(spool.owed) if spool.files.exists(spool.owed) else ():
        try:
            yield build(Outage, json.loads(spool.files.read_file(spool.owed / name, limit=1 << 16)))
        except (OSError, ValueError):
            continue  # half written, or not ours


class Outages:
    """All targets that are out. Times are monotonic seconds, unless an `Outage` says otherwise."""

    def __init__(self, spool: Spool, tell_after: float, random: Random) -> None:
        self._spool, self._random = spool, random
        self.tell_after = tell_after
        self._out: dict[str, Outage] = {}
        self._begun: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}  # in a row; forgotten when nothing waits any more
        self._told: list[Told] = []
        self._kept = {each.target: each for each in outages(spool)}

    def __contains__(self, target: str) -> bool:
        return target in self._out

    def why(self, target: str) -> str:
        return self._out[target].why

    def configure(self, targets: Mapping[str, Any], changed: set[str]) -> None:
        """Take up what the last life knew of these targets; forget those that are others now."""
        for name in [*changed, *(name for name in self._out if name not in targets)]:
            self._forget(name)
            self._failures.pop(name, None)
        for name, kept in self._kept.items():
            if name in targets:
                self._out[name], self._failures[name] = kept, kept.failures
            else:
                self._remove(name)
        self._kept = {}

    def failed(self, target: str, why: str, now: float) -> None:
        """Nothing can be delivered there now, once more."""
        failures = self._failures[target] = self._failures.get(target, 0) + 1
        wait = min(backoff(failures, self._random), LONGEST * self._random.uniform(0.75, 1.0))
        old = self._out.get(target) or Outage(target, wall_clock(), why)
        begun = self._begun.setdefault(target, now)
        self._due[target] = now + wait
        self._write(replace(old, why=why, failures=failures, lasted=now - begun, next=time.time() + wait))

    def ended(self, target: str, now: float) -> None:
        """It answers again."""
        old = self._out.get(target)
        if old is not None and old.told:
            self._told.append(Told("target back", replace(old, lasted=now - self._begun[target])))
        self._forget(target)

    def is_shaky(self, target: str) -> bool:
        """Was it out, and may be again, as one is that is nearly full? Then the waiting goes on where it was."""
        return target in self._failures

    def settled(self, target: str) -> None:
        """Nothing waits for it any more."""
        self._failures.pop(target, None)

    def due(self, now: float) -> list[str]:
        """Targets that should be asked now; each is named once, until it `failed` or `ended`."""
        for name in self._out.keys() - self._begun.keys():  # the last life's
            self._begun[name] = now - max(0.0, self._out[name].lasted)
            self._due[name] = now + min(max(0.0, self._out[name].next - time.time()), LONGEST)
        found = [name for name, due in self._due.items() if due <= now]
        for name in found:
            del self._due[name]
        return found

    def ask_now(self, target: str) -> None:
        """What it waited for has come."""
        if target in self._due:
            self._due[target] = 0.0

    def ask_all_now(self) -> None:
        """A person says that what was wrong is mended."""
        self._due = dict.fromkeys(self._due, 0.0)

    def news(self, now: float) -> list[Told]:
        """What the plugins should hear since the last call: an outage is told once it has lasted."""
        for name, outage in list(self._out.items()):
            if name in self._begun and not outage.told and now - self._begun[name] >= self.tell_after:
                told = replace(outage, told=True, lasted=now - self._begun[name])
                self._write(told)
                self._told.append(Told("target away", told))
        found, self._told = self._told, []
        return found

    @property
    def next(self) -> float | None:
        """When something is to be done for one of them."""
        tell = [begun + self.tell_after for name, begun in self._begun.items() if not self._out[name].told]
        return min([*self._due.values(), *tell], default=None)

    def _write(self, outage: Outage) -> None:
        self._out[outage.target] = outage
        text = json.dumps(plain(outage)).encode()
        with contextlib.suppress(OSError):  # a full disk: a cache is no reason to stop
            self._spool.files.write_file(self._spool.owed / f"{outage.target}.json", text, durable=False)

    def _forget(self, target: str) -> None:
        for known in (self._begun, self._due):
            known.pop(target, None)
        if self._out.pop(target, None) is not None:
            self._remove(target)

    def _remove(self, target: str) -> None:
        with contextlib.suppress(OSError):  # it is not there, or it is told of once more
            self._spool.files.unlink(self._spool.owed / f"{target}.json")
