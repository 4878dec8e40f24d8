"""However images come, and whenever sorter is ended: the same images in the last revision, the same files delivered.

The whole of receiving, taking, completion and delivery runs, on a disk in memory and with a clock that a test moves.
Hypothesis makes up how a small session comes: in which order, how often, over which associations and drops, with which
pauses, and at which effect on the disk the machine dies.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import itertools
import random
import time
import types
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian

from sorter.config import Config
from sorter.daemon.sort import Awake
from sorter.model import Instance, Plan, Revision, Standing, Verdict
from sorter.pipeline import Pipeline, evidence, intake, settling, units
from sorter.pipeline.planning import NoPlan, Planner
from sorter.receive import arrivals
from sorter.spool import Unit, layout, lines, quarantine
from sorter.take.filing import Filed, Filing
from tests.crash import memory
from tests.crash.memory import Memory
from tests.crash.scenario import ROOT, Association, as_file, begin, data_set, settings_of, sop_uid

LAB = f"{ROOT}/labs/memory/"
SESSION = ("1.1", "1.2", "1.3", "1.4", "1.5", "2.1", "2.2", "2.3")
"""Two series of one study: SeriesNumber and InstanceNumber."""

OTHERS = ("1.1 other pixels", "1.2 other pixels", "1.3 other patient", "2.1 other patient")
"""Another image under a known UID; a patient who was corrected, or somebody's copy."""

LONG = 2500.0
"""Seconds: longer than completion waits for anything."""


@dataclass(frozen=True)
class Batch:
    """Some images, and how they come. `rest`: seconds in their middle; `pause`: seconds after them."""

    images: tuple[str, ...]
    way: str  # "drop", "recoded drop", or how the association ends
    calling: str = "SCANNER"
    rest: float = 0.0
    pause: float = 0.0
    restart: bool = False  # the sorter alone, in the rest
    set_by: float = 0.0  # seconds that somebody sets the wall clock on, in the rest
    dies: int | None = None  # the machine, before so many effects on the disk


# --- what may happen ------------------------------------------------------------------------------------------------

pauses = st.sampled_from([0.0, 3.0, 45.0, 700.0, LONG])
STEPS = (3600.0, -3600.0, 3.15e8, -3.15e8)
"""Seconds that a wall clock is set on by: an hour, ten years."""


@st.composite
def histories(draw: st.DrawFn, more: tuple[str, ...] = ()) -> list[Batch]:
    """Every image of the session and of `more` at least once, in any order, some again, in batches."""
    images = [*SESSION, *more, *draw(st.lists(st.sampled_from(SESSION + more), max_size=6))]
    images = draw(st.permutations(images))
    batches = []
    while images:
        count = draw(st.integers(1, len(images)))
        taken, images = images[:count], images[count:]
        batches.append(
            Batch(
                tuple(taken),
                draw(st.sampled_from(["released", "aborted", "lost", "drop", "recoded drop"])),
                draw(st.sampled_from(["SCANNER", "PACS"])),
                draw(pauses),
                draw(pauses),
                draw(st.booleans()),
                draw(st.sampled_from([0.0, *STEPS])),
                draw(st.none() | st.integers(0, 150)),
            )
        )
    return batches


class Wall(datetime.datetime):
    """The wall clock of the world: it goes on with the monotonic one, and can be set. Summer time ends at once."""

    seconds: ClassVar[float] = 0.0
    START: ClassVar[float] = datetime.datetime.fromisoformat("2026-10-25T02:59:00+02:00").timestamp()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(cls.START + cls.seconds, tz)

    @classmethod
    def hang(cls, patch: pytest.MonkeyPatch) -> None:
        """Where sorter looks at the wall clock, and where the disk notes when something changed."""
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        date = type("Today", (datetime.date,), {"today": classmethod(lambda _: cls.now().date())})
        shown = types.SimpleNamespace(datetime=cls, date=date, timedelta=datetime.timedelta)
        for module in (lines, layout, quarantine, arrivals, settling):
            patch.setattr(module, "datetime", shown)
        ticking = types.SimpleNamespace(
            time=lambda: cls.START + cls.seconds,
            time_ns=lambda: int((cls.START + cls.seconds) * 1e9),
            monotonic=time.monotonic,
        )
        for module in (memory, arrivals, evidence):
            patch.setattr(module, "time", ticking)


class Dies(BaseException):
    """The machine, now: nothing in sorter catches this."""


