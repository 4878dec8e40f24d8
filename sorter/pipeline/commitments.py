"""Storage Commitment, Push Model (PS3.4 annex J): what is promised to a sender, when, and how it is told.

A request is decided once everything it names is safe, or has been waited for; the decision is frozen in its file before
anybody is told, and told until the sender has answered, over restarts, for a day at most. `judge` decides, from what
the store and the receipts show; `Commitments` of the spool keeps; here the two are joined, turn after turn.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from sorter.deliver.backoff import backoff
from sorter.model import DICOM, Instance
from sorter.protocol.commitment import Reference
from sorter.spool import Spool, Unit
from sorter.spool.by_sop import BySop
from sorter.spool.commitments import Commitment, Commitments
from sorter.spool.days import days_passed
from sorter.spool.unit import DELIVERED

log = logging.getLogger("sorter.sort")

PROCESSING_FAILURE, NO_SUCH_OBJECT, CLASS_CONFLICT, DUPLICATE_TRANSACTION = 0x0110, 0x0112, 0x0119, 0x0131
"""Failure reasons (PS3.3 C.14.1.1)."""

FIRST_LOOK, LONGEST_LOOK = 1.0, 30.0
"""Seconds between two looks for what is not there yet; each is twice the one before."""

GIVE_UP = 86400.0
"""Seconds for which a report is tried in one life of the sorter."""

MOST_REPORTS = 8
"""Reports under way at once; one at a time to each peer."""

FRESH = 1
"""Days of the count for which a delivered copy that was read again is a promise, once its image has left the store."""

LOOK_STEP = 5000
"""Instances that one turn meets, and looks for, or those of one request: each look may read the whole index, and
whatever comes meanwhile waits."""

INDEX_STEP = 200
"""Units that one turn enters into the index while that is made."""


class Standing(enum.Enum):
    """What the store says of one instance that was asked for."""

    SAFE = "safe"
    NOT_DELIVERED = "not delivered"  # in the store, but delivery was asked for
    OTHER_CLASS = "other class"
    ABSENT = "absent"


REASONS = {
    Standing.NOT_DELIVERED: PROCESSING_FAILURE,
    Standing.OTHER_CLASS: CLASS_CONFLICT,
    Standing.ABSENT: NO_SUCH_OBJECT,
}


def judge(standing: Mapping[Reference, Standing], waited: bool) -> dict[str, int] | None:
    """Failure reasons by SOP Instance UID, empty where all is safe; None: not decided yet, wait.

    A pure decision: waiting helps as long as something is absent or not delivered, until it has been `waited` enough.
    """
    patient = any(each in (Standing.ABSENT, Standing.NOT_DELIVERED) for each in standing.values())
    if patient and not waited:
        return None
    return {reference.sop_uid: REASONS[each] for reference, each in standing.items() if each is not Standing.SAFE}


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a report goes: a listening address of whoever asked."""

    host: str
    port: int


Report: TypeAlias = Callable[[Peer, Commitment], str]
"""Tells a peer, on an association of its own: "" once it has confirmed, else why not. Runs in a thread."""


@dataclass(frozen=True, slots=True)
class Terms:
    """`delivered`: an instance counts when every planned delivery of it has its receipt, not when it is in the store.

    `wait` is how long, in seconds, what is missing may still come; `peer` where a request's sender listens, or None.
    """

    delivered: bool
    wait: float
    peer: Callable[[Commitment], Peer | None]


@dataclass(slots=True)
class _Case:
    """One request at work."""

    request: Commitment
    since: float
    next: float
    standing: dict[Reference, Standing] = field(default_factory=dict)
    pause: float = FIRST_LOOK
    attempts: int = 0
    telling: Peer | None = None


