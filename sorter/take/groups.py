"""Which unit a series belongs to: decided when its first image comes, and kept for good.

A series by itself needs no record: its unit is named by its own UID, and is there. Of a series that a plugin put
together with others, `groups/` in the spool holds the decision, in a file named as its own unit would be. So neither
another answer of the plugin, nor its removal, ever gives a resend or a late image another unit.
"""

from __future__ import annotations

import errno
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from sorter.model import Instance, UnitKind, unit_key
from sorter.spool import Spool
from sorter.spool.lines import line

REMEMBERED = 10_000
"""Series whose unit is kept in memory; of others it is found again in the spool."""

Ask: TypeAlias = Callable[[Instance], "str | None"]
"""The plugins' say: a text under which several series are one, or None."""


class Groups:
    """The decisions so far; `ask` is asked once a series."""

    def __init__(self, spool: Spool, ask: Ask) -> None:
        self._spool, self._ask = spool, ask
        self._known: OrderedDict[str, str | None] = OrderedDict()

    def group(self, instance: Instance) -> str | None:
        """What this instance's series was put under; None: it is by itself. Durable when this returns."""
        return self._group(unit_key(UnitKind.SERIES, instance.study_uid, instance.series_uid), instance)

    def _group(self, own: str, instance: Instance) -> str | None:
        if own not in self._known:
            self._known[own] = self._recorded(own) or self._decide(own, instance)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[own]

    def key(self, instance: Instance) -> str:
        """The key of the unit that it belongs to."""
        own = unit_key(UnitKind.SERIES, instance.study_uid, instance.series_uid)
        group = self._group(own, instance)
        return unit_key(UnitKind.SERIES, instance.study_uid, group) if group else own

    def _decide(self, own: str, instance: Instance) -> str | None:
        group = self._ask(instance)
        if group is None or group == instance.series_uid or self._spool.files.exists(self._spool.unit_folder(own)):
            return None
        path = self._path(own)
        self._spool.files.make_folders(path.parent)
        self._spool.files.write_file(path, line({"series": instance.series_uid, "group": group}))
        return group

    def _recorded(self, own: str) -> str | None:
        path = self._path(own)
        try:
            return str(json.loads(self._spool.files.read_file(path, limit=1 << 20))["group"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise OSError(errno.EIO, "the record of a group of series is damaged", str(path)) from None

    def _path(self, own: str) -> Path:
        return self._spool.groups / own[:2] / f"{own}.json"
