"""Names that may go into a path: safe components, the closed formatter of patterns, and what to do when names clash.

Nothing here touches a file. Every text that came from a header, a network peer or a person passes `safe_component`
before it becomes part of a path, so a value can never add a folder level, leave its folder, hide itself, or name a
device. A pattern such as "{SeriesNumber:03d}_{SeriesDescription ?? ProtocolName}" knows plain field names, number and
time formats, alternatives and one filter; it is read once, when the `Pattern` is made, and can reach nothing else.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sorter.errors import SorterError, did_you_mean
from sorter.model import Header, Identity, Instance, Standing, Value

DEFAULT_FOLDER = (
    "{subject}/{StudyDate}_{StudyTime:%H%M}/{SeriesNumber:03d}_{SeriesDescription ?? ProtocolName ?? SequenceName}"
)
DEFAULT_FILE = "{AcquisitionNumber:03d}-{SeriesNumber:04d}-{InstanceNumber:06d}.dcm"
DEFAULT_NIFTI_FOLDER = "{subject}/{StudyDate}_{StudyTime:%H%M}/nifti"
DEFAULT_NIFTI_FILE = "{SeriesNumber:03d}_{SeriesDescription ?? ProtocolName ?? SequenceName}"

FIELD_LIMIT = 120
"""Bytes that one value may add to a name."""

NAME_LIMIT = 200
"""Bytes of one folder or file name; the rest of the usual 255 is for temporary names and for copies laid beside."""

PATH_LIMIT = 1000
"""Bytes of a whole relative folder."""

NOTHING = "unnamed"
"""The name of what has no name: every field of its pattern was empty."""

_PATTERN_LIMIT = 1000  # characters of a pattern
_LEVEL_LIMIT = 16  # folder levels of a pattern, so that each still gets a readable share of PATH_LIMIT
_TEXT_LIMIT = 1024  # characters of a value that are looked at: normalising a long run of marks is quadratic
_PARTS_LIMIT = 16  # values of a multi-valued attribute that are looked at


# --- safe components ------------------------------------------------------------------------------------------------

_UNSAFE_ASCII = re.compile(r"[^A-Za-z0-9._+-]+")
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(?=\.|$)", re.IGNORECASE)
# Letters and marks by category that nobody can see: fillers, joiners, variation selectors.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def safe_component(text: str, *, limit: int = FIELD_LIMIT) -> str:
    """`text` as one path component of at most `limit` bytes (UTF-8), or "" when nothing of it is left.

    NFC; each run of characters outside letters, digits and "._+-" becomes one "_"; no leading dot, dash or "_", no
    trailing dot or "_"; a name that Windows reserves for a device gets a "_". What is cut ends in "_" and eight hex
    digits of the whole text, so two long names stay apart. Doing it twice changes nothing.
    """
    cleaned = _clean(text)
    if not cleaned:
        return ""
    cleaned = _RESERVED.sub(r"\1_", cleaned, count=1) if _RESERVED.match(cleaned) else cleaned
    if len(text) <= _TEXT_LIMIT and len(cleaned.encode()) <= limit:
        return cleaned
    digest = short_hash(unicodedata.normalize("NFC", text) if len(text) <= _TEXT_LIMIT else text)
    head = cleaned.encode()[: max(limit - 9, 0)].decode(errors="ignore").rstrip("._")
    return f"{head}_{digest}" if head else digest[:limit]


def short_hash(text: str, digits: int = 8) -> str:
    """The first hex digits of the SHA-256 of a text: to keep names apart, not to hide anything."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def fold(name: str) -> str:
    """What two names have in common that are one name on SMB or macOS: letter case and composition ignored."""
    return (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )


def _clean(text: str) -> str:
    return _plain(text).lstrip("._-").rstrip("._")


def _plain(text: str) -> str:
    """Every run of unsafe characters as one "_", nothing trimmed."""
    text = text[:_TEXT_LIMIT]
    if text.isascii():
        return _UNSAFE_ASCII.sub("_", text)
    text = unicodedata.normalize("NFC", text)
    out: list[str] = []
    in_word = unsafe = False
    for char in text:
        in_word = _belongs(char, in_word)
        if in_word or char in "._+-":
            out.append(char)
            unsafe = False
        elif not unsafe:
            out.append("_")
            unsafe = True
    return unicodedata.normalize("NFC", "".join(out))


