"""What is remembered of a folder between two looks, and what a look answers."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ready:
    """A file to take now. `path` is relative to incoming/; bytes that are not UTF-8 are in it as surrogates.

    `final`: it was offered before and has not changed for long; what is wrong with it now stays wrong.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    device: int
    uid: int
    drop: str  # the name of the top entry below incoming/
    final: bool = False
    copy: Path | None = None  # a synced copy that lies in the spool, of a file that is not to be touched from here


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found. Each file, drop and strange thing is told once."""

    ready: tuple[Ready, ...] = ()
    whole: tuple[str, ...] = ()  # drops known to be complete, of which every file is gone or set aside
    strange: tuple[tuple[str, str], ...] = ()  # (path, reason) of what is left where it is; "": it is so no longer
    empty: tuple[str, ...] = ()  # drops of which nothing but empty folders is left, for `Incoming.tidy`
    fresh: int = 0  # files seen for the first time, for `Hints.compare`
    next: float = 0.0  # when to look again, in the time of `now`


class Tree(Protocol):
    """A folder that is followed: by `Incoming` itself, or by `Lookout`, whose worker does."""

    folder: Path

    def look(self, now: float) -> Look:
        """What is new since the last look."""

    def not_yet(self, ready: Ready) -> None:
        """It is not whole, or changed."""

    def again(self, ready: Ready) -> None:
        """It could not be taken, and not for a fault of its own."""

    def unreadable(self, ready: Ready, why: str) -> None:
        """It cannot be read to its end, for this reason."""

    def gone(self, ready: Ready) -> None:
        """It was taken or set aside."""

    def open(self, ready: Ready) -> int:
        """A descriptor for reading what was found ready."""

    def remove(self, ready: Ready) -> bool:
        """Remove what was found ready; False if another is there by now, or none."""

    def tidy(self, drop: str) -> bool:
        """Remove what is empty of a drop."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How a tree is followed."""

    stays: bool = False  # what was taken is not removed, but remembered
    rest: float = 2.0  # seconds between the begins of two rounds at most, however long they take


class State(enum.IntEnum):
    """Where a file is on its way."""

    WATCHED = 0  # does it stand still?
    QUEUED = 1  # it does, and waits to be offered
    OFFERED = 2  # the caller has it
    WAITING = 3  # the caller gave it back: it may be unfinished
    TEMPORARY = 4  # by its name
    STRANGE = 5  # not to be taken
    GONE = 6  # taken; if it is still there it could not be removed
    MARKER = 7  # .done or .keep


OPEN = (State.WATCHED, State.QUEUED, State.OFFERED, State.WAITING)


@dataclass(slots=True, eq=False)
class File:
    """One entry that is not a folder. `since`: when it was first seen as it is; `due`: when to look at it again."""

    path: str
    home: Folder
    drop: Drop
    state: State
    info: tuple[int, int, int, int]  # size, mtime_ns, inode, ctime_ns
    device: int
    uid: int
    since: float
    due: float
    final: bool = False
    told: bool = False  # as strange

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def ready(self) -> Ready:
        size, mtime_ns, inode, _ = self.info
        return Ready(self.path, size, mtime_ns, inode, self.device, self.uid, self.drop.name, self.final)


@dataclass(slots=True, eq=False)
class Folder:
    """One folder. `names` may be trusted while `mtime_ns` is the same, once `settled`."""

    path: str
    inode: int
    mtime_ns: int = -1
    ctime_ns: int = -1
    changed: float = 0.0  # when this mtime was first seen
    settled: bool = False
    told: bool = False
    files: dict[str, File] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)  # files to look at again
    left: dict[str, bytes] = field(default_factory=dict)  # files that were taken and stay, with their marks
    unchecked: list[str] = field(default_factory=list)  # of `left`, in this round
    over: int = 0  # the round of looking over what is left that this folder has seen the end of


@dataclass(slots=True, eq=False)
class Drop:
    """Everything below one top entry of incoming/."""

    name: str
    seen: float
    counts: list[int] = field(default_factory=lambda: [0] * len(State))
    newest: float = 0.0  # when its latest file was first seen
    ever: int = 0  # files seen
    looked: int = 0  # the number of the look in which all of it was last seen; 0: not yet
    covered: bool = False  # all of it was looked at since its marker was seen
    covering: bool = False  # it is being
    due: float = math.inf  # when one of its files is to be looked at again
    early: bool = False  # when it was looked at, some of its files were too new to be said to stand still
    restless: bool = False  # one was being written, or changed
    still: list[File] = field(default_factory=list)  # to be offered when all of it was looked at
    grew: bool = False  # something came after the first look at it
    set_back: bool = False  # its mtime was set to an earlier time: a copying program restored it, its last act
    offered: bool = False
    judged: bool = False  # by its times
    moved: bool = False  # complete, by its times
    marker: tuple[int, int] | None = None  # inode and ctime of its .done
    told_for: tuple[int, int] | None = None  # `marker`, or (0, 0) for `moved`, when it was told to be whole

    @property
    def open(self) -> int:
        return sum(self.counts[state] for state in OPEN)
