"""The words of sorter as plain, frozen values: what a plugin is given, what it answers, what is kept on disk.

Every class here can be written as JSON and read back unchanged (`plain`, `build`), so that a value can cross to another
process, or a reboot, and mean the same. Nothing here touches a file, the clock or the network.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

Value: TypeAlias = str | int | float | tuple[str | int | float, ...]
"""A header value: text, whole number, decimal number, or several of them (VM > 1)."""

Header: TypeAlias = Mapping[str, Value]
"""Header values by DICOM keyword (PS3.6); empty and absent elements are left out."""

T = TypeVar("T")

DICOM = "dicom"
"""The product that every unit has: its images as they came."""


# --- instances and units --------------------------------------------------------------------------------------------


class Standing(enum.StrEnum):
    """What one copy of a SOP Instance UID is to its unit."""

    CURRENT = "current"  # the one to deliver
    CONFLICT = "conflict"  # same SOP Instance UID, other pixels: delivered too, under a name of its own
    SUPERSEDED = "superseded"  # only its header differs, and another copy is current: kept, not delivered
    TRANSCODED = "transcoded"  # the same in another transfer syntax: kept, not delivered
    AGAIN = "again"  # the same data set once more, after the first copy had left: kept until that is verified again


@functools.lru_cache(maxsize=1024)
def _host(address: str) -> str:
    rest = address.rpartition("//")[2]
    if not rest.endswith("]") and (rest.startswith("[") or rest.count(":") == 1):
        rest = rest.rpartition(":")[0]
    return rest.strip("[]")


@dataclass(frozen=True, slots=True)
class Source:
    """Who brought an instance: an association's two AE titles and the peer's address, or a dropped file's owner."""

    calling: str = ""
    called: str = ""
    address: str = ""
    uid: int | None = None  # of the file's owner, for what was dropped into a folder
    drop: str = ""  # the name of the top folder or file below incoming/ that it came in
    association: str = ""

    @property
    def dropped(self) -> bool:
        return self.uid is not None

    @property
    def host(self) -> str:
        """Of an address such as "10.1.2.3", "10.1.2.3:4711" or "dicom://[::1]:4711": the host alone."""
        return _host(self.address)

    @property
    def sender(self) -> str:
        """Who sent it, as AE@host; "" for what was dropped, or where it is not known."""
        return f"{self.calling}@{self.host}" if self.calling and not self.dropped else ""


@dataclass(frozen=True, slots=True)
class Instance:
    """One SOP instance on disk. `file` is relative to the unit's images/ folder; digests are SHA-256 in hex.

    `dataset` is the digest of the data set after the file meta information (equal means the same image, whoever sent
    it, if the transfer syntaxes are), `pixels` that of the pixel value alone, "" where there is none.
    """

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    transfer_syntax: str
    file: str
    size: int
    sha256: str
    dataset: str
    pixels: str
    arrived: str  # local wall clock, ISO 8601; for people, never for decisions
    source: Source = Source()
    header: Header = field(default_factory=dict)
    standing: Standing = Standing.CURRENT

    @property
    def deliverable(self) -> bool:
        return self.standing in (Standing.CURRENT, Standing.CONFLICT)


class UnitKind(enum.StrEnum):
    SERIES = "series"
    STUDY = "study"
    SUBJECT = "subject"


