"""The receivers that are compared: how each is started, and what it costs while it runs.

Rivals come at their usual and at their best. All of them, ours too, run in this machine's loopback alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_HERE = Path(__file__).parent
_TICK = os.sysconf("SC_CLK_TCK")

NO_DELAY = {"TCP_NODELAY": "1"}  # DCMTK, and Orthanc which is built on it, wait for delayed ACKs without it


@dataclasses.dataclass(frozen=True)
class Kind:
    """A receiver, and the command that starts it on a port with a folder of its own."""

    name: str
    command: Callable[[Path, int], Sequence[str]]
    tool: str = sys.executable
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    starts: float = 60.0  # seconds that it may need

    @property
    def there(self) -> bool:
        return shutil.which(self.tool) is not None


def _sorter(folder: Path, port: int) -> Sequence[str]:
    return [sys.executable, "-m", "sorter", "receive", "--root", str(folder), "--port", str(port)]


def _storescp(*options: str) -> Callable[[Path, int], Sequence[str]]:
    # pynetdicom brings a command of this name too: take the one beside DCMTK's dcmsend
    tool = Path(shutil.which("dcmsend") or "/usr/bin/dcmsend").resolve().with_name("storescp")
    return lambda folder, port: [str(tool), *options, "-od", str(folder), str(port)]


def _orthanc(synced: bool) -> Callable[[Path, int], Sequence[str]]:
    def command(folder: Path, port: int) -> Sequence[str]:
        settings = {
            "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "index"),
            "DicomPort": port, "DicomAet": "SORTER", "HttpServerEnabled": False, "DicomAlwaysAllowStore": True,
            "SyncStorageArea": synced, "MaximumPduLength": 131072, "DicomThreadsCount": 16, "ConcurrentJobs": 1,
        }  # fmt: skip
        path = folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        return ["Orthanc", str(path)]

    return command


def _pynetdicom_handler(folder: Path, port: int) -> Sequence[str]:
    return [sys.executable, str(_HERE / "pynetdicom_scp.py"), str(folder), str(port)]


def _pynetdicom_app(folder: Path, port: int) -> Sequence[str]:
    return [sys.executable, "-m", "pynetdicom", "storescp", str(port), "-q", "-od", str(folder), "--max-pdu", "131072"]


SORTER = Kind("sorter", _sorter)
PLAIN = Kind("storescp", _storescp(), "dcmsend", NO_DELAY)
PLAIN_BEST = Kind("storescp +B -pdu 131072", _storescp("+B", "-pdu", "131072"), "dcmsend", NO_DELAY)
FORK = Kind("storescp --fork", _storescp("--fork"), "dcmsend", NO_DELAY)
FORK_BEST = Kind("storescp --fork +B -pdu 131072", _storescp("--fork", "+B", "-pdu", "131072"), "dcmsend", NO_DELAY)
ORTHANC = Kind("Orthanc", _orthanc(False), "Orthanc", NO_DELAY)
ORTHANC_SYNCED = Kind("Orthanc, synced", _orthanc(True), "Orthanc", NO_DELAY)
PYNETDICOM = Kind("pynetdicom, handler", _pynetdicom_handler)
PYNETDICOM_APP = Kind("pynetdicom storescp", _pynetdicom_app)
PLAIN_AS_PACKAGED = Kind("storescp, as packaged", _storescp(), "dcmsend")
ORTHANC_AS_PACKAGED = Kind("Orthanc, as packaged", _orthanc(False), "Orthanc")

STORESCP = (PLAIN, PLAIN_BEST, FORK, FORK_BEST)


class Receiver:
    """A running one. Its folder is made below `place`, and goes with it."""

    def __init__(self, kind: Kind, place: Path, port: int) -> None:
        self.kind, self.port = kind, port
        self.folder = place / kind.name.replace(" ", "_").replace(",", "")
        self.folder.mkdir()
        self.log = (place / f"{self.folder.name}.log").open("w")
        environment = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"} | kind.environment
        command = kind.command(self.folder, port)
        self._process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log, cwd=self.folder)
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + self.kind.starts
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{self.kind.name} does not answer; see {self.log.name}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log.close()

    def clear(self) -> None:
        """Remove what was stored (not what the receiver needs to go on)."""
        for path, _, names in os.walk(self.folder):
            for name in names:
                if "index" not in path and not name.endswith((".jsonl", ".json", "version", ".part")):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(path, name))

    def processes(self) -> list[int]:
        return [self._process.pid, *_below(self._process.pid)]

    def cpu(self) -> float:
        """Seconds that it and its children, also those that ended, have used so far."""
        return sum(_cpu(pid) for pid in self.processes())

    def pss(self) -> int:
        """Bytes of memory, shared pages counted by their share."""
        return sum(_pss(pid) for pid in self.processes())


def _below(pid: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _below(int(child))


def _cpu(pid: int) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15]) / _TICK  # its own, and of children it has waited for
    return 0.0


def _pss(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(rollup.split("\nPss:")[1].split()[0]) * 1024
    return 0
