"""Draws two pictures of docs/completion.md: `python -m simulator.picture FOLDER`, from tests/.

One is a session of the library, played to the settling of the pipeline and to the rules of others, by the same seed
always. The other shows how often each was wrong in the last long run, as docs/results/completion.md has it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from simulator.habits import LIBRARY, script
from simulator.player import Player
from simulator.rivals import RIVALS
from simulator.script import Image, Script
from sorter.completion import Timing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "completion.md"
HABIT, SEED = "live_an_association_a_volume", 8

LEFT, WIDTH, RIGHT = 215, 660, 25
TITLE = "One fMRI run, sent volume by volume while it is acquired; the task has pauses."

INK, PALE, BLUE, RED, GREEN = "#24292f", "#d0d7de", "#0969da", "#cf222e", "#1a7f37"

Place = Callable[[float], float]
"""From a time to where it is drawn."""


# --- a session ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A rule calls the series complete; `right` where no image of it came later."""

    at: float
    right: bool
    word: str = ""


def calls(one: Script) -> dict[str, list[Call]]:
    """What each rule says of the series that is judged, and when; sorter last."""
    last = max(at for at, _ in one.arrivals(one.judged))
    said = {
        name: [Call(each.at, each.at >= last) for each in rule(one) if each.run.startswith(one.judged)]
        for name, rule in RIVALS.items()
    }
    revisions = [each for each in Player(Timing()).play(one) if each.run.startswith(one.judged)]
    said["sorter"] = [Call(each.at, each.at >= last, each.verdict.value) for each in revisions]
    return said


def session() -> Iterator[str]:
    """The images as they come, and below them what each rule said."""
    one = script(next(each for each in LIBRARY if each.name == HABIT), SEED)
    arrivals = [(at, image) for at, image in one.arrivals(one.judged)]
    said = calls(one)
    start = arrivals[0][0]
    end = max(arrivals[-1][0], *(call.at for mine in said.values() for call in mine)) + 20

    def x(at: float) -> float:
        return LEFT + WIDTH * (at - start) / (end - start)

    top, floor, step = 64, 224, 40
    below = floor + step * len(said) + 24
    yield from _begin(below + 54, TITLE)
    yield from _minutes(x, start, end, floor, below)
    yield from _staircase(arrivals, x, top, floor)
    for row, (name, mine) in enumerate(said.items()):
        yield from _row(name, mine, x, floor + step * row + 40)
    yield _text(LEFT, below + 40, "called complete:", anchor="start")
    yield from _mark(LEFT + 122, below + 36, right=False)
    yield _text(LEFT + 134, below + 40, "too early, images came after", anchor="start")
    yield from _mark(LEFT + 342, below + 36, right=True)
    yield _text(LEFT + 354, below + 40, "right", anchor="start")
    yield "</svg>"


