"""A TCP port for a server that a test starts."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

LOWEST = 10_240
_HANDED_OUT_BY_THE_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago.

    It lies below the ports that the kernel gives to outgoing connections: of those, any may be taken by a client that
    runs beside the test between this answer and the moment at which the server listens.
    """
    highest = int(_HANDED_OUT_BY_THE_KERNEL.read_text(encoding="ascii").split()[0])
    while True:
        port = LOWEST + secrets.randbelow(max(1, highest - LOWEST))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
