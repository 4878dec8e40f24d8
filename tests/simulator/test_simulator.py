"""Sending habits played to the settling of the pipeline: who is wrong, and how often."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.habits import LIBRARY, Habit, script
from simulator.picture import ROOT, drawn
from simulator.player import Player
from simulator.report import fair, many, page
from simulator.rivals import RIVALS
from simulator.score import Score, score, share
from simulator.script import Happens, Image, Restart, Script, Tape
from simulator.studies import Day, days
from sorter.completion import Timing
from sorter.model import Verdict

TIMER = next(iter(RIVALS))
PICTURES = ROOT / "docs" / "pictures"


def check(scores: list[Score], seed: int) -> None:
    judged = fair(scores)
    assert min(each.images for each in scores) >= 2000
    said = [f"{each.habit} {each.seed}: {line}" for each in scores for line in each.early_sure]
    assert not said, f"seed {seed}: called listed or counted too early: {said}"
    said = [f"{each.habit} {each.seed}: {line}" for each in judged for line in each.early_quiet]
    wrong = sum(bool(each.early_quiet) for each in judged)
    assert wrong <= 0.01 * len(scores), f"seed {seed}: called quiet too early: {said}"
    assert sum(each.repeated for each in scores) == 0, f"seed {seed}: a revision without anything new"
    assert sum(each.lost for each in scores) == 0, f"seed {seed}: images that no revision has"
    chance = 3 * math.sqrt(0.25 / len(scores))  # few scripts say little of the habits that they are drawn from
    timer = share(scores, TIMER)
    assert 0.40 - chance <= timer <= 0.65 + chance, f"seed {seed}: too kind, or too cruel, to a timer: {timer}"


@pytest.mark.slow
@pytest.mark.timeout(300)  # forty seconds where nothing else runs
def test_three_hundred_random_scripts() -> None:
    """Fewer would say little of one in a hundred: about one in a thousand is called quiet too early."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    check(many(300, seed, 1), seed)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_ten_thousand_random_scripts() -> None:
    """With SORTER_RESULTS=FOLDER its page is written there as completion.md."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    scores = many(10_000, seed, os.cpu_count() or 1)
    text = "\n".join(page(scores, seed))
    print(text)
    folder = os.environ.get("SORTER_RESULTS")
    if folder:
        Path(folder, "completion.md").write_text(text + "\n")
    check(scores, seed)


def restarted(one: Script, rng: random.Random) -> Script:
    """The same, and the sorter is restarted twice, at any moment of it."""
    times = [at for at, _ in one.arrivals(one.judged)]
    restarts = [Happens(rng.uniform(times[0], times[-1] + 20), Restart()) for _ in range(2)]
    return replace(one, events=tuple(sorted([*one.events, *restarts], key=lambda each: each.at)))


def check_restarts(habits: Sequence[Habit], seed: int) -> None:
    rng = random.Random(seed)
    for habit in habits:
        one = script(habit, rng.randrange(1 << 32))
        plain, found = score(habit, one), score(habit, restarted(one, rng))
        said = f"seed {seed}: {habit.name}"
        assert (found.images, found.lost, found.repeated) == (plain.images, 0, 0), said
        assert not found.early_sure, f"{said}: {found.early_sure}"
        assert len(found.early_quiet) <= len(plain.early_quiet), f"{said}: {found.early_quiet}"


def test_a_restart_at_any_moment_calls_nothing_whole_too_early() -> None:
    seed = random.randrange(1 << 32)
    check_restarts(random.Random(seed).sample(LIBRARY, 10), seed)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_a_restart_at_any_moment_of_a_thousand_scripts() -> None:
    seed = random.randrange(1 << 32)
    check_restarts([habit for habit in LIBRARY for _ in range(22)], seed)


def test_the_pictures_show_what_runs() -> None:
    """Run `python -m simulator.picture ../docs/pictures` in tests/ where this fails, and look at them."""
    for name, text in drawn().items():
        assert (PICTURES / name).read_text() == text, name


def test_the_library_is_as_it_says() -> None:
    names = [each.name for each in LIBRARY]
    assert len(set(names)) == len(names) >= 25
    assert all(each.says and each.says[0].isupper() for each in LIBRARY)
    assert sum(bool(each.apart) for each in LIBRARY) <= 4


def of(name: str) -> Habit:
    return next(each for each in LIBRARY if each.name == name)


EXPECTED = {
    "push": {Verdict.QUIET},
    "counted_push": {Verdict.COUNTED},
    "live_an_association_a_volume": {Verdict.COUNTED},
    "commitment_afterwards": {Verdict.LISTED},
    "commitment_before_the_end": {Verdict.LISTED},
    "commitment_much_later": {Verdict.LISTED},
    "commitment_of_a_study": {Verdict.LISTED},
    "folder_moved_in": {Verdict.LISTED},
    "lost_images": {Verdict.INCOMPLETE},
    "commitment_of_images_that_failed": {Verdict.LISTED},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_last_verdict_of_a_habit(name: str) -> None:
    found = score(of(name), script(of(name), 7))
    assert set(found.verdicts) == {each.value for each in EXPECTED[name]}


@pytest.mark.parametrize("name", ["counted_push", "live_an_association_a_volume", "folder_moved_in"])
def test_listed_and_counted_are_published_within_five_seconds(name: str) -> None:
    for seed in range(3):
        assert max(score(of(name), script(of(name), seed)).waits) <= 5


def test_a_list_of_a_sender_never_seen_before_is_not_the_last_word() -> None:
    """Its first list names all of the first batch; another batch follows."""
    habit = of("first_commitment_of_each_batch")
    for known in (0, 1):
        player = Player(Timing())
        player.play(script(habit, 1, known=known))
        assert {each.verdict for each in player.said if each.run.startswith("judged")} == {Verdict.QUIET}


def test_a_restart_while_a_list_has_to_stand_only_begins_the_wait_anew() -> None:
    habit = of("commitment_afterwards")
    one = script(habit, 7)
    last = max(at for at, _ in one.arrivals("judged"))
    again = replace(one, events=(*one.events, Happens(last + 600, Restart())))
    player = Player(Timing(), durable=True)
    player.play(again)
    assert [each.verdict for each in player.said] == [Verdict.QUIET, Verdict.LISTED]
    assert player.said[-1].at == pytest.approx(last + 600 + Timing().cap, abs=2)


def test_a_list_that_stood_says_nothing_of_images_that_came_after_it_though_it_is_started_again() -> None:
    """Hours later more images come, with a list of their own; then a restart, and then the rest."""
    tape = Tape(random.Random(1), "judged")
    run = tape.run(plain=True)
    cuts = run.images[:1000], run.images[1000:1500], run.images[1500:]
    for images in cuts:
        tape.deliver(run, images)
        tape.commit((run, images))
        if images is cuts[1]:
            tape.pause(100)
            tape.say(Restart())
            tape.pause(100)
        else:
            tape.pause(7200)
    player = Player(Timing(), durable=True)
    player.play(Script("again", 1, tuple(tape.events), "judged"))
    last = [each for each in player.said if each.verdict is Verdict.LISTED]
    assert [len(each.images) for each in last] == [1000]  # of which nothing came for two hours
    assert len(player.said[-1].images) == len(run.images)


def test_a_run_that_was_stopped_is_not_called_anything_better() -> None:
    habit = of("stopped_run")
    for seed in range(5):
        one = script(habit, seed)
        found = score(habit, one)
        (says,) = {image.run.says for _, image in one.arrivals("judged")}
        assert found.images < says
        assert found.verdicts == ["stopped"]


def test_the_check_notices_a_rule_that_is_too_hasty() -> None:
    """The same scripts, with a quiet time of one second and no patience: the scores have to fall."""
    hasty = Timing(quiet=1, cap=2, aborted=1, stopped=1, incomplete=1, settle=0.5)
    names = ["live_in_one_association", "live_uncounted_with_rests", "slow_reconstruction"]
    for name in names:
        assert score(of(name), script(of(name), 3), hasty).early_quiet


def test_the_rivals_are_what_they_are_called() -> None:
    tape = Tape(random.Random(1), "judged")
    run = tape.run()
    tape.deliver(run, run.images[:100])
    tape.pause(61)
    tape.deliver(run, run.images[100:])
    tape.pause(70)
    tape.deliver(run, run.images)
    one = Script("by hand", 0, tuple(tape.events), "judged")
    counts = {name: Counter(each.new for each in rule(one)) for name, rule in RIVALS.items()}
    assert counts == {
        "60 s timer (mercure)": {True: 2, False: 1},
        "stable for 60 s (Orthanc)": {True: 2},
        "end of association": {True: 2, False: 1},
    }
    assert all(isinstance(each.what, Image) for each in one.events if hasattr(each.what, "run"))


# --- studies --------------------------------------------------------------------------------------------------------

HOURS_APART = {"sent_again_by_the_archive", "the_rest_next_day"}
"""Habits that send a part of the session after hours: whoever does not wait so long has to tell of it twice."""


def check_days(count: int, seed: int) -> list[Day]:
    found = list(days(count, seed, Timing()))
    early = [f"day {each.seed}: {line}" for each in found for line in each.early]
    assert not [line for line in early if "went on" in line], f"seed {seed}: {early}"
    assert not [line for line in early if not any(f"-{name} " in line for name in HOURS_APART)], f"seed {seed}: {early}"
    assert not [study for each in found for study in each.repeated], f"seed {seed}: the same state twice"
    assert not [study for each in found for study in each.never], f"seed {seed}: never told, or not whole"
    assert any(each.moved_on for each in found)
    return found


def test_a_study_settles_after_its_last_image() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    check_days(12, seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_studies_of_three_hundred_days() -> None:
    seed = random.randrange(1 << 32)
    found = check_days(300, seed)
    studies, told = sum(len(each.waits) for each in found), sum(each.moved_on for each in found)
    early = Counter(line.split("-", 1)[1].split(" ")[0] for each in found for line in each.early)
    waits = sorted(wait for each in found for wait in each.waits)
    print(
        f"seed {seed}: {studies:,} studies settled, {told:,} of them as their sender went on; too early: {dict(early)}"
    )
    print(f"after the last image: {waits[0]:.0f} s at least, {waits[len(waits) // 2]:.0f} s half of them")


def test_the_check_notices_a_study_that_settles_too_early() -> None:
    hasty = list(days(4, 1, replace(Timing(), study=60)))
    assert sum(len(each.early) for each in hasty) > sum(len(each.early) for each in days(4, 1, Timing()))
