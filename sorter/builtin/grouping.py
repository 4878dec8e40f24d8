"""Series that a scanner cut into many SeriesInstanceUIDs, put together again. Off unless it is asked for.

No attribute says for certain that two series are one, so each rule asks for everything that the pieces are known to
share and that two series of one study would not: what lacks any of it stays by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sorter import Instance, hookimpl

_MR = "1.2.840.10008.5.1.4.1.1.4"  # MR Image Storage: classic, one slice an object

_SERIES_LEVEL = ("SeriesDate", "SeriesTime", "FrameOfReferenceUID", "ProtocolName", "ImageType")


class Settings(BaseModel):
    """`merge` names the rules that apply, none by default: a wrong merge is worse than a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    merge: tuple[Literal["canon-slices", "siemens-mfsplit"], ...] = ()


@hookimpl
def sorter_config() -> type[Settings]:
    return Settings


@hookimpl
def sorter_group(instance: Instance, settings: Settings) -> str | None:
    return next((key for name in settings.merge if (key := RULES[name](instance)) is not None), None)


def canon_slices(instance: Instance) -> str | None:
    """Canon classic images of time series and diffusion: one SeriesInstanceUID for each slice.

    The UIDs are equal but for their last number, which is the slice, and so is SeriesNumber (seen with V6.0SP2001;
    source: rordenlab/dcm2niix, issue 495). Enhanced images are not cut.
    """
    maker = str(instance.header.get("Manufacturer", "")).upper()
    stem, _, slice_ = instance.series_uid.rpartition(".")
    number = instance.header.get("SeriesNumber")
    if not maker.startswith(("CANON", "TOSHIBA")) or instance.sop_class != _MR or not isinstance(number, int):
        return None
    return f"canon-slices {number} {stem}" if stem and 1 <= len(slice_) <= 4 else None


def siemens_mfsplit(instance: Instance) -> str | None:
    """Siemens XA in interoperability mode: each volume of a time series is a series of its own, marked MFSPLIT.

    SeriesNumber may count on with each volume; date and time of the series, frame of reference, protocol, kind of image
    and echo time must agree (source: rordenlab/dcm2niix, issues 236 and 394). Where a console writes another time for
    each volume they stay apart.
    """
    header = instance.header
    kinds = header.get("ImageType")
    if not str(header.get("Manufacturer", "")).upper().startswith("SIEMENS") or instance.sop_class != _MR:
        return None
    if not isinstance(kinds, tuple) or "MFSPLIT" not in kinds or not all(header.get(each) for each in _SERIES_LEVEL):
        return None
    shared = [header.get(each) for each in (*_SERIES_LEVEL, "SeriesDescription", "EchoTime")]
    return f"siemens-mfsplit {json.dumps(shared, ensure_ascii=False)}"


RULES: dict[str, Callable[[Instance], str | None]] = {
    "canon-slices": canon_slices,
    "siemens-mfsplit": siemens_mfsplit,
}
