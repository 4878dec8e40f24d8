"""How many of a sender's series belong to no lab: what is usual of it, and when it is not any more."""

from __future__ import annotations

from dataclasses import dataclass, replace

LEAST = 5
"""Series in a row that belong to no lab, of more than one study, before it is said."""

UNLIKELY = 0.001
"""How likely such a row may be, by what is usual of its sender, to be said."""

REMEMBERED = 1000
"""Series of one sender that say what is usual; older ones count less and less."""


@dataclass(frozen=True, slots=True)
class Strays:
    """Of one sender: `unassigned` of `series` belonged to no lab, before the row that goes on now.

    `row` series came since `since`, none of which belongs to a lab; `study` is the key of the first one's study.
    """

    series: int = 0
    unassigned: int = 0
    row: int = 0
    since: str = ""
    study: str = ""
    several: bool = False  # the row is of more than one study

    def with_stray(self, study: str, at: str) -> Strays:
        """One more that belongs to no lab."""
        if not self.row:
            return replace(self, row=1, since=at, study=study)
        return replace(self, row=self.row + 1, several=self.several or study != self.study)

    def with_owned(self) -> Strays:
        """One more, which belongs to a lab."""
        return _fading(self.series + self.row + 1, self.unassigned + self.row)

    def ended(self) -> Strays:
        """The row is over: whose one of its series is has been found out."""
        return _fading(self.series + self.row, self.unassigned)

    @property
    def is_unusual(self) -> bool:
        """Where little is known of a sender, half of its series might belong to nobody (Laplace)."""
        usual = (self.unassigned + 1) / (self.series + 2)
        return self.row >= LEAST and self.several and usual**self.row < UNLIKELY

    def __str__(self) -> str:
        known = f"usually {round(100 * self.unassigned / self.series)}%" if self.series else "its first ones"
        return f"{self.row} of {self.row} series unassigned since {self.since[:16].replace('T', ' ')} ({known})"


def _fading(series: int, unassigned: int) -> Strays:
    return Strays(series // 2, unassigned // 2) if series >= REMEMBERED else Strays(series, unassigned)
