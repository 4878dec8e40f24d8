"""Which units are whole: what came is told to completion, and what completion says is done."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from sorter.completion import (
    AssociationEnded,
    Effect,
    Input,
    Look,
    Looked,
    Outcome,
    Publish,
    Published,
    Tick,
    Timing,
    deadline,
    outlook,
    step,
)
from sorter.model import Instance, Verdict
from sorter.pipeline.evidence import Witness, taught
from sorter.pipeline.units import Live, arrival


@dataclass(slots=True)
class Settling:
    """Joins the pure decider, what is known of each unit, and whoever publishes. Touches no file of its own.

    `at_work` gives the unit of a key if something is going on with it. Times are monotonic seconds.
    """

    witness: Witness
    timing: Timing
    at_work: Callable[[str], Live | None]
    publish: Callable[[Live, Publish], None]  # makes the next revision
    improve: Callable[[Live, Publish], None]  # gives the last revision the verdict that is known by now

    # --- what happens -------------------------------------------------------------------------------------------

    def arrived(self, live: Live, instance: Instance, now: float, *, is_open: bool) -> None:
        """An image that no revision holds. `is_open`: its association may bring more."""
        left = self.witness.came(live, instance, now)
        other = self.at_work(left) if left is not None else None
        if other is not None and other.state.looked:
            self.note(other, Looked(self.witness.of_its_sender(other, other.state.facts)), now)
        came = arrival(instance)
        self.note(live, came if is_open else replace(came, association=""), now)

    def ended(self, live: Live, association: str, how: str, now: float) -> None:
        self.note(live, AssociationEnded(association, how), now)

    def note(self, live: Live, event: Input, now: float) -> None:
        """Take note of something; `judge` says, later in the turn, what all of it together means."""
        live.state, _ = step(live.state, event, now, self.timing)

    def published(self, live: Live, now: float) -> None:
        """The last revision, or its better verdict, is durable."""
        assert live.revision is not None
        self.note(live, Published(live.revision.revision, live.revision.verdict), now)

    def hear(self, kind: str, sender: str, names: Iterable[str]) -> frozenset[str]:
        """A sender says which images it sent, or has. Every unit that may be meant is `heard` with the answer."""
        return self.witness.hear(kind, sender, names).names

    def heard(self, live: Live, named: frozenset[str], now: float) -> None:
        """A list names, among others, images of this unit."""
        if not named.isdisjoint(live.unit.by_sop):
            self._look(live, now)

    def answered(self, live: Live, sender: str, names: Iterable[str], now: float) -> None:
        """Whoever sent this unit was asked which images it has of it."""
        live.unit.add_list("query", sender, names)
        self._look(live, now)

    def resumed(self, live: Live, now: float) -> None:
        """A unit of an earlier life: its sender's lists, if there are any, have to stand the longest wait anew."""
        if live.unit.lists and not live.unit.at_rest and live.senders:
            self.witness.tracker.resume(live.key, next(iter(live.senders)), now)
            self._look(live, now)

    def learned(self, live: Live, outcome: Outcome, at: str, now: float) -> None:
        """Nothing came of it for the longest wait: what that teaches of its sender, and of its own lists.

        `at` is the wall clock.
        """
        live.unit.teach(taught(outcome, at, len(live.unit.by_sop)))
        if outcome.list_final and not live.state.pending:  # what is pending is judged in its turn, as all else
            self._look(live, now)
            self.judge(live, now)

    # --- what to do ---------------------------------------------------------------------------------------------

    def judge(self, live: Live, now: float, silent: float = math.inf) -> bool:
        """Publish what is due; True where something was done, or learned. `silent`: until then nothing more came."""
        if live.key in self.witness.stale:
            self.witness.stale.discard(live.key)
            self._look(live, now)
        live.state, effects = step(live.state, Tick(), now, self.timing)
        looked = False
        while effects and isinstance(effects[0], Look):
            effects, looked = self._look(live, now, closely=effects[0].closely), True
        if not effects or self._is_too_soon(live, silent):
            return looked
        return self._act(live, effects[0]) or looked

    def _is_too_soon(self, live: Live, silent: float) -> bool:
        """Is what is due a verdict of silence, and the silence not known?"""
        ahead = outlook(live.state, self.timing)
        if ahead is None or not isinstance(ahead.effect, Publish):
            return False
        return not ahead.effect.verdict.at_least(Verdict.COUNTED) and ahead.due > silent

    def _look(self, live: Live, now: float, *, closely: bool = False) -> tuple[Effect, ...]:
        facts = self.witness.facts(live, closely=closely)
        live.state, effects = step(live.state, Looked(facts), now, self.timing)
        return effects

    def _act(self, live: Live, effect: Effect) -> bool:
        if not isinstance(effect, Publish):
            return False
        if live.state.pending:
            self.publish(live, effect)
        else:
            self.improve(live, effect)
        return True

    def awaited(self, live: Live, now: float) -> str:
        """What an open unit waits for, and until when, for people: the times are those of the wall clock."""
        ahead = outlook(live.state, self.timing)
        if ahead is None or not isinstance(ahead.effect, Publish):
            return "its images are looked at as soon as no more come"
        at = datetime.datetime.now() + datetime.timedelta(seconds=max(0.0, ahead.due - now))
        still = f"{len(live.state.carrying)} associations that brought it are open; " if live.state.carrying else ""
        return (
            f"{still}if nothing more comes it is delivered at {at:%H:%M:%S} as {ahead.effect.verdict} "
            f"({'; '.join(ahead.effect.reasons)})"
        )

    def silence(self, live: Live) -> float:
        """Seconds after its last image until a unit of which nothing better is known is called quiet."""
        gaps = [self.witness.tracker.habits.gap(each) for each in live.senders]
        return min(max(self.timing.quiet, self.timing.aborted if live.state.broken else 0.0, *gaps), self.timing.cap)

    def due(self, lives: Iterable[Live]) -> Iterator[float]:
        """When each wants to be judged again."""
        for live in lives:
            at = deadline(live.state, self.timing)
            if at is not None:
                yield at
