"""Keeps workers for `sort` under the account that a lab's files shall belong to; started by systemd as that account.

    python -m sorter.deliver.keeper FOLDER --of ACCOUNT        sorter-worker@.service does it

FOLDER is where `sort` listens, on a socket for each target of this account. The keeper touches no target, so nothing
can hang it. It is connected to each socket once more than there is work: when `sort` speaks there, the connection goes
to a worker, started anew, and the keeper comes with another. Whoever listens there has to be ACCOUNT, which sorter runs
as: the kernel says so. Where nobody listens it tries again, for ever.
"""

from __future__ import annotations

import os
import pwd
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from sorter.deliver.workers import near, peer_uid, start_worker
from sorter.durable import Files

_AGAIN = 2.0  # seconds between two looks for sockets where nobody waits yet


class Keeper:
    """Comes to the sockets in `folder`, whose listener has to be the account `uid`."""

    def __init__(self, folder: str, uid: int) -> None:
        self._folder, self._uid, self._files = folder, uid, Files()
        self._said = ""
        self._waiting: dict[str, socket.socket] = {}  # by the socket's name; nobody has spoken there yet
        self._workers: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        while True:
            self.turn(_AGAIN)

    def turn(self, patience: float) -> None:
        """Come where nobody waits, then wait at most `patience` seconds for somebody to speak."""
        self._come()
        self._workers = [each for each in self._workers if each.poll() is None]
        if not self._waiting:
            time.sleep(patience)
            return
        spoken, _, _ = select.select(list(self._waiting.values()), [], [], patience)
        names = [name for name, each in self._waiting.items() if each in spoken]
        handed_over = [self._hand_over(self._waiting.pop(name)) for name in names]
        if not all(handed_over):
            time.sleep(patience)  # sorter ends, or does not want us: no hurry

    def _come(self) -> None:
        try:
            names = self._files.names(self._folder)
        except OSError as error:
            self._say(f"{self._folder}: {error.strerror}; is sorter running, and this account the user of a lab?")
            return
        for name in names:
            if name not in self._waiting:
                connected = self._connected(name)
                if connected is not None:
                    self._waiting[name] = connected

    def _connected(self, name: str) -> socket.socket | None:
        path, connected = os.path.join(self._folder, name), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)  # one whose queue is full keeps nobody else waiting
            with self._files.opened(self._folder, os.O_PATH | os.O_DIRECTORY) as at:
                connected.connect(near(at, name))
            connected.setblocking(True)
        except OSError as error:  # sorter does not run, or the socket is of a target that is no more
            connected.close()
            self._say(f"{path}: {error.strerror or error}; trying again")
            return None
        uid = peer_uid(connected)
        if uid != self._uid:
            connected.close()
            self._say(f"{path} is account {uid}'s, not sorter's ({self._uid}): nothing is taken from there")
            return None
        return connected

    def _hand_over(self, connected: socket.socket) -> bool:
        """To a worker; False where nobody spoke, but the other side has gone."""
        with connected:
            try:
                speaks = bool(connected.recv(1, socket.MSG_PEEK))
            except OSError:
                speaks = False
            if speaks:
                self._workers.append(start_worker(connected))
        return speaks

    def _say(self, what: str) -> None:
        """Once, on standard error, which systemd writes to its journal."""
        if what != self._said:
            print(what, file=sys.stderr, flush=True)  # noqa: T201
        self._said = what


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case [folder, "--of", account]:
            try:
                uid = pwd.getpwnam(account).pw_uid
            except KeyError:
                raise SystemExit(f"there is no account {account!r} on this machine") from None
            Keeper(folder, uid).run()
    raise SystemExit("usage: python -m sorter.deliver.keeper FOLDER --of ACCOUNT")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
