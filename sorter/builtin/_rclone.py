"""A remote of rclone (rclone.org), which speaks to SFTP, S3, WebDAV and others, and what is done below it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from sorter.builtin._path_folders import MARKER
from sorter.builtin._rclone_process import Process
from sorter.durable import Files
from sorter.errors import Away, Held, SorterError, TryLater

_STEP = 1 << 18
_MOST_ANSWER = 64 << 20  # bytes; of a folder's listing, say
_SEND = 300.0  # seconds for one file, and
_SLOWEST = 50_000  # bytes a second on top of it
_ANSWER = 240.0  # seconds for one answer; less than the patience with a worker
_AT_ONCE = 4  # files under way

_MISSING = re.compile(r"(file|object|directory) not found", re.IGNORECASE)
"""Status 404 alone says less: it comes, too, of what is there and cannot be opened, as while its server goes away."""

_SAYS: tuple[tuple[str, type[SorterError], str], ...] = (
    (
        r"no space left|disk full|insufficient storage|\b507\b|quota|not enough space|storagefull",
        Away,
        "is full, or over its quota; make room there and delivery goes on by itself",
    ),
    (
        r"didn't find section in config|failed to load config|unknown type|couldn't decrypt",
        Held,
        "cannot be used as rclone's configuration file describes it; try `rclone --config FILE lsd REMOTE:`",
    ),
    (
        r"ssh_fx_failure|sftp: .?failure",
        Away,
        "fails and says no more, as SFTP servers do that are full, or over a quota; delivery goes on by itself",
    ),
    (
        r"knownhosts",
        Away,
        "is not the server that its known_hosts_file names, or is not listed there; see why before you change it",
    ),
    (
        r"handshake failed: (read|write|\beof\b|.*(timeout|timed out))",
        Away,
        "does not answer; delivery goes on by itself when it does",
    ),
    (
        r"unable to authenticate|handshake failed|\b401\b|unauthorized|invalidaccesskey|signaturedoesnot",
        Away,
        "does not let sorter in; look at the account, or the key, in rclone's configuration file",
    ),
    (
        r"^not found\s*$",
        TryLater,
        "lists a file that it does not give back; it is tried again, but see whether sorter may read what lies there",
    ),
    (
        r"permission denied|\b403\b|forbidden|access ?denied|read-only file system",
        TryLater,
        "does not let sorter write; give its account there the right to",
    ),
    (
        r"connection|connect:|dial tcp|no such host|timeout|timed out|unreachable|broken pipe|\beof\b|\b50[234]\b",
        Away,
        "does not answer; delivery goes on by itself when it does",
    ),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of a name. `changed` in seconds since 1970, as far as the remote knows it."""

    size: int
    changed: float
    is_folder: bool


