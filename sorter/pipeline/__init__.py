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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import InitVar, dataclass, field, replace
from functools import partial

from sorter.completion import DropWhole, Publish, Told
from sorter.deliver.target import Removed
from sorter.model import Event, Identity, Instance, Plan, Revision, UnitKind
from sorter.pipeline.alarms import Alarms, Clocks
from sorter.pipeline.archives import Read
from sorter.pipeline.bundles import Bundles
from sorter.pipeline.deciding import Deciding, Reasking, decision
from sorter.pipeline.delivering import Delivering
from sorter.pipeline.evidence import Witness
from sorter.pipeline.exporting import Exporting
from sorter.pipeline.intake import Intake, Whole
from sorter.pipeline.making import Making
from sorter.pipeline.outlets import Outlets
from sorter.pipeline.planning import NOTHING, NoPlan, Planner, view
from sorter.pipeline.queries import Answer, Case, Queries
from sorter.pipeline.recall import Recall
from sorter.pipeline.retention import Retention
from sorter.pipeline.retiring import Retiring, leave_behind, look_back, was_a_guess
from sorter.pipeline.settling import Settling
from sorter.pipeline.studies import Studies
from sorter.pipeline.telling import Telling
from sorter.pipeline.units import Live, Units, summarise
from sorter.pipeline.withdrawing import Withdrawing
from sorter.pipeline.workshop import Workshop
from sorter.plugins import Plugins
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.alarms import AlarmFile
from sorter.spool.by_sop import BySop
from sorter.spool.exports import is_export
from sorter.spool.layout import now as wall_clock
from sorter.spool.studies import StudyRecords
from sorter.spool.unit import Asked
from sorter.take.filing import Filed
from sorter.take.received import Ended
from sorter.words import counted

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
    telling: Telling = field(init=False)
    delivering: Delivering = field(init=False)
    making: Making = field(init=False)
    retiring: Retiring = field(init=False)
    bundles: Bundles = field(init=False)
    recall: Recall = field(init=False)
    retention: Retention = field(init=False)
    _walk: Iterator[str] | None = field(init=False)  # what of the store has not been looked at since the start
    _walk_at: float = 0.0  # not before
    _unlisted: str = ""  # why some of it cannot be looked at, "" while it can
    _news: deque[Filed | Ended | Whole | Read] = field(default_factory=deque)  # taken, and not noted yet
    _ends: Counter[str] = field(default_factory=Counter)  # associations whose end is among it
    _ended: set[str] = field(default_factory=set)  # units of which the end of an association is not synced yet
    _touched: set[str] = field(default_factory=set)  # units to be summed up in this turn
    _failed: dict[str, tuple[float, str]] = field(default_factory=dict)  # when to take up again which units, and why
    _carried: dict[str, int] = field(default_factory=dict)  # images of each open association
    _waiting: set[str] = field(default_factory=set)  # units that are held, or that nobody wants
    _grown: set[str] = field(default_factory=set)  # units of which more came than their summaries say
    _grown_said: float = -SUM_UP_EVERY  # when they were last summed up
    _beyond: str = ""  # why studies, alarms and retention wait, "" while they do not

    def __post_init__(self, witness: Witness) -> None:
        telling = self.telling = Telling(self.spool, lambda: self.plugins, lambda event: self.told(event))
        self.settling = Settling(witness, self.units.timing, self.units.at_work, self._publish, self._improve)
        self.recall = Recall(self.spool, self.outlets)
        self.delivering = Delivering(
            self.outlets, self.workshop, self.recall, lambda: self.planner, self.live, lambda: self.now,
            lambda: self.retention.days.count, telling.happened, self._received,
        )  # fmt: skip
        self.making = self.delivering.making
        self.retiring = Retiring(self.outlets, self.delivering.wait_for, telling.happened)
        self.bundles = Bundles(
            self.spool, lambda: self.planner, self.live, lambda uid: self.studies.members(uid), self.outlets.withhold,
            self.workshop.forget, self._plan, self._looked_at,
        )  # fmt: skip
        self.studies = Studies(
            StudyRecords(self.spool.studies, self.spool.files), self.units.timing, self.units.at_work, self._summary,
            telling.study_settled, self.bundles.settled,
        )  # fmt: skip
        self.exporting = Exporting(self.spool, self.outlets, self.delivering.wait_for, self.delivering.may_leave)
        self.withdrawing = Withdrawing(self.outlets, self.exporting, self.workshop, telling.happened)
        self.deciding = Deciding(self.spool, self.live, self._whose, telling.happened, telling.alarm)
        self.reasking = Reasking(telling.reasked)
        self.retention = Retention(self.spool, self.outlets, self._step, telling.happened)
        file = AlarmFile(self.spool.alarms, self.spool.files)
        self.alarms = Alarms(file, self.clocks, self._whose, telling.alarm)
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
        self._sync_ends()
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
        for told in self.outlets.outages.news(now):
            self.telling.outage(told)
        return self._next()

    @contextmanager
    def _apart(self, key: str) -> Iterator[None]:
        """A step of one unit. What the disk does not allow is that unit's trouble alone."""
        with suppress(OSError), self._letting_go(key):
            yield

    @contextmanager
    def _letting_go(self, key: str) -> Iterator[None]:
        """The same, where somebody else has to hear of it: a request is done again, with what the disk says."""
        try:
            yield
        except OSError as error:
            self.let_go(key, error.strerror or "error")
            raise

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
        looks = self.intake.next(self.now)
        soonest = looks if self.intake.blind else self.now  # what is due of silence waits for that look
        times: list[float | None] = [max(due, soonest) for due in self.settling.due(self.units)]
        times += [self._walk_at] if self._walk is not None else []
        times += [self.outlets.next, looks, self.settling.witness.tracker.next, self.studies.next]
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
                self._end(live, Ended(association, "lost"))  # not durable: else the next start says it again

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
                        self._ended.add(live.key)
                        self._grown.add(live.key)
                images = self._carried.pop(news.association, 0)
                if images:  # whoever brings nothing, a thousand times a second, does not fill the disk
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

    def _sync_ends(self) -> None:
        """Of each unit once: it may have been carried by an association for each image."""
        while self._ended:
            key = self._ended.pop()
            with self._apart(key):
                self.spool.files.fsync_all([self.unit(key).evidence])

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
            named = counted(len(answer.names), "images")
            why = f"{sender} answers with {named}, none of which is here; it is not believed"
        elif not why and not answer.names:
            why = f"{sender} answers that it knows no image of this series"
        unit.note_asked(sender, Asked(case.images, why))
        if why:
            unit.tell(f"it is not known whether there are more: {why}")
            return
        named, here = counted(len(answer.names), "images"), counted(len(unit.by_sop), "are")
        unit.tell(f"{sender} answers that it has {named}; {here} here")
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
        self.telling.happened("verdict", live, revision=str(live.revision.revision), verdict=effect.verdict.value)
        self.delivering.deliver(live)

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
        unit.tell(f"revision {number}: {counted(count, 'images')}, {effect.verdict} ({'; '.join(effect.reasons)})")
        self.telling.happened("published", live, revision=str(number), verdict=effect.verdict.value, images=str(count))
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
                self.telling.happened(answer.state, live)
            live.no_plan = answer
            self._waiting.add(live.key)
            if answer.state == "kept" and live.plan is not None:
                self._take_away(live, live.plan, answer.identity)
            return
        self.bundles.coming(live, live.plan, answer)
        live.unit.write_plan(answer)
        leave_behind(live, answer)
        live.no_plan = None
        self._waiting.discard(live.key)
        if live.unit.bundle is None:
            self.reasking.planned(live)
            if answer.identity.lab is not None:
                self.alarms.owned(live)
        if live.unit.bundle is not None:  # perhaps nothing of it is to be anywhere any more
            self._looked_at(live)
        else:
            self._deliver(live)

    def _looked_at(self, bundle: Live) -> None:
        """Of a study or subject go on with what waited, also to be taken away: it was withheld from its targets."""
        self._deliver(bundle)
        self.retiring.retire(bundle)

    def _deliver(self, live: Live) -> None:
        """What is owed of it, and what waited for something of it."""
        self.delivering.deliver(live)
        for key in self.making.awaiting(live.key):
            self._step(key, self.delivering.deliver)

    def _take_away(self, live: Live, before: Plan, now: Identity) -> None:
        """It is somebody else's, or somebody else, by now, and is wanted nowhere: nor does it stay where it lay."""
        assert live.revision is not None
        if (now.lab, now.subject) != (before.identity.lab, before.identity.subject) and before.all_targets:
            empty = Plan(live.key, live.revision.revision, wall_clock(), now, ())
            self.bundles.coming(live, before, empty)
            live.unit.write_plan(empty)
            leave_behind(live, empty)
            self.reasking.planned(live)
        if live.nowhere:
            self.retiring.retire(live)

    def _ask(self, live: Live) -> Plan | NoPlan:
        assert live.revision is not None
        self.deciding.take_up(live)
        lost = self.spool.recoveries.of(live.key) if live.plan is None else NOTHING
        return self.planner.plan(live.unit, live.revision, live.plan, lost)

    def bring_back(self, key: str, files: Sequence[str]) -> tuple[str, list[str]]:
        """Have those of these images in the store that left it: (why to wait, those that cannot be had)."""
        with self._apart(key):
            return self.delivering.bring_back(self.live(key), files)
        return "its records cannot be read now", []

    # --- what came of it ----------------------------------------------------------------------------------------

    def _collect_products(self) -> None:
        for key, product, outcome in self.workshop.finished():
            for each in (key, *self.making.awaiting(key)):
                with self._apart(each):
                    live = self.live(each)
                    if each == key:
                        self.delivering.tell_product(live, product, outcome)
                    self.delivering.heed(live, product, outcome)
                    self.delivering.deliver(live)
                    self.withdrawing.go_on(live)
                    self._touched.add(each)

    def _note_progress(self) -> None:
        for key, product, says in self.workshop.progress():
            live = self.units.at_work(key)
            if live is not None and live.making.get(product, "") != says:
                live.making[product] = says
                self._touched.add(key)

    def _collect_answers(self) -> None:
        for target, put, result in self.outlets.answers(self.now):
            with self._apart(put.key):
                live = self.live(put.key)
                if is_export(put.product):
                    self.exporting.answered(live, target, put, result)
                    self.withdrawing.go_on(live)
                else:
                    self.delivering.answered(live, target, put, result)
                self._touched.add(put.key)

    def _export(self) -> None:
        """Send what people want a target to have copies of."""
        for key in self.exporting.due():
            with self._apart(key):
                self.exporting.send(self.live(key))
                self._touched.add(key)

    def _collect_recalled(self) -> None:
        for key, take in self.recall.answers():
            with self._apart(key):
                why = take(self.live(key).unit)
                for each in (key, *self.making.awaiting(key)):
                    with self._apart(each):
                        live = self.live(each)
                        self.delivering.recalled(live, why)
                        if not why:
                            self.retiring.retire(live)
                        self._touched.add(each)

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

    def _received(self, live: Live) -> None:
        self.retiring.retire(live)
        self.withdrawing.go_on(live)

    def _collect_removals(self) -> None:
        for receipt, result in self.outlets.removals(self.now):
            with self._apart(receipt.key):
                self._touched.add(receipt.key)
                live = self.live(receipt.key)
                if not isinstance(result, Removed):
                    live.troubles[receipt.product, receipt.target] = result.why
                    continue
                if was_a_guess(live, receipt):
                    self.retiring.retire(live)
                else:
                    take = self.withdrawing.taken_back if live.unit.withdrawn else self.retiring.removed
                    take(live, receipt, result)
                self.withdrawing.go_on(live)

    def _try_again(self) -> None:
        for key, _, _ in self.outlets.due(self.now):
            with self._apart(key):
                live = self.live(key)
                self.delivering.deliver(live)
                self.retiring.retire(live)
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
        self.deciding.placed(summary)
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
        look_back(live)
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
        elif live.unplanned or live.nowhere:
            self._plan(live)
        else:
            self.delivering.deliver(live)
            self.retiring.retire(live)

    def ask_again(self, planner: Planner | None = None, plugins: Plugins | None = None) -> None:
        """The rules changed, or a person says so: ask for everything that waits, is held, or nobody wanted."""
        if planner is not None:
            self.planner = planner
            self.outlets.take_all_back()  # of what waits there some may not leave by the rules of now
        self.plugins = plugins or self.plugins
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
        with self._letting_go(key):
            live = self.live(key)
            if live.unit.held != why and not live.unit.withdrawn:
                self.bundles.coming(live, live.plan)
                live.unit.hold(why)
                if why:
                    self.outlets.withhold(key)
                live.unit.tell(f"held: {why}" if why else "released: what waited goes on")
                self.telling.happened("held" if why else "released", live)
                self.exporting.look_again()
                self.resume(live)
            self._sum_up(live)

    def withdraw(self, keys: Sequence[str], studies: Sequence[str], why: str, by: str) -> None:
        """A person withdraws these units, and these studies as a whole: what is known of them goes, and none comes."""
        self.spool.withdrawals.add(keys, studies, why, by)
        failed: OSError | None = None
        for key in keys:
            try:
                with self._letting_go(key):
                    live = self.live(key)
                    self.bundles.coming(live, live.plan)
                    self.outlets.withhold(key)
                    self.withdrawing.begin(live, why)
                    self._sum_up(live)
            except OSError as error:  # all others go, and whoever asked asks once more
                failed = error
        if failed is not None:
            raise failed

    def mend(self, key: str, where: tuple[str, str], names: Sequence[str]) -> None:
        """A person wants these files of a (product, target) as they were delivered: the target lost or damaged them."""
        with self._letting_go(key):
            live = self.live(key)
            if where[1] == STORE:
                self._set_damaged_aside(live, names)
            elif where in live.receipts:
                live.unit.mend(where, tuple(dict.fromkeys((*live.unit.mending.get(where, ()), *names))))
                live.unit.tell(
                    f"a person wants {counted(len(names), 'files')} of {where[0]} delivered to {where[1]} again"
                )
                self.delivering.deliver(live)
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
            live.unit.tell(counted(count, "images were damaged in the store and are in quarantine; send them again"))

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
        self.deciding.placed(summary)
        self._grown.discard(live.key)
        if live.done or (live.no_plan is not None and not live.state.pending):
            self.units.forget(live.key)

    def _whose(self, live: Live) -> Identity:
        return self.plugins.identify(view(live.unit, live.revision)).identity

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
