"""The plugins of a running sorter, asked together: whose answer counts, and what several answers mean."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

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
from sorter.plugins.hosted import Hosted
from sorter.plugins.loading import BUILT_IN, Finder, any_third_party, did_you_mean
from sorter.plugins.local import Answer, Asked, Fault, Known, Local, Tables
from sorter.plugins.settings import Locate


class Domain(Protocol):
    """Plugins that run together: those of this process, or those of one process of their own."""

    unloadable: list[str]
    names: list[str]

    def faults(self) -> list[Fault]: ...
    def known(self) -> tuple[Known, ...]: ...
    def ask(self, hook: str, arguments: Mapping[str, Any], *, first: bool = False) -> Asked: ...
    def settings(self, plugin: str) -> dict[str, Any]: ...
    def refresh(self) -> tuple[str, ...]: ...
    def table_faults(self) -> tuple[Fault, ...]: ...
    def close(self) -> None: ...


class Identified(NamedTuple):
    """`own` are failures of plugins of the lab's own, which leave no doubt that the lab is the one named."""

    identity: Identity
    failures: tuple[PluginError, ...]
    own: tuple[PluginError, ...] = ()


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
class Listed(Known):
    """One line of `sorter plugins`; `order` is its place in asking, from 1."""

    order: int = 0


AskLab: TypeAlias = Callable[[str, str, Mapping[str, Any]], Asked]
"""What a lab's own plugins answer: (lab, hook, arguments). It is of that lab alone, whatever they say."""

_NOTHING = Asked((), ())


def _no_lab(lab: str, hook: str, arguments: Mapping[str, Any]) -> Asked:  # noqa: ARG001
    return _NOTHING


def _together(*asked: Asked) -> Asked:
    return Asked(
        tuple(answer for each in asked for answer in each.answers),
        tuple(failure for each in asked for failure in each.failures),
    )


def _nowhere(*key: str) -> str:  # noqa: ARG001
    return "configuration"


