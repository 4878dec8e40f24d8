"""`sorter rules`: what a lab's own file says, tried on what came, and applied to what was delivered."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

from sorter.cli.by_letter import corner_above
from sorter.cli.common import F, Where, account, admins_config, console, printable, soon, with_where
from sorter.cli.source import open_source, tell_unread
from sorter.cli.standing import OwnFile
from sorter.config import Config
from sorter.config.rewriting import without_rule
from sorter.daemon.assembly import homes_of, load_plugins, planner_of
from sorter.daemon.requests import request
from sorter.door import Door
from sorter.durable import Files
from sorter.errors import ConfigError, SorterError, did_you_mean
from sorter.exports import Store
from sorter.exports.source import not_read
from sorter.exports.standing import sentence
from sorter.labs.files import LabFiles
from sorter.labs.moving import Move, Trial, Tried, delivered, move_of
from sorter.matching import day_of
from sorter.model import plain
from sorter.pipeline.deciding import decision
from sorter.pipeline.planning import Planner
from sorter.spool import Spool, UnitSummary
from sorter.spool.labs import LabRecords
from sorter.spool.veils import Veils
from sorter.summaries import in_order

_MOST_SAID = 40  # series


@click.group("rules", invoke_without_command=True)
@click.option("--lab", help="The lab; by default the one in whose folder you are, or all.")
@with_where
def rules_command(where: Where, lab: str | None) -> None:
    """The rules that labs wrote into their own files, `.sorter/lab.toml`; they say what comes where from now on."""
    ctx = click.get_current_context()
    ctx.obj = (where, lab)
    if ctx.invoked_subcommand is not None:
        return
    found, wrong = _files(where, lab), False
    for name, own in found:
        try:
            _list(name, own)
        except SorterError as error:
            if len(found) == 1:
                raise
            _tell_wrong(name, error)
            wrong = True
    if wrong:
        sys.exit(1)


def with_given(command: F) -> F:
    """`-c`, `--root` and `--lab` may stand before or after the subcommand; it is called with `where` and `lab`."""

    @click.option("--lab", help="The lab.")
    @with_where
    @functools.wraps(command)
    def wrapped(where: Where, lab: str | None, *args: Any, **kwargs: Any) -> Any:
        before, lab_before = click.get_current_context().obj
        given = where if where.path or where.root else before
        return command(*args, where=given, lab=lab or lab_before, **kwargs)

    return wrapped  # type: ignore[return-value]


def _files(where: Where, lab: str | None) -> list[tuple[str, OwnFile]]:
    """The own file of this lab, of the lab in whose folder one is, or of all."""
    files = Files()
    here = corner_above(Path(), files) if lab is None and where.path is None and where.root is None else None
    if here is not None:
        return [("", OwnFile(here.root, files))]
    try:
        config = where.load()
    except ConfigError:
        if where.path or where.root:
            raise
        which = f"where lab {lab} has its folder only sorter's configuration says" if lab else "of which lab?"
        raise SorterError(f"{which}: `cd` into the lab's folder, without --lab, or give -c FILE") from None
    if lab is not None and lab not in config.labs:
        raise SorterError(f"lab {lab} is not configured{did_you_mean(lab, config.labs)}")
    return [(name, OwnFile(config.lab_root(name), files)) for name in ([lab] if lab else config.labs)]


def _tell_wrong(lab: str, error: SorterError) -> None:
    """One lab's mistake is no other's."""
    says = f"Lab {lab}: its own file cannot be used now, and the last good one stays in force: {error}"
    click.echo(printable(says), err=True)


def _list(name: str, own: OwnFile) -> None:
    rules = own.rules().rules
    of = f"Lab {name}" if name else str(own.root)
    console.print(
        f"{of}: {len(rules) or 'no'} rule{'s' * (len(rules) != 1)} in {own.path}", soft_wrap=True, markup=False
    )
    for number, rule in enumerate(rules, start=1):
        by = ", ".join(filter(None, (rule.author, rule.date)))
        says = f" ({rule.says})" if rule.says else ""
        console.print(f"{number:4}  {sentence(rule)}{says}{f' By {by}.' if by else ''}", soft_wrap=True, markup=False)


@rules_command.command("remove")
@click.argument("number", type=click.IntRange(min=1))
@with_given
def remove_command(where: Where, lab: str | None, number: int) -> None:
    """The rule of this number goes. What was delivered by it stays where it is."""
    found = _files(where, lab)
    if len(found) > 1:
        raise SorterError(f"of which lab? give --lab, one of {', '.join(name for name, _ in found)}")
    [(_, own)] = found
    rules = own.rules().rules
    if number > len(rules):
        raise SorterError(f"{own.path} has {len(rules)} rules; `sorter rules` lists them")
    own.write(without_rule(own.read(), number))
    console.print(f"Removed: {sentence(rules[number - 1])}", soft_wrap=True, markup=False)


# --- what they would do ---------------------------------------------------------------------------------------------


class _Site(Protocol):
    """Who knows what the rules of now would do."""

    def tried(self, since: str) -> Tried:
        """On what came on this day (YYYYMMDD) or later, "" for all."""

    def apply(self, moves: Sequence[Move]) -> str:
        """Have these moved; returns how many are going to be, and when."""


@dataclass(frozen=True, slots=True)
class _Here:
    """Oneself, where one may read the spool; but a lab's own Python is asked by the sorter that runs alone."""

    config: Config
    spool: Spool
    lab: str | None

    def tried(self, since: str) -> Tried:
        planner, apart = _planner(self.config, self.spool, self.lab), self._with_python()
        source = Store(self.spool)
        every = in_order([each for each in delivered(source.units(), self.lab, since) if each.lab not in apart])
        tell_unread(source)
        moves = (self._move_of(planner, each) for each in every)
        found = Tried.of([move for move in moves if move is not None])
        for each in apart:
            found += Trial(each, since, os.getuid(), own=False).answered(self.spool)
        return found

    def _move_of(self, planner: Planner, unit: UnitSummary) -> Move | None:
        try:
            return move_of(planner, self.spool, unit)
        except OSError as error:  # that one's trouble alone
            click.echo(not_read(unit.key, error.strerror or str(error)), err=True)
            return None

    def _with_python(self) -> list[str]:
        """The labs with Python of their own that is asked, which is said; and where it cannot be."""
        records = LabRecords(self.spool.labs, self.spool.files)
        labs = [each for each in homes_of(self.config) if self.lab in (None, each) and records.python(each)]
        runs = self.spool.is_sorting()
        for each in labs:
            says = (
                "the sorter that runs says what becomes of its series, by the configuration that it has read"
                if runs
                else "only a sorter that runs can ask that, and none does: it is left out of what follows"
            )
            console.print(f"Lab {each} has Python of its own: {says}.", soft_wrap=True, markup=False)
        return labs if runs else []

    def apply(self, moves: Sequence[Move]) -> str:
        said = decision(None, None, account())
        asked = {"do": "decide", "keys": [each.key for each in moves], "studies": [], "decision": plain(said)}
        request(self.spool, f"decide-{time.time_ns():020d}-{said.id[:8]}", asked)
        return f"{len(moves)} series move {soon(self.spool)}"


