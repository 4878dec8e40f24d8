"""The receiving process: the storage SCP, and nothing else. It shares only the spool's folder with the sorter."""

from __future__ import annotations

import signal
from collections.abc import Callable

from sorter.config import Config
from sorter.durable import Files
from sorter.receive import Receiver, ReceiveSettings, run
from sorter.spool import Spool


def run_receive(config: Config, ready: Callable[[int], None]) -> None:
    """Receive until SIGTERM or SIGINT; `ready` is told the port once it answers."""
    files = Files()
    spool = Spool(config.spool, files)
    spool.create()
    settings = ReceiveSettings(config.receive.ae_title, config.receive.host, config.receive.port)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing here can change while the port is open
    run(Receiver(settings, spool.received, files), ready)
