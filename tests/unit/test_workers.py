"""Workers of another account: who comes to the socket, who is let in, and what is said where nobody does.

Here the other account is our own, taken for another; tests/peers/test_service_user.py has real ones.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sorter.builtin.path_target import mark
from sorter.deliver import workers
from sorter.deliver.lane import Lane, Patience
from sorter.deliver.target import Checked, Done, Later, Put, Wanted
from sorter.deliver.workers import Awaited, Started, may_start, workers_of
from sorter.durable import Files
from sorter.errors import Away
from sorter.testing.targets import IMAGES, Store, job
from sorter.testing.waiting import wait_until

ME = pwd.getpwuid(os.geteuid()).pw_name
TEMPLATE = Path(__file__).parents[2] / "packaging/systemd/sorter-worker@.service"
PATH = "sorter.builtin.path_target:PathTarget"
SOON = 30.0


class Site:
    """A lane whose workers are to come to a socket below `base`, and keepers that are started by hand."""

    def __init__(self, base: Path, account: str) -> None:
        self.sockets, self.root, self.account = base / "workers", base / "root", account
        self.root.mkdir()
        mark(self.root, Files())
        (base / "store").mkdir()
        self.store = Store(base / "store", IMAGES)
        self.answers: queue.Queue[Any] = queue.Queue()
        self.workers = Awaited("lab", account, self.sockets, Files())
        self.lane = Lane(
            "lab", PATH, {"root": str(self.root)}, self._open, lambda _, result: self.answers.put(result),
            patience=Patience(silence=2.0), stay=True, workers=self.workers,
        )  # fmt: skip
        self.keepers: list[subprocess.Popen[str]] = []

    def _open(self, put: Put, file: Wanted) -> int:
        return os.dup(self.store(put.files.index(file)))

    def keeper(self, of: str = ME) -> subprocess.Popen[str]:
        """By the command of systemd's template, for a spool whose workers/ is ours."""
        [command] = re.findall(r"^ExecStart=(.*)$", TEMPLATE.read_text(), re.MULTILINE)
        words = {"/opt/sorter/.venv/bin/python": sys.executable, "${SORTER_SPOOL}/workers": str(self.sockets)}
        for word, meant in {**words, "%i": self.account, "${SORTER_ACCOUNT}": of}.items():
            assert word in command
            command = command.replace(word, meant)
        made = subprocess.Popen(command.split(), stderr=subprocess.PIPE, text=True)
        self.keepers.append(made)
        return made

    def check(self) -> Any:
        self.lane.check(self.answers.put)
        return self.answers.get(timeout=SOON)

    def deliver(self) -> Any:
        self.lane.submit(job(IMAGES))
        return self.answers.get(timeout=SOON)

    def close(self) -> None:
        self.store.close()
        self.lane.stop(SOON)
        for each in self.keepers:
            each.kill()
            each.communicate()


@pytest.fixture
def account() -> str:
    return ME


@pytest.fixture
def site(tmp_path: Path, account: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(workers, "GRACE", 0.25)
    monkeypatch.setattr(workers, "_PATIENCE", 3.0)
    made = Site(tmp_path, account)
    yield made
    made.close()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_a_keeper_starts_delivers_and_is_followed_by_another(site: Site) -> None:
    keeper = site.keeper()
    assert isinstance(site.deliver(), Done)
    [first] = children(keeper.pid)
    assert isinstance(site.check(), Checked)
    assert children(keeper.pid) == [first]  # it stays
    assert site.lane.pid is None
    os.kill(first, signal.SIGKILL)
    assert isinstance(site.deliver(), Done)
    [second] = [each for each in children(keeper.pid) if each != first]
    assert site.lane.stop(SOON)
    wait_until(lambda: not Path(f"/proc/{second}/exe").exists(), SOON)
    assert keeper.poll() is None


def test_nobody_came_is_said_and_noticed_when_somebody_does(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 0.01)
    says = f"the worker of lab, to be run as {ME}, has not come; systemctl start sorter-worker@{ME}"
    assert site.check() == Later(says, away=True)
    assert site.lane.problem() == says
    assert not site.lane.worker_came()
    keeper = site.keeper()
    wait_until(site.lane.worker_came, SOON)
    assert not site.lane.worker_came()  # that is said once
    assert site.lane.problem() == ""
    assert isinstance(site.check(), Checked)
    [worker] = children(keeper.pid)
    keeper.kill()
    keeper.wait()
    assert isinstance(site.check(), Checked)  # its worker goes on
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: site.check() == Later(says, away=True), SOON)


