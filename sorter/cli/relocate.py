"""`sorter relocate`: a lab's folder lies elsewhere now, with all that was delivered; nothing is sent there again."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from sorter.cli.common import console, open_spool, with_config
from sorter.config import Config, with_lab_root
from sorter.config.checks import folders
from sorter.daemon.assembly import load_plugins, outlets_of
from sorter.daemon.requests import request
from sorter.deliver.target import Verified
from sorter.durable import Files
from sorter.errors import ConfigError, SorterError, did_you_mean
from sorter.model import Receipt
from sorter.pipeline.outlets import Outlet
from sorter.spool import Spool, Unit
from sorter.summaries import summaries
from sorter.verifying import Targets
from sorter.words import counted

MARKER = ".sorter/id"
TAKEN_UP = 30.0
"""Seconds that a running sorter has to take up the new folder, before a person is told that it did not."""


@click.command("relocate")
@click.argument("lab")
@click.argument("newroot", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte there; otherwise presence and size are compared.")
@with_config
def relocate_command(config: Config, lab: str, newroot: Path, deep: bool) -> None:
    """What was delivered to LAB lies below NEWROOT now: compare it with the receipts, and deliver there from now on.

    Move or copy the whole folder first, hidden files and times included (`mv`, or `rsync -a OLD/ NEW/`); then call
    this. Nothing is copied, and nothing is delivered twice: what is owed waits while the marker .sorter/id is gone from
    the old place. The new root is written into the configuration, where the lab stands.
    """
    if lab not in config.labs:
        raise SorterError(f"lab {lab} is not configured{did_you_mean(lab, config.labs)}")
    spool, new, old = open_spool(config), Path(os.path.abspath(newroot)), config.lab_root(lab)
    changed = _with_root(config, lab, new)
    files = Files()
    with _nothing_delivered(files, old, new):
        _compare_markers(files, old, new)
        found = _compared(spool, config, lab, (old, new), deep)
        if found.lacking:
            raise SorterError(
                f"{counted(found.lacking, 'files are missing')} in {new} that {old} has (first {found.first}); bring "
                f"over what is missing, as with rsync -a {old}/ {new}/, and relocate again"
            )
        if found.receipts and not found.same:
            raise SorterError(f"nothing of what was delivered to {lab} is in {new}; is it the right folder?")
        if new != old:
            _write(config, changed, lab, new)
        _take_up(spool)
    console.print(f"{found}. From now on sorter delivers to {new}.", soft_wrap=True, markup=False)
    if found.other:
        console.print(
            f"{found.other} of them lie in {old} as they were delivered (first {found.first_other}), and in {new} with "
            f"other content: look whether they were edited there, or badly copied, before you remove {old}.",
            soft_wrap=True, markup=False,
        )  # fmt: skip


def _with_root(config: Config, lab: str, root: Path) -> Config:
    """The same with another root, checked. ConfigError: it would lie in another folder of sorter's, or hold one."""
    labs = {**config.labs, lab: config.labs[lab].model_copy(update={"root": root})}
    changed = config.model_copy(update={"labs": labs})
    faults = [f"{root}: {says}" for key, says in folders(changed) if key[:2] == ("labs", lab)]
    if faults:
        raise ConfigError(faults)
    return changed


