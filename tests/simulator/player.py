"""Plays a script to the real thing: the settling of the pipeline, with its decider, its habits and its trust in counts.

Only the clock, the disk (in memory) and what makes deliveries are not there. `Verdicts` is what was said, and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from simulator.memory import MemoryFiles
from simulator.script import Ended, Image, Named, Restart, Run, Script, Whole
from sorter.completion import DropWhole, Habits, Publish, Timing, Tracker
from sorter.model import Expectation, Header, Instance, Revision, Series, Source, UnitKind, Verdict, unit_key
from sorter.pipeline.evidence import Witness
from sorter.pipeline.settling import Settling
from sorter.pipeline.studies import Studies
from sorter.pipeline.units import Live, revive, summarise
from sorter.plugins import Plugins
from sorter.plugins.asking import Answer, Asked
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.studies import StudyRecord, StudyRecords
from sorter.spool.unit import took
from sorter.trust import Ledger

TURN = 0.25
"""Seconds: what comes within them is taken in one turn."""

UNANSWERED = 600.0
"""Seconds (`commitment_wait`) that a request for commitment waits for images: so long a restart tells of it again."""


@dataclass(frozen=True, slots=True)
class Said:
    """A revision, or a better verdict of the last one: what was said at `at`, of so many images."""

    at: float
    run: str
    verdict: Verdict
    images: frozenset[str]
    revision: int
    why: str


@dataclass(frozen=True, slots=True)
class Settled:
    """It was told at `at` that a study has settled, with so many images."""

    at: float
    study: str
    revision: int
    images: int
    why: str


class HeaderCounts:
    """The one plugin of the simulated site: it reads the count that a header has."""

    def expect(self, series: Series) -> Asked:
        says = series.get("ImagesInAcquisition")
        if not isinstance(says, int):
            return Asked((), ())
        return Asked((Answer("header", Expectation(says, why=f"the header says {says}")),), ())


@dataclass(slots=True)
class Player:
    """A site: what it learned stays over all that is played to it."""

    timing: Timing
    durable: bool = False  # with evidence and manifests, so that it can be restarted
    said: list[Said] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    now: float = 0.0
    _spool: Spool = field(init=False)
    _settling: Settling = field(init=False)
    _studies: Studies = field(init=False)
    _lives: dict[str, Live] = field(default_factory=dict)
    _done: dict[str, Live] = field(default_factory=dict)  # not at work: the folders, so to speak
    _open: set[str] = field(default_factory=set)
    _asked: list[tuple[float, str, list[str]]] = field(default_factory=list)  # requests: when, by whom, for what
    _day: int = 0

    def __post_init__(self) -> None:
        self._spool = Spool(Path("/spool"), MemoryFiles())
        self._begin()

    def _begin(self) -> None:
        witness = Witness(
            Tracker(Habits(), self.timing.cap), Ledger(), lambda: cast(Plugins, HeaderCounts()), lambda _: None
        )
        self._settling = Settling(witness, self.timing, self._lives.get, self._publish, self._improve)
        records = StudyRecords(self._spool.studies, self._spool.files)
        self._studies = Studies(records, self.timing, self._lives.get, self._summary, self._tell)

    # --- playing ------------------------------------------------------------------------------------------------

    def play(self, script: Script, patience: float = 7200.0) -> list[Said]:
        """Everything that happens, and then nothing for `patience` seconds."""
        for event in script.events:
            if event.at >= self.now + TURN:
                self._wait(event.at)
            self._happens(event.what)
        self._wait(self.now + patience)
        return self.said

    def _wait(self, until: float) -> None:
        """Turn after turn, each when the one before wanted it, until then."""
        while True:
            self._turn()
            due = [*self._settling.due(self._lives.values()), self._settling.witness.tracker.next]
            due += [self._studies.next] if self._studies.next is not None else []
            then = max(min(due, default=until), self.now + TURN)
            if then >= until:
                break
            self.now = then
        self.now = until

    def _turn(self) -> None:
        for live in list(self._lives.values()):
            self._settling.judge(live, self.now)
            if not live.state.pending:
                self._done[live.key] = self._lives.pop(live.key)
        for key, outcome in self._settling.witness.tracker.over(self.now):
            self._day += 1
            live = self._lives.get(key) or self._done[key]
            self._settling.learned(live, outcome, f"{self._day:08d}", self.now)
        self._studies.turn(self.now, walked=True)

    def _happens(self, what: object) -> None:
        match what:
            case Image():
                self._image(what)
            case Ended(association, how):
                self._open.discard(association)
                self._studies.ended(association)
                for live in self._lives.values():
                    if association in live.state.carrying:
                        if self.durable:
                            live.unit.end_association(association, how)
                        self._settling.ended(live, association, how, self.now)
            case Named(sender, images):
                self._named(sender, images)
            case Whole(drop):
                for live in self._lives.values():
                    self._settling.note(live, DropWhole(drop), self.now)
            case Restart():
                self._restart()

    def _image(self, what: Image) -> None:
        key = key_of(what.run.uid)
        if what.association:
            self._open.add(what.association)
        live = self._live(key)
        sop = sop_of(what.run.uid, what.number)
        if sop in live.unit.by_sop:
            return  # an identical resend: filing never tells of it
        if not live.unit.instances and self.durable:
            live.unit.add_evidence([{"unit": "series", "study": study_of(what.run.uid), "group": None}])
        instance = instance_of(what, sop, live.unit.difference(header_of(what.run, what.number)))
        live.unit.admit(instance)
        if self.durable:
            live.unit.add_evidence([took(instance)])
        self._settling.arrived(live, instance, self.now, is_open=what.association in self._open)
        self._studies.came(live, instance, self.now, is_open=what.association in self._open)

    def _live(self, key: str) -> Live:
        if key not in self._lives:
            live = self._done.pop(key, None) or Live(Unit(self._spool, key))
            self._lives[key] = live
        return self._lives[key]

    def _named(self, sender: str, images: Iterable[tuple[str, int]]) -> None:
        names = [sop_of(run, number) for run, number in images]
        self._asked.append((self.now, sender, names))
        self._hear(sender, names)

    def _hear(self, sender: str, names: Sequence[str]) -> None:
        keys = {*self._lives, *self._settling.witness.tracker.keys}
        named = self._settling.hear("commitment", sender, names)
        for key in keys:
            self._settling.heard(self._live(key), named, self.now)

    def _restart(self) -> None:
        """Everything is forgotten but the folders."""
        assert self.durable
        self._turn()
        before = {**self._done, **self._lives}
        self._lives.clear()
        self._done.clear()
        self._begin()
        for key in before:
            live = revive(Unit.load(self._spool, key), self.now)
            for association in live.state.carrying - self._open:
                self._settling.ended(live, association, "lost", self.now)
            self._settling.witness.learn_counts(live)
            self._settling.resumed(live, self.now)
            self._settling.witness.remember(summarise(live))
            (self._lives if live.state.pending else self._done)[key] = live
            self._studies.remember(summarise(live), self.now)
        self._settling.witness.replay()
        for at, sender, names in self._asked:
            if self.now - at < UNANSWERED:
                self._hear(sender, names)

    # --- what is said -------------------------------------------------------------------------------------------

    def _publish(self, live: Live, effect: Publish) -> None:
        number = live.revision.revision + 1 if live.revision else 1
        self._day += 1
        live.revision = Revision(
            live.key, UnitKind.SERIES, number, f"{self._day:08d}", effect.verdict, effect.reasons,
            tuple(live.unit.instances.values()) if self.durable else (), effect.missing,
        )  # fmt: skip
        live.first = live.first or live.revision.made
        if self.durable:
            live.unit.write_revision(live.revision)
        self._settling.published(live, self.now)
        self._settling.witness.learn_counts(live)
        self._studies.published(live, self.now)
        self._note(live, effect)

    def _improve(self, live: Live, effect: Publish) -> None:
        assert live.revision is not None
        live.unit.raise_verdict(live.revision.revision, effect.verdict, effect.reasons)
        live.revision = replace(live.revision, verdict=effect.verdict, reasons=effect.reasons)
        self._settling.published(live, self.now)
        self._note(live, effect)

    def _note(self, live: Live, effect: Publish) -> None:
        assert live.revision is not None
        (run,) = live.unit.series_uids
        images = frozenset(live.unit.by_sop)
        why = "; ".join(effect.reasons)
        self.said.append(Said(self.now, run, effect.verdict, images, live.revision.revision, why))

    def _summary(self, key: str) -> UnitSummary | None:
        live = self._lives.get(key) or self._done.get(key)
        return summarise(live) if live is not None else None

    def _tell(self, record: StudyRecord) -> None:
        study = record.study
        self.settled.append(Settled(self.now, study.study_uid, study.revision, study.images, record.why))


def study_of(run: str) -> str:
    """All series of a session are one study."""
    return run.rpartition(".")[0]


def sop_of(run: str, number: int) -> str:
    return f"{run}/{number}"


@cache
def key_of(run: str) -> str:
    return unit_key(UnitKind.SERIES, "1.2", run)


def instance_of(what: Image, sop: str, header: Header) -> Instance:
    source = _source(what.sender, what.association, what.drop)
    return Instance(study_of(what.run.uid), what.run.uid, sop, "", "", sop, 1, sop, sop, sop, "", source, header)


@lru_cache(maxsize=64)
def _source(sender: str, association: str, drop: str) -> Source:
    if not sender:
        return Source(uid=0, drop=drop)
    calling, _, address = sender.partition("@")
    return Source(calling, "SORTER", address, association=association)


def header_of(run: Run, number: int) -> Header:
    """As much as is looked at."""
    header: dict[str, Any] = {"Manufacturer": "MAKER", "SoftwareVersions": "1", "SequenceName": run.kind}
    if run.says is not None:
        header["ImagesInAcquisition"] = run.says
    if not run.plain:
        header["InstanceNumber"] = number + 1
        header["ImageOrientationPatient"] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        header["ImagePositionPatient"] = (0.0, 0.0, float(number % run.slices))
    return header
