"""`sorter rename SUBJECT DEST`: the labs' own way to their images."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from sorter.cli.by_letter import Corner, ask, source_or_corner
from sorter.cli.common import Where, console, literal, printable, with_where
from sorter.cli.completing import labs_here, presets, series_here, subjects_here
from sorter.cli.source import tell_unread
from sorter.cli.standing import from_now_on
from sorter.durable import Files
from sorter.errors import SorterError, did_you_mean
from sorter.exports import (
    Choice,
    Copy,
    Disk,
    Found,
    Giver,
    Left,
    Report,
    Source,
    Store,
    copy_all,
    in_folder,
    naming,
)  # fmt: skip
from sorter.exports.asking import NIFTI, Asked, choose, meant, plan, rows
from sorter.exports.choosing import Subject, study_meant, subjects
from sorter.exports.source import target_of
from sorter.exports.standing import Lasting
from sorter.matching import day_of
from sorter.summaries import in_number
from sorter.words import counted

_MOST_SAID = 20  # lines of each kind of trouble


class _Dest(click.Path):
    """A folder, or target:NAME[/FOLDER]; never "", which would be the folder that one is in."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail('it is empty, as a variable that was never set; "." is the folder that you are in', param, ctx)
        return super().convert(value, param, ctx)


@click.command("rename")
@click.argument("subject", shell_complete=subjects_here)
@click.argument("dest", type=_Dest(path_type=Path), required=False)
@click.option("--study", default="", help="Only the study of this day (as for --since) or UID.")
@click.option("--series", default="", shell_complete=series_here,
              help="Only these: numbers as 3,5-7, or a glob of the description as '*T1*'.")  # fmt: skip
@click.option("--modality", default="", help="Only this modality, as MR.")
@click.option("--since", default="", help="Only studies of this day or later: YYYY-MM-DD, yesterday, tuesday, 30d.")
@click.option("--lab", default="", shell_complete=labs_here, help="Only series of this lab.")
@click.option("--name", "pattern", default="pretty", shell_complete=presets,
              help="pretty, percent (dcm2niix's % codes) or flat; or folders and file name, as "
              "'{subject}/{SeriesNumber:03d}/{InstanceNumber:05d}.dcm' or '%i/%s_%p/%4r.dcm'.")  # fmt: skip
