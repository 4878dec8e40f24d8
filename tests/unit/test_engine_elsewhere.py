"""Jobs that run elsewhere: what they are given, and what is believed of what they leave. Slurm is among the peers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sorter.config import load
from sorter.daemon.assembly import cluster_of
from sorter.durable import Files
from sorter.engine import remote, scratch
from sorter.engine.engine import Engine, outcome_in
from sorter.engine.slurm import Cluster, JobTerms, SlurmEngine
from sorter.engine.work import Limits, Made, Outcome, Work
from sorter.errors import ConfigError
from sorter.model import Product
from sorter.testing.waiting import wait_until

PROJECT = Path(__file__).parents[2]

MAKERS = """
import os, signal
from dataclasses import replace
from pathlib import Path
def good(job):
    print("said so")
    Path(job.scratch, "sub").mkdir()
    Path(job.scratch, "sub", "out.txt").write_bytes(Path(job.inputs["dicom"], "a").read_bytes())
def raises(job): raise ValueError("no good")
def links(job): os.symlink("/etc/passwd", Path(job.scratch, "out.txt"))
def pipes_its_log(job):
    for name in ("log.txt", "log.txt.part"):
        Path(name).unlink(missing_ok=True)
        os.mkfifo(name)
    print("said so", flush=True)
    while True: signal.pause()
"""


@pytest.fixture
def makers(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"image a")
    path = tmp_path / "makers.py"
    path.write_text(MAKERS)
    return path


def work(makers: Path, maker: str) -> Work:
    product = Product("text", f"{makers}:{maker}", timeout=60, memory=1024)
    return Work(maker, product, {"dicom": [(makers.parent / "a", "a")]}, lab="memory")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """The example of the documentation."""
    spec = importlib.util.spec_from_file_location("executor", PROJECT / "examples" / "engine" / "executor.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found: Engine = example.ExecutorEngine(ThreadPoolExecutor(2), tmp_path / "scratch", Files())
    yield found
    found.stop()


def test_an_executor_is_an_engine_in_a_page(engine: Engine, makers: Path, tmp_path: Path) -> None:
    for maker in ("good", "raises", "links"):
        engine.submit(work(makers, maker))
    with pytest.raises(ValueError, match="there is a job good already"):
        engine.submit(work(makers, "good"))
    ended: dict[str, Outcome] = {}
    wait_until(lambda: ended.update({each.id: each for each in engine.finished()}) or len(ended) == 3, 60, "three jobs")
    assert {job: outcome.state for job, outcome in ended.items()} == {
        "good": "made", "raises": "failed", "links": "failed"
    }  # fmt: skip
    assert ended["good"].log == "said so\n"
    assert "ValueError: no good" in ended["raises"].why
    assert "is no regular file" in ended["links"].why
    engine.adopt("good", tmp_path / "product")
    assert (tmp_path / "product" / "sub" / "out.txt").read_bytes() == b"image a"
    engine.drop("raises")
    engine.cancel("links")
    wait_until(lambda: not os.listdir(tmp_path / "scratch"), 20, "the scratch to be swept")


def test_a_single_file_comes_along(makers: Path, tmp_path: Path) -> None:
    """The node need not see the plugins folder; of nobody else may the job's folder be read."""
    folder = tmp_path / "job"
    remote.stage(work(makers, "good"), folder, Limits(), 60, Files())
    makers.unlink()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "in" / "dicom" / "a").stat().st_mode & 0o777 == 0o400
    assert remote.run(str(folder)) == 0
    assert (folder / "out" / "sub" / "out.txt").read_bytes() == b"image a"


def test_a_job_that_pipes_its_log_is_ended_in_time(makers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    remote.stage(work(makers, "pipes_its_log"), folder, Limits(), 2, Files())
    assert remote.run(str(folder)) == 0
    outcome = outcome_in(folder, work(makers, "pipes_its_log"), Files())
    assert outcome is not None
    assert "took longer than 2 s" in outcome.why
    assert outcome.log == "said so\n"


def _linked(folder: Path) -> None:
    (folder / "sub" / "out.txt").unlink()
    (folder / "sub" / "out.txt").symlink_to("/etc/passwd")


def _linked_above(folder: Path) -> None:
    (folder / "sub").rename(folder.parent / "elsewhere")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")


def _piped(folder: Path) -> None:
    (folder / "sub" / "out.txt").unlink()
    os.mkfifo(folder / "sub" / "out.txt")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_linked, "is not there any more as a regular file"),
        (_linked_above, "is not there any more as a regular file"),
        (_piped, "has changed since the job ended"),
        (lambda folder: (folder / "sub" / "out.txt").write_bytes(b"image b"), "has changed since the job ended"),
        (lambda folder: (folder / "sub" / "out.txt").write_bytes(b"longer than it"), "has changed since the job ended"),
        (lambda folder: (folder / "sub" / "out.txt").unlink(), "is not there any more as a regular file"),
    ],
)
def test_what_is_fetched_is_what_the_job_said(tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    source = tmp_path / "share" / "out"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "out.txt").write_bytes(b"image a")
    made = [Made("sub/out.txt", hashlib.sha256(b"image a").hexdigest(), 7)]
    assert scratch.fetch(made, source, tmp_path / "whole", Files()) == ""
    assert (tmp_path / "whole" / "sub" / "out.txt").read_bytes() == b"image a"
    spoil(source)
    assert says in scratch.fetch(made, source, tmp_path / "spoilt", Files())


