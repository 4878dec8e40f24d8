"""Orthanc, as a peer of the second tier."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sorter.testing.waiting import wait_until


class Orthanc:
    """A running Orthanc: DICOM on 4242, its own interface on 8042. It listens on all addresses: `own_network`.

    `settings` are its own words, as StableAge.
    """

    DICOM = 4242

    def __init__(self, folder: Path, **settings: Any) -> None:
        program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            pytest.skip("Orthanc is not installed")
        folder.mkdir()
        config = {
            "Name": "peer", "StorageDirectory": str(folder), "IndexDirectory": str(folder),
            "HttpPort": 8042, "DicomPort": 4242, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False, "Plugins": [], "DicomAlwaysAllowStore": True, **settings,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(config))
        self._log = (folder / "log").open("w")
        environment = {**os.environ, "TCP_NODELAY": "1"}
        self._process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=self._log, stderr=subprocess.STDOUT, env=environment
        )
        wait_until(self._answers, 30, "Orthanc")

    def _answers(self) -> bool:
        try:
            return bool(self.ask("GET", "/system"))
        except OSError:
            return False

    def ask(self, method: str, path: str, body: bytes | dict[str, Any] | str | None = None) -> Any:
        data = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
        request = urllib.request.Request(f"http://127.0.0.1:8042{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"null")

    def hold(self, files: Sequence[Path]) -> list[str]:
        """Forget what was there and take these; their identifiers."""
        for study in self.ask("GET", "/studies"):
            self.ask("DELETE", f"/studies/{study}")
        return list(dict.fromkeys(self.ask("POST", "/instances", path.read_bytes())["ID"] for path in files))

    def peer(self, port: int) -> None:
        """This is where to send to."""
        self.ask(
            "PUT",
            "/modalities/sorter",
            {"AET": "SORTER", "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True},
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()
