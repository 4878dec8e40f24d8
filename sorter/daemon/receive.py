"""The receiving process: the storage SCP, and nothing else. It shares only the spool's folder with the sorter."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from sorter.config import Config
from sorter.durable import Files
from sorter.receive import Receiver, ReceiveSettings
from sorter.spool import Spool

FINISH_WITHIN = 25.0
"""Seconds that associations have to finish the instance they are at."""


def run_receive(
    config: Config, ready: Callable[[int], None], watch: Callable[[Callable[[], None]], None] | None
) -> None:
    """Receive until SIGTERM or SIGINT; `ready` is told the port once it answers.

    `watch`, if given, is handed a function that ends the receiver, to be called when the supervisor is gone.
    """
    files = Files()
    spool = Spool(config.spool, files)
    spool.create()
    settings = ReceiveSettings(config.receive.ae_title, config.receive.host, config.receive.port)
    receiver = Receiver(settings, spool.received, files)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ready(receiver.start())
    if watch is not None:
        watch(stop.set)
    stop.wait()
    receiver.stop(FINISH_WITHIN)
