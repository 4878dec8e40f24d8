"""The plugins of a running sorter: what they are, and their answers."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pluggy

from sorter import hookspecs
from sorter.durable import Files
from sorter.errors import ConfigError, PluginError
from sorter.model import (
    Add,
    Event,
    Hold,
    Identity,
    Instance,
    Name,
    Only,
    Product,
    Route,
    Series,
    Skip,
)
from sorter.plugins.answers import check, frozen
from sorter.plugins.loading import Finder, Plugin, did_you_mean
from sorter.plugins.settings import Locate, Settings, sentences, settings_of
from sorter.plugins.table import TableReader


class Answer(NamedTuple):
    """What one plugin answered; never None."""

    plugin: str
    value: Any


class Asked(NamedTuple):
    """The answers to one question in the order of asking, and the plugins that failed to answer."""

    answers: tuple[Answer, ...]
    failures: tuple[PluginError, ...]


class Identified(NamedTuple):
    identity: Identity
    failures: tuple[PluginError, ...]


class Routed(NamedTuple):
    """The strongest route, None where nobody has an opinion; `by` names the plugins that said it."""

    route: Route | None
    by: tuple[str, ...]
    failures: tuple[PluginError, ...]


class Named(NamedTuple):
    name: Name | None
    by: str
    failures: tuple[PluginError, ...]


@dataclass(frozen=True)
class Listed:
    """One line of `sorter plugins`; `order` is its place in asking, from 1."""

    order: int
    name: str
    version: str
    source: str
    hooks: tuple[str, ...]


def _nowhere(*key: str) -> str:  # noqa: ARG001
    return "configuration"


class Plugins:
    """The loaded plugins, in the order of asking, each with its own settings."""

    def __init__(self, plugins: list[Plugin], settings: dict[str, Settings]) -> None:
        self._plugins = {plugin.name: plugin for plugin in plugins}
        self._settings = settings
        self._manager = _manager(plugins)

    @classmethod
    def load(
        cls,
        tables: Mapping[str, Mapping[str, Any]],
        folder: Path | None,
        files: Files,
        builtin: Mapping[str, Mapping[str, Any]],
        locate: Locate = _nowhere,
    ) -> Plugins:
        """All plugins with validated settings; ConfigError holds every fault found.

        `tables` are the `[plugins.NAME]` tables, `folder` the admin's folder of single files, `builtin` the settings
        that sorter itself gives its built-ins (a table of the same name overrides them), `locate` says where a key
        stands in the configuration.
        """
        finder = Finder(files)
        finder.find(folder)
        faults = list(finder.faults)
        for name in tables:
            if name not in finder.names:
                said = f"no plugin {name} is installed{did_you_mean(name, finder.names)}"
                faults.append(f"{locate('plugins', name)}: plugins.{name}: {said}")
        settings: dict[str, Settings] = {}
        for plugin in finder.plugins:
            raw = {**builtin.get(plugin.name, {}), **tables.get(plugin.name, {})}
            mine, said = settings_of(plugin, raw, TableReader(files, folder))
            settings[plugin.name] = mine
            if said:
                faults.append(said)
            elif not mine.read():
                faults += sentences(plugin, mine, locate)
        if faults:
            raise ConfigError(faults)
        return cls(finder.plugins, settings)

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, hook: str, **arguments: Any) -> Asked:
        """Every plugin's answer to `hook`, in order; None is left out."""
        return self._ask(hook, arguments, first=False)

    def _ask(self, hook: str, arguments: Mapping[str, Any], *, first: bool) -> Asked:
        answers: list[Answer] = []
        failures: list[PluginError] = []
        given = {name: frozen(value) for name, value in arguments.items()}
        for plugin in self._asked_by(hook):
            try:
                value = _answer(plugin, hook, {**given, "settings": self._settings[plugin.name].value})
            except PluginError as error:
                failures.append(error)
                continue
            if value is not None:
                answers.append(Answer(plugin.name, value))
                if first:
                    break
        return Asked(tuple(answers), tuple(failures))

    def _asked_by(self, hook: str) -> list[Plugin]:
        caller = getattr(self._manager.hook, hook)
        return [self._plugins[impl.plugin_name] for impl in reversed(caller.get_hookimpls())]

    def identify(self, series: Series) -> Identified:
        """Each part, and each label, by the first plugin that knows it."""
        asked = self.ask("sorter_identify", series=series)
        lab = subject = session = None
        labels: dict[str, str] = {}
        for _, found in asked.answers:
            lab, subject, session = lab or found.lab, subject or found.subject, session or found.session
            labels = {**found.labels, **labels}
        return Identified(Identity(lab, subject, session, labels), asked.failures)

    def group(self, instance: Instance) -> Asked:
        """At most one answer: the key under which the instance's series is merged with others."""
        return self._ask("sorter_group", {"instance": instance}, first=True)

    def expect(self, series: Series) -> Asked:
        return self.ask("sorter_expect", series=series)

    def route(self, series: Series) -> Routed:
        """The strongest: Hold, Skip, Only, Add. Several Add are joined; several Only must agree on a target."""
        asked = self.ask("sorter_route", series=series)
        for kind in (Hold, Skip, Only, Add):
            said = [answer for answer in asked.answers if isinstance(answer.value, kind)]
            if said:
                return Routed(_combined(said), tuple(answer.plugin for answer in said), asked.failures)
        return Routed(None, (), asked.failures)

    def name(self, series: Series, product: str, target: str) -> Named:
        """The patterns for one product at one target, by the first plugin that has an opinion."""
        asked = self._ask("sorter_name", {"series": series, "product": product, "target": target}, first=True)
        if not asked.answers:
            return Named(None, "", asked.failures)
        return Named(asked.answers[0].value, asked.answers[0].plugin, asked.failures)

    def products(self) -> Asked:
        """One answer for each product; a name that two plugins make is a failure of the later one."""
        asked = self._each_named("sorter_products")
        return Asked(tuple(self._with_file(answer) for answer in asked.answers), asked.failures)

    def target_kinds(self) -> Asked:
        """One answer for each kind of target; a name that two plugins bring is a failure of the later one."""
        return self._each_named("sorter_targets")

    def event(self, event: Event) -> tuple[PluginError, ...]:
        """Tell every plugin."""
        return self.ask("sorter_event", event=event).failures

    def _each_named(self, hook: str) -> Asked:
        asked = self.ask(hook)
        found: dict[str, Answer] = {}
        failures = list(asked.failures)
        for plugin, values in asked.answers:
            for value in values:
                if value.name in found:
                    said = f"{value.name} is brought by plugin {found[value.name].plugin} already"
                    failures.append(PluginError(plugin, hook, said))
                else:
                    found[value.name] = Answer(plugin, value)
        return Asked(tuple(found.values()), tuple(failures))

    def _with_file(self, answer: Answer) -> Answer:
        """A single file cannot be imported by name: its own functions are named by its path instead."""
        plugin = self._plugins[answer.plugin]
        product: Product = answer.value
        module, _, function = product.make.partition(":")
        if plugin.file is None or module not in (plugin.name, plugin.module.__name__, plugin.name.replace("-", "_")):
            return answer
        return Answer(answer.plugin, dataclasses.replace(product, make=f"{plugin.file}:{function}"))

    # --- settings and listing -----------------------------------------------------------------------------------

    def settings(self, plugin: str) -> dict[str, Any]:
        """A plugin's settings as plain values, for a `Work`. KeyError where there is no such plugin."""
        return self._settings[plugin].plain()

    def give(self, plugin: str, more: Mapping[str, Any]) -> None:
        """Settings that sorter itself fills in of one of its built-ins, anew. ConfigError, and nothing is changed."""
        settings = self._settings[plugin]
        before, settings.raw = settings.raw, {**settings.raw, **more}
        if not settings.read():
            faults = [f"plugins.{plugin}.{'.'.join(key)}: {said}" for key, said in settings.faults]
            settings.raw = before
            raise ConfigError(faults)

    def refresh(self) -> tuple[str, ...]:
        """Read changed tables again; the names of the plugins whose settings are new now.

        A table that cannot be used leaves the last good rows in force; `table_faults` says why.
        """
        return tuple(name for name, settings in self._settings.items() if settings.reader.changed() and settings.read())

    def table_faults(self) -> tuple[str, ...]:
        """What is wrong with tables that changed since the start, until they are mended."""
        return tuple(
            f"{'.'.join(('plugins', name, *key))}: {said}"
            for name, settings in self._settings.items()
            for key, said in settings.faults
        )

    def listing(self) -> tuple[Listed, ...]:
        """Every plugin in the order of asking."""
        return tuple(
            Listed(number, plugin.name, plugin.version, plugin.source, tuple(plugin.hooks))
            for number, plugin in enumerate(self._plugins.values(), 1)
        )


