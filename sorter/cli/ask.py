"""`sorter ask`: what a sender has of a series, and having it send what is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sorter.cli.common import console, open_spool, with_config
from sorter.config import Config, Node
from sorter.daemon.assembly import node_of
from sorter.daemon.requests import request
from sorter.errors import SorterError
from sorter.scu.association import Peer
from sorter.scu.query import MOVE_DESTINATION_UNKNOWN, Moved, Series, fetch, instances
from sorter.spool import Spool, Unit, UnitSummary
from sorter.summaries import find_series, title_of
from sorter.words import counted


@click.command("ask")
@click.argument("subject")
@click.option("--dry-run", is_flag=True, help="Only ask what there is, and say what would be fetched.")
@with_config
def ask_command(config: Config, subject: str, dry_run: bool) -> None:
    """Ask the sender of a series what it has, and have it send what is missing. (C-FIND, C-MOVE)

    SUBJECT is the UID of a series or study, an ID, a glob of it, or a key. Whom to ask is `query` in [[senders]]; the
    images come as all others do, to sorter's own AE title.
    """
    spool = open_spool(config)
    units = find_series(spool, subject)
    if not units:
        raise SorterError(f"no series of {subject} is here to ask about; `sorter list` shows what there is")
    whole = [_about(config, spool, unit, dry_run) for unit in units]
    if not all(whole):
        sys.exit(1)


def _about(config: Config, spool: Spool, summary: UnitSummary, dry_run: bool) -> bool:
    """Ask about one unit whoever can be asked; True where nothing is missing, or all of it came."""
    unit = Unit.load(spool, summary.key)
    _say(f"{title_of(summary)} ({summary.key[:8]}): {counted(len(unit.by_sop), 'images are')} here.")
    nodes = _nodes(config, unit)
    if not nodes:
        who = ", ".join(summary.senders)
        _say(f'    Nobody can be asked: add query = "AE@host:port" to the [[senders]] of who sent it ({who}).')
        return False
    asking = _Asking(config, unit, dry_run)
    answers = [asking.series(node, uid) for node in nodes for uid in unit.series_uids]
    if not dry_run:
        request(spool, f"ask-{unit.key}", {"do": "ask", "key": unit.key})  # its verdict may be better now
    return all(answers)


def _nodes(config: Config, unit: Unit) -> list[Node]:
    senders = dict.fromkeys(each.source.sender for each in unit.instances.values() if each.source.sender)
    return list(dict.fromkeys(node for sender in senders if (node := node_of(config.senders, sender)) is not None))


@dataclass(slots=True)
class _Asking:
    """One unit, and the sentences in which its senders' answers end."""

    config: Config
    unit: Unit
    dry_run: bool

    def series(self, node: Node, uid: str) -> bool:
        """Ask `node` about one series; True where nothing is missing, or all of it came."""
        peer = Peer(node.host, node.port, node.ae, self.config.receive.ae_title)
        patient = self.unit.face.get("PatientID", "")
        series = Series(self.unit.study_uid, uid, patient if isinstance(patient, str) else "")
        try:
            names = self._missing(peer, series)
            return names is None or (not self.dry_run and self._fetch(peer, series, names))
        except SorterError as error:
            _say(f"    {error}.")
            return False

    def _missing(self, peer: Peer, series: Series) -> Sequence[str] | None:
        """What to fetch: SOP Instance UIDs; none of them where only the whole series can be; None: nothing."""
        to = f"{peer.calling}, here, on port {self.config.receive.port}"
        try:
            names = instances(peer, [series])
        except SorterError as error:
            _say(f"    {error}.")
            known = sorted(self.unit.missing) if len(self.unit.series_uids) == 1 else []
            what = f"the {len(known)} images that it named before" if known else "the whole series"
            _say(f"    {peer} is asked to send {what} to {to}.")
            return known
        if not names:
            raise SorterError(f"{peer} knows no image of it")
        missing = sorted(names - self.unit.by_sop.keys())
        if not missing:
            _say(f"    {peer} has {counted(len(names), 'images')} of it. Nothing is missing here.")
            return None
        _say(f"    {peer} has {counted(len(names), 'images')} of it, and is asked to send {len(missing)} to {to}.")
        return missing

    def _fetch(self, peer: Peer, series: Series, names: Sequence[str]) -> bool:
        last = Moved()
        columns = (TextColumn("    fetching"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"))
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("fetching", total=len(names) or None, failed="")
            for last in fetch(peer, peer.calling, series, names):
                failed = f"{last.failed} failed" if last.failed else ""
                total = len(names) or last.completed + last.failed + last.remaining
                progress.update(task, completed=last.completed, total=total, failed=failed)
        _say(f"    {self._ended(peer, last, len(names))}")
        return last.status == 0 and last.failed == 0 and last.completed >= len(names)

    def _ended(self, peer: Peer, last: Moved, asked: int) -> str:
        to, port = peer.calling, self.config.receive.port
        if last.status == MOVE_DESTINATION_UNKNOWN:
            return (
                f"{peer.called} does not know {to} as a move destination (0x{last.status:04X}): add {to}, with the "
                f"address of this machine and port {port}, to the DICOM nodes that it knows."
            )
        came = f"{peer.called} says that it sent {last.completed}{f' of {asked}' if asked else ''} images"
        if last.status == 0 and last.failed == 0:
            return f"{came}." if last.completed >= asked else f"{came}, and that there are no more."
        why = f"{last.failed} failed: " if last.failed else ""
        return f"{came}; {why}{last.says}. If sorter did not take them, `sorter status` says why."


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
