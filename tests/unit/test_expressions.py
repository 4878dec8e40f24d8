"""Regular expressions in bounded time: they find what `re` finds, and no value keeps them busy."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sorter.builtin._expressions import MOST_CHARACTERS, MOST_STEPS, Expression


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        (r"^(?P<lab>[a-z]+)_(?P<subject>\d+)", "Memory_012_x", {"lab": "Memory", "subject": "012"}),
        (r"(?P<subject>s\d{2,3})", "xxS1s1234", {"subject": "s123"}),
        (r"(?P<subject>s\d{2,3}?)", "s1234", {"subject": "s12"}),
        (r"(?P<a>x*)(?P<b>y)?", "xx", {"a": "xx"}),
        (r"^(?P<a>a|ab)(?P<b>c|bcd)$", "abcd", {"a": "a", "b": "bcd"}),
        (r"\bproj:(?P<project>[^\s;]+)", "no xproj:1; proj:my-study;", {"project": "my-study"}),
        (r"^[^@]+@(?P<lab>.+)$", "äß@Größe", {"lab": "Größe"}),
        (r"(?P<a>.)\Z", "a\n", None),
        (r"nothing", "something", None),
        (r"(?:){2}(?P<a>b)", "b", {"a": "b"}),
        (r"(?P<a>(?-i:p)\d+)", "P1p2", {"a": "p2"}),
        (r"(?s:.)(?P<a>(?a:\w)+)", "\nabß", {"a": "ab"}),
        (r"(?m)^(?P<a>\d)$", "x\n7\n", {"a": "7"}),
    ],
)
def test_it_finds_the_named_groups(text: str, value: str, found: dict[str, str] | None) -> None:
    assert Expression(text).search(value) == found


_LEAVES = st.sampled_from(
    [
        "a",
        "b",
        ".",
        "[ab]",
        "[^a]",
        r"\d",
        r"\w",
        "^",
        "$",
        r"\b",
        r"\B",
        "1",
        "A",
        "(?-i:a)",
        "(?s:.)",
        "(?m:^)",
        "É",
        "ß",
        "İ",
    ]
)


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda ways: f"(?:{'|'.join(ways)})"),
    )


_REPEATED = st.tuples(_LEAVES, st.sampled_from(["*", "+", "?", "{1,2}", "{2}", "*?", "+?", "??", "{0,2}?"])).map(
    lambda pair: f"(?:{pair[0]}){pair[1]}"
)
_PATTERNS = st.recursive(st.one_of(_LEAVES, _REPEATED), _joined, max_leaves=8)


def is_possible(text: str) -> bool:
    """Not if it repeats without end what may be empty."""
    try:
        Expression(text)
    except ValueError as error:
        return "may be empty" not in str(error)
    return True


@given(_PATTERNS, _PATTERNS, _PATTERNS, st.text("abA1 \néßi", max_size=12))
def test_it_finds_what_re_finds(before: str, one: str, two: str, value: str) -> None:
    text = f"{before}(?P<one>{one})(?P<two>{two})"
    theirs = re.search(text, value, re.IGNORECASE)
    expected = {name: found for name, found in theirs.groupdict().items() if found} if theirs else None
    assume(is_possible(text))
    assert Expression(text).search(value) == expected


@pytest.mark.parametrize("text", [r"^(a+)+$", r"^(a|a)*$", r"^(\w+\d?)*$", r"a*a*a*a*a*a*b", r"(.*)(.*)(.*)(.*)x\b"])
def test_what_keeps_re_busy_for_years_ends_at_once(text: str) -> None:
    """The guard against hangs is the judge: with `re` none of them would end today."""
    assert Expression(text).search("a" * (MOST_CHARACTERS - 1) + "!") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (r"(?=a)b", "bounded time"),
        (r"(?P<a>x)(?P=a)", "bounded time"),
        (r"(?>a)b", "bounded time"),
        (r"a*+b", "bounded time"),
        (r"(a*)*", "may be empty"),
        (r"(\b|x)+", "may be empty"),
        (r"(a", "is no regular expression"),
        ("(" * 3000, "is no regular expression"),
        (rf"a{{{MOST_STEPS + 1}}}", "too large"),
        (r"((a{30}){30}){30}", "too large"),
        (r"a{0,4294967290}", "too large"),
    ],
)
def test_what_is_refused_when_the_configuration_is_read(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Expression(text)


def test_a_value_that_is_longer_than_any_kept_one_fits_nothing() -> None:
    assert Expression("a").search("a" * (MOST_CHARACTERS + 1)) is None
