"""Telling: what happened stands in the journal, and is told to the plugins and to whoever else listens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sorter.model import Event
from sorter.pipeline.outages import Told
from sorter.pipeline.units import Live
from sorter.plugins import Plugins
from sorter.spool import Spool
from sorter.spool.layout import now as wall_clock
from sorter.spool.studies import StudyRecord

log = logging.getLogger("sorter.sort")


@dataclass(slots=True)
class Telling:
    """`told` hears every event before the plugins do. None of it names a patient."""

    spool: Spool
    plugins: Callable[[], Plugins]
    told: Callable[[Event], None]

    def happened(self, kind: str, live: Live, **details: str) -> None:
        """Of a series."""
        self.spool.note(kind, unit=live.key[:8], **details)
        self._tell(Event(kind, live.key, wall_clock(), details))

    def study_settled(self, record: StudyRecord) -> None:
        study = record.study
        details = {"revision": str(study.revision), "series": str(len(study.series)), "images": str(study.images),
                   "missing": str(len(study.missing)), "why": record.why}  # fmt: skip
        self.spool.note("study_settled", study=study.key[:8], **details)
        if study.lab is not None:
            details["lab"] = study.lab
        self._tell(Event("study_settled", study.key, record.at, details, study))

    def alarm(self, event: Event) -> None:
        self.spool.note(event.kind, **event.details)
        self._tell(event)

    def outage(self, told: Told) -> None:
        """A target has been out for some time, or is back."""
        outage = told.outage
        details = {"target": outage.target, "since": outage.since, "seconds": f"{outage.lasted:.0f}"}
        self.spool.note(told.kind, **details)
        self._tell(Event(told.kind, "", wall_clock(), {**details, "why": outage.why}))

    def reasked(self, says: str) -> None:
        """What came of asking the rules once more."""
        log.info("%s", says)
        self.spool.note("asked again", says=says)

    def _tell(self, event: Event) -> None:
        self.told(event)
        for failure in self.plugins().event(event):  # what it said may name a patient: it is not written down
            self.spool.note("plugin failed", plugin=failure.plugin, hook=failure.hook)
