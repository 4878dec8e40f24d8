"""`serve`, `receive`, `sort`, and what is done before: `check`, `plugins`."""

from __future__ import annotations

import os
import sys
import time

import click

from sorter.cli.check_engine import check_engine
from sorter.cli.checking import check_targets, lacking_workers
from sorter.cli.common import Where, console, log_to_stderr, with_config, with_where
from sorter.config import Config, remark, server_context, unknown_names
from sorter.daemon.assembly import load_plugins, outlets_of, planner_of
from sorter.daemon.conformance import statement
from sorter.daemon.receive import run_receive
from sorter.daemon.sort import Sort
from sorter.daemon.supervise import YIELD, Supervisor, end_with_parent, supervisor_is_gone
from sorter.durable import Files
from sorter.receive.gate import is_loopback

supervised = click.option("--supervised", is_flag=True, hidden=True)
quiet_option = click.option("--quiet", type=click.FloatRange(min=0.1), help="Seconds without an image; default 30.")


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
    _checked(where.load())
    listen = [*(["--host", host] if host else []), *(["--port", str(port)] if port is not None else [])]
    waiting = ["--quiet", str(quiet)] if quiet is not None else []

    def ready(line: str) -> None:
        print(line, flush=True)  # noqa: T201

    supervisor = Supervisor([*where.arguments, *listen], [*where.arguments, *waiting], ready)
    sys.exit(supervisor.run())


def _checked(config: Config) -> None:
    """Say all faults now, rather than in a child's voice."""
    plugins = load_plugins(config, Files())
    outlets_of(config, plugins)
    planner_of(config, plugins)
    server_context(config)


@click.command("receive")
@click.option("--host")
@click.option("--port", type=click.IntRange(0, 65535))
@supervised
@with_where
def receive_command(where: Where, host: str | None, port: int | None, supervised: bool) -> None:
    """Only receive: the storage SCP, writing into the spool's received/ folder."""
    log_to_stderr()
    if supervised:
        os.nice(YIELD)

    def load() -> Config:
        return where.load().with_receive(host=host, port=port)

    config = load()

    def ready(*ports: int) -> None:
        print(ready_line(config, *ports), flush=True)  # noqa: T201

    run_receive(load, ready, supervisor_is_gone if supervised else lambda: False)


def ready_line(config: Config, port: int, tls_port: int | None = None) -> str:
    """One line for people and scripts: who and where we are."""
    receive = config.receive
    line = f"ready: {receive.ae_title} receives on {receive.host}:{port}, "
    hosts = [receive.host]
    if receive.tls is not None and tls_port is not None:
        hosts.append(receive.tls.host or receive.host)
        line += f"with TLS on {hosts[1]}:{tls_port}, "
    line += f"spool {config.spool}"
    if all(is_loopback(host) for host in hosts):
        line += " (loopback only: for scanners, give --host 0.0.0.0 or this machine's address)"
    return line


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


@click.command("check")
@click.option("--targets", is_flag=True, help="Write to every target too, and have Slurm run a job.")
@click.option(
    "--anew", multiple=True, metavar="TARGET", help="Mark this one, though images were delivered there before."
)
@with_config
def check_command(config: Config, targets: bool, anew: tuple[str, ...]) -> None:
    """Read the configuration and the plugins, and say everything that is wrong with them."""
    _checked(config)
    doubtful = remark(config, time.time())
    if doubtful:
        console.print(f"WARNING: {doubtful}", soft_wrap=True, markup=False, highlight=False)
    for sentence in (*unknown_names(config), *lacking_workers(config)):
        console.print(f"WARNING: {sentence}", soft_wrap=True, markup=False, highlight=False)
    if targets:
        check_targets(config, anew)
        check_engine(config)
    labs = ", ".join(config.labs) or "none (everything is delivered as unassigned)"
    console.print(f"The configuration is good. Labs: {labs}. Spool: {config.spool}", soft_wrap=True)


@click.command("conformance")
@with_config
def conformance_command(config: Config) -> None:
    """The DICOM Conformance Statement (PS3.2) of this configuration, as Markdown."""
    click.echo(statement(config), nl=False)
