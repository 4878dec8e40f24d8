"""What `status` says of the store: how much there is, what can leave, what stays and why, how long the disk will do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sorter.config import Config
from sorter.daemon.assembly import days_to_keep
from sorter.daemon.receive import keep_of
from sorter.model import Standing, plain
from sorter.receive import space
from sorter.spool import Spool, UnitSummary
from sorter.spool.days import days_passed
from sorter.spool.leaving import MAY_LEAVE, why_it_stays
from sorter.spool.stays import read_stays
from sorter.words import counted

_ASIDE = {
    Standing.CONFLICT: "conflict copies",
    Standing.SUPERSEDED: "with a superseded header",
    Standing.TRANSCODED: "in another transfer syntax",
}


def as_json(config: Config, spool: Spool, units: Sequence[UnitSummary]) -> dict[str, Any]:
    """Images and bytes in the store; what may leave now; of the rest how many images stay, by reason."""
    keep, today = days_to_keep(config), days_passed(spool.days, spool.files)
    stays, may_leave, free = Counter[str](), 0, 0
    for unit in units:
        count = sum(unit.stored.get(standing, 0) for standing in MAY_LEAVE)
        why = why_it_stays(unit, keep, today)
        if why and count:
            stays[why] += count
        elif count:
            may_leave, free = may_leave + count, free + unit.leaving
        if keep is not None:
            stays.update(
                {words: unit.stored[standing] for standing, words in _ASIDE.items() if standing in unit.stored}
            )
    seen = read_stays(spool)
    outlook = space.outlook(spool.received, spool.files, keep_of(config), time.time())
    return {
        "keep": "forever" if keep is None else keep,
        "day": today,
        "images": sum(sum(unit.stored.values()) for unit in units),
        "bytes": sum(unit.size for unit in units),
        "left": sum(unit.left for unit in units),
        "may_leave": {"images": may_leave, "bytes": free},
        "stays": dict(stays),
        "stayed": dict(seen.images) if keep is not None and seen.day >= today - 1 else {},
        "disk": None if outlook is None else {**plain(outlook), "says": str(outlook)},
    }


def lines(store: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    left = f"; {store['left']} more left it after their delivery" if store["left"] else ""
    yield f"store: {counted(store['images'], 'images')}, {_amount(store['bytes'])}{left}"
    if store["disk"]:
        yield f"disk: {store['disk']['says']}"
    if store["keep"] == "forever":
        return
    may = store["may_leave"]
    yield f"retention, {store['keep']} days: {counted(may['images'], 'images')} may leave, {_amount(may['bytes'])}"
    for why, count in store["stays"].items():
        yield f"{counted(count, 'images stay'):>18}: {why}"
    for why, count in store["stayed"].items():
        yield f"{counted(count, 'images could have left, and stay'):>39}: {why}"


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
