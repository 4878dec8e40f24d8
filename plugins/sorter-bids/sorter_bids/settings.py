"""The `[plugins.bids]` table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sorter import Verdict

REPROIN = "reproin"


def _heuristic(text: str) -> str:
    if text != REPROIN and not (Path(text).is_absolute() and text.endswith(".py")):
        raise ValueError(f'a heuristic is "{REPROIN}", or the whole path of a Python file, not {text!r}')
    return text


def _program(text: str) -> str:
    if "/" in text and not Path(text).is_absolute():
        raise ValueError(f"a program is a name that is found in PATH, or a whole path, not {text!r}")
    return text


class Way(BaseModel):
    """How sessions are converted: by a heuristic of heudiconv, or by a configuration of dcm2bids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heuristic: Annotated[str, AfterValidator(_heuristic)] | None = None
    dcm2bids: Path | None = None
    session: Literal["identity", "date"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Way:
        if self.heuristic is not None and self.dcm2bids is not None:
            raise ValueError("heuristic is for heudiconv and dcm2bids for dcm2bids: give one of them")
        if self.dcm2bids is not None and not self.dcm2bids.is_absolute():
            raise ValueError(f"dcm2bids is the whole path of its configuration, not {self.dcm2bids}")
        return self


class Programs(BaseModel):
    """What is run: names in PATH or whole paths. What stands beside them is found by them (dcm2niix, as a rule)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heudiconv: Annotated[str, AfterValidator(_program)] = "heudiconv"
    dcm2bids: Annotated[str, AfterValidator(_program)] = "dcm2bids"


class Settings(Way):
    """`timeout` in seconds, `memory` in MiB, for each session. `labs` say otherwise for their own."""

    labs: Mapping[str, Way] = {}
    programs: Programs = Programs()
    min_verdict: Verdict = Verdict.INCOMPLETE
    timeout: int = Field(7200, ge=1)
    memory: int = Field(8192, ge=256)
