"""What should have come and did not: `expect_daily` of labs, and senders that are silent for too long. And what comes
and belongs to no lab, from a sender whose series usually do.

Whatever is decided is written down together with the event that tells of it, before anybody is told (`untold`), so a
crash neither loses an alarm nor raises it anew. What came is noted before the revision that shows it is published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sorter.completion.alarms import GRACE, PLAUSIBLE, STEP, Times, Wall, long, overdue
from sorter.expected import Daily, ExpectedDaily
from sorter.model import Event, Identity, Source
from sorter.pipeline.units import Live
from sorter.spool.alarms import AlarmFile, AlarmState, Raised
from sorter.spool.layout import now as wall_clock
from sorter.spool.studies import study_key
from sorter.strays import Strays

LOOK_EVERY = 5.0
"""Seconds between two looks at what is due."""

KEEP_EVERY = 1800.0
"""Seconds of silence that a restart may forget."""

MOST_SENDERS = 1000
"""Of which it is known how many of their series belong to nobody."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A sender that sends often: `name` as people know it, and the seconds for which it may be silent."""

    name: str
    seconds: float
    is_meant: Callable[[Source], bool]


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clocks:
    """`wall` can be set; `boot`, seconds since the machine booted, cannot, and goes on while it is suspended."""

    wall: Callable[[], float] = time.time
    boot: Callable[[], float] = _since_boot
    boot_id: str = ""  # of this boot of the machine


