"""The UIDs that both sides of an association speak of (PS3.6 annex A)."""

from __future__ import annotations

import re

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"  # Push Model (PS3.4 annex J)
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"  # the well-known SOP instance that is asked, and reports (PS3.4 J.3.5)

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"

NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN)
"""What storage commitment is spoken in."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
_NEARLY = re.compile(r"[0-9.]*[0-9][0-9.]*", re.ASCII)


def is_uid(text: str) -> bool:
    """True for what may stand as a UID: digits and dots, 64 at most. Leading zeros, frequent in the field, pass."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def names_an_instance(text: str) -> bool:
    """True for what may stand for a SOP instance: as `is_uid`, but dots may be where some devices have them, at the end
    or two together. Their images are taken, as they are where they come by other ways."""
    return len(text) <= 64 and _NEARLY.fullmatch(text) is not None
