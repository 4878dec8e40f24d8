"""A tree of [[watch]], followed by its worker process: what stays, what is remembered, and a share that is away."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sorter.durable import Files
from sorter.spool import Spool
from sorter.testing.waiting import wait_until
from sorter.watch import Lookout, Ready, Watched
from sorter.watch.worker import Beating, Orders, Worker


class Post:
    """A spool, a tree besides it, and lookouts on it."""

    def __init__(self, root: Path) -> None:
        self.spool = Spool(root / "spool", Files())
        self.spool.create()
        self.tree = root / "tree"
        self.tree.mkdir()
        self.lookout: Lookout | None = None
        self.strange: dict[str, str] = {}
        self.whole: list[str] = []

    def follow(self, *, stays: bool = True, polling: bool = False) -> Lookout:
        self.stop()
        self.lookout = Lookout(Watched(self.tree, stays, polling), self.spool, threading.Event().set)
        return self.lookout

    def stop(self) -> None:
        if self.lookout is not None:
            self.lookout.stop()

    def look(self) -> list[Ready]:
        assert self.lookout is not None
        look = self.lookout.look(time.monotonic())
        self.strange.update(look.strange)
        self.whole += look.whole
        return list(look.ready)

    def take(self, count: int) -> dict[str, bytes]:
        """The content of the next files that are ready; each is answered for as taken."""
        found: dict[str, bytes] = {}

        def enough() -> bool:
            for ready in self.look():
                assert self.lookout is not None
                fd = self.lookout.open(ready)
                found[ready.path] = os.read(fd, 1 << 20)
                os.close(fd)
                self.lookout.gone(ready)
            return len(found) >= count

        wait_until(enough, 20.0, f"{count} files to be ready")
        return found

    def problem(self, words: str) -> str:
        def said() -> str | None:
            self.look()
            assert self.lookout is not None
            return next((each for each in self.lookout.problems() if words in each), None)

        return wait_until(said, 20.0, f"a problem with the words {words!r}")


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    made = Post(tmp_path)
    yield made
    made.stop()


def test_what_stays_is_remembered_over_restarts_and_taken_again_when_it_changed(post: Post) -> None:
    (post.tree / "a").mkdir()
    for number in range(3):
        (post.tree / "a" / f"{number}").write_bytes(b"%d" % number)
    post.follow()
    assert post.take(3) == {"a/0": b"0", "a/1": b"1", "a/2": b"2"}
    wait_until(lambda: post.look() or sum(each.stat().st_size for each in post.spool.left.iterdir()) == 48)
    assert list(post.spool.taking.iterdir()) == []
    post.follow()
    (post.tree / "a" / "1").write_bytes(b"changed")
    (post.tree / "b").write_bytes(b"new")
    assert post.take(2) == {"a/1": b"changed", "b": b"new"}
    assert sorted(each.name for each in (post.tree / "a").iterdir()) == ["0", "1", "2"]


def test_what_is_moved_is_removed_when_it_is_safe_and_not_before(post: Post) -> None:
    (post.tree / "a").write_bytes(b"1")
    lookout = post.follow(stays=False)
    [ready] = wait_until(post.look, 20.0)
    assert ready.copy is not None
    assert (ready.copy.read_bytes(), ready.uid, ready.drop) == (b"1", os.getuid(), f"{post.tree}/a")
    assert (post.tree / "a").exists()
    lookout.gone(ready)
    wait_until(lambda: post.look() or not (post.tree / "a").exists())
    assert not ready.copy.exists()


def test_a_tree_that_is_away_is_said_and_found_again_with_what_was_taken(post: Post) -> None:
    post.follow(polling=True)
    (post.tree / "a").write_bytes(b"1")
    post.take(1)
    wait_until(lambda: post.look() or any(each.stat().st_size for each in post.spool.left.iterdir()))
    away = post.tree.with_name("away")
    post.tree.rename(away)
    assert post.problem("is not there") == f"{post.tree} is not there; it is waited for"
    (away / "b").write_bytes(b"2")
    away.rename(post.tree)
    assert post.take(1) == {"b": b"2"}
    assert post.lookout is not None
    assert post.lookout.problems() == []


def test_a_worker_that_hangs_is_said_and_holds_up_nobody(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sorter.watch.lookout.SILENT", 2.5)
    lookout = post.follow()
    (post.tree / "a").write_bytes(b"1")
    [ready] = wait_until(post.look, 20.0)
    assert lookout._process is not None
    os.kill(lookout._process.pid, signal.SIGSTOP)  # as in a system call of a mount that hangs
    begun = time.monotonic()
    for _ in range(10_000):
        lookout.not_yet(ready)  # more than its pipe holds
        lookout.look(time.monotonic())
    assert time.monotonic() - begun < 5
    assert "hangs" in post.problem("does not answer")
    os.kill(lookout._process.pid, signal.SIGCONT)
    wait_until(lambda: post.look() or not lookout.problems(), 20.0)


def test_a_worker_that_is_killed_is_replaced_and_offers_anew(post: Post) -> None:
    lookout = post.follow()
    (post.tree / "a").write_bytes(b"1")
    [first] = wait_until(post.look, 20.0)
    assert lookout._process is not None
    killed = lookout._process.pid
    (post.spool.taking / f"{killed}-ffffffff").write_bytes(b"it had no time to tell of this copy")
    os.kill(killed, signal.SIGKILL)
    [again] = wait_until(post.look, 20.0)
    assert (again.path, again.copy == first.copy) == ("a", False)
    lookout.gone(first)
    lookout.gone(again)
    assert list(post.spool.taking.iterdir()) == []


@pytest.mark.parametrize("stays", [False, True], ids=["moved", "copied"])
def test_what_became_of_a_file_says_nothing_of_what_it_changed_to(post: Post, stays: bool) -> None:
    """A new worker offers it anew while the first offer waits; that is taken, and for the other the disk is full."""
    lookout = post.follow(stays=stays)
    (post.tree / "a").write_bytes(b"first")
    [first] = wait_until(post.look, 20.0)
    assert lookout._process is not None
    os.kill(lookout._process.pid, signal.SIGKILL)
    (post.tree / "a").write_bytes(b"second")
    [second] = wait_until(post.look, 20.0)
    lookout.gone(first)
    lookout.again(second)
    assert post.take(1) == {"a": b"second"}


def test_a_worker_that_speaks_nonsense_is_replaced(post: Post) -> None:
    lookout = post.follow()
    (post.tree / "a").write_bytes(b"1")
    [first] = wait_until(post.look, 20.0)
    assert lookout._process is not None
    spoke = lookout._process.pid
    Path(f"/proc/{spoke}/fd/1").write_bytes(
        b"Traceback (most recent call last):\n"
    )  # into the pipe that it tells through
    assert "spoke nonsense" in post.problem(str(post.tree))
    [again] = wait_until(post.look, 20.0)
    assert lookout._process is not None
    assert lookout._process.pid != spoke
    assert not lookout.problems()
    lookout.gone(first)
    lookout.gone(again)


def test_what_is_nonsense(post: Post) -> None:
    lookout = Lookout(Watched(post.tree), post.spool, threading.Event().set)
    assert lookout._take_note(b"{}")
    assert lookout._take_note(b'{"ready": []}')
    assert not any(map(lookout._take_note, (b"", b"[1, 2]", b"\xff", b"[" * 99_999, b'{"ready": ')))


def test_a_tree_that_leads_into_the_spool_is_not_looked_into(post: Post) -> None:
    """What lies in the store would be taken as a resend, and removed there."""
    (post.spool.store / "image").write_bytes(b"1")
    post.tree.rmdir()
    post.tree.symlink_to(post.spool.store)
    post.follow(stays=False)
    assert "leads into" in post.problem("not looked into")
    assert post.look() == []


def test_no_worker_outlives_the_lookout(post: Post) -> None:
    lookout = post.follow()
    wait_until(lambda: post.look() or lookout._process)
    assert lookout._process is not None
    process = lookout._process
    lookout.stop()
    assert process.returncode is not None


def test_a_tree_that_nobody_may_write_to_is_read(post: Post) -> None:
    (post.tree / "a").write_bytes(b"1")
    (post.tree / "a").chmod(0o444)
    post.tree.chmod(0o555)
    post.follow()
    assert post.take(1) == {"a": b"1"}
    assert post.strange == {}
    post.tree.chmod(0o755)


class Ill(Beating):
    """A share of which one file cannot be read to its end; what the worker says is kept."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def say(self, message: dict[str, Any]) -> None:
        pass

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == self.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(fd, size, offset)


