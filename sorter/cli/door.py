"""The receiver's door in `status`: who was refused today, what to write to admit them, and whether all may come in."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sorter.config import Config
from sorter.receive import gate
from sorter.receive.refusals import MANY, Door, Refused

_SHOWN = 10
_NOT_LISTED = {each.reason for each in (gate.UNKNOWN_ADDRESS, gate.UNKNOWN_SENDER, gate.RESERVED)}


def as_json(door: Door, config: Config) -> dict[str, Any]:
    """For `status --json`."""
    return {
        "open_to_everybody": door.open is not None and door.open.everybody,
        "refused": [
            {
                **asdict(each),
                "first": _iso(each.first),
                "last": _iso(each.last),
                "toml": "\n".join(remedy(each, config)),
            }
            for each in door.refused
        ],
    }


def lines(door: Door, config: Config) -> Iterator[str]:
    """For people, without markup."""
    if door.open is not None and door.open.everybody:
        yield (
            f"WARNING: whoever reaches {door.open.host} port {door.open.port} may send images here; "
            "list your scanners as [[senders]]"
        )
    for each in door.refused[:_SHOWN]:
        yield f"{each} (last {_iso(each.last)})"
        toml = remedy(each, config)
        if toml:
            yield "    to change that, write into the configuration, and restart or reload sorter:"
            yield from (f"        {line}" for line in toml)
    if len(door.refused) > _SHOWN:
        yield f"… and {len(door.refused) - _SHOWN} more kinds of callers; `sorter status --json` has them all"


def remedy(refused: Refused, config: Config) -> list[str]:
    """The lines of TOML that would admit a caller; none where no line would."""
    if refused.reason in _NOT_LISTED:
        said = {"ae": refused.calling, "address": refused.address}
        keys = [f"{key} = {json.dumps(value)}" for key, value in said.items() if value not in ("", MANY)]
        return ["[[senders]]", *keys] if keys else []
    if refused.reason == gate.OTHER_CALLED.reason and refused.called not in ("", MANY):
        titles = sorted((config.called or frozenset()) | {refused.called})
        return ["[receive]", f"called = {json.dumps(titles)}"]
    if refused.reason == gate.ADDRESS_FULL.reason:
        return ["[receive]", f"per_address = {config.receive.per_address * 2}"]
    if refused.reason == gate.FULL.reason:
        return ["[receive]", f"associations = {config.receive.associations * 2}"]
    return []


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
