"""A plugin of sorter that makes NIfTI with BIDS sidecars of a series, by dcm2niix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorter import Product, hookimpl

if TYPE_CHECKING:
    from sorter_dcm2niix.settings import Settings

# Every job passes through this file on its way to `convert`, so pydantic is not imported here.


@hookimpl
def sorter_config() -> type[Settings]:
    from sorter_dcm2niix.settings import Settings

    return Settings


@hookimpl
def sorter_products(settings: Settings) -> list[Product]:
    """One product, `nifti`, of every series that has images to convert (spectra and reports have no BitsAllocated)."""
    return [
        Product(
            name="nifti",
            make="sorter_dcm2niix.convert:make",
            when={"Modality": ("MR", "CT", "PT"), "BitsAllocated": ("*",)},
            min_verdict=settings.min_verdict,
            timeout=settings.timeout,
            memory=settings.memory,
        )
    ]
