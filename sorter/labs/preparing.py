"""What a request of a lab comes to: which files are copied whereto, and what is said of it. Reads the store alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sorter.errors import ConfigError, SorterError
from sorter.exports.asking import choose, meant, plan, rows
from sorter.exports.copying import Copy
from sorter.exports.source import Store, lines, not_granted, of_lab, target_of, tell
from sorter.labs.asking import Request, read_request
from sorter.labs.claiming import CLAIMED, claim, unassigned
from sorter.spool import Spool, Unit, UnitSummary
from sorter.summaries import in_order, is_called

MOST_FILES = 50_000
"""Files of one request; who wants more asks twice."""

MOST_SAID = 50
"""Lines of each kind in an answer."""


@dataclass(slots=True)
class Prepared:
    """What is to be copied, below the lab's folder, and what the answer says besides. `failed`: not all of it can be
    had."""

    copies: Sequence[Copy] = ()
    force: bool = False
    says: list[str] = field(default_factory=list)
    failed: bool = False
    series: int = 0
    what: str = "images"
    dest: str = ""


def prepare(spool: Spool, lab: str, granted: Collection[str], name: str, data: bytes) -> Prepared:
    """Whatever is wrong with the request is said in its answer. `granted`: the targets that the lab may name; what goes
    to one of them is owed there when this returns."""
    try:
        return _prepared(spool, lab, granted, read_request(data, name))
    except ConfigError as error:
        return Prepared(says=_some(error.faults), failed=True)
    except SorterError as error:
        return Prepared(says=[str(error)], failed=True)
    except OSError as error:
        return Prepared(says=[f"the store cannot be read now ({error.strerror}); save the request again"], failed=True)


def _prepared(spool: Spool, lab: str, granted: Collection[str], request: Request) -> Prepared:
    called, who = [each.text for each in request.subjects], f"a request file of lab {lab}"
    if request.claim:
        claim(spool, unassigned(spool, called), lab, who)
        return Prepared(says=[CLAIMED.format(what=", ".join(called[:MOST_SAID]), lab=lab)])
    if request.why:
        return _stories(spool, lab, called)
    source, asked, target = Store(spool, who=who), request.asked, target_of(request.dest)
    if target is not None and target[0] not in granted:
        raise not_granted(target[0])
    own = [unit for unit in source.units() if unit.lab == lab]
    chosen = choose(list(source.candidates(meant(own, asked.subjects))), asked)
    missing = _some([*(f"not found: {each.text}" for each in chosen.missing), *_unread(source, own)])
    if request.list:
        return Prepared(says=[*_table(rows(chosen.found)), *missing], failed=not chosen.found)
    if not chosen.found:
        return Prepared(says=["no series of this lab fits", *missing], failed=True)
    copies, lacking = plan(source, chosen, asked)
    if len(copies) > MOST_FILES:
        says = f"this is {len(copies)} files; {MOST_FILES} are the most at once: narrow it down with series or since"
        return Prepared(says=[says], failed=True)
    above = "" if request.dest == "." or target else f"{request.dest}/"
    prepared = Prepared(
        [Copy(each.source, f"{above}{each.name}", each.sha256, each.size) for each in copies],
        request.force,
        [*missing, *_some(lacking)],
        bool(chosen.missing or lacking or _unread(source, own)),
        len(chosen.found),
        "files" if request.nifti else "images",
        request.dest,
    )
    if request.dry_run:
        prepared.says, prepared.copies = [*_would(prepared), *prepared.says], ()
    elif target is not None:
        source.send(copies, *target)
        what = f"{len(copies)} {prepared.what} of {prepared.series} series"
        first = (
            f"{what} are copied to {request.dest} by sorter, as soon as it can; `sorter why` says when they are there."
        )
        prepared.says, prepared.copies = [first, *prepared.says], ()
    return prepared


def _unread(source: Store, own: Sequence[UnitSummary]) -> list[str]:
    """Of the lab's own series those that cannot be read; what is known of none of them is nobody's."""
    return [source.unread[unit.key] for unit in own if unit.key in source.unread]


def _stories(spool: Spool, lab: str, what: Sequence[str]) -> Prepared:
    """Of the lab's own series, as `sorter why` tells them."""
    every = Store(spool).units()
    own = [unit for unit in every if unit.lab == lab and any(is_called(unit, text) for text in what)]
    if not own:
        return Prepared(says=["no series of this lab fits; what has not settled yet is nobody's so far"], failed=True)
    says: list[str] = []
    for each in in_order(own)[:MOST_SAID]:
        says += lines(each, tell(spool, each, of_lab(lab)))
    more = len(own) - MOST_SAID
    return Prepared(says=[*says, *([f"… and {more} more series"] if more > 0 else [])])


def _would(prepared: Prepared) -> list[str]:
    folders: dict[str, int] = {}
    for copy in prepared.copies:
        folder = os.path.dirname(copy.name)
        folders[folder] = folders.get(folder, 0) + 1
    count, series = len(prepared.copies), prepared.series
    first = f"{count} {prepared.what} of {series} series would be copied to {prepared.dest}:"
    return [first, *_some([f"{number:6}  {folder}/" for folder, number in folders.items()])]


def _table(found: Sequence[Mapping[str, str | int | None]]) -> list[str]:
    lines = [["" if value is None else str(value) for value in each.values()] for each in found]
    titles = ["subject", "date", "no.", "description", "images", "verdict", "lab"]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in (titles, *lines)]  # fmt: skip


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MOST_SAID
    return [*lines[:MOST_SAID], *([f"… and {more} more"] if more > 0 else [])]


def remember(spool: Spool, copies: Sequence[Copy], root: str) -> None:
    """These are about to be copied below the lab's folder `root`: a withdrawal has to know of it. What is known
    already, because the request came twice, is not said again."""
    by_unit: dict[str, list[tuple[str, str]]] = {}
    for copy in copies:
        by_unit.setdefault(copy.source.relative_to(spool.store).parts[1], []).append((copy.name, copy.sha256))
    for key, files in by_unit.items():
        unit = Unit(spool, key)
        known = {(name, sha256) for each in unit.exports() if each["dest"] == root for name, sha256 in each["files"]}
        new = [each for each in files if each not in known]
        if new:
            unit.note_export(root, os.getuid(), new)
