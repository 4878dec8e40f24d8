"""Making a session: the lab's converter on copies of its images, then names and the files of the dataset.

The converter is given made-up labels of subject and session, which take their place only in what it has made: so no
name of a patient stands in the arguments of a process, nor in those of what the converter starts.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sorter import Job
from sorter_bids.dataset import Labels, finish

_LAST = 400  # characters of what it said last
_PIECE = 1 << 16  # bytes of its output that are passed on at a time
_FAULT = re.compile(r"^(?:\S*ERROR\S*|Error)\s*[:|]\s*(.*)$", re.MULTILINE)
_NOWHERE = "http://127.0.0.1:9"  # a proxy that is not there: converters ask the network for newer versions

# Every job passes through this file, so pydantic is not imported here.


@dataclass(frozen=True, slots=True)
class Way:
    """What is run for a lab: which converter, the program it is, and its heuristic or configuration."""

    tool: Literal["heudiconv", "dcm2bids"]
    program: str
    by: str
    session: str


def make(job: Job) -> str | None:
    """The maker of the product `bids`: `sub-…/` and the files of a dataset in the job's scratch.

    "nothing" where the heuristic takes none of the series. RuntimeError with the converter's words where it fails.
    """
    way = way_of(job.settings, job.identity.lab or "")
    real = Labels.of(job.identity, job.header, by_date=way.session == "date")
    made_up = Labels(f"s{secrets.token_hex(8)}", real.session and f"s{secrets.token_hex(8)}")
    work = Path(tempfile.mkdtemp())
    try:
        _run(_found(way.program), arguments(way, job.inputs["dicom"], work, made_up))
        made = work / "out" / ("x" if way.tool == "heudiconv" else "") / f"sub-{made_up.subject}"
        if not made.is_dir():
            return "nothing"
        shutil.move(made, job.scratch)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    finish(Path(job.scratch), made_up, real, job)
    return None


def way_of(settings: Mapping[str, Any], lab: str) -> Way:
    """How a lab's sessions are converted: as it says, else as is usual."""
    own = settings.get("labs", {}).get(lab, {})
    session = own.get("session") or settings.get("session") or "identity"
    programs = settings["programs"]
    said = own if own.get("dcm2bids") or own.get("heuristic") else settings
    if said.get("dcm2bids"):
        return Way("dcm2bids", programs["dcm2bids"], _trusted(said["dcm2bids"]), session)
    by = said.get("heuristic") or "reproin"
    return Way("heudiconv", programs["heudiconv"], _trusted(by) if "/" in by else by, session)


def _trusted(path: str) -> str:
    """A heuristic is run as sorter's account, and a configuration names options: nobody else may write either."""
    for each in (Path(path), Path(path).resolve().parent):
        try:
            info = each.stat()
        except OSError as error:
            raise RuntimeError(f"{each} cannot be read: {error.strerror}") from None
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RuntimeError(
                f"{each} can be written by others than root and sorter's account, as which it is run: chown and "
                "chmod go-w it, then `sorter retry`"
            )
    return path


def arguments(way: Way, images: str, work: Path, labels: Labels) -> list[str]:
    """The converter's arguments. `images` has a folder for each series; what is made lies below `work`/out."""
    if way.tool == "dcm2bids":
        session = ["-s", labels.session] if labels.session else []
        return ["-d", images, "-p", labels.subject, *session, "-c", way.by, "-o", str(work / "out")]
    session = ["-ss", labels.session] if labels.session else []
    given = ["--files", images] if _knows_ids(way.by) else _by_template(images, work, labels)
    return [
        *given, "-f", way.by, "--bids", "notop", "-o", str(work / "out"), "-s", labels.subject, *session,
        "--minmeta", "-l", "x",
    ]  # fmt: skip


def _knows_ids(heuristic: str) -> bool:
    """heudiconv takes files only where the heuristic could tell whose they are; ReproIn finds sessions by that, too."""
    if "/" not in heuristic:
        return True
    text = Path(heuristic).read_text(errors="replace")
    return "def infotoids" in text or "heuristics.reproin import *" in text


def _by_template(images: str, work: Path, labels: Labels) -> list[str]:
    place = work / "in"
    place.mkdir()
    (place / labels.subject).symlink_to(Path(images).absolute())
    return ["-d", f"{place}/{{subject}}/*/*.dcm"]


def _found(program: str) -> str:
    """Where the program is: beside this Python, or in PATH."""
    beside = os.path.dirname(sys.executable)
    found = shutil.which(program, path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath))))
    if found is None:
        name = Path(program).name
        raise RuntimeError(
            f"there is no program {program} here: pip install 'sorter-bids[{name}]', or name its whole path in "
            f"[plugins.bids.programs], then `sorter retry`"
        )
    return found


def _run(program: str, options: list[str]) -> None:
    """Run it; what it says goes to the job's log as it says it, however much it is."""
    beside = os.path.dirname(program), os.path.dirname(sys.executable)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _NOWHERE)
    settings = {**os.environ, **proxies, "NO_ET": "1"}
    settings["PATH"] = os.pathsep.join((*beside, os.environ.get("PATH", os.defpath)))
    settings.pop("PYTHONPATH", None)  # of sorter; a converter may have an environment of its own
    run = subprocess.Popen(
        [program, *options], env=settings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert run.stdout is not None
    last = b""
    with run.stdout:
        while piece := os.read(run.stdout.fileno(), _PIECE):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            last = (last + piece)[-_PIECE:]
    if code := run.wait():
        raise RuntimeError(f"{Path(program).name} ended with exit code {code}: {_why(last.decode(errors='replace'))}")


def _why(said: str) -> str:
    """The last error that it named, and the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    faults = _FAULT.findall(said)
    return " / ".join(dict.fromkeys((*faults[-1:], *lines[-1:])))[-_LAST:] or "it said nothing"
