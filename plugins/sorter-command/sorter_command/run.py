"""Making a product: the program on copies of what it needs, in the job's own folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sorter import Job
from sorter_command import settings as _settings

APPTAINER = "apptainer"
_LAST = 400  # characters of what it said last


def make(job: Job) -> str | None:
    """Run it. "nothing" after one of its exit codes that say so; RuntimeError with its last words after any other."""
    made = job.settings["products"][job.product]
    command = arguments(made, job)
    environment = {**os.environ, **made["env"], "OMP_NUM_THREADS": str(job.cpus)}
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"there is no program {command[0]} here; name its whole path") from None
    said = run.stdout.decode(errors="replace")
    print(said, end="")  # noqa: T201 (the job's log)
    if run.returncode == 0:
        return None
    if run.returncode in made["nothing"]:
        return "nothing"
    raise RuntimeError(f"{Path(command[0]).name} ended with exit code {run.returncode}: {_last_line(said)}")


def arguments(made: Mapping[str, Any], job: Job) -> list[str]:
    """The program with its arguments; in a container, with the folders as they are bound there."""
    inside = made["container"] is not None
    places = {"out": "/out" if inside else job.scratch, "cpus": str(job.cpus)}
    for product, folder in job.inputs.items():
        places[f"in:{product}"] = f"/in/{product}" if inside else folder
    places["in"] = places[f"in:{made['needs'][0]}"]
    command = [_settings.PLACE.sub(lambda found: places[found[1]], text) for text in made["run"]]
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
