"""Looking at the labs' own files, each by the worker of that lab, now and then: `sort` touches no lab's folder."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sorter.daemon.lab_files import errors_text
from sorter.deliver.target import LabSeen, Later, Refused
from sorter.pipeline.outlets import Outlets


@dataclass(slots=True)
class _Known:
    """Of one lab: what its file was when it was last seen, what is wrong with it, when to look again."""

    digest: str = ""
    faults: tuple[str, ...] = ()
    beside: str = ""
    errors: str = ""  # what the lab should read
    due: float = 0.0
    asked: bool = False


@dataclass(slots=True)
class LabFolders:
    """`take` is told of a file that is another one than before (None: it is gone), and answers with what is wrong with
    it, in sentences for the lab; `say` is told of all that is wrong, once it was seen and whenever it changed."""

    outlets: Outlets
    take: Callable[[str, bytes | None], tuple[str, ...]]
    say: Callable[[str, Sequence[str]], None]
    every: float = 30.0
    _labs: dict[str, _Known] = field(default_factory=dict)
    _seen: deque[tuple[str, LabSeen | Later | Refused]] = field(default_factory=deque)

    def configure(self, labs: Sequence[str], every: float) -> None:
        """These labs from now on; each is looked at anew: what the admin changed may have made it right."""
        self.every = every
        self._labs = {lab: _Known() for lab in labs}

    def turn(self, now: float) -> float:
        """Take up what was seen, and look where it is time to; returns when to be called again at the latest."""
        while self._seen:
            lab, seen = self._seen.popleft()
            if lab in self._labs:
                self._heed(lab, self._labs[lab], seen, now)
        for lab, known in self._labs.items():
            if not known.asked and known.due <= now:
                known.asked = self.outlets.look_at_lab(lab, known.digest, known.errors, self._teller(lab))
                known.due = now + self.every
        return min((known.due for known in self._labs.values() if not known.asked), default=now + self.every)

    def _teller(self, lab: str) -> Callable[[LabSeen | Later | Refused], None]:
        return lambda seen: self._seen.append((lab, seen))

    def _heed(self, lab: str, known: _Known, seen: LabSeen | Later | Refused, now: float) -> None:
        known.asked = False
        if not isinstance(seen, LabSeen):
            return  # its folder is away: what it said last stays in force
        if seen.state == "refused":
            known.digest, known.faults = "", (seen.why,)
        elif seen.state != "same":
            data = bytes.fromhex(seen.text) if seen.state == "new" else None
            known.faults = self.take(lab, data)
            known.digest = "" if data is None else hashlib.sha256(data).hexdigest()
        known.beside = seen.beside
        faults = tuple(filter(None, (*known.faults, known.beside)))
        self.say(lab, faults)
        errors = errors_text(faults) if faults else ""
        if errors != known.errors:
            known.errors, known.due = errors, now  # the lab should read it at once
