"""What the plugins say of a revision, made into a plan: whose it is, where it goes, under which names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from sorter.config.lab import LabFile
from sorter.errors import PluginError, SorterError
from sorter.model import (
    DICOM,
    Delivery,
    Hold,
    Identity,
    Instance,
    Name,
    Only,
    Plan,
    Product,
    Revision,
    Series,
    Skip,
    Source,
    Standing,
    UnitKind,
    Value,
)
from sorter.naming import Pattern, file_name, folder_name, instance_names, values_of
from sorter.pipeline.recipes import Recipes
from sorter.plugins import Plugins
from sorter.plugins.asking import Identified
from sorter.spool import Unit
from sorter.spool.layout import now
from sorter.spool.recovered import Recovered
from sorter.spool.veils import Veil

NOBODY = Identity()

Recoveries: TypeAlias = Mapping[tuple[str, str], Recovered]
"""By (product, target)."""
NOTHING: Recoveries = {}


@dataclass(frozen=True, slots=True)
class NoPlan:
    """Nothing is delivered for now: "held" (a person or a plugin has to decide) or "kept" (nobody wants it)."""

    state: str
    why: str
    identity: Identity = NOBODY


_EMPTY = LabFile()


class _Held(Exception):
    """Inside planning: stop, and hold with this reason."""


class Planner:
    """Asks the plugins and writes down what they say. Touches no file."""

    def __init__(
        self,
        plugins: Plugins,
        targets: Mapping[str, object],
        wanted: Mapping[str, Sequence[str]],
        labs: Mapping[str, LabFile | None] = MappingProxyType({}),
        veils: Mapping[str, Veil] = MappingProxyType({}),
    ) -> None:
        """`targets` are the configured ones by name, `wanted` the products of those that do not want all.

        `labs` are the labs' own files, which go first for a lab's series at its own root; None: what it says is not
        known, so that nothing of it can be planned. `veils` are of labs that get certain products and nothing else.
        """
        self._plugins, self._targets, self._wanted, self._labs = plugins, targets, wanted, labs
        self.veils = veils
        asked = plugins.products()
        self.products: dict[str, Product] = {answer.value.name: answer.value for answer in asked.answers}
        self.makers = {answer.value.name: answer.plugin for answer in asked.answers}
        self.recipes = Recipes(self.products)

    def plan(
        self, unit: Unit, revision: Revision, previous: Plan | None, recovered: Recoveries = NOTHING
    ) -> Plan | NoPlan:
        """The plan of a revision: what the plan before it says, grown; or a first one.

        `recovered` is what is known of deliveries whose records were lost: a first plan goes on with them.
        """
        series = view(unit, revision)
        identity = Identity()
        try:
            if previous is not None and previous.all_targets and not _corrected(unit, previous):
                return self._grow(unit, revision, previous)
            identity, own = self._identify(unit, series, recovered if previous is None else NOTHING)
            _hold_on(own)
            series = view(unit, revision, identity)
            if series.lab is not None and self._labs.get(series.lab, _EMPTY) is None:
                raise _Held(f"what lab {series.lab} says in its lab.toml is damaged in the spool; save that file again")
            targets = self._route(series, identity)
            if isinstance(targets, NoPlan):
                return targets
            deliveries = self._deliveries(unit, series, targets, [series])
            if not deliveries and not self._is_of_more(series, targets):
                why = f"lab {identity.lab} wants nothing of it; it stays in the store until its rules say otherwise"
                return NoPlan("kept", why, identity)
            if previous is not None:
                deliveries = [self._in_place(unit, identity, each, previous) for each in deliveries]
            else:
                deliveries = [self._as_it_was(unit, identity, each, recovered) for each in deliveries]
        except _Held as held:
            return NoPlan("held", str(held), identity)
        return Plan(unit.key, revision.revision, now(), identity, tuple(deliveries), targets=tuple(targets))

    def plan_together(
        self, unit: Unit, previous: Plan | None, series: Series, parts: Sequence[Series], targets: Sequence[str]
    ) -> Plan | NoPlan:
        """The plan of a study or subject, which `parts` are: to `targets`, where these go, goes what is made of it.

        What was said stays; what a series that came later made possible is added.
        """
        try:
            deliveries = self._deliveries(unit, series, targets, parts)
            if previous is not None:
                deliveries = [self._in_place(unit, series.identity, each, previous) for each in deliveries]
                if series.identity == previous.identity:
                    known = {(each.product, each.target) for each in previous.deliveries}
                    new = [each for each in deliveries if (each.product, each.target) not in known]
                    deliveries = [*previous.deliveries, *new]
        except _Held as held:
            return NoPlan("held", str(held), series.identity)
        return Plan(unit.key, series.revision, now(), series.identity, tuple(deliveries))

    def _deliveries(
        self, unit: Unit, series: Series, targets: Sequence[str], parts: Sequence[Series]
    ) -> list[Delivery]:  # fmt: skip
        return [
            replace(self._delivery(unit, series, product, target), since=series.revision)
            for target in targets
            for product in self._products(series, target, parts)
        ]

    def _identify(self, unit: Unit, series: Series, recovered: Recoveries) -> tuple[Identity, tuple[PluginError, ...]]:
        """Whose it was, where its records were lost; else whose the plugins say it is. What people said goes first.

        With what the lab's own plugins got wrong: then it is that lab's, and held.
        """
        known = [each.identity for each in recovered.values() if each.identity.lab is not None]
        identity, failures, own = Identified(known[0], ()) if known else self._plugins.identify(series)
        _hold_on(failures)
        identity = unit.decided.over(identity) if unit.decided else identity
        veil = self.veils.get(identity.lab or "")
        if veil is not None:
            identity = replace(identity, subject=veil.subject(identity.subject, unit.face))
        return identity, own

    def _as_it_was(self, unit: Unit, identity: Identity, new: Delivery, recovered: Recoveries) -> Delivery:
        """A delivery whose records were lost: the folder where it lies, and the names that the images have there."""
        before = recovered.get((new.product, new.target))
        if before is None:
            return new
        names = new.names
        if new.product == DICOM:
            kept = {each.file: before.names[each.sha256] for each in unit.deliverable if each.sha256 in before.names}
            names = instance_names(Pattern(new.pattern.file, file=True), _whole(unit), values_of({}, identity), kept)
        return replace(new, folder=before.folder, names=names)

    def _route(self, series: Series, identity: Identity) -> Sequence[str] | NoPlan:
        route, _, failures = self._plugins.route(series)
        _hold_on(failures)
        if isinstance(route, Hold):
            return NoPlan("held", route.why, identity)
        if isinstance(route, Skip):
            return NoPlan("kept", route.why, identity)
        if route is None or not route.targets:
            lab = identity.lab
            why = "no lab's match fits it" if lab is None else f"nothing says where series of lab {lab} go"
            return NoPlan("kept", f"{why}; it stays in the store until a rule does", identity)
        unknown = sorted(set(route.targets) - set(self._targets))
        if unknown:
            known = ", ".join(sorted(self._targets)) or "none"
            kind = "only" if isinstance(route, Only) else "also"
            raise _Held(f"it should {kind} go to {', '.join(unknown)}, which is no configured target (known: {known})")
        return tuple(dict.fromkeys(route.targets))

    def _products(self, series: Series, target: str, parts: Sequence[Series]) -> list[str]:
        """What the target gets of this unit; `parts` are the series that it is."""
        wanted = self._wanted_at(series, target, parts)
        wanted = [name for name in wanted if self.may_leave(series.lab, name) and self.may_leave(target, name)]
        return [name for name in wanted if self._is_of(name, series.kind) and self._fits(name, parts)]

    def may_leave(self, lab: str | None, product: str) -> bool:
        """May this product of the lab's series go anywhere?"""
        veil = self.veils.get(lab or "")
        return veil is None or product in veil.only

    def _wanted_at(self, series: Series, target: str, parts: Sequence[Series]) -> Sequence[str]:
        own = self._labs.get(target) if target == series.lab else None
        wanted: Sequence[str] | None = own.products(series) if own is not None else None
        wanted = self._wanted.get(target) if wanted is None else wanted
        if wanted is not None:
            return wanted
        veil = self.veils.get(series.lab or "")
        if veil is not None:
            return veil.only
        fitting = [name for name, each in self.products.items() if not each.merge and self._fits(name, parts)]
        return self.recipes.without_replaced([DICOM, *fitting])

    def _fits(self, name: str, parts: Sequence[Series]) -> bool:
        return name == DICOM or (name in self.products and any(self.recipes.takes(name, each) for each in parts))

    def _is_of(self, name: str, kind: UnitKind) -> bool:
        return kind is (UnitKind.SERIES if name == DICOM else self.products[name].of if name in self.products else None)

    def made_of_more(self, series: Series, targets: Sequence[str]) -> set[UnitKind]:
        """Study and subject, where something is made of them: for anybody, or, of what has to be asked for, here."""
        asked = {name for target in targets for name in self._wanted_at(series, target, [series])}
        made = {each.of for name, each in self.products.items() if not each.merge or name in asked}
        return made - {UnitKind.SERIES}

    def _is_of_more(self, series: Series, targets: Sequence[str]) -> bool:
        """Is nothing of it wanted but what is made of all its study, or of all of its subject?"""
        wanted = (name for target in targets for name in self._wanted_at(series, target, [series])
                  if self.may_leave(series.lab, name) and self.may_leave(target, name))  # fmt: skip
        return any(not self._is_of(name, UnitKind.SERIES) and self._fits(name, [series]) for name in wanted)

    def _delivery(self, unit: Unit, series: Series, product: str, target: str) -> Delivery:
        name, _, failures = self._plugins.name(series, product, target)
        _hold_on(failures)
        if name is None:
            raise _Held(f"no plugin names the product {product} for target {target}")
        try:
            return self._named(unit, series.identity, product, target, name)
        except SorterError as error:
            raise _Held(f"the names for {product} at {target} cannot be made: {error}") from None

    def _named(self, unit: Unit, identity: Identity, product: str, target: str, name: Name) -> Delivery:
        veil = self.veils.get(identity.lab or "")
        face = {**unit.face, **_instead(unit)} if veil is None else veil.header(unit.face)
        values = values_of(face, identity)
        folder = folder_name(Pattern(name.folder), values)
        if product == DICOM:
            names = instance_names(Pattern(name.file, file=True), _whole(unit), values_of({}, identity), {})
            return Delivery(product, target, folder, names=names, pattern=name)
        return Delivery(product, target, folder, stem=file_name(Pattern(name.file, file=True), values), pattern=name)

    def _in_place(self, unit: Unit, identity: Identity, new: Delivery, previous: Plan) -> Delivery:
        """Where a correction changes neither target nor folder, what is there is grown, with the names it has."""
        before = next((each for each in previous.deliveries if _place(each) == _place(new)), None)
        if before is None:
            return new
        names, pattern = new.names, Pattern(new.pattern.file, file=True)
        anew = identity != previous.identity and _OF_A_SUBJECT.intersection(pattern.fields)
        if new.product == DICOM and not anew and new.pattern.file == before.pattern.file:
            names = instance_names(pattern, _whole(unit), values_of({}, identity), _names(unit, before))
        return replace(new, names=names, since=before.since)

    def _grow(self, unit: Unit, revision: Revision, previous: Plan) -> Plan:
        """Everything that was said stays; only the newcomers are named."""
        common = values_of({}, previous.identity)
        grown = []
        for each in previous.deliveries:
            names = each.names
            if each.product == DICOM:
                names = instance_names(Pattern(each.pattern.file, file=True), _whole(unit), common, _names(unit, each))
            grown.append(replace(each, names=names))
        return replace(previous, revision=revision.revision, made=now(), deliveries=tuple(grown))


