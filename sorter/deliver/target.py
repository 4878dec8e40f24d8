"""What a target is: the contract between sorter and a place that images are delivered to.

A target kind names a class (`TargetKind.code`, "module:Class") that is loaded only inside the worker process of one
target, as `Class(settings, files)`: its own table of the configuration, and the object through which it touches files.
The class has the four methods of `Target`, and where a delivered file can be read
back that of `Giving`. It is given plain values and read-only descriptors, never a path into the
spool; it returns what it did, or raises:

* `TryLater` for what may pass (a file that is busy): the same job comes again after a while;
* `Away`, a `TryLater`, where nothing at all can be delivered now (a mount that is away, a full disk): all that is owed
  there waits until `check` is content;
* `Held` for what a person has to decide first.

A job may come twice, because a power cut between the work and its receipt is told apart from neither: what is already
there and right is left as it is. This module is all of `sorter.deliver` that a target may import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from sorter.model import Delivered, Receipt


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file that should be at the target: its name there, SHA-256 in hex, size in bytes, and what it is made from.

    `file` is the instance file or product file in the store; a target only hands it back in `Delivered.file`. `gone`:
    it has left the store, and cannot be asked for. What is there of it stays; what is not is called "removed".
    `merge`: several units have it in common; it is joined to what is there in this way (`Product.merge`), and stands
    in no receipt.
    """

    name: str
    sha256: str
    size: int
    file: str
    gone: bool = False
    merge: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """One revision of one product of one unit, for one target.

    `folder` is relative to the target's root, "/" between safe components. `previous` is the receipt of the revision
    delivered before, if any. `manifest` (key, kind, study_uid, series_uids, identity, verdict, revision …) is written
    beside the files for whoever finds them. `shared` says that the plan means several units to lie in one folder
    although each brings its images; folders of made products may always be shared. `mend` are names of `previous`
    that a person, having verified, wants as they were: what is gone there comes back, what is damaged is moved aside.
    `exact`: its names are those of a standard; where one is somebody else's it is Held, instead of renamed.
    `alone` are names of `previous` of which the store has no copy any more: where this put would replace or remove one
    that is there as it was delivered, it is TryLater instead, and comes again once that was fetched.
    """

    id: str
    key: str
    product: str
    revision: int
    folder: str
    files: tuple[Wanted, ...]
    previous: Receipt | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    mend: tuple[str, ...] = ()
    exact: bool = False
    alone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Delivered: every file named here was read back from the target. `folder` is where they really are."""

    folder: str
    files: tuple[Delivered, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Not now; `why` is a sentence without patient data. `away`: nor can anything else be delivered there."""

    why: str
    away: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Not until a person decides; `why` is a sentence without patient data that says what to do next. `never`: this
    kind of target cannot do it."""

    why: str
    never: bool = False


@dataclass(frozen=True, slots=True)
class Verified:
    """What a receipt's files are like now, by name.

    `same`: ours, byte for byte (for a file the lab keeps edited: the one that lies beside it). `missing`: gone.
    `changed`: written to since the receipt, so the lab's now. `damaged`: other content although nobody wrote to it.
    `outdated`: gone or other, where what lies beside says that the folder is as an earlier revision left it: the
    target was put back to an earlier day. Files that the receipt says the lab removed are in none of them. `there`:
    whether the folder is there at all.
    """

    folder: str
    same: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    there: bool = True
    note: str = ""

    @property
    def whole(self) -> bool:
        return not (self.missing or self.changed or self.damaged or self.outdated)


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed because it still equalled its receipt, and what was left because it did not."""

    folder: str
    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Names of a receipt: `good` were given back, byte for byte; `bad` are not there as they were delivered."""

    folder: str
    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """A delivery could be made now. `remarks`: sentences on what the place cannot do, or does in a way of its own."""

    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabLook:
    """A look at the lab's own corner. `known` is the SHA-256 of what is known of its file; `answered` are the names of
    requests that were answered, with the SHA-256 of what was asked. `pages` are what sorter tells the lab, each written
    where it is not there as it should be (names are relative to the corner); `gone` should not be there any more.
    `python`: what lies among its plugins is run."""

    known: str = ""
    answered: Mapping[str, str] = field(default_factory=dict)
    pages: tuple[Wanted, ...] = ()
    gone: tuple[str, ...] = ()
    python: bool = False


@dataclass(frozen=True, slots=True)
class LabRequest:
    """A request file of the lab: its name, and its bytes in hex ("" where it was answered); or why it is not read, a
    sentence for the lab. `sha256` is of its bytes, or of that sentence."""

    name: str
    sha256: str
    text: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class LabSeen:
    """What a look at the lab's own corner found. Of its file: "new" (`text` is its bytes in hex), "same" as what was
    known, "none" (there is no such file) or "refused", with a sentence that says what to do. `beside` are sentences on
    what else is not as it should be. `names` are those of all requests there, also of those that were not read this
    time; None: too many to be looked at. `unwritten` are pages that could not be written. `python` is a mark of what
    lies among its plugins, "" where nothing does."""

    state: str
    text: str = ""
    why: str = ""
    beside: tuple[str, ...] = ()
    requests: tuple[LabRequest, ...] = ()
    names: tuple[str, ...] | None = ()
    unwritten: tuple[str, ...] = ()
    python: str = ""


@dataclass(frozen=True, slots=True)
class Copies:
    """Files that a lab asked for: copies below its root, at names relative to it, "/" between safe components."""

    files: tuple[Wanted, ...]
    force: bool = False  # overwrite what is there with other content


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of each, by its place in `Copies.files`: written and read back, there already as it should be, or not
    written because something else is there."""

    written: tuple[int, ...] = ()
    same: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()


