"""Who was wrong: every revision is judged at the time when it was published, not only the last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from simulator.habits import Habit
from simulator.player import Player, Said, sop_of
from simulator.rivals import RIVALS, Complete
from simulator.script import Restart, Script
from sorter.completion import Timing
from sorter.model import Verdict

DEFAULT = Timing()
SURE = (Verdict.LISTED, Verdict.COUNTED)


@dataclass(slots=True)
class Score:
    """What one script showed."""

    habit: str
    seed: int
    images: int = 0
    early_sure: list[str] = field(default_factory=list)  # listed or counted, and an image of the run came after
    early_quiet: list[str] = field(default_factory=list)
    repeated: int = 0  # revisions without anything new
    lost: int = 0  # images in no revision
    verdicts: list[str] = field(default_factory=list)  # the last one of each series
    waits: list[float] = field(default_factory=list)  # seconds from the last image to the last revision, by series
    rivals: dict[str, tuple[bool, int]] = field(default_factory=dict)  # was it wrong; how often it repeated itself


def score(habit: Habit, script: Script, timing: Timing = DEFAULT) -> Score:
    result = Score(script.habit, script.seed)
    player = Player(timing, durable=any(isinstance(each.what, Restart) for each in script.events))
    said = [each for each in player.play(script) if each.run.startswith(script.judged)]
    arrivals: dict[str, dict[int, float]] = {}
    for at, image in script.arrivals(script.judged):
        if image.of_run:
            arrivals.setdefault(image.run.uid, {}).setdefault(image.number, at)
    result.images = sum(map(len, arrivals.values()))
    for run, came in arrivals.items():
        _judge(result, [each for each in said if each.run == run], came)
    for name, rule in RIVALS.items():
        complete = [each for each in rule(script) if each.run in arrivals]
        wrong = any(_too_early(each.at, arrivals[each.run]) for each in complete)
        result.rivals[name] = (wrong, sum(not each.new for each in complete))
    return result


def _judge(result: Score, said: list[Said], came: dict[int, float]) -> None:
    seen: frozenset[str] = frozenset()
    number = 0
    for each in said:
        if _too_early(each.at, came):
            line = f"{each.run} at {each.at:.1f}: {each.verdict} ({each.why})"
            (result.early_sure if each.verdict in SURE else result.early_quiet if each.verdict is Verdict.QUIET else []
             ).append(line)  # fmt: skip
        result.repeated += each.revision > number and each.images == seen
        assert each.images >= seen, "a revision lost an image"
        seen, number = each.images, each.revision
    run = said[0].run if said else ""
    result.lost += sum(sop_of(run, image) not in seen for image in came)
    if said:
        result.verdicts.append(said[-1].verdict.value)
        first = next(each for each in said if each.images == seen)
        result.waits.append(first.at - max(came.values()))


def _too_early(at: float, came: dict[int, float]) -> bool:
    return any(arrived > at for arrived in came.values())


def share(scores: Iterable[Score], rival: str) -> float:
    """Of all scripts, in how many the rival was wrong."""
    scores = list(scores)
    return sum(each.rivals[rival][0] for each in scores) / len(scores)


__all__ = ["Complete", "Score", "score", "share"]
