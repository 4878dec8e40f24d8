"""When is a series whole? Evidence in, a verdict out; no file, no network, no wall clock.

`decide` is the pure step for one unit; `habits` is what was learned of those who send; `tracker` keeps the clocks of
both together. The pipeline gives them what it sees, and does what they say.
"""

from sorter.completion.decide import (
    Arrived,
    AssociationEnded,
    DropWhole,
    Effect,
    Expected,
    Facts,
    Input,
    Listing,
    Look,
    Looked,
    Outlook,
    Publish,
    Published,
    State,
    Tick,
    Timing,
    Told,
    deadline,
    outlook,
    step,
)
from sorter.completion.habits import Habits, Outcome, Tracker

__all__ = [
    "Arrived",
    "AssociationEnded",
    "DropWhole",
    "Effect",
    "Expected",
    "Facts",
    "Habits",
    "Input",
    "Listing",
    "Look",
    "Looked",
    "Outcome",
    "Outlook",
    "Publish",
    "Published",
    "State",
    "Tick",
    "Timing",
    "Told",
    "Tracker",
    "deadline",
    "outlook",
    "step",
]