# --- is it the same tree? -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _nothing_delivered(files: Files, old: Path, new: Path) -> Iterator[None]:
    """Meanwhile nothing is delivered to the old place, if it is still there: its marker is held, as a delivery does."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if old != new:
                marker = held.enter_context(files.opened(old / MARKER, os.O_RDWR | os.O_NOFOLLOW))
                held.enter_context(_locked(files, marker, old))
        yield


@contextlib.contextmanager
def _locked(files: Files, marker: int, root: Path) -> Iterator[None]:
    until = time.monotonic() + TAKEN_UP
    while not files.lock(marker):
        if time.monotonic() > until:
            raise SorterError(f"something is being delivered to {root} all the time; try again when it is quieter")
        time.sleep(0.1)
    yield


def _compare_markers(files: Files, old: Path, new: Path) -> None:
    there = _marker(files, new)
    if there is None:
        raise SorterError(
            f"{new} has no {MARKER}: it is not the folder that sorter delivered to. Move the whole of {old} there, "
            "hidden files too; where a share belongs there, mount it"
        )
    before = _marker(files, old)
    if before is not None and before != there:
        raise SorterError(f"{new} is another folder than {old}: their {MARKER} differ; nothing was changed")


def _marker(files: Files, root: Path) -> bytes | None:
    try:
        return files.read_file(root / MARKER, limit=4096)
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(slots=True)
class _Found:
    """What was compared with its receipts, in files."""

    receipts: int = 0
    same: int = 0
    others: Counter[str] = field(default_factory=Counter)
    lacking: int = 0  # not there, or as of an earlier revision, although at the old place
    first: str = ""
    other: int = 0  # there and other than delivered, although at the old place as they were
    first_other: str = ""

    def note(self, receipt: Receipt, here: Verified, before: Verified) -> None:
        """What of a delivery is not at the new place as it was delivered, and lies at the old one."""
        behind = set(here.outdated).intersection(before.same)  # it was copied before the delivery grew
        lacking = sorted((set(here.missing) - set(before.missing)) | behind)
        other = sorted({*here.changed, *here.damaged}.intersection(before.same))
        self.lacking += len(lacking)
        self.other += len(other)
        self.first = self.first or (f"{receipt.folder}/{lacking[0]}" if lacking else "")
        self.first_other = self.first_other or (f"{receipt.folder}/{other[0]}" if other else "")

    def __str__(self) -> str:
        others = "".join(f", {count} {what}" for what, count in self.others.items() if count)
        same = counted(self.same, "files are as they were delivered")
        return f"{counted(self.receipts, 'deliveries were')} compared: {same}{others}"


def _compared(spool: Spool, config: Config, lab: str, roots: tuple[Path, Path], deep: bool) -> _Found:
    """Each delivery at the new place; where something is gone there, at the old one too."""
    old, new = roots
    outlet = outlets_of(config, load_plugins(config, Files()))[lab]
    here = Targets({lab: Outlet(outlet.code, {**outlet.settings, "root": str(new)})}, deep=deep)
    before = Targets({lab: Outlet(outlet.code, {**outlet.settings, "root": str(old)})}, deep=False)
    found, doubtful = _Found(), dict[tuple[str, str], tuple[Receipt, Verified]]()
    try:
        for receipt, answer in here.compare(_receipts(spool, lab)):
            if not isinstance(answer, Verified):
                raise SorterError(f"{new} cannot be compared: {answer.why}")
            found.receipts += 1
            found.same += len(answer.same)
            found.others["were removed by the lab"] += len(answer.missing)
            found.others["were edited by the lab"] += len(answer.changed)
            found.others["are damaged"] += len(answer.damaged) + len(answer.outdated)
            if not answer.whole:
                doubtful[receipt.key, receipt.product] = receipt, answer
        if old != new:
            for receipt, answer in before.compare([receipt for receipt, _ in doubtful.values()]):
                if isinstance(answer, Verified):
                    found.note(receipt, doubtful[receipt.key, receipt.product][1], answer)
    finally:
        here.stop()
        before.stop()
    return found


def _receipts(spool: Spool, lab: str) -> Iterator[Receipt]:
    for unit in summaries(spool):
        for receipt in Unit(spool, unit.key).receipts().values():
            if receipt.target == lab and receipt.files:
                yield receipt


# --- from now on ----------------------------------------------------------------------------------------------------


def _write(config: Config, changed: Config, lab: str, root: Path) -> None:
    """The old configuration or the new one, whatever happens meanwhile."""
    path, files = config.file_of("labs", lab, "root"), Files()
    where = config.locate("labs", lab, "root")
    by_hand = f'write root = "{root}" into [labs.{lab}] at {where} by hand, and call this again'
    if path is None:
        raise SorterError(f"there is no file of the configuration: {by_hand}")
    try:
        text = files.read_file(path).decode()
        new = with_lab_root(text, lab, str(changed.lab_root(lab)))
        if new is None:
            raise SorterError(f"{path} is written in a way that only a person should change: {by_hand}")
        path = Path(os.path.realpath(path))
        info = files.stat(path)
        files.write_file(path, new.encode(), info.st_mode & 0o777)
        if files.stat(path).st_uid != info.st_uid:
            files.chown(path, info.st_uid, info.st_gid)
    except OSError as error:
        raise SorterError(f"{path} cannot be written ({error.strerror}): {by_hand}") from None


def _take_up(spool: Spool) -> None:
    """A running sorter reads its configuration again; one that does not run will when it starts."""
    name = f"reload-{time.time_ns():020d}"
    request(spool, name, {"do": "reload"})
    until = time.monotonic() + TAKEN_UP
    while spool.is_sorting() and spool.files.exists(spool.requests / f"{name}.json"):
        if time.monotonic() > until:
            raise SorterError("sorter has not read its configuration again yet; see `sorter status`, or restart it")
        time.sleep(0.1)
