"""Products: what is made of what, of a series, a study or a subject; what takes the place of what; growth."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import pytest
from click.testing import CliRunner

from sorter.builtin.path_target import PathTarget, mark
from sorter.cli.main import sorter
from sorter.config import load
from sorter.daemon import assembly
from sorter.daemon.assembly import assemble
from sorter.daemon.sort import mark_defaults
from sorter.deliver.target import Later, Put, Refused, Removed, Wanted
from sorter.door.access import AccessLog
from sorter.door.answers import Desk, Handed, Shelf, answer
from sorter.door.terms import Sight
from sorter.door.terms import Terms as DoorTerms
from sorter.durable import Files
from sorter.engine import scratch
from sorter.engine.engine import Engine
from sorter.engine.work import Limits, Outcome, Work
from sorter.errors import ConfigError, Held
from sorter.exports import Choice, Store, naming
from sorter.exports.asking import Asked, choose, plan
from sorter.exports.choosing import Subject
from sorter.labs.preparing import prepare
from sorter.model import Missing, Product, Receipt, Study, StudySeries, UnitKind, Verdict, unit_key
from sorter.pipeline import outlets
from sorter.pipeline.bundles import Bundles
from sorter.pipeline.deciding import decision
from sorter.pipeline.recipes import Recipes, faults
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.bundles import Bundle
from sorter.spool.studies import Overview, StudyRecord, StudyRecords, study_key
from sorter.spool.veils import Veils
from sorter.summaries import summaries
from sorter.testing.plugins import made_up
from sorter.testing.waiting import wait_until
from tests.crash.scenario import Life, Near, Queueing, data_set

Makers: TypeAlias = Mapping[str, Callable[[Work, Path], "str | None"]]

STUDY = Bundle(UnitKind.STUDY, "memory", "1.2.3").key
SUBJECT = Bundle(UnitKind.SUBJECT, "memory", "P1").key


# --- which can be made ----------------------------------------------------------------------------------------------


def products(*made: Product) -> dict[str, Product]:
    return {each.name: each for each in made}


def product(name: str, *needs: str, of: UnitKind = UnitKind.SERIES, **more: Any) -> Product:
    return Product(name, f"kitchen:{name}", needs or ("dicom",), of, **more)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            [product("brain", "nifty"), product("nifti")],
            "needs 'nifty', which no plugin makes, did you mean \"nifti",
        ),
        ([product("brain", "x")], "it needs 'x', which no plugin makes (dicom, brain are made)"),
        ([product("a", "a")], "it would be made of itself: a needs a"),
        ([product("a", "b"), product("b", "c"), product("c", "b")], "it would be made of itself: b needs c needs b"),
        (
            [product("brain", "bids"), product("bids", of=UnitKind.STUDY)],
            "is of a series, and needs 'bids', which is of",
        ),
        ([product("deid", replaces="dicm")], "it replaces 'dicm', which no other plugin makes"),
        ([product("deid", replaces="deid")], "it replaces 'deid', which no other plugin makes"),
        ([Product("air", "kitchen:air", ())], "it is made of nothing"),
    ],
)
def test_what_never_could_be_made_is_said(made: Sequence[Product], says: str) -> None:
    assert [says in said for _, said in faults(products(*made))] == [True]


def test_what_can_be_made_has_no_fault() -> None:
    wide = product("bids", "nifti", "dicom", of=UnitKind.STUDY)
    all_of_them = products(
        product("nifti"), wide, product("template", "bids", of=UnitKind.SUBJECT, replaces="bids"),
        product("deid", replaces="dicom"), product("thumb", "nifti", "brain"), product("brain", "nifti"),
    )  # fmt: skip
    assert not list(faults(all_of_them))
    assert Recipes(all_of_them).all_needs("template") == {"bids", "nifti", "dicom"}


def test_what_a_need_cannot_be_made_of_is_made_of_nothing() -> None:
    recipes = Recipes(products(product("nifti", when={"Modality": ("MR",)}), product("brain", "nifti")))
    assert recipes.takes("brain", made_up(Modality="MR"))
    assert not recipes.takes("brain", made_up(Modality="SR"))


def test_a_configuration_with_such_a_product_is_refused(tmp_path: Path) -> None:
    kitchen(tmp_path, 'Product("brain", "kitchen:brain", ("nifty",))')
    config = load(tmp_path / "sorter.toml")
    with pytest.raises(ConfigError, match=r"plugins\.kitchen: product brain: it needs 'nifty', which no plugin makes"):
        assembly.planner_of(config, assembly.load_plugins(config, Files(), apart=False))


# --- a sorter without processes -------------------------------------------------------------------------------------

MODULE = """
from sorter import Product, hookimpl

@hookimpl
def sorter_products(settings):
    return [{products}]
