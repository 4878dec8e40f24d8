"""How many images a series will have, where its own header says so in a way that real series have shown right.

One function for each maker and kind of sequence, with its source. A function answers None unless all it needs is there
and nothing speaks against it; and what it answers counts only after it was right at this site (`sorter.trust`).

Nothing is said of: Siemens single-slice images (the protocol has slices and repetitions, but whether echoes, phases
and coils make images of their own is not in it), Siemens XA (enhanced: the protocol lies in the functional groups;
interoperability: it is not there), Philips with several echoes, phases or b values, Canon and UIH: no whole public
series has shown a rule right. Their wholeness is seen from structure, from the sender's own list, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sorter import Expectation, Series, hookimpl

MOST = 1_000_000
"""Images; a header that says more is not believed."""

Rule = Callable[[Series], "Expectation | None"]


@hookimpl
def sorter_expect(series: Series) -> Expectation | None:
    if series.get("Modality", "MR") != "MR" or "DERIVED" in _texts(series, "ImageType"):
        return None
    return next((found for rule in RULES if (found := rule(series)) is not None), None)


def siemens_mosaic(series: Series) -> Expectation | None:
    """Siemens EPI as mosaics, a volume an image: the protocol's lRepetitions counts those after the first.

    Source: ASCCONV in CSA Series Header Info (0029,xx20). Not for diffusion (its directions are counted elsewhere), for
    several echoes, nor for the single-band reference of a multi-band run, which carries the protocol of the whole run.
    """
    if "MOSAIC" not in _texts(series, "ImageType") or _is_reference(series):
        return None
    if series.get("SiemensDiffusionMode") != 1 or series.get("SiemensContrasts") != 1:
        return None
    repetitions = series.get("SiemensRepetitions")
    if not isinstance(repetitions, int) or not 0 <= repetitions < MOST:
        return None
    why = f"the protocol says {repetitions} repetitions after the first volume, each an image"
    return Expectation(repetitions + 1, confidence=0.9, why=why, rule="siemens mosaic")


def _is_reference(series: Series) -> bool:
    """The CMRR sequences say so in the comment; their name is the protocol's with _SBRef."""
    comment, name = (str(series.get(each, "")).casefold() for each in ("ImageComments", "SeriesDescription"))
    return "single-band reference" in comment or name.endswith("sbref")


def ge_time_series(series: Series) -> Expectation | None:
    """GE EPI, a slice an image: locations in the acquisition times temporal positions.

    Source: (0021,xx4F) of GEMS_RELA_01 and NumberOfTemporalPositions (0020,0105). Neither images in the series
    (0025,xx07) nor images in the acquisition (0020,1002) counts them: there both are those of one volume.
    """
    slices, volumes = _count(series, "GELocationsInAcquisition"), _count(series, "NumberOfTemporalPositions")
    if slices is None or volumes is None or volumes < 2 or _several(series, "EchoNumbers"):
        return None
    return _product("ge time series", 0.8, slices=slices, volumes=volumes)


def ge_one_acquisition(series: Series) -> Expectation | None:
    """GE without temporal positions, as a field map: images in the acquisition, in whole volumes.

    Source: ImagesInAcquisition (0020,1002), where it is a multiple of (0021,xx4F) of GEMS_RELA_01.
    """
    images, slices = _count(series, "ImagesInAcquisition"), _count(series, "GELocationsInAcquisition")
    if images is None or slices is None or images % slices or series.get("NumberOfTemporalPositions") is not None:
        return None
    why = f"the header says {images} images in the acquisition, {images // slices} of each of {slices} slices"
    return Expectation(images, confidence=0.5, why=why, rule="ge one acquisition")


def philips_dynamics(series: Series) -> Expectation | None:
    """Philips time series in classic images, a slice an image: slices times dynamic scans.

    Source: (2001,xx18) and (2001,xx81) of Philips Imaging DD 001. Only of one echo and one phase without diffusion, and
    of magnitude images: how many kinds of image were asked for is not in the header.
    """
    plain = all(series.get(f"PhilipsNumberOf{each}") == 1 for each in ("Echoes", "Phases"))
    if not plain or series.get("PhilipsDiffusionBFactor", 0) or "M" not in _texts(series, "ImageType"):
        return None
    slices, volumes = _count(series, "PhilipsNumberOfSlices"), _count(series, "PhilipsNumberOfDynamics")
    if slices is None or volumes is None or volumes < 2 or series.get("NumberOfFrames") is not None:
        return None
    if _several(series, "ImageType"):
        return None
    return _product("philips dynamics", 0.6, slices=slices, volumes=volumes)


RULES: tuple[Rule, ...] = (siemens_mosaic, ge_time_series, ge_one_acquisition, philips_dynamics)
"""In the order they are asked; the first that answers is the answer."""


def _product(rule: str, confidence: float, **factors: int) -> Expectation | None:
    count = math.prod(factors.values())
    if count > MOST:
        return None
    said = " × ".join(f"{number} {name}" for name, number in factors.items())
    return Expectation(count, confidence=confidence, why=f"the header says {said}", rule=rule)


def _count(series: Series, keyword: str) -> int | None:
    """A plain whole number from 1 on; None for anything else that a header can say."""
    value = series.get(keyword)
    return value if isinstance(value, int) and 0 < value <= MOST else None


def _several(series: Series, keyword: str) -> bool:
    return len(series.values(keyword)) > 1


def _texts(series: Series, keyword: str) -> tuple[str, ...]:
    value = series.get(keyword)
    return tuple(map(str, value)) if isinstance(value, tuple) else () if value is None else (str(value),)
