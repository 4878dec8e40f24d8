"""The completion step: pure, monotone, and never early."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sorter.completion import (
    Arrived,
    AssociationEnded,
    DropWhole,
    Input,
    Publish,
    Published,
    State,
    Tick,
    Timing,
    Told,
    deadline,
    step,
)
from sorter.model import Verdict

TIMING = Timing(quiet=30.0, cap=900.0)


def run(events: list[tuple[float, Input]], until: float | None = None) -> list[tuple[float, Publish]]:
    """Play events with a Tick after each and at every deadline, publishing as the pipeline does."""
    state, published, number = State(), [], 0
    clock = 0.0

    def tick(now: float) -> None:
        nonlocal state, number
        state, effects = step(state, Tick(), now, TIMING)
        for effect in effects:
            number += 1
            published.append((now, effect))
            state, _ = step(state, Published(number), now, TIMING)

    for at, event in [*events, *([(until, Tick())] if until is not None else [])]:
        while (due := deadline(state, TIMING)) is not None and due <= at:
            tick(max(due, clock))
        clock = at
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
    assert len(published) <= len(arrivals)
    if arrivals:
        assert published
        assert arrivals[-1] <= published[-1] <= arrivals[-1] + TIMING.cap


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