"""


def kitchen(root: Path, *made: str, lab: str = "", more: str = "") -> None:
    names = re.findall(r'Product\("(\w+)"', " ".join(made))
    lab = lab or f"products = {['dicom', *names]}"
    (root / "plugins").mkdir(mode=0o700, exist_ok=True)
    (root / "plugins/kitchen.py").write_text(MODULE.format(products=", ".join(made)))
    (root / "sorter.toml").write_text(
        f'[sorter]\nroot = "."\nplugins = "plugins"\n[completion]\nstudy = 60\n{more}\n'
        f'[labs.memory]\nmatch = ["PatientID=P1"]\n{lab}\n'
        '[labs.other]\nmatch = ["PatientID=P2"]\nproducts = ["dicom"]\n'
    )


class AtOnce(Engine):
    """An engine without a process: a function of the test makes each job at once, from the copies, in its folder."""

    def __init__(self, spool: Spool, makers: Makers) -> None:
        super().__init__(spool.scratch, spool.files, Limits(), None)
        self.makers, self.jobs = makers, list[Work]()

    def _begin(self, work: Work) -> None:
        self.jobs.append(work)
        folder = self.scratch / work.id
        scratch.lay_out(work, folder, self.files)
        try:
            why = self.makers.get(work.product.name, listing)(work, folder)
        except RuntimeError as error:
            self._finish(Outcome(work.id, "failed", str(error)))
            return
        with contextlib.chdir(folder):
            made, _ = scratch.collect(self.limits, self.files)
        self._finish(Outcome(work.id, "nothing" if why else "made", why or "", files=tuple(made)))

    def cancel(self, job: str) -> None:
        raise AssertionError(job)

    def stop(self) -> None:
        pass


def listing(work: Work, folder: Path) -> str | None:
    """What it was made of, as text."""
    seen = sorted(str(path.relative_to(folder / "in")) for path in (folder / "in").rglob("*") if path.is_file())
    (folder / "out/out.txt").write_text(" ".join([work.identity.subject or "", *seen]))
    return None


@dataclass
class Site(Life):
    root: Path = Path()

    @property
    def engine(self) -> AtOnce:
        return self.parts.pipeline.workshop.engine  # type: ignore[return-value]

    def delivered(self, lab: str = "memory") -> dict[str, str]:
        """Text by path below the lab's folder, without images."""
        top, found = self.root / "labs" / lab, dict[str, str]()
        for path in sorted(path for path in top.rglob("*") if path.is_file() and path.suffix != ".dcm"):
            if not any(part.startswith(".sorter") for part in path.relative_to(top).parts):
                found[str(path.relative_to(top))] = path.read_text()
        return found

    def images(self, lab: str = "memory") -> int:
        return len(list((self.root / "labs" / lab).rglob("*.dcm")))

    def unit(self, key: str = STUDY) -> Unit:
        return Unit.load(self.spool, key)

    def summary(self, key: str = STUDY) -> UnitSummary:
        return next(each for each in summaries(self.spool) if each.key == key)

    def looks(self, seconds: float) -> None:
        """Turns, in which the labs' own corners are looked at too."""
        for _ in range(int(seconds / 20)):
            self.turns(20)
            self.parts.lab_corners.turn(self.now)

    def made(self) -> list[str]:
        return [work.product.name for work in self.engine.jobs]

    def reload(self) -> None:
        """As at SIGHUP."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assembly, "load_plugins", functools.partial(assembly.load_plugins, apart=False))
            self.parts.reload(load(self.root / "sorter.toml"), self.spool.files)

    def again(self) -> Site:
        """The next life on this spool."""
        return begun(self.root, self.now, self.engine.makers)


def begun(root: Path, now: float = 1000.0, makers: Makers | None = None, lane: type[Near] = Near) -> Site:
    config = load(root / "sorter.toml")
    spool = Spool(config.spool, Files())
    spool.create()
    spool.clear_temporary()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "engine_of", lambda *_: AtOnce(spool, dict(makers or {})))
        patch.setattr(outlets, "Lane", lane)
        patch.setattr(assembly, "load_plugins", functools.partial(assembly.load_plugins, apart=False))
        parts = assemble(config, spool, lambda: None)
    mark_defaults(config, spool.files)
    return Site(spool.files, parts, now, root=root)  # type: ignore[arg-type]


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory where there is such a folder: a test that loses no power needs no disk."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield root

    def removed() -> bool:
        shutil.rmtree(root, ignore_errors=True)  # the sweeper, a thread beside, may still be at it
        return not root.exists()

    wait_until(removed, 20, "the folder to be removed")


# --- of a series ----------------------------------------------------------------------------------------------------


def test_a_product_is_made_of_another_that_nobody_wants(root: Path) -> None:
    kitchen(root, 'Product("vol", "kitchen:vol")', 'Product("brain", "kitchen:brain", ("vol", "dicom"))',
            lab='products = ["brain"]')  # fmt: skip
    site = begun(root)
    site.receive(data_set(1), data_set(2))
    site.turns(80)
    assert site.made() == ["vol", "brain"]
    assert site.delivered() == {"P1/20260102_1011/brain/001_T1.txt": "P1 dicom/000001.dcm dicom/000002.dcm vol/out.txt"}
    assert site.again().made() == []


def test_late_images_make_all_of_it_anew(root: Path) -> None:
    kitchen(root, 'Product("vol", "kitchen:vol")', 'Product("brain", "kitchen:brain", ("vol", "dicom"))',
            lab='products = ["brain"]')  # fmt: skip
    site = begun(root)
    site.receive(data_set(1))
    site.turns(80)
    site.receive(data_set(2))
    site.turns(80)
    assert site.made() == ["vol", "brain"] * 2
    assert list(site.delivered().values()) == ["P1 dicom/000001.dcm dicom/000002.dcm vol/out.txt"]
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    assert {path.name for path in (site.unit(series).folder / "products").iterdir() if path.is_dir()} == {
        "vol-2", "brain-2"
    }  # fmt: skip


def test_what_fails_is_tried_again_and_holds_nothing_else(root: Path) -> None:
    kitchen(root, 'Product("vol", "kitchen:vol")', 'Product("brain", "kitchen:brain", ("vol",))',
            'Product("thumb", "kitchen:thumb")', lab='products = ["brain", "thumb"]')  # fmt: skip
    site = begun(root)
    left = [None, None]

    def stumbling(work: Work, folder: Path) -> str | None:
        if left:
            left.pop()
            raise RuntimeError("it stumbled")
        return listing(work, folder)

    site.engine.makers["vol"] = stumbling
    site.receive(data_set(1))
    site.turns(40)
    assert [each for each in site.delivered() if "/brain/" in each] == []
    assert [each for each in site.delivered() if "/thumb/" in each] != []
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    assert site.summary(series).why == "vol could not be made: it stumbled"
    site.turns(120)
    assert site.made().count("vol") == 3
    assert [each for each in site.delivered() if "/brain/" in each] != []


def test_of_what_there_is_nothing_of_nothing_is_made(root: Path) -> None:
    kitchen(root, 'Product("vol", "kitchen:vol")', 'Product("brain", "kitchen:brain", ("vol",))')
    site = begun(root)
    site.engine.makers["vol"] = lambda *_: "no pixels"
    site.receive(data_set(1))
    site.turns(80)
    assert site.made() == ["vol"]
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    said = {each.product: each.why for each in site.summary(series).deliveries}
    assert said["brain"] == "there is no vol to make it of"
    assert site.summary(series).state == "delivered"


def test_what_was_made_once_goes_where_there_is_nothing_to_make_any_more(root: Path) -> None:
    kitchen(root, 'Product("thumb", "kitchen:thumb")')
    site = begun(root)
    site.receive(data_set(1))
    site.turns(80)
    assert site.delivered() != {}
    site.engine.makers["thumb"] = lambda *_: "too many images"
    site.receive(data_set(2))
    site.turns(80)
    assert site.delivered() == {}
    assert site.images() == 2


def test_what_the_lab_edited_stays_when_it_is_made_anew(root: Path) -> None:
    kitchen(root, 'Product("thumb", "kitchen:thumb")')
    site = begun(root)
    site.receive(data_set(1))
    site.turns(80)
    (name,) = site.delivered()
    (root / "labs/memory" / name).write_text("mine")
    site.receive(data_set(2))
    site.turns(80)
    folder, anew = "P1/20260102_1011/thumb", "P1 dicom/000001.dcm dicom/000002.dcm"
    assert site.delivered() == {f"{folder}/001_T1.txt": "mine", f"{folder}/001_T1.txt.new-rev2": anew}


def test_a_least_verdict_is_waited_for(root: Path) -> None:
    kitchen(root, 'Product("thumb", "kitchen:thumb", min_verdict="counted")')
    site = begun(root)
    site.receive(data_set(1))
    site.turns(80)
    assert site.made() == []
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    assert site.summary(series).why == "thumb is made when the verdict is at least counted; it is quiet"
    site.parts.pipeline.complete(series)
    site.turns(20)
    assert site.made() == ["thumb"]


# --- of a study, of a subject ---------------------------------------------------------------------------------------

TOGETHER = 'Product("book", "kitchen:book", {needs}, "{of}", {more})'


def together(needs: str = '("dicom",)', of: str = "study", more: str = "") -> str:
    return TOGETHER.format(needs=needs, of=of, more=more)


def test_a_product_of_a_study_waits_until_its_study_settles(root: Path) -> None:
    kitchen(root, 'Product("vol", "kitchen:vol")', together('("vol",)'), lab='products = ["book"]')
    site = begun(root)
    site.receive(data_set(1), data_set(2, series=2))
    site.turns(40)
    assert site.made() == []
    assert site.summary().why == "it waits until what came of its studies has settled"
    site.turns(120)
    assert site.made() == ["vol", "vol", "book"]
    keys = {number: unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{number}")[:8] for number in (1, 2)}
    text = f"P1 vol/001-{keys[1]}/out.txt vol/002-{keys[2]}/out.txt"
    assert site.delivered() == {"P1/20260102_1011/book/book.txt": text}
    assert site.images() == 0
    assert {each.state for each in summaries(site.spool)} == {"delivered"}


def test_a_study_that_grows_is_made_anew_and_a_restart_makes_nothing(root: Path) -> None:
    kitchen(root, together())
    site = begun(root)
    site.receive(data_set(1))
    site.turns(160)
    site = site.again()
    site.turns(160)
    assert site.made() == []
    site.receive(data_set(2, series=2), data_set(3))
    site.turns(160)
    assert site.made() == ["book"]
    (text,) = site.delivered().values()
    assert len(text.split()) == 4
    assert site.unit().latest_revision().members == {  # type: ignore[union-attr]
        unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1"): 2, unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.2"): 1,
    }  # fmt: skip


def test_of_a_subject_all_its_studies_are_taken(root: Path) -> None:
    kitchen(root, together(), 'Product("line", "kitchen:line", ("book",), "subject")', lab='products = ["line"]')
    site = begun(root)
    site.receive(data_set(1), data_set(1, study="1.2.4"), data_set(1, study="1.2.5", subject="P2"))
    site.turns(200)
    assert sorted(site.made()) == ["book", "book", "line"]
    books = sorted(Bundle(UnitKind.STUDY, "memory", uid).key[:8] for uid in ("1.2.3", "1.2.4"))
    assert site.delivered() == {"P1/line/line.txt": f"P1 book/{books[0]}/out.txt book/{books[1]}/out.txt"}
    site.receive(data_set(1, study="1.2.6"))
    site.turns(200)
    assert site.made()[3:] == ["book", "line"]
    assert len(site.delivered()["P1/line/line.txt"].split()) == 4


def test_a_series_that_is_said_to_be_anothers_leaves_the_study_and_the_subject(root: Path) -> None:
    kitchen(root, together(), 'Product("line", "kitchen:line", ("dicom",), "subject")')
    site = begun(root)
    site.receive(data_set(1), data_set(2, series=2))
    site.turns(200)
    assert {name: len(text.split()) for name, text in site.delivered().items()} == {
        "P1/20260102_1011/book/book.txt": 3, "P1/line/line.txt": 3,
    }  # fmt: skip
    moved = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.2")
    site.parts.pipeline.deciding.decide([moved], [], decision("other", None, "a person"))
    site.turns(200)
    assert {name: len(text.split()) for name, text in site.delivered().items()} == {
        "P1/20260102_1011/book/book.txt": 2, "P1/line/line.txt": 2,
    }  # fmt: skip
    assert site.images("other") == 1


def test_of_what_is_withdrawn_nothing_stays_in_what_was_made(root: Path) -> None:
    kitchen(root, together(), lab='products = ["book"]')
    site = begun(root)
    site.receive(data_set(1), data_set(2, series=2))
    site.turns(200)
    first, second = (unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{number}") for number in (1, 2))
    site.parts.pipeline.withdraw([first], [], "no consent", "a person")
    site.turns(60)
    (text,) = site.delivered().values()
    assert f"002-{second[:8]}" in text
    assert f"001-{first[:8]}" not in text
    in_store = [path.read_text() for path in site.spool.store.rglob("products/*/*")]
    assert in_store, "what is there of now"
    assert not any(f"001-{first[:8]}" in each for each in in_store)
    site.parts.pipeline.withdraw([second], [], "no consent", "a person")
    site.turns(60)
    assert site.delivered() == {}
    assert list(site.spool.store.rglob("products/*/*")) == []


def test_a_series_that_is_held_holds_its_study_until_it_is_released(root: Path) -> None:
    kitchen(root, together())
    site = begun(root)
    site.receive(data_set(1), data_set(2, series=2))
    site.turns(30)
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    site.parts.pipeline.hold(series, "is it the right subject?")
    site.turns(200)
    assert site.made() == []
    site = site.again()
    site.turns(200)
    assert site.made() == []
    site.parts.pipeline.hold(series, "")
    site.turns(20)
    assert site.made() == ["book"]


def test_a_series_that_is_held_holds_what_its_study_still_owes(root: Path) -> None:
    broken = True

    def book(work: Work, folder: Path) -> str | None:
        if broken:
            raise RuntimeError("no")
        return listing(work, folder)

    kitchen(root, together(), lab='products = ["book"]')
    site = begun(root, makers={"book": book})
    site.receive(data_set(1), data_set(2, series=2))
    wait_until(lambda: site.turns(5) or site.made(), 20, "a job")
    site.turns(1)
    assert site.summary().why == "book could not be made: no"
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    site.parts.pipeline.hold(series, "is it the right subject?")
    broken = False
    site.turns(4000)
    assert site.delivered() == {}
    site.parts.pipeline.hold(series, "")
    site.turns(20)
    assert len(site.delivered()) == 1


def test_a_series_that_is_held_holds_what_waits_for_a_busy_target(root: Path) -> None:
    kitchen(root, together(), lab='products = ["book"]')
    site = begun(root, lane=Queueing)
    site.receive(data_set(1), data_set(2, series=2))
    site.turns(200)
    assert [put.product for _, put in Queueing.waiting_puts] == ["book"]
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    site.parts.pipeline.hold(series, "is it the right subject?")
    Queueing.go_on()
    site.turns(200)
    Queueing.go_on()
    assert site.delivered() == {}
    site.parts.pipeline.hold(series, "")
    site.turns(20)
    Queueing.go_on()
    assert len(site.delivered()) == 1


class Clearing(Near):
    """A lane that removes nothing for now."""

    waiting: ClassVar[list[tuple[Clearing, Receipt, Callable[[Removed | Later | Refused], None]]]] = []

    def remove(self, receipt: Receipt, tell: Callable[[Removed | Later | Refused], None]) -> None:
        Clearing.waiting.append((self, receipt, tell))

    def withhold(self, key: str) -> tuple[list[Put], list[Receipt]]:
        mine = [each for each in Clearing.waiting if each[0] is self and each[1].key == key]
        Clearing.waiting = [each for each in Clearing.waiting if each not in mine]
        return [], [receipt for _, receipt, _ in mine]

    @staticmethod
    def go_on() -> None:
        while Clearing.waiting:
            lane, receipt, tell = Clearing.waiting.pop(0)
            Near.remove(lane, receipt, tell)


def test_what_a_correction_left_of_a_study_goes_although_a_series_was_held_meanwhile(root: Path) -> None:
    kitchen(root, together(), lab='products = ["book"]')
    site = begun(root, lane=Clearing)
    site.receive(data_set(1), data_set(2, series=2))
    site.turns(200)
    both = [unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{number}") for number in (1, 2)]
    site.parts.pipeline.deciding.decide(both, [], decision(None, "P9", "a person"))
    site.turns(200)
    assert [path.split("/")[0] for path in site.delivered()] == ["P1", "P9"]
    site.parts.pipeline.hold(both[0], "is it the right subject?")
    site.parts.pipeline.hold(both[0], "")
    site.turns(200)
    Clearing.go_on()
    site.turns(20)
    assert [path.split("/")[0] for path in site.delivered()] == ["P9"]
    assert site.unit().retiring() == []


def test_what_is_made_of_what_is_made_of_a_study_is_made_anew_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Bundle(UnitKind.SUBJECT, "memory", "P1").key

    def settled(self: Bundles, study_uid: str) -> None:
        waited = sorted(self._of_study.pop(study_uid, ()), key=lambda key: key != subject)
        self._due.update(dict.fromkeys(waited))  # the subject is looked at first, its study still is as it was

    monkeypatch.setattr(Bundles, "settled", settled)
    kitchen(root, together(), 'Product("line", "kitchen:line", ("book",), "subject")', lab='products = ["line"]')

    def line(work: Work, folder: Path) -> None:
        (book,) = (folder / "in/book").rglob("out.txt")
        (folder / "out/out.txt").write_text(book.read_text())

    site = begun(root, makers={"line": line})
    site.receive(data_set(1))
    site.turns(200)
    site.receive(data_set(2, series=2))
    site.turns(200)
    (text,) = site.delivered().values()
    assert len(text.split()) == 3
    assert site.made() == ["book", "line", "book", "line"]


def test_what_is_said_of_a_study_is_true_of_a_study(root: Path) -> None:
    kitchen(root, together(), lab='products = ["book"]')
    site = begun(root)
    site.receive(data_set(1))
    site.turns(200)
    where = ["-c", str(root / "sorter.toml")]
    said = CliRunner().invoke(sorter, ["why", STUDY[:8], *where])
    assert "has 1 series and is quiet" in said.output
    assert "Its study settled on " in said.output
    assert "since" not in said.output
    tried = CliRunner().invoke(sorter, ["plugins", *where, "try", STUDY[:8]])
    assert str(tried.exception).startswith(f"{STUDY[:8]} is a whole study or subject; name one of its series")
    tried = CliRunner().invoke(sorter, ["plugins", *where, "try", "P1"])
    assert "=> identity: " in tried.output
    assert CliRunner().invoke(sorter, ["complete", "P1", *where]).output.startswith("1 series are published")
    assert "(whole study)" not in CliRunner().invoke(sorter, ["ask", "P1", *where]).output


def test_the_verdict_of_a_study_is_the_least_of_its_series(root: Path) -> None:
    kitchen(root, together(more='min_verdict="counted"'))
    site = begun(root)
    site.receive(data_set(1), data_set(2, series=2))
    site.turns(200)
    assert site.made() == []
    for number in (1, 2):
        assert site.unit().latest_revision().verdict is Verdict.QUIET  # type: ignore[union-attr]
        site.parts.pipeline.complete(unit_key(UnitKind.SERIES, "1.2.3", f"1.2.3.{number}"))
        site.turns(20)
    assert site.made() == ["book"]
    assert site.unit().latest_revision().revision == 1  # type: ignore[union-attr]


def test_a_study_takes_those_of_its_series_that_fit(root: Path) -> None:
    kitchen(root, together(more='when={"SeriesDescription": ("T1*",)}'))
    site = begun(root)
    site.receive(data_set(1), data_set(2, series=2, description="localizer"))
    site.turns(200)
    (text,) = site.delivered().values()
    assert [each.split("/")[1][:3] for each in text.split()[1:]] == ["001"]


def test_where_something_is_made_of_the_study_what_it_replaces_is_not_delivered(root: Path) -> None:
    kitchen(root, 'Product("vol", "kitchen:vol")', together('("vol",)', more='replaces="vol"'), lab="umask = '022'")
    site = begun(root)
    site.receive(data_set(1))
    site.turns(200)
    assert [each for each in site.delivered() if "/nifti/" not in each] == ["P1/20260102_1011/book/book.txt"]
    assert site.images() == 1


# --- nothing else leaves --------------------------------------------------------------------------------------------

ONLY = 'only = ["deid"]'
DEID = 'Product("deid", "kitchen:deid", replaces="dicom")'


def seen_by_the_lab(site: Site) -> str:
    """All that lies in its folder, names and contents, and what is written for it."""
    found = []
    for top in (site.root / "labs/memory", site.spool.labs / "memory/pages"):
        for path in sorted(top.rglob("*")):
            found += [str(path.relative_to(top)), path.read_bytes().decode("latin-1") if path.is_file() else ""]
    return "\n".join(found)


def test_where_only_one_product_may_leave_nothing_else_does(root: Path) -> None:
    kitchen(root, DEID, 'Product("vol", "kitchen:vol")', lab=ONLY)
    (root / "labs/memory/.sorter").mkdir(parents=True)
    naming = '[naming.products.deid]\nfolder = "{subject}{PatientName}/{StudyInstanceUID}x{PatientID}"\n'
    (root / "labs/memory/.sorter/lab.toml").write_text(f'{naming}[deliver]\nproducts = ["dicom", "vol", "deid"]\n')
    site = begun(root)
    site.engine.makers["deid"] = blank
    site.looks(60)
    site.receive(data_set(1), data_set(2))
    site.looks(160)
    (name,) = site.delivered()
    subject = name.partition("/")[0]
    assert re.fullmatch(r"[0-9A-F]{8}/001_T1.txt", name)
    assert site.images() == 0
    site.again().looks(60)
    told = seen_by_the_lab(site)
    assert subject in told
    assert not re.search(r"P1|One|Patient\b|1\.2\.3", told)


def blank(work: Work, folder: Path) -> None:
    (folder / "out/out.txt").write_text("nobody")


def test_what_asks_for_images_gets_what_may_leave_and_no_name(root: Path) -> None:
    kitchen(root, DEID, 'Product("vol", "kitchen:vol")', lab=ONLY)
    site = begun(root)
    site.engine.makers["deid"] = blank
    site.receive(data_set(1))
    site.turns(80)
    source = Store(site.spool)
    (series,) = source.candidates(list(source.units()))
    assert "One" not in repr(series)
    for name in ("pretty", "flat", "{PatientName}{subject}/x.dcm", "%n%i%k/%4r.dcm"):
        asked = Asked([Subject("*")], Choice(), naming(name))
        copies, lacking = plan(source, choose([series], asked), asked)
        assert not lacking
        assert [copy.source.parent.name for copy in copies] == ["deid-1"]
        assert not re.search(r"P1|One|1\.2\.3", copies[0].name)
    asked = Asked([Subject("*")], Choice(), naming(), product="nifti")
    assert plan(source, choose([series], asked), asked)[0] == []
    said = prepare(site.spool, "memory", (), "x.toml", b'subject = "*"\ndest = "pilot"\n')
    assert [copy.source.parent.name for copy in said.copies] == ["deid-1"]
    listed = prepare(site.spool, "memory", (), "x.toml", b'subject = "*"\nlist = true\n')
    assert not re.search(r"P1|One|1\.2\.3", "".join(listed.says))


def test_the_door_shows_and_hands_out_nothing_else(root: Path) -> None:
    kitchen(root, DEID, lab=ONLY)
    site = begun(root)
    site.engine.makers["deid"] = blank
    site.receive(data_set(1))
    site.turns(80)
    key = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    sight = Sight(1234, labs=frozenset({"memory"}))
    desk = Desk(site.spool, Shelf(site.spool), AccessLog(site.spool), DoorTerms(), sight)
    told = [line for message in ({"ask": "units", "called": ""}, {"ask": "heads", "keys": [key]},
                                 {"ask": "images", "key": key}, {"ask": "why", "key": key})
            for line in answer(desk, message)]  # fmt: skip
    assert not re.search(r"P1\b|One|1\.2\.3", repr(told))
    file = next(iter(site.unit(key).instances))
    (handed,) = answer(desk, {"ask": "hand", "key": key, "files": [file], "product": ""})
    assert isinstance(handed, Handed)
    assert handed.message["files"] == []
    (made,) = answer(desk, {"ask": "hand", "key": key, "files": ["out.txt"], "product": "deid"})
    assert isinstance(made, Handed)
    assert made.message["files"] == ["out.txt"]


def test_the_door_tells_nothing_that_another_lab_of_the_study_knows(root: Path) -> None:
    kitchen(root, DEID, lab=ONLY)
    site = begun(root)
    site.engine.makers["deid"] = blank
    site.receive(data_set(1))
    site.turns(80)
    key = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    shown = site.summary(key).subject
    rows = (StudySeries("k", "1", "T1", 1, "quiet", 1, "other", "P1"),
            StudySeries(key, "2", "T2", 1, "quiet", 1, "memory", shown))  # fmt: skip
    missing = tuple(Missing(lab, "T9", 1, 0, "expected T9") for lab in ("other", "memory"))
    study = Study(study_key("1.2.3"), "1.2.3", 1, "other", "P1", scanner="Secret", series=rows, missing=missing)
    records = StudyRecords(site.spool.studies, site.spool.files)
    record = StudyRecord(study, {key: 1, "k": 1}, "2999-01-01")
    records.write(record)
    records.write_overview(Overview((), (record,)))
    for labs in (frozenset({"memory"}), frozenset({"memory", "other"})):
        desk = Desk(site.spool, Shelf(site.spool), AccessLog(site.spool), DoorTerms(), Sight(1234, labs=labs))
        told = [*answer(desk, {"ask": "why", "key": key})]
        assert not re.search(r"P1\b|One|1\.2\.3|Secret|other", repr(told))
        assert repr(told).count(f"'subject': '{shown}'") == 2, "of the study, and of its row"
        (status,) = answer(desk, {"ask": "status"})
        assert isinstance(status, dict)
        lacking = {each["study"]["lab"]: each["study"] for each in status["lacking"]}
        assert not re.search(r"P1\b|1\.2\.3|Secret|other", repr(lacking.pop("memory")))
        assert set(lacking) == labs - {"memory"}


def test_what_was_planned_before_does_not_leave_any_more(root: Path) -> None:
    kitchen(root, DEID, lab='products = ["dicom"]')
    site = begun(root)
    site.receive(data_set(1))
    site.turns(80)
    assert site.images() == 1
    kitchen(root, DEID, lab=ONLY)
    site = site.again()
    site.receive(data_set(2))
    site.turns(80)
    assert site.images() == 1
    key = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    assert site.summary(key).why == "dicom may not leave any more: [labs.memory] only"
    site.parts.pipeline.deciding.decide([key], [], decision(None, None, "a rule"))
    site.turns(80)
    assert site.images() == 0
    assert len(site.delivered()) == 1


def test_what_waits_for_a_busy_target_does_not_leave_any_more(root: Path) -> None:
    kitchen(root, DEID, lab='products = ["dicom"]')
    site = begun(root, lane=Queueing)
    site.receive(data_set(1))
    site.turns(80)
    assert [put.product for _, put in Queueing.waiting_puts] == ["dicom"]
    kitchen(root, DEID, lab=ONLY)
    site.reload()
    Queueing.go_on()
    site.turns(80)
    Queueing.go_on()
    assert site.images() == 0
    key = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    assert site.summary(key).why == "dicom may not leave any more: [labs.memory] only"
    kitchen(root, DEID, lab='products = ["dicom"]')
    site.reload()
    Queueing.go_on()
    site.turns(80)
    assert site.images() == 1


def test_a_name_that_nobody_said_is_opaque_and_stays(tmp_path: Path) -> None:
    veils = Veils(tmp_path, Files())
    first = veils.keep({"memory": ("deid",), "other": ("deid",), "open": None})
    assert first == veils.keep({"memory": ("deid",), "other": ("deid",)})
    header = {"PatientID": "P1", "PatientName": "One^Patient", "SeriesNumber": 3}
    name = first["memory"].subject("P1", header)
    assert name == first["memory"].subject(None, {"PatientID": "P1"}) == first["memory"].subject("One^Patient", header)
    assert name != first["other"].subject(None, header)
    assert first["memory"].subject("V07", header) == "V07"
    assert first["memory"].header(header) == {"SeriesNumber": 3}
    assert veils.keep({"memory": None}) == {}
    assert veils.keep({"memory": ("deid",)})["memory"].subject(None, header) == name


def test_scratch_that_was_cleared_half_is_cleared_by_the_next_try(tmp_path: Path) -> None:
    class Failing(Files):
        def rmdir(self, path: Any, *, at: int | None = None) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "job/in/dicom/deep").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            scratch.clear(tmp_path / "job", Failing())
        (tmp_path / "job/in/dicom/deep").mkdir(parents=True, exist_ok=True)
    scratch.clear(tmp_path / "job", Files())
    assert not (tmp_path / "job").exists()


# --- products with folders ------------------------------------------------------------------------------------------


def tree(*names: str) -> Callable[[Work, Path], str | None]:
    """A maker of these files, each of which holds how many images there were."""

    def make(work: Work, folder: Path) -> None:
        for name in names:
            (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "out" / name).write_text(str(len(work.inputs["dicom"])))

    return make


def test_folders_of_a_product_are_delivered_grow_and_go(root: Path) -> None:
    kitchen(root, together(), lab='products = ["book"]')
    site = begun(root)
    site.engine.makers["book"] = tree("out.json", "anat/T1w.txt", "func/rest/bold.txt")
    site.receive(data_set(1))
    site.turns(200)
    place = "P1/20260102_1011/book"
    assert site.delivered() == dict.fromkeys(
        [f"{place}/anat/T1w.txt", f"{place}/book.json", f"{place}/func/rest/bold.txt"], "1"
    )
    (root / "labs/memory" / place / "anat/T1w.txt").write_text("mine")
    site.engine.makers["book"] = tree("out.json", "anat/T1w.txt", "dwi/dwi.txt")
    site.receive(data_set(2))
    site.turns(200)
    assert site.delivered() == {
        f"{place}/anat/T1w.txt": "mine", f"{place}/anat/T1w.txt.new-rev2": "2", f"{place}/book.json": "2",
        f"{place}/dwi/dwi.txt": "2",
    }  # fmt: skip
    receipt = site.unit().receipts()["book", "memory"]
    target = PathTarget({"root": str(root / "labs/memory")})
    assert target.verify(receipt).whole
    (root / "labs/memory" / place / "dwi/dwi.txt").unlink()
    assert target.verify(receipt).missing == ("dwi/dwi.txt",)
    series = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")
    site.parts.pipeline.withdraw([series], [], "consent", "a person")
    site.turns(60)
    left = {name: text for name, text in site.delivered().items() if not name.endswith("/MOVED.txt")}
    assert left == {f"{place}/anat/T1w.txt": "mine"}


def test_what_parts_of_a_dataset_have_in_common_is_in_no_receipt_and_not_taken_back(root: Path) -> None:
    kitchen(root, together(more='merge={"README": "once", ".ignore": "lines"}'), lab='products = ["book"]')
    site = begun(root)
    site.engine.makers["book"] = tree("README", ".ignore", "anat/T1w.txt")
    site.receive(data_set(1))
    site.turns(200)
    place = "P1/20260102_1011/book"
    names = [f"{place}/.ignore", f"{place}/README", f"{place}/anat/T1w.txt"]
    assert site.delivered() == dict.fromkeys(names, "1")
    assert [each.name for each in site.unit().receipts()["book", "memory"].files] == ["anat/T1w.txt"]
    (root / "labs/memory" / place / "README").write_text("mine")
    site.receive(data_set(2))
    site.turns(200)
    assert list(site.delivered().values()) == ["1\n2\n", "mine", "2"]
    said = CliRunner().invoke(sorter, ["withdraw", "P1", "-c", str(root / "sorter.toml")]).output
    assert f"1 file of book at memory, in {place}, made of several series" in said
    assert "README, .ignore there stay: what they say of the subject is for the lab to remove" in said
    site.parts.pipeline.withdraw([unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.1")], [], "consent", "a person")
    site.turns(60)
    assert list(site.delivered()) == names[:2]


def test_a_part_of_a_dataset_is_made_only_where_it_is_listed(root: Path) -> None:
    kitchen(root, together(more='merge={"README": "once"}'), lab="umask = '022'")
    site = begun(root)
    site.receive(data_set(1))
    site.turns(200)
    assert "book" not in site.made()
    assert not [each for each in summaries(site.spool) if each.kind is UnitKind.STUDY]


def test_a_product_with_folders_that_the_lab_moved_grows_where_it_is(root: Path) -> None:
    kitchen(root, together(), lab='products = ["book"]')
    site = begun(root)
    site.engine.makers["book"] = tree("anat/T1w.txt", "func/bold.txt")
    site.receive(data_set(1))
    site.turns(200)
    (root / "labs/memory/P1/20260102_1011/book").rename(root / "labs/memory/mine")
    site.receive(data_set(2))
    site.turns(200)
    assert site.delivered() == {"mine/anat/T1w.txt": "2", "mine/func/bold.txt": "2"}
    (root / "labs/memory/mine/func").rename(root / "labs/memory/func")
    site.receive(data_set(3))
    site.turns(200)
    assert "were moved apart; move them back" in site.summary().why
    (root / "labs/memory/func").rename(root / "labs/memory/mine/func")
    site.turns(1200)
    assert site.delivered() == {"mine/anat/T1w.txt": "3", "mine/func/bold.txt": "3"}


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a//x", "a/../../x", ".sorter/id", "a/.sorter-x.json", "a/./x", "a/"]
)
def test_no_folder_of_a_product_leads_out_or_into_sorters_own(tmp_path: Path, name: str) -> None:
    target = PathTarget({"root": str(tmp_path)})
    mark(str(tmp_path), Files())
    wanted = (Wanted("out.txt", "0" * 64, 1, "out.txt"), Wanted(name, "0" * 64, 1, "x"))
    with pytest.raises(Held, match="file name"):
        target.put(Put("1", "k" * 32, "book", 1, "P1", wanted), Opening())
    assert os.listdir(tmp_path) == [".sorter"]


class Opening:
    def __call__(self, index: int) -> int:
        raise AssertionError(index)

    def will_need(self, indices: Sequence[int]) -> None:
        raise AssertionError(indices)
