"""Predicted against true counts of real series: `python -m sorter.testing.predictions FOLDER`.

It reads every image below FOLDER as sorter takes it, puts them together by SeriesInstanceUID, asks the built-in
expectations and the structural check, and prints a Markdown table. Series that were published in part, by their
publishers' own word or by the protocol in them, are named in `IN_PART`: of them the true count is not known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sorter.builtin.expectations import RULES, sorter_expect
from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.model import Expectation, Header, Series, UnitKind
from sorter.structure import Structure, structure_of
from sorter.take.header import Parsed, examine

IN_PART = {
    "1.3.12.2.1107.5.2.50.175689.2018102208361828588232823.0.0.0": "published in part: the protocol has 450 volumes",
    "1.3.12.2.1107.5.2.32.35139.201012081945149135660302.0.0.0": "published in part: 3 of 16 echoes, none whole",
}
"""By SeriesInstanceUID."""


@dataclass(frozen=True, slots=True)
class Found:
    """One real series: what is there of it, what its header predicts, what its structure shows."""

    series: Series
    expectation: Expectation | None
    structure: Structure
    in_part: str

    @property
    def true(self) -> int | None:
        return None if self.in_part else self.series.count

    @property
    def right(self) -> bool | None:
        """None: nothing was predicted, or what is true is not known."""
        if self.expectation is None or self.true is None:
            return None
        return self.expectation.count == self.true


def series_below(folder: Path) -> Iterator[Found]:
    """Every series below `folder`, in the order of their paths; what is no image is passed over."""
    found: dict[str, dict[str, Parsed]] = {}
    for path in sorted(each for each in folder.glob("**/*") if each.is_file()):
        try:
            with Files().opened(path, os.O_RDONLY) as fd:
                parsed = examine(Files(), fd)
        except Quarantine:
            continue
        found.setdefault(parsed.series_uid, {}).setdefault(parsed.sop_uid, parsed)
    for uid, images in found.items():
        headers = [each.header for each in images.values()]
        series = _series(uid, next(iter(images.values())).study_uid, headers)
        yield Found(series, sorter_expect(series), structure_of(headers), IN_PART.get(uid, ""))


def _series(uid: str, study: str, headers: list[Header]) -> Series:
    def ask(keyword: str) -> tuple[str | int | float | tuple[str | int | float, ...], ...]:
        return tuple(dict.fromkeys(header[keyword] for header in headers if keyword in header))

    return Series(uid, UnitKind.SERIES, study, (uid,), headers[0], len(headers), ask=ask)


def tables(found: list[Found]) -> str:
    """Markdown: every series with its counts, then every rule with how often it was right."""
    lines = ["| series | images | predicted | rule | right | structure |", "|---|--:|--:|---|---|---|"]
    for each in found:
        said = each.expectation
        right = {True: "yes", False: "**no**", None: each.in_part or "–"}[each.right]
        cells = (_title(each.series), each.series.count, said.count if said else "–", said.rule if said else "unknown")
        lines.append(f"| {' | '.join(map(str, cells))} | {right} | {_structure(each.structure)} |")
    lines += ["", "| rule | series | right |", "|---|--:|--:|"]
    lines += [f"| {rule} | {judged} | {right} |" for rule, (judged, right) in _by_rule(found).items()]
    return "\n".join(lines)


def _title(series: Series) -> str:
    maker = str(series.Manufacturer or "?").split()[0].title()
    return f"{maker} {series.ManufacturerModelName}, {series.SeriesDescription}".replace("Ge ", "GE ")


def _structure(structure: Structure) -> str:
    if not structure.known:
        return f"unknown: {structure.why}"
    return "; ".join(structure.holes) or structure.why


def _by_rule(found: list[Found]) -> Mapping[str, tuple[int, int]]:
    counts = {rule.__name__.replace("_", " "): (0, 0) for rule in RULES}
    for each in found:
        if each.expectation is not None and each.right is not None:
            judged, right = counts[each.expectation.rule]
            counts[each.expectation.rule] = judged + 1, right + each.right
    return counts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m sorter.testing.predictions FOLDER")
    sys.stdout.write(tables(list(series_below(Path(sys.argv[1])))) + "\n")
