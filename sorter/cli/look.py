"""What is going on: `status`, `list`, `why`."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from sorter.cli import door, stored
from sorter.cli.by_letter import Corner, ask, scans, source_or_corner
from sorter.cli.common import Where, console, literal, printable, with_where
from sorter.cli.completing import subjects_here
from sorter.cli.source import open_source, tell_unread
from sorter.config import Config
from sorter.daemon.receive import keep_of
from sorter.door import Door
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.expected import fits
from sorter.exports import Source
from sorter.exports.source import WORDS, Told, lines, not_read, standing, unmade
from sorter.matching import day_of
from sorter.model import UnitKind, build, plain
from sorter.pipeline.outages import Outage, outages
from sorter.receive import space
from sorter.receive.refusals import told
from sorter.sessions import Split, split_sessions
from sorter.spool import Spool, UnitSummary
from sorter.spool.alarms import AlarmFile
from sorter.spool.commitments import Commitment, Commitments
from sorter.spool.labs import LabRecords
from sorter.spool.studies import StudyRecord, StudyRecords
from sorter.story import lacks
from sorter.summaries import in_order, title_of
from sorter.watch.taken import still_there
from sorter.words import counted

OVER = ("delivered", "withdrawn")
"""States in which nothing waits."""

MOST_SHOWN = 50
"""Of series that wait, and of files that may not be removed."""

LACKING_FOR = 7
"""Days for which `status` tells of a study that settled without something that its lab expects."""

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command("status")
@json_option
@with_where
def status_command(where: Where, as_json: bool) -> None:
    """What arrives, what waits, and why."""
    source = open_source(where)
    if isinstance(source, Door):
        status_by_the_door(source, as_json)
        return
    config, spool = where.load(), source.spool
    units = in_order(list(source.units()))
    status = _status(config, units, spool)
    at_the_door = told(spool.received, spool.files)
    if as_json:
        _print_json({**status, **door.as_json(at_the_door, config)})
        return
    _print_status(status, units)
    tell_unread(source)
    _print_store(status["store"])
    if status["space"]:
        console.print(f"now: {status['space']}", soft_wrap=True, markup=False)
    for text in door.lines(at_the_door, config):
        console.print(text, soft_wrap=True, markup=False)
    _print_commitments(Commitments(spool.commitments, spool.files))


def _status(config: Config, units: list[UnitSummary], spool: Spool) -> dict[str, Any]:
    running = spool.is_sorting()
    studies = StudyRecords(spool.studies, spool.files).overview()
    alarms = AlarmFile(spool.alarms, spool.files).read()
    kept = LabRecords(spool.labs, spool.files)
    return {
        "running": running,
        "problems": spool.problems() if running else [],
        "spool": str(config.spool),
        "space": space.told(spool.received, spool.files, keep_of(config), time.time()),
        **_of_units(units),
        "store": stored.as_json(config, spool, units),
        "unassigned": sum(1 for unit in units if unit.lab is None and unit.state != "open"),
        "claims": len(spool.claims.all()),
        "quarantined": spool.aside.count(),
        "not_removable": list(islice(still_there(spool.left / "incoming", spool.incoming, spool.files), MOST_SHOWN)),
        "left_alone": _left_alone(spool) if running else {"count": 0, "some": []},
        "commitments": [_asked(each) for each in Commitments(spool.commitments, spool.files).open()],
        "alarms": [plain(each) for each in alarms.raised.values()] if alarms else [],
        "lab_files": [_of_lab(config, lab, faults) for lab in config.labs if (faults := kept.faults(lab))],
        "studies_waiting": len(studies.waiting),
        "studies_lacking": [plain(each) for each in studies.lacking if _is_recent(each)],
        "targets": [_out(each, units) for each in outages(spool)] if running else [],
    }


def _left_alone(spool: Spool) -> dict[str, Any]:
    """What was found and is left where it is: how many, and some of them."""
    count, some = spool.left_alone.read()
    return {"count": count, "some": [{"path": path, "why": why} for path, why in some]}


def _of_units(units: list[UnitSummary]) -> dict[str, Any]:
    """What the series themselves say."""
    states = Counter(unit.state for unit in units if unit.kind is UnitKind.SERIES)
    return {
        "series": {state: states[state] for state in WORDS},
        "split_sessions": [plain(each) for each in split_sessions(units)],
        "missing": [
            {"key": unit.key[:8], "images": unit.images, "missing": unit.missing, "series": unit.series_uids}
            for unit in units
            if unit.missing
        ],
        "waiting": [_brief(unit) for unit in units if unit.state not in OVER],
    }


def status_by_the_door(source: Door, as_json: bool) -> None:
    """The part of it that is the asker's: of his labs' series, and of what no lab has."""
    units, answer = in_order(list(source.units())), source.status()
    lacking = (build(StudyRecord, each) for each in answer["lacking"])
    status = {
        "labs": answer["labs"],
        **_of_units(units),
        "running": answer["running"],
        "unassigned": answer["unassigned"],
        "studies_waiting": 0,
        "studies_lacking": [plain(each) for each in lacking if _is_recent(each)],
        "targets": [_out(build(Outage, each), units) for each in answer["targets"]] if answer["running"] else [],
    }
    if as_json:
        _print_json(status)
        return
    running = "is running" if status["running"] else "is not running"
    console.print(f"sorter {running}; your labs: {', '.join(status['labs'])}", soft_wrap=True, markup=False)
    _print_targets(status)
    _print_counts(status, units)
    _print_studies(status)
    _print_waiting(units)
    if status["unassigned"]:
        console.print("Of no lab; if one is yours, claim it (`sorter claim SUBJECT --lab LAB`):")
    for each in status["unassigned"][:MOST_SHOWN]:
        text = f"{each['count']:6} series of {each['date']}, scanner {each['scanner']}: {each['protocol']}"
        console.print(text, soft_wrap=True, markup=False)
    if len(status["unassigned"]) > MOST_SHOWN:
        console.print("       … and more; `sorter status --json` has them all")
    if not units:
        console.print("What still arrives is shown once it is known whose it is: when nothing more of it comes.")


def _out(outage: Outage, units: list[UnitSummary]) -> dict[str, Any]:
    """A target that nothing can be delivered to now, and how much waits for it."""
    owed = (each for unit in units for each in unit.deliveries if each.target == outage.target)
    return {
        "target": outage.target,
        "since": outage.since,
        "why": outage.why,
        "waiting": sum(each.state in ("owed", "failed") for each in owed),
        "next": max(0, round(outage.next - time.time())),
    }


def _of_lab(config: Config, lab: str, faults: Sequence[str]) -> dict[str, Any]:
    """A lab whose own file cannot be used as it is."""
    return {"lab": lab, "page": str(config.lab_root(lab) / ".sorter" / "ERRORS.txt"), "faults": list(faults)}


def _asked(request: Commitment) -> dict[str, Any]:
    return {
        "id": request.id,
        "calling": request.calling,
        "address": request.address,
        "at": request.at,
        "instances": len(request.instances),
        "decided": request.failed is not None,
        "why": request.given_up or request.trouble,
    }


def _print_commitments(kept: Commitments) -> None:
    """Only what a person should know of: a report that waits for a scanner that does not take it."""
    for each in kept.open():
        if each.trouble or each.given_up:
            console.print(
                f"storage commitment of {counted(len(each.instances), 'instances')}, "
                f"asked for by {each.calling} at {each.at}: {each.given_up or each.trouble}",
                soft_wrap=True,
                markup=False,
            )


def _is_recent(record: StudyRecord) -> bool:
    return record.at[:10] >= str(datetime.date.today() - datetime.timedelta(days=LACKING_FOR))


def _print_studies(status: dict[str, Any]) -> None:
    if waiting := status["studies_waiting"]:
        console.print(f"{waiting:6} {'study waits' if waiting == 1 else 'studies wait'} to settle")
    lacking: list[dict[str, Any]] = status["studies_lacking"]
    for record in lacking[:5]:
        study = record["study"]
        title = f"{study.get('subject', 'no subject')} {study.get('date', '')}".strip()
        says = "; ".join(f"{each['lab']} {each['says']}" for each in study["missing"])
        console.print(f"       {title}: {says}", soft_wrap=True, markup=False)
    if len(lacking) > 5:
        console.print(f"       … and {len(lacking) - 5} more such studies; `sorter status --json` has them all")


def _print_splits(splits: Sequence[Split]) -> None:
    for each in splits[:5]:
        console.print(f"       {each}", soft_wrap=True, markup=False)
    if len(splits) > 5:
        console.print(f"       … and {len(splits) - 5} more such days; `sorter status --json` has them all")


def _brief(unit: UnitSummary) -> dict[str, Any]:
    return {
        "key": unit.key[:8],
        "state": unit.state,
        "why": unit.why,
        "lab": unit.lab,
        "subject": unit.subject,
        "number": unit.number,
        "description": unit.description,
        "images": unit.images,
        "expected": unit.expected,
        "deliveries": [plain(each) for each in unit.deliveries if each.state not in ("delivered", "nothing")],
    }


def _print_status(status: dict[str, Any], units: list[UnitSummary]) -> None:
    running = "is running" if status["running"] else "is not running"
    console.print(f"sorter {running}; spool {status['spool']}", soft_wrap=True, markup=False)
    for problem in status["problems"]:
        console.print(f"now: {problem}", soft_wrap=True, markup=False)
    _print_targets(status)
    for alarm in status["alarms"]:
        console.print(f"now: {alarm['says']}", soft_wrap=True, markup=False)
    for each in status["lab_files"]:
        count, says = len(each["faults"]), "the one before stays in force"
        faults = "a fault" if count == 1 else f"{count} faults"
        console.print(
            f"now: the lab.toml of lab {each['lab']} has {faults}, and {says}; {each['page']} tells of it",
            soft_wrap=True,
            markup=False,
        )
    _print_counts(status, units)
    if claims := status["claims"]:
        console.print(f"{claims:6} {'claim waits' if claims == 1 else 'claims wait'} for an answer: see `sorter claim`")
    if aside := status["quarantined"]:
        console.print(f"{aside:6} {'file was' if aside == 1 else 'files were'} set aside: see `sorter quarantine`")
    if left := status["not_removable"]:
        some = f"{len(left)}" if len(left) < MOST_SHOWN else f"at least {MOST_SHOWN}"
        console.print(f"{some:>6} files in incoming/ are taken, but may not be removed; remove them by hand:")
        for path in left[:5]:
            console.print(printable(f"          {path}"), soft_wrap=True, markup=False)
    _print_left_alone(status)
    _print_studies(status)
    _print_waiting(units)


def _print_left_alone(status: dict[str, Any]) -> None:
    known = {f"{status['spool']}/incoming/{path}" for path in status["not_removable"]}
    some = [each for each in status["left_alone"]["some"] if each["path"] not in known]
    if not some:
        return
    count = status["left_alone"]["count"] - len(status["left_alone"]["some"]) + len(some)
    what = (
        "thing that was found is left where it is" if count == 1 else "things that were found are left where they are"
    )
    console.print(f"{count:6} {what}:")
    for each in some[:5]:
        console.print(printable(f"          {each['path']}: {each['why']}"), soft_wrap=True, markup=False)
    if count > 5:
        console.print("          … and more; --json has them")


def _print_targets(status: dict[str, Any]) -> None:
    for each in status["targets"]:
        since = each["since"][:16].replace("T", " ")
        console.print(
            f"now: nothing can be delivered to {each['target']} since {since}: {each['why']}. "
            f"{counted(each['waiting'], 'deliveries wait')}; "
            f"it is asked again in {each['next']} s",
            soft_wrap=True,
            markup=False,
        )


def _print_counts(status: dict[str, Any], units: list[UnitSummary]) -> None:
    failing = sum(1 for unit in units if unit.kind is UnitKind.SERIES and unmade(unit))
    for state, words in WORDS.items():
        count = status["series"][state] - (failing if state == "owed" else 0)
        if count:
            console.print(f"{count:6} series {words}")
    if failing:
        console.print(f"{failing:6} series delivered but for a product that fails")
    if not units:
        console.print("     0 series so far")


def _print_waiting(units: list[UnitSummary]) -> None:
    _print_splits(split_sessions(units))
    waiting = [unit for unit in units if unit.state not in OVER]
    for unit in waiting[:MOST_SHOWN]:
        known = f" {_bar(unit.images, unit.expected)}" if unit.state == "open" and unit.expected else ""
        said = f"{unit.key[:8]}  {title_of(unit)}: {standing(unit)}{known}; {unit.why}"
        console.print(said, soft_wrap=True, markup=False)
        for each in unit.deliveries:
            if each.state in ("owed", "failed") and each.why not in ("", unit.why):
                console.print(f"          {each.product} to {each.target}: {each.why}", soft_wrap=True, markup=False)
    _print_missing(units)
    if len(waiting) > MOST_SHOWN:
        console.print(f"… and {len(waiting) - MOST_SHOWN} more; `sorter status --json` has them all")


def _print_store(store: dict[str, Any]) -> None:
    for text in stored.lines(store):
        console.print(text, soft_wrap=True, markup=False)


def _print_missing(units: list[UnitSummary]) -> None:
    lacking = [unit for unit in units if unit.missing]
    for unit in lacking[:MOST_SHOWN]:
        console.print(f"{unit.key[:8]}  {title_of(unit)}: {lacks(unit)}", soft_wrap=True, markup=False)
    if len(lacking) > MOST_SHOWN:
        console.print(f"… and {len(lacking) - MOST_SHOWN} more that lack images; `sorter status --json` has them all")


def _bar(done: int, of: int, width: int = 20) -> str:
    filled = min(width, done * width // of)
    return f"{'█' * filled}{'░' * (width - filled)} {done} of {of} images"


@click.command("list")
@click.argument("subject", required=False, shell_complete=subjects_here)
@click.option("--since", help="Only studies of this day or later: YYYY-MM-DD, yesterday, tuesday, 30d.")
@json_option
@with_where
def list_command(where: Where, subject: str | None, since: str | None, as_json: bool) -> None:
    """The series of SUBJECT (an ID, a glob, a UID), or of all subjects."""
    source = source_or_corner(where, Path())
    if isinstance(source, Corner):
        _list_by_letter(source, subject, since, as_json)
        return
    found = in_order(list(source.units(subject or "")))
    tell_unread(source)
    if since:
        day = day_of(since)
        found = [unit for unit in found if unit.study_date >= day]
    if as_json:
        _print_json([plain(unit) for unit in found])
        return
    if not found:
        studies = f" of a study of {day_of(since)} or later" if since else ""
        raise SorterError(f"no series of {subject or 'anybody'}{studies} is here; `sorter status` shows what is")
    console.print(_table(found))


def _list_by_letter(corner: Corner, subject: str | None, since: str | None, as_json: bool) -> None:
    """From a machine that sees the lab's folder alone."""
    rows = scans(corner, Files())
    if subject:
        rows = [row for row in rows if fits(subject, row.get("subject", ""))]
    if since:
        rows = [row for row in rows if row.get("date", "").replace("-", "") >= day_of(since)]
    if as_json:
        _print_json(rows)
    elif not rows:
        raise SorterError(f"no series of {subject or 'anybody'} that fits is in {corner.root}/.sorter/scans.tsv")
    else:
        titles = ("date", "subject", "session", "series", "images", "verdict", "where")  # `sorter why` tells the rest
        table = Table(box=None, pad_edge=False)
        for title in titles:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*(literal(row.get(title, "")) for title in titles))
        console.print(table)


