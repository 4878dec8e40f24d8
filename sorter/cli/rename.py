"""`sorter rename SUBJECT DEST`: the labs' own way to their images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sorter.cli.common import console, open_spool, with_config
from sorter.cli.find import find_units
from sorter.cli.look import day_of
from sorter.config import Config
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.export import Copy, Report, chosen, copy_all, plan_copies
from sorter.spool import UnitSummary


@click.command("rename")
@click.argument("subject")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--study", help="Only the study of this day (YYYY-MM-DD) or UID.")
@click.option("--series", help="Only these: numbers as 3,5-7, or a glob of the description as '*T1*'.")
@click.option("--since", help="Only studies of this day or later.")
@click.option(
    "--name", "pattern", help="Folders and file name, as '{subject}/{SeriesNumber:03d}/{InstanceNumber:05d}.dcm'."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_config
def rename_command(
    config: Config, subject: str, dest: Path, study: str | None, series: str | None, since: str | None,
    pattern: str | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """It copies; the originals stay. The series of SUBJECT go to the folder DEST, under names a person can read.

    SUBJECT is an ID, a glob of it ('sub-*'), a UID or a key. A file that is there already is never overwritten;
    what is there and equal is left, so an interrupted run simply goes on.
    """
    spool = open_spool(config)
    units = chosen(find_units(spool, subject), study, series)
    if since:
        units = [unit for unit in units if unit.study_date >= day_of(since)]
    if not units:
        raise SorterError(f"no series fits: {subject}{_flags(study, series, since)}; `sorter list` shows what there is")
    copies = plan_copies(spool, units, pattern)
    if dry_run:
        _show(copies, units, dest, as_json)
        return
    report = _run(copies, dest, quiet=as_json)
    _tell(report, dest, as_json)
    if report.failed or report.taken:
        sys.exit(1)


def _flags(study: str | None, series: str | None, since: str | None) -> str:
    given = {"--study": study, "--series": series, "--since": since}
    return "".join(f" {name} {value}" for name, value in given.items() if value)


def _show(copies: list[Copy], units: list[UnitSummary], dest: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"dest": str(dest), "copies": [copy.name for copy in copies]}, indent=1))
        return
    megabytes = sum(copy.size for copy in copies) / 1e6
    console.print(
        f"{len(copies)} images of {len(units)} series, {megabytes:.1f} MB, would be copied to {dest}:", soft_wrap=True
    )
    folders: dict[str, int] = {}
    for copy in copies:
        folder = str(Path(copy.name).parent)
        folders[folder] = folders.get(folder, 0) + 1
    for folder, count in folders.items():
        console.print(f"{count:6}  {folder}/", soft_wrap=True, markup=False)


def _run(copies: list[Copy], dest: Path, *, quiet: bool) -> Report:
    columns = (TextColumn("copying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("copying", total=sum(copy.size for copy in copies))
        return copy_all(Files(), copies, dest, lambda size: progress.advance(task, size))


def _tell(report: Report, dest: Path, as_json: bool) -> None:
    if as_json:
        failed = [{"name": name, "why": why} for name, why in report.failed]
        found = {"written": report.written, "same": report.same, "taken": report.taken, "failed": failed}
        click.echo(json.dumps({"dest": str(dest), **found}, indent=1))
        return
    console.print(
        f"{len(report.written)} images were copied to {dest}; {len(report.same)} were there already.", soft_wrap=True
    )
    for name in report.taken:
        console.print(
            f"not overwritten: {name} is there with other content; move it away, or give --name", soft_wrap=True
        )
    for name, why in report.failed:
        console.print(f"not copied: {name}: {why}", soft_wrap=True, markup=False)
