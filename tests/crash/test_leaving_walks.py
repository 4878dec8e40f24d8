"""Whatever happens, in whatever order, to a series whose images leave: sorter never takes away the last copy of one.

A walk is a row of happenings, drawn by a seed: images come late, again, corrected, with other pixels; a lab removes,
edits and moves what it has, and puts it back; targets go away, are left out, come back as they were last week; days
pass; sorter is started anew. After each the judge looks for every data set that was ever answered with success, and for
all that a lab made. It may be missing only if somebody else than sorter destroyed its last copy.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sorter.config import load
from sorter.daemon import assembly
from sorter.daemon.requests import request
from sorter.deliver.target import Put
from sorter.durable import Files
from sorter.model import DICOM
from sorter.pipeline import outlets
from sorter.pipeline.deciding import decision
from tests.crash.scenario import Idle, Near, as_file, data_set
from tests.unit.test_retention import CONFIG, KEY, begun

LABS = ("memory", "archive", "other")
NUMBERS = range(1, 5)


class Walk:
    """One life after the other on one spool, and what other people do beside it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        (root / "sorter.toml").write_text(CONFIG)
        self.site, self.root = begun(root), root
        self.sent: dict[bytes, None] = {}
        self.works: dict[bytes, None] = {}
        self.destroyed: set[bytes] = set()
        self.rotted: set[bytes] = set()  # by the disk, once
        self.told: list[str] = []
        self.send(*map(data_set, (1, 2)))
        self.site.turns(100)

    # --- what comes ---------------------------------------------------------------------------------------------

    def send(self, *data_sets: bytes) -> None:
        self.site.receive(*data_sets)
        self.sent.update(dict.fromkeys(data_sets))

    def late(self) -> None:
        self.send(data_set(self.dice.choice(NUMBERS)))

    def again(self) -> None:
        data = self.dice.choice(list(self.sent))
        if self.dice.random() < 0.5:
            self.send(data)
        else:  # by another program, whose file meta differs
            self.site.drop(f"disk{len(self.told)}", as_file(data))

    def conflict(self) -> None:
        self.send(data_set(self.dice.choice(NUMBERS), pixels=b"\4\3\2\1"))

    def another_header(self) -> None:
        self.send(data_set(self.dice.choice(NUMBERS), description="T2"))

    def corrected(self) -> None:
        some = [number for number in NUMBERS if data_set(number) in self.sent]
        if self.dice.random() < 0.5:
            some = some[:1]
        self.send(*(data_set(number, subject=self.dice.choice(["P2", "P3"])) for number in some))

    # --- what others do -----------------------------------------------------------------------------------------

    def files(self) -> list[Path]:
        return sorted(path for lab in LABS for path in (self.root / "labs" / lab).rglob("*.dcm"))

    def beside(self, act: Callable[[], None]) -> None:
        """Somebody does something to files: what has no copy any more afterwards is that one's doing."""
        before = self.there()
        act()
        self.destroyed |= before - self.there()

    def new(self) -> bytes:
        """What a lab makes of a file."""
        work = f"the lab's own work, {len(self.works)}".encode()
        self.works[work] = None
        return work

    def removed(self) -> None:
        for path in self.files():
            if self.dice.random() < 0.4:
                self.beside(path.unlink)

    def edited(self) -> None:
        for path in self.files():
            if self.dice.random() < 0.3:
                self.beside(lambda path=path: path.write_bytes(self.new()))

    def moved(self) -> None:
        """Within the lab's folder, or out of it, for a while."""
        folders = sorted({path.parent for path in self.files()})
        for number, folder in enumerate(folders):
            where = self.dice.choice([self.root / "labs/memory", self.root / "outside"])
            where.mkdir(exist_ok=True)
            folder.rename(where / f"moved{len(self.told)}-{number}")

    def copied(self) -> None:
        """With all that is hidden in it."""
        for number, folder in enumerate(sorted({path.parent for path in self.files()})):
            shutil.copytree(folder, folder.parent / f"copy{len(self.told)}-{number}", dirs_exist_ok=True)

    def in_the_way(self) -> None:
        """Files of the lab's own, under names that late images may want."""
        for folder in sorted({path.parent for path in self.files()}):
            for number in NUMBERS:
                path = folder / self.dice.choice([f"000-0001-00000{number}.dcm", f"x00{number}.dcm"])
                if not path.exists():
                    path.write_bytes(self.new())

    def tidied(self) -> None:
        """What is hidden is removed."""
        for path in sorted(self.root.glob("labs/*/*/**/.sorter-*")):
            if path.is_file():
                path.unlink()

    def back(self) -> None:
        for folder in sorted((self.root / "outside").glob("moved*")):
            (self.root / "labs/memory/back").mkdir(exist_ok=True)
            folder.rename(self.root / "labs/memory/back" / folder.name)

    def away(self) -> None:
        marker = self.root / "labs" / self.dice.choice(LABS) / ".sorter/id"
        if marker.exists():
            marker.rename(marker.with_name("away"))

    def here(self) -> None:
        for marker in self.root.glob("labs/*/.sorter/away"):
            marker.rename(marker.with_name("id"))

    def backed_up(self) -> None:
        shutil.rmtree(self.root / "backup", ignore_errors=True)
        shutil.copytree(self.root / "labs", self.root / "backup")

    def restored(self) -> None:
        if (self.root / "backup").exists():
            lab = self.dice.choice(LABS)
            shutil.rmtree(self.root / "labs" / lab)
            shutil.copytree(self.root / "backup" / lab, self.root / "labs" / lab)

    def rotten(self) -> None:
        stored = sorted(self.site.spool.store.rglob("*.dcm"))
        if stored:
            path = self.dice.choice(stored)
            self.rotted |= {data for data in self.sent if path.read_bytes().endswith(data)}
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    # --- what people ask of sorter ------------------------------------------------------------------------------

    def days(self) -> None:
        self.site.days(self.dice.randint(1, 5))

    def held(self) -> None:
        self.site.parts.pipeline.hold(KEY, self.dice.choice(["", "", "a question"]))

    def mended(self) -> None:
        for (product, target), receipt in self.site.unit().receipts().items():
            if product == DICOM and receipt.files and self.dice.random() < 0.7:
                names = [self.dice.choice(receipt.files).name]
                request(self.site.spool, f"mend-{target}",
                        {"do": "mend", "key": KEY, "product": product, "target": target, "names": names})  # fmt: skip

    def decided(self) -> None:
        said = self.dice.choice([(None, None), ("other", None), ("memory", None), (None, "S7"), ("other", "S8")])
        self.site.parts.pipeline.deciding.decide([KEY], [], decision(*said, "a person"))

    def retried(self) -> None:
        self.site.parts.pipeline.ask_again()

    def restarted(self) -> None:
        self.site = self.site.again()

    def configured(self) -> None:
        """Another folder pattern; a lab that goes to other targets; the usual."""
        text = self.dice.choice([
            CONFIG,
            f"{CONFIG}\n[plugins.naming]\nfolder = 'other/{{subject}}'\n",
            CONFIG.replace('targets = ["archive"]\n', ""),
            CONFIG.replace('[labs.archive]\nproducts = ["dicom"]\n', "").replace('targets = ["archive"]\n', ""),
            CONFIG.replace("keep = 3", "keep = 1"),
            f"{CONFIG}\n[plugins.naming]\nfile = 'x{{InstanceNumber:03d}}.dcm'\n",
            f"{CONFIG}\n[plugins.naming]\nfile = '{{subject}}-{{InstanceNumber:03d}}.dcm'\n",
        ])  # fmt: skip
        (self.root / "sorter.toml").write_text(text)
        self.site.parts.reload(load(self.root / "sorter.toml"), Files())

    HAPPENINGS = (
        late, again, again, conflict, another_header, corrected, corrected, removed, edited, moved, back, away, here,
        backed_up, restored, rotten, days, days, days, held, mended, retried, restarted, configured, configured,
        copied, in_the_way, tidied, decided, decided,
    )  # fmt: skip

    @classmethod
    def happenings(cls) -> Sequence[Callable[[Any], None]]:
        return cls.HAPPENINGS

    # --- judgement ----------------------------------------------------------------------------------------------

    def there(self) -> set[bytes]:
        """The data sets, and what the labs made, of which there is a copy anywhere but in a backup."""
        places = [self.site.spool.root, self.root / "labs", self.root / "outside"]
        contents = [path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()]
        return {data for data in (*self.sent, *self.works) if any(each.endswith(data) for each in contents)}

    def wrong(self) -> Iterator[str]:
        lost = set(self.sent) - self.destroyed - self.rotted - self.there()
        if lost:
            yield f"sorter took the last copy of {len(lost)} images"
        if set(self.works) - self.destroyed - self.there():
            yield "sorter took what a lab had made"
        unit = self.site.unit()
        for file in unit.left:
            if unit.tombstone(file) is None:
                yield "an image left without a tombstone"
        self.destroyed -= self.there()  # it was sent again

    def step(self) -> None:
        happening = self.dice.choice(self.happenings())
        self.told.append(happening.__name__)
        if happening in (Walk.restored, Walk.rotten, Walk.edited, Walk.moved, Walk.copied):
            self.beside(lambda: happening(self))
        else:
            happening(self)
        self.site.turns(self.dice.choice([10, 60, 120, 700]), 10)

    def heal(self) -> None:
        """All is well again: what is owed is delivered, and what may leave leaves."""
        self.here()
        (self.root / "sorter.toml").write_text(CONFIG)
        self.site.parts.reload(load(self.root / "sorter.toml"), Files())
        self.site.parts.pipeline.hold(KEY, "")
        self.site.turns(1500, 30)
        self.site.days(5)


