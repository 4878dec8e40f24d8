"""The labs' own corners, each looked at now and then by the worker of that lab: `sort` touches no lab's folder."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sorter.deliver.target import LabLook, LabSeen, Later, Refused, Wanted
from sorter.labs.files import errors_text
from sorter.labs.news import News
from sorter.labs.pages import page
from sorter.labs.python import LabPython
from sorter.labs.requests import Requests
from sorter.labs.scans import Scans
from sorter.model import Event
from sorter.pipeline.outlets import Outlets
from sorter.spool import UnitSummary
from sorter.spool.labs import LabRecords

ERRORS = "ERRORS.txt"


@dataclass(slots=True)
class _Known:
    """Of one lab: what its file was when it was last seen, what is wrong with it, when to look again."""

    digest: str = ""
    faults: tuple[str, ...] = ()
    told: tuple[str, ...] = ()  # that the lab should read
    errors: Wanted | None = None  # its page of them
    due: float = 0.0
    asked: bool = False
    looks: int = 0  # that ended
    gone: bool = False  # what there was is empty or away; at the second sight it is so


MOMENT = 2.0
"""Seconds after which a file that is empty, or away, is looked at again before that is believed."""


@dataclass(slots=True)
class LabCorners:
    """`take` is told of a file that is another one than before (None: it is gone), and answers with what is wrong with
    it, in sentences for the lab; `say` is told of all that is wrong, once it was seen and whenever it changed."""

    outlets: Outlets
    records: LabRecords
    take: Callable[[str, bytes | None], tuple[str, ...]]
    say: Callable[[str, Sequence[str]], None]
    scans: Scans
    news: News
    requests: Requests
    python: LabPython
    every: float = 30.0
    _labs: dict[str, _Known] = field(default_factory=dict)
    _seen: deque[tuple[str, _Known, LabLook, LabSeen | Later | Refused]] = field(default_factory=deque)

    def configure(self, roots: Mapping[str, str], every: float) -> None:
        """These labs from now on; each is looked at anew: what the admin changed may have made it right."""
        self.every = every
        self._labs = {lab: _Known() for lab in roots}
        self._seen.clear()
        self.scans.configure(roots)
        self.requests.configure(roots)

    def look(self, lab: str) -> Callable[[], bool]:
        """Look at this lab's corner now; what is returned says whether a look that began after this call has ended."""
        known = self._labs.get(lab)
        if known is None:
            return lambda: True
        known.due, enough = 0.0, known.looks + (2 if known.asked else 1)
        return lambda: known.looks >= enough

    def told(self, what: UnitSummary | Event) -> None:
        """How a series stands now, or something that happened."""
        if isinstance(what, Event):
            self.news.heed(what)
        else:
            self.scans.heed(what)

    def turn(self, now: float) -> float:
        """Take up what was seen, and look where it is time to; returns when to be called again at the latest."""
        while self._seen:
            lab, known, job, seen = self._seen.popleft()
            if self._labs.get(lab) is known:  # else it was configured anew, and its folder may be another
                known.asked = False
                known.looks += 1
                if isinstance(seen, LabSeen):  # else its folder is away: what it said last stays in force
                    self._heed(lab, job, seen, now)
        until = self.requests.turn(now)
        for lab, known in self._labs.items():
            if self.requests.is_fresh(lab):
                known.due = now
            if not known.asked and known.due <= now:
                known.asked, known.due = self._look(lab, known), now + self.every
        return min([until, *(known.due for known in self._labs.values() if not known.asked)])

    def _look(self, lab: str, known: _Known) -> bool:
        errors = [known.errors] if known.errors is not None else []
        pages = (*errors, *self.scans.pages(lab), *self.news.pages(lab), *self.requests.pages(lab))
        gone = () if errors else (ERRORS,)
        job = LabLook(known.digest, self.requests.answered(lab), pages, gone, self.python.runs(lab))

        def tell(seen: LabSeen | Later | Refused) -> None:
            self._seen.append((lab, known, job, seen))

        return self.outlets.look_at_lab(lab, job, lambda each: self.records.open(lab, each.file), tell)

    def _heed(self, lab: str, job: LabLook, seen: LabSeen, now: float) -> None:
        known = self._labs[lab]
        self.requests.told(lab, [each for each in job.pages if each.name not in seen.unwritten])
        self.requests.heed(lab, seen.requests, seen.names)
        if seen.state == "refused":
            known.digest, known.faults = "", (seen.why,)
        elif seen.state != "same":
            self._take(lab, known, bytes.fromhex(seen.text) if seen.state == "new" else None, now)
        beside = (*seen.beside, *self.python.seen(lab, seen.python))
        told = (*known.faults, *beside)
        self.say(lab, told)
        if told != known.told:
            known.told, known.due = told, now  # the lab should read it at once
            known.errors = page(self.records, lab, ERRORS, errors_text(known.faults, beside).encode()) if told else None

    def _take(self, lab: str, known: _Known, data: bytes | None, now: float) -> None:
        """An editor empties a file, or takes it away, a moment before it writes it: that alone changes no rules yet."""
        if not data and not known.gone and self.records.good(lab):
            known.gone, known.due = True, now + min(MOMENT, self.every)
            return
        known.gone = False
        known.faults = self.take(lab, data)
        known.digest = "" if data is None else hashlib.sha256(data).hexdigest()
