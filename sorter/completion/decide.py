"""The pure decider of one unit: `step(state, event, now) -> (state, effects)`.

Silence proves nothing. So evidence comes first, and what is published for want of anything better is called *quiet*,
never complete:

* **listed**: the sender's own list names exactly what is here (Storage Commitment PS3.4 J, an answer to a query, a drop
  that is whole), or an operator says so;
* **counted**: as many as a count says that has been right at this site before;
* **quiet**: nothing came for the quiet time, and no association that carried it is open;
* **stopped**: fewer than counted, or the last volume is partial, but nothing before it is missing: a run that ended
  early, if nothing more comes for longer;
* **incomplete**: there are holes, or the sender's list names more; said only after the longest wait.

`now` is monotonic seconds. Nothing here knows the wall clock: after a reboot, or a restart of the sorter, waiting
starts anew, and a step of the clock publishes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from sorter.model import Verdict
from sorter.structure import Structure
from sorter.words import counted


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds after the last image."""

    quiet: float = 30.0
    cap: float = 900.0  # at most, even while an association that carried it stays open; of learned gaps too
    aborted: float = 300.0  # in place of `quiet` after an association was aborted or lost: a retry is likely
    stopped: float = 600.0
    incomplete: float = 1800.0
    study: float = 1200.0  # after the last image of a study, until it is settled
    settle: float = 1.0  # until evidence is looked at: what follows within it is looked at once


# --- evidence -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expected:
    """How many there should be. `trusted`: counts of this kind have been right here before."""

    count: int
    trusted: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The senders' lists of this unit, taken together, against what is here.

    `proven`: lists of this kind from this sender have been final before. `stood`: nothing came for the longest wait
    after these were complete. `missing` are the SOP Instance UIDs that are named and not here; `unnamed` counts images
    here that no list names.
    """

    by: str
    named: int
    missing: tuple[str, ...] = ()
    unnamed: int = 0
    trusted: bool = True
    proven: bool = False
    stood: bool = False
    asked: bool = False  # it answers a question about this very unit, so that what it names is surely of it

    @property
    def exact(self) -> bool:
        return self.named > 0 and not self.missing and not self.unnamed


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of a unit besides who is still connected, when it was last looked at."""

    have: int = 0  # different SOP instances
    expected: Expected | None = None
    structure: Structure | None = None  # None: nobody looked yet
    listing: Listing | None = None
    gap: float = 0.0  # seconds that this sender is used to pause within a series
    moved_on: bool = False  # it sends something else since
    leaves: bool = False  # it has never come back to a series that it left


# --- what happens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """Images came that the last revision does not hold; by an association, or in a drop."""

    association: str = ""
    drop: str = ""


@dataclass(frozen=True, slots=True)
class AssociationEnded:
    """`how`: "released", "aborted" or "lost"."""

    association: str
    how: str = "released"


@dataclass(frozen=True, slots=True)
class DropWhole:
    """Every file of this drop has been taken or set aside."""

    drop: str


@dataclass(frozen=True, slots=True)
class Looked:
    """The answer to `Look`; may come unasked too, when something is new."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class Told:
    """An operator says that the unit is complete as it is."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Published:
    """The revision is durable; only now it counts."""

    revision: int
    verdict: Verdict = Verdict.QUIET


Input: TypeAlias = Arrived | AssociationEnded | DropWhole | Looked | Told | Tick | Published


