"""The target kind "path": a folder, local or mounted (NFS, SMB, sshfs), that belongs to a lab.

The lab owns what lies below its root and may change any of it at any moment. So: nothing is delivered unless the
marker `.sorter/id` says that the mount is there; no link is followed; a folder appears whole, by one rename; a file is
replaced only while it still has the digest that we gave it; what the lab removed stays removed, what it edited stays,
with ours beside it. A job that comes twice, because its receipt was lost, finds its work done and changes nothing.

Each delivered folder holds `.sorter-<key>.<product>.json`, which says whose files these are, and by which a folder is
found again that the lab moved.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import hashlib
import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sorter.builtin import _path_merging as merging
from sorter.builtin import _path_nested as nested
from sorter.builtin._path_check import explained, made_remarks, probe
from sorter.builtin._path_check import mark as mark
from sorter.builtin._path_copies import copy_for_lab
from sorter.builtin._path_decide import (
    DAMAGED,
    Action,
    called,
    decide,
    endangered,
    in_force,
    mended,
    remains,
    suffixes,
    with_suffix,
    without,
)
from sorter.builtin._path_folders import (
    MARKER,
    Access,
    Look,
    Visit,
    bound,
    components,
    copied,
    digest,
    file_name,
    is_open_elsewhere,
    look,
    one_name,
    remove_tree,
    spoken,
    unchanged,
)
from sorter.builtin._path_lab import Corner
from sorter.builtin._path_manifest import (
    digests_in,
    elsewhere,
    files_in,
    is_as_before,
    manifest_text,
    not_named,
    seconds_of,
    standing_of,
)
from sorter.builtin._path_stage import Item, Stage
from sorter.builtin._path_sums import remove_sums, write_sums
from sorter.deliver.target import (
    Checked,
    Copied,
    Copies,
    Done,
    Fetched,
    LabLook,
    LabSeen,
    Put,
    Removed,
    Source,
    Verified,
    Wanted,
)
from sorter.durable import PART, Files
from sorter.errors import Held, TryLater
from sorter.model import DICOM, Delivered, Receipt
from sorter.words import counted

_MANIFEST = ".json"
MOVED = "MOVED.txt"
"""What is left where a correction took a series away from, and something of the lab's stays."""

