"""A lab's own Python: asked of its own series alone, and what goes wrong with it holds those and no others."""

from __future__ import annotations

import dataclasses
import os
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.builtin.path_target import PathTarget, mark
from sorter.deliver.target import LabLook, LabSeen
from sorter.durable import Files
from sorter.labs.python import HOOKS, PERIOD, PLACE, Home, LabPython
from sorter.model import Add, Hold, Identity, Name, Only, Series, UnitKind
from sorter.plugins import Plugins
from sorter.plugins.hosted import Hosted, Patience
from sorter.plugins.local import Asked
from sorter.spool.labs import LabRecords
from sorter.testing.waiting import wait_until

OWN = """
    import os
    from sorter import *

    @hookimpl
    def sorter_identify(series):
        match series.PatientID:
            case "environment": return Identity(subject=",".join(sorted(os.environ)))
            case "theft": return Identity(lab="vision")
            case "leave": os._exit(3)
            case who: return Identity(subject="own-" + who, labels={"seen": str(series.subject)})

    @hookimpl
    def sorter_route(series):
        match series.PatientID:
            case "away": return Add(("vision",))
            case "only": return Only(("pacs",))
            case "hold": return Hold("not yet")

    @hookimpl
    def sorter_name(series, product, target):
        return Name("own/{subject}", "{InstanceNumber}")
"""


def series(what: str, lab: str | None = "memory") -> Series:
    return Series("key", UnitKind.SERIES, "1.2", ("1.2.3",), {"PatientID": what}, 1, identity=Identity(lab, "S1"))


class Lab:
    """One lab with a folder for its Python, which is run by the account of the test."""

    def __init__(self, root: Path, sockets: Path) -> None:
        self.root, self.woken = root, threading.Event()
        self.now = 1000.0
        self.records = LabRecords(sockets.with_name("records"), Files())
        (root / PLACE).mkdir(parents=True)
        self.python = LabPython(
            sockets, Files(), self.records, self.woken.set, Patience(answer=20.0, load=30.0, rest=0.0), lambda: self.now
        )
        self.python.configure({"memory": Home("", root, "", frozenset({"memory", "pacs"}))})
        routing = {"labs": {"memory": ["memory", "pacs"], "vision": ["vision"]}}
        self.plugins = Plugins.load({}, None, Files(), {"routing": routing})
        self.plugins.of_lab = self.python.ask
        self.marks = 0

    def write(self, **code: str) -> None:
        """Files of the lab; the look that finds them, and their loading."""
        for name, text in code.items():
            (self.root / PLACE / f"{name}.py").write_text(textwrap.dedent(text))
        self.see(f"mark {self.marks}")

    def see(self, mark: str) -> None:
        self.marks += 1
        self.python.seen("memory", mark)
        wait_until(lambda: self.python.turn(0.0)[0] == {"memory"}, 60, "the lab's plugins to be loaded")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    base = tmp_path_factory.mktemp("lab")
    os.environ["SORTER_SECRET"] = "of the account that sorter runs as"
    found = Lab(base / "root", base / "sockets")
    yield found
    found.python.close()
    del os.environ["SORTER_SECRET"]


@pytest.fixture(scope="module")
def own(lab: Lab) -> Lab:
    before = lab.plugins.route(series("x"))
    assert "was not looked at yet" in str(before.failures[0])
    lab.see("")
    assert lab.plugins.route(series("x")).failures == ()
    lab.write(own=OWN)
    assert lab.python.seen("memory", "mark 1") == ()
    return lab


def test_a_folder_that_is_away_at_a_start_holds_nothing_where_nothing_lay(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "root", tmp_path / "sockets")
    lab.see("")
    home = lab.python._labs["memory"].home
    for said in ("", "mark"):
        lab.records.note_python("memory", said)
        lab.python.configure({})
        lab.python.configure({"memory": home})
        assert len(lab.plugins.route(series("x")).failures) == (1 if said else 0)
        assert lab.python.doubted("memory"), "nor may an image leave on the word of what was not looked at"


def test_it_says_who_where_to_and_under_which_names(own: Lab) -> None:
    asked = own.python.ask("memory", "sorter_identify", {"series": series("A")})
    assert [answer.value for answer in asked.answers] == [Identity(subject="own-A", labels={"seen": "S1"})]
    assert own.plugins.route(series("hold")).route == Hold("not yet")
    assert own.plugins.route(series("only")).route == Only(("pacs",))
    assert own.plugins.name(series("A"), "dicom", "memory")[:2] == (Name("own/{subject}", "{InstanceNumber}"), "own")


def test_nobody_elses_series_is_asked_about(own: Lab) -> None:
    assert own.plugins.route(series("hold", lab="vision")).route == Add(("vision",))
    assert own.plugins.route(series("hold", lab=None)).route is None
    assert own.plugins.name(series("A"), "dicom", "pacs").by != "own", "another place than the lab's own folder"


@pytest.mark.parametrize(
    ("what", "hook", "said"),
    [
        ("theft", "sorter_identify", "cannot say that a series belongs to another"),
        ("away", "sorter_route", "lab memory was not granted the target vision; it has memory, pacs"),
        ("leave", "sorter_identify", "its process ended before it answered"),
    ],
)
def test_what_is_not_its_to_say_is_a_failure(own: Lab, what: str, hook: str, said: str) -> None:
    asked = own.python.ask("memory", hook, {"series": series(what)})
    assert (asked.answers, len(asked.failures)) == ((), 1)
    assert said in str(asked.failures[0])


