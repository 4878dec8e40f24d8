"""Commands from a machine that sees no more of sorter than the lab's own folder: by what sorter writes there, and by
request files."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from rich.progress import Progress, SpinnerColumn, TextColumn

from sorter.cli.common import Where, console, printable
from sorter.cli.source import open_source
from sorter.door import Door
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.exports import Store
from sorter.labs.asking import read_request, written

CORNER = ".sorter"
ANSWER = ".answer.txt"

WAIT = 600.0
"""Seconds that an answer is waited for; it comes later too."""

_LOOK = 0.5  # seconds between two looks
_LONGEST_ANSWER = 1 << 20
_LONGEST_SCANS = 64 << 20


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
        with contextlib.suppress(PermissionError):  # another lab's: nothing is to be had by it
            if files.exists(root / CORNER / "id"):
                return Corner(root, str(path.relative_to(root)))
    return None


def source_or_corner(where: Where, at: Path | None) -> Store | Door | Corner:
    """Where series come from; where neither the store nor the door is here, the corner of the lab in whose folder `at`
    lies, whom to ask by a file. SorterError: it is in no lab's folder either."""
    try:
        return open_source(where)
    except SorterError:
        corner = None if at is None or where.path or where.root else corner_above(at, Files())
        if corner is None:
            raise
        return corner


def scans(corner: Corner, files: Files) -> list[dict[str, str]]:
    """The lab's series as its `scans.tsv` has them. SorterError: it cannot be read."""
    path = corner.root / CORNER / "scans.tsv"
    try:
        text = files.read_file(path, limit=_LONGEST_SCANS).decode(errors="replace")
    except OSError as error:
        raise SorterError(f"{path} cannot be read ({error.strerror}); are you a member of this lab?") from None
    titles, *rows = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    return [dict(zip(titles, row, strict=False)) for row in rows]


def ask(
    corner: Corner, request: Mapping[str, str | bool | tuple[str, ...]], files: Files, *, as_json: bool = False
) -> bool:
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
    try:
        answer = _answer(corner.requests / f"{name}{ANSWER}", files)
    except KeyboardInterrupt:
        raise SorterError(f"not waited for: it will be done all the same, unless you remove {path}") from None
    if answer is None:
        console.print(f"no answer yet; it will be in {corner.requests}/{name}{ANSWER}", soft_wrap=True, markup=False)
        return False
    for each in (path, corner.requests / f"{name}{ANSWER}"):
        with contextlib.suppress(OSError):  # not ours to remove: then it stays
            files.unlink(each)
    how, _, says = printable(answer.partition("\nThis answers ")[0]).strip().partition("\n")
    if as_json:
        click.echo(json.dumps({"dest": str(corner.root / corner.dest), "answer": how, "says": says.split("\n")[1:]}))
    else:
        console.print(f"{how}\n{says}".strip(), soft_wrap=True, markup=False)
    return how == "done"


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
