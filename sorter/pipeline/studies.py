"""Studies: which wait to settle, and what is told when they have.

A study waits from its first image, or from the first that came after it settled, until its sender went on or nothing
came for long, and no series of it is open (`sorter.completion.studies` says when). Then its table is written down,
durably, before anybody is told: a crash in between tells it in the next life. What waits is found again from the
folders: a series with a revision that no record names belongs to a study that waits, and waiting starts anew.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sorter.completion import Timing
from sorter.completion import studies as pure
from sorter.completion.studies import Moves, Settles, StudyState, settles
from sorter.expected import ExpectedSeries, missing_of
from sorter.model import Instance, Study, StudySeries
from sorter.pipeline.units import Live
from sorter.spool import UnitSummary
from sorter.spool.layout import now as wall_clock
from sorter.spool.studies import Overview, StudyRecord, StudyRecords, study_key

LACKING = 20
"""Studies that settled without something, of which `status` tells: the latest."""

MOST_WAITING = 20_000
"""Studies that wait at once; of more, those that wait longest are told as they are."""

READ_STEP = 500
"""Series whose summaries are read in one turn, for studies that have settled; each study counts as ten at least."""

MOST_ROWS = 5_000
"""Series in the table of a study. Whoever sends one of 100,000 gets a table of its first ones, which says so."""

LARGE = 200
"""Series of a study whose record is kept in memory during the walk, because each of them asks for it; eight such."""

PAUSE = 5.0
"""Seconds until a study is tried again that could not be written down."""

IMPORTED = ("import",)
"""The senders of what only `sorter import` brought. It is history: nobody is told that it has settled."""


@dataclass(slots=True)
class Waiting:
    """A study that has not settled, or grew since."""

    uid: str
    members: set[str]
    state: StudyState
    record: StudyRecord | None  # of the last time it settled
    hurried: bool = False  # too many others wait
    found: dict[str, UnitSummary | None] = field(default_factory=dict)  # of its series, while it settles
    queued: float = math.inf  # when it will be looked at; for ever while only open series keep it


@dataclass(slots=True)
class Studies:
    """Joins what came, the units, and the records. `summary` is what is known of a unit now, None where it is gone."""

    records: StudyRecords
    timing: Timing
    at_work: Callable[[str], Live | None]
    summary: Callable[[str], UnitSummary | None]
    tell: Callable[[StudyRecord], None]  # to the journal and the plugins
    settled: Callable[[str], None] = lambda _: None  # a study, by its UID: its record says what it is
    expected: Mapping[str, Sequence[ExpectedSeries]] = field(default_factory=dict)  # by lab
    moves: Moves = field(default_factory=Moves)
    troubles: dict[str, str] = field(default_factory=dict)  # studies that could not be written down, and why
    _carriers: dict[str, set[str]] = field(default_factory=dict)  # open association -> studies that it brought
    _waiting: dict[str, Waiting] = field(default_factory=dict)
    _patient: dict[str, None] = field(default_factory=dict)  # those that are not hurried, in their order
    _due: list[tuple[float, str]] = field(default_factory=list)  # heap; an entry may be too early, never too late
    _untold: dict[str, StudyRecord] = field(default_factory=dict)  # written down, and to be told
    _lacking: dict[str, StudyRecord] = field(default_factory=dict)
    _replay: list[StudyRecord] = field(default_factory=list)  # what taught something, until all was looked at
    _large: dict[str, tuple[StudyRecord, str]] = field(default_factory=dict)  # with the first of its series
    _walked: bool = False
    _ready: bool = False  # at the last turn
    _changed: bool = False  # since the overview was written

    # --- what came ----------------------------------------------------------------------------------------------

    def came(self, live: Live, instance: Instance, now: float, *, is_open: bool) -> None:
        """An image that no revision holds. `is_open`: its association may bring more."""
        key = study_key(live.unit.study_uid)
        waiting = self._wait(key, live.unit.study_uid, live.key, now)
        sender = _sender(live, instance)
        association = instance.source.association if is_open else ""
        if association:
            self._carriers.setdefault(association, set()).add(key)
        before = waiting.state.returned
        waiting.state = pure.came(waiting.state, sender, association, now, self.timing)
        if sender in waiting.state.returned - before:
            self.moves.come_back(sender)
        gone = self.moves.came(key, sender) if sender else None
        if gone in self._waiting:
            self._waiting[gone].state = pure.left(self._waiting[gone].state, sender, now)
            self._look_at(gone)

    def ended(self, association: str) -> None:
        for key in self._carriers.pop(association, ()):
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.state = pure.ended(waiting.state, association)
                self._look_at(key)

    def published(self, live: Live, now: float) -> None:
        """A revision of one of its series is durable."""
        key = study_key(live.unit.study_uid)
        self._wait(key, live.unit.study_uid, live.key, now).found.pop(live.key, None)
        self._look_at(key)

    def remember(self, summary: UnitSummary, now: float) -> None:
        """A series of an earlier life: has what there is of it been told?"""
        key = study_key(summary.study_uid)
        record, first = self._record(key)
        if record is not None and summary.key == first:
            self._recall(record)
        if not summary.images or summary.state == "withdrawn":
            return
        if summary.state != "open":
            if record is not None and record.members.get(summary.key) == summary.revision:
                return
            if not self._kept and key not in self._waiting:
                self._adopt(record or StudyRecord(Study(key, summary.study_uid), told=True), summary)
                return
        known = self._waiting.get(key)
        if known is None or summary.key not in known.members:
            waiting = self._wait(key, summary.study_uid, summary.key, now)
            waiting.state = replace(waiting.state, unseen=True)
            self._look_at(key)

    def members(self, study_uid: str) -> Mapping[str, int] | None:
        """The series of a study that has settled, and their revisions; None while it has not, or grows."""
        key = study_key(study_uid)
        record = self.records.read(key) if key not in self._waiting else None
        return None if record is None else record.members

    def _record(self, key: str) -> tuple[StudyRecord | None, str]:
        """What is known of a study, and the first of its series."""
        if key in self._large:
            return self._large[key]
        record = self.records.read(key)
        if record is None:
            return None, ""
        first = min(record.members, default="")
        if len(record.members) > LARGE:
            while len(self._large) >= 8:
                del self._large[next(iter(self._large))]
            self._large[key] = record, first
        return record, first

    def _recall(self, record: StudyRecord) -> None:
        if not record.told:
            self._untold[record.study.key] = record
        if record.left or record.returned:
            self._replay.append(StudyRecord(record.study, at=record.at, left=record.left, returned=record.returned))
        self._note_lacking(record)

    def _adopt(self, record: StudyRecord, summary: UnitSummary) -> None:
        """It was here before such records were kept: nobody is told of it now."""
        members = {**record.members, summary.key: summary.revision}
        self._large.pop(record.study.key, None)
        self.records.write(replace(record, members=members), durable=False)

    @property
    def _kept(self) -> bool:
        return self._walked or self.records.begun()

    def _wait(self, key: str, uid: str, member: str, now: float) -> Waiting:
        if key not in self._waiting:
            record = self.records.read(key)
            gone = dict.fromkeys(record.left, -math.inf) if record else {}  # who comes after that came back
            self._waiting[key] = Waiting(uid, set(record.members if record else ()), StudyState(now, left=gone), record)
            self._look_at(key)
            self._changed = True
            self._patient[key] = None
            self._hurry()
        self._waiting[key].members.add(member)
        return self._waiting[key]

    def _hurry(self) -> None:
        """Whoever sends a study with each image does not fill the memory."""
        while len(self._patient) > MOST_WAITING:
            oldest = next(iter(self._patient))
            del self._patient[oldest]
            self._waiting[oldest].hurried = True
            self._look_at(oldest)

    def _look_at(self, key: str) -> None:
        """It may settle at another time than it was thought."""
        waiting = self._waiting[key]
        due = self.settles(waiting).due
        if due < waiting.queued:
            waiting.queued = due
            heapq.heappush(self._due, (due, key))

    def settles(self, waiting: Waiting) -> Settles:
        if waiting.hurried:
            return Settles(-math.inf, f"more than {MOST_WAITING:,} studies waited")
        return settles(waiting.state, self.moves, self.timing)

    # --- settled? -----------------------------------------------------------------------------------------------

    def turn(self, now: float, *, walked: bool) -> None:
        """Tell of what has settled. `walked`: all that came has been looked at; nothing has settled before."""
        self._ready = walked
        if not walked:
            return
        if not self._walked:
            self._begin()
        left, unread = READ_STEP, list[str]()
        while left > 0 and self._due and self._due[0][0] <= now:
            _, key = heapq.heappop(self._due)
            if key in self._waiting:
                left -= self._judge(key, self._waiting[key], now, left)
                if key in self._waiting and self._waiting[key].found:
                    unread.append(key)
        for key in unread:  # the rest of it in the next turn
            heapq.heappush(self._due, (now, key))
        self._announce()
        if self._changed:
            lacking = tuple(sorted(self._lacking.values(), key=lambda each: each.at, reverse=True))
            self.records.write_overview(Overview(tuple(self._waiting), lacking))
            self._changed = False

    @property
    def next(self) -> float | None:
        """When `turn` may have something to tell."""
        return self._due[0][0] if self._due and self._ready else None

    def _begin(self) -> None:
        if not self.records.begun():
            self.records.begin()
        self._walked = self._changed = True
        for record in sorted(self._replay, key=lambda each: each.at):
            self.moves.learn(record.left, record.returned)
        self._replay.clear()
        self._large.clear()

    def _judge(self, key: str, waiting: Waiting, now: float, most: int) -> int:
        """How many summaries were read for it, at most `most`. What the disk does not allow is its trouble alone."""
        waiting.queued = math.inf
        settled = self.settles(waiting)
        if settled.due > now or self._is_open(waiting):
            waiting.found.clear()
            if settled.due > now:
                self._look_at(key)
            return 1
        try:
            unread = [each for each in waiting.members if each not in waiting.found]
            waiting.found |= {each: self.summary(each) for each in unread[:most]}
            if len(unread) <= most:
                found, waiting.found = waiting.found, {}
                self._settle(key, waiting, settled.why, [found[each] for each in sorted(found)])
                self.troubles.pop(key, None)
            return max(10, min(len(unread), most))
        except OSError as error:
            waiting.found.clear()
            self.troubles[key] = error.strerror or "error"
            heapq.heappush(self._due, (now + PAUSE, key))
            return 10

    def _is_open(self, waiting: Waiting) -> bool:
        return any((live := self.at_work(each)) is not None and live.state.pending for each in waiting.members)

    def _settle(self, key: str, waiting: Waiting, why: str, summaries: Sequence[UnitSummary | None]) -> None:
        found = [each for each in summaries if each is not None]
        if any(each.state == "open" for each in found):
            return
        members = {each.key: each.revision for each in found}
        last = waiting.record
        record = None
        if members and (last is None or members != last.members):  # else only another copy of what was there came
            imported = all(each.senders == IMPORTED for each in found)
            if len(found) > MOST_ROWS:
                why += f"; its table shows {MOST_ROWS:,} of its {len(found):,} series"
            record = StudyRecord(
                self._table(key, waiting, found), members, wall_clock(), why, imported,
                tuple(sorted(waiting.state.left)), tuple(sorted(waiting.state.returned)),
            )  # fmt: skip
            self.records.write(record)
        del self._waiting[key]
        self._patient.pop(key, None)
        self._changed = True
        self.moves.forget(key, waiting.state.senders)
        self.settled(waiting.uid)
        if record is not None:
            self.moves.learn(record.left, ())  # who came back was noted when it did
            self._note_lacking(record)
            if not record.told:
                self._untold[key] = record

    def _announce(self) -> None:
        """Each once, and again only what a life before could not write down that it had told."""
        for key, record in list(self._untold.items()):
            try:
                if not record.told:
                    self.tell(record)
                    record = self._untold[key] = replace(record, told=True)
                self.records.write(record)
                del self._untold[key]
                self.troubles.pop(key, None)
            except OSError as error:
                self.troubles[key] = error.strerror or "error"

    def _table(self, key: str, waiting: Waiting, found: list[UnitSummary]) -> Study:
        series = tuple(_row(each) for each in sorted(found, key=lambda each: (_number(each.number), each.key)))
        labs = list(dict.fromkeys(each.lab for each in series if each.lab is not None))
        face = next((each for each in found if each.lab is not None), found[0])
        return Study(
            key=key,
            study_uid=waiting.uid,
            revision=waiting.record.study.revision + 1 if waiting.record else 1,
            lab=face.lab,
            subject=face.subject,
            date=face.study_date,
            time=face.study_time,
            scanner=face.scanner,
            series=series[:MOST_ROWS],
            missing=tuple(
                missing
                for lab in labs
                for missing in missing_of(lab, self.expected.get(lab, ()), (each for each in series if each.lab == lab))
            ),
        )

    def _note_lacking(self, record: StudyRecord) -> None:
        self._lacking.pop(record.study.key, None)
        if record.study.missing:
            first = {each.lab: each for each in reversed(record.study.series)}  # says what each lab calls the subject
            study = replace(record.study, series=tuple(reversed(first.values())))
            self._lacking[record.study.key] = replace(record, members={}, study=study)
            while len(self._lacking) > LACKING:
                del self._lacking[min(self._lacking, key=lambda key: self._lacking[key].at)]
        self._changed = True


def _sender(live: Live, instance: Instance) -> str:
    """Who sent it, and on which scanner it was made; "" for what was dropped, or where nobody can say."""
    if not instance.source.sender:
        return ""
    face = live.unit.base
    scanner = face.get("DeviceSerialNumber") or face.get("StationName") or ""
    return f"{instance.source.sender} {scanner}"[:200]


def _row(summary: UnitSummary) -> StudySeries:
    return StudySeries(
        summary.key, summary.number, summary.description, summary.images, summary.verdict, summary.revision,
        summary.lab, summary.subject,
    )  # fmt: skip


def _number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isascii() and text.isdigit() and len(text) < 20 else (0, text)
