"""Where the series are that one may see: in the spool, or behind the door of the sorter that runs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sorter.cli import common
from sorter.cli.common import SOCKET, NotYours, Where, open_spool, printable
from sorter.config import NoConfiguration
from sorter.door import Door
from sorter.durable import Files
from sorter.errors import ConfigError, SorterError
from sorter.exports import Source, Store


def open_source(where: Where) -> Store | Door:
    """The series that one may see: of the spool itself where one may read it, else by the door of the sorter that runs.

    SorterError: neither is there.
    """
    given = os.environ.get(SOCKET)
    if given and where.path is None and where.root is None:
        return Door(Path(given), Files())
    try:
        config = where.load()
    except ConfigError as error:
        found = Path(given) if given else common.SYSTEM_SOCKET
        if found.exists():
            return Door(found, Files())
        if not isinstance(error, NoConfiguration):
            raise
        raise SorterError(
            f"there is no configuration that you may read, and no socket {found}. The admin of sorter knows where its "
            f"socket is: say `export {SOCKET}=…` once, or give --root DIR or -c FILE. Or `cd` into your lab's folder: "
            "there list, why, claim and rename work without"
        ) from None
    try:
        return Store(open_spool(config), config.folders())
    except NotYours:
        return Door(Path(given) if given else config.socket, Files())


def tell_unread(source: Source) -> bool:
    """Say what was left out so far, as it cannot be read; True where there was something."""
    for says in source.unread.values():
        click.echo(printable(says), err=True)
    return bool(source.unread)
