"""Where series come from: the store itself where one may read it, sorter's door otherwise, or any folder of DICOM."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.exports.copying import Copy
from sorter.exports.finding import Found, Made, in_store
from sorter.model import Study, plain
from sorter.naming import safe_component
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.exports import Export, ExportedFile, ask
from sorter.spool.lines import now
from sorter.spool.studies import StudyRecord, StudyRecords, study_key
from sorter.story import of_study, sentences
from sorter.summaries import is_called, summaries, title_of

TARGET = "target:"
"""How a destination begins that is no folder."""

MOST_SENT = 4000
"""Files that a target is asked to take at once: a request is to stay small."""

LONGEST_NAME = 255  # bytes of a file's or folder's name


@dataclass(frozen=True, slots=True)
class Told:
    """The story of one series: sentences of how it stands, its events, and the table of its study if that settled."""

    says: tuple[str, ...] = ()
    story: tuple[Mapping[str, Any], ...] = ()
    study: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """The series that whoever asks may see. `sorter.door.client.Door` is the other one."""

    unread: dict[str, str]
    """By key, in sentences: what was left out so far, as its records cannot be read. One such ends nobody's look at the
    others."""

    def units(self, called: str = "") -> Iterable[UnitSummary]:
        """Of every series, or of those that are called so; in no order."""

    def tell(self, unit: UnitSummary) -> Told:
        """Where it is, and why."""

    def candidates(self, units: Sequence[UnitSummary]) -> Iterator[Found]:
        """These series, to choose from; their images may be left out."""

    def complete(self, found: Sequence[Found]) -> list[Found]:
        """Those that were chosen, with all their images."""

    def made(self, found: Found, product: str) -> Made | None:
        """What was made of the series as it is now; None where that was not done (yet)."""

    def opened(self, copies: Sequence[Copy]) -> AbstractContextManager[Mapping[str, int | str]]:
        """Read-only descriptors of what is copied, by the copies' names; a sentence for each that cannot be had."""

    def remember(self, copies: Sequence[Copy], dest: str) -> None:
        """These are about to be written below `dest`: a withdrawal has to know of it."""

    def send(self, copies: Sequence[Copy], target: str, folder: str) -> None:
        """Have sorter copy these to one of its targets, below `folder` there. SorterError: that is not allowed."""


class Disk:
    """Files that lie where their copies' `source` says: any folder."""

    def __init__(self, files: Files) -> None:
        self.files = files

    @contextlib.contextmanager
    def opened(self, copies: Sequence[Copy]) -> Iterator[Mapping[str, int | str]]:
        found: dict[str, int | str] = {}
        try:
            for copy in copies:
                found[copy.name] = open_copy(self.files, copy)
            yield found
        finally:
            for each in found.values():
                if isinstance(each, int):
                    self.files.close(each)

    def remember(self, copies: Sequence[Copy], dest: str) -> None:
        """A folder is nobody's to withdraw from."""


