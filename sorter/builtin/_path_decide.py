"""What becomes of one file at a target that the lab owns: pure decisions, and the names that go with them."""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from sorter.builtin._path_folders import Look
from sorter.deliver.target import Wanted
from sorter.model import Delivered

DAMAGED = ".damaged"
"""Behind the name of what was damaged, and is kept beside what took its place."""


class Action(enum.Enum):
    WRITE = "nothing has the name"
    FINE = "it is there already"
    OVER = "ours, unchanged since we wrote it: replace it"
    BESIDE = "the lab edited it: ours goes beside"
    KEPT = "the lab edited it, and ours lies beside already, or did"
    REMOVED = "the lab removed it: do not bring it back"
    ASIDE = "ours, but damaged, and to be mended: it is moved aside"
    CLASH = "somebody else's"


def decide(wanted: Wanted, before: Delivered | None, ours: Collection[str], seen: Look | None) -> Action:
    """`before`: what the receipt says of this name. `ours`: digests that we are known to have written under it."""
    if seen is None:
        return Action.WRITE if before is None else Action.REMOVED
    if seen.sha256 == wanted.sha256:
        return Action.FINE
    if before is not None and seen.sha256 == before.sha256:
        return Action.OVER
    if seen.sha256 and seen.sha256 in ours:
        return Action.OVER
    if before is None:
        return Action.CLASH
    if before.state == "kept" and before.sha256 == wanted.sha256:
        return Action.KEPT
    return Action.BESIDE


def mended(action: Action, seen: Look | None, ours: Collection[str], wanted: Wanted) -> Action:
    """What `decide` said of a file that a person wants as it was delivered."""
    if seen is None:
        return Action.WRITE
    if seen.sha256 in ("", wanted.sha256):  # a folder, a pipe, a link: nothing that was damaged
        return action
    return Action.OVER if seen.sha256 in ours else Action.ASIDE


def without(action: Action, seen: Look | None) -> Action:
    """What becomes of a file that has left the store, and so cannot be written: what is there stays as it is."""
    return action if action is Action.FINE else Action.REMOVED if seen is None else Action.KEPT


def endangered(
    alone: Collection[str], before: Iterable[Delivered], outcome: Mapping[str, Action], fold: Callable[[str], str]
) -> Iterator[Delivered]:
    """Of the files that a receipt names, and that lie nowhere else (`alone`): those that a put would replace or remove.

    `outcome` is what it does, by the folded names that it is about.
    """
    for each in before:
        action = outcome.get(fold(each.beside or each.name))
        if each.name in alone and each.state != "removed" and action in (None, Action.OVER):
            yield each


def remains(files: Iterable[Delivered], present: Iterable[str]) -> list[str]:
    """Of the names in a folder, those that hold what the lab made of a delivered file, or what was moved aside."""
    edited, names = {each.name for each in files if each.state == "kept"}, {each.name for each in files}

    def is_aside(name: str) -> bool:
        stem, damaged, number = name.rpartition(DAMAGED)
        return bool(damaged) and stem in names and (not number or number[0] == "-")

    return [name for name in present if name in edited or is_aside(name)]


def with_suffix(name: str, suffix: str) -> str:
    """`suffix` goes before the extension; `.nii.gz` and `.tar.gz` are one."""
    for double in (".nii.gz", ".tar.gz"):
        if name.lower().endswith(double):
            cut = len(name) - len(double)
            return f"{name[:cut]}{suffix}{name[cut:]}"
    stem, extension = os.path.splitext(name)
    return f"{stem}{suffix}{extension}"


def suffixes(key: str) -> tuple[str, str, str]:
    """What is tried, in this order, where a name is somebody else's."""
    return ("", f"_{key[:6]}", f"_{key[:12]}")


def called(
    files: Sequence[Wanted], before: Mapping[str, Delivered], key: str, fold: Callable[[str], str], suffix: str = ""
) -> list[str]:
    """A name for each file, no two of them one to the target: where two are, the newcomer gets a short hash.

    `before` is what the receipt says, by the file it was made from. What is there keeps its name, if that was made of
    the one that it shall have; what has left the store keeps whatever name it has, since nobody could write it anew.
    What takes the place of another file gets its name; `suffix` is for all else.
    """
    names, seen = [""] * len(files), set[str]()
    there = {fold(each.name): each.name for each in before.values()}

    def rank(index: int) -> tuple[bool, bool]:
        file = files[index]
        return not (file.gone and file.file in before), file.file not in before

    for index in sorted(range(len(files)), key=rank):
        file = files[index]
        had = before.get(file.file)
        short = hashlib.sha256(file.file.encode(errors="surrogatepass")).hexdigest()[:6]
        other, forms = with_suffix(file.name, f"_{short}"), [with_suffix(file.name, each) for each in suffixes(key)]
        if had is not None and (
            file.gone or had.name in (*forms, *(with_suffix(other, each) for each in suffixes(key)))
        ):
            name = had.name
        else:
            found = (there[fold(form)] for form in forms if fold(form) in there)
            name = next(found, with_suffix(file.name, suffix))
        if fold(name) in seen:
            name = with_suffix(other, suffix)
        seen.add(fold(name))
        names[index] = name
    return names


def in_force(files: Sequence[Wanted], before: Collection[str], key: str) -> str:
    """The suffix that all of this unit's files got here before, "" for none. `before` are names that there are."""
    if any(file.name in before for file in files):
        return ""
    for suffix in suffixes(key)[1:]:
        if any(with_suffix(file.name, suffix) in before for file in files):
            return suffix
    return ""
