"""The process that touches one target, so that a mount that hangs, fills or lies can hurt nothing else.

    python -m sorter.deliver.worker --fd N      a connection to `sort`, inherited from it, or from a keeper

It is given everything over that socket: first the target's name, code and settings, then one job after another. It
looks at the target first and asks only for the files that are really needed; they come as read-only descriptors. It
stays small (neither pydantic nor pydicom is imported) and ends when the other side has gone.

Instead of a target it may be given an interpreter: then this process becomes that of the lab's own plugins
(`sorter.plugins.host`), on the same connection.

Frames to it:     {target, code, settings} or {python} · {do: put|verify|remove|check|lab|copy, job} · {files: [n …]} ·
                  {cannot, held}
                  {do: fetch, job, names}, with a descriptor to write to for each name
Frames from it:   {ready} · {need: [n …]} · {alive} · {done} · {later, away} · {refused};
                  the last three may say {waits}
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from sorter.deliver.target import Copies, Fetched, Giving, LabFolder, LabLook, Put, Target
from sorter.durable import Buffer, Files, PathLike
from sorter.errors import Away, Held, Never, SorterError, TryLater
from sorter.model import Receipt, build, plain
from sorter.wire import MOST_DESCRIPTORS, Channel, WireError, close_all

BATCH = 64
"""Descriptors asked for at once: many enough to save messages, few enough for several workers below 1,024."""

_BEAT = 2.0  # seconds between two signs of life
_LEFT = 4.0  # seconds to end properly, once the other side has gone


class Beating(Files):
    """Files that tell `sort` of progress: a large copy, or a search of many folders on a slow share, is told apart from
    a mount that hangs."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._last = channel, time.monotonic()

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._last >= _BEAT:
            self._last = now
            self._channel.send({"alive": True})

    def open(self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        self.beat()
        return super().open(path, flags, mode, at=at)

    def stat(self, path: PathLike | int, *, at: int | None = None) -> os.stat_result:
        self.beat()
        return super().stat(path, at=at)

    def write(self, fd: int, data: Buffer) -> int:
        self.beat()
        return super().write(fd, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self.beat()
        return super().pread(fd, size, offset)

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.beat()


class Pulled:
    """A put's files, fetched from `sort` when the target asks: one, or what it said it will need, a batch at a time."""

    def __init__(self, channel: Channel, count: int) -> None:
        self._channel, self._count = channel, count
        self._ahead: deque[int] = deque()
        self._waiting: dict[int, int] = {}
        self._given: int | None = None

    def will_need(self, indices: Sequence[int]) -> None:
        self._ahead = deque(indices)

    def __call__(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise ValueError(f"a put of {self._count} files has no number {index}")
        self._release()
        if index not in self._waiting:
            self._fetch(index)
        self._given = self._waiting.pop(index)
        return self._given

    def close(self) -> None:
        self._release()
        while self._waiting:
            os.close(self._waiting.popitem()[1])

    def _release(self) -> None:
        if self._given is not None:
            os.close(self._given)
            self._given = None

    def _fetch(self, index: int) -> None:
        while self._ahead and self._ahead[0] in {index, *self._waiting}:
            self._ahead.popleft()
        asked = [index]
        while self._ahead and len(asked) + len(self._waiting) < BATCH:
            asked.append(self._ahead.popleft())
        self._channel.send({"need": asked})
        answer, descriptors = self._channel.receive(MOST_DESCRIPTORS)
        if "cannot" in answer:
            raise (Held if answer.get("held") else TryLater)(str(answer["cannot"]))
        if answer.get("files") != asked or len(descriptors) != len(asked):
            for descriptor in descriptors:
                os.close(descriptor)
            raise WireError("other files came than were asked for")
        self._waiting.update(zip(asked, descriptors, strict=True))


def serve(channel: Channel) -> None:
    """Load the target, then do one job after another until the other side has gone."""
    hello, _ = channel.receive()
    if "python" in hello:
        _become_host(channel, str(hello["python"]))
        return
    try:
        target = load(str(hello["code"]), hello["settings"], Beating(channel))
    except Exception as error:  # noqa: BLE001 - a target's own code
        channel.send(_failure(error))
        return
    channel.send({"ready": True})
    while True:
        message, descriptors = channel.receive(MOST_DESCRIPTORS)
        try:
            answer: dict[str, Any] = {"done": plain(_do(target, message, channel, descriptors))}
        except (EOFError, WireError):
            raise
        except Exception as error:  # noqa: BLE001 - the worker's loop
            answer = _failure(error)
        finally:
            close_all(descriptors)
        if getattr(target, "waits", False) is True:
            answer["waits"] = True
        channel.send(answer)


def _become_host(channel: Channel, python: str) -> None:
    """From here on the process of a lab's own plugins, which inherits nothing of sorter's environment but the account.

    Returns only where that cannot be; the other side is told why.
    """
    home = pwd.getpwuid(os.geteuid()).pw_dir
    try:
        os.dup2(channel.fileno(), 0)
        os.execve(  # noqa: S606 - the interpreter is the admin's word
            python or sys.executable,
            [python or sys.executable, "-P", "-m", "sorter.plugins.host"],
            {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": home},
        )
    except OSError as error:
        channel.send({"cannot": f"{python or sys.executable} cannot be run by this account: {error.strerror}"})


def load(code: str, settings: Mapping[str, Any], files: Files) -> Target:
    """The target that `code` ("module:Class") names. Held when there is none."""
    module, _, name = code.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise Held(f"the target's code {code!r} cannot be loaded ({error}); is its plugin installed?") from error
    return cast(Target, found(settings, files))


NOTHING_BACK = "this kind of target gives nothing back: images that were delivered only there never leave the store"


def _do(target: Target, message: Mapping[str, Any], channel: Channel, descriptors: Sequence[int]) -> Any:
    what, job = message.get("do"), message.get("job")
    if what == "put":
        put = build(Put, job)
        with _pulled(channel, len(put.files)) as source:
            return target.put(put, source)
    if what == "verify":
        if message.get("only") is True and not isinstance(target, Giving):
            raise Held(NOTHING_BACK)
        return target.verify(build(Receipt, job), deep=bool(message.get("deep", True)))
    if what == "fetch":
        names = [str(each) for each in message.get("names", ())]
        if len(names) != len(descriptors):
            raise WireError("files to be fetched came without a place for each")
        receipt = build(Receipt, job)
        return target.fetch(receipt, names, descriptors) if isinstance(target, Giving) else _nothing(receipt, names)
    if what == "remove":
        return target.remove(build(Receipt, job))
    if what == "check":
        return target.check(prepare=message.get("prepare") is True)
    if what == "lab":
        look = build(LabLook, job)
        with _pulled(channel, len(look.pages)) as source:
            return cast(LabFolder, target).look_at_lab(look, source)
    if what == "copy":
        copies = build(Copies, job)
        with _pulled(channel, len(copies.files)) as source:
            return cast(LabFolder, target).copy_for_lab(copies, source)
    raise WireError(f"{what!r} is no job")


@contextlib.contextmanager
def _pulled(channel: Channel, count: int) -> Iterator[Pulled]:
    source = Pulled(channel, count)
    try:
        yield source
    finally:
        source.close()


def _nothing(receipt: Receipt, names: Sequence[str]) -> Fetched:
    return Fetched(receipt.folder, bad=tuple(names))


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, TryLater):
        return {"later": str(error), "away": isinstance(error, Away)}
    if isinstance(error, SorterError):
        return {"refused": str(error), "never": isinstance(error, Never)}
    # The text of an error that nobody foresaw may hold a path below a lab: only its kind and its place are told.
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    kind = f"{type(error).__name__} [Errno {error.errno}]" if isinstance(error, OSError) else type(error).__name__
    return {"later": f"the target failed in a way it should not ({kind}{where}); please report this"}


def _connect(arguments: Sequence[str]) -> socket.socket:
    match arguments:
        case ["--fd", number]:
            # Whoever stops the whole group lets `sort` decide when this process ends: by closing the socket.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return socket.socket(fileno=int(number))
    raise SystemExit("usage: python -m sorter.deliver.worker --fd N")


def _end_after(connected: socket.socket) -> None:
    """End with the other side, although a call of the target may not return: nobody else may be allowed to end us."""
    ended = select.poll()
    ended.register(connected, select.POLLRDHUP)
    ended.poll()
    time.sleep(_LEFT)
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    connected = _connect(arguments)
    threading.Thread(target=_end_after, args=(connected,), daemon=True).start()
    channel = Channel(connected)
    try:
        serve(channel)
    except EOFError:
        return 0
    except WireError:
        return 1
    finally:
        channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
