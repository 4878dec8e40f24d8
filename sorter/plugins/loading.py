"""Finding plugins and refusing, with a sentence each, those that could not work as their author thinks.

Three sources, asked in this order: single files in the admin's plugins folder, installed distributions (entry point
group `sorter`), built-ins.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import linecache
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sorter import hookspecs
from sorter.durable import Files

GROUP = hookspecs.PROJECT
BUILT_IN = ("identity", "routing", "naming", "expectations", "grouping", "targets")
"""Modules of `sorter.builtin` that are plugins, in the order they are asked."""

MAX_SOURCE = 4 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.py")
_MARK = f"{hookspecs.PROJECT}_impl"  # the attribute that pluggy's marker leaves on a function


@dataclass(frozen=True)
class Hook:
    """One function of one plugin, and the arguments of its hook that it takes."""

    function: Callable[..., Any]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Plugin:
    """One plugin as found. `source` says where, for people: "file /etc/…", "distribution sorter-foo", "built-in"."""

    name: str
    version: str
    source: str
    module: ModuleType
    hooks: Mapping[str, Hook]
    file: Path | None = None
    notes: tuple[str, ...] = ()  # sentences on what works for now

    @property
    def built_in(self) -> bool:
        return self.source == "built-in"


def any_third_party(folder: Path | None, files: Files) -> bool:
    """Is there anything besides the built-ins, as far as can be seen without running it?"""
    if importlib.metadata.entry_points(group=GROUP):
        return True
    try:
        return folder is not None and any(name.endswith(".py") for name, _ in files.scan(folder))
    except OSError:
        return True  # the one who looks closer says what is wrong


class Source(NamedTuple):
    """A single file as it was read: it may change on disk while its plugin is in use."""

    path: Path
    code: bytes


class Finder:
    """Collects plugins in the order of asking, and every fault found on the way.

    `told` hears of each plugin before its code runs. `of_a_lab`: single files alone, which anybody in the lab may have
    written, for they run under the lab's account.
    """

    def __init__(self, files: Files, told: Callable[[str], None] = lambda _: None, *, of_a_lab: bool = False) -> None:
        self.files, self.told, self._of_a_lab = files, told, of_a_lab
        self.plugins: list[Plugin] = []
        self.names: list[str] = []  # of all that were there, those that could not be loaded too
        self.faults: list[str] = []

    def third_party(self, folder: Path | None) -> None:
        """The admin's single files, then distributions."""
        self.run(self.read(folder))

    def read(self, folder: Path | None) -> list[Source]:
        """The single files of `folder`, none of them run."""
        if folder is None:
            return []
        try:
            entries = self.files.scan(folder)
            with self.files.opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
                said = self._writable(fd, folder)
        except OSError as error:
            self.faults.append(f"plugins folder {folder}: {error.strerror}")
            return []
        if said:
            self.faults.append(said)
            return []
        names = [name for name, _ in entries if name.endswith(".py") and not name.startswith((".", "_"))]
        self.names += [name.removesuffix(".py") for name in names]
        return [source for name in names if (source := self._read_file(folder / name)) is not None]

    def run(self, sources: Sequence[Source]) -> None:
        """Load single files that were read before, then the distributions."""
        for source in sources:
            self.told(str(source.path))
            module = self._run(source.path, source.code)
            if module is not None:
                version = str(getattr(module, "__version__", ""))
                self._add(source.path.stem, version, f"file {source.path}", module, source.path)
        if not self._of_a_lab:
            self._find_distributions()

    def built_in(self) -> None:
        for name in BUILT_IN:
            self.names.append(name)
            module = importlib.import_module(f"sorter.builtin.{name}")
            self._add(name, _version_of_sorter(), "built-in", module)

    def _writable(self, fd: int, path: Path) -> str:
        info = self.files.stat(fd)
        if not self._of_a_lab:
            return writable_by_others(info, path)
        if info.st_mode & stat.S_IWOTH and not self.files.is_shared(fd):  # a share's modes may be made up
            return f"{path}: everybody on this machine may write it, and its code would run as the lab: chmod o-w it"
        return ""

    # --- the sources --------------------------------------------------------------------------------------------

    def _read_file(self, path: Path) -> Source | None:
        if not _FILE_NAME.fullmatch(path.name):
            self.faults.append(f"{path}: a plugin's file name has only letters, digits, - and _ before .py")
            return None
        try:
            with self.files.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                info = self.files.stat(fd)
                said = _unfit(info, path) or self._writable(fd, path)
                code = b"" if said else b"".join(bytes(piece) for piece in self.files.chunks(fd))
        except OSError as error:
            link = path.is_symlink()
            said = "a symbolic link; put the file itself here" if link else str(error.strerror)
            self.faults.append(f"{path}: {said}")
            return None
        if said:
            self.faults.append(said)
            return None
        return Source(path, code)

    def _run(self, path: Path, source: bytes) -> ModuleType | None:
        name = module_of(path)
        module = ModuleType(name)
        module.__file__ = str(path)
        before = sys.modules.get(name)
        sys.modules[name] = module  # dataclasses and pydantic look up a class's own module
        linecache.checkcache(str(path))
        try:
            exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 (only root or we can write it)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a plugin)
            self.faults.append(_import_fault(error, str(path)))
            sys.modules.pop(name)
            if before is not None:
                sys.modules[name] = before
            return None
        return module

    def _find_distributions(self) -> None:
        points = importlib.metadata.entry_points(group=GROUP)
        for point in sorted(points, key=lambda point: point.name):
            name = point.dist.name if point.dist else point.value
            where = f"distribution {name} (entry point {point.name})"
            self.names.append(point.name)
            self.told(where)
            try:
                module = point.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001 (a plugin)
                self.faults.append(_import_fault(error, where))
                continue
            if not isinstance(module, ModuleType):
                self.faults.append(
                    f'{where}: it names a {type(module).__name__}; name a module: {point.name} = "module"'
                )
                continue
            version = point.dist.version if point.dist else ""
            self._add(point.name, version, f"distribution {name}", module)

    # --- what every plugin must keep to -------------------------------------------------------------------------

    def _add(self, name: str, version: str, source: str, module: ModuleType, file: Path | None = None) -> None:
        where = str(file) if file else source
        twin = next((each.source for each in self.plugins if each.name == name), "")
        if name in BUILT_IN and source != "built-in":
            twin = "a built-in"
        if twin:
            self.faults.append(f"{where}: the plugin name {name} is taken by {twin}; rename or remove one")
            return
        hooks, faults = _hooks(module, where)
        faults += _api_fault(module, where)
        if not hooks and not faults:
            faults = [f"{where}: no hook in it: mark a function, as sorter_identify, with @hookimpl; or remove it"]
        if faults:
            self.faults.extend(faults)
            return
        self.plugins.append(Plugin(name, version, source, module, hooks, file, tuple(_deprecated(hooks))))


