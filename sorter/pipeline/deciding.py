"""What people decide of series in place of the rules: whose they are, and what their subject is called.

A decision is written for all that it is of (`spool.decisions`), then each unit takes it up into its own evidence, and
is planned anew: what was delivered elsewhere is retired as after a correction. The images are never touched. A claim is
a lab's own request: granted by configured trust or by a person, it is a decision too.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sorter.matching import fits_rule
from sorter.model import Event, Identity, Series
from sorter.pipeline.planning import view
from sorter.pipeline.units import Live
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.decisions import Claim, Decision
from sorter.spool.lines import now

STEP = 5
"""Units that one turn takes up, or asks about again, beside its daily work: each is read from its folder."""

MOST_CLAIMS = 200
"""Of one lab that wait for an answer. A member can make as many as there are choices of what is nobody's."""

Trust = Callable[[Series], bool]
"""Is this a series that a lab may claim by itself?"""


def trusting(rules: Sequence[str]) -> Trust:
    """Those that any of these rules `KEYWORD=GLOB` fits."""
    return lambda series: any(fits_rule(rule, series) for rule in rules)


def decision(lab: str | None, subject: str | None, by: str, *, undo: bool = False) -> Decision:
    """A new one, of now."""
    return Decision(uuid.uuid4().hex, lab, subject, undo, by, now())


def moved(folder: str | None) -> str:
    """What is said where something of a delivery has to stay: the same whenever it is asked, so no day is in it, and
    true for good, though it may go on from there.

    `folder`: whereto it went from here; None: it is no more of this target.
    """
    where = f"it went from here to {folder}" if folder is not None else "it does not belong here any more"
    return (
        f"This series was corrected: {where}. What is left here was changed, or added, after sorter "
        "had delivered it; so it stayed. Where the series lies by now, the lab's .sorter/scans.tsv says."
    )


@dataclass(slots=True)
class Deciding:
    """Takes decisions up, and keeps what labs claim.

    `live` gives a unit; `whose` says whose the rules say that it is.
    """

    spool: Spool
    live: Callable[[str], Live]
    whose: Callable[[Live], Identity]
    happened: Callable[..., None]
    tell: Callable[[Event], None]
    trust: Mapping[str, Trust] = field(default_factory=dict)  # by lab: what it may claim without asking anybody
    _due: deque[str] = field(
        default_factory=deque
    )  # of which something was decided; after a restart the walk finds them

    def decide(self, keys: Sequence[str], studies: Sequence[str], said: Decision) -> None:
        """A person says this of these units, and of what comes of these studies later."""
        self.spool.decisions.leave(keys, studies, said)
        self._due.extend(keys)

    def take(self) -> Iterator[str]:
        """The next units to go on with, for something was decided of them."""
        for _ in range(min(STEP, len(self._due))):
            yield self._due.popleft()

    @property
    def is_over(self) -> bool:
        return not self._due

    def take_up(self, live: Live) -> None:
        """Into its own evidence, once; a series that is new takes up what was decided of its study."""
        unit, left = live.unit, self.spool.decisions
        found = left.waiting(live.key)
        if found is None and live.plan is None and not unit.last_decision:
            found = left.of_study(unit.study_uid)
        if found is None:
            return
        if found.id != unit.last_decision and not unit.withdrawn:
            unit.decide(found, live.plan.revision if live.plan else 0)
            unit.tell(_says(found))
            self.happened("decided", live)
        left.taken_up(live.key)

    # --- claims -------------------------------------------------------------------------------------------------

    def claim(self, keys: Sequence[str], lab: str, by: str, *, granted: bool = False) -> None:
        """A lab says that these units are its own. Of what is somebody's already nothing is heard."""
        found = [live for live in self._lives(keys) if not live.unit.withdrawn and self.is_unassigned(live)]
        mine = [live.key for live in found if granted or self._is_trusted(live, lab)]
        if mine:
            self.decide(mine, [], decision(lab, None, by))
        rest = [live for live in found if live.key not in mine]
        if rest:
            self._note(rest, lab, by)

    def answer(self, code: str, *, granted: bool) -> None:
        """A person grants or refuses what a lab claimed."""
        asked = self.spool.claims.find(code)
        if asked is None:
            return
        if granted:
            self.claim(asked.keys, asked.lab, asked.by, granted=True)
        self._end(asked, "granted" if granted else "refused")

    def placed(self, summary: UnitSummary) -> None:
        """How a unit stands now: a claim ends with the last of its units that somebody else got, or that is gone."""
        if _is_free(summary):
            return
        for claim in self.spool.claims.of(summary.key):
            others = (Unit(self.spool, key).summary() for key in claim.keys if key != summary.key)
            if not any(each is None or _is_free(each) for each in others):
                self._end(claim, "granted" if summary.lab == claim.lab else "over")

    def _end(self, claim: Claim, how: str) -> None:
        """Told before it is forgotten: after a crash rather twice than never."""
        details = {"claim": claim.code, "lab": claim.lab, "by": claim.by, "since": claim.at,
                   "series": str(len(claim.keys)), "how": how}  # fmt: skip
        self.tell(Event("claim_ended", at=now(), details=details))
        self.spool.claims.remove(claim.code)

    def is_unassigned(self, live: Live) -> bool:
        if live.plan is not None and not live.outdated:
            return live.plan.identity.lab is None
        said, identity = self.spool.decisions.waiting(live.key) or live.unit.decided, self.whose(live)
        return (said.over(identity) if said else identity).lab is None

    def _lives(self, keys: Sequence[str]) -> Iterator[Live]:
        """Without those that cannot be read now."""
        for key in keys:
            with contextlib.suppress(OSError):
                yield self.live(key)

    def _is_trusted(self, live: Live, lab: str) -> bool:
        return lab in self.trust and self.trust[lab](view(live.unit, live.revision))

    def _note(self, lives: Sequence[Live], lab: str, by: str) -> None:
        """For a person to grant or refuse."""
        claim, waiting = Claim(lab, tuple(sorted(live.key for live in lives)), by, now()), self.spool.claims.waiting()
        if claim.code not in waiting:
            if sum(each.lab == lab for each in waiting.values()) >= MOST_CLAIMS:
                self.spool.note("not claimed", lab=lab, why=f"{MOST_CLAIMS} claims of this lab wait already")
                return
            self.spool.claims.add(claim)
            self.spool.note("claimed", claim=claim.code, lab=lab, series=str(len(lives)))
            for live in lives:
                live.unit.tell(f"lab {lab} claims it; `sorter claim {claim.code} --grant` gives it to that lab")


