"""`serve` looks after two processes, each of which may end alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.daemon.supervise import Supervisor
from sorter.testing.waiting import wait_until


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    config = tmp_path / "sorter.toml"
    config.write_text("")
    where = ["-c", str(config), "--root", str(tmp_path)]
    supervisor = Supervisor([*where, "--port", "0"], where, lambda _: None)
    yield supervisor
    for child in supervisor._children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()


def test_sort_that_cannot_start_again_does_not_end_receive(supervisor: Supervisor, tmp_path: Path) -> None:
    """It dies, for want of memory perhaps, while somebody is at work on the configuration."""
    sort, receive = supervisor._children
    for child in (sort, receive):
        child.start()
    wait_until(lambda: sort.been_ready and receive.been_ready, 60, "both to be ready")
    (tmp_path / "sorter.toml").write_text("[labs.memory\n")
    assert sort.process is not None
    sort.process.kill()
    wait_until(sort.ended, 20, "its end")
    hour = time.monotonic() + 3600
    assert supervisor._look_after(hour) == 0  # planned,
    assert supervisor._look_after(hour) == 0  # and started at once
    wait_until(sort.ended, 60, "a start that fails")
    assert sort.process.returncode == 2
    assert supervisor._look_after(sort.started + 1) == 0
    assert not receive.ended()
    assert sort.pause == 1.0


def test_what_cannot_be_used_at_the_start_ends_it_all(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "sorter.toml").write_text("[labs.memory\n")
    sort, receive = supervisor._children
    for child in (sort, receive):
        child.start()
    wait_until(lambda: sort.ended() and receive.ended(), 60, "both to end")
    assert supervisor._look_after(time.monotonic()) == 2
