"""What leaves of the series of a lab that gets certain products and nothing else, and what is shown of them.

Kept in the spool, `labs/<name>/only.json`, as the configuration last said it: so that every door finds the same there,
and whoever was given a name keeps it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sorter.durable import Files
from sorter.model import Header, Instance, plain
from sorter.spool.lines import line

SHOWN = frozenset({
    "AcquisitionDate", "AcquisitionNumber", "AcquisitionTime", "BodyPartExamined", "DiffusionBValue", "EchoNumbers",
    "EchoTime", "FlipAngle", "ImageType", "InstanceNumber", "InversionTime", "MRAcquisitionType",
    "MagneticFieldStrength", "Manufacturer", "ManufacturerModelName", "Modality", "NumberOfFrames", "ProtocolName",
    "RepetitionTime", "ScanningSequence", "SequenceName", "SeriesDate", "SeriesDescription", "SeriesNumber",
    "SeriesTime", "SliceThickness", "SoftwareVersions", "StudyDate", "StudyTime", "TemporalPositionIdentifier",
})  # fmt: skip
"""Attributes that say how and when something was measured; no other is shown, nor does it get into a name."""


@dataclass(frozen=True, slots=True)
class Veil:
    """`only` are the products that may leave; `salt`, in hex, is of this lab, so that nobody can guess who is who."""

    only: tuple[str, ...]
    salt: str = ""

    def subject(self, said: str | None, header: Header) -> str:
        """What the subject is called: as was said, unless that is what the header says; then by an opaque name."""
        names = {str(header.get(each, "")).strip() for each in ("PatientID", "PatientName", "OtherPatientIDs")}
        if said and said not in names:
            return said
        who = str(header.get("PatientID") or header.get("PatientName") or "")
        return hmac.new(bytes.fromhex(self.salt), who.encode(), hashlib.sha256).hexdigest()[:8].upper()

    def header(self, header: Header) -> Header:
        return {name: value for name, value in header.items() if name in SHOWN}

    def stand_in(self, header: Header) -> Instance:
        """In place of the images, where only names are made of them."""
        return Instance("", "", "", "", "", "-", 0, "", "", "", "", header=self.header(header))


class Veils:
    """By lab."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files

    def of(self, lab: str | None) -> Veil | None:
        """None where everything may leave. OSError, ValueError: that cannot be known now."""
        try:
            data = self._files.read_file(self._folder / lab / "only.json", limit=1 << 20) if lab else b"{}"
        except (FileNotFoundError, NotADirectoryError):
            return None
        found = json.loads(data)
        return Veil(tuple(found["only"]), found["salt"]) if found.get("only") is not None else None

    def keep(self, only: Mapping[str, tuple[str, ...] | None]) -> dict[str, Veil]:
        """What the configuration says of these labs. Durable; the salt of a lab stays for good."""
        for lab, products in only.items():
            path = self._folder / lab / "only.json"
            before = json.loads(self._files.read_file(path)) if self._files.exists(path) else {}
            if before.get("only") != (None if products is None else list(products)):
                self._files.make_folders(path.parent)
                salt = before.get("salt") or secrets.token_hex(16)
                self._files.write_file(path, line({"only": plain(products), "salt": salt}))
        return {lab: veil for lab in only if (veil := self.of(lab)) is not None}
