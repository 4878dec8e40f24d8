"""One unit's folder: its images, what was seen of them, and what was decided about them.

images/<hex>/…       the images, 4,096 a folder, named by a hash of their SOP Instance UID
evidence.jsonl       truth: every instance taken, associations ended, drops known to be whole, senders' lists, which of
                     them were asked and how they answered, verdicts that later evidence changed, what the unit taught
                     of its sender, what people decided (held, withdrawn, to be mended, whose it is and what its
                     subject is called), which images left the store, and which are back; of a study or subject:
                     which series came to it, or changed, and how much of that its last revision has seen
rev-0001.json …      truth: immutable manifests           plan-0001.json …   truth: lab, targets, names of each
receipts/…           truth: proof of each delivery; retiring/ and retired/ hold those that a correction replaced
exports.jsonl        truth: what people copied out of it, and whereto
tombstones.jsonl     truth: of each image that left after its delivery: where its copy lies, when that was verified last
story.jsonl          its own journal, for `sorter why`
series.json          cache: a summary for `status` and `list`
products/<name>-<rev>/   cache: made, perhaps not yet delivered
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sorter.durable import Files
from sorter.model import Header, Instance, Plan, Receipt, Revision, Source, Standing, UnitKind, Verdict, build, plain
from sorter.spool.bundles import Bundle
from sorter.spool.decisions import Decision
from sorter.spool.layout import Spool, line, now
from sorter.trust import Like, Outcome

IMAGES_PER_FOLDER = 4096
TOMBSTONES = "tombstones.jsonl"
_Record = TypeVar("_Record", Revision, Plan, Receipt)

RETIRING, RETIRED, EXPORTED = "retiring", "retired", "exported"  # below receipts/

DELIVERED = "delivered"
"""Because of what an image left the store, where nobody withdrew it."""


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """What `status` says of one product at one target: "owed", "making", "delivered", "failed" or "nothing"."""

    product: str
    target: str
    state: str
    why: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class CountSaid:
    """What something said that there should be, beside what came."""

    like: Like
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Asked:
    """A sender was asked which images it has. `images` were here then; `why` it gave no list, "" where it did."""

    images: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """What was made of one revision: (file name, SHA-256, size) of each file, or why there was nothing to make.

    `merge` is that of the plugin's product: how files are joined with those of other units.
    """

    files: tuple[tuple[str, str, int], ...] = ()
    nothing: str = ""
    merge: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnitSummary:
    """The cache `series.json`: what `status` and `list` show, without reading a manifest or an image."""

    key: str
    kind: UnitKind
    study_uid: str
    series_uids: tuple[str, ...]
    state: str  # "open", "owed", "delivered", "held", "kept"
    why: str = ""
    lab: str | None = None
    subject: str | None = None
    session: str | None = None
    study_date: str = ""
    study_time: str = ""
    arrived: str = ""  # the day on which its first image came, as YYYYMMDD
    number: str = ""
    description: str = ""
    modality: str = ""
    scanner: str = ""  # its serial number, else the station's name
    senders: tuple[str, ...] = ()
    images: int = 0
    verdict: str = ""
    revision: int = 0
    deliveries: tuple[DeliveryState, ...] = ()
    evidence: int = 0  # bytes of evidence.jsonl that this summary has seen; more there means: it is out of date
    expected: int = 0  # images that there should be, 0 where nothing says it
    missing: int = 0  # images that its sender's lists name and that are not here
    asking: bool = False  # its sender is still to be asked what it has
    watched: bool = False  # its sender's lists have not stood the longest wait
    taught: Mapping[str, Any] = field(default_factory=dict)  # what it taught of its sender
    counts: tuple[CountSaid, ...] = ()
    stored: Mapping[str, int] = field(default_factory=dict)  # images in the store, by standing
    size: int = 0  # bytes of all of them
    leaving: int = 0  # bytes of those that retention may let go one day
    left: int = 0  # images that left the store after their delivery
    day: int = 0  # of the count of days, of the last receipt of its images

    @property
    def came(self) -> str:
        """The day on which it came, as YYYYMMDD; that of its study where an older sorter did not write it down."""
        return self.arrived or self.study_date

    @property
    def is_of_before(self) -> bool:
        """Was it written by a sorter that did not say what is in the store?"""
        return self.state != "withdrawn" and bool(self.images) and not self.stored and not self.left


@dataclass(slots=True)
class Unit:
    """A unit in memory. `base` is the header of its first instance; the others' headers hold what differs from it."""

    spool: Spool
    key: str
    folder: Path = field(init=False)
    images: Path = field(init=False)
    study_uid: str = ""
    group: str | None = None
    base: Header = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)  # by file
    by_sop: dict[str, list[str]] = field(default_factory=dict)  # SOP Instance UID -> files
    associations: dict[str, str] = field(default_factory=dict)  # of arrivals: "" while open, else how it ended
    whole_drops: set[str] = field(default_factory=set)
    lists: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # (kind, sender) -> SOP Instance UIDs
    asked: dict[str, Asked] = field(default_factory=dict)  # by sender: how it last answered what it has
    raised: dict[int, tuple[Verdict, tuple[str, ...]]] = field(default_factory=dict)  # by revision
    taught: Mapping[str, Any] = field(default_factory=dict)
    held: str = ""  # why a person holds it: nothing is delivered, nothing removed
    withdrawn: str = ""  # why a person withdrew it: nothing is kept
    mending: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)  # (product, target) -> names there
    decided: Decision | None = None  # what people said of it, in place of its header and the rules
    last_decision: str = ""  # the id of the last one
    outdated: int = 0  # plans up to this revision are asked for again: somebody decided since
    left: dict[str, str] = field(default_factory=dict)  # files that are not in the store any more -> because
    tombstones: dict[str, bytes] | None = None  # by file, once read
    bundle: Bundle | None = None  # it is a whole study or subject, and holds no images itself
    joined: dict[str, str] = field(default_factory=dict)  # of such a one: its series by key, and their studies
    changes: int = 0  # of such a one: how often something of its series changed
    gathered: int = 0  # how much of that its last revision has seen
    unmentioned: list[str] = field(default_factory=list)  # image files that evidence does not know: a crash in between

    def __post_init__(self) -> None:
        self.folder = self.spool.unit_folder(self.key)
        self.images = self.folder / "images"

    @property
    def at_rest(self) -> bool:
        """Has nothing come since it taught something of its sender, after the longest wait?"""
        return self.taught.get("images") == len(self.by_sop)

    @property
    def evidence(self) -> Path:
        return self.folder / "evidence.jsonl"

    @property
    def kind(self) -> UnitKind:
        return self.bundle.kind if self.bundle else UnitKind.SERIES

    @property
    def parts(self) -> list[str]:
        """Of a subject: the keys of its studies."""
        if self.bundle is None or self.bundle.kind is not UnitKind.SUBJECT:
            return []
        return [Bundle(UnitKind.STUDY, self.bundle.lab, uid).key for uid in dict.fromkeys(self.joined.values())]

    @property
    def series_uids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.series_uid for each in self.instances.values()))

    @property
    def deliverable(self) -> list[Instance]:
        return [each for each in self.instances.values() if each.deliverable]

    @property
    def missing(self) -> frozenset[str]:
        """SOP Instance UIDs that a sender's list names, and that are not here."""
        return frozenset().union(*self.lists.values()) - self.by_sop.keys()

    @property
    def face(self) -> Header:
        """The header of the first image that is current: after a correction not of the first that came."""
        first = next((each for each in self.instances.values() if each.standing is Standing.CURRENT), None)
        return self.base if first is None else self.header(first)

    def header(self, instance: Instance) -> Header:
        """All header values of one instance; absent ones left out."""
        return {name: value for name, value in {**self.base, **instance.header}.items() if value != ""}

    # --- reading ------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, spool: Spool, key: str) -> Unit:
        """What the records say of a unit; an empty unit where there are none."""
        unit = cls(spool, key)
        if spool.files.exists(unit.folder):
            for entry in unit._lines("evidence.jsonl"):
                unit._apply(entry)
            for file in unit._image_files():
                if file not in unit.instances:
                    unit.unmentioned.append(file)
                unit.left.pop(file, None)  # a crash came before its name was gone: it is here
        return unit

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The whole lines of a record; a half line that a power cut left says nothing."""
        try:
            data = self.spool.files.read_file(self.folder / name)
        except FileNotFoundError:
            return
        for raw in data.split(b"\n"):
            if raw.strip():
                try:
                    yield json.loads(raw.decode())  # of bytes it would guess the encoding, line by line
                except ValueError:
                    continue

    def _image_files(self) -> Iterator[str]:
        if not self.spool.files.exists(self.images):
            return
        for shard in self.spool.files.names(self.images):
            yield from (f"{shard}/{name}" for name in self.spool.files.names(self.images / shard))

    def _apply(self, entry: Mapping[str, Any]) -> None:
        if "took" in entry:
            self.admit(instance_from(entry["took"]))
        elif "unit" in entry:
            self.study_uid, self.group = entry["study"], entry.get("group")
        elif "stands" in entry:
            self.restand(entry["stands"], Standing(entry["as"]))
        elif "association" in entry:
            self.associations[entry["association"]] = entry["ended"]
        elif "whole" in entry:
            self.whole_drops.add(entry["whole"])
        elif "list" in entry:
            self.lists.setdefault((entry["list"], entry["of"]), set()).update(entry["names"])
        elif "asked" in entry:
            self.asked[entry["asked"]] = Asked(entry["images"], entry["why"])
        elif "raised" in entry:
            self.raised[entry["of"]] = (Verdict(entry["raised"]), tuple(entry["reasons"]))
        elif "taught" in entry:
            self.taught = entry["taught"]
        elif "held" in entry:
            self.held = entry["held"]
        elif "withdrawn" in entry:
            self.withdrawn = entry["withdrawn"]
        elif "mend" in entry:
            product, target, names = entry["mend"]
            self.mending[product, target] = tuple(names)
            if not names:
                del self.mending[product, target]
        elif "decided" in entry:
            self.outdated = max(self.outdated, entry["outdated"])
            self._decide(build(Decision, entry["decided"]))
        elif "instead" in entry:
            self._take_place(entry["instead"])
        elif "bundle" in entry:
            self.bundle = build(Bundle, entry["bundle"])
        elif "joins" in entry:
            self._join(entry["joins"], entry["study"])
        elif "gathered" in entry:
            self.gathered, self.base = entry["gathered"], entry["common"]
        elif "left" in entry:
            self.left.update(dict.fromkeys(entry["left"], entry["because"]))
        elif "back" in entry:
            for file in entry["back"]:
                self.left.pop(file, None)

    def digest_of(self, file: str) -> str | None:
        """SHA-256, in hex, of an image as it lies on the disk now; None where it is not there. OSError: unreadable."""
        return digest_at(self.spool.files, self.images / file)

    def evidence_size(self) -> int:
        return self._size("evidence.jsonl")

    def exports_size(self) -> int:
        return self._size("exports.jsonl")

    def _size(self, name: str) -> int:
        """In bytes; 0 where there is no such record yet."""
        try:
            return self.spool.files.stat(self.folder / name).st_size
        except FileNotFoundError:
            return 0

    def revisions(self) -> list[int]:
        """The numbers of the manifests there are, ascending."""
        return self._numbers("rev-")

    def plans(self) -> list[int]:
        return self._numbers("plan-")

    def _numbers(self, prefix: str) -> list[int]:
        try:
            names = self.spool.files.names(self.folder)
        except FileNotFoundError:
            return []
        found = [name.removeprefix(prefix).removesuffix(".json") for name in names if name.startswith(prefix)]
        return sorted(int(each) for each in found if each.isdigit())

    def revision(self, number: int) -> Revision:
        return self._record(Revision, f"rev-{number:04d}.json")

    def latest_revision(self) -> Revision | None:
        """The last manifest, with the verdict that later evidence gave it."""
        numbers = self.revisions()
        if not numbers:
            return None
        found = self.revision(numbers[-1])
        verdict, reasons = self.raised.get(found.revision, (found.verdict, found.reasons))
        return dataclasses.replace(found, verdict=verdict, reasons=reasons)

    def latest_plan(self) -> Plan | None:
        numbers = self.plans()
        return self._record(Plan, f"plan-{numbers[-1]:04d}.json") if numbers else None

    def plans_between(self, first: int, end: int) -> Iterator[Plan]:
        """Those of the revisions from `first` on, before `end`, in order."""
        for number in self.plans():
            if first <= number < end and (plan := self._record(Plan, f"plan-{number:04d}.json")) is not None:
                yield plan

    def receipts(self) -> dict[tuple[str, str], Receipt]:
        """The last receipt of each (product, target)."""
        folder = self.folder / "receipts"
        if not self.spool.files.exists(folder):
            return {}
        found = [
            self._record(Receipt, f"receipts/{name}")
            for name in self.spool.files.names(folder)
            if name.endswith(".json")
        ]
        return {(each.product, each.target): each for each in found}

    def retiring(self) -> list[Receipt]:
        """Receipts of deliveries that a correction has replaced, and that may still be where they were."""
        return self._receipts_in(RETIRING)

    def were_retired(self) -> list[Receipt]:
        """Receipts of deliveries that were removed, as far as they could be."""
        return self._receipts_in(RETIRED)

    def exported(self) -> list[Receipt]:
        """Receipts of copies that people had made at targets: see `sorter.spool.exports`."""
        return self._receipts_in(EXPORTED)

    def _receipts_in(self, below: str) -> list[Receipt]:
        folder = self.folder / "receipts" / below
        if not self.spool.files.exists(folder):
            return []
        return [self._record(Receipt, f"receipts/{below}/{name}")
                for name in self.spool.files.names(folder) if name.endswith(".json")]  # fmt: skip

    def product_folder(self, product: str, revision: int) -> Path:
        """Where its files are; the record lies beside it."""
        return self.folder / "products" / f"{product}-{revision}"

    def product(self, product: str, revision: int) -> Product | None:
        """What was made of a revision; None where that was not done (yet)."""
        try:
            return product_from(self._read(f"products/{product}-{revision}.json"))
        except (FileNotFoundError, ValueError):
            return None

    def exports(self) -> list[dict[str, Any]]:
        """What was copied out of it by `rename`: {at, by, dest, files: [[path below dest, SHA-256] …]}."""
        return list(self._lines("exports.jsonl"))

    def note_export(self, dest: str, by: int, files: Sequence[tuple[str, str]]) -> None:
        """The account `by` writes copies below `dest`. Durable: so that a withdrawal knows of it."""
        entry = {"at": now(), "by": by, "dest": dest, "files": [list(each) for each in files]}
        self.spool.files.append(self.folder / "exports.jsonl", line(entry))

    def story(self) -> list[dict[str, Any]]:
        """What happened, oldest first: {at, says, …}."""
        return list(self._lines("story.jsonl"))

    def summary(self) -> UnitSummary | None:
        """The cached summary, None where there is none or it is not whole."""
        try:
            return build(UnitSummary, self._read("series.json"))
        except (FileNotFoundError, ValueError):
            return None

    def _record(self, what: type[_Record], name: str) -> _Record:
        """A record that cannot be done without: one that the disk has damaged is an error of the disk."""
        try:
            return build(what, self._read(name))
        except ValueError:
            says = f"{name} is damaged; put it back from a backup"
            raise OSError(errno.EIO, says, str(self.folder / name)) from None

    def _read(self, name: str) -> Any:
        return json.loads(self.spool.files.read_file(self.folder / name))

    # --- in memory ----------------------------------------------------------------------------------------------

    def admit(self, instance: Instance) -> None:
        """Count an instance as one of this unit; its header becomes what differs from the first one's."""
        if not self.instances:
            self.study_uid, self.base = instance.study_uid, dict(instance.header)
            instance = dataclasses.replace(instance, header={})
        if instance.file not in self.instances:
            self.by_sop.setdefault(instance.sop_uid, []).append(instance.file)
        self.instances[instance.file] = instance
        self.left.pop(instance.file, None)
        self.whole_drops.discard(instance.source.drop)
        if instance.source.association:
            self.associations.setdefault(instance.source.association, "")

    def restore(self, revision: Revision) -> bool:
        """Enter anew what a manifest names and the evidence does not know any more: a disk that failed lost its line.
        Was there any?

        Its bytes may be lost with it; `verify` says so. It is an instance all the same: whoever planned, delivered or
        removes something by the manifest must find it here.
        """
        lost = [each for each in revision.instances if each.file not in self.instances]
        for instance in lost:
            self.instances[instance.file] = instance
            self.by_sop.setdefault(instance.sop_uid, []).append(instance.file)
        if lost:
            self.study_uid = self.study_uid or lost[0].study_uid
            self.add_evidence([took(each) for each in lost])
            self.tell(f"{len(lost)} images of revision {revision.revision} were not in the evidence any more, and are "
                      "entered again from its manifest: run `sorter verify`, which says if they are lost")  # fmt: skip
        return bool(lost)

    def restand(self, file: str, standing: Standing) -> None:
        if file in self.instances:
            self.instances[file] = dataclasses.replace(self.instances[file], standing=standing)

    def difference(self, header: Header) -> Header:
        """What of `header` differs from the first instance's; "" for what only the first one has."""
        if not self.instances:
            return header
        changed = {name: value for name, value in header.items() if self.base.get(name) != value}
        return {**changed, **{name: "" for name in self.base if name not in header}}

    def place(self, sop_uid: str, dataset: str) -> str:
        """A free file name below images/ for a copy of this SOP instance; two different copies never share one."""
        shard = f"{len(self.instances) // IMAGES_PER_FOLDER:02x}"
        name = sop_hash(sop_uid)
        return f"{shard}/{name}-{dataset[:32]}.dcm" if sop_uid in self.by_sop else f"{shard}/{name}.dcm"

    def _join(self, key: str, study_uid: str) -> None:
        self.joined[key] = study_uid
        self.changes += 1
        if self.kind is UnitKind.STUDY:
            self.study_uid = study_uid

    def _decide(self, decision: Decision) -> None:
        self.last_decision, self.decided = decision.id, decision.after(self.decided)

    def place_of_another(self, sop_uid: str, sha256: str) -> str:
        """The same for one whose data set has a place, or had one, under another file meta."""
        return f"{len(self.instances) // IMAGES_PER_FOLDER:02x}/{sop_hash(sop_uid)}-{sha256[:32]}.dcm"

    # --- writing ------------------------------------------------------------------------------------------------

    def add_evidence(self, entries: Sequence[Mapping[str, Any]], *, durable: bool = True) -> None:
        """Append facts in one write; the folder must exist. Not `durable`: the caller syncs file and folder."""
        self.spool.files.append(self.evidence, b"".join(line(entry) for entry in entries), durable=durable)

    def end_association(self, association: str, how: str) -> None:
        """Whoever wants it to be durable syncs the evidence, which is there."""
        self.associations[association] = how
        self.add_evidence([{"association": association, "ended": how, "at": now()}], durable=False)

    def drop_is_whole(self, drop: str) -> None:
        self.whole_drops.add(drop)
        self.add_evidence([{"whole": drop, "at": now()}])

    def add_list(self, kind: str, sender: str, names: Iterable[str]) -> None:
        """A sender says that these SOP instances are of this unit; `kind` is "commitment" or "query"."""
        named = self.lists.setdefault((kind, sender), set())
        new = sorted(set(names) - named)
        if new:
            named.update(new)
            self.add_evidence([{"list": kind, "of": sender, "names": new, "at": now()}])

    def note_asked(self, sender: str, asked: Asked) -> None:
        """How a sender answered the question what it has of this unit."""
        self.asked[sender] = asked
        self.add_evidence([{"asked": sender, "images": asked.images, "why": asked.why, "at": now()}])

    def raise_verdict(self, revision: int, verdict: Verdict, reasons: Sequence[str]) -> None:
        """What is known by now of a revision, whose manifest stays as it is."""
        self.raised[revision] = (verdict, tuple(reasons))
        self.add_evidence([{"raised": verdict.value, "of": revision, "reasons": list(reasons), "at": now()}])

    def teach(self, outcome: Mapping[str, Any]) -> None:
        """Keep what this unit taught of its sender."""
        self.taught = outcome
        self.add_evidence([{"taught": outcome}])

    def hold(self, why: str) -> None:
        """A person holds it, or with "" releases it."""
        self.held = why
        self.add_evidence([{"held": why, "at": now()}])

    def mend(self, where: tuple[str, str], names: Sequence[str]) -> None:
        """A person wants these files of a (product, target) as they were delivered; none: that is done."""
        self.mending[where] = tuple(names)
        if not names:
            del self.mending[where]
        self.add_evidence([{"mend": [*where, list(names)]}])

    def decide(self, decision: Decision, outdated: int) -> None:
        """A person says whose it is, or that the rules are to be asked again: plans up to `outdated` hold no more."""
        self.add_evidence([{"decided": plain(decision), "outdated": outdated}])
        self.outdated = max(self.outdated, outdated)
        self._decide(decision)

    def found(self, bundle: Bundle) -> None:
        """From now on it is a whole study or subject."""
        self.spool.files.make_folders(self.folder)
        self.bundle = bundle
        self.add_evidence([{"bundle": plain(bundle)}])

    def join(self, key: str, study_uid: str) -> None:
        """A series is of it, or was, and something of that changes now."""
        self.add_evidence([{"joins": key, "study": study_uid}])
        self._join(key, study_uid)

    def gather(self, common: Header) -> None:
        """Its last revision has seen all changes; `common` is what the headers of its series have in common."""
        self.add_evidence([{"gathered": self.changes, "common": plain(common)}])
        self.gathered, self.base = self.changes, dict(common)

    def withdraw(self, why: str) -> None:
        """A person withdrew it; there is no way back."""
        self.withdrawn = why
        self.add_evidence([{"withdrawn": why, "at": now()}])

    def bury(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Durable: what is to be known of images that are about to leave; each entry names its `file`."""
        self.spool.files.append(self.folder / TOMBSTONES, b"".join(line(each) for each in entries))
        self.tombstones = None

    def tombstone(self, file: str) -> Mapping[str, Any] | None:
        """What is known of an image that left after its delivery; the last time, if it left more than once."""
        if self.tombstones is None:
            self.tombstones = {each["file"]: line(each) for each in self._lines(TOMBSTONES)}  # small in memory
        found = self.tombstones.get(file)
        return json.loads(found) if found is not None else None

    def buried(self) -> list[str]:
        """The files that left after their delivery, now or once."""
        self.tombstone("")
        return list(self.tombstones or ())

    def come_back(self, files: Sequence[str]) -> None:
        """These lie in the store again; the caller has synced their names."""
        for file in files:
            self.left.pop(file, None)
        self.add_evidence([{"back": list(files)}])

    def take_place(self, instead: Mapping[str, str]) -> None:
        """By file, of which other it takes the place. One line: no crash comes between a file and the other."""
        self.add_evidence([{"instead": instead}])
        self._take_place(instead)

    def _take_place(self, instead: Mapping[str, str]) -> None:
        for file, other in instead.items():
            self.restand(other, Standing.SUPERSEDED)
            self.restand(file, Standing.CURRENT)

    def write_revision(self, revision: Revision) -> None:
        self._write(f"rev-{revision.revision:04d}.json", revision)

    def write_plan(self, plan: Plan) -> None:
        self._write(f"plan-{plan.revision:04d}.json", plan)

    def write_receipt(self, receipt: Receipt) -> None:
        self.spool.files.make_folders(self.folder / "receipts")
        self._write(f"receipts/{receipt.product}.{receipt.target}.json", receipt)

    def retire(self, receipt: Receipt) -> None:
        """What this receipt says of has a successor, or will have: it is to be removed when that is delivered."""
        self.spool.files.make_folders(self.folder / "receipts" / RETIRING)
        self._write(f"receipts/{RETIRING}/{_named(receipt)}", receipt)

    def withdraw_receipt(self, receipt: Receipt) -> None:
        """Nothing of this product is to be at this target any more; its receipt is among the retiring ones."""
        self.spool.files.unlink(self.folder / f"receipts/{receipt.product}.{receipt.target}.json")
        self.spool.files.fsync_folder(self.folder / "receipts")

    def write_exported(self, receipt: Receipt) -> None:
        """A person's copies are at a target, or may be."""
        self.spool.files.make_folders(self.folder / "receipts" / EXPORTED)
        self._write(f"receipts/{EXPORTED}/{receipt.product}.{receipt.target}.json", receipt)

    def withdraw_exported(self, receipt: Receipt) -> None:
        """They are to be there no more; their receipt is among the retiring ones."""
        folder = self.folder / "receipts" / EXPORTED
        self.spool.files.unlink(folder / f"{receipt.product}.{receipt.target}.json")
        self.spool.files.fsync_folder(folder)

    def retired(self, receipt: Receipt) -> None:
        """It is gone there, as far as it was as we left it. The receipt is kept."""
        receipts = self.folder / "receipts"
        self.spool.files.make_folders(receipts / RETIRED)
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # a crash came before the last line of this
            self.spool.files.link(receipts / RETIRING / _named(receipt), receipts / RETIRED / _named(receipt))
        self.spool.files.fsync_folder(receipts / RETIRED)
        with contextlib.suppress(FileNotFoundError):
            self.spool.files.unlink(receipts / RETIRING / _named(receipt))

    def was_retired(self, receipt: Receipt) -> bool:
        """Was what this receipt says removed already?"""
        return self.spool.files.exists(self.folder / "receipts" / RETIRED / _named(receipt))

    def write_summary(self, summary: UnitSummary) -> None:
        self._write("series.json", summary, durable=False)

    def tell(self, says: str, **details: Any) -> None:
        """One more sentence of this unit's story."""
        self.spool.files.append(
            self.folder / "story.jsonl", line({"at": now(), "says": says, **details}), durable=False
        )

    def _write(self, name: str, value: Any, *, durable: bool = True) -> None:
        self.spool.files.write_file(self.folder / name, line(plain(value)), durable=durable)


def content(instances: Iterable[Instance]) -> frozenset[tuple[str, str]]:
    """What makes one revision differ from another: the copies that are delivered."""
    return frozenset((each.file, each.standing) for each in instances if each.deliverable)


def image_of(copy: Instance) -> tuple[str, str, str]:
    """Equal for copies that differ in nothing but who sent them: the same bytes are others in another syntax."""
    return copy.sop_uid, copy.transfer_syntax, copy.dataset


def digest_at(files: Files, path: Path) -> str | None:
    """SHA-256, in hex, of a file as it lies on the disk now; None where there is none. OSError: unreadable."""
    digest = hashlib.sha256()
    try:
        with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
            files.drop_cache(fd)
            for piece in files.chunks(fd):
                digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def sop_hash(sop_uid: str) -> str:
    """What the file of a SOP instance is called: 32 hex digits, whatever was sent as its UID."""
    return hashlib.sha256(sop_uid.encode()).hexdigest()[:32]


def _named(receipt: Receipt) -> str:
    return f"{receipt.product}.{receipt.target}.{receipt.revision:04d}.json"


def took(instance: Instance) -> dict[str, Any]:
    """The evidence line of an instance that was taken."""
    return {"took": plain(instance)}


def product_from(data: Mapping[str, Any]) -> Product:
    """What was written of a product."""
    files = tuple((name, sha256, size) for name, sha256, size in data["files"])
    return Product(files, data["nothing"], data.get("merge", {}))


def instance_from(data: dict[str, Any]) -> Instance:
    """What `plain` made of an instance. By hand, because it runs once for each image of every open unit at the start;
    the lines are sorter's own."""
    data["source"] = _source(*data.get("source", {}).items())
    for name, value in data.get("header", {}).items():
        if isinstance(value, list):
            data["header"][name] = tuple(value)
    if "standing" in data:
        data["standing"] = Standing(data["standing"])
    return Instance(**data)


@functools.lru_cache(maxsize=1000)
def _source(*fields: tuple[str, Any]) -> Source:
    """One for all images that came the same way."""
    return Source(**dict(fields))
