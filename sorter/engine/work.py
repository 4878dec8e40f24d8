"""What goes into an engine and what comes out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from sorter.model import Header, Identity, Product

State: TypeAlias = Literal["made", "nothing", "failed"]

NO_ROOM = "the disk has no room left for what is made"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_PRODUCT = re.compile(r"[a-z0-9][a-z0-9_-]*")
_NAME_BYTES = 255


class Made(NamedTuple):
    """One file of a product: its name below the product's folder, SHA-256 in hex, size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Limits:
    """Of one job, besides the product's own time, memory and processors."""

    files: int = 10_000
    bytes: int = 32 << 30  # of all files together, and of each one while it is written
    log: int = 64 << 10
    open_files: int = 4096
    processes: int = 256
    free: int = 0  # bytes that stay free on the disk of the scratch: below, jobs end, and are tried later


@dataclass(frozen=True)
class Work:
    """One product to make. `inputs` gives, for each product it needs, (source file, name in the folder of copies).

    `id` becomes a folder's name: letters, digits, - and _, nothing about a patient. `settings` must be JSON.
    """

    id: str
    product: Product
    inputs: Mapping[str, Sequence[tuple[Path, str]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    header: Header = field(default_factory=dict)
    lab: str = ""  # whose turn it takes
    identity: Identity = field(default_factory=Identity)

    def check(self) -> None:
        """ValueError where a name could lead out of its folder."""
        if not _ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} cannot be the id of a job")
        for product, copies in self.inputs.items():
            if not _PRODUCT.fullmatch(product):
                raise ValueError(f"{product!r} cannot be the name of a product")
            for _, name in copies:
                check_relative(name)


def check_relative(name: str) -> None:
    """ValueError unless `name` is a relative path in plain steps downwards."""
    for step in name.split("/"):
        if step in ("", ".", "..") or "\0" in step or len(step.encode()) > _NAME_BYTES:
            raise ValueError(f"{name!r} is no plain relative name")


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `why` is a sentence for people, `log` what its programs printed, cut to a few pages.

    Both may quote what a tool read from a header: keep them with the unit, never in a journal. `later` says that the
    machine failed, not the job: try again after a while.
    """

    id: str
    state: State
    why: str = ""
    log: str = ""
    files: tuple[Made, ...] = ()
    later: bool = False