class World:
    """A disk, whatever sorter runs on it, and those who send."""

    def __init__(self, config: Config) -> None:
        self.config, self.life = config, begin(Memory(), config)
        self.answered: set[str] = set()
        self.seen: list[set[str]] = []  # the delivered names, from time to time
        self._count = 0
        Wall.seconds = 0.0

    def play(self, batch: Batch) -> None:
        """A machine that dies comes again, and whoever was sending begins anew."""
        self._arm(batch.dies)
        try:
            self._come(batch)
        except Dies:
            self._boot()
            self._come(dataclasses.replace(batch, rest=0.0, restart=False))
        self._arm(None)

    def _arm(self, effects: int | None) -> None:
        left = effects

        def before() -> None:
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    raise Dies

        self.life.disk.before = before

    def _boot(self) -> None:
        """The same disk, none of the locks, and a monotonic clock that starts anew."""
        self.life.disk.before = lambda: None
        self.life.disk.sync_file_system("/")
        image = next(self.life.disk.states(1, random.Random(0)))
        self.life = begin(Memory.of(image), self.config)
        self.life.now = 10.0

    def _come(self, batch: Batch) -> None:
        self._count += 1
        half = len(batch.images) // 2
        if "drop" in batch.way:
            self._drop(f"disk{self._count}", batch.images[:half], recoded="recoded" in batch.way)
            self._rest(batch)
            self._drop(f"disk{self._count}b", batch.images[half:], recoded="recoded" in batch.way)
        else:
            association = self.life.associate(f"w{self._count}", batch.calling)
            self._store(association, batch.images[:half])
            self._rest(batch)
            self._store(association, batch.images[half:])
            association.end(batch.way)
        self.wait(batch.pause)

    def _store(self, association: Association, images: Iterable[str]) -> None:
        for image in images:
            association.store(made(image))
            self.answered.add(image)

    def _drop(self, folder: str, images: Sequence[str], *, recoded: bool) -> None:
        """As a person does it: that the disk is written to by others is not ours to survive."""
        armed, self.life.disk.before = self.life.disk.before, lambda: None
        if images:
            files = map(as_file, map(made, images))
            self.life.drop(folder, *(map(recode, files) if recoded else files))
        self.answered.update(images)
        self.life.disk.before = armed

    def _rest(self, batch: Batch) -> None:
        self.wait(batch.rest)
        Wall.seconds += batch.set_by
        if batch.restart:
            now, before = self.life.now, self.life.disk.before
            self.life = begin(self.life.disk, self.config)
            self.life.now, self.life.disk.before = now, before

    def wait(self, seconds: float) -> None:
        step = max(3.0, seconds / 25)
        end = self.life.now + seconds
        while self.life.now < end:
            self.life.turns(step, step)
            Wall.seconds += step
        self.seen.append(set(self.delivered()))

    # --- what came of it ----------------------------------------------------------------------------------------

    def delivered(self) -> dict[str, bytes]:
        """What people see in the lab's folder: names, and what is in them."""
        found = {}
        rest = [LAB.rstrip("/")] if self.life.disk.exists(LAB) else []
        while rest:
            folder = rest.pop()
            for name, status in self.life.disk.scan(folder):
                path = f"{folder}/{name}"
                if name.startswith("."):
                    continue
                if status.st_mode & 0o040000:
                    rest.append(path)
                else:
                    found[path.removeprefix(LAB)] = self.life.disk.read_file(path)
        return found

    def revisions(self) -> list[list[Revision]]:
        """Of each unit, all of them."""
        found = (Unit.load(self.life.spool, key) for key in sorted(self.life.spool.keys()))
        return [[unit.revision(number) for number in unit.revisions()] for unit in found]


@cache
def made(image: str) -> bytes:
    """The data set of an image by its name here."""
    number, _, other = image.partition(" ")
    series, instance = map(int, number.split("."))
    more: dict[str, Any] = {"other pixels": {"pixels": b"\4\3\2\1"}, "other patient": {"subject": "P2"}}
    return data_set(instance, series=series, **more.get(other, {}))


@cache
def recode(file: bytes) -> bytes:
    """The same image as another program writes it, in another transfer syntax."""
    read = pydicom.dcmread(io.BytesIO(file))
    read.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    buffer = io.BytesIO()
    read.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def content(file: bytes) -> str:
    """A digest of what a data set says, however it is encoded."""
    read = pydicom.dcmread(io.BytesIO(file))
    return hashlib.sha256(repr([(each.tag, str(each.value)) for each in read]).encode()).hexdigest()


Tree = dict[str, str]
Published = set[tuple[str, str]]


