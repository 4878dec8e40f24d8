"""`sorter claim`: what belongs to no lab is asked for by one, and granted or refused."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from sorter.cli.by_letter import Corner, ask, source_or_corner
from sorter.cli.common import Where, account, console, soon, with_where
from sorter.daemon.requests import request
from sorter.door import Door
from sorter.durable import Files
from sorter.errors import SorterError, did_you_mean
from sorter.labs.claiming import CLAIMED
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.decisions import Claim
from sorter.summaries import find_units, title_of
from sorter.words import counted


@click.command("claim")
@click.argument("what", metavar="UID|SUBJECT|CODE", required=False)
@click.option("--lab", help="The lab that claims it.")
@click.option("--grant", is_flag=True, help="Give it to the lab that claimed it; with --lab, at once to this one.")
@click.option("--refuse", is_flag=True, help="Leave it unassigned.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_where
def claim_command(
    where: Where, what: str | None, lab: str | None, grant: bool, refuse: bool, as_json: bool
) -> None:  # fmt: skip
    """Series that belong to no lab are asked for; without arguments, the claims that wait are listed.

    A claim is granted at once where `may_claim` of the lab says so, else by whoever runs sorter, with
    `sorter claim CODE --grant`. A series of another lab cannot be claimed: that is for `sorter fix --lab`.
    """
    source = source_or_corner(where, Path())
    if isinstance(source, Corner):
        _by_letter(source, what, lab, answers=grant or refuse)
        return
    if isinstance(source, Door):
        _at_the_door(source, what, lab, answers=grant or refuse)
        return
    config, spool = where.load(), source.spool
    if what is None:
        if lab or grant or refuse:
            raise SorterError("say which: sorter claim UID|SUBJECT --lab LAB, or sorter claim CODE --grant")
        _list(spool, as_json)
    elif lab is None:
        _answer(spool, what, grant=grant, refuse=refuse)
    else:
        if lab not in config.labs:
            raise SorterError(f"lab {lab} is not configured{did_you_mean(lab, config.labs) or f'; add [labs.{lab}]'}")
        if refuse:
            raise SorterError("--refuse answers a claim: sorter claim CODE --refuse")
        _claim(spool, what, lab, granted=grant)


def _at_the_door(source: Door, what: str | None, lab: str | None, *, answers: bool) -> None:
    """A lab's member asks. What there is of it is not said: it is nobody's yet."""
    if what is None or lab is None or answers:
        raise SorterError("claim for your lab: sorter claim UID|SUBJECT --lab LAB; to answer is for the admin")
    source.claim(what, lab)
    console.print(CLAIMED.format(what=what, lab=lab), soft_wrap=True, markup=False)


def _by_letter(corner: Corner, what: str | None, lab: str | None, *, answers: bool) -> None:
    if what is None or lab or answers:
        raise SorterError(f"{corner.root} is of one lab: claim for it by sorter claim UID|SUBJECT; leave out the rest")
    sys.exit(0 if ask(replace(corner, dest=""), {"subject": what, "claim": True}, Files()) else 1)


def _claim(spool: Spool, what: str, lab: str, *, granted: bool) -> None:
    units = [unit for unit in find_units(spool, what) if unit.state != "withdrawn"]
    free = [unit for unit in units if unit.lab is None]
    if not free:
        others = "; it belongs to a lab already, and `sorter fix --lab` moves it" if units else ""
        raise SorterError(f"nothing of {what} is unassigned{others}; `sorter list` shows what there is")
    keys = [unit.key for unit in free]
    asked = {"do": "claim", "keys": keys, "lab": lab, "by": account(), "granted": granted}
    claim = Claim(lab, tuple(keys), "", "")
    request(spool, f"decide-{time.time_ns():020d}-{claim.code}", asked)
    then = "it is given to it" if granted else f"where its may_claim does not say so: sorter claim {claim.code} --grant"
    console.print(f"{len(free)} series are claimed for lab {lab} {soon(spool)}; {then}.", soft_wrap=True, markup=False)


def _answer(spool: Spool, code: str, *, grant: bool, refuse: bool) -> None:
    claim = spool.claims.find(code)
    if claim is None:
        raise SorterError(f"no claim that waits is called {code}; `sorter claim` lists them; to claim, give --lab LAB")
    if grant == refuse:
        raise SorterError(f"say which of the two: sorter claim {code} --grant, or --refuse")
    request(spool, f"decide-{time.time_ns():020d}-{code}", {"do": "answer claim", "code": code, "granted": grant})
    done = f"go to lab {claim.lab}" if grant else "stay unassigned"
    console.print(f"{len(claim.keys)} series {done} {soon(spool)}.")


def _list(spool: Spool, as_json: bool) -> None:
    claims = spool.claims.all()
    found = [(claim, _units(spool, claim)) for claim in claims]
    if as_json:
        click.echo(json.dumps([
            {"code": claim.code, "lab": claim.lab, "by": claim.by, "at": claim.at, "keys": claim.keys}
            for claim, _ in found
        ], indent=1))  # fmt: skip
        return
    if not found:
        console.print("No claim waits.")
    for claim, units in found:
        since = claim.at[:16].replace("T", " ")
        console.print(f"{claim.code}  lab {claim.lab}, by {claim.by}, since {since}:", soft_wrap=True, markup=False)
        for unit in units:
            of = f"; of lab {unit.lab} meanwhile" if unit.lab else ""
            console.print(
                f"          {title_of(unit)}, {counted(unit.images, 'images')}{of}", soft_wrap=True, markup=False
            )
        console.print(f"          sorter claim {claim.code} --grant, or --refuse", soft_wrap=True, markup=False)


def _units(spool: Spool, claim: Claim) -> list[UnitSummary]:
    return [found for key in claim.keys if (found := Unit(spool, key).summary()) is not None]
