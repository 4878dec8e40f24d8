"""The `[plugins.dcm2niix]` table."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sorter import Verdict

ALLOWED = {
    "-ba": ("y", "n", "o"),  # strip dates and names from the sidecar: both, none, names only
    "-i": ("y", "n", "o"),  # ignore derived, localizer and 2D images
    "-l": ("y", "n", "o"),  # scale 16-bit integers
    "-m": ("y", "n", "0", "1", "2"),  # merge slices regardless of echo, exposure, …
    "-p": ("y", "n", "o"),  # Philips precise float scaling
    "-x": ("y", "n", "i"),  # crop 3D acquisitions
}
"""Options that change what is converted, and their values. What names files or folders is sorter's own."""


def _extra(options: tuple[str, ...]) -> tuple[str, ...]:
    for name, value in zip(options[::2], (*options[1::2], ""), strict=False):
        if name not in ALLOWED:
            raise ValueError(f'{name} is not possible here; possible are {", ".join(ALLOWED)}, as ["-x", "y"]')
        if value not in ALLOWED[name]:
            raise ValueError(f"{name} is followed by one of {', '.join(ALLOWED[name])}, not by {value!r}")
    return options


class Settings(BaseModel):
    """`timeout` in seconds, `memory` in MiB, for each series; `level` of compression from 1 to 9."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compress: bool = True
    level: int = Field(6, ge=1, le=9)
    extra: Annotated[tuple[str, ...], AfterValidator(_extra)] = ()
    min_verdict: Verdict = Verdict.INCOMPLETE
    timeout: int = Field(1800, ge=1)
    memory: int = Field(4096, ge=256)
