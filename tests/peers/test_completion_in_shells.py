"""Subjects and series are completed where people type: in bash, zsh and fish, real ones, on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer

pytestmark = pytest.mark.peers

EVIL = "$(touch EVIL)"
SUBJECTS = ("MEM01", "VIS 02", "*", EVIL)


@pytest.fixture(scope="module")
def sorter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSorter]:
    place = tmp_path_factory.mktemp("shells")
    with RunningSorter(place / "root") as running:
        for number, subject in enumerate(SUBJECTS, 1):
            files = localizer(Plan(seed=number, size=8, patient_id=subject, patient_name="Roe^Max")).files
            (place / str(number)).mkdir()
            for at, content in enumerate(files):
                (place / str(number) / str(at)).write_bytes(content)
            (place / str(number)).rename(running.spool.incoming / str(number))
        running.wait_delivered(3 * len(SUBJECTS))
        yield running


def surroundings(sorter: RunningSorter, home: Path) -> Mapping[str, str]:
    """As after `export SORTER_SOCKET=…`; the spool's owner is answered there as everybody is."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    socket = str(sorter.spool.root / "run" / "sock")
    return {"PATH": path, "HOME": str(home), "TERM": "dumb", "SORTER_SOCKET": socket, "LANG": "C.UTF-8"}


class Typing:
    """A shell on a terminal."""

    def __init__(self, command: list[str], environment: Mapping[str, str], cwd: Path) -> None:
        ours, theirs = pty.openpty()
        self._fd, self.said = ours, ""
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=cwd, start_new_session=True
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait(self, text: str, seconds: float = 60) -> None:
        """Until the shell has shown it, after what was waited for before."""
        until = time.monotonic() + seconds
        while text not in self.said:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.said!r}"
            self.said += os.read(self._fd, 4096).decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def close(self) -> None:
        os.close(self._fd)
        self.process.kill()
        self.process.wait()


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(_SORTER_COMPLETE=bash_source sorter)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u; eval "$(_SORTER_COMPLETE=zsh_source sorter)"'),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_typed_is_completed(sorter: RunningSorter, tmp_path: Path, shell: str) -> None:
    """`sorter rename ME⇥ --series 1⇥ --list`: a line that then runs, and lists the series."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command, setting_up = SHELLS[shell]
    with contextlib.closing(Typing(command, surroundings(sorter, tmp_path), tmp_path)) as typing:
        typing.type(f"{setting_up}; echo re''ady\n")
        typing.wait("ready\r\n")
        typing.type("sorter rename ME\t")
        typing.wait("MEM01")
        typing.type(" --ser\t")
        typing.wait("--series")
        typing.type(" 1\t --list --json; echo en''ded $?\n")
        typing.wait('"subject": "MEM01"')
        typing.wait("ended 0")
    assert not [each for each in tmp_path.iterdir() if "EVIL" in each.name]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_offered(sorter: RunningSorter, tmp_path: Path, shell: str) -> None:
    """All that the shell may type for a person, and nothing that it would run or take for several words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    (here / "a file").touch()
    subjects, series = (offered(shell, line, surroundings(sorter, home), here)
                        for line in ("sorter rename ", "sorter rename MEM01 --series "))  # fmt: skip
    assert (subjects, series) == (["MEM01"], ["1"])
    assert [each.name for each in here.iterdir()] == ["a file"]


def offered(shell: str, line: str, environment: Mapping[str, str], cwd: Path) -> list[str]:
    """What the shell's own machinery makes of it."""
    words = line.split(" ")
    script = {
        "bash": 'eval "$(_SORTER_COMPLETE=bash_source sorter)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_sorter_completion sorter; printf "%s\\n" "${COMPREPLY[@]}"',
        "zsh": "compdef() { :; }; compadd() { printf '%s\\n' ${(P)@[-1]}; }; _describe() { "
        "printf '%s\\n' ${${(P)3}%%:*}; }; "
        'eval "$(_SORTER_COMPLETE=zsh_source sorter)"; words=("$@"); CURRENT=$#; _sorter_completion',
        "fish": '_SORTER_COMPLETE=fish_source sorter | source; complete -C "$line" | string split -f 1 \\t',
    }[shell]
    command = {"bash": ["bash", "-c", script, "bash", *words], "zsh": ["zsh", "-f", "-c", script, "zsh", *words],
               "fish": ["fish", "--no-config", "-c", script]}[shell]  # fmt: skip
    done = subprocess.run(command, env={**environment, "line": line}, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]
