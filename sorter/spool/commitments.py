"""Requests for storage commitment (PS3.4 annex J): a folder that the receiver writes to and the sorter answers from.

    commitments/waiting/<id>.json           asked for, and not reported to the end
    commitments/given-up/<id>.json          could not be reported for a day; `sorter retry` makes it wait again
    commitments/told/<month>/<id>.json      reported; kept as evidence of what a sender said it had sent

One JSON object a file: `id`, `transaction`, `calling`, `called`, `address`, `at`, `instances` as pairs of SOP class and
SOP instance UID; once decided `failed` (SOP instance UID to failure reason); at the end `told` or `given_up`. A file is
only ever replaced as a whole, durably; it is moved by writing the new one before the old one goes, so that after a
crash it may be in both places: then it is told.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sorter.durable import PART, Files
from sorter.protocol.commitment import Reference
from sorter.protocol.peers import household
from sorter.spool.lines import line, now

MOST_WAITING = 1000
"""Requests that may wait for their report; beyond, the receiver takes no more (0x0213, resource limitation).

One address may have half of them, and of their bytes: a scanner that never takes its reports keeps others from nothing.
"""

MOST_BYTES_WAITING = 32 << 20
"""Of their files, with some 250,000 instances: the sorter holds them all in memory."""

_LARGEST = 64 << 20  # bytes of one file


@dataclass(frozen=True, slots=True)
class Commitment:
    """A request, and what has become of it. `address` is the sender's host, `at` local wall clock for people.

    `failed` is None until it is decided; then it maps what is not committed to its failure reason (PS3.3 C.14.1.1),
    and never changes again, however often it has to be reported. `told` says when it was, `given_up` why it was not.
    """

    id: str
    transaction: str
    calling: str
    called: str
    address: str
    at: str
    instances: tuple[Reference, ...]
    failed: Mapping[str, int] | None = None
    trouble: str = ""  # why it could not be reported so far
    told: str = ""
    given_up: str = ""

    @property
    def sender(self) -> str:
        """As `Source.sender` calls it."""
        return f"{self.calling}@{self.address}"

    @property
    def names(self) -> tuple[str, ...]:
        """The SOP Instance UIDs."""
        return tuple(each.sop_uid for each in self.instances)


class TooMany(Exception):
    """So many requests wait that no more are taken."""


class Commitments:
    """The folder. The receiver calls `add` from any thread; everything else is for the one process that sorts."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._waiting, self._given_up, self._told = folder / "waiting", folder / "given-up", folder / "told"
        self._files = files

    def create(self) -> None:
        """Make the folders that are missing."""
        for each in (self._waiting, self._given_up, self._told):
            self._files.make_folders(each)

    # --- the receiver's half ------------------------------------------------------------------------------------

    def add(self, transaction: str, who: tuple[str, str, str], instances: tuple[Reference, ...]) -> Commitment:
        """Keep a request; durable when this returns. `who` is calling and called AE title, and address.

        TooMany where so many wait already; OSError where it cannot be written: then there is nothing of it.
        """
        asker = hashlib.sha256(household(who[2]).encode()).hexdigest()[:8]
        waiting = self._files.scan(self._waiting)
        of_asker = [info.st_size for name, info in waiting if name.endswith(f"-{asker}.json")]
        for sizes, share in ([info.st_size for _, info in waiting], 1), (of_asker, 2):
            if len(sizes) >= MOST_WAITING // share or sum(sizes) >= MOST_BYTES_WAITING // share:
                raise TooMany
        request = Commitment(_new_id(asker), transaction, *who, now(), instances)
        path = self._waiting / f"{request.id}.json"
        try:
            self._files.write_file(path, _encoded(request))
        except OSError:
            self._forget(path)
            raise
        return request

    def _forget(self, path: Path) -> None:
        """An answer has said that it was not taken: nothing of it may be found later."""
        for each in (path, path.with_name(f"{path.name}{PART}")):
            if self._files.exists(each):
                self._files.unlink(each)

    # --- the sorter's half --------------------------------------------------------------------------------------

    def waiting(self) -> list[str]:
        """The identifiers of the requests that are not reported to the end, oldest first."""
        return [name.removesuffix(".json") for name in self._files.names(self._waiting) if name.endswith(".json")]

    def read(self, identifier: str) -> Commitment:
        """One that waits. ValueError where the file is not what it should be; FileNotFoundError where there is none."""
        return _decoded(self._files.read_file(self._waiting / f"{identifier}.json", limit=_LARGEST))

    def decide(self, request: Commitment, failed: Mapping[str, int]) -> Commitment:
        """Freeze the answer; durable when this returns."""
        decided = dataclasses.replace(request, failed=dict(failed))
        self._files.write_file(self._waiting / f"{request.id}.json", _encoded(decided))
        return decided

    def trouble(self, request: Commitment, why: str) -> Commitment:
        """It could not be reported: for `status` to say."""
        troubled = dataclasses.replace(request, trouble=why)
        self._files.write_file(self._waiting / f"{request.id}.json", _encoded(troubled))
        return troubled

    def finish(self, request: Commitment) -> None:
        """It was reported just now, or is answered with another; it no longer waits."""
        over = dataclasses.replace(request, trouble="", told=now())
        self._files.make_folders(self._place(request.id).parent)
        self._move(over, self._waiting, self._place(request.id).parent)

    def give_up(self, request: Commitment, why: str) -> None:
        """It is not tried any more."""
        self._move(dataclasses.replace(request, trouble="", given_up=why), self._waiting, self._given_up)

    def revive(self) -> None:
        """What was given up waits again."""
        for request in self._readable(self._given_up):
            self._move(dataclasses.replace(request, given_up=""), self._given_up, self._waiting)

    def _move(self, request: Commitment, old: Path, new: Path) -> None:
        self._files.write_file(new / f"{request.id}.json", _encoded(request))
        self._files.unlink(old / f"{request.id}.json")

    def tidy(self) -> None:
        """At a start: end the moves that a crash interrupted. One that was to wait again does."""
        for identifier in self.waiting():
            if self._files.exists(self._place(identifier)):
                self._files.unlink(self._waiting / f"{identifier}.json")
        for name in set(self._files.names(self._given_up)) & set(self._files.names(self._waiting)):
            self._files.unlink(self._given_up / name)

    # Others may look while the sorter moves: where a request comes from is read before where it goes to, so that it is
    # not missed, and one that is met in both counts once.

    def open(self) -> Iterator[Commitment]:
        """What waits, and what was given up: for `status`."""
        met = set()
        for folder in (self._waiting, self._given_up):
            for request in self._readable(folder):
                if request.id not in met:
                    met.add(request.id)
                    yield request

    def all(self) -> list[Commitment]:
        """Every request there ever was, oldest first, as evidence: each is a sender's own list of what it sent.

        What cannot be read is left out. A walk through all months: for people.
        """
        found = {each.id: each for each in self.open()}
        for month in self._names(self._told):
            found |= {each.id: each for each in self._readable(self._told / month)}
        return [found[identifier] for identifier in sorted(found)]

    def _readable(self, folder: Path) -> Iterator[Commitment]:
        for name in self._names(folder):
            if name.endswith(".json"):
                try:
                    yield _decoded(self._files.read_file(folder / name, limit=_LARGEST))
                except (FileNotFoundError, ValueError):
                    continue

    def _names(self, folder: Path) -> list[str]:
        try:
            return self._files.names(folder)
        except FileNotFoundError:
            return []

    def _place(self, identifier: str) -> Path:
        return self._told / identifier[:6] / f"{identifier}.json"


def _new_id(asker: str) -> str:
    """Sorts by time, and starts with the month; the random part keeps processes apart, and the last says who asks."""
    return f"{datetime.datetime.now().strftime('%Y%m%dT%H%M%S%f')}-{secrets.token_hex(4)}-{asker}"


def _encoded(request: Commitment) -> bytes:
    fields: dict[str, Any] = {each.name: getattr(request, each.name) for each in dataclasses.fields(request)}
    return line({name: value for name, value in fields.items() if value not in ("", None)})


def _decoded(data: bytes) -> Commitment:
    """ValueError where it is no request."""
    fields = json.loads(data)
    try:
        fields["instances"] = tuple(Reference(*map(str, pair)) for pair in fields["instances"])
        return Commitment(**fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"no request for storage commitment: {error}") from None
