"""The sending side: `echo` and `send`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sorter.cli.common import console
from sorter.scu.storage import echo, send
from sorter.words import counted

called_option = click.option("--called", "-aec", default="SORTER", show_default=True, help="AE title of the receiver.")
calling_option = click.option("--calling", "-aet", default="SORTER", show_default=True, help="Our own AE title.")


@click.command("echo")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@called_option
@calling_option
def echo_command(host: str, port: int, called: str, calling: str) -> None:
    """Does a DICOM receiver answer at HOST and PORT? (C-ECHO)"""
    echo(host, port, called=called, calling=calling)
    console.print(f"{called} answers at {host}:{port}.")


@click.command("send")
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@called_option
@calling_option
def send_command(folder: Path, host: str, port: int, called: str, calling: str) -> None:
    """Send every DICOM file below FOLDER to HOST and PORT, as it is. (C-STORE)"""
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("sending", total=None)
        report = send([folder], host, port, called=called, calling=calling, progress=lambda *_: progress.advance(task))
    console.print(f"{counted(report.sent, 'images were')} sent and accepted.")
    for path, status, sentence in report.refused:
        console.print(f"refused with 0x{status:04X}: {path}: {sentence}", soft_wrap=True, markup=False)
    if report.unreadable:
        console.print(counted(len(report.unreadable), "files are no DICOM and were passed over."))
    if report.refused or not report.sent:
        sys.exit(1)