def _names(unit: Unit, before: Delivery) -> dict[str, str]:
    """The names that there are by now: a copy that superseded another has its name."""
    free = {unit.instances[file].sop_uid: name
            for file, name in before.names.items() if not unit.instances[file].deliverable}  # fmt: skip
    names = {file: name for file, name in before.names.items() if unit.instances[file].deliverable}
    for each in unit.deliverable:
        if each.file not in names and each.standing is Standing.CURRENT and each.sop_uid in free:
            names[each.file] = free.pop(each.sop_uid)
    return names


def _place(delivery: Delivery) -> tuple[str, str, str]:
    return delivery.product, delivery.target, delivery.folder


def _corrected(unit: Unit, previous: Plan) -> bool:
    """Is what was said of the unit no longer so? Somebody decided since; or the image whose header spoke for it was
    superseded, and all of them say something else now.

    While only some were sent again, one that was not speaks for the unit, and all stay together where they are.
    """
    if previous.revision <= unit.outdated:
        return True
    before = unit.revision(previous.revision).instances
    face = next((each.file for each in before if each.standing is Standing.CURRENT), None)
    return face is not None and unit.instances[face].standing is not Standing.CURRENT


def _hold_on(failures: Iterable[PluginError]) -> None:
    """What one plugin got wrong holds the series: an answer without it might send data to the wrong place."""
    said = [str(failure) for failure in failures]
    if said:
        raise _Held("; ".join(said))