_MOST_MANIFEST = 64 << 20  # bytes read of one
_FAMILIAR = 16  # files by which a folder is known again that has lost its manifest
_SEARCH_FOLDERS = 20_000  # looked into for a folder that the lab moved,
_SEARCH_ENTRIES = 200_000  # names seen there,
_SEARCH_DEPTH = 8  # and levels below the root


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a put goes: an existing folder to grow in, or (`fd` None) a new one. `before` is the receipt that holds
    there; `manifest` what our own hidden manifest in it says."""

    folder: str
    fd: int | None
    before: Receipt | None
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _History:
    """What is known of names in a folder: by the receipt, by our own manifest, and by those of other units."""

    before: Mapping[str, Delivered]  # by folded name
    known: Mapping[str, frozenset[str]]  # digests that our manifest says we wrote, by folded name
    claimed: Callable[[], frozenset[str]]  # folded names; read when first asked for
    fold: Callable[[str], str]
    mend: frozenset[str]  # names of the receipt that are to be as they were delivered


@dataclass(slots=True)
class _Step:
    """One wanted file: the name it gets, what is to be done, and what was seen under that name."""

    index: int
    wanted: Wanted
    name: str
    action: Action
    seen: Look | None
    before: Delivered | None
    beside: str = ""

    @property
    def copied(self) -> bool:
        if self.action is Action.BESIDE:
            return self.seen is not None
        return self.action in (Action.WRITE, Action.OVER, Action.ASIDE)

    def delivered(self) -> Delivered:
        want = self.wanted
        state = {Action.BESIDE: "kept", Action.KEPT: "kept", Action.REMOVED: "removed"}.get(self.action, "written")
        return Delivered(self.name, want.sha256, want.size, want.file, state, self.beside)


class PathTarget:
    """Settings: `root`, an absolute path; `group`, a name or number; `umask`, octal, in text (default 022, with a group
    027: files 0640, folders 02750); `threads`, how many files are synced at once."""

    def __init__(self, settings: Mapping[str, Any], files: Files | None = None) -> None:
        self._files = files or Files()
        self._root = str(settings.get("root") or "")
        if not os.path.isabs(self._root):
            raise Held(f"a path target needs an absolute `root`, not {self._root!r}")
        self._access = _access(settings)
        self._threads = int(settings.get("threads") or 8)
        self._corner = Corner()

    # --- the four methods of a target ---------------------------------------------------------------------------

    def check(self, *, prepare: bool = False) -> Checked:
        """Create, sync, rename, read back and delete a small file below `.sorter/`, as a delivery would."""
        with explained(self._root, self._files):
            made = prepare and mark(self._root, self._files)
            with self._visit() as visit:
                remarks = probe(visit, self._threads)
        return Checked((*made_remarks(self._root, self._files), *remarks) if made else remarks)

    def put(self, job: Put, source: Source) -> Done:
        own, shared = merging.apart(job)
        done = self._put_own(replace(job, files=own.files), own.source(source))
        if not shared.files:
            return done
        with self._visit() as visit:
            merging.join(visit, done.folder, shared.files, shared.source(source), _stage_name(job.key, job.product))
        return replace(done, note="; ".join(filter(None, (done.note, *visit.notes))))

    def _put_own(self, job: Put, source: Source) -> Done:
        if not nested.is_nested(job):
            return self._put(job, source)
        for each in nested.gone(job):
            self._remove(each)
        return nested.done(job, [(below, self._put(part, some)) for below, part, some in nested.puts(job, source)])

    def _put(self, job: Put, source: Source) -> Done:
        for wanted in job.files:
            file_name(wanted.name)
        file_name(f"{job.key}.{job.product}")
        with self._visit() as visit:
            place = self._place(visit, job)
            if place.fd is None:
                return self._whole(visit, place, job, source)
            return self._grow(visit, place, job, source)

    def verify(self, receipt: Receipt, *, deep: bool = True) -> Verified:
        parts = nested.receipts(receipt)
        if parts.keys() <= {""}:
            return self._verify(receipt, deep)
        return nested.verified(receipt.folder, {below: self._verify(each, deep) for below, each in parts.items()})

    def _verify(self, receipt: Receipt, deep: bool) -> Verified:
        with self._visit(alone=False) as visit:
            folder, fd = self._locate(visit, receipt)
            found: dict[str, list[str]] = {"same": [], "missing": [], "changed": [], "damaged": [], "outdated": []}
            since, earlier = seconds_of(receipt.verified), self._earlier_state(fd, receipt)
            for each in receipt.files:
                if each.state != "removed":
                    seen = None if fd is None else self._look_at(each, fd, deep)
                    standing = standing_of(each, seen, since, deep)
                    if earlier is not None and standing != "same" and is_as_before(each, seen, earlier):
                        standing = "outdated"
                    found[standing].append(each.name)
            said = "" if folder == receipt.folder else "the lab moved the folder"
            by_state = {state: tuple(names) for state, names in found.items()}
            return Verified(folder, there=fd is not None, note=said, **by_state)

    def _look_at(self, each: Delivered, fd: int, deep: bool) -> Look | None:
        name = each.beside or each.name
        seen = look(self._files, name, fd, read=deep, most=bound(each.size))
        if seen is not None and not deep and seen.size != each.size:
            return look(self._files, name, fd, most=bound(each.size))
        return seen

    def _earlier_state(self, fd: int | None, receipt: Receipt) -> Mapping[str, list[str]] | None:
        """Where the folder's own manifest is of an earlier revision: what that one wrote; None where it is not."""
        manifest = {} if fd is None else self._manifest(fd, receipt.key, receipt.product)
        revision = manifest.get("revision")
        return digests_in(manifest) if isinstance(revision, int) and revision < receipt.revision else None

    def remove(self, receipt: Receipt) -> Removed:
        parts = nested.receipts(receipt)
        if parts.keys() <= {""}:
            return self._remove(receipt)
        return nested.removed(receipt.folder, {below: self._remove(each) for below, each in parts.items()})

    def _remove(self, receipt: Receipt) -> Removed:
        with self._visit() as visit:
            folder, fd = self._locate(visit, receipt)
            if fd is None or self._is_newer(fd, receipt):
                with contextlib.suppress(NotADirectoryError):
                    self._clear_above(visit, receipt.folder, _stage_name(receipt.key, receipt.product))
                if fd is not None and folder == receipt.folder:
                    return self._remove_rest(visit, fd, receipt)
                return Removed(folder, note="its folder is not there any more")
            removed, left = self._unlink(fd, [*receipt.files, *self._under_other_names(fd, receipt)])
            if removed or self._was_here(fd, receipt):
                left += remains(receipt.files, (name for name, _ in self._files.scan(fd) if name not in left))
                if receipt.moved and (left or self._has_more(fd, receipt)):
                    self._say_moved(visit, fd, receipt)
            else:
                left = []
            name = self._manifest_name(fd, receipt.key, receipt.product)
            if self._files.exists(name, at=fd):
                self._files.unlink(name, at=fd)
            remove_sums(self._files, fd, name)
            remove_tree(self._files, _stage_name(receipt.key, receipt.product), fd)
            self._files.fsync_folder(fd)
            self._prune(visit, folder)
            said = counted(len(left), "files were left: they are not as they were delivered") if left else ""
            return Removed(folder, tuple(removed), tuple(left), said)

    def _remove_rest(self, visit: Visit, fd: int, receipt: Receipt) -> Removed:
        """Its folder holds a later revision, which was brought back before this went: what has other names there."""
        key, product = receipt.key, receipt.product
        manifests = [self._manifest(fd, key, product), *self._others(fd, key, product)]
        removed, left = self._unlink(fd, not_named(receipt.files, manifests, self._fold(visit)))
        self._files.fsync_folder(fd)
        note = "a later revision lies in its folder"
        return Removed(receipt.folder, tuple(removed), tuple(left) if receipt.verified else (), note)

    def _was_here(self, fd: int, receipt: Receipt) -> bool:
        """Is this folder where it was delivered? A receipt that was made of a plan does not know whether it was at all,
        and where the lab moved a folder away another series may have its place."""
        if self._manifest(fd, receipt.key, receipt.product):
            return True
        others = receipt.product == DICOM and any(self._others(fd, receipt.key, receipt.product, only=DICOM))
        return bool(receipt.verified) and not others

    def look_at_lab(self, job: LabLook, source: Source) -> LabSeen:
        with self._visit(alone=False) as visit:
            return self._corner.look(visit, job, source)

    def copy_for_lab(self, job: Copies, source: Source) -> Copied:
        with self._visit() as visit:
            return copy_for_lab(visit, job, source, self._threads)

    def _has_more(self, fd: int, receipt: Receipt) -> bool:
        """Does something lie beside our files that no other delivery brought: work of the lab?"""
        others = list(self._others(fd, receipt.key, receipt.product))
        claimed = {name for other in others for each in files_in(other) for name in (each.name, each.beside)}
        ours = {each.beside or each.name for each in receipt.files}
        for name, info in self._files.scan(fd):
            if name.startswith(MARKER) or name in claimed or name in ours:
                continue
            if not stat.S_ISDIR(info.st_mode) or not others:
                return True
        return False

    def _say_moved(self, visit: Visit, fd: int, receipt: Receipt) -> None:
        """Leave a file that says why what is here was not taken along, under a name that is free."""
        text = f"{receipt.moved}\n".encode()
        for suffix in suffixes(receipt.key):
            name = with_suffix(MOVED, suffix)
            if not self._files.exists(name, at=fd):
                stage = Stage(visit, fd, _stage_name(receipt.key, receipt.product), self._threads)
                with stage.opened():
                    stage.put_bytes(name, text)
                    stage.move_new(name, fd, name)
                    stage.end()
                return
            seen = look(self._files, name, fd)
            if seen is not None and seen.sha256 == hashlib.sha256(text).hexdigest():  # an earlier attempt's
                return

    def fetch(self, receipt: Receipt, names: Sequence[str], into: Sequence[int]) -> Fetched:
        found: dict[bool, list[str]] = {True: [], False: []}
        listed = {each.beside or each.name: each for each in receipt.files}
        with self._visit(alone=False) as visit:
            folder, fd = self._locate(visit, receipt)
            for name, copy in zip(names, into, strict=True):
                each = listed.get(name)
                right = (
                    each is not None
                    and fd is not None
                    and copied(self._files, file_name(name), fd, copy)
                    and digest(self._files, copy) == each.sha256
                )
                found[right].append(name)
        return Fetched(folder, tuple(found[True]), tuple(found[False]))

    def _under_other_names(self, fd: int, receipt: Receipt) -> list[Delivered]:
        """What our manifest says of the receipt's own files: a receipt lost in a crash may not know their names."""
        if self._is_newer(fd, receipt):
            return []
        return elsewhere(receipt.files, files_in(self._manifest(fd, receipt.key, receipt.product)))

    def _is_newer(self, fd: int, receipt: Receipt) -> bool:
        """Does the folder hold a later revision? Then it is the successor's, found where this one's is gone."""
        revision = self._manifest(fd, receipt.key, receipt.product).get("revision")
        return isinstance(revision, int) and revision > receipt.revision

    # --- where --------------------------------------------------------------------------------------------------

    def _place(self, visit: Visit, job: Put) -> _Place:
        if job.previous is not None:
            folder, fd = self._locate(visit, job.previous)
            if fd is not None and not self._foreign(fd, job):
                if folder != job.previous.folder:
                    visit.note("the lab moved the folder; the new files went to where it is now")
                return _Place(folder, fd, job.previous, self._manifest(fd, job.key, job.product))
            visit.note("the folder delivered before is gone; the whole revision was delivered anew")
        for suffix in suffixes(job.key):
            folder = f"{job.folder}{suffix}" if suffix else job.folder
            fd = visit.walk(folder)
            if fd is None:
                return _Place(folder, None, None, {})
            if not self._foreign(fd, job):
                return _Place(folder, fd, None, self._manifest(fd, job.key, job.product))
        raise Held(f"{job.key[:8]}: every folder name for it belongs to another series; change the naming pattern")

    def _foreign(self, fd: int, job: Put) -> bool:
        """Does this folder belong to another unit's images? Folders of made products are shared."""
        if job.product != DICOM or job.shared or self._manifest(fd, job.key, job.product):
            return False
        return any(self._others(fd, job.key, job.product, only=DICOM))

    def _locate(self, visit: Visit, receipt: Receipt) -> tuple[str, int | None]:
        """The folder of a receipt: at its place, or wherever the lab moved it to."""
        try:
            fd = visit.walk(receipt.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            fd = None  # a link or a file took its place: perhaps the folder is elsewhere
        if fd is not None and (self._manifest(fd, receipt.key, receipt.product) or self._familiar(fd, receipt)):
            return receipt.folder, fd
        moved = self._search(visit, receipt)
        if moved is not None:
            return moved, visit.walk(moved)
        return receipt.folder, fd

    def _familiar(self, fd: int, receipt: Receipt) -> bool:
        """Without our manifest: does the folder hold our files, by name and size, and no other unit's images?"""
        if receipt.product == DICOM and any(self._others(fd, receipt.key, receipt.product, only=DICOM)):
            return False
        for each in [each for each in receipt.files if each.state == "written"][:_FAMILIAR]:
            seen = look(self._files, each.name, fd, read=False)
            if seen is not None and seen.size == each.size:
                return True
        return False

    def _search(self, visit: Visit, receipt: Receipt) -> str | None:
        """Look for our manifest below the root, nearest first, within bounds."""
        parts = components(receipt.folder)
        starts = [parts[:count] for count in range(len(parts) - 1, -1, -1)]
        waiting, seen, entries = deque(starts), set[tuple[int, int]](), 0
        while waiting and len(seen) < _SEARCH_FOLDERS and entries < _SEARCH_ENTRIES:
            here = waiting.popleft()
            with visit.passing(here) as fd:
                if fd is None:
                    continue
                info = self._files.stat(fd)
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
                if self._manifest(fd, receipt.key, receipt.product):
                    return "/".join(here)
                listed = self._files.scan(fd)
            entries += len(listed)
            below = [name for name, info in listed if stat.S_ISDIR(info.st_mode) and not name.startswith(MARKER)]
            if len(here) < _SEARCH_DEPTH:
                # What lies below a near ancestor comes before the next ancestor's.
                waiting.extendleft((*here, name) for name in reversed(below))
        return None

    # --- a folder that is not there yet -------------------------------------------------------------------------

    def _whole(self, visit: Visit, place: _Place, job: Put, source: Source) -> Done:
        parts = components(place.folder)
        if not job.files:
            return Done(place.folder, (), "; ".join(visit.notes))
        above = visit.make("/".join(parts[:-1]))
        names = called(job.files, {}, job.key, self._fold(visit))
        files = tuple(_as_new(name, want) for name, want in zip(names, job.files, strict=True))
        here = [Item(index, name, job.files[index]) for index, name in enumerate(names) if not job.files[index].gone]
        if len(here) < len(files):
            visit.note(counted(len(files) - len(here), "files are not there any more, and have left the store"))
        if not here:
            return Done(place.folder, files, "; ".join(visit.notes))
        stage = Stage(visit, above, _stage_name(job.key, job.product), self._threads)
        with stage.opened():
            with stage.filling(here, source):
                manifest = self._manifest_name(stage.fd, job.key, job.product)
                stage.put_bytes(manifest, manifest_text(job, files))
                write_sums(stage, stage.fd, manifest, files)
            stage.become(parts[-1], manifest)
        visit.settle("/".join(parts[:-1]))
        return Done(place.folder, files, "; ".join(visit.notes))

    # --- a folder that is there ---------------------------------------------------------------------------------

    def _grow(self, visit: Visit, place: _Place, job: Put, source: Source) -> Done:
        assert place.fd is not None
        fd = place.fd
        steps = self._steps(visit, place, job)
        for step in steps:
            self._name_beside(fd, step, job)
        self._spare(visit, place, job, steps)
        files = tuple(step.delivered() for step in steps)
        self._clear_above(visit, place.folder, _stage_name(job.key, job.product))
        stage = Stage(visit, fd, _stage_name(job.key, job.product), self._threads)
        manifest = self._manifest_name(fd, job.key, job.product)
        copied = [step for step in steps if step.copied]
        with stage.opened():
            stage.fill([Item(step.index, step.name, step.wanted) for step in copied], source)
            if copied:
                # First what is about to be: should we die in between, the next revision knows these digests as ours.
                stage.put_bytes(manifest, manifest_text(job, files, digests_in(place.manifest)))
                stage.move_over(manifest, fd, manifest)
                self._files.fsync_folder(fd)
            for step in copied:
                self._move(stage, fd, step)
            self._supersede(visit, place, steps)
            stage.put_bytes(manifest, manifest_text(job, files))
            stage.move_over(manifest, fd, manifest)
            write_sums(stage, fd, manifest, files)
            stage.end()
        if place.before is None:  # perhaps a dead worker made these folders and never synced them
            visit.settle(place.folder)
        else:
            self._files.fsync_folder(fd)
        self._tell(visit, steps)
        return Done(place.folder, files, "; ".join(visit.notes))

    def _steps(self, visit: Visit, place: _Place, job: Put) -> list[_Step]:
        assert place.fd is not None
        receipt = place.before.files if place.before else ()
        history = self._history(visit, place, job)
        before = {each.file: each for each in receipt}
        force = in_force(job.files, {each.name for each in receipt} or set(history.known), job.key)
        for suffix in (force,) if force or receipt or job.exact else suffixes(job.key):
            names = called(job.files, before, job.key, history.fold, suffix)
            steps = [self._step(place.fd, index, job.files[index], name, history) for index, name in enumerate(names)]
            if not any(step.action is Action.CLASH for step in steps):
                return steps
        if job.exact:
            product = job.product.partition(".")[0]  # without the folder that this is a part for
            raise Held(f"{job.key[:8]}: names of its {product} are another unit's there, or the lab's own; say another "
                       "subject or session (`sorter fix`), or move it away, then `sorter retry`")  # fmt: skip
        if receipt:  # only the newcomers get another name: what is there keeps the one it has
            return [self._renamed(place.fd, job, step, history) for step in steps]
        raise Held(f"{job.key[:8]}: every name for its files is somebody else's there; change the naming pattern")

    def _history(self, visit: Visit, place: _Place, job: Put) -> _History:
        fd, fold = place.fd, self._fold(visit)
        assert fd is not None

        @functools.cache
        def claimed() -> frozenset[str]:
            others = self._others(fd, job.key, job.product)
            return frozenset(fold(each.name) for other in others for each in files_in(other) if each.state != "removed")

        receipt = place.before.files if place.before else ()
        known = {fold(name): frozenset(digests) for name, digests in digests_in(place.manifest).items()}
        before = {fold(each.name): each for each in receipt}
        return _History(before, known, claimed, fold, frozenset(job.mend) if receipt else frozenset())

    def _step(self, fd: int, index: int, wanted: Wanted, name: str, history: _History) -> _Step:
        folded = history.fold(name)
        had, ours = history.before.get(folded), history.known.get(folded, frozenset())
        mend = had is not None and had.name in history.mend
        most = None if mend else bound(max(wanted.size, had.size if had is not None else 0))
        seen = look(self._files, name, fd, settle=had is None, most=most)
        action = decide(wanted, had, ours, seen)
        if seen is not None and had is None and not ours and folded in history.claimed():
            action = Action.CLASH
        elif mend:
            action = mended(action, seen, ours, wanted)
        if wanted.gone:
            action = without(action, seen)
        return _Step(index, wanted, name, action, seen, had)

    def _renamed(self, fd: int, job: Put, step: _Step, history: _History) -> _Step:
        for suffix in suffixes(job.key)[1:]:
            if step.action is not Action.CLASH:
                return step
            step = self._step(fd, step.index, step.wanted, with_suffix(step.wanted.name, suffix), history)
        if step.action is Action.CLASH:
            raise Held(f"{job.key[:8]}: every name for one of its files is somebody else's; change the naming pattern")
        return step

    def _name_beside(self, fd: int, step: _Step, job: Put) -> None:
        """Where ours lies when the lab edited what had its name."""
        if step.action is Action.KEPT and step.before is not None:
            step.beside = step.before.beside
        if step.action is not Action.BESIDE:
            return
        plain_name = f"{step.name}.new-rev{job.revision}"
        for suffix in suffixes(job.key):
            step.beside = f"{plain_name}{suffix}"
            seen = look(self._files, step.beside, fd, most=bound(step.wanted.size))
            if seen is None:
                return
            if seen.sha256 == step.wanted.sha256:  # an earlier attempt's
                step.seen = None
                return
        raise Held(f"{job.key[:8]}: every name beside an edited file is taken; tidy its folder, then `sorter retry`")

    def _spare(self, visit: Visit, place: _Place, job: Put, steps: Sequence[_Step]) -> None:
        """TryLater where the only copy of an image would go: it was not here when it was asked for."""
        if place.before is None or place.fd is None or not job.alone:
            return
        fold = self._fold(visit)
        outcome = {fold(name): step.action for step in steps for name in (step.name, step.beside) if name}
        for each in endangered(job.alone, place.before.files, outcome, fold):
            seen = look(self._files, each.beside or each.name, place.fd, most=bound(each.size))
            if seen is not None and seen.sha256 == each.sha256:
                raise TryLater(f"{visit.root}: what this replaces lies nowhere else, and is fetched first")

    def _move(self, stage: Stage, fd: int, step: _Step) -> None:
        if step.action is Action.ASIDE:
            stage.keep_aside(step.name, fd, f"{step.name}{DAMAGED}")
            damaged = look(self._files, step.name, fd)
            if step.seen is not None and damaged is not None and damaged.sha256 == step.seen.sha256:
                step.seen = damaged  # the second name changed its times
        if step.action in (Action.OVER, Action.ASIDE) and step.seen is not None:
            if not unchanged(self._files, step.name, fd, step.seen):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))  # edited just now: decide anew, later
            stage.move_over(step.name, fd, step.name)
        else:
            stage.move_new(step.name, fd, step.beside or step.name)

    def _supersede(self, visit: Visit, place: _Place, steps: Sequence[_Step]) -> None:
        """Remove what the receipt names and this revision does not, as long as it is as we left it."""
        if place.before is None or place.fd is None:
            return
        fold = self._fold(visit)
        names = {fold(name) for step in steps for name in (step.name, step.beside) if name}
        gone = [each for each in place.before.files if each.state != "removed" and fold(each.name) not in names]
        beside = [each for each in place.before.files if each.beside and fold(each.beside) not in names]
        _, left = self._unlink(place.fd, [*gone, *(each for each in beside if each not in gone)])
        if left:
            visit.note(counted(len(left), "files of an earlier revision were left: the lab edited them"))

    def _unlink(self, fd: int, files: Sequence[Delivered]) -> tuple[list[str], list[str]]:
        """Remove those that still equal what was delivered; (removed, left), names that are gone in neither.

        One name may have several digests, where it is not known which of two revisions came as far as the target.
        """
        removed, left = [], []
        for each in files:
            if each.state == "removed" or (each.state == "kept" and not each.beside):
                continue
            name = each.beside or each.name
            seen = look(self._files, name, fd, most=bound(each.size))
            if seen is None:
                continue
            if seen.sha256 == each.sha256 and unchanged(self._files, name, fd, seen):
                self._files.unlink(name, at=fd)
                removed.append(name)
            else:
                left.append(name)
        return removed, [name for name in dict.fromkeys(left) if name not in removed]

    def _clear_above(self, visit: Visit, folder: str, stage: str) -> None:
        """A stage beside the folder is what a dead worker left when the folder was not there yet."""
        parts = components(folder)
        if parts:
            above = visit.walk("/".join(parts[:-1]))
            if above is not None:
                remove_tree(self._files, stage, above)
                self._files.fsync_folder(above)  # else what was withdrawn may be there again after a power cut

    def _tell(self, visit: Visit, steps: Sequence[_Step]) -> None:
        aside = sum(step.action is Action.ASIDE for step in steps)
        if aside:
            visit.note(counted(aside, "damaged files were replaced; what was there lies beside as NAME.damaged"))
        kept = sum(step.action in (Action.BESIDE, Action.KEPT) for step in steps)
        gone = sum(step.action is Action.REMOVED for step in steps)
        if kept:
            visit.note(counted(kept, "files that the lab edited were kept"))
        if gone:
            visit.note(counted(gone, "files that the lab removed were not brought back"))

    def _prune(self, visit: Visit, folder: str) -> None:
        """Remove the folder, and those above it, as far as they are empty now."""
        parts = components(folder)
        for count in range(len(parts), 0, -1):
            above = visit.walk("/".join(parts[: count - 1]))
            assert above is not None
            try:
                self._files.rmdir(parts[count - 1], at=above)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return
                raise
            self._files.fsync_folder(above)

    # --- manifests ----------------------------------------------------------------------------------------------

    def _manifest_name(self, fd: int, key: str, product: str) -> str:
        """The name ours has, or will have, in this folder; longer where the short one is another unit's."""
        short = f"{MARKER}-{key[:8]}.{product}{_MANIFEST}"
        found = self._read_manifest(fd, short)
        if found and found.get("key") != key:
            return f"{MARKER}-{key}.{product}{_MANIFEST}"
        return short

    def _manifest(self, fd: int, key: str, product: str) -> Mapping[str, Any]:
        """Our own manifest in this folder; empty where there is none that can be read."""
        found = self._read_manifest(fd, self._manifest_name(fd, key, product))
        return found if (found.get("key"), found.get("product")) == (key, product) else {}

    def _others(self, fd: int, key: str, product: str, only: str = "") -> Iterator[Mapping[str, Any]]:
        """The manifests of other units and products in this folder."""
        for name in self._files.names(fd):
            if not name.startswith(f"{MARKER}-") or not name.endswith(f".{only}{_MANIFEST}" if only else _MANIFEST):
                continue
            found = self._read_manifest(fd, name)
            if found and (found.get("key"), found.get("product")) != (key, product):
                yield found

    def _read_manifest(self, fd: int, name: str) -> Mapping[str, Any]:
        info = None
        try:
            info = self._files.stat(name, at=fd)
            if not stat.S_ISREG(info.st_mode):
                return {}
            found = json.loads(self._files.read_file(name, at=fd, limit=_MOST_MANIFEST))
        except (ValueError, RecursionError):
            return {}
        except OSError as error:
            if info is not None and is_open_elsewhere(error, info):
                raise  # whose the folder is can be known only later
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.EFBIG, errno.EACCES, errno.ENAMETOOLONG):
                return {}
            raise
        return found if isinstance(found, dict) else {}

    # --- small things -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _visit(self, *, alone: bool = True) -> Iterator[Visit]:
        try:
            with Visit(self._files, self._root, self._access, alone=alone) as visit:
                yield visit
        except OSError as error:
            raise spoken(self._root, error) from error

    def _fold(self, visit: Visit) -> Callable[[str], str]:
        return one_name if visit.folds() else str


def _stage_name(key: str, product: str) -> str:
    return f"{MARKER}-{key[:8]}-{product}{PART}"


def _as_new(name: str, want: Wanted) -> Delivered:
    state = "removed" if want.gone else "written"
    return Delivered(name, want.sha256, want.size, want.file, state)


def _access(settings: Mapping[str, Any]) -> Access:
    group, umask = settings.get("group"), settings.get("umask")
    mask = int(str(umask), 8) if umask is not None else 0o022
    if group in (None, ""):
        return Access(None, 0o666 & ~mask, 0o777 & ~mask)
    try:
        gid = int(group) if str(group).isdigit() else grp.getgrnam(str(group)).gr_gid
    except KeyError:
        raise Held(f"there is no group {group!r} on this machine; make it, or give the target another") from None
    if umask is None:
        mask = 0o027
    return Access(gid, 0o666 & ~mask, 0o2000 | 0o777 & ~mask)
