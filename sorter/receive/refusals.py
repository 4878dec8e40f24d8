"""Who was refused, kept for a day: counted by kind, so that a flood costs neither memory nor disk.

Each process of the receiver writes `received/<worker>/door.json`, alone; `told` puts those of all processes together.
AE titles and addresses are no patient's data, but anybody's text: titles come without control characters
(`upper_layer.decode_request`), and their number is bounded here.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.receive.gate import Caller, Refusal

log = logging.getLogger("sorter.receive")

DOOR = "door.json"
KEPT = 86400.0
"""Seconds that a refusal is told, from the last time it happened."""

_PAUSE = 3.0  # seconds between two writings
_MOST_OF_ADDRESS = 16  # kinds of one address, before its titles are no longer told apart
_MOST = 256  # kinds, before addresses are no longer told apart
_LIMIT = 1 << 20  # bytes of a file that is read; ours are far below

MANY = "*"
"""In place of a title or an address: many of them, which are not told apart any more."""


@dataclass(slots=True)
class Refused:
    """Callers of one kind that were refused for one reason; times are seconds since the epoch."""

    calling: str
    called: str
    address: str
    reason: str
    count: int = 0
    first: float = 0.0
    last: float = 0.0

    def __str__(self) -> str:
        who = "callers of many titles" if self.calling == MANY else self.calling
        where = "many addresses" if self.address == MANY else self.address
        calling = "" if self.called in ("", MANY) else f" calling {self.called}"
        return f"refused {self.count:,} × {f'{who} from ' if who else ''}{where}{calling}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Open:
    """What a process of the receiver says of its own door."""

    host: str
    port: int
    everybody: bool  # whoever reaches it is admitted, and that is not this machine alone
    since: float  # seconds since the epoch


@dataclass(slots=True)
class Door:
    """What is known about a door: who was refused at it, and how it stands open."""

    refused: list[Refused] = field(default_factory=list)
    open: Open | None = None


class Refusals:
    """Those of one process. Every method may be called from any thread."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._path, self._files = folder / DOOR, files
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str, str, str], Refused] = {}
        self._of_address: dict[str, int] = {}
        self._open: Open | None = None
        self._changed = False
        self._next = 0.0  # monotonic: not written again before

    def begin(self, door: Open) -> None:
        """Go on with what an earlier process of this worker has counted."""
        with self._lock:
            self._open = door
            for each in _read(self._files, self._path).refused:
                self._of_address[each.address] = self._of_address.get(each.address, 0) + 1
                self._kinds[(each.calling, each.called, each.address, each.reason)] = each
            self._try_to_write()

    def open(self, door: Open) -> None:
        """The door stands otherwise from now on."""
        with self._lock:
            self._open = door
            self._try_to_write()

    def note(self, caller: Caller, refusal: Refusal) -> None:
        """Somebody was refused."""
        now = time.time()
        with self._lock:
            kind = self._kind(caller, refusal.reason)
            kind.first = kind.first or now
            kind.last = now
            kind.count += 1
            self._changed = True
            says = str(kind) if str(kind.count).strip("0") == "1" else ""
        if says:  # the first, the tenth, the hundredth: a flood must not fill the log either
            log.warning("%s", says)

    def tick(self) -> None:
        """To be called now and then: writes what changed. What cannot be written now is written later."""
        with self._lock:
            if self._changed and time.monotonic() >= self._next:
                self._try_to_write()

    def close(self) -> None:
        """The end of this process."""
        with self._lock:
            if self._changed:
                self._try_to_write()

    def _kind(self, caller: Caller, reason: str) -> Refused:
        name = (caller.calling, caller.called, caller.address, reason)
        if name not in self._kinds and self._of_address.get(caller.address, 0) >= _MOST_OF_ADDRESS:
            name = (MANY, MANY, caller.address, reason)
        if name not in self._kinds and len(self._kinds) >= _MOST:
            name = (MANY, MANY, MANY, reason)
        if name not in self._kinds:
            self._kinds[name] = Refused(*name)
            self._of_address[name[2]] = self._of_address.get(name[2], 0) + 1
        return self._kinds[name]

    def _forget_old(self) -> None:
        oldest = time.time() - KEPT
        self._kinds = {name: each for name, each in self._kinds.items() if each.last >= oldest}
        self._of_address = {}
        for each in self._kinds.values():
            self._of_address[each.address] = self._of_address.get(each.address, 0) + 1

    def _try_to_write(self) -> None:
        self._next, self._changed = time.monotonic() + _PAUSE, True
        try:
            self._write()
        except OSError as error:
            log.error("who was refused cannot be written to %s: %s", self._path.name, error.strerror)

    def _write(self) -> None:
        self._forget_old()
        said = {
            "open": asdict(self._open) if self._open is not None else None,
            "refused": [asdict(each) for each in self._kinds.values()],
        }
        # Not synced: a power cut may take the last seconds' refusals, and must not make the lobby wait for the disk.
        self._files.write_file(self._path, json.dumps(said, ensure_ascii=False).encode(), durable=False)
        self._changed = False


def told(received: Path, files: Files) -> Door:
    """What all processes of the receiver say: refusals of a day, the latest first, and the door that opened last."""
    door, kinds = Door(), dict[tuple[str, str, str, str], Refused]()
    for each in _doors(received, files):
        if each.open is not None and (door.open is None or each.open.since > door.open.since):
            door.open = each.open
        for refused in each.refused:
            name = (refused.calling, refused.called, refused.address, refused.reason)
            kinds[name] = _together(kinds[name], refused) if name in kinds else refused
    oldest = time.time() - KEPT
    recent = [each for each in kinds.values() if each.last >= oldest]
    door.refused = sorted(recent, key=lambda each: each.last, reverse=True)
    return door


def _together(one: Refused, other: Refused) -> Refused:
    first, last, count = min(one.first, other.first), max(one.last, other.last), one.count + other.count
    return Refused(one.calling, one.called, one.address, one.reason, count, first, last)


def _doors(received: Path, files: Files) -> Iterator[Door]:
    for worker in files.names(received):
        if files.is_folder(received / worker):
            yield _read(files, received / worker / DOOR)


def _read(files: Files, path: Path) -> Door:
    """What is written at `path`; nothing where there is nothing, or what a power cut left."""
    try:
        said: dict[str, Any] = json.loads(files.read_file(path, limit=_LIMIT))
        return Door([Refused(**each) for each in said["refused"]], Open(**said["open"]) if said["open"] else None)
    except FileNotFoundError:
        return Door()
    except (ValueError, TypeError, KeyError):
        return Door()
