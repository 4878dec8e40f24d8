"""A key or a rule of a file that a person wrote, changed in its place: whatever else stands there stays."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tomli

from sorter.config.places import places

Value: TypeAlias = str | Sequence[str]

_VALUE = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')""")


def with_lab_root(text: str, lab: str, root: str) -> str | None:
    """`text` with another `root` in `[labs.LAB]`; None where it is written in a way that only a person can change."""
    found, lines = places(text), _lines(text)
    key, value = ("labs", lab, "root"), json.dumps(root, ensure_ascii=False)
    if key in found:
        number = found[key] - 1
        before, equals, after = lines[number].partition("=")
        lines[number] = before + equals + _VALUE.sub(lambda _: value, after, count=1)
    elif key[:2] in found:
        number = found[key[:2]] - 1
        ending = "\r\n" if lines[number].endswith("\r\n") else "\n"
        lines[number] = f"{lines[number].rstrip()}{ending}root = {value}{ending}"
    else:
        return None
    wanted = _read(text)
    wanted["labs"][lab]["root"] = root
    return _if_it_says("".join(lines), wanted)


def with_rule(text: str, rule: Mapping[str, Value]) -> str | None:
    """`text` with one more of its `[[rules]]`, before all others: the first that fits counts. None as above."""
    lines, wanted = _lines(text), _read(text)
    at = min(_rules(text), default=len(lines))
    while at and lines[at - 1].lstrip().startswith("#") and at < len(lines):  # what is said of the next one stays there
        at -= 1
    written = ["[[rules]]\n", *(f"{key} = {_value(value)}\n" for key, value in rule.items())]
    if at == len(lines) and lines:
        lines[-1] = lines[-1].rstrip("\r\n") + "\n"
        written.insert(0, "\n")
    elif at < len(lines):
        written.append("\n")
    wanted["rules"] = [dict(rule), *wanted.get("rules", [])]
    return _if_it_says("".join([*lines[:at], *written, *lines[at:]]), wanted)


def without_rule(text: str, number: int) -> str | None:
    """`text` without one of its `[[rules]]`, counted from 1. None as above; IndexError: there is no such rule."""
    lines, wanted = _lines(text), _read(text)
    del wanted.get("rules", [])[number - 1]
    if not wanted["rules"]:
        del wanted["rules"]
    if number > len(_rules(text)):
        return None
    begun = _rules(text)[number - 1]
    tables = [
        line - 1 for key, line in places(text).items() if lines[line - 1].lstrip().startswith("[") and line - 1 > begun
    ]
    end = min(tables, default=len(lines))
    while end > begun + 1 and end < len(lines) and lines[end - 1].lstrip().startswith("#"):
        end -= 1
    return _if_it_says("".join(lines[:begun] + lines[end:]), wanted)


def _rules(text: str) -> list[int]:
    """The lines, from 0, at which each of the `[[rules]]` begins."""
    lines = _lines(text)
    found = {int(key[1]): line - 1 for key, line in places(text).items() if key[:1] == ("rules",) and len(key) == 2}
    return [found[each] for each in sorted(found) if lines[found[each]].lstrip().startswith("[[")]


def _lines(text: str) -> list[str]:
    """With their ends, as TOML counts them."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _value(value: Value) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(_value, value))}]"


def _read(text: str) -> dict[str, Any]:
    return tomli.loads(text.removeprefix("\ufeff"))


def _if_it_says(changed: str, wanted: Mapping[str, Any]) -> str | None:
    """None if it does not say what it should."""
    try:
        return changed if _read(changed) == wanted else None
    except tomli.TOMLDecodeError:
        return None
