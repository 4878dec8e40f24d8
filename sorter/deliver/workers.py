"""Where a lane's worker comes from: a process of our own, or one of the account that the lab's files shall belong to.

Three ways. Under our own account a worker is simply started. Root starts it as the account. Nobody else may, so there
the account's *keeper* (`sorter.deliver.keeper`, started by systemd) comes to a unix socket and waits; the first frame
on its connection makes it start a worker there. The kernel says on both sides whose process the other one is
(SO_PEERCRED), and images go as read-only descriptors: the account may read nothing of the spool.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sorter.durable import Files
from sorter.errors import Away
from sorter.wire import Channel

GRACE = 5.0
"""Seconds for a process to end after its socket was closed, or after SIGKILL."""

_PATIENCE = 5.0  # seconds for a keeper to come back after it has just handed a connection over
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of socket(7)


class Worker:
    """A process that serves one target, and this side's end of its socket."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.heard = False  # anything about the job at hand
        self.waits = False  # its target, for something that comes between two jobs
        self.mend = ""  # the command by which a person ends it, where nothing else does

    @property
    def pid(self) -> int | None:
        """Of the process, where it is ours."""
        return None

    def kill(self) -> None:
        """End it now, from any thread."""
        raise NotImplementedError

    def end(self, *, kill: bool = False) -> str | None:
        """End it, after what it is doing unless `kill`; how it went, for people, or None where it is still there."""
        raise NotImplementedError

    def gone(self) -> bool:
        """Has a process that could not be ended ended at last?"""
        raise NotImplementedError


class Workers(Protocol):
    """What starts them, for one lane."""

    def start(self, silence: float) -> Worker:
        """A new one; `silence` is its channel's timeout in seconds. Away where none can be had now."""
        ...

    def problem(self) -> str:
        """Why none can be had now, for people; "" where nothing is known to be wrong."""
        ...

    def came(self) -> bool:
        """Can one be had now that could not when `start` was last called?"""
        ...

    def close(self) -> None: ...


def peer_uid(connected: socket.socket) -> int:
    """Whose process is at the other end: of a connection, or of a listening socket when it began to listen."""
    _, uid, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def near(folder: int, name: str) -> str:
    """The path of a socket in this open folder: however deep that lies, a socket's own path has 108 bytes. (unix(7))"""
    return f"/proc/self/fd/{folder}/{name}"


def may_start(account: str) -> bool:
    """May this process start another as this account?"""
    return not account or os.geteuid() == 0 or _is_ours(account)


def workers_of(target: str, account: str, sockets: Path, files: Files) -> Workers:
    """Those of a target whose files shall belong to `account`; "" for our own."""
    return Started(account) if may_start(account) else Awaited(target, account, sockets, files)


def _is_ours(account: str) -> bool:
    try:
        return pwd.getpwnam(account).pw_uid == os.geteuid()
    except KeyError:
        return False


def _no_account(account: str) -> str:
    return f"there is no account {account!r} on this machine; make it, or give the lab another user"


# --- processes of our own -------------------------------------------------------------------------------------------


class Started:
    """Started here, as `account` where we are root and it is another."""

    def __init__(self, account: str = "") -> None:
        self._account = account

    def start(self, silence: float) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, contextlib.ExitStack() as failed:
            failed.callback(ours.close)
            try:
                process = start_worker(theirs, **self._identity())
            except OSError as error:
                who = f"account {self._account}" if self._account else "this account"
                raise Away(f"{who} cannot start a worker with {sys.executable}: {error.strerror}") from None
            failed.pop_all()
            return _Child(process, Channel(ours, silence))

    def _identity(self) -> Mapping[str, Any]:
        if not self._account:
            return {}
        try:
            entry = pwd.getpwnam(self._account)
        except KeyError:
            raise Away(_no_account(self._account)) from None
        if entry.pw_uid == os.geteuid():
            return {}
        groups = os.getgrouplist(self._account, entry.pw_gid)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}

    def problem(self) -> str:
        return ""

    def came(self) -> bool:
        return False

    def close(self) -> None:
        pass


