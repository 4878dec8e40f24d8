"""The structural check: what lacks something is named, what lacks nothing never is, the rest stays unknown."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.durable import Files
from sorter.structure import Structure, structure_of
from sorter.take.header import examine
from sorter.testing.synthetic import Plan, session

AXIAL = (1, 0, 0, 0, 1, 0)
Headers = list[dict[str, Any]]


def volumes_first(volumes: int, slices: int) -> Headers:
    """Siemens, GE, UIH: all slices of a volume, then those of the next."""
    places = [(each % slices) for each in range(volumes * slices)]
    return [image(number, place) for number, place in enumerate(places, 1)]


def slices_first(volumes: int, slices: int) -> Headers:
    """Philips: all volumes of a slice, then those of the next."""
    return [image(number + 1, number // volumes) for number in range(volumes * slices)]


def image(number: int | None, place: float, **more: Any) -> dict[str, Any]:
    known = {} if number is None else {"InstanceNumber": number}
    where = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": (-100.0, -90.5, -20 + 2.4 * place)}
    return {**known, **where, **more}


def mosaics(count: int) -> Headers:
    kind = ("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC")
    return [image(number, 0, ImageType=kind, SiemensImagesInMosaic=36) for number in range(1, count + 1)]


def xa(*frames: int) -> Headers:
    return [{"InstanceNumber": number, "NumberOfFrames": each} for number, each in enumerate(frames, 1)]


def echoes(count: int, slices: int, *, anew: bool) -> Headers:
    """Echo by echo; numbered through, or anew with each echo as Siemens does in field maps."""
    found = []
    for echo in range(count):
        for place in range(slices):
            number = place + 1 if anew else echo * slices + place + 1
            found.append(image(number, place, EchoNumbers=echo + 1, EchoTime=4.92 + 2.46 * echo))
    return found


def pairs(slices: int) -> Headers:
    """Magnitude and phase of each slice, one after the other."""
    kinds = [("ORIGINAL", "PRIMARY", each) for each in ("M", "P")]
    return [image(2 * place + each + 1, place, ImageType=kinds[each]) for place in range(slices) for each in (0, 1)]


def localizer() -> Headers:
    turned = [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)]
    return [image(number, number % 3, ImageOrientationPatient=turned[(number - 1) // 3]) for number in range(1, 10)]


def one_volume(slices: int) -> Headers:
    return volumes_first(1, slices)


# --- what is whole is never called anything else --------------------------------------------------------------------


WHOLE: dict[str, tuple[Headers, tuple[int | None, int | None]]] = {
    "volumes first": (volumes_first(10, 15), (10, 15)),
    "slices first": (slices_first(3, 9), (3, 9)),
    "one volume": (one_volume(176), (1, 176)),
    "mosaics": (mosaics(30), (30, 36)),
    "enhanced, a volume each": (xa(6, 6, 6, 6), (4, 6)),
    "enhanced, of different size": (xa(160, 1), (None, None)),
    "enhanced, the second smaller": (xa(48, 6, 48), (None, None)),
    "echoes numbered through": (echoes(3, 20, anew=False), (3, 20)),
    "echoes numbered anew": (echoes(2, 36, anew=True), (None, None)),
    "magnitude and phase": (pairs(20), (2, 20)),
    "localizer": (localizer(), (None, None)),
    "one slice again and again": ([image(each, 0) for each in range(1, 40)], (None, None)),
    "no geometry": ([{"InstanceNumber": each} for each in range(1, 40)], (None, None)),
    "no numbers": ([image(None, each % 5) for each in range(50)], (10, 5)),
    "numbers from 0": ([{"InstanceNumber": each} for each in range(5)], (None, None)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole(name: str) -> None:
    headers, size = WHOLE[name]
    for order in (headers, headers[::-1], random.Random(5).sample(headers, len(headers))):
        found = structure_of(order)
        assert (found.known, found.whole, found.stopped, found.holes) == (True, True, False, ()), found
        assert (found.volumes, found.slices) == size
        assert found.images == len(headers)
        assert found.why


def test_a_synthetic_session_is_whole() -> None:
    """Seven kinds of series, as their files are written and read: a field map with numbers used again among them."""
    seen = {}
    for made in session(Plan(size=16, slices=4, volumes=3)):
        headers = [parsed(each) for each in made.files]
        found = structure_of(headers)
        assert not found.holes
        assert not found.partial
        seen[made.name] = (found.known, found.volumes, found.slices)
    assert seen == {
        "localizer": (True, None, None),
        "T1_MPRAGE": (True, 1, 16),
        "rest_bold": (True, 3, 4),
        "T2star_multiecho": (True, 3, 4),
        "gre_field_mapping": (True, None, None),
        "task_bold": (True, 3, 4),
        "T2_FLAIR": (False, None, None),
    }


def parsed(content: bytes) -> dict[str, Any]:
    fd = os.memfd_create("image")
    try:
        os.write(fd, content)
        return dict(examine(Files(), fd).header)
    finally:
        os.close(fd)


def moved() -> Headers:
    """The scanner follows the head: from the 10th volume on each slice lies elsewhere."""
    return [
        image(number + 1, number % 20 + (0.13 if number >= 200 else 0)) for number in range(300)
    ]  # fmt: skip


UNKNOWN: dict[str, Headers] = {
    "nothing": [],
    "one image": [image(1, 0)],
    "numbered in steps": [image(each, each) for each in range(1, 40, 2)],
    "numbered by thousands": [{"InstanceNumber": 1000 * echo + each} for echo in (1, 2, 3) for each in range(9)],
    "numbers used again, nothing tells why": [image(each % 7, 0) for each in range(30)],
    "neither numbers nor places": [{"Modality": "MR"}] * 4,
    "text for numbers": [{"InstanceNumber": "1st"}, {"InstanceNumber": "2nd"}],
    "several numbers": [{"InstanceNumber": (1, 2)}, {"InstanceNumber": (3, 4)}],
    "huge numbers": [{"InstanceNumber": 1 << 70}, {"InstanceNumber": -(1 << 70)}],
    "far apart": [{"InstanceNumber": -2_000_000_000}, {"InstanceNumber": 2_000_000_000}],
    "no numbers, uneven": [image(None, each % 5) for each in range(51)],
    "parts of different numbers": [image(each, 0, EchoNumbers=1) for each in range(9)]
    + [image(each, 0, EchoNumbers=2) for each in range(5, 30)],
    "concatenated, the number of parts unsaid": [
        {"ConcatenationUID": "1.2", "InConcatenationNumber": each} for each in (1, 3)
    ],
    "concatenated, and it lies": [
        {"ConcatenationUID": "1.2", "InConcatenationNumber": 1, "InConcatenationTotalNumber": total} for total in (2, 3)
    ],
    "concatenated, with a hostile total": [
        {"ConcatenationUID": "1.2", "InConcatenationNumber": 1, "InConcatenationTotalNumber": 1 << 30}
    ],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_told(name: str) -> None:
    found = structure_of(UNKNOWN[name])
    assert (found.known, found.whole, found.stopped, found.holes) == (False, False, False, ())
    assert found.why


def test_slices_that_move_say_nothing_of_volumes() -> None:
    found = structure_of(moved())
    assert (found.known, found.whole, found.volumes) == (True, True, None)


@pytest.mark.parametrize(
    "strange",
    [
        {"ImagePositionPatient": (1, 2)},
        {"ImagePositionPatient": ("a", "b", "c")},
        {"ImagePositionPatient": (float("nan"), 1, 2)},
        {"ImagePositionPatient": (1e300, 1, 2)},
        {"ImageOrientationPatient": "none"},
        {"NumberOfFrames": "many"},
        {"NumberOfFrames": -3},
        {"ImageType": 5},
    ],
)
def test_a_strange_value_is_no_hole(strange: dict[str, Any]) -> None:
    headers = volumes_first(4, 5)
    headers[7] = {**headers[7], **strange}
    assert structure_of(headers).whole


# --- what lacks something says so -----------------------------------------------------------------------------------


def without(headers: Headers, *numbers: int) -> Headers:
    return [each for each in headers if each["InstanceNumber"] not in numbers]


@pytest.mark.parametrize(
    ("headers", "hole"),
    [
        (without(volumes_first(10, 15), 17), "image 17 is missing between number 1 and number 150"),
        (without(mosaics(30), 4, 5, 6, 20), "images 4–6, 20 are missing between number 1 and number 30"),
        (without(slices_first(3, 9), 5), "image 5 is missing between number 1 and number 27"),
        (without(xa(6, 6, 6, 6), 2), "image 2 is missing between number 1 and number 4"),
        (without(localizer(), 2), "image 2 is missing between number 1 and number 9"),
        (without(pairs(20), 11), "image 11 is missing between number 1 and number 40"),
        (
            without(mosaics(100), *range(2, 98, 3)),
            f"images {', '.join(map(str, range(2, 38, 3)))} and 20 more are missing between number 1 and number 100",
        ),
    ],
)
def test_holes_are_named(headers: Headers, hole: str) -> None:
    found = structure_of(headers)
    assert (found.known, found.whole, found.stopped, found.contiguous) == (True, False, False, False)
    assert found.holes == (hole,)


def test_a_hole_in_one_of_two_parts_with_the_same_numbers() -> None:
    headers = echoes(2, 36, anew=True)
    del headers[40]
    assert structure_of(headers).holes == ("image 5 of EchoNumbers 2 is missing",)
    del headers[-1]  # a shorter end is no hole
    assert structure_of(headers).holes == ("image 5 of EchoNumbers 2 is missing",)


def test_parts_of_a_concatenation_are_counted() -> None:
    parts = [
        {"ConcatenationUID": uid, "InConcatenationNumber": each, "InConcatenationTotalNumber": 3}
        for uid in ("1.2", "1.3")
        for each in (1, 2, 3)
    ]
    assert structure_of(parts).whole
    assert structure_of(parts[:1]).holes == ("parts 2, 3 of 3 of a concatenated object are missing",)
    assert structure_of(parts[:4]).holes == ("parts 2, 3 of 3 of a concatenated object are missing",)
    assert structure_of(parts[1:]).holes == ("part 1 of 3 of a concatenated object is missing",)


@pytest.mark.parametrize(
    ("headers", "rest", "volumes"),
    [
        (volumes_first(10, 15)[:-4], 11, 10),
        (volumes_first(10, 15)[:-14], 1, 10),
        (volumes_first(2, 15)[:-1], 14, 2),
        (slices_first(3, 9)[:-1], 2, 3),
        (slices_first(3, 9)[:-2], 1, 3),
        (xa(48, 48, 48, 6), 6, 4),
        (echoes(3, 20, anew=False)[:-3], 17, 3),
    ],
)
def test_a_ragged_end(headers: Headers, rest: int, volumes: int) -> None:
    found = structure_of(headers)
    assert (found.known, found.whole, found.stopped, found.holes) == (True, False, True, ())
    assert (found.partial, found.volumes) == (rest, volumes)


BUILT: dict[str, Callable[[int, int], Headers]] = {
    "volumes first": volumes_first,
    "slices first": slices_first,
    "mosaics": lambda volumes, slices: mosaics(volumes * slices),
    "enhanced": lambda volumes, slices: xa(*[slices] * volumes),
    "echoes": lambda volumes, slices: echoes(volumes, slices, anew=False),
    "pairs": lambda volumes, slices: pairs(slices),
}


@given(st.sampled_from(sorted(BUILT)), st.integers(1, 8), st.integers(2, 12), st.data())
def test_any_run_that_lacks_images(kind: str, volumes: int, slices: int, data: st.DataObject) -> None:
    """Cut off anywhere it has no hole; without some in the middle it has, unless too few are left to tell."""
    headers = BUILT[kind](volumes, slices)
    cut = data.draw(st.integers(1, len(headers)))
    begun = structure_of(headers[:cut])
    assert begun.holes == ()
    lost = data.draw(st.sets(st.integers(2, max(2, cut - 1)), max_size=cut // 3))
    left = without(headers[:cut], *lost)
    data.draw(st.randoms()).shuffle(left)
    found = structure_of(left)
    inner = {each for each in lost if min(_numbers(left)) < each < max(_numbers(left))}
    if found.known:
        assert bool(found.holes) == bool(inner)
    else:
        assert not inner or len(left) < 3


def _numbers(headers: Headers) -> list[int]:
    return [each["InstanceNumber"] for each in headers]


VALUES = st.one_of(
    st.integers(), st.floats(), st.text(max_size=3), st.tuples(st.floats(), st.floats(), st.floats()), st.just(AXIAL)
)
KEYWORDS = (
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames", "ImageType", "EchoNumbers",
    "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber", "SiemensImagesInMosaic",
)  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from(KEYWORDS), VALUES), max_size=8))
def test_nothing_a_header_says_can_break_it(headers: Headers) -> None:
    assert isinstance(structure_of(headers), Structure)
