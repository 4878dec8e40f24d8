"""Something of a whole study, made by a sorter that really runs, and is killed again and again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sorter.model import UnitKind
from sorter.spool import UnitSummary
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer, mprage, rest_bold
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.peers

PLUGIN = """
import os
import time
from pathlib import Path
from sorter import Product, hookimpl

def page(job):
    time.sleep(0.3)  # so that it is killed in the middle of it, too
    Path(job.scratch, "out.txt").write_text(str(len(os.listdir(job.inputs["dicom"]))))

def book(job):
    pages = sorted(Path(job.inputs["page"]).rglob("out.txt"))
    text = " ".join(f"{each.parent.name[:3]}:{each.read_text()}" for each in pages)
    Path(job.scratch, "out.txt").write_text(f"{job.identity.subject} {text}")

@hookimpl
def sorter_products(settings):
    return [Product("page", "library:page"), Product("book", "library:book", ("page",), "study")]
"""


def test_a_book_of_a_study_is_there_once_whatever_was_killed(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir(mode=0o700)
    (plugins / "library.py").write_text(PLUGIN)
    config = f"[sorter]\nplugins = {json.dumps(str(plugins))}\n[completion]\nstudy = 4\n"
    config += '[labs.memory]\nmatch = ["Modality=MR"]\nproducts = ["book"]\n'
    plan = Plan(seed=81, size=8)
    made = [localizer(plan), mprage(plan)]
    late = rest_bold(plan)
    running = RunningSorter(tmp_path / "root", quiet=0.5, config=config)

    def books() -> dict[str, str]:
        return {path.name: path.read_text() for path in (running.labs / "memory").rglob("*.txt")
                if not path.parent.name.startswith(".sorter")}  # fmt: skip

    def whole() -> UnitSummary | None:
        found = [each for each in running.series() if each.kind is UnitKind.STUDY]
        return found[0] if found and found[0].state == "delivered" else None

    with running:
        for each in made:
            running.send(each)
        running.wait_event("published")
        running.kill()
        running.start()
        wait_until(lambda: [each for each in running.series() if each.kind is UnitKind.STUDY and each.revision], 60)
        running.kill()
        running.start()
        wait_until(whole, 60)
        first = books()
        assert list(first) == ["book.txt"]
        assert [part.partition(":")[2] for part in first["book.txt"].split()[1:]] == [
            str(len(each.files)) for each in made
        ]
        running.send(late)
        wait_until(lambda: books() != first, 60)
        running.kill()
        running.start()
        wait_until(lambda: (found := whole()) is not None and found.revision == 2, 60)
        (name, text), *others = books().items()
        assert (name, others) == ("book.txt", [])
        assert len(text.split()) == 4
