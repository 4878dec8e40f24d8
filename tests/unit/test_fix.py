"""`fix` and `claim`: what a person says goes first, moves what was delivered, and outlives resends and caches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sorter.cli.common import account
from sorter.config import load
from sorter.daemon import assembly
from sorter.daemon.assembly import assemble
from sorter.daemon.sort import mark_defaults
from sorter.door import Sight, Terms
from sorter.door.access import AccessLog
from sorter.door.answers import Desk, Shelf, answer
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.labs.claiming import unassigned
from sorter.labs.moving import Trial
from sorter.labs.preparing import prepare
from sorter.model import UnitKind, unit_key
from sorter.pipeline import deciding, outlets
from sorter.spool import Spool, Unit
from sorter.spool.decisions import Claim
from sorter.spool.labs import LabRecords
from sorter.summaries import summaries
from tests.crash.scenario import Idle, Near, data_set
from tests.unit.test_withdraw import FIRST, SECOND, Site

CONFIG = """
[labs.memory]
match = ["PatientID=P*"]
products = ["dicom"]

[labs.vision]
match = ["PatientID=V*"]
products = ["dicom"]
may_claim = ["SeriesDescription=T2*"]
"""


def started(root: Path) -> Site:
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
    made = started(tmp_path)
    made.receive(data_set(1), data_set(2), data_set(1, series=2))
    made.turns(80)
    return made


def tree(site: Site) -> list[str]:
    """What there is for people below the labs' roots."""
    found = (path.relative_to(site.root / "labs") for path in (site.root / "labs").rglob("*") if path.is_file())
    return sorted(str(each) for each in found if not any(part.startswith(".") for part in each.parts))


def of(place: str, first: str = "001_T1") -> list[str]:
    names = [f"{first}/000-0001-000001.dcm", f"{first}/000-0001-000002.dcm", "002_T1/000-0002-000001.dcm"]
    return [f"{place}/20260102_1011/{name}" for name in names]


def test_a_subject_is_called_otherwise_everywhere_but_inside_the_images(site: Site) -> None:
    before = {path.name: path.read_bytes() for path in site.stored()}
    assert tree(site) == of("memory/P1")
    done = site.command("fix", "P1", "--as", "P07")
    assert done.exit_code == 0, done.output
    assert "2 series of P1 of memory are called P07" in done.output
    assert "The images are unchanged" in done.output
    site.turns(20)
    assert tree(site) == of("memory/P07")
    assert {path.name: path.read_bytes() for path in site.stored()} == before
    assert site.command("list", "P07").exit_code == 0
    told = site.command("why", "P07").output
    assert "says that its subject is P07; the images are unchanged" in told
    assert "that its subject is P07; inside the images it stands as it was sent" in told
    assert site.command("fix", "P07", "--as", "P07").exit_code == 1  # it is so already


def test_it_holds_for_resends_late_images_later_series_and_without_caches(site: Site) -> None:
    site.command("fix", "P1", "--as", "P07")
    site.turns(20)
    site.receive(data_set(1), data_set(3), data_set(1, series=3))
    site.turns(200)
    late = [
        "memory/P07/20260102_1011/001_T1/000-0001-000003.dcm",
        "memory/P07/20260102_1011/003_T1/000-0003-000001.dcm",
    ]
    assert tree(site) == sorted([*of("memory/P07"), *late])
    for cache in [*site.spool.store.rglob("series.json"), *site.spool.owed.iterdir()]:
        cache.unlink()
    again = started(site.root)
    again.turns(200)
    assert tree(again) == sorted([*of("memory/P07"), *late])
    assert {Unit.load(again.spool, key).decided.subject for key in (FIRST, SECOND)} == {"P07"}  # type: ignore[union-attr]


def test_it_goes_first_before_a_header_that_is_corrected_later(site: Site) -> None:
    site.command("fix", "P1", "--as", "P07")
    site.turns(20)
    site.receive(data_set(1, subject="P2"), data_set(2, subject="P2"), data_set(1, series=2, subject="P2"))
    site.turns(200)
    assert tree(site) == of("memory/P07")
    site.command("fix", "P07", "--undo")
    site.turns(20)
    assert tree(site) == of("memory/P2")