def _belongs(char: str, in_word: bool) -> bool:
    """Whether a character is a letter or a digit, or a mark on one (many scripts write vowels as marks)."""
    category = unicodedata.category(char)
    if category[0] == "L" or category == "Nd":
        return not _INVISIBLE.match(char)
    return in_word and category in ("Mn", "Mc") and not _INVISIBLE.match(char)


def slug(text: str) -> str:
    """`text` in lower-case ASCII letters and digits with single "-" between; a short hash where none are left."""
    head = unicodedata.normalize("NFKD", text[:_TEXT_LIMIT].casefold()).encode("ascii", "ignore").decode()
    found = re.sub(r"[^a-z0-9]+", "-", head).strip("-")
    return found or (short_hash(text) if text.strip() else "")


# --- fields: one {…} of a pattern -----------------------------------------------------------------------------------

# Fields that need no look into the DICOM dictionary, with their value representation (PS3.6). Anything else is looked
# up when a pattern is made.
_USUAL = {
    "AccessionNumber": "SH", "AcquisitionDate": "DA", "AcquisitionDateTime": "DT", "AcquisitionNumber": "IS",
    "AcquisitionTime": "TM", "ContentDate": "DA", "ContentTime": "TM", "EchoNumbers": "IS", "EchoTime": "DS",
    "ImageType": "CS", "InstanceNumber": "IS", "Modality": "CS", "PatientBirthDate": "DA", "PatientID": "LO",
    "PatientName": "PN", "PatientSex": "CS", "ProtocolName": "LO", "SeriesDate": "DA", "SeriesDescription": "LO",
    "SeriesInstanceUID": "UI", "SeriesNumber": "IS", "SeriesTime": "TM", "SequenceName": "SH", "SOPInstanceUID": "UI",
    "StationName": "SH", "StudyDate": "DA", "StudyDescription": "LO", "StudyID": "SH", "StudyInstanceUID": "UI",
    "StudyTime": "TM",
}  # fmt: skip

_OURS = ("subject", "session", "lab")
_LABEL = re.compile(r"labels\.[A-Za-z0-9_-]{1,64}")
_NUMBER_SPEC = re.compile(r"(0[1-9][0-9]?)?d|(0[1-9][0-9]?)?\.[0-9]f")
_DIRECTIVES = {"DA": "Yymdjb", "TM": "HMSf", "DT": "YymdjbHMSf"}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DATE = re.compile(r"([0-9]{4})[.-]?([0-9]{2})[.-]?([0-9]{2})")
_TIME = re.compile(r"([0-9]{2}):?([0-9]{2})?:?([0-9]{2})?(?:\.([0-9]{1,6}))?")
_DATETIME = re.compile(
    r"([0-9]{4})([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?([0-9]{2})?(?:\.([0-9]{1,6}))?(?:[+-][0-9]{4})?"
)


