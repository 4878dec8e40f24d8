"""The seam: what is asked of an engine, and what all of them have in common.

An engine makes `Work` somewhere, in whatever order, and says of each job once how it ended. What it made lies then in
the job's folder below `scratch`, as `sorter.engine.scratch` describes it, and is adopted from there. Another engine is
a subclass that begins and ends jobs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sorter.durable import Files
from sorter.engine import scratch
from sorter.engine.work import Limits, Made, Outcome, Work, check_relative
from sorter.model import Job, plain
from sorter.naming import safe_component

_ASIDE = "."  # begins the name of scratch that is to be removed; no job's id does


class Engine(ABC):
    """`scratch` must lie on the file system that products are adopted into.

    Callers are one thread; none of these calls waits for a job, a network or a share. `wake` is called, from any
    thread, whenever `finished` has something new.
    """

    def __init__(self, scratch: Path, files: Files, limits: Limits, wake: Callable[[], None] | None) -> None:
        self.scratch, self.files, self.limits, self.wake = scratch.absolute(), files, limits, wake
        self._lock = threading.Lock()  # of the two below
        self._done: dict[str, Outcome] = {}
        self._news: list[Outcome] = []
        self._broom = ThreadPoolExecutor(1, "broom")  # a disk may need seconds for the copies of a large series

    # --- what an engine does itself ---------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, work: Work) -> None:
        """Take on a job; ValueError where its id is in use. `_finish` says, from any thread, how it ended."""

    @abstractmethod
    def cancel(self, job: str) -> None:
        """End a job wherever it is; it has no outcome. Nothing happens where there is no such job."""

    @abstractmethod
    def stop(self) -> None:
        """Let go of everything. Jobs of this machine end; what was not adopted is made again, or found again."""

    def standing(self) -> Mapping[str, str]:
        """Of jobs that have not ended, by their ids, what is known of them, as a sentence for their unit alone."""
        return {}

    def problems(self) -> list[str]:
        """Sentences on what keeps every job from being made; [] while nothing does."""
        return []

    def all_submitted(self) -> None:  # noqa: B027 (most engines have none)
        """After a start everything was looked at: jobs of an earlier life that nobody submitted are not wanted."""

    # --- what they have in common -----------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Have a job made. ValueError where its names are not plain, or its id is in use.

        A finished job of the same id that was not adopted, perhaps because that failed, is dropped for the new one.
        """
        work.check()
        with self._lock:
            finished = work.id in self._done
        if finished:
            self.drop(work.id)
        self._begin(work)

    def finished(self) -> list[Outcome]:
        """Jobs that ended since the last call. Each is then to be adopted or dropped."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def adopt(self, job: str, into: Path) -> tuple[Made, ...]:
        """Move what a job made to the folder `into`, durably; its scratch is removed soon.

        What stood at `into` before is replaced. KeyError where there is no such finished job, ValueError where it
        made nothing, OSError where a file is not what it was when the job ended.
        """
        with self._lock:
            outcome = self._done[job]
        if outcome.state != "made":
            raise ValueError(f"job {job} made nothing: {outcome.why}")
        files, out = self.files, self.scratch / job / scratch.OUT
        folders = {out}
        for made in outcome.files:
            path = out / made.name
            folders.update(parent for parent in path.parents if parent.is_relative_to(out))
            with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                if files.stat(fd).st_size != made.size:
                    raise OSError(f"{made.name} of job {job} has changed since the job ended")
                files.fsync(fd)
        files.fsync_folders(folders)
        files.make_folders(into.parent)
        scratch.clear(into, files)
        files.rename(out, into)
        files.fsync_folder(into.parent)
        self.drop(job)
        return outcome.files

    def drop(self, job: str) -> None:
        """Forget a finished job; its scratch is removed soon. KeyError where there is none."""
        with self._lock:
            del self._done[job]
            self._news = [outcome for outcome in self._news if outcome.id != job]
        self._sweep(job)

    def _sweep(self, job: str) -> None:
        """Remove its scratch, out of the way of the next job of this id at once, and from the disk soon.

        What the disk does not remove now is removed at the next start.
        """
        aside = self.scratch / f"{_ASIDE}{secrets.token_hex(4)}-{job}"
        with suppress(FileNotFoundError):  # a job that was never laid out has none
            self.files.rename(self.scratch / job, aside)
            self._broom.submit(self._clear, aside)

    def _clear(self, folder: Path) -> None:
        with suppress(OSError):
            scratch.clear(folder, self.files)

    def _sweep_leftovers(self) -> None:
        """At the start: whatever an earlier life left. What that had put aside keeps its name, or it would grow."""
        self.files.make_folders(self.scratch)
        for name in self.files.names(self.scratch):
            if name.startswith(_ASIDE):
                self._broom.submit(self._clear, self.scratch / name)
            else:
                self._sweep(name)

    def _put_broom_away(self) -> None:
        """Finish the folder at hand; what else is left is removed at the next start."""
        self._broom.shutdown(wait=True, cancel_futures=True)

    def _finish(self, outcome: Outcome) -> None:
        with self._lock:
            self._done[outcome.id] = outcome
            self._news.append(outcome)
        if self.wake is not None:
            self.wake()


def description(work: Work, limits: Limits) -> dict[str, Any]:
    """What `sorter.engine.child` is told of a job, as JSON can carry it."""
    product = work.product
    inputs = {name: f"{scratch.IN}/{name}" for name in work.inputs}
    job = Job(product.name, inputs, scratch.OUT, work.settings, work.header, product.cpus, work.identity)
    return {
        "job": plain(job),
        "make": product.make,
        "timeout": product.timeout,
        "memory": product.memory,
        "limits": dataclasses.asdict(limits),
    }


def outcome_in(folder: Path, work: Work, files: Files) -> Outcome | None:
    """What the job's supervisor wrote, checked, because the job could have reached its folder; None if it wrote nothing
    that can be read.
    """
    try:
        said = json.loads(scratch.left(folder / scratch.OUTCOME, 16 << 20, files))
        made = tuple(Made(str(name), str(sha256), int(size)) for name, sha256, size in said.get("files", ()))
        later = said.get("later") is True
        outcome = Outcome(work.id, said["state"], str(said["why"]), str(said["log"]), made, later=later)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if outcome.state not in ("made", "nothing", "failed"):
        return Outcome(work.id, "failed", "the job's outcome is none that there is")
    known = work.product.merge  # a plugin names these beforehand, hidden ones too
    unsafe = next((each.name for each in made if each.name not in known and not _is_safe(each.name)), None)
    if unsafe is not None:
        why = f"it made a file with a name that is not safe: {unsafe[:80]!a}"
        return Outcome(work.id, "failed", why, outcome.log)
    if not _are_apart([each.name for each in made]):
        return Outcome(work.id, "failed", "the job's outcome names two things alike", outcome.log)
    return outcome


def _are_apart(names: Sequence[str]) -> bool:
    """Could all of these be files below one folder?"""
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    return len(set(names)) == len(names) and folders.isdisjoint(names)


def _is_safe(name: str) -> bool:
    """A relative name whose every step could be the name of a file at any target."""
    try:
        check_relative(name)
    except ValueError:
        return False
    return all(safe_component(step) == step for step in name.split("/"))


KEPT = ("PATH", "LD_LIBRARY_PATH", "TZ")
"""What a job sees of our environment; besides, all that Python itself needs to find the same packages."""


def environment() -> dict[str, str]:
    """For every process that leads to a job: no secret of ours."""
    found = {name: os.environ[name] for name in KEPT if name in os.environ}
    if "PYTHONPATH" in os.environ:
        paths = os.environ["PYTHONPATH"].split(os.pathsep)
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths)
    return {**found, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def environment_in(folder: Path, cpus: int) -> dict[str, str]:
    """What a job has besides: every temporary file inside its own folder, and as many threads as it asked for."""
    inside = str(folder / scratch.TMP)
    threads = {name: str(cpus) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**threads, "HOME": inside, "TMPDIR": inside}
