"""Where a series goes by default: to the targets of its lab."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sorter import Add, Hold, Route, Series, hookimpl


class Settings(BaseModel):
    """Filled from the configuration's labs; `default` is where series without a lab go, None: nowhere, kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labs: dict[str, tuple[str, ...]] = {}
    default: str | None = None


@hookimpl
def sorter_config() -> type[Settings]:
    return Settings


@hookimpl
def sorter_route(series: Series, settings: Settings) -> Route | None:
    if series.lab is None:
        return Add((settings.default,)) if settings.default else None
    if series.lab not in settings.labs:
        return Hold(f"lab {series.lab} is not configured: add [labs.{series.lab}], or mend the rule that named it")
    targets = settings.labs[series.lab]
    return Add(targets) if targets else None