class CommitmentProvider:
    """Answers what waits in the spool. `turn` is for the one thread that sorts; only reports run beside it."""

    def __init__(self, spool: Spool, index: BySop, terms: Terms, report: Report, wake: Callable[[], None]) -> None:
        self.heard: Callable[[Commitment], object] = lambda _: None  # told once a life of each request that waits
        self._spool, self._index, self.terms = spool, index, terms
        self._report, self._wake = report, wake
        self._kept = Commitments(spool.commitments, spool.files)
        self._cases: dict[str, _Case] = {}
        self._unreadable: set[str] = set()
        self._answers: deque[tuple[str, str]] = deque()
        self._random = Random()  # noqa: S311  jitter, not secrets

    def begin(self) -> None:
        """At a start."""
        self._kept.create()
        self._kept.tidy()
        self._index.begin()

    def turn(self, now: float, settled: bool) -> float:
        """Do what there is to do at `now` (monotonic); when to be called again at the latest.

        `settled`: the store has been looked through since the start, so that what is not found is not there.
        """
        more = self._index.go_on(INDEX_STEP)
        more = self._meet(now) or more
        self._collect(now)
        looked = 0
        for case in sorted(self._cases.values(), key=lambda each: each.next):
            if case.next <= now and case.telling is None:
                if case.request.failed is not None:
                    self._tell(case, now)
                elif looked < LOOK_STEP:
                    looked += len(case.standing)
                    self._look(case, now, settled and self._index.whole)
        times = [case.next for case in self._cases.values() if case.telling is None]
        return now if more else min(times, default=now + 60)

    # --- what was asked -----------------------------------------------------------------------------------------

    def _meet(self, now: float) -> bool:
        """Begin what is new; True where there is more, for the next turn."""
        met = 0
        for identifier in self._kept.waiting():
            if identifier not in self._cases and identifier not in self._unreadable:
                if met >= LOOK_STEP:
                    return True
                try:
                    request = self._kept.read(identifier)
                except FileNotFoundError:  # the receiver took it back: it could not be kept, and its sender was told so
                    continue
                except ValueError:
                    self._unreadable.add(identifier)
                    log.error("commitments/waiting/%s.json is no request; it is left where it is", identifier)
                    continue
                met += len(request.instances)
                self._begin(_Case(request, now, now))
        return False

    def _begin(self, case: _Case) -> None:
        asked = case.request
        for other in self._cases.values():
            same = (other.request.calling, other.request.transaction) == (asked.calling, asked.transaction)
            if same and set(other.request.instances) == set(asked.instances):
                if other.telling is not None:  # and perhaps answered, before this was asked: it is told by itself
                    continue
                self._kept.finish(asked)
                log.info(
                    "storage commitment %s is the same as %s, whose report answers both", asked.id, other.request.id
                )
                return
            if same and asked.failed is None:
                case.request = self._kept.decide(asked, _all_failed(asked, DUPLICATE_TRANSACTION))
        case.standing = dict.fromkeys(asked.instances, Standing.ABSENT)
        self._cases[asked.id] = case
        self.heard(asked)

    # --- is it safe? --------------------------------------------------------------------------------------------

    def _look(self, case: _Case, now: float, sure: bool) -> None:
        missing = [each for each, standing in case.standing.items() if standing is not Standing.SAFE]
        case.standing |= self._standing(missing)
        failed = judge(case.standing, waited=sure and now - case.since >= self.terms.wait)
        if failed is None:
            case.next = min(now + case.pause, max(now + FIRST_LOOK, case.since + self.terms.wait))
            case.pause = min(case.pause * 2, LONGEST_LOOK)
            return
        case.request = self._kept.decide(case.request, failed)
        case.since = now
        log.info(
            "storage commitment %s: %d of %d instances are safe", case.request.id,
            len(case.request.instances) - len(failed), len(case.request.instances),
        )  # fmt: skip
        self._tell(case, now)

    def _standing(self, wanted: Iterable[Reference]) -> dict[Reference, Standing]:
        asked = list(wanted)
        places = self._index.find(each.sop_uid for each in asked)
        keys = sorted({key for found in places.values() for key in found})
        found = dict.fromkeys(asked, Standing.ABSENT)
        for key in keys:  # one unit in memory at a time
            with suppress(OSError):  # what cannot be read is no promise, and whoever works on it says it better
                view = _View(self._spool, key, self.terms.delivered)
                for each in asked:
                    if key in places.get(each.sop_uid, ()):
                        found[each] = _better(found[each], view.standing(each))
        return found

    # --- telling ------------------------------------------------------------------------------------------------

    def _tell(self, case: _Case, now: float) -> None:
        peer = self.terms.peer(case.request)
        if peer is None:
            who = f"{case.request.calling} at {case.request.address}"
            self._try_later(case, now, f"where {who} listens is not known; add its ae, address and port to [[senders]]")
            return
        under_way = [each.telling for each in self._cases.values() if each.telling is not None]
        if peer in under_way or len(under_way) >= MOST_REPORTS:
            case.next = now + FIRST_LOOK
            return
        case.telling = peer
        threading.Thread(target=self._run, args=(peer, case.request), name="commitment", daemon=True).start()

    def _run(self, peer: Peer, request: Commitment) -> None:
        try:
            trouble = self._report(peer, request)
        except Exception as error:  # a bug in a report holds up this one only, and is tried again
            log.exception("the report of %s ended by a fault of ours", request.id)
            trouble = f"a fault of sorter's own: {type(error).__name__}"
        self._answers.append((request.id, trouble))
        self._wake()

    def _collect(self, now: float) -> None:
        while self._answers:
            identifier, trouble = self._answers.popleft()
            case = self._cases[identifier]
            case.telling = None
            if trouble:
                self._try_later(case, now, trouble)
            else:
                del self._cases[identifier]
                self._kept.finish(case.request)
                self._note(case.request, "reported")
                log.info("storage commitment %s was reported to %s", identifier, case.request.calling)

    def _try_later(self, case: _Case, now: float, trouble: str) -> None:
        if now - case.since >= GIVE_UP:
            del self._cases[case.request.id]
            why = f"for a day it could not be reported: {trouble}"
            self._kept.give_up(case.request, why)
            self._note(case.request, why)
            log.warning("storage commitment %s is given up: %s", case.request.id, why)
            return
        case.attempts += 1
        case.next = now + backoff(case.attempts, self._random)
        if trouble != case.request.trouble:
            case.request = self._kept.trouble(case.request, trouble)
            log.warning("storage commitment %s is not reported yet: %s", case.request.id, trouble)

    def _note(self, request: Commitment, over: str) -> None:
        self._spool.note(
            "storage commitment",
            id=request.id,
            calling=request.calling,
            address=request.address,
            instances=len(request.instances),
            failed=len(request.failed or ()),
            over=over,
        )

    def retry(self) -> None:
        """A person says that what was wrong is mended."""
        self._kept.revive()
        for case in self._cases.values():
            case.next = 0.0