def test_who_answers_slowly_takes_no_more_than_a_share_of_the_time_of_all(
    own: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The series that waits is asked about from its beginning when it goes on: a whole share is there for it then."""

    def slow(hosted: Hosted, *_: object) -> Asked:
        own.now += 2.9
        return Asked((), ())

    monkeypatch.setattr(Hosted, "ask", slow)
    done, begun, end = 0, own.now, own.now + 10 * PERIOD
    while own.now < end:
        asked = [own.python.ask("memory", hook, {"series": series("x")}) for hook in HOOKS]
        failures = [str(each.failures[0]) for each in asked if each.failures]
        if failures:
            assert all("s of the time of all labs, and are asked again in" in said for said in failures)
            changed, until = own.python.turn(own.now)
            assert not changed
            own.now = until + 0.001
            assert own.python.turn(own.now)[0] == {"memory"}
        else:
            done += 1
    assert done >= 5
    assert 3 * 2.9 * done < 0.15 * (own.now - begun)


def test_it_knows_nothing_of_sorters_environment(own: Lab) -> None:
    [answer] = own.python.ask("memory", "sorter_identify", {"series": series("environment")}).answers
    assert answer.value.subject == "HOME,LANG,PATH"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_this_name", "own.py:1: ModuleNotFoundError"),
        (
            "from sorter import *\n@hookimpl\ndef sorter_products(): return []",
            "own.py: a lab's own plugins are not asked sorter_products; ask the admin",
        ),
        ("while True: pass", "did not load within"),
    ],
)
def test_a_mistake_holds_what_is_the_labs_until_it_is_mended(own: Lab, code: str, said: str) -> None:
    own.python.patience = Patience(answer=20.0, load=2.0 if "while" in code else 30.0)
    own.write(own=code)
    [fault] = own.python.seen("memory", f"mark {own.marks - 1}")
    assert said in fault
    assert fault.startswith("plugins: ")
    assert said in str(own.plugins.route(series("x")).failures[0])
    assert own.plugins.route(series("x", lab="vision")).failures == ()
    own.python.patience = Patience(answer=20.0, load=30.0)
    own.write(own=OWN)
    assert own.plugins.route(series("hold")).route == Hold("not yet")


def test_an_interpreter_that_cannot_be_run_is_named(lab: Lab, tmp_path: Path) -> None:
    for python, said in ((str(tmp_path / "none"), "cannot be run"), ("/bin/true", "is mri-sorter installed")):
        other = LabPython(tmp_path, Files(), lab.records, lambda: None)
        other.configure({"memory": Home("", lab.root, python)})
        other.seen("memory", "x")
        wait_until(lambda other=other: bool(other.turn(0.0)[0]), 60, "loading to fail")
        assert said in other.seen("memory", "x")[0]
        other.close()


def test_the_labs_worker_sees_that_it_changed(tmp_path: Path) -> None:
    mark(tmp_path, Files())

    def look(*, python: bool = True) -> LabSeen:
        class Nothing:
            def will_need(self, indices: object) -> None: ...
            def __call__(self, index: int) -> int:
                raise AssertionError(index)

        return PathTarget({"root": str(tmp_path)}).look_at_lab(LabLook(gone=("ERRORS.txt",), python=python), Nothing())

    assert look().python == ""
    (tmp_path / PLACE).mkdir()
    assert look().python == ""
    (tmp_path / PLACE / "own.py").write_text("x = 1")
    first = look()
    assert first.python == look().python != ""
    assert first.beside == ()
    (tmp_path / PLACE / "own.py").write_text("x = 22")
    assert look().python not in ("", first.python)
    assert "only where the admin gave the lab an account" in look(python=False).beside[0]


def test_the_page_for_labs_shows_what_works(own: Lab) -> None:
    page = (Path(__file__).parents[2] / "docs" / "lab.md").read_text()
    own.write(own=page.split("```python\n")[1].split("```")[0])
    assert own.python.seen("memory", f"mark {own.marks - 1}") == ()
    [found] = own.python.ask("memory", "sorter_identify", {"series": series("PILOT07")}).answers
    assert found.value == Identity(subject="pilot-07")
    assert isinstance(own.plugins.route(dataclasses.replace(series("x"), header={"Modality": "MR"})).route, Hold)
    pilot = dataclasses.replace(series("x"), identity=Identity("memory", "pilot-07"))
    name = Name("pilot/{subject}/{SeriesNumber:03d}_{SeriesDescription}", "{InstanceNumber:05d}.dcm")
    assert own.plugins.name(pilot, "dicom", "memory")[:2] == (name, "own")


def test_no_image_leaves_the_store_on_the_word_of_an_account_that_runs_a_labs_code(own: Lab) -> None:
    assert "plugins of its own" in own.python.doubted("memory")
    assert own.python.doubted("vision") == ""


def test_a_lab_is_forgotten_with_its_account(own: Lab) -> None:
    home = own.python._labs["memory"].home
    own.python.configure({"memory": dataclasses.replace(home, targets=frozenset({"memory"}))})
    assert "was not looked at yet" in str(own.plugins.route(series("x")).failures[0])
    own.python.configure({})
    assert own.plugins.route(series("x")).failures == ()