@dataclass(frozen=True, slots=True)
class _AtTheDoor:
    """The sorter that runs, of a member's own lab."""

    door: Door
    lab: str

    def tried(self, since: str) -> Tried:
        return self.door.rules(self.lab, since)

    def apply(self, moves: Sequence[Move]) -> str:
        done = self.door.rules(self.lab, "", [each.key for each in moves])
        return f"{done.moving} series move now"


def _site(where: Where, lab: str | None) -> _Site:
    source = open_source(where)
    if isinstance(source, Store):
        config = admins_config(where)
        if lab is not None and lab not in config.labs:
            raise SorterError(f"lab {lab} is not configured{did_you_mean(lab, config.labs)}")
        return _Here(config, source.spool, lab)
    mine = source.labs() if lab is None else (lab,)
    if len(mine) != 1:
        raise SorterError(f"of which lab? give --lab, one of {', '.join(mine)}")
    return _AtTheDoor(source, mine[0])


def _planner(config: Config, spool: Spool, lab: str | None) -> Planner:
    """One that obeys the labs' files as they are now, and the last good ones of labs whose root is away; where all
    labs are asked about, of those too whose file has a mistake."""
    plugins, kept = load_plugins(config, Files()), LabFiles(LabRecords(spool.labs, spool.files))
    kept.load(config.labs)
    for name in [lab] if lab else config.labs:
        own = OwnFile(config.lab_root(name), Files())
        try:
            if own.files.exists(own.root / ".sorter"):
                kept.in_force[name] = kept.read(own.read().encode(), plugins, planner_of(config, plugins).products)
        except SorterError as error:
            if lab:
                raise
            _tell_wrong(name, error)
    kept.give(plugins)
    veils = {name: veil for name in config.labs if (veil := Veils(spool.labs, spool.files).of(name)) is not None}
    return planner_of(config, plugins, kept.in_force, veils)


@rules_command.command("try")
@click.argument("since", default="30d", metavar="30d|DAY")
@with_given
def try_command(where: Where, lab: str | None, since: str) -> None:
    """What the rules of now would have done with what came since then. Nothing is changed."""
    found = _site(where, lab).tried(day_of(since))
    _tell(found, f" of what came since {_said(since)}")
    if found.moves:
        console.print("Nothing was changed; `sorter rules apply` moves them.")


@rules_command.command("apply")
@click.option("--since", default="", help="Only what came on this day or later: YYYY-MM-DD, tuesday, 30d.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_given
def apply_command(where: Where, lab: str | None, since: str, yes: bool) -> None:
    """What was delivered moves to where the rules of now want it. What a lab edited or added there stays."""
    site = _site(where, lab)
    found = site.tried(day_of(since) if since else "")
    _tell(found, f" of what came since {_said(since)}" if since else "")
    if not found.moves:
        return
    if found.moving > len(found.moves):
        console.print(f"{len(found.moves)} of them are moved at once; for the others give the command again.")
    if not yes and not click.confirm("Move them?"):
        console.print("Nothing was changed.")
        return
    console.print(f"{site.apply(found.moves)}; `sorter why` tells what became of each.")


def _said(since: str) -> str:
    day = day_of(since)
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


def _tell(found: Tried, of: str) -> None:
    """`of` which series: words that begin with a space, "" for all."""
    if found.stops:
        says = "would not be delivered by the rules of now; what was delivered of them stays where it is:"
        _list_moves(f"{found.stopping} series{of} {says}", found.stopping, found.stops)
    if found.moves:
        _list_moves(f"{found.moving} series{of} would lie elsewhere by the rules of now:", found.moving, found.moves)
    else:
        console.print(f"No series{of} would lie elsewhere by the rules of now.", soft_wrap=True, markup=False)


def _list_moves(title: str, count: int, moves: Sequence[Move]) -> None:
    console.print(title, soft_wrap=True, markup=False)
    for each in moves[:_MOST_SAID]:
        console.print(f"        {printable(each.says)}", soft_wrap=True, markup=False)
    if count > _MOST_SAID:
        console.print(f"        … and {count - _MOST_SAID} more")
