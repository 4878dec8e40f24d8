"""A plugin of sorter: each study a session of the lab's BIDS dataset, by heudiconv or dcm2bids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorter import Name, Product, Series, UnitKind, hookimpl

if TYPE_CHECKING:
    from sorter_bids.settings import Settings

BIDS = "bids"

SHARED = {"dataset_description.json": "once", "README": "once", ".bidsignore": "lines", "participants.tsv": "rows"}
"""What all sessions have in common, and how that of another one is joined to it."""

# Every job passes through this file on its way to `make`, so pydantic is not imported here.


@hookimpl
def sorter_config() -> type[Settings]:
    from sorter_bids.settings import Settings

    return Settings


@hookimpl
def sorter_products(settings: Settings) -> list[Product]:
    """One product, `bids`, of every study with MR images (spectra and reports have no BitsAllocated)."""
    return [
        Product(
            name=BIDS,
            make="sorter_bids.convert:make",
            of=UnitKind.STUDY,
            when={"Modality": ("MR",), "BitsAllocated": ("*",)},
            min_verdict=settings.min_verdict,
            timeout=settings.timeout,
            memory=settings.memory,
            merge=SHARED,
        )
    ]


@hookimpl
def sorter_name(series: Series, product: str) -> Name | None:  # noqa: ARG001
    """One dataset for all sessions: below the root, whatever the folders of other products are."""
    return Name(BIDS, "out") if product == BIDS else None
