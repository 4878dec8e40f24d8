"""The target kind "rclone": a place that rclone reaches, by SFTP, S3, WebDAV or another way, and that belongs to a lab.

What holds of a folder holds here (see `path_target`): nothing is delivered unless the marker `.sorter/id` is there; a
file is replaced only while it still has the digest that we gave it; what the lab removed stays removed, what it edited
stays, with ours beside it. Each file is written under another name below `.sorter/`, read back and compared, and only
then gets its own. What cannot be had here: that a folder appears as a whole, that a server has synced what it answered
for (it gives back what it was given, more is not known), and that a folder is found again which the lab moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from sorter.builtin._path_decide import suffixes, with_suffix
from sorter.builtin._path_folders import MARKER, components, file_name
from sorter.builtin._path_manifest import (
    digests_in,
    elsewhere,
    files_in,
    is_as_before,
    not_named,
    seconds_of,
    standing_of,
)
from sorter.builtin._path_sums import sums_name
from sorter.builtin._rclone import Failed, Remote, spoken
from sorter.builtin._rclone_folder import Folder
from sorter.builtin._rclone_put import Delivery, stage_of
from sorter.builtin._rclone_stage import Stage
from sorter.builtin.path_target import MOVED
from sorter.deliver.target import Checked, Done, Fetched, Put, Removed, Source, Verified
from sorter.durable import Files
from sorter.errors import Away, Held, TryLater
from sorter.model import DICOM, Receipt
from sorter.words import counted

_ID = f"{MARKER}/id"


class RcloneTarget:
    """Settings: `remote`, "NAME:PATH", and `config`, the absolute path of the rclone.conf in which NAME is."""

    def __init__(self, settings: Mapping[str, Any], files: Files | None = None) -> None:
        self._files = files or Files()
        remote, self._config = str(settings.get("remote") or ""), str(settings.get("config") or "")
        name, colon, _ = remote.partition(":")
        if not name or not colon or "]" in remote:
            raise Held('an rclone target needs a `remote`, as "NAME:PATH", with a NAME of rclone\'s configuration file')
        if not os.path.isabs(self._config):
            raise Held("an rclone target needs a `config`: the absolute path of rclone's configuration file")
        self._remote = Remote(remote, self._config, self._files)

    # --- the methods of a target --------------------------------------------------------------------------------

    def check(self, *, prepare: bool = False) -> Checked:
        """Write, read back, rename, replace and delete small files below `.sorter/`, as a delivery would."""
        with self._visit(prepare=prepare) as made, self._stage(f"check-{os.urandom(4).hex()}") as stage:
            for _ in range(2):
                stage.put_bytes("first", os.urandom(4096), f"{stage.path}/second")
            self._remote.delete(f"{stage.path}/second")
            return Checked((*made, *self._remarks()))

    def put(self, job: Put, source: Source) -> Done:
        if any(wanted.merge for wanted in job.files):  # no remote has a lock under which that could be done
            raise Held(f"{job.product} is one dataset of many units, which only a folder (kind path) can hold")
        for wanted in job.files:
            file_name(wanted.name)
        file_name(f"{job.key}.{job.product}")
        with self._visit():
            return Delivery(self._remote, job, self._files).run(source)

    def verify(self, receipt: Receipt, *, deep: bool = True) -> Verified:
        found: dict[str, list[str]] = {"same": [], "missing": [], "changed": [], "damaged": [], "outdated": []}
        with self._visit():
            folder = Folder(self._remote, receipt.folder)
            since, earlier = seconds_of(receipt.verified), _earlier_state(folder, receipt)
            for each in receipt.files:
                if each.state != "removed":
                    seen = folder.look(each.beside or each.name, each.size, read=deep)
                    standing = standing_of(each, seen, since, deep)
                    if earlier is not None and standing != "same" and is_as_before(each, seen, earlier):
                        standing = "outdated"
                    found[standing].append(each.name)
        by_state = {state: tuple(names) for state, names in found.items()}
        return Verified(receipt.folder, there=bool(folder.there), note="", **by_state)

    def remove(self, receipt: Receipt) -> Removed:
        with self._visit():
            self._remote.purge(stage_of(receipt.key, receipt.product))
            folder = Folder(self._remote, receipt.folder)
            manifest = folder.manifest(receipt.key, receipt.product)
            if not folder.there:
                return Removed(receipt.folder, note="its folder is not there any more")
            if _revision(manifest) > receipt.revision:
                return _remove_rest(folder, manifest, receipt)
            removed, left = folder.delete([*receipt.files, *elsewhere(receipt.files, files_in(manifest))])
            if not removed and not _was_here(folder, receipt):
                left = []
            elif receipt.moved and (left or _has_more(folder, receipt)):
                self._say_moved(folder, receipt)
            self._remove_manifest(folder, receipt)
            self._prune(receipt.folder)
        said = counted(len(left), "files were left: they are not as they were delivered") if left else ""
        return Removed(receipt.folder, tuple(removed), tuple(left), said)

    def fetch(self, receipt: Receipt, names: Sequence[str], into: Sequence[int]) -> Fetched:
        found: dict[bool, list[str]] = {True: [], False: []}
        listed = {each.beside or each.name: each for each in receipt.files}
        with self._visit():
            folder = Folder(self._remote, receipt.folder)
            for name, copy in zip(names, into, strict=True):
                each = listed.get(name)
                right = (
                    each is not None
                    and folder.entry(file_name(name)) is not None
                    and self._copied(folder.at(name), copy, each.size) == each.sha256
                )
                found[right].append(name)
        return Fetched(receipt.folder, tuple(found[True]), tuple(found[False]))

    def _copied(self, path: str, into: int, size: int) -> str:
        """Copy a file, as far as it is not larger than it should be; the SHA-256, in hex, of what was copied."""
        digest, count = hashlib.sha256(), 0
        for piece in self._remote.read(path):
            count += len(piece)
            if count > size:
                break
            digest.update(piece)
            self._files.write_all(into, piece)
        return digest.hexdigest() if count == size else ""

    # --- is it the right place? ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _visit(self, *, prepare: bool = False) -> Iterator[tuple[str, ...]]:
        """A job's stay: the place is the right one, and what rclone says becomes a sentence. Gives what there is to say
        of the marker, which is made if we are to `prepare`, and there is none."""
        try:
            if not self._files.exists(self._config):
                raise Held(f"rclone's configuration file {self._config} is not there, or not to be read")
            marked = "id" in self._remote.listed(MARKER)
            if prepare and not marked:
                self._mark()
            elif not marked:
                raise Away(
                    f"{self._remote.name} has no marker {_ID}: either it is not the right place, or "
                    "`sorter check --targets` was not run yet"
                )
            yield () if marked else (f"the marker {self._remote.name}/{_ID} was made",)
        except Failed as error:
            raise spoken(self._remote.name, error) from None

    def _mark(self) -> None:
        self._remote.make_folder(MARKER)
        with self._stage(f"mark-{os.urandom(4).hex()}") as stage:
            stage.put_bytes("id", f"{os.urandom(16).hex()}\n".encode(), _ID)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[Stage]:
        """One that is removed at the end, as far as the remote lets us."""
        stage = Stage(self._remote, f"{MARKER}/{name}.part", self._files)
        try:
            yield stage
        finally:
            with contextlib.suppress(Failed, TryLater):
                stage.end()

    def _remarks(self) -> Iterator[str]:
        if stat.S_IMODE(self._files.stat(self._config).st_mode) & 0o077:
            yield f"{self._config} holds secrets, and others on this machine may read it: chmod 600"
        described = self._remote.described()
        if described.get("type") == "sftp" and not described.get("known_hosts_file"):
            yield "any server that answers at its address is trusted with images: give it a known_hosts_file there"
        if any(_is_open(str(described.get(key) or "")) for key in ("url", "endpoint")):
            yield "images and secrets go there unencrypted: give it an address with https:// there"
        if not self._remote.has("Move"):
            yield "it cannot rename: each file is copied there once more, and read back twice"

    # --- what is left behind ------------------------------------------------------------------------------------

    def _say_moved(self, folder: Folder, receipt: Receipt) -> None:
        """Leave a file that says why what is here was not taken along, under a name that is free."""
        text = f"{receipt.moved}\n".encode()
        for name in (with_suffix(MOVED, suffix) for suffix in suffixes(receipt.key)):
            seen = folder.look(name, len(text), read=True)
            if seen is None:
                with self._stage(f"moved-{receipt.key}") as stage:
                    stage.put_bytes("moved", text, folder.at(name))
                return
            if seen.sha256 == hashlib.sha256(text).hexdigest():  # an earlier attempt's
                return

    def _remove_manifest(self, folder: Folder, receipt: Receipt) -> None:
        name = folder.manifest_name(receipt.key, receipt.product)
        hidden = folder.at(MARKER)
        if sums_name(name) in self._remote.listed(hidden):
            self._remote.delete(f"{hidden}/{sums_name(name)}")
        self._remote.remove_folder(hidden)
        if folder.entry(name) is not None:
            self._remote.delete(folder.at(name))

    def _prune(self, folder: str) -> None:
        """Remove the folder, and those above it, as far as they are empty now."""
        parts = components(folder)
        for count in range(len(parts), 0, -1):
            if not self._remote.remove_folder("/".join(parts[:count])):
                return


def _is_open(address: str) -> bool:
    """Can others on the way read what goes there?"""
    found = urlsplit(address)
    return found.scheme == "http" and found.hostname not in ("localhost", "127.0.0.1", "::1")


def _was_here(folder: Folder, receipt: Receipt) -> bool:
    """Is this folder where it was delivered? A receipt that was made of a plan does not know whether it was at all."""
    if folder.manifest(receipt.key, receipt.product):
        return True
    others = receipt.product == DICOM and any(folder.others(receipt.key, receipt.product, only=DICOM))
    return bool(receipt.verified) and not others


def _has_more(folder: Folder, receipt: Receipt) -> bool:
    """Does something lie beside our files that no other delivery brought: work of the lab?"""
    others = list(folder.others(receipt.key, receipt.product))
    claimed = {name for other in others for each in files_in(other) for name in (each.name, each.beside)}
    ours = {each.beside or each.name for each in receipt.files}
    known = {folder.fold(name) for name in claimed | ours}
    return any(
        not name.startswith(MARKER) and name not in known and not (entry.is_folder and others)
        for name, entry in folder.there.items()
    )


def _earlier_state(folder: Folder, receipt: Receipt) -> Mapping[str, list[str]] | None:
    """Where the folder's own manifest is of an earlier revision: what that one wrote; None where it is not."""
    manifest = folder.manifest(receipt.key, receipt.product)
    return digests_in(manifest) if 0 < _revision(manifest) < receipt.revision else None


def _remove_rest(folder: Folder, manifest: Mapping[str, Any], receipt: Receipt) -> Removed:
    """The folder holds a later revision, which was brought back before this went: what has other names there."""
    manifests = [manifest, *folder.others(receipt.key, receipt.product)]
    removed, left = folder.delete(not_named(receipt.files, manifests, folder.fold))
    note = "a later revision lies in its folder"
    return Removed(receipt.folder, tuple(removed), tuple(left) if receipt.verified else (), note)


def _revision(manifest: Mapping[str, Any]) -> int:
    found = manifest.get("revision")
    return found if isinstance(found, int) else 0