def outcome(world: World) -> tuple[Tree, Published]:
    """The delivered names with what is in them; series and SOP instance of all that the last revisions deliver."""
    tree = {name: content(file) for name, file in world.delivered().items()}
    last = [revisions[-1] for revisions in world.revisions() if revisions]
    return tree, {(each.series_uid, each.sop_uid) for revision in last for each in revision.deliverable}


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Generator[Config, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        Wall.hang(patch)
        yield settings_of(tmp_path_factory.mktemp("settings"), patch)
    time.tzset()


@pytest.fixture(scope="module")
def plainly(config: Config) -> tuple[Tree, Published]:
    """What comes of the session where each image comes once, in its order, over one association."""
    world = World(config)
    world.play(Batch(SESSION, "released", pause=LONG))
    tree, published = outcome(world)
    assert len(tree) == len(published) == len(SESSION)
    return tree, published


def hold(config: Config, history: list[Batch], plainly: tuple[Tree, Published]) -> None:
    """All that must be so of a session that comes in this way."""
    world = World(config)
    for batch in history:
        world.play(batch)
    world.wait(LONG)
    assert outcome(world) == plainly
    monotone(world)
    before = [[each.revision for each in revisions] for revisions in world.revisions()]
    world.play(Batch(SESSION[::-1], "released", "ARCHIVE", pause=LONG))
    assert [[each.revision for each in revisions] for revisions in world.revisions()] == before, "an identical resend"
    assert outcome(world) == plainly


def monotone(world: World) -> None:
    """No revision lost an instance that one before it had, and nothing that was delivered went away."""
    for revisions in world.revisions():
        assert [each.revision for each in revisions] == list(range(1, len(revisions) + 1))
        held = [{(each.sop_uid, each.pixels) for each in revision.deliverable} for revision in revisions]
        assert all(one < other for one, other in itertools.pairwise(held)), "a revision without anything new"
    assert all(one <= other for one, other in itertools.pairwise(world.seen))


def survive(config: Config, history: list[Batch]) -> None:
    """Images that contradict each other come too: every one that was acknowledged is in the end published, once."""
    world = World(config)
    for batch in history:
        world.play(batch)
    world.wait(LONG)
    instances = [each for revisions in world.revisions() for each in revisions[-1].deliverable]
    sent = [made(image) for image in world.answered]
    assert Counter((each.sop_uid, each.pixels) for each in instances) == Counter(
        {(sop_uid(data), hashlib.sha256(data[-8:]).hexdigest()): 1 for data in sent}
    )
    given = Counter(
        (pydicom.dcmread(io.BytesIO(file)).SOPInstanceUID, file[-8:]) for file in world.delivered().values()
    )
    assert given == Counter({(sop_uid(data), data[-8:]): 1 for data in sent})


@given(history=histories())
@settings(max_examples=80)
def test_any_order_split_duplication_and_restart_ends_in_the_same(
    config: Config, plainly: tuple[Tree, Published], history: list[Batch]
) -> None:
    hold(config, history, plainly)


@given(history=histories(OTHERS))
@settings(max_examples=40)
def test_what_contradicts_each_other_is_published_too(config: Config, history: list[Batch]) -> None:
    survive(config, history)


# --- that they can fail ---------------------------------------------------------------------------------------------


def a_restart_forgets_what_is_not_published(patch: pytest.MonkeyPatch) -> None:
    revive = units.revive

    def forgetful(unit: Unit, now: float) -> units.Live:
        live = revive(unit, now)
        live.state = dataclasses.replace(live.state, pending=False)
        return live

    patch.setattr(units, "revive", forgetful)


def a_revision_holds_what_is_new(patch: pytest.MonkeyPatch) -> None:
    write = Unit.write_revision

    def only_new(self: Unit, revision: Revision) -> None:
        before = {each.file for number in self.revisions() for each in self.revision(number).instances}
        new = tuple(each for each in revision.instances if each.file not in before)
        write(self, dataclasses.replace(revision, instances=new))

    patch.setattr(Unit, "write_revision", only_new)


def names_in_the_order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    plan = Planner.plan

    def by_arrival(self: Planner, unit: Unit, *others: Any) -> Plan | NoPlan:
        answer = plan(self, unit, *others)
        if isinstance(answer, NoPlan):
            return answer
        names = {file: f"{number:06d}.dcm" for number, file in enumerate(unit.instances, 1)}
        return dataclasses.replace(
            answer, deliveries=tuple(dataclasses.replace(e, names=names) for e in answer.deliveries)
        )

    patch.setattr(Planner, "plan", by_arrival)


def a_resend_makes_a_revision(patch: pytest.MonkeyPatch) -> None:
    note = Pipeline._note_file

    def eager(self: Pipeline, filed: Filed) -> None:
        note(self, dataclasses.replace(filed, outcome="new") if filed.outcome == "same" else filed)

    patch.setattr(Pipeline, "_note_file", eager)


def the_first_copy_wins(patch: pytest.MonkeyPatch) -> None:
    def standing(
        self: Filing, unit: Unit, instance: Instance, copies: list[Instance], _: Path
    ) -> tuple[Standing, None]:
        return (Standing.SUPERSEDED if copies else Standing.CURRENT), None

    patch.setattr(Filing, "_standing", standing)


MUTANTS = (
    a_restart_forgets_what_is_not_published,
    a_revision_holds_what_is_new,
    names_in_the_order_of_arrival,
    a_resend_makes_a_revision,
    the_first_copy_wins,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.__name__)
def test_a_mistake_is_noticed(
    config: Config, plainly: tuple[Tree, Published], monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., None]
) -> None:
    mutant(monkeypatch)
    others = mutant is the_first_copy_wins

    @given(history=histories(OTHERS if others else ()))
    @settings(max_examples=60, phases=[Phase.generate], database=None, derandomize=True)
    def found(history: list[Batch]) -> None:
        survive(config, history) if others else hold(config, history, plainly)

    with pytest.raises(AssertionError):
        found()


