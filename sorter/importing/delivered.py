"""The hidden manifests of a delivered tree, read for a spool that was lost.

They lie in folders that labs own, so only what cannot mislead is believed: the folder and the names are those that are
really there, and a series is the lab's in whose root it lies.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.model import DICOM, Delivered, Identity, Verdict, build
from sorter.naming import NAME_LIMIT, safe_component
from sorter.spool.recovered import Recovered, Recoveries

_KEY = re.compile(r"[0-9a-f]{32}")
_PRODUCT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LARGEST = 64 << 20  # bytes of a manifest
_WHOLE = (Verdict.LISTED, Verdict.COUNTED)


@dataclass(slots=True)
class Manifests:
    """`roots` are the targets' by name; a target that is a lab's root has the lab's name, and is in `labs`."""

    files: Files
    roots: Mapping[str, Path]
    labs: frozenset[str]
    recoveries: Recoveries
    found: int = 0

    def __call__(self, folder: str, name: str) -> bool:
        """Keep what a manifest says, if it is one; nothing where it is not, or lies below no target's root.

        False where it says that the series was not known to be whole: to be found again does not make it so.
        """
        where = self._where(folder)
        if where is None:
            return True
        try:
            manifest = json.loads(self.files.read_file(os.path.join(folder, name), limit=_LARGEST))
            recovered = self._read(manifest, *where)
            verdict = manifest.get("verdict")
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return True
        self.recoveries.keep(recovered)
        self.found += 1
        return recovered.product != DICOM or verdict in _WHOLE

    def _where(self, folder: str) -> tuple[str, str] | None:
        """(target, folder below its root)."""
        for target, root in self.roots.items():
            base = os.path.realpath(root)
            if folder == base or folder.startswith(f"{base}/"):
                return target, os.path.relpath(folder, base)
        return None

    def _read(self, manifest: Mapping[str, Any], target: str, folder: str) -> Recovered:
        """ValueError, TypeError or KeyError for what sorter did not write."""
        key, product = manifest["key"], manifest["product"]
        if not _KEY.fullmatch(key) or not _PRODUCT.fullmatch(product):
            raise ValueError
        identity = replace(build(Identity, manifest["identity"]), lab=target if target in self.labs else None)
        files = [build(Delivered, each) for each in manifest["files"]]
        names = {each.sha256: each.name for each in files if each.state == "written"}
        safe = {sha256: name for sha256, name in names.items() if safe_component(name, limit=NAME_LIMIT) == name}
        return Recovered(key, product, target, "" if folder == "." else folder, identity, safe)
