"""Linux's ways to own a tree of processes: die with the parent, adopt orphans, end everything below."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36

LAZY = 15
"""How much nicer a job is than `sort` (nice(2)): what is computed may wait, a scanner and a delivery may not."""

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def die_with(parent: int, sign: signal.Signals) -> bool:
    """Get `sign` when the thread that started us ends; False if process `parent` is gone already."""
    _prctl(_PR_SET_PDEATHSIG, sign)
    return os.getppid() == parent


def adopt_orphans() -> None:
    """From now on a descendant whose parent dies becomes our child, daemons too."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Lower one of this process's limits (`resource.RLIMIT_…`); one that is lower already stays."""
    hard = soft if hard is None else hard
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))


def children(pid: int) -> list[int]:
    """Processes that `pid` is the parent of, zombies too."""
    return _families().get(pid, [])


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, zombies too."""
    families = _families()
    found: list[int] = []
    todo = [pid]
    while todo:
        below = families.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _families() -> dict[int, list[int]]:
    """The children of each process that has any."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = Path(f"/proc/{name}/stat").read_text(errors="replace")
                parent = int(text.rpartition(")")[2].split()[1])  # the command name may hold anything
                found.setdefault(parent, []).append(int(name))
    return found


def end_descendants() -> None:
    """Kill everything below this process and reap it; needs `adopt_orphans`."""
    while _reap_dead():
        kill_all(lambda: descendants(os.getpid()))
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def kill_all(find: Callable[[], Iterable[int]]) -> None:
    """Kill what `find` finds, all of it stopped first: what forks as fast as it is killed would never be gone."""
    stopped: set[int] = set()
    while fresh := set(find()) - stopped:
        for pid in fresh:
            kill(pid, signal.SIGSTOP)
        stopped |= fresh
    for pid in stopped:
        kill(pid)


def _reap_dead() -> bool:
    """Are there living children left?"""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def end(pids: list[int], patience: float = 5.0) -> None:
    """Kill these processes and wait until they are gone, `patience` seconds at most for each."""
    for pid in pids:
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
            try:
                kill(pid)
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                poll.poll(patience * 1000)
            finally:
                os.close(fd)


def kill(pid: int, sign: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sign)


def started_in(folder: Path) -> list[int]:
    """What a dead one left: processes whose working folder, or $TMPDIR in their environment, is below `folder`."""
    below = os.fsencode(folder) + b"/"
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                environment = b"\0" + Path(f"/proc/{name}/environ").read_bytes()
                where = os.readlink(os.fsencode(f"/proc/{name}/cwd")) + b"/"
                if b"\0TMPDIR=" + below in environment or where.startswith(below):
                    found.append(int(name))
    return found


def name_of(sign: int) -> str:
    """What a signal is called; those of real time have numbers alone, and any process may send them."""
    try:
        return signal.Signals(sign).name
    except ValueError:
        return f"signal {sign}"


def tasks_of_account() -> int:
    """Threads of all processes of this account: what RLIMIT_NPROC counts."""
    account, count = os.getuid(), 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if os.stat(f"/proc/{name}").st_uid == account:
                    text = Path(f"/proc/{name}/stat").read_text(errors="replace")
                    count += int(text.rpartition(")")[2].split()[17])
    return count


def take_more_memory(pids: list[int], limit: int, patience: float = 0.25) -> bool:
    """Do these processes together hold more than `limit` bytes that no file stands behind?

    What several share since a fork counts once. To know that, the kernel waits for locks of the processes, which those
    that fork all the time hold all the time: after `patience` seconds the rest is left for another look.
    """
    if sum(map(_resident, pids)) <= limit:
        return False
    found, end = 0, time.monotonic() + patience
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found += next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Anon:")), 0)
        if found > limit or time.monotonic() > end:
            break
    return found > limit


def _resident(pid: int) -> int:
    """Bytes, what is shared with others too; 0 when it is gone."""
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def yield_to_others() -> None:
    """This process, and all that come of it, take what others leave of the processors, and are the first to go when
    memory runs out.
    """
    os.nice(LAZY)
    for path, text in (("/proc/self/oom_score_adj", b"1000"), ("/proc/self/autogroup", b"%d" % LAZY)):
        with contextlib.suppress(OSError):  # a kernel without it, or one that allows it to root alone
            fd = os.open(path, os.O_WRONLY)
            try:
                os.write(fd, text)
            finally:
                os.close(fd)
