"""The lab's own file, `<root>/.sorter/lab.toml`: names, sub-folders and products of what is delivered to that lab.

    found = read_lab(data)          # a LabFile; ConfigError: every fault, with its line

What a lab writes is valid for its own series at its own root, and for nothing else: no key here names a root, a target
or another lab, and every name is a pattern of the closed formatter, which cannot leave the root.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sorter.config.models import LabConfig, MatchRule, Section, shown
from sorter.config.places import Key
from sorter.config.reading import Sources, Tables
from sorter.errors import ConfigError, SorterError
from sorter.expected import checked_glob, fits
from sorter.matching import checked_series, fits_rule, fits_series
from sorter.model import DICOM, Name, Series
from sorter.naming import Pattern

LAB_FILE = "lab.toml"

MOST_BYTES = 256 << 10
"""Of the whole file."""

MOST_RULES = 500

MOST_PRODUCTS = 64

_MOST_FAULTS = 50
"""That are told; whoever mends those sees the others. To look for more would take the time of all labs: what each might
have meant is sought among thousands of words."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def _pattern(text: str, *, file: bool) -> str:
    try:
        levels = Pattern(text, file=file).levels
    except SorterError as error:
        raise ValueError(str(error)) from None
    if not levels:
        raise ValueError("must have a name in it; leave it out for the usual one")
    return text


def _folder(text: str) -> str:
    return _pattern(text, file=False)


def _file(text: str) -> str:
    return _pattern(text, file=True)


def _date(text: str) -> str:
    if not _DATE.fullmatch(text):
        raise ValueError(f'{shown(text)} is no day; write it as "2026-01-05"')
    return text


def _series(text: str) -> str:
    try:
        return checked_series(text)
    except SorterError as error:
        raise ValueError(str(error)) from None


Folder = Annotated[str, AfterValidator(_folder)]
File = Annotated[str, AfterValidator(_file)]
Glob = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(checked_glob)]
Words = Annotated[str, Field(max_length=500)]
Products = Annotated[tuple[str, ...], Field(strict=False, max_length=MOST_PRODUCTS)]


class Patterns(Section):
    """`[naming.products.NAME]`: of something that is made of the images, as NIfTI."""

    folder: Folder | None = None
    """The folder of what is made, a pattern. Default: as the admin has it."""
    file: File | None = None
    """The start of its file names, a pattern; what the maker adds, as `_e2.nii.gz`, is kept. Default: as the admin
    has it."""


class Naming(Section):
    """`[naming]`: under which names the lab gets its series."""

    folder: Folder | None = None
    """The folder of a series below the lab's folder, a pattern. Default: as the admin has it."""
    file: File | None = None
    """The name of each image, a pattern. Default: as the admin has it."""
    products: dict[str, Patterns] = Field(default_factory=dict)
    """`[naming.products.NAME]`: the same for what is made of the images. Default: as the admin has it."""


class Deliver(Section):
    """`[deliver]`: what the lab gets."""

    products: Products | None = None
    """What is delivered, as `["dicom", "nifti"]`. Default: as the admin has it."""