def _is_free(summary: UnitSummary) -> bool:
    return summary.lab is None and summary.state != "withdrawn"


def _says(decision: Decision) -> str:
    who = f"{decision.by} says" if decision.by else "a person says"
    if decision.undo:
        return f"{who} that what was decided of it before counts no more"
    parts = [f"its subject is {decision.subject}"] * bool(decision.subject)
    parts += [f"it belongs to lab {decision.lab}"] * bool(decision.lab)
    if not parts:
        return f"{who} that the rules are to be asked again for it"
    return f"{who} that {' and that '.join(parts)}; the images are unchanged"


@dataclass(slots=True)
class Reasking:
    """What belongs to no lab is asked about again when the rules changed, some a turn; then what moved is said."""

    report: Callable[[str], None]
    unassigned: set[str] = field(default_factory=set)  # units that were delivered although no lab owns them
    _waiting: deque[str] = field(default_factory=deque)
    _came: Counter[str] = field(default_factory=Counter)

    def begin(self, *, moved: int = 0, stayed: int = 0) -> None:
        """So many of those that were held or kept moved at once; those that were delivered are still to be asked."""
        self._came.update({"go on": moved, "wait as before": stayed})
        self._waiting = deque(sorted(self.unassigned))

    def take(self) -> Iterator[str]:
        """The next ones to be asked about."""
        for _ in range(min(STEP, len(self._waiting))):
            yield self._waiting.popleft()

    @property
    def is_over(self) -> bool:
        return not self._waiting

    def planned(self, live: Live) -> None:
        """Whose it is by now."""
        if live.plan is None or live.plan.identity.lab is not None:
            self.unassigned.discard(live.key)
        else:
            self.unassigned.add(live.key)

    def asked(self, lab: str | None) -> None:
        """Whose one of them is by now."""
        self._came[f"go to lab {lab}" if lab else "stay unassigned"] += 1

    def tell(self) -> None:
        """Once all were asked about: how many go where."""
        counts = {what: count for what, count in sorted(self._came.items()) if count}
        if counts and self.is_over:
            said = ", ".join(f"{count} {what}" for what, count in counts.items())
            self.report(f"the rules were asked again for {sum(counts.values())} series: {said}")
            self._came.clear()
