"""What a sorter may not read or remove, in the hands of an account that is made for it: root may everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Account
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.peers

IMAGES = localizer(Plan(seed=3, size=8)).files
ANOTHER = localizer(Plan(seed=4, size=8)).files[0]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other accounts may pass through, as they may not through pytest's."""
    with tempfile.TemporaryDirectory(prefix="sorter-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def sorter(place: Path, account: Account) -> Iterator[RunningSorter]:
    root = place / "root"
    root.mkdir()
    os.chown(root, account.uid, account.uid)
    with RunningSorter(root, prefix=account.prefix) as running:
        yield running


def command(sorter: RunningSorter, *words: object, user: Account | None, code: int = 0) -> str:
    done = subprocess.run(
        [*(user.prefix if user else ()), sys.executable, "-m", "sorter", *map(str, words), "--root", str(sorter.root)],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def told(sorter: RunningSorter, *words: object, user: Account | None, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(sorter, *words, "--json", user=user, code=code))
    return found


def drop(folder: Path, name: str, data: bytes, owner: int = 0, mode: int = 0o644) -> Path:
    """A file that is complete at once, below a folder of the same owner."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    part = folder / f"{name}.part"
    part.write_bytes(data)
    part.chmod(mode)
    for each in (folder, part):
        os.chown(each, owner, owner)
    return part.rename(folder / name)


def test_what_may_not_be_removed_is_said_once_over_restarts(sorter: RunningSorter, account: Account) -> None:
    theirs, ours = sorter.spool.incoming / "theirs", sorter.spool.incoming / "ours"
    image, junk = drop(theirs, "image", IMAGES[0]), drop(theirs, "notes.txt", b"dear diary, " * 20)
    sorter.wait_delivered(1)
    for number in (1, 2):
        drop(ours, f"{number}", IMAGES[number], account.uid)  # once it is delivered, everything was looked at
        sorter.wait_delivered(1 + number)
        assert sorter.stop() == 0
        sorter.start()
    assert image.read_bytes() == IMAGES[0]
    assert junk.exists()
    assert sorted(told(sorter, "status", user=account)["not_removable"]) == ["theirs/image", "theirs/notes.txt"]
    assert said(sorter) == 2
    assert [each.origin for each in sorter.spool.aside.entries()] == ["incoming/theirs/notes.txt"]
    assert not (ours / "1").exists()
    image.write_bytes(ANOTHER)  # another one in its place is taken, and said
    sorter.wait_delivered(4, timeout=120)  # it is looked over once a minute
    wait_until(lambda: said(sorter) == 3, 30, "the third word")


def said(sorter: RunningSorter) -> int:
    """Of how many files the log says so."""
    lines = [line for line in sorter.log.read_text().splitlines() if "could not be removed" in line]
    return sum(int(found[1]) if (found := re.search(r" ([0-9]+) things", line)) else 1 for line in lines)


def left(sorter: RunningSorter, account: Account) -> set[str]:
    """The names of what `status` says is left where it is."""
    return {Path(each["path"]).name for each in told(sorter, "status", user=account)["left_alone"]["some"]}


@pytest.mark.timeout(200)
def test_what_cannot_be_read_is_left_and_taken_when_it_may(sorter: RunningSorter, account: Account) -> None:
    """The folder is the sorter's own: it could remove what lies there, and does not."""
    mixed = sorter.spool.incoming / "mixed"
    hidden = drop(mixed, "hidden", IMAGES[0], account.uid)
    os.chown(hidden, 0, 0)
    hidden.chmod(0o600)
    closed = drop(mixed / "closed", "image", IMAGES[1])
    closed.parent.chmod(0o700)
    (mixed / "link").symlink_to(hidden)
    os.mkfifo(mixed / "pipe")
    drop(mixed, "plain", IMAGES[2], account.uid)
    sorter.wait_delivered(1)
    assert sorted(each.name for each in mixed.iterdir()) == ["closed", "hidden", "link", "pipe"]
    assert (hidden.read_bytes(), closed.read_bytes()) == IMAGES[:2]
    wait_until(lambda: left(sorter, account) == {"hidden", "closed", "link", "pipe"}, 30, "all of them to be named")
    hidden.chmod(0o644)
    closed.parent.chmod(0o755)
    sorter.wait_delivered(3, timeout=120)  # it is asked for once a minute
    stays = {"link", "pipe", "image"}  # the folder of the last is not sorter's: it is taken, and may not be removed
    wait_until(lambda: left(sorter, account) == stays, 30, "the others to be over")
    assert not sorter.spool.aside.count()


@pytest.mark.parametrize("may_lease", [True, False])
def test_a_writer_of_another_account_is_seen_where_sorter_may_lease(
    place: Path, account: Account, may_lease: bool
) -> None:
    """What packaging/systemd/sorter.service gives; without it the file of a writer that stalls looks finished."""
    root = place / "root"
    root.mkdir()
    os.chown(root, account.uid, account.uid)
    capability = ("--inh-caps", "+lease", "--ambient-caps", "+lease") if may_lease else ()
    with RunningSorter(root, prefix=(*account.prefix, *capability)) as sorter:
        theirs = drop(sorter.spool.incoming / "theirs", "image", IMAGES[0])
        os.chown(theirs.parent, account.uid, account.uid)
        with theirs.open("ab"):
            for number in (1, 2):
                drop(sorter.spool.incoming / "ours", f"{number}", IMAGES[number], account.uid)
                sorter.wait_delivered(number + (not may_lease))
            assert theirs.exists() == may_lease
        sorter.wait_delivered(3)


def test_an_archive_that_is_partly_closed(sorter: RunningSorter, place: Path, account: Account) -> None:
    """Not brought over is a failure, also of a whole folder; later runs bring what was missing, and only that."""
    archive = place / "archive"
    archive.mkdir()
    drop(archive / "open", "1", IMAGES[0])
    hidden = drop(archive / "open", "2", IMAGES[1], mode=0o600)
    closed = drop(archive / "closed", "3", IMAGES[2])
    closed.parent.chmod(0o700)
    looked = told(sorter, "import", "--dry-run", archive, user=account, code=1)
    assert (looked["images"], looked["unreadable"]) == (1, 2)
    first = told(sorter, "import", archive, user=account, code=1)
    assert (first["handed"], first["failed"]) == (1, 2)
    report = Path(first["report"])
    assert {json.loads(line)["path"] for line in report.read_text().splitlines()} == {str(hidden), str(closed.parent)}
    assert (report.stat().st_uid, report.stat().st_mode & 0o777) == (account.uid, 0o600)
    second = told(sorter, "import", archive, user=None)  # root reads all of it; what it makes is the sorter's
    assert (second["handed"], second["known"], second["failed"]) == (2, 1, 0)
    sorter.wait_delivered(3)
    assert not [
        each for each in sorter.root.rglob("*") if each.parent != sorter.root and each.stat().st_uid != account.uid
    ]


@pytest.mark.timeout(300)
def test_quarantine_by_root_and_by_the_account(sorter: RunningSorter, place: Path, account: Account) -> None:
    drop(sorter.spool.incoming / "drop", "notes.txt", b"dear diary, " * 20, account.uid)
    drop(sorter.spool.incoming / "drop", "1", IMAGES[0], account.uid)
    sorter.wait_delivered(1)
    [found] = sorter.spool.aside.entries()
    for user in (None, account):
        assert "1  a text" in command(sorter, "quarantine", user=user)
        [found] = sorter.spool.aside.entries()
        assert "set aside again" in told(sorter, "quarantine", "show", found.name, user=user)["now"]
        command(sorter, "quarantine", "retry", "--reason", "a text*", user=user)
        drop(sorter.spool.incoming / "next", "1", IMAGES[1 + (user is None)], account.uid)
        sorter.wait_delivered(2 + (user is not None))
        [again] = sorter.spool.aside.entries()
        assert again.at >= found.at
        assert again.name != found.name
    wait_until(lambda: not list(sorter.spool.incoming.glob("again-*")), 150, "the folders of both retries to go")
    exported = place / "out"
    command(sorter, "quarantine", "export", exported, user=None)
    assert [each.read_bytes() for each in exported.rglob("notes.txt")] == [b"dear diary, " * 20]
