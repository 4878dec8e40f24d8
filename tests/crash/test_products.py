"""Power cuts while something is made of a whole study: the lab has it once, of all that came and was not withdrawn."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest

from sorter.builtin import _path_stage
from sorter.config import Config, load
from sorter.daemon import assembly
from sorter.daemon.requests import request
from sorter.durable import Files
from sorter.engine import scratch
from sorter.engine.engine import Engine
from sorter.engine.work import Limits, Made, Outcome, Work
from sorter.model import UnitKind, unit_key
from sorter.pipeline import outlets
from sorter.spool import Spool
from tests.crash.memory import Memory
from tests.crash.scenario import ROOT, Life, Near, begin, data_set
from tests.crash.test_enumeration import LAB, SEED, STORE, Cut, cuts

PLUGIN = """
from sorter import Product, hookimpl

@hookimpl
def sorter_products(settings):
    return [Product("page", "kitchen:page"), Product("book", "kitchen:book", ("page", "dicom"), "study")]
"""
WITHDRAWN = b"withdrawn"
SERIES = unit_key(UnitKind.SERIES, "1.2.3", "1.2.3.2")


class AtOnce(Engine):
    """An engine without a process, on the disk in memory: what it makes says what it was made of."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(spool.scratch, spool.files, Limits(), None)

    def _begin(self, work: Work) -> None:
        folder = self.scratch / work.id
        scratch.lay_out(work, folder, self.files)
        text = " ".join(sorted(f"{need}/{name}" for need, copies in work.inputs.items() for _, name in copies)).encode()
        self.files.write_file(folder / "out/out.txt", text, durable=False)
        made = Made("out.txt", hashlib.sha256(text).hexdigest(), len(text))
        self._finish(Outcome(work.id, "made", files=(made,)))

    def cancel(self, job: str) -> None:
        raise AssertionError(job)

    def stop(self) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    (tmp_path / "plugins").mkdir(mode=0o700)
    (tmp_path / "plugins/kitchen.py").write_text(PLUGIN)
    (tmp_path / "sorter.toml").write_text(
        f'[sorter]\nplugins = "{tmp_path}/plugins"\n[completion]\nstudy = 60\n'
        '[labs.memory]\nmatch = ["Modality=MR"]\nproducts = ["book"]\n'
    )
    config = load(tmp_path / "sorter.toml", Path(ROOT))
    plugins = assembly.load_plugins(config, Files(), apart=False)
    monkeypatch.setattr(assembly, "load_plugins", lambda *_: plugins)
    monkeypatch.setattr(assembly, "engine_of", lambda _config, spool, _wake: AtOnce(spool))
    monkeypatch.setattr(outlets, "Lane", Near)
    monkeypatch.setattr(_path_stage, "_MOST_FILES", 1)
    return config


def story(life: Life) -> None:
    """Two series come; their study settles; one of them grows; the other is withdrawn."""
    life.receive(data_set(1), data_set(1, series=2))
    life.turns(120, 15)
    life.receive(data_set(2))
    life.turns(120, 15)
    what = {"do": "withdraw", "keys": [SERIES], "studies": [], "why": "consent", "by": "admin"}
    request(life.spool, "withdraw", what)
    life.acknowledged[WITHDRAWN] = None
    life.turns(30, 10)


def judge(cut: Cut, settings: Config) -> list[str]:
    """What is wrong after this power cut; nothing, if all is well."""
    life = begin(Memory.of(cut.image), settings)
    life.turns(160, 20)
    if list(life.parts.pipeline.units):
        life.turns(1200, 60)
    after = Cut(next(iter(life.disk.states(1, random.Random(SEED)))), cut.acknowledged, cut.dropped)
    lab = {path.removeprefix(LAB): content.decode() for path, content in after.files.items()
           if path.startswith(LAB) and "/." not in path}  # fmt: skip
    sent = {each for each in (data_set(1), data_set(2), data_set(1, series=2))
            if any(at.startswith(STORE) and content.endswith(each) for at, content in after.files.items())}  # fmt: skip
    gone = {data_set(1, series=2), WITHDRAWN} if life.spool.withdrawals.holds(SERIES) else set()
    if not set(cut.acknowledged) <= sent | gone:
        return ["an image was lost, or a withdrawal forgotten"]
    if not sent:
        return ["a book of nothing"] if lab else []
    if list(lab) != ["P1/20260102_1011/book/book.txt"]:
        return [f"the lab has {sorted(lab)}"]
    (text,) = lab.values()
    parts = Counter(each.partition("/")[0] for each in text.split())
    series = len({each == data_set(1, series=2) for each in sent})
    made = parts["dicom"], parts["page"]
    return [] if made == (len(sent), series) else [f"a book of {made}, where there are {len(sent), series}"]


@pytest.mark.soak
@pytest.mark.timeout(900)  # four minutes where nothing else runs
def test_no_power_cut_makes_a_product_of_a_study_twice_or_of_less(settings: Config) -> None:
    states = cuts(settings, story, 2).values()
    wrong = Counter(each for cut in states for each in judge(cut, settings))
    assert not wrong
    assert len(states) >= 10_000
