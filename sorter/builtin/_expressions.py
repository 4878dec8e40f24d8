"""Regular expressions that end in bounded time, whatever is compared with them: the values come from the network.

Python's own `re` tries one way after the other, and a value can be made that keeps it busy for years. Here `re` reads
an expression, and it is followed along all its ways at once, character by character (Thompson, 1968): a value costs
at most its length times the size of the expression, 1,024 times 500 steps, half a second at the very worst. What is
found is what `re.search` finds, capital and small letters being the same. What cannot be followed so (a look ahead or
behind, a reference back to a group, an endless repetition of what may be empty) is refused when the configuration is
read.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MOST_CHARACTERS = 1024
"""Of a value, which is as many as are kept of one; a longer one fits nothing."""

MOST_STEPS = 500
"""Of an expression, its counted repetitions written out."""

# It is `re` that reads, and that knows what fits a single step: two of them would differ one day. Both are private to
# `re`, and the same from Python 3.11 on.
_parser, _compiler = importlib.import_module("re._parser"), importlib.import_module("re._compiler")

_Fits = Callable[[str, int], object]
"""Does the character at this place of the text fit, or the place itself?"""

_Flags = tuple[int, int]
"""Those of `re` that a group such as `(?s-i:…)` adds and removes."""


class _Step(NamedTuple):
    """One step: "char" (`fits` the character there), "at" (`fits` the place), "save" (`to[0]`: which bound), "go" (to
    all of `to`, the first preferred), or "end"."""

    kind: str
    to: tuple[int, ...] = ()
    fits: Any = None  # _Fits of the first two


class Expression:
    """A regular expression, read once. ValueError is a sentence that says why it cannot be one here."""

    def __init__(self, text: str) -> None:
        try:
            parsed = _parser.parse(text, re.IGNORECASE)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f'"{text[:60]}" is no regular expression: {error}') from None
        self.names: Mapping[str, int] = dict(parsed.state.groupdict)
        self._state = parsed.state
        self._steps: list[_Step] = []
        self._write(parsed, (0, 0))
        self._add(_Step("end"))

    def search(self, text: str) -> dict[str, str] | None:
        """The named groups of the first place that fits, without those that are empty; None where none does."""
        saved = self._run(text) if len(text) <= MOST_CHARACTERS else None
        if saved is None:
            return None
        bounds = {name: (saved.get(2 * group), saved.get(2 * group + 1)) for name, group in self.names.items()}
        return {name: text[a:b] for name, (a, b) in bounds.items() if a is not None and b is not None and a < b}

    # --- following it -------------------------------------------------------------------------------------------

    def _run(self, text: str) -> dict[int, int] | None:
        ways: dict[int, dict[int, int]] = {}  # at which step, with what was saved on the way; the preferred first
        found = None
        for at in range(len(text) + 1):
            if found is None:
                self._follow(ways, 0, {}, text, at)
            after: dict[int, dict[int, int]] = {}
            for number, saved in ways.items():
                step = self._steps[number]
                if step.kind == "end":
                    found = saved
                    break  # whatever comes behind it is less preferred
                if at < len(text) and step.fits(text, at):
                    self._follow(after, number + 1, saved, text, at + 1)
            ways = after
            if not ways and found is not None:
                break
        return found

    def _follow(self, ways: dict[int, dict[int, int]], start: int, saved: dict[int, int], text: str, at: int) -> None:
        """Go on to every step that wants a character; each step is visited once a character."""
        rest, seen = [(start, saved)], set(ways)
        while rest:
            number, saved = rest.pop()
            if number in seen:
                continue
            seen.add(number)
            step = self._steps[number]
            match step.kind:
                case "go":
                    rest += [(each, saved) for each in reversed(step.to)]
                case "save":
                    rest.append((number + 1, {**saved, step.to[0]: at}))
                case "at":
                    if step.fits(text, at):
                        rest.append((number + 1, saved))
                case _:
                    ways[number] = saved

    # --- writing it out -----------------------------------------------------------------------------------------

    def _add(self, step: _Step) -> int:
        if len(self._steps) > MOST_STEPS:
            raise ValueError(f"the regular expression is too large; {MOST_STEPS} steps are possible")
        self._steps.append(step)
        return len(self._steps) - 1

    def _write(self, parsed: Sequence[tuple[Any, Any]], flags: _Flags) -> None:
        for op, value in parsed:
            match str(op):
                case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                    self._add(_Step("char", fits=self._fits(op, value, flags)))
                case "AT":
                    self._add(_Step("at", fits=self._fits(op, value, flags)))
                case "BRANCH":
                    self._branch(value[1], flags)
                case "SUBPATTERN":
                    self._group(value, flags)
                case "MAX_REPEAT" | "MIN_REPEAT":
                    least, most, inner = value
                    self._repeat((int(least), int(most)), inner, flags, greedy=str(op) == "MAX_REPEAT")
                case _:
                    says = "look-around, references back to a group and possessive or atomic groups are not"
                    raise ValueError(f"{says} possible here, so that every value is compared in bounded time")

    def _fits(self, op: Any, value: Any, flags: _Flags) -> _Fits:
        """What `re` makes of this one step: there is one way only to follow it."""
        inner = _parser.SubPattern(self._state, [(op, value)])
        step = _parser.SubPattern(self._state, [(_parser.SUBPATTERN, (None, *flags, inner))])
        fits: _Fits = _compiler.compile(step).match
        return fits

    def _group(self, value: Any, flags: _Flags) -> None:
        group, add, remove, inner = value
        flags = (flags[0] | add) & ~remove, (flags[1] | remove) & ~add
        if group is not None:
            self._add(_Step("save", (2 * group,)))
        self._write(inner, flags)
        if group is not None:
            self._add(_Step("save", (2 * group + 1,)))

    def _branch(self, ways: Sequence[Any], flags: _Flags) -> None:
        split = self._add(_Step("go"))
        starts, ends = [], []
        for way in ways:
            starts.append(len(self._steps))
            self._write(way, flags)
            ends.append(self._add(_Step("go")))
        self._steps[split] = _Step("go", tuple(starts))
        for end in ends:
            self._steps[end] = _Step("go", (len(self._steps),))

    def _repeat(self, times: tuple[int, int], inner: Any, flags: _Flags, *, greedy: bool) -> None:
        least, most = times
        if most == int(_parser.MAXREPEAT) and inner.getwidth()[0] == 0:  # here two ways to follow it would differ
            raise ValueError("a part that may be empty cannot be repeated without end, as in (a*)*; leave one * out")
        for _ in range(min(least, MOST_STEPS + 1)):
            self._write(inner, flags)
            if not len(inner):
                return
        if most == int(_parser.MAXREPEAT):
            split = self._add(_Step("go"))
            self._write(inner, flags)
            self._add(_Step("go", (split,)))
            self._choose(split, greedy=greedy)
            return
        splits = []
        for _ in range(min(most - least, MOST_STEPS + 1)):
            splits.append(self._add(_Step("go")))
            self._write(inner, flags)
        for split in splits:
            self._choose(split, greedy=greedy)

    def _choose(self, split: int, *, greedy: bool) -> None:
        """Another round, or on behind what is written by now."""
        ways = (split + 1, len(self._steps))
        self._steps[split] = _Step("go", ways if greedy else ways[::-1])
