"""Whose job is next: labs take turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sorter.engine.work import Work


@dataclass(slots=True)
class Turns:
    """Jobs that wait, in the order in which they came."""

    waiting: list[Work] = field(default_factory=list)
    _last: dict[str, int] = field(default_factory=dict)  # of each lab, when one of its jobs was last begun

    def take(self, running: Iterable[str], without: Collection[str] = ()) -> Work | None:
        """The next one: of the lab with the fewest of `running`, and of these of whoever has waited longest. Labs in
        `without` are passed over."""
        waiting = [each for each in self.waiting if each.lab not in without]
        if not waiting:
            return None
        busy = Counter(running)
        work = min(waiting, key=lambda each: (busy[each.lab], self._last.get(each.lab, 0)))
        self.waiting.remove(work)
        self._last[work.lab] = max(self._last.values(), default=0) + 1
        return work

    def remove(self, job: str) -> None:
        self.waiting = [work for work in self.waiting if work.id != job]

    def __contains__(self, job: str) -> bool:
        return any(work.id == job for work in self.waiting)
