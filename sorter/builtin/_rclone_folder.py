"""A delivered folder at a remote of rclone, as one look found it: names, contents, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sorter.builtin._path_decide import remains
from sorter.builtin._path_folders import MARKER, TOO_LARGE, Look, bound, one_name
from sorter.builtin._rclone import Entry, Failed, Remote
from sorter.errors import TryLater
from sorter.model import Delivered

_MANIFEST = ".json"
_MOST_MANIFEST = 64 << 20  # bytes read of one


class Folder:
    """`path` is relative to the remote. `there` is what lies in it, by folded name: nothing where it does not exist."""

    def __init__(self, remote: Remote, path: str) -> None:
        self.remote, self.path = remote, path
        self.there = {self.fold(name): entry for name, entry in remote.listed(path).items()}
        self._manifests: dict[str, Mapping[str, Any]] = {}  # by name, as they were read

    def fold(self, name: str) -> str:
        return one_name(name) if self.remote.folds() else name

    def entry(self, name: str) -> Entry | None:
        return self.there.get(self.fold(name))

    def at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def look(self, name: str, size: int, *, read: bool) -> Look | None:
        """What has a name there; with its digest where `read`, or where its size is another than expected."""
        entry = self.entry(name)
        if entry is None:
            return None
        if entry.is_folder:
            return Look("", (), 0, entry.changed)
        if not read and entry.size == size:
            return Look("", (), entry.size, entry.changed)
        if entry.size > bound(size):
            return Look(TOO_LARGE, (), entry.size, entry.changed)
        digest = self.remote.digest(self.at(name))
        if digest is None:
            raise self.other()
        return Look(digest, (), entry.size, entry.changed)

    def other(self) -> TryLater:
        """What to raise where it is not any more as it was found."""
        return TryLater(f"{self.remote.name} changed while sorter worked there; it is tried again")

    def delete(self, files: Sequence[Delivered]) -> tuple[list[str], list[str]]:
        """Remove those that still equal what was delivered; (removed, left), names that are gone in neither.

        One name may have several digests, where it is not known which of two revisions came as far as the target.
        """
        removed, left = [], []
        for each in files:
            name = each.beside or each.name
            if each.state == "removed" or (each.state == "kept" and not each.beside) or name in removed:
                continue
            seen = self.look(name, each.size, read=True)
            if seen is not None and seen.sha256 == each.sha256:
                self.remote.delete(self.at(name))
                removed.append(name)
            elif seen is not None:
                left.append(name)
        left += remains(files, self.there)
        return removed, [name for name in dict.fromkeys(left) if name not in removed]

    # --- manifests ----------------------------------------------------------------------------------------------

    def manifest_name(self, key: str, product: str) -> str:
        """The name ours has, or will have, in this folder; longer where the short one is another unit's."""
        short = f"{MARKER}-{key[:8]}.{product}{_MANIFEST}"
        found = self._manifest_called(short)
        return f"{MARKER}-{key}.{product}{_MANIFEST}" if found and found.get("key") != key else short

    def manifest(self, key: str, product: str) -> Mapping[str, Any]:
        """Our own manifest in this folder; empty where there is none that can be read."""
        found = self._manifest_called(self.manifest_name(key, product))
        return found if (found.get("key"), found.get("product")) == (key, product) else {}

    def others(self, key: str, product: str, only: str = "") -> Iterator[Mapping[str, Any]]:
        """The manifests of other units and products in this folder."""
        for name in self.there:
            if name.startswith(f"{MARKER}-") and name.endswith(f".{only}{_MANIFEST}" if only else _MANIFEST):
                found = self._manifest_called(name)
                if found and (found.get("key"), found.get("product")) != (key, product):
                    yield found

    def _manifest_called(self, name: str) -> Mapping[str, Any]:
        if self.entry(name) is not None and name not in self._manifests:
            self._manifests[name] = read_manifest(self.remote, self.at(name))
        return self._manifests.get(name, {})


def read_manifest(remote: Remote, path: str) -> Mapping[str, Any]:
    """A manifest; empty where there is none that can be read."""
    content = bytearray()
    try:
        for piece in remote.read(path):
            content += piece
            if len(content) > _MOST_MANIFEST:
                return {}
        found = json.loads(bytes(content))
    except (ValueError, RecursionError):
        return {}
    except Failed as error:
        if error.is_missing:
            return {}
        raise
    return found if isinstance(found, dict) else {}
