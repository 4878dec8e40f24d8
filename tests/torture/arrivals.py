"""The ways in which files come into a folder: each is given many images, and returns when the last one is there."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sorter.testing.ports import free_port
from sorter.testing.waiting import wait_until

Image = tuple[str, bytes]
"""A name and a whole file."""

Way = Callable[[Path, Sequence[Image], Path], None]
"""Brings images below a folder; the last argument is a folder of its own on the same file system."""

A_FOLDER = 100


def write(folder: Path, images: Sequence[Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in images:
        (folder / name).write_bytes(content)


def groups(images: Sequence[Image], size: int = A_FOLDER) -> Iterator[tuple[int, Sequence[Image]]]:
    for number, at in enumerate(range(0, len(images), size)):
        yield number, images[at : at + size]


def fast_mkdir(place: Path, images: Sequence[Image], apart: Path) -> None:
    """A folder, and at once what belongs into it: watchdog is not there yet."""
    for number, some in groups(images, 10):
        write(place / f"fast-{number}", some)


def nested_mkdir(place: Path, images: Sequence[Image], apart: Path) -> None:
    for number, some in groups(images, 10):
        write(place / f"deep-{number % 7}" / str(number) / "a" / "b" / "c", some)


def moved(place: Path, images: Sequence[Image], apart: Path) -> None:
    for number, some in groups(images):
        write(apart / f"moved-{number}" / "series", some)
        os.rename(apart / f"moved-{number}", place / f"moved-{number}")


def linked(place: Path, images: Sequence[Image], apart: Path) -> None:
    write(apart / "origin", images)
    for number, some in groups(images):
        (place / f"linked-{number}").mkdir()
        for name, _ in some:
            os.link(apart / "origin" / name, place / f"linked-{number}" / name)


def copied(place: Path, images: Sequence[Image], apart: Path) -> None:
    for number, some in groups(images):
        write(apart / f"copied-{number}", some)
    subprocess.run(["cp", "-a", *map(str, sorted(apart.iterdir())), str(place)], check=True)


def rsynced(place: Path, images: Sequence[Image], apart: Path) -> None:
    for number, some in groups(images):
        write(apart / f"rsynced-{number}", some)
    subprocess.run(["rsync", "-a", f"{apart}/", str(place)], check=True)


def uploaded(place: Path, images: Sequence[Image], apart: Path) -> None:
    """By sftp, through an sshd of our own on loopback, with a key made for it."""
    for number, some in groups(images):
        write(apart / "files" / f"uploaded-{number}", some)
    with _sshd(apart) as port:
        command = f"put -r {apart}/files/* {place}/\n"
        options = ["-q", "-b", "-", "-P", str(port), "-i", str(apart / "key")]
        unknown = ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={apart}/known"]
        subprocess.run(
            ["sftp", *options, *unknown, f"{getpass.getuser()}@127.0.0.1"], input=command, text=True, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip


@contextlib.contextmanager
def _sshd(apart: Path) -> Iterator[int]:
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(apart / name)], check=True)
    port = free_port()
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": apart / "host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": apart / "key.pub", "StrictModes": "no", "Subsystem": "sftp internal-sftp",
    }  # fmt: skip
    (apart / "sshd").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates its privileges; Debian's script makes it
    server = subprocess.Popen([program, "-D", "-f", str(apart / "sshd")], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), 10, "sshd to answer")
        yield port
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


WAYS: tuple[Way, ...] = (fast_mkdir, nested_mkdir, moved, linked, copied, rsynced, uploaded)


def flat(place: Path, images: Sequence[Image], apart: Path) -> None:
    """All of them in the incoming folder itself."""
    write(place, images)


def one_folder(place: Path, images: Sequence[Image], apart: Path) -> None:
    """All of them in one folder, moved in whole."""
    write(apart / "all", images)
    os.rename(apart / "all", place / "all")


def a_folder_each(place: Path, images: Sequence[Image], apart: Path) -> None:
    for number, image in enumerate(images):
        write(place / f"each-{number}", [image])


SHAPES: tuple[Way, ...] = (flat, one_folder, a_folder_each)
"""What nobody would do, and somebody does."""
