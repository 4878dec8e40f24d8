"""A plugin of sorter: any program, on this machine or in a container, as a product."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorter import Product, hookimpl

if TYPE_CHECKING:
    from sorter_command.settings import Settings

# Every job passes through this file on its way to `run`, so pydantic is not imported here.


@hookimpl
def sorter_config() -> type[Settings]:
    from sorter_command.settings import Settings

    return Settings


@hookimpl
def sorter_products(settings: Settings) -> list[Product]:
    return [
        Product(
            name=name,
            make="sorter_command.run:make",
            needs=made.needs,
            when=made.when,
            min_verdict=made.min_verdict,
            timeout=made.timeout,
            memory=made.memory,
            cpus=made.cpus,
        )
        for name, made in settings.products.items()
    ]