class Withdrawn(Walk):
    """At its end all is withdrawn. Nobody takes copies out of sorter's sight; answers of targets are lost instead."""

    def lost(self) -> None:
        """Deliveries are made, and the power fails before there is a receipt."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Near, "submit", unanswered)
            self.site.turns(self.dice.choice([30, 100]), 10)
        if self.dice.random() < 0.5:
            self.away()
        self.site = self.site.again()

    UNSEEN = (Walk.copied, Walk.moved, Walk.back, Walk.backed_up, Walk.restored, Walk.tidied, Walk.rotten)

    @classmethod
    def happenings(cls) -> Sequence[Callable[[Any], None]]:
        return [*(each for each in cls.HAPPENINGS if each not in cls.UNSEEN), *[cls.lost] * 3]

    def heal(self) -> None:
        self.site.parts.pipeline.withdraw([KEY], [], "consent", "admin")
        self.site.turns(60, 10)
        self.here()
        (self.root / "sorter.toml").write_text(CONFIG)
        self.site.parts.reload(load(self.root / "sorter.toml"), Files())
        self.site.turns(2500, 30)

    def wrong(self) -> Iterator[str]:
        if not self.site.unit().withdrawn:
            yield from super().wrong()
            return
        told = " ".join(each["says"] for each in self.site.unit().story())
        for path in sorted(path for lab in LABS for path in (self.root / "labs" / lab).rglob("*") if path.is_file()):
            content, lab = path.read_bytes(), path.relative_to(self.root / "labs").parts[0]
            by_hand = f"{lab} is no configured target any more" in told or f"{lab}, in " in told
            if any(content.endswith(data) for data in self.sent) and path.name not in told and not by_hand:
                yield f"{path.relative_to(self.root)} is left, and not named"
        summary = self.site.unit().summary()
        if self.site.stored or summary is None or summary.state != "withdrawn":
            yield "it is not withdrawn to the end"


def unanswered(lane: Near, put: Put) -> None:
    lane.put(put)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(assembly, "LocalEngine", Idle)
    monkeypatch.setattr(outlets, "Lane", Near)
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield base
    shutil.rmtree(base)


def walked(root: Path, seed: int, steps: int, kind: type[Walk] = Walk) -> str:
    """What is wrong after the walk of this seed, with the way that led there; "" if nothing is."""
    folder = root / str(seed)
    folder.mkdir()
    walk = kind(folder, seed)
    for act in [*[walk.step] * steps, walk.heal]:
        act()
        if wrong := [*walk.wrong()]:
            return f"seed {seed}: {', '.join(wrong)} after {' '.join(walk.told)}"
    shutil.rmtree(folder)
    return ""


@pytest.mark.parametrize("seed", range(3))
def test_sorter_never_takes_the_last_copy(root: Path, seed: int) -> None:
    assert not walked(root, seed, 12)


@pytest.mark.parametrize("seed", [21, 48])
def test_what_is_withdrawn_goes_or_is_named(root: Path, seed: int) -> None:
    assert not walked(root, seed, 12, Withdrawn)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", range(5))
def test_what_is_withdrawn_goes_or_is_named_on_many_walks(root: Path, batch: int) -> None:
    seeds = range(2000 + 50 * batch, 2050 + 50 * batch)
    wrong = [said for seed in seeds if (said := walked(root, seed, 15, Withdrawn))]
    assert not wrong


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", range(10))
def test_sorter_never_takes_the_last_copy_on_many_walks(root: Path, batch: int) -> None:
    wrong = [said for seed in range(1000 + 50 * batch, 1050 + 50 * batch) if (said := walked(root, seed, 20))]
    assert not wrong
