"""When has a study settled? Who brought it, who went on to another study, and for how long nothing came.

A study has settled when those who sent it went on to another one, or when nothing came of it for long (`Timing.study`).
That is never proof that nothing more comes, so a study that grows afterwards settles again. Here is the pure part; that
no series of it is open any more is seen by the pipeline.

A *sender* here is an AE title at an address together with a scanner: behind one gateway there may be several of them,
and that one scanner begins a new study says nothing of the others. Times are monotonic seconds, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sorter.completion.decide import Timing

RETURNS = 5
"""Studies in a row that a sender has to leave for good, after it came back to one, until its going on counts again."""

MOST_DOUBTED = 1000
"""Senders that are remembered to have come back; of more, those of longest ago are forgotten."""


@dataclass(frozen=True, slots=True)
class StudyState:
    """What is known of a study that has not settled."""

    last: float  # when the last image of it came
    senders: frozenset[str] = frozenset()
    left: Mapping[str, float] = field(default_factory=dict)  # those who sent another study since, and when
    carrying: frozenset[str] = frozenset()  # open associations that brought images of it
    returned: frozenset[str] = frozenset()  # those who came back to it
    unseen: bool = False  # some of it was dropped, or came in an earlier life: who sends it is not known


@dataclass(frozen=True, slots=True)
class Settles:
    """When a study settles if nothing else happens, and as what people will read."""

    due: float
    why: str


def came(state: StudyState, sender: str, association: str, now: float, timing: Timing) -> StudyState:
    """An image of it came. `sender` is "" for what was dropped; `association` only while it is open."""
    went = state.left.get(sender)
    back = went is not None and now - went > timing.quiet  # sooner, two associations may only have overlapped
    return replace(
        state,
        last=now,
        senders=state.senders | {sender} if sender else state.senders,
        left={each: at for each, at in state.left.items() if each != sender},
        carrying=state.carrying | {association} if association else state.carrying,
        returned=state.returned | {sender} if back else state.returned,
        unseen=state.unseen or not sender,
    )


def left(state: StudyState, sender: str, now: float) -> StudyState:
    """One who brought some of it sends another study now."""
    return replace(state, left={**state.left, sender: now})


def ended(state: StudyState, association: str) -> StudyState:
    return replace(state, carrying=state.carrying - {association})


def settles(state: StudyState, moves: Moves, timing: Timing) -> Settles:
    """When this study settles, as far as arrivals say it."""
    gone = state.senders <= state.left.keys() and not any(moves.doubts(each) for each in state.senders)
    if gone and state.senders and not state.unseen:
        return Settles(state.last + min(timing.quiet, timing.study), "its sender went on to another study")
    wait = max(timing.study, timing.cap) if state.carrying else timing.study
    return Settles(state.last + wait, f"nothing came of it for {_long(wait)}")


def _long(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


class Moves:
    """Which study each sender is at, and who is known to come back to one that it left."""

    def __init__(self) -> None:
        self._at: dict[str, str] = {}  # sender -> the study that it sends
        self._doubted: dict[str, int] = {}  # sender -> studies that it still has to leave for good

    def came(self, study: str, sender: str) -> str | None:
        """An image of `study`; returns the study that its sender left for it."""
        before = self._at.get(sender)
        self._at[sender] = study
        return before if before != study else None

    def forget(self, study: str, senders: Iterable[str]) -> None:
        """It has settled: who is still at it cannot leave it any more."""
        for sender in senders:
            if self._at.get(sender) == study:
                del self._at[sender]

    def doubts(self, sender: str) -> bool:
        return sender in self._doubted

    def learn(self, gone: Iterable[str], returned: Iterable[str]) -> None:
        """What one study taught: who left it for good, and who came back."""
        returned = set(returned)
        for sender in gone:
            if sender in self._doubted and sender not in returned:
                self._doubted[sender] -= 1
                if self._doubted[sender] == 0:
                    del self._doubted[sender]
        for sender in returned:
            self.come_back(sender)

    def come_back(self, sender: str) -> None:
        """It sends a study again that it had left."""
        self._doubted.pop(sender, None)
        self._doubted[sender] = RETURNS
        while len(self._doubted) > MOST_DOUBTED:
            del self._doubted[next(iter(self._doubted))]
