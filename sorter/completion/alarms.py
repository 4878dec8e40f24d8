"""What should have come and did not: by a time of day, or from a sender that is used to send. The pure part.

Only here does sorter decide anything by the wall clock, for "by nine o'clock" means nothing else. So the wall clock is
believed only as far as it goes along with a clock that nobody can set (`Wall`). An alarm is due when the clock on the
wall *and* the one it should show, had nobody set it, are past the time of one and the same day.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace

from sorter.expected import Daily, ExpectedDaily

STEP = 60.0
"""Seconds by which a wall clock may be corrected without having been set."""

BELIEVED = 6 * 3600.0
"""Seconds for which a clock that was set has to go on evenly until it is believed."""

GRACE = 300.0
"""Seconds for which sorter has to have been awake before it says that nothing came."""

PLAUSIBLE = 7 * 86400.0
"""Seconds that a machine may have been down, going by its clock, for its clock to be believed when it starts."""


@dataclass(frozen=True, slots=True)
class Wall:
    """The wall clock, beside one that nobody can set (seconds since the machine booted, suspended or not).

    `offset` is by how much the first was ahead of the second while it was believed; `other` by how much it is since it
    was set, and `since` when that was seen.
    """

    offset: float
    other: float | None = None
    since: float = 0.0

    def seen(self, wall: float, boot: float) -> Wall:
        """With another look at both."""
        offset = wall - boot
        if abs(offset - self.offset) <= STEP:
            return Wall(offset)
        if self.other is None or abs(offset - self.other) > STEP:
            return replace(self, other=offset, since=boot)
        return Wall(offset) if boot - self.since >= BELIEVED else replace(self, other=offset)

    def steady(self, boot: float) -> float:
        """What the wall clock would show if nobody had set it, in seconds since the epoch."""
        return boot + self.offset


@dataclass(frozen=True, slots=True)
class Times:
    """The moment by both clocks, in seconds since the epoch."""

    wall: float
    steady: float
    days: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        days = {day_of(self.wall).isoformat(), day_of(self.steady).isoformat()}
        object.__setattr__(self, "days", frozenset(days))

    def ago(self, seconds: float) -> Times:
        return Times(self.wall - seconds, self.steady - seconds)


def day_of(moment: float) -> datetime.date:
    """In local time."""
    return datetime.datetime.fromtimestamp(moment).date()


def last_due(expected: ExpectedDaily, moment: float) -> datetime.date:
    """The latest day whose time is past."""
    day = day_of(moment)
    return day if expected.on(day) <= moment else day - datetime.timedelta(days=1)


def overdue(expected: ExpectedDaily, known: Daily, times: Times) -> str | None:
    """The day of which it has to be said now that nothing came; once a day."""
    day = last_due(expected, times.steady)
    text = day.isoformat()
    if day != last_due(expected, times.wall) or expected.on(day) <= known.since:
        return None
    return None if text in known.came or text in known.told else text


def long(seconds: float) -> str:
    """A time as people say it: "90 min", "8 h", "3 days"."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.3g} days"
    return f"{seconds / 3600:.3g} h" if seconds >= 2 * 3600 else f"{seconds / 60:.3g} min"
