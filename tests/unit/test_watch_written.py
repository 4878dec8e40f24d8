"""A hint when a file that was asked for is written to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.watch import Written
from sorter.watch import written as written_module


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
def written(woken: Woken) -> Iterator[Written]:
    found = Written(woken.set)
    yield found
    found.stop()


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"a line\n")


def test_what_is_written_wakes_each_time(written: Written, woken: Woken, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.touch()
        assert written.add(path)
    for path in (first, second, first):
        append(path)
        assert woken.soon()


def test_what_is_not_there_is_not_watched_and_what_goes_stops_nothing(
    written: Written, woken: Woken, tmp_path: Path
) -> None:
    path = tmp_path / "arrivals"
    assert not written.add(path)
    path.touch()
    assert written.add(path)
    path.unlink()
    path.touch()
    assert written.add(path)
    append(path)
    assert woken.soon()


def test_without_inotify_nobody_is_woken_and_it_ends(
    woken: Woken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written_module, "_libc", None)
    (tmp_path / "arrivals").touch()
    written = Written(woken.set)
    assert not written.add(tmp_path / "arrivals")
    written.stop()


def test_stop_ends_its_thread(woken: Woken) -> None:
    before = threading.active_count()
    written = Written(woken.set)
    assert threading.active_count() == before + 1
    written.stop()
    assert threading.active_count() == before
