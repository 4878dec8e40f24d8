"""A job in a folder on a share, made by whoever reaches the folder: a node of a cluster, or another process.

Everything that the node needs lies in the folder: copies of the inputs, what is to be done (`job.json`), and a plugin
that is a single file. Everything that it has to say is left there: what it made, `outcome.json`, and while it runs
`log.txt`. It never sees the spool.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from sorter import Job, __version__
from sorter.durable import Files
from sorter.engine import scratch
from sorter.engine.engine import description, environment, environment_in
from sorter.engine.work import Limits, Work

JOB, LOG = "job.json", "log.txt"


def stage(work: Work, folder: Path, limits: Limits, timeout: int, files: Files) -> None:
    """Make the job's folder, for this account alone, with all that `run` needs. `timeout` in seconds."""
    scratch.lay_out(work, folder, files)
    told = {**description(work, limits), "timeout": timeout, "log": LOG}
    told["make"] = _staged_maker(work.product.make, folder, files)
    files.write_file(folder / JOB, json.dumps(told).encode(), durable=False)


def _staged_maker(make: str, folder: Path, files: Files) -> str:
    """A single file is copied, for the plugins folder need not be there; a module is installed there too."""
    path, _, name = make.rpartition(":")
    if not path.endswith(".py"):
        return make
    copied = folder / Path(path).name
    files.write_file(copied, files.read_file(path), 0o400, durable=False)
    return f"{copied}:{name}"


def run(folder: str) -> int:
    """Make the job, in a process of its own; its exit code. How it went stands in the folder."""
    place = Path(folder)
    told: dict[str, Any] = json.loads(Files().read_file(place / JOB))
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "sorter.engine.child"],
        cwd=place,
        env={**environment(), **environment_in(place, told["job"].get("cpus", 1))},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    with child.stdin:
        child.stdin.write(json.dumps({**told, "parent": os.getpid()}).encode())
    return child.wait()


def probe(job: Job) -> None:
    """A maker that says where it runs, and with which sorter."""
    says = f"{platform.node()} runs sorter {__version__} with Python {platform.python_version()}"
    print(says)  # noqa: T201 (the job's log)
    Files().write_file(f"{job.scratch}/out.txt", says.encode(), durable=False)
