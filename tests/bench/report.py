"""The page of results, in Markdown."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import bench
from bench import Floor, Result, Results

REASONS = Path(__file__).with_name("reasons.toml")


def page(found: Results, idle: float | None, notes: Sequence[str]) -> str:
    floors, aims = bench.floors(found, idle), bench.aims(found)
    parts = ["# The receiver beside others\n", _introduction(notes)]
    parts += [f"## Floors: {_count(floors)}\n", _judged(floors)]
    parts += [f"## Aim: level with the best storescp everywhere, durable: {_count(aims)}\n", _judged(aims)]
    parts += ["## What was missed, and why\n", _reasons([*floors, *aims])]
    parts += ["## Everything that was measured\n", _table(found.all)]
    return "\n".join(parts)


INTRODUCTION = """Made by `.venv/bin/python tests/bench`; nothing was typed but the reasons for what was missed
(`tests/bench/reasons.toml`). Medians, with the lowest and the highest run behind the rate. CPU is the receiver's, per
image; memory the sum of its processes' PSS; an answer is counted from the last byte that the kernel took to the whole
C-STORE-RSP. sorter answers when the image is durable; storescp and pynetdicom never sync."""


def _introduction(notes: Sequence[str]) -> str:
    return "\n".join([INTRODUCTION, "", *(f"- {note}" for note in notes), ""])


def _judged(found: Iterable[Floor]) -> str:
    word = {True: "met", False: "**missed**", None: "not measured"}
    rows = [f"| {each.says} | {each.measured} | {word[each.met]} |" for each in found]
    return "\n".join(["| what | measured | |", "|---|---|---|", *rows]) + "\n"


def _count(found: Sequence[Floor]) -> str:
    return f"{sum(each.met is True for each in found)} of {sum(each.met is not None for each in found)} met"


def _reasons(found: Iterable[Floor]) -> str:
    """For all that was missed, by reason; what has none is said to have none."""
    known = tomllib.loads(REASONS.read_text())["reason"]
    missed: dict[str, list[str]] = {}
    for each in found:
        if each.met is False:
            text = next(
                (one["text"] for one in known if re.search(one["missed"], each.says)), "No reason is known yet."
            )
            missed.setdefault(text.strip(), []).append(each.says)
    return "\n".join(
        "\n".join([*(f"- {says}" for says in dict.fromkeys(which)), "", text, ""]) for text, which in missed.items()
    )


def _table(found: Iterable[Result]) -> str:
    out = []
    title = None
    for each in found:
        heading = f"### {each.scenario.place}: {each.scenario.name}\n"
        if heading != title:
            title = heading
            out += ["", heading, "| receiver | images/s | | MB/s | CPU ms | PSS MB | p50 ms | p99 ms |"]
            out.append("|---|--:|---|--:|--:|--:|--:|--:|")
        out.append(_row(each))
    return "\n".join(out) + "\n"


def _row(each: Result) -> str:
    if not each.runs:
        return f"| {each.kind.name} | {each.failure or 'no run'} | | | | | | |"
    low, high = each.spread
    digits = 0 if low >= 10 else 2
    failed = f" {each.failure}" if each.failure else ""
    return (
        f"| {each.kind.name}{failed} | {each.median('images'):.{digits}f} | {low:.{digits}f} to {high:.{digits}f} "
        f"| {each.median('bytes') / 1e6:.0f} | {each.median('cpu') * 1e3:.2f} | {each.median('pss') / 1e6:.0f} "
        f"| {each.median('p50') * 1e3:.2f} | {each.median('p99') * 1e3:.2f} |"
    )
