"""Events wake the loop; what they cannot tell is noticed and said. With whichever watchdog is installed."""

from __future__ import annotations

import errno
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers.api import BaseObserver

from sorter.watch import Hints
from sorter.watch import hints as hints_module


class Woken(threading.Event):
    """Set by a wake; waiting has a deadline, and clears."""

    def soon(self) -> bool:
        found = self.wait(10)
        self.clear()
        return found


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def hints(tmp_path: Path, woken: Woken, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hints]:
    monkeypatch.setattr(hints_module, "CHECK_EVERY", 0.0)
    (tmp_path / "incoming").mkdir()
    found = Hints([tmp_path / "incoming"], woken.set)
    assert woken.soon()  # once at the start, for what came before
    yield found
    found.stop()


def test_files_and_folders_that_come_wake(hints: Hints, woken: Woken, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    (folder / "a").write_bytes(b"1")
    assert woken.soon()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"1")
    woken.clear()
    (tmp_path / "outside").rename(folder / "moved")
    assert woken.soon()
    assert hints.problems() == []


def test_a_folder_removed_and_made_anew_is_watched_again(hints: Hints, woken: Woken, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.rename(tmp_path / "old")
    [problem] = hints.problems()
    assert problem.endswith("is not there")
    folder.mkdir()
    woken.clear()
    assert hints.problems() == []
    assert woken.soon()  # for what came before it was watched
    woken.clear()
    (folder / "a").write_bytes(b"1")
    assert woken.soon()


def test_a_folder_that_is_not_there_yet(tmp_path: Path, woken: Woken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_module, "CHECK_EVERY", 0.0)
    found = Hints([tmp_path / "later"], woken.set)
    try:
        assert len(found.problems()) == 1
        (tmp_path / "later").mkdir()
        assert found.problems() == []
        assert woken.soon()
    finally:
        found.stop()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE])
def test_out_of_watches_is_said_and_no_error(
    tmp_path: Path, woken: Woken, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError(code, "limit")

    monkeypatch.setattr(BaseObserver, "schedule", schedule)
    found = Hints([tmp_path], woken.set)
    try:
        [problem] = found.problems()
        assert "fs.inotify.max_user_" in problem
        assert "looked at every few seconds" in problem
    finally:
        found.stop()


def test_an_observer_that_died_is_started_again(hints: Hints, woken: Woken, tmp_path: Path) -> None:
    assert hints._observer is not None
    hints._observer.stop()
    hints._observer.join(10)
    assert hints.problems() == []
    woken.clear()
    (tmp_path / "incoming" / "a").write_bytes(b"1")
    assert woken.soon()


def test_arrivals_without_events_are_noticed(hints: Hints) -> None:
    hints.compare(0)  # the start's own
    for _ in range(3):
        assert hints.problems() == []
        hints.compare(5)
    [problem] = hints.problems()
    assert "without any event" in problem
    hints._happened()
    hints.compare(5)
    assert hints.problems() == []


def test_nothing_of_watchdogs_is_printed(hints: Hints, woken: Woken, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hints_module._silence(hints._quiet)
        warnings.warn_explicit("names /a/patient", RuntimeWarning, "x", 1, module="watchdog.observers.inotify_c")
    logging.getLogger("watchdog.observers.inotify").warning("names /a/patient")
    assert caught == []
    assert capfd.readouterr() == ("", "")
    woken.clear()
    logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; events were lost")
    assert woken.soon()


def test_stop_ends_its_threads(tmp_path: Path, woken: Woken) -> None:
    found = Hints([tmp_path], woken.set)
    observer = found._observer
    assert observer is not None
    emitters = list(observer.emitters)
    found.stop()
    assert not observer.is_alive()
    assert not any(emitter.is_alive() for emitter in emitters)
