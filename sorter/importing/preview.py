"""What an import would bring, told without writing anything: `sorter import --dry-run`.

Every file is read as it would be when it is taken. To know duplicates, about 150 bytes are remembered of each image:
an archive of 10 million images needs 1.5 GB, and can as well be looked at in parts.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.importing.walk import Found, Walk
from sorter.model import Instance, UnitKind, unit_key
from sorter.spool import Spool, Unit
from sorter.take import kinds
from sorter.take.header import Parsed, examine, instance_of

MOST_LISTED = 1000
"""Conflicts, and files that are no images, that are listed by path."""

_UNITS = 64  # of the store, held at a time

Group = Callable[[Instance], str | None]
"""The key of a series that a plugin groups otherwise."""


@dataclass(slots=True)
class Patient:
    """Of one patient: the studies and how many series and images."""

    studies: set[str] = field(default_factory=set)
    series: set[str] = field(default_factory=set)
    images: int = 0


@dataclass(slots=True)
class Preview:
    """Counts what is in an archive. `duplicates` are images that came before or are in the store; of `conflicts` the
    SOP Instance UID is taken by other pixels, of `other_headers` by the same pixels with another header.
    """

    spool: Spool | None
    group: Group
    hear: Callable[[Preview], None]
    files: int = 0
    size: int = 0
    images: int = 0
    new: int = 0
    duplicates: int = 0
    conflicts: int = 0
    other_headers: int = 0
    archives: int = 0  # that are not looked into: to unpack them takes room, and nothing is to be written
    patients: dict[str, Patient] = field(default_factory=dict)
    not_images: Counter[str] = field(default_factory=Counter)  # by reason
    unreadable: Counter[str] = field(default_factory=Counter)  # by reason: files and folders
    left_out: Counter[str] = field(default_factory=Counter)  # by reason: links and the like
    listed: list[tuple[str, str]] = field(default_factory=list)  # (path, what is to be said of it)
    _seen: dict[int, set[tuple[int, int]]] = field(default_factory=dict)  # by SOP instance: data sets and pixels
    _stored: OrderedDict[str, Unit] = field(default_factory=OrderedDict)

    def look(self, root: Path) -> None:
        """Read everything below `root`. OSError: it cannot be read at all."""
        walk = Walk(root, Files(), (), self._cannot)
        if self.spool is not None:
            walk.keep_out_of(self.spool.root)
        for parcel in walk.parcels():
            for found in parcel.files:
                self._read(found)
                self.hear(self)

    def _cannot(self, path: str, why: str, failed: bool) -> None:
        (self.unreadable if failed else self.left_out)[why] += 1
        self._list(path, why)

    def _list(self, path: str, says: str) -> None:
        if len(self.listed) < MOST_LISTED:
            self.listed.append((path, says))

    def _read(self, found: Found) -> None:
        files = Files()
        self.files += 1
        self.size += found.size
        try:
            with files.opened(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                if kinds.archive(files.pread(fd, kinds.HEAD, 0)):
                    self.archives += 1
                    self._list(found.path, "an archive: an import reads it, what is in it is not counted here")
                    return
                parsed = examine(files, fd)
        except Quarantine as reason:
            self.not_images[str(reason)] += 1
            self._list(found.path, str(reason))
        except OSError as error:
            self._cannot(found.path, f"it cannot be read: {error.strerror}", failed=True)
        else:
            self._count(parsed, found.path)

    def _count(self, parsed: Parsed, path: str) -> None:
        self.images += 1
        key = unit_key(UnitKind.SERIES, parsed.study_uid, self.group(instance_of(parsed)) or parsed.series_uid)
        who = str(parsed.header.get("PatientID") or parsed.header.get("PatientName") or "no-id")
        patient = self.patients.setdefault(who, Patient())
        patient.studies.add(parsed.study_uid)
        patient.series.add(key)
        patient.images += 1
        copy = (_short(parsed.dataset), _short(parsed.pixels))
        copies = self._seen.get(_short(f"{parsed.study_uid}\0{parsed.sop_uid}"), set()) | self._in_store(key, parsed)
        self._seen.setdefault(_short(f"{parsed.study_uid}\0{parsed.sop_uid}"), set()).add(copy)
        if not copies:
            self.new += 1
        elif copy in copies:
            self.duplicates += 1
        elif copy[1] in {pixels for _, pixels in copies}:
            self.other_headers += 1
            self._list(path, "its header differs from that of another copy of the same image")
        else:
            self.conflicts += 1
            self._list(path, "another image with other pixels has the same SOP Instance UID")

    def _in_store(self, key: str, parsed: Parsed) -> set[tuple[int, int]]:
        if self.spool is None:
            return set()
        unit = self._stored.pop(key, None) or Unit.load(self.spool, key)
        self._stored[key] = unit
        if len(self._stored) > _UNITS:
            self._stored.popitem(last=False)
        copies = (unit.instances[name] for name in unit.by_sop.get(parsed.sop_uid, ()))
        return {(_short(each.dataset), _short(each.pixels)) for each in copies}


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
