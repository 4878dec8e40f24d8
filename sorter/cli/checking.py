"""`check --targets`: could a delivery be made, to each target, by the account that will make it?"""

from __future__ import annotations

import os
import pwd
import queue
from collections.abc import Mapping

from sorter.cli.common import console
from sorter.config import Config
from sorter.daemon.assembly import load_plugins, outlets_of
from sorter.deliver.lane import Lane, Patience
from sorter.deliver.target import Checked, Later, Refused
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.pipeline.outlets import Outlet

SILENCE = 30.0
"""Seconds that a target may take for one step, before its mount is said to hang."""

Answers = queue.Queue[tuple[str, Checked | Later | Refused]]


def check_targets(config: Config) -> None:
    """Ask every target, all at once, each in a worker of its own; SorterError where one of them fails."""
    files = Files()
    outlets = outlets_of(config, load_plugins(config, files))
    account = become_writer(config, files)
    console.print(f"Targets are checked as {account}.", soft_wrap=True, markup=False)
    _make_default_roots(config, files)
    failed = [name for name, answer in _asked(outlets).items() if not _said(name, outlets[name], answer)]
    if failed:
        raise SorterError(f"nothing can be delivered to {', '.join(failed)} now; the sentences above say why")


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


def _asked(outlets: Mapping[str, Outlet]) -> dict[str, Checked | Later | Refused]:
    answers: Answers = queue.Queue()
    lanes = [_ask(name, outlet, answers) for name, outlet in outlets.items()]
    found = dict(answers.get() for _ in lanes)  # a lane answers always: with what it found, or that it was silent
    for lane in lanes:
        lane.stop(1.0)
    return {name: found[name] for name in outlets}


def _ask(name: str, outlet: Outlet, answers: Answers) -> Lane:
    delivers_nothing = (lambda *_: 0, lambda *_: None)
    lane = Lane(name, outlet.code, outlet.settings, *delivers_nothing, patience=Patience(silence=SILENCE))
    lane.check(lambda answer: answers.put((name, answer)), prepare=True)
    return lane


def _said(name: str, outlet: Outlet, answer: Checked | Later | Refused) -> bool:
    where = next((outlet.settings[key] for key in ("root", "host", "remote") if key in outlet.settings), "")
    good = isinstance(answer, Checked)
    console.print(f"{name} ({where}): {'good' if good else 'FAILED'}", soft_wrap=True, markup=False)
    for sentence in answer.remarks if isinstance(answer, Checked) else (answer.why,):
        console.print(f"    {sentence}", soft_wrap=True, markup=False)
    return good
