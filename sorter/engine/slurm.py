"""The engine of a cluster: each job is staged on a share, submitted to Slurm by submitit, and fetched when it is over.

One thread does all of it, so that neither Slurm nor the share holds up anything else. What it knows lies outside of it:
the job's folder on the share, and Slurm's own list, in which the job's working folder names it. So a sorter that was
ended finds its jobs again. Of submitit's files only the log is ever read: a result is JSON, for to unpickle what a job
wrote would be to run it here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.engine import remote, scratch
from sorter.engine.engine import KEPT, Engine, outcome_in
from sorter.engine.turns import Turns
from sorter.engine.work import Limits, Outcome, Work
from sorter.words import counted

log = logging.getLogger("sorter.sort")

OWNER = ".sorter"
"""The file in the shared folder that says whose it is."""

_LOOK_EVERY = 2.0  # seconds between two looks at Slurm's list while there are jobs
_TELL_EVERY = 10.0  # seconds between two looks at what a job prints
_CLUSTER_EVERY = 10.0  # seconds between two looks at the nodes while jobs wait
_AGAIN = 20.0  # seconds until Slurm is asked again after it did not answer, or would not take a job
_PATIENCE = 30.0  # seconds for a command of Slurm
_STUCK = 90.0  # seconds without a sign of the thread before that is said
_LATE = 30.0  # seconds for what a node wrote to be seen here, after its job is over
_MARGIN = 10  # minutes that a job may be there beyond its own time: it is to be ended by its supervisor, not by Slurm
_ROOM = 256  # MiB of a job's memory for the Pythons around it
_LAST_LINE = 200  # characters
_TRIES = 3  # times in one life that a job is submitted again because its node failed

_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}
_NODE_FAILED = {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"}
_USABLE = {"idle", "mixed", "allocated", "completing", "planned"}


@dataclass(frozen=True)
class JobTerms:
    """What Slurm is asked for. None: as the cluster has it; of `time` (minutes), `memory` (MiB) as the product says."""

    partition: str | None = None
    account: str | None = None
    time: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Cluster:
    """Where jobs are staged, how many at a time, and for whom on which terms. `python` is what nodes run."""

    shared: Path
    owner: str  # the spool, as it is told apart from others
    jobs: int = 100
    python: str | None = None
    usual: JobTerms = JobTerms()
    labs: Mapping[str, JobTerms] = field(default_factory=dict)

    def terms(self, lab: str) -> JobTerms:
        return self.labs.get(lab, self.usual)


@dataclass(frozen=True, slots=True)
class Listed:
    """A job in Slurm's list."""

    number: str
    state: str
    reason: str
    nodes: str


@dataclass(slots=True)
class _Job:
    work: Work
    listed: Listed | None = None
    over: float = 0.0  # monotonic, since when Slurm calls it over
    says: str = ""
    stands: tuple[str, str, str] = ("", "", "")
    told: float = 0.0  # monotonic
    tries: int = 0


class SlurmError(Exception):
    """Slurm, or the share, does not do what it is asked; as a sentence."""


class Refused(SlurmError):
    """Slurm does not take this job: it may be for the terms of its lab, so others are tried."""


