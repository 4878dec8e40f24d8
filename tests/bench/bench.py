"""What is measured: scenarios, each run with all its receivers in turn, again and again; then floors, met or missed."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import images
import load
import receivers
from load import Load
from receivers import Kind, Receiver

from sorter.testing.ports import free_port

_fork = multiprocessing.get_context("fork")

REALLY_COSTS = 0.2e-3  # seconds; a place whose fsync takes less is not called a disk


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One row of work for several receivers. `place` is "tmpfs" or "disk"."""

    name: str
    place: str
    load: Load
    kinds: Sequence[Kind]


@dataclasses.dataclass(frozen=True)
class Run:
    """One receiver under one load, once. Memory in bytes, times in seconds."""

    images: float  # a second
    bytes: float  # a second
    cpu: float  # of the receiver, an image
    pss: int
    p50: float
    p99: float
    refused: int


@dataclasses.dataclass
class Result:
    """All runs of one receiver under one load."""

    scenario: Scenario
    kind: Kind
    runs: list[Run] = dataclasses.field(default_factory=list)
    failure: str = ""

    def median(self, what: str) -> float:
        return statistics.median(getattr(run, what) for run in self.runs) if self.runs else 0.0

    @property
    def spread(self) -> tuple[float, float]:
        rates = [run.images for run in self.runs] or [0.0]
        return min(rates), max(rates)


def scenarios(seconds: float) -> list[Scenario]:
    """All of them. Whatever a receiver cannot do at all is left out: see the page of results."""
    small, mosaic, multiframe = images.small(), images.mosaic(), images.multiframe()
    ours, scp = (receivers.SORTER,), receivers.STORESCP
    orthanc = (receivers.ORTHANC, receivers.ORTHANC_SYNCED)
    python = (receivers.PYNETDICOM, receivers.PYNETDICOM_APP)
    everyone = (*ours, *scp, *orthanc, *python)
    found = []
    for place in ("tmpfs", "disk"):
        for senders in (1, 4, 16):
            given = Load(small, senders, seconds)
            found.append(Scenario(f"179 KB, {_associations(senders)}", place, given, everyone))
    for senders in (1, 4):
        given = Load(small, senders, seconds, per_image=True)
        found.append(Scenario(f"an association per image, {_senders(senders)}", "tmpfs", given, everyone))
    packaged = (*ours, receivers.PLAIN_AS_PACKAGED, receivers.ORTHANC_AS_PACKAGED, receivers.PYNETDICOM)
    found.append(Scenario("as packaged, no TCP_NODELAY", "tmpfs", Load(small, 1, seconds, nagle=True), packaged))
    for senders in (1, 4):
        given = Load(mosaic, senders, seconds)
        found.append(Scenario(f"mosaics 1.27 MB, {_associations(senders)}", "tmpfs", given, everyone))
    big = Load(multiframe, 1, 60.0, images=2)
    found.append(Scenario("500 MB multiframe", "tmpfs", big, everyone))
    stalled = Load(small, 4, seconds, stalled=1)
    found.append(Scenario("4 senders, one stalls", "tmpfs", stalled, everyone))
    found.append(Scenario("179 KB, 8 associations", "disk", Load(small, 8, seconds), (*ours, *scp)))
    return found


def _associations(number: int) -> str:
    return "1 association" if number == 1 else f"{number} associations"


def _senders(number: int) -> str:
    return "1 sender" if number == 1 else f"{number} senders"


# --- running --------------------------------------------------------------------------------------------------------


