"""Studies settle, over the whole of receiving, taking and publishing: a disk in memory, and a clock that a test moves.

`Told` is what a plugin was told: each settled state once, whatever happens in between.
"""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sorter.config import Config, load
from sorter.errors import PluginError
from sorter.model import Event, Study, UnitKind, unit_key
from sorter.pipeline.alarms import Alarms
from sorter.plugins import Plugins
from sorter.spool.studies import StudyRecord, StudyRecords, study_key
from sorter.watch.names import is_import
from tests.crash.memory import Memory
from tests.crash.scenario import Association, Life, as_file, begin, data_set, settings_of
from tests.crash.test_completion_properties import Dies

A, B, C = "1.2.3", "1.2.4", "1.2.5"
HOUR = 3600.0


@dataclass
class Told:
    """What plugins were told."""

    events: list[Event] = field(default_factory=list)

    @property
    def settled(self) -> list[Study]:
        return [each.study for each in self.events if each.study is not None]

    @property
    def names(self) -> list[tuple[str, int]]:
        return [(each.study_uid, each.revision) for each in self.settled]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(Plugins, "event", lambda _, event: told.events.append(event) or ())
    return told


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    return settings_of(tmp_path, monkeypatch)


@pytest.fixture
def life(settings: Config, told: Told) -> Life:
    return begin(Memory(), settings)


def again(life: Life, settings: Config) -> Life:
    """Sorter ends, and begins on the same disk: no lock is held, and its clock starts anew."""
    life.disk.before = lambda: None
    life.disk.sync_file_system("/")
    other = begin(Memory.of(next(life.disk.states(1, random.Random(0)))), settings)
    other.now = 10.0
    return other


def journal(life: Life) -> Iterator[dict[str, str]]:
    for name in life.disk.names(life.spool.journal):
        for line in life.disk.read_file(life.spool.journal / name).splitlines():
            yield json.loads(line)


def images(study: str, series: int = 1, count: int = 2, description: str = "T1", subject: str = "P1") -> list[bytes]:
    return [
        data_set(number, series=series, study=study, description=description, subject=subject)
        for number in range(1, count + 1)
    ]


# --- once -----------------------------------------------------------------------------------------------------------


def test_silence_settles_a_study_once_with_its_table(life: Life, told: Told) -> None:
    life.receive(*images(A), *images(A, 2, 3, "rest"))
    life.turns(1190)
    assert told.names == []
    life.turns(30)
    (study,) = told.settled
    assert (study.study_uid, study.revision, study.lab, study.subject) == (A, 1, "memory", "P1")
    assert [(each.number, each.description, each.images, each.verdict, each.revision) for each in study.series] == [
        ("1", "T1", 2, "quiet", 1), ("2", "rest", 3, "quiet", 1)
    ]  # fmt: skip
    life.turns(3 * HOUR, 60)
    assert told.names == [(A, 1)]
    (line,) = [each for each in journal(life) if each["kind"] == "study_settled"]
    assert (line["study"], line["series"], line["images"]) == (study_key(A)[:8], "2", "5")
    assert "P1" not in json.dumps(line)


def test_a_sender_that_goes_on_settles_the_study_before(life: Life, told: Told) -> None:
    life.receive(*images(A))
    life.turns(100)
    life.receive(*images(B))
    life.turns(60)
    assert told.names == [(A, 1)]
    life.turns(1300)
    assert told.names == [(A, 1), (B, 1)]


def test_another_scanner_at_the_same_address_settles_nothing(life: Life, told: Told) -> None:
    life.receive(*images(A))
    life.turns(100)
    other = life.associate(calling="OTHER")
    other.store(images(B)[0])
    other.end("released")
    life.turns(60)
    assert told.names == []


def test_never_while_a_series_is_open(life: Life, told: Told) -> None:
    """One with a hole is waited for half an hour, longer than nothing may come of a study."""
    holed = images(A, 2, 10)
    del holed[4]
    life.receive(*images(A), *holed)
    life.receive(*images(B))
    life.turns(1780)
    assert (A, 1) not in told.names
    life.turns(60)
    (study,) = [each for each in told.settled if each.study_uid == A]
    assert [each.verdict for each in study.series] == ["quiet", "incomplete"]


def test_what_is_dropped_settles_too(life: Life, told: Told) -> None:
    life.drop("disk", *(as_file(each) for each in images(A)))
    life.turns(1300)
    assert told.names == [(A, 1)]


