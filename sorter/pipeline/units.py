"""The units that something is going on with: loaded from their folders when needed, let go when all is done."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sorter.completion import Arrived, AssociationEnded, DropWhole, Published, State, Timing, step
from sorter.model import DICOM, Instance, Plan, Receipt, Revision, Source
from sorter.pipeline.planning import NoPlan
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.leaving import MAY_LEAVE
from sorter.spool.unit import DELIVERED, CountSaid, DeliveryState, content
from sorter.trust import Like
from sorter.watch.names import is_import


@dataclass(slots=True)
class Live:
    """One unit at work: its records, what completion knows, and what stands between it and its labs."""

    unit: Unit
    state: State = field(default_factory=State)
    revision: Revision | None = None
    plan: Plan | None = None
    no_plan: NoPlan | None = None
    receipts: dict[tuple[str, str], Receipt] = field(default_factory=dict)
    counts: tuple[CountSaid, ...] = ()
    senders: dict[str, None] = field(default_factory=dict)  # of the images that came by network, in order
    asked: list[tuple[Like, int, str]] | None = None  # what plugins said that there should be, and why
    first: str = ""  # when the first revision was made
    asking: bool = False  # its sender is still to be asked what it has
    retiring: list[Receipt] = field(default_factory=list)  # deliveries that a correction has replaced
    behind: set[tuple[str, str]] = field(default_factory=set)  # (product, target) of earlier plans, until looked at
    troubles: dict[tuple[str, str], str] = field(default_factory=dict)  # (product, target) -> why it is not there yet
    unmade: set[tuple[str, str]] = field(default_factory=set)  # (product, target): what of that could not be made
    making: dict[str, str] = field(default_factory=dict)  # product -> how it stands where it is made
    gone: bool = False  # it was withdrawn, and all of it is removed

    @property
    def key(self) -> str:
        return self.unit.key

    @property
    def owed(self) -> list[tuple[str, str]]:
        """(product, target) of the deliveries whose receipt is missing or of an earlier revision, or to be mended."""
        if self.plan is None or self.unit.withdrawn:
            return []
        return [
            (each.product, each.target)
            for each in self.plan.deliveries
            if (receipt := self.receipts.get((each.product, each.target))) is None
            or receipt.revision < self.plan.revision
            or (each.product, each.target) in self.unit.mending
        ]

    @property
    def growing(self) -> bool:
        """Of a study or subject: has something of its series changed that no revision has seen?"""
        return self.unit.gathered < self.unit.changes

    @property
    def unpublished(self) -> bool:
        return content(self.unit.instances.values()) != content(self.revision.instances if self.revision else ())

    @property
    def unplanned(self) -> bool:
        """Is there a revision that no plan has taken up yet?"""
        return self.revision is not None and (self.plan is None or self.plan.revision < self.revision.revision)

    @property
    def nowhere(self) -> bool:
        """Is it of somebody who wants nothing of it, and was taken from where it lay before?"""
        return self.plan is not None and not self.plan.all_targets and self.unit.bundle is None

    @property
    def outdated(self) -> bool:
        """Did somebody decide something since it was planned, and does no later revision take it up?"""
        plan, revision = self.plan, self.revision
        return plan is not None and plan.revision <= self.unit.outdated and plan.revision == (revision or plan).revision

    @property
    def done(self) -> bool:
        if self.unit.withdrawn:
            return self.gone
        settled = not self.state.pending and not self.outdated and not self.growing
        return settled and self.no_plan is None and not self.owed and not self.retiring


class Units:
    """The registry of live units."""

    def __init__(self, spool: Spool, timing: Timing, adopt: Callable[[Unit], None]) -> None:
        """`adopt` counts the images that a crash left in a unit's folder without a line of evidence."""
        self._spool, self._adopt = spool, adopt
        self._live: dict[str, Live] = {}
        self.timing = timing

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._live.values()))

    def __contains__(self, key: str) -> bool:
        return key in self._live

    def get(self, key: str, now: float) -> Live:
        """The live unit of this key; read from its folder if it is not in memory."""
        if key not in self._live:
            unit = Unit.load(self._spool, key)
            if unit.unmentioned:
                self._adopt(unit)
            live = revive(unit, now)
            if live.revision is not None and unit.restore(live.revision):
                live = revive(unit, now)
            self._live[key] = live
        return self._live[key]

    def at_work(self, key: str) -> Live | None:
        """The unit of this key, if something is going on with it."""
        return self._live.get(key)

    def forget(self, key: str) -> None:
        """Let go of what is in memory; the folder knows everything."""
        self._live.pop(key, None)

    def carried_by(self, association: str) -> list[Live]:
        return [live for live in self if association in live.state.carrying]

    def brought_by(self, drop: str) -> list[Live]:
        return [live for live in self if drop in live.state.drops]