def _whole(unit: Unit) -> list[Instance]:
    """The instances to deliver, each with all the header values that names are made of."""
    instead = _instead(unit)
    return [replace(each, header={**unit.header(each), **instead}) for each in unit.deliverable]


def _instead(unit: Unit) -> dict[str, Value]:
    """What names are made of in place of header values, where a person said what the subject is called."""
    return unit.decided.instead if unit.decided else {}


_OF_A_SUBJECT = {"subject", "session", "lab", "PatientID", "PatientName"}
"""Fields of patterns that another subject changes."""


def _sources(unit: Unit) -> Iterator[Source]:
    """Everybody who brought some of it, once; the associations left out."""
    seen = set()
    for each in unit.instances.values():
        source = each.source
        who = (source.calling, source.called, source.address, source.uid, source.drop)
        if who not in seen:
            seen.add(who)
            yield replace(source, association="")


def view(unit: Unit, revision: Revision | None, identity: Identity = NOBODY) -> Series:
    """What plugins see of a unit."""

    def ask(keyword: str) -> tuple[Value, ...]:
        found = (unit.header(each).get(keyword) for each in unit.deliverable)
        return tuple(dict.fromkeys(value for value in found if value is not None))

    return Series(
        key=unit.key,
        kind=unit.kind,
        study_uid=unit.study_uid,
        series_uids=unit.series_uids,
        header=unit.face,
        count=len(unit.deliverable),
        sources=tuple(_sources(unit)),
        identity=identity,
        verdict=revision.verdict if revision else None,
        revision=revision.revision if revision else 0,
        ask=ask,
    )
