"""What a hidden manifest says of the files beside it, and what a file is by comparison with its receipt.

The manifest lies where somebody else may write: whatever it holds is taken as far as it makes sense.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sorter.builtin._path_folders import Look
from sorter.deliver.target import Put
from sorter.model import Delivered, build, plain

_CLOCKS = 2.0  # seconds that a server's clock may be ahead of ours before a write counts as the lab's


def manifest_text(
    job: Put,
    files: Sequence[Delivered],
    earlier: Mapping[str, Sequence[str]] | None = None,
    replacing: Sequence[str] = (),
) -> bytes:
    """`earlier`: digests that were written under each name before. `replacing`: names that may be away for a moment."""
    content = {
        **job.manifest,
        "key": job.key,
        "product": job.product,
        "revision": job.revision,
        "files": [plain(each) for each in files],
    }
    if earlier:
        content["earlier"] = earlier
    if replacing:
        content["replacing"] = replacing
    return json.dumps(plain(content), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def digests_in(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """All digests that our manifest says we wrote under each name, those of unfinished attempts included."""
    found: dict[str, list[str]] = {}
    for each in files_in(manifest):
        found.setdefault(each.name, []).append(each.sha256)
    listed = manifest.get("earlier")
    for name, digests in listed.items() if isinstance(listed, dict) else ():
        if isinstance(digests, list):
            found.setdefault(name, []).extend(each for each in digests if isinstance(each, str))
    return {name: sorted(set(digests)) for name, digests in found.items()}


def files_in(manifest: Mapping[str, Any]) -> tuple[Delivered, ...]:
    """What a manifest says of its files; nothing where the lab wrote nonsense into it."""
    listed = manifest.get("files")
    try:
        return tuple(build(Delivered, each) for each in listed) if isinstance(listed, list) else ()
    except ValueError:
        return ()


def elsewhere(known: Sequence[Delivered], listed: Sequence[Delivered]) -> list[Delivered]:
    """Of what a manifest lists, the files that a receipt knows, where they lie under names that it does not know."""
    names, digests = {each.beside or each.name for each in known}, {each.sha256 for each in known}
    return [each for each in listed if (each.beside or each.name) not in names and each.sha256 in digests]


def not_named(
    known: Sequence[Delivered], manifests: Iterable[Mapping[str, Any]], fold: Callable[[str], str]
) -> list[Delivered]:
    """Of the files of a receipt those under names that nothing in these manifests has by now."""
    listed = (each for manifest in manifests for each in files_in(manifest))
    named = {fold(name) for each in listed for name in (each.name, each.beside) if name}
    return [each for each in known if fold(each.beside or each.name) not in named]


def replaced_in(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Names that an unfinished attempt was about to give to other files: what is away there, it may have taken away."""
    listed = manifest.get("replacing")
    return frozenset(each for each in listed if isinstance(each, str)) if isinstance(listed, list) else frozenset()


def standing_of(each: Delivered, seen: Look | None, since: float, deep: bool) -> str:
    if each.state == "kept" and not each.beside:
        return "changed"
    if seen is None:
        return "changed" if each.state == "kept" else "missing"
    if seen.sha256 == each.sha256 or (not deep and seen.size == each.size):
        return "same"
    return "changed" if seen.changed > since + _CLOCKS else "damaged"


def is_as_before(each: Delivered, seen: Look | None, earlier: Mapping[str, list[str]]) -> bool:
    """Is it as the earlier revision left it: not delivered yet, or with that one's content?"""
    if seen is None:
        return each.name not in earlier
    return seen.sha256 in earlier.get(each.name, ())


def seconds_of(verified: str) -> float:
    """Seconds since 1970 of a receipt's time; 0, so that everything counts as edited later, where it has none."""
    try:
        return datetime.datetime.fromisoformat(verified).timestamp()
    except ValueError:
        return 0.0
