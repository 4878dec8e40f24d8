"""What all commands share: where the configuration is, how the spool is opened, how things are printed.

`receive` is started anew when it dies, and waits for these imports: they are few.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from sorter.accounts import name_of
from sorter.config import Config, NoConfiguration, load
from sorter.durable import files_of_owner
from sorter.errors import SorterError
from sorter.spool import Spool

F = TypeVar("F", bound=Callable[..., Any])

console = Console(highlight=False)

supervised = click.option("--supervised", is_flag=True, hidden=True)
quiet_option = click.option("--quiet", type=click.FloatRange(min=0.1), help="Seconds without an image; default 30.")

SOCKET = "SORTER_SOCKET"
"""The variable that names the door's socket, where no configuration that one may read does."""

SYSTEM_SOCKET = Path("/run/sorter/sock")


def with_config(command: F) -> F:
    """Give a command `-c FILE` and `--root DIR`; it is called with `config` in their place."""

    @click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="The configuration file.")
    @click.option(
        "--root", type=click.Path(path_type=Path), help="Everything below this folder; needs no configuration."
    )
    @functools.wraps(command)
    def wrapped(path: Path | None, root: Path | None, *args: Any, **kwargs: Any) -> Any:
        return command(*args, config=admins_config(Where(path, root)), **kwargs)

    return wrapped  # type: ignore[return-value]


def with_where(command: F) -> F:
    """Like `with_config`, but the command is given `where`: a function that loads, and the arguments to pass on."""

    @click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="The configuration file.")
    @click.option(
        "--root", type=click.Path(path_type=Path), help="Everything below this folder; needs no configuration."
    )
    @functools.wraps(command)
    def wrapped(path: Path | None, root: Path | None, *args: Any, **kwargs: Any) -> Any:
        return command(*args, where=Where(path, root), **kwargs)

    return wrapped  # type: ignore[return-value]


class Where:
    """Where the configuration is, to be loaded now and again, or handed to a child process."""

    def __init__(self, path: Path | None, root: Path | None) -> None:
        self.path = path.resolve() if path else None
        self.root = root.resolve() if root else None

    def load(self) -> Config:
        return load(self.path, self.root)

    @property
    def arguments(self) -> list[str]:
        found = ["-c", str(self.path)] if self.path else []
        return found + (["--root", str(self.root)] if self.root else [])


def admins_config(where: Where) -> Config:
    """For a command that is for whoever runs sorter; who came by way of the socket is told so."""
    try:
        return where.load()
    except NoConfiguration:
        if not (os.environ.get(SOCKET) or SYSTEM_SOCKET.exists()):
            raise
        raise SorterError(
            "this is for whoever runs sorter, and has its configuration: give that with -c FILE, or ask the admin. "
            "By the socket you have list, status, why, rename, rules and claim"
        ) from None


class NotYours(SorterError):
    """The spool is another account's."""


def open_spool(config: Config) -> Spool:
    """The spool of a sorter that was started at least once. SorterError where there is none, or no right to it."""
    spool = Spool(config.spool, files_of_owner(config.spool))
    try:
        if not spool.files.exists(spool.root / "version"):
            raise SorterError(f"there is no spool at {spool.root}; start `sorter serve` first, or check --root and -c")
        spool.check_version()
        spool.files.names(spool.store)
    except PermissionError:
        raise NotYours(f"you may not read the spool {spool.root}; ask its owner, or run as that user") from None
    return spool


def soon(spool: Spool) -> str:
    """When the running sorter does what a command asked of it."""
    return "now" if spool.is_sorting() else "as soon as sorter runs"


def account() -> str:
    """Who gives this command, for the record."""
    return name_of(os.getuid())


def printable(text: str) -> str:
    """Without what moves a terminal's cursor: names in an archive or a dropped folder are anybody's."""
    return "".join(each if each.isprintable() or each == "\n" else "�" for each in text)


def log_to_stderr() -> None:
    """For the daemons: one line an event, without time where systemd's journal adds it."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )
    for loud in ("pynetdicom", "watchdog"):
        logging.getLogger(loud).setLevel(logging.CRITICAL)


def literal(text: str) -> Text:
    """For a table, whose cells Rich reads as markup; headers are no markup."""
    return Text(text)
