"""What is answered at the door: one function a request, each of which sees no further than its asker may."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import sorter.door.requests as ask
from sorter.accounts import name_of
from sorter.door.access import AccessLog
from sorter.door.terms import Sight, Terms
from sorter.door.wire import MOST_FILES
from sorter.errors import SorterError
from sorter.exports import in_store
from sorter.exports.finding import Made, delivered
from sorter.exports.remembered import can_be
from sorter.exports.source import LONGEST_NAME, made, not_granted, of_lab, part_of, tell
from sorter.labs import claiming
from sorter.labs.moving import Trial
from sorter.model import DICOM, build, plain
from sorter.naming import safe_component
from sorter.pipeline.outages import outages
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.exports import Export, ExportedFile
from sorter.spool.exports import ask as request_export
from sorter.spool.lines import now
from sorter.spool.studies import StudyRecord, StudyRecords
from sorter.spool.veils import Veil, Veils
from sorter.summaries import is_called, summaries, summary_of

LONGEST_PATH = 4096
MOST_UNASSIGNED, LONGEST_UNASSIGNED = 3000, 100
"""Lines of what is of no lab, and characters of each of their texts: whoever sends makes them, and an answer is to fit
into `LONGEST_ANSWER` whatever was sent."""

MOST_NOTED = 16 << 20  # bytes of what is remembered of one series' copies by way of the door

_KEY = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHELF = 8


@dataclass(frozen=True, slots=True)
class Handed:
    """A line that descriptors go with. They are closed once they were sent."""

    message: Mapping[str, Any]
    descriptors: Sequence[int]


Line: TypeAlias = Mapping[str, Any] | Handed


class Shelf:
    """The units that were read last: a series is handed out in many requests, and its records are long."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._units: OrderedDict[str, tuple[int, Unit]] = OrderedDict()
        self._lock = threading.Lock()

    def unit(self, key: str) -> Unit:
        """As its records say now: they only grow."""
        size = Unit(self._spool, key).evidence_size()
        with self._lock:
            known = self._units.get(key)
            if known is not None and known[0] == size:
                self._units.move_to_end(key)
                return known[1]
        unit = Unit.load(self._spool, key)
        with self._lock:
            self._units[key] = (size, unit)
            while len(self._units) > _SHELF:
                self._units.popitem(last=False)
        return unit


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one request is answered: for whom, from what, and where it is written down."""

    spool: Spool
    shelf: Shelf
    log: AccessLog
    terms: Terms
    sight: Sight

    def series(self, key: str) -> UnitSummary:
        """The series of this key. SorterError, in the same words, where there is none and where it is another's."""
        found = summary_of(self.spool, key) if _KEY.fullmatch(key) else None
        if found is None or not self.sight.sees(found.lab):
            raise SorterError(f"no series {key[:8]} is here that you may see")
        return found

    def product(self, key: str, product: str) -> Made | None:
        """What was made of a series that `series` has let pass; None for a product that was never planned for it."""
        return made(Unit(self.spool, key), product) if product in self.products(key) else None

    def products(self, key: str) -> set[str]:
        plan, veil = Unit(self.spool, key).latest_plan(), self.veil(key)
        found = {each.product for each in plan.deliveries if each.product != DICOM} if plan is not None else set()
        return found if veil is None else found & set(veil.only)

    def veil(self, key: str) -> Veil | None:
        """What hides a series of a lab that gets certain products and nothing else; the last plan says whose it is."""
        found = summary_of(self.spool, key)
        return Veils(self.spool.labs, self.spool.files).of(found.lab if found is not None else None)

    def gives_images(self, key: str) -> bool:
        veil = self.veil(key)
        return veil is None or DICOM in veil.only

    def files(self, key: str, product: str) -> Mapping[str, Path]:
        """Every file that there is to hand out, by its name in the records."""
        if product:
            found = self.product(key, product)
            return {name: found.folder / name for name, _, _ in found.product.files} if found is not None else {}
        if not self.gives_images(key):
            return {}
        unit = self.shelf.unit(key)
        return {each.file: unit.images / each.file for each in unit.instances.values() if each.deliverable}

    def described(self, key: str, product: str) -> Mapping[str, ExportedFile]:
        """The same files, with what their copies have to be; without names."""
        if product:
            found = self.product(key, product)
            if found is None:
                return {}
            where = found.folder.relative_to(self.spool.unit_folder(key))
            return {name: ExportedFile("", sha256, size, str(where / name))
                    for name, sha256, size in found.product.files}  # fmt: skip
        images = self.shelf.unit(key).instances.values() if self.gives_images(key) else ()
        return {each.file: ExportedFile("", each.sha256, each.size, f"images/{each.file}")
                for each in images if each.deliverable}  # fmt: skip

    def targets(self) -> frozenset[str]:
        """Those that the asker's labs may have things copied to."""
        labs = self.terms.targets if self.sight.admin else self.sight.labs
        return frozenset(target for lab in labs for target in self.terms.targets.get(lab, ()))

    def saw(self, what: str, keys: Sequence[str] = (), **more: int) -> None:
        """Write into the access log, before it is answered. SorterError: this account has filled its part of it."""
        self.log.write(self.sight.uid, what, keys, **more)


