"""Which series are meant: SUBJECT as people say it, and the flags that narrow it down."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sorter.durable import Files
from sorter.errors import SorterError
from sorter.exports.finding import Found
from sorter.matching import checked_series, day_of, fits_series, numbers

_LONGEST_LIST = 16 << 20  # bytes of a list of subjects
_TITLES = ("subject", "subjects", "id", "patientid", "patient")


@dataclass(frozen=True, slots=True)
class Subject:
    """One that is asked for: an ID, a patient's name, a glob of either, a UID, or the start of a key."""

    text: str
    new_name: str = ""

    @classmethod
    def of_row(cls, row: str) -> Subject:
        """Of `subject` or `subject,newname`, as a line of a list; what has a comma in it stands in quotation marks."""
        try:
            who, *new = next(csv.reader([row]), [""])
        except csv.Error:  # no row at all; then nobody is called so
            return cls(row)
        return cls(who.strip(), ",".join(new).strip())

    @property
    def row(self) -> str:
        """The same again."""
        quoted = io.StringIO()
        csv.writer(quoted, lineterminator="").writerow([self.text, self.new_name] if self.new_name else [self.text])
        return quoted.getvalue()

    @property
    def is_glob(self) -> bool:
        return any(each in self.text for each in "*?[")

    def among(self, every: Sequence[Found]) -> list[Found]:
        """Those that are meant. SorterError: several subjects have this name; they are listed, to choose one."""
        return Catalogue(every).meant(self)


class Catalogue:
    """Those that somebody may mean, looked through once, however many are asked for."""

    def __init__(self, every: Sequence[Found]) -> None:
        self._every = every
        self._ids: dict[str, list[int]] = {}
        self._uids: dict[str, list[int]] = {}
        self._keys: dict[str, list[int]] = {}  # by their first letters
        self._names: dict[str, list[int]] = {}
        self._words: dict[tuple[str, ...], list[int]] = {}  # of names
        for at, each in enumerate(every):
            name = each.text("PatientName").casefold()
            self._ids.setdefault(each.subject.casefold(), []).append(at)
            self._keys.setdefault(each.key[:_KEY], []).append(at)
            self._names.setdefault(name, []).append(at)
            for uid in {each.study_uid, *each.series_uids}:
                self._uids.setdefault(uid, []).append(at)
            if name:
                self._words.setdefault(_words(name), []).append(at)

    def meant(self, one: Subject) -> list[Found]:
        """As `Subject.among`."""
        found = self._called(one)
        if found:
            return found
        found = self._named(one)
        who = sorted({each.subject for each in found})
        if len(who) > 1 and not one.is_glob:
            raise SorterError(f"{len(who)} subjects have this name: {', '.join(who)}; give one of these IDs instead")
        return found

    def _called(self, one: Subject) -> list[Found]:
        """By ID, UID or key."""
        wanted = one.text.casefold()
        found = {*self._ids.get(wanted, ()), *self._uids.get(one.text, ())}
        if len(wanted) >= _KEY:
            found |= {at for at in self._keys.get(wanted[:_KEY], ()) if self._every[at].key.startswith(wanted)}
        return self._in_order(found | (_fitting(wanted, self._ids) if one.is_glob else set()))

    def _named(self, one: Subject) -> list[Found]:
        """By the patient's name, in any order of its parts: "doe^jane" is "Jane Doe"."""
        if one.is_glob:
            return self._in_order(_fitting(one.text.casefold(), self._names))
        return self._in_order(self._words.get(_words(one.text), ()))

    def _in_order(self, found: Iterable[int]) -> list[Found]:
        return [self._every[at] for at in sorted(found)]


_KEY = 8  # letters of a key that are enough


def _fitting(glob: str, called: Mapping[str, Sequence[int]]) -> set[int]:
    return {at for text, found in called.items() if fnmatchcase(text, glob) for at in found}


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"[^\W_]+", name.casefold())))


def subjects(text: str) -> list[Subject]:
    """Of the argument SUBJECT, or of a file `@list.csv` whose lines are `subject` or `subject,newname`. SorterError: it
    is empty, as a variable of a script that was never set, or no such file."""
    if not text.strip():
        raise SorterError("say whom: an ID, a name, a glob as 'sub-*', a UID, or @list.csv")
    if not text.startswith("@"):
        return [Subject(text)]
    path = text[1:]
    try:
        text = Files().read_file(path, limit=_LONGEST_LIST).decode("utf-8-sig")
    except OSError as error:
        raise SorterError(f"{path}: the list of subjects cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SorterError(f"{path} is no text in UTF-8; save it as CSV in UTF-8") from None
    found = [
        Subject(row[0].strip(), row[1].strip() if len(row) > 1 else "")
        for number, row in enumerate(_rows(path, text))
        if row and row[0].strip() and not row[0].startswith("#")
        and not (number == 0 and row[0].strip().casefold() in _TITLES)
    ]  # fmt: skip
    if not found:
        raise SorterError(f"{path} names no subject; write one in each line, as subject or subject,newname")
    return found


def _rows(path: str, text: str) -> list[list[str]]:
    """SorterError: a quotation mark is never closed, or something that no list of subjects is."""
    reader = csv.reader(text.splitlines(), delimiter=_delimiter(text), strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise SorterError(f"{path}, line {reader.line_num}: {error}; write subject or subject,newname") from None


def _delimiter(text: str) -> str:
    """What stands between the columns: where a comma is part of a number, spreadsheets write a semicolon."""
    lines = [each for each in text.splitlines() if each.strip() and not each.startswith("#")]
    if any("\t" in each for each in lines):
        return "\t"
    semicolons = [";" in each for each in lines]
    return ";" if all(semicolons) or (any(semicolons) and "," not in text) else ","


def study_meant(text: str) -> str:
    """The day as YYYYMMDD, as `day_of`, or the UID that it is. SorterError: it is neither."""
    return text if re.fullmatch(r"[0-9]+(\.[0-9]+)+|[0-9]{8}|", text) else day_of(text)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the flags say; an empty one says nothing. `since` is YYYYMMDD. SorterError: `series` fits nothing at all, or
    seems to mean numbers, and is no list of them."""

    study: str = ""  # its day, or its UID
    series: str = ""  # "3,5-7", or a glob of the description
    modality: str = ""
    since: str = ""
    lab: str = ""

    def __post_init__(self) -> None:
        checked_series(self.series)
        if self.series and numbers(self.series) is None and not re.search(r"[^\d\s,-]", self.series):
            raise SorterError(f"{self.series!r} is no list of numbers; write them as 3,5-7")

    def fits(self, found: Found) -> bool:
        day = found.text("StudyDate").replace("-", "").replace(".", "")
        return (
            (not self.study or self.study.replace("-", "") == day or self.study == found.study_uid)
            and (not self.modality or self.modality.casefold() == found.text("Modality").casefold())
            and (not self.since or day >= self.since)
            and (not self.lab or self.lab == found.identity.lab)
            and (not self.series or fits_series(self.series, found.number, found.description))
        )