def open_copy(files: Files, copy: Copy) -> int | str:
    """A descriptor of what lies on this machine, or why there is none.

    Where it was delivered the lab may have put a named pipe, which must not make us wait, or a link.
    """
    if copy.delivered is None:
        try:
            return files.open(copy.source)
        except OSError as error:
            return error.strerror or str(error)
    try:
        fd = files.open(copy.delivered, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return f"{_ELSEWHERE}: {error.strerror}"
    if stat.S_ISREG(files.stat(fd).st_mode):
        return fd
    files.close(fd)
    return _ELSEWHERE


_ELSEWHERE = "it has left the store, and its delivered copy is not where it was delivered"


class Store(Disk):
    """A spool that one may read. `roots`: the folders of its targets by name, for what has left it. `who` asks, where
    it is not the account that this process runs as."""

    def __init__(self, spool: Spool, roots: Mapping[str, Path] = MappingProxyType({}), who: str = "") -> None:
        super().__init__(spool.files)
        self.spool, self.roots, self.who = spool, roots, who
        self.unread: dict[str, str] = {}

    def _not_read(self, key: str, error: OSError) -> None:
        self.unread[key] = not_read(key, error.strerror or str(error))

    def units(self, called: str = "") -> Iterator[UnitSummary]:
        found = summaries(self.spool, self._not_read)
        return (unit for unit in found if is_called(unit, called)) if called else found

    def tell(self, unit: UnitSummary) -> Told:
        return tell(self.spool, unit)

    def candidates(self, units: Sequence[UnitSummary]) -> Iterator[Found]:
        return in_store(self.spool, units, self.roots, self._not_read)

    def complete(self, found: Sequence[Found]) -> list[Found]:
        return list(found)

    def made(self, found: Found, product: str) -> Made | None:
        return made(Unit(self.spool, found.key), product)

    def remember(self, copies: Sequence[Copy], dest: str) -> None:
        by_unit: dict[str, list[tuple[str, str]]] = {}
        for copy in copies:
            key = copy.source.relative_to(self.spool.store).parts[1]
            by_unit.setdefault(key, []).append((copy.name, copy.sha256))
        for key, files in by_unit.items():
            Unit(self.spool, key).note_export(dest, os.getuid(), files)

    def send(self, copies: Sequence[Copy], target: str, folder: str) -> None:
        for place, batch in parcels(copies, folder, self._key):
            files = []
            for copy in batch:
                _, _, *rest = copy.source.relative_to(self.spool.store).parts
                files.append(ExportedFile(os.path.basename(copy.name), copy.sha256, copy.size, "/".join(rest)))
            ask(self.spool, Export(self._key(batch[0]), target, place, tuple(files), os.getuid(), now(), self.who))

    def _key(self, copy: Copy) -> str:
        return copy.source.relative_to(self.spool.store).parts[1]


def not_read(key: str, why: str) -> str:
    """What is said of a series that the disk does not give."""
    return f"the records of the series {key[:8]} cannot be read: {why}"


def target_of(dest: str) -> tuple[str, str] | None:
    """(its name, a folder there) of "target:NAME/FOLDER"; None of a folder."""
    if not dest.startswith(TARGET):
        return None
    name, _, folder = dest.removeprefix(TARGET).partition("/")
    return name, folder.removesuffix("/")


def not_granted(target: str) -> SorterError:
    """What to say of a target that whoever asks may not have copies made to, or that there is not."""
    return SorterError(f"{target} is no target of your labs; the admin of sorter grants one in [labs.NAME]")


def parcels(
    copies: Sequence[Copy], below: str, key: Callable[[Copy], str]
) -> Iterator[tuple[str, list[Copy]]]:  # fmt: skip
    """What goes to a target, as it is asked for: by series and folder, `MOST_SENT` files of them at most.

    SorterError: there would be no folder, or it is no name for one.
    """
    for part in below.split("/") if below else ():
        if part != safe_component(part, limit=LONGEST_NAME):
            raise SorterError(f"{below} can be no folder of a target; write letters, digits and ._+- only")
    by_place: dict[tuple[str, str], list[Copy]] = {}
    for copy in copies:
        place = "/".join(filter(None, (below, os.path.dirname(copy.name))))
        if not place:
            raise SorterError("these names have no folder: say which one of the target, as target:NAME/FOLDER")
        by_place.setdefault((key(copy), place), []).append(copy)
    for (_, place), found in by_place.items():
        for at in range(0, len(found), MOST_SENT):
            yield place, found[at : at + MOST_SENT]


def made(unit: Unit, product: str) -> Made | None:
    """What was made of the revision that was planned last."""
    plan = unit.latest_plan()
    found = unit.product(product, plan.revision) if plan is not None else None
    return None if plan is None or found is None else Made(unit.product_folder(product, plan.revision), found)


MOST_EVENTS = 20
"""Of one series, in lines: the latest."""

LAST_LINES = 8
"""Of what a product that could not be made had printed when it was last tried; the story has all that was kept."""

WORDS = {
    "open": "still arriving",
    "owed": "being delivered",
    "delivered": "delivered",
    "held": "held",
    "kept": "kept, delivered nowhere",
    "withdrawn": "withdrawn",
}
"""How a series stands."""


def unmade(unit: UnitSummary) -> tuple[str, ...]:
    """Products that fail, where all else of the series is delivered: it is, but for these."""
    states = {each.state for each in unit.deliveries}
    if unit.state != "owed" or "delivered" not in states or not states <= {"delivered", "nothing", "failed"}:
        return ()
    return tuple(dict.fromkeys(each.product for each in unit.deliveries if each.state == "failed"))


def standing(unit: UnitSummary) -> str:
    """How it stands, for people."""
    failing = unmade(unit)
    return f"delivered but for {', '.join(failing)}" if failing else WORDS[unit.state]


def lines(unit: UnitSummary, told: Told) -> Iterator[str]:
    """Where it is, and why, for people."""
    yield f"{title_of(unit)} ({unit.key[:8]}): {standing(unit)}"
    yield from (f"    {sentence}" for sentence in told.says)
    failed = [event for event in told.story if "could not be made" in event["says"]]
    for event in told.story[-MOST_EVENTS:]:
        yield f"        {event['at'][:19].replace('T', ' ')}  {event['says']}"
        if event in failed[-1:]:  # of those before it the sentence is enough
            for text in event.get("log", "").splitlines()[-LAST_LINES:]:
                yield f"                             {text}"
    if len(told.story) > MOST_EVENTS:
        yield f"        ({len(told.story) - MOST_EVENTS} earlier events)"


def _everything(_lab: str | None) -> bool:
    return True


def tell(spool: Spool, unit: UnitSummary, sees: Callable[[str | None], bool] = _everything) -> Told:
    """The story of a series, for one who `sees` the series of some labs: what its study has of others is left out."""
    records = Unit.load(spool, unit.key)
    record = StudyRecords(spool.studies, spool.files).read(study_key(unit.study_uid))
    seen = part_of(record, sees) if record is not None else None
    return Told(
        says=(*sentences(records, unit), *of_study(seen, unit)),
        story=tuple(records.story()),
        study=plain(seen) if seen is not None else {},
    )


def of_lab(lab: str | None) -> Callable[[str | None], bool]:
    """What is seen by who sees the series of one lab alone."""
    return lambda whose: whose == lab


def study_of(study: Study, sees: Callable[[str | None], bool]) -> Study:
    """The same, without what is another lab's: also what that one calls the subject."""
    own = replace(
        study,
        series=tuple(each for each in study.series if sees(each.lab)),
        missing=tuple(each for each in study.missing if sees(each.lab)),
    )
    if sees(study.lab):
        return own
    lab, subject = next(((each.lab, each.subject) for each in own.series if each.lab is not None), (None, None))
    return replace(own, lab=lab, subject=subject)


def part_of(record: StudyRecord, sees: Callable[[str | None], bool]) -> StudyRecord:
    """What of a study is of the labs that are seen."""
    study = study_of(record.study, sees)
    own = {each.key for each in study.series}
    return replace(record, study=study, members={key: at for key, at in record.members.items() if key in own})