Result: TypeAlias = Done | Later | Refused


class Source(Protocol):
    """The files of one put, as read-only descriptors."""

    def __call__(self, index: int) -> int:
        """A descriptor of `Put.files[index]`, good until the next call; the worker closes it. TryLater, Held."""
        ...

    def will_need(self, indices: Sequence[int]) -> None:
        """These will be asked for, in this order: they may be fetched many at a time. Never has to be called."""
        ...


class LabFolder(Protocol):
    """What the target of a lab's own root has besides: a corner where the lab says what it wants."""

    def look_at_lab(self, job: LabLook, source: Source) -> LabSeen:
        """Write the pages, and look at what the lab says. TryLater, Held."""
        ...

    def copy_for_lab(self, job: Copies, source: Source) -> Copied:
        """Copy what the lab asked for. Returns only what would survive a power cut there and was read back. TryLater,
        Held."""
        ...


class Target(Protocol):
    """A place to deliver to. Made as `Class(settings, files)` inside the worker of one target.

    One that may learn something between two jobs has an attribute `waits` besides: while it is True, the worker is not
    ended for want of work.
    """

    def check(self, *, prepare: bool = False) -> Checked:
        """Could a delivery be made now, by this process? Raises the sentence that a delivery would. TryLater, Held.

        `prepare`: a person says that this is the place, so what a first delivery wants to find there may be made.
        """
        ...

    def put(self, job: Put, source: Source) -> Done:
        """Deliver. Returns only what would survive a power cut there and was read back. TryLater, Held."""
        ...

    def verify(self, receipt: Receipt, *, deep: bool = True) -> Verified:
        """Compare a receipt with what is there: bytes, or where not `deep` presence and size. TryLater, Held; Never
        where nothing can be compared there, which is no fault of anybody's.

        Changes nothing, and may run beside a delivery: its answer is then of before, after or in between.
        """
        ...

    def remove(self, receipt: Receipt) -> Removed:
        """Remove what still equals its receipt, and leave everything else. TryLater, Held."""
        ...


@runtime_checkable
class Giving(Protocol):
    """What a target can do besides, from which a delivered file can be read back: only there retention trusts in it."""

    def fetch(self, receipt: Receipt, names: Sequence[str], into: Sequence[int]) -> Fetched:
        """Copy files of the receipt, by the names in it, into these empty files, which the worker closes.

        Only what has the digest that it was delivered with is given back. TryLater, Held.
        """
        ...
