"""The receiving processes: the storage SCP, and nothing else. They share only the spool's folder with the sorter."""

from __future__ import annotations

import signal
from collections.abc import Callable

from sorter.config import Config
from sorter.durable import Files
from sorter.receive import Job, ReceiveSettings, run
from sorter.spool import Spool


def run_receive(config: Config, ready: Callable[[int], None], over: Callable[[], bool]) -> None:
    """Receive until SIGTERM or SIGINT, or until `over`; `ready` is told the port once it answers."""
    files = Files()
    spool = Spool(config.spool, files)
    spool.create()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing here can change while the port is open
    run(Job(settings_of(config), spool.received, files), ready, over)


def settings_of(config: Config) -> ReceiveSettings:
    """What the configuration says to the receiver."""
    given = config.receive
    kept = Spool(config.spool, Files()).commitments if given.commitment != "off" else None
    return ReceiveSettings(given.ae_title, given.host, given.port, given.processes, commitments=kept)