class SlurmEngine(Engine):
    """Makes products on a cluster."""

    def __init__(
        self, cluster: Cluster, scratch: Path, files: Files, limits: Limits, wake: Callable[[], None] | None = None
    ) -> None:
        super().__init__(scratch, files, limits, wake)
        self.cluster = cluster
        self._slurm = Slurm(cluster)
        self._turns = Turns()  # these, and all below, under the lock
        self._jobs: dict[str, _Job] = {}
        self._unwanted: set[str] = set()
        self._clear_rest = self._stopping = False
        self._trouble = self._away = ""
        self._refused: dict[str, tuple[float, str]] = {}  # by lab: until when it is not asked again, and why
        self._busy_since: float | None = None  # monotonic, since when the thread waits for Slurm or the share
        self._poke = threading.Event()
        self._nodes_looked_at = -_CLUSTER_EVERY
        self._sweep_leftovers()
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    # --- for the caller -----------------------------------------------------------------------------------------

    def _begin(self, work: Work) -> None:
        with self._lock:
            if work.id in self._jobs or work.id in self._turns:
                raise ValueError(f"there is a job {work.id} already")
            self._turns.waiting.append(work)
        self._poke.set()

    def drop(self, job: str) -> None:
        super().drop(job)
        with self._lock:
            self._unwanted.add(job)
        self._poke.set()

    def cancel(self, job: str) -> None:
        with self._lock:
            self._turns.remove(job)
            finished = job in self._done
            self._unwanted.add(job)
        if finished:
            self.drop(job)
        self._poke.set()

    def stop(self) -> None:
        """Jobs go on in Slurm, and are found again by the next life."""
        with self._lock:
            self._stopping = True
        self._poke.set()
        self._thread.join(timeout=5)  # a share that hangs holds the thread, and ends with this process
        self._put_broom_away()

    def settle(self, patience: float) -> None:
        """Wait until what is not wanted any more is gone, so many seconds at most."""
        end = time.monotonic() + patience
        while self._unwanted and not self._trouble and time.monotonic() < end:
            time.sleep(0.1)

    def all_submitted(self) -> None:
        with self._lock:
            self._clear_rest = True
        self._poke.set()

    def standing(self) -> Mapping[str, str]:
        with self._lock:
            waits = {
                work.id: self._trouble or self._refused.get(work.lab, (0.0, "waits for its turn"))[1]
                for work in self._turns.waiting
            }
            return waits | {job: each.says for job, each in self._jobs.items() if each.says}

    def problems(self) -> list[str]:
        with self._lock:
            count = len(self._jobs) + len(self._turns.waiting)
            stuck = self._busy_since is not None and time.monotonic() - self._busy_since > _STUCK
            refused = Counter(self._refused[work.lab][1] for work in self._turns.waiting if work.lab in self._refused)
        if stuck:
            return [
                f"the engine has not come back from {self.cluster.shared}, or from Slurm, for a while; products wait"
            ]
        said = [(each, count) for each in (self._trouble, self._away) if each]
        said += refused.items()
        return [f"{each}: {counted(count, 'products wait')}; images are delivered meanwhile" for each, count in said]

    # --- the engine's own thread ----------------------------------------------------------------------------------

    def _live(self) -> None:
        while not self._stopping:
            self._poke.clear()
            self._busy_since = time.monotonic()
            says = self._tried()
            if says != self._trouble:
                self._trouble = says
                self._call()
            self._busy_since = None
            rest = _AGAIN if says else _LOOK_EVERY
            if not self._stopping and not self._more():
                self._poke.wait(rest if self._jobs or self._unwanted or self._refused or says else None)

    def _tried(self) -> str:
        """A turn; why there is trouble, "" if there is none."""
        try:
            self._turn()
        except SlurmError as error:
            return str(error)
        except OSError as error:
            return f"{self.cluster.shared}: {error.strerror}"
        except Exception as error:
            log.exception("the engine stumbled")
            return f"the engine stumbled ({type(error).__name__}; the log has more)"
        return ""

    def _more(self) -> bool:
        with self._lock:
            asked = any(work.lab not in self._resting() for work in self._turns.waiting)
            return asked and len(self._jobs) < self.cluster.jobs and not self._trouble

    def _resting(self) -> set[str]:
        """Labs of which Slurm has just refused a job."""
        now = time.monotonic()
        return {lab for lab, (until, _) in self._refused.items() if until > now}

    def _call(self) -> None:
        if self.wake is not None:
            self.wake()

    def _turn(self) -> None:
        """Look at Slurm's list once, and do what follows from it."""
        self._own_shared()
        listed = self._slurm.list()
        self._remove_unwanted(listed)
        for job in list(self._jobs.values()):
            self._look_at(job, listed.get(job.work.id))
        self._take_on(listed)
        self._look_at_nodes()

    def _own_shared(self) -> None:
        """The shared folder is this sorter's alone: another one would remove its jobs."""
        shared, owner = self.cluster.shared, self.cluster.owner.encode()
        if not self.files.is_folder(shared):
            self.files.mkdir(shared, 0o700)
        mark = shared / OWNER
        if not self.files.exists(mark):
            self.files.write_file(mark, owner)
        elif self.files.read_file(mark, limit=4096) != owner:
            raise SlurmError(f"{shared} belongs to another sorter; name a folder of its own in [engine.slurm] shared")

    def _remove_unwanted(self, listed: Mapping[str, Listed]) -> None:
        with self._lock:
            unwanted, clear_rest = set(self._unwanted), self._clear_rest
            known = {*self._jobs, *self._done, *(work.id for work in self._turns.waiting)}
        if clear_rest:
            names = {name for name in self.files.names(self.cluster.shared) if not name.startswith(".")}
            unwanted |= names - known
            self._clear_rest = False
        for job in sorted(unwanted):
            self._remove(job, listed.get(job))
            with self._lock:
                self._unwanted.discard(job)
                self._jobs.pop(job, None)

    def _remove(self, job: str, listed: Listed | None) -> None:
        if listed is not None and listed.state not in _OVER | _NODE_FAILED:
            self._slurm.cancel(listed.number)
        scratch.clear(self.cluster.shared / job, self.files)

    def _take_on(self, listed: Mapping[str, Listed]) -> None:
        """Submit what waits; what an earlier life submitted is taken up where it is."""
        while not self._stopping:
            with self._lock:
                running, resting = [each.work.lab for each in self._jobs.values()], self._resting()
                work = self._turns.take(running, resting) if len(running) < self.cluster.jobs else None
                if work is None:
                    labs = {each.lab for each in self._turns.waiting}
                    self._refused = {lab: each for lab, each in self._refused.items() if lab in labs}
                    return
                job = self._jobs[work.id] = _Job(work)
            self._busy_since = time.monotonic()
            if work.id in self._unwanted:  # what failed before is in the way of what is tried now
                self._remove(work.id, listed.get(work.id))
                with self._lock:
                    self._unwanted.discard(work.id)
            elif self._is_there(work.id, listed.get(work.id)):
                self._look_at(job, listed.get(work.id))
                continue
            try:
                self._try_to_submit(job)
            except SlurmError:
                self._wait_again(work)
                raise

    def _try_to_submit(self, job: _Job) -> None:
        """What Slurm refuses waits, and is no trouble of other labs."""
        try:
            self._submit(job)
        except Refused as error:
            self._wait_again(job.work)
            self._refuse(job.work.lab, str(error))
        else:
            self._refuse(job.work.lab, "")

    def _wait_again(self, work: Work) -> None:
        with self._lock:
            self._jobs.pop(work.id, None)
            if work.id not in self._unwanted:  # it was cancelled meanwhile
                self._turns.waiting.insert(0, work)

    def _refuse(self, lab: str, why: str) -> None:
        """Slurm takes no job of this lab for now; "": it does."""
        with self._lock:
            before = self._refused.pop(lab, (0.0, ""))[1]
            if why:
                self._refused[lab] = time.monotonic() + _AGAIN, why
        if why != before:
            self._call()

    def _is_there(self, job: str, listed: Listed | None) -> bool:
        active = listed is not None and listed.state not in _OVER | _NODE_FAILED
        return active or self.files.exists(self.cluster.shared / job / scratch.OUTCOME)

    def _submit(self, job: _Job) -> None:
        work, folder = job.work, self.cluster.shared / job.work.id
        terms = self.cluster.terms(work.lab)
        timeout = work.product.timeout
        if terms.time is not None:
            timeout = min(timeout, max(1, (terms.time - 1) * 60))
        try:
            remote.stage(work, folder, self.limits, timeout, self.files)
        except FileNotFoundError as error:
            if error.filename is not None and Path(error.filename).is_relative_to(self.cluster.shared):
                raise
            self._end(job, Outcome(work.id, "failed", "an input is gone", later=True))
            return
        number = self._slurm.submit(work, folder, terms)
        job.listed, job.over = None, 0.0
        self._say(job, f"job {number} of Slurm waits")

    def _look_at(self, job: _Job, listed: Listed | None) -> None:
        folder = self.cluster.shared / job.work.id
        job.listed = listed
        if listed is not None and listed.state not in _OVER | _NODE_FAILED:
            job.over = 0.0
            self._tell(job, listed)
            return
        outcome = outcome_in(folder, job.work, self.files)
        if outcome is not None:
            self._end(job, self._fetched(outcome, folder))
            return
        job.over = job.over or time.monotonic()
        if listed is not None and listed.state in _NODE_FAILED:
            self._submit_again(job, f"the node of job {listed.number} of Slurm failed ({listed.state})")
        elif time.monotonic() - job.over > _LATE or (listed is not None and listed.state != "COMPLETED"):
            self._lost(job, listed)

    def _lost(self, job: _Job, listed: Listed | None) -> None:
        if listed is None:
            self._submit_again(job, "Slurm does not know its job any more")
            return
        why = {
            "CANCELLED": "was cancelled there",
            "TIMEOUT": "took longer than Slurm gave it",
            "OUT_OF_MEMORY": "took more memory than Slurm gave it",
        }.get(listed.state, f"ended there without a result ({listed.state})")
        log = self._log(self.cluster.shared / job.work.id, listed.number)
        self._end(job, Outcome(job.work.id, "failed", f"job {listed.number} of Slurm {why}", log))

    def _submit_again(self, job: _Job, why: str) -> None:
        job.tries += 1
        if job.tries > _TRIES:
            self._end(job, Outcome(job.work.id, "failed", f"{why}, {job.tries} times", later=True))
            return
        self._try_to_submit(job)

    def _fetched(self, outcome: Outcome, folder: Path) -> Outcome:
        """The outcome with its files in the scratch of this machine, read from the share once and compared."""
        here = self.scratch / outcome.id
        scratch.clear(here, self.files)
        self.files.mkdir(here, 0o700)
        said = scratch.fetch(outcome.files, folder / scratch.OUT, here / scratch.OUT, self.files)
        if said:
            return replace(outcome, state="failed", why=said, files=())
        return outcome

    def _end(self, job: _Job, outcome: Outcome) -> None:
        self._finish(outcome)
        with self._lock:
            self._jobs.pop(job.work.id, None)

    # --- what is told -----------------------------------------------------------------------------------------------

    def _say(self, job: _Job, says: str) -> None:
        if job.says != says:
            job.says = says
            self._call()

    def _tell(self, job: _Job, listed: Listed) -> None:
        """How it stands; what it prints is looked at now and then only."""
        stands = (listed.number, listed.state, listed.reason)
        if job.stands != stands or time.monotonic() - job.told > _TELL_EVERY:
            job.stands, job.told = stands, time.monotonic()
            self._say(job, self._progress(self.cluster.shared / job.work.id, listed))

    def _progress(self, folder: Path, listed: Listed) -> str:
        if listed.state == "PENDING":
            return f"job {listed.number} of Slurm waits ({listed.reason})"
        last = next((line.strip() for line in reversed(self._log(folder).splitlines()) if line.strip()), "")
        said = f", and says: {last[-_LAST_LINE:]}" if last else ""
        return f"job {listed.number} of Slurm is {listed.state.lower()} on {listed.nodes or 'a node'}{said}"

    def _log(self, folder: Path, number: str = "") -> str:
        """What the job printed; of one that did not get as far, what stood in its way."""
        for path in (folder / remote.LOG, folder / "slurm" / f"{number}_0_log.out"):
            with contextlib.suppress(OSError):
                return scratch.left(path, 4 * self.limits.log, self.files).decode(errors="replace")
        return ""

    def _look_at_nodes(self) -> None:
        """Where nothing can run at all, that is said."""
        with self._lock:
            waiting = {
                self.cluster.terms(each.work.lab).partition
                for each in self._jobs.values()
                if each.listed is None or each.listed.state == "PENDING"
            }
        if time.monotonic() - self._nodes_looked_at < _CLUSTER_EVERY and waiting:
            return
        self._nodes_looked_at = time.monotonic()
        away = "; ".join(filter(None, (self._slurm.unusable(each) for each in sorted(waiting, key=str))))
        if away != self._away:
            self._away = away
            self._call()