@click.option("--as", "new_name", default="", help="Call the subject so in folders and file names.")
@click.option("--from", "folder", type=click.Path(path_type=Path), help="Take a plain folder of DICOM, not the store.")
@click.option("--nifti", is_flag=True, help="Copy the NIfTI that was made of the series, in place of their images.")
@click.option("--list", "as_list", is_flag=True, help="Only list the series: number, description, images, verdict.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--force", is_flag=True, help="Overwrite what is there with other content.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--from-now-on", "lasting", is_flag=True, help="Copy nothing: such series come to DEST by themselves.")
@click.option("--yes", is_flag=True, help="With --from-now-on: do not ask.")
@with_where
def rename_command(
    where: Where, subject: str, dest: Path | None, folder: Path | None, pattern: str, new_name: str,
    nifti: bool, as_list: bool, dry_run: bool, force: bool, as_json: bool, lasting: bool, yes: bool, **flags: str,
) -> None:  # fmt: skip
    """It copies; the originals stay. The series of SUBJECT go to the folder DEST, under names a person can read.

    SUBJECT is an ID, a patient's name, a glob ('sub-*'), a UID, or @list.csv with lines of `subject` or
    `subject,newname`. DEST is a folder, or target:NAME[/FOLDER] for a target of your lab, which sorter writes to. A
    file that is there already is never overwritten; what is there and equal is left, so an interrupted run goes on.
    """
    target = target_of(str(dest or ""))
    if dest is None and not as_list:
        raise SorterError("say where to: sorter rename SUBJECT DEST; or --list to see what there is")
    if nifti and folder:
        raise SorterError("NIfTI is made of what is in the store: give --nifti or --from, not both")
    if target and (folder or force or lasting):
        raise SorterError(f"{dest}: --from, --force and --from-now-on are for folders; leave them out")
    asked = Asked(
        subjects(subject),
        Choice(**{**flags, "study": study_meant(flags["study"]), "since": flags["since"] and day_of(flags["since"])}),
        naming(pattern),
        new_name,
        NIFTI if nifti else "",
    )
    source = None if folder else _source(where, dest)
    if target and isinstance(source, Store):
        _check_target(where, target[0])
    if lasting:
        if folder or force or as_list or as_json or dest is None:
            raise SorterError("a rule copies nothing: leave out --from, --force, --list and --json")
        late = None if isinstance(source, Corner) else source
        said = Lasting(asked.subjects, asked.choice, pattern, (), new_name, asked.product)
        from_now_on(where, late, said, dest, dry_run=dry_run, yes=yes)
        return
    if isinstance(source, Corner):
        more: dict[str, str | bool] = {
            "name": pattern, "as": new_name, "nifti": nifti, "list": as_list, "dry_run": dry_run, "force": force
        }  # fmt: skip
        sys.exit(
            0 if ask(source, {"subject": _listed(asked.subjects), **flags, **more}, Files(), as_json=as_json) else 1
        )
    every = _in_source(source, asked) if source else _in_folder(folder or Path(), quiet=as_json)
    left_out = tell_unread(source) if source else False
    chosen = choose(every, asked)
    if not chosen.found:
        narrowed = "".join(f" --{name} {value}" for name, value in flags.items() if value)
        place, lists = (
            (f"in {folder}", f"`sorter rename '*' --from {folder} --list`") if folder else ("here", "`sorter list`")
        )
        labs = {each.identity.lab or "" for each in every} if flags["lab"] else set()
        near = did_you_mean(flags["lab"], labs) if flags["lab"] not in labs else ""
        raise SorterError(f"no series {place} fits: {subject}{narrowed}{near or ';'} {lists} shows what there is")
    if source is not None:
        chosen.found = source.complete(chosen.found)
    if as_list or dest is None:
        _list(chosen.found, as_json)
        _tell_missing(chosen.missing)
        return
    copies, lacking = plan(source, chosen, asked)
    what = "files" if nifti else "images"
    if dry_run:
        _show(copies, f"{what} of {len(chosen.found)} series", dest, as_json)
    elif target and source is not None:
        _send(source, copies, target, as_json)
    else:
        _check(dest)
        report = _run(source or Disk(Files()), copies, dest, quiet=as_json, force=force)
        _tell(report, what, dest, as_json)
        if chosen.new_names and not as_json:
            console.print("The files themselves are unchanged: inside them the subject is called as before.")
        if report.failed or report.taken:
            sys.exit(1)
    _tell_missing(chosen.missing, lacking)
    if left_out:
        sys.exit(1)


def _source(where: Where, dest: Path | None) -> Source | Corner:
    """Where the series come from; where neither the store nor the door is here, who is asked by a file: the lab whose
    folder DEST lies in, or, for a target or without DEST, whose folder one is in."""
    target = target_of(str(dest or ""))
    found = source_or_corner(where, Path() if target or dest is None else dest)
    return replace(found, dest=str(dest)) if target and isinstance(found, Corner) else found


def _check_target(where: Where, name: str) -> None:
    """SorterError: it would be asked for, and wait for ever. (The door knows what its askers may name.)"""
    targets = where.load().all_targets()
    if name not in targets:
        near = did_you_mean(name, targets) or f"; there are {', '.join(targets)}"
        raise SorterError(f'there is no target "{name}"{near}')


def _listed(wanted: Sequence[Subject]) -> str | tuple[str, ...]:
    """The subjects as a request file has them."""
    if len(wanted) == 1 and not wanted[0].new_name:
        return wanted[0].text
    return tuple(each.row for each in wanted)


def _in_source(source: Source, asked: Asked) -> list[Found]:
    return list(source.candidates(meant(list(source.units()), asked.subjects)))


def _in_folder(folder: Path, *, quiet: bool) -> list[Found]:
    left: list[Left] = []
    columns = (SpinnerColumn(), TextColumn("reading: {task.completed} files"))
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading", total=None)
        found = in_folder(folder, left.append, lambda: progress.advance(task))
    if left and not quiet:
        console.print(f"{counted(len(left), 'files are no images, or cannot be read')}:", soft_wrap=True)
        for each in left[:_MOST_SAID]:
            console.print(printable(f"  {each.path}: {each.why}"), soft_wrap=True, markup=False)
    return sorted(found, key=lambda each: (each.subject, each.text("StudyDate"), each.text("StudyTime"),
                                           each.study_uid, in_number(each.number)))  # fmt: skip


