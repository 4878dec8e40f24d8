"""`sorter verify`: is everything still as it was received and delivered?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sorter import verifying
from sorter.cli.common import console, open_spool, soon, with_config
from sorter.cli.source import tell_unread
from sorter.config import Config
from sorter.daemon.assembly import load_plugins, outlets_of
from sorter.daemon.requests import request
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.exports import Store
from sorter.exports.source import not_read
from sorter.matching import day_of
from sorter.model import Receipt
from sorter.spool import Spool, Unit, UnitSummary
from sorter.summaries import in_order, is_called
from sorter.verifying import STORE, Finding, Standing, Tally, Targets
from sorter.words import counted

_CHUNK = 200  # series compared together: their receipts are in memory
_SHOWN = 5  # names of one finding

_TO_DO = {
    Standing.DAMAGED: "--repair sets them aside; then send them again, or drop delivered copies into incoming/",
    Standing.LOST: "Send them again, or drop delivered copies into incoming/: what comes takes their place",
}


@click.command("verify")
@click.argument("what", metavar="[LAB|SUBJECT]", required=False)
@click.option("--deep", is_flag=True, help="Read every byte; otherwise presence and size are compared.")
@click.option("--target", help="Only what was delivered to this target.")
@click.option("--since", help="Only what was delivered on this day or later; what is gone there counts as lost.")
@click.option("--repair", is_flag=True, help="Have delivered again what is damaged, outdated or lost.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_config
def verify_command(
    config: Config, what: str | None, deep: bool, target: str | None, since: str | None, repair: bool, as_json: bool
) -> None:
    """Compare the store with its records, and what was delivered with its receipts.

    What a lab removed or edited is told, and is no fault: it stays so. A target that was put back to an earlier day is
    brought up to date with --repair; give --target and --since, the day of the backup, so that what was delivered
    after that day, and is gone, counts as lost. Ends with 1 where something is wrong.
    """
    spool = open_spool(config)
    targets = config.all_targets()
    if target is not None and target not in targets:
        raise SorterError(f"{target} is no configured target (known: {', '.join(sorted(targets)) or 'none'})")
    if since is not None and target is None:
        raise SorterError("--since says that a target lost what was delivered since; give --target too")
    source = Store(spool)
    units = in_order([each for each in source.units() if what is None or each.lab == what or is_called(each, what)])
    if not units and not source.unread:
        raise SorterError(f"no series of {what or 'anybody'} is here; `sorter list` shows what there is")
    check = _Check(spool, deep, target, day_of(since) if since else "", source)
    comparing = Targets(outlets_of(config, load_plugins(config, Files())), deep=deep)
    try:
        _run(check, units, comparing, quiet=as_json)
    finally:
        comparing.stop()
    asked = sum(_repair(spool, finding) for finding in check.tally.findings) if repair else 0
    _tell(check, units, asked, as_json)
    if asked and not as_json:
        _say(
            f"{counted(asked, 'files are')} delivered again {soon(spool)}; see `sorter status`, and verify again then."
        )
    elif not repair and not as_json and check.tally.can_be_mended:
        _say("With --repair they are delivered again from the store.")
    sys.exit(1 if tell_unread(source) or check.tally.faults else 0)


# --- comparing ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Check:
    spool: Spool
    deep: bool
    target: str | None
    since: str  # YYYYMMDD, "" for always
    source: Store
    at_target: set[str] = dataclasses.field(default_factory=set)  # keys of what was compared there
    tally: Tally = dataclasses.field(default_factory=Tally)

    def loaded(self, units: Iterable[UnitSummary]) -> Iterator[Unit]:
        for each in units:
            try:
                yield Unit.load(self.spool, each.key)
            except OSError as error:
                self.source.unread[each.key] = not_read(each.key, error.strerror or str(error))

    def receipts(self, unit: Unit) -> Iterator[Receipt]:
        for receipt in unit.receipts().values():
            day = receipt.verified[:10].replace("-", "")
            if receipt.files and self.target in (None, receipt.target) and day >= self.since:
                yield receipt

    def is_current(self, receipt: Receipt) -> bool:
        """Was it not replaced while it was compared?"""
        now = Unit(self.spool, receipt.key).receipts().get((receipt.product, receipt.target))
        return now == receipt


def _run(check: _Check, units: Sequence[UnitSummary], comparing: Targets, *, quiet: bool) -> None:
    columns = (TextColumn("comparing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        total, task = 0, progress.add_task("comparing", total=None)
        rest = iter(units)
        while chunk := list(islice(rest, _CHUNK)):
            loaded = list(check.loaded(chunk))
            left = {unit.key: unit.left for unit in loaded}
            receipts = [receipt for unit in loaded for receipt in check.receipts(unit)]
            share = sum(each.size for unit in loaded for each in unit.instances.values())
            total += share + sum(each.size for receipt in receipts for each in receipt.files)
            progress.update(task, total=total * max(1, len(units) // len(chunk)))
            for unit in loaded if check.target is None else ():
                check.tally.stored += len(unit.instances) - len(unit.left)
                check.tally.findings += verifying.in_store(
                    unit, deep=check.deep, progress=lambda size: progress.advance(task, size)
                )
            for receipt, answer in comparing.compare(receipts):
                check.tally.delivered += len(receipt.files)
                check.at_target.add(receipt.key)
                found = list(
                    verifying.at_target(receipt, answer, was_lost=bool(check.since), left=left.get(receipt.key, ()))
                )
                if not found or check.is_current(receipt):
                    check.tally.findings += found
                progress.advance(task, sum(each.size for each in receipt.files))


# --- mending --------------------------------------------------------------------------------------------------------


def _repair(spool: Spool, finding: Finding) -> int:
    """Ask the running sorter to deliver again what can be; how many files."""
    if not finding.standing.can_be_mended or (finding.where, finding.standing) == (STORE, Standing.LOST):
        return 0
    place = "\0".join((finding.key, finding.product, finding.where, finding.standing))
    asked = {"do": "mend", "key": finding.key, "product": finding.product, "target": finding.where}
    name = f"mend-{hashlib.sha256(place.encode()).hexdigest()[:32]}"
    request(spool, name, {**asked, "names": list(finding.names)})
    return 0 if finding.where == STORE else len(finding.names)


# --- telling --------------------------------------------------------------------------------------------------------


def _tell(check: _Check, units: Sequence[UnitSummary], asked: int, as_json: bool) -> None:
    tally = check.tally
    if as_json:
        found = [{**dataclasses.asdict(each), "fault": each.standing.is_fault} for each in tally.findings]
        told = {"stored": tally.stored, "delivered": tally.delivered, "mending": asked, "findings": found}
        click.echo(json.dumps(told, indent=1, ensure_ascii=False))
        return
    titles = {each.key: f"{each.subject or 'no subject'} {each.study_date} {each.number} {each.description}".strip()
              for each in units}  # fmt: skip
    compared = [each for each in tally.findings if each.standing is not Standing.INCOMPARABLE]
    for each in compared:
        _say(f"{each.key[:8]}  {titles[each.key]}: {_sentence(each)}")
    others = Counter((each.where, each.why) for each in tally.findings if each.standing is Standing.INCOMPARABLE)
    for (where, why), count in others.items():
        _say(f"{counted(count, 'deliveries')} to {where} not compared: {why}.")
    counts = Counter[Standing]()
    for each in compared:
        counts[each.standing] += max(1, len(each.names))
    said = ", ".join(f"{count} {standing}" for standing, count in counts.items()) or "all as it should be"
    delivered = f"{counted(tally.delivered, 'delivered files')} of"
    if check.target is None:
        _say(f"{counted(tally.stored, 'images')} in the store and {delivered} {len(units)} series: {said}.")
    else:
        _say(f"{delivered} {len(check.at_target)} series at {check.target}: {said}.")


def _sentence(finding: Finding) -> str:
    why = f" ({finding.why})" if finding.why else ""
    if not finding.names:
        return f"{finding.product} at {finding.where} could not be compared: {finding.why}"
    names = ", ".join(finding.names[:_SHOWN]) + (" …" if len(finding.names) > _SHOWN else "")
    where = "in the store" if finding.where == STORE else f"at {finding.where}"
    to_do = f". {_TO_DO[finding.standing]}" if finding.where == STORE and finding.standing in _TO_DO else ""
    return f"{len(finding.names)} {finding.product} files {where} {_WORDS[finding.standing]}{why}: {names}{to_do}"


_WORDS = {
    Standing.DAMAGED: "are damaged",
    Standing.LOST: "are lost",
    Standing.OUTDATED: "are as an earlier revision left them: the target was put back to an earlier day",
    Standing.GONE: "are gone with their folder",
    Standing.REMOVED: "were removed by the lab",
    Standing.EDITED: "were edited by the lab",
    Standing.UNKNOWN: "could not be compared",
}


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
