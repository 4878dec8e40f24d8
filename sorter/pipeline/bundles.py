"""Studies and subjects as units of their own, where a plugin makes something of all their series together.

Each belongs to one lab, and goes where its series go. That something of a series changes is written into the evidence
of its study and its subject before it happens (`coming`); once all studies of it have settled, the series are looked
at, and if they are not what they were, there is a new revision (`gather`). So what is seen here are hints, and the
folders are the truth: after a crash it is all done again from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from sorter.model import Header, Identity, Plan, Revision, Series, Standing, UnitKind, Value, Verdict
from sorter.pipeline.planning import NoPlan, Planner, view
from sorter.pipeline.units import Live
from sorter.spool import Spool
from sorter.spool.bundles import Bundle
from sorter.spool.layout import now as wall_clock

STEP = 20
"""Studies and subjects that one turn looks at."""


@dataclass(slots=True)
class Bundles:
    """`members` says of a study which revisions of its series it settled with, None while it waits to settle.

    `withhold` takes back what of one of these units still waits for a target, `forget` removes what was made of it, and
    lies in the store or is in the making. `published` goes on with one that has a new revision, `looked_at` with one
    that has none, but perhaps another verdict.
    """

    spool: Spool
    planner: Callable[[], Planner]
    live: Callable[[str], Live]
    members: Callable[[str], Mapping[str, int] | None]
    withhold: Callable[[str], None]
    forget: Callable[[Live], None]
    published: Callable[[Live], None]
    looked_at: Callable[[Live], None]
    _due: dict[str, None] = field(default_factory=dict)
    _of_study: dict[str, set[str]] = field(default_factory=dict)  # study UID -> those that wait for it to settle
    _ready: bool = False  # at the last turn

    # --- what changes -------------------------------------------------------------------------------------------

    def coming(self, live: Live, *plans: Plan | None) -> None:
        """Something of a series is about to change that belongs, or belonged, as these plans say."""
        if live.unit.bundle is not None:
            return
        for bundle in dict.fromkeys(each for plan in plans if plan is not None for each in self._bundles(live, plan)):
            of = self.live(bundle.key)
            if of.unit.bundle is None:
                of.unit.found(bundle)
            of.unit.join(live.key, live.unit.study_uid)
            self.withhold(of.key)  # a series of it may be held, withdrawn or another's by now
            self.look(of)

    def _bundles(self, live: Live, plan: Plan) -> Iterator[Bundle]:
        """Those that something is made of, and those that there are already."""
        lab = plan.identity.lab
        made_of = self.planner().made_of_more(view(live.unit, live.revision, plan.identity), plan.all_targets)
        for kind, of in ((UnitKind.STUDY, live.unit.study_uid), (UnitKind.SUBJECT, _subject(live, plan))):
            if lab is not None and of:
                bundle = Bundle(kind, lab, of)
                if kind in made_of or self.spool.files.exists(self.spool.unit_folder(bundle.key)):
                    yield bundle

    def look(self, of: Live) -> None:
        """It may not be what its last revision says."""
        self._due[of.key] = None
        self._wait(of, of.unit.joined.values())

    def _wait(self, of: Live, studies: Iterable[str]) -> None:
        for uid in studies:
            self._of_study.setdefault(uid, set()).add(of.key)

    def settled(self, study_uid: str) -> None:
        """Its series are what its record says."""
        self._due.update(dict.fromkeys(self._of_study.pop(study_uid, ())))

    # --- what it is now -----------------------------------------------------------------------------------------

    def turn(self, _now: float, *, step: Callable[[str, Callable[[Live], None]], None], ready: bool) -> None:
        """Look at some, if all that came has been looked at."""
        self._ready = ready
        for key in list(islice(self._due, STEP if ready else 0)):
            del self._due[key]
            step(key, self._gather)

    @property
    def more(self) -> bool:
        """Is there something to do at once?"""
        return bool(self._due) and self._ready

    def _gather(self, of: Live) -> None:
        unit = of.unit
        settled = {uid: self.members(uid) for uid in dict.fromkeys(unit.joined.values())}
        waits = [uid for uid, members in settled.items() if members is None]
        if unit.bundle is None or unit.withdrawn or waits:
            self._wait(of, waits)
            return
        every = [self.live(key) for key, uid in unit.joined.items() if key in (settled[uid] or ())]
        mine = [each for each in every if _is_of(unit.bundle, each)]
        if any(each.unit.held for each in mine):  # nothing of it moves; whoever releases it looks here again
            return
        unit.base = _common(mine)
        members = {each.key: each.revision.revision for each in mine if each.revision is not None}
        verdict = min((each.revision.verdict for each in mine if each.revision is not None),
                      key=list(Verdict).index, default=Verdict.QUIET)  # fmt: skip
        before, new, grew = of.revision, members != (of.revision.members if of.revision else {}), of.growing
        if new:
            if before is not None and any(self.live(key).unit.withdrawn for key in before.members.keys() - members):
                self.forget(of)
            self._publish(of, members, verdict)
        if grew:
            unit.gather(unit.base)
        if new:
            self.published(of)
            return
        better = before is not None and members and before.verdict is not verdict
        if before is not None and better:
            self._improve(of, before, verdict)
        if better or grew:
            self.looked_at(of)

    def _publish(self, of: Live, members: Mapping[str, int], verdict: Verdict) -> None:
        number = of.revision.revision + 1 if of.revision else 1
        why = f"the least of its {len(members)} series" if members else "no series is of it any more"
        of.revision = Revision(of.key, of.unit.kind, number, wall_clock(), verdict, (why,), (), members=members)
        of.unit.write_revision(of.revision)
        of.first = of.first or of.revision.made
        of.unit.tell(f"revision {number}: {len(members)} series, {verdict} ({why})")

    def _improve(self, of: Live, before: Revision, verdict: Verdict) -> None:
        of.unit.raise_verdict(before.revision, verdict, before.reasons)
        of.revision = replace(before, verdict=verdict)
        of.unit.tell(f"revision {before.revision} is {verdict} by now")

    def plan(self, of: Live) -> Plan | NoPlan:
        """Where what is made of it goes: to where its series go."""
        assert of.revision is not None
        lives = [(each, each.plan) for each in map(self.live, of.revision.members) if each.plan is not None]
        parts = [view(live.unit, live.revision, plan.identity) for live, plan in lives]
        if not parts:
            identity = of.plan.identity if of.plan else Identity()
            return Plan(of.key, of.revision.revision, wall_clock(), identity, ())
        of.unit.base = _common([live for live, _ in lives])  # a crash may have come before it was written down
        targets = dict.fromkeys(target for _, plan in lives for target in plan.all_targets)
        return self.planner().plan_together(of.unit, of.plan, _together(of, parts), parts, tuple(targets))


def _subject(live: Live, plan: Plan) -> str:
    """What the subject is called by a plan, or by the header that spoke for the series when it was made."""
    if plan.identity.subject:
        return plan.identity.subject
    unit, face = live.unit, live.unit.face
    if live.revision is not None and plan.revision < live.revision.revision:
        was = unit.revision(plan.revision).instances
        first = next((each.file for each in was if each.standing is Standing.CURRENT), None)
        face = unit.header(unit.instances[first]) if first in unit.instances else face
    return str(face.get("PatientID") or face.get("PatientName") or "")


def _is_of(bundle: Bundle, live: Live) -> bool:
    if live.unit.withdrawn or live.plan is None or live.unplanned or live.plan.identity.lab != bundle.lab:
        return False
    return bundle.kind is UnitKind.STUDY or _subject(live, live.plan) == bundle.of


def _common(lives: Sequence[Live]) -> Header:
    """What the headers of these series have in common."""
    faces = [each.unit.face for each in lives]
    first = faces[0] if faces else {}
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in faces)}


def _together(of: Live, parts: Sequence[Series]) -> Series:
    """What plugins see of a study or subject: what its series have in common, and the values of all of them."""
    assert of.revision is not None

    def ask(keyword: str) -> tuple[Value, ...]:
        return tuple(dict.fromkeys(value for each in parts for value in each.values(keyword)))

    def one(values: Iterable[str | None]) -> str | None:
        found = set(values)
        return found.pop() if len(found) == 1 else None

    labels = set.intersection(*(set(each.identity.labels.items()) for each in parts))
    return Series(
        key=of.key,
        kind=of.unit.kind,
        study_uid=of.unit.study_uid,
        series_uids=tuple(uid for each in parts for uid in each.series_uids),
        header=of.unit.face,
        count=sum(each.count for each in parts),
        sources=tuple(dict.fromkeys(source for each in parts for source in each.sources)),
        identity=Identity(
            parts[0].lab, one(each.subject for each in parts), one(each.session for each in parts), dict(sorted(labels))
        ),
        verdict=of.revision.verdict,
        revision=of.revision.revision,
        ask=ask,
    )
