"""In which order, and how many at once, what came is taken."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hostile.bench import Life
from hostile.files import data_set as file
from hostile.files import written

from sorter.model import UnitKind, unit_key
from sorter.pipeline import intake
from sorter.pipeline.intake import Intake
from sorter.spool import Unit
from sorter.structure import Structure
from sorter.take.filing import Candidate, Filed
from sorter.take.received import Ended
from sorter.trust import Like
from tests.crash.memory import Memory
from tests.crash.scenario import Life as CrashLife
from tests.crash.scenario import as_file, begin, data_set, settings_of


def an_intake(*came: Candidate | Ended) -> Intake:
    none = cast(Any, None)
    made = Intake(none, none, none, none, none)
    made._own.extend(intake._Come(item, float(at), 0.0) for at, item in enumerate(came))
    return made


def image(number: int) -> Candidate:
    return Candidate(Path(f"{number}.dcm"))


def test_images_that_have_an_association_each_are_taken_together() -> None:
    """One by one it would be a tenth as many a second: each batch is synced."""
    came = [each for number in range(200) for each in (image(number), Ended(f"a{number}", "released"))]
    made = an_intake(*came)
    batch, ends = made._next_own()
    assert batch == [image(number) for number in range(128)]
    assert [each.association for each in ends] == [f"a{number}" for number in range(128)]
    assert made.came == 2 * 127
    batch, ends = made._next_own()
    assert (len(batch), len(ends)) == (72, 72)
    assert made._next_own() == ([], [])


def test_so_many_ends_are_told_in_one_go() -> None:
    ended = Ended("a", "released")
    made = an_intake(*[ended] * 1500, image(1))
    assert made._next_own() == ([], [ended] * 1024)
    assert made.busy
    assert made._next_own() == ([image(1)], [ended] * 476)


def test_an_abort_is_told_before_what_came_after_it() -> None:
    aborted, lost, released = Ended("a", "aborted"), Ended("b", "lost"), Ended("c", "released")
    made = an_intake(image(1), aborted, released, image(2), lost, image(3), released, image(4))
    assert made._next_own() == ([image(1)], [aborted, released])
    assert made._next_own() == ([image(2)], [lost])
    assert made._next_own() == ([image(3), image(4)], [released])
    assert made._next_own() == ([], [])


def test_ends_of_many_associations_are_made_durable_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = begin(Memory(), settings_of(tmp_path, monkeypatch))
    for number in range(20):
        life.receive(data_set(number + 1))
    synced, fsync = list[int](), Memory.fsync

    def counted(disk: Memory, fd: int) -> None:
        synced.append(fd)
        fsync(disk, fd)

    monkeypatch.setattr(Memory, "fsync", counted)
    life.turns(5)
    [live] = life.parts.pipeline.units
    assert set(live.unit.associations.values()) == {"released"}
    assert len(live.unit.associations) == 20
    assert 0 < len(synced) < 20


def test_an_answer_that_was_outgrown_lends_its_weight_to_no_other_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin(Memory(), settings_of(tmp_path, monkeypatch))
    life.receive(data_set(1), data_set(2))
    life.turns(60)
    pipeline, sender = life.parts.pipeline, "SCANNER@127.0.0.1"
    live = pipeline.units.get(next(iter(life.spool.keys())), life.now)
    one, two = sorted(live.unit.by_sop)

    def listing(kind: str, name: str) -> tuple[bool, bool]:
        live.unit.add_list(kind, sender, [name])
        found = pipeline.settling.witness.facts(live).listing
        assert found is not None
        return found.exact, found.asked

    assert listing("query", one) == (False, False)
    assert listing("commitment", two) == (True, False)
    assert listing("query", two) == (True, True)
    assert listing("query", "1.2.3.999") == (False, True), "there is more, and it is surely of this series"


def test_a_count_that_cannot_be_judged_any_more_is_forgotten_as_a_restart_forgets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin(Memory(), settings_of(tmp_path, monkeypatch))
    life.receive(data_set(1), data_set(2))
    life.turns(60)
    witness, like = life.parts.pipeline.settling.witness, Like("siemens", "1", "epfid2d1", "rule")
    live = life.parts.pipeline.units.get(next(iter(life.spool.keys())), life.now)
    live.asked = [(like, 3, "")]
    for shown, known in ((Structure(True, ""), [(3, 2)]), (Structure(True, "", holes=("one is missing",)), [])):
        live.state = replace(live.state, facts=replace(live.state.facts, structure=shown))
        witness.learn_counts(live)
        assert [(each.expected, each.came) for each in witness.ledger.likes.get(like, ())] == known
        assert [(each.outcome.expected, each.outcome.came) for each in live.counts] == known


@pytest.mark.parametrize("restarted", [False, True])
def test_a_whole_drop_is_a_list_of_a_series_only_if_all_of_that_came_in_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    disk, config = Memory(), settings_of(tmp_path, monkeypatch)
    life = begin(disk, config)

    def drop(folder: str, *data: bytes) -> None:
        life.drop(folder, *map(as_file, data))
        disk.write_file(f"{life.spool.incoming}/{folder}/.done", b"")
        life.turns(60)

    life.receive(data_set(1))
    life.turns(60)
    drop("usb", data_set(1, series=2))
    if restarted:
        life = begin(disk, config)
        life.turns(10)
    drop("more", data_set(2), data_set(2, series=2))
    units = {unit.series_uids: unit for unit in (Unit.load(life.spool, key) for key in life.spool.keys())}  # noqa: SIM118
    said = {uids[0]: [unit.revision(number).verdict.value for number in (1, 2)] for uids, unit in units.items()}
    assert said == {"1.2.3.1": ["quiet", "quiet"], "1.2.3.2": ["listed", "listed"]}


@pytest.mark.parametrize("lies_there", ["a file", "nothing"])
def test_what_came_by_network_does_not_wait_for_an_incoming_folder_that_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies_there: str
) -> None:
    """A mount that is not there, a wrong mode: it is said, and everything else goes on."""
    life = begin(disk := Memory(), settings_of(tmp_path, monkeypatch))
    life.turns(2)
    incoming = life.parts.pipeline.spool.incoming
    disk.rmdir(incoming)
    if lies_there == "a file":
        disk.close(disk.open(incoming, os.O_CREAT | os.O_WRONLY))
    life.receive(data_set(1))
    life.turns(5)
    [live] = life.parts.pipeline.units
    assert len(live.unit.instances) == 1
    if lies_there == "a file":
        assert [each for each in life.parts.pipeline.problems() if "incoming cannot be looked at" in each]
        disk.unlink(incoming)
        disk.mkdir(incoming)
        life.turns(5)
    assert not [each for each in life.parts.pipeline.problems() if "incoming" in each]


def test_what_was_dropped_is_not_called_quiet_while_incoming_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of it may lie there; what came by network goes on."""
    life = begin(disk := Memory(), settings_of(tmp_path, monkeypatch))
    life.drop("usb", as_file(data_set(1)))
    life.turns(10)
    incoming, aside = life.spool.incoming, life.spool.root / "aside"
    disk.rename(incoming, aside)
    disk.close(disk.open(incoming, os.O_CREAT | os.O_WRONLY))
    life.receive(data_set(1, series=2))
    life.turns(100)
    assert published(life) == {"1.2.3.1": False, "1.2.3.2": True}
    assert life.parts.pipeline.turn(life.now) > life.now, "what is overdue is not asked about again at once"
    disk.unlink(incoming)
    disk.rename(aside, incoming)
    life.turns(100)
    assert published(life) == {"1.2.3.1": True, "1.2.3.2": True}