def _manager(plugins: list[Plugin]) -> pluggy.PluginManager:
    """pluggy calls what was registered last first; so the order of asking is registered backwards."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in reversed(plugins):
        manager.register(plugin.module, plugin.name)
    manager.check_pending()
    return manager


def _answer(plugin: Plugin, hook: str, offered: Mapping[str, Any]) -> Any:
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


def _combined(said: list[Answer]) -> Route:
    first: Route = said[0].value
    if isinstance(first, Add):
        return Add(tuple(dict.fromkeys(target for answer in said for target in answer.value.targets)))
    if isinstance(first, Only):
        common = tuple(target for target in first.targets if all(target in answer.value.targets for answer in said))
        if not common:
            names = " and ".join(answer.plugin for answer in said)
            return Hold(f"plugins {names} each allow only targets that the other does not")
        return Only(common)
    return first


def matches(product: Product, series: Series) -> bool:
    """Does a product's `when` fit this series? Every keyword must have a value that one of its globs matches."""
    return all(_any_fits(_values(series, keyword), globs) for keyword, globs in product.when.items())


def _any_fits(values: tuple[Any, ...], globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(str(value).casefold(), glob.casefold()) for value in values for glob in globs)


def _values(series: Series, keyword: str) -> tuple[Any, ...]:
    value = series.get(keyword)
    found = series.values(keyword) if value is None else (value,)
    return tuple(part for item in found for part in (item if isinstance(item, tuple) else (item,)))
