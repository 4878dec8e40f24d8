"""`check --targets`: could a delivery be made, to each target, by the account that will make it?"""

from __future__ import annotations

import os
import pwd
import queue
from collections.abc import Collection, Mapping

from sorter.cli.common import console
from sorter.config import Config
from sorter.daemon.assembly import load_plugins, outlets_of
from sorter.deliver.lane import Lane, Patience
from sorter.deliver.target import Checked, Later, Refused
from sorter.deliver.workers import Started, may_start
from sorter.durable import Files
from sorter.errors import SorterError, did_you_mean
from sorter.pipeline.outlets import Outlet
from sorter.spool import Spool
from sorter.summaries import summaries

SILENCE = 30.0
"""Seconds that a target may take for one step, before its mount is said to hang."""

_AS_ROOT = "this account may not write as the one that will: run `sorter check --targets` as root"

Answers = queue.Queue[tuple[str, Checked | Later | Refused]]


def check_targets(config: Config, anew: Collection[str] = ()) -> None:
    """Ask every target, all at once, each in a worker of its own; SorterError where one of them fails.

    Where images were delivered before there was a marker: it is made once more only for those named in `anew`.
    """
    files = Files()
    outlets = outlets_of(config, load_plugins(config, files))
    others = {name: outlet for name, outlet in outlets.items() if outlet.account}
    for name in anew:
        if name not in outlets:
            raise SorterError(f"there is no target {name}{did_you_mean(name, outlets)}")
    known = _delivered_to(Spool(config.spool, files), outlets) - set(anew)
    answers = _asked(others, known)  # first, while root may still be anybody
    account = become_writer(config, files)
    console.print(f"Targets are checked as {account}.", soft_wrap=True, markup=False)
    _make_default_roots(config, files)
    answers |= _asked({name: outlet for name, outlet in outlets.items() if name not in others}, known)
    failed = [name for name, outlet in outlets.items() if not _said(name, outlet, answers[name])]
    for name in known.intersection(failed):
        console.print(
            f"Images were delivered to {name} before, so no marker is made there once more: mount the share. If it is "
            f"another one, and this its place: sorter check --targets --anew {name}", soft_wrap=True, markup=False,
        )  # fmt: skip
    if failed:
        raise SorterError(f"nothing can be delivered to {', '.join(failed)} now; the sentences above say why")


def lacking_workers(config: Config) -> list[str]:
    """What a running sorter says of workers that are to come and have not."""
    spool = Spool(config.spool, Files())
    if not any(lab.user for lab in config.labs.values()) or not spool.is_sorting():
        return []
    return [each for each in spool.problems() if each.startswith("the worker of ")]


def become_writer(config: Config, files: Files) -> str:
    """Root checks as the account that runs sorter, the owner of its spool; its name."""
    owner = files.stat(config.spool).st_uid if files.exists(config.spool) else os.geteuid()
    if os.geteuid() == 0 and owner != 0:
        entry = _account(owner)
        if entry is None:
            raise SorterError(f"the spool {config.spool} belongs to account {owner}, which is not on this machine")
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(owner)
    entry = _account(os.geteuid())
    return entry.pw_name if entry else str(os.geteuid())


def _account(number: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(number)
    except KeyError:
        return None


def _make_default_roots(config: Config, files: Files) -> None:
    """Those that sorter chose itself, below its own root, need no person to make them."""
    for name, target in config.all_targets().items():
        if config.is_default_root(name):
            files.make_folders(target.settings["root"], 0o755)


def _delivered_to(spool: Spool, targets: Collection[str]) -> set[str]:
    """Those of these that something was delivered to."""
    found: set[str] = set()
    if spool.files.exists(spool.store):
        for unit in summaries(spool):
            found |= {each.target for each in unit.deliveries if each.state == "delivered"} & set(targets)
            if len(found) == len(targets):
                break
    return found


def _asked(outlets: Mapping[str, Outlet], known: Collection[str]) -> dict[str, Checked | Later | Refused]:
    answers: Answers = queue.Queue()
    barred = {name for name, outlet in outlets.items() if not may_start(outlet.account)}
    found: dict[str, Checked | Later | Refused] = {name: Refused(_AS_ROOT) for name in barred}
    lanes = [
        _ask(name, outlet, answers, prepare=name not in known) for name, outlet in outlets.items() if name not in barred
    ]
    found |= dict(answers.get() for _ in lanes)  # a lane answers always: with what it found, or that it was silent
    for lane in lanes:
        lane.stop(1.0)
    return found


def _ask(name: str, outlet: Outlet, answers: Answers, *, prepare: bool) -> Lane:
    delivers_nothing = (lambda *_: 0, lambda *_: None)
    lane = Lane(
        name, outlet.code, outlet.settings, *delivers_nothing,
        patience=Patience(silence=SILENCE), workers=Started(outlet.account),
    )  # fmt: skip
    lane.check(lambda answer: answers.put((name, answer)), prepare=prepare)
    return lane


def _said(name: str, outlet: Outlet, answer: Checked | Later | Refused) -> bool:
    where = next((outlet.settings[key] for key in ("root", "host", "remote") if key in outlet.settings), "")
    good = isinstance(answer, Checked)
    written = f", written by {outlet.account}" if outlet.account else ""
    console.print(f"{name} ({where}{written}): {'good' if good else 'FAILED'}", soft_wrap=True, markup=False)
    for sentence in answer.remarks if isinstance(answer, Checked) else (answer.why,):
        console.print(f"    {sentence}", soft_wrap=True, markup=False)
    return good
