"""Unix groups and accounts that a configuration names, and this machine does not know.

No faults: the one lab or target waits, all others are served, and a directory (LDAP, NIS) may only be away.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterator

from sorter.config.config import Config
from sorter.config.models import shown
from sorter.config.places import Key

_UNDELIVERED = "nothing is delivered to {} until it is there"


def unknown_names(config: Config) -> Iterator[str]:
    """A sentence for each, with the place where it is written. Numbers are taken as they are."""
    for key, name, then in _groups(config):
        if not _is_known(name, grp.getgrnam):
            yield _sentence(config, key, f"there is no group {shown(str(name))} on this machine", then)
    for key, name, then in _accounts(config):
        if not _is_known(name, pwd.getpwnam):
            yield _sentence(config, key, f"there is no account {shown(str(name))} on this machine", then)


def _groups(config: Config) -> Iterator[tuple[Key, str | int, str]]:
    for index, name in enumerate(config.door.admins):
        yield ("door", "admins", str(index)), name, ""
    for lab, given in config.labs.items():
        if given.group is not None:
            yield ("labs", lab, "group"), given.group, _UNDELIVERED.format(lab)
        for index, name in enumerate(given.groups):
            yield ("labs", lab, "groups", str(index)), name, ""
    for target, each in config.targets.items():
        if each.kind == "path" and each.settings.get("group") is not None:
            yield ("targets", target, "group"), each.settings["group"], _UNDELIVERED.format(target)


def _accounts(config: Config) -> Iterator[tuple[Key, str | int, str]]:
    for lab, given in config.labs.items():
        if given.user is not None:
            yield ("labs", lab, "user"), given.user, _UNDELIVERED.format(lab)
        for index, name in enumerate(given.users):
            yield ("labs", lab, "users", str(index)), name, ""


def _sentence(config: Config, key: Key, says: str, then: str) -> str:
    return f"{config.locate(*key)}: {'.'.join(key)}: {says}; make it, or name another{f'; {then}' if then else ''}"


def _is_known(name: str | int, find: Callable[[str], object]) -> bool:
    """Where a name is not known, digits are a number, as the target takes them."""
    if str(name).isdecimal():
        return True
    try:
        find(str(name))
    except KeyError:
        return False
    return True
