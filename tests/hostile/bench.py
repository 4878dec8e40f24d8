"""A spool with everything that takes files into it, one life of it, at a clock that the test turns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sorter.durable import Files
from sorter.model import Instance, Source
from sorter.pipeline.archives import LOOK, Archives, Read
from sorter.pipeline.intake import Intake, Whole
from sorter.spool import Spool, Unit
from sorter.take.filing import Filed, Filing
from sorter.take.received import Ended, Received
from sorter.testing.waiting import wait_until
from sorter.watch import Incoming, Lookout, Watched
from sorter.watch.taken import Taken

News = Filed | Ended | Whole | Read


class Rules:
    """The first sender may correct; nothing is grouped."""

    def group(self, instance: Instance) -> str | None:
        return None

    def may_correct(self, first: Source, newer: Source) -> bool:
        return not newer.dropped and newer.calling == first.calling


def no_trees(watched: Watched) -> Lookout:
    raise AssertionError(f"no trees but incoming/ in these tests: {watched.folder}")


class Life:
    """What `assemble` makes, without what comes after filing."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        files = files or Files()
        self.spool = Spool(root, files)
        self.spool.create()
        self.spool.clear_temporary()
        self.units: dict[str, Unit] = {}
        self.filing = Filing(self.spool, Rules(), self.unit, lambda key: self.units.pop(key, None))
        incoming = Incoming(self.spool.incoming, files, Taken(self.spool.left / "incoming", files))
        archives = Archives(self.spool)
        self.intake = Intake(self.filing, Received(self.spool.received, files), incoming, archives, follow=no_trees)
        self.now = 1000.0
        self.news: list[News] = []

    def unit(self, key: str) -> Unit:
        if key not in self.units:
            unit = self.units[key] = Unit.load(self.spool, key)
            if unit.unmentioned:
                self.filing.adopt(unit)
        return self.units[key]

    # --- living -------------------------------------------------------------------------------------------------

    def turn(self) -> list[News]:
        self.intake.look(self.now)
        news = list(self.intake.take(self.now))
        self.news += news
        return news

    def work(self, timeout: float = 60.0) -> list[News]:
        """Until nothing is to be taken, and no archive to be read, at this moment of its clock."""
        news: list[News] = []

        def idle() -> bool:
            news.extend(self.turn())
            reading = self.intake.archives.next(self.now)
            return not self.intake.busy and (reading is None or reading > self.now + LOOK)

        wait_until(idle, timeout, "everything to be taken")
        return news

    def settle(self, seconds: float = 6.0) -> list[News]:
        """Let this much time pass, in the steps of a watch."""
        news, end = list[News](), self.now + seconds
        while self.now < end:
            news += self.work()
            self.now += 2.1
        return news + self.work()

    def drop(self, name: str, content: bytes) -> Path:
        """Put a file below incoming/."""
        path = self.spool.incoming / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    # --- what is there ------------------------------------------------------------------------------------------

    def stored(self) -> list[Instance]:
        keys = list(self.spool.keys())
        return [each for key in keys for each in Unit.load(self.spool, key).instances.values()]

    def images(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.spool.store.rglob("*.dcm"))

    def aside(self) -> dict[str, str]:
        """Origin and reason of everything in quarantine."""
        return {note["origin"]: note["reason"] for _, note in self.spool.quarantined()}

    def aside_bytes(self) -> dict[str, bytes]:
        return {note["origin"]: path.read_bytes() for path, note in self.spool.quarantined()}

    def left(self) -> list[str]:
        """What still lies in incoming/, and in the folder of what is being taken."""
        folders: Iterable[Path] = (self.spool.incoming, self.spool.taking)
        return sorted(str(path.relative_to(self.spool.root)) for each in folders for path in each.rglob("*"))

    def evidence(self) -> list[dict[str, Any]]:
        paths = self.spool.store.rglob("evidence.jsonl")
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
