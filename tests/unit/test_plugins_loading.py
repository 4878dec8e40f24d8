"""Which plugins are loaded, in which order, and which are refused with which sentence."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.plugins import Plugins

GOOD = """
from sorter import Identity, hookimpl

@hookimpl
def sorter_identify(series):
    return Identity(subject="x")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "plugins"
    path.mkdir(mode=0o755)
    return path


def put(folder: Path, name: str, code: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(code))
    path.chmod(0o644)
    return path


def faults(folder: Path | None, tables: dict[str, dict[str, object]] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        Plugins.load(tables or {}, folder, Files(), {})
    return "\n".join(caught.value.faults)


def distribution(where: Path, name: str, module: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution as pip leaves it: a module, and metadata with an entry point."""
    where.mkdir(exist_ok=True)
    (where / f"{module}.py").write_text(textwrap.dedent(code))
    info = where / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[sorter]\n{name.removeprefix('sorter-')} = {module}\n")
    monkeypatch.syspath_prepend(str(where))


def test_order_is_files_then_distributions_then_built_ins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "b.py", GOOD)
    put(folder, "a.py", GOOD)
    put(folder, "_helper.py", "no python at all")
    distribution(tmp_path / "site", "sorter-zoo", "sorter_zoo_test", GOOD, monkeypatch)
    distribution(tmp_path / "site", "sorter-ape", "sorter_ape_test", GOOD, monkeypatch)
    installed = {point.name for point in importlib.metadata.entry_points(group="sorter")}

    listing = Plugins.load({}, folder, Files(), {}).listing()

    names = [line.name for line in listing]
    built_in = ["identity", "routing", "naming", "expectations", "grouping", "targets"]
    assert names == ["a", "b", *sorted(installed), *built_in]
    assert {"zoo", "ape"} <= installed
    assert [line.order for line in listing] == list(range(1, len(listing) + 1))
    ape = next(line for line in listing if line.name == "ape")
    assert (ape.version, ape.source, ape.hooks) == ("1.2", "distribution sorter-ape", ("sorter_identify",))
    assert listing[0].source == f"file {folder / 'a.py'}"
    assert listing[-1].source == "built-in"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("@hookimpl\ndef sorter_idetify(series): pass", "no hook sorter_idetify, did you mean sorter_identify?"),
        ("def sorter_idetify(series): pass", "no hook sorter_idetify, did you mean sorter_identify?"),
        ("@hookimpl(specname='sorter_rout')\ndef f(series): pass", "no hook sorter_rout, did you mean sorter_route?"),
        ("@hookimpl\ndef identify(series): pass", "no hook identify"),
        ("def sorter_route(series): pass", "sorter_route is not marked: write @hookimpl above it"),
        ("x = 1", "no hook in it"),
        ("@hookimpl\ndef sorter_route(serie): pass", "sorter_route has no argument serie, did you mean series?"),
        ("@hookimpl\ndef sorter_route(series, sets=None): pass", "sorter_route has no argument sets"),
        ("@hookimpl\ndef sorter_route(*args): pass", "*args is not possible; its arguments may be series, settings"),
        ("@hookimpl\ndef sorter_route(series, /): pass", "series is not possible"),
        ("@hookimpl(tryfirst=True)\ndef sorter_route(series): pass", "plain @hookimpl only"),
        ("@hookimpl(wrapper=True)\ndef sorter_route(series): yield", "plain @hookimpl only"),
        ("import no_such_module", "bad.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("\n\nraise SystemExit(3)", "bad.py:4: SystemExit: 3"),
        ("def (", "bad.py:2: SyntaxError: invalid syntax"),
        (
            "@hookimpl\ndef sorter_route(series): pass\n@hookimpl(specname='sorter_route')\ndef other(series): pass",
            "a second sorter_route",
        ),
    ],
)
def test_refused_with_a_sentence(folder: Path, code: str, sentence: str) -> None:
    path = put(folder, "bad.py", "from sorter import hookimpl\n" + code)
    said = faults(folder)
    assert sentence in said
    assert str(path) in said


def test_all_faults_at_once(folder: Path) -> None:
    put(folder, "a.py", "def sorter_route(series): pass")
    put(folder, "b.py", "x = 1")
    said = faults(folder, {"bulit": {}, "naming": {"fil": "x"}, "a": {}})
    assert "a.py:1: sorter_route is not marked" in said
    assert "b.py: no hook in it" in said
    assert "plugins.bulit: no plugin bulit is installed" in said
    assert "plugins.naming.fil: there is no such setting, did you mean file?" in said
    assert "plugins.a:" not in said  # it is installed, only broken


def test_one_name_twice(folder: Path) -> None:
    put(folder, "naming.py", GOOD)
    assert f"{folder / 'naming.py'}: the plugin name naming is taken by a built-in" in faults(folder)


def test_an_installed_distribution_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "site", "sorter-broken", "sorter_broken_test", "\n1 / 0\n", monkeypatch)
    said = faults(None)
    assert "distribution sorter-broken (entry point broken): ZeroDivisionError" in said
    assert "sorter_broken_test.py:2" in said


def test_an_entry_point_must_name_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "site", "sorter-thing", "sorter_thing_test:x", "", monkeypatch)
    (tmp_path / "site" / "sorter_thing_test.py").write_text("x = 3")
    assert 'it names a int; name a module: thing = "module"' in faults(None)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write(folder: Path, mode: int) -> None:
    path = put(folder, "good.py", GOOD)
    Plugins.load({}, folder, Files(), {})
    path.chmod(mode)
    assert f"{path}: others may write it" in faults(folder)


def test_a_folder_that_others_may_write(folder: Path) -> None:
    put(folder, "good.py", GOOD)
    folder.chmod(0o775)
    assert f"{folder}: others may write it" in faults(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_someone_else(folder: Path) -> None:
    path = put(folder, "good.py", GOOD)
    os.chown(path, 12345, 0)
    assert f"{path}: owned by user 12345" in faults(folder)


def test_what_is_no_regular_file(folder: Path) -> None:
    put(folder, "real.txt", GOOD)
    (folder / "link.py").symlink_to(folder / "real.txt")
    os.mkfifo(folder / "pipe.py", 0o600)
    put(folder, "has space.py", GOOD)
    said = faults(folder)
    assert "link.py: a symbolic link; put the file itself here" in said
    assert "pipe.py: not a regular file" in said
    assert "has space.py: a plugin's file name has only letters" in said


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert f"plugins folder {tmp_path / 'none'}: No such file" in faults(tmp_path / "none")


def test_a_failed_reload_leaves_the_old_plugins_working(folder: Path) -> None:
    path = put(folder, "good.py", GOOD)
    old = Plugins.load({}, folder, Files(), {})
    module = sys.modules["sorter_file_good"]
    path.write_text("raise RuntimeError")
    faults(folder)
    assert sys.modules["sorter_file_good"] is module
    assert old.listing()[0].name == "good"


def test_import_sorter_costs_no_pydantic() -> None:
    code = "import sorter, sys; assert 'pydantic' not in sys.modules; sorter.Table; assert 'pydantic' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
