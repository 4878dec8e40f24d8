"""sorter: from the scanner to the lab's folder, at the lab's will, with no database.

What a plugin author needs is importable from here; everything else is internal.
"""

from sorter.hookspecs import hookimpl
from sorter.model import (
    Add,
    Event,
    Evidence,
    Expectation,
    Hold,
    Identity,
    Instance,
    Job,
    Name,
    Only,
    Product,
    Route,
    Series,
    Skip,
    Source,
    TargetKind,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "Add", "Event", "Evidence", "Expectation", "Hold", "Identity", "Instance", "Job", "Name", "Only", "Product",
    "Route", "Series", "Skip", "Source", "TargetKind", "Verdict", "hookimpl",
]  # fmt: skip