def _all_failed(request: Commitment, reason: int) -> dict[str, int]:
    return dict.fromkeys((each.sop_uid for each in request.instances), reason)


_ORDER = [Standing.SAFE, Standing.NOT_DELIVERED, Standing.OTHER_CLASS, Standing.ABSENT]


def _better(one: Standing, other: Standing) -> Standing:
    """Of two units, or copies, with the same SOP Instance UID the one that serves the sender."""
    return min(one, other, key=_ORDER.index)


class _View:
    """What one unit's records, receipts and files say of its instances, at this moment."""

    def __init__(self, spool: Spool, key: str, delivered: bool) -> None:
        self._unit = Unit.load(spool, key)
        self._delivered = self._where_delivered() if delivered else None

    def standing(self, wanted: Reference) -> Standing:
        copies = [self._unit.instances[file] for file in self._unit.by_sop.get(wanted.sop_uid, ())]
        there = [each for each in copies if each.deliverable and self._is_there(each)]
        if not there:
            return Standing.ABSENT
        if not any(each.sop_class == wanted.sop_class for each in there):
            return Standing.OTHER_CLASS
        if self._delivered is None or all(each.file in self._delivered for each in there):
            return Standing.SAFE
        return Standing.NOT_DELIVERED

    def _is_there(self, instance: Instance) -> bool:
        """Its file is, with its whole length; other records are no proof."""
        if self._unit.left.get(instance.file) == DELIVERED and not self._unit.withdrawn:
            return self._was_read_again(instance)
        try:
            info = self._unit.spool.files.stat(self._unit.images / instance.file)
        except FileNotFoundError:
            return False
        return info.st_size == instance.size

    def _was_read_again(self, instance: Instance) -> bool:
        """It has left the store: was its delivered copy read lately? What the lab did since then is not known.

        Whoever asks later than that is not told that it may delete its own: it keeps it, or sends it again.
        """
        grave, spool = self._unit.tombstone(instance.file), self._unit.spool
        return grave is not None and days_passed(spool.days, spool.files) - int(grave["day"]) <= FRESH

    def _where_delivered(self) -> frozenset[str]:
        """The files that every planned delivery of the images has a receipt for; none where nothing is planned."""
        plan, receipts = self._unit.latest_plan(), self._unit.receipts()
        places = [each.target for each in plan.deliveries if each.product == DICOM] if plan else []
        told = [receipts[DICOM, place].files if (DICOM, place) in receipts else () for place in places]
        files = [frozenset(each.file for each in of) for of in told]
        return frozenset.intersection(*files) if files else frozenset()