@dataclass(frozen=True, slots=True)
class _Field:
    """Alternatives in order, the text that stands in when all are empty, and how a value becomes text.

    `spec` is a number format, or a time format (has "%"), or "". `kinds` are the alternatives' VRs, "" for ours.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    instead: str = ""
    spec: str = ""
    slugged: bool = False

    def text(self, values: Mapping[str, Value]) -> str:
        for name, kind in zip(self.names, self.kinds, strict=True):
            found = self._one(values.get(name), kind)
            if found:
                return found
        if self.instead or not self.spec or "%" in self.spec:
            return self.instead
        return format(0, self.spec)

    def _one(self, value: Any, kind: str) -> str:
        parts = value if isinstance(value, tuple | list) else (value,)
        first = parts[0] if parts else None
        if "%" in self.spec:
            return safe_value(_timed(_text(first), self.spec, kind))
        if self.spec:
            number = _number(first)
            if number is not None:
                return format(round(number) if self.spec.endswith("d") else number, self.spec)
        # A number that is none is still better told than lost, so text goes where a number was expected.
        text = "-".join(filter(None, (_text(part) for part in parts[:_PARTS_LIMIT])))
        return slug(text)[:FIELD_LIMIT] if self.slugged else safe_value(text)


def safe_value(text: str) -> str:
    """`text` as a part of a component: as `safe_component`, but a leading dash (a sign) stays, and device names."""
    cleaned = _plain(text).lstrip("._").rstrip("._")
    fits = len(text) <= _TEXT_LIMIT and len(cleaned.encode()) <= FIELD_LIMIT
    return cleaned if fits else safe_component(text)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip(" \0")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    if abs(value) >= 1e18:
        return f"{value:e}" if isinstance(value, float) else ""
    return str(int(value)) if value == int(value) else str(value)


def _number(value: Any) -> int | float | None:
    text = _text(value)
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        number = float(text[:64])
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) < 1e18 else None


def _timed(text: str, spec: str, kind: str) -> str:
    """A date or time of PS3.5 6.2 (DA, TM, DT) in the format `spec`; "" when it is no such thing."""
    moment = _moment(text[:64], kind)
    if moment is None:
        return ""
    told = {
        "Y": f"{moment.year:04d}", "y": f"{moment.year % 100:02d}", "m": f"{moment.month:02d}",
        "d": f"{moment.day:02d}", "j": f"{moment.timetuple().tm_yday:03d}", "b": _MONTHS[moment.month - 1],
        "H": f"{moment.hour:02d}", "M": f"{moment.minute:02d}", "S": f"{moment.second:02d}",
        "f": f"{moment.microsecond:06d}",
    }  # fmt: skip
    return re.sub("%(.)", lambda found: told[found[1]], spec)


def _moment(text: str, kind: str) -> datetime.datetime | None:
    shape = {"DA": _DATE, "TM": _TIME}.get(kind, _DATETIME)
    match = shape.fullmatch(text)
    if match is None:
        return None
    found = list(match.groups())
    before = [None] * (3 if kind == "TM" else 0)
    parts: list[str | None] = [*before, *found, *[None] * (7 - len(before) - len(found))]
    year, month, day, hour, minute, second, fraction = parts
    try:
        return datetime.datetime(
            int(year or 1900), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0),
            min(int(second or 0), 59), int((fraction or "0").ljust(6, "0")),  # 60 is a leap second
        )  # fmt: skip
    except ValueError:
        return None


# --- patterns -------------------------------------------------------------------------------------------------------

_Piece: TypeAlias = str | _Field
_EXTENSION = re.compile(r"(\.[A-Za-z][A-Za-z0-9]{0,7}){1,2}$")
_GLUED_BEFORE = re.compile(r"[_.+-]*[^_.+]*$")
_GLUED_AFTER = re.compile(r"^[^_.+-]+")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of folder or file names, read and checked once. `SorterError` says where it is wrong.

    {SeriesNumber:03d}     a whole number, 0 when missing; {EchoTime:.2f} a decimal one
    {StudyDate:%Y-%m-%d}   of a date, time or both: %Y %y %m %b %d %j, %H %M %S %f
    {A ?? B ?? 'text'}     the first that is not empty
    {PatientName|slug}     in lower-case ASCII letters and digits with "-"
    {subject} {session} {lab} {labels.NAME}     what identification said
    {{ and }}              braces
    /                      a new folder; refused where `file` is set

    An empty field takes along the separators before it and the text glued to it ("_ses-{session}" drops out whole); a
    folder of which nothing is left disappears.
    """

    text: str
    file: bool = False
    levels: tuple[tuple[_Piece, ...], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.text) > _PATTERN_LIMIT:
            raise _fault(self.text, _PATTERN_LIMIT, f"a pattern may have {_PATTERN_LIMIT} characters at most")
        levels = tuple(_levels(self.text, self.file))
        if len(levels) > _LEVEL_LIMIT:
            raise _fault(self.text, 0, f"more than {_LEVEL_LIMIT} folder levels")
        object.__setattr__(self, "levels", levels)

    def __str__(self) -> str:
        return self.text

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it asks for, each once: DICOM keywords, subject, session, lab, labels.NAME."""
        found = [name for level in self.levels for piece in level if isinstance(piece, _Field) for name in piece.names]
        return tuple(dict.fromkeys(found))

    @property
    def extension(self) -> str:
        """The extension that every file of this pattern has (".dcm", ".nii.gz"), or ""."""
        last = self.levels[-1][-1] if self.levels and self.levels[-1] else ""
        match = _EXTENSION.search(last) if isinstance(last, str) else None
        return match[0] if match else ""


def _fault(pattern: str, at: int, says: str) -> SorterError:
    shown = pattern if len(pattern) <= 120 else pattern[:117] + "…"
    return SorterError(f'pattern "{shown}", position {at + 1}: {says}')


def _levels(text: str, file: bool) -> Iterator[tuple[_Piece, ...]]:
    """The pieces of each folder level, literal text already safe."""
    level: list[tuple[int, _Piece]] = []
    if text.startswith("/"):
        raise _fault(text, 0, "a pattern starts below the target's root, so without /")
    for at, piece in _pieces(text):
        if not isinstance(piece, str):
            level.append((at, piece))
            continue
        if "\\" in piece:
            raise _fault(text, at + piece.index("\\"), "write / between folders, not \\")
        if file and "/" in piece:
            raise _fault(text, at + piece.index("/"), "a file name has no /; folders are set by the folder pattern")
        first, *others = piece.split("/")
        level.append((at, first))
        at += len(first) + 1
        for other in others:
            yield from _level(text, level)
            level, at = [(at, other)], at + len(other) + 1
    yield from _level(text, level)


def _level(text: str, level: list[tuple[int, _Piece]]) -> Iterator[tuple[_Piece, ...]]:
    at, first = level[0] if level else (0, "")
    if isinstance(first, str) and (first.startswith(".") or (len(level) == 1 and first and not _clean(first))):
        raise _fault(text, at, f'"{first}" can be no name, or the start of one')
    pieces = tuple(_literal(piece) if isinstance(piece, str) else piece for _, piece in level)
    if any(pieces):
        yield tuple(piece for piece in pieces if piece)


def _literal(piece: str) -> str:
    safe = _plain(piece)
    return safe if safe == piece else re.sub("__+", "_", safe)


def _pieces(text: str) -> Iterator[tuple[int, _Piece]]:
    """Literal texts and fields, each with its position."""
    literal, start, at = "", 0, 0
    while at < len(text):
        two = text[at : at + 2]
        if two in ("{{", "}}"):
            literal, at = literal + two[0], at + 2
        elif text[at] == "}":
            raise _fault(text, at, "a } without its {; write }} for a brace")
        elif text[at] != "{":
            literal, at = literal + text[at], at + 1
        else:
            end = text.find("}", at)
            if end < 0:
                raise _fault(text, at, "this { is never closed; write {{ for a brace")
            if literal:
                yield start, literal
            yield at, _field(text, at + 1, text[at + 1 : end])
            literal, start, at = "", end + 1, end + 1
    if literal:
        yield start, literal


def _field(text: str, at: int, inside: str) -> _Field:
    head, colon, spec = inside.partition(":")
    alternatives, bar, filter_name = head.partition("|")
    names: list[str] = []
    instead = ""
    where = at
    for part in alternatives.split("??"):
        name = part.strip()
        here = where + len(part) - len(part.lstrip())
        if instead:
            raise _fault(text, here, "nothing can follow a text in quotes: it is never empty")
        if name[:1] in ("'", '"'):
            instead = _quoted(text, here, name)
        else:
            _check_name(text, here, name)
            names.append(name)
        where += len(part) + 2
    if bar:
        _check_filter(text, at + len(alternatives) + 1, filter_name.strip(), bool(colon))
    kinds = tuple(_kind(name) for name in names)
    if colon:
        _check_spec(text, at + len(head) + 1, spec, dict(zip(names, kinds, strict=True)))
    return _Field(tuple(names), kinds, instead, spec, bool(bar))


def _quoted(text: str, at: int, name: str) -> str:
    inner = _clean(name[1:-1]) if len(name) > 2 and name[-1] == name[0] else ""
    if not inner:
        raise _fault(text, at, "a text in quotes, as 'no-id', needs both quotes and at least one letter or digit")
    return inner


def _check_name(text: str, at: int, name: str) -> None:
    if name in _USUAL or name in _OURS or _LABEL.fullmatch(name):
        return
    if not name:
        raise _fault(text, at, "a field name is missing, as {SeriesDescription}")
    if name[:1].isupper() and _kind(name):
        return
    raise _fault(text, at, f'there is no field "{name[:80]}"{did_you_mean(name, (*_OURS, *_keywords()))}')


def _check_filter(text: str, at: int, name: str, formatted: bool) -> None:
    if name != "slug":
        raise _fault(text, at, f'there is no filter "{name[:80]}"; the only one is slug')
    if formatted:
        raise _fault(text, at, "a field has a filter or a format, not both")


def _check_spec(text: str, at: int, spec: str, kinds: Mapping[str, str]) -> None:
    if "%" not in spec:
        if not _NUMBER_SPEC.fullmatch(spec):
            raise _fault(text, at, f'there is no format "{spec[:80]}"; right are 03d, d, .2f and, for times, %H%M')
        return
    for found in re.finditer("%(.?)", spec):
        if not found[1] or found[1] not in _DIRECTIVES["DT"]:
            right = " ".join(f"%{letter}" for letter in _DIRECTIVES["DT"])
            raise _fault(text, at + found.start(), f'there is no time format "{found[0]}"; right are {right}')
        for name, kind in kinds.items():
            if kind not in _DIRECTIVES:
                raise _fault(text, at, f"{name} is no date or time, so {found[0]} cannot be taken from it")
            if found[1] not in _DIRECTIVES[kind]:
                what, has = ("date", "time of day") if kind == "DA" else ("time of day", "date")
                raise _fault(text, at + found.start(), f"{name} is a {what} and has no {has} for {found[0]}")


def _kind(name: str) -> str:
    """The value representation of a DICOM keyword (PS3.6), "" where there is no such keyword."""
    if name in _USUAL or not name[:1].isupper():
        return _USUAL.get(name, "")
    # Imported only for a keyword out of the ordinary: a worker that only fills in patterns stays small.
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(name)
    return "" if tag is None else str(dictionary_VR(tag))


def _keywords() -> Sequence[str]:
    from pydicom.datadict import keyword_dict

    return tuple(keyword_dict)


# --- filling in -----------------------------------------------------------------------------------------------------


def values_of(header: Header, identity: Identity) -> dict[str, Value]:
    """What patterns can ask for: header values by keyword, and what identification said."""
    found: dict[str, Value] = dict(header)
    for name in _OURS:
        found[name] = getattr(identity, name) or ""
    found.update({f"labels.{name}": label for name, label in identity.labels.items()})
    return found


def folder_name(pattern: Pattern, values: Mapping[str, Value]) -> str:
    """A relative POSIX path of safe folder names: `NAME_LIMIT` bytes each, `PATH_LIMIT` in all.

    "" only for an empty pattern; a pattern whose every level came out empty gives "unnamed".
    """
    if not pattern.levels:
        return ""
    raw = [_filled(level, values) for level in pattern.levels]
    levels = [name for name in (safe_component(each, limit=NAME_LIMIT) for each in raw) if name]
    if len("/".join(levels).encode()) > PATH_LIMIT:
        share = (PATH_LIMIT + 1) // len(levels) - 1
        levels = [safe_component(each, limit=share) for each in levels]
    return "/".join(levels) or NOTHING


def file_name(pattern: Pattern, values: Mapping[str, Value]) -> str:
    """One safe file name of at most `NAME_LIMIT` bytes that keeps the pattern's extension."""
    return _joined(_stem(pattern, values), "", pattern.extension)


