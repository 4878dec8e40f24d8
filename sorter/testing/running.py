"""A sorter that really runs, on loopback, in processes of its own: for tests, of ours and of plugin authors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sorter.durable import Files
from sorter.scu.storage import send
from sorter.spool import Spool, UnitSummary
from sorter.summaries import summaries
from sorter.testing.synthetic import Made, write_series
from sorter.testing.waiting import wait_until


class RunningSorter:
    """`sorter serve` below `root`, on a free port, in a process group of its own.

    `with RunningSorter(tmp_path) as sorter:` starts it and waits until the port answers. The configuration, if any, is
    the text of a sorter.toml. What it says on standard error is in `log`. `prefix` is a command that
    runs it, as `setpriv --reuid 1000`.
    """

    def __init__(self, root: Path, *, quiet: float = 1.0, config: str = "", prefix: Sequence[str] = ()) -> None:
        self.root, self.quiet, self.prefix = root, quiet, prefix
        self.port = 0
        self.log = root / "serve.log"
        self.spool = Spool(root / "spool", Files())
        self.labs = root / "labs"
        self._process: subprocess.Popen[str] | None = None
        root.mkdir(parents=True, exist_ok=True)
        self._config = root / "sorter.toml"
        self._config.write_text(config)

    def __enter__(self) -> RunningSorter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it prints that it is ready."""
        arguments = ["-c", str(self._config), "--root", str(self.root)]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *self.prefix,
                    sys.executable,
                    "-m",
                    "sorter",
                    "serve",
                    *arguments,
                    "--port",
                    str(self.port),
                    "--quiet",
                    str(self.quiet),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready"):
            raise AssertionError(f"sorter did not become ready: {line!r}\n{self.log.read_text()}")
        self.port = int(line.split(" on ")[1].split(",")[0].rpartition(":")[2])

    def stop(self) -> int:
        """SIGTERM, as an admin would; its exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        code = self._process.wait(timeout=40)
        self._close()
        return code

    def kill(self) -> None:
        """kill -9 of everything that was started, at once: the supervisor, its children, and theirs."""
        assert self._process is not None
        group, everything = self._process.pid, _descendants(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)  # those too that are being started at this moment
        for pid in everything:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not _running(group, everything), 20, "what was killed to be gone, and its port with it")
        self._close()

    def reload(self, config: str) -> None:
        """A new configuration, and SIGHUP."""
        assert self._process is not None
        self._config.write_text(config)
        self._process.send_signal(signal.SIGHUP)

    def _close(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def workers(self) -> set[int]:
        """The processes that deliver to its targets."""
        assert self._process is not None
        found = set()
        for pid in _descendants(self._process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"sorter.deliver.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(pid)
        return found

    # --- what it is sent, and what happens then -----------------------------------------------------------------

    def send(self, made: Made, *, calling: str = "SCANNER") -> None:
        """Send a series by C-STORE as a scanner would: in one association. AssertionError if an image is refused."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            paths = [Path(each) for each in write_series(folder, made)]
            report = send(paths, "127.0.0.1", self.port, called="SORTER", calling=calling, progress=lambda _: None)
        assert report.sent == len(paths), report.refused

    def events(self, kind: str, **details: str) -> list[Mapping[str, Any]]:
        """What happened of this kind so far, oldest first; `docs/plugins.md` lists the kinds and their details."""
        lines = (line for path in sorted(self.spool.journal.glob("*.jsonl")) for line in path.read_text().splitlines())
        found = (json.loads(line) for line in lines)
        return [each for each in found if each["kind"] == kind and details.items() <= each.items()]

    def wait_event(self, kind: str, timeout: float = 60.0, **details: str) -> Mapping[str, Any]:
        """The first event of this kind, once it happened."""
        return wait_until(lambda: next(iter(self.events(kind, **details)), None), timeout, f"{kind} to happen")

    # --- what it knows ------------------------------------------------------------------------------------------

    def series(self) -> list[UnitSummary]:
        """The summaries of all series it has."""
        return list(summaries(self.spool))

    def wait_delivered(self, images: int, timeout: float = 60.0) -> list[UnitSummary]:
        """Until so many images are in series that are all delivered; AssertionError says what is missing."""

        def delivered() -> list[UnitSummary] | None:
            with contextlib.suppress(FileNotFoundError):
                found = self.series()
                done = all(each.state == "delivered" for each in found)
                if done and sum(each.images for each in found) == images:
                    return found
            return None

        try:
            return wait_until(delivered, timeout, f"{images} images to be delivered")
        except AssertionError as error:
            states = "\n".join(f"{each.key[:8]} {each.images} {each.state}: {each.why}" for each in self.series())
            raise AssertionError(f"{error}\n{states}\n{self.log.read_text()[-4000:]}") from None


def _running(group: int, pids: Sequence[int]) -> list[int]:
    """Which of these processes, and of those of this process group, there are still, zombies left out; from /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            pid = int(path.parent.name)
            if state != "Z" and (int(its_group) == group or pid in pids):
                found.append(pid)
    return found


def _descendants(pid: int) -> list[int]:
    """Of a process, those of each of its threads, children first; from /proc."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found