def start_worker(theirs: socket.socket, **identity: Any) -> subprocess.Popen[bytes]:
    """A worker that serves at this end of a connection; `identity` as Popen takes it."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sorter.deliver.worker", "--fd", str(theirs.fileno())],
        pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/", umask=0o022,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,  # a library's words may name a patient
        **identity,
    )  # fmt: skip


class _Child(Worker):
    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        super().__init__(channel)
        self._process = process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGKILL)

    def end(self, *, kill: bool = False) -> str | None:
        self.channel.close()
        for force in (kill, True):
            if force:
                self.kill()
            try:
                code = self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
            return f"by signal {-code}" if code < 0 else f"with status {code}"
        return None

    def gone(self) -> bool:
        return self._process.poll() is not None


# --- processes of another account -----------------------------------------------------------------------------------


class Awaited:
    """Those that the account's keeper starts, whom nobody but itself may end: it does when its connection is closed.

    A connection that came is kept in hand, so that it is known whether the keeper is there.
    """

    def __init__(self, target: str, account: str, sockets: Path, files: Files) -> None:
        self._target, self._account = target, account
        self._changing = threading.Lock()
        self._in_hand: socket.socket | None = None
        self._missed = False  # when one was last asked for; then the next who asks need not wait either
        self._awaited = False  # since one was missed, and until somebody is told that one came
        self._turned_away = ""
        self._listening, self._why = self._listen(sockets / account, files)

    def _listen(self, folder: Path, files: Files) -> tuple[socket.socket | None, str]:
        listening, path = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), folder / self._target
        try:
            for each in (folder.parent, folder):
                if not files.exists(each):
                    files.make_folders(each)
                    files.chmod(each, 0o755)
            with contextlib.suppress(FileNotFoundError):
                files.unlink(path)
            with files.opened(folder, os.O_PATH | os.O_DIRECTORY) as at:
                listening.bind(near(at, self._target))
            files.chmod(path, 0o666)  # who may is asked of the kernel, at each connection
            listening.listen(4)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            return None, f"the socket for the worker of {self._target} cannot be made: {error.strerror or error}"
        return listening, ""

    def start(self, silence: float) -> Worker:
        found = self._take(_PATIENCE if not self._missed else 0.0)
        self._missed = found is None
        if found is None:
            self._awaited = True
            raise Away(self._why_not())
        return _Visitor(found, silence, f"systemctl restart sorter-worker@{self._account}")

    def problem(self) -> str:
        with self._changing:
            return "" if self._look() else self._why_not()

    def _why_not(self) -> str:
        if self._why:
            return self._why
        if self._uid() is None:
            return _no_account(self._account)
        said = f"the worker of {self._target}, to be run as {self._account}, has not come"
        if self._turned_away:
            return f"{said}: {self._turned_away}"
        return f"{said}; systemctl start sorter-worker@{self._account}"

    def came(self) -> bool:
        if not self._awaited:
            return False
        with self._changing:
            here = not self._missed or self._look()
        if here:
            self._awaited = self._missed = False
        return here

    def close(self) -> None:
        with self._changing:
            for each in (self._listening, self._in_hand):
                if each is not None:
                    each.close()
            self._listening = self._in_hand = None

    def _take(self, patience: float) -> socket.socket | None:
        """The connection in hand; a keeper that has just given one away is waited for."""
        for wait in (0.0, patience):
            if wait and self._listening is not None:
                coming = select.poll()
                coming.register(self._listening, select.POLLIN)
                coming.poll(wait * 1000)
            with self._changing:
                if self._look():
                    found, self._in_hand = self._in_hand, None
                    return found
        return None

    def _look(self) -> bool:
        """Is a keeper there? Those that have gone, or are another account's, are dropped on the way."""
        while self._in_hand is None or _has_gone(self._in_hand):
            if self._in_hand is not None:
                self._in_hand.close()
            self._in_hand = self._accept()
            if self._in_hand is None:
                return False
        return True

    def _accept(self) -> socket.socket | None:
        while self._listening is not None:
            try:
                connected, _ = self._listening.accept()
            except OSError:  # nobody waits, or he has just gone
                return None
            uid = peer_uid(connected)
            if uid == self._uid():
                self._turned_away = ""
                return connected
            connected.close()
            self._turned_away = f"one came as account {uid} instead and was turned away"
        return None

    def _uid(self) -> int | None:
        try:
            return pwd.getpwnam(self._account).pw_uid
        except KeyError:
            return None


def _has_gone(connected: socket.socket) -> bool:
    """A keeper says nothing before it is spoken to: what can be read is its end, or nonsense."""
    looking = select.poll()
    looking.register(connected, select.POLLIN | select.POLLRDHUP)
    return bool(looking.poll(0))


_GLANCE = 0.1  # seconds in which what was said already is read


class _Visitor(Worker):
    def __init__(self, connected: socket.socket, silence: float, mend: str) -> None:
        super().__init__(Channel(connected, silence))
        self._socket, self.mend = connected, mend

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def end(self, *, kill: bool = False) -> str | None:  # noqa: ARG002  nobody but itself may end it
        """It ends itself when this side says no more; its side is closed when the last of its threads is gone."""
        self.kill()
        return "when its connection was closed" if self._ended(2 * GRACE) else None

    def gone(self) -> bool:
        return self._ended(0.0)

    def _ended(self, patience: float) -> bool:
        """What it still says is of no interest, however long it goes on."""
        until = time.monotonic() + patience
        try:
            while True:
                self._socket.settimeout(max(0.0, until - time.monotonic()))
                if not self._socket.recv(1 << 16):
                    break
                if time.monotonic() > until + _GLANCE:
                    return False
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            pass
        self._socket.close()
        return True