def _tell_missing(missing: Sequence[Subject], lacking: Sequence[str] = ()) -> None:
    """What was asked for and is not there; then the command has failed in part."""
    for says in [*lacking, *(f"not found: {each.text}" for each in missing)]:
        click.echo(printable(says), err=True)
    if missing or lacking:
        sys.exit(1)


def _send(source: Source, copies: Sequence[Copy], target: tuple[str, str], as_json: bool) -> None:
    name, folder = target
    source.send(copies, name, folder)
    if as_json:
        click.echo(json.dumps({"target": name, "asked": [copy.name for copy in copies]}, indent=1))
        return
    says = "as soon as it can; `sorter why` says when they are there."
    _say(f"{counted(len(copies), 'files are')} copied to the target {name} by sorter, {says}")


# --- telling ----------------------------------------------------------------------------------------------------------


def _list(found: Sequence[Found], as_json: bool) -> None:
    lines = rows(found)
    if as_json:
        click.echo(json.dumps(lines, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("subject", "date", "no.", "description", "images", "verdict", "lab"):
        table.add_column(title, justify="right" if title in ("no.", "images") else "left")
    for row in lines:
        table.add_row(*(literal(_shown(value)) for value in row.values()))
    console.print(table)


def _say(text: str) -> None:
    """One line, in which a path may stand: what Rich or a terminal would take for its own is only shown."""
    console.print(printable(text), soft_wrap=True, markup=False)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _show(copies: Sequence[Copy], what: str, dest: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"dest": str(dest), "copies": [copy.name for copy in copies]}, indent=1))
        return
    megabytes = sum(copy.size for copy in copies) / 1e6
    _say(f"{len(copies)} {what}, {megabytes:.1f} MB, would be copied to {dest}:")
    folders: dict[str, int] = {}
    for copy in copies:
        folder = str(Path(copy.name).parent)
        folders[folder] = folders.get(folder, 0) + 1
    for folder, count in folders.items():
        console.print(f"{count:6}  {folder}/", soft_wrap=True, markup=False)


def _check(dest: Path) -> None:
    """SorterError: nothing can be written there, said once instead of for each file."""
    here = os.path.abspath(dest)
    while not os.path.lexists(here):
        here = os.path.dirname(here)
    if not os.path.isdir(here):
        raise SorterError(f"{here} is no folder; nothing can be copied into it")
    if not os.access(here, os.W_OK | os.X_OK):
        raise SorterError(f"your account may not write in {here}; give another DEST, or ask whose folder it is")


def _run(giver: Giver, copies: Sequence[Copy], dest: Path, *, quiet: bool, force: bool) -> Report:
    columns = (TextColumn("copying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("copying", total=sum(copy.size for copy in copies))
        try:
            told = partial(
                click.echo, f"another `sorter rename` copies into {dest}; waiting until that is done", err=True
            )
            return copy_all(giver, copies, dest, lambda size: progress.advance(task, size), force=force, waits=told)
        except KeyboardInterrupt:
            says = "interrupted: what has its name there is whole, and the same command goes on where it stopped"
            raise SorterError(says) from None


def _tell(report: Report, what: str, dest: Path, as_json: bool) -> None:
    if as_json:
        failed = [{"name": name, "why": why} for name, why in report.failed]
        found = {"written": report.written, "same": report.same, "taken": report.taken, "failed": failed}
        click.echo(json.dumps({"dest": str(dest), **found}, indent=1))
        return
    copied = f"{len(report.written)} {what} were" if len(report.written) != 1 else f"1 {what.removesuffix('s')} was"
    there = f"{len(report.same)} were" if len(report.same) != 1 else "1 was"
    _say(f"{copied} copied to {dest}; {there} there already.")
    _some([f"not overwritten: {name} is there with other content" for name in report.taken])
    if report.taken:
        console.print("Move these away, give --name, or --force to overwrite them.")
    _some([f"not copied: {name}: {why}" for name, why in report.failed])


def _some(lines: Sequence[str]) -> None:
    for line in lines[:_MOST_SAID]:
        console.print(line, soft_wrap=True, markup=False)
    if len(lines) > _MOST_SAID:
        console.print(f"… and {len(lines) - _MOST_SAID} more; --json has all of them")
