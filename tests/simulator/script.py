"""What happens, and when: scripts of sending habits, written as one would tell them.

A `Tape` is written by a habit (see `habits`): every call says what a sender does next, and time goes on with it. What
comes of it is a list of events in the order of their times, in seconds, that a player can play.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeAlias

LEAST = 2010
"""Images of a big series: of those that lose some there are two thousand still."""


@dataclass(frozen=True, slots=True)
class Run:
    """One series as its scanner makes it: `volumes` of `slices` images, or one of a kind that shows no volumes.

    `says` is the count in its header, None where it has none; `kind` its sequence, for what is learned of counts.
    """

    uid: str
    slices: int
    volumes: int
    says: int | None = None
    kind: str = "epfid2d"
    plain: bool = False  # without numbers and positions: nothing can be seen from the images themselves

    @property
    def images(self) -> range:
        return range(self.slices * self.volumes)

    def volume(self, number: int) -> range:
        return range(number * self.slices, (number + 1) * self.slices)


@dataclass(frozen=True, slots=True)
class Image:
    run: Run
    number: int
    sender: str
    association: str  # "" for a dropped file
    drop: str = ""
    of_run: bool = True  # False: nobody could have expected it, as what is added days later


@dataclass(frozen=True, slots=True)
class Ended:
    association: str
    how: str = "released"


@dataclass(frozen=True, slots=True)
class Named:
    """The sender's list of what it sent (N-ACTION of Storage Commitment)."""

    sender: str
    images: tuple[tuple[str, int], ...]  # run's UID, number


@dataclass(frozen=True, slots=True)
class Whole:
    drop: str


@dataclass(frozen=True, slots=True)
class Restart:
    """The sorter ends (not the receiver) and begins anew."""


@dataclass(frozen=True, slots=True)
class ClockStep:
    """Somebody, or a time server, sets the wall clock."""

    seconds: float


What: TypeAlias = Image | Ended | Named | Whole | Restart | ClockStep


@dataclass(frozen=True, slots=True)
class Happens:
    at: float
    what: What


@dataclass(slots=True)
class Tape:
    """Writes one session of one sender. `big`: so large as the real thing; else a short one, to be learned from."""

    rng: Random
    name: str
    start: float = 0.0
    big: bool = True
    sender: str = "MR1@10.0.0.1"
    now: float = field(init=False)
    events: list[Happens] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self.now = self.start

    # --- what there is to send ----------------------------------------------------------------------------------

    def run(self, *, says: int | float | None = None, plain: bool = False, least: int = LEAST) -> Run:
        """A new series, of at least so many images if big; `says` times the true count is what its header says."""
        self._count += 1
        slices = self.rng.randint(20, 40)
        volumes = -(-least // slices) + self.rng.randint(0, 5) if self.big else self.rng.randint(4, 7)
        run = Run(f"{self.name}.{self._count}", slices, volumes, plain=plain)
        return run if says is None else replace(run, says=round(says * len(run.images)))

    def small(self, **more: bool) -> Run:
        """A series beside the one that matters."""
        self._count += 1
        return Run(f"{self.name}.{self._count}", self.rng.randint(5, 20), 1, kind="fl2d", **more)

    # --- what a sender does -------------------------------------------------------------------------------------

    def pause(self, shortest: float, longest: float | None = None) -> None:
        self.now += shortest if longest is None else self.rng.uniform(shortest, longest)

    def open(self) -> str:
        self._count += 1
        return f"{self.name}-a{self._count}"

    def send(
        self, run: Run, images: Iterable[int], association: str, *, every: float = 0.02, of_run: bool = True
    ) -> None:
        for number in images:
            self.say(Image(run, number, self.sender, association, of_run=of_run))
            self.now += every

    def end(self, association: str, how: str = "released") -> None:
        self.say(Ended(association, how))

    def deliver(self, run: Run, images: Iterable[int], *, every: float = 0.02, of_run: bool = True) -> None:
        """In an association of its own."""
        association = self.open()
        self.send(run, images, association, every=every, of_run=of_run)
        self.end(association)

    def one_by_one(self, run: Run, images: Iterable[int], *, every: float = 0.05) -> None:
        """An association for each image, as GE does."""
        for number in images:
            self.deliver(run, [number], every=every)

    def commit(self, *pairs: tuple[Run, Iterable[int]]) -> None:
        self.say(Named(self.sender, tuple((run.uid, number) for run, numbers in pairs for number in numbers)))

    def drop(self, run: Run, images: Iterable[int], name: str, *, every: float = 0.02) -> None:
        for number in images:
            self.say(Image(run, number, "", "", drop=name))
            self.now += every

    def say(self, what: What) -> None:
        self.events.append(Happens(self.now, what))

    def cut(self, images: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Two parts, cut anywhere but at the ends."""
        at = self.rng.randrange(1, len(images))
        return images[:at], images[at:]

    def cut_inside_a_volume(self, run: Run) -> tuple[Sequence[int], Sequence[int]]:
        at = self.rng.randrange(run.volumes) * run.slices + self.rng.randrange(1, run.slices)
        return run.images[:at], run.images[at:]

    def cut_after_a_volume(self, run: Run) -> tuple[Sequence[int], Sequence[int]]:
        at = self.rng.randrange(1, run.volumes) * run.slices
        return run.images[:at], run.images[at:]


@dataclass(frozen=True, slots=True)
class Script:
    """One habit of one sender, as a site sees it: sessions before (`history`), then the one that is judged."""

    habit: str
    seed: int
    events: tuple[Happens, ...]
    judged: str  # prefix of the UIDs of the session that is judged

    def arrivals(self, prefix: str = "") -> Iterator[tuple[float, Image]]:
        return ((each.at, each.what) for each in self.events if isinstance(each.what, Image)
                and each.what.run.uid.startswith(prefix))  # fmt: skip
