"""The `[plugins.dcm2niix]` table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sorter import Verdict

ALLOWED: dict[str, tuple[str, ...]] = {
    "-a": ("y", "n"),  # images of a series lie side by side: faster
    "-b": ("y", "n", "o"),  # sidecars: with the images, none, alone
    "-ba": ("y", "n", "o"),  # strip dates and names from the sidecar: both, none, names only
    "-e": ("n", "o", "j", "b"),  # instead of NIfTI: MGH, JNIfTI, BJNIfTI
    "-i": ("y", "n", "o"),  # ignore derived, localizer and 2D images
    "-l": ("y", "n", "o"),  # scale 16-bit integers
    "-m": ("y", "n", "0", "1", "2"),  # merge slices regardless of echo, exposure, …
    "-p": ("y", "n", "o"),  # Philips precise float scaling
    "-v": ("y", "n", "0", "1", "2"),  # what stands in the log
    "-x": ("y", "n", "i"),  # crop 3D acquisitions
    "--big-endian": ("y", "n", "o"),
    "--ignore_trigger_times": ("y", "n"),
}
"""Options that change what is made, and their values."""

OURS: dict[str, str] = {
    "-1..-9": "say level = 1 to 9",
    "-br": "sorter names folders; sorter-bids makes a BIDS dataset",
    "-c": "what it writes into every image could name a patient",
    "-d": "a job sees the folder of its series alone",
    "-f": "sorter names files",
    "-g": "settings stand in sorter.toml alone",
    "-h": "it converts nothing",
    "-n": "a job is of one series",
    "-o": "sorter names folders",
    "-q": "it converts nothing else",
    "-r": "sorter rename does that",
    "-s": "a job is of one series",
    "-u": "a job has no network to ask",
    "-w": "its folder is empty",
    "-z": "say compress = true or false",
    "--progress": "nobody watches a job",
    "--terse": "two images would have one name",
    "--version": "it converts nothing",
    "--xml": "it converts nothing",
}
"""Options that are not given, and why."""


def _extra(options: tuple[str, ...]) -> tuple[str, ...]:
    for name, value in zip(options[::2], (*options[1::2], ""), strict=False):
        if name not in ALLOWED:
            why = OURS.get(name)
            raise ValueError(
                f"{name} is not possible here{f': {why}' if why else ''}; possible are {', '.join(ALLOWED)},"
                ' as ["-x", "y"]'
            )
        if value not in ALLOWED[name]:
            raise ValueError(f"{name} is followed by one of {', '.join(ALLOWED[name])}, not by {value!r}")
    return options


class Settings(BaseModel):
    """`timeout` in seconds, `memory` in MiB, for each series; `level` of compression from 1 to 9."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compress: bool = True
    level: int = Field(6, ge=1, le=9)
    echoes: Literal["apart", "together"] = "apart"
    derived: bool = True
    extra: Annotated[tuple[str, ...], AfterValidator(_extra)] = ()
    min_verdict: Verdict = Verdict.INCOMPLETE
    timeout: int = Field(1800, ge=1)
    memory: int = Field(4096, ge=256)
