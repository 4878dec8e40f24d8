"""Retention: an image leaves the store only after its delivered copy was read again, and then all acts as before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sorter.builtin.path_target import mark
from sorter.cli.main import sorter
from sorter.config import load
from sorter.daemon import assembly
from sorter.daemon.assembly import assemble
from sorter.daemon.requests import request
from sorter.daemon.sort import mark_defaults
from sorter.deliver.target import Fetched, Refused
from sorter.durable import Files
from sorter.model import Receipt, UnitKind, unit_key
from sorter.pipeline import outlets, retention
from sorter.pipeline.commitments import Standing, _View
from sorter.pipeline.deciding import decision
from sorter.protocol.commitment import Reference
from sorter.spool import Spool, Unit, leaving
from sorter.spool.by_sop import BySop
from sorter.spool.days import DAY, Days
from sorter.spool.decisions import Claim
from sorter.spool.exports import Export, ExportedFile
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until
from tests.crash.scenario import Idle, Life, Near, as_file, data_set

KEY = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
BOTH = ("labs/memory", "labs/archive")
CONFIG = """
[sorter]
root = "."
[store]
keep = 3
[labs.memory]
match = ["PatientID=P1"]
products = ["dicom"]
targets = ["archive"]
[labs.other]
match = ["PatientID=P2"]
products = ["dicom"]
[labs.archive]
products = ["dicom"]
"""


@dataclass
class Site(Life):
    """A life on real files; retention keeps three days. `memory` delivers to its root, and to an archive."""

    root: Path = Path()

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(sorter, [*arguments, "-c", str(self.root / "sorter.toml")])

    def days(self, count: int) -> None:
        """So many days pass, as if turn after turn had seen them; they are lived through in the first test."""
        self.parts.pipeline.retention.days._seconds += count * DAY
        self.turns(60)

    @property
    def stored(self) -> list[str]:
        return sorted(path.name for path in self.spool.store.rglob("*.dcm"))

    def delivered(self, where: str = "labs/memory") -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.root / where).rglob("*.dcm"))}

    def unit(self, key: str = KEY) -> Unit:
        return Unit.load(self.spool, key)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("status", "--json").output)["store"]
        return found

    def again(self) -> Site:
        """The next life on this spool."""
        return begun(self.root, self.now)


def begun(root: Path, now: float = 1000.0) -> Site:
    config = load(root / "sorter.toml")
    spool = Spool(config.spool, Files())
    spool.create()
    parts = assemble(config, spool, lambda: None)
    mark_defaults(config, spool.files)
    return Site(spool.files, parts, now, root=root)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """In memory where there is such a folder: a test that loses no power needs no disk."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield base
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def lives(base: Path) -> Iterator[tuple[Path, Path]]:
    """Where a series of two images was delivered twice, and where they have left the store; to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "LocalEngine", Idle)
        patch.setattr(outlets, "Lane", Near)
        (base / "site").mkdir()
        (base / "site/sorter.toml").write_text(CONFIG)
        made = begun(base / "site")
        made.receive(data_set(1), data_set(2))
        made.turns(80)
        assert len(made.stored) == len(made.delivered()) == len(made.delivered("labs/archive")) == 2
        shutil.copytree(base / "site", base / "left")
        later = begun(base / "left")
        later.days(5)
        assert later.stored == []
        yield base / "site", base / "left"


@pytest.fixture
def site(base: Path, lives: tuple[Path, Path]) -> Iterator[Site]:
    """A series of two images, delivered twice."""
    yield begun(shutil.copytree(lives[0], base / "test"))
    shutil.rmtree(base / "test")


@pytest.fixture
def left(base: Path, lives: tuple[Path, Path]) -> Iterator[Site]:
    """The same, after both images have left the store."""
    yield begun(shutil.copytree(lives[1], base / "test"))
    shutil.rmtree(base / "test")


# --- what leaves, and when ------------------------------------------------------------------------------------------


def test_an_image_leaves_when_its_days_are_over_and_not_before(site: Site) -> None:
    site.turns(3 * DAY, 3600)
    assert len(site.stored) == 2
    site.turns(1.2 * DAY, 3600)
    assert site.stored == []
    assert len(site.delivered()) == 2
    unit = site.unit()
    assert set(unit.left.values()) == {"delivered"}
    assert {unit.tombstone(file)["target"] for file in unit.left} == {"memory"}  # type: ignore[index]
    assert (unit.revisions(), unit.plans(), len(unit.receipts())) == ([1], [1], 2)
    assert (site.spool.root / "version").read_text() == "2\n"
    said = site.status()
    assert (said["images"], said["left"], said["keep"]) == (0, 2, 3)
    assert "2 images left the store" in site.command("why", "P1").output


def test_no_clock_makes_a_day_pass(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ten_years = 10 * 365 * DAY
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + ten_years)  # type: ignore[misc]
    site.turns(DAY, 3000)
    life = site.again()
    life.turns(DAY, 3000)
    assert len(life.stored) == 2
    assert life.status()["day"] <= 2


def test_the_count_of_days_is_durable_and_never_ahead(tmp_path: Path) -> None:
    days = Days(tmp_path / "days.json", Files())
    for now in range(0, int(2.5 * DAY) + 1, 600):
        days.look(float(now))
    assert days.count == 2
    again = Days(tmp_path / "days.json", Files())
    again.look(5e9)  # another life's clock begins anywhere
    again.look(5e9 + 0.6 * DAY)  # and a gap that nobody saw does not count
    assert again.count == 2
    for now in range(0, int(0.6 * DAY), 600):
        again.look(5e9 + 0.6 * DAY + now)
    assert again.count == 3
    (tmp_path / "days.json").write_bytes(b"\0\0")
    assert Days(tmp_path / "days.json", Files()).count == 0


@pytest.mark.parametrize("keep", ["[store]\nkeep = 400\n", ""])
def test_what_is_to_be_kept_longer_or_for_ever_stays(site: Site, keep: str) -> None:
    (site.root / "sorter.toml").write_text(CONFIG.replace("[store]\nkeep = 3\n", keep))
    site.parts.reload(load(site.root / "sorter.toml"), Files())
    site.days(6)
    assert len(site.stored) == 2


def test_held_is_frozen_and_leaves_when_it_is_released(site: Site) -> None:
    site.parts.pipeline.hold(KEY, "a question")
    site.days(6)
    assert len(site.stored) == 2
    assert site.status()["stayed"] == {"a person holds it: a question": 2}
    site.parts.pipeline.hold(KEY, "")
    site.days(2)
    assert site.stored == []


def test_what_a_lab_claims_or_a_person_decided_is_frozen(site: Site) -> None:
    more = "0" * 32  # that is nobody's yet: a claim of what has a lab alone is over
    site.spool.claims.add(Claim("other", (KEY, more), "somebody", "2026-01-02"))
    site.days(6)
    assert site.status()["stayed"] == {"lab other claims it": 2}
    for claim in site.spool.claims.all():
        site.spool.claims.remove(claim.code)
    site.spool.decisions.leave([KEY], [], decision("other", None, "a person"))
    site.days(1)
    assert len(site.stored) == 2
    site.parts.pipeline.again(KEY)
    site.turns(200)
    assert (site.delivered(), len(site.delivered("labs/other"))) == ({}, 2)


def test_what_left_moves_to_the_lab_that_a_person_says(left: Site) -> None:
    before = left.delivered()
    left.parts.pipeline.deciding.decide([KEY], [], decision("other", None, "a person"))
    left.turns(200)
    assert (left.delivered(), left.delivered("labs/archive")) == ({}, {})
    assert left.delivered("labs/other") == before
    left.days(5)
    assert left.stored == []


def test_what_left_and_belongs_to_a_lab_that_wants_nothing_comes_back_and_stays(left: Site) -> None:
    assert left.parts.take_lab_file("other", b"[deliver]\nproducts = []\n") == ()
    before = left.delivered()
    assert left.command("fix", "1.2.3.1", "--lab", "other").exit_code == 0
    left.turns(120)
    left.days(30)
    assert left.delivered() == left.delivered("labs/archive") == left.delivered("labs/other") == {}
    assert sorted(path.read_bytes() for path in left.spool.store.rglob("*.dcm")) == sorted(before.values())


def test_no_lab_a_conflict_and_a_superseded_header_stay_and_are_told(site: Site) -> None:
    site.receive(data_set(1, subject="P3", study="1.2.9"))
    site.receive(data_set(1, pixels=b"\4\3\2\1"), data_set(2, description="T2"))
    site.turns(80)
    site.days(6)
    assert len(site.stored) == 3
    stays = site.status()["stays"]
    assert stays == {"delivered nowhere": 1, "conflict copies": 1, "with a superseded header": 1}
    assert "1 image stays: conflict copies" in site.command("status").output


def test_owed_to_one_target_nothing_leaves(site: Site) -> None:
    (site.root / "labs/archive/.sorter/id").rename(site.root / "labs/archive/.sorter/away")
    site.receive(data_set(3))
    site.turns(80)
    site.days(6)
    assert len(site.stored) == 3
    assert site.status()["stays"] == {"something of it is owed": 3}
    (site.root / "labs/archive/.sorter/away").rename(site.root / "labs/archive/.sorter/id")
    site.turns(700)
    assert len(site.delivered("labs/archive")) == 3
    site.days(2)
    assert len(site.stored) == 3  # the days are those since the last delivery
    site.days(3)
    assert site.stored == []


def test_what_is_owed_waits_for_a_correction_that_fits_no_lab(site: Site) -> None:
    """The plan that is there names none of its images: it is not delivered by it when the target comes back."""
    (site.root / "labs/archive/.sorter/id").rename(site.root / "labs/archive/.sorter/away")
    site.receive(data_set(3))
    site.turns(80)
    site.receive(*(data_set(number, subject="P9") for number in (1, 2, 3)))
    site.turns(80)
    (site.root / "labs/archive/.sorter/away").rename(site.root / "labs/archive/.sorter/id")
    site.turns(700)
    site.days(6)
    assert len(site.stored) == 6
    assert "kept: no lab's match fits it" in site.command("why", KEY).output


def test_a_target_that_came_back_empty_or_with_other_files_frees_nothing(site: Site) -> None:
    for root in BOTH:
        for path in (site.root / root).rglob("*.dcm"):
            path.unlink() if path.name.endswith("1.dcm") else path.write_bytes(b"other bytes, END.")
    site.days(6)
    assert len(site.stored) == 2
    assert site.status()["stayed"] == {"its delivered copy is not there any more as it was delivered": 2}


def test_one_copy_that_is_right_is_enough(site: Site) -> None:
    next((site.root / "labs/memory").rglob("*1.dcm")).unlink()
    site.days(5)
    assert site.stored == []
    unit = site.unit()
    assert sorted(unit.tombstone(file)["target"] for file in unit.left) == ["archive", "memory"]  # type: ignore[index]


def test_whatever_happens_while_a_target_compares_is_heeded(site: Site) -> None:
    """An answer comes late: of an older revision, of another day, of a receipt that was replaced."""
    unit, today = site.unit(), 100
    receipt = unit.receipts()["dicom", "memory"]
    files = list(unit.instances)

    def proof(**changed: Any) -> leaving.Verified:
        given = {"receipt": receipt, "same": frozenset(files), "day": today, "keep": 3, "today": lambda: today}
        return leaving.Verified(**{**given, "sketch": lambda *_: None, **changed})

    site.parts.pipeline.hold(KEY, "frozen meanwhile")
    assert set(leaving.let_go(unit, files, proof()).values()) == {"a person holds it: frozen meanwhile"}
    site.parts.pipeline.hold(KEY, "")
    for wrong in (
        {"day": today - 1},
        {"keep": 100},
        {"same": frozenset[str]()},
        {"receipt": Receipt(**{**vars_of(receipt), "verified": "another"})},
    ):
        assert set(leaving.let_go(unit, files, proof(**wrong))) == set(files), wrong
    (unit.images / files[0]).write_bytes(b"rotten")
    assert set(leaving.let_go(unit, files, proof(same=frozenset(files[:1])))) == set(files)
    site.receive(data_set(3))
    site.turns(10)  # taken, and not published
    assert set(leaving.let_go(site.unit(), files, proof()).values()) == {"not all of it is published"}
    site.turns(80)  # delivered as revision 2
    assert set(leaving.let_go(site.unit(), files, proof()).values()) == {"what was verified is not its last delivery"}
    assert len(site.stored) == 3


def test_what_is_sent_again_while_a_target_compares_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender was told that it is here, and the answer is of before: the lab has removed its copy since."""
    waiting: list[Callable[[], None]] = []

    def later(self: Near, receipt: Receipt, tell: Callable[[Any], None], **_: Any) -> None:
        seen = self.target.verify(receipt)
        waiting.append(lambda: tell(seen))

    monkeypatch.setattr(Near, "verify", later)
    site.days(5)
    assert waiting
    for root in BOTH:
        next((site.root / root).rglob("*1.dcm")).unlink()
    site.receive(data_set(1))
    site.turns(20)
    waiting.pop(0)()
    site.turns(20)
    assert len(site.stored) == 2