def test_what_an_import_brings_is_history(life: Life, told: Told) -> None:
    folder = "import-0123456789ab-000001"
    assert is_import(folder), "the name that an import gives a parcel"
    life.drop(folder, *(as_file(each) for each in images(A)))
    life.turns(1300)
    assert told.names == []
    life.receive(*images(A, 2))
    life.turns(1300)
    assert told.names == [(A, 2)]


# --- again ----------------------------------------------------------------------------------------------------------


def test_it_settles_again_only_when_it_grew(life: Life, told: Told) -> None:
    life.receive(*images(A))
    life.turns(1300)
    life.receive(*images(A))  # an identical resend
    life.turns(1300)
    assert told.names == [(A, 1)]
    life.receive(*images(A, 1, 3))
    life.turns(1300)
    life.receive(*images(A, 2))
    life.turns(1300)
    assert told.names == [(A, 1), (A, 2), (A, 3)]
    assert [[(each.images, each.revision) for each in study.series] for study in told.settled] == [
        [(2, 1)], [(3, 2)], [(3, 2), (2, 1)]
    ]  # fmt: skip


def test_a_sender_that_comes_back_is_waited_for_from_then_on(life: Life, settings: Config, told: Told) -> None:
    """It sends two studies in turns. The first settles too early; from then on, over restarts, silence counts."""
    for part in (1, 2):
        life.receive(*images(A, part))
        life.turns(100)
        life.receive(*images(B, part))
        life.turns(100)
    assert told.names == [(A, 1)]
    life.turns(1300)
    assert told.names == [(A, 1), (A, 2), (B, 1)]
    life = again(life, settings)
    life.receive(*images(C))
    life.turns(100)
    life.receive(*images("1.2.6"))
    life.turns(200)
    assert (C, 1) not in told.names
    life.turns(1300)
    assert (C, 1) in told.names


def test_what_was_withdrawn_is_in_no_table(life: Life, settings: Config, told: Told) -> None:
    life.receive(*images(A), *images(A, 2))
    life.turns(1300)
    life.parts.pipeline.withdraw([unit_key(UnitKind.SERIES, A, f"{A}.1")], [], "consent was taken back", "root")
    life.turns(60)
    life = again(life, settings)
    life.turns(1300)
    assert told.names == [(A, 1)]
    life.receive(*images(A, 3))
    life.turns(1300)
    assert told.names == [(A, 1), (A, 2)]
    assert [each.number for each in told.settled[1].series] == ["2", "3"]
    life = again(life, settings)
    life.turns(1300)
    assert told.names == [(A, 1), (A, 2)]


# --- over restarts --------------------------------------------------------------------------------------------------


def test_a_restart_neither_repeats_nor_loses_it(life: Life, settings: Config, told: Told) -> None:
    life.receive(*images(A))
    life.turns(1100)
    life = again(life, settings)
    life.turns(1190)
    assert told.names == []  # waiting started anew
    life.turns(100)
    assert told.names == [(A, 1)]
    life = again(life, settings)
    life.turns(1300)
    life.receive(*images(A, 2))
    life.turns(600)
    life = again(life, settings)
    life.turns(1300)
    assert told.names == [(A, 1), (A, 2)]
    assert [each.number for each in told.settled[1].series] == ["1", "2"]


def test_the_caches_do_not_matter(life: Life, settings: Config, told: Told) -> None:
    life.receive(*images(A))
    life.turns(1300)
    life.receive(*images(B))
    life.turns(600)
    for shard in life.disk.names(life.spool.store):
        for key in life.disk.names(life.spool.store / shard):
            life.disk.unlink(life.spool.store / shard / key / "series.json")
    life.disk.unlink(life.spool.studies / "overview.json")
    life = again(life, settings)
    life.turns(1300)
    assert told.names == [(A, 1), (B, 1)]
    assert records(life).overview().waiting == ()


def test_what_was_here_before_such_records_were_kept_is_not_told(life: Life, settings: Config, told: Told) -> None:
    life.receive(*images(A))
    life.receive(*images(B))
    life.turns(60)
    life.disk.remove_tree(life.spool.studies)
    told.events.clear()
    life = again(life, settings)
    life.turns(1300)
    assert told.names == []
    life.receive(*images(B, 2))
    life.turns(600)
    life = again(life, settings)
    life.turns(1300)
    assert told.names == [(B, 1)]
    assert len(told.settled[0].series) == 2


def story(life: Life) -> None:
    """Two studies, the first settles as its sender goes on, and grows."""
    send(life, images(A), images(A, 2))
    life.turns(90)
    send(life, images(B))
    life.turns(90)
    send(life, images(A, 3))
    life.turns(90)