def _stem(pattern: Pattern, values: Mapping[str, Value]) -> str:
    raw = "_".join(filter(None, (_filled(level, values) for level in pattern.levels)))
    return raw.removesuffix(pattern.extension)


def _joined(stem: str, suffix: str, extension: str) -> str:
    room = NAME_LIMIT - len(suffix) - len(extension)  # both are ASCII
    # A stem that is a device's name is one with an extension too, so the stem alone is what is made safe.
    return (safe_component(stem, limit=room) or NOTHING) + suffix + extension


def _filled(level: tuple[_Piece, ...], values: Mapping[str, Value]) -> str:
    """One level with its fields filled in; see `Pattern` for what an empty field takes along."""
    out = pending = ""
    after_empty = False
    for piece in level:
        if isinstance(piece, str):
            pending += _GLUED_AFTER.sub("", piece) if after_empty else piece
            after_empty = False
            continue
        text = piece.text(values)
        if text:
            out, pending = out + pending + text, ""
        else:
            out, pending = out + _GLUED_BEFORE.sub("", pending, count=1), ""
        after_empty = not text
    return out + pending


def contained(root: str, relative: str) -> str:
    """`relative` joined to `root`; SorterError if it would leave it.

    This looks at the text alone: whoever opens the path has to refuse symbolic links on the way.
    """
    parts = relative.split("/")
    if relative.startswith("/") or ".." in parts or "\0" in relative or "\\" in relative:
        # The name itself is not told: it may be a patient's.
        raise SorterError("a name leads out of its folder; look at the naming pattern of this lab or target")
    base = posixpath.normpath(root)
    joined = posixpath.normpath(posixpath.join(base, relative))
    if joined != base and not joined.startswith(base.rstrip("/") + "/"):
        raise SorterError("a name leads out of its folder; look at the naming pattern of this lab or target")
    return joined


