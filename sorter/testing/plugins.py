"""For the tests of a plugin: series to ask it about, the plugin by itself, and a check that tries what scanners send.

from sorter.testing.plugins import check_plugin, load_plugin, made_up

def test_pilots_belong_to_the_memory_lab():
    plugin = load_plugin("pilots", lab="memory")
    assert plugin.identify(made_up(PatientID="PILOT7")).identity.subject == "pilot7"

def test_it_stands_whatever_comes():
    check_plugin("pilots", lab="memory")
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.errors import ConfigError, PluginError, SorterError, words_of
from sorter.hookspecs import signatures
from sorter.model import Identity, Instance, Name, Series, Source, UnitKind, Value, Verdict, unit_key
from sorter.naming import Pattern, file_name, folder_name, values_of
from sorter.plugins import Plugins
from sorter.plugins.loading import Finder, module_of
from sorter.plugins.loading import Source as CodeOf
from sorter.plugins.local import Local
from sorter.take.header import examine, instance_of
from sorter.testing import synthetic

SLOW = 1.0
"""Seconds that one answer may take here; a running sorter waits longer, but all other series wait with it."""

_UID = "2.25.1"


def made_up(*, count: int = 1, lab: str | None = None, subject: str | None = None, **header: Value) -> Series:
    """A series of `count` images with these attributes and no other, as `made_up(PatientID="P7", EchoTime=2.5)`."""
    sources = (Source("SCANNER", "SORTER", "192.0.2.7:104"),)
    identity = Identity(lab, subject)
    return Series(_key(_UID), UnitKind.SERIES, "2.25.2", (_UID,), header, count, sources, identity, Verdict.QUIET, 1)


def series_of(files: Iterable[bytes | Path]) -> Series:
    """The series that these DICOM files are, given as their bytes or paths."""
    instances = [_read(each) for each in files]
    if not instances:
        raise ValueError("a series has at least one image")

    def values(keyword: str) -> tuple[Value, ...]:
        return tuple(dict.fromkeys(each.header[keyword] for each in instances if keyword in each.header))

    first = instances[0]
    uids = tuple(dict.fromkeys(each.series_uid for each in instances))
    source = Source("SCANNER", "SORTER", "192.0.2.7:104")
    return Series(
        _key(*uids), UnitKind.SERIES, first.study_uid, uids, first.header, len(instances), (source,),
        verdict=Verdict.QUIET, revision=1, ask=values,
    )  # fmt: skip


@functools.cache
def typical() -> dict[str, Series]:
    """A series of each kind that MRI sites know, by name: single-frame, mosaic, enhanced, multi-echo, field map, …"""
    plan = synthetic.Plan(seed=11, size=16, slices=4, volumes=3)
    return {made.name: series_of(made.files) for made in synthetic.session(plan)}


def load_plugin(plugin: str | Path, **settings: Any) -> Plugins:
    """One plugin by itself, in this process: an installed one by its name, a single file by its path.

    ConfigError where it cannot be loaded or its settings are wrong.
    """
    return Plugins(_local(plugin, settings))


def check_plugin(plugin: str | Path, **settings: Any) -> None:
    """Ask every hook of a plugin about what scanners, and people who mean harm, send.

    AssertionError names each failure: with which series, in which hook, and why. `sorter_event` is not asked: it may
    write to people.
    """
    local = _local(plugin, settings)
    hooks = local.known()[0].hooks
    said = [each for hook in hooks for each in _tried(local, hook)]
    if said:
        raise AssertionError("\n".join(dict.fromkeys(said)))


def hostile() -> Iterator[tuple[str, Series]]:
    """Series that a plugin has to stand, each with what is the matter with it."""
    keywords = sorted({keyword for series in typical().values() for keyword in series.header})
    yield "a series without any attribute", made_up()
    for title, value in _VALUES.items():
        header = dict.fromkeys(keywords, value)
        yield f"a series with {title} in every attribute", dataclasses.replace(made_up(), header=header)
    for name, series in typical().items():
        yield f"the series {name}", series
        for keyword in series.header:
            less = {key: value for key, value in series.header.items() if key != keyword}
            yield f"the series {name} without {keyword}", dataclasses.replace(series, header=less)


_VALUES: Mapping[str, Value] = {
    "one long text": "x" * 1024,
    "a path": "../../../etc/passwd",
    "shell text": "$(reboot); `reboot` | reboot",
    "markup of patterns": "{PatientID!r:>99} {0} %s %(x)s",
    "text of many scripts": "Ångström^Ελένη 山田^太郎 \u202edrow\u202c e\u0301",
    "a caret alone": "^",
    "several texts": ("a", "b", "c"),
    "a number": 7,
    "a decimal number": -0.5,
    "several numbers": (1, 2.5, 3),
}


def _tried(local: Local, hook: str) -> Iterator[str]:
    if hook in ("sorter_config", "sorter_event"):
        return
    for title, arguments in _questions(hook):
        begun = time.monotonic()
        asked = local.ask(hook, arguments)
        took = time.monotonic() - begun
        where = f"{hook} ({title})" if title else hook
        for failure in asked.failures:
            hint = _HINTS.get(type(failure.cause).__name__, "")
            yield f"{where}: {_why(failure)}{hint}"
        if took > SLOW:
            yield f"{where}: took {took:.1f} s; sorter waits for the answer: what takes long is a product"
        for answer in asked.answers:
            yield from (f"{where}: {said}" for said in _CHECKS.get(hook, _nothing)(answer.value, arguments))


_HINTS = {"AttributeError": " (an attribute is None where the image does not have it)"}


def _why(failure: PluginError) -> str:
    return failure.cause if isinstance(failure.cause, str) else words_of(failure.cause)


def _questions(hook: str) -> Iterator[tuple[str, dict[str, Any]]]:
    takes = signatures()[hook]
    if "series" in takes:
        for title, series in hostile():
            if "product" in takes:
                for product in ("dicom", "nifti"):
                    yield title, {"series": series, "product": product, "target": "lab"}
            else:
                yield title, {"series": series}
    elif "instance" in takes:
        for title, series in hostile():
            yield title, {"instance": _instance(series)}
    else:
        yield "", {}


def _instance(series: Series) -> Instance:
    return Instance(
        series.study_uid, series.series_uids[0], "2.25.3", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1", "a/b",
        100, "0" * 64, "1" * 64, "2" * 64, "2026-11-26T10:00:00", series.sources[0], series.header,
    )  # fmt: skip


# --- what answers must be good for besides what sorter itself checks --------------------------------------------------


def _nothing(_answer: Any, _arguments: Mapping[str, Any]) -> Iterator[str]:
    return iter(())


def _named(answer: Name, arguments: Mapping[str, Any]) -> Iterator[str]:
    try:
        values = values_of(arguments["series"].header, Identity("lab", "subject"))
        folder_name(Pattern(answer.folder), values)
        file_name(Pattern(answer.file, file=True), values)
    except SorterError as error:
        yield f"no name can be made of its answer: {error}"


def _made(answer: Iterable[Any], _arguments: Mapping[str, Any]) -> Iterator[str]:
    for product in answer:
        yield from _importable(product.make, f"the product {product.name}")


def _brought(answer: Iterable[Any], _arguments: Mapping[str, Any]) -> Iterator[str]:
    for kind in answer:
        yield from _importable(kind.code, f"the kind of target {kind.name}")


def _importable(code: str, of: str) -> Iterator[str]:
    module, _, name = code.rpartition(":")
    if module.endswith(".py"):  # the plugin itself, which is loaded
        module = module_of(Path(module))
    try:
        getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        yield f"{of} names {code}, which cannot be loaded: {error}"


_CHECKS: Mapping[str, Callable[[Any, Mapping[str, Any]], Iterator[str]]] = {
    "sorter_name": _named,
    "sorter_products": _made,
    "sorter_targets": _brought,
}


# --- loading ----------------------------------------------------------------------------------------------------------


def _local(plugin: str | Path, settings: Mapping[str, Any]) -> Local:
    finder = Finder(Files())
    path = Path(plugin) if str(plugin).endswith(".py") else None
    finder.run([CodeOf(path.resolve(), path.read_bytes())] if path else [])
    name = path.stem if path else str(plugin)
    mine = [each for each in finder.plugins if each.name == name]
    if not mine:
        known = ", ".join(each.name for each in finder.plugins) or "none"
        about = [said for said in finder.faults if path is None or said.startswith(str(path.resolve()))]
        raise ConfigError(about or [f"no plugin {name} is installed (installed: {known})"])
    finder.plugins = mine
    local = Local(finder, {name: settings}, path.resolve().parent if path else None)
    faults = [f"plugins.{'.'.join(fault.key)}: {fault.says}" for fault in local.faults()]
    if faults:
        raise ConfigError(faults)
    return local


def _read(file: bytes | Path) -> Instance:
    files = Files()
    if isinstance(file, Path):
        with files.opened(file, os.O_RDONLY) as fd:
            return instance_of(examine(files, fd))
    fd = os.memfd_create("image")
    try:
        with os.fdopen(os.dup(fd), "wb") as out:
            out.write(file)
        return instance_of(examine(files, fd))
    finally:
        os.close(fd)


_key = functools.partial(unit_key, UnitKind.SERIES)
