"""The local engine: what a job is given, how it may end, and that nothing of it stays."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sorter.durable import Files
from sorter.engine.local import LocalEngine
from sorter.engine.work import Limits, Outcome, Work
from sorter.model import Identity, Plan, Product, Revision, UnitKind, Verdict
from sorter.pipeline.units import Live
from sorter.pipeline.workshop import Workshop
from sorter.processes import LAZY, children
from sorter.spool import Spool, Unit
from sorter.testing.waiting import wait_until

MAKERS = """
import ctypes, json, os, signal, subprocess, sys
from pathlib import Path

def good(job):
    folder = Path(job.inputs["dicom"])
    Path(job.scratch, "out.txt").write_text(" ".join(sorted(each.name for each in folder.iterdir())))
    Path(job.scratch, "sub").mkdir()
    Path(job.scratch, "sub", "out_2.bin").write_bytes((folder / "a").read_bytes())
    print("said so")

def what_i_see(job):
    seen = {"environment": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv, "path": sys.path,
            "cmdline": Path("/proc/self/cmdline").read_bytes().decode(),
            "stdin": sys.stdin.read(), "fds": sorted(os.listdir("/proc/self/fd")),
            "header": dict(job.header), "settings": dict(job.settings), "product": job.product, "cpus": job.cpus,
            "mode": [oct(each.stat().st_mode) for each in Path("in/dicom").rglob("[ab]")]}
    Path(job.scratch, "out.json").write_text(json.dumps(seen))

def nothing(job): return "nothing"
def wrong(job): return 7
def no_file(job): pass
def raises(job): raise ValueError("no\\x1b[31m good")
class Mute(Exception):
    def __str__(self): raise RuntimeError
def mute(job): raise Mute
def brains(job): raise ValueError("\\U0001f9e0" * 1000)
def odd_text(job): raise ValueError("\\udc80\\0" * 1000)
def exits(job): sys.exit("gone")
def exits_hard(job): os._exit(7)
def segfault(job): ctypes.string_at(0)
def hangs(job):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True: signal.pause()
def spins(job):
    while True: pass
def memory(job): bytearray(1 << 40)
def big_log(job):
    line = b"x" * (1 << 16)
    for _ in range(500): os.write(1, line)
    os.write(2, b"\\nthe end\\n"); Path(job.scratch, "out").write_text("")
def big_file(job):
    with open("out/out", "wb") as file: file.write(bytes(2000))
def many_files(job):
    for number in range(8): Path(job.scratch, f"out{number}").write_text("")
def much_together(job):
    for number in range(3): Path(job.scratch, f"out{number}").write_bytes(bytes(500))
def link(job): os.symlink("/etc/passwd", "out/out.txt")
def link_folder(job): os.symlink("/etc", "out/sub")
def replaces_out(job):
    os.rmdir("out"); os.symlink("/etc", "out")
def removes_out(job): os.rmdir("out")
def hard_link(job): os.link("in/dicom/a", "out/out.txt")
def fifo(job): os.mkfifo("out/out.txt")
def hidden(job): Path("out/.hidden").write_text("")
def odd_name(job): Path("out/a\\nb").write_text("")
def locked(job):
    Path("out/sub").mkdir(); Path("out/sub/out.txt").write_text("x")
    os.chmod("out/sub/out.txt", 0); os.chmod("out/sub", 0)
def deep(job):
    for _ in range(1500):
        os.mkdir("d" * 50); os.chdir("d" * 50)
def deletes_inputs(job):
    for each in list(Path("in/dicom").rglob("[ab]")):
        each.chmod(0o600); each.write_text("spoilt"); each.unlink()
    Path("out/out").write_text("")
def kills_supervisor(job):
    _daemon(); os.kill(os.getppid(), signal.SIGKILL); signal.pause()
def daemon(job):
    _daemon(); Path("out/out").write_text("")
def _daemon():
    code = ("import os, signal; os.setsid(); open('pid', 'w').write(str(os.getpid()));"
            "print(1, flush=True); signal.pause()")
    shell = subprocess.Popen([sys.executable, "-c",
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE); "
        "p.stdout.readline()", code], stdin=subprocess.DEVNULL)
    shell.wait()
    pid = Path("pid").read_text()
    Path(os.environ["TMPDIR"], "../../../pid").write_text(pid)
