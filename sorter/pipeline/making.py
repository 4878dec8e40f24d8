"""Making: what a product is made of is there first, and made where it is not; then it is ordered.

A product of a series is made of its images and of what else is made of it. One of a study or subject is made of what
each of its series gives, in a folder for each: so a unit may wait for another one, which `awaiting` remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sorter.model import DICOM, Product, Standing, UnitKind
from sorter.naming import safe_component
from sorter.pipeline.planning import Planner, view
from sorter.pipeline.recall import absent
from sorter.pipeline.units import Live
from sorter.pipeline.workshop import Made, Workshop

Copies: TypeAlias = list[tuple[Path, str]]
"""(file, name in the folder of copies) of what a job is given."""


@dataclass(frozen=True, slots=True)
class Waits:
    """It is not there yet: `why`, "" while it is being made, and whether nobody but the caller will try it again."""

    why: str = ""
    later: bool = False


@dataclass(slots=True)
class Making:
    """`fetch` has images of a unit brought back that left the store: (why to wait, to be tried again by the caller)."""

    workshop: Workshop
    planner: Callable[[], Planner]
    live: Callable[[str], Live]
    fetch: Callable[[Live, Sequence[str]], tuple[str, bool]]
    _awaiting: dict[str, set[str]] = field(default_factory=dict)  # unit -> those that wait for something of it

    def provide(self, live: Live, name: str) -> Made | Waits:
        """A product of the unit's latest revision; ordered, with all that it needs, where it is not made yet."""
        made = self.workshop.made(live, name)
        if made is not None:
            return made
        if self.workshop.making(live, name) or self.workshop.given_up(live, name):
            return Waits()
        product = self.planner().products.get(name)
        if product is None:
            return Waits(f"no plugin makes {name} any more; install it again, or run `sorter retry`")
        assert live.revision is not None
        if not live.revision.verdict.at_least(product.min_verdict):
            return Waits(f"{name} is made when the verdict is at least {product.min_verdict}; it is "
                         f"{live.revision.verdict}")  # fmt: skip
        return self._order(live, product)

    def awaiting(self, key: str) -> set[str]:
        """The units that waited for something of this one; they are asked again now."""
        return self._awaiting.pop(key, set())

    def _order(self, live: Live, product: Product) -> Made | Waits:
        inputs: dict[str, Copies] = {}
        waits: list[Waits] = []
        for need in product.needs:
            copies = inputs.setdefault(need, [])
            for source, below in self._sources(live, product, need):
                given = self._given(source, need)
                if isinstance(given, Waits):
                    waits.append(given)
                    self._await(source, live)
                else:
                    copies += [(path, f"{below}{name}") for path, name in given]
        if waits:  # all were asked, so that what can be made at once is
            return next((each for each in waits if each.why), waits[0])
        lacking = [need for need, copies in inputs.items() if not copies]
        if lacking:
            return self.workshop.nothing(live, product.name, f"there is no {' and no '.join(lacking)} to make it of")
        self.workshop.order(live, product, inputs)
        return Waits()

    def _await(self, source: Live, live: Live) -> None:
        if source is not live:
            self._awaiting.setdefault(source.key, set()).add(live.key)

    # --- of what ------------------------------------------------------------------------------------------------

    def _sources(self, live: Live, product: Product, need: str) -> Iterator[tuple[Live, str]]:
        """The units that something needed is made of, each with the folder for its copies, as "003-1a2b3c4d/"."""
        needed = self.planner().products.get(need)
        of = UnitKind.SERIES if needed is None else needed.of
        if of is live.unit.kind:
            yield live, ""
        elif of is UnitKind.SERIES:
            for member in map(self.live, live.revision.members if live.revision else ()):
                if self.planner().recipes.takes(product.name, view(member.unit, member.revision)):
                    yield member, f"{_title(member)}/"
        else:
            for key in live.unit.parts:
                yield self.live(key), f"{key[:8]}/"

    def _given(self, source: Live, need: str) -> Copies | Waits:
        if source.revision is None or source.unplanned or source.plan is None:
            return Waits(f"series {source.key[:8]}, which it is made of, has no plan yet")
        if source.growing:
            return Waits(f"study {source.key[:8]}, which it is made of, waits until what came of it has settled")
        if need == DICOM:
            return self._images(source)
        made = self.provide(source, need)
        if isinstance(made, Waits):
            return made
        folder = source.unit.product_folder(need, source.plan.revision)
        return [(folder / name, name) for name, _, _ in made.files]

    def _images(self, live: Live) -> Copies | Waits:
        """Exactly the latest revision's, conflict copies left out."""
        assert live.revision is not None
        gone = absent(live)
        why, later = self.fetch(live, gone) if gone else ("", False)
        if gone:
            says = (
                f"{len(gone)} of its images have left the store, and are not any more where they were delivered: "
                "put them back there, or send them again, then run `sorter retry`"
            )
            return Waits(why or says, later)
        images = [each for each in live.revision.instances if each.standing is Standing.CURRENT]
        return [(live.unit.images / each.file, f"{i:06d}.dcm") for i, each in enumerate(images, 1)]


def _title(live: Live) -> str:
    """Of the folder of one series among others: its number, for the order, and its key. Nothing of a patient."""
    number = str(live.unit.face.get("SeriesNumber", ""))
    digits = number.zfill(3) if number.isascii() and number.isdigit() else "000"
    return safe_component(f"{digits[-9:]}-{live.key[:8]}")