def test_all_of_a_study_is_meant_by_its_uid_whatever_its_series_are_called(site: Site) -> None:
    assert site.command("fix", "1.2.3.2", "--as", "P 08").exit_code == 0
    site.turns(20)
    assert "is more than one: P 08 of memory, P1 of memory" in str(site.command("fix", "P*", "--as", "P07").exception)
    done = site.command("fix", "1.2.3", "--as", "P 07")
    assert done.exit_code == 0, done.exception
    assert (
        "2 series of P 08 of memory, P1 of memory are called P 07 as soon as sorter runs; `sorter why 'P 07'` tells"
        in done.output
    )
    site.turns(20)
    assert tree(site) == of("memory/P_07")


def test_one_series_goes_to_another_lab(site: Site) -> None:
    assert site.command("fix", "1.2.3.2", "--lab", "vision").exit_code == 0
    site.turns(20)
    assert tree(site) == [*of("memory/P1")[:2], *of("vision/P1")[2:]]
    site.receive(data_set(1, series=3))
    site.turns(80)
    assert tree(site)[2] == "memory/P1/20260102_1011/003_T1/000-0003-000001.dcm"  # of its study nothing was said


def cut(site: Site, receipts: Mapping[Path, bytes]) -> Site:
    """The next life after a power cut that took the receipts later than these; the share is away at first."""
    for path in site.spool.store.rglob("receipts/*.json"):
        path.write_bytes(receipts[path]) if path in receipts else path.unlink()
    for cache in site.spool.store.rglob("series.json"):
        cache.unlink()
    (site.root / "labs/memory/.sorter/id").rename(site.root / "labs/memory/.sorter/away")
    return started(site.root)


def back(site: Site) -> None:
    (site.root / "labs/memory/.sorter/away").rename(site.root / "labs/memory/.sorter/id")
    site.turns(700)


@pytest.mark.parametrize("grown", [False, True])
def test_what_goes_to_another_lab_leaves_the_old_one_though_its_receipt_was_lost(site: Site, grown: bool) -> None:
    receipts = {path: path.read_bytes() for path in site.spool.store.rglob("receipts/*.json")} if grown else {}
    site.receive(data_set(3))
    site.turns(80)
    life = cut(site, receipts)
    assert life.command("fix", "1.2.3.1", "--lab", "vision").exit_code == 0
    life.turns(200)
    back(life)
    late = "vision/P1/20260102_1011/001_T1/000-0001-000003.dcm"
    assert tree(life) == sorted([of("memory/P1")[2], *of("vision/P1")[:2], late])
    assert Unit.load(life.spool, FIRST).retiring() == []
    again = started(site.root)
    again.turns(80)
    assert tree(again) == tree(life)


@pytest.mark.parametrize("delivered", [False, True])
def test_a_withdrawal_finds_what_a_lost_receipt_was_of(site: Site, delivered: bool) -> None:
    life = cut(site, {})
    if not delivered:
        (site.root / "labs/vision/.sorter/id").unlink()
    life.command("fix", "1.2.3", "--lab", "vision")
    life.turns(80)
    code = life.said("withdraw", "1.2.3")["code"]
    assert life.command("withdraw", "1.2.3", "--confirm", code).exit_code == 0
    life.turns(80)
    assert len(tree(life)) == 3
    assert len(life.stored()) == 3  # as long as a target is away
    if not delivered:
        (site.root / "labs/vision/.sorter/id").write_text("1\n")
    back(life)
    assert (tree(life), life.stored()) == ([], [])
    assert "memory: 2 files of dicom were removed" in life.command("why", FIRST).output


def test_what_was_planned_and_never_delivered_is_no_news(site: Site) -> None:
    (site.root / "labs/memory/.sorter/id").rename(site.root / "labs/memory/.sorter/away")
    site.receive(data_set(1, series=3))
    site.turns(80)
    site.command("fix", "1.2.3.3", "--lab", "vision")
    site.turns(80)
    back(site)
    third = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.3")
    assert Unit.load(site.spool, third).retiring() == []
    assert not any("before a correction" in each["says"] for each in Unit.load(site.spool, third).story())


def test_what_was_planned_where_another_series_lies_is_no_news_either(site: Site) -> None:
    """Its folder would have got another name, had it been delivered: nothing is said in the other's."""
    before = tree(site)
    (site.root / "labs/memory/.sorter/id").rename(site.root / "labs/memory/.sorter/away")
    site.receive(data_set(1, study="1.2.4"))
    site.turns(80)
    site.command("fix", "1.2.4.1", "--lab", "vision")
    site.turns(80)
    back(site)
    assert [each for each in tree(site) if not each.startswith("vision/")] == before
    assert not list(site.root.rglob("MOVED*"))
    clash = Unit.load(site.spool, unit_key(UnitKind.SERIES, "1.2.4", "1.2.4.1"))
    assert clash.retiring() == []
    assert not any("before a correction" in each["says"] for each in clash.story())


