"""When is a series whole? A pure decider: `step(state, event, now) -> (state, effects)`.

Silence proves nothing, so what is published for want of anything better is called *quiet*, never complete. Evidence
comes first: a drop that is whole (a folder moved in by one rename or ended by `.done`, an archive read to its end), or
an operator who says so, makes the verdict *listed* and publishes at once.

`now` is monotonic seconds. Nothing here knows the wall clock: after a reboot, or a restart of the sorter, waiting
starts anew, and a step of the clock publishes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

from sorter.model import Verdict


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `quiet` after the last image; `cap` at most after it, even while the association stays open."""

    quiet: float = 30.0
    cap: float = 900.0


@dataclass(frozen=True, slots=True)
class State:
    """What completion knows of one unit."""

    pending: bool = False  # images that no revision holds
    last: float = 0.0  # when the last of them came
    carrying: frozenset[str] = frozenset()  # open associations that brought images of this unit
    drops: frozenset[str] = frozenset()  # drops that brought pending images
    whole: frozenset[str] = frozenset()  # of those, the ones that are known to be whole
    by_network: bool = False  # pending images that came by an association
    told: bool = False  # an operator called it complete
    revision: int = 0  # the last one published


@dataclass(frozen=True, slots=True)
class Arrived:
    """Images came that the last revision does not hold; by an association, or in a drop."""

    association: str = ""
    drop: str = ""


@dataclass(frozen=True, slots=True)
class AssociationEnded:
    association: str
    how: str = "released"


@dataclass(frozen=True, slots=True)
class DropWhole:
    """Every file of this drop has been taken or set aside."""

    drop: str


@dataclass(frozen=True, slots=True)
class Told:
    """An operator says that the unit is complete as it is."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Published:
    """The revision is durable; only now it counts."""

    revision: int


Input: TypeAlias = Arrived | AssociationEnded | DropWhole | Told | Tick | Published


@dataclass(frozen=True, slots=True)
class Publish:
    """The one effect: make the next revision of what is there now."""

    verdict: Verdict
    reasons: tuple[str, ...] = field(default=())


def step(state: State, event: Input, now: float, timing: Timing = Timing()) -> tuple[State, tuple[Publish, ...]]:
    """The next state, and what to do. The same inputs always give the same answer; `Tick` may come at any time."""
    state = _take_note(state, event, now)
    return state, _judge(state, now, timing)


def deadline(state: State, timing: Timing = Timing()) -> float | None:
    """When `step` should be given a `Tick`, in the time of `now`; None while nothing is awaited."""
    if not state.pending:
        return None
    return state.last + (timing.cap if state.carrying else min(timing.quiet, timing.cap))


def _take_note(state: State, event: Input, now: float) -> State:
    match event:
        case Arrived(association, drop):
            return replace(
                state,
                pending=True,
                last=now,
                carrying=state.carrying | {association} if association else state.carrying,
                drops=state.drops | {drop} if drop else state.drops,
                whole=state.whole - {drop},
                by_network=state.by_network or not drop,
                told=False,
            )
        case AssociationEnded(association):
            return replace(state, carrying=state.carrying - {association})
        case DropWhole(drop):
            return replace(state, whole=state.whole | ({drop} & state.drops))
        case Told():
            return replace(state, told=state.pending)
        case Published(revision):
            return State(carrying=state.carrying, revision=revision)
        case Tick():
            return state


def _judge(state: State, now: float, timing: Timing) -> tuple[Publish, ...]:
    if not state.pending:
        return ()
    if state.told:
        return (Publish(Verdict.LISTED, ("an operator called it complete",)),)
    if state.drops and state.drops == state.whole and not state.by_network:
        return (Publish(Verdict.LISTED, ("all of it came in a drop that is whole",)),)
    due = deadline(state, timing)
    if due is None or now < due:
        return ()
    if state.carrying:
        return (Publish(Verdict.QUIET, (f"no image for {timing.cap:g} s, though its association is still open",)),)
    return (Publish(Verdict.QUIET, (f"no image for {timing.quiet:g} s; how many there should be is not known",)),)
