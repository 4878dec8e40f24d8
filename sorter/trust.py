"""Which counts have earned trust at this site.

A header may say how many images there will be, and headers lie in ways that change with vendor, software and sequence.
So a count is evidence only after its like was right here, several times in a row; one that was wrong starts again from
nothing, and is reported. Who was right is seen from what came, so all of this can be found out anew from the store.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sorter.model import Expectation, Header, Value, build, plain
from sorter.structure import Structure

NEEDED = 3
"""Times in a row that a count must have been right before it counts."""

KEPT = 20
"""Outcomes remembered of each like, the latest ones."""

MOST_LIKES = 2000
"""Likes remembered, those with the latest outcome: headers are what anybody may send."""

_LONGEST = 200  # characters of one part of a like


@dataclass(frozen=True, slots=True)
class Like:
    """What counts of one kind have in common: they are right and wrong together."""

    vendor: str
    software: str
    sequence: str
    rule: str  # the plugin, and which rule of it: "expectations/siemens mosaic"

    def __str__(self) -> str:
        return f"{self.rule} for {self.vendor or 'unknown maker'}, {self.software or '?'}, {self.sequence or '?'}"


def like_of(header: Header, plugin: str, expectation: Expectation) -> Like:
    """The like of what `plugin` said of a series with this header (of its first instance)."""
    names = (_text(header, each) for each in ("PulseSequenceName", "SequenceName", "ScanningSequence"))
    return Like(
        vendor=_text(header, "Manufacturer").casefold(),
        software=_text(header, "SoftwareVersions"),
        sequence=next(filter(None, names), ""),
        rule=f"{plugin}/{expectation.rule}" if expectation.rule else plugin,
    )


def _text(header: Header, keyword: str) -> str:
    value: Value = header.get(keyword, "")
    return ("\\".join(map(str, value)) if isinstance(value, tuple) else str(value))[:_LONGEST]


def judged(expected: int, structure: Structure, came: int) -> bool | None:
    """Was a count right? None: it cannot be told, because the images themselves show that some are missing.

    `came` counts SOP instances. Fewer than were said, and nothing else amiss, makes it wrong: a run that was ended
    after a whole volume looks the same, but to take a wrong count for lost images, again and again, would be worse.
    """
    if came < expected and structure.known and not structure.whole:
        return None
    return came == expected


def order(at: str, now: float = math.inf) -> tuple[float, str]:
    """What times of the wall clock (ISO 8601, with offset) are put in order by; `now` is in seconds since 1970.

    Summer time ends: 02:50+02:00 is before 02:10+01:00. A time that is still to come was written while the clock was
    wrong, nobody knows when; it comes first, so that it does not stay the latest until then.
    """
    try:
        seconds = datetime.datetime.fromisoformat(at).timestamp()
    except (ValueError, OverflowError):
        seconds = 0.0
    return (seconds if seconds <= now else 0.0, at)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One count beside what came. `at` (ISO 8601) is when the unit was first published: outcomes are in that order."""

    at: str
    key: str
    expected: int
    came: int

    @property
    def right(self) -> bool:
        return self.expected == self.came


@dataclass(slots=True)
class Ledger:
    """Outcomes by like. The same outcomes noted in any order make an equal ledger (up to `MOST_LIKES`)."""

    needed: int = NEEDED
    likes: dict[Like, tuple[Outcome, ...]] = field(default_factory=dict)

    def note(self, like: Like, outcome: Outcome, now: float = math.inf) -> str:
        """Remember what came; a later word on the same unit replaces the earlier. What that changed, else "".

        `now`: the wall clock, in seconds since 1970; outcomes of a later time are put before all others.
        """
        before = self.trusted(like)
        others = [each for each in self.likes.get(like, ()) if each.key != outcome.key]
        self._keep(like, [*others, outcome], now)
        return self._change(like, before, outcome)

    def forget(self, like: Like, key: str) -> None:
        """Of this unit nothing can be told any more. The others stay in their order."""
        outcomes = tuple(each for each in self.likes.pop(like, ()) if each.key != key)
        if outcomes:
            self.likes[like] = outcomes

    def _keep(self, like: Like, outcomes: list[Outcome], now: float) -> None:
        self.likes.pop(like, None)
        self.likes[like] = tuple(sorted(outcomes, key=lambda each: (order(each.at, now), each.key))[-KEPT:])
        if len(self.likes) > MOST_LIKES:
            del self.likes[min(self.likes, key=lambda each: (self.likes[each][-1].at, str(each)))]

    def _change(self, like: Like, before: bool, outcome: Outcome) -> str:
        after = self.trusted(like)
        if after and not before:
            return f"{like}: right {self.needed} times in a row; from now on it counts"
        if not outcome.right and before:
            said = f"it said {outcome.expected} images, {outcome.came} came"
            return f"{like}: {said}; it counts again once it was right {self.needed} times in a row"
        return ""

    def trusted(self, like: Like) -> bool:
        """Do counts of this like count?"""
        latest = self.likes.get(like, ())[-self.needed :]
        return len(latest) == self.needed and all(each.right for each in latest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and (self.needed, self.likes) == (other.needed, other.likes)

    # --- as a cache on disk -----------------------------------------------------------------------------------------

    def plain(self) -> list[dict[str, Any]]:
        """As JSON can carry it; `needed` is not part of it: it is configuration."""
        ordered = sorted(self.likes.items(), key=lambda item: str(item[0]))
        return [{"like": plain(like), "outcomes": plain(outcomes)} for like, outcomes in ordered]

    @classmethod
    def of(cls, data: Any, needed: int = NEEDED) -> Ledger:
        """What `plain` gave. ValueError: it is something else."""
        ledger = cls(needed)
        if not isinstance(data, list):
            raise ValueError("a ledger is a list")
        for entry in data:
            if not isinstance(entry, Mapping) or not {"like", "outcomes"} <= entry.keys():
                raise ValueError("an entry of a ledger has a like and its outcomes")
            outcomes = build(tuple[Outcome, ...], entry["outcomes"])
            ledger.likes[build(Like, entry["like"])] = outcomes
        return ledger
