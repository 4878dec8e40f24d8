"""What authors of plugins are given: a plugin that `sorter plugins new` writes, what tests it, and what tries it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from sorter.cli.main import sorter as cli
from sorter.errors import ConfigError
from sorter.model import Hold, Verdict
from sorter.testing.plugins import check_plugin, load_plugin, made_up, series_of, typical
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer, rest_bold


def put(path: Path, body: str) -> Path:
    path.write_text("from sorter import *\n" + textwrap.dedent(body))
    return path


# --- series to ask about --------------------------------------------------------------------------------------------


def test_a_series_is_made_of_files_or_of_attributes() -> None:
    made = series_of(rest_bold(Plan(size=8, slices=3, volumes=2)).files)
    assert (made.count, made.SeriesDescription, made.Modality) == (6, "rest_bold", "MR")
    assert made.values("InstanceNumber") == (1, 2, 3, 4, 5, 6)
    assert made.start
    assert made_up(PatientID="P7", count=3).values("PatientID") == ("P7",)
    assert made_up().PatientID is None
    assert set(typical()) >= {"task_bold", "T2_FLAIR", "T2star_multiecho", "gre_field_mapping", "T1_MPRAGE"}
    with pytest.raises(ValueError, match="at least one image"):
        series_of([])


def test_an_author_asks_one_plugin_by_itself(tmp_path: Path) -> None:
    code = """
        @hookimpl
        def sorter_route(series, settings): return Hold(settings["why"]) if series.count < 3 else None
    """
    plugin = load_plugin(put(tmp_path / "pilots.py", code), why="short")
    assert plugin.route(made_up(count=2)).route == Hold("short")
    assert plugin.route(made_up(count=3)).route is None
    assert [each.name for each in plugin.listing()] == ["pilots"]
    assert load_plugin("dcm2niix", min_verdict="quiet").products().answers[0].value.min_verdict is Verdict.QUIET
    with pytest.raises(ConfigError, match=r"no plugin nothere is installed .installed: .*dcm2niix"):
        load_plugin("nothere")
    with pytest.raises(ConfigError, match=r"broken\.py:2: SyntaxError"):
        load_plugin(put(tmp_path / "broken.py", "def"))
    with pytest.raises(ConfigError, match=r"plugins\.dcm2niix.level"):
        load_plugin("dcm2niix", level=70)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "def sorter_identify(series): return Identity(subject=series.PatientID.lower())",
            "sorter_identify (a series without any attribute): AttributeError: 'NoneType' object has no attribute",
        ),
        (
            "def sorter_identify(series): return Identity(subject=series.PatientID)",
            "sorter_identify (a series with a number in every attribute): Identity.subject: int is not allowed here",
        ),
        (
            "def sorter_route(series): return Hold('x') if series.EchoTime > 3 else None",
            "sorter_route (a series without any attribute): TypeError",
        ),
        ("def sorter_expect(series): return Expectation(count=series.NumberOfFrames - 1)", "(the series localizer)"),
        (
            "def sorter_name(): return Name('{nothing', 'x')",
            'of its Name, pattern "{nothing", position 1: this { is never',
        ),
        ("def sorter_products(): return [Product('x', 'not.there:make')]", "product x names not.there:make, which"),
        ("def sorter_products(): return [Product('x', 'mine:mkae')]\ndef make(job): pass", "product x names "),
        ("def sorter_targets(): return [TargetKind('x', 'json:Nothing')]", "kind of target x names json:Nothing"),
        ("def sorter_group(instance): return instance.header['EchoTime']", "sorter_group (a series without any"),
    ],
)
def test_the_check_finds_what_a_scanner_would(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_plugin(put(tmp_path / "mine.py", f"@hookimpl\n{body}\n"))
    assert said in str(caught.value)


def test_the_check_finds_what_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sorter.testing.plugins.SLOW", 0.0)
    with pytest.raises(AssertionError, match="sorter waits for the answer: what takes long is a product"):
        check_plugin(put(tmp_path / "mine.py", "@hookimpl\ndef sorter_route(series): return None\n"))


def test_the_check_is_content_with_what_stands() -> None:
    check_plugin("dcm2niix")


# --- a new one ------------------------------------------------------------------------------------------------------


def typed(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def passes(folder: Path, path: str = "") -> None:
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert "3 passed" in run.stdout, run.stdout + run.stderr


def test_a_new_single_file_passes_its_own_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = typed("plugins", "new", "my-lab", "--file")
    assert said.splitlines()[:2] == ["wrote my-lab.py", "wrote test_my_lab.py"]
    passes(tmp_path)
    assert len([line for line in Path("my-lab.py").read_text().splitlines() if line.strip()]) <= 10
    again = CliRunner().invoke(cli, ["plugins", "new", "my-lab", "--file"])
    assert "my-lab.py is there already; nothing of it was changed" in str(again.exception)
    Path("my-lab.py").unlink()
    again = CliRunner().invoke(cli, ["plugins", "new", "my-lab", "--file"])
    assert "test_my_lab.py is there already" in str(again.exception)
    assert not Path("my-lab.py").exists()
    for wrong in ("My", "a_b", "../x", "a--b", "", "routing"):
        assert CliRunner().invoke(cli, ["plugins", "new", wrong]).exit_code == 2


def test_a_new_distribution_passes_its_own_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote sorter-my-lab/pyproject.toml" in typed("plugins", "new", "my-lab")
    # as installed: its folder on the path, with the entry point that its pyproject.toml names
    home = tmp_path / "sorter-my-lab"
    about = home / "sorter_my_lab-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sorter-my-lab\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[sorter]\nmy-lab = sorter_my_lab\n")
    assert 'my-lab = "sorter_my_lab"' in (home / "pyproject.toml").read_text()
    passes(home / "tests", str(home))


# --- trying one on a series that is there ---------------------------------------------------------------------------


def test_every_plugin_says_what_it_thinks_of_a_series(tmp_path: Path) -> None:
    root = tmp_path / "site"
    folder = root / "plugins.d"
    folder.mkdir(parents=True, mode=0o755)
    good = "@hookimpl\ndef sorter_identify(series):\n    print('seen')\n    return Identity(session='first')\n"
    put(folder / "good.py", good).chmod(0o644)
    put(folder / "bad.py", "@hookimpl\ndef sorter_route(series):\n    return series.PatientID['x']\n").chmod(0o644)
    config = f'[sorter]\nplugins = "{folder}"\n[plugins.good]\npassword = "hunter2"\nto = "me"\n'
    with RunningSorter(root, quiet=0.5, config=config) as sorter:
        sorter.send(localizer(Plan(seed=3, size=8)))
        sorter.wait_event("held")
        [series] = sorter.series()
    where = ["plugins", "-c", str(root / "sorter.toml"), "--root", str(root)]

    listed = typed(*where)
    assert "good" in listed
    assert "hunter2" not in listed
    shown = typed(*where, "try", series.key[:8], "--trace")
    for line in (
        "sorter_identify", "seen", "good: Identity {'session': 'first'}", "sorter_route",
        "bad: FAILED: TypeError", 'return series.PatientID[', "=> route: ", "sorter_name (dicom at unassigned)",
    ):  # fmt: skip
        assert line in shown, shown
    missing = CliRunner().invoke(cli, [*where, "try", "nobody"])
    assert "no series is called nobody" in str(missing.exception)
