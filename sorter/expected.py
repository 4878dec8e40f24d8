"""What a lab expects: which series a study has, and that something comes every day.

Both are written as short texts in the configuration, and read here once: `"rest* x2"`, `"09:00 PHANTOM*"`. Descriptions
and subjects are compared as everywhere: capital and small letters are the same.
"""

from __future__ import annotations

import datetime
import fnmatch
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sorter.model import Missing, StudySeries, Verdict

MOST = 100
"""Times that one series can be expected in a study."""

LONGEST = 60 * 86400
"""Seconds of the longest silence that can be allowed."""

DAYS = 4
"""Days that are remembered of what is expected daily."""

_TIMES = re.compile(r"(.*\S)\s+[x×]([-+.,\d]\S*)?", re.DOTALL)
_SPAN = re.compile(r"([0-9]{1,4})\s*(m|h|d)")
_DAILY = re.compile(r"([0-9]{1,2}):([0-9]{2})(?:\s+(\S.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ExpectedSeries:
    """A study has series whose descriptions fit `glob`, so many `times` at least."""

    glob: str
    times: int = 1

    @classmethod
    def parse(cls, text: str) -> ExpectedSeries:
        """Of a glob, with ` x2` behind it where it should come twice. ValueError says what is wrong."""
        text = text.strip()
        found = _TIMES.fullmatch(text)
        glob, times = (found[1], found[2] or "") if found else (text, "1")
        if not glob or re.fullmatch(r"[x×]\d*", glob):
            raise ValueError(f'"{text}" names no series; write a glob of its description, as "rest* x2"')
        if not (times.isascii() and times.isdigit() and 1 <= int(times[:9]) <= MOST):
            raise ValueError(f'in "{text}" there should be a whole number from 1 to {MOST} behind the x, as "rest* x2"')
        return cls(checked_glob(glob), int(times))

    def __str__(self) -> str:
        return self.glob if self.times == 1 else f"{self.glob} x{self.times}"

    def fits(self, description: str) -> bool:
        return fits(self.glob, description)


@dataclass(frozen=True, slots=True)
class ExpectedDaily:
    """By `hour`:`minute` of each day, in local time, something came of a subject that fits `subject`."""

    hour: int
    minute: int
    subject: str = "*"

    @classmethod
    def parse(cls, text: str) -> ExpectedDaily:
        """Of a time of day, with a glob of the subject behind it if need be. ValueError says what is wrong."""
        found = _DAILY.fullmatch(text.strip())
        if found is None or int(found[1]) > 23 or int(found[2]) > 59:
            raise ValueError(
                f'"{text}" is no time of day; write HH:MM, as "09:00", with the subject behind it if need be, '
                'as "09:00 PHANTOM*"'
            )
        return cls(int(found[1]), int(found[2]), checked_glob(found[3]) if found[3] else "*")

    def __str__(self) -> str:
        return self.time if self.subject == "*" else f"{self.time} {self.subject}"

    @property
    def time(self) -> str:
        return f"{self.hour:02d}:{self.minute:02d}"

    def on(self, day: datetime.date) -> float:
        """The moment on that day, in seconds since the epoch; of an hour that there is twice, the first one."""
        return datetime.datetime(day.year, day.month, day.day, self.hour, self.minute).timestamp()

    def fits(self, subject: str) -> bool:
        return fits(self.subject, subject)


@dataclass(frozen=True, slots=True)
class Daily:
    """What is known of a lab that expects something every day: of the latest days, ISO 8601, in local time."""

    since: float  # seconds since the epoch: it has been expected since then, and not before
    came: tuple[str, ...] = ()  # days on which something came
    told: tuple[str, ...] = ()  # days of which it was told that nothing did

    def with_came(self, day: str) -> Daily:
        return self if day in self.came else replace(self, came=(*self.came, day)[-DAYS:])

    def with_told(self, day: str) -> Daily:
        return replace(self, told=(*self.told, day)[-DAYS:])


def checked_glob(glob: str) -> str:
    """The glob; ValueError where it could fit nothing that a person means by it."""
    if any(ord(char) < 32 for char in glob):
        raise ValueError("a control character is no part of a description")
    if "[" in re.sub(r"\[!?\]?[^\]]*\]", "", glob):
        raise ValueError(f'in "{glob}" a [ is never closed; write [[] for the character itself')
    return glob


def span(text: str) -> float:
    """Seconds of a time such as "90m", "8h" or "3d". ValueError says what is wrong."""
    found = _SPAN.fullmatch(text.strip())
    seconds = int(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]] if found else 0
    if not 60 <= seconds <= LONGEST:
        raise ValueError(f'"{text}" is no time; write minutes, hours or days, as "90m", "8h" or "3d", at most 60 days')
    return float(seconds)


def fits(glob: str, text: str) -> bool:
    return fnmatch.fnmatchcase(_folded(text), _folded(glob))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold().strip()


# --- what is missing ------------------------------------------------------------------------------------------------


def missing_of(lab: str, expected: Iterable[ExpectedSeries], series: Iterable[StudySeries]) -> tuple[Missing, ...]:
    """Which of the expected series did not come, or not often enough. `series` are those of the lab.

    A series that was stopped, or has holes, is not what was expected: usually it was begun again.
    """
    series = tuple(series)
    return tuple(found for each in expected if (found := _missing(lab, each, series)) is not None)


def _missing(lab: str, expected: ExpectedSeries, series: tuple[StudySeries, ...]) -> Missing | None:
    fitting = [each for each in series if expected.fits(each.description)]
    whole = [each for each in fitting if each.verdict and Verdict(each.verdict).at_least(Verdict.QUIET)]
    if len(whole) >= expected.times:
        return None
    came = f"came {_often(len(whole))}" if whole else "which did not come"
    if len(fitting) > len(whole):
        broken = f"{_often(len(fitting) - len(whole))} stopped or with holes"
        came = f"{came}, and {broken}" if whole else f"came only {broken}"
    often = f" {_often(expected.times)}" if expected.times > 1 else ""
    return Missing(lab, str(expected), expected.times, len(whole), f"expected {expected.glob}{often}, {came}")


def _often(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
