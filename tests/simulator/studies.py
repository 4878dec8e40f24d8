"""A scanner's day: one session after the other, each by a habit of the library; when is each told to have settled?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from simulator.habits import LIBRARY
from simulator.player import Player, study_of
from simulator.script import Happens, Restart, Script, Tape
from sorter.completion import Timing

SESSIONS = 8


@dataclass(slots=True)
class Day:
    """What one showed. Lines name the study, by its number and habit."""

    seed: int
    early: list[str] = field(default_factory=list)  # told to have settled, and an image of the session came after
    repeated: list[str] = field(default_factory=list)  # told twice in the same state
    never: list[str] = field(default_factory=list)  # not told, or not with all its images
    waits: list[float] = field(default_factory=list)  # seconds from its last image until a study was told, by study
    moved_on: int = 0  # told because the sender went on


def day(seed: int, habits: tuple[str, ...] = ()) -> Script:
    """Sessions with a few minutes, or an hour, between one's last image and the next one's first."""
    rng = Random(f"day {seed}")
    names = habits or tuple(rng.choice([each.name for each in LIBRARY]) for _ in range(SESSIONS))
    events: list[Happens] = []
    start = 0.0
    for number, name in enumerate(names):
        tape = Tape(rng, f"s{number}-{name}", start, big=False)
        next(each for each in LIBRARY if each.name == name).write(tape)
        events += tape.events
        start = max(event.at for event in tape.events) + rng.choice([rng.uniform(60, 600), rng.uniform(600, 4000)])
    return Script("day", seed, tuple(sorted(events, key=lambda each: each.at)), "s")


def play(script: Script, timing: Timing) -> Day:
    player = Player(timing, durable=any(isinstance(each.what, Restart) for each in script.events))
    player.play(script)
    result = Day(script.seed)
    last: dict[str, float] = {}
    images: dict[str, set[tuple[str, int]]] = {}
    for at, image in script.arrivals():
        study = study_of(image.run.uid)
        images.setdefault(study, set()).add((image.run.uid, image.number))
        if image.of_run:
            last[study] = at
    for study, end in last.items():
        told = [each for each in player.settled if each.study == study]
        result.early += [f"{study} at {each.at:.0f} of {end:.0f}: {each.why}" for each in told if each.at < end]
        states = [each.images for each in told]
        result.repeated += [study] if states != sorted(set(states)) else []
        result.never += [] if told and told[-1].images == len(images[study]) else [study]
        result.waits += [each.at - end for each in told if each.at >= end][:1]
        result.moved_on += sum("went on" in each.why for each in told)
    return result


def days(count: int, seed: int, timing: Timing) -> Iterator[Day]:
    return (play(day(seed + number), timing) for number in range(count))