class Slurm:
    """Slurm's commands. What they say is bounded in time; SlurmError in their own words."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def list(self) -> dict[str, Listed]:
        """The jobs of this sorter, by their ids: those that wait and run, and those that were over a while ago."""
        found: dict[str, Listed] = {}
        shared = self.cluster.shared
        for line in self._run("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%N|%Z").splitlines():
            number, state, reason, nodes, folder = (line.split("|", 4) + [""] * 5)[:5]
            place = Path(folder.strip())
            if place.parent != shared:
                continue
            before = found.get(place.name)
            if before is None or int(number) > int(before.number):  # of one that was submitted again the last counts
                found[place.name] = Listed(number, state, reason, nodes)
        return found

    def submit(self, work: Work, folder: Path, terms: JobTerms) -> str:
        """Its number."""
        try:
            import submitit
        except ImportError:
            raise SlurmError('submitit is not installed here: pip install "mri-sorter[slurm]"') from None
        try:
            executor = submitit.SlurmExecutor(folder=folder / "slurm", python=self.cluster.python)
            executor.update_parameters(**_parameters(work, folder, terms))
            return str(executor.submit(remote.run, str(folder)).job_id)
        except (RuntimeError, submitit.core.utils.FailedJobError) as error:
            of = f" of lab {work.lab}" if work.lab else ""
            raise Refused(f"Slurm does not take a job{of}: {_last(str(error))}") from None

    def cancel(self, number: str) -> None:
        self._run("scancel", number)

    def unusable(self, partition: str | None) -> str:
        """Why nothing can run in a partition (None: whichever is the usual one), "" where something can."""
        where = ["--partition", partition] if partition else []
        states: Counter[str] = Counter()
        for line in self._run("sinfo", "--noheader", "--format=%P|%a|%T|%D", *where).splitlines():
            name, available, state, count = (line.split("|", 3) + [""] * 4)[:4]
            if partition is None and not name.endswith("*"):
                continue
            if available == "up" and state.rstrip("*~#!%$@^-+") in _USABLE:
                return ""
            states[state if available == "up" else f"{state}, partition {available}"] += int(count or 0)
        seen = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
        return f"no node of the partition {partition or 'that is the usual one'} of Slurm takes jobs ({seen})"

    def _run(self, *command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
        except FileNotFoundError:
            raise SlurmError(f"there is no {command[0]} on this machine: it has to be able to submit jobs") from None
        except subprocess.TimeoutExpired:
            raise SlurmError(f"Slurm does not answer ({command[0]} took longer than {_PATIENCE:.0f} s)") from None
        if done.returncode != 0:
            raise SlurmError(f"Slurm does not answer: {_last(done.stderr)}")
        return done.stdout


def _parameters(work: Work, folder: Path, terms: JobTerms) -> dict[str, Any]:
    """For sbatch. A node that fails ends the job: it is staged anew, because it may have spoilt its copies."""
    memory = terms.memory or work.product.memory + _ROOM
    given = {"partition": terms.partition, "account": terms.account}
    return {
        **{name: value for name, value in given.items() if value is not None},
        "job_name": f"sorter-{work.id[:8]}",
        "time": terms.time or math.ceil(work.product.timeout / 60) + _MARGIN,
        "mem": f"{memory}M",
        "cpus_per_task": work.product.cpus,
        "use_srun": False,
        "stderr_to_stdout": True,
        "additional_parameters": {"chdir": str(folder), "export": ",".join((*KEPT, "PYTHONPATH")), "no-requeue": True},
    }


def _last(said: str) -> str:
    """The last line that a command said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it says nothing"
