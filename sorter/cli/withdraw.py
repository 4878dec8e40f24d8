"""What people decide of series that are here: `hold`, `withdraw`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence, Set

import click

from sorter.cli.common import account, console, open_spool, printable, soon, with_config
from sorter.cli.completing import subjects_here
from sorter.config import Config
from sorter.daemon.requests import request
from sorter.errors import SorterError
from sorter.exports.remembered import Exported, exported
from sorter.model import Receipt, UnitKind
from sorter.spool import Spool, Unit, UnitSummary
from sorter.summaries import find_series, summaries
from sorter.words import counted


@click.command("hold")
@click.argument("what", metavar="SUBJECT|UID", shell_complete=subjects_here)
@click.option("--why", default="no reason was given", help="For `status` and `why`.")
@click.option("--release", is_flag=True, help="What waits goes on.")
@with_config
def hold_command(config: Config, what: str, why: str, release: bool) -> None:
    """Freeze series: nothing of them is delivered and nothing is removed, until they are released.

    SUBJECT is an ID, a glob of it, a UID or a key. What comes later of other series is not held.
    """
    spool = open_spool(config)
    units = _found(spool, what)
    for unit in units:
        request(spool, f"hold-{unit.key}", {"do": "hold", "key": unit.key, "why": "" if release else why})
    console.print(f"{len(units)} series {'are released' if release else 'are held'}.")


@click.command("withdraw")
@click.argument("what", metavar="SUBJECT|STUDY", shell_complete=subjects_here)
@click.option("--why", default="", help="For the record, as 'consent withdrawn'; no names.")
@click.option("--confirm", metavar="CODE", help="Do it. The code is what a run without it prints.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_config
def withdraw_command(config: Config, what: str, why: str, confirm: str | None, as_json: bool) -> None:
    """Remove all that sorter knows of a subject, a study or a series, for good; nothing of it is taken again.

    Without --confirm it only says what would go. Copies that somebody changed are named and left; what sorter does not
    know of (backups, copies of copies) it cannot name. Manifests and receipts stay: they say what there was.
    """
    spool = open_spool(config)
    plan = _plan(spool, _found(spool, what))
    if confirm is None:
        _show(plan, what, as_json)
        return
    if confirm != plan.code:
        raise SorterError(f"{confirm} is not the code of what is here now; run `sorter withdraw {what}` and look again")
    asked = {"do": "withdraw", "keys": [each.summary.key for each in plan.parts], "studies": plan.studies}
    request(spool, f"withdraw-{plan.code}", {**asked, "why": why, "by": account()})
    left = [path for part in plan.parts for each in part.exports for path in each.remove()]
    _tell(plan, left, soon(spool), as_json=as_json)


# --- what would go --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """One series: what the store holds of it, where it was delivered, and what people copied out."""

    summary: UnitSummary
    stored: int
    receipts: tuple[Receipt, ...]
    exports: tuple[Exported, ...]
    held: str  # why, "" if it is not


@dataclasses.dataclass(frozen=True, slots=True)
class _Made:
    """What was delivered of a whole study or subject that one of the series is of: it is made anew without it."""

    receipt: Receipt
    shared: tuple[str, ...]  # files joined with those of others: the lab's own, in no receipt


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    parts: tuple[_Part, ...]
    made: tuple[_Made, ...]
    studies: list[str]
    code: str


def _found(spool: Spool, what: str) -> list[UnitSummary]:
    units = [unit for unit in find_series(spool, what) if unit.state != "withdrawn"]
    if not units:
        raise SorterError(f"no series of {what} is here; `sorter list` shows what there is")
    return units


def _plan(spool: Spool, units: Sequence[UnitSummary]) -> _Plan:
    parts = tuple(_part(spool, unit) for unit in units)
    chosen = {unit.key for unit in units}
    others = {unit.study_uid for unit in summaries(spool) if unit.key not in chosen and unit.kind is UnitKind.SERIES}
    studies = sorted({unit.study_uid for unit in units} - others)
    facts = [(part.summary.key, part.summary.evidence, part.stored, len(part.receipts)) for part in parts]
    return _Plan(
        parts, tuple(_made(spool, chosen)), studies, hashlib.sha256(repr((facts, studies)).encode()).hexdigest()[:8]
    )


def _part(spool: Spool, summary: UnitSummary) -> _Part:
    unit = Unit.load(spool, summary.key)
    stored = sum(spool.files.exists(unit.images / each) for each in unit.instances)
    receipts = tuple(receipt for receipt in unit.receipts().values() if receipt.files)
    return _Part(summary, stored, receipts, tuple(exported(unit)), unit.held)


def _made(spool: Spool, chosen: Set[str]) -> Iterator[_Made]:
    for summary in summaries(spool):
        if summary.kind is UnitKind.SERIES:
            continue
        unit = Unit.load(spool, summary.key)
        for receipt in unit.receipts().values() if not chosen.isdisjoint(unit.joined) else ():
            product = unit.product(receipt.product, receipt.revision)
            yield _Made(receipt, tuple(product.merge) if product is not None else ())


# --- telling --------------------------------------------------------------------------------------------------------


def _show(plan: _Plan, what: str, as_json: bool) -> None:
    if as_json:
        made = [{**_place(each.receipt), "shared": list(each.shared)} for each in plan.made]
        parts = [_as_json(part) for part in plan.parts]
        click.echo(json.dumps({"code": plan.code, "series": parts, "of_several": made}, indent=1))
        return
    for part in plan.parts:
        for text in _lines(part):
            _say(text)
    for each in plan.made:
        _say(_made_line(each))
    whole = counted(len(plan.studies), "whole studies") if plan.studies else "no whole study"
    _say(f"{len(plan.parts)} series, {whole}. Nothing was removed. To do it, for good:")
    _say(f"    sorter withdraw {what} --confirm {plan.code}")


def _lines(part: _Part) -> Iterator[str]:
    unit = part.summary
    yield f"{unit.key[:8]}  {unit.subject or 'no subject'} {unit.study_date} {unit.number} {unit.description}".rstrip()
    if part.held:
        yield f"    held ({part.held}); a withdrawal removes it all the same"
    yield f"    {counted(part.stored, 'images')} in the store"
    for receipt in part.receipts:
        yield f"    {_placed(receipt)}"
    for each in part.exports:
        same, changed, gone = each.counts
        said = f"{counted(same, 'copies')} in {each.dest}, of {each.at}"
        yield f"    {said}; {counted(changed, 'that somebody changed stay')}, {counted(gone, 'are')} gone"


def _made_line(made: _Made) -> str:
    said = f"{_placed(made.receipt)}, made of several series: it is made anew of those that stay, or taken back"
    if made.shared:
        said += f"; {', '.join(made.shared)} there stay: what they say of the subject is for the lab to remove"
    return said


def _placed(receipt: Receipt) -> str:
    return f"{counted(len(receipt.files), 'files')} of {receipt.product} at {receipt.target}, in {receipt.folder}"


def _as_json(part: _Part) -> dict[str, object]:
    exports = [{"dest": each.dest, "at": each.at, "counts": list(each.counts)} for each in part.exports]
    places = [_place(each) for each in part.receipts]
    return {"key": part.summary.key, "stored": part.stored, "delivered": places, "exports": exports, "held": part.held}


def _place(receipt: Receipt) -> dict[str, object]:
    return {"product": receipt.product, "target": receipt.target, "folder": receipt.folder, "files": len(receipt.files)}


def _tell(plan: _Plan, left: Sequence[str], when: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"series": len(plan.parts), "left": list(left)}, indent=1))
        return
    _say(f"{len(plan.parts)} series are withdrawn {when}; `sorter why` tells what became of each copy.")
    for path in left:
        _say(f"left, because it was changed or cannot be removed: {path}")


def _say(text: str) -> None:
    console.print(printable(text), soft_wrap=True, markup=False)
