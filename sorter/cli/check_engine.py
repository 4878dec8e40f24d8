"""`check --targets`: could a product be made on the cluster? A job of no consequence says so."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from sorter.cli.common import console
from sorter.config import Config
from sorter.config.models import SlurmConfig
from sorter.daemon.assembly import cluster_of
from sorter.durable import Files
from sorter.engine import scratch
from sorter.engine.slurm import SlurmEngine
from sorter.engine.work import Limits, Outcome, Work
from sorter.errors import SorterError
from sorter.model import Product

PATIENCE = 120.0
"""Seconds that the job may take, its waiting included."""

_SETTLE = 15.0  # seconds for the job and its folder to be gone


def check_engine(config: Config) -> None:
    """Have Slurm run one small job, where products are made there; SorterError where it does not come back."""
    slurm = config.engine.slurm
    if config.engine.kind != "slurm" or slurm is None:
        return
    console.print(f"Slurm: a job is submitted, and waited for {PATIENCE:.0f} s at most.", soft_wrap=True, markup=False)
    try:
        outcome = _tried(slurm, config.spool, Files())
    except OSError as error:
        raise SorterError(f"no product can be made by Slurm now: {slurm.shared}: {error.strerror}") from None
    if outcome.state != "made":
        last = f"; it said last: {outcome.log.strip().splitlines()[-1]}" if outcome.log.strip() else ""
        raise SorterError(f"no product can be made by Slurm now: {outcome.why}{last}")
    console.print(f"Slurm ({slurm.shared}): good\n    {outcome.log.strip()}", soft_wrap=True, markup=False)


def _tried(slurm: SlurmConfig, spool: Path, files: Files) -> Outcome:
    name, over = f"check-{os.getpid()}", threading.Event()
    place = slurm.shared / f".{name}"  # hidden: what looks for jobs in the folder does not take it for one
    engine = SlurmEngine(cluster_of(slurm, spool), place, files, Limits(), over.set)
    try:
        engine.submit(Work(name, Product("check", "sorter.engine.remote:probe", timeout=60, memory=512), {}))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            over.wait(1.0)
            for outcome in engine.finished():
                return outcome
        stands = engine.problems() or [engine.standing().get(name, "Slurm says nothing of it")]
        return Outcome(name, "failed", stands[0])
    finally:
        engine.cancel(name)
        engine.settle(_SETTLE)
        engine.stop()
        scratch.clear(place, files)
