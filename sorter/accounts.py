"""Accounts of this machine, by the names that people know them by."""

from __future__ import annotations

import pwd


def name_of(uid: int) -> str:
    """The account's name, or its number where it has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
