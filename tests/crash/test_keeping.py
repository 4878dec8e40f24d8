"""Power cuts while a person withdraws a series, or has a delivery mended: in the end all of it is done, or nothing."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sorter.builtin import _path_stage
from sorter.config import Config
from sorter.daemon import requests
from sorter.daemon.assembly import Parts
from sorter.daemon.requests import request
from sorter.errors import SorterError
from sorter.model import UnitKind, unit_key
from sorter.pipeline import withdrawing
from sorter.spool import Spool, leaving, withdrawals
from sorter.spool.unit import Unit
from tests.crash.memory import Memory
from tests.crash.scenario import Life, begin, data_set, settings_of
from tests.crash.test_enumeration import LAB, QUARANTINE, SEED, STORE, Cut, cuts, mixed

Mutant = Callable[[pytest.MonkeyPatch], None]

ASKED, AGAIN, DAMAGED = b"asked", b"sent again", b"damaged"
"""Among what had been promised by a cut: a request was left, a copy came after it, a delivered file was damaged."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


def key_of(series: int) -> str:
    return unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{series}")


def ask(life: Life, what: dict[str, object]) -> None:
    request(life.spool, str(what["do"]), what)
    life.acknowledged[ASKED] = None


def withdrawn(life: Life) -> None:
    """Two series are delivered; one grows, and is withdrawn meanwhile; then its scanner sends some of it again."""
    life.receive(data_set(1), data_set(2), data_set(1, series=2))
    life.turns(40)
    life.receive(data_set(3))
    life.turns(5)
    ask(life, {"do": "withdraw", "keys": [key_of(1)], "studies": [], "why": "consent", "by": "admin"})
    life.turns(40)
    life.receive(data_set(2), data_set(4))
    life.acknowledged[AGAIN] = None
    life.turns(10)


NAME = "000-0001-000001.dcm"
FLIPPED = b"flipped bytes, of the same length as an image, END."


def mended(life: Life) -> None:
    """Two images are delivered; the NAS damages one, and loses the other; a person wants both as they were."""
    life.receive(data_set(1), data_set(2))
    life.turns(40)
    folder = f"{LAB}P1/20260102_1011/001_T1"
    node = life.disk._find(f"{folder}/{NAME}", None)
    node.data = node.disk_data = FLIPPED
    life.disk.unlink(f"{folder}/000-0001-000002.dcm")
    life.acknowledged[DAMAGED] = None
    names = [NAME, "000-0001-000002.dcm"]
    ask(life, {"do": "mend", "key": key_of(1), "product": "dicom", "target": "memory", "names": names})
    life.turns(20)


def found(cut: Cut, place: str, series: int) -> set[bytes]:
    """Which images of a series there are below a place, whole."""
    mine = [data_set(number, series=series) for number in range(1, 5)]
    return {data for data in mine for path, content in cut.files.items()
            if path.startswith(place) and content.endswith(data)}  # fmt: skip


def recovered(cut: Cut, settings: Config) -> tuple[Life, Cut]:
    """The life after this power cut, and what is on its disk in the end."""
    life = begin(Memory.of(cut.image), settings)
    life.turns(80, 20)
    if list(life.parts.pipeline.units):
        life.turns(1200, 60)
    return life, Cut(next(iter(life.disk.states(1, random.Random(SEED)))), cut.acknowledged, cut.dropped)


def judge_mended(cut: Cut, settings: Config) -> list[str]:
    """What is wrong after this power cut; nothing, if all is well."""
    _, after = recovered(cut, settings)
    wrong, sent = [], {each for each in cut.acknowledged if each not in (ASKED, DAMAGED)}
    if not sent <= found(after, STORE, 1):
        wrong.append("an image is lost in the store")
    lab = {path.rpartition("/")[2]: content for path, content in after.files.items() if path.startswith(LAB)}
    if DAMAGED in cut.acknowledged and FLIPPED not in lab.values():
        wrong.append("the damaged bytes are gone: they might have been somebody's work")
    if len([content for content in lab.values() if content == FLIPPED]) > 1:
        wrong.append("the damaged bytes lie there twice")
    if ASKED in cut.acknowledged and not sent <= found(after, LAB, 1):
        wrong.append("what a person wanted mended is not")
    if any(name.endswith(".dcm") and content[-4:] != b"END." for name, content in lab.items()):
        wrong.append("a delivered file is torn")
    return wrong