def _minutes(x: Place, start: float, end: float, floor: float, below: float) -> Iterator[str]:
    for minute in range(0, int((end - start) // 60) + 1, 2):
        at = x(start + 60 * minute)
        yield f'<line x1="{at:.1f}" y1="{floor}" x2="{at:.1f}" y2="{below}" stroke="{PALE}" stroke-width="1"/>'
        yield _text(at, below + 14, f"{minute} min", size=11)


def _staircase(arrivals: Sequence[tuple[float, Image]], x: Place, top: float, floor: float) -> Iterator[str]:
    total = len(arrivals)
    points = [f"{x(arrivals[0][0]):.1f},{floor}"]
    for number, (at, _) in enumerate(arrivals, 1):
        if number == total or number % 20 == 0 or arrivals[number][0] - at > 1:
            points.append(f"{x(at):.1f},{floor - (floor - top) * number / total:.1f}")
            if number < total:
                after = arrivals[number][0]
                points.append(f"{x(after):.1f},{floor - (floor - top) * number / total:.1f}")
    points.append(f"{x(arrivals[-1][0]):.1f},{floor}")
    yield f'<polygon points="{" ".join(points)}" fill="{BLUE}" fill-opacity="0.22" stroke="{BLUE}" stroke-width="1.5"/>'
    yield _text(LEFT - 12, top + 10, f"{total:,} images", anchor="end")
    yield _text(LEFT - 12, floor, "received", anchor="end")


def _row(name: str, mine: Sequence[Call], x: Place, y: float) -> Iterator[str]:
    yield f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + WIDTH}" y2="{y}" stroke="{PALE}" stroke-width="1"/>'
    yield _text(LEFT - 12, y + 4, name, anchor="end", bold=name == "sorter")
    for call in mine:
        yield from _mark(x(call.at), y, right=call.right)
        if call.word:
            yield _text(x(call.at) - 10, y - 8, f"{call.word}, once", anchor="end", bold=True)


def _mark(x: float, y: float, *, right: bool) -> Iterator[str]:
    if right:
        yield f'<circle cx="{x:.1f}" cy="{y}" r="6" fill="{GREEN}"/>'
    else:
        yield (
            f'<path d="M{x - 4.5:.1f},{y - 4.5} l9,9 m0,-9 l-9,9" stroke="{RED}" stroke-width="2.4" fill="none" '
            'stroke-linecap="round"/>'
        )


# --- all sessions ---------------------------------------------------------------------------------------------------


def wrong(results: str) -> dict[str, float]:
    """Per cent of the scripts in which each rule was wrong, as the page of results has it."""
    found = {name: float(cent) for name, cent in re.findall(r"^\| (.*?) \| ([0-9.]+)% \|", results, re.MULTILINE)}
    of = r"^\| sorter: %s \| ([0-9,]+) of ([0-9,]+)"
    [(sure, scripts)] = re.findall(of % "listed or counted", results, re.MULTILINE)
    [(quiet, judged)] = re.findall(of % "quiet", results, re.MULTILINE)
    apart = re.findall(r"wrong in ([0-9]+) of [0-9]+\.$", results, re.MULTILINE)
    known = _number(sure) + _number(quiet)
    every = known + sum(map(int, apart))
    return {
        **{name: found[name] for name in RIVALS},
        "sorter, all of them": 100 * every / _number(scripts),
        "sorter, but for four *": 100 * known / _number(judged),
    }


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def bars(results: str) -> Iterator[str]:
    assert sum(bool(habit.apart) for habit in LIBRARY) == 4, "the picture says four"
    shares, step, top = wrong(results), 38, 64
    [(scripts, habits)] = re.findall(r"^([0-9,]+) random scripts of ([0-9]+) sending habits", results, re.MULTILINE)
    below = top + step * len(shares) + 8
    yield from _begin(
        below + 46, f"Called complete, or quiet, too early: of {scripts} scripts of {habits} sending habits."
    )
    for row, (name, cent) in enumerate(shares.items()):
        y, length, ours = top + step * row, (WIDTH - 60) * cent / 100, name.startswith("sorter")
        yield _text(LEFT - 12, y + 17, name, anchor="end", bold=ours)
        yield f'<rect x="{LEFT}" y="{y}" width="{max(length, 1.5):.1f}" height="24" fill="{GREEN if ours else RED}"/>'
        yield _text(LEFT + length + 10, y + 17, f"{cent:.1f}%" if cent >= 1 else f"{cent:.2f}%", anchor="start")
    yield _text(LEFT, below + 14, "* In four habits nothing is known when it matters but silence:", **SMALL)
    yield _text(LEFT, below + 30, "whoever does not wait for days is wrong there.", **SMALL)
    yield "</svg>"


# --- how it is drawn ------------------------------------------------------------------------------------------------


def _begin(height: float, title: str) -> Iterator[str]:
    width = LEFT + WIDTH + RIGHT
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">'
    )
    yield f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    yield _text(20, 30, title, anchor="start", bold=True, size=15)


SMALL: dict[str, Any] = {"anchor": "start", "size": 11}


def _text(x: float, y: float, text: str, *, anchor: str = "middle", bold: bool = False, size: int = 13) -> str:
    how = f'text-anchor="{anchor}" font-size="{size}" fill="{INK}"' + ' font-weight="600"' * bold
    return f'<text x="{x:.1f}" y="{y}" {how}>{escape(text)}</text>'


def drawn() -> dict[str, str]:
    """The pictures by their file names."""
    return {
        "completion-session.svg": "\n".join(session()) + "\n",
        "completion-wrong.svg": "\n".join(bars(RESULTS.read_text())) + "\n",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the pictures of docs/completion.md.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, text in drawn().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