Asked = TypeVar("Asked")
_ANSWERS: dict[str, tuple[type, Callable[[Desk, Any], Iterator[Line]]]] = {}


def answering(
    kind: type[Asked],
) -> Callable[[Callable[[Desk, Asked], Iterator[Line]]], Callable[[Desk, Asked], Iterator[Line]]]:
    """The function below answers requests of this kind: a frozen dataclass, as those in `sorter.door.requests`."""

    def register(answer: Callable[[Desk, Asked], Iterator[Line]]) -> Callable[[Desk, Asked], Iterator[Line]]:
        _ANSWERS[kind.__name__.casefold()] = (kind, answer)
        return answer

    return register


def answer(desk: Desk, message: Mapping[str, Any]) -> Iterator[Line]:
    """The lines of the answer. SorterError is the sentence that stands in its place."""
    known = _ANSWERS.get(str(message.get("ask")))
    if known is None:
        raise SorterError("this sorter does not know the request; is another version of sorter running?")
    kind, function = known
    try:
        asked: Any = build(kind, {name: value for name, value in message.items() if name != "ask"})
    except ValueError:
        raise SorterError("the request does not say what it should; is another version of sorter running?") from None
    yield from function(desk, asked)


# --- series -----------------------------------------------------------------------------------------------------------


def _leave_out(_key: str, _error: OSError) -> None:
    """What cannot be read is no reason to answer nobody; the admin's `sorter list` names it."""


@answering(ask.Units)
def units(desk: Desk, asked: ask.Units) -> Iterator[Line]:
    desk.saw("units")
    veils = Veils(desk.spool.labs, desk.spool.files)
    for unit in summaries(desk.spool, _leave_out):
        if desk.sight.sees(unit.lab) and (not asked.called or is_called(unit, asked.called)):
            veil = veils.of(unit.lab)
            yield {"unit": plain(unit if veil is None else replace(unit, study_uid="", series_uids=(), scanner=""))}


@answering(ask.Heads)
def heads(desk: Desk, asked: ask.Heads) -> Iterator[Line]:
    if len(asked.keys) > ask.MOST_KEYS:
        raise SorterError(f"no more than {ask.MOST_KEYS} series are answered at once")
    found = [desk.series(key) for key in asked.keys]
    desk.saw("heads", asked.keys)
    for each in in_store(desk.spool, found, unread=_leave_out):
        yield {"head": plain(ask.Head.of(each))}


@answering(ask.Images)
def images(desk: Desk, asked: ask.Images) -> Iterator[Line]:
    desk.series(asked.key)
    desk.saw("images", [asked.key])
    unit, veil = desk.shelf.unit(asked.key), desk.veil(asked.key)
    if veil is not None and DICOM not in veil.only:
        yield {"base": {}}
        yield {"image": plain(veil.stand_in(unit.face))}
        return
    yield {"base": plain(unit.base)}
    elsewhere = dict(delivered(unit, {name: Path(root) for name, root in desk.terms.roots.items()}))
    for each in unit.deliverable:
        line = plain(each)
        line.pop("source", None)  # who sent it is for `why`
        yield {"image": line, "at": str(elsewhere[each.file])} if each.file in elsewhere else {"image": line}


