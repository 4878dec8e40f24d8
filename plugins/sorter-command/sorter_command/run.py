"""Making a product: the program on copies of what it needs, in the job's own folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sorter import Job

PLACE = re.compile(r"\{([^{}]*)\}")
"""A placeholder in an argument."""

APPTAINER = "apptainer"
_LAST = 400  # characters of what it said last
_PIECE = 1 << 16  # bytes of its output that are passed on at a time

# Every job passes through this file, so pydantic is not imported here.


def make(job: Job) -> str | None:
    """Run it. "nothing" after one of its exit codes that say so; RuntimeError with its last words after any other."""
    made = job.settings["products"][job.product]
    command = arguments(made, job)
    environment = {**os.environ, **made["env"], "OMP_NUM_THREADS": str(job.cpus)}
    try:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    except FileNotFoundError:
        raise RuntimeError(f"there is no program {command[0]} here; name its whole path") from None
    last = _pass_on(run)
    code = run.wait()
    if code == 0:
        return None
    if code in made["nothing"]:
        return "nothing"
    raise RuntimeError(f"{Path(command[0]).name} ended with exit code {code}: {_last_line(last)}")


def _pass_on(run: subprocess.Popen[bytes]) -> str:
    """What it says goes to the job's log as it says it, however much it is; the last of it is kept."""
    assert run.stdout is not None
    last = b""
    with run.stdout:
        while piece := os.read(run.stdout.fileno(), _PIECE):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            last = (last + piece)[-_PIECE:]
    return last.decode(errors="replace")


def arguments(made: Mapping[str, Any], job: Job) -> list[str]:
    """The program with its arguments; in a container, with the folders as they are bound there."""
    inside = made["container"] is not None
    places = {"out": "/out" if inside else job.scratch, "cpus": str(job.cpus)}
    for product, folder in job.inputs.items():
        places[f"in:{product}"] = f"/in/{product}" if inside else folder
    places["in"] = places[f"in:{made['needs'][0]}"]
    command = [PLACE.sub(lambda found: places[found[1]], text) for text in made["run"]]
    return [*_contained(made, job), *command] if inside else command


def _contained(made: Mapping[str, Any], job: Job) -> list[str]:
    """Apptainer with nothing of this machine but what the job is made of, read-only, and its scratch."""
    command = [APPTAINER, "exec", "--containall", "--no-home", "--pwd", "/out"]
    for product, folder in job.inputs.items():
        command += ["--bind", f"{folder}:/in/{product}:ro"]
    command += ["--bind", f"{job.scratch}:/out"]
    for path in made["bind"]:
        command += ["--bind", f"{path}:{path}:ro"]
    for name, value in sorted(made["env"].items()):
        command += ["--env", f"{name}={value}"]
    return [*command, str(made["container"])]


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-_LAST:] if lines else "it said nothing"
