"""Programs as products: real ones through the local engine, and what a container would be started with."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sorter_command.run import arguments

from sorter.durable import Files
from sorter.engine.local import LocalEngine
from sorter.engine.work import Outcome, Work
from sorter.errors import ConfigError
from sorter.model import Job
from sorter.testing.plugins import check_plugin, load_plugin
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

README = Path(__file__).parents[1] / "README.md"


def made(**products: Mapping[str, Any]) -> dict[str, Any]:
    return load_plugin("command", products=products).settings("command")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    (tmp_path / "scratch").mkdir()
    found = LocalEngine(1, tmp_path / "scratch", Files())
    yield found
    found.stop()


def run(engine: LocalEngine, tmp_path: Path, **given: Any) -> Outcome:
    """What came of one product, made of three images."""
    plugin = load_plugin("command", products={"mine": given})
    [product] = [answer.value[0] for answer in plugin.ask("sorter_products").answers]
    images = []
    for number, data in enumerate(localizer(Plan(size=8)).files, 1):
        (tmp_path / f"{number}.dcm").write_bytes(data)
        images.append((tmp_path / f"{number}.dcm", f"{number:06d}.dcm"))
    inputs = dict.fromkeys(product.needs, images)
    engine.submit(Work("job", product, inputs, plugin.settings("command")))
    [outcome] = wait_until(engine.finished, 60, "the program to end")
    return outcome


def test_the_readme_is_a_configuration() -> None:
    [text] = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    plugin = load_plugin("command", **tomllib.loads(text)["plugins"]["command"])
    products = {answer.value.name: answer.value for answer in plugin.products().answers}
    assert products["preview"].when == {"Modality": ("MR",)}
    assert (products["brain"].needs, products["brain"].cpus) == (("nifti",), 2)
    check_plugin("command", **tomllib.loads(text)["plugins"]["command"])
    assert load_plugin("command").products() == ((), ())


def test_a_program_makes_what_it_writes(engine: LocalEngine, tmp_path: Path) -> None:
    count = (
        "import os, sys; open(sys.argv[2] + '/out.txt', 'w').write(str(len(os.listdir(sys.argv[1]))) + os.environ['A'])"
    )
    outcome = run(engine, tmp_path, run=["python3", "-c", count, "{in}", "{out}"], env={"A": "b"})
    assert (outcome.state, [each.name for each in outcome.files]) == ("made", ["out.txt"]), outcome
    engine.adopt("job", tmp_path / "product")
    assert (tmp_path / "product" / "out.txt").read_text() == "3b"


@pytest.mark.parametrize(
    ("given", "state", "why"),
    [
        ({"run": ["sh", "-c", "exit 2"], "nothing": [2]}, "nothing", ""),
        ({"run": ["sh", "-c", "echo it is broken >&2; exit 3"]}, "failed", "sh ended with exit code 3: it is broken"),
        ({"run": ["false"]}, "failed", "false ended with exit code 1: it said nothing"),
        ({"run": ["/not/there"]}, "failed", "there is no program /not/there here"),
        ({"run": ["true"]}, "failed", "it made no file"),
        ({"run": ["echo", "$(id)", "; id"], "nothing": [0]}, "failed", "it made no file"),
    ],
)
def test_how_a_program_ends(engine: LocalEngine, tmp_path: Path, given: dict[str, Any], state: str, why: str) -> None:
    outcome = run(engine, tmp_path, **given)
    assert outcome.state == state
    assert why in outcome.why
    if given["run"][0] == "echo":
        assert "$(id) ; id" in outcome.log, "there is no shell"


def test_a_container_gets_its_folders_and_no_other(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apptainer's place is taken by a program that writes down its arguments: Apptainer itself does not run here."""
    record = tmp_path / "bin" / "apptainer"
    record.parent.mkdir()
    record.write_text(
        "#!/usr/bin/env python3\nimport json, sys\nopen('out/out.json', 'w').write(json.dumps(sys.argv))\n"
    )
    record.chmod(0o755)
    monkeypatch.setenv("PATH", f"{record.parent}:{os.environ['PATH']}")
    outcome = run(
        engine, tmp_path, run=["tool", "{in:dicom}", "--to={out}"], container="/opt/tool.sif", bind=["/opt/atlas"],
        env={"FSLDIR": "/opt/fsl"},
    )  # fmt: skip
    assert outcome.state == "made", outcome
    engine.adopt("job", tmp_path / "product")
    said = json.loads((tmp_path / "product" / "out.json").read_text())
    assert said[1:] == [
        "exec", "--containall", "--no-home", "--pwd", "/out", "--bind", "in/dicom:/in/dicom:ro", "--bind", "out:/out",
        "--bind", "/opt/atlas:/opt/atlas:ro", "--env", "FSLDIR=/opt/fsl", "/opt/tool.sif",
        "tool", "/in/dicom", "--to=/out",
    ]  # fmt: skip


def test_several_needs_have_a_folder_each() -> None:
    settings = made(mine={"run": ["x", "{in}", "{in:nifti}", "{cpus}"], "needs": ["dicom", "nifti"]})
    job = Job("mine", {"dicom": "in/dicom", "nifti": "in/nifti"}, "out", settings, {}, 3)
    assert arguments(settings["products"]["mine"], job) == ["x", "in/dicom", "in/nifti", "3"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"run": []}, "run"),
        ({"run": ["x", "{PatientID}"]}, "there is no {PatientID}; there are {in}"),
        ({"run": ["x", "{in:nifti}"]}, "{in:nifti} is not among its needs: dicom"),
        ({"run": ["x"], "needs": []}, "made of something"),
        ({"run": ["x"], "container": "tool.sif"}, "must be a whole path"),
        ({"run": ["x"], "container": "/a:b"}, "without colon"),
        ({"run": ["x"], "bind": ["/opt"]}, "bind is for a container"),
        ({"run": ["x"], "env": {"A=B": "c"}}, "cannot be the name of a variable"),
        ({"run": ["x"], "shell": True}, "there is no such setting"),
        ({"run": ["x\0"]}, "NUL"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        made(mine=given)


def test_a_name_that_no_product_can_have() -> None:
    with pytest.raises(ConfigError, match="cannot be named 'dicom'"):
        made(dicom={"run": ["x"]})
