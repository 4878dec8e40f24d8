"""Mistakes that somebody could make one day: each must be caught by the enumeration, or it proves nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

import pytest

from sorter.builtin import _path_stage
from sorter.builtin._path_folders import Visit
from sorter.durable import Files, PathLike
from sorter.pipeline.delivering import Delivering
from sorter.receive import arrivals
from sorter.spool import Unit
from sorter.take import filing

Mutant = Callable[[pytest.MonkeyPatch], None]


def no_folder_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Files, "fsync_folder", lambda self, path: None)
    patch.setattr(Files, "fsync_folders", lambda self, paths: None)


def no_folder_sync_while_taking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Files, "fsync_folders", lambda self, paths: None)


def evidence_before_folders(patch: pytest.MonkeyPatch) -> None:
    def commit(self: filing.Filing, batch: filing._Batch) -> None:
        for key, entries in batch.evidence.items():
            batch.units[key].add_evidence(entries)
        self._files.fsync_folders(batch.folders)

    patch.setattr(filing.Filing, "_commit", commit)
    patch.setattr(filing.Filing, "_is_there", lambda *_: True)  # which would find it again


def answer_before_the_name_is_synced(patch: pytest.MonkeyPatch) -> None:
    def store(self: arrivals.Commit, part: arrivals.Part) -> None:
        self._files.fsync(part.fd)
        self._files.rename(part.part, part.name, at=part.segment.folder, to=part.segment.folder)

    patch.setattr(arrivals.Commit, "store", store)


def rename_before_the_bytes_are_synced(patch: pytest.MonkeyPatch) -> None:
    def store(self: arrivals.Commit, part: arrivals.Part) -> None:
        folder = part.segment.folder
        self._files.rename(part.part, part.name, at=folder, to=folder)
        self._files.fsync_folder(folder)
        self._files.fsync(part.fd)

    patch.setattr(arrivals.Commit, "store", store)


def no_sync_of_received_bytes(patch: pytest.MonkeyPatch) -> None:
    def store(self: arrivals.Commit, part: arrivals.Part) -> None:
        folder = part.segment.folder
        self._files.rename(part.part, part.name, at=folder, to=folder)
        self._files.fsync_folder(folder)

    patch.setattr(arrivals.Commit, "store", store)


def received_file_removed_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    _removed_at_once(patch, lambda candidate: candidate.own)


def dropped_file_removed_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    _removed_at_once(patch, lambda candidate: not candidate.own)


def _removed_at_once(patch: pytest.MonkeyPatch, which: Callable[[filing.Candidate], bool]) -> None:
    put = filing.Filing._put

    def eager(self: filing.Filing, step: filing._Step, unit: Unit, place: str, batch: filing._Batch) -> None:
        put(self, step, unit, place, batch)
        if which(step.candidate):
            self._files.unlink(step.candidate.path)

    patch.setattr(filing.Filing, "_put", eager)


def copies_moved_into_the_store_before_they_are_synced(patch: pytest.MonkeyPatch) -> None:
    sync = Files.fsync_all

    def fsync_all(self: Files, files: Iterable[PathLike], folders: Iterable[PathLike] = ()) -> None:
        if folders := list(folders):  # else they are copies
            sync(self, files, folders)

    patch.setattr(Files, "fsync_all", fsync_all)


def files_written_in_place(patch: pytest.MonkeyPatch) -> None:
    def write_file(self: Files, path: object, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
        with self.opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as fd:  # type: ignore[arg-type]
            self.write_all(fd, data)
            self.fsync(fd)
        self.fsync_folder(os.path.dirname(path))  # type: ignore[call-overload]

    patch.setattr(Files, "write_file", write_file)


def records_not_synced(patch: pytest.MonkeyPatch) -> None:
    def write_file(self: Files, path: str, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
        with self.opened(f"{path}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as fd:
            self.write_all(fd, data)
        self.rename(f"{path}.part", path)

    patch.setattr(Files, "write_file", write_file)


def receipt_before_the_delivered_folder_is_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Visit, "settle", lambda self, relative: None)


def delivered_bytes_not_synced(patch: pytest.MonkeyPatch) -> None:
    def write(self: _path_stage.Stage, group: object, source: object) -> contextlib.ExitStack:
        for item in group:  # type: ignore[attr-defined]
            with self.files.opened(item.name, _path_stage._NEW, 0o644, at=self.fd) as fd:
                self.files.copy(source(item.index), fd)  # type: ignore[operator]
        return contextlib.ExitStack()

    patch.setattr(_path_stage.Stage, "_write", write)


def groups_that_nobody_waits_for(patch: pytest.MonkeyPatch) -> None:
    def filling(self: _path_stage.Stage, items: object, source: object) -> contextlib.AbstractContextManager[None]:
        for group in _path_stage._groups(items):  # type: ignore[arg-type]
            with self._write(group, source) as written:  # type: ignore[arg-type]
                written.pop_all()
        return contextlib.nullcontext()

    patch.setattr(_path_stage.Stage, "filling", filling)


def receipt_without_delivery(patch: pytest.MonkeyPatch) -> None:
    send = Delivering._send

    def early(self: Delivering, live: object, delivery: object, files: object) -> None:
        from sorter.model import Delivered, Receipt

        done = tuple(Delivered(each.name, each.sha256, each.size, each.file) for each in files)  # type: ignore[attr-defined]
        where = (delivery.product, delivery.target)  # type: ignore[attr-defined]
        receipt = Receipt(live.key, *where, live.plan.revision, delivery.folder, done, "")  # type: ignore[attr-defined]
        live.unit.write_receipt(receipt)  # type: ignore[attr-defined]
        send(self, live, delivery, files)  # type: ignore[arg-type]

    patch.setattr(Delivering, "_send", early)


MUTANTS: tuple[Mutant, ...] = (
    no_folder_sync,
    no_folder_sync_while_taking,
    evidence_before_folders,
    answer_before_the_name_is_synced,
    rename_before_the_bytes_are_synced,
    no_sync_of_received_bytes,
    received_file_removed_before_the_commit,
    dropped_file_removed_before_the_commit,
    copies_moved_into_the_store_before_they_are_synced,
    files_written_in_place,
    records_not_synced,
    receipt_before_the_delivered_folder_is_synced,
    delivered_bytes_not_synced,
    groups_that_nobody_waits_for,
    receipt_without_delivery,
)

OF_DROPS = (dropped_file_removed_before_the_commit, copies_moved_into_the_store_before_they_are_synced)
"""Of them, those that only what was dropped can suffer from."""