def revive(unit: Unit, now: float) -> Live:
    """A unit as its records say; waiting starts anew at `now`."""
    live = Live(unit, revision=unit.latest_revision(), plan=unit.latest_plan(), receipts=unit.receipts())
    live.retiring = unit.retiring()
    sources = dict.fromkeys(each.source for each in unit.instances.values())
    live.senders = {sender: None for source in sources if (sender := source.sender)}
    summary = unit.summary()
    live.counts = summary.counts if summary else ()
    if summary is not None and summary.state == "withdrawn":
        live.gone = bool(unit.withdrawn) and summary.evidence == unit.evidence_size()
    if live.revision is not None:
        live.first = unit.revision(1).made if live.revision.revision > 1 else live.revision.made
        live.state, _ = step(live.state, Published(live.revision.revision, live.revision.verdict), now)
        drops = {each.source.drop for each in live.revision.instances}
        live.state = dataclasses.replace(live.state, before=frozenset(drops - {""}), networked="" in drops)
    published = content(live.revision.instances if live.revision else ())
    waiting = (each for each in unit.deliverable if (each.file, each.standing) not in published)
    for arrived in dict.fromkeys(map(arrival, waiting)):  # all at once: a second that came the same way says nothing
        live.state, _ = step(live.state, arrived, now)
    for association, how in unit.associations.items():
        if how:
            live.state, _ = step(live.state, AssociationEnded(association, how), now)
    for drop in unit.whole_drops:
        live.state, _ = step(live.state, DropWhole(drop), now)
    if live.unpublished and not live.state.pending:  # a copy that was delivered no longer stands
        live.state = dataclasses.replace(live.state, pending=True, last=now, by_network=True)
    return live


def arrival(instance: Instance) -> Arrived:
    return Arrived(instance.source.association, instance.source.drop)


def summarise(live: Live, awaited: str = "images may still come") -> UnitSummary:
    """What `status` and `list` say of a unit; `awaited` is what an open one waits for."""
    unit, face = live.unit, live.unit.face
    identity = live.plan.identity if live.plan else live.no_plan.identity if live.no_plan else None
    state, why = _standing(live, awaited)

    def text(*keywords: str) -> str:
        return next((str(face[keyword]) for keyword in keywords if face.get(keyword) not in (None, "")), "")

    return UnitSummary(
        key=unit.key,
        kind=unit.kind,
        study_uid=unit.study_uid,
        series_uids=unit.series_uids,
        state=state,
        why=why,
        lab=identity.lab if identity else None,
        subject=identity.subject if identity and identity.subject else text("PatientID", "PatientName") or None,
        session=identity.session if identity else None,
        study_date=text("StudyDate"),
        study_time=text("StudyTime"),
        arrived=min((each.arrived[:10].replace("-", "") for each in unit.instances.values()), default=""),
        number=text("SeriesNumber"),
        description=f"(whole {unit.kind})"
        if unit.bundle
        else text("SeriesDescription", "ProtocolName", "SequenceName"),
        modality=text("Modality"),
        scanner=text("DeviceSerialNumber", "StationName"),
        senders=tuple(dict.fromkeys(map(_sender, dict.fromkeys(each.source for each in unit.instances.values())))),
        images=len(unit.deliverable),
        verdict=live.revision.verdict.value if live.revision else "",
        revision=live.revision.revision if live.revision else 0,
        deliveries=tuple(_deliveries(live)),
        evidence=unit.evidence_size(),
        expected=live.state.facts.expected.count if live.state.pending and live.state.facts.expected else 0,
        missing=len(unit.missing),
        asking=live.asking,
        watched=bool(unit.lists) and not unit.at_rest,
        taught=unit.taught,
        counts=live.counts,
        **_in_store(live),
    )


def _in_store(live: Live) -> dict[str, Any]:
    """What of it lies in the store, and what left it."""
    unit = live.unit
    here = [each for each in unit.instances.values() if each.file not in unit.left]
    return {
        "stored": dict(Counter(each.standing.value for each in here)),
        "size": sum(each.size for each in here),
        "leaving": sum(each.size for each in here if each.standing in MAY_LEAVE),
        "left": sum(because == DELIVERED for because in unit.left.values()),
        "day": max((each.day for each in live.receipts.values() if each.product == DICOM), default=0),
    }


def _standing(live: Live, awaited: str) -> tuple[str, str]:
    if live.unit.withdrawn:
        trouble = next(iter(live.troubles.values()), "what was delivered is being taken back")
        why = f"it was withdrawn ({live.unit.withdrawn})"
        return ("withdrawn", why) if live.gone else ("owed", f"{why}; {trouble}")
    if live.state.pending:
        return "open", awaited
    if live.growing:
        return "open", "it waits until what came of its studies has settled"
    if live.no_plan is not None:
        return live.no_plan.state, live.no_plan.why
    if live.unit.held and live.owed:
        return "held", f"a person holds it: {live.unit.held}"
    if live.plan is None or live.unplanned:
        return "kept", "the plugins have not been asked yet"
    if live.outdated:
        return "owed", "what a person decided is being taken up"
    owed = live.owed
    if owed:
        return "owed", live.troubles.get(owed[0]) or live.making.get(owed[0][0], "on its way")
    if live.retiring:
        first = live.retiring[0]
        why = live.troubles.get(
            (first.product, first.target), "what was delivered before a correction is being removed"
        )
        return "owed", why
    if live.nowhere:
        return "kept", "whose it is now wants nothing of it; it stays in the store until their rules say otherwise"
    return "delivered", ""


def _deliveries(live: Live) -> Iterator[DeliveryState]:
    owed = live.owed
    for each in live.plan.deliveries if live.plan else ():
        where = (each.product, each.target)
        receipt = live.receipts.get(where)
        state = "owed" if where in owed else "nothing" if receipt and not receipt.files else "delivered"
        if where in owed and where in live.unmade:
            state = "failed"
        waits = live.troubles.get(where) or live.making.get(each.product, "")
        why = waits if where in owed else receipt.note if receipt else ""
        yield DeliveryState(each.product, each.target, state, why, receipt.folder if receipt else each.folder)


def _sender(source: Source) -> str:
    if source.dropped:
        return "import" if is_import(source.drop) else "incoming/"
    return source.sender or "unknown"
