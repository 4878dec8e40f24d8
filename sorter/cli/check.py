"""`check` and `conformance`: what a configuration says, before anything is started."""

from __future__ import annotations

import time

import click

from sorter.cli.check_engine import check_engine
from sorter.cli.checking import check_targets, lacking_workers
from sorter.cli.common import console, with_config
from sorter.config import Config, remark, unknown_names
from sorter.daemon import assembly
from sorter.daemon.conformance import statement


@click.command("check")
@click.option("--targets", is_flag=True, help="Write to every target too, and have Slurm run a job.")
@click.option(
    "--anew", multiple=True, metavar="TARGET", help="Mark this one, though images were delivered there before."
)
@with_config
def check_command(config: Config, targets: bool, anew: tuple[str, ...]) -> None:
    """Read the configuration and the plugins, and say everything that is wrong with them."""
    assembly.check(config)
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
