"""What people do when something waits: `retry`, `complete`."""

from __future__ import annotations

import click

from sorter.cli.common import console, open_spool, soon, with_config
from sorter.config import Config
from sorter.daemon.requests import request
from sorter.errors import SorterError
from sorter.summaries import find_series


@click.command("retry")
@with_config
def retry_command(config: Config) -> None:
    """Try again now: failed deliveries and products, held and unassigned series."""
    spool = open_spool(config)
    request(spool, "retry", {"do": "retry"})
    console.print(f"Everything that waits is tried again {soon(spool)}; see `sorter status`.", soft_wrap=True)


@click.command("complete")
@click.argument("uid")
@with_config
def complete_command(config: Config, uid: str) -> None:
    """Say that a series is complete as it is: it is published without waiting any longer."""
    spool = open_spool(config)
    units = find_series(spool, uid)
    if not units:
        raise SorterError(f"no series has the UID or key {uid}; `sorter list` shows what there is")
    for unit in units:
        request(spool, f"complete-{unit.key}", {"do": "complete", "key": unit.key})
    console.print(f"{len(units)} series are published as complete {soon(spool)}.")
