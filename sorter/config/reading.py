"""From files to a `Config`: read, merge, validate, check; every fault is kept, and all are told at once."""

from __future__ import annotations

import datetime
import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli
from pydantic import BaseModel, ValidationError

from sorter.config.config import Config
from sorter.config.models import (
    Completion,
    Delivery,
    DoorConfig,
    Engine,
    LabConfig,
    NodeSettings,
    PathSettings,
    RcloneSettings,
    Receive,
    Sender,
    Sorter,
    Store,
    TargetConfig,
    Unknown,
    Watch,
    shown,
)
from sorter.config.places import Key, places
from sorter.errors import ConfigError, did_you_mean

SYSTEM_CONFIG = Path("/etc/sorter/sorter.toml")
"""Read where neither a file nor a root is given and the working folder has no sorter.toml."""

_LOCAL_CONFIG = Path("sorter.toml")
_MOST = 1 << 20  # bytes of one file
_NAMED = ("labs", "targets", "plugins")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TOML_PLACE = re.compile(r" \((?:at line (\d+), column \d+|at end of document)\)$")

_HOW_TO_START = (
    "there is no configuration: give --root DIR to keep everything below one folder, "
    f"or -c FILE, or write {_LOCAL_CONFIG} here or {SYSTEM_CONFIG}"
)


class NoConfiguration(ConfigError):
    """There is no file, and no folder was given."""

    def __init__(self) -> None:
        super().__init__([_HOW_TO_START])


_PLAINLY = {
    "Illegal character '\\n'": "a text in quotes does not end in this line",
    "Invalid value": "what stands behind = is no value; text stands in quotes",
}
"""What the reader of TOML says, for a person."""

M = TypeVar("M", bound=BaseModel)


def load(path: Path | None = None, root: Path | None = None) -> Config:
    """The configuration in `path` and in the folder beside it ("sorter.d" for "sorter.toml").

    `root` takes the place of `[sorter] root`, adds the target `unassigned`, and alone needs no file. With neither,
    `./sorter.toml`, else `SYSTEM_CONFIG`. ConfigError holds every fault, as "sorter.toml:11: labs.memory.root: …".
    """
    if path is None and root is None:
        path = next((each for each in (_LOCAL_CONFIG, SYSTEM_CONFIG) if each.is_file()), None)
        if path is None:
            raise NoConfiguration
    sources = Sources()
    if path is not None:
        sources.read(Path(os.path.abspath(path)))
    reader = _Reader(sources)
    config = reader.config(Path(os.path.abspath(root)) if root is not None else None)
    if sources.faults:
        raise ConfigError(sources.sorted_faults())
    return config


