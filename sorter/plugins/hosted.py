"""The plugins of others, in a process of their own: what one of them does there stops neither sorter nor the others.

A plugin that hangs, ends its process, eats its memory or answers nonsense costs its own answer and no more: the process
is ended with everything that came of it, a new one begins, and those that had not answered yet are asked there. A
plugin that does so several times in a row rests for a while, and its answer fails at once.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sorter.errors import Away, PluginError, SorterError
from sorter.model import Expectation, Identity, Name, Product, Route, Series, TargetKind, build, plain
from sorter.plugins.answers import check
from sorter.plugins.local import Answer, Asked, Fault, Known, Tables
from sorter.wire import Channel, WireError

_ANSWERS: Mapping[str, Any] = {
    "sorter_identify": Identity,
    "sorter_group": str,
    "sorter_expect": Expectation,
    "sorter_route": Route,
    "sorter_name": Name,
    "sorter_products": tuple[Product, ...],
    "sorter_targets": tuple[TargetKind, ...],
}
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]{0,99}")
_IN_A_ROW = 3  # failures of the process before a plugin rests
_LONGEST_REST = 600.0  # seconds
_BEGUN = 10.0  # seconds for a keeper that is there to end a life, and begin another
_GRACE = 5.0  # seconds for the process to end after its socket was closed
_NOT_OF_A_LAB = "their process ended at once; is mri-sorter installed for the lab's own interpreter?"


@dataclass(frozen=True)
class Patience:
    """In seconds. `answer`: for one plugin's answer. `load`: for one plugin's import. `rest`: how long a plugin that
    fails again and again is not asked, at first. `idle`: how long a life that nobody asks stays."""

    answer: float = 10.0
    load: float = 60.0
    rest: float = 60.0
    idle: float = 60.0


@dataclass
class _Trouble:
    """Of one plugin: failures of its process in a row, and until when it rests."""

    count: int = 0
    rest: float = 0.0
    until: float | None = None

    def is_over(self, now: float) -> bool:
        return self.until is not None and self.until <= now


Launch: TypeAlias = Callable[[float], tuple[Channel, Callable[[], object]]]
"""Starts the process: this side's end of its socket, whose timeout is so many seconds, and what ends the process. Away
where it cannot be started now."""


class _Broken(Exception):
    """The life is of no more use; `str` says why, of the plugin that it happened to."""


class Hosted:
    """The single files of a folder, and the installed distributions, in one process."""

    def __init__(
        self,
        folder: Path | None,
        tables: Tables,
        patience: Patience | None = None,
        *,
        show: bool = False,
        launch: Launch | None = None,
    ) -> None:
        """Starts the process and loads the plugins. `show`: what they print goes to standard error.

        `launch` starts the process of a lab's own plugins elsewhere: these are the files of the folder alone,
        whoever in the lab wrote them.
        """
        self._folder, self._patience, self._show = folder, patience or Patience(), show
        self._launch, self._of_a_lab = launch or functools.partial(_here, show), launch is not None
        self._tables = {name: dict(table) for name, table in tables.items()}
        self._settings: dict[str, dict[str, Any]] = {}
        self._trouble: dict[str, _Trouble] = {}
        self._table_faults: tuple[Fault, ...] = ()
        self._asked_at = time.monotonic()
        self._lock = threading.RLock()
        self._reads_tables = False
        self._control: Channel | None = None
        self._life: Channel | None = None
        self._end: Callable[[], Any] = lambda: None
        self._known: tuple[Known, ...] = ()
        self.unloadable: list[str] = []
        self.names: list[str] = []
        self._faults: list[Fault] = []
        try:
            said = self._begin()
        except _Broken as broken:
            self.unloadable = [str(broken)]
        else:
            self.unloadable, self.names = list(said["unloadable"]), list(said["names"])
            self._faults = _faults(said["faults"])
            self._known = tuple(build(Known, each) for each in said["known"])

    def faults(self) -> list[Fault]:
        """What is wrong with the settings, as they were when the process began."""
        return self._faults

    def known(self) -> tuple[Known, ...]:
        return self._known

    def settings(self, plugin: str) -> dict[str, Any]:
        return self._settings[plugin]

    def table_faults(self) -> tuple[Fault, ...]:
        return self._table_faults

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, hook: str, arguments: Mapping[str, Any], *, first: bool = False) -> Asked:
        """Every plugin's answer to `hook`, in order; None is left out. With `first` nobody is asked after an answer."""
        answers: list[Answer] = []
        failures: list[PluginError] = []
        with self._lock:
            todo = [each.name for each in self._known if hook in each.hooks]
            while todo and not (first and answers):
                if said := self._resting(todo[0]):
                    failures.append(PluginError(todo.pop(0), hook, said))
                    continue
                try:
                    for name, answer in self._exchange(hook, arguments, todo, first=first):
                        todo.remove(name)
                        self._trouble.pop(name, None)
                        if isinstance(answer, PluginError):
                            failures.append(answer)
                        elif answer is not None:
                            answers.append(Answer(name, answer))
                except _Broken as broken:
                    failures.append(PluginError(todo[0], hook, str(broken)))
                    self._failed(todo.pop(0))
        return Asked(tuple(answers), tuple(failures))

    def _exchange(
        self, hook: str, arguments: Mapping[str, Any], todo: list[str], *, first: bool
    ) -> Iterator[tuple[str, Any]]:
        """What the plugins of `todo` say, one after another, until one of them rests or an answer is enough."""
        life = self._alive()
        awake = list(itertools.takewhile(lambda name: not self._resting(name), todo))
        series = arguments.get("series")
        ask = series.ask if isinstance(series, Series) else None
        given = {name: plain(value) for name, value in arguments.items()}
        question = {"hook": hook, "arguments": given, "plugins": awake, "first": first, "values": ask is not None}
        with self._breaking(life):
            life.by(time.monotonic() + self._patience.answer)
            life.send(question)
        for name in awake:
            answer = self._reply(life, name, hook, ask)
            yield name, answer
            if first and answer is not None and not isinstance(answer, PluginError):
                return

    def _reply(self, life: Channel, name: str, hook: str, ask: Callable[[str], Any] | None) -> Any:
        life.by(time.monotonic() + self._patience.answer)
        while True:
            with self._breaking(life):
                said, _ = life.receive()
                if "values" not in said:
                    if said["plugin"] != name:
                        raise WireError("another plugin answered")
                    return _understood(name, hook, said)
                life.send(_values(ask, said["values"]))

    @contextlib.contextmanager
    def _breaking(self, life: Channel) -> Iterator[None]:
        """What the other side did wrong, as _Broken; its life is over."""
        try:
            yield
        except TimeoutError:
            self._over(life)
            raise _Broken(f"it did not answer within {self._patience.answer:g} s, and its process was ended") from None
        except EOFError:
            how = self._over(life)
            raise _Broken(f"its process ended before it answered ({how or 'unknown how'})") from None
        except (WireError, KeyError, TypeError, ValueError):
            self._over(life)
            raise _Broken("its process answered what is not an answer, and was ended") from None

    def refresh(self) -> tuple[str, ...]:
        """The plugins that may answer otherwise now: their tables changed, or their rest is over. Call it regularly."""
        with self._lock:
            rested = tuple(name for name, each in self._trouble.items() if each.is_over(time.monotonic()))
            for name in rested:
                self._trouble[name].until = None
            if self._life is not None and self._reads_tables:
                return rested + self._changed_tables(self._life)
            if self._life is not None and time.monotonic() - self._asked_at > self._patience.idle:
                with contextlib.suppress(_Broken):  # whoever is asked next says so
                    self._over(self._life)
            return rested

    def _changed_tables(self, life: Channel) -> tuple[str, ...]:
        try:
            with self._breaking(life):
                life.by(time.monotonic() + self._patience.answer)
                life.send({"tables": True})
                said, _ = life.receive()
                self._settings.update(said["settings"])
                self._table_faults = tuple(_faults(said["faults"]))
                return tuple(said["changed"])
        except _Broken:
            return ()  # whoever is asked next begins a new life, which reads the tables anew

    # --- trouble ------------------------------------------------------------------------------------------------

    def _failed(self, name: str) -> None:
        trouble = self._trouble.setdefault(name, _Trouble())
        trouble.count += 1
        if trouble.count >= _IN_A_ROW:
            trouble.rest = min(_LONGEST_REST, 2 * trouble.rest or self._patience.rest)
            trouble.until = time.monotonic() + trouble.rest

    def _resting(self, name: str) -> str:
        """A sentence while this plugin is not asked."""
        trouble = self._trouble.get(name)
        if trouble is None or trouble.until is None or trouble.until <= time.monotonic():
            return ""
        left = trouble.until - time.monotonic()
        return f"its process failed {trouble.count} times in a row; it is asked again in {left:.0f} s"

    # --- its process --------------------------------------------------------------------------------------------

    def _alive(self) -> Channel:
        self._asked_at = time.monotonic()
        if self._life is None:
            self._begin()
        assert self._life is not None
        return self._life

    def _begin(self) -> dict[str, Any]:
        """A new life; what it says of the plugins it loaded. _Broken names the one that could not be."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._keep(theirs.fileno())
        life = Channel(ours)
        where = "plugins"
        try:
            life.by(time.monotonic() + self._patience.load)
            life.send({"tables": self._tables, "settings": self._settings, "show": self._show})
            while True:
                said, _ = life.receive()
                if "loading" not in said:
                    break
                where = str(said["loading"])
                if not self._of_a_lab:  # who may say so again and again; all of a lab's has one's time together
                    life.by(time.monotonic() + self._patience.load)
            self._settings.update(said["settings"])
            self._reads_tables = bool(said["tables"])
        except TimeoutError:
            self._over(life)
            raise _Broken(f"{where}: it did not load within {self._patience.load:g} s") from None
        except EOFError:
            how = self._over(life)
            raise _Broken(f"{where}: its process ended while it loaded ({how or 'unknown how'})") from None
        except (WireError, KeyError, TypeError, ValueError):
            self._over(life)
            raise _Broken(f"{where}: its process answered what is not an answer") from None
        self._life = life
        return said

    def _over(self, life: Channel) -> str:
        """End this life and all that came of it; how it had ended by itself, "" if it had not."""
        self._life = None
        life.close()
        return self._keep(None)

    def _keep(self, fd: int | None) -> str:
        """Tell the keeper to end what lives and, with a descriptor, to begin a life at it; how the last one ended."""
        for _ in range(2):  # a keeper that is gone is replaced, once
            patience = _BEGUN if self._control is not None else self._patience.load
            if self._control is None:
                self._control = self._start()
            try:
                self._control.by(time.monotonic() + patience)
                self._control.send({}, [] if fd is None else [fd])
                said, _ = self._control.receive()
            except (EOFError, WireError, TimeoutError):
                self.close()
                continue
            if "cannot" in said:
                self.close()
                raise _Broken(str(said["cannot"]))
            return str(said.get("ended", ""))
        raise _Broken(_NOT_OF_A_LAB if self._of_a_lab else "their process cannot be started; is there memory left?")

    def _start(self) -> Channel:
        try:
            control, end = self._launch(self._patience.load)
        except Away as error:
            raise _Broken(str(error)) from None
        self._end = weakref.finalize(self, end)
        with contextlib.suppress(EOFError):  # whoever speaks next finds out
            control.send({"folder": str(self._folder) if self._folder else "", "lab": self._of_a_lab})
        return control

    def close(self) -> None:
        """End the process; the next question starts it anew."""
        if self._life is not None:
            self._life.close()
        self._life = self._control = None
        self._end()


def _here(show: bool, patience: float) -> tuple[Channel, Callable[[], object]]:
    """Started by this process, under its account."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sorter.plugins.host"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=None if show else subprocess.DEVNULL,
            start_new_session=True,
        )
    return Channel(ours, patience), functools.partial(_end, process, ours)


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _understood(name: str, hook: str, said: Mapping[str, Any]) -> Any:
    """The answer in a frame, checked once more on this side (ValueError), None, or what the plugin got wrong."""
    if "failed" in said:
        return PluginError(name, hook, str(said["failed"]))
    answer = said["answer"]
    if answer is None or hook not in _ANSWERS:
        return None
    return check(hook, build(_ANSWERS[hook], answer))


def _values(ask: Callable[[str], Any] | None, keyword: object) -> dict[str, Any]:
    if ask is None or not isinstance(keyword, str) or not _KEYWORD.fullmatch(keyword):
        return {"failed": "there is no such attribute"}
    try:
        return {"values": plain(ask(keyword))}
    except (SorterError, OSError) as error:
        return {"failed": str(error)}


def _faults(said: Any) -> list[Fault]:
    return [Fault(tuple(map(str, key)), str(says)) for key, says in said]
