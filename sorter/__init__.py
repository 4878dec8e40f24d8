"""sorter: from the scanner to the lab's folder, at the lab's will, with no database.

What a plugin author needs is importable from here; everything else is internal.
"""

from typing import TYPE_CHECKING, Any

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
    Missing,
    Name,
    Only,
    Product,
    Route,
    Series,
    Skip,
    Source,
    Study,
    StudySeries,
    TargetKind,
    UnitKind,
    Verdict,
)

if TYPE_CHECKING:
    from sorter.plugins.table import Table

__version__ = "0.1.0"

__all__ = [
    "Add", "Event", "Evidence", "Expectation", "Hold", "Identity", "Instance", "Job", "Missing", "Name", "Only",
    "Product", "Route", "Series", "Skip", "Source", "Study", "StudySeries", "Table", "TargetKind", "UnitKind",
    "Verdict", "hookimpl",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`Table` is a pydantic type; workers that never see settings do not pay for pydantic."""
    if name == "Table":
        from sorter.plugins.table import Table

        return Table
    raise AttributeError(f"module 'sorter' has no attribute {name!r}")