def comparing_later(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """From now on a target compares, and answers, when what is put into this list is called."""
    waiting: list[Callable[[], None]] = []

    def later(self: Near, receipt: Receipt, tell: Callable[[Any], None], **_: Any) -> None:
        waiting.append(lambda: tell(self.target.verify(receipt)))

    monkeypatch.setattr(Near, "verify", later)
    return waiting


def test_what_another_share_answers_proves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its root is configured anew while it compares: the answer of the old one comes, and the new one has nothing."""
    waiting = comparing_later(monkeypatch)
    monkeypatch.setattr(retention, "PART", 1)
    shutil.rmtree(site.root / "labs/archive/P1")
    site.days(5)
    first = waiting.pop(0)
    mark_at(site.root / "elsewhere")
    (site.root / "sorter.toml").write_text(CONFIG.replace("[labs.memory]", "[labs.memory]\nroot = 'elsewhere'"))
    site.parts.reload(load(site.root / "sorter.toml"), Files())
    site.turns(20)
    first()
    site.turns(20)
    assert len(waiting) == 1
    while waiting:
        waiting.pop(0)()
        site.turns(20)
    assert len(site.stored) == 2
    (site.root / "labs/memory/P1").rename(site.root / "elsewhere/P1")
    site.days(1)
    while waiting:
        waiting.pop(0)()
        site.turns(20)
    assert site.stored == []


def test_what_another_share_had_answered_lets_nothing_more_go(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All was compared, and the first image has left, when its root is configured anew, where there is nothing."""
    waiting = comparing_later(monkeypatch)
    monkeypatch.setattr(retention, "AT_ONCE", 1)
    shutil.rmtree(site.root / "labs/archive/P1")
    site.days(5)
    waiting.pop(0)()
    site.parts.pipeline.turn(site.now)
    assert len(site.stored) == 1
    mark_at(site.root / "elsewhere")
    (site.root / "sorter.toml").write_text(CONFIG.replace("[labs.memory]", "[labs.memory]\nroot = 'elsewhere'"))
    site.parts.reload(load(site.root / "sorter.toml"), Files())
    for _ in range(4):
        site.turns(20)
        while waiting:
            waiting.pop(0)()
    assert len(site.stored) == 1


def test_what_a_doubted_target_answers_proves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab has plugins of its own since it was asked, and they may have come in its worker's place."""
    waiting: list[Callable[[], None]] = []
    verify = Near.verify
    monkeypatch.setattr(Near, "verify", lambda self, *given, **more: waiting.append(lambda: verify(self, *given)))
    site.days(6)
    assert waiting
    site.parts.pipeline.retention.doubted = lambda _: "it has plugins of its own"
    for _ in range(4):
        site.turns(20)
        while waiting:
            waiting.pop(0)()
    assert len(site.stored) == 2
    assert site.status()["stayed"] == {"it has plugins of its own": 2}


def test_what_another_share_got_is_delivered_to_the_one_of_now(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery was on its way to the old root; its answer comes when the target has another."""
    waiting: list[Callable[[], None]] = []
    submit = Near.submit
    monkeypatch.setattr(Near, "submit", lambda self, put: waiting.append(lambda: submit(self, put)))
    site.receive(data_set(3))
    site.turns(60)
    mark_at(site.root / "elsewhere")
    (site.root / "sorter.toml").write_text(CONFIG.replace("[labs.memory]", "[labs.memory]\nroot = 'elsewhere'"))
    site.parts.reload(load(site.root / "sorter.toml"), Files())
    waiting.pop(0)()
    site.turns(20)
    assert (len(site.delivered()), site.unit().receipts()["dicom", "memory"].revision) == (3, 1)
    monkeypatch.setattr(Near, "submit", submit)
    for put in waiting:
        put()
    site.turns(20)
    assert (len(site.delivered("elsewhere")), site.unit().receipts()["dicom", "memory"].revision) == (3, 2)


def mark_at(root: Path) -> None:
    root.mkdir()
    mark(root, Files())


def vars_of(receipt: Receipt) -> dict[str, Any]:
    return {name: getattr(receipt, name) for name in Receipt.__dataclass_fields__}


def test_a_kind_of_target_that_gives_nothing_back_frees_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Near, "verify", lambda self, receipt, tell, **_: tell(Refused("it gives nothing back")))
    site.days(6)
    assert len(site.stored) == 2
    assert site.status()["stayed"] == {"it gives nothing back": 2}


# --- afterwards all acts as before ----------------------------------------------------------------------------------


def test_the_same_image_again_is_known_and_leaves_again(left: Site) -> None:
    left.receive(data_set(1))
    left.turns(80)
    assert (len(left.stored), left.unit().revisions()) == (1, [1])
    left.receive(data_set(1))
    left.drop("disk", as_file(data_set(2)))  # under another file meta
    left.turns(80)
    assert (len(left.stored), left.unit().revisions()) == (2, [1])
    left.days(2)
    assert (left.stored, left.unit().revisions(), len(left.delivered())) == ([], [1], 2)
    life = left.again()
    life.receive(data_set(1))
    life.drop("disk", as_file(data_set(2)))
    life.turns(80)
    assert len(life.stored) == 2
    life.days(2)
    assert (life.stored, life.unit().revisions()) == ([], [1])


def test_what_comes_again_stays_where_the_lab_has_lost_it(left: Site) -> None:
    for root in BOTH:
        next((left.root / root).rglob("*1.dcm")).unlink()
    left.receive(data_set(1), data_set(2))
    left.turns(80)
    left.days(3)
    assert len(left.stored) == 1  # the only one there is
    assert len(left.delivered()) == 1  # what the lab removed is not brought back


def test_late_images_grow_what_is_there(left: Site) -> None:
    left.receive(data_set(3))
    left.turns(80)
    assert (left.unit().revisions(), len(left.delivered()), len(left.delivered("labs/archive"))) == ([1, 2], 3, 3)
    assert len(left.stored) == 1  # nothing had to be brought back
    left.days(5)
    assert left.stored == []


def test_late_images_come_even_where_the_lab_moved_all_away(left: Site) -> None:
    (left.root / "labs/memory/P1").rename(left.root / "taken away")
    left.receive(data_set(3))
    left.turns(80)
    assert len(left.delivered()) == 1
    assert "2 files are not there any more, and have left the store" in left.command("why", "P1").output


def test_a_corrected_patient_moves_all_and_the_old_header_is_kept(left: Site) -> None:
    before = left.delivered()
    left.receive(data_set(1, subject="P2"), data_set(2, subject="P2"))
    left.turns(200)
    assert (left.delivered(), left.delivered("labs/archive")) == ({}, {})
    assert len(left.delivered("labs/other")) == 2
    left.days(6)
    kept = sorted(path.read_bytes() for path in left.spool.store.rglob("*.dcm"))
    assert kept == sorted(before.values())  # the superseded ones, byte for byte, and nothing else


def test_half_a_correction_replaces_no_only_copy(left: Site) -> None:
    """What it replaces at the target is fetched before: the superseded header lies nowhere else."""
    before = left.delivered()
    left.receive(data_set(1, subject="P2"))
    left.turns(100)
    assert len(left.delivered()) == 2
    everything = [*left.delivered().values(), *(path.read_bytes() for path in left.spool.store.rglob("*.dcm"))]
    assert all(each in everything for each in before.values())
    assert b"P2" in left.delivered()["000-0001-000001.dcm"]


def moved(site: Site) -> None:
    """Another rule names folders now, and the image that speaks for the series is corrected: all get another place."""
    (site.root / "sorter.toml").write_text(f"{CONFIG}\n[plugins.naming]\nfolder = 'moved/{{subject}}'\n")
    site.parts.reload(load(site.root / "sorter.toml"), Files())
    site.receive(data_set(1, subject="P2"))


def test_a_new_place_gets_all_from_where_it_was_delivered(left: Site) -> None:
    before = left.delivered()
    moved(left)
    left.turns(100)
    for root in BOTH:
        assert len(left.delivered(root)) == len(left.delivered(f"{root}/moved")) == 2
        assert left.delivered(root)["000-0001-000002.dcm"] == before["000-0001-000002.dcm"]
    assert before["000-0001-000001.dcm"] in [path.read_bytes() for path in left.spool.store.rglob("*.dcm")]


def named_anew(site: Site) -> None:
    """Another rule names files now, in the same folder, and a person has the rules asked again."""
    (site.root / "sorter.toml").write_text(f"{CONFIG}\n[plugins.naming]\nfile = 'x{{InstanceNumber:03d}}.dcm'\n")
    site.parts.reload(load(site.root / "sorter.toml"), Files())
    site.parts.pipeline.deciding.decide([KEY], [], decision(None, None, "a person"))


def test_a_new_name_in_the_same_folder_is_given_to_what_has_left(left: Site) -> None:
    before = left.delivered()
    named_anew(left)
    left.turns(100)
    for root in BOTH:
        assert list(left.delivered(root)) == ["x001.dcm", "x002.dcm"]
        assert sorted(left.delivered(root).values()) == sorted(before.values())
    left.days(5)
    assert left.stored == []


def test_what_cannot_be_fetched_keeps_the_name_that_it_has(left: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left.delivered()
    monkeypatch.setattr(Near, "fetch", lambda _, receipt, names, opens, tell: tell(Fetched(receipt.folder, (), names)))
    named_anew(left)
    left.receive(data_set(3))
    left.turns(100)
    for root in BOTH:
        assert left.delivered(root).items() > before.items()
        assert list(left.delivered(root))[-1] == "x003.dcm"


def taken(site: Site, number: int) -> str:
    """A lab has a file of its own with the name that a late image would get; the one that it gets instead."""
    for root in BOTH:
        folder = next((site.root / root).rglob("*1.dcm")).parent
        (folder / f"000-0001-00000{number}.dcm").write_bytes(b"the lab's own")
    site.receive(data_set(number))
    site.turns(80)
    return f"000-0001-00000{number}_{KEY[:6]}.dcm"


def test_what_has_left_keeps_its_name_where_a_newcomer_gave_way(left: Site) -> None:
    before = left.delivered()
    other = taken(left, 3)
    left.receive(data_set(4))
    left.turns(80)
    for root in BOTH:
        assert left.delivered(root).items() > before.items()
        assert other in left.delivered(root)
    assert len(left.stored) == 2  # and nothing had to be brought back


def test_what_gave_way_and_left_is_mended_by_the_name_it_has(left: Site) -> None:
    name = taken(left, 3)
    left.days(5)
    assert left.stored == []
    next((left.root / "labs/memory").rglob(name)).unlink()
    request(left.spool, "mend", {"do": "mend", "key": KEY, "product": "dicom", "target": "memory", "names": [name]})
    left.turns(100)
    assert name in left.delivered()


def test_what_was_out_of_sight_is_not_replaced_once_it_is_back(left: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only copy of a header that is corrected, and was not there when it was asked for."""
    before = left.delivered()
    shutil.rmtree(left.root / "labs/archive/P1")
    path = next((left.root / "labs/memory").rglob("*1.dcm"))
    path.rename(left.root / "outside.dcm")
    waiting: list[Callable[[], None]] = []
    submit = Near.submit
    monkeypatch.setattr(Near, "submit", lambda self, put: waiting.append(lambda: submit(self, put)))
    left.receive(data_set(1, subject="P2"))
    left.turns(40)
    (left.root / "outside.dcm").rename(path)
    monkeypatch.setattr(Near, "submit", submit)
    for put in waiting:  # the target had other things to do
        put()
    left.turns(100)
    assert b"P2" in left.delivered()["000-0001-000001.dcm"]
    assert before["000-0001-000001.dcm"] in [path.read_bytes() for path in left.spool.store.rglob("*.dcm")]


def test_what_cannot_be_fetched_is_neither_lost_nor_in_the_way(left: Site) -> None:
    """Both copies of one image were edited: they stay where they are, and the rest gets its new place."""
    for root in BOTH:
        next((left.root / root).rglob("*2.dcm")).write_bytes(b"the lab's own work")
    moved(left)
    left.turns(700)
    for root in BOTH:
        assert left.delivered(root)["000-0001-000002.dcm"] == b"the lab's own work"
        assert list(left.delivered(f"{root}/moved")) == ["000-0001-000001.dcm"]
    assert "1 file is not there any more, and has left the store" in left.command("why", KEY).output


def test_a_new_place_waits_for_targets_that_are_away(left: Site) -> None:
    for root in BOTH:
        (left.root / root / ".sorter/id").rename(left.root / root / ".sorter/away")
    moved(left)
    left.turns(100)
    assert "the mount is away" in left.command("status").output
    assert not (left.root / "labs/memory/moved").exists()
    for root in BOTH:
        (left.root / root / ".sorter/away").rename(left.root / root / ".sorter/id")
    left.turns(1500)
    for root in BOTH:
        assert len(left.delivered(root)) == len(left.delivered(f"{root}/moved")) == 2


def test_another_header_of_another_kind_is_kept_and_not_delivered(left: Site) -> None:
    left.receive(data_set(1, description="T2"))
    left.turns(80)
    assert (left.unit().revisions(), len(left.stored)) == ([1], 1)
    left.days(6)
    assert len(left.stored) == 1


def test_rename_takes_delivered_copies_and_refuses_what_was_changed(left: Site) -> None:
    dest = left.root / "mine"
    assert left.command("rename", "P1", str(dest)).exit_code == 0
    assert sorted(path.read_bytes() for path in dest.rglob("*.dcm")) == sorted(left.delivered().values())
    assert "2 copies in" in left.command("withdraw", "P1").output
    for root in BOTH:
        next((left.root / root).rglob("*1.dcm")).write_bytes(b"edited")
        next((left.root / root).rglob("*2.dcm")).unlink()
    done = left.command("rename", "P1", str(left.root / "again"))
    assert done.exit_code == 1
    assert "its delivered copy was changed since" in done.output
    assert "its delivered copy is not where it was delivered" in done.output
    assert not list((left.root / "again").rglob("*.dcm"))


def test_what_people_want_at_a_target_or_in_a_labs_folder_is_brought_back(left: Site) -> None:
    before, pipeline = left.delivered(), left.parts.pipeline
    images = list(left.unit().instances.values())
    files = [ExportedFile(f"{number}.dcm", each.sha256, each.size, f"images/{each.file}")
             for number, each in enumerate(images)]  # fmt: skip
    pipeline.exporting.begin(Export(KEY, "archive", "copies", tuple(files), 0))
    left.turns(60)
    assert sorted(left.delivered("labs/archive/copies").values()) == sorted(before.values())
    left.days(2)
    assert left.stored == []
    assert pipeline.bring_back(KEY, [each.file for each in images])[0].endswith("where they were delivered")
    left.turns(30)
    assert pipeline.bring_back(KEY, [each.file for each in images]) == ("", [])
    assert len(left.stored) == 2
    left.days(2)
    for root in BOTH:
        shutil.rmtree(left.root / root / "P1")
    pipeline.bring_back(KEY, [images[0].file])
    left.turns(30)
    pipeline.bring_back(KEY, [images[0].file])
    left.turns(30)
    assert pipeline.bring_back(KEY, [images[0].file]) == ("", [images[0].file])
    pipeline.exporting.begin(Export(KEY, "archive", "later", tuple(files), 0))
    left.turns(60)
    assert not pipeline.exporting.due()
    assert any("0 files were copied to archive, in later (2 have left the store" in each["says"]
               for each in left.unit().story())  # fmt: skip


def test_verify_and_list_know_that_it_left(left: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from sorter import verifying

    monkeypatch.setattr(
        verifying,
        "Lane",
        lambda target, code, settings, *_, **__: Near(target, code, settings, left.parts.pipeline.outlets._open, print),
    )  # type: ignore[arg-type]
    done = left.command("verify", "--deep")
    assert done.exit_code == 0, done.output
    assert "0 images in the store and 4 delivered files of 1 series: all as it should be" in done.output
    said = left.command("verify", "--target", "memory").output
    assert "2 delivered files of 1 series at memory: all as it should be" in said
    next((left.root / "labs/memory").rglob("*1.dcm")).unlink()
    said = left.command("verify", "--deep").output
    assert "were removed by the lab (the store has no copy any more)" in said
    assert "P1" in left.command("list").output


def test_what_one_target_lost_is_mended_from_another(left: Site) -> None:
    whole = left.delivered()
    name = "000-0001-000001.dcm"
    next((left.root / "labs/memory").rglob(name)).unlink()
    request(left.spool, "mend", {"do": "mend", "key": KEY, "product": "dicom", "target": "memory", "names": [name]})
    left.turns(100)
    assert left.delivered() == whole


def test_what_nobody_has_any_more_is_taken_from_a_copy_that_came_again(left: Site) -> None:
    """Another node sends it, so its file meta differs: to the lab it is delivered where a person wants that mended."""
    name = "000-0001-000001.dcm"
    for root in BOTH:
        next((left.root / root).rglob(name)).unlink()
    left.drop("disk", as_file(data_set(1)))
    left.turns(80)
    assert (len(left.stored), left.unit().revisions()) == (1, [1])
    request(left.spool, "mend", {"do": "mend", "key": KEY, "product": "dicom", "target": "memory", "names": [name]})
    left.turns(100)
    assert left.unit().revisions() == [1, 2]
    assert left.delivered()[name] == as_file(data_set(1))
    assert list(left.delivered("labs/archive")) == ["000-0001-000002.dcm"]  # there the lab's removal is heeded
    life = left.again()
    life.turns(80)
    assert (life.unit().revisions(), life.delivered()[name]) == ([1, 2], as_file(data_set(1)))
    life.days(5)
    assert life.stored == []


def test_what_was_out_of_sight_when_it_grew_is_found_where_it_was_read(left: Site) -> None:
    """The lab moves all away; a late image comes; the lab moves it back; then a new place needs all."""
    for root in BOTH:
        (left.root / root / "P1").rename(left.root / f"{Path(root).name} away")
    left.receive(data_set(3))
    left.turns(80)
    for root in BOTH:
        shutil.rmtree(left.root / root / "P1")
        (left.root / f"{Path(root).name} away").rename(left.root / root / "P1")
    moved(left)
    left.turns(200)
    for root in BOTH:
        assert len(left.delivered(f"{root}/moved")) == 3


def test_no_only_copy_is_removed_where_its_target_is_left_out(left: Site) -> None:
    """A correction leaves `memory` out; at `archive`, which has a receipt, the lab has removed all meanwhile."""
    before = left.delivered()
    shutil.rmtree(left.root / "labs/archive/P1")
    text = CONFIG.replace('match = ["PatientID=P1"]', 'match = ["PatientID=P3"]')
    (left.root / "sorter.toml").write_text(
        text.replace('match = ["PatientID=P2"]', 'match = ["PatientID=P2"]\ntargets = ["archive"]')
    )
    left.parts.reload(load(left.root / "sorter.toml"), Files())
    left.receive(data_set(1, subject="P2"))
    left.turns(300)
    everywhere = [path.read_bytes() for path in left.root.rglob("*.dcm")]
    assert all(each in everywhere for each in before.values())


def test_storage_commitment_still_finds_it(left: Site) -> None:
    index = BySop(left.spool)
    index.begin()  # made anew, as after a reboot
    while index.go_on(10):
        pass
    asked = Reference("1.2.840.10008.5.1.4.1.1.4", "1.2.3.1.1")
    assert index.find([asked.sop_uid]) == {asked.sop_uid: {KEY}}
    for delivered in (False, True):
        assert _View(left.spool, KEY, delivered).standing(asked) is Standing.SAFE
    left.days(2)  # nobody knows what the lab has done with it since it was read
    assert _View(left.spool, KEY, delivered=False).standing(asked) is Standing.ABSENT
    left.receive(data_set(1))
    left.turns(80)
    assert _View(left.spool, KEY, delivered=False).standing(asked) is Standing.SAFE
    left.parts.pipeline.withdraw([KEY], [], "consent", "admin")
    left.turns(80)
    assert _View(left.spool, KEY, delivered=False).standing(asked) is Standing.ABSENT


def test_what_is_fetched_while_it_is_withdrawn_does_not_come_back(left: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Callable[[], None]] = []
    fetch = Near.fetch
    monkeypatch.setattr(Near, "fetch", lambda self, *given: waiting.append(lambda: fetch(self, *given)))
    moved(left)
    left.turns(40)
    assert waiting
    left.parts.pipeline.withdraw([KEY], [], "consent", "admin")
    left.turns(10)
    for answer in waiting:
        answer()
    left.turns(80)
    assert (left.stored, left.delivered(), left.delivered("labs/archive")) == ([], {}, {})


def test_what_came_back_is_out_of_reach_of_the_worker_that_gave_it(left: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run as the lab's account, and keep what it was given to write into."""
    kept: list[int] = []
    fetch = Near.fetch

    def keeping(self: Near, receipt: Receipt, names: list[str], opens: Callable[[], list[int]], tell: Any) -> None:
        into = opens()
        kept.extend(os.dup(each) for each in into)
        fetch(self, receipt, names, lambda: into, tell)

    monkeypatch.setattr(Near, "fetch", keeping)
    moved(left)
    left.turns(80)
    assert len(kept) == 2
    for each in kept:
        os.pwrite(each, b"another", 0)
        os.close(each)
    unit = left.unit()
    assert all(unit.digest_of(each.file) == each.sha256 for each in unit.instances.values())
    assert left.spool.files.names(left.spool.taking) == []


def test_copies_that_nobody_waits_for_any_more_do_not_stay(left: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their target was configured anew while it copied them."""
    waiting: list[Callable[[], None]] = []
    fetch = Near.fetch

    def slow(self: Near, receipt: Receipt, names: list[str], opens: Callable[[], list[int]], tell: Any) -> None:
        into = opens()
        waiting.append(lambda: fetch(self, receipt, names, lambda: into, tell))

    monkeypatch.setattr(Near, "fetch", slow)
    moved(left)
    left.turns(40)
    assert len(left.spool.files.names(left.spool.taking)) == 2
    config = (left.root / "sorter.toml").read_text()
    mark_at(left.root / "elsewhere")
    (left.root / "sorter.toml").write_text(config.replace("[labs.memory]", "[labs.memory]\nroot = 'elsewhere'"))
    left.parts.reload(load(left.root / "sorter.toml"), Files())
    left.turns(20)
    assert len(waiting) == 2  # from the archive now
    assert len(left.spool.files.names(left.spool.taking)) == 2
    waiting[0]()
    left.turns(20)
    assert len(left.spool.files.names(left.spool.taking)) == 2


def test_a_crash_while_it_came_again_leaves_no_copy_for_ever(left: Site) -> None:
    """Between the link and the line of evidence."""
    unit = left.unit()
    original = next(iter(unit.instances.values()))
    place = unit.images / unit.place_of_another(original.sop_uid, "f" * 64)
    place.write_bytes(as_file(data_set(1)))
    life = left.again()
    life.parts.pipeline.live(KEY)  # as the file in received/, which is taken again, would have it
    life.turns(10)
    assert len(life.stored) == 1
    life.days(2)
    assert (life.stored, life.unit().revisions()) == ([], [1])


def test_withdrawn_it_goes_everywhere(left: Site) -> None:
    left.parts.pipeline.withdraw([KEY], [], "consent", "admin")
    left.turns(80)
    assert (left.delivered(), left.delivered("labs/archive"), left.stored) == ({}, {}, [])
    left.receive(data_set(1))
    left.turns(80)
    assert left.stored == []
    assert len(list(left.spool.quarantined())) == 1


def test_it_is_looked_for_where_a_correction_had_to_leave_it(left: Site) -> None:
    """Both copies were out of sight when it was corrected; the one that was not read before it left is back."""
    for root in BOTH:
        (left.root / root / "P1").rename(left.root / f"{Path(root).name} away")
    moved(left)
    left.turns(700)
    assert left.unit().retiring() == []
    (left.root / "archive away").rename(left.root / "labs/archive/P1")
    left.parts.retry()
    left.parts.pipeline.deciding.decide([KEY], [], decision(None, "P9", "a person"))
    left.turns(700)
    assert left.unit().left == {}, "all are back"
    assert len(left.delivered("labs/archive/moved/P9")) == 2


def test_withdrawn_it_goes_from_where_a_correction_had_to_leave_it(left: Site) -> None:
    """It was out of sight when it was corrected, so that nobody could fetch it; then it was back."""
    for root in BOTH:
        (left.root / root / "P1").rename(left.root / f"{Path(root).name} away")
    moved(left)
    left.turns(700)
    assert left.unit().retiring() == []
    for root in BOTH:
        (left.root / f"{Path(root).name} away").rename(left.root / root / "P1")
    left.turns(60)
    assert left.delivered().keys() & {path.name for path in (left.root / "labs/memory/P1").rglob("*.dcm")}
    left.parts.pipeline.withdraw([KEY], [], "consent", "admin")
    left.turns(80)
    assert (left.stored, left.delivered(), left.delivered("labs/archive")) == ([], {}, {})
    assert left.unit().summary().state == "withdrawn"  # type: ignore[union-attr]
    assert left.again().unit().retiring() == []


def test_a_restart_finds_all_as_it_was(left: Site) -> None:
    summary = left.unit().summary()
    for cache in left.spool.store.rglob("series.json"):
        cache.unlink()
    life = left.again()
    life.turns(80)
    assert life.unit().summary() == summary
    assert (life.stored, len(life.delivered())) == ([], 2)


# --- a sorter that really runs --------------------------------------------------------------------------------------

PLUGIN = """
import os
from pathlib import Path
from sorter import Product, hookimpl

def make(job):
    Path(job.scratch, "out.txt").write_text(str(len(os.listdir(job.inputs["dicom"]))))

@hookimpl
def sorter_products(settings):
    return [Product("count", "counting:make")]
"""


def dropped(running: RunningSorter, name: str, images: Sequence[bytes]) -> None:
    folder = running.root / name
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number}.dcm").write_bytes(image)
    folder.rename(running.spool.incoming / name)


@pytest.mark.peers
def test_a_product_is_made_of_late_images_and_of_what_has_left(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir(mode=0o700)
    (plugins / "counting.py").write_text(PLUGIN)
    config = f"[sorter]\nplugins = {json.dumps(str(plugins))}\n[store]\nkeep = 1\n"
    config += '[labs.memory]\nmatch = ["Modality=MR"]\nproducts = ["dicom", "count"]\n'
    images = list(localizer(Plan(seed=70, size=8)).files)
    running = RunningSorter(tmp_path / "root", config=config)

    def stored() -> int:
        return len(list(running.spool.store.rglob("images/*/*.dcm")))

    def counts() -> list[str]:
        return [path.read_text() for path in (running.labs / "memory").rglob("*.txt")]

    with running:
        dropped(running, "first", images[:-1])
        wait_until(lambda: counts() == [str(len(images) - 1)], 60)
        wait_until(lambda: [each.state for each in running.series()] == ["delivered"], 30)
    (running.spool.root / "days.json").write_text('{"days": 5, "seconds": 0}')  # a week has passed
    with running:
        wait_until(lambda: stored() == 0, 60)
        dropped(running, "late", images[-1:])
        wait_until(lambda: counts() == [str(len(images))], 60)
        assert len(list((running.labs / "memory").rglob("*.dcm"))) == len(images)
        wait_until(lambda: [each.state for each in running.series()] == ["delivered"], 30)
    (running.spool.root / "days.json").write_text('{"days": 50, "seconds": 0}')
    with running:
        wait_until(lambda: stored() == 0, 60)
        for name, where in {"by the door": {}, "by the spool": {"-c": "sorter.toml", "--root": "."}}.items():
            options = [each for pair in where.items() for each in (pair[0], str(running.root / pair[1]))]
            command = [sys.executable, "-m", "sorter", "rename", "*", str(tmp_path / name), *options]
            done = subprocess.run(command, env={**os.environ, "SORTER_SOCKET": str(running.spool.root / "run/sock")},
                                  capture_output=True, text=True, timeout=60)  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            copies = [path.read_bytes() for path in (tmp_path / name).rglob("*.dcm")]
            assert sorted(copies) == sorted(path.read_bytes() for path in (running.labs / "memory").rglob("*.dcm"))