def judge_withdrawn(cut: Cut, settings: Config) -> list[str]:
    """What is wrong after this power cut; nothing, if all is well."""
    life, after = recovered(cut, settings)
    wrong = []
    sent = [each for each in cut.acknowledged if each not in (ASKED, AGAIN)]
    other = {data_set(1, series=2)} & set(sent)
    if not other <= found(after, STORE, 2) & found(after, LAB, 2):
        wrong.append("a series was touched that nobody withdrew")
    stored, delivered = found(after, STORE, 1), found(after, LAB, 1)
    is_over = life.spool.withdrawals.holds(key_of(1))
    if ASKED in cut.acknowledged and not is_over:
        wrong.append("a withdrawal was forgotten")
    if is_over and (stored or delivered):
        wrong.append("an image outlived its withdrawal")
    if not is_over and not {each for each in sent if each not in other} <= stored & delivered:
        wrong.append("an image is lost that nobody withdrew")
    again = {data_set(2), data_set(4)} if AGAIN in cut.acknowledged else set()
    if not again <= found(after, QUARANTINE, 1):
        wrong.append("what came after the withdrawal is not in quarantine")
    unit = Unit.load(life.spool, key_of(1))
    if is_over and not unit.withdrawn:
        wrong.append("there is a tombstone, and the records know nothing of it")
    return wrong


TALES = {withdrawn: (judge_withdrawn, 2000), mended: (judge_mended, 700)}
"""Each story with its judgement, and the number of distinct states that it must lead to."""

STATES = 8
"""Of a moment, at the most."""


@pytest.mark.slow
@pytest.mark.timeout(400)  # ten seconds where nothing else runs
@pytest.mark.parametrize("story", TALES, ids=lambda each: each.__name__)
def test_no_power_cut_halves_what_a_person_decided(settings: Config, story: Callable[[Life], None]) -> None:
    judge, least = TALES[story]
    states = cuts(settings, story, STATES).values()
    wrong = Counter(each for cut in states for each in judge(cut, settings))
    assert not wrong
    assert len(states) >= least


# --- mistakes that it must find -------------------------------------------------------------------------------------


def request_gone_before_it_is_done(patch: pytest.MonkeyPatch) -> None:
    def eager(path: Path, spool: Spool, parts: Parts) -> None:
        asked = json.loads(spool.files.read_file(path))
        spool.files.unlink(path)
        spool.files.fsync_folder(spool.requests)
        requests._do(asked, parts)

    patch.setattr(requests, "_answer", eager)


def no_tombstone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(withdrawals.Withdrawals, "refuses", lambda *_: "")


def not_gone_on_with(patch: pytest.MonkeyPatch) -> None:
    """What a crash interrupted is taken for done."""
    patch.setattr(withdrawing.Withdrawing, "go_on", lambda self, live: None)


def other_units_too(patch: pytest.MonkeyPatch) -> None:
    class Anything(leaving.Withdrawn):
        def forbids(self, unit: Unit) -> str:
            return ""

    def all_of_it(unit: Unit) -> list[str]:
        spool = unit.spool
        for key in spool.keys():  # noqa: SIM118
            leaving._remove(Unit.load(spool, key), list(leaving.images_of(Unit.load(spool, key))))
        return []

    patch.setattr(withdrawing, "images_of", all_of_it)


def nothing_moved_aside(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_path_stage.Stage, "keep_aside", lambda *_: None)


MUTANTS = {
    request_gone_before_it_is_done: withdrawn,
    no_tombstone: withdrawn,
    not_gone_on_with: withdrawn,
    other_units_too: withdrawn,
    nothing_moved_aside: mended,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.__name__)
def test_a_mistake_is_found(settings: Config, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    mutant(monkeypatch)
    story = MUTANTS[mutant]
    assert any(_is_wrong(cut, settings, TALES[story][0]) for cut in mixed(cuts(settings, story, 6)))


def _is_wrong(cut: Cut, settings: Config, judge: Callable[[Cut, Config], list[str]]) -> bool:
    try:
        return bool(judge(cut, settings))
    except (OSError, ValueError, SorterError):
        return True