class Rule(Section):
    """`[[rules]]`: what is different for some of the lab's series. The first rule that fits a series counts; of those
    words of a rule that say which series are meant, all have to fit."""

    subject: Glob | None = None
    """Series of these subjects: a glob, as `"PILOT*"`. Default: of all."""
    series: Annotated[Glob, AfterValidator(_series)] | None = None
    """These series: numbers as `"3,5-7"`, or a glob of the description as `"*T1*"`. Default: all."""
    modality: Glob | None = None
    """Series of this modality, as `"MR"`. Default: of all."""
    match: Annotated[tuple[MatchRule, ...], Field(strict=False, max_length=64)] = ()
    """Rules `"KEYWORD=GLOB"`, as the admin's: any of them fits. Default: all."""
    below: Folder | None = None
    """A folder that these series come into, in front of their usual one: a pattern, as `"pilot/{session}"`."""
    folder: Folder | None = None
    """As in `[naming]`, for these series."""
    file: File | None = None
    """As in `[naming]`, for these series."""
    products: Products | None = None
    """As in `[deliver]`, for these series."""
    author: Words = ""
    """Who wrote the rule. sorter writes it where it wrote the rule itself."""
    date: Annotated[str, AfterValidator(_date)] | None = None
    """When, as `"2026-01-05"`."""
    says: Words = ""
    """What the rule is for, in the lab's own words."""

    @property
    def asks(self) -> bool:
        """Does it say which series are meant?"""
        return bool(self.subject or self.series or self.modality or self.match)

    @property
    def decides(self) -> bool:
        """Does it say what is different for them?"""
        return any(value is not None for value in (self.below, self.folder, self.file, self.products))

    def fits(self, series: Series) -> bool:
        """Is this series meant?"""
        number = str(series.get("SeriesNumber", ""))
        return (
            (self.subject is None or fits(self.subject, series.subject or ""))
            and (self.series is None or fits_series(self.series, number, _description(series)))
            and (self.modality is None or fits(self.modality, str(series.get("Modality", ""))))
            and (not self.match or any(fits_rule(each, series) for each in self.match))
        )


def _description(series: Series) -> str:
    named = (series.get(each) for each in ("SeriesDescription", "ProtocolName", "SequenceName"))
    return next((str(each) for each in named if each is not None), "")


class Notifications(Section):
    """`[notifications]`: what the lab is told of."""

    news: Annotated[tuple[Literal["studies", "incomplete", "daily", "claims"], ...], Field(strict=False)] = (
        "studies",
        "incomplete",
        "daily",
        "claims",
    )
    """What stands in `.sorter/NEWS.txt`: studies that came as a whole, studies that lack something, what should come
    every day and did not, and what became of claims. `[]` for no such page."""


class LabFile(Section):
    """All that a lab says; an empty one changes nothing."""

    naming: Naming = Naming()
    deliver: Deliver = Deliver()
    notifications: Notifications = Notifications()
    rules: tuple[Rule, ...] = ()

    def rule_for(self, series: Series) -> Rule | None:
        """The first that fits."""
        return next((each for each in self.rules if each.fits(series)), None)

    def name(self, series: Series, product: str, usual: Name) -> Name:
        """The patterns of one product; `usual` are those of everybody who says nothing."""
        return self._name(self.rule_for(series) or Rule(), product, usual)

    def products(self, series: Series) -> tuple[str, ...] | None:
        """What is delivered of a series; None where the lab leaves it to the admin."""
        rule = self.rule_for(series)
        return rule.products if rule is not None and rule.products is not None else self.deliver.products

    def names(self, usual: Mapping[str, Name]) -> Iterator[tuple[Key, Name]]:
        """Every name that there can be of these products, with the key of the rule that it is for."""
        for product, name in usual.items():
            yield ("naming",), self._name(Rule(), product, name)
            for index, rule in enumerate(self.rules):
                yield ("rules", str(index)), self._name(rule, product, name)

    def _name(self, rule: Rule, product: str, usual: Name) -> Name:
        own = self.naming if product == DICOM else self.naming.products.get(product, Patterns())
        folder, file = own.folder, own.file
        if product == DICOM:
            folder, file = rule.folder or folder, rule.file or file
        folder = usual.folder if folder is None else folder
        return Name("/".join(filter(None, (rule.below, folder))), usual.file if file is None else file)


# --- reading --------------------------------------------------------------------------------------------------------


def read_lab(data: bytes, usual: Mapping[str, Name]) -> LabFile:
    """A lab's file. ConfigError holds every fault, as "lab.toml:7: rules.0.folder: …", each in one line.

    `usual` are the names that each product has without it; there are no other products.
    """
    found, sources = _read(data)
    if not sources.faults:  # else a rule's number here may be another one's there
        for key, says in _check(found, usual):
            sources.faults.append((sources.place(key), f"{'.'.join(key)}: {says}"))
    return _faultless(found, sources)


