"""The process of the plugins of others: a keeper that runs none of their code, and below it one life after another.

`python -P -m sorter.plugins.host`, started by `sorter.plugins.hosted` with a unix socket as standard input. The keeper
reads the single files once, so that every life runs the same code. When it is told to, and when the one who started it
goes, it ends a life with every process that came of it; then it begins a new one. A life loads the plugins and answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from sorter.durable import Files
from sorter.errors import PluginError, words_of
from sorter.model import Event, Instance, Series, Value, build, plain
from sorter.plugins.loading import Finder, Source
from sorter.plugins.local import Local
from sorter.processes import adopt_orphans, die_with, end_descendants, limit, name_of
from sorter.wire import Channel

MEMORY = 4 << 30  # bytes of address space of one life
PROCESSES = 256  # of the account that a lab's own plugins run as, all that it has on this machine together
_MOMENT = 0.5  # seconds for a life whose socket is closed to be gone, so that it can be said how it ended

_ARGUMENTS: Mapping[str, type] = {"series": Series, "instance": Instance, "event": Event}


def main() -> int:
    control = Channel(socket.socket(fileno=os.dup(0)))
    signal.signal(signal.SIGTERM, _stop)
    adopt_orphans()
    try:
        hello, _ = control.receive()
        folder = Path(hello["folder"]) if hello["folder"] else None
        finder = Finder(Files(), of_a_lab=bool(hello.get("lab")))
        if hello.get("lab"):
            limit(resource.RLIMIT_NPROC, PROCESSES)
        sources = finder.read(folder)
        life = 0
        while True:
            _, received = control.receive(1)
            ended = _ended(life)
            end_descendants()
            life = _begin(received[0], finder, sources, folder) if received else 0
            control.send({"ended": ended})
    except EOFError:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()


def _stop(_sign: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def _ended(life: int) -> str:
    """How this life ended, "" while it lives."""
    if not life:
        return ""
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(life)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(_MOMENT * 1000):
                return ""
            status = os.waitpid(life, 0)[1]
        finally:
            os.close(fd)
        if os.WIFSIGNALED(status):
            return name_of(os.WTERMSIG(status))
        return f"exit code {os.WEXITSTATUS(status)}"
    return ""


def _begin(fd: int, finder: Finder, sources: list[Source], folder: Path | None) -> int:
    keeper = os.getpid()
    life = os.fork()  # one thread only, so a fork is safe
    if life:
        os.close(fd)
        return life
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        if die_with(keeper, signal.SIGKILL):
            _live(Channel(socket.socket(fileno=fd)), finder, sources, folder)
    except EOFError:
        code = 0
    finally:
        os._exit(code)  # whatever a plugin left behind: no handler, no thread, no finaliser runs on


def _live(channel: Channel, finder: Finder, sources: list[Source], folder: Path | None) -> NoReturn:
    hello, _ = channel.receive()
    _silence(hello["show"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, MEMORY)
    finder.told = lambda where: channel.send({"loading": where})
    finder.run(sources)
    local = Local(finder, hello["tables"], folder)
    faults = local.faults(hello["settings"])
    known = [dataclasses.asdict(each) for each in local.known()]
    said = {"unloadable": local.unloadable, "names": local.names, "known": known, "faults": faults}
    channel.send({**said, "tables": local.reads_tables, "settings": {} if faults else _settings(local)})
    while True:
        question, _ = channel.receive()
        if "hook" in question:
            _answer(channel, local, question)
        else:
            channel.send({"changed": local.refresh(), "faults": local.table_faults(), "settings": _settings(local)})


def _settings(local: Local) -> dict[str, Any]:
    return {each.name: local.settings(each.name) for each in local.known()}


def _silence(show: bool) -> None:
    """What a plugin prints may name a patient: it goes nowhere, unless a person is trying it."""
    with Files().opened(os.devnull, os.O_RDWR) as nothing:
        for fd in (0, 1, 2):
            if not show or fd == 0:
                os.dup2(nothing, fd)
    if show:
        os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _answer(channel: Channel, local: Local, question: Mapping[str, Any]) -> None:
    """What each plugin says, as it says it: so that the other side knows whom it waits for."""
    arguments = {
        name: build(_ARGUMENTS[name], value) if name in _ARGUMENTS else value
        for name, value in question["arguments"].items()
    }
    if "series" in arguments and question["values"]:
        arguments["series"] = dataclasses.replace(arguments["series"], ask=lambda keyword: _values(channel, keyword))
    for name, said in local.answers(question["hook"], arguments, question["plugins"]):
        if isinstance(said, PluginError):
            cause = said.cause if isinstance(said.cause, str) else words_of(said.cause)
            channel.send({"plugin": name, "failed": cause})
            continue
        channel.send({"plugin": name, "answer": plain(said)})
        if said is not None and question["first"]:
            return


def _values(channel: Channel, keyword: str) -> tuple[Value, ...]:
    channel.send({"values": keyword})
    said, _ = channel.receive()
    if "failed" in said:
        raise OSError(said["failed"])
    return tuple(tuple(each) if isinstance(each, list) else each for each in said["values"])


if __name__ == "__main__":
    sys.exit(main())
