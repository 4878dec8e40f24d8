"""What the shell offers after a tab: subjects and series that whoever asks may see, from the store or by the door."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from sorter.cli.common import Where
from sorter.cli.source import open_source
from sorter.door import Door
from sorter.errors import SorterError
from sorter.exports.choosing import Subject
from sorter.exports.naming import PRESETS
from sorter.spool import UnitSummary
from sorter.summaries import in_order

AT_A_TAB = 1.0
"""Seconds in which a sorter is asked that does not answer at once: somebody waits with half a line typed."""


def subjects_here(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Their IDs, each with a day on which it was scanned."""
    found = {unit.subject or "": unit.study_date for unit in _units(context)}
    return _offered(dict(sorted(found.items())), typed)


def series_here(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Numbers and descriptions of the series of the subject that stands there already."""
    wanted = Subject(str(context.params.get("subject") or "*"))
    fits = (unit for unit in _units(context)
            if wanted.text.casefold() == (unit.subject or "").casefold() or wanted.is_glob)  # fmt: skip
    return _offered({unit.number: unit.description for unit in in_order(list(fits))}, typed)


def labs_here(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Labs that have series."""
    return _offered(dict.fromkeys(sorted({unit.lab or "" for unit in _units(context)}), ""), typed)


def presets(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Of `--name`."""
    return _offered(PRESETS, typed)


def _units(context: click.Context) -> list[UnitSummary]:
    """Whatever is wrong is said when the command is given, not while it is typed."""
    try:
        source = open_source(Where(_path(context, "path"), _path(context, "root")))
        if isinstance(source, Door):
            source.patience = AT_A_TAB
        return list(source.units())
    except (SorterError, OSError):
        return []


def _path(context: click.Context, name: str) -> Path | None:
    value = context.params.get(name)
    return Path(value) if value else None


def _offered(found: Mapping[str, str], typed: str) -> list[CompletionItem]:
    """With what is said beside each, on one line as the shells read it. Only what a shell may put on its command line:
    it does so unquoted, and a header can say `$(anything)`."""
    return [
        CompletionItem(text, help=re.sub(r"[^\w.+*/()-]+", " ", says).strip() or None)
        for text, says in found.items()
        if text.startswith(typed) and re.fullmatch(r"\w[\w.+-]*", text)
    ]