def test_what_its_new_lab_does_not_want_leaves_the_old_one_all_the_same(site: Site) -> None:
    vision = site.parts.take_lab_file
    assert vision("vision", b"[deliver]\nproducts = []\n") == ()
    edited = site.delivered()[0]
    edited.write_bytes(b"the lab's own work")
    assert site.command("fix", "1.2.3", "--lab", "vision").exit_code == 0
    site.turns(20)
    left = [of("memory/P1")[0], "memory/P1/20260102_1011/001_T1/MOVED.txt"]
    assert tree(site) == left
    assert {each["state"] for each in site.said("list")} == {"kept"}
    site.receive(data_set(3))
    site.turns(80)
    again = started(site.root)
    again.turns(80)
    assert (tree(again), {each["state"] for each in again.said("list")}) == (left, {"kept"})
    assert "lab vision wants nothing of it" in again.command("why", "1.2.3").output
    assert again.parts.take_lab_file("vision", b"") == ()
    again.turns(20)
    late = "vision/P1/20260102_1011/001_T1/000-0001-000003.dcm"
    assert tree(again) == sorted([*left, *of("vision/P1"), late])
    again.command("fix", "1.2.3", "--undo")
    again.turns(20)
    assert [each for each in tree(again) if "vision" in each] == []
    assert len([each for each in tree(again) if "memory" in each]) == 6


def test_what_the_lab_changed_or_added_stays_and_a_file_says_so(site: Site) -> None:
    edited, other = site.delivered()[0], site.delivered()[2]
    edited.write_bytes(b"the lab's own work")
    (other.parent / "notes.txt").write_text("of the lab")
    site.command("fix", "P1", "--as", "P07")
    site.turns(20)
    left = [f"{of('memory/P1')[0]}", "memory/P1/20260102_1011/001_T1/MOVED.txt"]
    left += ["memory/P1/20260102_1011/002_T1/MOVED.txt", "memory/P1/20260102_1011/002_T1/notes.txt"]
    assert tree(site) == sorted([*of("memory/P07"), *left])
    said = (edited.parent / "MOVED.txt").read_text()
    assert "it went from here to P07/20260102_1011/001_T1" in said, "which stays true when it goes on from there"
    site.command("fix", "P07", "--lab", "vision")
    site.turns(20)
    assert tree(site) == sorted([*left, *of("vision/P07")])


@pytest.mark.parametrize("away", [["--as", "P07"], ["--lab", "vision"]])
def test_what_comes_back_before_it_went_leaves_nothing_of_before(site: Site, away: list[str]) -> None:
    """Its target is away meanwhile, and the rules for names are others by then."""
    edited = site.delivered()[0]
    edited.write_bytes(b"the lab's own work")
    (site.root / "labs/memory/.sorter/id").rename(site.root / "labs/memory/.sorter/away")
    site.command("fix", "P1", *away)
    site.turns(80)
    (site.root / "sorter.toml").write_text(f'{CONFIG}[plugins.naming]\nfile = "{{InstanceNumber}}.dcm"\n')
    life = started(site.root)
    life.command("fix", "1.2.3", "--undo")
    life.turns(80)
    back(life)
    there = ["001_T1/000-0001-000001.dcm", "001_T1/1.dcm", "001_T1/2.dcm", "002_T1/1.dcm"]
    assert [each.removeprefix("memory/P1/20260102_1011/") for each in tree(life) if "MOVED" not in each] == there
    life.parts.pipeline.withdraw([FIRST, SECOND], [], "consent", "admin")
    life.turns(80)
    assert [each for each in tree(life) if "MOVED" not in each] == of("memory/P1")[:1]


def test_what_comes_back_before_it_went_stays_as_the_lab_has_it(site: Site) -> None:
    removed, edited, _ = site.delivered()
    removed.unlink()
    edited.write_bytes(b"the lab's own work")
    before = tree(site)
    (site.root / "labs/memory/.sorter/id").rename(site.root / "labs/memory/.sorter/away")
    for fix in (("P1", "--as", "P07"), ("P07", "--undo")):
        site.command("fix", *fix)
        site.turns(80)
    back(site)
    assert [each for each in tree(site) if ".new-rev" not in each] == before
    assert site.said("list")[0]["state"] == "delivered"


