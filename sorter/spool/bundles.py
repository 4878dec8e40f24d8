"""What a unit of a whole study or subject is: several series of one lab, of which something is made together.

It holds no images. Its evidence names the series that ever were of it; which are of it now, their own records say.
"""

from __future__ import annotations

from dataclasses import dataclass

from sorter.model import UnitKind, unit_key


@dataclass(frozen=True, slots=True)
class Bundle:
    """All series of a study (`of` is its UID), or of a subject (what it is called), that belong to one lab."""

    kind: UnitKind
    lab: str
    of: str

    @property
    def key(self) -> str:
        return unit_key(self.kind, self.lab, self.of)