@answering(ask.Made)
def made_of(desk: Desk, asked: ask.Made) -> Iterator[Line]:
    desk.series(asked.key)
    desk.saw("made", [asked.key])
    found = desk.product(asked.key, asked.product)
    if found is not None:
        yield {"made": {"files": plain(found.product.files), "nothing": found.product.nothing}}


@answering(ask.Hand)
def hand(desk: Desk, asked: ask.Hand) -> Iterator[Line]:
    if not 0 < len(asked.files) <= MOST_FILES:
        raise SorterError(f"between 1 and {MOST_FILES} files are handed out at once")
    desk.series(asked.key)
    if desk.shelf.unit(asked.key).withdrawn:
        raise SorterError(f"the series {asked.key[:8]} was withdrawn")
    desk.saw("hand", [asked.key], files=len(asked.files))
    paths = desk.files(asked.key, asked.product)
    given: list[str] = []
    descriptors: list[int] = []
    cannot: dict[str, str] = {}
    try:
        for file in dict.fromkeys(asked.files):
            if file not in paths:  # no path is made of what was asked for: it has to be one of ours
                cannot[file] = "there is no such file of this series"
                continue
            try:
                descriptors.append(desk.spool.files.open(paths[file], os.O_RDONLY | os.O_NOFOLLOW))
                given.append(file)
            except OSError as error:
                cannot[file] = f"the store does not give it: {error.strerror}"
        yield Handed({"files": given, "cannot": cannot}, descriptors)
    finally:
        for each in descriptors:
            desk.spool.files.close(each)


@answering(ask.Note)
def note(desk: Desk, asked: ask.Note) -> Iterator[Line]:
    """What a withdrawal will look at later: so only names, and digests of images that this series really has."""
    desk.series(asked.key)
    unit = desk.shelf.unit(asked.key)
    products = (desk.product(asked.key, each) for each in desk.products(asked.key))
    known = {each.sha256 for each in unit.instances.values()}
    known |= {sha256 for each in products if each is not None for _, sha256, _ in each.product.files}
    if not (len(asked.dest) <= LONGEST_PATH and can_be(asked.dest, "a name")):
        raise SorterError("what is copied whereto cannot be remembered: the folder is no whole path")
    if not all(sha256 in known and len(name) <= LONGEST_PATH and can_be(asked.dest, name)
               for name, sha256 in asked.files.items()):  # fmt: skip
        raise SorterError("what is copied whereto cannot be remembered: it is no image of this series")
    if unit.exports_size() > MOST_NOTED:
        raise SorterError(f"the series {asked.key[:8]} was copied too often to remember it; ask the admin of sorter")
    desk.saw("note", [asked.key], files=len(asked.files))
    unit.note_export(asked.dest, desk.sight.uid, list(asked.files.items()))
    yield from ()


@answering(ask.Send)
def send(desk: Desk, asked: ask.Send) -> Iterator[Line]:
    """The names are checked as if nobody had planned them; sorter writes them, where the asker could not."""
    desk.series(asked.key)
    if asked.target not in desk.targets():
        raise not_granted(asked.target)
    names = [*asked.folder.split("/"), *asked.files.values()]
    if not all(len(name) > 0 and name == safe_component(name, limit=LONGEST_NAME) for name in names):
        raise SorterError("a target is given folders and files of safe names only: letters, digits and ._+-")
    if desk.shelf.unit(asked.key).withdrawn:
        raise SorterError(f"the series {asked.key[:8]} was withdrawn")
    known = desk.described(asked.key, asked.product)
    if not asked.files or not known.keys() >= asked.files.keys():
        raise SorterError("there is no such file of this series")
    desk.saw("send", [asked.key], files=len(asked.files))
    files = tuple(replace(known[file], name=name) for file, name in asked.files.items())
    request_export(desk.spool, Export(asked.key, asked.target, asked.folder, files, desk.sight.uid, now()))
    yield from ()


