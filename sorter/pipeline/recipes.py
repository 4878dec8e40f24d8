"""What is made of what: the products that plugins make, and which of them fit together.

`faults` says, before anything is made, which of them never could be. All else here may rely on it: needs are known,
and no product needs itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sorter.errors import did_you_mean
from sorter.model import DICOM, Product, Series, UnitKind
from sorter.plugins.asking import matches

_WIDTH = list(UnitKind)
"""Series, study, subject: each is made of those before it."""


def faults(products: Mapping[str, Product]) -> Iterator[tuple[str, str]]:
    """(product, sentence) for each that can never be made."""
    for name, product in products.items():
        if not product.needs:
            yield name, f'it is made of nothing: needs must name a product, as ("{DICOM}",)'
        for need in product.needs:
            if need != DICOM and need not in products:
                hint = did_you_mean(need, [DICOM, *products])
                yield name, f"it needs {need!r}, which no plugin makes{hint or f' ({_listed(products)} are made)'}"
            elif need != DICOM and not _is_wider(product, products[need]):
                yield name, f"it is of a {product.of}, and needs {need!r}, which is of a {products[need].of}"
        if product.replaces == name or (product.replaces not in (None, DICOM) and product.replaces not in products):
            yield name, f"it replaces {product.replaces!r}, which no other plugin makes"
    for circle in _circles(products):
        yield circle[0], f"it would be made of itself: {' needs '.join((*circle, circle[0]))}"


def _listed(products: Mapping[str, Product]) -> str:
    return ", ".join((DICOM, *products))


def _is_wider(product: Product, need: Product) -> bool:
    return _WIDTH.index(product.of) >= _WIDTH.index(need.of)


def _circles(products: Mapping[str, Product]) -> Iterator[tuple[str, ...]]:
    """Each once, beginning with the product that is named first."""
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in above:
            yield above[above.index(name) :]
        elif name not in done:
            for need in products[name].needs if name in products else ():
                yield from walk(need, (*above, name))
            done.add(name)

    for name in products:
        yield from walk(name, ())


class Recipes:
    """The products by name, all of which can be made."""

    def __init__(self, products: Mapping[str, Product]) -> None:
        self._products = products

    def all_needs(self, name: str) -> set[str]:
        """What a product is made of, and what that is made of, and so on."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            product = self._products.get(waiting.pop())
            new = set(product.needs if product else ()) - found
            found |= new
            waiting += new
        return found

    def takes(self, name: str, series: Series) -> bool:
        """Is this product made of such a series, or of what is more, also of this one?"""
        if name == DICOM:
            return True
        product = self._products[name]
        return matches(product, series) and all(self.takes(need, series) for need in product.needs)

    def without_replaced(self, names: Iterable[str]) -> list[str]:
        """Of what would be delivered, what nothing else of it stands in for."""
        given = list(dict.fromkeys(names))
        replaced = {self._products[name].replaces for name in given if name in self._products}
        return [name for name in given if name not in replaced]
