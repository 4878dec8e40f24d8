"""Fixtures and rules of every test: those in tests/ and those of each distribution in plugins/.

It stands at the top because pytest asks a conftest.py only about tests below it. With SORTER_STRICT=1 a test that needs
DCMTK or the sample images fails where it would be skipped, so that a green run means that they ran.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from sorter.durable import Files
from sorter.testing import ports

ROOT = Path(__file__).resolve().parent
NEEDS = ("dcmtk", "sample")
"""Fixtures whose name is also the marker of what they need."""

hypothesis.settings.register_profile(
    "ci", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_ran: Counter[str] = Counter()
_not_run: Counter[str] = Counter()


def _strict() -> bool:
    return os.environ.get("SORTER_STRICT", "") not in ("", "0")


# --- rules ----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for a fixture that needs something carries its marker, also where nobody wrote it.

    What takes long is begun first: at the end it would keep one processor busy while the others have nothing to do.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        for need in NEEDS:
            asked = need in getattr(item, "fixturenames", ())
            if asked and item.get_closest_marker(need) is None:
                item.add_marker(need)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needed = [need for need in NEEDS if item.get_closest_marker(need) is not None]
    if _strict() and needed and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        why = f"needs {' and '.join(needed)} and was skipped, which SORTER_STRICT forbids"
        report.longrepr = f"{item.nodeid} {why}: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself as a whole has no markers to ask about: in strict mode it fails too."""
    report = yield
    if _strict() and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped as a whole, which SORTER_STRICT forbids: {report.longrepr}"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.skipped:
        for need in NEEDS:
            if need in report.keywords:
                (_not_run if report.skipped else _ran)[need] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    said = [f"{need}: {_ran[need]} ran, {_not_run[need]} skipped" for need in NEEDS if _ran[need] or _not_run[need]]
    if said:
        terminalreporter.write_line("tests that need " + "; ".join(said))
    config, folder = terminalreporter.config, os.environ.get("SORTER_RESULTS")
    tier, whole = config.option.markexpr, config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if folder and tier in TIERS and whole and not config.option.keyword:
        Path(folder, f"tier-{tier}.md").write_text("\n".join(_page(tier, terminalreporter.stats)) + "\n")


TIERS = ("peers", "soak")
"""A whole run of one of these writes a page of itself into the folder SORTER_RESULTS."""


