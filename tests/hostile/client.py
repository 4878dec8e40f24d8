"""A client of the lab users' door that means harm. Run by a test, as an account that is not sorter's:

    python client.py SOCKET KEY-OF-ANOTHER'S-SERIES KEY-OF-A-SERIES

It prints "all held open" when it has done its worst, holds on until its standard input brings a line, and prints what
it got that it should not have.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator

MESSAGES = [
    b"", b"\n", b"\0" * 5000 + b"\n", b"GET / HTTP/1.1\r\n\r\n", b"[" * 100_000 + b"\n", b"null\n", b"\xff\xfe\n",
    b'{"ask": "units"\n', b'{"ask": 5}\n', b'{"ask": "__class__"}\n', b'{"ask": "hand"}\n',
    b'{"ask": "units", "called": {}}\n', b'{"ask": "why", "key": "\\ud800"}\n',
    b'{"ask": "units", "called": "' + b"*a" * 20_000 + b'b"}\n',
    b'{"ask": "heads", "keys": ["' + b'","' * 300 + b'"]}\n',
    b"x" * (3 << 20), b'{"ask": "units"}' + b" " * (2 << 20) + b"\n",
]  # fmt: skip


def connect(path: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    with contextlib.suppress(OSError):
        sock.connect(path)
        return sock
    sock.close()
    return None


def talk(path: str, message: bytes, descriptors: tuple[int, ...] = ()) -> tuple[bytes, list[int]]:
    """All that is answered, and the descriptors that came with it."""
    said, came = b"", array.array("i")
    sock = connect(path)
    if sock is None:
        return b"", []
    with sock, contextlib.suppress(OSError):
        with contextlib.suppress(OSError):
            sent = socket.send_fds(sock, [message], descriptors) if descriptors else sock.send(message)
            sock.sendall(message[sent:])
            sock.shutdown(socket.SHUT_WR) if not message.endswith(b"\n") else None
        while True:
            data, rights, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(253 * 4))
            for _, _, content in rights:
                came.frombytes(content[: len(content) - len(content) % 4])
            if not data:
                break
            said += data
    return said, list(came)


def ask(path: str, **request: object) -> tuple[bytes, list[int]]:
    return talk(path, json.dumps(request).encode() + b"\n")


def forbidden(path: str, other: str) -> Iterator[str]:
    """What another lab's series is asked for in every way, and what lies outside the store."""
    keys = [other, other.upper(), f"{other[:2]}/{other}", f"../{other[:2]}/{other}", "../../version", "/etc/passwd",
            "." * 32, "/" * 32, "..", "", f"{other}\0", "a" * 5000]  # fmt: skip
    for key in keys:
        for what, more in (("images", {}), ("why", {}), ("hand", {"files": ["00/x", "../../evidence.jsonl"]}),
                           ("note", {"dest": "/tmp", "files": {"x": "0" * 64}}),
                           ("send", {"target": "memory", "folder": "x", "files": {"00/x": "x"}})):  # fmt: skip
            said, came = ask(path, ask=what, key=key, **more)
            if came or b'"no":' not in said:
                yield f"{what} {key[:40]!r}: {said[:80]!r}"
        said, came = ask(path, ask="heads", keys=[key])
        if came or b'"head"' in said:
            yield f"heads {key[:40]!r}"
    for said, _ in (ask(path, ask="units"), ask(path, ask="status"), ask(path, ask="units", called=other)):
        if other.encode() in said or b"VIS01" in said or b"NOB01" in said:
            yield "a series of another lab is named"


def tricks(path: str, own: str) -> Iterator[str]:
    """With a series that one may read: what it is not."""
    files = ["../evidence.jsonl", "../../../../version", "/etc/shadow", "..", ".", "", "00/../../series.json", "\0"]
    said, came = ask(path, ask="hand", key=own, files=files)
    if came or (b'"no' not in said and any(json.loads(line).get("files") for line in said.splitlines())):
        yield f"a path that is no image: {said[:80]!r}"
    images = [
        json.loads(line)["image"] for line in ask(path, ask="images", key=own)[0].splitlines() if b'"image"' in line
    ]
    for dest, entry in (("relative", {"x": images[0]["sha256"]} if images else {}), ("/tmp/x", {"x": "0" * 64}),
                        ("/" + "x" * 5000, {})):  # fmt: skip
        said, _ = ask(path, ask="note", key=own, dest=dest, files=entry)
        if b'"no"' not in said:
            yield f"a note of {dest[:20]}"
    sent = {each["file"]: f"{number}.dcm" for number, each in enumerate(images)}
    for target, folder, names in (
        ("vision", "x", sent), ("../vision", "x", sent), ("", "x", sent), ("memory", "", sent), ("memory", "..", sent),
        ("memory", "/etc", sent), ("memory", "x/../../y", sent), ("memory", ".sorter", sent), ("memory", "x\0", sent),
        ("memory", "x", {}), ("memory", "x", {"../series.json": "x"}),
        *(("memory", "x", dict.fromkeys(sent, name)) for name in ("../x", "/x", "..", "", ".x", "a/b", "x" * 300)),
    ):  # fmt: skip
        if sent and b'"no"' not in ask(path, ask="send", key=own, target=target, folder=folder, files=names)[0]:
            yield f"copies to {target} {folder[:20]}"
    for what, lab in (("NOB01", "vision"), ("*", "memory"), ("", "memory"), ("NOB01", "../memory"), ("NOB01", "")):
        if b'"no"' not in ask(path, ask="claim", what=what, lab=lab)[0]:
            yield f"a claim of {what} for {lab}"
    if images:
        yield from _held(path, own, [each["file"] for each in images])


def _held(path: str, own: str, files: list[str]) -> Iterator[str]:
    """A descriptor is for reading alone, by whatever name."""
    _, came = ask(path, ask="hand", key=own, files=files)
    if len(came) != len(files):
        yield f"{len(came)} descriptors of {len(files)}: those that one may have did not come"
    for fd in came:
        for attempt in (
            lambda fd=fd: os.write(fd, b"x"),
            lambda fd=fd: os.ftruncate(fd, 0),
            lambda fd=fd: os.fchmod(fd, 0o666),
            lambda fd=fd: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
            lambda fd=fd: os.listdir(f"/proc/self/fd/{fd}/.."),
        ):
            try:
                attempt()
            except OSError:
                continue
            yield "a descriptor can do more than read"
        os.close(fd)


def main(path: str, other: str, own: str) -> None:
    got = [*forbidden(path, other), *tricks(path, own)]
    for message in MESSAGES:
        said, came = talk(path, message)
        if came or other.encode() in said:
            got.append(f"an answer to {message[:20]!r}")
    with open("/etc/passwd") as file:
        talk(path, b'{"ask": "units"}\n', (file.fileno(),) * 200)
    for _ in range(2000):
        sock = connect(path)
        if sock is not None:
            sock.close()
    # Held open until the end: half a request, none at all, answers that nobody reads, descriptors that nobody fetches.
    held = []
    greedy = json.dumps({"ask": "hand", "key": own, "files": [f"00/{n}" for n in range(64)]}).encode() + b"\n"
    for number in range(400):
        sock = connect(path)
        if sock is not None:
            held.append(sock)
            with contextlib.suppress(OSError):
                sock.send((b'{"ask": "un', b"", b'{"ask": "units"}\n', greedy)[number % 4])
    print("all held open", flush=True)
    sys.stdin.readline()
    print(json.dumps({"got": got}))


if __name__ == "__main__":
    main(*sys.argv[1:])
