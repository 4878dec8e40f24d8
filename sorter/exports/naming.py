"""Under which names: presets, patterns of our own, and the % codes of dcm2niix."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sorter.errors import SorterError, did_you_mean
from sorter.exports.copying import Copy
from sorter.exports.finding import Found, Made
from sorter.model import Value
from sorter.naming import DEFAULT_FILE, DEFAULT_FOLDER, Pattern, folder_name, instance_names, safe_component, values_of

PRESETS: Mapping[str, str] = {
    "pretty": f"{DEFAULT_FOLDER}/{DEFAULT_FILE}",
    "percent": "%i/%t/%s_%p/%4r.dcm",
    "flat": "{subject}_{StudyDate}_{StudyTime:%H%M}_{SeriesNumber:03d}_{InstanceNumber:06d}.dcm",
}
"""What `--name` knows by a word. `percent` is how `dcm2niix -r y` names, below a folder of the subject."""

# dcm2niix's codes (its -f) as far as an image has them; a number before the letter is the digits.
_CODES = {
    "d": "SeriesDescription", "e": "EchoNumbers", "g": "AccessionNumber", "i": "subject", "j": "SeriesInstanceUID",
    "k": "StudyInstanceUID", "m": "Manufacturer", "n": "PatientName", "o": "SOPInstanceUID", "p": "ProtocolName",
    "r": "InstanceNumber", "s": "SeriesNumber", "u": "AcquisitionNumber", "x": "StudyID", "z": "SequenceName",
}  # fmt: skip
_NUMBERS = "ersu"
_CODE = re.compile(r"%(\d?)(.?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Naming:
    """Folders and file names, each read once."""

    folder: Pattern | None
    file: Pattern


def naming(text: str = "pretty") -> Naming:
    """Of a preset's name or a pattern of folders and file name in one. SorterError says where it is wrong."""
    if text not in PRESETS and not any(each in text for each in "%{/"):
        near = did_you_mean(text, PRESETS) or f"; right are {', '.join(PRESETS)}, or fields as {{subject}}"
        raise SorterError(f'pattern "{text[:120]}": it is no name that --name knows, and has no field{near}')
    pattern = PRESETS.get(text, text)
    if "%" in pattern and "{" not in pattern:
        pattern = from_percent(pattern)
    folder, file = split(pattern)
    return Naming(Pattern(folder) if folder else None, Pattern(file, file=True))


def split(pattern: str) -> tuple[str, str]:
    """(folder, file) of a pattern; one that ends in "/" or names no file keeps the default file names."""
    folder, _, file = pattern.rpartition("/")
    if not file:
        return folder, DEFAULT_FILE
    if "." not in file.rpartition("}")[2] and not any(f"{{{each}" in file for each in _OF_AN_IMAGE):
        return pattern, DEFAULT_FILE
    return folder, file


_OF_AN_IMAGE = ("InstanceNumber", "SOPInstanceUID")


def from_percent(pattern: str) -> str:
    """A pattern of ours for one in dcm2niix's codes: "%i/%t/%s_%p/%4r.dcm"."""

    def code(found: re.Match[str]) -> str:
        digits, letter = found.groups()
        if letter == "%":
            return "%"
        if letter == "t":
            return "{StudyDate:%Y%m%d}{StudyTime:%H%M%S}"
        if letter not in _CODES:
            right = " ".join(f"%{each}" for each in sorted((*_CODES, "t")))
            raise SorterError(f'pattern "{pattern[:120]}": there is no code "{found[0]}" here; right are {right}')
        if letter in _NUMBERS:
            return f"{{{_CODES[letter]}:{f'0{digits}' if digits not in ('', '0') else ''}d}}"
        return f"{{{_CODES[letter]}}}"

    return _CODE.sub(code, pattern)


def plan_copies(found: Sequence[Found], how: Naming, new_names: Mapping[str, str] | None = None) -> list[Copy]:
    """What is to be copied where. `new_names`: by key of a series what its subject is called there.

    Two series that want one folder are kept apart: the later one's gets a suffix of its key, as do file names that
    clash where all lie in one folder.
    """
    owners: dict[str, str] = {}
    taken: dict[str, dict[str, str]] = {}
    copies: list[Copy] = []
    for series in found:
        copies += _of_series(series, how, (new_names or {}).get(series.key, ""), (owners, taken))
    return copies


def plan_products(
    found: Sequence[tuple[Found, str, Made]], how: Naming, new_names: Mapping[str, str] | None = None
) -> list[Copy]:
    """What was made of these series, beside the folder that its images would have, in one called as the product:
    "DEV01/20260105_1011/nifti/003_T1w.nii.gz". Where all lie in one folder, under the name of the first image."""
    images = plan_copies([series for series, _, _ in found], how, new_names)
    first: dict[Path, str] = {}
    for copy in images:
        first.setdefault(copy.source, copy.name)
    copies = []
    for series, product, made in found:
        name = min(first[series.folder / each.file] for each in series.images if series.folder / each.file in first)
        folder, file = os.path.split(name)
        above, last = os.path.split(folder)
        stem = os.path.join(above, safe_component(product), last) if folder else file.removesuffix(how.file.extension)
        copies += [
            Copy(made.folder / each, _of_product(stem, each), sha256, size) for each, sha256, size in made.product.files
        ]
    return copies


def _of_product(stem: str, name: str) -> str:
    """Makers call their files "out…", and what follows is kept, as ".nii.gz" or "_e2.json"."""
    more = name.removeprefix("out") if name.startswith("out") else f"_{name}"
    return stem + safe_component(f"x{more}")[1:]  # behind something: a leading dot or "_" stays


def _of_series(
    series: Found, how: Naming, new_name: str, held: tuple[dict[str, str], dict[str, dict[str, str]]]
) -> list[Copy]:
    owners, taken = held
    identity, instead = series.identity, dict[str, Value]()
    if new_name:
        identity = replace(identity, subject=new_name)
        instead = {"PatientID": new_name, "PatientName": new_name}
    where = folder_name(how.folder, {**values_of(series.face, identity), **instead}) if how.folder else ""
    if where and owners.setdefault(where.casefold(), series.key) != series.key:
        where = f"{where}_{series.key[:6]}"
    images = [replace(each, header={**each.header, **instead}) for each in series.images]
    reserved = taken.setdefault(where.casefold(), {})
    names = instance_names(how.file, images, values_of({}, identity), reserved)
    reserved.update({f"{series.key}/{file}": name for file, name in names.items()})
    return [
        Copy(
            series.folder / each.file,
            os.path.join(where, names[each.file]),
            each.sha256,
            each.size,
            series.elsewhere.get(each.file),
        )
        for each in images
        if each.file in names
    ]
