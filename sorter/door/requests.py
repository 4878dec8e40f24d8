"""What can be asked at the door, and what passes through it: frozen values that both sides build from JSON.

A new request is a class here and a function in `sorter.door.answers` (or in a room above that calls `answering`). On
the wire it is {"ask": "<the class's name in small letters>", …its fields}; `sorter.model.build` checks their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sorter.exports import Found
from sorter.model import Header, Identity

MOST_KEYS = 250
"""Series in one request."""


@dataclass(frozen=True, slots=True)
class Units:
    """The summaries of all series that the asker may see, or of those that are called so."""

    called: str = ""


@dataclass(frozen=True, slots=True)
class Heads:
    """Who and what these series are: a `Head` each."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Images:
    """What there is to copy of a series: the header of its first image, and each image with what differs from it."""

    key: str


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a series, as its record in the store says it; nothing is answered where that was not done."""

    key: str
    product: str


@dataclass(frozen=True, slots=True)
class Hand:
    """Read-only descriptors of these images of a series, or files of a product of it, `MOST_FILES` at most."""

    key: str
    files: tuple[str, ...]
    product: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Copies of these images of a series are about to be written below `dest`: names there, with their SHA-256."""

    key: str
    dest: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Send:
    """Have sorter copy files of a series, or of a product of it, to a folder of a target: names there, by file."""

    key: str
    target: str
    folder: str
    files: Mapping[str, str]
    product: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """Give what no lab has of this name or UID to this lab: what `sorter claim` asks for."""

    what: str
    lab: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rules of now would have elsewhere of a lab's series that came `since` (YYYYMMDD, "" for all); of `keys`,
    if there are any, that is done."""

    lab: str
    since: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Why:
    """The story of a series, as `sorter.exports.source.Told`."""

    key: str


@dataclass(frozen=True, slots=True)
class Status:
    """What concerns the asker besides the series: which labs are his, what waits to be claimed, what is out."""


@dataclass(frozen=True, slots=True)
class Head:
    """A `Found` without its images."""

    key: str
    study_uid: str
    series_uids: tuple[str, ...]
    identity: Identity = field(default_factory=Identity)
    face: Header = field(default_factory=dict)
    verdict: str = ""
    only: tuple[str, ...] | None = None

    @classmethod
    def of(cls, found: Found) -> Head:
        return cls(found.key, found.study_uid, found.series_uids, found.identity, found.face, found.verdict, found.only)


@dataclass(frozen=True, slots=True)
class Unassigned:
    """Series that no lab has, as everybody may know of them: on which day, where, which protocol, and how many."""

    date: str
    scanner: str
    protocol: str
    count: int
