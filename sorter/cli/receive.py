"""`receive`: the storage SCP alone."""

from __future__ import annotations

import os

import click

from sorter.cli.common import Where, log_to_stderr, supervised, with_where
from sorter.config import Config
from sorter.daemon.receive import run_receive
from sorter.daemon.supervise import YIELD, supervisor_is_gone
from sorter.receive.gate import is_loopback


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
