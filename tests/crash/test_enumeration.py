"""Every state in which a power cut may leave the disk, after each effect of one life: nothing acknowledged is lost.

The life runs on a disk in memory (`memory.py`) that knows what was synced. Before each of its effects the states that
the disk may be in are enumerated; each distinct one is started upon, as after a power cut, and judged by what is there
in the end. `mutants.py` holds mistakes of order that must be found by the same means.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sorter.config import Config
from sorter.errors import SorterError
from tests.crash.memory import Image, Memory
from tests.crash.mutants import MUTANTS, OF_DROPS, Mutant
from tests.crash.scenario import ROOT, Life, as_file, begin, data_set, settings_of, sop_uid

SEED = 20260102
LAB, STORE, RECEIVED = f"{ROOT}/labs/memory/", f"{ROOT}/spool/store/", f"{ROOT}/spool/received/"
QUARANTINE = f"{ROOT}/spool/quarantine/"

Story = Callable[[Life], None]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


# --- lives ----------------------------------------------------------------------------------------------------------


def a_series(life: Life) -> None:
    """Received, taken, published, delivered; then late images, a resend and other pixels under a known UID."""
    life.receive(data_set(1), data_set(2))
    life.turns(40)
    life.receive(data_set(3), data_set(2), data_set(1, pixels=b"\4\3\2\1"))
    life.turns(40)


def two_series_at_once(life: Life) -> None:
    """Two associations one after the other, taken in one batch."""
    life.receive(data_set(1), data_set(1, series=2), data_set(2))
    life.receive(data_set(2, series=2), data_set(3), worker="w2")
    life.turns(40)


def drops(life: Life) -> None:
    """A person's folder with images, a copy, and what is none."""
    life.drop("disk", as_file(data_set(1)), b"notes of a person, " * 20, as_file(data_set(2)))
    life.turns(60)
    life.receive(data_set(1))
    life.turns(40)


def corrected(life: Life) -> None:
    """The patient was the wrong one: the scanner sends all of it again, in two goes, under another PatientID."""
    life.receive(data_set(1), data_set(2))
    life.turns(40)
    life.receive(data_set(1, subject="P2"))
    life.turns(40)
    life.receive(data_set(2, subject="P2"))
    life.turns(60)


STORIES: dict[Story, int] = {a_series: 2400, two_series_at_once: 2300, drops: 1400, corrected: 3900}
"""Each with the number of distinct states that it must lead to: ten thousand together."""

STATES_OF_A_MOMENT = 38
"""At the most: all of them where there are no more, else the extremes and a sample."""

SOAK = 60
"""States of a moment in the soak tier."""


# --- power cuts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A power cut: what the disk holds, and what had been promised by then."""

    image: Image
    acknowledged: tuple[bytes, ...]  # in order
    dropped: frozenset[bytes]

    @property
    def files(self) -> dict[str, bytes]:
        return {path: content for path, _, _, content in self.image if content is not None}

    def key(self) -> str:
        """What a recovery would read, and what is asked of it."""
        seen = [(path, content) for path, _, _, content in self.image]
        return hashlib.sha256(repr((seen, self.acknowledged)).encode()).hexdigest()


def cuts(settings: Config, story: Story, most: int, after: Story = lambda _: None) -> dict[str, Cut]:
    """The distinct power cuts of a life, `most` of one moment at the most; `after` a part in which none is cut."""
    dice, disk = random.Random(SEED), Memory()
    life = begin(disk, settings)
    found: dict[str, Cut] = {}

    def look() -> None:
        promised = tuple(life.acknowledged), frozenset(life.dropped)
        for image in disk.states(most, dice):
            cut = Cut(image, *promised)
            found.setdefault(cut.key(), cut)

    after(life)
    disk.before = look
    story(life)
    look()
    return found


# --- judgement ------------------------------------------------------------------------------------------------------


def judge(cut: Cut, settings: Config) -> list[str]:
    """What is wrong after this power cut; nothing, if all is well."""
    wrong = [*_torn(cut), *_false_receipts(cut)]
    disk = Memory.of(cut.image)
    life = begin(disk, settings)
    life.turns(80, 20)
    if list(life.parts.pipeline.units):  # a torn arrivals file is listed only after a minute
        life.turns(1200, 60)
    after = Cut(next(iter(disk.states(1, random.Random(SEED)))), cut.acknowledged, cut.dropped)
    return [*wrong, *_torn(after), *_false_receipts(after), *_lost(after)]