def measure(scenario: Scenario, place: Path, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Every receiver of the scenario `rounds` times, one after the other in each round."""
    results = [Result(scenario, kind) for kind in scenario.kinds if kind.there]
    running: dict[str, Receiver] = {}
    try:
        for result in results:
            try:
                running[result.kind.name] = Receiver(result.kind, place, free_port())
            except RuntimeError as error:
                result.failure = str(error)
        for _ in range(rounds):
            for result in results:
                if not result.failure:
                    _once(result, running[result.kind.name])
    finally:
        for receiver in running.values():
            receiver.stop()
            receiver.clear()
    for result in results:
        rate, (low, high) = result.median("images"), result.spread
        say(f"  {result.kind.name:32} {rate:8.0f} images/s ({low:.0f} to {high:.0f}) {result.failure}")
    return results


def _once(result: Result, receiver: Receiver) -> None:
    given = result.scenario.load
    before = receiver.cpu()
    read, write = _fork.Pipe(duplex=False)
    client = _fork.Process(target=_drive, args=(receiver.port, given, write))
    client.start()
    write.close()
    pss, pause = 0, min(0.4, given.seconds / 3)
    while not read.poll(pause):  # a few looks only: each costs the machine a millisecond
        pss = max(pss, receiver.pss())
    outcome = read.recv()
    client.join()
    _settle(receiver)
    if isinstance(outcome, str):
        result.failure = outcome
    elif not outcome.images:
        result.failure = "nothing was stored"
    else:
        result.runs.append(_figures(given, outcome, receiver.cpu() - before, pss))
    receiver.clear()
    os.sync()  # what one leaves unwritten is not the next one's burden


def _drive(port: int, given: Load, tell: multiprocessing.connection.Connection) -> None:
    try:
        tell.send(load.run(port, given))
    except OSError as error:
        tell.send(f"{type(error).__name__}: {error}")


def _settle(receiver: Receiver) -> None:
    """Until it has done with what the load left: its CPU time stands still."""
    last, still = receiver.cpu(), 0
    for _ in range(100):
        time.sleep(0.05)
        now = receiver.cpu()
        still = still + 1 if now == last else 0
        if still >= 3:
            return
        last = now


def _figures(given: Load, outcome: load.Outcome, cpu: float, pss: int) -> Run:
    answers = sorted(outcome.answers)
    rate = outcome.images / outcome.seconds
    return Run(
        images=rate,
        bytes=rate * len(given.data_set),
        cpu=cpu / outcome.images,
        pss=pss,
        p50=answers[len(answers) // 2],
        p99=answers[min(len(answers) - 1, int(len(answers) * 0.99))],
        refused=outcome.refused,
    )


def idle_cpu(place: Path, associations: int = 8, seconds: float = 10.0) -> float:
    """The share of a core that sorter needs for associations on which nothing happens."""
    receiver = Receiver(receivers.SORTER, place, free_port())
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(associations):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port)))
                sock.sendall(load.request())
                sock.recv(4096)
            before = receiver.cpu()
            time.sleep(seconds)
            return (receiver.cpu() - before) / seconds
    finally:
        receiver.stop()
        receiver.clear()


def fsync_cost(place: Path, times: int = 200) -> float:
    """Seconds: the median of so many fsyncs, each of a new file as large as a small image."""
    data, took = os.urandom(179_000), []
    for number in range(times):
        path = place / f"fsync-{number}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(fd, data)
        start = time.perf_counter()
        os.fsync(fd)
        took.append(time.perf_counter() - start)
        os.close(fd)
        path.unlink()
    return statistics.median(took)


# --- judging --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Floor:
    """What was promised, what was measured, and whether it is enough."""

    says: str
    measured: str
    met: bool | None  # None: could not be measured


class Results:
    """Looked up by scenario and receiver."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.all = list(results)

    def rate(self, scenario: str, place: str, *kinds: Kind) -> float:
        """The best median of `kinds`, in images a second; 0 where there is none."""
        names = [kind.name for kind in kinds]
        return max((each.median("images") for each in self._of(scenario, place) if each.kind.name in names), default=0)

    def ours(self, scenario: str, place: str, what: str) -> float:
        return next(
            (each.median(what) for each in self._of(scenario, place) if each.kind is receivers.SORTER and each.runs), 0
        )

    def _of(self, scenario: str, place: str) -> list[Result]:
        return [each for each in self.all if (each.scenario.name, each.scenario.place) == (scenario, place)]

    def ratio(self, least: float, scenario: str, place: str, what: str, *kinds: Kind) -> Floor:
        """Ours is at least `least` times the best of `kinds`, which are called `what`."""
        mine, best = self.rate(scenario, place, receivers.SORTER), self.rate(scenario, place, *kinds)
        says = f"{place}, {scenario}: ≥ {least:g} × {what}"
        if not mine or not best:
            return Floor(says, "not measured", None)
        return Floor(says, f"{mine / best:.2f} × ({mine:.0f} to {best:.0f})", mine >= least * best)


def floors(found: Results, idle: float | None) -> list[Floor]:
    """Every floor, in the order of the page of results."""
    scp, r = receivers.STORESCP, found.ratio
    one, four, sixteen = (f"179 KB, {_associations(number)}" for number in (1, 4, 16))
    best, synced = "the best storescp", (receivers.ORTHANC_SYNCED,)
    python = (receivers.PYNETDICOM, receivers.PYNETDICOM_APP)
    out = [
        r(1.0, one, "tmpfs", best, *scp),
        r(0.9, four, "tmpfs", best, *scp),
        r(0.9, sixteen, "tmpfs", best, *scp),
        r(2.0, one, "tmpfs", "storescp --fork", receivers.FORK),
        *(r(0.8, f"mosaics 1.27 MB, {_associations(number)}", "tmpfs", best, *scp) for number in (1, 4)),
        r(1.0, "500 MB multiframe", "tmpfs", best, *scp),
        r(0.55, one, "disk", "the best storescp, which does not sync", *scp),
        r(0.85, four, "disk", "the best storescp, which does not sync", *scp),
        r(1.1, sixteen, "disk", "the best storescp, which does not sync", *scp),
        *(r(2.2, each, "disk", "Orthanc, synced", *synced) for each in (one, four, sixteen)),
    ]
    for number in (1, 4):
        name = f"an association per image, {_senders(number)}"
        out += [
            r(0.9, name, "tmpfs", "plain storescp", receivers.PLAIN),
            r(3.0, name, "tmpfs", "storescp --fork", receivers.FORK, receivers.FORK_BEST),
        ]
    packaged = "as packaged, no TCP_NODELAY"
    out += [
        r(20, packaged, "tmpfs", "storescp", receivers.PLAIN_AS_PACKAGED),
        r(20, packaged, "tmpfs", "Orthanc", receivers.ORTHANC_AS_PACKAGED),
        *(r(10, each, "tmpfs", "pynetdicom", *python) for each in (one, four, sixteen)),
        *(r(3, each, "disk", "pynetdicom", *python) for each in (one, four, sixteen)),
    ]
    memory = found.ours("500 MB multiframe", "tmpfs", "pss") / 1e6
    p99 = found.ours("179 KB, 8 associations", "disk", "p99") * 1e3
    out.append(Floor("memory with 500 MB instances < 100 MB", f"{memory:.0f} MB", memory < 100 if memory else None))
    out.append(Floor("disk, 8 associations: p99 < 50 ms", f"{p99:.1f} ms", p99 < 50 if p99 else None))
    if idle is not None:
        out.append(Floor("8 idle associations < 1% of a core", f"{idle:.2%}", idle < 0.01))
    return out


def aims(found: Results) -> list[Floor]:
    """Level with the best storescp everywhere, durable."""
    names = {(each.scenario.name, each.scenario.place): None for each in found.all}
    packaged = "as packaged, no TCP_NODELAY"
    return [
        found.ratio(1.0, name, place, "the best storescp", *receivers.STORESCP)
        for name, place in names
        if name != packaged
    ]


def version(command: Sequence[str]) -> str:
    """The first line that a tool says of itself."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError:
        return "not here"
    lines = (said.stdout + said.stderr).splitlines()
    return lines[0].strip() if lines else "unknown"