def published(life: CrashLife) -> dict[str, bool]:
    units = [Unit.load(life.spool, key) for key in life.spool.keys()]  # noqa: SIM118
    return {unit.series_uids[0]: bool(unit.revisions()) for unit in units}


def test_one_that_cannot_be_taken_costs_the_others_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, each with syncs of its own, they would take as long as ten times as many, again and again."""
    life = Life(tmp_path / "spool")
    own = unit_key(UnitKind.SERIES, "1.2.3", "1.2.9")
    damaged = life.spool.groups / own[:2] / f"{own}.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"{")
    batches, take = list[int](), life.filing.take

    def counted(batch: list[Candidate]) -> list[Filed]:
        batches.append(len(batch))
        return take(batch)

    monkeypatch.setattr(life.filing, "take", counted)
    life.drop("d/000", written(file(999, SeriesInstanceUID="1.2.9")))
    for number in range(1, 200):
        life.drop(f"d/{number:03d}", written(file(number)))
    life.settle()
    assert len(life.images()) == 199
    assert "record of a group of series is damaged" in life.intake.problem
    assert life.left() == ["incoming/d", "incoming/d/000"]
    assert len([size for size in batches if size]) < 40
    damaged.unlink()
    life.settle()
    assert len(life.images()) == 200
    assert life.intake.problem == ""


def test_what_takes_long_is_taken_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of some takes a second. Others that come later go faster again, and what comes after them is not trusted."""
    life, at = Life(tmp_path / "spool"), [0.0]
    batches, take = list[int](), life.filing.take

    def timed(batch: list[Candidate]) -> list[Filed]:
        batches.append(len(batch))
        at[0] += sum(1.0 if "slow" in str(each.path) else 0.001 for each in batch)
        return take(batch)

    monkeypatch.setattr(life.filing, "take", timed)
    life.intake.clock = lambda: at[0]
    for number in range(120):
        life.drop(f"slow/{number}", b"a text, " * 9)
    life.settle()
    assert [size for size in batches if size] == [64, 32, 16, 8]
    batches.clear()
    for number in range(600):
        life.drop(f"fast/{number}", b"a text, " * 9)
    life.settle()
    assert [size for size in batches if size][:7] == [4, 8, 16, 32, 64, 128, 256]
    assert life.left() == ["incoming/fast", "incoming/slow"]
    assert life.intake._most_dropped == 64
