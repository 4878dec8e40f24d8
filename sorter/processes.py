"""Linux's ways to own a tree of processes: die with the parent, adopt orphans, end everything below."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36

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


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, zombies too."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = Path(f"/proc/{name}/stat").read_text(errors="replace")
                parent = int(text.rpartition(")")[2].split()[1])  # the command name may hold anything
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def end_descendants() -> None:
    """Kill everything below this process and reap it; needs `adopt_orphans`."""
    while _reap_dead():
        for pid in descendants(os.getpid()):
            kill(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


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
    """Processes that carry a job's temporary folder below `folder` in their environment: what a dead one left."""
    mark = b"TMPDIR=" + os.fsencode(folder) + b"/"
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                environment = b"\0" + Path(f"/proc/{name}/environ").read_bytes()
                if b"\0" + mark in environment:
                    found.append(int(name))
    return found
