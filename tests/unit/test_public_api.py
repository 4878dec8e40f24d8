"""What plugin authors rely on changes only by intention: it is compared with the page that says what is public."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sorter
import sorter.testing.plugins
import sorter.testing.running
import sorter.testing.synthetic
import sorter.testing.targets
import sorter.testing.waiting
from sorter import hookspecs
from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.plugins import Plugins

PAGE = Path(__file__).with_name("public_api.txt")
FOR_TESTS = (
    sorter.testing.plugins, sorter.testing.running, sorter.testing.synthetic, sorter.testing.targets,
    sorter.testing.waiting,
)  # fmt: skip


def public_api() -> str:
    lines = [f"API {hookspecs.API}"]
    lines += [f"hook {name}({', '.join(arguments)})" for name, arguments in hookspecs.signatures().items()]
    for name in sorter.__all__:
        lines += _lines(f"sorter.{name}", getattr(sorter, name))
    for module in FOR_TESTS:
        for name, item in _own(module):
            lines += _lines(f"{module.__name__}.{name}", item)
    return "\n".join(lines) + "\n"


def _own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What is defined there, and not private."""
    for name, item in sorted(vars(module).items()):
        if not name.startswith("_") and getattr(item, "__module__", "") == module.__name__:
            yield name, item


def _lines(name: str, item: Any) -> Iterator[str]:
    if isinstance(item, type) and issubclass(item, enum.Enum):
        yield f"{name}: {', '.join(each.name for each in item)}"
    elif isinstance(item, type):
        fields = dataclasses.fields(item) if dataclasses.is_dataclass(item) else ()
        yield f"{name}{_signature(item)}"
        for member, value in sorted(vars(item).items()):
            if not member.startswith("_") and member not in {each.name for each in fields}:
                yield f"{name}.{member}{_signature(value)}"
    elif inspect.isfunction(item):
        yield f"{name}{_signature(item)}"
    else:
        yield name


def _signature(item: Any) -> str:
    item = item.__func__ if isinstance(item, classmethod | staticmethod) else item
    if not callable(item):
        return ""
    try:
        said = str(inspect.signature(item))
    except ValueError:  # of a type without one
        return ""
    return re.sub(r" at 0x[0-9a-f]+|<factory>", "", said)


def test_the_public_api_is_what_the_page_says() -> None:
    if os.environ.get("SORTER_WRITE_API"):
        PAGE.write_text(public_api())
    assert public_api() == PAGE.read_text(), (
        "the public API is another one: if that is meant, write the page anew with SORTER_WRITE_API=1, and raise"
        " hookspecs.API where a plugin that was right may be so no more"
    )


# --- versions ---------------------------------------------------------------------------------------------------------


def loaded(folder: Path, says: str) -> Plugins:
    folder.chmod(0o755)
    code = f"""
        from sorter import Identity, hookimpl
        {says}
        @hookimpl
        def sorter_identify(series): return Identity(subject="x")
    """
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(code))
    path.chmod(0o644)
    return Plugins.load({}, folder, Files(), {})


def test_a_plugin_of_this_version_is_taken(tmp_path: Path) -> None:
    assert loaded(tmp_path, f"SORTER_API = {hookspecs.API}").listing()[0].notes == ()


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (f"SORTER_API = {hookspecs.API + 1}", f"this sorter has {hookspecs.API}: bring sorter up to date"),
        (f"SORTER_API = {hookspecs.OLDEST - 1}", "bring the plugin up to date"),
        ("SORTER_API = '1'", "SORTER_API is the number of a version"),
    ],
)
def test_a_plugin_of_another_version_is_refused_with_a_sentence(tmp_path: Path, says: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)) as refused:
        loaded(tmp_path, says)
    assert str(tmp_path / "mine.py") in str(refused.value)


@pytest.mark.parametrize("what", ["sorter_identify", "sorter_identify.series"])
def test_what_will_go_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(hookspecs, "DEPRECATED", {what: "use sorter_who; it works until version 3"})
    assert loaded(tmp_path, "").listing()[0].notes == (
        f"{what} is deprecated: use sorter_who; it works until version 3",
    )
