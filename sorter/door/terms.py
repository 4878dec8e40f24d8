"""Who may see what: what the configuration grants to groups and accounts, and what follows for the one that asks."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Members:
    """Whose a lab is: names or numbers of Unix groups, and of single accounts."""

    groups: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration says of it, as plain values that JSON can carry. `admins` are groups."""

    labs: Mapping[str, Members] = field(default_factory=dict)
    admins: tuple[str, ...] = ()
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By lab: the targets that it was granted, its own root first."""
    roots: Mapping[str, str] = field(default_factory=dict)
    """By target: its folder, where it is one."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one account may see: the series of `labs`; those of all labs and of none where it is an `admin`."""

    uid: int
    admin: bool = False
    labs: frozenset[str] = frozenset()

    def sees(self, lab: str | None) -> bool:
        return self.admin or lab in self.labs

    @property
    def stranger(self) -> bool:
        return not self.admin and not self.labs


def sight_of(uid: int, terms: Terms) -> Sight:
    """By the groups that the account is in at this moment, not by those that a process of it still carries."""
    if uid in (0, os.geteuid()):
        return Sight(uid, admin=True)
    try:
        account = pwd.getpwuid(uid)
    except KeyError:  # an account of another namespace, or one that was removed: in no group
        return Sight(uid)
    groups = frozenset(os.getgrouplist(account.pw_name, account.pw_gid))
    names = {account.pw_name, str(uid)}
    labs = frozenset(
        lab for lab, each in terms.labs.items() if groups & _numbers(each.groups) or not names.isdisjoint(each.users)
    )
    return Sight(uid, admin=bool(groups & _numbers(terms.admins)), labs=labs)


def _numbers(groups: Collection[str]) -> frozenset[int]:
    """The gids; a group that there is not (yet) has no members."""
    found = set()
    for each in groups:
        if each.isdecimal():
            found.add(int(each))
        else:
            with contextlib.suppress(KeyError):
                found.add(grp.getgrnam(each).gr_gid)
    return frozenset(found)
