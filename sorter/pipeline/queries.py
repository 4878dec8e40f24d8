"""Asking a sender what it has: which series are to be asked about, when, and how often.

Silence proves nothing, and the scanner knows. So a series whose verdict would rest on silence is asked about: once for
what is here of it, when its sender has been silent and has no association open, one question at a time to each node. An
acquisition is never disturbed. The questions run in threads beside the one that sorts; whatever they end in is
evidence, and a few tries are all.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from sorter.config import Node
from sorter.model import Source, Verdict
from sorter.pipeline.units import Live

log = logging.getLogger("sorter.sort")

RETRIES = (30.0, 120.0, 600.0)
"""Seconds after each failure until the next try; after the last there is none."""

RECENT = datetime.timedelta(days=1)
"""A series that was published longer ago is not asked about by itself: `sorter ask` does."""

LONGEST = 86400.0
"""Seconds that a question waits for its sender to be silent."""

LOOK = 0.5
"""Seconds between two looks at who is connected."""

BY_SILENCE = (Verdict.QUIET, Verdict.STOPPED, Verdict.INCOMPLETE)


class Question(NamedTuple):
    """Which images does `node` have of these series? The PatientID is for nodes that can be asked in no other way."""

    node: Node
    study_uid: str
    series_uids: tuple[str, ...]
    patient_id: str


class Answer(NamedTuple):
    """The SOP Instance UIDs, or `why` there are none."""

    names: frozenset[str] = frozenset()
    why: str = ""


Ask: TypeAlias = Callable[[Question], Answer]
"""Asks a node. Runs in a thread, and ends in bounded time whatever the node does."""

NodeOf: TypeAlias = Callable[[str], Node | None]
"""The node to ask of a sender (`Source.sender`), as the configuration says now; None where there is none."""


@dataclass(slots=True)
class Case:
    """One unit and one of its senders, to be asked about."""

    key: str
    sender: str
    node: Node
    since: float
    due: float
    images: int = 0  # that were here when it was asked
    tries: int = 0
    by_hand: bool = False  # a person wants to know
    running: bool = False


@dataclass(slots=True)
class Queries:
    """What is to be asked. All but the questions themselves happens in the one thread that sorts; times are monotonic.

    `connected` gives whoever has an association open.
    """

    node_of: NodeOf
    ask: Ask
    connected: Callable[[], Iterable[Source]]
    wake: Callable[[], None]
    _cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    _last: dict[Node, float] = field(default_factory=dict)  # when the last image came of what this node knows
    _look: float = 0.0  # not before, whoever is connected is asked for again
    _answers: deque[tuple[Case, Answer]] = field(default_factory=deque)

    # --- what is to be asked ------------------------------------------------------------------------------------

    def consider(self, live: Live, silence: float, now: float) -> None:
        """Something happened to this unit: are its senders to be asked, after so many seconds without an image?"""
        live.asking = False
        for sender in live.senders:
            node, case = self.node_of(sender), self._cases.get((live.key, sender))
            if node is not None and live.state.pending:
                self._last[node] = max(live.state.last, self._last.get(node, live.state.last))
            if case is not None and (case.running or case.by_hand):
                live.asking = True
            elif node is None or not _wants(live, sender):
                self._cases.pop((live.key, sender), None)
            else:
                live.asking = True
                case = case or Case(live.key, sender, node, now, now)
                case.due = max(case.due, live.state.last + silence) if live.state.pending else case.due
                self._cases[live.key, sender] = case

    def again(self, live: Live, now: float) -> None:
        """A person wants to know: ask, whatever was answered before."""
        for sender in live.senders:
            node, case = self.node_of(sender), self._cases.get((live.key, sender))
            if node is not None and (case is None or not case.running):
                self._cases[live.key, sender] = Case(live.key, sender, node, now, now, by_hand=True)

    # --- asking -------------------------------------------------------------------------------------------------

    def due(self, quiet: float, now: float) -> Iterator[tuple[str, str]]:
        """(key of the unit, sender) of each question to `begin` now. `quiet`: seconds that a sender has been silent."""
        waiting = [case for case in self._cases.values() if not case.running and case.due <= now]
        ready = [case for case in waiting if self._is_current(case)]
        if not ready or now < self._look:
            return
        self._look = now + LOOK
        nodes = {self.node_of(sender) for sender in {source.sender for source in self.connected()}}
        busy = nodes | {case.node for case in self._cases.values() if case.running}
        for case in ready:
            if now - case.since > LONGEST:
                case.tries, case.running = len(RETRIES), True
                self._answers.append((case, Answer(why=f"{case.sender} was never without an association for a day")))
            elif case.node not in busy and now >= self._last.get(case.node, now - quiet) + quiet:
                busy.add(case.node)
                yield case.key, case.sender

    def _is_current(self, case: Case) -> bool:
        """Does the configuration still say whom to ask? If not, the case is closed, and nothing was answered."""
        node = self.node_of(case.sender)
        if node is None:
            del self._cases[case.key, case.sender]
            return False
        case.node = node
        return True

    def begin(self, live: Live, sender: str) -> None:
        """Ask about this unit, in a thread of its own."""
        case, unit = self._cases[live.key, sender], live.unit
        case.running, case.images = True, len(unit.by_sop)
        patient = unit.face.get("PatientID", "")
        question = Question(case.node, unit.study_uid, unit.series_uids, patient if isinstance(patient, str) else "")
        threading.Thread(target=self._run, args=(case, question), name="query", daemon=True).start()

    def _run(self, case: Case, question: Question) -> None:
        try:
            answer = self.ask(question)
        except Exception as error:  # a bug in a question holds up this one only, and is tried again
            log.exception("a question about %s ended by a fault of ours", case.key[:8])
            answer = Answer(why=f"a fault of sorter's own: {type(error).__name__}")
        self._answers.append((case, answer))
        self.wake()

    def answers(self, now: float) -> Iterator[tuple[Case, Answer]]:
        """What was answered, or was asked as often as it may be: each once."""
        while self._answers:
            case, answer = self._answers.popleft()
            case.running = False
            if answer.why and case.tries < len(RETRIES):
                case.due = now + RETRIES[case.tries]
                case.tries += 1
                log.info("series %s: %s; it is asked again later", case.key[:8], answer.why)
            else:
                del self._cases[case.key, case.sender]
                yield case, answer


def _wants(live: Live, sender: str) -> bool:
    """Would its verdict rest on silence, and was its sender not asked since the last image?"""
    asked = live.unit.asked.get(sender)
    if asked is not None and asked.images == len(live.unit.by_sop):
        return False
    if live.state.pending or live.revision is None:
        return True
    made = datetime.datetime.fromisoformat(live.revision.made)
    if datetime.datetime.now(made.tzinfo) - made > RECENT:
        return False
    return live.revision.verdict in BY_SILENCE
