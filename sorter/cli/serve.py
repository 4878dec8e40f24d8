"""`serve`: receive and sort, as two processes that are watched."""

from __future__ import annotations

import sys

import click

from sorter.cli.common import Where, log_to_stderr, quiet_option, with_where
from sorter.config import server_context
from sorter.daemon.supervise import Supervisor


@click.command("serve")
@click.option("--host", help="Address to listen on; 127.0.0.1 reaches this machine alone, 0.0.0.0 everything.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; default 11112.")
@quiet_option
@with_where
def serve_command(where: Where, host: str | None, port: int | None, quiet: float | None) -> None:
    """Receive and sort: the whole of sorter, until it is stopped.

    Prints one line `ready …` when the port answers. SIGHUP reloads the configuration.
    """
    log_to_stderr()
    server_context(where.load())  # said once, before there are two to say it; what plugins say is the sorter's to say
    listen = [*(["--host", host] if host else []), *(["--port", str(port)] if port is not None else [])]
    waiting = ["--quiet", str(quiet)] if quiet is not None else []

    def ready(line: str) -> None:
        print(line, flush=True)  # noqa: T201

    supervisor = Supervisor([*where.arguments, *listen], [*where.arguments, *waiting], ready)
    sys.exit(supervisor.run())
