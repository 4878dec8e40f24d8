"""The rules of the test suite itself: strict mode must turn a silent skip into a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SUITE = """
import pytest

def test_needs_images(sample):
    assert sample

@pytest.mark.dcmtk
def test_needs_tools():
    pytest.skip("the tool is away")

def test_needs_nothing():
    pytest.skip("just so")
"""


def run_suite(folder: Path, text: str, strict: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    environment = {**os.environ, "SORTER_SAMPLE": str(folder / "nowhere"), "SORTER_STRICT": strict}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_skips_are_skips_where_nobody_is_strict(tmp_path: Path) -> None:
    ended = run_suite(tmp_path, SUITE, "0")
    assert ended.returncode == 0, ended.stdout
    assert "tests that need dcmtk: 0 ran, 1 skipped; sample: 0 ran, 1 skipped" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("3 skipped")


def test_strict_mode_fails_what_needs_something_and_did_not_run(tmp_path: Path) -> None:
    ended = run_suite(tmp_path, SUITE, "1", "-n", "1")
    assert ended.returncode == 1
    assert "test_needs_tools needs dcmtk and was skipped, which SORTER_STRICT forbids" in ended.stdout
    assert "no sample images: set SORTER_SAMPLE" in ended.stdout
    last = ended.stdout.splitlines()[-1]
    assert "1 skipped" in last
    assert "1 failed" in last
    assert "1 error" in last  # the skip of a fixture


def test_strict_mode_fails_a_module_that_skips_itself(tmp_path: Path) -> None:
    text = 'import pytest\npytest.skip("not today", allow_module_level=True)\n'
    assert run_suite(tmp_path, text, "0").returncode == 5
    ended = run_suite(tmp_path, text, "1")
    assert ended.returncode == 2
    assert "was skipped as a whole" in ended.stdout