def pipes_outcome(job):
    os.mkfifo("outcome.json.part"); Path("out/out").write_text("")
def takes_outcome(job):
    Path("outcome.json/sub").mkdir(parents=True); os.mkdir("outcome.json.part"); Path("out/out").write_text("")
def real_time(job): os.kill(os.getpid(), signal.SIGRTMIN + 6)
def kills_supervisor_in_real_time(job): os.kill(os.getppid(), signal.SIGRTMIN + 6)
def waits(job):
    Path("../../started-" + job.settings["name"]).write_text(str(os.getpid()))
    with open("../../go-" + job.settings["name"]): pass
    Path("out/out").write_text("")
"""


TOGETHER = """
def many_processes(job):
    for _ in range(8):
        if os.fork() == 0: signal.pause()
    signal.pause()
def much_memory_together(job):
    for _ in range(3):
        if os.fork() == 0:
            held = b"x" * (50 << 20); signal.pause()
    signal.pause()
def many_files_and_waits(job):
    for number in range(8): Path("tmp", str(number)).write_text("")
    signal.pause()
def how_nice(job):
    Path("out/out").write_text(f"{os.nice(0)} {Path('/proc/self/oom_score_adj').read_text()}")
"""


@pytest.fixture
def makers(tmp_path: Path) -> Path:
    path = tmp_path / "makers.py"
    path.write_text(textwrap.dedent(MAKERS))
    (tmp_path / "a").write_bytes(b"image a")
    (tmp_path / "b").write_bytes(b"image b")
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., LocalEngine]]:
    engines: list[LocalEngine] = []

    def new(jobs: int = 2, files: Files | None = None, limits: Limits = Limits(), **more: Any) -> LocalEngine:  # noqa: B008
        engines.append(LocalEngine(jobs, tmp_path / "scratch", files or Files(), limits, **more))
        return engines[-1]

    yield new
    for engine in engines:
        engine.stop()


def work(makers: Path, maker: str, job: str = "j1", timeout: int = 20, **settings: Any) -> Work:
    product = Product("text", f"{makers}:{maker}", timeout=timeout, memory=1024)
    inputs = {"dicom": [(makers.parent / "a", "a"), (makers.parent / "b", "x/b")]}
    return Work(job, product, inputs, settings, {"PatientName": "Canary^Kim", "ImageType": ("A", "B")})


def swept(tmp_path: Path, left: Sequence[str] = ()) -> None:
    """Wait until nothing is in the scratch any more, but for what is `left`."""
    wait_until(lambda: os.listdir(tmp_path / "scratch") == list(left), 20, "the scratch to be swept")


def ended(engine: LocalEngine) -> Outcome:
    found: list[Outcome] = []
    wait_until(lambda: found.extend(engine.finished()) or found, 30, "a job to end")
    assert len(found) == 1
    return found[0]


def test_a_hidden_file_that_the_product_names_is_adopted(makers: Path, start: Callable[..., LocalEngine]) -> None:
    engine, asked = start(), work(makers, "hidden")
    engine.submit(dataclasses.replace(asked, product=dataclasses.replace(asked.product, merge={".hidden": "lines"})))
    outcome = ended(engine)
    assert (outcome.state, [each.name for each in outcome.files]) == ("made", [".hidden"])


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_job_makes_files_that_are_adopted(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    woken = threading.Event()
    engine = start(wake=woken.set)
    engine.submit(work(makers, "good"))
    assert woken.wait(30)
    outcome = ended(engine)
    assert (outcome.state, outcome.why, outcome.log) == ("made", "", "said so\n")
    assert [(made.name, made.size) for made in outcome.files] == [("out.txt", 3), ("sub/out_2.bin", 7)]
    assert outcome.files[1].sha256 == hashlib.sha256(b"image a").hexdigest()

    into = tmp_path / "store" / "k" / "products" / "text-1"
    assert engine.adopt("j1", into) == outcome.files
    assert (into / "out.txt").read_text() == "a x"
    assert (into / "sub" / "out_2.bin").read_bytes() == b"image a"
    swept(tmp_path)
    with pytest.raises(KeyError):
        engine.adopt("j1", into)

    engine.submit(work(makers, "good"))  # the same again, over what is there
    again = ended(engine)
    engine.adopt("j1", into)
    assert again.files == outcome.files
    assert sorted(os.listdir(into)) == ["out.txt", "sub"]


def test_what_a_job_is_given(
    makers: Path, start: Callable[..., LocalEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setenv("SECRET_TOKEN", "canary-secret")
    engine = start()
    engine.submit(work(makers, "what_i_see", level=3))
    outcome = ended(engine)
    engine.adopt("j1", tmp_path / "p")
    seen = json.loads((tmp_path / "p" / "out.json").read_text())
    folder = str(tmp_path / "scratch" / "j1")
    assert seen["cwd"] == folder
    assert seen["environment"]["TMPDIR"] == seen["environment"]["HOME"] == f"{folder}/tmp"
    allowed = {"PATH", "LD_LIBRARY_PATH", "TZ", "PYTHONPATH", "LANG", "LC_ALL", "LC_CTYPE", "HOME", "TMPDIR"}
    assert {name for name in seen["environment"] if not name.endswith("_NUM_THREADS")} <= allowed
    assert "Canary" not in json.dumps([seen["argv"], seen["cmdline"], seen["environment"]])
    assert str(makers.parent / "a") not in json.dumps([seen["cmdline"], seen["environment"]])
    assert (seen["product"], seen["cpus"], seen["settings"]) == ("text", 1, {"level": 3})
    assert seen["header"] == {"PatientName": "Canary^Kim", "ImageType": ["A", "B"]}
    assert seen["stdin"] == ""
    assert "" not in seen["path"]
    assert folder not in seen["path"]
    assert seen["mode"] == ["0o100400"] * 2
    assert len(seen["fds"]) <= 5  # 0, 1, 2, the result, and the listing itself
    assert outcome.state == "made"


@pytest.mark.parametrize(
    ("maker", "state", "why"),
    [
        ("nothing", "nothing", "there is nothing to make of it"),
        ("wrong", "failed", "answered int; a maker answers None"),
        ("no_file", "failed", "it made no file"),
        ("raises", "failed", "ValueError: no?[31m good"),
        ("exits", "failed", "SystemExit: gone"),
        ("mute", "failed", "Mute: nobody can say what"),
        ("brains", "failed", "ValueError: \U0001f9e0\U0001f9e0"),
        ("odd_text", "failed", "ValueError: ????"),
        ("exits_hard", "failed", "making text ended early with exit code 7"),
        ("segfault", "failed", "making text was ended: SIGSEGV"),
        ("real_time", "failed", "making text was ended: signal 40"),
        ("memory", "failed", "more than 1024 MiB of memory"),
        ("link", "failed", "'out.txt' is no regular file"),
        ("link_folder", "failed", "'sub' is no regular file"),
        ("replaces_out", "failed", "it removed or replaced its folder"),
        ("removes_out", "failed", "it removed or replaced its folder"),
        ("hard_link", "failed", "'out.txt' is a hard link"),
        ("fifo", "failed", "'out.txt' is no regular file"),
        ("hidden", "failed", "a name that is not safe: '.hidden'"),
        ("odd_name", "failed", "a name that is not safe: 'a\\nb'"),
        ("deep", "failed", "it made no file"),
        ("no_such_function", "failed", "AttributeError"),
        ("big_file", "failed", "OSError: [Errno 27] File too large"),
        ("many_files", "failed", "more than 5 files or 0 MiB"),
        ("much_together", "failed", "more than 5 files or 0 MiB"),
    ],
)
def test_how_a_job_may_end(
    makers: Path, start: Callable[..., LocalEngine], tmp_path: Path, maker: str, state: str, why: str
) -> None:
    # A job that runs for a second is looked at meanwhile, and then any file has the size of a block.
    few = maker in ("big_file", "many_files", "much_together")
    engine = start(limits=Limits(files=5, bytes=1000 if few else 100_000))
    engine.submit(work(makers, maker))
    outcome = ended(engine)
    assert outcome.state == state
    assert why in outcome.why
    assert outcome.files == ()
    assert not outcome.later
    with pytest.raises(ValueError, match="made nothing"):
        engine.adopt("j1", tmp_path / "p")
    engine.drop("j1")
    swept(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"image a"


def test_a_raised_error_leaves_its_traceback_in_the_log(makers: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start()
    engine.submit(work(makers, "raises"))
    log = ended(engine).log
    assert "Traceback" in log
    assert "\x1b" not in log


@pytest.mark.parametrize(("maker", "why"), [("hangs", "took longer than 1 s"), ("spins", "1 s")])
def test_time_is_over(makers: Path, start: Callable[..., LocalEngine], maker: str, why: str) -> None:
    engine = start()
    engine.submit(work(makers, maker, timeout=1))
    outcome = ended(engine)
    assert outcome.state == "failed"
    assert why in outcome.why


def test_a_daemon_is_ended_with_its_job(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = start()
    engine.submit(work(makers, "daemon"))
    assert ended(engine).state == "made"
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_job_that_kills_its_supervisor(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = start()
    engine.submit(work(makers, "kills_supervisor"))
    outcome = ended(engine)
    assert (outcome.state, outcome.later) == ("failed", True)
    assert "ended from outside (SIGKILL)" in outcome.why
    wait_until(lambda: gone(int((tmp_path / "pid").read_text())), 5, "the daemon to go")


def test_a_signal_without_a_name_ends_one_job_alone(makers: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start()
    engine.submit(work(makers, "kills_supervisor_in_real_time"))
    outcome = ended(engine)
    assert (outcome.state, outcome.later) == ("failed", True)
    assert "ended from outside (signal 40)" in outcome.why
    engine.submit(work(makers, "good", "j2"))
    assert ended(engine).state == "made"


def test_a_disk_that_will_not_let_scratch_go_ends_one_job_alone(
    makers: Path, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    class Failing(Files):
        def rename(self, old: Any, new: Any, *, at: int | None = None, to: int | None = None) -> None:
            if Path(old).name == "a":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().rename(old, new, at=at, to=to)

    engine = start(files=Failing())
    os.mkfifo(tmp_path / "go-a")
    engine.submit(work(makers, "waits", "a", name="a"))
    wait_until((tmp_path / "started-a").exists, 20, "the job to start")
    engine.cancel("a")
    engine.submit(work(makers, "good", "b"))
    assert ended(engine).state == "made"


@pytest.mark.parametrize("maker", ["pipes_outcome", "takes_outcome"])
def test_a_job_cannot_stand_in_the_way_of_its_outcome(
    makers: Path, start: Callable[..., LocalEngine], maker: str
) -> None:
    engine = start()
    engine.submit(work(makers, maker))
    assert ended(engine).state == "made"


def test_a_job_cannot_spoil_the_inputs(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = start()
    engine.submit(work(makers, "deletes_inputs"))
    assert ended(engine).state == "made"
    assert (tmp_path / "a").read_bytes() == b"image a"
    assert (tmp_path / "b").read_bytes() == b"image b"


def test_a_long_log_keeps_its_ends(makers: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start(limits=Limits(log=1000))
    engine.submit(work(makers, "big_log"))
    outcome = ended(engine)
    assert outcome.state == "made"
    assert outcome.log.startswith("xxx")
    assert "bytes left out" in outcome.log
    assert outcome.log.endswith("\nthe end\n")
    assert len(outcome.log) < 1100


def test_modes_that_a_job_took_away(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = start()
    engine.submit(work(makers, "locked"))
    assert [made.name for made in ended(engine).files] == ["sub/out.txt"]
    engine.adopt("j1", tmp_path / "p")
    assert (tmp_path / "p" / "sub" / "out.txt").stat().st_mode & 0o777 == 0o600


def test_so_many_at_a_time_and_in_order(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = start(jobs=2)
    for name in "abc":
        os.mkfifo(tmp_path / f"go-{name}")
        engine.submit(work(makers, "waits", name, name=name))
    wait_until(lambda: (tmp_path / "started-a").exists() and (tmp_path / "started-b").exists(), 20, "two to start")
    assert engine.busy() == (2, 1)
    assert not (tmp_path / "started-c").exists()
    (tmp_path / "go-b").write_text("")
    assert ended(engine).id == "b"
    wait_until((tmp_path / "started-c").exists, 20, "the third to start")
    assert engine.busy() == (2, 0)
    for name in "ac":
        (tmp_path / f"go-{name}").write_text("")
        assert ended(engine).id == name


def test_labs_take_turns(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    """A lab that has ordered a hundred does not keep another from its first."""
    engine = start(jobs=1)
    for name, lab in {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b"}.items():
        os.mkfifo(tmp_path / f"go-{name}")
        engine.submit(dataclasses.replace(work(makers, "waits", name, name=name), lab=lab))
    order = []
    for _ in range(5):
        [job] = wait_until(lambda: [each.name[8:] for each in tmp_path.glob("started-*")], 20, "one to start")
        (tmp_path / f"go-{job}").write_text("")
        (tmp_path / f"started-{job}").unlink()
        order.append(ended(engine).id)
    assert order == ["a1", "b1", "a2", "b2", "a3"]


def test_a_keeper_that_is_killed_takes_its_jobs_along_and_another_follows(
    makers: Path, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    engine = start(jobs=1)
    makers.write_text(makers.read_text() + "\ndef daemon_waits(job):\n    _daemon(); waits(job)\n")
    os.mkfifo(tmp_path / "go-a")
    engine.submit(work(makers, "daemon_waits", "a", name="a"))
    wait_until(lambda: (tmp_path / "started-a").exists() and (tmp_path / "started-a").read_text(), 20, "it to start")
    pids = [int((tmp_path / name).read_text()) for name in ("pid", "started-a")]
    [keeper] = [pid for pid in children(os.getpid()) if b"sorter.engine.keeper" in cmdline(pid)]
    os.kill(keeper, signal.SIGKILL)
    outcome = ended(engine)
    assert (outcome.state, outcome.later) == ("failed", True)
    assert "ended from outside (SIGKILL)" in outcome.why
    wait_until(lambda: all(map(gone, [keeper, *pids])), 10, "all of it to go")
    engine.submit(work(makers, "good", "b"))
    assert ended(engine).state == "made"


@pytest.mark.parametrize(
    ("maker", "limits", "why"),
    [
        ("many_processes", Limits(processes=4), "making text was ended: more than 4 processes"),
        ("much_memory_together", Limits(), "making text was ended: more than 128 MiB of memory"),
        ("many_files_and_waits", Limits(files=5), "making text was ended: it made more than 5 files or "),
    ],
)
def test_all_of_a_job_together_is_limited(
    makers: Path, start: Callable[..., LocalEngine], maker: str, limits: Limits, why: str
) -> None:
    makers.write_text(makers.read_text() + TOGETHER)
    engine = start(limits=limits)
    order = work(makers, maker)
    engine.submit(dataclasses.replace(order, product=dataclasses.replace(order.product, memory=128)))
    outcome = ended(engine)
    assert (outcome.state, outcome.later) == ("failed", False)
    assert why in outcome.why


def test_a_disk_that_fills_up_ends_jobs_for_a_while(makers: Path, start: Callable[..., LocalEngine]) -> None:
    makers.write_text(makers.read_text() + TOGETHER)

    class Roomy(Files):
        def space(self, path: Any) -> os.statvfs_result:
            return os.statvfs_result((4096, 4096, 1 << 50, 1 << 50, 1 << 50, 0, 0, 0, 0, 255))

    engine = start(files=Roomy(), limits=Limits(free=1 << 60))  # there was room when it began
    engine.submit(work(makers, "many_files_and_waits"))
    outcome = ended(engine)
    assert (outcome.state, outcome.later) == ("failed", True)
    assert "the disk has no room left" in outcome.why


def test_on_a_disk_without_room_nothing_is_copied(makers: Path, start: Callable[..., LocalEngine]) -> None:
    class Counting(Files):
        copied = 0

        def copy(self, source: int, target: int) -> None:
            self.copied += 1
            super().copy(source, target)

    files = Counting()
    engine = start(files=files, limits=Limits(free=1 << 60))
    engine.submit(work(makers, "good"))
    outcome = ended(engine)
    assert (outcome.state, outcome.later) == ("failed", True)
    assert "the disk has no room left" in outcome.why
    assert files.copied == 0


def test_a_job_leaves_the_processors_to_others(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    makers.write_text(makers.read_text() + TOGETHER)
    engine = start()
    engine.submit(work(makers, "how_nice"))
    ended(engine)
    engine.adopt("j1", tmp_path / "p")
    assert (tmp_path / "p" / "out").read_text().split() == [str(min(19, os.nice(0) + LAZY)), "1000"]


def test_a_cancelled_job_has_no_outcome(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = start(jobs=1)
    os.mkfifo(tmp_path / "go-a")
    engine.submit(work(makers, "waits", "a", name="a"))
    engine.submit(work(makers, "good", "b"))
    engine.submit(work(makers, "good", "c"))
    wait_until((tmp_path / "started-a").exists, 20, "the job to start")
    with pytest.raises(ValueError, match="there is a job b already"):
        engine.submit(work(makers, "good", "b"))
    with pytest.raises(ValueError, match="there is a job a already"):
        engine.submit(work(makers, "good", "a"))
    engine.cancel("b")
    engine.cancel("a")
    engine.cancel("unknown")
    assert ended(engine).id == "c"
    assert gone(int((tmp_path / "started-a").read_text() or 0))
    engine.cancel("c")
    swept(tmp_path)


def test_a_job_that_is_cancelled_while_it_ends_has_no_outcome_either(makers: Path, tmp_path: Path) -> None:
    heard: list[Outcome] = []

    class Hearing(LocalEngine):
        def _hear(self, keeper: Any) -> None:
            self.cancel("a")  # its end has come, and was not read yet
            super()._hear(keeper)

    engine = Hearing(1, tmp_path / "scratch", Files(), wake=lambda: heard.extend(engine.finished()))
    try:
        engine.submit(work(makers, "good", "a"))
        engine.submit(work(makers, "good", "b"))
        wait_until(lambda: heard and heard[-1].id == "b", 20, "the next job")
        assert [outcome.id for outcome in heard] == ["b"]
    finally:
        engine.stop()


def test_stop_ends_what_runs(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    engine = start()
    os.mkfifo(tmp_path / "go-a")
    engine.submit(work(makers, "waits", "a", name="a"))
    pid = wait_until(lambda: (tmp_path / "started-a").exists() and (tmp_path / "started-a").read_text(), 20, "a start")
    engine.stop()
    assert gone(int(pid))
    assert engine.finished() == []


def test_a_missing_input_is_tried_later(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    (tmp_path / "b").unlink()
    engine = start()
    engine.submit(work(makers, "good"))
    outcome = ended(engine)
    assert (outcome.state, outcome.why, outcome.later) == ("failed", "an input is gone", True)


class Full(Files):
    def copy(self, source: int, target: int) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_tried_later(makers: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start(files=Full())
    engine.submit(work(makers, "good"))
    outcome = ended(engine)
    assert (outcome.why, outcome.later) == ("the job could not be started: No space left on device", True)


class Recorder(Files):
    """Remembers the order of what makes an adoption durable."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def fsync(self, fd: int) -> None:
        self.did.append("fsync " + Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        super().fsync(fd)

    def rename(self, old: Any, new: Any, **more: Any) -> None:
        self.did.append(f"rename {Path(old).name} {Path(new).name}")
        super().rename(old, new, **more)


def test_adoption_is_durable_before_it_is_said(makers: Path, start: Callable[..., LocalEngine], tmp_path: Path) -> None:
    files = Recorder()
    engine = start(files=files)
    engine.submit(work(makers, "good"))
    ended(engine)
    (tmp_path / "products").mkdir()
    files.did.clear()
    engine.adopt("j1", tmp_path / "products" / "text-1")
    assert files.did[:6] == [
        "fsync out.txt", "fsync out_2.bin", "fsync out", "fsync sub", "rename out text-1", "fsync products"
    ]  # fmt: skip


def test_a_file_that_changed_since_is_not_adopted(
    makers: Path, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    engine = start()
    engine.submit(work(makers, "good"))
    ended(engine)
    (tmp_path / "scratch" / "j1" / "out" / "out.txt").write_text("more than there was")
    with pytest.raises(OSError, match="has changed"):
        engine.adopt("j1", tmp_path / "p")
    assert not (tmp_path / "p").exists()
    engine.submit(work(makers, "good"))  # it may be made again under the same id
    ended(engine)
    engine.adopt("j1", tmp_path / "p")
    assert (tmp_path / "p" / "out.txt").read_text() == "a x"


@pytest.mark.parametrize(
    ("job", "product", "name"),
    [("../x", "dicom", "a"), ("", "dicom", "a"), ("j", "../x", "a"), ("j", "dicom", "../a"), ("j", "dicom", "/a"),
     ("j", "dicom", "a//b"), ("j", "dicom", "")],
)  # fmt: skip
def test_names_that_lead_out_are_refused(
    start: Callable[..., LocalEngine], tmp_path: Path, job: str, product: str, name: str
) -> None:
    with pytest.raises(ValueError, match=r"cannot be|no plain"):
        start().submit(Work(job, Product("p", "a:b"), {product: [(tmp_path, name)]}))


HOST = """
import sys, pathlib
from sorter.durable import Files
from sorter.engine.local import LocalEngine
from sorter.engine.work import Work
from sorter.model import Identity, Plan, Product, Revision, UnitKind, Verdict
from sorter.pipeline.units import Live
from sorter.pipeline.workshop import Workshop
from sorter.spool import Spool, Unit
root = pathlib.Path(sys.argv[1])
engine = LocalEngine(2, root / "scratch", Files())
for job, maker in (("a", "waits"), ("b", "daemon_waits")):
    product = Product("text", f"{root / 'makers.py'}:{maker}")
    engine.submit(Work(job, product, {"dicom": []}, {"name": job}))
sys.stdin.read()
"""


def test_a_dead_daemon_leaves_no_process_and_the_next_one_clears_its_scratch(
    makers: Path, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    makers.write_text(makers.read_text() + "\ndef daemon_waits(job):\n    _daemon(); waits(job)\n")
    for name in "ab":
        os.mkfifo(tmp_path / f"go-{name}")
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path)], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: all((tmp_path / f"started-{name}").exists() for name in "ab"), 30, "both to start")
        pids = wait_until(
            lambda: [text for name in ("pid", "started-a", "started-b") if (text := (tmp_path / name).read_text())],
            5, "their process ids",
        )  # fmt: skip
        assert not any(gone(int(pid)) for pid in pids)
    finally:
        host.send_signal(signal.SIGKILL)
        host.communicate()
    wait_until(lambda: all(gone(int(pid)) for pid in pids), 10, "every process of it to go")
    assert sorted(os.listdir(tmp_path / "scratch")) == ["a", "b"]
    start()
    swept(tmp_path)