def test_names_of_files_follow_where_the_folder_stays(site: Site) -> None:
    (site.root / "sorter.toml").write_text(
        f'{CONFIG}[plugins.naming]\nfolder = "all"\nfile = "{{subject}}_{{SeriesNumber}}_{{InstanceNumber}}.dcm"\n'
    )
    again = started(site.root)
    again.receive(data_set(1, study="1.2.4", subject="P5"), data_set(1, study="1.2.5", subject="P6"))
    again.turns(80)
    (again.root / "labs/memory/all/notes.txt").write_text("of the lab")
    again.command("fix", "P5", "--as", "P07")
    again.turns(20)
    assert [each for each in tree(again) if "/all" in each] == [
        "memory/all/P07_1_1.dcm", "memory/all/notes.txt",
        f"memory/all_{unit_key(UnitKind.SERIES, '1.2.5', '1.2.5.1')[:6]}/P6_1_1.dcm",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["P1"], "say what is right"),
        (["P1", "--undo", "--as", "x"], "give it alone"),
        (["P1", "--lab", "visoin"], 'did you mean "vision"'),
        (["P9", "--as", "x"], "no series of P9 is here"),
        (["P1", "--as", "../.."], "with a letter or digit"),
        (["P1", "--as", "a\nb"], "characters that can be printed"),
        (["*", "--as", "P07"], "more than one: P1 of memory, V1 of vision"),
    ],
)
def test_what_cannot_be_fixed(site: Site, arguments: list[str], says: str) -> None:
    site.receive(data_set(1, study="1.2.4", subject="V1"))
    site.turns(80)
    before = tree(site)
    done = site.command("fix", *arguments)
    assert done.exit_code == 1
    assert says in str(done.exception)
    site.turns(20)
    assert tree(site) == before


@pytest.mark.parametrize(("target", "says"), [("memry", 'did you mean "memory"'), ("", "there are memory, vision")])
def test_copies_to_a_target_that_there_is_not_are_not_promised(site: Site, target: str, says: str) -> None:
    for more in ([], ["--dry-run"]):
        done = site.command("rename", "P1", f"target:{target}", *more)
        assert done.exit_code == 1
        assert says in str(done.exception)
    assert not list(site.spool.requests.iterdir())


# --- a disk that does not give all ---------------------------------------------------------------------------------


@pytest.mark.parametrize("summary", [True, False])
def test_one_series_that_cannot_be_read_ends_no_look_at_the_others(site: Site, summary: bool) -> None:
    folder = site.spool.unit_folder(SECOND)
    if summary:
        (folder / "evidence.jsonl").unlink()
        (folder / "evidence.jsonl").mkdir()
    else:
        (folder / "rev-0001.json").write_text("{")
        (folder / "series.json").unlink()
    why = "Is a directory" if summary else "rev-0001.json is damaged; put it back from a backup"
    says = f"the records of the series {SECOND[:8]} cannot be read: {why}"
    for words in (["why", "P1"], ["rename", "P1", str(site.root / "to")], ["rules", "try", "2026-01-01"], ["verify"],
                  *([] if summary else [["list"], ["status"]])):  # fmt: skip
        done = site.command(*words)
        assert done.exception is None or isinstance(done.exception, SystemExit), words
        assert says in done.output
        assert done.exit_code == (words[0] in ("rename", "verify"))
    assert "delivered to P1/20260102_1011/001_T1" in site.command("why", "P1").output
    assert len(list((site.root / "to").rglob("*.dcm"))) == 2
    said = prepare(site.spool, "memory", (), "x.toml", b'subject = "P1"\ndest = "pilot"\n')
    assert (said.series, said.failed, says in said.says) == (1, summary, summary)
    desk = Desk(site.spool, Shelf(site.spool), AccessLog(site.spool), Terms(), Sight(1234, labs=frozenset({"memory"})))
    keys = [FIRST, SECOND] if summary else [FIRST]
    told = [*answer(desk, {"ask": "units"})], [*answer(desk, {"ask": "heads", "keys": keys})]
    assert [len(each) for each in told] == [len(keys), 1]
    assert isinstance(next(answer(desk, {"ask": "status"})), dict)
    if not summary:  # who acts on all that is called so has to have all
        done = site.command("fix", "P1", "--as", "P7")
        assert isinstance(done.exception, SorterError)
        assert "rev-0001.json is damaged; put it back from a backup; nothing was done" in str(done.exception)


