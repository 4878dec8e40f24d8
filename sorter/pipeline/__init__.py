"""The story of a series: taken, settled, published, planned, made, delivered. All of it passes here, in this order.

One thread calls `Pipeline.turn` whenever something may have happened; a turn does a bounded amount of work and says
when it wants to be called at the latest. It never waits: the workers of targets and products run beside it, and their
answers are collected here. Every step is durable before the next begins, so that a turn may end anywhere, for ever, and
the next life goes on from the folders alone.

The same holds for one unit: where the disk fails in the middle of a step, its memory is let go, and after a while it is
taken up again from its folder (`_apart`). Neither does one that cannot be read stop the others.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Any

from sorter.completion import DropWhole, Publish, Told
from sorter.deliver.target import Done, Later, Put, Refused, Removed, Result, Wanted
from sorter.engine.work import Outcome
from sorter.model import (
    DICOM,
    Delivered,
    Delivery,
    Event,
    Identity,
    Instance,
    Plan,
    Receipt,
    Revision,
    UnitKind,
    plain,
)  # fmt: skip
from sorter.pipeline.alarms import Alarms, Clocks
from sorter.pipeline.archives import Read
from sorter.pipeline.bundles import Bundles
from sorter.pipeline.deciding import Deciding, Reasking, decision, moved
from sorter.pipeline.evidence import Witness
from sorter.pipeline.exporting import Exporting
from sorter.pipeline.intake import Intake, Whole
from sorter.pipeline.making import Making, Waits
from sorter.pipeline.outlets import Outlets
from sorter.pipeline.planning import NOTHING, NoPlan, Planner, view
from sorter.pipeline.queries import Answer, Case, Queries
from sorter.pipeline.recall import Recall, dispensable, is_same_delivery, lacking, only_there
from sorter.pipeline.retention import Retention
from sorter.pipeline.settling import Settling
from sorter.pipeline.studies import Studies
from sorter.pipeline.units import Live, Units, summarise
from sorter.pipeline.withdrawing import Withdrawing
from sorter.pipeline.workshop import Workshop
from sorter.plugins import Plugins
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.alarms import AlarmFile
from sorter.spool.by_sop import BySop
from sorter.spool.exports import is_export
from sorter.spool.layout import now as wall_clock
from sorter.spool.studies import StudyRecord, StudyRecords
from sorter.spool.unit import Asked
from sorter.take.filing import Filed
from sorter.take.received import Ended

log = logging.getLogger("sorter.sort")

STORE = "store"
"""In place of a target, where a person wants mended what is damaged in the store itself."""

WALK_STEP = 50
"""Units of the store that one turn looks at after the start, beside its daily work."""

PAUSE = 30.0
"""Seconds until a unit that the disk failed is taken up again from its folder."""

SUM_UP_EVERY = 1.0
"""Seconds between two summaries while images come: each says of all images what the evidence knows already."""


def _nobody(_: UnitSummary | Event) -> None:
    """Whoever is told of nothing."""


@dataclass(slots=True)
class Pipeline:
    """The one owner of everything that is decided about units. `told` hears how each stands, and what happened."""

    spool: Spool
    plugins: Plugins
    planner: Planner
    units: Units
    intake: Intake
    workshop: Workshop
    outlets: Outlets
    witness: InitVar[Witness]
    queries: Queries
    index: BySop | None = None
    clocks: Clocks = field(default_factory=Clocks)
    told: Callable[[UnitSummary | Event], None] = _nobody
    now: float = 0.0
    settling: Settling = field(init=False)
    studies: Studies = field(init=False)
    exporting: Exporting = field(init=False)
    withdrawing: Withdrawing = field(init=False)
    alarms: Alarms = field(init=False)
    deciding: Deciding = field(init=False)
    reasking: Reasking = field(init=False)
    making: Making = field(init=False)
    bundles: Bundles = field(init=False)
    recall: Recall = field(init=False)
    retention: Retention = field(init=False)
    _walk: Iterator[str] | None = field(init=False)  # what of the store has not been looked at since the start
    _walk_at: float = 0.0  # not before
    _unlisted: str = ""  # why some of it cannot be looked at, "" while it can
    _news: deque[Filed | Ended | Whole | Read] = field(default_factory=deque)  # taken, and not noted yet
    _ends: Counter[str] = field(default_factory=Counter)  # associations whose end is among it
    _touched: set[str] = field(default_factory=set)  # units to be summed up in this turn
    _failed: dict[str, tuple[float, str]] = field(default_factory=dict)  # when to take up again which units, and why
    _carried: dict[str, int] = field(default_factory=dict)  # images of each open association
    _waiting: set[str] = field(default_factory=set)  # units that are held, or that nobody wants
    _grown: set[str] = field(default_factory=set)  # units of which more came than their summaries say
    _grown_said: float = -SUM_UP_EVERY  # when they were last summed up
    _beyond: str = ""  # why studies, alarms and retention wait, "" while they do not

    def __post_init__(self, witness: Witness) -> None:
        self.settling = Settling(witness, self.units.timing, self.units.at_work, self._publish, self._improve)
        records = StudyRecords(self.spool.studies, self.spool.files)
        self.bundles = Bundles(
            self.spool, lambda: self.planner, self.live, lambda uid: self.studies.members(uid), self._plan,
            self._deliver,
        )  # fmt: skip
        self.studies = Studies(
            records, self.units.timing, self.units.at_work, self._summary, self._study_settled, self.bundles.settled
        )
        self.making = Making(self.workshop, lambda: self.planner, self.live, self._fetch)
        self.exporting = Exporting(self.spool, self.outlets, self._wait_for, self._may_leave)
        self.withdrawing = Withdrawing(self.spool, self.outlets, self.exporting, self.workshop, self._happened)
        self.deciding = Deciding(self.spool, self.live, self._whose, self._happened)
        self.reasking = Reasking(self._tell_reasked)
        self.recall = Recall(self.spool, self.outlets)
        self.retention = Retention(self.spool, self.outlets, self._step, self._happened)
        file = AlarmFile(self.spool.alarms, self.spool.files)
        self.alarms = Alarms(file, self.clocks, self._whose, self._tell_alarm)
        self._walk = self.spool.keys()

    # --- a turn -------------------------------------------------------------------------------------------------

    def turn(self, now: float) -> float:
        """Do what there is to do at `now` (monotonic seconds); returns when to be called again at the latest."""
        self.now = now
        self.intake.look(now)
        for news in self.intake.take(now):
            self._news.append(news)
            if isinstance(news, Ended):
                self._ends[news.association] += 1
        while self._news:
            self._note(self._news.popleft())
        if now - self._grown_said >= SUM_UP_EVERY:
            self._touched |= self._grown
            self._grown_said = now
        for live in self.units:
            with self._apart(live.key):
                if self._judge(live):
                    self._touched.add(live.key)
        self._collect_products()
        self._note_progress()
        self._collect_answers()
        self._collect_removals()
        self._collect_recalled()
        self._query()
        self._try_again()
        self._export()
        self._look_around()
        for key in self.deciding.take():
            self.again(key)
        self._ask_about_unassigned()
        self._look_beyond()
        while self._touched:
            with self._apart(key := self._touched.pop()):
                self._sum_up(self.live(key))
        self._learn()
        self._tell_outages()
        return self._next()

    @contextmanager
    def _apart(self, key: str) -> Iterator[None]:
        """A step of one unit. What the disk does not allow is that unit's trouble alone."""
        try:
            yield
        except OSError as error:
            self.let_go(key, error.strerror or "error")

    def let_go(self, key: str, why: str = "") -> None:
        """Forget what is in memory of a unit whose step failed, and take it up again from its folder in a while."""
        self.units.forget(key)
        self._grown.discard(key)
        self._touched.discard(key)
        self._failed[key] = self.now + PAUSE, why

    def _step(self, key: str, step: Callable[[Live], None]) -> None:
        with self._apart(key):
            step(self.live(key))
            self._touched.add(key)

    def problems(self) -> list[str]:
        """Sentences on what keeps files from being taken, or series from being worked on; [] while nothing does."""
        said = [*self.intake.problems(), *self.outlets.problems(), *filter(None, (self._unlisted, self._beyond))]
        said += [*self.workshop.engine.problems(), *self.plugins.table_faults()]
        for key, why in self.studies.troubles.items():
            said.append(f"study {key[:8]} has settled, which cannot be written down: {why}")
        for why in dict.fromkeys(why for _, why in self._failed.values() if why):
            keys = [key[:8] for key, (_, each) in self._failed.items() if each == why]
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            said.append(f"series {keys[0]}{more} cannot be worked on, and wait: {why}")
        return said

    def _next(self) -> float:
        walking = self._walk is not None and self._walk_at <= self.now
        if walking or self.retention.more or self.bundles.more or not (self.deciding.is_over and self.reasking.is_over):
            return self.now
        times: list[float | None] = [*self.settling.due(self.units)]
        times += [self._walk_at] if self._walk is not None else []
        times += [self.outlets.next, self.intake.next(self.now), self.settling.witness.tracker.next, self.studies.next]
        times += [self._grown_said + SUM_UP_EVERY] if self._grown else []
        times += [due for due, _ in self._failed.values()]
        return min((time for time in times if time is not None), default=self.now + 60)

    def stop(self, timeout: float) -> None:
        """End what runs beside; whatever it did not finish is owed still."""
        self.intake.stop()
        for key in list(self._grown):
            with self._apart(key):
                self._sum_up(self.live(key))
        self.outlets.stop(timeout)
        self.workshop.engine.stop()

    def live(self, key: str) -> Live:
        """The unit of this key, at work again if it was not."""
        fresh = key not in self.units
        try:
            live = self.units.get(key, self.now)
            if fresh:
                self._catch_up(live)
        except OSError as error:
            self.let_go(key, error.strerror or "error")
            raise
        return live

    def _catch_up(self, live: Live) -> None:
        """With what happened while nothing of it was in memory."""
        if self.index is not None and self._is_behind(live.unit):  # a crash came before it was entered
            self.index.note_all(live.key, live.unit.by_sop)
        for association in sorted(live.state.carrying):
            if not self.intake.is_open(association):
                self._end(live, Ended(association, "lost"))

    def unit(self, key: str) -> Unit:
        return self.live(key).unit

    # --- what came ----------------------------------------------------------------------------------------------

    def _note(self, news: Filed | Ended | Whole | Read) -> None:
        match news:
            case Ended():
                self._ends -= Counter([news.association])
                self.studies.ended(news.association)
                for live in self.units.carried_by(news.association):
                    with self._apart(live.key):
                        self._end(live, news)
                        self._grown.add(live.key)
                images = self._carried.pop(news.association, 0)
                self.spool.note("association", association=news.association, ended=news.how, images=images)
            case Whole():
                for live in self.units.brought_by(news.drop):
                    with self._apart(live.key):
                        live.unit.drop_is_whole(news.drop)
                        self.settling.note(live, DropWhole(news.drop), self.now)
                        self._grown.add(live.key)
            case Read():
                self._note_archive(news)
            case Filed():
                self._note_file(news)

    def _note_archive(self, read: Read) -> None:
        self.spool.note(
            "archive",
            ended=read.end.how,
            why=read.end.why,
            entries=read.entries,
            images=read.images,
            known=read.known,
            aside=read.aside,
            without_content=read.end.other,
        )

    def _note_file(self, filed: Filed) -> None:
        if filed.outcome == "aside":
            self.spool.note("set aside", why=filed.why)
        if filed.instance is None:
            return
        self.alarms.heard(filed.instance.source, self.now)
        self.retention.came(filed.key)
        association = filed.instance.source.association
        if association:
            self._carried[association] = self._carried.get(association, 0) + 1
        with self._apart(filed.key):
            live = self.live(filed.key)
            if filed.outcome == "new":
                if self.index is not None:
                    self.index.note(filed.instance.sop_uid, filed.key)
                self._arrived(live, filed.instance)
            self._grown.add(live.key)

    def _arrived(self, live: Live, instance: Instance) -> None:
        if not instance.deliverable:
            live.unit.tell(f"another copy of an image came ({instance.standing}); it is kept, and not delivered")
            return
        if instance.standing != "current":
            live.unit.tell("an image came with the SOP Instance UID of another and other pixels: both are delivered")
        association = instance.source.association
        is_open = bool(association) and (self._ends[association] > 0 or self.intake.is_open(association))
        came = max(self.intake.came, live.state.last) if association else self.now
        self.settling.arrived(live, instance, came, is_open=is_open)
        self.studies.came(live, instance, self.now, is_open=is_open)

    def hear(self, kind: str, sender: str, names: Sequence[str]) -> None:
        """A sender says which images it sent, or has. `kind` is "commitment" or "query"."""
        keys = {live.key for live in self.units} | self.settling.witness.tracker.keys
        if self.index is not None:
            keys = keys.union(*self.index.find(names).values())
        named = self.settling.hear(kind, sender, names)
        for key in keys:
            with self._apart(key):
                self.settling.heard(self.live(key), named, self.now)
                self._judge(self.live(key))
                self._sum_up(self.live(key))

    def _query(self) -> None:
        """Take up what senders answered of the images they have; ask those that have fallen silent."""
        for case, answer in self.queries.answers(self.now):
            with self._apart(case.key):
                self._take_up(self.live(case.key), case, answer)
                self._touched.add(case.key)
        for key, sender in self.queries.due(self.settling.timing.quiet, self.now):
            with self._apart(key):
                self.queries.begin(self.live(key), sender)
                self._touched.add(key)

    def _take_up(self, live: Live, case: Case, answer: Answer) -> None:
        unit, sender, why = live.unit, case.sender, answer.why
        if answer.names and answer.names.isdisjoint(unit.by_sop):
            why = f"{sender} answers with {len(answer.names)} images, none of which is here; it is not believed"
        elif not why and not answer.names:
            why = f"{sender} answers that it knows no image of this series"
        unit.note_asked(sender, Asked(case.images, why))
        if why:
            unit.tell(f"it is not known whether there are more: {why}")
            return
        unit.tell(f"{sender} answers that it has {len(answer.names)} images; {len(unit.by_sop)} are here")
        self.settling.answered(live, sender, answer.names, self.now)
        self._judge(live)

    def ask_sender(self, key: str) -> None:
        """A person wants to know what its sender has."""
        live = self.live(key)
        self.queries.again(live, self.now)
        self._sum_up(live)

    def _end(self, live: Live, ended: Ended) -> None:
        live.unit.end_association(ended.association, ended.how)
        self.settling.ended(live, ended.association, ended.how, self.now)

    # --- complete? ----------------------------------------------------------------------------------------------

    def _judge(self, live: Live) -> bool:
        return (
            not live.unit.withdrawn
            and live.unit.bundle is None
            and self.settling.judge(live, self.now, self._silent(live))
        )

    def _silent(self, live: Live) -> float:
        """Until when nothing of it came, for sure: what lies untaken may be of it. Not heeded beyond the cap."""
        intake, state = self.intake, live.state
        heard = [intake.heard] * state.by_network + [intake.heard_drops] * bool(state.drops)
        return max(min(heard, default=self.now), self.now - self.settling.timing.cap)

    def _improve(self, live: Live, effect: Publish) -> None:
        """Nothing came, but more is known: the verdict rises, or was too good, and no file moves."""
        assert live.revision is not None
        self.bundles.coming(live, live.plan)
        live.unit.raise_verdict(live.revision.revision, effect.verdict, effect.reasons)
        live.revision = replace(live.revision, verdict=effect.verdict, reasons=effect.reasons)
        self.settling.published(live, self.now)
        live.unit.tell(f"revision {live.revision.revision} is {effect.verdict} by now ({'; '.join(effect.reasons)})")
        self._happened("verdict", live, revision=str(live.revision.revision), verdict=effect.verdict.value)
        self._deliver(live)

    def _publish(self, live: Live, effect: Publish) -> None:
        number = (live.revision.revision if live.revision else 0) + 1
        unit = live.unit
        self.alarms.coming(live, self.now)
        live.revision = Revision(
            key=unit.key,
            kind=unit.kind,
            revision=number,
            made=wall_clock(),
            verdict=effect.verdict,
            reasons=effect.reasons,
            instances=tuple(replace(each, header={}) for each in unit.instances.values()),
            missing=effect.missing,
        )
        unit.write_revision(live.revision)
        live.first = live.first or live.revision.made
        self.settling.published(live, self.now)
        count = len(live.revision.deliverable)
        unit.tell(f"revision {number}: {count} images, {effect.verdict} ({'; '.join(effect.reasons)})")
        self._happened("published", live, revision=str(number), verdict=effect.verdict.value, images=str(count))
        self.settling.witness.learn_counts(live)
        self.studies.published(live, self.now)
        self._plan(live)
        if number == 1:
            self._placed(live)

    def _placed(self, live: Live) -> None:
        """What belongs to no lab is counted, once; what is held may belong to one."""
        plan, without = live.plan, live.no_plan
        if plan is not None:
            self.alarms.placed(live, owned=plan.identity.lab is not None)
        elif without is not None and (without.state == "kept" or without.identity.lab is not None):
            self.alarms.placed(live, owned=without.identity.lab is not None)

    # --- where to? ----------------------------------------------------------------------------------------------

    def _plan(self, live: Live) -> None:
        answer = self.bundles.plan(live) if live.unit.bundle else self._ask(live)
        if isinstance(answer, NoPlan):
            if live.no_plan != answer:
                live.unit.tell(f"{answer.state}: {answer.why}")
                self._happened(answer.state, live)
            live.no_plan = answer
            self._waiting.add(live.key)
            return
        self.bundles.coming(live, live.plan, answer)
        live.unit.write_plan(answer)
        live.plan, live.no_plan = answer, None
        self._waiting.discard(live.key)
        if live.unit.bundle is None:
            self.reasking.planned(live)
            if answer.identity.lab is not None:
                self.alarms.owned(live)
        self._deliver(live)
        if live.unit.bundle is not None:  # perhaps nothing of it is to be anywhere any more
            self._retire(live)
        for key in self.making.awaiting(live.key):
            self._step(key, self._deliver)

    def _ask(self, live: Live) -> Plan | NoPlan:
        assert live.revision is not None
        self.deciding.take_up(live)
        lost = self.spool.recoveries.of(live.key) if live.plan is None else NOTHING
        return self.planner.plan(live.unit, live.revision, live.plan, lost)

    def _deliver(self, live: Live) -> None:
        """Start every delivery that is owed and not on its way."""
        plan = live.plan if not live.unit.held and not live.unplanned else None
        for delivery in plan.deliveries if plan else ():
            errand = (live.key, delivery.product, delivery.target)
            assert plan is not None
            if errand[1:] not in live.owed or self.outlets.busy(errand, plan.revision):
                continue
            if not self._may_leave(live, delivery.product):
                live.troubles[errand[1:]] = (
                    f"{delivery.product} may not leave any more: [labs.{plan.identity.lab}] only"
                )
                continue
            if delivery.target not in self.outlets:
                live.troubles[errand[1:]] = f"{delivery.target} is no configured target any more; configure it again"
                continue
            if delivery.product != DICOM:
                self._make_or_send(live, delivery)
            elif not self._wait_for(live, errand[1:], lacking(live, delivery)):
                self._send(live, delivery, self._images(live, delivery))

    def _may_leave(self, live: Live, product: str) -> bool:
        """Is it among what its lab gets, where that gets nothing else?"""
        return live.plan is None or self.planner.may_leave(live.plan.identity.lab, product)

    def _wait_for(self, live: Live, where: tuple[str, str], files: Sequence[str]) -> bool:
        """Are images on their way back that are needed there first? What cannot be had is not waited for."""
        why, later = self._fetch(live, files)
        if why:
            live.troubles[where] = why
        if later:
            self.outlets.try_later((live.key, *where), self.now)
        return bool(why)

    def _fetch(self, live: Live, files: Sequence[str]) -> tuple[str, bool]:
        """(why to wait, is it to be tried again by the caller)"""
        why, later = self.recall.fetch(live, files) if files else ("", False)
        if live.unpublished and not live.state.pending:  # another copy stands for one that nobody has
            live.state = replace(live.state, pending=True, last=self.now, by_network=True)
        return why, later

    def bring_back(self, key: str, files: Sequence[str]) -> tuple[str, list[str]]:
        """Have those of these images in the store that left it: (why to wait, those that cannot be had)."""
        with self._apart(key):
            live = self.live(key)
            gone = [file for file in files if file in live.unit.left]
            why, _ = self.recall.fetch(live, gone) if gone else ("", False)
            return why, [] if why else gone
        return "its records cannot be read now", []

    def _make_or_send(self, live: Live, delivery: Delivery) -> None:
        assert live.revision is not None
        where = (delivery.product, delivery.target)
        made = self.making.provide(live, delivery.product)
        if isinstance(made, Waits):
            if made.why:
                live.troubles[where] = made.why
            if made.later:
                self.outlets.try_later((live.key, *where), self.now)
        elif made.nothing:
            self._take_back(live, where)
            self._receive(live, Receipt(live.key, *where, live.revision.revision, "", (), wall_clock(), made.nothing))
        else:
            self._send(live, delivery, made.wanted(delivery, live.unit.kind))

    def _take_back(self, live: Live, where: tuple[str, str]) -> None:
        """There is nothing to make any more of what was made once: that goes."""
        before = live.receipts.get(where)
        known = before is None or any(is_same_delivery(before, each) for each in live.retiring)
        if before is not None and before.files and not known:
            live.unit.retire(before)
            live.retiring.append(before)

    def _images(self, live: Live, delivery: Delivery) -> list[Wanted]:
        assert live.revision is not None
        return [
            Wanted(delivery.names[each.file], each.sha256, each.size, each.file, gone=each.file in live.unit.left)
            for each in live.revision.deliverable
        ]

    def _send(self, live: Live, delivery: Delivery, files: Sequence[Wanted]) -> None:
        assert live.plan is not None
        waits = self.outlets.submit(
            delivery.target,
            Put(
                id=f"{live.key}-{live.plan.revision}-{delivery.product}",
                key=live.key,
                product=delivery.product,
                revision=live.plan.revision,
                folder=delivery.folder,
                files=tuple(files),
                previous=_before(live, delivery),
                manifest=_manifest(live, shown=self._may_leave(live, DICOM)),
                mend=live.unit.mending.get((delivery.product, delivery.target), ()),
            ),
        )
        if waits:
            self._not_yet(live, delivery.product, delivery.target, waits)

    # --- what came of it ----------------------------------------------------------------------------------------

    def _collect_products(self) -> None:
        for key, product, outcome in self.workshop.finished():
            for each in (key, *self.making.awaiting(key)):
                with self._apart(each):
                    live = self.live(each)
                    if each == key:
                        self._tell_product(live, product, outcome)
                    self._heed(live, product, outcome)
                    self._deliver(live)
                    self.withdrawing.go_on(live)
                    self._touched.add(each)

    def _note_progress(self) -> None:
        for key, product, says in self.workshop.progress():
            live = self.units.at_work(key)
            if live is not None and live.making.get(product, "") != says:
                live.making[product] = says
                self._touched.add(key)

    def _tell_product(self, live: Live, product: str, outcome: Outcome) -> None:
        said = {"made": f"{product} was made: {len(outcome.files)} files", "nothing": f"no {product}: {outcome.why}"}
        live.unit.tell(said.get(outcome.state, f"{product} could not be made: {outcome.why}"), log=outcome.log)
        if outcome.state == "failed":
            self._happened("product failed", live, product=product)

    def _heed(self, live: Live, product: str, outcome: Outcome) -> None:
        """What came of a product, for each delivery of it, or of what it is needed for."""
        for delivery in live.plan.deliveries if live.plan else ():
            where = (delivery.product, delivery.target)
            if product in (delivery.product, *self.planner.recipes.all_needs(delivery.product)):
                live.troubles.pop(where, None)
                if outcome.state == "failed":
                    live.troubles[where] = f"{product} could not be made: {outcome.why}"
                    self.outlets.try_later((live.key, *where), self.now)

    def _collect_answers(self) -> None:
        for target, put, result in self.outlets.answers(self.now):
            with self._apart(put.key):
                self._answered(self.live(put.key), target, put, result)
                self._touched.add(put.key)

    def _export(self) -> None:
        """Send what people want a target to have copies of."""
        for key in self.exporting.due():
            with self._apart(key):
                self.exporting.send(self.live(key))
                self._touched.add(key)

    def _answered(self, live: Live, target: str, put: Put, result: Result) -> None:
        if is_export(put.product):
            self.exporting.answered(live, target, put, result)
            self.withdrawing.go_on(live)
            return
        if isinstance(result, Done):
            where = (put.product, target)
            day, at = self.retention.days.count, wall_clock()
            receipt = Receipt(live.key, *where, put.revision, result.folder, result.files, at, result.note, day=day)
            self._receive(live, receipt)
            self._deliver(live)
            return
        self._not_yet(live, put.product, target, result.why)

    def _not_yet(self, live: Live, product: str, target: str, why: str) -> None:
        if live.troubles.get((product, target)) != why:
            live.unit.tell(f"{product} is not at {target} yet: {why}")
            self._happened("delivery failed", live, product=product, target=target)
        live.troubles[product, target] = why

    def _collect_recalled(self) -> None:
        for key, take in self.recall.answers():
            with self._apart(key):
                why = take(self.live(key).unit)
                for each in (key, *self.making.awaiting(key)):
                    with self._apart(each):
                        self._recalled(self.live(each), why)
                        self._touched.add(each)

    def _recalled(self, live: Live, why: str) -> None:
        """Images that it needs are back, or there is a reason to try it later."""
        if why:
            for product, target in (*live.owed, *((each.product, each.target) for each in live.retiring)):
                self._not_yet(live, product, target, why)
                self.outlets.try_later((live.key, product, target), self.now)
        else:
            self._deliver(live)
            self._retire(live)

    def _look_beyond(self) -> None:
        """At studies, at what did not come, and at what may leave. What the disk does not allow is tried again, and
        holds up nothing.
        """
        ready = self.looked_around and not self.intake.behind and not self._news
        self._beyond = ""
        for turn in (
            partial(self.studies.turn, walked=ready),
            partial(self.alarms.turn, lives=self.units, ready=ready),
            partial(self.retention.turn, ready=ready),
            partial(self.bundles.turn, step=self._step, ready=ready),
        ):
            try:
                turn(self.now)
            except OSError as error:
                self._beyond = f"what there is to tell of studies and days cannot be written down: {error.strerror}"

    def _tell_outages(self) -> None:
        """An event once a target has been out for some time, and another when it is back."""
        for told in self.outlets.outages.news(self.now):
            outage = told.outage
            details = {"target": outage.target, "since": outage.since, "seconds": f"{outage.lasted:.0f}"}
            self.spool.note(told.kind, **details)
            self._tell(Event(told.kind, "", wall_clock(), {**details, "why": outage.why}))

    def _receive(self, live: Live, receipt: Receipt) -> None:
        """Only now it is delivered."""
        where = (receipt.product, receipt.target)
        for replaced in self._replaced(live, where):
            live.unit.retire(replaced)
            live.retiring.append(replaced)
        live.unit.write_receipt(receipt)
        live.receipts[where] = receipt
        live.troubles.pop(where, None)
        if where in live.unit.mending:
            live.unit.mend(where, ())
        note = f" ({receipt.note})" if receipt.note else ""
        if receipt.files:
            live.unit.tell(f"{receipt.product} revision {receipt.revision} delivered to {receipt.target}: "
                           f"{len(receipt.files)} files{note}")  # fmt: skip
            self._happened("delivered", live, product=receipt.product, target=receipt.target)
        if receipt.product != DICOM:
            self.workshop.discard(live, receipt.product, receipt.revision)
        self._retire(live)
        self.withdrawing.go_on(live)

    # --- what a correction replaced -----------------------------------------------------------------------------

    def _replaced(self, live: Live, where: tuple[str, str]) -> list[Receipt]:
        """What corrections that gave it another place here leave at the old ones, a receipt for each.

        The last receipt tells of one of them. Of images the plans since then count too: a disk that fails, or the next
        correction, may come between a delivery and its receipt.
        """
        now_there, before = _delivery(live.plan, where), live.receipts.get(where)
        if now_there is None or (before is not None and before.revision >= now_there.since):
            return []
        places: dict[str, Receipt] = {}
        for plan in live.unit.plans_between(before.revision if before is not None else 1, now_there.since):
            was = _delivery(plan, where)
            if was is None or was.folder == now_there.folder:
                continue
            there = places.get(was.folder)
            if before is not None and plan.revision == before.revision:
                there = before
            files = dict.fromkeys((*(there.files if there else ()), *_images_of(live.unit, was)))
            folder, verified = (there.folder, there.verified) if there else (was.folder, "")  # asked again: the same
            places[was.folder] = Receipt(live.key, *where, plan.revision, folder, tuple(files), verified,
                                         moved=moved(now_there.folder))  # fmt: skip
        return [receipt for receipt in places.values() if receipt.files]

    def _retire(self, live: Live) -> None:
        """Remove what was delivered before a correction, of each product whose successors are all delivered."""
        if live.unit.held or live.unit.withdrawn:
            return
        owed = {product for product, _ in live.owed}
        planned = {(each.product, each.target) for each in live.plan.deliveries} if live.plan else set()
        for where in [where for where in live.receipts if live.plan and where not in planned and where[0] not in owed]:
            receipt = replace(live.receipts.pop(where), moved=moved(None))
            live.unit.retire(receipt)
            live.unit.withdraw_receipt(receipt)
            live.retiring.append(receipt)
        for receipt in list(live.retiring):
            now_there = live.receipts.get((receipt.product, receipt.target))
            if receipt.product in owed or (now_there is not None and now_there.revision <= receipt.revision):
                continue
            if self._wait_for(live, (receipt.product, receipt.target), only_there(live, receipt)):
                continue
            if not self.outlets.remove(replace(receipt, files=dispensable(live, receipt))):
                self._retired(live, receipt, f"{receipt.target} is no configured target any more; remove it by hand")

    def _collect_removals(self) -> None:
        for receipt, result in self.outlets.removals(self.now):
            with self._apart(receipt.key):
                self._removed(self.live(receipt.key), receipt, result)
                self._touched.add(receipt.key)

    def _removed(self, live: Live, receipt: Receipt, result: Removed | Later | Refused) -> None:
        if not isinstance(result, Removed):
            live.troubles[receipt.product, receipt.target] = result.why
            return
        if live.unit.withdrawn:
            self.withdrawing.taken_back(live, receipt, result)
        else:
            said = f"{len(result.removed)} files that were delivered to {receipt.target} before a correction"
            said += f" were removed there{f'; {result.note}' if result.note else ''}"
            kept = next((len(each.files) for each in live.retiring if is_same_delivery(each, receipt)), 0)
            if kept > len(receipt.files):
                said += f"; {kept - len(receipt.files)} stay in {result.folder}: the store has them no more"
            self._retired(live, receipt, said)
        self.withdrawing.go_on(live)

    def _retired(self, live: Live, receipt: Receipt, says: str) -> None:
        live.unit.tell(says)
        live.unit.retired(receipt)
        live.retiring = [each for each in live.retiring if not is_same_delivery(each, receipt)]
        live.troubles.pop((receipt.product, receipt.target), None)
        self._happened("retired", live, product=receipt.product, target=receipt.target)

    def _try_again(self) -> None:
        for key, _, _ in self.outlets.due(self.now):
            with self._apart(key):
                live = self.live(key)
                self._deliver(live)
                self._retire(live)
                self.withdrawing.go_on(live)
                self._touched.add(key)
        for key in [key for key, (due, _) in self._failed.items() if due <= self.now]:
            del self._failed[key]
            with self._apart(key):
                self._go_on(self.live(key))

    def _go_on(self, live: Live) -> None:
        """Go on with a unit from what its folder says; it may be that nothing of it got as far as that."""
        if live.unit.instances or live.unit.bundle:
            self.resume(live)
            self._touched.add(live.key)
        else:
            self.units.forget(live.key)

    # --- the rest of the store ----------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """After the start: a few units a turn, until the whole store has been looked at."""
        for _ in range(WALK_STEP if self._walk is not None and self.now >= self._walk_at else 0):
            assert self._walk is not None
            try:
                key = next(self._walk, None)
            except OSError as error:
                why = f"{self.spool.store} cannot be looked through ({error.strerror}), and is tried again"
                self._unlisted = f"{why}: until then nobody is told of studies or alarms"
                self._walk_at = self.now + PAUSE
                break
            if key is None:
                self._walk, self._unlisted = None, ""
                self.settling.witness.replay()
                self.workshop.engine.all_submitted()
                self.reasking.begin()  # the rules may be others than those of the last life
                break
            with self._apart(key):
                self._look_at(key)

    def _look_at(self, key: str) -> None:
        summary = self._settled(key)
        if summary is None:
            live = self.live(key)
            if live.unit.bundle is None:
                self.settling.witness.learn_counts(live)
                self.settling.resumed(live, self.now)
            self.resume(live)
            self._touched.add(key)
        summary = summary or summarise(self.live(key))
        self.told(summary)
        if summary.kind is not UnitKind.SERIES:
            return
        self.settling.witness.remember(summary)
        self.studies.remember(summary, self.now)
        if summary.lab is None and summary.state in ("owed", "delivered"):
            self.reasking.unassigned.add(key)

    @property
    def looked_around(self) -> bool:
        """Has the whole store been looked at since the start?"""
        return self._walk is None

    def _settled(self, key: str) -> UnitSummary | None:
        """The summary of a unit that nothing has to be done for."""
        unit = Unit(self.spool, key)
        summary = unit.summary()
        if (
            summary is None
            or summary.state not in ("delivered", "withdrawn")
            or summary.asking
            or summary.watched
            or summary.is_of_before
            or summary.evidence != unit.evidence_size()
            or self.spool.decisions.waiting(key) is not None
        ):
            return None
        return summary

    def _is_behind(self, unit: Unit) -> bool:
        """Has its summary not seen all of its evidence?"""
        summary = unit.summary()
        return summary is None or summary.evidence != unit.evidence_size()

    def resume(self, live: Live) -> None:
        """Go on where the last life, or the last rule, left it."""
        if live.unit.withdrawn:
            self.deciding.take_up(live)
            self.withdrawing.go_on(live)
            return
        self.deciding.take_up(live)
        if live.unit.bundle is not None:
            self.bundles.look(live)
        if live.revision is None or live.state.pending:
            return
        if live.outdated:
            self._publish(live, Publish(live.revision.verdict, live.revision.reasons, live.revision.missing))
        elif live.unplanned:
            self._plan(live)
        else:
            self._deliver(live)
            self._retire(live)

    def ask_again(self, planner: Planner | None = None, plugins: Plugins | None = None) -> None:
        """The rules changed, or a person says so: ask for everything that waits, is held, or nobody wanted."""
        self.planner, self.plugins = planner or self.planner, plugins or self.plugins
        self.workshop.try_all_again()
        self.recall.retry()
        self.outlets.try_all_now()
        self.exporting.look_again()
        waited = frozenset(self._waiting)
        for key in sorted(waited | {live.key for live in self.units}):
            self.again(key)
        self.reasking.begin(moved=len(waited - self._waiting), stayed=len(waited & self._waiting))

    def again(self, key: str) -> None:
        """Go on with a unit from where it stands."""
        with self._apart(key):
            live = self.live(key)
            self.resume(live)
            self._sum_up(live)

    def _ask_about_unassigned(self) -> None:
        """What was delivered although it belongs to nobody moves as soon as a rule says whose it is."""
        for key in self.reasking.take():
            with self._apart(key):
                live = self.live(key)
                lab = self._whose(live).lab
                if lab is not None and self.deciding.is_unassigned(live):
                    self.deciding.decide([key], [], decision(None, None, "a rule"))
                self.reasking.asked(lab)
                self._touched.add(key)
        self.reasking.tell()

    def ask_again_for(self, lab: str, planner: Planner) -> tuple[int, int]:
        """A lab changed its own rules: ask for what waits of it; (how many were asked, how many go now)."""
        self.planner = planner
        asked = [
            key for key in sorted(self._waiting) if (known := Unit(self.spool, key).summary()) and known.lab == lab
        ]
        for key in asked:
            self.again(key)
        return len(asked), sum(key not in self._waiting for key in asked)

    def complete(self, key: str) -> None:
        """An operator says that this unit is whole as it is."""
        self.settling.note(self.live(key), Told(), self.now)

    def hold(self, key: str, why: str) -> None:
        """A person freezes a unit: nothing of it is delivered or removed. With "" it is released."""
        live = self.live(key)
        if live.unit.held != why and not live.unit.withdrawn:
            self.bundles.coming(live, live.plan)
            live.unit.hold(why)
            live.unit.tell(f"held: {why}" if why else "released: what waited goes on")
            self._happened("held" if why else "released", live)
            self.exporting.look_again()
            self.resume(live)
        self._sum_up(live)

    def withdraw(self, keys: Sequence[str], studies: Sequence[str], why: str, by: str) -> None:
        """A person withdraws these units, and these studies as a whole: what is known of them goes, and none comes."""
        self.spool.withdrawals.add(keys, studies, why, by)
        for key in keys:
            live = self.live(key)
            self.bundles.coming(live, live.plan)
            self.withdrawing.begin(live, why)
            self._sum_up(live)

    def mend(self, key: str, where: tuple[str, str], names: Sequence[str]) -> None:
        """A person wants these files of a (product, target) as they were delivered: the target lost or damaged them."""
        live = self.live(key)
        if where[1] == STORE:
            self._set_damaged_aside(live, names)
        elif where in live.receipts:
            live.unit.mend(where, tuple(dict.fromkeys((*live.unit.mending.get(where, ()), *names))))
            live.unit.tell(f"a person wants {len(names)} files of {where[0]} delivered to {where[1]} again")
            self._deliver(live)
        self._sum_up(live)

    def _set_damaged_aside(self, live: Live, names: Sequence[str]) -> None:
        """Images that have no longer the digest they came with make place for what comes again; nothing is deleted."""
        count = 0
        for name in names:
            instance, path = live.unit.instances.get(name), live.unit.images / name
            if instance is not None and live.unit.digest_of(name) not in (None, instance.sha256):
                origin = f"store/{live.key}/{name}"
                self.spool.set_aside(path, "it has no longer the digest that it came with; send it again", origin)
                count += 1
        if count:
            live.unit.tell(f"{count} images were damaged in the store and are in quarantine; send them again")

    def _learn(self) -> None:
        """Of series that nothing came of for long: what they say of their senders."""
        for key, outcome in self.settling.witness.tracker.over(self.now):
            with self._apart(key):
                live = self.live(key)
                self.settling.learned(live, outcome, wall_clock(), self.now)
                self._sum_up(live)

    # --- telling ------------------------------------------------------------------------------------------------

    def _sum_up(self, live: Live) -> None:
        """Write the summary; let go of a unit that nothing is going on with."""
        if self.index is not None:
            self.index.flush()  # before a summary says that all has been seen
        if not live.unit.withdrawn and live.unit.bundle is None:
            self.queries.consider(live, self.settling.silence(live), self.now)
        summary = summarise(live, self.settling.awaited(live, self.now))
        live.unit.write_summary(summary)
        self.told(summary)
        self._grown.discard(live.key)
        if live.done or (live.no_plan is not None and not live.state.pending):
            self.units.forget(live.key)

    def _happened(self, kind: str, live: Live, **details: str) -> None:
        self.spool.note(kind, unit=live.key[:8], **details)
        self._tell(Event(kind, live.key, wall_clock(), details))

    def _study_settled(self, record: StudyRecord) -> None:
        study = record.study
        details = {"revision": str(study.revision), "series": str(len(study.series)), "images": str(study.images),
                   "missing": str(len(study.missing)), "why": record.why}  # fmt: skip
        self.spool.note("study_settled", study=study.key[:8], **details)
        if study.lab is not None:
            details["lab"] = study.lab
        self._tell(Event("study_settled", study.key, record.at, details, study))

    def _tell_alarm(self, event: Event) -> None:
        self.spool.note(event.kind, **event.details)
        self._tell(event)

    def _tell_reasked(self, says: str) -> None:
        log.info("%s", says)
        self.spool.note("asked again", says=says)

    def _whose(self, live: Live) -> Identity:
        return self.plugins.identify(view(live.unit, live.revision)).identity

    def _tell(self, event: Event) -> None:
        self.told(event)
        for failure in self.plugins.event(event):  # what it said may name a patient: it is not written down
            self.spool.note("plugin failed", plugin=failure.plugin, hook=failure.hook)

    def _summary(self, key: str) -> UnitSummary | None:
        """What is known of a unit now; None where there is none, or not any more."""
        live = self.units.at_work(key)
        if live is not None:
            return None if live.unit.withdrawn else summarise(live)
        if not self.spool.files.exists(self.spool.unit_folder(key)):
            return None
        unit = Unit(self.spool, key)
        summary = unit.summary()
        if summary is None or summary.evidence != unit.evidence_size():
            live = self.live(key)
            summary = summarise(live)
            self._sum_up(live)
        return summary if summary.images and summary.state != "withdrawn" else None