# --- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_wall_clock_that_is_set_publishes_nothing_and_deletes_nothing(
    config: Config, plainly: tuple[Tree, Published], step: float
) -> None:
    world = World(config)
    world.play(Batch(SESSION[:3], "released", pause=9.0))
    Wall.seconds += step
    world.wait(9.0)
    assert world.revisions() == [[]]
    world.wait(30.0)
    first = [[(each.revision, each.verdict) for each in revisions] for revisions in world.revisions()]
    assert first == [[(1, Verdict.QUIET)]]
    Wall.seconds -= 2 * step
    world.wait(LONG)
    assert [[(each.revision, each.verdict) for each in revisions] for revisions in world.revisions()] == first
    assert len(world.delivered()) == 3
    world.play(Batch(SESSION, "released", pause=LONG))
    assert outcome(world) == plainly
    assert stored(world) == len(SESSION)


@pytest.mark.parametrize("gap", [60.0, 3600.0, 86400.0])
def test_a_suspended_machine_publishes_nothing(config: Config, gap: float) -> None:
    """Where the monotonic clock went on meanwhile: the sorting process looks at one that did not."""
    seconds = 0.0

    def monotonic() -> float:
        return seconds

    world, clock = World(config), Awake(monotonic)

    def turn(after: float) -> None:
        nonlocal seconds
        seconds += after
        world.life.parts.pipeline.turn(clock())

    association = world.life.associate()
    association.store(made("1.1"))
    for _ in range(10):
        turn(1.0)
    turn(gap)
    assert world.revisions() == [[]]
    association.store(made("1.2"))
    association.end("released")
    for _ in range(29):
        turn(1.0)
    assert world.revisions() == [[]]
    for _ in range(9):
        turn(1.0)
    [[revision]] = world.revisions()
    assert len(revision.instances) == 2


def test_what_came_and_is_not_taken_yet_is_no_silence(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An association an image, and between two of them so much of others that taking it lasts a minute."""
    monkeypatch.setattr(intake, "BATCH", 2)
    life = begin(Memory(), config)
    life.receive(made("1.1"))
    life.receive(*(data_set(number, series=2) for number in range(1, 25)), worker="w2")
    life.receive(made("1.2"), worker="w3")
    life.turns(120, 5.0)
    found = [Unit.load(life.spool, key) for key in sorted(life.spool.keys())]
    revisions = sorted(
        [len(unit.revision(number).deliverable) for number in unit.revisions()] for unit in found if unit.revisions()
    )
    assert revisions == [[2], [24]]


def test_who_sends_faster_than_it_is_taken_keeps_no_other_from_being_published(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BATCH", 2)
    life = begin(Memory(), config)
    life.receive(made("1.1"))
    for number in range(20):
        life.receive(*(data_set(3 * number + each, series=2) for each in (1, 2, 3)), worker=f"v{number}")
        life.turns(1, 5.0)
    [key] = [key for key in life.spool.keys() if Unit.load(life.spool, key).revisions()]  # noqa: SIM118
    assert len(Unit.load(life.spool, key).instances) == 1


def stored(world: World) -> int:
    """Files in the store, whatever they are called."""
    return sum(len(Unit.load(world.life.spool, key).instances) for key in world.life.spool.keys())  # noqa: SIM118