def revised(section: M, name: str, given: Mapping[str, Any]) -> M:
    """`section` with what is given in place of its own (None: its own stays), checked as if it stood in a file."""
    changed = {key: value for key, value in given.items() if value is not None}
    try:
        return type(section).model_validate({**section.model_dump(exclude_unset=True), **changed})
    except ValidationError as error:
        raise ConfigError(
            [f"{'.'.join(key)}: {says}" for key, says in faults_of(error, type(section), (name,))]
        ) from None


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sources:
    """What the files say together: merged tables, the place of each key, and the faults so far."""

    tables: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)  # (place, sentence)
    base: Path = Path()
    name: str = ""
    _order: list[str] = field(default_factory=list)

    def read(self, path: Path) -> None:
        self.base, self.name = path.parent, path.name
        self._read_file(path, path.name)
        folder = path.with_suffix(".d")
        if folder.is_dir():
            try:
                names = sorted(os.listdir(folder))
            except OSError as error:
                self.faults.append((folder.name, f"cannot be read: {error.strerror}"))
                return
            for name in names:
                if name.endswith(".toml") and not name.startswith("."):
                    self._read_file(folder / name, f"{folder.name}/{name}")

    def _read_file(self, path: Path, name: str) -> None:
        try:
            data = _read(path)
        except OSError as error:
            self._order.append(name)
            self.faults.append((name, f"{path} cannot be read: {error.strerror}"))
        else:
            self.add(data, name)

    def add(self, data: bytes, name: str) -> None:
        """Take up what a file says that is called `name`."""
        self._order.append(name)
        try:
            text = data.decode("utf-8-sig")
            tables, found = tomli.loads(text), places(text)
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            self.faults.append((f"{name}:{line}", "this is not UTF-8 text; save the file as UTF-8"))
        except tomli.TOMLDecodeError as error:
            place = _TOML_PLACE.search(str(error))
            line = int(place[1]) if place and place[1] else text.rstrip().count("\n") + 1
            says = _TOML_PLACE.sub("", str(error))
            self.faults.append(
                (f"{name}:{line}", f"this is not TOML: {_PLAINLY.get(says) or says[:1].lower() + says[1:]}")
            )
        except (ValueError, RecursionError):  # what only a hostile hand writes: numbers and nests without end
            self.faults.append((name, "a number is too long, or tables and lists are nested too deep, to be read"))
        else:
            self._merge(tables, {key: f"{name}:{line}" for key, line in found.items()})

    def _merge(self, tables: Mapping[str, Any], found: Mapping[Key, str]) -> None:
        """A table may be spread over files, but what it holds, as a key or a lab, stands in one file only."""
        below: dict[str, dict[Key, str]] = {}  # each is looked through once, however many tables there are
        for key, place in found.items():
            below.setdefault(key[0], {})[key] = place
        for name, table in tables.items():
            known = self.tables.get(name)
            if known is None:
                self.tables[name] = _copied(table)
                self._adopt(below[name], (name,))
            elif isinstance(known, list) and isinstance(table, list):
                shift = len(known)
                known += table
                self._adopt(below[name], (name,), shift)
            elif isinstance(known, dict) and isinstance(table, dict):
                self._merge_table(name, known, table, below[name])
            else:
                self._twice((name,), below[name])

    def _merge_table(self, name: str, known: dict[str, Any], table: dict[str, Any], found: Mapping[Key, str]) -> None:
        for key, value in table.items():
            if key in known:
                self._twice((name, key), found)
            else:
                known[key] = value
                self._adopt(found, (name, key))

    def _twice(self, key: Key, found: Mapping[Key, str]) -> None:
        self.faults.append((found[key], f"{'.'.join(key)}: already given at {self.places[key]}; keep one of the two"))

    def _adopt(self, found: Mapping[Key, str], top: Key, shift: int = 0) -> None:
        for key, place in found.items():
            if key[: len(top)] != top:
                continue
            rest = key[len(top) :]
            moved = (str(int(rest[0]) + shift), *rest[1:]) if rest and shift else rest
            self.places.setdefault((*top, *moved), place)

    def place(self, key: Key) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return self.name or "--root"

    def sorted_faults(self) -> list[str]:
        """In the order of files and lines; each once."""

        def order(fault: tuple[str, str]) -> tuple[int, int]:
            name, _, line = fault[0].rpartition(":")
            name, line = (name, line) if line.isdigit() else (fault[0], "0")
            return self._order.index(name) if name in self._order else -1, int(line)

        return list(dict.fromkeys(f"{place}: {says}" for place, says in sorted(self.faults, key=order)))


def _read(path: Path) -> bytes:
    """The bytes of a file, a link to one, or a pipe."""
    with path.open("rb") as file:
        found = file.read(_MOST + 1)
    if len(found) > _MOST:
        raise OSError(errno.EFBIG, f"it is longer than {_MOST >> 20} MiB")
    return found


def _copied(table: Any) -> Any:
    if isinstance(table, dict):
        return dict(table)
    return list(table) if isinstance(table, list) else table


# --- models ---------------------------------------------------------------------------------------------------------


