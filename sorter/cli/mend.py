"""What people do when something waits: `retry`, `complete`, `quarantine`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sorter.cli.common import console, open_spool, with_config
from sorter.cli.find import find_units
from sorter.config import Config
from sorter.daemon.sort import request
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.spool import Spool


@click.command("retry")
@with_config
def retry_command(config: Config) -> None:
    """Try again now: failed deliveries and products, held and unassigned series."""
    request(open_spool(config), "retry", {"do": "retry"})
    console.print("Everything that waits is tried again; see `sorter status`.")


@click.command("complete")
@click.argument("uid")
@with_config
def complete_command(config: Config, uid: str) -> None:
    """Say that a series is complete as it is: it is published without waiting any longer."""
    spool = open_spool(config)
    units = find_units(spool, uid)
    if not units:
        raise SorterError(f"no series has the UID or key {uid}; `sorter list` shows what there is")
    for unit in units:
        request(spool, f"complete-{unit.key}", {"do": "complete", "key": unit.key})
    console.print(f"{len(units)} series will be published as complete.")


@click.group("quarantine", invoke_without_command=True)
@with_config
def quarantine_command(config: Config) -> None:
    """What could not be taken as an image, and why. Nothing is ever deleted from here."""
    ctx = click.get_current_context()
    ctx.obj = open_spool(config)
    if ctx.invoked_subcommand is None:
        _list(ctx.obj)


def _list(spool: Spool) -> None:
    count = 0
    for path, note in spool.quarantined():
        count += 1
        where = os.path.relpath(path, spool.quarantine)
        console.print(
            f"{where}\n    from {note['origin']}, {note['at']}\n    {note['reason']}", soft_wrap=True, markup=False
        )
    if not count:
        console.print("Nothing is in quarantine.")


@quarantine_command.command("retry")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that is in quarantine.")
@click.pass_obj
def quarantine_retry(spool: Spool, names: tuple[str, ...], everything: bool) -> None:
    """Put files back into incoming/, to be looked at again. NAMES as `sorter quarantine` shows them."""
    if not names and not everything:
        raise click.UsageError("give the names to try again, or --all")
    wanted = {os.path.normpath(name) for name in names}
    found = [path for path, _ in spool.quarantined() if everything or os.path.relpath(path, spool.quarantine) in wanted]
    if not found:
        raise SorterError("nothing of that name is in quarantine; `sorter quarantine` shows what is")
    for path in found:
        _back_to_incoming(spool, path)
    console.print(f"{len(found)} files were put into {spool.incoming}.", soft_wrap=True)


def _back_to_incoming(spool: Spool, path: Path) -> None:
    folder = spool.incoming / f"again-{os.urandom(6).hex()}"
    spool.files.make_folders(folder)
    spool.files.link(path, folder / path.name)
    spool.files.fsync_folder(folder)
    spool.files.unlink(path)
    spool.files.unlink(path.with_name(f"{path.name}.reason.json"))


@quarantine_command.command("export")
@click.argument("dest", type=click.Path(path_type=Path))
@click.pass_obj
def quarantine_export(spool: Spool, dest: Path) -> None:
    """Copy everything in quarantine, with its reasons, to a new folder DEST."""
    files = Files()
    if files.exists(dest):
        raise SorterError(f"{dest} is there already; give the name of a new folder")
    files.make_folders(dest)
    count = 0
    for path, _ in spool.quarantined():
        for each in (path, path.with_name(f"{path.name}.reason.json")):
            target = dest / f"{path.parent.name}-{each.name}"
            with files.opened(each) as reading, files.opened(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as writing:
                files.copy(reading, writing)
                files.fsync(writing)
        count += 1
    console.print(f"{count} files were copied to {dest}.", soft_wrap=True)
