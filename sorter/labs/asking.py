"""A request file of a lab, `.sorter/requests/NAME.toml`: the flags of `sorter rename`, as keys.

subject = "DEV01"
dest = "pilot"
series = "3,5-7"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sorter.config.models import Section, shown
from sorter.config.places import Key
from sorter.config.reading import Sources, Tables
from sorter.errors import ConfigError, SorterError
from sorter.exports.asking import NIFTI, Asked
from sorter.exports.choosing import Choice, Subject, study_meant
from sorter.exports.naming import naming
from sorter.exports.source import target_of
from sorter.matching import checked_series, day_of

MOST_SUBJECTS = 1000
_LONGEST_COMPONENT = 200  # bytes
_LEVELS = 16


def _dest(text: str) -> str:
    if text == "." or target_of(text) is not None:
        return text
    parts = text.removesuffix("/").split("/")
    if text.startswith(("/", "~")) or "\\" in text or len(parts) > _LEVELS or not all(map(_is_name, parts)):
        raise ValueError(f'{shown(text)} is no folder below the lab\'s own; write it as "pilot/2026", without .. and /')
    return "/".join(parts)


def _is_name(part: str) -> bool:
    return (
        bool(part)
        and part.isprintable()
        and part[0] != "."
        and len(part.encode(errors="replace")) <= _LONGEST_COMPONENT
    )


def _names(text: str) -> str:
    try:
        naming(text)
    except SorterError as error:
        raise ValueError(str(error)) from None
    return text


def _day(text: str) -> str:
    try:
        return day_of(text) if text else ""
    except SorterError as error:
        raise ValueError(str(error)) from None


def _study(text: str) -> str:
    try:
        return study_meant(text)
    except SorterError as error:
        raise ValueError(str(error)) from None


def _series(text: str) -> str:
    try:
        return checked_series(text)
    except SorterError as error:
        raise ValueError(str(error)) from None


Words = Annotated[str, Field(max_length=200)]
Subjects = Annotated[tuple[Words, ...], Field(strict=False, min_length=1, max_length=MOST_SUBJECTS)]


class Request(Section):
    """What a lab asks for."""

    subject: Words | Subjects
    """Whom: an ID, a name, a glob or a UID; or a list of them, each as `"DEV01"` or `"DEV01,newname"`; with a comma in
    it, as `'"Doe, Jane",newname'`."""
    dest: Annotated[str, AfterValidator(_dest)] = ""
    """Where to: a folder below the lab's own, as `"pilot/2026"`, or `"target:NAME/FOLDER"` of a target of the lab."""
    study: Annotated[Words, AfterValidator(_study)] = ""
    """Only the study of this day or UID."""
    series: Annotated[Words, AfterValidator(_series)] = ""
    """Only these: numbers as `"3,5-7"`, or a glob of the description as `"*T1*"`."""
    modality: Words = ""
    """Only this modality, as `"MR"`."""
    since: Annotated[Words, AfterValidator(_day)] = ""
    """Only studies of this day or later: `"2026-01-05"`, `"yesterday"`, `"tuesday"`, `"30d"`."""
    name: Annotated[str, AfterValidator(_names)] = "pretty"
    """`"pretty"`, `"percent"` or `"flat"`, or a pattern."""
    as_: Words = ""
    """`as`: call the subject so in folders and file names."""
    nifti: bool = False
    """Copy the NIfTI that was made, in place of the images."""
    list: bool = False
    """Only list the series."""
    why: bool = False
    """Only tell where each series is, and why, as `sorter why`."""
    claim: bool = False
    """Claim what is here of `subject`, an ID or a UID, and belongs to no lab."""
    dry_run: bool = False
    """Only say what would be done."""
    force: bool = False
    """Overwrite what is there with other content."""

    @property
    def asked(self) -> Asked:
        """The same for those who look for it."""
        return Asked(
            self.subjects,
            Choice(study=self.study, series=self.series, modality=self.modality, since=self.since),
            naming(self.name),
            self.as_,
            NIFTI if self.nifti else "",
        )

    @property
    def subjects(self) -> Sequence[Subject]:
        if isinstance(self.subject, str):
            return [Subject(self.subject)]
        return [Subject.of_row(each) for each in self.subject]


def read_request(data: bytes, name: str) -> Request:
    """ConfigError holds every fault, with its line."""
    sources = Sources(name=name)
    sources.add(data, name)
    found = _Reader(sources).request() if not sources.faults else None
    if found is None or sources.faults:
        raise ConfigError(sources.sorted_faults())
    return found


class _Reader(Tables):
    def request(self) -> Request | None:
        raw = {self._inside(key): value for key, value in self._raw.items()}
        found = self.model(Request, raw, ())
        if found is None:
            return None
        if not (raw.get("dest") or found.list or found.why or found.claim):
            self.fault(("dest",), 'must be given, as "pilot"; or list = true, to see what there is')
        if found.force and target_of(found.dest) is not None:
            self.fault(("force",), "is for folders: at a target nothing is overwritten; leave it out")
        if any(each.text.startswith("@") for each in found.subjects):
            self.fault(("subject",), 'a list is written here itself, as ["DEV01", "DEV02,newname"]')
        return found

    def _inside(self, key: str) -> str:
        return {"as": "as_", "dry-run": "dry_run"}.get(key, key)

    def fault(self, key: Key, says: str) -> None:
        super().fault(tuple("as" if part == "as_" else part for part in key), says)


def written(request: dict[str, Any]) -> str:
    """The text of a request file; what is "" or False is left out."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in request.items() if value not in ("", False, ()))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true"
    if isinstance(value, str):
        return '"' + "".join(each if _is_safe(each) else f"\\U{ord(each):08x}" for each in value) + '"'
    return f"[{', '.join(map(_toml, value))}]"


def _is_safe(char: str) -> bool:
    return char.isprintable() and char not in '"\\'
