"""Plugins that run in this process: loaded, asked one by one, each with its own settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pluggy

from sorter import hookspecs
from sorter.errors import ConfigError, PluginError
from sorter.model import Product
from sorter.plugins.answers import check, frozen
from sorter.plugins.loading import Finder, Plugin
from sorter.plugins.settings import Settings, settings_of
from sorter.plugins.table import TableReader


class Answer(NamedTuple):
    """What one plugin answered; never None."""

    plugin: str
    value: Any


class Asked(NamedTuple):
    """The answers to one question in the order of asking, and the plugins that failed to answer."""

    answers: tuple[Answer, ...]
    failures: tuple[PluginError, ...]


class Fault(NamedTuple):
    """What is wrong with the settings of a plugin: the key below `[plugins]` that it stands at, and a sentence."""

    key: tuple[str, ...]
    says: str


@dataclass(frozen=True)
class Known:
    """What there is to say of a plugin without asking it."""

    name: str
    version: str
    source: str
    hooks: tuple[str, ...]
    notes: tuple[str, ...] = ()


Tables = Mapping[str, Mapping[str, Any]]
"""The `[plugins.NAME]` tables by NAME."""


class Local:
    """The plugins of this process, in the order of asking."""

    def __init__(self, found: Finder, tables: Tables, folder: Path | None) -> None:
        """Nothing is validated yet: `faults` does that, and must have answered nothing before a plugin is asked.

        `unloadable` are sentences about plugins that could not be loaded, `names` those of all that were there.
        Relative paths of tables start in `folder`.
        """
        self.unloadable, self.names = found.faults, found.names
        self._plugins = {plugin.name: plugin for plugin in found.plugins}
        self._settings: dict[str, Settings] = {}
        self._unfit: list[Fault] = []
        for plugin in found.plugins:
            mine, said = settings_of(plugin, tables.get(plugin.name, {}), TableReader(found.files, folder))
            self._settings[plugin.name] = mine
            if said:
                self._unfit.append(Fault((), said))
        self._manager = _manager(found.plugins)

    def faults(self, last_good: Mapping[str, Mapping[str, Any]] | None = None) -> list[Fault]:
        """Read and validate the settings of all; where that fails, what was `last_good` stays in force instead."""
        found = list(self._unfit)
        for name, settings in self._settings.items():
            if not settings.read() and not (last_good and settings.restore(last_good.get(name, {}))):
                found += [Fault((name, *key), said) for key, said in settings.faults]
        return found

    def known(self) -> tuple[Known, ...]:
        return tuple(
            Known(each.name, each.version, each.source, tuple(each.hooks), each.notes)
            for each in self._plugins.values()
        )

    def ask(self, hook: str, arguments: Mapping[str, Any], *, first: bool = False) -> Asked:
        """Every plugin's answer to `hook`, in order; None is left out. With `first` nobody is asked after an answer."""
        answers: list[Answer] = []
        failures: list[PluginError] = []
        for name, said in self.answers(hook, arguments):
            if isinstance(said, PluginError):
                failures.append(said)
            elif said is not None:
                answers.append(Answer(name, said))
                if first:
                    break
        return Asked(tuple(answers), tuple(failures))

    def answers(
        self, hook: str, arguments: Mapping[str, Any], of: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """What each plugin (of those named) says, as it says it: a checked answer, None, or a PluginError."""
        given = {name: frozen(value) for name, value in arguments.items()}
        for plugin in self._asked_by(hook):
            if of is not None and plugin.name not in of:
                continue
            try:
                yield plugin.name, self._answer(plugin, hook, given)
            except PluginError as error:
                yield plugin.name, error

    def _asked_by(self, hook: str) -> list[Plugin]:
        caller = getattr(self._manager.hook, hook)
        return [self._plugins[impl.plugin_name] for impl in reversed(caller.get_hookimpls())]

    def _answer(self, plugin: Plugin, hook: str, given: Mapping[str, Any]) -> Any:
        answer = _call(plugin, hook, {**given, "settings": self._settings[plugin.name].value})
        if hook == "sorter_products" and answer is not None:
            return tuple(_with_file(plugin, product) for product in answer)
        return answer

    def settings(self, plugin: str) -> dict[str, Any]:
        """A plugin's settings as plain values, for a `Work`. KeyError where there is no such plugin."""
        return self._settings[plugin].plain()

    def give(self, plugin: str, more: Mapping[str, Any]) -> None:
        """Settings that sorter itself fills in, anew. ConfigError, and nothing is changed."""
        settings = self._settings[plugin]
        before, settings.raw = settings.raw, {**settings.raw, **more}
        if not settings.read():
            faults = [f"plugins.{plugin}.{'.'.join(key)}: {said}" for key, said in settings.faults]
            settings.raw = before
            raise ConfigError(faults)

    @property
    def reads_tables(self) -> bool:
        return any(settings.reader.seen for settings in self._settings.values())

    def refresh(self) -> tuple[str, ...]:
        """Read changed tables again; the names of the plugins whose settings are new now.

        A table that cannot be used leaves the last good rows in force; `table_faults` says why.
        """
        return tuple(name for name, settings in self._settings.items() if settings.reader.changed() and settings.read())

    def table_faults(self) -> tuple[Fault, ...]:
        """What is wrong with tables that changed since the start, until they are mended."""
        return tuple(Fault((name, *key), said) for name, each in self._settings.items() for key, said in each.faults)

    def close(self) -> None:
        """Nothing to end here."""


def _manager(plugins: Sequence[Plugin]) -> pluggy.PluginManager:
    """pluggy calls what was registered last first; so the order of asking is registered backwards."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in reversed(plugins):
        manager.register(plugin.module, plugin.name)
    manager.check_pending()
    return manager


def _call(plugin: Plugin, hook: str, offered: Mapping[str, Any]) -> Any:
    """What one plugin says, checked; PluginError when it raises or says what the hook does not allow."""
    mine = plugin.hooks[hook]
    try:
        answer = mine.function(**{name: offered[name] for name in mine.arguments})
    except (Exception, SystemExit) as error:
        raise PluginError(plugin.name, hook, error) from error
    try:
        return check(hook, answer)
    except ValueError as error:
        raise PluginError(plugin.name, hook, str(error)) from None
    except RecursionError as error:  # an answer that contains itself
        raise PluginError(plugin.name, hook, error) from None


def _with_file(plugin: Plugin, product: Product) -> Product:
    """A single file cannot be imported by name: its own functions are named by its path instead."""
    module, _, function = product.make.partition(":")
    if plugin.file is None or module not in (plugin.name, plugin.module.__name__, plugin.name.replace("-", "_")):
        return product
    return dataclasses.replace(product, make=f"{plugin.file}:{function}")
