"""`hold` and `withdraw`: what goes, what stays and is named, and that nothing else is touched."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from sorter.cli.main import sorter
from sorter.config import load
from sorter.daemon import assembly
from sorter.daemon.assembly import assemble
from sorter.daemon.requests import request
from sorter.daemon.sort import mark_defaults
from sorter.deliver.target import Later, Put, Refused, Removed
from sorter.durable import Files
from sorter.model import Receipt, UnitKind, unit_key
from sorter.pipeline import outlets
from sorter.pipeline.deciding import decision
from sorter.spool import Spool, Unit, leaving
from tests.crash.scenario import CONFIG, Idle, Life, Near, Queueing, data_set

FIRST, SECOND = (unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{series}") for series in (1, 2))


class Site(Life):
    """A life on a real disk, and the commands that people give beside it."""

    root: Path

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(sorter, [*arguments, "-c", str(self.root / "sorter.toml"), "--root", str(self.root)])

    def said(self, *arguments: str) -> Any:
        done = self.command(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    def delivered(self) -> list[Path]:
        return sorted((self.root / "labs/memory").rglob("*.dcm"))

    def stored(self) -> list[Path]:
        return sorted(self.spool.store.rglob("*.dcm"))

    def again(self) -> Site:
        """The next life on this spool."""
        return begun(self.root)


def begun(root: Path) -> Site:
    config = load(root / "sorter.toml", root)
    spool = Spool(config.spool, Files())
    spool.create()
    parts = assemble(config, spool, lambda: None)
    mark_defaults(config, spool.files)
    made = Site(spool.files, parts)  # type: ignore[arg-type]
    made.root = root
    return made


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Two series of one study, delivered: two images and one."""
    monkeypatch.setattr(assembly, "LocalEngine", Idle)
    monkeypatch.setattr(outlets, "Lane", Near)
    (tmp_path / "sorter.toml").write_text(CONFIG)
    made = begun(tmp_path)
    made.receive(data_set(1), data_set(2), data_set(1, series=2))
    made.turns(80)
    assert (len(made.delivered()), len(made.stored())) == (3, 3)
    return made


def test_the_first_run_only_says_what_would_go(site: Site) -> None:
    site.command("hold", "1.2.3.2", "--why", "a study's question")
    site.turns(20)
    before = {path: path.read_bytes() for path in site.root.rglob("*") if path.is_file()}
    done = site.command("withdraw", "P1")
    assert done.exit_code == 0
    assert done.output.count("held (a study's question); a withdrawal removes it all the same") == 1
    assert "2 images in the store" in done.output
    assert "1 file of dicom at memory, in P1/20260102_1011/002_T1" in done.output
    assert "2 series, 1 whole study. Nothing was removed" in done.output
    site.turns(20)
    after = {path: path.read_bytes() for path in site.root.rglob("*") if path.is_file()}
    assert before.items() <= after.items()


def busy(site: Site, monkeypatch: pytest.MonkeyPatch, *came: bytes) -> Site:
    """The next life, whose target is busy with something else when these have settled."""
    monkeypatch.setattr(outlets, "Lane", Queueing)
    life = site.again()
    life.receive(*came)
    life.turns(80)
    return life


def test_what_waits_for_its_target_is_frozen_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    life = busy(site, monkeypatch, data_set(3), data_set(2, series=2))
    assert len(Queueing.waiting_puts) == 2
    life.command("hold", FIRST, "--why", "a question")
    life.turns(20)
    Queueing.go_on()
    life.turns(20)
    assert [path.name for path in life.delivered()] == [
        "000-0001-000001.dcm", "000-0001-000002.dcm", "000-0002-000001.dcm", "000-0002-000002.dcm",
    ]  # fmt: skip
    life.command("hold", FIRST, "--release")
    life.turns(20)
    Queueing.go_on()
    life.turns(20)
    assert len(life.delivered()) == 5


def test_what_is_to_be_mended_is_though_something_else_was_on_its_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = busy(site, monkeypatch, data_set(3))
    assert len(Queueing.waiting_puts) == 1
    life.delivered()[0].unlink()
    life.parts.pipeline.mend(FIRST, ("dicom", "memory"), ["000-0001-000001.dcm"])
    for _ in range(3):
        Queueing.go_on()
        life.turns(20)
    assert len(life.delivered()) == 4
    assert Unit.load(life.spool, FIRST).mending == {}


