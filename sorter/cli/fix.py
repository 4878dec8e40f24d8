"""`sorter fix`: the subject was typed wrongly, or the series came to the wrong lab."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

import click

from sorter.cli.common import account, console, open_spool, soon, with_config
from sorter.cli.completing import subjects_here
from sorter.config import Config
from sorter.daemon.requests import request
from sorter.errors import SorterError, did_you_mean
from sorter.model import UnitKind, plain
from sorter.naming import safe_component
from sorter.pipeline.deciding import decision
from sorter.spool import Spool, UnitSummary
from sorter.summaries import find_series, summaries

LONGEST = 64
"""Characters of a subject's new name: as many as a PatientID may have (PS3.5 6.2, LO)."""


@click.command("fix")
@click.argument("what", shell_complete=subjects_here, metavar="SUBJECT|STUDY|SERIES")
@click.option("--as", "subject", metavar="NEW", help="What the subject is called from now on.")
@click.option("--lab", help="Whose it is from now on.")
@click.option("--undo", is_flag=True, help="What was said before by `fix` or `claim` counts no more.")
@with_config
def fix_command(config: Config, what: str, subject: str | None, lab: str | None, undo: bool) -> None:
    """Say what the subject of series is called, or whose they are, in place of what was typed at the scanner.

    The images are not changed: inside them the subject is called as before. What was delivered moves to where it
    belongs now, and products are made anew; what somebody changed there stays, with a file MOVED.txt beside it. It
    holds for what comes again, and of a study for what comes later too.
    """
    if undo and (subject or lab):
        raise SorterError("--undo takes back what was said before; give it alone")
    if not (undo or subject or lab):
        raise SorterError("say what is right: --as NEW, --lab LAB, or --undo for what was sent")
    if lab is not None and lab not in config.labs:
        raise SorterError(f"lab {lab} is not configured{did_you_mean(lab, config.labs) or f'; add [labs.{lab}]'}")
    subject = _checked(subject) if subject else None
    spool = open_spool(config)
    found = _found(spool, what)
    units = [unit for unit in found if undo or _differs(unit, subject, lab)]
    if not units:
        raise SorterError(f"{what} is as you say already; nothing was changed")
    studies = [] if _is_series(found, what) else whole_studies(spool, found)
    said = decision(lab, subject, account(), undo=undo)
    asked = {"do": "decide", "keys": [unit.key for unit in units], "studies": studies, "decision": plain(said)}
    request(spool, f"decide-{time.time_ns():020d}-{said.id[:8]}", asked)
    _tell(units, subject, lab, soon(spool), subject or (units[0].study_uid if undo else what))


def _checked(subject: str) -> str:
    subject = subject.strip()
    if len(subject) > LONGEST or not subject.isprintable() or not safe_component(subject, limit=LONGEST):
        raise SorterError(
            f"a subject is called by 1 to {LONGEST} characters that can be printed, with a letter or digit"
        )
    return subject


def _found(spool: Spool, what: str) -> list[UnitSummary]:
    """SorterError: none, or those of several people, who are listed: nobody is guessed."""
    units = [unit for unit in find_series(spool, what) if unit.state != "withdrawn"]
    if not units:
        raise SorterError(f"no series of {what} is here; `sorter list` shows what there is")
    who = _whose(units)
    if len(who) > 1 and not all(what in (unit.study_uid, *unit.series_uids) for unit in units):
        raise SorterError(
            f"{what} is more than one: {', '.join(who)}; give the UID of a study or series, or the eight "
            "letters that `sorter why` shows with each"
        )
    return units


def _whose(units: Sequence[UnitSummary]) -> list[str]:
    return sorted({f"{unit.subject or 'no subject'} of {unit.lab or 'no lab'}" for unit in units})


def _differs(unit: UnitSummary, subject: str | None, lab: str | None) -> bool:
    return (subject is not None and subject != unit.subject) or (lab is not None and lab != unit.lab)


def _is_series(found: Sequence[UnitSummary], what: str) -> bool:
    """Was one series asked for, by its UID or key? Then nothing is said of its study."""
    return len(found) == 1 and (what in found[0].series_uids or found[0].key.startswith(what.casefold()))


def whole_studies(spool: Spool, units: Sequence[UnitSummary]) -> list[str]:
    """The studies of which all that is here is among these."""
    mine = {unit.key for unit in units}
    others = {
        unit.study_uid
        for unit in summaries(spool)
        if unit.key not in mine and unit.state != "withdrawn" and unit.kind is UnitKind.SERIES
    }
    return sorted({unit.study_uid for unit in units} - others)


def _tell(units: Sequence[UnitSummary], subject: str | None, lab: str | None, when: str, called: str) -> None:
    """`called`: what finds them afterwards."""
    who = ", ".join(_whose(units))
    parts = [f"called {subject}"] * bool(subject) + [f"of lab {lab}"] * bool(lab)
    becomes = " and ".join(parts) or "what its header and the rules say"
    console.print(
        f"{len(units)} series of {who} are {becomes} {when}; `sorter why {shlex.quote(called)}` "
        "tells what became of each. The images are unchanged: inside them everything is as it was sent.",
        soft_wrap=True, markup=False,
    )  # fmt: skip
