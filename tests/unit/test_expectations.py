"""The built-in expectations: right on what the rule knows, silent on everything else."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.builtin.expectations import MOST, RULES, sorter_expect
from sorter.durable import Files
from sorter.model import Expectation, Series, UnitKind, Value
from sorter.plugins import Plugins

MOSAIC: dict[str, Any] = {
    "Modality": "MR", "Manufacturer": "SIEMENS", "ImageType": ("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"),
    "SiemensRepetitions": 299, "SiemensContrasts": 1, "SiemensDiffusionMode": 1, "SiemensSlices": 36,
}  # fmt: skip
GE: dict[str, Any] = {
    "Modality": "MR", "ImageType": ("ORIGINAL", "PRIMARY", "EPI", "NONE"), "GELocationsInAcquisition": 15,
    "NumberOfTemporalPositions": 10, "ImagesInAcquisition": 15,
}  # fmt: skip
FIELD_MAP: dict[str, Any] = {
    "Modality": "MR", "ImageType": ("ORIGINAL", "PRIMARY", "OTHER"), "GELocationsInAcquisition": 16,
    "ImagesInAcquisition": 32,
}  # fmt: skip
PHILIPS: dict[str, Any] = {
    "Modality": "MR", "ImageType": ("ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"), "PhilipsNumberOfSlices": 9,
    "PhilipsNumberOfDynamics": 3, "PhilipsNumberOfEchoes": 1, "PhilipsNumberOfPhases": 1,
    "PhilipsDiffusionBFactor": 0.0,
}  # fmt: skip
SERIES = {"siemens mosaic": MOSAIC, "ge time series": GE, "ge one acquisition": FIELD_MAP, "philips dynamics": PHILIPS}


def expect(header: dict[str, Any], **distinct: tuple[Value, ...]) -> Expectation | None:
    return sorter_expect(Series("k", UnitKind.SERIES, "1", ("2",), header, 1, distinct=distinct))


@pytest.mark.parametrize(
    ("rule", "count", "why"),
    [
        ("siemens mosaic", 300, "the protocol says 299 repetitions after the first volume, each an image"),
        ("ge time series", 150, "the header says 15 slices × 10 volumes"),
        ("ge one acquisition", 32, "the header says 32 images in the acquisition, 2 of each of 16 slices"),
        ("philips dynamics", 27, "the header says 9 slices × 3 volumes"),
    ],
)
def test_each_rule_on_what_it_knows(rule: str, count: int, why: str) -> None:
    found = expect(SERIES[rule])
    assert found is not None
    assert (found.count, found.rule, found.why) == (count, rule, why)
    without = {name: value for name, value in SERIES[rule].items() if name != "Modality"}
    assert expect(without) == found


def test_every_rule_is_documented_with_its_source_and_tested() -> None:
    assert [rule.__name__.replace("_", " ") for rule in RULES] == list(SERIES)
    assert all("Source:" in (rule.__doc__ or "") for rule in RULES)


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        *((rule, {"ImageType": ("DERIVED", "SECONDARY", "M", "MOSAIC")}) for rule in SERIES),
        *((rule, {"Modality": "CT"}) for rule in SERIES),
        ("siemens mosaic", {"ImageType": ("ORIGINAL", "PRIMARY", "M", "ND")}),
        ("siemens mosaic", {"SiemensRepetitions": -1}),
        ("siemens mosaic", {"SiemensRepetitions": MOST}),
        ("siemens mosaic", {"SiemensRepetitions": "299"}),
        ("siemens mosaic", {"SiemensRepetitions": None}),
        ("siemens mosaic", {"SiemensContrasts": 3}),
        ("siemens mosaic", {"SiemensDiffusionMode": 256}),
        ("siemens mosaic", {"SeriesDescription": "rest_AP_SBRef"}),
        ("siemens mosaic", {"ImageComments": "Single-band reference SENSE1"}),
        ("ge time series", {"GELocationsInAcquisition": 0, "ImagesInAcquisition": None}),
        ("ge time series", {"NumberOfTemporalPositions": "10"}),
        ("ge time series", {"NumberOfTemporalPositions": 1}),
        ("ge time series", {"NumberOfTemporalPositions": -10}),
        ("ge time series", {"NumberOfTemporalPositions": 10.5}),
        ("ge time series", {"NumberOfTemporalPositions": MOST}),
        ("ge time series", {"NumberOfTemporalPositions": 1 << 60}),
        ("ge time series", {"GELocationsInAcquisition": (15, 15)}),
        ("ge one acquisition", {"ImagesInAcquisition": 33}),
        ("ge one acquisition", {"ImagesInAcquisition": None}),
        ("ge one acquisition", {"ImagesInAcquisition": "32"}),
        ("ge one acquisition", {"GELocationsInAcquisition": None}),
        ("ge one acquisition", {"GELocationsInAcquisition": -16}),
        ("philips dynamics", {"PhilipsNumberOfDynamics": 1}),
        ("philips dynamics", {"PhilipsNumberOfDynamics": None}),
        ("philips dynamics", {"PhilipsNumberOfSlices": "nine"}),
        ("philips dynamics", {"PhilipsNumberOfEchoes": 2}),
        ("philips dynamics", {"PhilipsNumberOfPhases": None}),
        ("philips dynamics", {"PhilipsDiffusionBFactor": 1000.0}),
        ("philips dynamics", {"PhilipsDiffusionBFactor": "b"}),
        ("philips dynamics", {"ImageType": ("ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE")}),
        ("philips dynamics", {"NumberOfFrames": 27}),
    ],
)
def test_where_something_is_missing_or_speaks_against_it(rule: str, change: dict[str, Any]) -> None:
    header = {name: value for name, value in {**SERIES[rule], **change}.items() if value is not None}
    assert expect(header) is None


def test_where_the_images_differ() -> None:
    assert expect(GE, EchoNumbers=(1, 2)) is None
    assert expect(PHILIPS, ImageType=(("ORIGINAL", "M"), ("ORIGINAL", "P"))) is None


@functools.cache
def loaded() -> Plugins:
    return Plugins.load({}, None, Files(), {})


VALUES = st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.tuples(st.integers(), st.text(max_size=3)))
KEYWORDS = sorted({name for header in SERIES.values() for name in header})


@given(st.sampled_from(sorted(SERIES)), st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=4))
def test_whatever_a_header_says_the_answer_is_a_sane_one(rule: str, lies: dict[str, Any]) -> None:
    asked = loaded().expect(Series("k", UnitKind.SERIES, "1", ("2",), {**SERIES[rule], **lies}, 1))
    assert asked.failures == ()
    assert all(1 <= answer.value.count <= MOST for answer in asked.answers)
