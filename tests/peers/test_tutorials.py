"""The page of tutorials, followed word by word, in an empty folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.durable import Files
from sorter.spool import Spool
from sorter.summaries import summaries
from sorter.testing.ports import free_port
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.peers

PAGE = Path(__file__).parents[2] / "docs" / "tutorials.md"
STEP = re.compile(r"<!-- (\w+)(?:: (\S+))? -->\n(?:```\w+\n(.*?)```)?", re.DOTALL)


class Reader:
    """Whoever follows the page: writes what it says, types what it says, and looks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.serving = folder, str(free_port()), list[subprocess.Popen[str]]()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def follow(self, what: str, where: str, text: str) -> None:
        match what:
            case "file":
                (self.folder / where).write_text(text)
            case "run":
                done = subprocess.run(["sh", "-ec", self._here(text)], cwd=self.folder, env=self.environment,
                                      capture_output=True, text=True, timeout=120)  # fmt: skip
                assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            case "serve":
                self.stop()
                command = self._here(text).split()
                self.serving = [subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True,
                                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)]  # fmt: skip
                assert self.serving[0].stdout is not None
                assert self.serving[0].stdout.readline().startswith("ready")
            case "wait":
                wait_until(lambda: list(self.folder.glob(where)), 90, where)
            case "held":
                spool = Spool(self.folder / "spool", Files())
                wait_until(lambda: [each for each in summaries(spool) if each.state == "held"
                                    and "not in the table of codes" in each.why], 60)  # fmt: skip
            case _:
                raise AssertionError(f"the page says {what!r}, which is no step")

    def _here(self, text: str) -> str:
        return text.replace("11112", self.port)

    def stop(self) -> None:
        for each in self.serving:
            each.send_signal(signal.SIGINT)
            each.wait(60)
            assert each.stdout is not None
            each.stdout.close()
        self.serving = []


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.stop()


@pytest.mark.timeout(300)
def test_the_tutorials_work_word_by_word(reader: Reader) -> None:
    steps = STEP.findall(PAGE.read_text())
    assert [what for what, _, _ in steps].count("wait") == 3
    for step in steps:
        reader.follow(*step)
    page = next(reader.folder.glob("labs/memory/S03/*/page/page.tsv")).read_text()
    assert page.count(" images\n") > 3
    assert len(page.splitlines()) == len(list(reader.folder.glob("labs/memory/2026-03-14/S03/*")))
