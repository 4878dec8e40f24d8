"""Copies that a person wants a target to have, of a sorter that really runs: owed over an outage and a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sorter.builtin.path_target import mark
from sorter.cli.main import sorter as cli
from sorter.durable import Files
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.peers

CONFIG = """
[labs.memory]
match = ["Modality=MR"]
on_demand = ["archive"]

[targets.archive]
kind = "path"
root = "archive"
"""


def test_they_are_owed_over_an_outage_and_a_kill_and_taken_back(tmp_path: Path) -> None:
    files = localizer(Plan(seed=3, size=8, patient_id="MEM01", patient_name="Roe^Max")).files
    root, archive = tmp_path / "root", tmp_path / "root" / "archive"
    archive.mkdir(parents=True)
    (tmp_path / "drop").mkdir()
    for number, content in enumerate(files):
        (tmp_path / "drop" / str(number)).write_bytes(content)

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli, [*words, "-c", str(root / "sorter.toml"), "--root", str(root)])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    with RunningSorter(root, config=CONFIG) as sorter:
        (tmp_path / "drop").rename(sorter.spool.incoming / "drop")
        sorter.wait_delivered(len(files))
        run("rename", "MEM01", "target:archive/pilot", "--as", "P07")
        wait_until(lambda: "are not at archive yet" in run("why", "MEM01"), 60, "the outage to be told")
        sorter.kill()
        mark(archive, Files())
        sorter.start()
        run("retry")
        wait_until(lambda: len(list(archive.rglob("P07/*/*/*.dcm"))) == len(files), 60, "the copies")
        wait_until(lambda: not list(sorter.spool.exports.iterdir()), 60, "nothing to be owed")
        assert sorted(each.read_bytes() for each in archive.rglob("*.dcm")) == sorted(files)
        plan = json.loads(run("withdraw", "MEM01", "--json"))
        run("withdraw", "MEM01", "--confirm", plan["code"])
        wait_until(lambda: not list(archive.rglob("*.dcm")), 60, "the copies to be taken back")
