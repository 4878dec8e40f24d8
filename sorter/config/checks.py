"""What no single table shows: keys of a configuration that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from sorter.config.config import UNASSIGNED, Config
from sorter.config.places import Key
from sorter.config.real import leads_to
from sorter.errors import did_you_mean

Fault: TypeAlias = tuple[Key, str]


def check(config: Config, raw: Mapping[str, Any]) -> Iterator[Fault]:
    """The faults between tables. `raw` says what was written, for what could not be read is still known by name."""
    yield from _spool(config, raw)
    yield from _senders(raw)
    yield from _places(config, raw)
    yield from _waiting(config, raw)
    yield from _names(config)
    yield from _users(config)
    yield from _targets(config, raw)
    yield from _engine(config)
    yield from folders(config)


def _engine(config: Config) -> Iterator[Fault]:
    slurm = config.engine.slurm
    if config.engine.kind == "slurm" and slurm is None:
        says = 'needs a folder that the nodes see too: write [engine.slurm] with shared = "/cluster/sorter"'
        yield ("engine", "kind"), says
    for name in slurm.labs if slurm is not None else ():
        if name not in config.labs:
            yield ("engine", "slurm", "labs", name), f"there is no lab {name}{did_you_mean(name, config.labs)}"


def _spool(config: Config, raw: Mapping[str, Any]) -> Iterator[Fault]:
    written = raw.get("sorter")
    tried = isinstance(written, Mapping) and ({"root", "spool"} & written.keys())
    if config.root is None and config.sorter.spool is None and not tried:
        yield ("sorter", "root"), 'must be given: the folder that everything is kept below, as root = "/srv/sorter"'


def _senders(raw: Mapping[str, Any]) -> Iterator[Fault]:
    for index, each in enumerate(raw["senders"] if isinstance(raw.get("senders"), list) else ()):
        if isinstance(each, Mapping) and not {"ae", "address"} & each.keys():
            yield ("senders", str(index)), "says of no sender who it is; give ae, address, or both"


def _places(config: Config, raw: Mapping[str, Any]) -> Iterator[Fault]:
    given = config.receive
    if given.reserve >= given.associations:
        says = f"{given.reserve} of {given.associations} associations would leave none for others; make it less"
        yield ("receive", "reserve"), says
    if given.strangers is False and not raw.get("senders"):
        yield ("receive", "strangers"), "nobody could send, as there are no [[senders]]; list them, or leave this out"
    tls = given.tls
    if tls is not None and tls.port and tls.port == given.port and _may_be_one({given.host, tls.host or given.host}):
        says = f"{tls.port} is the port of [receive] too, where no TLS is spoken; choose another for one of the two"
        yield ("receive", "tls", "port"), says


def _may_be_one(hosts: set[str]) -> bool:
    """Whether one port cannot be listened on twice at these addresses."""
    return len(hosts) == 1 or not hosts.isdisjoint({"0.0.0.0", "::"})  # noqa: S104


def _waiting(config: Config, raw: Mapping[str, Any]) -> Iterator[Fault]:
    timing, written = config.completion, raw.get("completion")
    as_written = isinstance(written, Mapping) and written.get("cap", timing.cap) == timing.cap
    if as_written and timing.quiet > timing.cap:
        yield (
            ("completion", "quiet"),
            f"{timing.quiet:g} s is longer than cap ({timing.cap:g} s), which would end it first; raise cap too",
        )


def _names(config: Config) -> Iterator[Fault]:
    for table, named in (("labs", config.labs), ("targets", config.targets)):
        if UNASSIGNED in named:
            yield (table, UNASSIGNED), "this name is taken: it stands for series that no lab has"
    for name in config.targets:
        if name in config.labs:
            yield ("targets", name), f"a lab's root is a target of its name already ({config.locate('labs', name)})"


def _users(config: Config) -> Iterator[Fault]:
    for name, lab in config.labs.items():
        if lab.user and lab.root is None:
            says = f"{lab.user} needs a folder of its own; give root, a folder that this account may write to"
            yield ("labs", name, "user"), says
        if lab.python is not None and not lab.user:
            yield ("labs", name, "python"), "runs only as an account of the lab's own; give user too"


def _targets(config: Config, raw: Mapping[str, Any]) -> Iterator[Fault]:
    written = raw.get("targets")
    known = [*config.labs, *config.targets, *(written if isinstance(written, Mapping) else ())]
    for name, lab in config.labs.items():
        for key, targets in (("targets", lab.targets), ("on_demand", lab.on_demand)):
            for index, target in enumerate(targets):
                if target not in known:
                    says = f'there is no target "{target}"{did_you_mean(target, known) or f"; add [targets.{target}]"}'
                    yield ("labs", name, key, str(index)), says


def folders(config: Config) -> Iterator[Fault]:
    """No two folders that sorter writes to, or takes from, may be one, or lie in each other: whose would be what is in
    them? What was delivered would be taken again."""
    seen: list[tuple[Key, Path]] = []
    if config.root is not None or config.sorter.spool is not None:
        seen.append((("sorter", "spool"), config.spool))
    for key, folder in _roots(config):
        if folder is None:
            yield key, f"must be given, as there is no root in [sorter] (then it would be labs/{key[1]} below it)"
            continue
        for other, place in seen:
            says = _overlap(folder, place) or _really(leads_to(folder), leads_to(place))
            if says:
                yield key, f"{folder} {says} {_called(config, other, place)}"
        seen.append((key, folder))


def _roots(config: Config) -> Iterator[tuple[Key, Path | None]]:
    for name, lab in config.labs.items():
        root = lab.root or (config.root / "labs" / name if config.root is not None else None)
        yield ("labs", name, "root"), root
    for name, target in config.targets.items():
        if target.kind == "path" and "root" in target.settings:
            yield ("targets", name, "root"), Path(target.settings["root"])
    for index, watch in enumerate(config.watch):
        yield ("watch", str(index), "path"), watch.path
    if config.engine.slurm is not None:
        yield ("engine", "slurm", "shared"), config.engine.slurm.shared


def _overlap(folder: Path, other: Path) -> str:
    if folder == other:
        return "is also"
    if other in folder.parents:
        return "lies inside"
    return "holds" if folder in other.parents else ""


def _really(folder: Path, other: Path) -> str:
    """The same, of the folders that links lead to.
    A link that is made later is not seen here; but no root without a marker is delivered to."""
    says = _overlap(folder, other)
    return f"leads to {folder}, which {says}" if says else ""


def _called(config: Config, key: Key, folder: Path) -> str:
    what = f"the root of {key[0].removesuffix('s')} {key[1]}"
    if key == ("sorter", "spool"):
        what = "the spool"
    elif key[0] == "watch":
        what = "a folder that is watched"
    return f"{what} ({folder}, {config.locate(*key)}); choose folders apart from each other"