class Tables:
    """Makes models out of merged tables. What is faulty is said and left out, so the rest is checked too."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._raw = sources.tables

    def known_only(self, model: type[BaseModel]) -> None:
        """A table that nobody knows is a fault: a misspelt one must never pass in silence."""
        for name in self._raw:
            if name not in model.model_fields:
                self.fault((name,), f"there is no such table{did_you_mean(name, model.model_fields)}")

    def fault(self, key: Key, says: str) -> None:
        self._sources.faults.append((self._sources.place(key), f"{'.'.join(key)}: {says}"))

    def table(self, value: Any, key: Key) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        self.fault(key, f"must be a table, as [{'.'.join(key)}], not {shown(value)}")
        return None

    def model(self, model: type[M], raw: Mapping[str, Any], key: Key) -> M | None:
        """The model; with faults, that of what is left without the faulty keys; None where that is too little."""
        context = {"base": self._sources.base}
        try:
            return model.model_validate(raw, context=context)
        except ValidationError as error:
            for path, says in faults_of(error, model, key):
                self.fault(path, says)
            bad = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        try:
            return model.model_validate({name: raw[name] for name in raw if name not in bad}, context=context)
        except ValidationError:
            return None

    def section(self, model: type[M], name: str) -> M:
        raw = self.table(self._raw.get(name, {}), (name,)) or {}
        return self.model(model, raw, (name,)) or model()

    def listed(self, name: str, model: type[M], enough: int | None = None) -> tuple[M, ...]:
        """The tables [[name]], in their order; none that follow so many faults."""
        raw = self._raw.get(name, [])
        if not isinstance(raw, list):
            self.fault((name,), f"must be a list of tables, each begun by [[{name}]], not {shown(raw)}")
            return ()
        found = []
        for index, each in enumerate(raw):
            if enough is not None and len(self._sources.faults) >= enough:
                break
            key = (name, str(index))
            table = self.table(each, key)
            made = self.model(model, table, key) if table is not None else None
            if made is not None:
                found.append(made)
        return tuple(found)


class _Reader(Tables):
    """Makes the configuration."""

    def config(self, root: Path | None) -> Config:
        self.known_only(Config)
        settled = self.section(Sorter, "sorter")
        if root is not None:
            settled = settled.model_copy(update={"root": root})
        config = Config(
            sorter=settled,
            receive=self.section(Receive, "receive"),
            senders=self.listed("senders", Sender),
            watch=self.listed("watch", Watch),
            completion=self.section(Completion, "completion"),
            delivery=self.section(Delivery, "delivery"),
            store=self.section(Store, "store"),
            engine=self.section(Engine, "engine"),
            door=self.section(DoorConfig, "door"),
            labs=self._named("labs", LabConfig),
            targets=self._targets(),
            plugins=self._plugins(),
        )
        config._places, config._name, config._root_mode = self._sources.places, self._sources.name, root is not None
        config._base = self._sources.base
        from sorter.config.checks import check

        for key, says in check(config, self._raw):
            self.fault(key, says)
        return config

    def _tables(self, name: str) -> dict[str, dict[str, Any]]:
        """The tables [name.NAME]; a name becomes a part of paths, so only plain ones are allowed."""
        found = {}
        for each, value in (self.table(self._raw.get(name, {}), (name,)) or {}).items():
            key = (name, each)
            if not _NAME.fullmatch(each):
                self.fault(key, "a name has letters, digits, - and _ only, 64 at most, and begins with no - or _")
                continue
            table = self.table(value, key)
            if table is not None:
                found[each] = table
        return found

    def _named(self, name: str, model: type[M]) -> dict[str, M]:
        made = {each: self.model(model, raw, (name, each)) for each, raw in self._tables(name).items()}
        return {each: value for each, value in made.items() if value is not None}

    def _targets(self) -> dict[str, TargetConfig]:
        found = {}
        for name, raw in self._tables("targets").items():
            key = ("targets", name)
            for path, says in _not_json(raw, key):
                self.fault(path, says)
            target = self.model(TargetConfig, raw, key)
            model = OWN_KINDS.get(target.kind) if target is not None else None
            if target is not None and model is not None:
                settings = self.model(model, target.settings, key)
                plain = settings.plain() if settings is not None else {}
                target = TargetConfig.model_validate({"kind": target.kind, **plain})
            if target is not None:
                found[name] = target
        self._ports_of(found)
        return found

    def _ports_of(self, targets: Mapping[str, TargetConfig]) -> None:
        """No two nodes may report to one port: each target listens in a process of its own."""
        taken: dict[Any, str] = {}
        for name, target in targets.items():
            port = target.settings.get("commitment_port") if target.kind in OWN_KINDS else None
            if port is not None and taken.setdefault(port, name) != name:
                self.fault(("targets", name, "commitment_port"), f"is that of [targets.{taken[port]}] already")

    def _plugins(self) -> dict[str, dict[str, Any]]:
        # Their names are those of modules and distributions, and never become a path: any name will do.
        raw = self.table(self._raw.get("plugins", {}), ("plugins",)) or {}
        return {name: table for name in raw if (table := self.table(raw[name], ("plugins", name))) is not None}


OWN_KINDS: Mapping[str, type[PathSettings | NodeSettings | RcloneSettings]] = {
    "path": PathSettings,
    "dicom": NodeSettings,
    "rclone": RcloneSettings,
}
"""The kinds of target that sorter brings, whose settings it knows."""


def _not_json(value: Any, key: Key) -> list[tuple[Key, str]]:
    """Settings of a target are handed to its worker as JSON, which knows no dates."""
    if isinstance(value, Mapping):
        return [fault for name, item in value.items() for fault in _not_json(item, (*key, name))]
    if isinstance(value, list):
        return [fault for index, item in enumerate(value) for fault in _not_json(item, (*key, str(index)))]
    if isinstance(value, datetime.date | datetime.time):
        return [(key, "write dates and times in quotes")]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return [(key, "must be a finite number")]
    return []


# --- faults of models, in plain words -------------------------------------------------------------------------------

_PLAIN = {
    "string_type": "must be text in quotes",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "tuple_type": 'must be a list, as ["…"]',
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


def faults_of(error: ValidationError, model: type[BaseModel], top: Key) -> list[tuple[Key, str]]:
    """Each fault as the key it is at, and a sentence for a person who never heard of pydantic."""
    found: dict[Key, str] = {}
    given: dict[Key, Any] = {}  # a hostile hand makes a hundred thousand faults: each is looked at once
    for item in error.errors():
        path = _below(model, item["loc"])
        for length in range(len(item["loc"]) + 1):
            given.setdefault(tuple(map(str, item["loc"][:length])), item["input"])
        says = _sentence(item, model, path)
        known = found.get((*top, *path))
        # Of a union each member complains: a text or a number.
        found[(*top, *path)] = f"{known} or {says.removeprefix('must be ')}" if known and known != says else says
    return [(key, _with_value(says, given.get(key[len(top) :]))) for key, says in found.items()]


def _below(model: type[BaseModel], loc: Sequence[str | int]) -> Key:
    """A fault's location without what pydantic adds to tell the members of a union apart."""
    parts = [str(part) for part in loc]
    if len(parts) > 1 and parts[0] in model.model_fields:
        table = _table_in(model, parts[0])
        rest = _below(table, parts[1:]) if table else tuple(part for part in parts[1:] if part.isdigit())
        return (parts[0], *rest)
    return tuple(parts)