def test_what_is_withdrawn_is_not_delivered_before_it_is_taken_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = busy(site, monkeypatch, data_set(3))
    life.parts.pipeline.withdraw([FIRST], [], "consent", "admin")
    assert Queueing.waiting_puts == []
    life.turns(80)
    assert [path.name for path in life.delivered()] == ["000-0002-000001.dcm"]
    assert len(life.stored()) == 1


class Elsewhere(Near):
    """A lane at work on what it was given, to a target that delivers beside, and looks for nothing that it removes."""

    begun: ClassVar[list[tuple[Near, Put]]] = []
    ended: ClassVar[list[tuple[Near, Receipt, Callable[[Removed | Later | Refused], None]]]] = []

    def submit(self, put: Put) -> None:
        Elsewhere.begun.append((self, replace(put, folder=f"{put.folder}-2")))

    def remove(self, receipt: Receipt, tell: Callable[[Removed | Later | Refused], None]) -> None:
        Elsewhere.ended.append((self, receipt, tell))

    @staticmethod
    def go_on(root: Path) -> None:
        for lane, put in Elsewhere.begun:
            Near.submit(lane, put)
        removals, Elsewhere.begun, Elsewhere.ended = Elsewhere.ended, [], []
        for lane, receipt, tell in removals:
            if (root / "labs/memory" / receipt.folder).exists():
                Near.remove(lane, receipt, tell)
            else:
                tell(Removed(receipt.folder))


@pytest.mark.parametrize("withdrawn", [True, False])
def test_what_was_being_delivered_is_taken_away_from_where_its_receipt_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, withdrawn: bool
) -> None:
    monkeypatch.setattr(assembly, "LocalEngine", Idle)
    monkeypatch.setattr(outlets, "Lane", Elsewhere)
    (tmp_path / "sorter.toml").write_text(CONFIG)
    site = begun(tmp_path)
    site.receive(data_set(1))
    site.turns(80)
    assert len(Elsewhere.begun) == 1
    if withdrawn:
        site.parts.pipeline.withdraw([FIRST], [], "consent", "admin")
    else:
        site.parts.pipeline.deciding.decide([FIRST], [], decision(None, "P9", "a person"))
    for _ in range(4):
        site.turns(80)
        Elsewhere.go_on(tmp_path)
    assert [path.parent.parent.parent.name for path in site.delivered()] == ([] if withdrawn else ["P9"])
    assert Unit.load(site.spool, FIRST).retiring() == []


def test_what_is_withdrawn_stays_so_in_status(site: Site) -> None:
    """Also where somebody looks at it again, as those who learn of its sender do."""
    site.parts.pipeline.withdraw([FIRST], [], "consent", "admin")
    site.turns(3000, 30)
    site.parts.pipeline.ask_again()
    site.parts.pipeline.again(FIRST)
    unit = Unit.load(site.spool, FIRST)
    summary = unit.summary()
    assert summary is not None
    assert summary.state == "withdrawn"
    assert sum("its images left the store" in each["says"] for each in unit.story()) == 1


def test_what_is_asked_of_a_series_that_cannot_be_read_holds_up_nothing_else(site: Site) -> None:
    record = site.spool.unit_folder(SECOND) / "rev-0001.json"
    whole = record.read_bytes()
    record.write_text("{")
    request(site.spool, f"hold-{SECOND}", {"do": "hold", "key": SECOND, "why": "a question"})
    site.receive(data_set(3))
    site.turns(80)
    assert len(site.delivered()) == 4
    assert len(list(site.spool.requests.iterdir())) == 1
    request(site.spool, "retry", {"do": "retry"})
    site.turns(20)
    assert [path.name for path in site.spool.requests.iterdir()] == [f"hold-{SECOND}.json"]
    both = {"do": "withdraw", "keys": [SECOND, FIRST], "studies": [], "why": "consent", "by": "admin"}
    request(site.spool, "withdraw-1", both)
    site.turns(80)
    assert [path.name for path in site.delivered()] == ["000-0002-000001.dcm"]
    record.write_bytes(whole)
    site.turns(80)
    assert list(site.spool.requests.iterdir()) == []
    assert site.delivered() == []
    assert Unit.load(site.spool, SECOND).held == "a question"


