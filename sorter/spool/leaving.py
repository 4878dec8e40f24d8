"""How an image leaves the store: the only place in sorter where one is removed.

Somebody has to prove, right before, from what the disk says at that moment, that it may go; what the prover does not
allow stays. First a line of evidence says that it left and why, durable; then it goes; its records stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from sorter.spool.unit import Unit


class Proof(Protocol):
    """Why images of one unit may leave."""

    @property
    def because(self) -> str:
        """The word that evidence keeps."""
        ...

    def forbids(self, unit: Unit, file: str) -> str:
        """Why this one has to stay; "" where it may go. Called right before, with the unit as its records say now."""
        ...


class Withdrawn:
    """A person withdrew the unit: the tombstone is there, and the unit's own records say so."""

    because = "withdrawn"

    def forbids(self, unit: Unit, file: str) -> str:  # noqa: ARG002 - a withdrawal is of the whole unit
        if not unit.withdrawn:
            return "its records do not say that it was withdrawn"
        if not unit.spool.withdrawals.holds(unit.key):
            return "it has no tombstone"
        return ""


def let_go(unit: Unit, files: Sequence[str], proof: Proof) -> dict[str, str]:
    """Remove these images from the store as far as `proof` allows; by file, why those that stay have to.

    `unit` is brought up to date. OSError leaves a state from which the same call goes on.
    """
    now = Unit.load(unit.spool, unit.key)
    stay = {file: why for file in files if (why := proof.forbids(now, file))}
    going = [file for file in files if file not in stay]
    new = [file for file in going if file not in now.left]
    if new:
        unit.add_evidence([{"left": new, "because": proof.because}])
        unit.left.update(dict.fromkeys(new, proof.because))
    _remove(unit, going)
    return stay


def _remove(unit: Unit, going: Sequence[str]) -> None:
    disk, folders = unit.spool.files, set[str]()
    for file in going:
        path = unit.images / file
        if disk.exists(path):
            disk.unlink(path)
            folders.add(os.path.dirname(path))
    disk.fsync_folders(folders)


def images_of(unit: Unit) -> Iterator[str]:
    """Every image file that lies in the unit's folder, whether evidence knows it or not."""
    disk = unit.spool.files
    if disk.exists(unit.images):
        for shard in disk.names(unit.images):
            yield from (f"{shard}/{name}" for name in disk.names(unit.images / shard))