# --- what to do about it --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """Say what is known, by `Looked`. `closely`: at every image, too, for something is about to be published."""

    closely: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """Make the next revision of what is there now. `missing` are SOP Instance UIDs, where they are known."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


Effect: TypeAlias = Look | Publish


@dataclass(frozen=True, slots=True)
class Outlook:
    """What will be done, and when, if nothing else happens: what a unit waits for."""

    due: float
    effect: Effect


@dataclass(frozen=True, slots=True)
class State:
    """What completion knows of one unit."""

    pending: bool = False  # images that no revision holds
    last: float = 0.0  # when the last of them came
    carrying: frozenset[str] = frozenset()  # open associations that brought images of this unit
    broken: bool = False  # one that brought some was aborted or lost, and nothing came since
    drops: frozenset[str] = frozenset()  # drops that brought pending images
    before: frozenset[str] = frozenset()  # drops that brought images of earlier revisions
    whole: frozenset[str] = frozenset()  # of both, the ones that are known to be whole
    by_network: bool = False  # pending images that came by an association
    networked: bool = False  # images of earlier revisions did
    told: bool = False  # an operator called it complete
    looked: bool = False  # `facts` are of what is here now
    facts: Facts = Facts()
    revision: int = 0  # the last one published
    verdict: Verdict | None = None  # of the last one published


def step(state: State, event: Input, now: float, timing: Timing = Timing()) -> tuple[State, tuple[Effect, ...]]:
    """The next state, and what to do. The same inputs always give the same answer; `Tick` may come at any time."""
    state = _take_note(state, event, now)
    ahead = outlook(state, timing)
    return state, (ahead.effect,) if ahead is not None and now >= ahead.due else ()


def deadline(state: State, timing: Timing = Timing()) -> float | None:
    """When `step` should be given a `Tick`, in the time of `now`; None while nothing is awaited."""
    ahead = outlook(state, timing)
    return ahead.due if ahead else None


def _take_note(state: State, event: Input, now: float) -> State:
    match event:
        case Arrived(association, drop):
            return replace(
                state,
                pending=True,
                last=now,
                carrying=state.carrying | {association} if association else state.carrying,
                broken=False,
                drops=state.drops | {drop} if drop else state.drops,
                whole=state.whole - {drop},
                by_network=state.by_network or not drop,
                told=False,
                looked=False,
            )
        case AssociationEnded(association, how):
            broken = state.broken or (how != "released" and association in state.carrying)
            return replace(state, carrying=state.carrying - {association}, broken=broken)
        case DropWhole(drop):
            return replace(state, whole=state.whole | ({drop} & (state.drops | state.before)))
        case Looked(facts):
            return replace(state, looked=True, facts=facts)
        case Told():
            return replace(state, told=state.pending or state.revision > 0)
        case Published(revision, verdict):
            return State(
                last=state.last,
                carrying=state.carrying,
                broken=state.broken,
                before=state.before | state.drops,
                whole=state.whole,
                networked=state.networked or state.by_network,
                looked=state.looked,
                facts=state.facts,
                revision=revision,
                verdict=verdict,
            )
        case Tick():
            return state


def outlook(state: State, timing: Timing = Timing()) -> Outlook | None:
    """What this unit waits for."""
    if not state.pending:
        return _upgrade(state, timing)
    if state.told:
        return Outlook(state.last, _TOLD)
    if state.drops and state.drops | state.before == state.whole and not (state.by_network or state.networked):
        return Outlook(state.last, Publish(Verdict.LISTED, ("all of it came in a drop that is whole",)))
    if not state.looked:
        return Outlook(state.last + timing.settle, Look())
    ahead = _listed(state, timing) or _counted(state, timing) or _short(state, timing) or _quiet(state, timing)
    return Outlook(ahead.due, Look(closely=True)) if state.facts.structure is None else ahead


_TOLD = Publish(Verdict.LISTED, ("an operator called it complete",))


def _upgrade(state: State, timing: Timing) -> Outlook | None:
    """All of it is published; a list that comes later may still say more of it, or that there is more."""
    if state.revision == 0 or state.verdict is Verdict.LISTED:
        return None
    ahead = Outlook(state.last, _TOLD) if state.told else _listed(state, timing) or _lacking(state)
    if ahead is not None and state.facts.structure is None and not state.told:
        return Outlook(ahead.due, Look(closely=True))
    return ahead


def _listed(state: State, timing: Timing) -> Outlook | None:
    """The sender's list names exactly what is here.

    A list of a kind that proved final before is believed at once, and so is the answer to a question, unless its sender
    may be in the middle: an association that carried this is still open and brings nothing else, or a count or the
    volumes themselves say that more is to come. Any other list only raises what was published, once it stood the
    longest wait: some senders ask for commitment of every batch, and a first batch looks like a whole series.
    """
    facts, listing = state.facts, state.facts.listing
    if not state.looked or listing is None or not listing.exact or not listing.trusted:
        return None
    due = state.last + timing.settle
    if not listing.proven:
        if not listing.asked and (state.pending or not listing.stood):
            return None
        if facts.expected is not None and facts.expected.count > facts.have:
            return None
        if _lacks(facts.structure):
            return None
        if state.carrying and not facts.moved_on:
            due = state.last + timing.cap
    return Outlook(due, Publish(Verdict.LISTED, (f"{listing.by} names exactly these {listing.named}",)))


def _lacking(state: State) -> Outlook | None:
    """Its sender was asked what it has, and has more than was published: then that was not whole."""
    listing = state.facts.listing
    if not state.looked or listing is None or not (listing.asked and listing.trusted and listing.missing):
        return None
    if state.verdict is Verdict.INCOMPLETE:
        return None
    return Outlook(state.last, Publish(Verdict.INCOMPLETE, (_names_more(listing),), listing.missing))


def _names_more(listing: Listing) -> str:
    return f"{listing.by} names {counted(len(listing.missing), 'images that are')} not here"


def _lacks(structure: Structure | None) -> bool:
    """The images themselves show that some are missing."""
    return structure is not None and structure.known and not structure.whole


def _counted(state: State, timing: Timing) -> Outlook | None:
    expected, structure = state.facts.expected, state.facts.structure
    if expected is None or not expected.trusted or expected.count != state.facts.have:
        return None
    if _lacks(structure):
        return None
    return Outlook(state.last + timing.settle, Publish(Verdict.COUNTED, (expected.why or f"{expected.count} counted",)))


def _short(state: State, timing: Timing) -> Outlook | None:
    """Something says that more should be here: wait longer, and then say what is missing."""
    facts = state.facts
    holes = facts.structure.holes if facts.structure else ()
    listing = facts.listing if facts.listing and facts.listing.trusted else None
    if listing is not None and listing.missing:
        reasons = (_names_more(listing), *holes)
        return Outlook(state.last + timing.incomplete, Publish(Verdict.INCOMPLETE, reasons, listing.missing))
    if holes:
        return Outlook(state.last + timing.incomplete, Publish(Verdict.INCOMPLETE, holes))
    said = ""
    if facts.expected is not None and facts.expected.trusted and facts.expected.count > facts.have:
        said = f"{facts.have} of {facts.expected.count} images came ({facts.expected.why})".replace(" ()", "")
    elif facts.structure is not None and facts.structure.stopped:
        said = facts.structure.why
    if not said:
        return None
    wait = timing.cap if state.carrying else timing.quiet if _has_left(state) else min(timing.stopped, timing.cap)
    return Outlook(state.last + max(wait, timing.quiet), Publish(Verdict.STOPPED, (f"{said}: the run ended early",)))


def _quiet(state: State, timing: Timing) -> Outlook:
    facts = state.facts
    if state.carrying:
        said = f"no image for {timing.cap:g} s, though its association is still open"
        return Outlook(state.last + timing.cap, Publish(Verdict.QUIET, (said,)))
    wait = timing.quiet if _has_left(state) else max(timing.quiet, facts.gap)
    if state.broken:
        wait = max(wait, timing.aborted)
    wait = min(wait, timing.cap)
    unknown = "how many there should be is not known"
    if facts.expected is not None:
        unknown = f"{facts.expected.count} were expected, but such counts have not been right here often enough"
        if facts.expected.trusted:
            unknown = f"more came than the {facts.expected.count} that were expected"
    return Outlook(state.last + wait, Publish(Verdict.QUIET, (f"no image for {wait:g} s; {unknown}",)))


def _has_left(state: State) -> bool:
    """The sender is at something else, and has never come back to a series that it left."""
    return state.facts.moved_on and state.facts.leaves and not state.broken
