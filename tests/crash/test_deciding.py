"""Power cuts while a person says what a subject is called, or a lab claims a series: the old or the new, never both."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sorter.config import Config
from sorter.daemon import requests
from sorter.daemon.assembly import Parts
from sorter.daemon.requests import request
from sorter.errors import SorterError
from sorter.model import UnitKind, plain, unit_key
from sorter.pipeline import delivering
from sorter.pipeline.deciding import Deciding
from sorter.pipeline.units import Live
from sorter.spool import Spool, Unit
from sorter.spool.decisions import Decision, Decisions
from tests.crash import scenario
from tests.crash.memory import Memory
from tests.crash.scenario import ROOT, Life, begin, data_set, settings_of
from tests.crash.test_enumeration import SEED, STORE, Cut, cuts

ASKED, GRANTED = b"asked", b"granted"
"""Among what had been promised by a cut: the request was left."""

LABS = f"{ROOT}/labs/"
NEW = Decision("d1", None, "P07", by="admin", at="2026-01-02T10:11:12+00:00")
KEYS = [unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{series}") for series in (1, 2)]
STRAY = unit_key(UnitKind.SERIES, "1.2.9", "1.2.9.1")
Judge = Callable[[Cut, dict[bytes, list[str]]], list[str]]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(scenario, "CONFIG", '[labs.memory]\nmatch = ["PatientID=P*"]\nproducts = ["dicom"]\n')
    return settings_of(tmp_path, monkeypatch)


def ask(life: Life, name: str, what: dict[str, object], promise: bytes) -> None:
    request(life.spool, name, what)
    life.acknowledged[promise] = None


def fixed(life: Life) -> None:
    """Two series are delivered, one grows when its subject is called otherwise; then some comes again, and a third."""
    life.receive(data_set(1), data_set(2), data_set(1, series=2))
    life.turns(40)
    life.receive(data_set(3))
    life.turns(5)
    said = {"do": "decide", "keys": KEYS, "studies": ["1.2.3"], "decision": plain(NEW)}
    ask(life, "decide-1", said, ASKED)
    life.turns(40)
    life.receive(data_set(2), data_set(1, series=3))
    life.turns(40)


def claimed(life: Life) -> None:
    """A series of nobody is claimed by a lab, a person grants it, and more of it comes."""
    life.receive(data_set(1, study="1.2.9", subject="X1"), data_set(1))
    life.turns(40)
    claim = {"do": "claim", "keys": [STRAY, KEYS[0]], "lab": "memory", "by": "somebody", "granted": False}
    ask(life, "decide-1", claim, ASKED)
    life.turns(5)
    [waiting] = life.spool.claims.all()
    ask(life, "decide-2", {"do": "answer claim", "code": waiting.code, "granted": True}, GRANTED)
    life.turns(10)
    life.receive(data_set(2, study="1.2.9", subject="X1"))
    life.turns(40)


def recovered(cut: Cut, settings: Config) -> tuple[Life, Cut]:
    life = begin(Memory.of(cut.image), settings)
    life.turns(80, 20)
    if list(life.parts.pipeline.units):
        life.turns(1200, 60)
    return life, Cut(next(iter(life.disk.states(1, random.Random(SEED)))), cut.acknowledged, cut.dropped)


def judge(cut: Cut, settings: Config, story: Callable[[Life], None]) -> list[str]:
    """What is wrong after this power cut; nothing, if all is well."""
    life, after = recovered(cut, settings)
    sent = [each for each in cut.acknowledged if each not in (ASKED, GRANTED)]
    stored = [content for path, content in after.files.items() if path.startswith(STORE)]
    wrong = [f"an image is {sum(each.endswith(data) for each in stored)} times in the store" for data in sent
             if sum(each.endswith(data) for each in stored) != 1]  # fmt: skip
    places = {data: [path.removeprefix(LABS) for path, content in after.files.items()
                     if path.startswith(LABS) and content.endswith(data)] for data in sent}  # fmt: skip
    wrong += [f"an image was delivered {len(found)} times" for found in places.values() if len(found) != 1]
    wrong += ["a hidden file is left" for path in after.files if path.startswith(LABS) and ".part" in path]
    wrong += ["MOVED.txt is left where nothing of a lab's was" for path in after.files if path.endswith("MOVED.txt")]
    wrong += JUDGES[story](cut, places)
    if any(life.spool.decisions.waiting(key) for key in (*KEYS, STRAY)):
        wrong.append("a decision was not taken up")
    return wrong


def judge_fixed(cut: Cut, places: dict[bytes, list[str]]) -> list[str]:
    subjects = {place.split("/")[1] for found in places.values() for place in found}
    wrong = ["the study lies at two places"] if len(subjects) > 1 else []
    if ASKED in cut.acknowledged and subjects - {"P07"}:
        wrong.append("what a person said was forgotten")
    return wrong


def judge_claimed(cut: Cut, places: dict[bytes, list[str]]) -> list[str]:
    mine = [place for data, found in places.items() for place in found if b"X1" in data]
    wrong = ["a claim touched the series of a lab"] if any(
        not place.startswith("memory/P1/") for data, found in places.items() for place in found if b"X1" not in data
    ) else []  # fmt: skip
    if len({place.split("/")[0] for place in mine}) > 1:
        wrong.append("the series lies with two labs")
    if GRANTED in cut.acknowledged and any(not place.startswith("memory/") for place in mine):
        wrong.append("a claim that was granted was forgotten")
    return wrong


JUDGES: dict[Callable[[Life], None], Judge] = {fixed: judge_fixed, claimed: judge_claimed}
SAMPLE = 40
"""States of one story that are judged at each change; the soak judges all of both."""


def wrongs(settings: Config, story: Callable[[Life], None], most: int, of_a_moment: int) -> tuple[int, Counter[str]]:
    """(states judged, what is wrong in how many) of a story, in an order that is the same each time."""
    states = list(cuts(settings, story, of_a_moment).values())
    random.Random(SEED).shuffle(states)
    return len(states[:most]), Counter(each for cut in states[:most] for each in judge(cut, settings, story))


def test_no_power_cut_leaves_a_decision_half_done(settings: Config) -> None:
    assert wrongs(settings, fixed, SAMPLE, 1) == (SAMPLE, Counter())


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("story", JUDGES, ids=lambda each: each.__name__)
def test_no_power_cut_at_all_leaves_a_decision_half_done(settings: Config, story: Callable[[Life], None]) -> None:
    judged, wrong = wrongs(settings, story, 100_000, 2)
    assert not wrong
    assert judged >= 1500


# --- mistakes that it must find -------------------------------------------------------------------------------------


def request_gone_before_it_is_done(patch: pytest.MonkeyPatch) -> None:
    def eager(path: Path, spool: Spool, parts: Parts) -> None:
        asked = json.loads(spool.files.read_file(path))
        spool.files.unlink(path)
        spool.files.fsync_folder(spool.requests)
        requests._do(asked, parts)

    patch.setattr(requests, "_answer", eager)


def decided_in_memory_alone(patch: pytest.MonkeyPatch) -> None:
    def decide(self: Unit, decision: Decision, outdated: int) -> None:
        self.outdated = outdated
        self._decide(decision)

    patch.setattr(Unit, "decide", decide)


def not_left_for_what_comes_later(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Decisions, "of_study", lambda *_: None)


def taken_for_settled(patch: pytest.MonkeyPatch) -> None:
    """A plan that is out of date is as good as any."""
    patch.setattr(Live, "outdated", property(lambda _: False))


def claim_gone_before_it_is_granted(patch: pytest.MonkeyPatch) -> None:
    def answer(self: Deciding, code: str, *, granted: bool) -> None:
        asked = self.spool.claims.find(code)
        if asked is not None:
            self.spool.claims.remove(code)
            self.claim(asked.keys, asked.lab, asked.by, granted=granted)

    patch.setattr(Deciding, "answer", answer)


def old_place_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(delivering, "replaced", lambda *_: [])


MUTANTS = {
    request_gone_before_it_is_done: fixed,
    decided_in_memory_alone: fixed,
    not_left_for_what_comes_later: fixed,
    taken_for_settled: fixed,
    claim_gone_before_it_is_granted: claimed,
    old_place_forgotten: fixed,
}


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.__name__)
def test_a_mistake_is_found(settings: Config, monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., None]) -> None:
    mutant(monkeypatch)
    story = MUTANTS[mutant]
    states = list(cuts(settings, story, 1).values())
    random.Random(SEED).shuffle(states)
    assert any(_is_wrong(cut, settings, story) for cut in states)


def _is_wrong(cut: Cut, settings: Config, story: Callable[[Life], None]) -> bool:
    try:
        return bool(judge(cut, settings, story))
    except (OSError, ValueError, SorterError):
        return True
