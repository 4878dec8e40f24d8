"""Series that can be pulled: those of the store, and those of any folder of DICOM files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sorter.durable import Files
from sorter.errors import Quarantine, SorterError
from sorter.model import Header, Identity, Instance, Standing, UnitKind, unit_key
from sorter.naming import contained
from sorter.spool import Spool, Unit, UnitSummary
from sorter.spool.unit import Product
from sorter.spool.veils import Veils
from sorter.spool.whereabouts import whereabouts
from sorter.summaries import Unread
from sorter.take.header import Parsed, examine, instance_of

NOT_YET = "not published"


@dataclass(frozen=True, slots=True)
class Found:
    """One series: who and what it is, and its images, whose `file` is relative to `folder`."""

    key: str
    identity: Identity
    study_uid: str
    series_uids: tuple[str, ...]
    face: Header  # of its first image
    verdict: str
    folder: Path
    images: tuple[Instance, ...]
    elsewhere: Mapping[str, Path] = field(default_factory=dict)  # by file: where those lie that have left the store
    only: tuple[str, ...] | None = None  # its lab gets these products, and no images

    def text(self, *keywords: str) -> str:
        """The first of these header values that is not empty."""
        return next((str(self.face[each]) for each in keywords if self.face.get(each) not in (None, "")), "")

    @property
    def subject(self) -> str:
        return self.identity.subject or ""

    @property
    def number(self) -> str:
        return self.text("SeriesNumber")

    @property
    def description(self) -> str:
        return self.text("SeriesDescription", "ProtocolName", "SequenceName")


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a series, whose files are relative to `folder`; or why there was nothing to make."""

    folder: Path
    product: Product


@dataclass(frozen=True, slots=True)
class Left:
    """A file of a folder that is no image, or cannot be read, and why."""

    path: str
    why: str


def in_store(
    spool: Spool, units: Iterable[UnitSummary], roots: Mapping[str, Path] | None = None, unread: Unread | None = None
) -> Iterator[Found]:
    """The series of these summaries, with everything that is deliverable of them. `unread` as in `summaries`.

    `roots` are the folders of targets, by name: where delivered copies lie of images that have left the store.
    """
    for summary in units:
        if summary.kind is not UnitKind.SERIES:  # it has no images itself
            continue
        try:
            unit = Unit.load(spool, summary.key)
        except OSError as error:
            if unread is None:
                raise
            unread(summary.key, error)
            continue
        identity = Identity(lab=summary.lab, subject=summary.subject, session=summary.session)
        veil = Veils(spool.labs, spool.files).of(summary.lab)
        if veil is not None:
            face, images = veil.header(unit.face), (veil.stand_in(unit.face),)
            yield Found(unit.key, identity, "", (), face, summary.verdict or NOT_YET, unit.images, images,
                        only=veil.only)  # fmt: skip
            continue
        yield Found(
            key=unit.key,
            identity=identity,
            study_uid=summary.study_uid,
            series_uids=summary.series_uids,
            face=unit.face,
            verdict=summary.verdict or NOT_YET,
            folder=unit.images,
            images=tuple(replace(each, header=unit.header(each)) for each in unit.deliverable),
            elsewhere=dict(delivered(unit, roots or {})),
        )


def delivered(unit: Unit, roots: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Where a copy of each image should lie that left; what lies there is compared with its digest.

    Of several places the one comes last, and so counts, where it was read before it left.
    """
    places = [each for each in whereabouts(unit) if each.target in roots] if unit.left else []
    for receipt in reversed(places):
        for each in receipt.files:
            if each.file in unit.left and each.sha256 == unit.instances[each.file].sha256:
                name = f"{receipt.folder}/{each.beside or each.name}"
                yield each.file, Path(contained(str(roots[receipt.target]), name))


def in_folder(root: Path, hear: Callable[[Left], None], seen: Callable[[], None] = lambda: None) -> list[Found]:
    """What is below a plain folder, by study and series. A second file of the same image and header is left out.

    `hear` is told what is no image; `seen` is called for every file. Links are not followed. SorterError: no folder.
    """
    files, images = Files(), dict[tuple[str, str], dict[tuple[str, str], Instance]]()
    if not files.is_folder(root):
        raise SorterError(f"{root} is no folder; --from wants one with DICOM files in it")
    for path in _regular(files, root, hear):
        seen()
        name = os.path.relpath(path, root)
        try:
            with files.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                parsed = examine(files, fd)
        except Quarantine as reason:
            hear(Left(name, str(reason)))
        except OSError as error:
            hear(Left(name, f"it cannot be read: {error.strerror}"))
        else:
            series = images.setdefault((parsed.study_uid, parsed.series_uid), {})
            series.setdefault((parsed.sop_uid, parsed.dataset), _instance(parsed, name, series))
    return [_found(root, key, list(series.values())) for key, series in images.items()]


def _regular(files: Files, folder: Path, hear: Callable[[Left], None]) -> Iterator[Path]:
    """Every regular file below, in the order of names, so that two runs do the same."""
    rest = [folder]
    while rest:
        here = rest.pop()
        try:
            entries = sorted(files.entries(here), key=lambda each: each.name)
        except OSError as error:
            hear(Left(str(here), f"it cannot be opened: {error.strerror}"))
            continue
        rest += [here / each.name for each in reversed(entries) if each.is_dir(follow_symlinks=False)]
        yield from (here / each.name for each in entries if each.is_file(follow_symlinks=False))


def _instance(parsed: Parsed, name: str, others: dict[tuple[str, str], Instance]) -> Instance:
    """Other pixels under one SOP Instance UID are a conflict: both are copied, under names that say so."""
    rival = any(sop == parsed.sop_uid and each.pixels != parsed.pixels for (sop, _), each in others.items())
    return replace(instance_of(parsed, file=name), standing=Standing.CONFLICT if rival else Standing.CURRENT)


def _found(root: Path, key: tuple[str, str], images: list[Instance]) -> Found:
    face = images[0].header
    subject = str(face.get("PatientID") or face.get("PatientName") or "")
    return Found(
        key=unit_key(UnitKind.SERIES, *key),
        identity=Identity(subject=subject),
        study_uid=key[0],
        series_uids=(key[1],),
        face=face,
        verdict="",
        folder=root,
        images=tuple(images),
    )