@pytest.mark.parametrize("keys", [(), (FIRST, SECOND)])
def test_one_series_that_cannot_be_read_ends_no_trial_of_the_rules_and_no_claim(
    site: Site, keys: tuple[str, ...]
) -> None:
    folder = site.spool.unit_folder(SECOND)
    (folder / "rev-0001.json").write_text("{")
    (folder / "series.json").unlink()
    trials, trial = site.parts.trials, Trial("memory", "", 1234, keys)
    trials.ask(trial)
    for minute in range(20):
        trials.turn(site.now + 60 * minute)
    found = LabRecords(site.spool.labs, site.spool.files).take_trial("memory", trial.code)
    assert found is not None
    assert json.loads(found)["moving"] == 0
    assert unassigned(site.spool, ["P1"]) == []


# --- claims ---------------------------------------------------------------------------------------------------------

STRAY = "1.2.9"


@pytest.fixture
def stray(site: Site) -> Site:
    """A series of nobody, that --root delivers to labs/unassigned."""
    site.receive(data_set(1, study=STRAY, subject="X1"))
    site.turns(80)
    assert "unassigned/X1/20260102_1011/001_T1/000-0001-000001.dcm" in tree(site)
    return site


def test_a_claim_waits_for_a_person_who_grants_it(stray: Site) -> None:
    assert "claimed for lab vision" in stray.command("claim", STRAY, "--lab", "vision").output
    stray.turns(20)
    assert "unassigned/X1/20260102_1011/001_T1/000-0001-000001.dcm" in tree(stray)
    [waiting] = stray.said("claim")
    assert "1 claim waits" in stray.command("status").output
    assert stray.command("claim", waiting["code"]).exit_code == 1  # grant or refuse?
    stray = started(stray.root)
    assert stray.command("claim", waiting["code"], "--grant").exit_code == 0
    stray.turns(20)
    assert [each for each in tree(stray) if "X1" in each] == ["vision/X1/20260102_1011/001_T1/000-0001-000001.dcm"]
    assert stray.said("claim") == []


def test_a_claim_that_is_refused_changes_nothing(stray: Site) -> None:
    before = tree(stray)
    stray.command("claim", "X1", "--lab", "vision")
    stray.turns(5)
    [waiting] = stray.said("claim")
    assert stray.command("claim", waiting["code"], "--refuse").exit_code == 0
    stray.turns(5)
    assert (tree(stray), stray.said("claim")) == (before, [])
    assert "1 series) was not given to the lab; the admin of sorter knows why" in news(stray, "vision")


def news(site: Site, lab: str) -> str:
    """The newest line of the page of what happened."""
    lines = LabRecords(site.spool.labs, site.spool.files).read_page(lab, "NEWS.txt").decode().splitlines()
    return next((line for line in lines if "claimed" in line), "")


def test_a_claim_of_what_went_elsewhere_ends_and_who_asked_is_told(stray: Site) -> None:
    for lab in ("vision", "memory"):
        stray.command("claim", "X1", "--lab", lab)
    stray.turns(5)
    ours, theirs = (next(each["code"] for each in stray.said("claim") if each["lab"] == lab)
                    for lab in ("memory", "vision"))  # fmt: skip
    stray.command("claim", ours, "--grant")
    stray.turns(20)
    assert stray.said("claim") == []
    assert f"({ours}, 1 series) is the lab's now" in news(stray, "memory")
    said = news(stray, "vision")
    assert f"({theirs}, 1 series) did not come to the lab, and is unassigned no more; the claim is over" in said
    assert account() in said
    assert "X1" not in said


