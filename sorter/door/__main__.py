"""The process behind the door, started by `sort` when somebody knocks.

Its standard input brings one line of JSON, {"listener": a descriptor, "spool": …, "terms": …}, and its end is the end
of `sort`. What was asked for by then is cut off, and asked for again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from sorter.door.server import Server
from sorter.door.terms import Terms
from sorter.durable import Files
from sorter.model import build
from sorter.spool import Spool

LAZY = 10
"""How much nicer it is than `sort` (nice(2)): whoever asks without end takes no processor from the scanners' images."""


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # `sort` says when it is over
    os.nice(LAZY)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    told = json.loads(sys.stdin.readline())
    listener = socket.socket(fileno=told["listener"])
    Server(listener, Spool(Path(told["spool"]), Files()), build(Terms, told["terms"])).run(sys.stdin.fileno())
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # threads may wait for a client who never reads