def unit_key(kind: UnitKind, *parts: str) -> str:
    """The name of a unit on disk and in logs: 32 hex digits that say nothing about a patient."""
    text = "\0".join((kind.value, *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Verdict(enum.StrEnum):
    """What evidence says of a unit's wholeness. `at_least` compares in the order of trust."""

    INCOMPLETE = "incomplete"
    STOPPED = "stopped"
    QUIET = "quiet"
    COUNTED = "counted"
    LISTED = "listed"

    def at_least(self, least: Verdict) -> bool:
        order = list(Verdict)
        return order.index(self) >= order.index(least)


@dataclass(frozen=True, slots=True)
class Revision:
    """An immutable manifest: what a unit consisted of when it was published the n-th time."""

    key: str
    kind: UnitKind
    revision: int
    made: str
    verdict: Verdict
    reasons: tuple[str, ...]
    instances: tuple[Instance, ...]
    missing: tuple[str, ...] = ()
    members: Mapping[str, int] = field(default_factory=dict)  # of a study or subject: its series, by key, as they were

    @property
    def deliverable(self) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.instances if instance.deliverable)


# --- what plugins are given -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose it is. Any part may be None: the next plugin may know it."""

    lab: str | None = None
    subject: str | None = None
    session: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One plain fact about a unit's wholeness, with its source: kind, a sentence, and when it was seen."""

    kind: str
    says: str
    at: str = ""


@dataclass(frozen=True)
class Series:
    """What a plugin sees of a unit: frozen, serialisable, and never a path.

    An attribute of the first instance is read by its DICOM keyword: `series.SeriesDescription`, `series.EchoTime`
    (None when absent). `series.values("EchoTime")` gives the distinct values over all instances, in order.
    """

    key: str
    kind: UnitKind
    study_uid: str
    series_uids: tuple[str, ...]
    header: Header
    count: int  # instances to deliver
    sources: tuple[Source, ...] = ()
    identity: Identity = Identity()
    verdict: Verdict | None = None  # None until the first revision
    revision: int = 0
    evidence: tuple[Evidence, ...] = ()
    added: tuple[str, ...] = ()  # SOP Instance UIDs that the revision before this one did not have
    distinct: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    ask: Callable[[str], tuple[Value, ...]] | None = field(default=None, compare=False, repr=False)

    @property
    def lab(self) -> str | None:
        return self.identity.lab

    @property
    def subject(self) -> str | None:
        return self.identity.subject

    @property
    def session(self) -> str | None:
        return self.identity.session

    @property
    def start(self) -> str:
        """When acquisition began, YYYYMMDDHHMMSS as far as the header says (series date and time, else the study's)."""
        date = self.get("SeriesDate") or self.get("StudyDate") or ""
        time = (self.get("SeriesTime") if self.get("SeriesDate") else self.get("StudyTime")) or ""
        return f"{date}{str(time).split('.')[0]}"

    def get(self, keyword: str, default: Value | None = None) -> Value | None:
        """The value of one attribute of the first instance, or `default` when it is absent or empty."""
        value = self.header.get(keyword)
        return default if value is None or value == "" else value

    def values(self, keyword: str) -> tuple[Value, ...]:
        """The distinct values of one attribute over all instances, in the order they came."""
        if keyword in self.distinct:
            return self.distinct[keyword]
        if self.ask is not None:
            return self.ask(keyword)
        value = self.get(keyword)
        return () if value is None else (value,)

    def __getattr__(self, keyword: str) -> Value | None:
        if not keyword[:1].isupper():  # DICOM keywords start with a capital; anything else is a slip
            raise AttributeError(f"a series has no {keyword!r}; attributes are DICOM keywords, as SeriesDescription")
        return self.get(keyword)


# --- what plugins answer --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expectation:
    """How many instances a unit should have (or which), how sure that is (0 to 1), and the sentence that says why.

    `rule` names what said so, where a plugin has several rules: each earns trust for itself.
    """

    count: int | None = None
    instances: tuple[str, ...] = ()
    confidence: float = 0.5
    why: str = ""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Add:
    """Deliver to these targets too."""

    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Only:
    """Deliver to these targets and no others."""

    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """Deliver nowhere; the images stay in the store."""

    why: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Deliver nothing until the answer changes or a person decides."""

    why: str


Route: TypeAlias = Add | Only | Skip | Hold


@dataclass(frozen=True, slots=True)
class Name:
    """Patterns of the closed formatter: `folder` below the target's root, `file` evaluated for each instance."""

    folder: str
    file: str


MERGES = ("once", "rows", "lines")
"""What may be done with a file that the parts of a dataset have in common."""


@dataclass(frozen=True, slots=True)
class Product:
    """Something made of a unit. `make` is "module:function" and takes a `Job`; it runs in a child process.

    `needs` are the products that it is made of, `of` the kind of unit. `when` is a mapping of DICOM keyword to globs
    that all must match: of a study or subject those series are taken that it fits. Where it is delivered, what it
    `replaces` is not. `timeout` is in seconds, `memory` in MiB, `cpus` whole processors.

    `merge` makes it a part of one dataset, made only where it is listed, whose files have the names of a standard: they
    are never renamed. It says of each file that the parts have in common, by its name, what is done where it is there
    already: "once" nothing, "rows" rows of a TSV whose first column is new are added, "lines" lines that are new.
    """

    name: str
    make: str
    needs: tuple[str, ...] = (DICOM,)
    of: UnitKind = UnitKind.SERIES
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    replaces: str | None = None
    min_verdict: Verdict = Verdict.INCOMPLETE
    timeout: int = 600
    memory: int = 2048
    cpus: int = 1
    merge: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """What a product's `make` is given: folders relative to the working directory, and the plugin's own settings.

    `inputs` maps each needed product to a folder of copies that may be read freely, with a folder in it for each series
    where the product is of a study or subject; whatever stands in `scratch` when `make` returns is the product. Raise
    to fail; return "nothing" when there is nothing to make here. `identity` says whose it is.
    """

    product: str
    inputs: Mapping[str, str]
    scratch: str
    settings: Mapping[str, Any]
    header: Header
    cpus: int = 1
    identity: Identity = Identity()


@dataclass(frozen=True, slots=True)
class TargetKind:
    """A kind of place to deliver to. `code` is "module:Class", loaded only inside that target's worker."""

    name: str
    code: str


@dataclass(frozen=True, slots=True)
class StudySeries:
    """One series in the table of a study; `verdict` and `revision` are of its last delivery."""

    key: str
    number: str
    description: str
    images: int
    verdict: str
    revision: int
    lab: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """What a lab expects of its studies and this one has not: `series` as it is configured, `says` as a sentence."""

    lab: str
    series: str
    times: int
    came: int
    says: str


@dataclass(frozen=True, slots=True)
class Study:
    """The table of a study that has settled. `revision` counts how often it did: once, and again when it grew.

    It names the subject: it is for the lab's own people, and for no log. Where it has series of several labs, `lab` and
    `subject` are as the first of them has it.
    """

    key: str
    study_uid: str
    revision: int = 0
    lab: str | None = None
    subject: str | None = None
    date: str = ""  # StudyDate, YYYYMMDD
    time: str = ""  # StudyTime
    scanner: str = ""
    series: tuple[StudySeries, ...] = ()
    missing: tuple[Missing, ...] = ()

    @property
    def images(self) -> int:
        return sum(each.images for each in self.series)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for plugins that tell people: kind, unit key, and details without patient data.

    Only `study`, the table that comes with `study_settled`, names a subject.
    """

    kind: str
    key: str = ""
    at: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    study: Study | None = None


# --- plans and receipts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delivery:
    """One product of a unit, to one target. `names` maps instance files to names, for the dicom product.

    For a made product the names depend on what is made: `stem` is what "out" in the maker's file names becomes.
    """

    product: str
    target: str
    folder: str
    names: Mapping[str, str] = field(default_factory=dict)
    stem: str = ""
    pattern: Name = Name("", "")
    since: int = 0  # the revision that it was first planned for; what was delivered before that lies elsewhere


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a revision goes: frozen when first published; the plan of a later revision keeps all it says."""

    key: str
    revision: int
    made: str
    identity: Identity
    deliveries: tuple[Delivery, ...]
    why: str = ""  # why there are none, where there are none
    targets: tuple[str, ...] = ()  # where it goes, also where nothing is made of it alone

    @property
    def all_targets(self) -> tuple[str, ...]:
        return self.targets or tuple(dict.fromkeys(each.target for each in self.deliveries))


@dataclass(frozen=True, slots=True)
class Delivered:
    """One file at a target, as a receipt remembers it.

    `state` is "written", "committed" (written, and the node has said that it keeps it: PS3.4 annex J), "kept" (the
    lab's own edit stays; ours lies beside under `beside`) or "removed" (by the lab).
    """

    name: str
    sha256: str
    size: int
    file: str  # the instance file or product file it came from
    state: str = "written"
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a delivery: every file was read back from the target and its digest compared."""

    key: str
    product: str
    target: str
    revision: int
    folder: str
    files: tuple[Delivered, ...]
    verified: str  # day and time of the last comparison
    note: str = ""
    moved: str = ""  # once a correction replaced it: what is to be said where something of it has to stay
    day: int = 0  # of the count of days (`sorter.spool.days`) on which it was delivered


# --- to JSON and back -----------------------------------------------------------------------------------------------


_PLAIN = frozenset({str, int, float, bool, type(None)})


def plain(value: Any) -> Any:
    """JSON of a value made of the classes above: a dataclass becomes an object without what equals its default."""
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        if isinstance(value, Add | Only | Skip | Hold):
            out["route"] = type(value).__name__.lower()
        for each in _said(type(value)):
            item = getattr(value, each.name)
            if not _is_default(each, item):
                out[each.name] = plain(item)
        return out
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


@functools.cache
def _said(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(each for each in dataclasses.fields(kind) if each.name != "ask")


def _is_default(each: dataclasses.Field[Any], item: Any) -> bool:
    if each.default is not dataclasses.MISSING:
        return bool(item == each.default)
    if each.default_factory is not dataclasses.MISSING:
        return bool(item == each.default_factory())
    return False


def build(kind: type[T], data: Any) -> T:
    """The value of type `kind` that `plain` wrote as `data`. ValueError says where the data do not fit."""
    return typing.cast(T, _build(kind, data, kind.__name__ if isinstance(kind, type) else str(kind)))


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind) if each.name != "ask"}


_ROUTES: dict[str, type] = {"add": Add, "only": Only, "skip": Skip, "hold": Hold}


def _build(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_union(arguments, data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise ValueError(f"{where}: expected a list")
        return tuple(_build(arguments[0], item, where) for item in data)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ValueError(f"{where}: expected an object")
        return {str(name): _build(arguments[1], item, f"{where}.{name}") for name, item in data.items()}
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), data, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is Any or (isinstance(kind, type) and type(data) is kind):
        return data
    raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {type(data).__name__}")


def _build_union(choices: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in choices:
        return None
    if isinstance(data, Mapping) and data.get("route") in _ROUTES:
        rest = {name: item for name, item in data.items() if name != "route"}
        return _build_dataclass(_ROUTES[data["route"]], rest, where)
    for choice in choices:
        if choice is type(None):
            continue
        known = isinstance(choice, type) and (dataclasses.is_dataclass(choice) or issubclass(choice, enum.Enum))
        exact = not isinstance(choice, type) or type(data) is choice or known
        with_list = typing.get_origin(choice) is tuple and isinstance(data, list | tuple)
        if (exact and typing.get_origin(choice) is None) or with_list:
            return _build(choice, data, where)
    raise ValueError(f"{where}: {type(data).__name__} is not allowed here")


def _build_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object")
    known = _fields(kind)
    given = {name: _build(known[name], item, f"{where}.{name}") for name, item in data.items() if name in known}
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