def _table_in(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model of a table inside a table, as [receive.tls]."""
    annotation = model.model_fields[key].annotation
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _sentence(item: Mapping[str, Any], model: type[BaseModel], path: Key) -> str:
    kind, context = item["type"], item.get("ctx") or {}
    if kind == "extra_forbidden":
        table = (_table_in(model, path[0]) or model) if len(path) > 1 else model
        return f"there is no such key{did_you_mean(path[-1], table.model_fields)}"
    if kind == "missing":
        return "must be given"
    if kind == "value_error":
        cause = context.get("error")
        return f"{cause}{did_you_mean(cause.word, cause.known)}" if isinstance(cause, Unknown) else str(cause)
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
        return next(f"must be {words[name]} {limit:g}" for name, limit in context.items())
    if kind == "literal_error":
        return f"must be {str(context['expected']).replace(chr(39), chr(34))}"
    if kind in ("string_too_long", "too_long"):
        return f"must have at most {context['max_length']} {'characters' if kind == 'string_too_long' else 'entries'}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return 'must be an octal number in quotes, as "022"'
    return _PLAIN.get(kind, str(item["msg"]))


def _with_value(says: str, value: Any) -> str:
    """The value that was given behind a sentence that does not show it yet."""
    if not says.startswith("must be ") or ", not " in says or says == "must be given":
        return says
    return f"{says}, not {shown(value)}"