# --- names of instances, clashes ------------------------------------------------------------------------------------

_COMPONENTS = {
    "P": "ph", "PHASE": "ph", "PHASE MAP": "ph", "I": "im", "IMAGINARY": "im", "R": "re", "REAL": "re",
}  # fmt: skip
_COMPONENT_ORDER = ("", "ph", "re", "im")


def instance_names(
    pattern: Pattern, instances: Sequence[Instance], common: Mapping[str, Value], taken: Mapping[str, str]
) -> dict[str, str]:
    """The file name of each deliverable instance, by `Instance.file`, in the order of their instance numbers.

    `taken` (instance file to name, from the plan before) is never changed, and its names stay reserved even for
    instances that are no longer delivered. Of two that want one name, the newcomer gives way: "_e2" where its echo
    number is another one, "_ph", "_im", "_re" where only it is phase, imaginary or real part, else eight hex digits of
    its SOP Instance UID. A conflict copy always says so ("_conflict-…"). Names that differ only in letter case or
    composition are one name. Within one call the order of `instances` does not matter. `common` holds what is the same
    for all (`values_of`); an instance's own header goes first.
    """
    by_file = {each.file: each for each in instances}
    holders: dict[str, Instance | None] = {fold(name): by_file.get(file) for file, name in taken.items()}
    names: dict[str, str] = {}
    for instance in sorted((each for each in instances if each.deliverable), key=_order):
        if instance.file in taken:
            names[instance.file] = taken[instance.file]
            continue
        stem = _stem(pattern, {**common, **instance.header})
        name = next(
            name for name in _candidates(stem, pattern.extension, instance, holders) if fold(name) not in holders
        )
        holders[fold(name)] = instance
        names[instance.file] = name
    return names


