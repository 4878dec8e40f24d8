"""Runs many random scripts and writes down who was wrong: `python -m simulator.report 10000 > PAGE.md`.

Every habit of the library comes equally often, each time with other numbers. The seed is in the page.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import Pool
from pathlib import Path

from simulator.habits import LIBRARY, Habit, script
from simulator.rivals import RIVALS
from simulator.score import Score, score, share


def chosen(count: int, seed: int) -> Iterator[tuple[int, int]]:
    """(habit, seed of its script), so many; the same for the same seed."""
    rng = random.Random(seed)
    while count > 0:
        order = list(range(len(LIBRARY)))
        rng.shuffle(order)
        yield from ((number, rng.randrange(1 << 32)) for number in order[:count])
        count -= len(order)


def one(which: tuple[int, int]) -> Score:
    habit = LIBRARY[which[0]]
    return score(habit, script(habit, which[1]))


def many(count: int, seed: int, jobs: int) -> list[Score]:
    if jobs == 1:
        return [one(each) for each in chosen(count, seed)]
    with Pool(jobs) as pool:
        return pool.map(one, chosen(count, seed), chunksize=20)


def fair(scores: Iterable[Score]) -> list[Score]:
    """Without the habits that are judged apart."""
    named = {habit.name for habit in LIBRARY if habit.apart}
    return [each for each in scores if each.habit not in named]


def page(scores: Sequence[Score], seed: int) -> Iterator[str]:
    judged = fair(scores)
    yield "# Completion: who is wrong, and how often"
    yield ""
    yield (
        f"{len(scores):,} random scripts of {len(LIBRARY)} sending habits, {sum(each.images for each in scores):,} "
        f"images, seed {seed}; {datetime.date.today():%Y-%m-%d}, commit {_commit()}. The site and its clock are "
        "simulated, the settling of the pipeline is what runs. In tests/, "
        f"`python -m simulator.report {len(scores)} --seed {seed}` makes this page again. No script has fewer than "
        f"{min(each.images for each in scores):,} images."
    )
    yield ""
    yield "A script counts as wrong if an image of the run comes after *any* published revision, not only the last."
    yield ""
    yield "| rule | scripts wrong | called complete again without anything new |"
    yield "|---|--:|--:|"
    for name in RIVALS:
        again = sum(each.rivals[name][1] > 0 for each in scores)
        yield f"| {name} | {100 * share(scores, name):.1f}% | {100 * again / len(scores):.1f}% |"
    sure = sum(bool(each.early_sure) for each in scores)
    quiet = sum(bool(each.early_quiet) for each in judged)
    yield f"| sorter: listed or counted | {sure} of {len(scores):,} | {sum(each.repeated for each in scores)} |"
    yield f"| sorter: quiet | {quiet} of {len(judged):,} ({100 * quiet / len(judged):.2f}%) | |"
    yield f"| sorter: images in no revision | {sum(each.lost for each in scores)} | |"
    yield ""
    yield from _by_habit(scores)
    yield from _apart(scores)


def _by_habit(scores: Sequence[Score]) -> Iterator[str]:
    timer = next(iter(RIVALS))
    yield "## By habit"
    yield ""
    yield (
        "*Known*: how often the site had seen the habit before. *Wait*: median and longest time from the last image of "
        "a series to the revision that has it, in seconds."
    )
    yield ""
    yield f"| habit | known | {timer} wrong | stable wrong | association wrong | sorter wrong | verdicts | wait |"
    yield "|---|--:|--:|--:|--:|--:|---|--:|"
    for habit in LIBRARY:
        mine = [each for each in scores if each.habit == habit.name]
        if mine:
            yield _line(habit, mine)
    yield ""


def _line(habit: Habit, mine: Sequence[Score]) -> str:
    rivals = " | ".join(f"{100 * share(mine, name):.0f}%" for name in RIVALS)
    wrong = sum(bool(each.early_sure or each.early_quiet) for each in mine)
    verdicts = Counter(itertools.chain.from_iterable(each.verdicts for each in mine))
    said = ", ".join(verdict for verdict, _ in verdicts.most_common())
    waits = [wait for each in mine for wait in each.waits]
    mark = f" ({habit.apart})" if habit.apart else ""
    return (
        f"| {habit.says}{mark} | {habit.known} | {rivals} | {100 * wrong / len(mine):.0f}% | {said} "
        f"| {statistics.median(waits):.0f}, {max(waits):.0f} |"
    )


def _apart(scores: Sequence[Score]) -> Iterator[str]:
    yield "## Judged apart"
    yield ""
    yield "Of these nothing can be known when it matters; they are in the table, and not in the sum of *quiet* above."
    yield ""
    for habit in LIBRARY:
        mine = [each for each in scores if each.habit == habit.name]
        if habit.apart and mine:
            wrong = sum(bool(each.early_sure or each.early_quiet) for each in mine)
            sure = sum(bool(each.early_sure) for each in mine)
            yield f"- {habit.says}: {habit.apart}; called listed too early in {sure}, wrong in {wrong} of {len(mine)}."


def _commit() -> str:
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="Random scripts of sending habits, and who was wrong.")
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr)
    print("\n".join(page(many(given.count, seed, given.jobs), seed)))


if __name__ == "__main__":
    main()
