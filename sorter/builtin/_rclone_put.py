"""One delivery to a remote of rclone: what becomes of each file there, and in which order it is done.

A server may be away at any moment of it, and with it half of a replacement: most take what had a name away first. So
the folder's manifest says before, which names are about to be replaced; what is away there is brought again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sorter.builtin._path_decide import (
    DAMAGED,
    Action,
    called,
    decide,
    endangered,
    in_force,
    mended,
    suffixes,
    with_suffix,
    without,
)
from sorter.builtin._path_folders import MARKER, Look, components
from sorter.builtin._path_manifest import digests_in, files_in, manifest_text, replaced_in, seconds_of
from sorter.builtin._path_sums import sums_name, sums_text
from sorter.builtin._rclone import Entry, Remote, at_once
from sorter.builtin._rclone_folder import Folder, read_manifest
from sorter.builtin._rclone_stage import Item, Stage
from sorter.deliver.target import Done, Put, Source, Wanted
from sorter.durable import Files
from sorter.errors import Held, TryLater
from sorter.model import DICOM, Delivered
from sorter.words import counted


@dataclass(slots=True)
class _Step:
    """One wanted file: the name it gets, what is to be done, and what was seen under that name."""

    item: Item
    name: str
    action: Action
    seen: Entry | None
    before: Delivered | None
    beside: str = ""

    @property
    def copied(self) -> bool:
        if self.action is Action.BESIDE:
            return self.seen is None
        return self.action in (Action.WRITE, Action.OVER, Action.ASIDE)

    def delivered(self) -> Delivered:
        want = self.item.wanted
        state = {Action.BESIDE: "kept", Action.KEPT: "kept", Action.REMOVED: "removed"}.get(self.action, "written")
        return Delivered(self.name, want.sha256, want.size, want.file, state, self.beside)


def stage_of(key: str, product: str) -> str:
    return f"{MARKER}/{key}-{product}.part"


class Delivery:
    """One put. Failed, TryLater, Held."""

    def __init__(self, remote: Remote, job: Put, files: Files) -> None:
        self._remote, self._job = remote, job
        self._stage = Stage(remote, stage_of(job.key, job.product), files)
        self._notes: list[str] = []
        self._folder, self._previous = self._place()
        self._manifest_name = self._folder.manifest_name(job.key, job.product)
        # Where both are there, the folder's is the later one; where its replacement was broken off, it is staged.
        self._staged = f"manifest-{hashlib.sha256(self._folder.path.encode()).hexdigest()[:16]}"
        self._manifest = self._folder.manifest(job.key, job.product) or read_manifest(
            remote, f"{self._stage.path}/{self._staged}"
        )

    def run(self, source: Source) -> Done:
        if not self._job.files and not self._previous:
            return self._done(())
        steps = self._steps()
        files, copied = tuple(step.delivered() for step in steps), [step for step in steps if step.copied]
        if not copied and not self._folder.there:
            return self._done(files)
        self._stage.fill([step.item for step in copied], source, keep=self._staged)
        self._compare(copied)
        if copied:
            # First what is about to be: should we be cut off, the next attempt knows these digests and names as ours.
            replacing = [step.name for step in copied if not step.beside]
            self._write_manifest(manifest_text(self._job, files, digests_in(self._manifest), replacing))
        at_once(self._give_name, copied)
        self._supersede(steps)
        self._write_manifest(manifest_text(self._job, files))
        sums = sums_name(self._manifest_name)
        self._stage.put_bytes("sums", sums_text(files), f"{self._folder.path}/{MARKER}/{sums}")
        self._stage.end()
        self._look_once_more(files)
        self._notes += _told([step.action for step in steps if step.before is not None])
        return self._done(files)

    def _done(self, files: tuple[Delivered, ...]) -> Done:
        if gone := sum(each.state == "removed" for each in files if self._folder.fold(each.name) not in self._before):
            self._notes.append(counted(gone, "files are not there any more, and have left the store"))
        return Done(self._folder.path, files, "; ".join(self._notes))

    # --- where --------------------------------------------------------------------------------------------------

    def _place(self) -> tuple[Folder, tuple[Delivered, ...]]:
        """The folder to deliver into, and what the receipt says of it: nothing where it is a new one."""
        job = self._job
        if job.previous is not None:
            folder = Folder(self._remote, "/".join(components(job.previous.folder)))
            if folder.there and not self._is_foreign(folder):
                return folder, job.previous.files
            self._notes.append("the folder delivered before is gone; the whole revision was delivered anew")
        for suffix in suffixes(job.key):
            folder = Folder(self._remote, "/".join(components(f"{job.folder}{suffix}")))
            if not self._is_foreign(folder):
                return folder, ()
        raise Held(f"{job.key[:8]}: every folder name for it belongs to another series; change the naming pattern")

    def _is_foreign(self, folder: Folder) -> bool:
        """Does this folder belong to another unit's images? Folders of made products are shared."""
        job = self._job
        if job.product != DICOM or job.shared or folder.manifest(job.key, job.product):
            return False
        return any(folder.others(job.key, job.product, only=DICOM))

    # --- what becomes of each file ------------------------------------------------------------------------------

    @functools.cached_property
    def _before(self) -> Mapping[str, Delivered]:
        return {self._folder.fold(each.name): each for each in self._previous}

    @functools.cached_property
    def _known(self) -> Mapping[str, Sequence[str]]:
        return {self._folder.fold(name): digests for name, digests in digests_in(self._manifest).items()}

    @functools.cached_property
    def _replaced(self) -> frozenset[str]:
        return frozenset(self._folder.fold(name) for name in replaced_in(self._manifest))

    @functools.cached_property
    def _claimed(self) -> frozenset[str]:
        others = self._folder.others(self._job.key, self._job.product)
        found = (each for other in others for each in files_in(other) if each.state != "removed")
        return frozenset(self._folder.fold(each.name) for each in found)

    def _steps(self) -> list[_Step]:
        job, receipt = self._job, self._previous
        before = {each.file: each for each in receipt}
        force = in_force(job.files, {each.name for each in receipt} or set(self._known), job.key)
        for suffix in (force,) if force or receipt else suffixes(job.key):
            names = called(job.files, before, job.key, self._folder.fold, suffix)
            steps = [self._step(Item(index, job.files[index]), name) for index, name in enumerate(names)]
            if not any(step.action is Action.CLASH for step in steps):
                break
        if receipt:  # only the newcomers get another name: what is there keeps the one it has
            steps = [self._renamed(step) for step in steps]
        if any(step.action is Action.CLASH for step in steps):
            raise Held(f"{job.key[:8]}: every name for its files is somebody else's there; change the naming pattern")
        for step in steps:
            self._name_beside(step)
        self._spare(steps)
        return steps

    def _spare(self, steps: Sequence[_Step]) -> None:
        """TryLater where the only copy of an image would go: it was not here when it was asked for."""
        fold = self._folder.fold
        outcome = {fold(name): step.action for step in steps for name in (step.name, step.beside) if name}
        for each in endangered(self._job.alone, self._previous, outcome, fold):
            seen = self._folder.look(each.beside or each.name, each.size, read=True)
            if seen is not None and seen.sha256 == each.sha256:
                raise TryLater(f"{self._remote.name}: what this replaces lies nowhere else, and is fetched first")

    def _step(self, item: Item, name: str) -> _Step:
        folder, wanted, folded = self._folder, item.wanted, self._folder.fold(name)
        had, ours = self._before.get(folded), self._known.get(folded, ())
        mend = had is not None and had.name in self._job.mend
        seen = self._look(name, wanted, None if mend else had)
        action = decide(wanted, had, ours, seen)
        if seen is not None and had is None and not ours and folded in self._claimed:
            action = Action.CLASH
        elif mend:
            action = mended(action, seen, ours, wanted)
        elif action is Action.REMOVED and folded in self._replaced:
            action = Action.WRITE
        if wanted.gone:
            action = without(action, seen)
        return _Step(item, name, action, folder.entry(name), had)

    def _look(self, name: str, wanted: Wanted, had: Delivered | None) -> Look | None:
        """What is there. What the receipt says, of the same size and not written to since, is not read again."""
        entry = self._folder.entry(name)
        if (
            (entry is not None and not entry.is_folder)
            and (had is not None and had.state == "written" and had.sha256 == wanted.sha256)
            and (entry.size == wanted.size and entry.changed <= self._since)
        ):
            return Look(wanted.sha256, (), entry.size, entry.changed)
        return self._folder.look(name, max(wanted.size, had.size if had is not None else 0), read=True)

    @functools.cached_property
    def _since(self) -> float:
        return seconds_of(self._job.previous.verified) if self._job.previous is not None else 0.0

    def _renamed(self, step: _Step) -> _Step:
        for suffix in suffixes(self._job.key)[1:]:
            if step.action is Action.CLASH:
                step = self._step(step.item, with_suffix(step.item.wanted.name, suffix))
        return step

    def _name_beside(self, step: _Step) -> None:
        """Where ours lies when the lab edited what had its name."""
        if step.action is Action.KEPT and step.before is not None:
            step.beside = step.before.beside
        if step.action is not Action.BESIDE:
            return
        for suffix in suffixes(self._job.key):
            step.beside = f"{step.name}.new-rev{self._job.revision}{suffix}"
            step.seen = self._folder.entry(step.beside)
            seen = self._folder.look(step.beside, step.item.wanted.size, read=True)
            if seen is None or seen.sha256 == step.item.wanted.sha256:  # an earlier attempt's
                return
        raise Held(
            f"{self._job.key[:8]}: every name beside an edited file is taken; tidy its folder, then `sorter retry`"
        )

    # --- effects ------------------------------------------------------------------------------------------------

    def _compare(self, copied: Sequence[_Step]) -> None:
        """While the files were on their way, did anybody write where they go? TryLater."""
        now = Folder(self._remote, self._folder.path)
        if any(now.entry(step.beside or step.name) != step.seen for step in copied):
            raise now.other()

    def _give_name(self, step: _Step) -> None:
        path = self._folder.at(step.beside or step.name)
        if step.action is Action.ASIDE:
            self._remote.move(path, self._folder.at(self._free(f"{step.name}{DAMAGED}")))
        self._stage.give(step.item.name, path)
        if step.action in (Action.OVER, Action.ASIDE) or not self._remote.has("Move"):
            self._stage.prove(path, step.item.wanted.sha256)

    def _free(self, name: str) -> str:
        number, found = 1, name
        while self._folder.entry(found) is not None:
            number, found = number + 1, f"{name}-{number + 1}"
        return found

    def _write_manifest(self, content: bytes) -> None:
        self._stage.put_bytes(self._staged, content, self._folder.at(self._manifest_name))

    def _supersede(self, steps: Sequence[_Step]) -> None:
        """Remove what the receipt names and this revision does not, as long as it is as we left it."""
        names = {self._folder.fold(name) for step in steps for name in (step.name, step.beside) if name}
        gone = [each for each in self._previous if self._folder.fold(each.beside or each.name) not in names]
        _, left = self._folder.delete(gone)
        if left:
            self._notes.append(counted(len(left), "files of an earlier revision were left: the lab edited them"))

    def _look_once_more(self, files: Sequence[Delivered]) -> None:
        """Are they all there under their names, as large as they should be?"""
        now = Folder(self._remote, self._folder.path)
        for each in files:
            entry = now.entry(each.beside or each.name)
            right = entry is not None and (each.state == "kept" or entry.size in (-1, each.size))
            if each.state != "removed" and not right:
                raise now.other()


def _told(actions: Sequence[Action]) -> Iterator[str]:
    aside = sum(action is Action.ASIDE for action in actions)
    kept = sum(action in (Action.BESIDE, Action.KEPT) for action in actions)
    gone = sum(action is Action.REMOVED for action in actions)
    if aside:
        yield counted(aside, "damaged files were replaced; what was there lies beside as NAME.damaged")
    if kept:
        yield counted(kept, "files that the lab edited were kept")
    if gone:
        yield counted(gone, "files that the lab removed were not brought back")