def _manifest(live: Live, *, shown: bool) -> Mapping[str, Any]:
    """What the hidden manifest beside the files says of them."""
    assert live.plan is not None
    assert live.revision is not None
    return {
        "key": live.key,
        "kind": live.unit.kind.value,
        "study_uid": live.unit.study_uid if shown else "",
        "series_uids": list(live.unit.series_uids) if shown else [],
        "identity": plain(live.plan.identity),
        "verdict": live.revision.verdict.value,
        "revision": live.plan.revision,
    }


def _delivery(plan: Plan | None, where: tuple[str, str]) -> Delivery | None:
    """What a plan says of this (product, target)."""
    return next((each for each in plan.deliveries if (each.product, each.target) == where), None) if plan else None


def _images_of(unit: Unit, delivery: Delivery) -> Iterator[Delivered]:
    """The images of a delivery as it would have left them."""
    for image in unit.instances.values():
        if image.file in delivery.names:
            yield Delivered(delivery.names[image.file], image.sha256, image.size, image.file)


def _before(live: Live, delivery: Delivery) -> Receipt | None:
    """The receipt of what this delivery grows; None where a correction gave it another place."""
    receipt = live.receipts.get((delivery.product, delivery.target))
    return receipt if receipt is not None and receipt.revision >= delivery.since else None
