"""Sessions that a scanner seems to have registered twice: proposed to people, never merged by sorter.

Somebody gets up, a scanner restarts, a protocol is opened anew: the rest of a session comes as a study of its own. Same
subject, same scanner, same day and less than two hours between the studies' beginnings say that it may have been so.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sorter.builtin.identity import NO_ID
from sorter.spool import UnitSummary

APART = 2 * 3600
"""Seconds between the beginnings of two studies, below which they may be one session."""

_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9])([0-5][0-9])?(\.[0-9]*)?", re.ASCII)  # PS3.5 6.2, TM


@dataclass(frozen=True, slots=True)
class Split:
    """Studies that may be one session, in their order: `studies` are StudyInstanceUIDs, `times` when each began."""

    subject: str
    scanner: str
    date: str  # YYYYMMDD
    times: tuple[str, ...]  # HH:MM
    studies: tuple[str, ...]

    def __str__(self) -> str:
        times = f"{', '.join(self.times[:-1])} and {self.times[-1]}"
        return (
            f"{self.subject} {self.date}: {len(self.studies)} studies, begun at {times} on scanner {self.scanner}, may "
            "be one session. Nothing is merged"
        )


@dataclass(frozen=True, slots=True)
class _Study:
    began: int  # seconds of the day
    uid: str

    @property
    def time(self) -> str:
        return f"{self.began // 3600:02d}:{self.began // 60 % 60:02d}"


def split_sessions(units: Iterable[UnitSummary]) -> list[Split]:
    """What may be split, the latest day first. A unit without subject, scanner, date or time proposes nothing."""
    studies: dict[tuple[str, str, str], dict[str, int]] = {}
    for unit in units:
        began = _seconds(unit.study_time)
        known = unit.study_uid and unit.scanner and unit.study_date
        if not known or unit.subject in (None, "", NO_ID) or began is None:
            continue
        found = studies.setdefault((unit.study_date, str(unit.subject), unit.scanner), {})
        found[unit.study_uid] = min(began, found.get(unit.study_uid, began))
    return [
        Split(subject, scanner, date, tuple(each.time for each in run), tuple(each.uid for each in run))
        for (date, subject, scanner), found in sorted(studies.items(), reverse=True)
        for run in _runs(sorted((_Study(began, uid) for uid, began in found.items()), key=lambda each: each.began))
        if len(run) > 1
    ]


def _seconds(time: str) -> int | None:
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3] or 0)


def _runs(studies: list[_Study]) -> list[list[_Study]]:
    """Cut where two hours and more lie between one beginning and the next."""
    runs = [studies[:1]]
    for one, other in itertools.pairwise(studies):
        if other.began - one.began >= APART:
            runs.append([])
        runs[-1].append(other)
    return runs