def test_what_cannot_be_read_to_its_end_is_said_and_stops_no_other(post: Post) -> None:
    for name in ("a", "b"):
        (post.tree / name).write_bytes(b"1")
    told = {"folder": str(post.tree), "stays": True, "polling": True, "apart": [], "taking": str(post.spool.taking)}
    worker = Worker({**told, "left": str(post.spool.left / "x")}, Orders(), Ill("a"))
    found, strange = [], []
    for now in range(10, 60, 3):
        message, _ = worker._look(float(now))
        found += [ready.path for ready, _ in worker._copy_batch()]
        strange += message["strange"]
    assert found == ["b"]
    assert strange == [("a", "it cannot be read: Input/output error")]
    assert len(list(post.spool.taking.iterdir())) == 1


def test_what_a_dead_worker_told_is_not_lost_where_no_other_can_be_started(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookout = post.follow()
    (post.tree / "a").write_bytes(b"1")
    post.look()
    wait_until(lambda: any(each.get("ready") for each in lookout._told), 20.0)
    assert lookout._process is not None
    lookout._process.kill()
    lookout._process.wait()
    lookout._started -= 60  # it did not end early: another follows at once
    with monkeypatch.context() as patch:
        patch.setattr("sorter.watch.lookout.sys.executable", str(post.tree / "nothing"))
        [ready] = post.look()
        assert post.look() == []
        says = f"{post.tree}: the process that follows it cannot be started now: No such file or directory"
        assert lookout.problems() == [says]
    lookout.gone(ready)
    assert list(post.spool.taking.iterdir()) == []
    assert post.take(1) == {"a": b"1"}, "the worker that follows never heard what became of it"
    assert lookout.problems() == []


def test_a_copy_that_a_bad_disk_keeps_keeps_nobody_from_hearing_what_became_of_the_file(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was taken with it would not be told either, and wait in the store until something else comes."""
    (post.tree / "a").write_bytes(b"1")
    lookout = post.follow(stays=False)
    [ready] = wait_until(post.look, 20.0)

    def ill(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Files, "unlink", ill)
        lookout.gone(ready)
    wait_until(lambda: post.look() or not (post.tree / "a").exists())
    assert ready.copy is not None
    assert ready.copy.exists()
    post.spool.clear_temporary()
    assert not ready.copy.exists()
