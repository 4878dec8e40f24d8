"""Real senders, real processes: a study settles, its lab gets a mail, and nothing is told twice after kill -9."""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sorter.cli.main import sorter as command
from sorter.durable import Files
from sorter.spool.studies import StudyRecords, study_key
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.crash.scenario import as_file, data_set

pytestmark = pytest.mark.dcmtk

PLUGINS = Path(__file__).parents[2] / "docs" / "plugins.md"
CONFIG = """
[sorter]
plugins = "plugins"

[completion]
study = 60

[labs.memory]
match = ["Modality=MR"]
products = ["dicom"]
expect = ["T1*", "rest* x2"]

[plugins.mail]
host = "127.0.0.1"
port = {port}
from = "sorter@example.org"
to = {{memory = "memory-lab@example.org"}}
"""


class MailHandler(socketserver.StreamRequestHandler):
    """As much of SMTP (RFC 5321) as a client of one message needs."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go on\r\n")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.mails.append(text.decode())  # type: ignore[attr-defined]
            self.wfile.write(b"250 good\r\n")
            if line.upper().startswith(b"QUIT"):
                return


@pytest.fixture
def mailbox() -> Iterator[tuple[int, list[str]]]:
    """A mail server on a port of its own, and what came to it."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), MailHandler) as server:
        server.mails = mails = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], mails
        server.shutdown()
        thread.join()


def write(folder: Path, study: str, subject: str, **descriptions: int) -> Path:
    """A study as files: three images of each series."""
    folder.mkdir()
    for series, description in enumerate(descriptions, 1):
        for number in (1, 2, 3):
            data = data_set(number, series=series, study=study, subject=subject, description=description)
            (folder / f"{series}-{number}.dcm").write_bytes(as_file(data))
    return folder


def send(dcmtk: Any, port: int, folder: Path) -> None:
    dcmtk.run("storescu", "-aec", "SORTER", "127.0.0.1", port, "+sd", folder)


def told(sorter: RunningSorter) -> list[dict[str, str]]:
    lines = [line for path in sorted(sorter.spool.journal.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [found for line in lines if (found := json.loads(line))["kind"] == "study_settled"]


def known_as_told(sorter: RunningSorter, study: str) -> bool:
    record = StudyRecords(sorter.spool.studies, Files()).read(study_key(study))
    return record is not None and record.told


def says(sorter: RunningSorter, *arguments: str) -> str:
    result = CliRunner().invoke(
        command, [*arguments, "-c", str(sorter.root / "sorter.toml"), "--root", str(sorter.root)]
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_the_next_study_settles_the_first_and_the_lab_gets_a_mail(
    tmp_path: Path, dcmtk: Any, mailbox: tuple[int, list[str]]
) -> None:
    port, mails = mailbox
    plugins = tmp_path / "site" / "plugins"
    plugins.mkdir(parents=True)
    plugins.chmod(0o755)
    (code,) = re.findall(r"<!-- file: mail.py -->\n```python\n(.*?)```", PLUGINS.read_text(), re.DOTALL)
    (plugins / "mail.py").write_text(code)
    (plugins / "mail.py").chmod(0o644)
    one = write(tmp_path / "one", "1.2.826.0.1.1", "P1", T1_mprage=1, rest_1=1)
    two = write(tmp_path / "two", "1.2.826.0.1.2", "P2", T1_mprage=1)

    with RunningSorter(tmp_path / "site", config=CONFIG.format(port=port)) as sorter:
        send(dcmtk, sorter.port, one)
        sorter.wait_delivered(6)
        assert "1 study waits to settle" in says(sorter, "status")
        assert told(sorter) == []
        send(dcmtk, sorter.port, two)
        wait_until(lambda: mails, 30, "the mail about the first study")
        assert "Subject: P1 20260102: 2 series are here" in mails[0]
        assert "   1  T1_mprage: 3 images, quiet" in mails[0]
        assert "expected rest* twice, came once" in mails[0]
        wait_until(lambda: known_as_told(sorter, "1.2.826.0.1.1"), what="that it was told is durable")
        sorter.kill()

        sorter.start()
        send(dcmtk, sorter.port, one)  # an identical resend settles nothing
        rest = write(tmp_path / "rest", "1.2.826.0.1.1", "P1", none=0, nothing=0, rest_2=1)
        for path in [*rest.glob("1-*"), *rest.glob("2-*")]:
            path.unlink()
        assert "expected rest* twice, came once" in says(sorter, "why", "P1")
        assert "expected rest* twice, came once" in says(sorter, "status")
        send(dcmtk, sorter.port, rest)
        sorter.wait_delivered(12)
        assert "has not settled again yet" in says(sorter, "why", "P1")
        assert [each["revision"] for each in told(sorter)] == ["1"]
        assert len(mails) == 1
