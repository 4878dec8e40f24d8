"""`sorter quarantine`: what could not be taken as an image, and why; to look at, to try again, to carry away."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice, product
from pathlib import Path
from typing import Any

import click

from sorter.cli.common import F, Where, console, open_spool, printable, with_where
from sorter.durable import Files
from sorter.errors import Quarantine as NoImage
from sorter.errors import SorterError
from sorter.model import UnitKind, unit_key
from sorter.spool import Spool, Unit
from sorter.spool.quarantine import Aside
from sorter.take import directory
from sorter.take.contents import IsDirectory, start
from sorter.take.header import examine
from sorter.words import counted

MOST_REASONS = 200
"""Kinds of reasons that are counted apart."""

MOST_LISTED = 100_000
"""Series that are looked for of those that a media directory lists, each of them in each of its studies."""

EXAMPLES = 3
"""Names shown of each reason."""

_META = {0x00020010: "transfer syntax", 0x00020002: "SOP class", 0x00020012: "implementation", 0x00020013: "version"}

reason_option = click.option("--reason", metavar="GLOB", help="Only those whose reason fits, as '*truncated*'.")


@click.group("quarantine", invoke_without_command=True)
@reason_option
@click.option("--json", "as_json", is_flag=True, help="Every file, for programs.")
@with_where
def quarantine_command(where: Where, reason: str | None, as_json: bool) -> None:
    """What could not be taken as an image, and why. Nothing is ever deleted from here."""
    ctx = click.get_current_context()
    ctx.obj = where
    if ctx.invoked_subcommand is None:
        found = _chosen(open_spool(where.load()), (), reason)
        _print_all(found) if as_json else _print_reasons(found)


def with_spool(command: F) -> F:
    """`-c` and `--root` may stand before or after the subcommand; it is called with `spool` in their place."""

    @with_where
    @functools.wraps(command)
    def wrapped(where: Where, *args: Any, **kwargs: Any) -> Any:
        given = where if where.path or where.root else click.get_current_context().obj
        return command(*args, spool=open_spool(given.load()), **kwargs)

    return wrapped  # type: ignore[return-value]


# --- listing --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kind:
    """Files that were set aside for the same reason, but for its numbers."""

    reason: str
    count: int = 0
    examples: list[Aside] = field(default_factory=list)


def _print_reasons(found: Iterable[Aside]) -> None:
    kinds: dict[str, _Kind] = {}
    for aside in found:
        words = re.sub(r"[0-9]+", "0", aside.reason)
        if words not in kinds and len(kinds) >= MOST_REASONS:
            words = "other reasons"
        kind = kinds.setdefault(words, _Kind(words if words == "other reasons" else aside.reason))
        kind.count += 1
        if len(kind.examples) < EXAMPLES:
            kind.examples.append(aside)
    if not kinds:
        console.print("Nothing is in quarantine.")
        return
    for kind in sorted(kinds.values(), key=lambda each: -each.count):
        _say(f"{kind.count:6}  {kind.reason}")
        for aside in kind.examples:
            _say(f"        {aside.name}\n            from {aside.origin or 'an unknown place'}, {aside.at}")
        if kind.count > len(kind.examples):
            _say(f"        … and {kind.count - len(kind.examples)} more; --json has them all")
    _say("`sorter quarantine show NAME` tells more of one, `retry` tries again, `export DEST` copies them.")


def _print_all(found: Iterable[Aside]) -> None:
    """One array, written while it is read: there may be many."""
    before = "["
    for aside in found:
        entry = {"name": aside.name, "reason": aside.reason, "origin": aside.origin, "at": aside.at}
        click.echo(before + json.dumps(entry, ensure_ascii=False).encode(errors="replace").decode(), nl=False)
        before = ",\n "
    click.echo("]" if before != "[" else "[]")


def _say(text: str) -> None:
    console.print(printable(text), soft_wrap=True, markup=False)


def _chosen(spool: Spool, names: tuple[str, ...], reason: str | None) -> Iterator[Aside]:
    """Of what is in quarantine: those called so, or below a folder called so; and whose reason fits."""
    wanted = {os.path.normpath(name) for name in names}
    for aside in spool.aside.entries():
        if wanted and not wanted.intersection(_with_folders(aside.name)):
            continue
        if reason is None or fnmatchcase(aside.reason.casefold(), reason.casefold()):
            yield aside


def _with_folders(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition("/")[0]


# --- one file -------------------------------------------------------------------------------------------------------


@quarantine_command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_spool
def quarantine_show(spool: Spool, name: str, as_json: bool) -> None:
    """Why the file NAME is here, where it came from, and what it looks like. NAME as `sorter quarantine` shows it."""
    aside = next(_chosen(spool, (name,), None), None)
    if aside is None:
        raise SorterError(f"{name} is not in quarantine; `sorter quarantine` shows what is")
    told = {"reason": aside.reason, "from": aside.origin, "at": aside.at, "file": str(aside.path)}
    told |= _facts(spool, aside)
    if as_json:
        click.echo(json.dumps(told, indent=1, ensure_ascii=False).encode(errors="replace").decode())
        return
    _say(aside.name)
    for key, value in told.items():
        _say(f"    {key}: {value}")


def _facts(spool: Spool, aside: Aside) -> dict[str, Any]:
    """Size, digest and what the start of the file says; never a value that names a patient."""
    files = Files()
    told: dict[str, Any] = {}
    with files.opened(aside.path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
        digest = hashlib.sha256()
        for piece in files.chunks(fd):
            digest.update(piece)
        told |= {"size": files.stat(fd).st_size, "sha256": digest.hexdigest()}
        told["begins"] = "".join(chr(each) if 32 <= each < 127 else "." for each in files.pread(fd, 48, 0))
        try:
            _, meta = start(files, fd)
            told |= {words: meta.values[tag] for tag, words in _META.items() if tag in meta.values}
            examine(files, fd)
            told["now"] = "it could be taken now; `sorter quarantine retry` does it"
        except IsDirectory as reason:
            told["now"] = f"it would be set aside again: {reason}"
            told["lists"] = _compared(spool, directory.listed(files.pread(fd, directory.MOST_BYTES, 0)))
        except NoImage as reason:
            told["now"] = f"it would be set aside again: {reason}"
    return told


def _compared(spool: Spool, listed: directory.Listed) -> str:
    """How much of what a media directory lists has come. It is looked for in the series that it lists itself."""
    keys = (unit_key(UnitKind.SERIES, *pair) for pair in islice(product(listed.studies, listed.series), MOST_LISTED))
    units = (Unit.load(spool, key) for key in keys if spool.files.is_folder(spool.unit_folder(key)))
    came = {sop for unit in units for sop in unit.by_sop}
    missing = [sop for sop in listed.instances if sop not in came]
    text = f"{len(listed.instances)} images of {len(listed.series)} series"
    if not missing:
        return f"{text}; all of them have come"
    some = ", ".join(missing[:EXAMPLES]) + (", …" if len(missing) > EXAMPLES else "")
    return f"{text}; {len(missing)} of them are not known here under that series: {some}"


# --- trying again, carrying away ------------------------------------------------------------------------------------


@quarantine_command.command("retry")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that is in quarantine.")
@reason_option
@with_spool
def quarantine_retry(spool: Spool, names: tuple[str, ...], everything: bool, reason: str | None) -> None:
    """Put files back into incoming/, to be looked at again. NAMES of files or folders as `sorter quarantine` shows."""
    if not names and not everything and reason is None:
        raise click.UsageError("give the names to try again, --reason GLOB, or --all")
    done = spool.aside.put_back(_chosen(spool, names, reason), spool.incoming)
    if not done:
        raise SorterError("nothing of that name or reason is in quarantine; `sorter quarantine` shows what is")
    console.print(f"{counted(done, 'files were')} put into {spool.incoming}.", soft_wrap=True, markup=False)


@quarantine_command.command("export")
@click.argument("dest", type=click.Path(path_type=Path))
@reason_option
@with_spool
def quarantine_export(spool: Spool, dest: Path, reason: str | None) -> None:
    """Copy what is in quarantine to a new folder DEST, under its names here, with DEST/reasons.tsv."""
    files = Files()
    if files.exists(dest):
        raise SorterError(f"{dest} is there already; give the name of a new folder")
    files.make_folders(dest)
    done = 0
    with files.opened(dest / "reasons.tsv", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as table:
        files.write_all(table, _row("file", "reason", "from", "at"))
        for aside in _chosen(spool, (), reason):
            _copy(files, aside.path, dest / aside.name)
            files.write_all(table, _row(aside.name, aside.reason, aside.origin, aside.at))
            done += 1
        files.fsync(table)
    console.print(f"{counted(done, 'files were')} copied to {dest}.", soft_wrap=True, markup=False)


def _copy(files: Files, path: Path, target: Path) -> None:
    files.make_folders(target.parent)
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW) as reading, files.opened(target, new) as writing:
        files.copy(reading, writing)
        files.fsync(writing)


def _row(*cells: str) -> bytes:
    """Of a table with tabs; what would end a cell or a line is a space."""
    clean = (re.sub(r"[\x00-\x1f\x7f]", " ", cell) for cell in cells)
    return ("\t".join(clean) + "\n").encode("utf-8", "replace")
