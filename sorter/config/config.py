"""A configuration that was read, and the questions the rest of sorter asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr

from sorter.config.models import (
    Completion,
    Delivery,
    DoorConfig,
    Engine,
    LabConfig,
    PathSettings,
    Receive,
    Section,
    Sender,
    Sorter,
    Store,
    TargetConfig,
    Watch,
)
from sorter.config.places import Key
from sorter.errors import SorterError

UNASSIGNED = "unassigned"
"""The target, with `--root`, of series that no lab has."""


class Config(Section):
    """All tables of the configuration, defaults filled in, paths absolute. Made by `sorter.config.load`."""

    sorter: Sorter = Sorter()
    receive: Receive = Receive()
    senders: tuple[Sender, ...] = ()
    watch: tuple[Watch, ...] = ()
    completion: Completion = Completion()
    delivery: Delivery = Delivery()
    store: Store = Store()
    engine: Engine = Engine()
    door: DoorConfig = DoorConfig()
    labs: dict[str, LabConfig] = Field(default_factory=dict)
    targets: dict[str, TargetConfig] = Field(default_factory=dict)
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """`[plugins.NAME]`: settings of one plugin, checked by the plugin itself."""

    _places: Mapping[Key, str] = PrivateAttr(default_factory=dict)
    _name: str = PrivateAttr(default="")
    _base: Path = PrivateAttr(default=Path())
    _root_mode: bool = PrivateAttr(default=False)

    @property
    def root(self) -> Path | None:
        """The folder that everything is below where nothing else is said; None if every path was given."""
        return self.sorter.root

    @property
    def spool(self) -> Path:
        """The spool folder, absolute."""
        if self.sorter.spool is not None:
            return self.sorter.spool
        if self.sorter.root is None:
            raise SorterError("no spool is configured; set root or spool in [sorter], or give --root DIR")
        return self.sorter.root / "spool"

    @property
    def socket(self) -> Path:
        """Where accounts that may not read the spool are answered."""
        return self.door.socket or self.spool / "run" / "sock"

    @property
    def plugins_folder(self) -> Path | None:
        """The admin's folder of single-file plugins, or None."""
        return self.sorter.plugins

    @property
    def admits_strangers(self) -> bool:
        """Whether senders that are not listed may send."""
        return not self.senders if self.receive.strangers is None else self.receive.strangers

    @property
    def called(self) -> frozenset[str] | None:
        """The AE titles that may be called; None for any."""
        match self.receive.called:
            case "any":
                return None
            case "own":
                return frozenset({self.receive.ae_title})
        return frozenset(self.receive.called)

    def lab_root(self, name: str) -> Path:
        """The folder of a lab (or of `unassigned`, with `--root`). SorterError where there is no such lab."""
        lab = self.labs.get(name)
        if lab is not None and lab.root is not None:
            return lab.root
        if self.root is None or (lab is None and not self._is_unassigned(name)):
            raise SorterError(f"lab {name} is not configured: add [labs.{name}]")
        return self.root / "labs" / name

    def _is_unassigned(self, name: str) -> bool:
        return self._root_mode and name == UNASSIGNED

    def is_default_root(self, name: str) -> bool:
        """Whether the root of this target was chosen by sorter, below its own root, and by nobody else."""
        lab = self.labs.get(name)
        return lab.root is None if lab is not None else self._is_unassigned(name)

    def all_targets(self) -> Mapping[str, TargetConfig]:
        """Every target by name: the labs' own roots first, then the configured ones; paths are text."""
        found = {name: self._own(name) for name in self.labs}
        if self._root_mode:
            found[UNASSIGNED] = self._own(UNASSIGNED)
        return {**found, **self.targets}

    def folders(self) -> dict[str, Path]:
        """By name of a target: its folder, where it is one."""
        return {name: Path(str(each.settings["root"])) for name, each in self.all_targets().items()
                if each.kind == "path" and "root" in each.settings}  # fmt: skip

    def granted(self, lab: str) -> tuple[str, ...]:
        """The targets that this lab may have copies made to: its own root first."""
        own = self.labs[lab]
        return tuple(dict.fromkeys((lab, *own.targets, *own.on_demand)))

    def _own(self, name: str) -> TargetConfig:
        lab = self.labs.get(name)
        group, umask = (lab.group, lab.umask) if lab else (None, None)
        settings = PathSettings(root=self.lab_root(name), group=group, umask=umask)
        return TargetConfig.model_validate({"kind": "path", **settings.plain()})

    def locate(self, *key: str | int) -> str:
        """Where a key stands, as "sorter.toml:11"; where it does not stand, the nearest table that should hold it."""
        parts = tuple(str(part) for part in key)
        for length in range(len(parts), 0, -1):
            if parts[:length] in self._places:
                return self._places[parts[:length]]
        return self._name or "--root"

    def file_of(self, *key: str | int) -> Path | None:
        """The file in which a key stands, or should; None where there is no file."""
        name, _, line = self.locate(*key).rpartition(":")
        return self._base / name if self._name and line.isdigit() else None

    def with_receive(self, *, host: str | None = None, port: int | None = None) -> Config:
        """The same, listening elsewhere. ConfigError where there is no such host."""
        from sorter.config.reading import revised

        given = {"host": host, "port": port}
        return self.model_copy(update={"receive": revised(self.receive, "receive", given)})

    def with_quiet(self, quiet: float | None) -> Config:
        """The same, with another quiet time in seconds; the cap is never below it."""
        from sorter.config.reading import revised

        given = {"quiet": quiet, "cap": None if quiet is None else max(quiet, self.completion.cap)}
        return self.model_copy(update={"completion": revised(self.completion, "completion", given)})
