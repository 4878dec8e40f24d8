"""The library: how scanners, archives and people send. Each function writes one session; its name and its first line
tell it. Times are those seen in the field, or told by vendors' conformance statements and other programs' issues.

`known` is how often the site has seen the habit before. `apart` says why nothing could be known of a habit but silence:
whoever does not wait long enough must be wrong there, so these are judged apart, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from simulator.script import LEAST, ClockStep, Happens, Restart, Script, Tape, Whole

BETWEEN = 3600.0
"""Seconds from one session of a sender to the next."""


@dataclass(frozen=True, slots=True)
class Habit:
    write: Callable[[Tape], None]
    known: int
    apart: str = ""

    @property
    def name(self) -> str:
        return self.write.__name__

    @property
    def says(self) -> str:
        return (self.write.__doc__ or "").split("\n")[0].rstrip(".")


LIBRARY: list[Habit] = []


def habit(*, known: int = 5, apart: str = "") -> Callable[[Callable[[Tape], None]], Callable[[Tape], None]]:
    def add(write: Callable[[Tape], None]) -> Callable[[Tape], None]:
        LIBRARY.append(Habit(write, known, apart))
        return write

    return add


def script(each: Habit, seed: int, known: int | None = None) -> Script:
    """The habit as a site meets it: so often before, and then the session that is judged."""
    rng = Random(f"{each.name} {seed}")
    events: list[Happens] = []
    start = 0.0
    for number in range(each.known if known is None else known):
        tape = Tape(rng, f"before{number}", start, big=False)
        each.write(tape)
        events += tape.events
        start = max(event.at for event in tape.events) + BETWEEN
    tape = Tape(rng, "judged", start)
    each.write(tape)
    events = sorted([*events, *tape.events], key=lambda event: event.at)  # stable: what was said first happens first
    return Script(each.name, seed, tuple(events), "judged")


# --- pushed when it is done -----------------------------------------------------------------------------------------


@habit(known=0)
def push(tape: Tape) -> None:
    """One series in one association."""
    run = tape.run()
    tape.deliver(run, run.images)


@habit(known=0)
def push_of_a_study(tape: Tape) -> None:
    """Several series, one after another, in one association."""
    association = tape.open()
    for run in [tape.small(), tape.run(), tape.small(), tape.small()]:
        tape.send(run, run.images, association)
        tape.pause(0.5, 20)
    tape.end(association)


@habit(known=0)
def image_by_image(tape: Tape) -> None:
    """An association for each image (GE), without a pause."""
    run = tape.run()
    tape.one_by_one(run, run.images)


@habit(known=0)
def archive_at_night(tape: Tape) -> None:
    """A slow archive: one image a second, in one association."""
    run = tape.run()
    tape.deliver(run, run.images, every=1.0)


# --- live, while it is acquired -------------------------------------------------------------------------------------


@habit(known=0)
def live_in_one_association(tape: Tape) -> None:
    """Volume by volume as they are acquired, the association open all the time, with rests of minutes."""
    run, association = tape.run(), tape.open()
    for volume in range(run.volumes):
        tape.send(run, run.volume(volume), association)
        tape.pause(1, 3)
        if tape.rng.random() < 0.05 or volume == run.volumes // 2:
            tape.pause(70, 400)
    tape.end(association)


@habit()
def live_an_association_a_volume(tape: Tape) -> None:
    """Volume by volume, an association each, with the pauses of the task in between; the header has the right count."""
    run = tape.run(says=1)
    for volume in range(run.volumes):
        tape.deliver(run, run.volume(volume))
        tape.pause(1, 3)
        if volume and volume % 8 == 0 and volume + 1 < run.volumes:
            tape.pause(65, 280)


@habit()
def live_uncounted_with_rests(tape: Tape) -> None:
    """Volume by volume, an association each, rests of one to two minutes, and no count: only its pauses are known."""
    run = tape.run()
    for volume in range(run.volumes):
        tape.deliver(run, run.volume(volume))
        tape.pause(1, 3)
        if volume % 3 == 1 and volume + 1 < run.volumes:
            tape.pause(70, 110)


@habit()
def image_by_image_with_rests(tape: Tape) -> None:
    """An association for each image, live, with rests of up to a minute and a half after some volumes."""
    run = tape.run()
    for volume in range(run.volumes):
        tape.one_by_one(run, run.volume(volume), every=0.02)
        tape.pause(62, 90) if volume % 3 == 1 and volume + 1 < run.volumes else tape.pause(1, 4)


@habit(known=0)
def slow_reconstruction(tape: Tape) -> None:
    """The association is open, and images trickle: up to two minutes of reconstruction between volumes."""
    run, association = tape.run(), tape.open()
    for volume in range(run.volumes):
        tape.send(run, run.volume(volume), association)
        tape.pause(5, 120 if volume % 10 == 0 else 10)
    tape.end(association)


# --- at the same time -----------------------------------------------------------------------------------------------


@habit(known=0)
def two_series_in_turn(tape: Tape) -> None:
    """Two series of one acquisition, their volumes in turn (magnitude and phase), in one association."""
    one, other, association = tape.run(), tape.run(), tape.open()
    for volume in range(max(one.volumes, other.volumes)):
        for run in (one, other):
            if volume < run.volumes:
                tape.send(run, run.volume(volume), association)
        tape.pause(1, 4)
    tape.end(association)


@habit()
def two_series_in_turn_with_rests(tape: Tape) -> None:
    """Two series in turn, an association a volume, rests of minutes, right counts: it comes back to what it left."""
    one, other = tape.run(says=1), tape.run(says=1)
    for volume in range(max(one.volumes, other.volumes)):
        for run in (one, other):
            if volume < run.volumes:
                tape.deliver(run, run.volume(volume))
        tape.pause(65, 200) if volume in (2, 5) else tape.pause(1, 4)


@habit(known=0)
def two_scanners(tape: Tape) -> None:
    """Two scanners at once, each in its own association, one of them resting."""
    run, association = tape.run(), tape.open()
    half = run.volumes // 2
    for volume in range(half):
        tape.send(run, run.volume(volume), association)
        tape.pause(1, 2)
    other = Tape(tape.rng, f"{tape.name}-other", tape.now, tape.big, "MR2@10.0.0.2")
    another = other.run()
    other.deliver(another, another.images)
    tape.events += other.events
    tape.pause(70, 300)
    for volume in range(half, run.volumes):
        tape.send(run, run.volume(volume), association)
        tape.pause(1, 2)
    tape.end(association)


# --- trouble on the way ---------------------------------------------------------------------------------------------


@habit(known=0)
def stall_inside(tape: Tape) -> None:
    """The network stalls for minutes in the middle of an association."""
    run, association = tape.run(), tape.open()
    first, rest = tape.cut(run.images)
    tape.send(run, first, association)
    tape.pause(65, 700)
    tape.send(run, rest, association)
    tape.end(association)


@habit(known=0)
def stall_outside(tape: Tape) -> None:
    """The sender closes in the middle of a volume, and goes on minutes later."""
    run = tape.run()
    first, rest = tape.cut_inside_a_volume(run)
    tape.deliver(run, first)
    tape.pause(65, 550)
    tape.deliver(run, rest)


@habit()
def stall_between_volumes_counted(tape: Tape) -> None:
    """The sender closes after a volume, and goes on minutes later; a count that was right before knows better."""
    run = tape.run(says=1)
    first, rest = tape.cut_after_a_volume(run)
    tape.deliver(run, first)
    tape.pause(65, 550)
    tape.deliver(run, rest)


@habit(known=0)
def abort_and_retry(tape: Tape) -> None:
    """The association is aborted; the retry, minutes later, sends everything again."""
    run, association = tape.run(), tape.open()
    first, _ = tape.cut(run.images)
    tape.send(run, first, association)
    tape.end(association, "aborted")
    tape.pause(65, 280)
    tape.deliver(run, run.images)


@habit(known=0)
def abort_and_resume(tape: Tape) -> None:
    """The association is aborted; soon another goes on where it ended."""
    run, association = tape.run(), tape.open()
    first, rest = tape.cut(run.images)
    tape.send(run, first, association)
    tape.end(association, "aborted")
    tape.pause(5, 25)
    tape.deliver(run, rest)


@habit(known=0)
def lost_again_and_again(tape: Tape) -> None:
    """The connection is lost several times, with minutes until each retry."""
    run = tape.run()
    done = 0
    for part in range(3):
        upto, association = tape.rng.randrange(done, len(run.images) - 3 + part), tape.open()
        tape.send(run, run.images[done : upto + 1], association)
        tape.end(association, "lost")
        done = upto + 1
        tape.pause(30, 250)
    tape.deliver(run, run.images[done - 1 :])


@habit(known=0)
def lost_images(tape: Tape) -> None:
    """Some images never come."""
    run = tape.run()
    gone = set(tape.rng.sample(run.images[1:-1], 3))
    tape.deliver(run, [each for each in run.images if each not in gone])


@habit(known=0)
def lost_images_sent_later(tape: Tape) -> None:
    """Some images fail at first, and are sent minutes later."""
    run = tape.run()
    failed = sorted(tape.rng.sample(run.images[1:-1], 5))
    tape.deliver(run, [each for each in run.images if each not in failed])
    tape.pause(65, 1500)
    tape.deliver(run, failed)


# --- sent again, and later ------------------------------------------------------------------------------------------


@habit(known=0)
def sent_again(tape: Tape) -> None:
    """Everything is sent a second time, ten minutes later."""
    run = tape.run()
    tape.deliver(run, run.images)
    tape.pause(200, 900)
    tape.deliver(run, run.images)


@habit(known=0)
def sent_again_by_the_archive(tape: Tape) -> None:
    """Two days later the archive sends everything, too."""
    run = tape.run()
    tape.deliver(run, run.images)
    tape.pause(2 * 86400)
    tape.sender = "PACS@10.0.0.9"
    tape.deliver(run, run.images)


@habit(known=0)
def derived_series_later(tape: Tape) -> None:
    """Maps computed from a series follow minutes later, as series of their own."""
    run = tape.run()
    tape.deliver(run, run.images)
    for _ in range(3):
        tape.pause(40, 400)
        derived = tape.small()
        tape.deliver(derived, derived.images)


@habit()
def appended_reconstruction(tape: Tape) -> None:
    """A second reconstruction is added to the same series about two minutes later, every time."""
    run = tape.run()
    first, rest = tape.cut_after_a_volume(run)
    tape.deliver(run, first)
    tape.pause(90, 130)
    tape.deliver(run, rest)


# --- counts ---------------------------------------------------------------------------------------------------------


@habit(known=5)
def count_too_high(tape: Tape) -> None:
    """The header always says more than comes."""
    run = tape.run(says=2)
    tape.deliver(run, run.images)


@habit(known=5)
def count_too_low(tape: Tape) -> None:
    """The header always says less than comes, and the sender pauses just there."""
    run = tape.run(says=0.5)
    assert run.says is not None
    association = tape.open()
    tape.send(run, run.images[: run.says], association)
    tape.pause(65, 100)
    tape.send(run, run.images[run.says :], association)
    tape.end(association)


@habit()
def counted_push(tape: Tape) -> None:
    """One series in one association, and the header has the right count."""
    run = tape.run(says=1)
    tape.deliver(run, run.images)


@habit()
def stopped_run(tape: Tape) -> None:
    """The operator ends the run; the header still says how long it would have been. (Those before were not ended.)"""
    run = tape.run(says=1, least=2 * LEAST)
    tape.deliver(run, run.images[: tape.rng.randrange(LEAST, len(run.images))] if tape.big else run.images)


@habit()
def count_trusted_then_paused(tape: Tape) -> None:
    """A right count, image by image, and a coffee break before the last volumes."""
    run = tape.run(says=1)
    first, rest = tape.cut_after_a_volume(run)
    tape.one_by_one(run, first, every=0.02)
    tape.pause(100, 580)
    tape.one_by_one(run, rest, every=0.02)


# --- lists ----------------------------------------------------------------------------------------------------------


@habit(known=0)
def commitment_afterwards(tape: Tape) -> None:
    """Storage Commitment is asked for a few seconds after the end."""
    run = tape.run()
    tape.deliver(run, run.images)
    tape.pause(0.5, 10)
    tape.commit((run, run.images))


@habit(known=0)
def commitment_of_a_study(tape: Tape) -> None:
    """One request names all series of the study, at its end."""
    runs = [tape.small(), tape.run(), tape.small()]
    for run in runs:
        tape.deliver(run, run.images)
        tape.pause(1, 15)
    tape.commit(*((run, run.images) for run in runs))


@habit(known=0)
def commitment_before_the_end(tape: Tape) -> None:
    """The request names everything while images are still on their way, with a break of minutes."""
    run = tape.run()
    first, rest = tape.cut(run.images)
    tape.deliver(run, first)
    tape.commit((run, run.images))
    tape.pause(65, 900)
    tape.deliver(run, rest)


@habit(known=0)
def commitment_much_later(tape: Tape) -> None:
    """The request comes when everything has long been delivered."""
    run = tape.run()
    tape.deliver(run, run.images)
    tape.pause(100, 800)
    tape.commit((run, run.images))


@habit()
def commitment_of_each_batch(tape: Tape) -> None:
    """Commitment is asked for of every batch, about a minute and a half apart: none of the lists is the last."""
    run = tape.run()
    done: list[int] = []
    for part in range(3):
        images = run.images[part * len(run.images) // 3 : (part + 1) * len(run.images) // 3]
        tape.deliver(run, images)
        tape.commit((run, images))
        done += images
        if part < 2:
            tape.pause(70, 110)


@habit(known=0)
def commitment_of_each_batch_counted(tape: Tape) -> None:
    """The same, never seen before, but the header says how many there will be."""
    run = tape.run(says=1)
    first, rest = tape.cut_after_a_volume(run)
    association = tape.open()
    for images in (first, rest):
        tape.send(run, images, association)
        tape.commit((run, images))
        tape.pause(65, 600) if images is first else None
    tape.end(association)


@habit(known=0)
def commitment_of_images_that_failed(tape: Tape) -> None:
    """The request names images that never came; they are sent when it fails."""
    run = tape.run()
    failed = sorted(tape.rng.sample(run.images, 4))
    tape.deliver(run, [each for each in run.images if each not in failed])
    tape.commit((run, run.images))
    tape.pause(65, 1200)
    tape.deliver(run, failed)


# --- by hand --------------------------------------------------------------------------------------------------------


@habit(known=0)
def folder_moved_in(tape: Tape) -> None:
    """A whole folder, by one rename."""
    run = tape.run()
    tape.drop(run, run.images, tape.name)
    tape.pause(0.5)
    tape.say(Whole(tape.name))


@habit(known=0)
def folder_copied_slowly(tape: Tape) -> None:
    """A folder is copied from a slow share, which stalls in the middle of a volume."""
    run = tape.run()
    first, rest = tape.cut_inside_a_volume(run)
    tape.drop(run, first, tape.name)
    tape.pause(65, 400)
    tape.drop(run, rest, tape.name)
    tape.pause(1)
    tape.say(Whole(tape.name))


# --- our own life ---------------------------------------------------------------------------------------------------


@habit(known=0)
def restart_in_the_middle(tape: Tape) -> None:
    """The sorter is restarted while images come, and again in a stall of minutes."""
    run, association = tape.run(), tape.open()
    first, rest = tape.cut(run.images)
    tape.send(run, first, association)
    tape.say(Restart())
    tape.pause(65, 300)
    tape.say(Restart())
    tape.pause(1)
    tape.send(run, rest, association)
    tape.end(association)


@habit()
def restart_after_learning(tape: Tape) -> None:
    """The sorter is restarted between the volumes of a run with rests: what it learned has to be found again."""
    run = tape.run(says=1)
    for volume in range(run.volumes):
        tape.deliver(run, run.volume(volume))
        if volume == 2:
            tape.say(Restart())
            tape.pause(70, 200)
        tape.pause(1, 2)


@habit(known=0)
def clock_steps(tape: Tape) -> None:
    """The wall clock is set, by an hour or ten years, while images come."""
    run, association = tape.run(), tape.open()
    first, rest = tape.cut(run.images)
    tape.send(run, first, association)
    tape.say(ClockStep(tape.rng.choice([3600.0, -3600.0, 3.15e8])))
    tape.pause(5, 20)
    tape.send(run, rest, association)
    tape.end(association)


# --- where only silence is known ------------------------------------------------------------------------------------


@habit(known=0, apart="only silence is known")
def first_rests_of_a_new_scanner(tape: Tape) -> None:
    """A scanner never seen before rests between whole volumes, connected to nobody, and counts nothing."""
    run = tape.run()
    first, rest = tape.cut_after_a_volume(run)
    tape.deliver(run, first)
    tape.pause(65, 300)
    tape.deliver(run, rest)


@habit(known=0, apart="only silence is known")
def the_rest_next_day(tape: Tape) -> None:
    """Whole volumes, and the rest next day."""
    run = tape.run()
    first, rest = tape.cut_after_a_volume(run)
    tape.deliver(run, first)
    tape.pause(50000, 90000)
    tape.deliver(run, rest)


@habit(known=0, apart="only silence is known")
def spectra_without_numbers(tape: Tape) -> None:
    """Objects without numbers or positions, copied by hand, with a pause."""
    run = tape.run(plain=True)
    first, rest = tape.cut(run.images)
    tape.drop(run, first, tape.name)
    tape.pause(65, 200)
    tape.drop(run, rest, tape.name)


@habit(known=0, apart="only silence is known")
def first_commitment_of_each_batch(tape: Tape) -> None:
    """A sender never seen before asks for commitment of a batch of whole volumes, and goes on minutes later."""
    run = tape.run()
    first, rest = tape.cut_after_a_volume(run)
    for images in (first, rest):
        tape.deliver(run, images)
        tape.commit((run, images))
        tape.pause(65, 300)


__all__ = ["LIBRARY", "Habit", "script"]
