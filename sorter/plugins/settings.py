"""Each plugin's `[plugins.NAME]` table, validated by the plugin's own model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from sorter.plugins.loading import Plugin, did_you_mean
from sorter.plugins.table import TableReader


@dataclass
class Settings:
    """One plugin's settings as the plugin gets them (`value`), and what they were made from."""

    raw: Mapping[str, Any]
    model: type[BaseModel] | None
    reader: TableReader
    value: Any = None
    faults: list[tuple[tuple[str, ...], str]] = field(default_factory=list)  # (key path below the table, sentence)

    def read(self) -> bool:
        """Validate, reading tables anew. False: `faults` says why, and `value` stays the last good one."""
        self.faults = []
        if self.model is None:
            self.value = MappingProxyType(dict(self.raw))
            return True
        self.faults += [((key,), said) for key, said in _unknown(self.model, self.raw)]
        try:
            value = self.model.model_validate(dict(self.raw), context={"tables": self.reader})
        except ValidationError as error:
            self.faults += [fault for item in error.errors() if (fault := _fault(item, self.model))]
        if not self.faults:
            self.value = value
        return not self.faults

    def restore(self, plain: Mapping[str, Any]) -> bool:
        """Take what `plain` wrote when all was well; what is wrong now stays in `faults`. False if it does not fit."""
        if self.model is None:
            return False
        try:
            self.value = self.model.model_validate(dict(plain))
        except ValidationError:
            return False
        return True

    def plain(self) -> dict[str, Any]:
        """The settings as JSON can carry them, for a job in another process."""
        if isinstance(self.value, BaseModel):
            return self.value.model_dump(mode="json")
        return dict(self.value or {})


def settings_of(plugin: Plugin, raw: Mapping[str, Any], reader: TableReader) -> tuple[Settings, str]:
    """The settings, not yet read, and a sentence when the plugin's model cannot be had."""
    hook = plugin.hooks.get("sorter_config")
    found = Settings(raw, None, reader)
    if hook is None:
        return found, ""
    try:
        model = hook.function()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a plugin)
        return found, f"plugin {plugin.name} ({plugin.source}): sorter_config failed: {type(error).__name__}: {error}"
    if model is None:
        return found, ""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return found, f"plugin {plugin.name} ({plugin.source}): sorter_config must answer a pydantic model class"
    found.model = model
    return found, ""


Locate = Callable[..., str]


def _unknown(model: type[BaseModel], raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys that the model would ignore; a misspelt setting must never pass in silence."""
    if model.model_config.get("extra", "ignore") != "ignore":
        return []
    known = _keys(model)
    return [(key, f"there is no such setting{did_you_mean(key, known)}") for key in raw if key not in known]


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _fault(item: Any, model: type[BaseModel]) -> tuple[tuple[str, ...], str]:
    key = tuple(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _keys(model) if len(key) == 1 else []
        return key, f"there is no such setting{did_you_mean(key[-1], known)}"
    if item["type"] == "missing":
        return key, "must be given"
    said = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return key, said[:1].lower() + said[1:] if said[:6] == "Input " else said