def _torn(cut: Cut) -> Iterator[str]:
    """A file under a final name that does not hold what its name promises."""
    for path, content in cut.files.items():
        if (
            path.endswith(".dcm")
            and path.startswith((LAB, STORE, RECEIVED))
            and "/." not in path
            and content[-4:] != b"END."
        ):
            yield f"torn under its final name: {path.removeprefix(ROOT)}"


def _false_receipts(cut: Cut) -> Iterator[str]:
    """A receipt of the latest plan, which therefore says that all is done, and a target that does not agree."""
    files = cut.files
    for path, content in files.items():
        unit, _, name = path.rpartition("/receipts/")
        if not unit or "/" in name or not name.endswith(".json"):
            continue
        receipt = json.loads(content)
        if f"{unit}/plan-{receipt['revision'] + 1:04d}.json" in files:
            continue  # the next one is on its way, perhaps over these very files
        for each in receipt["files"]:
            there = files.get(f"{LAB}{receipt['folder']}/{each['name']}", b"")
            if hashlib.sha256(there).hexdigest() != each["sha256"]:
                yield "a receipt names a file that is not there as it says"


def _which(content: bytes) -> tuple[str, bytes]:
    """The SOP instance and its pixels: what a correction leaves as it is."""
    return sop_uid(content), content[-12:]


def _lost(after: Cut) -> Iterator[str]:
    """After the recovery: images that were acknowledged or dropped and are not where they belong, once."""
    stored = [content for path, content in after.files.items() if path.startswith(STORE)]
    given = [content for path, content in after.files.items() if path.startswith(LAB) and path.endswith(".dcm")]
    aside = [content for path, content in after.files.items() if path.startswith(QUARANTINE)]
    for data in after.acknowledged:
        if not any(each.endswith(data) for each in stored):
            yield "an acknowledged image is not in the store"
    counts = Counter(map(_which, given))
    for which in {*counts, *map(_which, after.acknowledged)}:
        if counts[which] != 1:
            yield f"an image was delivered {counts[which]} times"
    for content in after.dropped:
        if content not in stored and content not in aside and not any(content[-200:] == each[-200:] for each in stored):
            yield "a dropped file is neither in the store nor in quarantine"


@pytest.mark.slow
@pytest.mark.timeout(400)  # twenty seconds where nothing else runs
@pytest.mark.parametrize("story", STORIES, ids=lambda each: each.__name__)
def test_no_power_cut_loses_tears_or_doubles_an_image(settings: Config, story: Story) -> None:
    assert judged(settings, story, STATES_OF_A_MOMENT) >= STORIES[story]


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", STORIES, ids=lambda each: each.__name__)
def test_no_power_cut_in_many_more_states(settings: Config, story: Story) -> None:
    assert judged(settings, story, SOAK) > STORIES[story]


def judged(settings: Config, story: Story, of_a_moment: int) -> int:
    """How many power cuts there were; none of them may do harm."""
    found = cuts(settings, story, of_a_moment).values()
    wrong = Counter(each for cut in found for each in set(judge(cut, settings)))
    assert not wrong
    print(f"{story.__name__}: {len(found):,} distinct states")
    return len(found)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.__name__)
def test_the_enumeration_finds_a_mistake(settings: Config, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    mutant(monkeypatch)
    stories = [drops] if mutant in OF_DROPS else STORIES
    assert any(_is_wrong(cut, settings) for story in stories for cut in mixed(cuts(settings, story, 12)))


def mixed(found: dict[str, Cut]) -> list[Cut]:
    """Of all parts of the life in turn: what a mistake harms may all lie in one."""
    return random.Random(SEED).sample(list(found.values()), len(found))


def _is_wrong(cut: Cut, settings: Config) -> bool:
    try:
        return bool(judge(cut, settings))
    except (OSError, ValueError, SorterError):  # a recovery that cannot even read its records
        return True