def _order(instance: Instance) -> tuple[int | float, bool, int | float, int, str, str]:
    header = instance.header
    return (
        _first_number(header.get("InstanceNumber")),
        instance.standing is Standing.CONFLICT,
        _first_number(header.get("EchoNumbers")),
        _COMPONENT_ORDER.index(_component(header)),
        instance.sop_uid,
        instance.dataset,
    )


def _candidates(stem: str, extension: str, instance: Instance, holders: Mapping[str, Instance | None]) -> Iterator[str]:
    """Names for one instance, best first, without end."""
    mark = f"_conflict-{short_hash(instance.dataset)}" if instance.standing is Standing.CONFLICT else ""
    plain = _joined(stem, mark, extension)
    yield plain
    holder = holders.get(fold(plain))
    told = _difference(instance.header, holder.header) if holder is not None else ""
    if told:
        yield _joined(stem, told + mark, extension)
    yield _joined(stem, f"_{short_hash(instance.sop_uid)}{mark}", extension)
    attempt = 0
    while True:
        more = short_hash(f"{instance.sop_uid}\0{instance.dataset}\0{instance.file}\0{attempt}", 16)
        yield _joined(stem, f"_{more}{mark}", extension)
        attempt += 1


def _difference(header: Header, holder: Header) -> str:
    """What sets an image apart from the one that holds its name, as a suffix: "_e2", "_ph", "_e2_ph" or ""."""
    out = ""
    echo = safe_value(_text(_first(header.get("EchoNumbers"))))[:8]
    if echo and _first_number(header.get("EchoNumbers")) != _first_number(holder.get("EchoNumbers")):
        out += f"_e{echo}" if echo.isascii() else ""
    component = _component(header)
    if component and component != _component(holder):
        out += f"_{component}"
    return out


def _component(header: Header) -> str:
    """Which part of a complex image this is, by ImageType or ComplexImageComponent; "" for magnitude or unknown."""
    for keyword in ("ComplexImageComponent", "ImageType"):
        value = header.get(keyword, ())
        for part in value[:_PARTS_LIMIT] if isinstance(value, tuple | list) else (value,):
            found = _COMPONENTS.get(_text(part).upper())
            if found:
                return found
    return ""


def _first(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return value[0] if value else None
    return value


def _first_number(value: Any) -> int | float:
    return _number(_first(value)) or 0
