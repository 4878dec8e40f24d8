"""The process of rclone (rclone.org) that one target has: `rclone rcd`, asked over HTTP on loopback.

Names go through that connection and never through arguments, and no secret does: those of the remotes are in rclone's
own configuration file, which the admin writes, and the password of this connection, drawn for each process, is handed
over in the environment, which other accounts cannot read. What rclone says is not logged: it names files. The process
ends with the one that began it, however that ends.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import re
import secrets
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping

from sorter.errors import Away, Held

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BEGIN = 20.0  # seconds for the process to say where it listens
_SERVES = re.compile(rb"remote control on http://127\.0\.0\.1:(\d+)/")

_SETTINGS = {
    "RCLONE_CONTIMEOUT": "10s",
    "RCLONE_TIMEOUT": "60s",
    "RCLONE_LOW_LEVEL_RETRIES": "2",
    # Else a file is not replaced by another of its size where the remote keeps no times (WebDAV), and success is said.
    "RCLONE_IGNORE_TIMES": "true",
    # Without these it runs md5sum at the server, where names would be arguments.
    "RCLONE_SFTP_DISABLE_HASHCHECK": "true",
    "RCLONE_SFTP_SHELL_TYPE": "none",
}

_MAY_BE_SET = (
    *("RCLONE_CONTIMEOUT", "RCLONE_TIMEOUT", "RCLONE_BWLIMIT", "RCLONE_TPSLIMIT", "RCLONE_BIND"),
    *("RCLONE_CA_CERT", "RCLONE_CLIENT_CERT", "RCLONE_CLIENT_KEY", "RCLONE_CONFIG_PASS"),
)
"""In sorter's environment. Any other would change what is copied, or write names down."""


class Process:
    """`rclone rcd` on a port of loopback that it chose itself; `config` is its configuration file."""

    def __init__(self, config: str) -> None:
        user, password = "sorter", secrets.token_hex(32)
        self.authorization = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        environment = {**_environment(), "RCLONE_RC_USER": user, "RCLONE_RC_PASS": password}
        command = ["rclone", "rcd", "--rc-addr", "127.0.0.1:0", "--rc-serve", "--log-level", "NOTICE"]
        try:
            self._process = subprocess.Popen(
                [*command, "--config", config], env=environment, cwd="/", preexec_fn=_end_with_us,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        except FileNotFoundError:
            raise Held("rclone is not installed; `apt install rclone`, then run `sorter retry`") from None
        weakref.finalize(self, _end, self._process)
        self.port = self._listens()
        threading.Thread(target=_drain, args=(self._process,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()

    def _listens(self) -> int:
        assert self._process.stderr is not None
        said, until, fd = b"", time.monotonic() + _BEGIN, self._process.stderr.fileno()
        while (left := until - time.monotonic()) > 0:
            if not select.select([fd], [], [], left)[0]:
                break
            more = self._process.stderr.read1(1 << 16)  # type: ignore[attr-defined]
            said = (said + more)[-(1 << 16) :]
            found = _SERVES.search(said)
            if found:
                return int(found[1])
            if not more:
                break
        _end(self._process)
        raise Away("rclone does not begin; try `rclone --config FILE listremotes` as the account that runs sorter")


def _environment() -> Mapping[str, str]:
    """Ours, without what would make rclone do otherwise. Its S3 does not begin with AWS_CA_BUNDLE."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "AWS_CA_BUNDLE" and (not name.startswith("RCLONE_") or name in _MAY_BE_SET)
    }
    return {**_SETTINGS, **kept}


_libc = ctypes.CDLL(None)


def _end_with_us() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _drain(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended, and is closed
        while process.stderr is not None and process.stderr.read1(1 << 16):  # type: ignore[attr-defined]
            pass
