"""What the labs say in files of their own, as the pipeline obeys it: a layer over the admin's configuration.

A lab's worker brings the text of `<root>/.sorter/lab.toml`; here it is read, kept as the last good copy, and put in
force for that lab alone. A file that is not right changes nothing but what is said about it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sorter.builtin.naming import Settings
from sorter.config.lab import LabFile, read_kept, read_lab
from sorter.errors import ConfigError
from sorter.model import DICOM, Name
from sorter.plugins import Plugins
from sorter.spool.labs import LabRecords

log = logging.getLogger("sorter.labs")


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a lab's file: what is wrong with it, and whether other rules are in force now."""

    faults: tuple[str, ...] = ()
    changed: bool = False


@dataclass(slots=True)
class LabFiles:
    """The files of all labs. None stands for one whose last good copy the disk has damaged: its series are held."""

    records: LabRecords
    in_force: dict[str, LabFile | None] = field(default_factory=dict)

    def load(self, labs: Iterable[str]) -> None:
        """From the last good copies, at the start and where the admin's configuration changed."""
        self.in_force = {}
        for lab in labs:
            data = self.records.good(lab)
            if data is not None:
                self.in_force[lab] = _kept(data)
                if self.in_force[lab] is None:
                    log.error("lab %s: the last good copy of its lab.toml is damaged; its series are held", lab)

    def in_force_of(self, lab: str) -> LabFile | None:
        """What a lab says; None where it says nothing, or it is not known."""
        return self.in_force.get(lab)

    def give(self, plugins: Plugins) -> None:
        """Let the naming of these plugins heed what the labs say."""
        plugins.give("naming", {"labs": {lab: found for lab, found in self.in_force.items() if found is not None}})

    def take(self, lab: str, data: bytes | None, plugins: Plugins, products: Iterable[str]) -> Taken:
        """The text of a lab's file as it is now, None where there is none."""
        if data == self.records.good(lab) and self.in_force.get(lab, LabFile()) is not None:
            return Taken()
        try:
            found = self.read(data or b"", plugins, products)
        except ConfigError as error:
            return Taken(tuple(error.faults))
        self.records.keep(lab, data)
        self.in_force.pop(lab, None)
        if data is not None:
            self.in_force[lab] = found
        self.give(plugins)
        return Taken(changed=True)

    def read(self, data: bytes, plugins: Plugins, products: Iterable[str]) -> LabFile:
        """ConfigError: every fault of this text, where these products are made."""
        return read_lab(data, _usual(plugins, (DICOM, *products)))

    def say(self, lab: str, faults: Sequence[str]) -> None:
        """What is wrong with the lab's file now, for `status`; nothing, once it is mended."""
        if tuple(faults) != self.records.faults(lab):
            self.records.say(lab, faults)
            if faults:  # the lines may name a patient: they are for the lab and for `status`
                log.warning("lab %s: its lab.toml has %d faults; the last good one stays in force", lab, len(faults))
            else:
                log.info("lab %s: its lab.toml is in order", lab)


def _usual(plugins: Plugins, products: Iterable[str]) -> Mapping[str, Name]:
    naming = Settings.model_validate({**plugins.settings("naming"), "labs": {}})
    return {product: naming.usual(product) for product in products}


def _kept(data: bytes) -> LabFile | None:
    try:
        return read_kept(data)
    except ConfigError:
        return None


def errors_text(faults: Sequence[str], beside: Sequence[str] = ()) -> str:
    """Of `.sorter/ERRORS.txt`: what is wrong with the lab's file and in its corner, and what to do."""
    says = "lab.toml cannot be used as it is. The last one that was right stays in force, and nothing is lost."
    lines = [*([says, "", *faults, ""] if faults else []), *beside, *([""] if beside else [])]
    return "\n".join([*lines, "Mend what is named, and save it; within a minute this page goes by itself.", ""])
