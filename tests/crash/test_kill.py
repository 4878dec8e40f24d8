"""kill -9 at every effect on a file: a process that really ends there, on a real disk, and the next one after it.

A child process lives the life of three series and ends, without any last words, right before its n-th effect; for every
n. What it had acknowledged by then it told through a pipe. The next life starts on what lies there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sorter.config import Config, load
from sorter.daemon import assembly
from sorter.durable import Files
from sorter.pipeline import outlets
from tests.crash.scenario import CONFIG, Idle, Life, Near, as_file, begin, data_set, sop_uid

RESTART = 5.0
"""Seconds in which the next life has to be ready, and has looked at everything."""

EFFECTS = (
    "write", "writev", "splice", "truncate", "fsync", "sync_file_system", "rename", "rename_new", "link", "unlink",
    "mkdir", "rmdir", "chmod", "reflink",
)  # fmt: skip

SENT = {data_set(number, series=series) for series in (1, 2, 3) for number in (1, 2, 3)}


class Dying(Files):
    """Ends its process right before the effect of this number, counted from 1; never for 0."""

    def __init__(self, last: int) -> None:
        self.last, self.count = last, 0

    def open(self, path: Any, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._count()
        return super().open(path, flags, mode, at=at)

    def _count(self) -> None:
        self.count += 1
        if self.count == self.last:
            os._exit(9)


def _counted(name: str) -> Any:
    effect = getattr(Files, name)

    def counted(self: Dying, *args: Any, **more: Any) -> Any:
        self._count()
        return effect(self, *args, **more)

    return counted


for _name in EFFECTS:
    setattr(Dying, _name, _counted(_name))


def live(life: Life, told: int) -> None:
    """Three series: by network in two associations, with a resend and late images; one of them in a person's folder."""

    def receive(*data_sets: bytes, worker: str = "w1") -> None:
        association = life.associate(worker)
        for data in data_sets:
            association.store(data)
            os.write(told, data)
        association.end("released")

    receive(data_set(1), data_set(1, series=2), data_set(2))
    life.drop("disk", as_file(data_set(1, series=3)), b"notes of a person, " * 20)
    os.write(told, data_set(1, series=3))
    life.turns(60)
    receive(data_set(3), data_set(2), data_set(2, series=2), worker="w2")
    life.drop("more", as_file(data_set(2, series=3)))
    os.write(told, data_set(2, series=3))
    life.turns(60)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A site on a file system in memory where there is one: a killed process loses nothing that a disk would keep."""
    monkeypatch.setattr(assembly, "LocalEngine", Idle)
    monkeypatch.setattr(outlets, "Lane", Near)
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    root = base / f"sorter-kill-{os.getpid()}"
    root.mkdir()
    (root / "sorter.toml").write_text(CONFIG)
    config = load(root / "sorter.toml", root / "site")
    plugins = assembly.load_plugins(config, Files())
    monkeypatch.setattr(assembly, "load_plugins", lambda *_: plugins)
    yield config
    shutil.rmtree(root)


def end_at(settings: Config, number: int) -> tuple[set[bytes], bool]:
    """What was acknowledged by a life that ended before this effect, and whether it ended there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            live(begin(Dying(number), settings), writing)  # type: ignore[arg-type]
        except BaseException:  # noqa: BLE001 - a forked child must never come back into pytest
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), f"the life ended by itself before effect {number}"
    return {data for data in SENT if data in told}, code == 9


def wrong_after(settings: Config, acknowledged: set[bytes], restarts: list[float]) -> Iterator[str]:
    begun = time.process_time()  # not the time of a machine that others use too
    life = begin(Files(), settings)  # type: ignore[arg-type]
    life.turns(80, 20)
    restarts.append(time.process_time() - begun)
    if restarts[-1] > RESTART:
        yield "the next life took too long to begin"
    life.turns(1400, 100)
    root = settings.spool.parent
    stored = [path.read_bytes() for path in (settings.spool / "store").rglob("*.dcm")]
    given = Counter(sop_uid(path.read_bytes()) for path in (root / "labs").rglob("*.dcm") if path.is_file())
    for data in acknowledged:
        if not any(content.endswith(data) for content in stored):
            yield "an acknowledged image is lost"
        if given[sop_uid(data)] != 1:
            yield f"an image was delivered {given[sop_uid(data)]} times"
    if any(count != 1 for count in given.values()):
        yield "an image was delivered twice"
    if any(not content.endswith(b"END.") for content in stored):
        yield "an image is torn"
    parts = (path for path in root.rglob("*.part") if settings.spool / "incoming" not in path.parents)  # a person's
    left = [*parts, *(settings.spool / "taking").iterdir()]
    if left:
        yield f"work of the dead process is left: {left[0].name}"


def survey(settings: Config, first: int, step: int) -> tuple[int, Counter[str]]:
    """End a life before every `step`-th effect; at how many, and what was wrong afterwards."""
    root, wrong, number, ended = settings.spool.parent, Counter[str](), first, True
    deaths, restarts = 0, list[float]()
    while ended:
        shutil.rmtree(root, ignore_errors=True)
        acknowledged, ended = end_at(settings, number)
        for each in wrong_after(settings, acknowledged, restarts):
            wrong[f"{each} (effect {number})" if len(wrong) < 20 else each] += 1
        deaths += ended
        number += step
    print(f"{deaths} lives ended before an effect; the next was at work after {max(restarts):.2f} s of CPU at most")
    return deaths, wrong


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_before_every_seventh_effect_loses_and_doubles_nothing(settings: Config) -> None:
    deaths, wrong = survey(settings, 1 + os.getpid() % 7, 7)
    assert not wrong
    assert deaths >= 40


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_kill_9_before_every_effect_loses_and_doubles_nothing(settings: Config) -> None:
    deaths, wrong = survey(settings, 1, 1)
    assert not wrong
    assert deaths >= 300


def test_it_would_notice(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is removed from received/ before it is in the store: found by the same means."""
    from sorter.take import filing

    read = filing.Filing._read

    def eager(self: filing.Filing, step: Any) -> Any:
        found = read(self, step)
        if step.candidate.own:
            self._files.rename(step.file, self._spool.taking / "moved")
            step.file = self._spool.taking / "moved"
        return found

    monkeypatch.setattr(filing.Filing, "_read", eager)
    number, found = 1, False
    while not found and number < 400:
        shutil.rmtree(settings.spool.parent, ignore_errors=True)
        acknowledged, ended = end_at(settings, number)
        found = ended and any("lost" in each for each in wrong_after(settings, acknowledged, []))
        number += 1
    assert found
