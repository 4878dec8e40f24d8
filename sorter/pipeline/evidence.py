"""What is known of a unit besides its arrivals, put together for `completion`: counts, structure, lists, habits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from sorter.completion import Expected, Facts, Listing, Outcome, Tracker
from sorter.model import Instance, Standing, build, plain
from sorter.pipeline.planning import view
from sorter.pipeline.units import Live
from sorter.plugins import Plugins
from sorter.spool import UnitSummary
from sorter.spool.unit import CountSaid
from sorter.structure import Structure, structure_of
from sorter.trust import Ledger, Like, judged, like_of, order
from sorter.trust import Outcome as CountOutcome

KINDS = {
    "commitment": "the Storage Commitment request of {}",
    "query": "the list that {} answered with",
}


DROPPED = "incoming/"
"""In place of a sender, for what was dropped."""

MOST_LISTS = 1000
"""Senders' lists that wait for images they name; of more, the oldest are given up."""

MOST_NAMES = 500_000
"""Images that they name together; the same."""


@dataclass(slots=True)
class SenderList:
    """SOP Instance UIDs that a sender named. `known` are those of units here, by unit."""

    kind: str
    sender: str
    names: frozenset[str]
    known: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def all_known(self) -> bool:
        return sum(map(len, self.known.values())) >= len(self.names)


@dataclass(slots=True)
class Witness:
    """Says what is known of a unit, and learns from each."""

    tracker: Tracker
    ledger: Ledger
    plugins: Callable[[], Plugins]
    report: Callable[[str], None]  # what changed in what is trusted
    lists: list[SenderList] = field(default_factory=list)  # those that name images not here yet
    stale: set[str] = field(default_factory=set)  # units to look at again: a list names another unit's images too
    _replay: list[Outcome] = field(default_factory=list)

    def came(self, live: Live, instance: Instance, now: float) -> str | None:
        """A new image; returns the key of the series that its sender left for this one."""
        sender = instance.source.sender or DROPPED
        if sender is not DROPPED:
            live.senders[sender] = None
        return self.tracker.came(live.key, sender, now, retry=live.state.broken)

    def hear(self, kind: str, sender: str, names: Iterable[str]) -> SenderList:
        """A sender's list; what it says of each unit is asked by `facts`."""
        heard = SenderList(kind, sender, frozenset(names))
        self.lists = [*self.lists[1 - MOST_LISTS :], heard]
        while len(self.lists) > 1 and sum(len(each.names) for each in self.lists) > MOST_NAMES:
            del self.lists[0]
        return heard

    def facts(self, live: Live, *, closely: bool = False) -> Facts:
        """What is known now. Only `closely` looks at every image's header, and asks the plugins anew."""
        habits, listing = self.tracker.habits, self._listing(live)
        if listing is not None and listing.exact:
            self.tracker.list_is_complete(live.key)
        facts = Facts(
            have=len(live.unit.by_sop),
            expected=self._expected(live, anew=closely),
            structure=structure(live) if closely else None,
            listing=listing,
            gap=max((habits.gap(each) for each in live.senders), default=0.0),
        )
        return self.of_its_sender(live, facts)

    def of_its_sender(self, live: Live, facts: Facts) -> Facts:
        """The same, with what its sender does by now."""
        leaves = bool(live.senders) and all(self.tracker.habits.leaves(each) for each in live.senders)
        return replace(facts, moved_on=self.tracker.moved_on(live.key), leaves=leaves)

    def _listing(self, live: Live) -> Listing | None:
        here = live.unit.by_sop.keys()
        missing = self._assign(live, here)
        lists = live.unit.lists
        if not lists:
            return None
        habits, named = self.tracker.habits, set[str]().union(*lists.values())
        kind, sender = next(iter(lists))
        answers = set[str]().union(*(names for (kind, _), names in lists.items() if kind == "query"))
        return Listing(
            by=KINDS.get(kind, "a list of {}").format(sender),
            named=len(named | missing),
            missing=tuple(sorted((named | missing) - here)),
            unnamed=len(here - named),
            trusted=all(habits.list_trusted(each) for _, each in lists),
            proven=all(habits.list_proven(each) for _, each in lists),
            stood=live.unit.at_rest and live.unit.taught["list_final"] is True,
            # of an answer that what came since has outgrown, other lists have no more weight
            asked=bool(answers) and (here <= answers or not answers <= here),
        )

    def _assign(self, live: Live, here: Set[str]) -> set[str]:
        """Write down which lists name images of this unit; returns what they name and is nowhere.

        Where a list names images of several units, nobody can say of which one the rest is.
        """
        missing: set[str] = set()
        for each in self.lists:
            mine = each.names & here
            if mine:
                if live.key not in each.known and len(each.known) == 1:
                    self.stale.update(each.known)
                each.known[live.key] = mine
                live.unit.add_list(each.kind, each.sender, mine)
            if len(each.known) == 1 and mine:
                missing |= each.names - mine
        self.lists = [each for each in self.lists if not each.all_known]
        return missing

    # --- counts -------------------------------------------------------------------------------------------------

    def _asked(self, live: Live) -> list[tuple[Like, int, str]]:
        """What the plugins say that there should be: the like of each count, the count, and why."""
        found = []
        for plugin, said in self.plugins().expect(view(live.unit, live.revision)).answers:
            count = said.count if said.count is not None else len(said.instances)
            if count > 0:
                found.append((like_of(live.unit.base, plugin, said), count, said.why))
        return found

    def _expected(self, live: Live, *, anew: bool) -> Expected | None:
        """The count that is trusted; where none is, or they disagree, the first, which is not."""
        if anew or live.asked is None:
            live.asked = self._asked(live)
        asked = live.asked
        trusted = [each for each in asked if self.ledger.trusted(each[0])]
        if not asked:
            return None
        _, count, why = (trusted or asked)[0]
        return Expected(count, len({count for _, count, _ in trusted}) == 1, why)

    def learn_counts(self, live: Live) -> None:
        """A revision was published: which counts were right? Should more come, a later word takes its place."""
        if live.revision is None:
            return
        came, shown = len(live.unit.by_sop), live.state.facts.structure or structure(live)
        said_of, counts = live.asked or self._asked(live), list[CountSaid]()
        for like, count, _ in said_of:
            if judged(count, shown, came) is None:
                self.ledger.forget(like, live.key)  # what an earlier revision seemed to show, too
            else:
                counts.append(CountSaid(like, CountOutcome(live.first, live.key, count, came)))
        live.counts = tuple(counts)
        for said in live.counts:
            changed = self.ledger.note(said.like, said.outcome, time.time())
            if changed:
                self.report(changed)

    # --- what earlier lives learned -----------------------------------------------------------------------------

    def remember(self, summary: UnitSummary) -> None:
        """What a series of an earlier life taught; of senders, only `replay` puts it to use, in its order."""
        for said in summary.counts:
            self.ledger.note(said.like, said.outcome, time.time())
        if summary.taught:
            self._replay.append(build(Outcome, summary.taught))

    def replay(self) -> None:
        now = time.time()
        for outcome in sorted(self._replay, key=lambda each: order(each.at, now)):
            self.tracker.habits.learn(outcome)
        self._replay.clear()


def structure(live: Live) -> Structure:
    """What the images that are current show together; without duplicates and conflict copies."""
    unit = live.unit
    return structure_of([unit.header(each) for each in unit.instances.values() if each.standing is Standing.CURRENT])


def taught(outcome: Outcome, at: str, images: int) -> Mapping[str, Any]:
    """As it is kept in the evidence."""
    found: Mapping[str, Any] = plain(replace(outcome, at=at, images=images))
    return found
