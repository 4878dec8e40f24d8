"""The contract of the hooks: documented, plain values in and out, asked in order, failures apart.

Each hook has a test named `test_sorter_HOOK_…` here; `test_every_hook_is_documented_and_tested` fails otherwise.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sorter import hookspecs
from sorter.durable import Files
from sorter.model import (
    Add,
    Event,
    Evidence,
    Expectation,
    Hold,
    Identity,
    Instance,
    Name,
    Only,
    Product,
    Route,
    Series,
    Skip,
    Source,
    Standing,
    TargetKind,
    UnitKind,
    Verdict,
    build,
    plain,
)
from sorter.plugins import Plugins, matches

DOCS = Path(__file__).parents[2] / "docs" / "plugins.md"

SOURCE = Source("SCANNER", "MEMORY", "192.0.2.7", None, "", "a-1")
SERIES = Series(
    key="0123456789abcdef",
    kind=UnitKind.SERIES,
    study_uid="1.2",
    series_uids=("1.2.3", "1.2.4"),
    header={"PatientID": "PILOT7", "EchoTime": 2.5, "SeriesNumber": 4, "ImageType": ("ORIGINAL", "PRIMARY")},
    count=2,
    sources=(SOURCE, Source(uid=1000, drop="monday")),
    identity=Identity("memory", "p7", None, {"cohort": "a"}),
    verdict=Verdict.COUNTED,
    revision=3,
    evidence=(Evidence("count", "300 of 300"),),
    added=("1.2.3.4",),
    distinct={"EchoTime": (2.5, 5, 7.5)},
)
INSTANCE = Instance(
    "1.2", "1.2.3", "1.2.3.4", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1", "ab/cd", 10, "0" * 64, "1" * 64,
    "", "2026-11-23T10:00:00", SOURCE, {"Modality": "MR"}, Standing.CONFLICT,
)  # fmt: skip
EVENT = Event("published", "0123456789abcdef", "2026-11-23T10:00:00", {"revision": "3"})


def again(value: Any) -> Any:
    """Through JSON and back, as to another process."""
    return build(type(value), json.loads(json.dumps(plain(value))))


def plugins(folder: Path, tables: dict[str, dict[str, Any]] | None = None, **code: str) -> Plugins:
    """Plugins with single files of this code; each argument is one file."""
    folder.chmod(0o755)
    for name, body in code.items():
        path = folder / f"{name}.py"
        path.write_text("from sorter import *\n" + textwrap.dedent(body))
        path.chmod(0o644)
    return Plugins.load(tables or {}, folder, Files(), {})


def hook(name: str, body: str) -> str:
    arguments = ", ".join(hookspecs.signatures()[name])
    return f"@hookimpl\ndef {name}({arguments}):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"


# --- the contract, kept by machine ----------------------------------------------------------------------------------


def test_every_hook_is_documented_and_tested() -> None:
    documented = re.findall(r"^### (sorter_\w+)\((.*)\)$", DOCS.read_text(), re.MULTILINE)
    specs = {name: ", ".join(arguments) for name, arguments in hookspecs.signatures().items()}
    assert dict(documented) == specs
    assert [name for name, _ in documented] == list(specs), "the docs keep the order of hookspecs.py"
    tests = [node.name for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)]
    untested = [name for name in specs if not any(test.startswith(f"test_{name}_") for test in tests)]
    assert untested == []
    assert all(getattr(hookspecs, name).__doc__ for name in specs)


@pytest.mark.parametrize("value", [SERIES, INSTANCE, EVENT], ids=["series", "instance", "event"])
def test_every_argument_crosses_to_another_process(value: Any) -> None:
    assert again(value) == value


@pytest.mark.parametrize(
    "value",
    [
        Identity("lab", "subject", None, {"a": "b"}),
        Identity(),
        Expectation(300, ("1.2", "1.3"), 1.0, "because", "mine"),
        Name("{subject}", "{InstanceNumber}.dcm"),
        Product("p", "m:f", ("dicom", "nifti"), UnitKind.STUDY, {"Modality": ("MR",)}, "dicom", Verdict.QUIET, 1, 2, 3),
        TargetKind("path", "m:C"),
    ],
)
def test_every_answer_crosses_to_another_process(value: Any) -> None:
    assert again(value) == value


@pytest.mark.parametrize("route", [Add(("a", "b")), Only(("a",)), Skip("localizer"), Hold("consent")])
def test_every_route_crosses_to_another_process(route: Route) -> None:
    assert build(Route, json.loads(json.dumps(plain(route)))) == route  # type: ignore[arg-type]


# --- the documentation runs -----------------------------------------------------------------------------------------


def documented(kind: str) -> dict[str, str]:
    pattern = rf"<!-- {kind}: (\S+) -->\n```\w+\n(.*?)```"
    return dict(re.findall(pattern, DOCS.read_text(), re.DOTALL))


def test_the_documented_plugins_do_what_the_page_says(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name, code in documented("file").items():
        (tmp_path / name).write_text(code)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "subjects.csv").write_text("scanner_id,subject\nX1,sub-001\n")
    tables: dict[str, Any] = {}
    for text in documented("table").values():
        tables |= tomllib.loads(text)["plugins"]
    loaded = Plugins.load(tables, tmp_path, Files(), {})

    found = loaded.identify(SERIES)
    assert (found.identity.lab, found.identity.subject, found.failures) == ("memory", "pilot7", ())
    assert loaded.route(SERIES).route == Hold("fewer than 3 images: is this the localizer?")
    other = Series("k", UnitKind.SERIES, "1", ("2",), {"PatientID": "X1"}, 100)
    assert loaded.identify(other).identity.subject == "sub-001"
    assert [line.name for line in loaded.listing()][:3] == ["mail", "pairs", "pilots"]


def test_the_documented_example_is_ten_lines_and_lists_every_series_attribute() -> None:
    code = documented("file")["pilots.py"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    text = DOCS.read_text()
    for name in (
        "get",
        "values",
        *(each for each in Series.__dataclass_fields__ if each not in ("header", "distinct", "ask")),
    ):
        assert re.search(rf"[`.]{name}\b", text), f"docs/plugins.md does not say Series.{name}"


# --- each hook ------------------------------------------------------------------------------------------------------


def test_sorter_config_gives_settings_of_its_own_model(tmp_path: Path) -> None:
    code = """
        from pydantic import BaseModel
        class Mine(BaseModel):
            who: str
        @hookimpl
        def sorter_config(): return Mine
        @hookimpl
        def sorter_identify(series, settings): return Identity(subject=settings.who)
    """
    assert plugins(tmp_path, {"a": {"who": "me"}}, a=code).identify(SERIES).identity.subject == "me"


def test_sorter_identify_takes_each_part_from_the_first_that_knows_it(tmp_path: Path) -> None:
    loaded = plugins(
        tmp_path,
        a=hook("sorter_identify", 'return Identity(lab="", session="s1", labels={"x": "a"})'),
        b=hook("sorter_identify", 'return Identity(lab="B", session="s2", labels={"x": "b", "y": "b"})'),
        c=hook("sorter_identify", "return None"),
    )
    assert loaded.identify(SERIES).identity == Identity("B", "PILOT7", "s1", {"x": "a", "y": "b"})


def test_sorter_group_takes_the_first_answer_and_asks_no_further(tmp_path: Path) -> None:
    loaded = plugins(
        tmp_path,
        a=hook("sorter_group", "return None"),
        b=hook("sorter_group", "return instance.header['Modality']"),
        c=hook("sorter_group", "raise RuntimeError"),
    )
    assert loaded.group(INSTANCE) == ((("b", "MR"),), ())


def test_sorter_expect_keeps_all_answers(tmp_path: Path) -> None:
    loaded = plugins(
        tmp_path,
        a=hook("sorter_expect", "return Expectation(count=3, confidence=1, why='a')"),
        b=hook("sorter_expect", "return Expectation(count=4)"),
    )
    assert [(name, value.count) for name, value in loaded.expect(SERIES).answers] == [("a", 3), ("b", 4)]


ROUTES = {
    "add": "Add(('x', 'y'))",
    "only": "Only(('y', 'z'))",
    "skip": "Skip('s')",
    "hold": "Hold('h')",
    "none": "None",
}


@pytest.mark.parametrize(
    ("first", "second", "route", "by"),
    [
        ("add", "hold", Hold("h"), ("b",)),
        ("hold", "skip", Hold("h"), ("a",)),
        ("only", "skip", Skip("s"), ("b",)),
        ("add", "only", Only(("y", "z")), ("b",)),
        ("add", "add", Add(("x", "y")), ("a", "b")),
        ("only", "only", Only(("y", "z")), ("a", "b")),
        ("none", "none", None, ()),
        ("none", "add", Add(("x", "y")), ("b",)),
    ],
)
def test_sorter_route_takes_the_strongest(
    tmp_path: Path, first: str, second: str, route: Route | None, by: tuple[str, ...]
) -> None:
    nobody = Series("k", UnitKind.SERIES, "1", ("2",), {}, 1)
    loaded = plugins(
        tmp_path,
        a=hook("sorter_route", f"return {ROUTES[first]}"),
        b=hook("sorter_route", f"return {ROUTES[second]}"),
    )
    assert loaded.route(nobody) == (route, by, ())


def test_sorter_route_joins_add_and_only_delivers_where_all_agree(tmp_path: Path) -> None:
    nobody = Series("k", UnitKind.SERIES, "1", ("2",), {}, 1)
    say = {name: hook("sorter_route", f"return {name[:-1].title()}(({name[-1]!r}, 'w'))") for name in ("add1", "add2")}
    assert plugins(tmp_path, **say).route(nobody).route == Add(("1", "w", "2"))
    (tmp_path / "more").mkdir(mode=0o755)
    say = {name: hook("sorter_route", f"return Only(({name!r},))") for name in ("p", "q")}
    held = plugins(tmp_path / "more", **say).route(nobody)
    assert held.route == Hold("plugins p and q each allow only targets that the other does not")


def test_sorter_name_takes_the_first_answer(tmp_path: Path) -> None:
    loaded = plugins(
        tmp_path,
        a=hook("sorter_name", "return Name('a', 'f') if (product, target) == ('nifti', 'nas') else None"),
    )
    assert loaded.name(SERIES, "nifti", "nas") == (Name("a", "f"), "a", ())
    assert loaded.name(SERIES, "nifti", "other").by == "naming"


def test_sorter_products_are_named_once_and_single_files_by_path(tmp_path: Path) -> None:
    loaded = plugins(
        tmp_path,
        a_1=hook("sorter_products", "return [Product('one', 'a_1:make'), Product('two', 'json:dumps')]"),
        b=hook("sorter_products", "return [Product('one', 'x:y'), Product('three', 'x:y')]"),
    )
    asked = loaded.products()
    mine = {value.name: (plugin, value.make) for plugin, value in asked.answers if plugin in ("a_1", "b")}
    assert mine == {
        "one": ("a_1", f"{tmp_path / 'a_1.py'}:make"),
        "two": ("a_1", "json:dumps"),
        "three": ("b", "x:y"),
    }
    assert "plugin b: sorter_products failed: one is brought by plugin a_1 already" in map(str, asked.failures)


def test_sorter_targets_brings_kinds(tmp_path: Path) -> None:
    loaded = plugins(tmp_path, a=hook("sorter_targets", "return (TargetKind('rclone', 'a:B'),)"))
    kinds = {value.name: value.code for _, value in loaded.target_kinds().answers}
    assert kinds == {
        "rclone": "a:B",
        "path": "sorter.builtin.path_target:PathTarget",
        "dicom": "sorter.scu.target:DicomTarget",
    }


def test_sorter_event_tells_every_plugin(tmp_path: Path) -> None:
    tell = "settings['heard'].append((event.kind, event.details['revision']))\nreturn 'ignored'"
    heard: list[tuple[str, str]] = []
    loaded = plugins(
        tmp_path,
        {name: {"heard": heard} for name in ("a", "c")},
        a=hook("sorter_event", tell),
        b=hook("sorter_event", "raise RuntimeError('deaf')"),
        c=hook("sorter_event", tell),
    )
    failures = loaded.event(EVENT)
    assert heard == [("published", "3")] * 2
    assert [str(failure) for failure in failures] == ["plugin b: sorter_event failed: RuntimeError: deaf"]


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body", "sentence"),
    [
        ("sorter_identify", "raise RuntimeError('boo')", "RuntimeError: boo"),
        ("sorter_identify", "raise SystemExit(3)", "SystemExit: 3"),
        ("sorter_identify", "return series.PatientName.lower()", "AttributeError"),
        ("sorter_identify", "return sorter_identify(series, settings)", "RecursionError"),
        ("sorter_identify", "series.header['PatientID'] = 'x'", "TypeError"),
        ("sorter_identify", "return 'memory'", "it answered a str, not an Identity"),
        ("sorter_identify", "return Identity(subject=7)", "Identity.subject: int is not allowed here"),
        ("sorter_identify", "return Identity(labels=3)", "Identity.labels: expected an object"),
        ("sorter_identify", "return Identity(lab='a\\0')", "contains a NUL character"),
        ("sorter_identify", "return Identity(lab='\\ud800')", "cannot be written as UTF-8"),
        ("sorter_identify", "return Identity(lab='a' * 5000)", "a text of 5000 characters"),
        ("sorter_identify", "return Identity(labels={str(i): 'x' * 4000 for i in range(2000)})", "characters long"),
        ("sorter_identify", "return Identity(lab=object())", "not made of plain values"),
        ("sorter_identify", "d = {}; d['d'] = d; return Identity(labels=d)", "RecursionError"),
        ("sorter_route", "return Only(())", "Only without a target"),
        ("sorter_route", "return Add('memory')", 'the targets are a list: Add(("name",))'),
        ("sorter_route", "return Add(tuple(map(str, range(101))))", "101 targets"),
        ("sorter_route", "return True", "it answered a bool, not Add, Only, Skip or Hold"),
        ("sorter_route", "return Skip(3)", "Skip.why: expected str, got int"),
        ("sorter_expect", "return Expectation(count=0)", "it expects 0 instances"),
        ("sorter_expect", "return Expectation(confidence=2.0)", "must lie between 0 and 1"),
        ("sorter_expect", "return Expectation(confidence=float('nan'))", "not made of plain values"),
        ("sorter_name", "return Name('a', '')", "no pattern for the file"),
        ("sorter_name", "return Name('a', '{nmber}')", 'there is no field "nmber"'),
        ("sorter_products", "return Product('a', 'b:c')", "it answered a Product, not a list of Product"),
        ("sorter_products", "return [Product('dicom', 'b:c')]", "cannot be named 'dicom'"),
        ("sorter_products", "return [Product('../x', 'b:c')]", "cannot be named '../x'"),
        ("sorter_products", "return [Product('x', 'b.c')]", "make is 'b.c'"),
        ("sorter_products", "return [Product('x', 'b:c', timeout=0)]", "must be at least 1"),
        ("sorter_products", "return [Product('x', 'b:c', when={'Modality': 'MR'})]", "when.Modality: expected a list"),
        ("sorter_targets", "return [TargetKind('X', 'b:c')]", "cannot be named 'X'"),
        ("sorter_targets", "return [TargetKind('x', 'b')]", "code is 'b'"),
        ("sorter_group", "return 7", "it answered an int, not text or None"),
        ("sorter_group", "return ''", "an empty key"),
    ],
)
def test_a_failure_is_said_and_touches_no_other_answer(tmp_path: Path, name: str, body: str, sentence: str) -> None:
    good = {
        "sorter_identify": "return Identity(session='kept')",
        "sorter_route": "return Add(('kept',))",
        "sorter_expect": "return Expectation(count=7)",
        "sorter_name": "return Name('kept', 'f')",
        "sorter_products": "return [Product('kept', 'a:b')]",
        "sorter_targets": "return [TargetKind('kept', 'a:b')]",
        "sorter_group": "return 'kept'",
    }
    loaded = plugins(tmp_path, a=hook(name, good[name]), b=hook(name, body), c=hook(name, good[name]))
    arguments = {"series": SERIES, "product": "dicom", "target": "t", "instance": INSTANCE}
    wanted = {each: arguments[each] for each in hookspecs.signatures()[name] if each != "settings"}

    asked = loaded.ask(name, **wanted)

    assert [failure.plugin for failure in asked.failures] == ["b"]
    assert sentence in str(asked.failures[0])
    assert str(asked.failures[0]).startswith(f"plugin b: {name} failed: ")
    assert {"a", "c"} <= {answer.plugin for answer in asked.answers}


def test_an_answer_is_made_of_plain_values_only(tmp_path: Path) -> None:
    code = """
        from pydicom.uid import UID
        @hookimpl
        def sorter_identify(series): return Identity(subject=UID("1.2.3"))
    """
    found = plugins(tmp_path, a=code).identify(SERIES).identity.subject
    assert found == "1.2.3"
    assert type(found) is str


def test_a_hook_is_given_only_what_it_takes_and_its_own_settings(tmp_path: Path) -> None:
    loaded = plugins(
        tmp_path,
        {"a": {"x": "1"}, "b": {"x": "2"}},
        a="@hookimpl\ndef sorter_name(target, settings): return Name(target, settings['x'])",
        b="@hookimpl\ndef sorter_name(): return Name('b', 'b')",
    )
    assert loaded.ask("sorter_name", series=SERIES, product="dicom", target="t").answers[:2] == (
        ("a", Name("t", "1")),
        ("b", Name("b", "b")),
    )


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        ({}, True),
        ({"PatientID": ("pilot*",)}, True),
        ({"PatientID": ("x", "pilot?"), "ImageType": ("primary",)}, True),
        ({"PatientID": ("pilot*",), "Rows": ("*",)}, False),
        ({"SeriesNumber": ("4",)}, True),
        ({"SeriesNumber": ()}, False),
    ],
)
def test_a_products_when_is_globs_that_must_all_match(when: dict[str, tuple[str, ...]], fits: bool) -> None:
    assert matches(Product("p", "a:b", when=when), SERIES) is fits
