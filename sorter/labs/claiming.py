"""A lab's members claim what is nobody's, by the door or by a request file, without being told what there is."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sorter.errors import SorterError
from sorter.naming import short_hash
from sorter.spool import Spool
from sorter.spool.requests import request
from sorter.summaries import is_called, summaries

CLAIMED = (
    "What is here of {what} and belongs to no lab is claimed for {lab}. Where the lab may not claim it by itself, the "
    "admin of sorter answers; `sorter list` shows it when it is the lab's, and .sorter/NEWS.txt in its folder what "
    "became of a claim that waited."
)
"""What is said whatever there is."""


def unassigned(spool: Spool, what: Sequence[str]) -> list[str]:
    """The keys of what is called so and belongs to nobody. SorterError: it is asked for all that there is."""
    if any(set(each) <= set("*?") for each in what):
        raise SorterError("claim a subject, a study or a series by its name or UID, not all that there is")
    found = summaries(spool, lambda _key, _error: None)  # whose records cannot be read is no reason to claim nothing
    free = [each for each in found if each.lab is None and any(is_called(each, text) for text in what)]
    return [each.key for each in free if each.state not in ("open", "withdrawn")]


def claim(spool: Spool, keys: Sequence[str], lab: str, by: str) -> None:
    """Leave it to the sorting process."""
    if keys:
        asked = {"do": "claim", "keys": keys, "lab": lab, "by": by, "granted": False}
        request(spool, f"decide-{time.time_ns():020d}-{short_hash(lab + ' '.join(keys))}", asked)