def _page(tier: str, stats: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    counts: dict[str, Counter[str]] = {}
    seconds = Counter[str]()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in stats.get(outcome, ()):
            counts.setdefault(report.nodeid.partition("::")[0], Counter())[outcome] += 1
    for report in (each for reports in stats.values() for each in reports if hasattr(each, "duration")):
        seconds[report.nodeid.partition("::")[0]] += report.duration
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout  # noqa: S607
    yield f"# The tier *{tier}*, whole"
    yield ""
    yield f"{datetime.date.today()}, commit {commit.strip() or 'unknown'}, {os.cpu_count()} processors."
    yield f"Made by `python3 packaging/run.py {tier}` as {'root' if os.geteuid() == 0 else 'no root'}."
    yield ""
    yield "| file | passed | failed | skipped | s |"
    yield "|---|--:|--:|--:|--:|"
    for file, count in sorted(counts.items()):
        failed = count["failed"] + count["error"]
        yield f"| {file} | {count['passed']} | {failed} | {count['skipped']} | {seconds[file]:.0f} |"
    for outcome in ("failed", "error", "skipped"):
        yield from (f"\n{outcome}: `{report.nodeid}`" for report in stats.get(outcome, ()))


# --- fixtures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the sample images: data/, reference/, manifest.json, expected.json."""
    place = Path(os.environ.get("SORTER_SAMPLE") or ROOT.parent / "shared" / "sample")
    if not (place / "manifest.json").is_file():
        pytest.skip("no sample images: set SORTER_SAMPLE to their folder")
    return place


@pytest.fixture(scope="session")
def sample_manifest(sample: Path) -> dict[str, Any]:
    """manifest.json of the sample: one record per file and per set."""
    found: dict[str, Any] = json.loads((sample / "manifest.json").read_text())
    return found


@pytest.fixture(scope="session")
def sample_expected(sample: Path) -> dict[str, Any]:
    """expected.json of the sample: the SHA-256 of the image data of every NIfTI that dcm2niix makes of it."""
    found: dict[str, Any] = json.loads((sample / "expected.json").read_text())
    return found


@dataclasses.dataclass(frozen=True)
class Dcmtk:
    """DCMTK's command-line tools, all in one folder (pynetdicom has others of the same names)."""

    folder: Path

    def tool(self, name: str) -> str:
        return str(self.folder / name)

    def command(self, name: str, *arguments: object) -> list[str]:
        return [self.tool(name), *(str(argument) for argument in arguments)]

    def environment(self) -> dict[str, str]:
        """Without TCP_NODELAY its tools wait for a delayed acknowledgement with every image."""
        return {**os.environ, "TCP_NODELAY": "1"}

    def run(self, name: str, *arguments: object, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        """The ended tool with its output as text; its return code is the caller's to judge. `timeout` in seconds."""
        command = self.command(name, *arguments)
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, errors="replace", timeout=timeout
        )


@pytest.fixture(scope="session")
def dcmtk() -> Dcmtk:
    """DCMTK's tools: `dcmtk.run("storescu", "-aec", "SORTER", "127.0.0.1", port, file)`."""
    anchor = shutil.which("dcmsend")  # pynetdicom brings a storescu and an echoscu of its own, but no dcmsend
    folder = Path(anchor).resolve().parent if anchor else None
    if folder is None or not all((folder / name).exists() for name in ("dcmsend", "storescu", "echoscu")):
        pytest.skip("DCMTK is missing: install the package dcmtk")
    return Dcmtk(folder)


@dataclasses.dataclass(frozen=True)
class Account:
    """An account of this machine, and the command that runs another as this account."""

    uid: int
    prefix: tuple[str, ...]

    @property
    def gid(self) -> int:
        """Of its own group."""
        return pwd.getpwuid(self.uid).pw_gid


# Where Python lies in a folder that is closed to others (pyenv in /root), its users see that folder with Python alone.
_OPENED = """
set -e
exec 3< "$2"
mount -t tmpfs -o mode=755 none "$1"
mkdir -p "$2"
mount -c --bind /proc/self/fd/3 "$2"
shift 2
exec "$@" 3<&-
"""


def opened() -> tuple[str, ...]:
    """A command that runs another as root where that may become any account, and still find this Python."""
    closed = [each for each in Path(sys.base_prefix).parents if not each.stat().st_mode & 0o001]
    return ("unshare", "--mount", "sh", "-c", _OPENED, "sh", str(closed[-1]), sys.base_prefix) if closed else ()


def _as(uid: int) -> tuple[str, ...]:
    own_group = pwd.getpwuid(uid).pw_gid
    return (*opened(), "setpriv", "--reuid", f"{uid}", "--regid", f"{own_group}", "--init-groups")


@functools.cache
def _another_may_run_python() -> bool:
    """Asked once, as nobody: what holds for one account that is made here holds for the next."""
    done = subprocess.run([*_as(65534), sys.executable, "-c", "import sorter"], cwd="/")
    return done.returncode == 0


@contextlib.contextmanager
def made_account(name: str, *groups: str) -> Iterator[Account]:
    """An account that exists for a while, in these groups of Unix besides its own."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "userdel", "setpriv", "unshare"))):
        pytest.skip("to make an account needs root, useradd and setpriv")
    more = ["--groups", ",".join(groups)] if groups else []
    subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", *more, name], check=True)  # noqa: S607
    try:
        made = Account(pwd.getpwnam(name).pw_uid, _as(pwd.getpwnam(name).pw_uid))
        if not _another_may_run_python():
            pytest.skip("an account that is made for a test cannot run this Python")
        yield made
    finally:
        subprocess.run(["userdel", name], check=True)  # noqa: S607


@pytest.fixture
def account() -> Iterator[Account]:
    """One that is made for the test: root reads and removes whatever it likes."""
    with made_account(f"sorter-{os.getpid()}") as made:
        yield made


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


@pytest.fixture
def files() -> Files:
    return Files()
