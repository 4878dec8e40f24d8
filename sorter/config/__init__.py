"""The configuration: `sorter.toml` and `sorter.d/*.toml` beside it, as frozen models. All faults are told at once."""

from sorter.config.certificates import remark, server_context
from sorter.config.config import UNASSIGNED, Config
from sorter.config.models import Completion, Engine, LabConfig, Node, Receive, Sender, Sorter, Store, TargetConfig
from sorter.config.names import unknown_names
from sorter.config.reading import SYSTEM_CONFIG, NoConfiguration, load
from sorter.config.rewriting import with_lab_root

__all__ = [
    "SYSTEM_CONFIG", "UNASSIGNED", "Completion", "Config", "Engine", "LabConfig", "NoConfiguration", "Node", "Receive",
    "Sender", "Sorter", "Store", "TargetConfig", "load", "remark", "server_context", "unknown_names",
    "with_lab_root",
]  # fmt: skip
