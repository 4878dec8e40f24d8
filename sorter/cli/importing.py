"""`sorter import`: bring an old archive over."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sorter.cli.common import console, open_spool, printable, with_config
from sorter.config import Config
from sorter.daemon.assembly import FilingRules, load_plugins
from sorter.durable import Files
from sorter.importing import Import, Pace, Tally, Walk
from sorter.importing.delivered import Manifests
from sorter.importing.preview import Preview
from sorter.spool import Spool
from sorter.words import counted

MOST_SHOWN = 20

_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(MB|files)(?:/s)?")


def _rate(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[float | None, float | None]:
    """As 20MB/s or 100files/s: (files, megabytes) a second, one of them None."""
    if value is None:
        return None, None
    found = _RATE.fullmatch(value)
    if not found or not float(found[1]):
        raise click.BadParameter(f"{value!r} is no rate; write it as 20MB/s or 100files/s")
    number = float(found[1])
    return (None, number) if found[2] == "MB" else (number, None)


@click.command("import")
@click.argument("dirs", metavar="DIR…", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Read everything, write nothing, and tell what is there.")
@click.option("--rate", callback=_rate, help="At most so much a second, as 20MB/s or 100files/s.")
@click.option("--delivered", is_flag=True, help="DIRs are what a sorter delivered whose spool was lost: go on there.")
@click.option("--again", is_flag=True, help="Read also what an earlier run has handed over.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_config
def import_command(
    config: Config,
    dirs: tuple[Path, ...],
    dry_run: bool,
    rate: tuple[float | None, float | None],
    delivered: bool,
    again: bool,
    as_json: bool,
) -> None:
    """Bring an old archive over: folders of DICOM files, of whatever age, size and naming.

    Its files are only read. Everything is sorted and delivered as if it came today; while scanners send, the import
    waits. It may be ended at any time: the same command goes on.
    """
    _step_back()
    if dry_run:
        _look(config, dirs, as_json)
    else:
        spool = open_spool(config)
        own = _manifests(config, spool) if delivered else lambda *_: True
        _run(Import(spool, Pace(spool, *rate), lambda _: None, again, own), dirs, as_json)


def _manifests(config: Config, spool: Spool) -> Manifests:
    targets = config.all_targets().items()
    roots = {name: Path(target.settings["root"]) for name, target in targets if target.kind == "path"}
    return Manifests(spool.files, roots, frozenset(config.labs), spool.recoveries)


def _step_back() -> None:
    """Let everybody else have the processor and the disk first."""
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(OSError):
        subprocess.run(["ionice", "-c", "3", "-p", str(os.getpid())], check=False, capture_output=True)  # noqa: S607


# --- the import -----------------------------------------------------------------------------------------------------


def _run(work: Import, dirs: Sequence[Path], as_json: bool) -> None:
    try:
        with _Display(dirs) as display:
            work.hear = display.hear
            tally = work(dirs)
    except KeyboardInterrupt:
        tally = work.tally
        click.echo(
            f"Stopped; {counted(tally.handed, 'files were')} handed over. The same command goes on from there.",
            err=True,
        )
        sys.exit(1)
    aside = work.spool.aside.count(f"/incoming/import-{work.run}-")
    if as_json:
        told = {**dataclasses.asdict(tally), "set_aside": aside, "report": str(work.report) if _told(tally) else None}
        click.echo(json.dumps(told, indent=1))
    else:
        _say(work, tally, aside)
    sys.exit(1 if tally.failed else 0)


def _told(tally: Tally) -> bool:
    return bool(tally.left_out or tally.failed)


def _say(work: Import, tally: Tally, aside: int) -> None:
    def say(text: str) -> None:
        console.print(printable(text), soft_wrap=True, markup=False)

    say(f"{tally.handed} files ({tally.handed_size / 1e6:.1f} MB) were handed over, {tally.known} were before.")
    if tally.waiting:
        say(f"{tally.waiting} of them are taken when a sorter runs: `sorter serve`.")
    if aside:
        say(f"{aside} are no images that could be filed: see `sorter quarantine`.")
    if _told(tally):
        say(f"{tally.failed} could not be read, {tally.left_out} were left out; all of them are in {work.report}:")
        for path, why in work.first_failures[:MOST_SHOWN]:
            say(f"    {path}: {why}")
    say("`sorter status` and `sorter list` show what became of them.")


class _Display:
    """A bar while a terminal is there, else a line now and then. What there is in all is counted beside."""

    def __init__(self, dirs: Sequence[Path]) -> None:
        self._total: int | None = None
        self._stop = threading.Event()
        self._counter = threading.Thread(target=self._count, args=(dirs,), daemon=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = TaskID(0)
        self._begun = time.monotonic()
        self._said = self._begun
        self._copied, self._took = 0, 0.0

    def __enter__(self) -> _Display:
        self._progress.start()
        self._task = self._progress.add_task("import", total=None, said="")
        self._counter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._progress.stop()

    def _count(self, dirs: Sequence[Path]) -> None:
        total = 0
        with contextlib.suppress(OSError):
            for each in dirs:
                for parcel in Walk(each, Files(), frozenset(), lambda *_: None).parcels():
                    total += parcel.count
                    if self._stop.is_set():
                        return
            self._total = total

    def hear(self, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._said < (0.2 if not self._progress.disable else 30.0):
            return
        self._said = now
        if tally.copied != self._copied:
            self._copied, self._took = tally.copied, now - self._begun
        said = self._line(tally)
        if self._progress.disable:
            click.echo(said, err=True)
        self._progress.update(self._task, total=self._total, completed=tally.copied + tally.known, said=said)

    def _line(self, tally: Tally) -> str:
        done, seconds = tally.copied + tally.known, max(self._took, 1e-3)
        of = f" of {self._total}" if self._total is not None else ""
        size, rate = tally.copied_size / 1e6, tally.copied / seconds
        text = f"{done}{of} files, {size:.0f} MB, {rate:.0f} files/s, {size / seconds:.1f} MB/s"
        if tally.waiting and tally.sorting:
            text += f"; {tally.waiting} are being filed"
        elif tally.waiting:
            text += f"; waiting: no sorter runs that takes {tally.waiting} files (`sorter serve`)"
        return text


# --- the dry run ----------------------------------------------------------------------------------------------------


def _look(config: Config, dirs: Sequence[Path], as_json: bool) -> None:
    spool = Spool(config.spool, Files())
    there = spool if spool.files.exists(spool.root / "version") else None
    if there is not None:
        open_spool(config)
    rules = FilingRules(load_plugins(config, Files()), ())
    preview = Preview(there, rules.group, _ticker())
    for each in dirs:
        preview.look(each)
    if as_json:
        click.echo(json.dumps(_plain(preview), indent=1, ensure_ascii=False).encode(errors="replace").decode())
    else:
        _show(preview)
    sys.exit(1 if preview.unreadable else 0)


def _ticker() -> Callable[[Preview], None]:
    last = [time.monotonic()]

    def tick(preview: Preview) -> None:
        if time.monotonic() - last[0] >= 5.0:
            last[0] = time.monotonic()
            click.echo(f"{preview.files} files read, {preview.images} images", err=True)

    return tick


def _plain(preview: Preview) -> dict[str, Any]:
    return {
        **_counts(preview),
        "by_patient": {
            who: {"studies": len(each.studies), "series": len(each.series), "images": each.images}
            for who, each in sorted(preview.patients.items())
        },
        "not_images_by_reason": dict(preview.not_images.most_common()),
        "unreadable_by_reason": dict(preview.unreadable.most_common()),
        "left_out_by_reason": dict(preview.left_out.most_common()),
        "listed": [{"path": path, "says": says} for path, says in preview.listed],
    }


def _counts(preview: Preview) -> dict[str, int]:
    patients = preview.patients.values()
    return {
        "files": preview.files,
        "bytes": preview.size,
        "patients": len(preview.patients),
        "studies": len(set().union(*(each.studies for each in patients))),
        "series": len(set().union(*(each.series for each in patients))),
        "images": preview.images,
        "new": preview.new,
        "duplicates": preview.duplicates,
        "conflicts": preview.conflicts,
        "other_headers": preview.other_headers,
        "archives": preview.archives,
        "not_images": preview.not_images.total(),
        "unreadable": preview.unreadable.total(),
        "left_out": preview.left_out.total(),
    }


_WORDS = {
    "new": "of them new",
    "duplicates": "of them there before, or twice in the archive",
    "conflicts": "of them with the SOP Instance UID of another and other pixels: both are kept",
    "other_headers": "of them with another header than an equal image: kept, not delivered",
    "archives": "archives; an import reads them, what is in them is not counted here",
    "not_images": "files that are no images that could be filed",
    "unreadable": "files and folders that cannot be read",
    "left_out": "links and other things that are no files",
}


def _show(preview: Preview) -> None:
    for name, count in _counts(preview).items():
        console.print(f"{count:12}  {_WORDS.get(name, name)}", soft_wrap=True)
    for reasons in (preview.not_images, preview.unreadable, preview.left_out):
        for reason, count in reasons.most_common(MOST_SHOWN):
            console.print(printable(f"{count:12}  {reason}"), soft_wrap=True, markup=False)
    for path, says in preview.listed[:MOST_SHOWN]:
        console.print(printable(f"    {path}: {says}"), soft_wrap=True, markup=False)
    if len(preview.listed) > MOST_SHOWN:
        console.print("    … and more; --json has them")