@dataclass(slots=True)
class Alarms:
    """Joins the clocks, what came, and the file. `identify` says whose a series is, as far as is known now."""

    file: AlarmFile
    clocks: Clocks
    identify: Callable[[Live], Identity]
    tell: Callable[[Event], None]
    daily: Mapping[str, ExpectedDaily] = field(default_factory=dict)  # by lab
    awaited: Sequence[Awaited] = ()
    labs: bool = True  # are there any? Else all that comes is nobody's
    state: AlarmState = field(init=False)
    _wall: Wall = field(init=False)
    _last: dict[str, float] = field(default_factory=dict)  # sender -> when (monotonic) it was last heard
    _heard: set[str] = field(default_factory=set)  # of whom it is written down that they are silent
    _known: dict[str, tuple[str, ...]] = field(default_factory=dict)  # sender of an image -> those it is meant by
    _awake: float | None = None  # since when (monotonic) nothing has held sorter up
    _ahead: float = 0.0  # of the boot's clock to the monotonic one
    _next: float = 0.0
    _kept: float = 0.0

    def __post_init__(self) -> None:
        boot, wall = self.clocks.boot(), self.clocks.wall()
        kept = self.file.read()
        if kept is not None and kept.boot == self.clocks.boot_id:
            self.state = kept
        elif kept is not None and 0 <= wall - kept.seen <= PLAUSIBLE:
            self.state = replace(kept, boot=self.clocks.boot_id, offset=wall - boot)
        else:  # nobody knows how long the machine was off: a time that is past already is not judged
            daily = {lab: Daily(wall, each.came, each.told) for lab, each in kept.daily.items()} if kept else {}
            fresh = AlarmState(self.clocks.boot_id, wall - boot, wall, daily)
            self.state = (
                fresh
                if kept is None
                else replace(fresh, silent=kept.silent, strays=kept.strays, raised=kept.raised, untold=kept.untold)
            )
        self._wall = Wall(self.state.offset)

    def configure(self, daily: Mapping[str, ExpectedDaily], awaited: Sequence[Awaited], *, labs: bool = True) -> None:
        """Expect this from now on, and nothing else."""
        since = self._times().steady
        names = {each.name for each in awaited}
        self._last = {name: at for name, at in self._last.items() if name in names}
        self.daily, self.awaited, self.labs = daily, awaited, labs
        self._known.clear()
        ids = {*(_daily(lab) for lab in daily), *(_silent(name) for name in names)}
        new = replace(
            self.state,
            daily={lab: self.state.daily.get(lab, Daily(since)) for lab in daily},
            silent={name: self.state.silent.get(name, 0.0) for name in names},
            raised={
                each: raised for each, raised in self.state.raised.items() if each in ids or (labs and _is_stray(each))
            },
        )
        if new != self.state:
            self._write(new)

    def _times(self) -> Times:
        boot, wall = self.clocks.boot(), self.clocks.wall()
        self._wall = self._wall.seen(wall, boot)
        return Times(wall, self._wall.steady(boot))

    def _write(self, state: AlarmState) -> None:
        """Only what is written down is known."""
        state = replace(state, offset=self._wall.offset, seen=self._wall.steady(self.clocks.boot()))
        self.file.write(state)
        self.state = state

    # --- what came ----------------------------------------------------------------------------------------------

    def heard(self, source: Source, now: float) -> None:
        """An image came from there, new or not."""
        if not self.awaited or source.dropped:
            return
        names = self._known.get(source.sender)
        if names is None:
            if len(self._known) >= 1000:
                self._known.clear()
            names = tuple({each.name: None for each in self.awaited if each.is_meant(source)})
            self._known[source.sender] = names
        for name in names:
            self._last[name] = now
            if self.state.silent[name] or _silent(name) in self.state.raised:
                self._heard.add(name)

    def coming(self, live: Live, now: float) -> None:
        """What there is of this series is about to be published."""
        if not self.daily:
            return
        identity = self.identify(live)
        days = self._times().ago(max(0.0, now - live.state.last)).days
        for lab, expected in self.daily.items():
            if _is_it(identity, lab, expected):
                self._came(lab, days)

    def _came(self, lab: str, days: frozenset[str]) -> None:
        known = self.state.daily[lab]
        for day in sorted(days):
            known = known.with_came(day)
        raised = self.state.raised.get(_daily(lab))
        if known != self.state.daily[lab] or raised is not None:
            new = replace(self.state, daily={**self.state.daily, lab: known})
            if raised is not None:
                new = _cleared(new, _daily(lab), Event("daily_came", at=wall_clock(), details={"lab": lab}))
            self._write(new)

    # --- what belongs to nobody ---------------------------------------------------------------------------------

    def placed(self, live: Live, *, owned: bool) -> None:
        """A series was published for the first time, and a lab owns it, or none does."""
        for sender in live.senders if self.labs else ():
            known = self.state.strays.get(sender, Strays())
            if sender not in self.state.strays and len(self.state.strays) >= MOST_SENDERS:
                continue
            if owned and known.row:
                self._over(sender, known.with_owned())
            elif owned:  # how many there are is worth no write of its own
                self.state = replace(self.state, strays={**self.state.strays, sender: known.with_owned()})
            else:
                self._strayed(sender, known.with_stray(study_key(live.unit.study_uid), wall_clock()))

    def owned(self, live: Live) -> None:
        """By now a lab owns a series that may have belonged to nobody."""
        for sender in live.senders:
            known = self.state.strays.get(sender)
            if known is not None and known.row:
                self._over(sender, known.ended())

    def _strayed(self, sender: str, known: Strays) -> None:
        new, which = replace(self.state, strays={**self.state.strays, sender: known}), _stray(sender)
        says = f"{sender}: {known}"
        if which in new.raised:
            new = replace(new, raised={**new.raised, which: replace(new.raised[which], says=says)})
        elif known.is_unusual:
            details = {"sender": sender, "since": known.since, "series": str(known.row), "says": says}
            new = _raised(new, which, says, Event("sender_unassigned", at=wall_clock(), details=details))
        self._write(new)

    def _over(self, sender: str, known: Strays) -> None:
        new, which = replace(self.state, strays={**self.state.strays, sender: known}), _stray(sender)
        if which in new.raised:
            new = _cleared(new, which, Event("sender_assigned", at=wall_clock(), details={"sender": sender}))
        self._write(new)

    # --- what did not -------------------------------------------------------------------------------------------

    def turn(self, now: float, lives: Iterable[Live], *, ready: bool) -> None:
        """Raise and clear what is due. `ready`: all that came has been looked at."""
        for each in self.awaited:
            self._last.setdefault(each.name, now - self.state.silent[each.name])
        if self._heard or self.state.untold or now >= self._next:
            self._next = now + LOOK_EVERY
            self._write_heard()
            if self._is_awake(now) and ready:
                self._raise_daily(lives)
                self._raise_silent(now)
            self._keep(now)
            self._tell()

    def _is_awake(self, now: float) -> bool:
        """For long enough, without a gap: whatever came meanwhile had the time to be taken."""
        ahead = self.clocks.boot() - now
        if self._awake is None or ahead - self._ahead > STEP:
            self._awake = now
        self._ahead = ahead
        return now - self._awake >= GRACE

    def _raise_daily(self, lives: Iterable[Live]) -> None:
        times = self._times()
        for lab, expected in self.daily.items():
            day = overdue(expected, self.state.daily[lab], times)
            if day is None or any(live.state.pending and _is_it(self.identify(live), lab, expected) for live in lives):
                continue
            what = "nothing" if expected.subject == "*" else f"nothing of {expected.subject}"
            details = {"lab": lab, "day": day, "by": expected.time}
            says = f"{what} came to lab {lab} by {expected.time} on {day}"
            known = self.state.daily[lab].with_told(day)
            new = replace(self.state, daily={**self.state.daily, lab: known})
            self._write(_raised(new, _daily(lab), says, Event("daily_missing", at=wall_clock(), details=details)))

    def _raise_silent(self, now: float) -> None:
        for each in self.awaited:
            if now - self._last[each.name] >= each.seconds and _silent(each.name) not in self.state.raised:
                says = f"{each.name} has sent nothing for {long(each.seconds)}"
                details = {"sender": each.name, "seconds": f"{each.seconds:g}"}
                event = Event("sender_silent", at=wall_clock(), details=details)
                self._write(_raised(self.state, _silent(each.name), says, event))

    def _write_heard(self) -> None:
        while self._heard:
            name = min(self._heard)
            new = replace(self.state, silent={**self.state.silent, name: 0.0})
            if _silent(name) in new.raised:
                new = _cleared(new, _silent(name), Event("sender_sends", at=wall_clock(), details={"sender": name}))
            self._write(new)
            self._heard.discard(name)

    def _keep(self, now: float) -> None:
        """Now and then how long each has been silent, and that the clock was believed."""
        if now - self._kept >= KEEP_EVERY and (self.daily or self.awaited or self.state.strays):
            self._kept = now
            self._write(replace(self.state, silent={name: now - at for name, at in self._last.items()}))

    def _tell(self) -> None:
        if self.state.untold:
            for event in self.state.untold:
                self.tell(event)
            self._write(replace(self.state, untold=()))


def _daily(lab: str) -> str:
    return f"daily {lab}"


def _silent(name: str) -> str:
    return f"silent {name}"


def _stray(sender: str) -> str:
    return f"strays {sender}"


def _is_stray(which: str) -> bool:
    return which.startswith("strays ")


def _is_it(identity: Identity, lab: str, expected: ExpectedDaily) -> bool:
    return identity.lab == lab and expected.fits(identity.subject or "")


def _raised(state: AlarmState, which: str, says: str, event: Event) -> AlarmState:
    raised = {**state.raised, which: Raised(says, event.at)}
    return replace(state, raised=raised, untold=(*state.untold, event))


def _cleared(state: AlarmState, which: str, event: Event) -> AlarmState:
    raised = {each: alarm for each, alarm in state.raised.items() if each != which}
    return replace(state, raised=raised, untold=(*state.untold, event))
