"""`NEWS.txt` of each lab: what happened, newest first. The lab says in its lab.toml of what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sorter.config.lab import LabFile
from sorter.deliver.target import Wanted
from sorter.exports.source import of_lab, study_of
from sorter.labs.pages import described, page
from sorter.model import Event, Study
from sorter.spool.labs import LabRecords
from sorter.words import counted

PAGE = "NEWS.txt"

MOST_LINES = 300
"""Of the page; what is older is forgotten."""


@dataclass(slots=True)
class News:
    """`says` is what a lab's file says, None where it is damaged or there is none."""

    records: LabRecords
    says: Callable[[str], LabFile | None]
    _pages: dict[str, Wanted] = field(default_factory=dict)

    def heed(self, event: Event) -> None:
        """Something happened; it may be nobody's news."""
        if event.study is not None:  # each lab hears of its own part
            for lab in dict.fromkeys(each.lab for each in event.study.series):
                if lab is not None:
                    self._tell(lab, replace(event, study=study_of(event.study, of_lab(lab))))
        elif "lab" in event.details:
            self._tell(event.details["lab"], event)

    def _tell(self, lab: str, event: Event) -> None:
        wanted = (self.says(lab) or LabFile()).notifications.news
        kind, says = _sentence(event)
        if not says or kind not in wanted:
            return
        lines = [f"{event.at[:16].replace('T', ' ')}  {_plain(says)}"]
        lines += self.records.read_page(lab, PAGE).decode(errors="replace").splitlines()
        self._pages[lab] = page(self.records, lab, PAGE, "".join(f"{each}\n" for each in lines[:MOST_LINES]).encode())

    def pages(self, lab: str) -> list[Wanted]:
        if lab not in self._pages:
            data = self.records.read_page(lab, PAGE)
            if not data:
                return []
            self._pages[lab] = described(PAGE, data, f"pages/{PAGE}")
        return [self._pages[lab]]


def _sentence(event: Event) -> tuple[str, str]:
    """Which kind of news it is, and the line; "" for what is no news."""
    if event.study is not None:
        return ("incomplete" if event.study.missing else "studies"), _of_study(event.study)
    if event.kind == "daily_missing":
        return "daily", f"what comes every day did not come by {event.details['by']} on {event.details['day']}"
    if event.kind == "daily_came":
        return "daily", "what comes every day has come now"
    if event.kind == "claim_ended":
        return "claims", _of_claim(event.details)
    return "", ""


def _of_claim(details: Mapping[str, str]) -> str:
    """To whom it went is not the lab's to know."""
    what = f"what {details['by']} claimed on {details['since'][:10]} ({details['claim']}, {details['series']} series)"
    match details["how"]:
        case "granted":
            return f"{what} is the lab's now"
        case "refused":
            return f"{what} was not given to the lab; the admin of sorter knows why"
    return f"{what} did not come to the lab, and is unassigned no more; the claim is over"


def _of_study(study: Study) -> str:
    day = f"{study.date[:4]}-{study.date[4:6]}-{study.date[6:8]}" if len(study.date) == 8 else study.date
    grown = " (more came)" if study.revision > 1 else ""
    lacks = f"; missing: {', '.join(each.says for each in study.missing)}" if study.missing else ""
    many = f"{len(study.series)} series, {counted(study.images, 'images')}"
    return f"{study.subject or 'unknown'} of {day}: {many}{grown}{lacks}"


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:1000]