@answering(ask.Claim)
def claim(desk: Desk, asked: ask.Claim) -> Iterator[Line]:
    """Always the same answer: what is there that no lab has is nobody's business yet."""
    if (not desk.sight.admin and asked.lab not in desk.sight.labs) or asked.lab not in desk.terms.labs:
        raise SorterError(f"you are not of a lab {asked.lab}; claim for one of your own")
    keys = claiming.unassigned(desk.spool, [asked.what])
    desk.saw("claim", keys)
    claiming.claim(desk.spool, keys, asked.lab, name_of(desk.sight.uid))
    yield from ()


@answering(ask.Rules)
def rules(desk: Desk, asked: ask.Rules) -> Iterator[Line]:
    """The sorting process answers, which knows the rules: of series of this lab that stay its own."""
    if (not desk.sight.admin and asked.lab not in desk.sight.labs) or asked.lab not in desk.terms.labs:
        raise SorterError(f"you are not of a lab {asked.lab}; ask about one of your own")
    for key in asked.keys:
        desk.series(key)
    if not desk.spool.is_sorting():
        raise SorterError("sorter does not sort now, and only then knows what its rules do; ask its admin")
    desk.saw("rules", asked.keys)
    yield plain(Trial(asked.lab, asked.since, desk.sight.uid, asked.keys).answered(desk.spool))


@answering(ask.Why)
def why(desk: Desk, asked: ask.Why) -> Iterator[Line]:
    found = desk.series(asked.key)
    desk.saw("why", [asked.key])
    if desk.veil(asked.key) is None:
        yield {"told": plain(tell(desk.spool, found, desk.sight.sees))}
        return
    told = tell(desk.spool, found, of_lab(found.lab))  # others may call the subject by its name
    if told.study:
        told = replace(told, study={**told.study, "study": {**told.study["study"], "study_uid": "", "scanner": ""}})
    yield {"told": plain(told)}


# --- what concerns the asker ------------------------------------------------------------------------------------------


@answering(ask.Status)
def status(desk: Desk, asked: ask.Status) -> Iterator[Line]:  # noqa: ARG001  it has nothing to say
    desk.saw("status")
    sight, terms = desk.sight, desk.terms
    labs = sorted(terms.labs if sight.admin else sight.labs)
    mine = desk.targets()
    lacking = StudyRecords(desk.spool.studies, desk.spool.files).overview().lacking
    yield {
        "labs": labs,
        "admin": sight.admin,
        "running": desk.spool.is_sorting(),
        "unassigned": [plain(each) for each in unassigned(summaries(desk.spool, _leave_out))],
        "targets": [plain(each) for each in outages(desk.spool) if sight.admin or each.target in mine],
        "lacking": [each for one in lacking for each in _lacking(desk, one)],
    }


def _lacking(desk: Desk, record: StudyRecord) -> Iterator[Mapping[str, Any]]:
    """What a study lacks of what each of the asker's labs expected: of those that may see all of it, and each other."""
    veils = Veils(desk.spool.labs, desk.spool.files)
    labs = {each.lab for each in record.study.missing if desk.sight.sees(each.lab)}
    veiled = {lab for lab in labs if veils.of(lab) is not None}
    if labs - veiled:
        yield plain(part_of(record, lambda lab: desk.sight.sees(lab) and veils.of(lab) is None))
    for each in sorted(veiled):
        part = part_of(record, of_lab(each))
        yield plain(replace(part, study=replace(part.study, study_uid="", scanner="")))


def unassigned(found: Iterator[UnitSummary]) -> list[ask.Unassigned]:
    """Latest day first; of series that were asked whose they are, and are nobody's."""
    counts = Counter(
        tuple(text[:LONGEST_UNASSIGNED] for text in (unit.study_date, unit.scanner, unit.description))
        for unit in found
        if unit.lab is None and unit.state not in ("open", "withdrawn")
    )
    return [
        ask.Unassigned(date, scanner, protocol, count)
        for (date, scanner, protocol), count in sorted(counts.items(), reverse=True)[:MOST_UNASSIGNED]
    ]