class Plugins:
    """The loaded plugins, in the order of asking: those of others in a process of their own, then the built-ins."""

    def __init__(self, ours: Local, *others: Domain) -> None:
        domains = (*others, ours)
        self._ours, self._domains = ours, domains
        self.of_lab: AskLab = _no_lab
        self._of = {plugin.name: domain for domain in domains for plugin in domain.known()}

    @classmethod
    def start(
        cls, tables: Tables, folder: Path | None, files: Files, builtin: Tables, locate: Locate = _nowhere
    ) -> Plugins:
        """All plugins with validated settings, those of others in a process of their own, which this starts.

        `tables` are the `[plugins.NAME]` tables, `folder` the admin's folder of single files, `builtin` the settings
        that sorter itself gives its built-ins (a table of the same name overrides them), `locate` says where a key
        stands in the configuration. ConfigError holds every fault found.
        """
        ours = _built_in(tables, builtin, files, folder)
        if not any_third_party(folder, files):
            return cls._checked(None, ours, tables, locate)
        hosted = Hosted(folder, {name: table for name, table in tables.items() if name not in BUILT_IN})
        try:
            return cls._checked(hosted, ours, tables, locate)
        except ConfigError:
            hosted.close()
            raise

    @classmethod
    def load(
        cls, tables: Tables, folder: Path | None, files: Files, builtin: Tables, locate: Locate = _nowhere
    ) -> Plugins:
        """As `start`, with everything in this process: for a plugin's own tests, and to stop in a debugger."""
        finder = Finder(files)
        finder.third_party(folder)
        ours = _built_in(tables, builtin, files, folder)
        return cls._checked(Local(finder, tables, folder), ours, tables, locate)

    @classmethod
    def _checked(cls, others: Domain | None, ours: Local, tables: Tables, locate: Locate) -> Plugins:
        """The plugins of others and the built-ins, or ConfigError with what is wrong with any of them."""
        domains: list[Domain] = [ours] if others is None else [others, ours]
        faults = [said for domain in domains for said in domain.unloadable]
        names = [name for domain in domains for name in domain.names]
        for name in tables:
            if name not in names:
                said = f"no plugin {name} is installed{did_you_mean(name, names)}"
                faults.append(f"{locate('plugins', name)}: plugins.{name}: {said}")
        faults += [_located(fault, locate) for domain in domains for fault in domain.faults()]
        if faults:
            raise ConfigError(faults)
        return cls(ours, *domains[:-1])

    def close(self) -> None:
        """End the process of the plugins of others."""
        for domain in self._domains:
            domain.close()

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, hook: str, **arguments: Any) -> Asked:
        """Every plugin's answer to `hook`, in order; None is left out."""
        return self._ask(hook, arguments, first=False)

    def _ask(self, hook: str, arguments: Mapping[str, Any], *, first: bool) -> Asked:
        answers: tuple[Answer, ...] = ()
        failures: tuple[PluginError, ...] = ()
        for domain in self._domains:
            asked = domain.ask(hook, arguments, first=first)
            answers, failures = answers + asked.answers, failures + asked.failures
            if first and answers:
                break
        return Asked(answers, failures)

    def identify(self, series: Series) -> Identified:
        """Each part, and each label, by the first plugin that knows it."""
        asked = self.ask("sorter_identify", series=series)
        lab = subject = session = None
        labels: dict[str, str] = {}
        for _, found in asked.answers:
            lab, subject, session = lab or found.lab, subject or found.subject, session or found.session
            labels = {**found.labels, **labels}
        found = Identity(lab, subject, session, labels)
        if lab is None:
            return Identified(found, asked.failures)
        own = self.of_lab(lab, "sorter_identify", {"series": replace(series, identity=found)})
        for _, said in reversed(own.answers):
            subject, session = said.subject or subject, said.session or session
            labels = {**labels, **said.labels}
        return Identified(Identity(lab, subject, session, labels), asked.failures, own.failures)

    def group(self, instance: Instance) -> Asked:
        """At most one answer: the key under which the instance's series is merged with others."""
        return self._ask("sorter_group", {"instance": instance}, first=True)

    def expect(self, series: Series) -> Asked:
        return self.ask("sorter_expect", series=series)

    def route(self, series: Series) -> Routed:
        """The strongest: Hold, Skip, Only, Add. Several Add are joined; several Only must agree on a target."""
        asked = _together(self._ask_lab("sorter_route", series), self.ask("sorter_route", series=series))
        for kind in (Hold, Skip, Only, Add):
            said = [answer for answer in asked.answers if isinstance(answer.value, kind)]
            if said:
                return Routed(_combined(said), tuple(answer.plugin for answer in said), asked.failures)
        return Routed(None, (), asked.failures)

    def name(self, series: Series, product: str, target: str) -> Named:
        """The patterns for one product at one target, by the first plugin that has an opinion."""
        question = {"series": series, "product": product, "target": target}
        own = self._ask_lab("sorter_name", series, question) if target == series.lab else _NOTHING
        asked = own if own.answers else _together(own, self._ask("sorter_name", question, first=True))
        if not asked.answers:
            return Named(None, "", asked.failures)
        return Named(asked.answers[0].value, asked.answers[0].plugin, asked.failures)

    def _ask_lab(self, hook: str, series: Series, question: Mapping[str, Any] | None = None) -> Asked:
        """What the lab's own plugins say of a series of that lab."""
        return self.of_lab(series.lab, hook, question or {"series": series}) if series.lab is not None else _NOTHING

    def products(self) -> Asked:
        """One answer for each product; a name that two plugins make is a failure of the later one."""
        return self._each_named("sorter_products")

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

    # --- settings and listing -----------------------------------------------------------------------------------

    def settings(self, plugin: str) -> dict[str, Any]:
        """A plugin's settings as plain values, for a `Work`. KeyError where there is no such plugin."""
        return self._of[plugin].settings(plugin)

    def give(self, plugin: str, more: Mapping[str, Any]) -> None:
        """Settings that sorter itself fills in of one of its built-ins, anew. ConfigError, and nothing is changed."""
        self._ours.give(plugin, more)

    def refresh(self) -> tuple[str, ...]:
        """The names of the plugins that may answer otherwise now: a table of theirs changed, or they answer again.

        A table that cannot be used leaves the last good rows in force; `table_faults` says why.
        """
        return tuple(name for domain in self._domains for name in domain.refresh())

    def table_faults(self) -> tuple[str, ...]:
        """What is wrong with tables that changed since the start, until they are mended."""
        return tuple(
            f"{'.'.join(('plugins', *fault.key))}: {fault.says}"
            for domain in self._domains
            for fault in domain.table_faults()
        )

    def listing(self) -> tuple[Listed, ...]:
        """Every plugin in the order of asking."""
        known = [each for domain in self._domains for each in domain.known()]
        return tuple(
            Listed(each.name, each.version, each.source, each.hooks, each.notes, number)
            for number, each in enumerate(known, 1)
        )


def _built_in(tables: Tables, builtin: Tables, files: Files, folder: Path | None) -> Local:
    finder = Finder(files)
    finder.built_in()
    return Local(finder, {name: {**builtin.get(name, {}), **tables.get(name, {})} for name in BUILT_IN}, folder)


def _located(fault: Fault, locate: Locate) -> str:
    """`sorter.toml:7: plugins.x.key: …`."""
    if not fault.key:
        return fault.says
    path = ("plugins", *fault.key)
    return f"{locate(*path)}: {'.'.join(path)}: {fault.says}"


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
