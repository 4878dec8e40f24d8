"""The contract between sorter and its plugins: nine hooks, and nothing else.

A plugin is a module (a distribution `sorter-foo` importing `sorter_foo`, entry point group `sorter`; or a single file
in the plugins folder) with functions of these names, each marked `@hookimpl`:

    from sorter import Identity, hookimpl

    @hookimpl
    def sorter_identify(series, settings):
        return Identity(subject=series.PatientID.lower())

An implementation may leave out arguments it does not need. Every argument and every answer is a plain, serialisable
value (`sorter.model`). Plugins decide; sorter acts: no hook is given a path into the spool, and only a target kind
writes, inside that target's own worker process. `settings` is the plugin's own `[plugins.NAME]` table, an instance of
its model where it has one (`sorter_config`), else a mapping.

A hook is asked plugin by plugin, in the order: the admin's files by name, distributions by name, built-ins last. What
one plugin raises never touches another's answer; the series is held with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from sorter.model import Event, Expectation, Identity, Instance, Name, Product, Route, Series, TargetKind

if TYPE_CHECKING:
    from pydantic import BaseModel

PROJECT = "sorter"

API, OLDEST = 1, 1
"""The version of this contract, and the oldest that plugins may be written for (`SORTER_API = 1` in theirs says which).

It rises when a plugin that was right may be so no more: a hook, an argument or a name goes, or means something else.
What will go stands in `DEPRECATED` for a release at least before that; what is new needs no other version.
"""

DEPRECATED: Mapping[str, str] = {}
"""By "HOOK" or "HOOK.ARGUMENT": what to use instead, and until which version it works; `sorter plugins` says so."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Settings = Any
"""An instance of the plugin's own settings model, or a mapping where it has none."""


@hookspec
def sorter_config() -> type[BaseModel] | None:
    """The pydantic model of this plugin's `[plugins.NAME]` table.

    Asked once, at start and at every reload. A table that does not fit is a fault of the configuration, reported with
    its file and line. A field of type `sorter.Table` is the path of a CSV or TSV file that sorter reads and hands over
    as a tuple of mappings, read again when it changes.
    """


@hookspec
def sorter_identify(series: Series, settings: Settings) -> Identity | None:
    """Whose series is this? Lab, subject, session, labels: any part may be None.

    Asked when a series is published and again until it is delivered. For each part the first answer that is not None
    counts.
    """


@hookspec
def sorter_group(instance: Instance, settings: Settings) -> str | None:
    """A key under which instances of several SeriesInstanceUIDs are one series; None for the usual rule.

    Only the admin's plugins are asked, once, when the first instance of a SeriesInstanceUID arrives; the answer is
    recorded and never changed. A wrong merge is worse than a split: answer None where unsure. First answer counts.
    """


@hookspec
def sorter_expect(series: Series, settings: Settings) -> Expectation | None:
    """How many instances should this series have, and why?

    Asked as a series grows. All answers are kept; one counts as evidence only after its like was right here before.
    """


@hookspec
def sorter_route(series: Series, settings: Settings) -> Route | None:
    """Where should this series go: `Add(targets)`, `Only(targets)`, `Skip(why)`, `Hold(why)`, or None for no opinion.

    Asked when a series is first published. The strongest answer counts: Hold, then Skip, then Only, then Add. A target
    that is not configured holds the series with a sentence; no answer at all means: kept, and reported.
    """


@hookspec
def sorter_name(series: Series, product: str, target: str, settings: Settings) -> Name | None:
    """The folder and file names of one product at one target, as patterns such as "{SeriesNumber:03d}_{ProtocolName}".

    Asked when a series is first published; the answer is frozen in its plan. First answer counts.
    """


@hookspec
def sorter_products(settings: Settings) -> Sequence[Product] | None:
    """What this plugin can make of a series, study or subject. Asked at start and at every reload; all answers."""


@hookspec
def sorter_targets(settings: Settings) -> Sequence[TargetKind] | None:
    """Kinds of target that this plugin brings. Asked at start and at every reload; all answers.

    The class named in `TargetKind.code` is loaded only inside the worker of one target; its methods are `check`, `put`,
    `verify` and `remove` (see `sorter.deliver.target.Target`).
    """


@hookspec
def sorter_event(event: Event, settings: Settings) -> None:
    """Something happened: a revision was published, a delivery succeeded, a series is held. All plugins are told."""


def signatures() -> Mapping[str, tuple[str, ...]]:
    """Hook names and the arguments each may take, in the order of this page."""
    import inspect

    found = {name: item for name, item in globals().items() if name.startswith("sorter_")}
    return {name: tuple(inspect.signature(item).parameters) for name, item in found.items()}
