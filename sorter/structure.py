"""Is what came whole in itself? The check that needs no vendor's word and no count, only the images' own headers.

Numbers without a gap, and every volume with the same slices, do not prove that nothing is still to come; a gap, or a
volume that is begun and not finished, shows that something is. Where a series is built so that neither would mean
anything (numbers that start anew, slices that move, one image alone), the answer is *unknown*: a false alarm costs more
trust than silence does.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from sorter.model import Header, Value
from sorter.words import counted

PARTS = (("EchoNumbers",), ("EchoTime",), ("ImageType",), ("ImageType", "EchoNumbers"), ("AcquisitionNumber",))
"""What tells the parts of a series apart, where InstanceNumber starts anew in each."""

LEAST_DENSE = 0.5
"""Of the numbers from the first to the last, so many must be there for their gaps to mean lost images."""

MOST_NAMED = 12
"""Ranges of missing numbers that one sentence names."""

_LARGEST = 1 << 31  # an IS value (PS3.5 6.2)
_MILLIMETRES = 100  # positions are compared in hundredths
_COSINES = 1000


@dataclass(frozen=True, slots=True)
class Structure:
    """What the headers of a unit's images show. Only where `known` do the other answers mean anything.

    `volumes` counts the one that is begun; `slices` is slices in a volume; each is None where it cannot be told.
    `partial` is what is there of a volume, or of the images of a slice, that is begun and not whole; 0 where none is.
    """

    known: bool
    why: str  # what was seen, or why the check does not apply: half a sentence
    images: int = 0
    contiguous: bool | None = None  # InstanceNumber (0020,0013) without a gap; None: the numbers say nothing
    volumes: int | None = None
    slices: int | None = None
    partial: int = 0
    holes: tuple[str, ...] = ()  # sentences, each naming images that should be there

    @property
    def whole(self) -> bool:
        """Nothing that is here lacks anything; more may come."""
        return self.known and not self.holes and not self.partial

    @property
    def stopped(self) -> bool:
        """Without holes, but its end is ragged: it is still being sent, or the run was ended early."""
        return self.known and not self.holes and self.partial > 0


Numbered: TypeAlias = "list[tuple[int, Header]]"
"""(InstanceNumber, header), by number, each number once."""


def structure_of(headers: Sequence[Header]) -> Structure:
    """What these headers show together; one for each SOP instance, in any order, all values that it has.

    Attributes: InstanceNumber, ImagePositionPatient and ImageOrientationPatient (PS3.3 C.7.6.2), NumberOfFrames,
    the concatenation module (PS3.3 C.7.6.16), ImageType, EchoNumbers, AcquisitionNumber. It looks at each header a few
    times and never raises, whatever the values are.
    """
    if len(headers) and all("ConcatenationUID" in header for header in headers):
        return _concatenated(headers)
    if len(headers) < 2:
        return Structure(False, "one image alone shows nothing" if headers else "there is no image", len(headers))
    numbered = _numbered(headers)
    if numbered is None:
        return _parallel(headers) or _by_position_alone(headers)
    found = _by_number(numbered)
    if not found.known or found.holes:
        return found
    return _with_volumes(found, numbered)


# --- numbers --------------------------------------------------------------------------------------------------------


def _numbered(headers: Sequence[Header]) -> Numbered | None:
    """By InstanceNumber; None where one is missing or there twice."""
    found: dict[int, Header] = {}
    for header in headers:
        number = _integer(header.get("InstanceNumber"))
        if number is None or number in found:
            return None
        found[number] = header
    return sorted(found.items(), key=lambda item: item[0])


def _integer(value: Value | None) -> int | None:
    return value if isinstance(value, int) and -_LARGEST <= value < _LARGEST else None


def _by_number(numbered: Numbered) -> Structure:
    numbers = [number for number, _ in numbered]
    first, last, count = numbers[0], numbers[-1], len(numbers)
    gaps = [(one + 1, other - 1) for one, other in itertools.pairwise(numbers) if other > one + 1]
    if not gaps:
        return Structure(True, f"{counted(count, 'images')} numbered {first} to {last} without a gap", count, True)
    widths = {other - one for one, other in gaps}
    if len(gaps) == count - 1 and len(widths) == 1:
        return Structure(False, "the images are numbered in steps", count)
    if count < LEAST_DENSE * (last - first + 1):
        return Structure(False, f"{count} images with numbers from {first} to {last} are not counted by them", count)
    hole = f"{_named(gaps)} {'is' if _width(gaps) == 1 else 'are'} missing between number {first} and number {last}"
    return Structure(True, f"{count} images, {_width(gaps)} missing between them", count, False, holes=(hole,))


def _width(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)


def _named(ranges: Sequence[tuple[int, int]]) -> str:
    said = [str(first) if first == last else f"{first}–{last}" for first, last in ranges[:MOST_NAMED]]
    more = _width(ranges[MOST_NAMED:])
    word = "image" if _width(ranges) == 1 else "images"
    return f"{word} {', '.join(said)}{f' and {more} more' if more else ''}"


def _parallel(headers: Sequence[Header]) -> Structure | None:
    """Numbers that start anew with each echo, image type or acquisition, as in field maps; None: not so either.

    A gap counts only where all parts have the same numbers otherwise; a part with a shorter end is by design.
    """
    for names in PARTS:
        parts: dict[tuple[Value | None, ...], set[int]] = {}
        for header in headers:
            number = _integer(header.get("InstanceNumber"))
            part = parts.setdefault(tuple(header.get(name) for name in names), set())
            if number is None or number in part:
                break
            part.add(number)
        else:
            return _compared(parts, names, len(headers))
    return None


def _compared(parts: dict[tuple[Value | None, ...], set[int]], names: Sequence[str], images: int) -> Structure | None:
    union = sorted(set().union(*parts.values()))
    if len(union) != union[-1] - union[0] + 1 or min(map(len, parts.values())) <= LEAST_DENSE * len(union):
        return None
    holes = []
    for label, part in parts.items():
        inner = [number for number in union if min(part) < number < max(part) and number not in part]
        if inner:
            named = _named([(number, number) for number in inner])
            which = ", ".join(f"{name} {_said(value)}" for name, value in zip(names, label, strict=True))
            holes.append(f"{named} of {which} {'is' if len(inner) == 1 else 'are'} missing")
    why = f"{images} images in {len(parts)} parts of the same numbers {union[0]} to {union[-1]}"
    return Structure(True, why, images, not holes, holes=tuple(holes))


def _said(value: Value | None) -> str:
    return "\\".join(map(str, value)) if isinstance(value, tuple) else str(value)


# --- volumes --------------------------------------------------------------------------------------------------------


def _with_volumes(found: Structure, numbered: Numbered) -> Structure:
    """Of images without a gap in their numbers: how many volumes, and whether the last one is whole."""
    if any("MOSAIC" in _values(header.get("ImageType")) for _, header in numbered):
        slices = _integer(numbered[0][1].get("SiemensImagesInMosaic"))
        return replace(found, volumes=found.images, slices=slices, why=f"{found.why}, each a volume")
    frames = [_integer(header.get("NumberOfFrames")) for _, header in numbered]
    if any(frames):
        return _of_frames(found, frames)
    places = [_place(header) for _, header in numbered]
    if any(place is None for place in places):
        return found
    return _of_slices(found, places)


def _values(value: Value | None) -> tuple[str | int | float, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _of_frames(found: Structure, frames: Sequence[int | None]) -> Structure:
    """Multi-frame objects of one volume each; an interrupted run of Siemens XA ends in one with fewer frames.

    The last is judged only by at least two before it that agree (seen so: rordenlab/dcm2niix, issue 742).
    """
    usual, last = frames[0], frames[-1]
    if usual is None or last is None or any(each != usual for each in frames[:-1]):
        return found
    if last == usual:
        return replace(found, volumes=found.images, slices=usual, why=f"{found.why}, each of {usual} frames")
    if last > usual or found.images < 3:
        return found
    why = f"{found.why}; the last has {last} of {usual} frames"
    return replace(found, volumes=found.images, slices=usual, partial=last, why=why)


Place: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"
"""Orientation and position of a slice, rounded."""


def _place(header: Header) -> Place | None:
    cosines = _rounded(header.get("ImageOrientationPatient"), 6, _COSINES)
    position = _rounded(header.get("ImagePositionPatient"), 3, _MILLIMETRES)
    return None if cosines is None or position is None else (cosines, position)


def _rounded(value: Value | None, count: int, scale: int) -> tuple[int, ...] | None:
    if not isinstance(value, tuple) or len(value) != count:
        return None
    numbers = [each for each in value if isinstance(each, int | float) and abs(each) < _LARGEST]
    return tuple(round(each * scale) for each in numbers) if len(numbers) == count else None


def _of_slices(found: Structure, places: Sequence[Place | None]) -> Structure:
    """Single-frame images in the order of their numbers; `places` say where each slice lies."""
    counts = Counter(places)
    if len({place[0] for place in counts if place is not None}) > 1 or len(counts) < 2:
        return found  # several orientations, as in a localizer, or one slice again and again
    slices, most = len(counts), max(counts.values())
    if min(counts.values()) == most:
        return replace(found, volumes=most, slices=slices, why=f"{found.why}: {_volumes(most, slices)}")
    rest = _rest(places, slices)
    if rest:
        volumes = -(-len(places) // slices)
        why = f"{found.why}: {_volumes(volumes - 1, slices)}, and {rest} of the next volume"
        return replace(found, volumes=volumes, slices=slices, partial=rest, why=why)
    rest = _rest_of_a_slice(places)
    if rest:
        why = f"{found.why}: {counted(most, 'images')} of each slice, but {rest} of the last"
        return replace(found, volumes=most, slices=slices, partial=rest, why=why)
    return found  # the slices moved, or the volumes are not alike: nothing to be said of them


def _volumes(volumes: int, slices: int) -> str:
    return f"{counted(volumes, 'volumes')} of {counted(slices, 'slices')}"


def _rest(places: Sequence[Place | None], slices: int) -> int:
    """Where volume follows volume: the slices of the last, if it alone is not whole; else 0."""
    runs = list(_runs(places, slices))
    rest = runs.pop()
    alike = all(len(set(run)) == slices for run in runs) and len(set(rest)) == len(rest) < slices
    return len(rest) if alike else 0


def _runs(places: Sequence[Place | None], length: int) -> Iterator[Sequence[Place | None]]:
    return (places[start : start + length] for start in range(0, len(places), length))


def _rest_of_a_slice(places: Sequence[Place | None]) -> int:
    """Where all images of a slice follow each other (Philips): those of the last, if it alone lacks some; else 0."""
    lengths: list[int] = []
    for number, place in enumerate(places):
        if number and place == places[number - 1]:
            lengths[-1] += 1
        else:
            lengths.append(1)
    again = len(lengths) != len(set(places))
    return 0 if again or len(set(lengths[:-1])) != 1 or len(lengths) < 3 or lengths[-1] > lengths[0] else lengths[-1]


def _by_position_alone(headers: Sequence[Header]) -> Structure:
    """Without numbers: equal counts at every place show volumes; anything else shows nothing."""
    counts = Counter(_place(header) for header in headers)
    volumes = max(counts.values())
    if None in counts or len(counts) < 2 or volumes < 2 or min(counts.values()) < volumes:
        return Structure(False, "the images' numbers are missing, or used again", len(headers))
    why = f"{counted(len(headers), 'images')}: {_volumes(volumes, len(counts))}"
    return Structure(True, why, len(headers), None, volumes, len(counts))


# --- concatenations -------------------------------------------------------------------------------------------------


def _concatenated(headers: Sequence[Header]) -> Structure:
    """Parts of multi-frame objects that say how many parts there are (PS3.3 C.7.6.16.2.2.4)."""
    parts: dict[Value, set[int]] = {}
    totals: dict[Value, int] = {}
    for header in headers:
        uid, number = header["ConcatenationUID"], _integer(header.get("InConcatenationNumber"))
        total = _integer(header.get("InConcatenationTotalNumber"))
        if number is None or total is None or not 1 <= number <= totals.setdefault(uid, total) == total < 1 << 16:
            return Structure(False, "its concatenations do not say how many parts they have", len(headers))
        parts.setdefault(uid, set()).add(number)
    holes = tuple(_missing_parts(parts[uid], total) for uid, total in totals.items() if len(parts[uid]) < total)
    why = f"{len(headers)} parts of {len(parts)} concatenated objects, which say how many there are"
    return Structure(True, why, len(headers), None, holes=holes)


def _missing_parts(there: set[int], total: int) -> str:
    missing = [number for number in range(1, total + 1) if number not in there]
    said = ", ".join(map(str, missing[:MOST_NAMED])) + (" …" if len(missing) > MOST_NAMED else "")
    return f"{'part' if len(missing) == 1 else 'parts'} {said} of {total} of a concatenated object " + (
        "is missing" if len(missing) == 1 else "are missing"
    )
