"""What others do, by the same scripts: the rules of programs that label labs use today, as their sources say.

* `timer`: a series is complete when no file of it came for so long (mercure 60 s; it counts files sent again, too, and
  by the wall clock);
* `stable`: the same, but what is there already starts nothing (Orthanc, StableAge 60 s);
* `association`: a series is complete when the association that brought it ends (storescp --exec-on-eostudy, oxidicom).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from simulator.script import ClockStep, Ended, Image, Script

SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Complete:
    """The rule calls a series complete. `images` are those it had by then."""

    at: float
    run: str
    images: frozenset[int]
    new: bool  # it had something that it did not have when it last called it complete


def timer(script: Script, *, repeats: bool = True, wall: bool = True) -> Iterator[Complete]:
    """Complete after `SECONDS` without a file."""
    last: dict[str, float] = {}
    have: dict[str, set[int]] = {}
    told: dict[str, int] = {}
    ends = [*script.events, None]
    for event in ends:
        now = event.at if event is not None else float("inf")
        for run, at in list(last.items()):
            if now - at >= SECONDS:
                yield Complete(at + SECONDS, run, frozenset(have[run]), len(have[run]) > told.get(run, 0))
                told[run] = len(have[run])
                del last[run]
        if event is None:
            return
        if isinstance(event.what, ClockStep) and wall:
            last = {run: at - max(event.what.seconds, 0.0) for run, at in last.items()}
        if isinstance(event.what, Image):
            run, number = event.what.run.uid, event.what.number
            mine = have.setdefault(run, set())
            if repeats or number not in mine:
                last[run] = event.at
            mine.add(number)


def stable(script: Script) -> Iterator[Complete]:
    return timer(script, repeats=False, wall=False)


def association(script: Script) -> Iterator[Complete]:
    """Complete when the association ends; what is dropped into a folder is complete with each file."""
    have: dict[str, set[int]] = {}
    told: dict[str, int] = {}
    carried: dict[str, set[str]] = {}
    for event in script.events:
        if isinstance(event.what, Image):
            run = event.what.run.uid
            have.setdefault(run, set()).add(event.what.number)
            carried.setdefault(event.what.association, set()).add(run)
        elif isinstance(event.what, Ended):
            for run in carried.pop(event.what.association, ()):
                yield Complete(event.at, run, frozenset(have[run]), len(have[run]) > told.get(run, 0))
                told[run] = len(have[run])


RIVALS: dict[str, Callable[[Script], Iterator[Complete]]] = {
    "60 s timer (mercure)": timer,
    "stable for 60 s (Orthanc)": stable,
    "end of association": association,
}
