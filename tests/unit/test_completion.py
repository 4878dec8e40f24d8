"""The completion step: pure, monotone, and never early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.completion import (
    Arrived,
    AssociationEnded,
    DropWhole,
    Expected,
    Facts,
    Habits,
    Input,
    Listing,
    Look,
    Looked,
    Outcome,
    Publish,
    Published,
    State,
    Tick,
    Timing,
    Told,
    Tracker,
    deadline,
    step,
)
from sorter.model import Verdict
from sorter.structure import Structure

TIMING = Timing(quiet=30.0, cap=900.0)
PARTIAL = Structure(True, "1 volume of 8 slices, and 3 of the next volume", partial=3)
HOLED = Structure(True, "11 images, 1 missing between them", holes=("image 7 is missing",))
Answer = Callable[[int], Facts]
"""What there is to know when so many images have come."""


def nothing(have: int) -> Facts:
    return Facts(have=have)


def run(
    events: list[tuple[float, Input]], until: float | None = None, know: Answer = nothing
) -> list[tuple[float, Publish]]:
    """Play events with a Tick after each and at every deadline, looking and publishing as the pipeline does."""
    state, published, number = State(), [], 0
    clock, have = 0.0, 0

    def tick(now: float) -> None:
        nonlocal state, number
        state, effects = step(state, Tick(), now, TIMING)
        while effects and isinstance(effects[0], Look):
            facts = know(have)
            if effects[0].closely and facts.structure is None:
                facts = replace(facts, structure=Structure(False, "it cannot be told"))
            state, effects = step(state, Looked(facts), now, TIMING)
        for effect in effects:
            assert isinstance(effect, Publish)
            number += 1
            published.append((now, effect))
            state, _ = step(state, Published(number, effect.verdict), now, TIMING)

    for at, event in [*events, *([(until, Tick())] if until is not None else [])]:
        while (due := deadline(state, TIMING)) is not None and due <= at:
            tick(max(due, clock))
        clock = at
        have += isinstance(event, Arrived)
        state, _ = step(state, event, at, TIMING)
        tick(at)
    return published


def test_quiet_is_published_after_the_quiet_time_and_called_quiet() -> None:
    [(at, effect)] = run([(0, Arrived()), (10, Arrived()), (20, Arrived())], until=100)
    assert at == 50
    assert effect.verdict is Verdict.QUIET


def test_an_open_association_that_carries_it_holds_it() -> None:
    [(at, effect)] = run([(0, Arrived("a")), (100, Arrived("a")), (140, AssociationEnded("a"))], until=1000)
    assert at == 140
    assert effect.verdict is Verdict.QUIET


def test_the_cap_ends_the_wait_for_an_association_that_never_closes() -> None:
    [(at, effect)] = run([(0, Arrived("a"))], until=2000)
    assert at == 900
    assert "still open" in effect.reasons[0]


def test_an_image_after_the_association_ended_starts_the_quiet_time_anew() -> None:
    [(at, _)] = run(
        [(0, Arrived("a")), (1, AssociationEnded("a")), (20, Arrived("b")), (21, AssociationEnded("b"))], 99
    )
    assert at == 50


def test_a_whole_drop_needs_no_quiet_wait() -> None:
    [(at, effect)] = run([(0, Arrived(drop="d")), (1, Arrived(drop="d")), (1.5, DropWhole("d"))], until=100)
    assert at == 1.5
    assert effect.verdict is Verdict.LISTED


def test_a_drop_that_is_whole_says_nothing_of_what_came_by_network_too() -> None:
    [(at, effect)] = run([(0, Arrived(drop="d")), (1, Arrived("")), (2, DropWhole("d"))], until=100)
    assert at == 31
    assert effect.verdict is Verdict.QUIET


def test_nor_of_what_came_by_network_and_was_published_before() -> None:
    published = run([(0, Arrived()), (100, Arrived(drop="d")), (101, DropWhole("d"))], until=200)
    assert [(at, each.verdict) for at, each in published] == [(30, Verdict.QUIET), (130, Verdict.QUIET)]


def test_nor_of_what_came_in_another_drop_that_was_not_whole() -> None:
    events: list[tuple[float, Input]] = [(0, Arrived(drop="c")), (100, Arrived(drop="d")), (101, DropWhole("d"))]
    assert [each.verdict for _, each in run(events, until=200)] == [Verdict.QUIET, Verdict.QUIET]
    events += [(300, Arrived(drop="c")), (301, DropWhole("c"))]
    assert [each.verdict for _, each in run(events, until=400)] == [Verdict.QUIET, Verdict.QUIET, Verdict.LISTED]


def test_one_whole_drop_after_the_other_is_all_of_it() -> None:
    events: list[tuple[float, Input]] = [(0, Arrived(drop="c")), (1, DropWhole("c"))]
    events += [(100, Arrived(drop="d")), (101, DropWhole("d"))]
    assert [(at, each.verdict) for at, each in run(events, until=200)] == [(1, Verdict.LISTED), (101, Verdict.LISTED)]


def test_another_drop_being_whole_is_no_evidence() -> None:
    [(at, _)] = run([(0, Arrived(drop="d")), (1, DropWhole("other"))], until=100)
    assert at == 30


def test_images_after_a_drop_was_whole_wait_for_evidence_of_their_own() -> None:
    published = run([(0, Arrived(drop="d")), (1, DropWhole("d")), (5, Arrived(drop="d"))], until=100)
    assert [at for at, _ in published] == [1, 35]


def test_an_operator_ends_the_wait() -> None:
    [(at, effect)] = run([(0, Arrived("a")), (3, Told())], until=4)
    assert (at, effect.verdict) == (3, Verdict.LISTED)


def test_nothing_is_published_twice_and_late_images_make_the_next_revision() -> None:
    assert [at for at, _ in run([(0, Arrived()), (500, Arrived())], until=1000)] == [30, 530]


# --- counts, lists, structure ---------------------------------------------------------------------------------------


def counts(count: int, **facts: Any) -> Answer:
    trusted = facts.pop("trusted", True)
    return lambda have: Facts(have=have, expected=Expected(count, trusted, f"{count} by the header"), **facts)


def burst(count: int, start: float = 0.0, association: str = "") -> list[tuple[float, Input]]:
    return [(start + number / 10, Arrived(association)) for number in range(count)]


def test_a_count_that_is_reached_is_published_at_once_even_while_the_association_is_open() -> None:
    [(at, effect)] = run(burst(11, association="a"), until=99, know=counts(11))
    assert (at, effect) == (2, Publish(Verdict.COUNTED, ("11 by the header",)))


def test_a_count_that_has_earned_no_trust_is_only_mentioned() -> None:
    [(at, effect)] = run(burst(11), until=99, know=counts(11, trusted=False))
    assert (at, effect.verdict) == (31, Verdict.QUIET)
    assert "not been right here often enough" in effect.reasons[0]


def test_a_count_that_was_too_low_ends_in_quiet() -> None:
    found = run([*burst(11), (50, Arrived())], until=99, know=counts(5))
    assert [(at, effect.verdict) for at, effect in found] == [(31, Verdict.QUIET), (80, Verdict.QUIET)]
    assert "more came than" in found[0][1].reasons[0]


def test_a_run_that_ended_early_is_stopped_and_says_how_many_came() -> None:
    [(at, effect)] = run(burst(11), until=2000, know=counts(20))
    assert (at, effect.verdict) == (601, Verdict.STOPPED)
    assert "11 of 20 images came" in effect.reasons[0]


def test_a_partial_last_volume_waits_as_a_run_that_ended_early() -> None:
    [(at, effect)] = run(burst(11), until=2000, know=lambda have: Facts(have=have, structure=PARTIAL))
    assert (at, effect.verdict) == (601, Verdict.STOPPED)


def test_holes_wait_longest_and_are_named() -> None:
    [(at, effect)] = run(burst(11), until=2000, know=counts(12, structure=HOLED))
    assert (at, effect) == (1801, Publish(Verdict.INCOMPLETE, ("image 7 is missing",)))


def test_a_count_is_not_believed_against_a_hole() -> None:
    [(_, effect)] = run(burst(11), until=2000, know=counts(11, structure=HOLED))
    assert effect.verdict is Verdict.INCOMPLETE


def listing(count: int, **more: Any) -> Answer:
    return lambda have: Facts(have=have, listing=Listing("the list of S", count, **more))


@pytest.mark.parametrize("of", [{"proven": True}, {"asked": True}])
def test_a_list_that_names_exactly_these_is_published_at_once(of: dict[str, bool]) -> None:
    [(at, effect)] = run(burst(11), until=99, know=listing(11, **of))
    assert (at, effect) == (2, Publish(Verdict.LISTED, ("the list of S names exactly these 11",)))


def test_an_unproven_list_raises_what_was_quiet_once_it_stood_the_longest_wait() -> None:
    def named(**more: bool) -> Looked:
        listing = Listing("the list of S", 1, **more)
        return Looked(Facts(1, structure=Structure(False, "it cannot be told"), listing=listing))

    found = run([(0, Arrived()), (100, named()), (900, named(stood=True))], until=3000)
    assert [(at, effect.verdict) for at, effect in found] == [(30, Verdict.QUIET), (900, Verdict.LISTED)]


def test_an_answer_waits_for_the_association_that_is_open_and_a_proven_list_does_not() -> None:
    events = [*burst(11, association="a"), (40.0, AssociationEnded("a"))]
    [(late, _)] = run(events, until=99, know=listing(11, asked=True))
    [(soon, _)] = run(events, until=99, know=listing(11, proven=True))
    assert (late, soon) == (40, 2)


@pytest.mark.parametrize("against", [{"expected": Expected(20)}, {"structure": PARTIAL}, {"structure": HOLED}])
def test_an_unproven_list_is_not_believed_against_what_the_images_say(against: dict[str, Any]) -> None:
    def know(have: int, proven: bool = False) -> Facts:
        return Facts(have=have, listing=Listing("the list of S", 11, proven=proven), **against)

    assert Verdict.LISTED not in {effect.verdict for _, effect in run(burst(11), until=3000, know=know)}
    [(at, effect)] = run(burst(11), until=3000, know=lambda have: know(have, proven=True))
    assert (at, effect.verdict) == (2, Verdict.LISTED)


def test_what_a_list_names_and_is_not_here_is_missing() -> None:
    [(at, effect)] = run(burst(11), until=3000, know=listing(12, missing=("1.2.3",)))
    assert (at, effect.verdict, effect.missing) == (1801, Verdict.INCOMPLETE, ("1.2.3",))


def test_the_list_of_a_sender_that_was_caught_says_nothing() -> None:
    [(at, effect)] = run(burst(11), until=3000, know=listing(11, trusted=False))
    assert (at, effect.verdict) == (31, Verdict.QUIET)


def test_a_list_that_comes_later_raises_the_verdict_once() -> None:
    listing = Listing("the list of S", 1, proven=True)
    exact = Looked(Facts(1, structure=Structure(False, "it cannot be told"), listing=listing))
    found = run([(0, Arrived()), (100, exact), (200, exact)], until=999)
    assert [(at, effect.verdict) for at, effect in found] == [(30, Verdict.QUIET), (100, Verdict.LISTED)]


def test_an_answer_that_there_is_more_corrects_what_was_published_once() -> None:
    def told(**more: Any) -> Looked:
        lacking = Listing("the list of S", 2, missing=("1.2.3",), **more)
        return Looked(Facts(1, structure=Structure(False, "it cannot be told"), listing=lacking))

    found = run([(0, Arrived()), (100, told()), (200, told(asked=True)), (300, told(asked=True))], until=999)
    assert [(at, effect.verdict) for at, effect in found] == [(30, Verdict.QUIET), (200, Verdict.INCOMPLETE)]
    assert found[1][1].missing == ("1.2.3",)
    assert len(run([(0, Arrived()), (100, told(asked=True, trusted=False))], until=999)) == 1


def test_an_operator_raises_the_verdict_of_what_is_published() -> None:
    found = run([(0, Arrived()), (100, Told()), (200, Told())], until=999)
    assert [(at, effect.verdict) for at, effect in found] == [(30, Verdict.QUIET), (100, Verdict.LISTED)]


# --- habits ---------------------------------------------------------------------------------------------------------


def test_after_an_abort_the_quiet_time_is_longer_until_the_retry_came() -> None:
    aborted: list[tuple[float, Input]] = [(0, Arrived("a")), (1, AssociationEnded("a", "aborted"))]
    [(at, _)] = run(aborted, until=999)
    assert at == 300
    [(at, _)] = run([*aborted, (200, Arrived("b")), (201, AssociationEnded("b"))], until=999)
    assert at == 230


def test_a_learned_pause_makes_quiet_longer_up_to_the_cap() -> None:
    assert [at for at, _ in run([(0, Arrived())], until=999, know=lambda have: Facts(have=have, gap=90.0))] == [90]
    assert [at for at, _ in run([(0, Arrived())], until=999, know=lambda have: Facts(have=have, gap=9e9))] == [900]


def test_a_sender_that_never_comes_back_needs_no_learned_pause() -> None:
    gone = Facts(have=1, gap=90.0, moved_on=True, leaves=True)
    assert [at for at, _ in run([(0, Arrived())], until=999, know=lambda have: gone)] == [30]


def pauses(*gaps: float) -> Habits:
    habits = Habits()
    for gap in gaps:
        habits.learn(Outcome("S", gap))
    return habits


def test_the_learned_pause_leaves_out_the_one_longest_of_many() -> None:
    assert Habits().gap("S") == 0
    assert pauses(60).gap("S") == 90
    assert pauses(60, 40, 50, 20, 800).gap("S") == 90
    assert pauses(60).gap("another") == 0
    assert pauses(800, 800, *[2.0] * 20).gap("S") == 3  # only the last series count


def test_a_list_that_was_not_final_costs_trust_until_enough_were() -> None:
    habits = Habits()
    assert habits.list_trusted("S")
    assert not habits.list_proven("S")
    for _ in range(3):
        habits.learn(Outcome("S", list_final=True))
    assert habits.list_proven("S")
    habits.catch("S")
    assert not habits.list_trusted("S")
    for _ in range(5):
        assert not habits.list_trusted("S")
        habits.learn(Outcome("S", list_final=True))
    assert habits.list_trusted("S")


def test_the_tracker_sees_pauses_leaving_coming_back_and_lists_that_were_not_final() -> None:
    tracker = Tracker(Habits(), horizon=900)
    assert tracker.came("one", "S", 0) is None
    tracker.came("one", "S", 40)
    tracker.list_is_complete("one")
    tracker.came("one", "S", 100, retry=True)
    assert not tracker.habits.list_trusted("S")
    assert tracker.came("two", "S", 110) == "one"
    assert tracker.moved_on("one")
    assert tracker.came("one", "S", 120) == "two"
    assert not tracker.moved_on("one")
    assert dict(tracker.over(1000)) == {}
    assert dict(tracker.over(1010)) == {"two": Outcome("S", left=True)}
    assert dict(tracker.over(1020)) == {"one": Outcome("S", 40, left=True, returned=True, list_final=False)}


names = st.sampled_from(["", "a", "b"])
inputs: st.SearchStrategy[Input] = st.one_of(
    st.builds(Arrived, association=names, drop=st.just("")),
    st.builds(Arrived, association=st.just(""), drop=st.sampled_from(["d", "e"])),
    st.builds(AssociationEnded, association=st.sampled_from(["a", "b"])),
    st.builds(DropWhole, drop=st.sampled_from(["d", "e"])),
    st.just(Tick()),
    st.just(Told()),
)
histories = st.lists(st.tuples(st.integers(0, 1600).map(lambda quarters: quarters / 4), inputs), max_size=40)


def in_time(gaps: list[tuple[float, Input]]) -> list[tuple[float, Input]]:
    now, out = 0.0, []
    for gap, event in gaps:
        now += gap
        out.append((now, event))
    return out


@given(histories)
def test_every_image_is_published_within_the_cap_and_never_before_it_came(gaps: list[tuple[float, Input]]) -> None:
    events = in_time(gaps)
    arrivals = [at for at, event in events if isinstance(event, Arrived)]
    published = [at for at, _ in run(events, until=(events[-1][0] if events else 0) + TIMING.cap + 1)]
    assert len(published) <= 2 * len(arrivals)  # each may be raised by an operator
    if arrivals:
        assert any(arrivals[-1] <= at <= arrivals[-1] + TIMING.cap for at in published)


@given(histories)
def test_quiet_is_never_said_before_the_quiet_time(gaps: list[tuple[float, Input]]) -> None:
    events = in_time(gaps)
    for at, effect in run(events, until=10**6):
        if effect.verdict is Verdict.QUIET:
            before = [when for when, event in events if isinstance(event, Arrived) and when < at]
            assert at >= before[-1] + TIMING.quiet


@given(histories, st.floats(-1e6, 1e6, allow_nan=False))
def test_it_is_pure_and_knows_no_absolute_time(gaps: list[tuple[float, Input]], shift: float) -> None:
    """The same events an hour or ten years later: the same answers. (Whole seconds, so that sums are exact.)"""
    shift = round(shift)
    events = [(float(round(at)), event) for at, event in in_time(gaps)]
    state, moved = State(), State()
    for at, event in events:
        state, effects = step(state, event, at, TIMING)
        moved, again = step(moved, event, at + shift, TIMING)
        assert effects == again
        assert replace(moved, last=0.0) == replace(state, last=0.0)


@given(histories)
def test_a_tick_too_many_changes_nothing(gaps: list[tuple[float, Input]]) -> None:
    events = in_time(gaps)
    more = [pair for at, event in events for pair in ((at, event), (at, Tick()))]
    assert run(events, until=10**6) == run(more, until=10**6)