@pytest.mark.parametrize("asked", ["hold", "withdraw", "mend"])
def test_what_the_disk_did_not_take_is_done_again_and_not_only_remembered(
    site: Site, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = Files.append, [True]

    def failing(self: Files, path: Any, data: bytes, **more: Any) -> None:
        if full and any(each in data for each in (b'"held":', b'"withdrawn":', b'"mend":')):
            full.clear()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, path, data, **more)

    monkeypatch.setattr(Files, "append", failing)
    said = {"do": asked, "key": FIRST, "keys": [FIRST], "studies": [], "why": "a question", "by": "admin"}
    lost = site.delivered()[0]
    lost.unlink()
    request(site.spool, f"{asked}-1", {**said, "product": "dicom", "target": "memory", "names": [lost.name]})
    site.turns(80)
    assert not full
    assert list(site.spool.requests.iterdir()) == []
    unit = Unit.load(site.spool, FIRST)
    assert lost.exists() if asked == "mend" else (unit.held or unit.withdrawn) == "a question"


def test_a_wrong_code_and_one_of_yesterday_do_nothing(site: Site) -> None:
    code = site.said("withdraw", "P1")["code"]
    assert site.command("withdraw", "P1", "--confirm", "00000000").exit_code == 1
    site.receive(data_set(3))
    site.turns(80)
    done = site.command("withdraw", "P1", "--confirm", code)
    assert (done.exit_code, "is not the code of what is here now" in str(done.exception)) == (1, True)
    site.turns(80)
    assert (len(site.delivered()), len(site.stored())) == (4, 4)


def test_everything_that_sorter_wrote_goes_and_what_somebody_changed_is_named(site: Site, tmp_path: Path) -> None:
    assert site.command("rename", "P1", str(tmp_path / "mine")).exit_code == 0
    mine = sorted((tmp_path / "mine").rglob("*.dcm"))
    mine[0].write_bytes(b"an analysis")
    edited = site.delivered()[0]
    edited.write_bytes(b"the lab's own work")
    (site.root / "labs/memory/notes.txt").write_text("of the lab")
    said = site.said("withdraw", "P1")
    assert sorted(sum(each["counts"][0] for each in part["exports"]) for part in said["series"]) == [1, 1]
    done = site.said("withdraw", "P1", "--why", "consent", "--confirm", said["code"])
    assert done == {"series": 2, "left": [str(mine[0])]}
    site.turns(80)
    assert (site.stored(), site.delivered()) == ([], [edited])
    assert [path for path in mine if path.exists()] == [mine[0]]
    assert (site.root / "labs/memory/notes.txt").exists()
    told = site.command("why", "P1").output
    left = f"1 are left in {edited.parent.relative_to(site.root / 'labs/memory')}, for you to remove: {edited.name}"
    assert left in told
    assert ": delivered to" not in told  # nothing is there any more
    assert "withdrawn: consent" in told
    unit = Unit.load(site.spool, FIRST)
    assert unit.revisions() == [1]  # the records stay
    assert {unit.summary().state, Unit(site.spool, SECOND).summary().state} == {"withdrawn"}  # type: ignore[union-attr]
    journal = "".join(path.read_text() for path in site.spool.journal.iterdir())
    assert f'"kind":"withdrawn","unit":"{FIRST[:8]}"' in journal
    assert "P1" not in journal
    assert "P1" not in "".join(path.read_text() for path in (site.spool.root / "withdrawn").iterdir())


def test_what_was_said_of_copies_by_somebody_who_means_harm_ends_no_withdrawal(site: Site, tmp_path: Path) -> None:
    """Devices, files without end, names that lead out or that no file has: each was once remembered as a copy."""
    unit = Unit.load(site.spool, FIRST)
    sha256 = next(iter(unit.instances.values())).sha256
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.truncate(1 << 43)
    os.mkfifo(tmp_path / "pipe")
    unit.note_export("/dev", 7, [("zero", sha256)])
    unit.note_export(str(tmp_path), 7, [("endless", sha256), ("pipe", sha256)])
    no_files = [
        ("/tmp", "../x"),
        ("/tmp", "a\\b"),
        ("/\ud800", "x"),
        ("/tmp", "\ud800"),
        ("/a\0", "x"),
        ("/\udcff", "x"),
    ]
    for dest, name in no_files:
        unit.note_export(dest, 7, [(name, sha256)])
    shown = site.command("withdraw", "1.2.3.1")
    assert shown.exit_code == 0, shown.exception
    code = shown.output.rpartition("--confirm ")[2].strip()
    done = site.command("withdraw", "1.2.3.1", "--confirm", code)
    assert (done.exit_code, endless.exists()) == (0, True), done.exception
    assert f"left, because it was changed or cannot be removed: {endless}" in done.output
    site.turns(80)
    assert len(site.stored()) == 1