def _table(found: list[UnitSummary]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("subject", "date", "no.", "description", "images", "verdict", "lab", "state"):
        table.add_column(title, justify="right" if title in ("no.", "images") else "left")
    for unit in found:
        row = (unit.subject or "", unit.study_date, unit.number, unit.description, str(unit.images))
        table.add_row(*map(literal, (*row, unit.verdict, unit.lab or "unassigned", unit.state)))
    return table


@click.command("why")
@click.argument("subject", shell_complete=subjects_here)
@json_option
@with_where
def why_command(where: Where, subject: str, as_json: bool) -> None:
    """Where is my scan? The story of every series of SUBJECT (an ID, a glob, a UID, a key)."""
    source = source_or_corner(where, Path())
    if isinstance(source, Corner):
        sys.exit(0 if ask(replace(source, dest=""), {"subject": subject, "why": True}, Files(), as_json=as_json) else 1)
    found = in_order(list(source.units(subject)))
    tell_unread(source)
    if not found and isinstance(source, Door):
        raise SorterError(
            f"nothing of {subject} is here that you may see. It may still be arriving, or lie among what no lab has: "
            "`sorter status` shows the days, scanners and protocols of these"
        )
    if not found:
        raise SorterError(
            f"nothing of {subject} has arrived here. Was it sent to this sorter? `sorter list` shows who is here, "
            "`sorter quarantine` what could not be read"
        )
    if as_json:
        _print_json([_as_json(source, unit) for unit in found])
        return
    for unit in found:
        _tell(source, unit)


def _told(source: Source, unit: UnitSummary) -> Told:
    try:
        return source.tell(unit)
    except OSError as error:  # of the others it is told all the same
        return Told((not_read(unit.key, error.strerror or str(error)),))


def _as_json(source: Source, unit: UnitSummary) -> dict[str, Any]:
    told = _told(source, unit)
    return {**plain(unit), "study": told.study or None, "says": list(told.says), "story": list(told.story)}


def _tell(source: Source, unit: UnitSummary) -> None:
    for text in lines(unit, _told(source, unit)):
        console.print(text, soft_wrap=True, markup=False)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False).encode(errors="replace").decode())
