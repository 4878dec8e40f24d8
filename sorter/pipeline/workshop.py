"""Products: what is made of a unit's images, once a revision, and kept until it is delivered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sorter.deliver.target import Wanted
from sorter.engine.engine import Engine
from sorter.engine.work import Outcome, Work
from sorter.model import Delivery, Product, Standing
from sorter.pipeline.units import Live
from sorter.spool import Spool
from sorter.spool.layout import line

TRIES = 3
"""A product that failed this often waits for the next revision, a restart, or `sorter retry`."""


@dataclass(frozen=True, slots=True)
class Made:
    """A product as it lies in the store: (file name, SHA-256, size) of each file, or why there is nothing."""

    files: tuple[tuple[str, str, int], ...] = ()
    nothing: str = ""

    def wanted(self, delivery: Delivery) -> list[Wanted]:
        """As a target is to have it: makers call their files "out…", and what follows is kept after the plan's stem."""
        return [Wanted(_renamed(name, delivery.stem), digest, size, name) for name, digest, size in self.files]


@dataclass(slots=True)
class _Task:
    key: str
    product: str
    revision: int
    into: Path


@dataclass(slots=True)
class Workshop:
    """Orders products from the engine and puts what it made into the store."""

    spool: Spool
    engine: Engine
    settings: Callable[[str], Mapping[str, Any]]  # of the plugin that makes a product
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _tries: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def made(self, live: Live, product: str) -> Made | None:
        """What there is of a product of the unit's latest revision."""
        assert live.plan is not None
        found = live.unit.product(product, live.plan.revision)
        return None if found is None else Made(found.files, found.nothing)

    def making(self, live: Live, product: str) -> bool:
        return self._id(live, product) in self._tasks

    def given_up(self, live: Live, product: str) -> bool:
        assert live.plan is not None
        return self._tries.get((live.key, product, live.plan.revision), 0) >= TRIES

    def order(self, live: Live, product: Product) -> None:
        """Have it made from copies of exactly the latest revision's images, conflict copies left out."""
        assert live.revision is not None
        assert live.plan is not None
        folder = self._folder(live, product.name)
        images = [each for each in live.revision.instances if each.standing is Standing.CURRENT]
        inputs = {"dicom": [(live.unit.images / each.file, f"{i:06d}.dcm") for i, each in enumerate(images, 1)]}
        self._tasks[self._id(live, product.name)] = _Task(live.key, product.name, live.revision.revision, folder)
        lab = live.plan.identity.lab or ""
        self.engine.submit(
            Work(self._id(live, product.name), product, inputs, self.settings(product.name), live.unit.face, lab)
        )

    def finished(self) -> list[tuple[str, str, Outcome]]:
        """(unit key, product, outcome) of what ended since the last call; what was made is in the store by then."""
        found = []
        for outcome in self.engine.finished():
            task = self._tasks.pop(outcome.id)
            count = (task.key, task.product, task.revision)
            outcome = self._kept(task, outcome)
            if outcome.state == "failed" and not outcome.later:
                self._tries[count] = self._tries.get(count, 0) + 1
            found.append((task.key, task.product, outcome))
        return found

    def _kept(self, task: _Task, outcome: Outcome) -> Outcome:
        """The outcome once its files are in the store; a failure of ours if they cannot be put there."""
        try:
            if outcome.state == "failed":
                self.engine.drop(outcome.id)
            else:
                self._keep(task, outcome)
        except OSError as error:
            if outcome.state == "failed":  # what cannot be removed of it now is removed at the next start
                return outcome
            return replace(outcome, state="failed", why=f"it could not be kept: {error.strerror or error}", later=True)
        return outcome

    def _keep(self, task: _Task, outcome: Outcome) -> None:
        files = self.spool.files
        files.make_folders(task.into.parent)
        made: tuple[tuple[str, str, int], ...] = ()
        if outcome.state == "made":
            made = self.engine.adopt(outcome.id, task.into)
        else:
            self.engine.drop(outcome.id)
        record = {"files": [list(each) for each in made], "nothing": outcome.why if outcome.state == "nothing" else ""}
        files.write_file(self._record(task.into), line(record))

    def discard(self, live: Live, product: str, revision: int) -> None:
        """Remove what was made of earlier revisions: it has been delivered, and can be made again."""
        folder = live.unit.folder / "products"
        if not self.spool.files.exists(folder):
            return
        for name in self.spool.files.names(folder):
            made, _, number = name.removesuffix(".json").rpartition("-")
            if made == product and number.isdigit() and int(number) < revision:
                path = folder / name
                self.spool.files.unlink(path) if name.endswith(".json") else self.spool.files.remove_tree(path)

    def try_all_again(self) -> None:
        self._tries.clear()

    def _id(self, live: Live, product: str) -> str:
        assert live.plan is not None
        return f"{live.key}-{live.plan.revision}-{product}"

    def _folder(self, live: Live, product: str) -> Path:
        assert live.plan is not None
        return live.unit.product_folder(product, live.plan.revision)

    def _record(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.json")


def _renamed(name: str, stem: str) -> str:
    return stem + name.removeprefix("out") if name.startswith("out") else f"{stem}_{name}"