def test_what_comes_again_goes_to_quarantine_and_other_studies_are_taken(site: Site) -> None:
    code = site.said("withdraw", "1.2.3")["code"]
    site.said("withdraw", "1.2.3", "--confirm", code)
    site.turns(20)
    site.receive(data_set(1), data_set(1, series=7))  # a series of that study that was never here
    site.turns(80)
    assert (site.stored(), site.delivered()) == ([], [])
    reasons = [each["reason"] for _, each in site.spool.quarantined()]
    assert len(reasons) == 2
    assert all("withdrawn on" in reason for reason in reasons)


def test_one_series_is_withdrawn_and_the_rest_of_its_study_goes_on(site: Site) -> None:
    code = site.said("withdraw", FIRST)["code"]
    site.said("withdraw", FIRST, "--confirm", code)
    site.turns(20)
    site.receive(data_set(2), data_set(2, series=2))
    site.turns(80)
    assert len(site.delivered()) == len(site.stored()) == 2
    assert len(list(site.spool.quarantined())) == 1
    assert site.command("withdraw", FIRST).exit_code == 1  # there is nothing more to withdraw


def test_a_delivery_whose_receipt_was_lost_is_taken_back_too(site: Site) -> None:
    for receipt in site.spool.store.rglob("receipts/*.json"):
        receipt.unlink()
    again = Site(site.disk, assemble(site.parts.config, site.spool, lambda: None))
    for key in (FIRST, SECOND):
        again.parts.pipeline.hold(key, "nothing is delivered meanwhile")
    again.parts.pipeline.withdraw([FIRST, SECOND], [], "consent", "admin")
    again.turns(20)
    assert (site.stored(), site.delivered()) == ([], [])


def test_a_target_that_is_away_is_waited_for(site: Site) -> None:
    marker = site.root / "labs/memory/.sorter/id"
    marker.rename(marker.with_name("away"))
    site.parts.pipeline.withdraw([FIRST], [], "consent", "admin")
    site.turns(60)
    assert len(site.stored()) == 3  # nothing goes while something of it may still lie elsewhere
    assert "the mount is away" in site.command("status").output
    marker.with_name("away").rename(marker)
    site.turns(700)
    assert len(site.stored()) == len(site.delivered()) == 1


def test_the_one_function_that_removes_asks_again_right_before(site: Site) -> None:
    unit = Unit.load(site.spool, FIRST)
    names = list(leaving.images_of(unit))
    unit.withdrawn = "in memory alone"
    assert len(leaving.let_go(unit, names, leaving.Withdrawn())) == 2
    unit.withdraw("on disk, and no tombstone")
    assert set(leaving.let_go(unit, names, leaving.Withdrawn()).values()) == {"it has no tombstone"}
    assert len(site.stored()) == 3
    site.spool.withdrawals.add([FIRST], [], "consent", "admin")
    assert leaving.let_go(unit, names, leaving.Withdrawn()) == {}
    assert len(site.stored()) == 1


def test_a_held_series_is_neither_delivered_nor_corrected_until_it_is_released(site: Site) -> None:
    assert site.command("hold", FIRST, "--why", "a question of the ethics board").exit_code == 0
    site.turns(5)
    site.receive(data_set(3), data_set(2, series=2))
    site.turns(80)
    assert len(site.delivered()) == 4  # of the other one
    assert len(site.stored()) == 5
    assert "a person holds it: a question of the ethics board" in site.command("status").output
    again = Site(site.disk, assemble(site.parts.config, site.spool, lambda: None))
    again.turns(80)
    assert len(site.delivered()) == 4
    request(site.spool, "retry", {"do": "retry"})
    again.turns(80)
    assert len(site.delivered()) == 4
    assert site.command("hold", FIRST, "--release").exit_code == 0
    again.turns(80)
    assert len(site.delivered()) == 5