@pytest.mark.parametrize("account", ["nobody"])
def test_who_comes_as_another_is_turned_away(site: Site) -> None:
    site.keeper()
    wait_until(lambda: "turned away" in site.lane.problem(), SOON)
    says = f"one came as account {os.geteuid()} instead and was turned away"
    assert site.lane.problem() == f"the worker of lab, to be run as nobody, has not come: {says}"


@pytest.mark.parametrize("account", ["no-such-account"])
def test_an_account_that_is_not_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 0.01)
    assert "there is no account 'no-such-account' on this machine" in site.check().why
    assert not may_start("no-such-account") or os.geteuid() == 0
    if os.geteuid() == 0:
        with pytest.raises(Away, match="there is no account 'no-such-account'"):
            Started("no-such-account").start(1.0)


def test_a_keeper_takes_nothing_from_another_account(site: Site) -> None:
    keeper = site.keeper(of="nobody")
    assert keeper.stderr is not None
    assert f"is account {os.geteuid()}'s, not sorter's ({pwd.getpwnam('nobody').pw_uid})" in keeper.stderr.readline()
    assert children(keeper.pid) == []


@pytest.mark.peers  # it waits for seconds
def test_a_keeper_waits_for_sorter_and_says_so_once(tmp_path: Path) -> None:
    folder = tmp_path / "workers" / ME
    keeper = subprocess.Popen(
        [sys.executable, "-m", "sorter.deliver.keeper", folder, "--of", ME], stderr=subprocess.PIPE, text=True
    )
    try:
        assert keeper.stderr is not None
        assert "No such file or directory; is sorter running" in keeper.stderr.readline()
        folder.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(folder / "lab"))
            assert "Connection refused; trying again" in keeper.stderr.readline()
            listening.listen()
            listening.settimeout(SOON)
            connected, _ = listening.accept()
            connected.close()
            listening.accept()[0].close()  # it comes again
    finally:
        keeper.kill()
        keeper.communicate()


@pytest.mark.peers  # it waits for seconds
def test_one_that_stopped_is_let_go_and_no_second_one_comes_beside_it(site: Site) -> None:
    keeper = site.keeper()
    assert isinstance(site.check(), Checked)
    [stopped] = children(keeper.pid)
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert "did not move for 2 s" in site.check().why
        assert f"its mount hangs; if not, systemctl restart sorter-worker@{ME}" in site.check().why
        assert children(keeper.pid) == [stopped]
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: isinstance(site.check(), Checked), SOON)
    wait_until(lambda: stopped not in children(keeper.pid), SOON)


def test_who_comes_in_the_keepers_place_and_says_something_without_end_is_not_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end may be asked for by the thread that decides for all labs."""
    monkeypatch.setattr(workers, "GRACE", 0.25)
    made, over = Awaited("lab", ME, tmp_path / "workers", Files()), threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talker:
        talker.connect(str(tmp_path / "workers" / ME / "lab"))
        worker = made.start(1.0)
        talker.settimeout(0.1)

        def talk() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    talker.send(bytes(1 << 20))

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        assert not worker.gone()
        assert worker.end() is None
        over.set()
        talking.join()
    wait_until(worker.gone, SOON)
    made.close()


def test_a_socket_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("in the way")
    made = Awaited("lab", ME, tmp_path / "workers", Files())
    assert "the socket for the worker of lab cannot be made" in made.problem()
    with contextlib.suppress(Away):
        made.start(1.0)
    made.close()


def test_our_own_account_needs_no_keeper(tmp_path: Path) -> None:
    assert isinstance(workers_of("lab", ME, tmp_path, Files()), Started)
    assert isinstance(workers_of("lab", "", tmp_path, Files()), Started)
