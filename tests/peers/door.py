"""A port whose connections are handed on to another, in a process of its own: ended, it cuts them all.

python door.py PORT TO
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading


def main(port: int, to: int) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    while True:
        one = listening.accept()[0]
        other = socket.create_connection(("127.0.0.1", to))
        for a, b in ((one, other), (other, one)):
            threading.Thread(target=pump, args=(a, b), daemon=True).start()


def pump(a: socket.socket, b: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := a.recv(1 << 16):
            b.sendall(data)
    with contextlib.suppress(OSError):
        b.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
