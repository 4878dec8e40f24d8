"""Products: what is made of a unit's images, once a revision, and kept until it is delivered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sorter.deliver.target import Wanted
from sorter.engine.engine import Engine
from sorter.engine.work import Outcome, Work
from sorter.model import Delivery, Product, UnitKind
from sorter.pipeline.units import Live
from sorter.spool import Spool
from sorter.spool.layout import line

TRIES = 3
"""A product that failed this often waits for the next revision, a restart, or `sorter retry`."""


@dataclass(frozen=True, slots=True)
class Made:
    """A product as it lies in the store: (file name, SHA-256, size) of each file, or why there is nothing.

    `merge` says how some of the files are joined with those of other units.
    """

    files: tuple[tuple[str, str, int], ...] = ()
    nothing: str = ""
    merge: Mapping[str, str] = field(default_factory=dict)

    def wanted(self, delivery: Delivery, kind: UnitKind = UnitKind.SERIES) -> list[Wanted]:
        """As a target is to have it: makers call their files "out…", and what follows is kept after the plan's stem.

        What is called otherwise gets the stem in front, so that two series may lie in one folder; of a study or
        subject, and of a dataset, it stays as it is.
        """
        called = _renamed if kind is UnitKind.SERIES and not self.merge else _called
        return [
            Wanted(called(name, delivery.stem), digest, size, name, merge=self.merge.get(name, ""))
            for name, digest, size in self.files
        ]


@dataclass(slots=True)
class _Task:
    key: str
    product: str
    revision: int
    into: Path
    merge: Mapping[str, str]


@dataclass(slots=True)
class Workshop:
    """Orders products from the engine and puts what it made into the store."""

    spool: Spool
    engine: Engine
    settings: Callable[[str], Mapping[str, Any]]  # of the plugin that makes a product
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _said: dict[str, tuple[_Task, str]] = field(default_factory=dict)  # of each job, what was last known of it
    _tries: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def made(self, live: Live, product: str) -> Made | None:
        """What there is of a product of the unit's latest revision."""
        assert live.plan is not None
        found = live.unit.product(product, live.plan.revision)
        return None if found is None else Made(found.files, found.nothing, found.merge)

    def making(self, live: Live, product: str) -> bool:
        return self._id(live, product) in self._tasks

    def given_up(self, live: Live, product: str) -> bool:
        assert live.plan is not None
        return self._tries.get((live.key, product, live.plan.revision), 0) >= TRIES

    def order(self, live: Live, product: Product, inputs: Mapping[str, Sequence[tuple[Path, str]]]) -> None:
        """Have it made of these: for each product that it needs, (file, name in the folder of copies)."""
        assert live.plan is not None
        revision = live.plan.revision
        if all(each.product != product.name for each in live.plan.deliveries):  # no delivery's end would remove them
            self.discard(live, product.name, revision)
        work = Work(
            self._id(live, product.name), product, inputs, self.settings(product.name), live.unit.face,
            live.plan.identity.lab or "", live.plan.identity,
        )  # fmt: skip
        self.engine.submit(work)
        into = self._folder(live, product.name)
        self._tasks[work.id] = _Task(live.key, product.name, revision, into, product.merge)

    def nothing(self, live: Live, product: str, why: str) -> Made:
        """There is nothing to make, and no job has to find that out."""
        folder = self._folder(live, product)
        self._note(folder, Made(nothing=why))
        return Made(nothing=why)

    def progress(self) -> list[tuple[str, str, str]]:
        """(unit key, product, what is known of its job) where that is news; "" where there is nothing more to say."""
        known = self.engine.standing()
        now = {job: (task, known[job]) for job, task in self._tasks.items() if job in known}
        over = {job: (task, "") for job, (task, _) in self._said.items() if job not in now}
        news = [said for job, said in {**now, **over}.items() if self._said.get(job) != said]
        self._said = now
        return [(task.key, task.product, says) for task, says in news]

    def cancel(self, live: Live) -> None:
        """End what is being made of a unit: nobody wants it any more."""
        for job in [job for job, task in self._tasks.items() if task.key == live.key]:
            del self._tasks[job]
            self.engine.cancel(job)

    def forget(self, live: Live) -> None:
        """The same, and remove what was made: there is something in it that has to go."""
        self.cancel(live)
        products = live.unit.folder / "products"
        if self.spool.files.exists(products):
            self.spool.files.remove_tree(products)

    def finished(self) -> list[tuple[str, str, Outcome]]:
        """(unit key, product, outcome) of what ended since the last call; what was made is in the store by then."""
        found = []
        for outcome in self.engine.finished():
            task = self._tasks.pop(outcome.id, None)
            if task is None:  # it ended at the moment in which it was cancelled
                with suppress(KeyError, OSError):  # the engine may have dropped it; the next start removes what is left
                    self.engine.drop(outcome.id)
                continue
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
        self.spool.files.make_folders(task.into.parent)
        made: tuple[tuple[str, str, int], ...] = ()
        if outcome.state == "made":
            made = self.engine.adopt(outcome.id, task.into)
        else:
            self.engine.drop(outcome.id)
        self._note(task.into, Made(made, outcome.why if outcome.state == "nothing" else "", task.merge))

    def _note(self, folder: Path, made: Made) -> None:
        record: dict[str, Any] = {"files": [list(each) for each in made.files], "nothing": made.nothing}
        if made.merge:
            record["merge"] = dict(made.merge)
        self.spool.files.make_folders(folder.parent)
        self.spool.files.write_file(self._record(folder), line(record))

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
    return _called(name, stem) if name.startswith("out") else f"{stem}_{name}"


def _called(name: str, stem: str) -> str:
    return stem + name.removeprefix("out") if name.startswith("out") else name
