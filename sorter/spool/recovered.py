"""What is known of deliveries whose records were lost with a spool: read from the hidden manifests beside the files.

    recovered/<key>.<product>.<target>.json

Written by `sorter import --delivered`, and asked for once, when a unit gets its first plan: so it keeps whose it was,
the folder where it really lies, and the name of each image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sorter.durable import Files
from sorter.model import Identity, build, plain
from sorter.spool.lines import line


@dataclass(frozen=True, slots=True)
class Recovered:
    """One delivery. `folder` is relative to the target's root, `names` maps the SHA-256 of a file to its name there."""

    key: str
    product: str
    target: str
    folder: str
    identity: Identity = field(default_factory=Identity)
    names: Mapping[str, str] = field(default_factory=dict)


class Recoveries:
    """The folder recovered/ of a spool; it is there only where a spool was lost."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files

    def keep(self, found: Recovered) -> None:
        """Durable when this returns."""
        self._files.make_folders(self._folder)
        name = f"{found.key}.{found.product}.{found.target}.json"
        self._files.write_file(self._folder / name, line(plain(found)))

    def of(self, key: str) -> dict[tuple[str, str], Recovered]:
        """By (product, target), of one unit."""
        if not self._files.exists(self._folder):
            return {}
        names = [
            name for name in self._files.names(self._folder) if name.startswith(f"{key}.") and name.endswith(".json")
        ]
        found = [build(Recovered, json.loads(self._files.read_file(self._folder / name))) for name in names]
        return {(each.product, each.target): each for each in found}
