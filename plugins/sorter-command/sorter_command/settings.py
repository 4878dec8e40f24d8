"""The `[plugins.command]` table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from sorter import Verdict
from sorter_command.run import PLACE

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _argument(text: str) -> str:
    if "\0" in text:
        raise ValueError("an argument cannot hold a NUL character")
    for place in PLACE.findall(text):
        if place not in ("in", "out", "cpus") and not place.startswith("in:"):
            raise ValueError(f"there is no {{{place}}}; there are {{in}}, {{in:PRODUCT}}, {{out}} and {{cpus}}")
    return text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or text == "dicom":
        raise ValueError(f"a product cannot be named {text!r}: small letters, digits, - and _, and not dicom")
    return text


class Made(BaseModel):
    """One product. `run` are the program and its arguments; nothing of them goes through a shell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: tuple[Annotated[str, AfterValidator(_argument)], ...] = Field(min_length=1)
    container: Path | None = None
    bind: tuple[Path, ...] = ()
    env: Mapping[str, str] = {}
    nothing: tuple[int, ...] = ()
    needs: tuple[str, ...] = ("dicom",)
    when: Mapping[str, tuple[str, ...]] = {}
    min_verdict: Verdict = Verdict.INCOMPLETE
    timeout: int = Field(3600, ge=1)
    memory: int = Field(4096, ge=64)
    cpus: int = Field(1, ge=1)

    @field_validator("env")
    @classmethod
    def _variables(cls, given: Mapping[str, str]) -> Mapping[str, str]:
        for name in given:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a variable")
        return given

    @model_validator(mode="after")
    def _whole(self) -> Made:
        if not self.needs:
            raise ValueError('a product is made of something: needs = ["dicom"]')
        for place in (place for text in self.run for place in PLACE.findall(text)):
            if place.startswith("in:") and place[3:] not in self.needs:
                raise ValueError(f"{{{place}}} is not among its needs: {', '.join(self.needs)}")
        for path in (*self.bind, *([self.container] if self.container else ())):
            if not path.is_absolute() or any(each in str(path) for each in ":,"):
                raise ValueError(f"{path} must be a whole path without colon and comma")
        if self.bind and self.container is None:
            raise ValueError("bind is for a container")
        return self


class Settings(BaseModel):
    """The products by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    products: Mapping[Annotated[str, AfterValidator(_name)], Made] = {}
