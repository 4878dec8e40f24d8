"""The `sorter` command."""

from __future__ import annotations

import importlib
import sys

import click

from sorter.errors import SorterError

COMMANDS = {
    "serve": "serve",
    "receive": "receive",
    "sort": "sort",
    "check": "check",
    "plugins": "plugins",
    "demo": "demo",
    "status": "look",
    "list": "look",
    "why": "look",
    "conformance": "check",
    "echo": "network",
    "send": "network",
    "rename": "rename",
    "rules": "rules",
    "retry": "mend",
    "complete": "mend",
    "ask": "ask",
    "verify": "verify",
    "relocate": "relocate",
    "claim": "claim",
    "fix": "fix",
    "hold": "withdraw",
    "withdraw": "withdraw",
    "quarantine": "quarantine",
    "import": "importing",
}


class Lazy(click.Group):
    """Imports a command's module only when it is called: `sorter rename` should not wait for the daemon's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return super().get_command(ctx, name)
        module = importlib.import_module(f"sorter.cli.{COMMANDS[name]}")
        command = getattr(module, f"{name}_command")
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mri-sorter", prog_name="sorter")
def sorter() -> None:
    """From the scanner to the lab's folder, at the lab's will, with no database.

    The quickest start:  sorter serve --root ./sorter-data
    """


def main() -> None:
    """Errors a person can mend are one sentence and an exit code; anything else is a bug and shows its traceback."""
    try:
        sorter()
    except SorterError as error:
        click.echo(f"sorter: {error}" if error.exit_code == 1 else str(error), err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
