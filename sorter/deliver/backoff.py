"""How long to wait before a delivery is tried again."""

from __future__ import annotations

from random import Random

FIRST = 5.0
LONGEST = 600.0


def backoff(attempt: int, random: Random) -> float:
    """Seconds to wait after the `attempt`-th failure in a row (from 1): 5 s, doubling to 10 min.

    Jitter shortens a wait by up to a quarter, so that what failed together does not come back together; no wait is
    ever shorter than 5 s or longer than 10 min.
    """
    doublings = min(max(attempt, 1) - 1, 10)  # enough to pass LONGEST; keeps the power small
    wait = min(FIRST * 2.0**doublings, LONGEST)
    return max(FIRST, wait * random.uniform(0.75, 1.0))