@pytest.mark.timeout(20)
def test_what_a_job_left_in_place_of_its_outcome_is_not_waited_for(makers: Path, tmp_path: Path) -> None:
    """A job could end its supervisor, and leave what blocks whoever opens it."""
    os.mkfifo(tmp_path / scratch.OUTCOME)
    os.mkfifo(tmp_path / remote.LOG)
    assert outcome_in(tmp_path, work(makers, "good"), Files()) is None
    cluster = Cluster(tmp_path / "share", "this")
    engine = SlurmEngine(cluster, tmp_path / "scratch", Files(), Limits())
    try:
        assert engine._log(tmp_path) == ""
    finally:
        engine.stop()


@pytest.mark.parametrize("names", [("out.txt", "out.txt"), ("out", "out/out.txt"), ("out/out.txt", "out")])
def test_an_outcome_that_names_two_things_alike_is_none(makers: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    said = {"state": "made", "why": "", "log": "", "files": [[name, "0" * 64, 0] for name in names]}
    (tmp_path / scratch.OUTCOME).write_text(json.dumps(said))
    outcome = outcome_in(tmp_path, work(makers, "good"), Files())
    assert outcome is not None
    assert (outcome.state, outcome.files) == ("failed", ())


def test_without_slurm_products_wait_and_it_is_said(
    makers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = SlurmEngine(Cluster(tmp_path / "share", "this"), tmp_path / "scratch", Files(), Limits())
    try:
        engine.submit(work(makers, "good"))
        [said] = wait_until(engine.problems, 20, "it to be said")
        assert said.startswith("there is no squeue on this machine")
        assert said.endswith("1 product waits; images are delivered meanwhile")
        assert "there is no squeue" in engine.standing()["good"]
        assert engine.finished() == []
    finally:
        engine.stop()


SBATCH = """#!/bin/sh
case "$(cat "$2" "$1" 2>/dev/null)" in *partition=other*) [ ! -e {place}/refuses ] || {{ echo no >&2; exit 1; }};; esac
echo "$PWD $*" >> {place}/submitted
echo Submitted batch job $(wc -l < {place}/submitted)
"""


def test_a_lab_whose_job_slurm_does_not_take_again_holds_up_no_other(
    makers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node failed, and by now its terms are refused. (Slurm's commands alone: itself is among the peers.)"""
    share, listed = tmp_path / "share", tmp_path / "listed"
    listed.write_text("")
    commands = {"squeue": f"#!/bin/sh\ncat {listed}\n", "sbatch": SBATCH.format(place=tmp_path)}
    for name, text in {**commands, "sinfo": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    terms = {"other": JobTerms(partition="other")}
    engine = SlurmEngine(Cluster(share, "this", labs=terms), tmp_path / "scratch", Files(), Limits())

    def submitted() -> int:
        path = tmp_path / "submitted"
        return len(path.read_text().splitlines()) if path.exists() else 0

    try:
        engine.submit(replace(work(makers, "good"), id="first", lab="other"))
        wait_until(lambda: submitted() == 1, 20, "the first job")
        (tmp_path / "refuses").touch()
        listed.write_text(f"1|NODE_FAIL|None|n1|{share}/first\n")
        wait_until(lambda: any("of lab other" in each for each in engine.problems()), 20, "it to be refused")
        engine.submit(replace(work(makers, "good"), id="second"))
        wait_until(lambda: submitted() == 2, 10, "the job of the other lab")
        [said] = engine.problems()
        assert said == "Slurm does not take a job of lab other: no: 1 product waits; images are delivered meanwhile"
    finally:
        engine.stop()


def test_a_share_of_another_sorter_is_left_alone(makers: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / ".sorter").write_text("host:/another/spool")
    (share / "its-job").mkdir()
    engine = SlurmEngine(Cluster(share, "host:/spool"), tmp_path / "scratch", Files(), Limits())
    try:
        engine.all_submitted()
        engine.submit(work(makers, "good"))
        [said] = wait_until(engine.problems, 20, "it to be said")
        assert f"{share} belongs to another sorter" in said
        assert sorted(os.listdir(share)) == [".sorter", "its-job"]
    finally:
        engine.stop()


CONFIG = """
[sorter]
root = "root"
[engine]
kind = "slurm"
{slurm}
[labs.memory]
match = ["PatientID=*"]
"""


def test_on_which_terms(tmp_path: Path) -> None:
    path = tmp_path / "sorter.toml"
    more = '[engine.slurm.labs.memory]\npartition = "long"\ntime = 600\n'
    path.write_text(CONFIG.format(slurm=f'[engine.slurm]\nshared = "share"\naccount = "mri"\ntime = 60\n{more}'))
    config = load(path)
    assert config.engine.slurm is not None
    cluster = cluster_of(config.engine.slurm, config.spool)
    assert cluster.shared == tmp_path / "share"
    assert cluster.terms("vision") == JobTerms(None, "mri", 60, None)
    assert cluster.terms("memory") == JobTerms("long", "mri", 600, None)


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        (
            "",
            'engine.kind: needs a folder that the nodes see too: write .engine.slurm. with shared = "/cluster/sorter"',
        ),
        ('[engine.slurm]\nshared = "share"\n[engine.slurm.labs.memroy]\ntime = 5\n', "there is no lab memroy.*memory"),
        ('[engine.slurm]\nshared = "root/spool/share"\n', "engine.slurm.shared: .*spool"),
        ('[engine.slurm]\nshared = "share"\npartition = "a; b"\n', "engine.slurm.partition"),
    ],
)
def test_what_cannot_be_configured(tmp_path: Path, slurm: str, says: str) -> None:
    path = tmp_path / "sorter.toml"
    path.write_text(CONFIG.format(slurm=slurm))
    with pytest.raises(ConfigError, match=says):
        load(path)
