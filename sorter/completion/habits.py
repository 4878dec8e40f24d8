"""What a site learns of those who send to it: how long they pause, if they come back, if their lists are final.

Everything here is a count that can be made again from the outcomes of the series that came (`Outcome`, one a series),
in their order. `Tracker` keeps the clocks from which an outcome is made, and says when nothing more is to be learned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

SERIES = 20
"""Series of a sender that are remembered for its pauses."""

MARGIN = 1.5
"""A pause may be so many times longer than those before it."""

PROOF = 3
"""Lists in a row that were final, until a sender's lists are believed whatever else is known."""

REGAIN = 5
"""Lists in a row that have to be final after one that was not, until they are believed again."""

LEAVES = 5
"""Series in a row that a sender left and did not come back to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one series taught. `gap`: its longest pause in seconds, such as after an abort left out."""

    sender: str
    gap: float = 0.0
    left: bool = False  # its sender went on to another series
    returned: bool = False  # … and came back to this one
    list_final: bool | None = None  # nothing came after its sender's list was complete; None: there was no list
    images: int = 0  # SOP instances that it had by then
    at: str = ""  # local wall clock, for the order of outcomes alone


@dataclass(slots=True)
class _Sender:
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=SERIES))
    left: int = 0
    final: int = 0
    caught: bool = False


class Habits:
    """The learned counts, by sender (as `AE@address`). Nothing is known of a new one."""

    def __init__(self) -> None:
        self._senders: dict[str, _Sender] = {}

    def gap(self, sender: str) -> float:
        """Seconds to wait for this sender: longer than its pauses so far, the one longest of many left out."""
        gaps = sorted(self._senders[sender].gaps) if sender in self._senders else []
        if not gaps:
            return 0.0
        return MARGIN * gaps[-2 if len(gaps) >= 5 else -1]

    def leaves(self, sender: str) -> bool:
        """Does it never come back to a series that it left?"""
        return sender in self._senders and self._senders[sender].left >= LEAVES

    def list_trusted(self, sender: str) -> bool:
        """False after a list that was not final, until enough others were."""
        return sender not in self._senders or not self._senders[sender].caught

    def list_proven(self, sender: str) -> bool:
        return sender in self._senders and self.list_trusted(sender) and self._senders[sender].final >= PROOF

    def learn(self, outcome: Outcome) -> None:
        sender = self._senders.setdefault(outcome.sender, _Sender())
        sender.gaps.append(outcome.gap)
        if outcome.returned:
            sender.left = 0
        elif outcome.left:
            sender.left += 1
        if outcome.list_final is False:
            self.catch(outcome.sender)
        elif outcome.list_final:
            sender.final += 1
            sender.caught = sender.caught and sender.final < REGAIN

    def catch(self, sender: str) -> None:
        """One of its lists was complete, and more came: known at once, not only when the series is over."""
        known = self._senders.setdefault(sender, _Sender())
        known.caught, known.final = True, 0

    def come_back(self, sender: str) -> None:
        """It came back to a series that it had left."""
        self._senders.setdefault(sender, _Sender()).left = 0


@dataclass(slots=True)
class _Course:
    """How one series goes on, in the time of `now`."""

    sender: str
    last: float
    gap: float = 0.0
    left: bool = False  # its sender sent something else after its last image
    ever_left: bool = False
    returned: bool = False
    list_complete: bool = False
    list_final: bool | None = None

    def outcome(self) -> Outcome:
        return Outcome(self.sender, self.gap, self.ever_left, self.returned, self.list_final)


class Tracker:
    """The series that something may still be learned from: those of which an image came within `horizon` seconds."""

    def __init__(self, habits: Habits, horizon: float = 900.0) -> None:
        self.habits, self.horizon = habits, horizon
        self._courses: dict[str, _Course] = {}
        self._current: dict[str, str] = {}  # sender -> the series it sends
        self._next = float("inf")

    def came(self, key: str, sender: str, now: float, *, retry: bool = False) -> str | None:
        """New images of `key`; returns the series that its sender left for it. `retry`: after an abort."""
        course = self._courses.get(key)
        if course is None:
            course = self._courses[key] = _Course(sender, now)
            self._next = min(self._next, now + self.horizon)
        self._goes_on(course, now, retry)
        before = self._current.get(sender)
        if before == key:
            return None
        self._current[sender] = key
        if before is None or before not in self._courses:
            return None
        self._courses[before].left = self._courses[before].ever_left = True
        return before

    def _goes_on(self, course: _Course, now: float, retry: bool) -> None:
        if not retry:
            course.gap = max(course.gap, now - course.last)
        course.last = now
        if course.left:
            course.left, course.returned = False, True
            self.habits.come_back(course.sender)
        if course.list_complete:
            course.list_complete, course.list_final = False, False
            self.habits.catch(course.sender)

    def resume(self, key: str, sender: str, now: float) -> None:
        """A series of an earlier life, of which more may come: waiting starts anew."""
        if key not in self._courses:
            self._courses[key] = _Course(sender, now)
            self._next = min(self._next, now + self.horizon)

    def list_is_complete(self, key: str) -> None:
        """Its sender's lists name exactly what is here."""
        course = self._courses.get(key)
        if course is not None and not course.list_complete:
            course.list_complete = True
            course.list_final = course.list_final is not False

    @property
    def keys(self) -> set[str]:
        return set(self._courses)

    def moved_on(self, key: str) -> bool:
        course = self._courses.get(key)
        return course is not None and course.left

    def over(self, now: float) -> Iterator[tuple[str, Outcome]]:
        """The series that nothing came of for the whole horizon, each once, with what they taught."""
        if now < self._next:
            return
        done = [key for key, course in self._courses.items() if now >= course.last + self.horizon]
        for key in done:
            course = self._courses.pop(key)
            if self._current.get(course.sender) == key:
                del self._current[course.sender]
            outcome = course.outcome()
            self.habits.learn(outcome)
            yield key, outcome
        self._next = min((course.last + self.horizon for course in self._courses.values()), default=float("inf"))

    @property
    def next(self) -> float:
        """When `over` may have something to say."""
        return self._next
