"""`sorter rename` from a machine that sees no more of sorter than the lab's own folder: by a request file in it."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TextColumn

from sorter.cli.common import console, printable
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.labs.asking import read_request, written

CORNER = ".sorter"
ANSWER = ".answer.txt"

WAIT = 600.0
"""Seconds that an answer is waited for; it comes later too."""

_LOOK = 0.5  # seconds between two looks
_LONGEST_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Corner:
    """The corner of the lab whose folder `root` holds the destination, `dest` below it."""

    root: Path
    dest: str

    @property
    def requests(self) -> Path:
        return self.root / CORNER / "requests"


def corner_above(dest: Path, files: Files) -> Corner | None:
    """Of the nearest folder above `dest`, or `dest` itself, that sorter delivers to; None where there is none."""
    path = Path(os.path.realpath(dest))
    for root in (path, *path.parents):
        if files.exists(root / CORNER / "id"):
            return Corner(root, str(path.relative_to(root)))
    return None


def ask(corner: Corner, request: Mapping[str, str | bool | tuple[str, ...]], files: Files) -> bool:
    """Leave the request, and wait for its answer, which is printed; True where all was done. SorterError: it cannot be
    left, or is wrong in itself."""
    if request.get("lab"):
        raise SorterError(f"{corner.root} is of one lab; leave out --lab")
    text = written({**request, "dest": corner.dest}).encode()
    read_request(text, "this request")  # what is wrong is said here, not half a minute later
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.urandom(4).hex()}"
    path = corner.requests / f"{name}.toml"
    try:
        files.write_file(path, text, 0o644)
        files.chmod(path, 0o644)  # sorter reads it under an account of its own
    except OSError as error:
        says = f"{corner.requests}: a request cannot be left there ({error.strerror})"
        raise SorterError(f"{says}; are you a member of this lab, and did sorter deliver there already?") from None
    answer = _answer(corner.requests / f"{name}{ANSWER}", files)
    if answer is None:
        console.print(f"no answer yet; it will be in {corner.requests}/{name}{ANSWER}", soft_wrap=True, markup=False)
        return False
    for each in (path, corner.requests / f"{name}{ANSWER}"):
        with contextlib.suppress(OSError):  # not ours to remove: then it stays
            files.unlink(each)
    console.print(printable(answer.partition("\nThis answers ")[0]).strip(), soft_wrap=True, markup=False)
    return answer.startswith("done\n")


def _answer(path: Path, files: Files) -> str | None:
    until, pause = time.monotonic() + WAIT, threading.Event()
    columns = (SpinnerColumn(), TextColumn("asked in the lab's folder; sorter looks there every half minute"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        progress.add_task("asked", total=None)
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):
                return files.read_file(path, limit=_LONGEST_ANSWER).decode(errors="replace")
            pause.wait(_LOOK)
    return None