def test_a_claim_ends_when_a_rule_a_fix_or_a_withdrawal_took_the_last_of_it(stray: Site) -> None:
    stray.receive(data_set(1, study=STRAY, series=2, subject="X1"))
    stray.turns(80)
    stray.command("claim", "X1", "--lab", "vision")
    stray.turns(5)
    stray.command("fix", f"{STRAY}.1", "--lab", "memory")
    stray.turns(20)
    assert len(stray.said("claim")) == 1, "the other one is still to be had"
    assert "of lab memory meanwhile" in stray.command("claim").output
    stray = started(stray.root)  # as after a crash between the end of the last one and that of the claim
    code = stray.said("withdraw", f"{STRAY}.2")["code"]
    claims = stray.spool.claims.all()
    assert stray.command("withdraw", f"{STRAY}.2", "--confirm", code).exit_code == 0
    stray.turns(80)
    assert stray.said("claim") == []
    stray.spool.claims.add(claims[0])
    started(stray.root).turns(80)
    assert stray.said("claim") == []
    assert "the claim is over" in news(stray, "vision")


def test_a_flood_of_claims_ends_somewhere_and_takes_no_time(stray: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{number:032x}" for number in range(40)]
    for key in keys:
        stray.spool.claims.add(Claim("memory", (key,), "somebody", "2026-01-02"))
    stray.receive(data_set(1, study="1.2.10", subject="X2"))
    stray.turns(80)
    monkeypatch.setattr(deciding, "MOST_CLAIMS", 41)
    stray.spool.claims.of(keys[0])
    read = Reading(stray.disk)
    monkeypatch.setattr(stray.spool.claims, "_files", read)
    mine = [each.key for each in summaries(stray.spool) if each.lab is None]
    for each in ([mine[0]], [mine[1]], mine):
        stray.parts.pipeline.deciding.claim(each, "memory", "somebody")
    stray.parts.pipeline.deciding.claim(mine, "vision", "somebody")
    assert read.count == 0, "none is read again for each that comes"
    claims = stray.spool.claims.all()
    assert sorted(each.keys for each in claims if set(each.keys) & set(mine)) == sorted(
        [(mine[0],), tuple(sorted(mine))]
    )
    journal = "".join(path.read_text() for path in stray.spool.journal.iterdir())
    assert journal.count("41 claims of this lab wait already") == 2
    stray.spool.claims.remove(claims[0].code)
    assert stray.spool.claims.of(claims[0].keys[0]) == []


class Reading:
    """A disk that counts what is read whole."""

    def __init__(self, files: Files) -> None:
        self._files, self.count = files, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def read_file(self, *arguments: Any, **more: Any) -> bytes:
        self.count += 1
        return self._files.read_file(*arguments, **more)


def test_configured_trust_and_an_admin_grant_at_once(stray: Site) -> None:
    stray.receive(data_set(1, study="1.2.10", subject="X2", description="T2 axial"))
    stray.turns(80)
    stray.command("claim", "X2", "--lab", "vision")
    stray.command("claim", "X1", "--lab", "memory", "--grant")
    stray.turns(20)
    assert [each.split("/")[:2] for each in tree(stray) if "X" in each] == [["memory", "X1"], ["vision", "X2"]]


def test_nobody_claims_what_belongs_to_a_lab(stray: Site) -> None:
    done = stray.command("claim", "P1", "--lab", "vision")
    assert "it belongs to a lab already, and `sorter fix --lab` moves it" in str(done.exception)
    stray.parts.pipeline.deciding.claim([FIRST], "vision", "somebody")
    stray.turns(5)
    assert stray.said("claim") == []
    assert "more: 'visoin'" not in str(stray.command("claim", "X1", "--lab", "visoin").exception)


# --- rules that change ----------------------------------------------------------------------------------------------


def test_what_is_nobodys_moves_when_a_rule_says_whose_it_is_and_what_is_delivered_stays(stray: Site) -> None:
    (stray.root / "sorter.toml").write_text(CONFIG.replace("PatientID=P*", "PatientID=X*"))
    stray.parts.reload(load(stray.root / "sorter.toml", stray.root), stray.disk)
    stray.turns(20)
    assert tree(stray) == sorted([*of("memory/P1"), "memory/X1/20260102_1011/001_T1/000-0001-000001.dcm"])
    journal = "".join(path.read_text() for path in stray.spool.journal.iterdir())
    assert "the rules were asked again for 1 series: 1 go to lab memory" in journal


def test_it_moves_after_a_restart_too(stray: Site) -> None:
    (stray.root / "sorter.toml").write_text(CONFIG.replace("PatientID=P*", "PatientID=X*"))
    again = started(stray.root)
    again.turns(40)
    assert tree(again) == sorted([*of("memory/P1"), "memory/X1/20260102_1011/001_T1/000-0001-000001.dcm"])
