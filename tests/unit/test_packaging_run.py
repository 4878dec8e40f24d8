"""packaging/run.py: the one file that must work before anything is installed."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "packaging" / "run.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, for a checkout in a folder of the test."""
    spec = importlib.util.spec_from_file_location("packaging_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    plugin = tmp_path / "plugins" / "sorter-dcm2niix"
    plugin.mkdir(parents=True)
    (plugin / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "plugins" / "README.md").write_text("not a distribution")
    monkeypatch.setattr(module, "ROOT", str(tmp_path))
    return module


def make_sorter(folder: Path) -> Path:
    """An environment whose sorter command says what it was given."""
    command = folder / "venv" / "bin" / "sorter"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    return command.parent.parent


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ([], ["serve", "--root", "./sorter-data"]),
        (["--quiet", "2"], ["serve", "--root", "./sorter-data", "--quiet", "2"]),
        (["serve", "--host", "0.0.0.0"], ["serve", "--root", "./sorter-data", "--host", "0.0.0.0"]),
        (["serve", "--root=/data"], ["serve", "--root=/data"]),
        (["serve", "-c", "sorter.toml"], ["serve", "-c", "sorter.toml"]),
        (["status", "--json"], ["status", "--json"]),
    ],
)
def test_becomes_the_sorter_command(tmp_path: Path, given: list[str], becomes: list[str]) -> None:
    venv = make_sorter(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(RUN.parent)!r}); import run; run.sorter({str(venv)!r}, {given!r})"
    said = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert said.stdout.splitlines() == becomes


def test_installs_sorter_and_each_plugin_that_is_a_distribution(run: ModuleType, tmp_path: Path) -> None:
    assert run.distributions() == [str(tmp_path), str(tmp_path / "plugins" / "sorter-dcm2niix")]


@pytest.mark.parametrize("changed", ["pyproject.toml", "plugins/sorter-dcm2niix/pyproject.toml"])
def test_a_changed_pyproject_is_noticed(run: ModuleType, tmp_path: Path, changed: str) -> None:
    before = run.fingerprint()
    (tmp_path / "sorter.py").write_text("code")
    assert run.fingerprint() == before
    (tmp_path / changed).write_text("[project]\nname = 'x'\n")
    assert run.fingerprint() != before


def test_an_environment_is_used_only_with_pip_and_by_the_checkout_it_was_made_for(
    run: ModuleType, tmp_path: Path
) -> None:
    assert not run.usable(str(tmp_path / "nothing"))
    venv = str(tmp_path / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    assert not run.usable(venv)  # no pip
    (next(Path(venv, "lib").iterdir()) / "site-packages" / "pip.py").touch()
    assert run.usable(venv)
    run.write_stamp(venv, True)
    assert run.read_stamp(venv)["test"] is True
    assert run.usable(venv)
    Path(venv, "sorter-stamp.json").write_text(json.dumps({"root": "/elsewhere"}))
    assert not run.usable(venv)


PAGE = b"""
<a href="/files/pip-9.0.1-py3-none-any.whl#sha256=%s">old</a>
<a href="/files/pip-24.10-py3-none-any.whl#sha256=%s" data-requires-python="&gt;=3.8">newest</a>
<a href="/files/pip-24.9.1-py3-none-any.whl#sha256=%s">older</a>
<a href="/files/pip-25.0b1-py3-none-any.whl#sha256=%s">not final</a>
<a href="/files/pip-26.0.tar.gz">not a wheel</a>
""" % (b"0" * 64, b"1" * 64, b"2" * 64, b"3" * 64)


class Index(http.server.BaseHTTPRequestHandler):
    seen: list[str | None]

    def do_GET(self) -> None:
        self.server.seen.append(self.headers["Authorization"])  # type: ignore[attr-defined]
        found = {"/simple/pip/": PAGE, "/files/pip-24.10-py3-none-any.whl": b"tampered"}.get(self.path)
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Index) as server:
        server.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_finds_the_newest_final_pip_on_an_index(run: ModuleType, index: http.server.HTTPServer) -> None:
    address = f"127.0.0.1:{index.server_port}"
    url, digest = run.newest_pip(f"http://me:p%40ss@{address}/simple")
    assert url == f"http://me:p%40ss@{address}/files/pip-24.10-py3-none-any.whl"
    assert digest == "1" * 64
    assert index.seen == ["Basic bWU6cEBzcw=="]  # type: ignore[attr-defined]


def test_refuses_a_pip_that_is_not_the_announced_one(
    run: ModuleType, index: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{index.server_port}/simple/")
    with pytest.raises(SystemExit, match="is not the one it announced") as stopped:
        run.bootstrap_pip(str(tmp_path / "venv"))
    assert "secret" not in str(stopped.value)


def test_says_so_when_there_is_no_index(
    run: ModuleType, free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port}/simple")
    with pytest.raises(SystemExit, match=r"pip cannot be fetched from .*Install python3-venv"):
        run.bootstrap_pip(str(tmp_path / "venv"))


def test_an_older_python_gets_a_sentence(tmp_path: Path) -> None:
    """The check stands before anything that an older Python would stumble over."""
    text = RUN.read_text().replace("LEAST = (3, 11)", "LEAST = (9, 9)")
    (tmp_path / "run.py").write_text(text)
    ended = subprocess.run(
        [sys.executable, tmp_path / "run.py"], capture_output=True, text=True, timeout=30, env=os.environ
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("sorter needs Python 9.9 or newer; ")