def test_what_was_to_be_removed_keeps_its_name_from_start_to_start(tmp_path: Path) -> None:
    """Many starts in a row, none of which gets as far as removing it, must not end with a name too long for a disk."""
    left = tmp_path / "scratch" / f".12345678-{'j' * 245}"
    left.mkdir(parents=True)
    engine = LocalEngine(1, tmp_path / "scratch", Files())
    try:
        wait_until(lambda: not left.exists(), 60, "what was left to be removed")
    finally:
        engine.stop()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_scratch_that_cannot_be_removed_keeps_no_outcome_from_the_others(
    makers: Path, start: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    class Failing(Files):
        broken, refused = True, 0

        def rmdir(self, path: Any, *, at: int | None = None) -> None:
            if self.broken and f"{'1' * 32}-" in str(path):
                self.refused += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().rmdir(path, at=at)

    files = Failing()
    spool = Spool(tmp_path / "spool", files)
    spool.create()
    engine = start(files=files)
    workshop = Workshop(spool, engine, lambda _: {})
    lives = []
    for digit in "12":
        unit = Unit(spool, digit * 32)
        spool.files.make_folders(unit.folder)
        revision = Revision(unit.key, UnitKind.SERIES, 1, "", Verdict.QUIET, (), ())
        lives.append(Live(unit, revision=revision, plan=Plan(unit.key, 1, "", Identity(), ())))

    def order() -> dict[str, str]:
        for live in lives:
            workshop.order(live, Product("text", f"{makers}:raises", timeout=20), {"dicom": []})
        found: dict[str, str] = {}
        wait_until(lambda: found.update({key: end.why for key, _, end in workshop.finished()}) or len(found) == 2, 30)
        return found

    assert all("ValueError" in why for why in order().values())
    wait_until(lambda: files.refused, 20, "the first scratch to be swept in vain")
    left = wait_until(lambda: found if len(found := os.listdir(tmp_path / "scratch")) == 1 else None, 20, "the other's")
    assert left[0].endswith(f"-{'1' * 32}-1-text")
    files.broken = False
    assert all("ValueError" in why for why in order().values())  # what was left is in nobody's way
    swept(tmp_path, left)
    engine.stop()
    start()
    swept(tmp_path)
