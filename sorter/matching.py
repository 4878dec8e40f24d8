"""Which series are meant: `KEYWORD=GLOB` of the admin's and the labs' rules, numbers as "3,5-7", days as "tuesday".

KEYWORD is a DICOM keyword (PS3.6), as StudyDescription, or one of CallingAE, CalledAE and PeerAddress, which say who
sent it. GLOB has `*`, `?` and `[abc]`; capital and small letters are the same.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from sorter.errors import SorterError
from sorter.expected import fits
from sorter.model import Series

SENDER = {"CallingAE": "calling", "CalledAE": "called", "PeerAddress": "address"}
"""What a rule can ask for besides DICOM keywords, and where a `Source` has it."""


def fits_rule(rule: str, series: Series) -> bool:
    """Does any value of the rule's keyword fit its glob?"""
    keyword, _, glob = (part.strip() for part in rule.partition("="))
    return any(fits(glob, text) for text in texts(keyword, series))


def texts(keyword: str, series: Series) -> Iterator[str]:
    """What a rule may fit: of each sender, or each value of the attribute, and all of them as DICOM joins them."""
    if keyword in SENDER:
        yield from {str(getattr(source, SENDER[keyword])) for source in series.sources}
        return
    value = series.get(keyword)
    for item in series.values(keyword) if value is None else (value,):
        if isinstance(item, tuple):
            yield from map(str, item)
            yield "\\".join(map(str, item))
        else:
            yield str(item)


def fits_series(wanted: str, number: str, description: str) -> bool:
    """Is this the series that a person means: by its number ("3,5-7"), or by a glob of its description?"""
    ranges = numbers(wanted)
    if ranges is None:
        return fits(wanted, description)
    return number.isdecimal() and len(number) <= 18 and any(first <= int(number) <= last for first, last in ranges)


def numbers(text: str) -> list[tuple[int, int]] | None:
    """[(3, 3), (5, 7)] of "3,5-7"; None where it is no list of numbers."""
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = (each.strip() for each in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 40:
            return None
        found.append((int(first), int(last or first)))
    return found


def checked_series(text: str) -> str:
    """The same text. SorterError: it has a range that no number lies in."""
    for first, last in numbers(text) or ():
        if first > last:
            raise SorterError(f"in {text[:80]!r} the range {first}-{last} ends before it begins; write {last}-{first}")
    return text


_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def day_of(text: str) -> str:
    """YYYYMMDD of a day that a person wrote. SorterError says what can be written."""
    today = datetime.date.today()
    word = text.strip().casefold()
    if word in ("today", "yesterday"):
        return (today - datetime.timedelta(days=word == "yesterday")).strftime("%Y%m%d")
    if word in _WEEKDAYS:
        return (today - datetime.timedelta(days=(today.weekday() - _WEEKDAYS.index(word)) % 7)).strftime("%Y%m%d")
    if word.endswith("d") and word[:-1].isdecimal() and len(word) < 7:
        return (today - datetime.timedelta(days=min(int(word[:-1]), 700_000))).strftime("%Y%m%d")
    try:
        return datetime.date.fromisoformat(text).strftime("%Y%m%d")
    except ValueError:
        raise SorterError(f"{text!r} is no day; write YYYY-MM-DD, today, yesterday, tuesday or 30d") from None