def module_of(path: Path) -> str:
    """What the module of a single file is called."""
    return "sorter_file_" + path.stem.replace("-", "_")


@functools.cache
def _version_of_sorter() -> str:
    import sorter

    return sorter.__version__


def _unfit(info: os.stat_result, path: Path) -> str:
    if not stat.S_ISREG(info.st_mode):
        return f"{path}: not a regular file"
    if info.st_size > MAX_SOURCE:
        return f"{path}: larger than {MAX_SOURCE >> 20} MiB; a plugin of that size should be a distribution"
    return ""


def writable_by_others(info: os.stat_result, path: Path) -> str:
    """A sentence when somebody besides root and us may change this file or folder; "" when nobody may."""
    if info.st_uid not in (0, os.geteuid()):
        return f"{path}: owned by user {info.st_uid}; its code would run as sorter: chown it to root or to sorter"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path}: others may write it, and its code would run as sorter: chmod go-w {path}"
    return ""


def _import_fault(error: BaseException, where: str) -> str:
    """One sentence with the line that failed: in the plugin itself where it is a file, else where it was raised."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
        said = f"SyntaxError: {error.msg}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == where]
        outside = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
        place = next((f"{frame.filename}:{frame.lineno}" for frame in reversed(own or outside)), where)
    return f"{place}: {said}" if place.startswith(where) else f"{where}: {said} (at {place})"


def _api_fault(module: ModuleType, where: str) -> list[str]:
    """Was it written for a contract that this sorter keeps?"""
    said = getattr(module, "SORTER_API", hookspecs.API)
    if not isinstance(said, int):
        return [f"{where}: SORTER_API is the number of a version, as {hookspecs.API}"]
    if said > hookspecs.API:
        newest = f"this sorter has {hookspecs.API}"
        return [f"{where}: written for version {said} of the hooks; {newest}: bring sorter up to date"]
    if said < hookspecs.OLDEST:
        oldest = f"this sorter knows {hookspecs.OLDEST} to {hookspecs.API}"
        return [f"{where}: written for version {said} of the hooks, and {oldest}: bring the plugin up to date"]
    return []


def _deprecated(hooks: Mapping[str, Hook]) -> Iterator[str]:
    for name, hook in hooks.items():
        for what in (name, *(f"{name}.{argument}" for argument in hook.arguments)):
            if what in hookspecs.DEPRECATED:
                yield f"{what} is deprecated: {hookspecs.DEPRECATED[what]}"


def _hooks(module: ModuleType, where: str) -> tuple[dict[str, Hook], list[str]]:
    specs = hookspecs.signatures()
    hooks: dict[str, Hook] = {}
    faults: list[str] = []
    for name, item in vars(module).items():
        mark = getattr(item, _MARK, None) if inspect.isroutine(item) else None
        looks_like = name.startswith("sorter_") and inspect.isroutine(item)
        if not looks_like and not isinstance(mark, dict):
            continue
        line = f"{where}:{_line(item)}" if _line(item) else where
        hook = (mark or {}).get("specname") or name
        said = _hook_fault(hook, item, mark, specs)
        if said:
            faults.append(f"{line}: {said}")
        elif hook in hooks:
            faults.append(f"{line}: a second {hook}; one plugin answers each hook once")
        else:
            hooks[hook] = Hook(item, tuple(inspect.signature(item).parameters))
    return hooks, faults


def _hook_fault(hook: str, item: Any, mark: Any, specs: Mapping[str, tuple[str, ...]]) -> str:
    if hook not in specs:
        return f"there is no hook {hook}{did_you_mean(hook, specs)}"
    if not isinstance(mark, dict):
        return f"{hook} is not marked: write @hookimpl above it (from sorter import hookimpl)"
    if any(mark.get(option) for option in ("wrapper", "hookwrapper", "tryfirst", "trylast")):
        return f"{hook}: plain @hookimpl only; plugins are asked one by one, in the order of their names"
    for name, parameter in inspect.signature(item).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return f"{hook}: {parameter} is not possible; its arguments may be {_list(specs[hook])}"
        if name not in specs[hook]:
            return f"{hook} has no argument {name}{did_you_mean(name, specs[hook])}; it may take {_list(specs[hook])}"
    return ""


def _line(item: Any) -> int:
    code = getattr(inspect.unwrap(item), "__code__", None)
    return code.co_firstlineno if code else 0


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ", did you mean X?" where one of `known` is close to `word`, else ""."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