class Failed(Exception):
    """What rclone answered instead of success; its text may name files, so it is for no one to read but `spoken`."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(status)

    @property
    def is_missing(self) -> bool:
        """Is what was asked for not there?"""
        return _MISSING.search(self.text) is not None


class Remote:
    """One remote, "NAME:PATH" as in rclone's configuration file, and what is done below it. Paths are relative to it.

    Every method raises `Failed` for what rclone says, and `Away` where rclone itself is at fault. Other threads may
    call them too, while the one that made this waits for them.
    """

    def __init__(self, remote: str, config: str, files: Files) -> None:
        self.name = remote
        self._config, self._files = config, files
        self._process: Process | None = None
        self._idle: http.client.HTTPConnection | None = None
        self._beginning, self._thread = threading.Lock(), threading.get_ident()
        self._features: Mapping[str, Any] | None = None
        self._folds: bool | None = None

    # --- what is asked ------------------------------------------------------------------------------------------

    def has(self, feature: str) -> bool:
        """Of the remote's kind, as rclone knows it: "Move", "PutStream", "CaseInsensitive" …"""
        if self._features is None:
            self._features = self._ask("operations/fsinfo", {"fs": self.name}).get("Features", {})
        return self._features.get(feature) is True

    def folds(self) -> bool:
        """Does it take `A` and `a` for one name? Kinds of remotes say so, but no protocol says it of a server's disk:
        that is seen, for the marker has a name to try with."""
        if self._folds is None:
            self._folds = self.has("CaseInsensitive") or "id" in self.listed(MARKER.upper())
        return self._folds

    def described(self) -> Mapping[str, Any]:
        """How rclone's configuration file has it, secrets and all."""
        return self._ask("config/get", {"name": self.name.partition(":")[0]})

    def listed(self, folder: str) -> dict[str, Entry]:
        """What is in a folder, by name; empty where there is none."""
        try:
            found = self._ask("operations/list", {"fs": self.name, "remote": folder})
        except Failed as error:
            if error.is_missing:
                return {}
            raise
        entries = found["list"] or ()
        return {each["Name"]: Entry(each["Size"], _seconds(each["ModTime"]), each["IsDir"] is True) for each in entries}

    def move(self, old: str, new: str) -> None:
        """One file; what has the new name is replaced."""
        there = {"srcFs": self.name, "dstFs": self.name}
        self._ask("operations/movefile", {**there, "srcRemote": old, "dstRemote": new})

    def delete(self, path: str) -> None:
        self._ask("operations/deletefile", {"fs": self.name, "remote": path})

    def make_folder(self, folder: str) -> None:
        self._ask("operations/mkdir", {"fs": self.name, "remote": folder})

    def remove_folder(self, folder: str) -> bool:
        """If it is empty; was it?"""
        try:
            self._ask("operations/rmdir", {"fs": self.name, "remote": folder})
        except Failed:
            return False
        return True

    def purge(self, folder: str) -> None:
        """A folder with all that is in it, if it is there."""
        try:
            self._ask("operations/purge", {"fs": self.name, "remote": folder})
        except Failed as error:
            if "not found" not in error.text.lower():  # each kind of remote has words of its own for it
                raise

    # --- contents -----------------------------------------------------------------------------------------------

    def send(self, fd: int, path: str, size: int) -> None:
        """Write what a descriptor of this process is open for to a file; what has that name is replaced.

        rclone opens it anew, by its number: so it knows the size, and needs no copy of its own.
        """
        ours = {"type": "local", "_root": f"/proc/{os.getpid()}/fd", "copy_links": "true"}
        job = self._ask(
            "operations/copyfile",
            {"srcFs": ours, "srcRemote": str(fd), "dstFs": self.name, "dstRemote": path, "_async": True},
        )
        until, pause = time.monotonic() + _SEND + size / _SLOWEST, 0.002
        while time.monotonic() < until:
            found = self._ask("job/status", {"jobid": job.get("jobid")})
            if found.get("finished"):
                if found.get("success") is not True:
                    raise Failed(500, str(found.get("error", "")))
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        raise Away(f"{self.name} takes too long for a file; delivery goes on by itself when it is faster")

    def write(self, path: str, content: bytes) -> None:
        """Write a small file."""
        fd = os.memfd_create("sorter")
        try:
            self._files.write_all(fd, content)
            self.send(fd, path, len(content))
        finally:
            self._files.close(fd)

    def read(self, path: str) -> Iterator[bytes]:
        """A file's content, piece by piece, to its end; Failed, `is_missing`, where there is none."""
        with self._connected() as (connection, headers):
            connection.request("GET", quote(f"/[{self.name}]/{path}", safe="/"), headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Failed(response.status, response.read(_STEP).decode(errors="replace"))
            while piece := response.read(_STEP):
                self._files.beat()
                yield piece
            if response.length:  # it ended before its end, which read() does not mind
                raise http.client.IncompleteRead(b"", response.length)

    def digest(self, path: str) -> str | None:
        """SHA-256, in hex, of what is really there; None where nothing is."""
        found = hashlib.sha256()
        try:
            for piece in self.read(path):
                found.update(piece)
        except Failed as error:
            if error.is_missing:
                return None
            raise
        return found.hexdigest()

    # --- the process, and the connections to it -----------------------------------------------------------------

    def _ask(self, what: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        self._files.beat()
        with self._connected() as (connection, headers):
            headers = {**headers, "Content-Type": "application/json"}
            connection.request("POST", f"/{what}", json.dumps(parameters), headers)
            return _answered(connection.getresponse())

    def _running(self) -> Process:
        with self._beginning:
            if self._process is None or not self._process.runs:
                if threading.get_ident() != self._thread:  # with which it would end
                    raise Away(f"rclone ended while it worked for {self.name}; it is begun anew")
                self._process = Process(self._config)
            return self._process

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[http.client.HTTPConnection, Mapping[str, str]]]:
        """A connection, and what every request on it says. Kept for the next is one alone, and only after a whole
        answer: half of one may be left in it."""
        process = self._running()
        with self._beginning:
            connection, self._idle = self._idle, None
        if connection is None or connection.port != process.port:
            if connection is not None:
                connection.close()
            connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=_ANSWER)
        whole = False
        try:
            yield connection, {"Authorization": process.authorization}
            whole = True
        except Failed:
            whole = True
            raise
        except TimeoutError:
            process.end()  # with what it still waits for
            raise Away(f"rclone itself did not answer for {self.name}; it is begun anew") from None
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"rclone broke off at {self.name} ({type(error).__name__}); it is tried again") from None
        finally:
            with self._beginning:
                if whole and self._idle is None:
                    self._idle, connection = connection, None
            if connection is not None:
                connection.close()


_Item = TypeVar("_Item")


def at_once(work: Callable[[_Item], object], items: Iterable[_Item]) -> None:
    """`work` for each, some at a time in threads; `items` are taken as they are needed. The first error is raised, once
    all that was begun has ended."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        under_way: deque[Future[object]] = deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > _AT_ONCE:
                under_way.popleft().result()
        while under_way:
            under_way.popleft().result()


def _answered(response: http.client.HTTPResponse) -> dict[str, Any]:
    body = response.read(_MOST_ANSWER)
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise http.client.HTTPException("no JSON") from None
    if response.status != 200 or not isinstance(found, dict):
        raise Failed(response.status, str(found.get("error", "")) if isinstance(found, dict) else "")
    return found


def _seconds(moment: str) -> float:
    """Of an RFC 3339 time, with up to nine digits of a second; 0 where it is none."""
    try:
        return datetime.datetime.fromisoformat(re.sub(r"\.\d+", "", moment)).timestamp()
    except ValueError:
        return 0.0


def spoken(remote: str, error: Failed) -> SorterError:
    """The sentence for what rclone answered: TryLater, Away or Held."""
    for pattern, kind, says in _SAYS:
        if re.search(pattern, error.text.lower()):
            return kind(f"{remote} {says}")
    return TryLater(f"rclone could not do at {remote} what it was asked for (status {error.status}); it is tried again")
