"""Images leave the store, come again, are fetched back, and the machine ends: none is gone without its verified copy.

By power cuts in every state that they may leave (the disk in memory), by a disk that fails at any effect or is full for
a minute, and by kill -9 before each effect (a real disk and a real process).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sorter.config import Config, load
from sorter.deliver.target import Verified
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.pipeline import recall, retention
from sorter.spool import Unit, leaving
from sorter.spool.days import DAY
from sorter.take.filing import Filing
from tests.crash.memory import Memory
from tests.crash.scenario import CONFIG, Life, begin, data_set, settings_of
from tests.crash.test_enumeration import LAB, RECEIVED, SEED, STORE, Cut, cuts
from tests.crash.test_failing_disk import FULL_FOR, Failing
from tests.crash.test_keeping import recovered
from tests.crash.test_kill import Dying

Mutant = Callable[[pytest.MonkeyPatch], None]
Judge = Callable[[Cut], list[str]]

NAMED = f"{LAB}P1/20260102_1011/001_T1/000-0001-00000"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch, f"{CONFIG}\n[store]\nkeep = 1\n")


def days_pass(life: Life) -> None:
    """As three days of turns would have it; they are lived through in tests/unit/test_retention.py."""
    life.parts.pipeline.retention.days._seconds += 3 * DAY
    life.turns(15)


def delivered(life: Life) -> None:
    """Two images are; the cuts of that are in test_enumeration.py."""
    life.receive(data_set(1), data_set(2))
    life.turns(40)


# --- lives ----------------------------------------------------------------------------------------------------------


def left(life: Life) -> None:
    """Both leave; one comes again, and leaves again."""
    days_pass(life)
    life.receive(data_set(1))
    life.turns(40)
    days_pass(life)


def changed_afterwards(life: Life) -> None:
    """Both leave; one is corrected, so that its first header is fetched; a late one comes."""
    days_pass(life)
    life.receive(data_set(1, subject="P2"))
    life.turns(40)
    life.receive(data_set(3))
    life.turns(40)
    days_pass(life)


def lost_by_the_lab(life: Life) -> None:
    """The lab removes one before their time is over."""
    life.disk.unlink(f"{NAMED}2.dcm")
    days_pass(life)


def lost_and_sent_again(life: Life) -> None:
    """Both leave; the lab removes one; it is sent again, and that time is over, too."""
    days_pass(life)
    life.disk.unlink(f"{NAMED}2.dcm")
    del life.acknowledged[data_set(2)]
    life.receive(data_set(2))
    life.turns(40)
    days_pass(life)


def owed(life: Life) -> None:
    """A late image cannot be delivered, as the mount is away; then the time is over, and it comes back."""
    life.disk.rename(f"{LAB}.sorter/id", f"{LAB}.sorter/away")
    life.receive(data_set(3))
    life.turns(FULL_FOR + 40)  # it is taken in, also where the disk had no room for it at first
    life.disk.rename(f"{LAB}.sorter/away", f"{LAB}.sorter/id")
    days_pass(life)


# --- judgement ------------------------------------------------------------------------------------------------------


def gone_without_a_copy(cut: Cut) -> list[str]:
    """Each image lies in the spool; or at the lab, and its tombstone says that it was verified there."""
    spool = [content for path, content in cut.files.items() if path.startswith((STORE, RECEIVED))]
    lab = [content for path, content in cut.files.items() if path.startswith(LAB) and path.endswith(".dcm")]
    buried = {each["sha256"] for each in tombstones(cut)}
    wrong = []
    for data in cut.acknowledged:
        if any(each.endswith(data) for each in spool):
            continue
        copies = [each for each in lab if each.endswith(data)]
        if not copies:
            wrong.append("an image is lost")
        elif not any(hashlib.sha256(each).hexdigest() in buried for each in copies):
            wrong.append("an image left without a tombstone")
    return wrong


def tombstones(cut: Cut) -> list[Mapping[str, Any]]:
    lines = [line for path, content in cut.files.items() if path.endswith("/tombstones.jsonl")
             for line in content.splitlines()]  # fmt: skip
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # torn by the power cut
    return found


def something_left(cut: Cut) -> list[str]:
    """Nothing may leave while the late image is owed; what was delivered then has its own days to wait."""
    whole = [path for path in cut.files if path.startswith(STORE) and path.endswith(".dcm")]
    if tombstones(cut) and len(whole) < 3:
        return ["an image left although something of its series was owed"]
    return gone_without_a_copy(cut)


TALES: dict[Callable[[Life], None], tuple[Judge, int]] = {
    left: (gone_without_a_copy, 600),
    changed_afterwards: (gone_without_a_copy, 1900),
    lost_by_the_lab: (gone_without_a_copy, 240),
    lost_and_sent_again: (gone_without_a_copy, 400),
    owed: (something_left, 650),
}
"""Each story with its judgement, and the number of distinct states that it must lead to in the soak tier."""

EVERY = 9
"""Of the states, the share that a life is begun on where time is short; all of them are judged as they are."""


def judge(cut: Cut, settings: Config, of: Judge) -> list[str]:
    """What is wrong after this power cut, and after the life that follows it."""
    _, after = recovered(cut, settings)
    return [*of(cut), *of(after)]


@pytest.mark.parametrize("story", [left, lost_and_sent_again], ids=lambda each: each.__name__)
def test_no_power_cut_takes_an_only_copy(settings: Config, story: Callable[[Life], None]) -> None:
    of, _ = TALES[story]
    states = list(cuts(settings, story, 2, delivered).values())
    wrong = Counter(each for cut in states for each in of(cut))
    wrong += Counter(each for cut in states[::EVERY] for each in judge(cut, settings, of))
    assert not wrong
    assert len(states) >= 100


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", TALES, ids=lambda each: each.__name__)
def test_no_power_cut_takes_an_only_copy_whatever_comes_after(settings: Config, story: Callable[[Life], None]) -> None:
    of, least = TALES[story]
    found = cuts(settings, story, 8, delivered)
    assert not Counter(each for cut in found.values() for each in judge(cut, settings, of))
    assert len(found) >= least


# --- a disk that fails, or is full ----------------------------------------------------------------------------------


def failed(settings: Config, story: Callable[[Life], None], first: int, seconds: float) -> tuple[list[str], int]:
    """What is wrong after this story on such a disk, and how many effects it had."""
    disk = Memory()
    life = begin(disk, settings)
    delivered(life)
    failing = disk.before = Failing(life, first, seconds)
    story(life)
    life.turns(1200, 60)
    disk.sync_file_system("/")  # what is there now, not what a power cut would leave
    after = Cut(next(iter(disk.states(1, random.Random(SEED)))), tuple(life.acknowledged), frozenset())
    return TALES[story][0](after), failing.seen


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seconds", [0.0, FULL_FOR])
@pytest.mark.parametrize("story", TALES, ids=lambda each: each.__name__)
def test_no_failing_disk_takes_an_only_copy(settings: Config, story: Callable[[Life], None], seconds: float) -> None:
    wrong, effects = failed(settings, story, 0, 0.0)
    assert not wrong
    assert not [
        f"{first}: {each}" for first in range(1, effects + 1) for each in failed(settings, story, first, seconds)[0]
    ]


# --- kill -9 --------------------------------------------------------------------------------------------------------


class Told(dict[bytes, None]):
    """What was acknowledged, told through a pipe to whoever survives."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.pipe = pipe

    def __setitem__(self, data: bytes, value: None) -> None:
        super().__setitem__(data, value)
        os.write(self.pipe, data)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """In memory where there is such a folder: a killed process loses nothing that a disk would keep."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path))
    settings_of(base, monkeypatch, f"{CONFIG}\n[store]\nkeep = 1\n")
    yield load(base / "sorter.toml", base / "site")
    shutil.rmtree(base)


def killed(site: Config, story: Callable[[Life], None], number: int) -> tuple[set[bytes], bool]:
    """What was acknowledged in a life that ended before this effect, and did it end there?"""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            life = begin(Dying(number), site)  # type: ignore[arg-type]
            life.acknowledged = Told(writing)
            story(life)
        except BaseException:  # noqa: BLE001 - a forked child must never come back into pytest
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), f"the life ended by itself before effect {number}"
    return {data for data in _SENT if data in told}, code == 9


_SENT = (data_set(1), data_set(2), data_set(3), data_set(1, subject="P2"))


def gone_after(site: Config, acknowledged: set[bytes]) -> Iterator[str]:
    """What is wrong with the files as they lie there now, and after the next life."""
    for _ in range(2):
        files = {str(path): path.read_bytes() for path in site.spool.parent.rglob("*.dcm") if path.is_file()}
        if lost := [data for data in acknowledged if not any(each.endswith(data) for each in files.values())]:
            yield f"{len(lost)} images are lost"
        life = begin(Files(), site)  # type: ignore[arg-type]
        life.turns(80, 20)
        days_pass(life)
        for key in life.spool.keys():  # noqa: SIM118
            unit = Unit.load(life.spool, key)
            for file in unit.instances:
                if not (unit.images / file).exists() and (file not in unit.left or unit.tombstone(file) is None):
                    yield "an image is not in the store, and its records do not say why"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", [left, changed_afterwards], ids=lambda each: each.__name__)
def test_kill_9_before_every_effect_takes_no_only_copy(site: Config, story: Callable[[Life], None]) -> None:
    root = site.spool.parent
    before = begin(Files(), site)  # type: ignore[arg-type]
    delivered(before)
    shutil.copytree(root, root.with_name("delivered"))
    wrong, number, ended = Counter[str](), 0, True
    while ended:
        number += 1
        shutil.rmtree(root)
        shutil.copytree(root.with_name("delivered"), root)
        acknowledged, ended = killed(site, story, number)
        wrong.update(gone_after(site, {*before.acknowledged, *acknowledged}))
    assert not wrong
    print(f"{number - 1} lives ended before an effect")
    assert number > 30


# --- mistakes that it must find -------------------------------------------------------------------------------------


def not_verified_again(patch: pytest.MonkeyPatch) -> None:
    """The receipt is believed, whatever the target answers."""
    compared = retention.Retention._compared

    def eager(self: retention.Retention, asked: retention._Asked, answer: object) -> None:
        receipt = asked.receipt
        compared(self, asked, Verified(receipt.folder, tuple(each.name for each in receipt.files)))

    patch.setattr(retention.Retention, "_compared", eager)


def gone_while_owed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leaving.Verified, "_owed", lambda self, unit: "")
    patch.setattr(retention, "leaving", _Eager(leaving))


class _Eager:
    """The room `leaving`, where a summary never forbids anything."""

    def __init__(self, room: Any) -> None:
        self._room = room

    def why_it_stays(self, *_: object) -> str:
        return ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._room, name)


def removed_before_it_is_written_down(patch: pytest.MonkeyPatch) -> None:
    def hasty(unit: Unit, files: list[str], proof: leaving.Proof) -> dict[str, str]:
        now = Unit.load(unit.spool, unit.key)
        if why := proof.forbids(now):
            return dict.fromkeys(files, why)
        entries = [proof.tombstone(now, file) for file in files]
        leaving._remove(unit, files)
        unit.bury(entries)
        unit.add_evidence([{"left": files, "because": proof.because}])
        unit.left.update(dict.fromkeys(files, proof.because))
        return {}

    patch.setattr(leaving, "let_go", hasty)


def only_copies_replaced(patch: pytest.MonkeyPatch) -> None:
    """A correction is delivered without fetching what it replaces."""
    patch.setattr("sorter.pipeline.delivering.lacking", lambda live, delivery: [])
    assert recall.lacking is not None


def known_is_enough(patch: pytest.MonkeyPatch) -> None:
    """What comes again is dropped, because its delivered copy was right once."""
    patch.setattr(Filing, "_is_there", lambda self, unit, instance: True)


MUTANTS: dict[Mutant, Callable[[Life], None]] = {
    not_verified_again: lost_by_the_lab,
    gone_while_owed: owed,
    removed_before_it_is_written_down: left,
    only_copies_replaced: changed_afterwards,
    known_is_enough: lost_and_sent_again,
}

_CHEAP = (not_verified_again, removed_before_it_is_written_down, known_is_enough)


@pytest.mark.parametrize(
    "mutant", [each if each in _CHEAP else pytest.param(each, marks=pytest.mark.soak) for each in MUTANTS],
    ids=lambda each: each.__name__,
)  # fmt: skip
def test_a_mistake_is_found(settings: Config, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    mutant(monkeypatch)
    story = MUTANTS[mutant]
    assert any(_is_wrong(cut, settings, TALES[story][0]) for cut in cuts(settings, story, 2, delivered).values())


def _is_wrong(cut: Cut, settings: Config, of: Judge) -> bool:
    if of(cut):
        return True
    try:
        return bool(judge(cut, settings, of))
    except (OSError, ValueError, SorterError):
        return True
