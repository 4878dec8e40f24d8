"""What is remembered of a folder between two looks, and what a look answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from sorter.watch.taken import mark_of


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


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found. Each file, drop and strange thing is told once."""

    ready: tuple[Ready, ...] = ()
    whole: tuple[str, ...] = ()  # drops known to be complete, of which every file is gone or set aside
    strange: tuple[tuple[str, str], ...] = ()  # (path, reason) of what is left where it is
    empty: tuple[str, ...] = ()  # drops of which nothing but empty folders is left, for `Incoming.tidy`
    fresh: int = 0  # files seen for the first time, for `Hints.compare`
    next: float = 0.0  # when to look again, in the time of `now`


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

    @property
    def mark(self) -> bytes:
        return mark_of(self.path, self.info)

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


@dataclass(slots=True, eq=False)
class Drop:
    """Everything below one top entry of incoming/."""

    name: str
    seen: float
    counts: list[int] = field(default_factory=lambda: [0] * len(State))
    newest: float = 0.0  # when its latest file was first seen
    ever: int = 0  # files seen
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