def send(life: Life, *each: list[bytes]) -> Association:
    association = life.associate()
    for data in each:
        for image in data:
            association.store(image)
    association.end("released")
    return association


def test_whatever_effect_it_dies_before_each_settled_state_is_told_and_none_twice(settings: Config, told: Told) -> None:
    """The machine dies before every single effect on the disk of a study settling and growing, and comes again.

    What is told twice can only be the very last one before it died: when it was told, and that was not written down.
    """
    effects = 0

    def count() -> None:
        nonlocal effects
        effects += 1

    whole = begin(Memory(), settings)
    whole.disk.before = count
    story(whole)
    assert told.names[0] == (A, 1)
    for number in range(effects // 3 + random.randrange(19), effects, 19):
        print(f"dies before effect {number}")
        told.events.clear()
        life = begin(Memory(), settings)
        left = number

        def before() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Dies

        life.disk.before = before
        with pytest.raises(Dies):
            story(life)
        at_death = told.names[-1:]
        dead = len(told.names)
        life = again(life, settings)
        send(life, images(A), images(A, 2), images(B), images(A, 3))  # whoever was sending begins anew
        life.turns(3000, 20)
        check(life, told, at_death, dead)


def check(life: Life, told: Told, at_death: list[tuple[str, int]], dead: int) -> None:
    names = told.names
    twice = [each for number, each in enumerate(names) if each in names[:number]]
    assert twice in ([], at_death), names
    for uid in (A, B):
        record = records(life).read(study_key(uid))
        assert record is not None
        assert record.told
        revisions = [revision for name, revision in names if name == uid]
        assert list(dict.fromkeys(revisions)) == list(range(1, record.study.revision + 1)), names
    (last,) = [study for study in told.settled if study.study_uid == A and study.revision == last_revision(life, A)][
        -1:
    ]
    assert [each.number for each in last.series] == ["1", "2", "3"]


def last_revision(life: Life, uid: str) -> int:
    record = records(life).read(study_key(uid))
    assert record is not None
    return record.study.revision


def records(life: Life) -> StudyRecords:
    return StudyRecords(life.spool.studies, life.disk)


def test_what_was_written_and_not_told_is_told_in_the_next_life(life: Life, settings: Config, told: Told) -> None:
    life.receive(*images(A))
    life.turns(1300)
    record = records(life).read(study_key(A))
    assert isinstance(record, StudyRecord)
    records(life).write(replace(record, told=False))
    for _ in range(2):
        life = again(life, settings)
        life.turns(60)
    assert told.names == [(A, 1), (A, 1)]


# --- what is missing ------------------------------------------------------------------------------------------------


def test_what_the_lab_expects_and_did_not_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    settings_of(tmp_path, monkeypatch)
    path = tmp_path / "sorter.toml"
    path.write_text(
        '[labs.memory]\nmatch = ["Modality=MR"]\nproducts = ["dicom"]\nexpect = ["T1*", "rest* x2", "dwi"]\n'
    )
    life = begin(Memory(), load(path, Path("/site")))
    life.receive(*images(A, 1, description="t1_mprage"), *images(A, 2, description="rest_1"))
    life.turns(1300)
    assert [each.says for each in told.settled[0].missing] == [
        "expected rest* twice, came once", "expected dwi, which did not come"
    ]  # fmt: skip
    (lacking,) = records(life).overview().lacking
    assert lacking.study.missing == told.settled[0].missing
    life.receive(*images(A, 3, description="rest_2"), *images(A, 4, description="DWI"))
    life.turns(1300)
    assert told.settled[1].missing == ()
    assert records(life).overview().lacking == ()


# --- what else may happen -------------------------------------------------------------------------------------------


def test_too_many_studies_are_told_as_they_are(life: Life, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sorter.pipeline.studies.MOST_WAITING", 3)
    for number in range(5):
        life.drop(f"disk{number}", *(as_file(each) for each in images(f"1.2.{number}")))
        life.turns(10)
    life.turns(90)
    assert sorted(told.names) == [("1.2.0", 1), ("1.2.1", 1)]
    life.turns(1300)
    assert len(told.names) == 5


def test_a_disk_that_is_full_holds_up_a_study_and_nothing_else(
    life: Life, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.receive(*images(A))
    life.turns(1100)
    full = True
    write = Memory.write_file

    def writes(self: Memory, path: Any, *rest: Any, **more: Any) -> None:
        if full and "/studies/" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, path, *rest, **more)

    monkeypatch.setattr(Memory, "write_file", writes)
    life.turns(200)
    assert told.names == []
    assert any(study_key(A)[:8] in each for each in life.parts.pipeline.problems())
    life.receive(*images(B))
    life.turns(60)
    assert [each.kind for each in told.events if each.key == unit_key(UnitKind.SERIES, B, f"{B}.1")] == [
        "published", "delivered"
    ]  # fmt: skip
    full = False
    life.turns(20)
    assert told.names == [(A, 1)]
    assert life.parts.pipeline.problems() == []


def test_a_journal_that_cannot_be_written_loses_no_event(
    life: Life, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = Memory.append, True

    def appends(self: Memory, path: Any, *rest: Any, **more: Any) -> None:
        if full and "/journal/" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, path, *rest, **more)

    life.receive(*images(A))
    life.turns(1100)
    monkeypatch.setattr(Memory, "append", appends)
    life.turns(300)
    assert told.names == []
    full = False
    life.turns(60)
    assert told.names == [(A, 1)]
    record = records(life).read(study_key(A))
    assert record is not None
    assert record.told


def test_a_plugin_that_fails_is_noted_without_what_it_said(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = PluginError("mail", "sorter_event", ValueError("no such subject: P1"))
    monkeypatch.setattr(Plugins, "event", lambda *_: (failure,))
    life.receive(*images(A))
    life.turns(1300)
    lines = list(journal(life))
    assert {"plugin": "mail", "hook": "sorter_event"}.items() <= lines[-1].items()
    assert "P1" not in json.dumps(lines)
    record = records(life).read(study_key(A))
    assert record is not None
    assert record.told


def test_one_study_that_cannot_be_written_down_holds_up_no_other_and_no_alarm(
    life: Life, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = Memory.append, [True]

    def appends(self: Memory, path: Any, data: bytes, **more: Any) -> None:
        if full and study_key(A)[:8].encode() in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, path, data, **more)

    monkeypatch.setattr(Memory, "append", appends)
    life.receive(*images(A), *images(B))
    life.turns(1300)
    assert told.names == [(B, 1)]
    assert any(study_key(A)[:8] in each for each in life.parts.pipeline.problems())
    full.clear()
    life.turns(60)
    assert told.names == [(B, 1), (A, 1)]
    assert life.parts.pipeline.problems() == []


def test_alarms_are_judged_where_studies_cannot_be_written_down(
    life: Life, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[float] = []
    turn = Alarms.turn
    monkeypatch.setattr(Alarms, "turn", lambda self, now, **more: judged.append(now) or turn(self, now, **more))
    write = Memory.write_file

    def writes(self: Memory, path: Any, *rest: Any, **more: Any) -> None:
        if str(path).endswith("/studies/overview.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, path, *rest, **more)

    monkeypatch.setattr(Memory, "write_file", writes)
    life.receive(*images(A))
    life.turns(60)
    assert any("cannot be written down" in each for each in life.parts.pipeline.problems())
    assert len(judged) >= 10


def test_a_study_of_more_series_than_one_turn_reads_settles_over_several(
    life: Life, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sorter.pipeline.studies.READ_STEP", 2)
    life.receive(*(image for series in range(1, 8) for image in images(A, series, 1)))
    life.turns(1190)
    read: list[str] = []
    studies = life.parts.pipeline.studies
    summary = studies.summary
    studies.summary = lambda key: read.append(key) or summary(key)
    counts = []
    while not told.names:
        before = len(read)
        life.parts.pipeline.turn(life.now)
        counts.append(len(read) - before)
        life.now += 5
    assert max(counts) == 2
    assert [each for each in counts if each] == [2, 2, 2, 1]
    (study,) = told.settled
    assert [each.number for each in study.series] == [str(number) for number in range(1, 8)]


def test_what_grows_while_its_study_settles_is_read_anew(
    life: Life, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sorter.pipeline.studies.READ_STEP", 1)
    life.receive(*images(A), *images(A, 2), *images(A, 3))
    life.turns(1190)
    studies = life.parts.pipeline.studies
    while not any(each.found for each in studies._waiting.values()):
        life.parts.pipeline.turn(life.now)
        life.now += 1
    life.receive(data_set(9, series=1), worker="w2")
    life.turns(1500)
    assert [sorted((each.number, each.images) for each in study.series) for study in told.settled] == [
        [("1", 3), ("2", 2), ("3", 2)]
    ]