def read_kept(data: bytes) -> LabFile:
    """The same of a file that was right once: products may have gone, and the usual names be others since."""
    return _faultless(*_read(data))


def _read(data: bytes) -> tuple[LabFile, Sources]:
    if len(data) > MOST_BYTES:
        raise ConfigError([f"{LAB_FILE}: it is longer than {MOST_BYTES >> 10} KiB; this is no place for data"])
    sources = Sources(name=LAB_FILE)
    sources.add(data, LAB_FILE)
    return _LabReader(sources).lab_file(), sources


def _faultless(found: LabFile, sources: Sources) -> LabFile:
    if sources.faults:
        raise ConfigError(_told(sources.sorted_faults()))
    return found


def _told(faults: list[str]) -> list[str]:
    """In lines that nothing in the file can break, and not more than anybody reads."""
    more = len(faults) - _MOST_FAULTS
    said = ["".join(char if char.isprintable() else "�" for char in each)[:1000] for each in faults[:_MOST_FAULTS]]
    return [*said, f"{LAB_FILE}: and {more} more"] if more > 0 else said


class _LabReader(Tables):
    def lab_file(self) -> LabFile:
        self._known()
        rules = self._raw.get("rules", [])
        if isinstance(rules, list) and len(rules) > MOST_RULES:
            self.fault(("rules",), f"there are {len(rules)} rules; {MOST_RULES} are the most")
            self._raw["rules"] = []
        naming = self._raw.get("naming")
        products = naming.get("products") if isinstance(naming, dict) else None
        if isinstance(naming, dict) and isinstance(products, dict) and len(products) > MOST_PRODUCTS:
            self.fault(("naming", "products"), f"there are {len(products)}; {MOST_PRODUCTS} are the most")
            naming["products"] = {}
        return LabFile(
            naming=self.section(Naming, "naming"),
            deliver=self.section(Deliver, "deliver"),
            notifications=self.section(Notifications, "notifications"),
            rules=self.listed("rules", Rule, _MOST_FAULTS),
        )

    def _known(self) -> None:
        for name in [name for name in self._raw if name not in LabFile.model_fields]:
            if name in _THE_ADMINS:
                self.fault((name,), "this is the admin's to say, in sorter.toml; remove it here")
                del self._raw[name]
        self.known_only(LabFile)


_THE_ADMINS = frozenset(
    {"sorter", "receive", "senders", "watch", "completion", "delivery", "store", "engine", "labs", "targets", "plugins"}
    | set(LabConfig.model_fields)
)


def _check(found: LabFile, usual: Mapping[str, Name]) -> Iterator[tuple[Key, str]]:
    """What no single key shows."""
    for index, rule in enumerate(found.rules):
        if not rule.asks:
            yield ("rules", str(index)), "says of no series that it is meant; give subject, series, modality or match"
        if not rule.decides:
            yield ("rules", str(index)), "changes nothing; give below, folder, file or products"
    for key, wanted in _wanted(found):
        for product in wanted:
            if product not in usual:
                yield key, f"nothing makes {shown(product)[:80]}; there are {', '.join(usual)}"
    for name in found.naming.products:
        if name == DICOM:
            yield ("naming", "products", name), "the names of the images stand in [naming] itself"
        elif name not in usual:
            yield ("naming", "products", name), f"nothing makes {shown(name)[:80]}; there are {', '.join(usual)}"
    for key, each in found.names(usual):
        try:
            Pattern(each.folder)
        except SorterError as error:
            yield key, str(error)


def _wanted(found: LabFile) -> Iterator[tuple[Key, tuple[str, ...]]]:
    if found.deliver.products is not None:
        yield ("deliver", "products"), found.deliver.products
    for index, rule in enumerate(found.rules):
        if rule.products is not None:
            yield ("rules", str(index), "products"), rule.products
