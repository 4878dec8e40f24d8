"""`sorter plugins`: what there is, a new one, and what each says of a series."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from sorter.cli.common import Where, console, literal, open_spool, printable, with_where
from sorter.cli.new_plugin import distribution, single_file
from sorter.config import Config
from sorter.daemon.assembly import load_plugins, planner_of
from sorter.durable import Files
from sorter.errors import PluginError, SorterError, words_of
from sorter.labs.files import LabFiles
from sorter.model import DICOM, Series, plain
from sorter.pipeline.planning import Planner, view
from sorter.plugins import Asked, Plugins
from sorter.plugins.loading import BUILT_IN
from sorter.spool import Unit
from sorter.spool.labs import LabRecords
from sorter.summaries import find_series, find_units

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40
_MOST_ROWS = 3  # of a table, in the list of settings


@click.group("plugins", invoke_without_command=True)
@with_where
def plugins_command(where: Where) -> None:
    """The plugins in the order in which they are asked, with their settings; `new` writes one, `try` asks them."""
    context = click.get_current_context()
    context.obj = where
    if context.invoked_subcommand is None:
        _list(where.load())


def _list(config: Config) -> None:
    plugins = load_plugins(config, Files())
    table = Table(box=None, pad_edge=False)
    for title in ("", "name", "version", "source", "hooks", "settings"):
        table.add_column(title)
    for each in plugins.listing():
        hooks = ", ".join(hook.removeprefix("sorter_") for hook in each.hooks)
        given = "" if each.source == "built-in" else _settings(plugins.settings(each.name))
        table.add_row(str(each.order), each.name, each.version, each.source, hooks, literal(given))
    console.print(table)
    for each in plugins.listing():
        for note in each.notes:
            console.print(f"WARNING: {each.name}: {note}", markup=False)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_short(name, value)}" for name, value in values.items())


def _short(name: str, value: Any) -> str:
    if any(word in name.lower() for word in ("password", "secret", "token", "key")):
        return "…"
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return f"{len(value)} rows"
    return str(value) if len(str(value)) <= _LONGEST else f"{str(value)[:_LONGEST]}…"


# --- a new one --------------------------------------------------------------------------------------------------------


@plugins_command.command("new")
@click.argument("name")
@click.option("--file", "file", is_flag=True, help="A single file, NAME.py, and its test, instead of a distribution.")
def new_command(name: str, file: bool) -> None:
    """Write a plugin that works, with a test that passes, into this folder: sorter-NAME/, or NAME.py."""
    if not _NAME.fullmatch(name):
        raise click.UsageError(
            f"{name!r} cannot be a plugin's name: small letters, digits and single hyphens, as my-lab"
        )
    if name in BUILT_IN:
        raise click.UsageError(f"{name} is a built-in plugin; give yours another name")
    files, texts = Files(), single_file(name) if file else distribution(name)
    for path in texts:
        if files.exists(path):
            raise SorterError(f"{path} is there already; nothing of it was changed")
    for path, text in texts.items():
        where = Path(path)
        files.make_folders(where.parent, 0o755)
        files.write_file(where, text.encode(), mode=0o644)
        click.echo(f"wrote {where}")
    click.echo(f"Next: {_next(name, file)}")


def _next(name: str, file: bool) -> str:
    if file:
        return f"pytest test_{name.replace('-', '_')}.py; then copy {name}.py into the plugins folder"
    return f"cd sorter-{name}; pip install -e '.[test]'; pytest; then `sorter plugins` lists it"


# --- what they say of a series ----------------------------------------------------------------------------------------


@plugins_command.command("try")
@click.argument("uid")
@click.option("--trace", is_flag=True, help="Where a plugin failed, line by line.")
@click.pass_obj
def try_command(where: Where, uid: str, trace: bool) -> None:
    """What every plugin says of a series that sorter has; nothing is done with the answers.

    UID is a series' UID, a subject, or what `sorter list` calls it. The plugins run in this process: what they print is
    shown, and a breakpoint() in one of them stops here.
    """
    config = where.load()
    spool = open_spool(config)
    found = find_series(spool, uid)
    if not found and find_units(spool, uid):
        raise SorterError(f"{uid} is a whole study or subject; name one of its series, as `sorter list` shows them")
    if not found:
        raise SorterError(f"no series is called {uid}; `sorter list` shows what there is")
    if len(found) > 1:
        lines = "\n".join(f"  {each.key[:8]}  {each.subject or ''}  {each.number} {each.description}" for each in found)
        raise SorterError(f"{len(found)} series are called {uid}; name one of them:\n{printable(lines)}")
    unit = Unit.load(spool, found[0].key)
    if not unit.instances:
        raise SorterError(f"nothing is known of {uid} any more: it was withdrawn")
    plugins, kept = load_plugins(config, spool.files, apart=False), LabFiles(LabRecords(spool.labs, spool.files))
    kept.load(config.labs)
    kept.give(plugins)
    _say_all(plugins, planner_of(config, plugins, kept.in_force), unit, trace)


def _say_all(plugins: Plugins, planner: Planner, unit: Unit, trace: bool) -> None:
    latest = unit.latest_revision()
    series = view(unit, latest)
    show = _Shown(trace)
    show.asked("sorter_group", plugins.group(next(iter(unit.instances.values()))))
    show.asked("sorter_identify", plugins.ask("sorter_identify", series=series))
    identity = plugins.identify(series).identity
    show.result("identity", plain(identity))
    series = view(unit, latest, identity)
    show.asked("sorter_expect", plugins.expect(series))
    show.asked("sorter_route", plugins.ask("sorter_route", series=series))
    routed = plugins.route(series)
    show.result("route", plain(routed.route))
    targets = getattr(routed.route, "targets", ())
    for product, target in _deliveries(planner, series, targets):
        show.asked(f"sorter_name ({product} at {target})", _names(plugins, series, product, target))


def _names(plugins: Plugins, series: Series, product: str, target: str) -> Asked:
    return plugins.ask("sorter_name", series=series, product=product, target=target)


def _deliveries(planner: Planner, series: Series, targets: Iterable[str]) -> Iterator[tuple[str, str]]:
    fitting = [name for name in planner.products if planner.recipes.takes(name, series)]
    for target in targets:
        for product in (DICOM, *fitting):
            yield product, target


class _Shown:
    """Answers as lines for a terminal."""

    def __init__(self, trace: bool) -> None:
        self._trace = trace

    def asked(self, title: str, asked: Asked) -> None:
        click.echo(f"{title}")
        for answer in asked.answers:
            click.echo(f"  {answer.plugin}: {printable(_text(answer.value))}")
        for failure in asked.failures:
            click.echo(f"  {failure.plugin}: FAILED: {printable(_why(failure))}")
            if self._trace and isinstance(failure.cause, BaseException):
                click.echo(printable("".join(traceback.format_exception(failure.cause))))
        if not asked.answers and not asked.failures:
            click.echo("  nobody has an answer")

    def result(self, title: str, value: Any) -> None:
        click.echo(f"  => {title}: {printable(str(value))}")


def _why(failure: PluginError) -> str:
    return failure.cause if isinstance(failure.cause, str) else words_of(failure.cause)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{type(value).__name__} {plain(value)}"
