"""`sorter rename … --from-now-on`: what the flags say becomes a rule of the lab, in the lab's own file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from sorter.cli.by_letter import CORNER, corner_above
from sorter.cli.common import Where, account, console
from sorter.config.lab import LAB_FILE, LabFile, Rule, read_kept
from sorter.config.rewriting import with_rule
from sorter.durable import Files
from sorter.errors import ConfigError, SorterError
from sorter.exports import Choice, Source
from sorter.exports.standing import Lasting, fitting, places, sentence, standing_rules
from sorter.matching import day_of

LOOK_BACK = "30d"
"""Of so long it is told what the rule would have done."""

_MOST_SAID = 20  # folders, or rules


@dataclass(frozen=True, slots=True)
class OwnFile:
    """The own file of the lab whose folder is `root`."""

    root: Path
    files: Files

    @property
    def path(self) -> Path:
        return self.root / CORNER / LAB_FILE

    def read(self) -> str:
        """Its text; "" where there is none. SorterError: it cannot be read."""
        try:
            return self.files.read_file(self.path).decode()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise SorterError(f"{self.path} cannot be read: {error}") from None

    def rules(self) -> LabFile:
        """What it says. ConfigError: what is wrong in it, to be mended first."""
        return read_kept(self.read().encode())

    def write(self, text: str | None) -> None:
        """The old text or the new one, whatever happens meanwhile. SorterError: `text` could not be made (None), or
        may not be written."""
        if text is None:
            raise SorterError(f"{self.path} is written in a way that only a person should change; edit it by hand")
        read_kept(text.encode())
        try:
            self.files.write_file(self.path, text.encode(), 0o664)
            self.files.chmod(self.path, 0o664)  # whatever the umask is: others of the lab may go on with it
        except OSError as error:
            raise SorterError(
                f"{self.path} cannot be written ({error.strerror}); are you a member of this lab?"
            ) from None


def lab_of(where: Where, root: Path, given: str) -> str:
    """The lab whose folder `root` is; `given`, which may be "", where one may not read the configuration.

    SorterError: it is no lab's folder, or another one's.
    """
    try:
        config = where.load()
    except ConfigError:
        return given
    name = next((each for each in config.labs if os.path.realpath(config.lab_root(each)) == str(root)), "")
    if not name:
        raise SorterError(f"{root} is no lab's folder; a rule is for series of a lab")
    if given not in ("", name):
        raise SorterError(f"{root} is the folder of lab {name}, not of {given}")
    return name


def from_now_on(
    where: Where, source: Source | None, asked: Lasting, dest: Path, *, dry_run: bool, yes: bool
) -> None:  # fmt: skip
    """Say the rules, and what they would have done lately, if there is a `source`; write them if a person agrees."""
    corner = corner_above(dest, Files())
    if corner is None:
        raise SorterError(
            f"{dest} is in no folder that sorter delivers to: a rule is for the lab's own; give one in it"
        )
    lab = lab_of(where, corner.root, asked.choice.lab)
    own = OwnFile(corner.root, Files())
    own.rules()  # a mistake in it is to be mended first
    rules = standing_rules(replace(asked, below=Path(corner.dest).parts), account())
    said = [sentence(each) for each in rules]
    of = f"From now on, for lab {lab}:" if lab else "From now on:"
    _some([f"{of} {said[0]}", *(f"        {each}" for each in said[1:])])
    if source is not None:
        _tell_of_late(source, rules, asked.choice, lab)
    else:
        console.print("What it would have done cannot be told from here, where there is only the lab's folder.")
    if dry_run:
        return
    if not yes and not click.confirm(f"Write this into {own.path}?"):
        console.print("Nothing was changed.")
        return
    own.write(_with_rules(own, rules))
    console.print(
        "It is written, and counts within a minute; `sorter rules` lists and removes rules. What was delivered stays "
        "where it is; `sorter rules apply` moves it.", soft_wrap=True
    )  # fmt: skip


def _with_rules(own: OwnFile, rules: Sequence[Rule]) -> str | None:
    """Read only now: while a person was asked, somebody else of the lab may have changed it. None as `with_rule`."""
    own.rules()
    text: str | None = own.read()
    for each in reversed(rules):
        text = with_rule(text, written(each)) if text is not None else None
    return text


def _some(lines: Sequence[str]) -> None:
    for each in lines[:_MOST_SAID]:
        console.print(each, soft_wrap=True, markup=False)
    if len(lines) > _MOST_SAID:
        console.print(f"        … and {len(lines) - _MOST_SAID} more")


def written(rule: Rule) -> dict[str, Any]:
    """What of it stands in a file."""
    given = {name: value for name, value in rule.model_dump(exclude_none=True).items() if value}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _tell_of_late(source: Source, rules: Sequence[Rule], choice: Choice, lab: str) -> None:
    since = day_of(LOOK_BACK)
    units = [each for each in source.units() if each.came >= since and each.state != "withdrawn" and each.lab]
    labs = {each.lab for each in units}
    if not lab and len(labs) > 1:
        raise SorterError(f"which lab's folder is it? give --lab, one of {', '.join(sorted(filter(None, labs)))}")
    every = list(source.candidates([each for each in units if each.lab == (lab or each.lab)]))
    fits = [(rule, found) for rule in rules if (found := fitting(rule, every, choice))]
    count = sum(len(found) for _, found in fits)
    if not fits:
        console.print("Of the last 30 days it would have fit no series.")
        return
    console.print(f"Of the last 30 days it fits {count} series, which would have come into:")
    _some([f"        {folder}/" for rule, found in fits for folder in places(rule, found)])
    product = next(iter(rules[0].products or ()), "")
    if product and not any(source.made(each, product) for _, found in fits for each in found):
        says = f"But {product} was made of none of these: ask the admin whether your lab has a plugin for it."
        console.print(says, soft_wrap=True, markup=False)
