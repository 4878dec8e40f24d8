"""The page of results, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import bench
from bench import Floor, Result, Results


def page(found: Results, idle: float | None, notes: Sequence[str]) -> str:
    parts = ["# The receiver beside others\n", _introduction(notes)]
    parts += ["## Floors\n", _judged(bench.floors(found, idle))]
    parts += ["## Aim: level with the best storescp everywhere, durable\n", _judged(bench.aims(found))]
    parts += ["## Everything that was measured\n", _table(found.all)]
    return "\n".join(parts)


INTRODUCTION = """Made by `.venv/bin/python tests/bench`; nothing was typed but what may stand under *Reasons*, at the
end. Medians, with the lowest and the highest run behind the rate. CPU is the receiver's, per image; memory the sum of
its processes' PSS; an answer is counted from the last byte that the kernel took to the whole C-STORE-RSP. sorter
answers when the image is durable; storescp and pynetdicom never sync."""


def _introduction(notes: Sequence[str]) -> str:
    return "\n".join([INTRODUCTION, "", *(f"- {note}" for note in notes), ""])


def _judged(found: Iterable[Floor]) -> str:
    word = {True: "met", False: "**missed**", None: "not measured"}
    rows = [f"| {each.says} | {each.measured} | {word[each.met]} |" for each in found]
    return "\n".join(["| what | measured | |", "|---|---|---|", *rows]) + "\n"


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
