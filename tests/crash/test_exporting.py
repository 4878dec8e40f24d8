"""Power cuts while copies that a person asked for go to a target, and while they are taken back: all or nothing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sorter.builtin.path_target import mark
from sorter.config import Config
from sorter.model import UnitKind, plain, unit_key
from sorter.pipeline.exporting import Exporting
from sorter.spool import Unit
from sorter.spool.exports import Export, ExportedFile, ExportRecords
from sorter.spool.requests import request
from tests.crash import scenario
from tests.crash.memory import Memory
from tests.crash.scenario import ROOT, Life, begin, data_set, settings_of
from tests.crash.test_enumeration import SEED, STORE, Cut, cuts

ASKED, WITHDRAWN = b"asked", b"withdrawn"
"""Among what had been promised by a cut: the request was left."""

ARCHIVE = f"{ROOT}/archive"
KEY = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
CONFIG = f"""
[labs.memory]
match = ["PatientID=P*"]
products = ["dicom"]
on_demand = ["archive"]

[targets.archive]
kind = "path"
root = "{ARCHIVE}"
"""
SAMPLE = 20
"""States of a story that are judged at each change; the soak judges all of them."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(scenario, "CONFIG", CONFIG)
    return settings_of(tmp_path, monkeypatch)


def copied(life: Life) -> None:
    """A series is delivered, two of its images are asked for, and more of it comes."""
    life.disk.make_folders(ARCHIVE)
    mark(ARCHIVE, life.disk)
    life.receive(data_set(1), data_set(2))
    life.turns(40)
    images = Unit.load(life.spool, KEY).instances.values()
    files = tuple(ExportedFile(f"{number}.dcm", each.sha256, each.size, f"images/{each.file}")
                  for number, each in enumerate(images, 1))  # fmt: skip
    export = Export(KEY, "archive", "pilot/T1", files, 1000, "2026-01-02T10:11:12+00:00")
    request(life.spool, "export-1", {"do": "export", "export": plain(export)})
    life.acknowledged[ASKED] = None
    life.turns(20)
    life.receive(data_set(3))
    life.turns(40)


def taken_back(life: Life) -> None:
    """The same, and then the series is withdrawn."""
    copied(life)
    withdraw(life)
    life.turns(40)


def taken_back_meanwhile(life: Life) -> None:
    """It is withdrawn when its first copy lies in the archive, and no receipt says so."""

    before, lies = life.disk.before, False

    def look() -> None:
        nonlocal lies
        before()
        if not lies and any(life.disk.exists(f"{ARCHIVE}/pilot/T1/{number}.dcm") for number in (1, 2)):
            lies = True
            withdraw(life)

    life.disk.before = look
    copied(life)


def withdraw(life: Life) -> None:
    request(life.spool, "withdraw-1", {"do": "withdraw", "keys": [KEY], "studies": [], "why": "", "by": "somebody"})
    life.acknowledged[WITHDRAWN] = None


def judge(cut: Cut, settings: Config) -> list[str]:
    """What is wrong after this power cut; nothing, if all is well."""
    life = begin(Memory.of(cut.image), settings)
    life.turns(80, 20)
    after = Cut(next(iter(life.disk.states(1, random.Random(SEED)))), cut.acknowledged, cut.dropped)
    sent = [each for each in cut.acknowledged if each not in (ASKED, WITHDRAWN)]
    there = {path.removeprefix(f"{ARCHIVE}/"): content for path, content in after.files.items()
             if path.startswith(ARCHIVE) and content.endswith(b"END.")}  # fmt: skip
    wrong = [f"{path} is left in the archive" for path in there if not path.startswith("pilot/T1/")]
    wrong += ["something is owed for ever"] if life.spool.files.names(life.spool.exports) else []
    if WITHDRAWN in cut.acknowledged:
        return wrong + ["a copy was not taken back" for _ in there]
    gone = life.parts.pipeline.unit(KEY).withdrawn if sent else ""
    stored = [content for path, content in after.files.items() if path.startswith(STORE)]
    wrong += ["an image is not in the store" for data in sent
              if not gone and not any(each.endswith(data) for each in stored)]  # fmt: skip
    if len(there) not in ((0,) if gone else (2,) if ASKED in cut.acknowledged else (0, 2)):
        wrong.append(f"{len(there)} copies are in the archive")
    receipts = {f"pilot/T1/{each.name}" for receipt in Unit(life.spool, KEY).exported() for each in receipt.files}
    if receipts != set(there):
        wrong.append("the receipt does not say what is there")
    return wrong


Story = Callable[[Life], None]


def wrongs(settings: Config, story: Story, most: int) -> tuple[int, Counter[str]]:
    """(states judged, what is wrong in how many) of a story, in an order that is the same each time."""
    states = list(cuts(settings, story, 2).values())
    random.Random(SEED).shuffle(states)
    return len(states[:most]), Counter(each for cut in states[:most] for each in judge(cut, settings))


@pytest.mark.parametrize("story", [copied, taken_back, taken_back_meanwhile], ids=lambda each: each.__name__)
def test_no_power_cut_leaves_copies_half_made(settings: Config, story: Story) -> None:
    assert wrongs(settings, story, SAMPLE) == (SAMPLE, Counter())


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("story", [copied, taken_back, taken_back_meanwhile], ids=lambda each: each.__name__)
def test_no_power_cut_at_all_leaves_copies_half_made(settings: Config, story: Story) -> None:
    judged, wrong = wrongs(settings, story, 100_000)
    assert not wrong
    assert judged >= 500


# --- mistakes that it must find -------------------------------------------------------------------------------------


def owed_in_memory_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ExportRecords, "add", lambda *_: None)
    patch.setattr(ExportRecords, "remove", lambda *_: None)


def withdrawn_without_the_owed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Exporting, "withdrawn", lambda *_: None)


def no_receipt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Unit, "write_exported", lambda *_: None)


MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], Story] = {
    owed_in_memory_alone: copied, withdrawn_without_the_owed: taken_back_meanwhile, no_receipt: taken_back,
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.__name__)
def test_a_mistake_is_found(settings: Config, monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., None]) -> None:
    mutant(monkeypatch)
    assert wrongs(settings, MUTANTS[mutant], 400)[1]
