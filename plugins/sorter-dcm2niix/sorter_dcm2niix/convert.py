"""Runs dcm2niix on a folder of copies, with names that say nothing about anybody."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sorter import Job

NOTHING_TO_CONVERT = 2
"""dcm2niix's exit code for: no image here that it can convert."""

_LOG = 1 << 20  # bytes of its output that are looked at
_FAULT = re.compile(r"^Error: (.*)$", re.MULTILINE)


class ConversionError(Exception):
    """dcm2niix says that it could not convert the series, or not all of it."""


def make(job: Job) -> str | None:
    """The maker of the product `nifti`: files `out….nii.gz`, `.json`, `.bval` and `.bvec` in the job's scratch."""
    code, said = _run(arguments(job.settings, job.scratch, job.inputs["dicom"]))
    print(said, end="")  # noqa: T201 (the job's log)
    if code == NOTHING_TO_CONVERT:
        return "nothing"
    if code != 0:
        fault = _FAULT.search(said)
        raise ConversionError(f"dcm2niix ended with exit code {code}{': ' + fault[1] if fault else ''}")
    if _leaves_out(job.settings) and not os.listdir(job.scratch):
        return "nothing"  # what dcm2niix calls a success
    return None


def _leaves_out(settings: Mapping[str, Any]) -> bool:
    """Are there images that it is told to ignore?"""
    extra = settings.get("extra", ())
    said = dict(zip(extra[::2], extra[1::2], strict=True)).get("-i")
    return said != "n" if said is not None else not settings.get("derived", True)


def arguments(settings: Mapping[str, Any], out: str, images: str) -> list[str]:
    """dcm2niix's arguments for these settings."""
    compress = ["-z", "y", f"-{settings.get('level', 6)}"] if settings.get("compress", True) else ["-z", "n"]
    merge = ["-m", "y"] if settings.get("echoes") == "together" else []
    ignore = [] if settings.get("derived", True) else ["-i", "y"]
    return ["-b", "y", *compress, *merge, *ignore, *settings.get("extra", ()), "-f", "out", "-o", out, images]


def _run(options: list[str]) -> tuple[int, str]:
    from dcm2niix import bin as program

    with tempfile.TemporaryFile() as log:
        code = subprocess.run([os.fspath(program), *options], stdout=log, stderr=log, check=False).returncode
        log.seek(0)
        return code, log.read(_LOG).decode(errors="replace")
