"""The errors a person can mend. Each prints as one sentence; anything else is a bug and shows its traceback."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


class SorterError(Exception):
    """Something a person can mend: `str(error)` is a sentence that names what is wrong and what to do next."""

    exit_code = 1


class ConfigError(SorterError):
    """The configuration cannot be used. `faults` holds every fault found, each a sentence with file and line."""

    exit_code = 2

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class TryLater(SorterError):
    """Not now, but perhaps in a while: a mount that is away, a full disk, a busy file. Tried again with back-off."""


class Away(TryLater):
    """Nothing at all can be delivered there now: the target is not mounted, full, read-only, or does not answer."""


class Held(SorterError):
    """A person has to decide first: a target that refuses, a plugin that failed, a route that names nothing."""


class Never(Held):
    """What this kind of target cannot do, whatever a person decides."""


class Quarantine(SorterError):
    """This file cannot be an image of ours; `str(error)` is the reason that is kept beside it."""


class PluginError(SorterError):
    """A plugin raised, or answered with something its hook does not allow."""

    def __init__(self, plugin: str, hook: str, cause: BaseException | str) -> None:
        self.plugin, self.hook, self.cause = plugin, hook, cause
        said = cause if isinstance(cause, str) else words_of(cause)
        super().__init__(f"plugin {plugin}: {hook} failed: {said}")


_LONGEST = 1000  # characters


def words_of(error: BaseException) -> str:
    """ "ValueError: …" of an error that the code of somebody else raised. It may quote all of a data set, in a reason
    that is kept with the series; and its text is code, too, which may fail.
    """
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 (a plugin)
        said = "nobody can say what"
    cut = "…" if len(said) > _LONGEST else ""
    return f"{type(error).__name__}: {said[:_LONGEST]}{cut}"


_MANY = 1000  # words; to compare one with all that DICOM knows takes 20 ms, and a file may hold hundreds


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean "…"?` for the nearest of the known words, letter case aside; "" when none is near.

    Of very many, those alone that begin with the same letter.
    """
    by_fold, meant = {each.lower(): each for each in known}, word[:80].lower()
    if len(by_fold) > _MANY:
        by_fold = {low: each for low, each in by_fold.items() if low[:1] == meant[:1]}
    near = difflib.get_close_matches(meant, by_fold, n=1, cutoff=0.7)
    return f', did you mean "{by_fold[near[0]]}"?' if near else ""


def place_of(error: BaseException) -> str:
    """ "KeyError at asking.py:31", for a log: what the error itself says may hold a name from a header."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.filename.rpartition('/')[2]}:{place.lineno}"
