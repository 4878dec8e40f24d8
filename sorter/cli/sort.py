"""`sort`: everything after the spool's received/ folder alone."""

from __future__ import annotations

import click

from sorter.cli.common import Where, log_to_stderr, quiet_option, supervised, with_where
from sorter.daemon.sort import Sort
from sorter.daemon.supervise import end_with_parent


@click.command("sort")
@quiet_option
@supervised
@with_where
def sort_command(where: Where, quiet: float | None, supervised: bool) -> None:
    """Only sort: everything that comes into the spool, to the labs' folders."""
    log_to_stderr()
    sort = Sort(where.load().with_quiet(quiet), lambda: where.load().with_quiet(quiet))
    sort.on_signals()
    if supervised:
        end_with_parent(sort.stop)
        print("ready: sorting", flush=True)  # noqa: T201
    sort.run()
