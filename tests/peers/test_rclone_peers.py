"""The target kind "rclone" against real servers on loopback: OpenSSH's SFTP, rclone's SFTP and WebDAV, moto's S3."""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sorter.builtin import _rclone, rclone_target
from sorter.builtin._rclone import Failed, spoken
from sorter.builtin.rclone_target import RcloneTarget
from sorter.config import load as load_config
from sorter.deliver.target import Target
from sorter.durable import Files
from sorter.errors import Away, Held, TryLater
from sorter.testing.ports import free_port
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Made, Plan, localizer
from sorter.testing.targets import IMAGES, LATE, NAMED, Store, TargetSuite, given_back, job, receipt
from sorter.testing.waiting import wait_until

pytestmark = pytest.mark.peers

SOON = 90.0
DOOR = Path(__file__).with_name("door.py")
DOCS = Path(__file__).parents[2] / "docs" / "delivery.md"


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            pytest.skip(f"{program} is not installed")


class Server:
    """A program that serves `behind`. It is a `Place`; `described` is how rclone's configuration file has it."""

    code = "sorter.builtin.rclone_target:RcloneTarget"
    comparable = True

    def __init__(self, base: Path, path: str = "") -> None:
        need("rclone")
        self.base, self.behind, self.port = base, base / "behind", free_port()
        self.behind.mkdir(parents=True, exist_ok=True)
        self.config = base / "rclone.conf"
        self.config.touch(0o600)
        self.settings = {"remote": f"there:{path}", "config": str(self.config)}
        self._process: subprocess.Popen[bytes] | None = None

    def described(self, **keys: object) -> None:
        self.config.write_text("\n".join(["[there]", *(f"{key} = {value}" for key, value in keys.items()), ""]))

    @property
    def serves(self) -> bool:
        return self._process is not None

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def come_back(self) -> None:
        self._process = subprocess.Popen(
            list(map(str, self.command())), env={**_others(), **self.environment()}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._answers, 30)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def go_away(self) -> None:
        """At once, with the connections there are."""
        if self._process is not None:
            for pid in [*_below(self._process.pid), self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    close = go_away

    def visible(self) -> dict[str, bytes]:
        """What a lab sees: nothing below `.sorter/`."""
        found: dict[str, bytes] = {}
        for path in self.behind.rglob("*"):
            name = str(path.relative_to(self.behind))
            if "/." not in f"/{name}" and path.is_file():
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    found[name] = path.read_bytes()
        return found

    def count(self, image: bytes) -> int:
        return sum(path.read_bytes() == image for path in self.behind.rglob("*") if path.is_file())

    def lose(self, image: bytes) -> bool:
        for path in self.behind.rglob("*.dcm"):
            if path.read_bytes() == image:
                path.unlink()
        return True


def _others() -> dict[str, str]:
    """The environment of servers, some of which are rclone too."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}


def _below(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [*_below(int(child)), int(child)]
    return found


def obscured(password: str) -> str:
    done = subprocess.run(["rclone", "obscure", "-"], input=password, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class WebDav(Server):
    def __init__(self, base: Path) -> None:
        super().__init__(base)
        url = f"http://127.0.0.1:{self.port}"
        self.described(**{"type": "webdav", "url": url, "vendor": "other", "user": "me", "pass": obscured("secret")})

    def command(self) -> Sequence[str | Path]:
        return ("rclone", "serve", "webdav", "--addr", f"127.0.0.1:{self.port}", "--dir-cache-time", "0", self.behind)

    def environment(self) -> dict[str, str]:
        return {"RCLONE_USER": "me", "RCLONE_PASS": "secret"}


class RcloneSftp(Server):
    def __init__(self, base: Path) -> None:
        super().__init__(base)
        there = {"type": "sftp", "host": "127.0.0.1", "port": self.port, "user": "me", "pass": obscured("secret")}
        self.described(**there)

    def command(self) -> Sequence[str | Path]:
        return ("rclone", "serve", "sftp", "--addr", f"127.0.0.1:{self.port}", "--dir-cache-time", "0", self.behind)

    def environment(self) -> dict[str, str]:
        return {"RCLONE_USER": "me", "RCLONE_PASS": "secret"}


class OpenSsh(Server):
    """An sshd of our own, with keys, as a NAS has it."""

    def __init__(self, base: Path) -> None:
        need("sshd", "ssh-keygen")
        if os.geteuid() != 0:
            pytest.skip("an sshd needs root")
        super().__init__(base, path=str(base / "behind"))
        for name in ("host", "mine"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", base / name], check=True)
        shutil.copy(base / "mine.pub", base / "authorized")
        (base / "known").write_text(f"[127.0.0.1]:{self.port} {(base / 'host.pub').read_text()}")
        keys = {"key_file": base / "mine", "known_hosts_file": base / "known"}
        self.described(type="sftp", host="127.0.0.1", port=self.port, user=getpass.getuser(), **keys)

    def command(self) -> Sequence[str | Path]:
        os.makedirs("/run/sshd", exist_ok=True)
        options = [
            f"Port={self.port}", "ListenAddress=127.0.0.1", f"HostKey={self.base / 'host'}", "StrictModes=no",
            f"AuthorizedKeysFile={self.base / 'authorized'}", "UsePAM=no", "PidFile=none",
            "Subsystem=sftp internal-sftp", "PermitRootLogin=yes", "MaxStartups=100",
        ]  # fmt: skip
        return ("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *(each for one in options for each in ("-o", one)))


_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""moto wants to see that somebody signed, and never looks at what."""


class Moto(Server):
    def command(self) -> Sequence[str | Path]:
        return ("moto_server", "-H", "127.0.0.1", "-p", str(self.port))


class S3(Server):
    """moto's server: objects are in its memory, so that they would be gone with the process. What goes away is a door
    before it."""

    def __init__(self, base: Path) -> None:
        need("moto_server")
        super().__init__(base, path="bucket/mri")
        access = {"access_key_id": "key", "secret_access_key": "secret", "force_path_style": "true"}
        self.described(type="s3", provider="Other", endpoint=f"http://127.0.0.1:{self.port}", **access)
        self._moto = Moto(base / "moto")

    def command(self) -> Sequence[str | Path]:
        return (sys.executable, DOOR, str(self.port), str(self._moto.port))

    def come_back(self) -> None:
        if not self._moto.serves:
            self._moto.come_back()
            self._ask("PUT", "/bucket")
        super().come_back()

    def close(self) -> None:
        self.go_away()
        self._moto.close()

    def _ask(self, method: str, path: str) -> bytes:
        address = f"http://127.0.0.1:{self._moto.port}{path}"
        asked = urllib.request.Request(address, method=method, headers={"Authorization": _SIGNED})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return bytes(answer.read())

    def objects(self) -> dict[str, bytes]:
        names = re.findall(r"<Key>(.*?)</Key>", self._ask("GET", "/bucket").decode())
        found: dict[str, bytes] = {}
        for name in names:
            with contextlib.suppress(urllib.error.HTTPError):  # removed just now
                found[name] = self._ask("GET", f"/bucket/{name}")
        return found

    def visible(self) -> dict[str, bytes]:
        return {name: content for name, content in self.objects().items() if "/." not in f"/{name}"}

    def count(self, image: bytes) -> int:
        return sum(content == image for content in self.objects().values())

    def lose(self, image: bytes) -> bool:
        for name, content in self.objects().items():
            if content == image:
                self._ask("DELETE", f"/bucket/{name}")
        return True


KINDS = [WebDav, RcloneSftp, OpenSsh, S3]


@contextlib.contextmanager
def serving(kind: type[Server], base: Path) -> Iterator[Server]:
    server = kind(base)
    try:
        server.come_back()
        yield server
    finally:
        server.close()


class TestRclone(TargetSuite):
    @pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
        with serving(request.param, tmp_path / "served") as server:
            yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """WebDAV, whose files lie in a folder where the test may play the lab."""
    with serving(WebDav, tmp_path / "served") as server:
        yield server


@pytest.fixture
def place(server: Server) -> Target:
    target = RcloneTarget(server.settings, Files())
    target.check(prepare=True)
    return target


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store", IMAGES)
    yield store
    store.close()


def grown(store: Store, before: Any) -> Any:
    store.images, store.asked = (*IMAGES, *LATE), []
    return job(store.images, 2, receipt(before))


def test_without_its_marker_nothing_is_delivered(server: Server, store: Store) -> None:
    target = RcloneTarget(server.settings, Files())
    with pytest.raises(Away, match=r"has no marker \.sorter/id"):
        target.put(job(IMAGES), store)
    assert server.visible() == {}


def test_an_image_that_the_store_does_not_give_waits_and_keeps_nothing_else(server: Server, store: Store) -> None:
    class Ill(Files):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            if os.pread(fd, size, 0) == IMAGES[1]:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().pread(fd, size, offset)

    target = RcloneTarget(server.settings, Ill())
    target.check(prepare=True)
    with pytest.raises(TryLater, match="the store cannot be read") as said:
        target.put(job(IMAGES), store)
    assert not isinstance(said.value, Away)
    assert server.visible() == {}


def test_growth_respects_the_lab(server: Server, place: Target, store: Store) -> None:
    done = place.put(job(IMAGES), store)
    first, second, third = (server.behind / done.folder / each.name for each in done.files[:3])
    first.write_bytes(b"the lab's")
    second.unlink()
    again = place.put(grown(store, done), store)
    assert (first.read_bytes(), second.exists(), third.read_bytes()) == (b"the lab's", False, IMAGES[2])
    assert [each.state for each in again.files[:3]] == ["kept", "removed", "written"]
    assert (first.parent / again.files[0].beside).read_bytes() == IMAGES[0]
    assert "1 file that the lab edited was kept" in again.note
    assert "1 file that the lab removed was not brought back" in again.note
    found = place.verify(receipt(again, 2))
    assert (len(found.same), found.missing) == (len(store.images) - 1, ())
    removed = place.remove(receipt(again, 2))
    assert removed.left == (first.name,)  # whoever withdraws the series has to know of it
    assert {path.name for path in server.behind.rglob("*.dcm")} == {first.name}


def test_what_is_too_large_to_be_ours_is_not_read_for_hours(server: Server, place: Target, store: Store) -> None:
    done = place.put(job(IMAGES), store)
    path = server.behind / done.folder / done.files[0].name
    os.truncate(path, 1 << 40)
    again = place.put(grown(store, done), store)
    assert again.files[0].state == "kept"
    assert path.name in place.remove(receipt(again, 2)).left
    assert path.stat().st_size == 1 << 40


class Folding(WebDav):
    """As of a server whose disk takes `A` and `a` for one name, of which its protocol says nothing."""

    def command(self) -> Sequence[str | Path]:
        return (*super().command(), "--vfs-case-insensitive")


def test_a_labs_file_whose_name_differs_only_by_case_is_not_replaced(tmp_path: Path, store: Store) -> None:
    with serving(Folding, tmp_path / "served") as server:
        target, put = RcloneTarget(server.settings, Files()), job(IMAGES)
        target.check(prepare=True)
        theirs = server.behind / put.folder / put.files[0].name.upper()
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(b"the lab's")
        done = target.put(put, store)
        assert theirs.read_bytes() == b"the lab's"
        assert target.verify(receipt(done)).whole
        assert sum(path.read_bytes() in IMAGES for path in theirs.parent.iterdir() if path.is_file()) == len(IMAGES)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_correction_replaces_what_is_still_ours(
    kind: type[Server], tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By files of the same size, which rclone would take for the same where a server keeps no times; nor does anything
    else that rclone is told in sorter's environment make it say that it has done what it has not."""
    for name in ("RCLONE_IGNORE_EXISTING", "RCLONE_DRY_RUN", "RCLONE_SIZE_ONLY", "RCLONE_IMMUTABLE"):
        monkeypatch.setenv(name, "true")
    other = localizer(Plan(seed=9, size=8)).files
    assert {len(image) for image in other} == {len(image) for image in IMAGES}
    with serving(kind, tmp_path / "replaced") as server:
        place = RcloneTarget(server.settings, Files())
        place.check(prepare=True)
        done = place.put(job(IMAGES), store)
        store.images = (*other, *IMAGES[3:])
        corrected = place.put(job(store.images, 2, receipt(done)), store)
        assert _images(server) == sorted(store.images)
        assert {each.state for each in corrected.files} == {"written"}
        assert place.verify(receipt(corrected, 2)).whole
        store.images = other
        fewer = place.put(job(other, 3, receipt(corrected, 2)), store)
        assert _images(server) == sorted(other)
        assert len(fewer.files) == len(other)


def _images(server: Server) -> list[bytes]:
    return sorted(server.visible().values())


class CutOff(RcloneTarget):
    """Its connection is cut off at one of the effects: before it, or in the middle of a rename, when what had the name
    is gone already, as rclone does it."""

    def __init__(self, server: Server, at: int) -> None:
        super().__init__(server.settings, Files())
        self.left = at
        for effect in ("send", "move", "delete", "purge"):
            setattr(self._remote, effect, self._cut(getattr(self._remote, effect), rename=effect == "move"))

    def _cut(self, effect: Callable[..., None], *, rename: bool) -> Callable[..., None]:
        def cut(*arguments: Any) -> None:
            self.left -= 1
            if self.left > 0:
                return effect(*arguments)
            if rename and self.left == 0:
                with contextlib.suppress(Failed):
                    _uncut(self, "delete")(arguments[1])
            raise Away("it was cut off")

        cut.uncut = effect  # type: ignore[attr-defined]
        return cut


def _uncut(target: CutOff, effect: str) -> Callable[..., None]:
    found: Callable[..., None] = getattr(target._remote, effect).uncut
    return found


@pytest.mark.parametrize("kind", [WebDav, OpenSsh, S3], ids=lambda kind: kind.__name__)
def test_a_correction_that_is_cut_off_anywhere_is_finished_by_the_next_attempt(
    kind: type[Server], tmp_path: Path, store: Store
) -> None:
    images, corrected = IMAGES[:2], (*localizer(Plan(seed=9, size=8)).files[:2], LATE[0])
    effect, finished = 0, False
    with serving(kind, tmp_path / "cut") as server:
        good = RcloneTarget(server.settings, Files())
        good.check(prepare=True)
        while not finished:
            effect += 1
            store.images = images
            before = receipt(good.put(job(images), store))
            store.images = corrected
            try:
                CutOff(server, effect).put(job(corrected, 2, before), store)
                finished = True
            except Away:
                for again in range(1, 3):  # and the next one, too
                    with contextlib.suppress(Away):
                        CutOff(server, 2 * again).put(job(corrected, 2, before), store)
            done = good.put(job(corrected, 2, before), store)
            assert _images(server) == sorted(corrected), f"cut off at effect {effect}"
            assert {each.state for each in done.files} == {"written"}, f"cut off at effect {effect}"
            assert good.verify(receipt(done, 2)).whole
            good.remove(receipt(done, 2))
            assert server.visible() == {}
    assert effect > 10


def test_what_came_before_the_server_went_is_not_sent_again(server: Server, place: Target, store: Store) -> None:
    images = [image for seed in range(20, 26) for image in localizer(Plan(seed=seed, size=8)).files]

    class Going(Store):
        def __call__(self, index: int) -> int:
            if len(self.asked) == 12:
                server.go_away()
            return super().__call__(index)

    with pytest.raises(TryLater):
        place.put(job(images), Going(store._folder, images))
    assert server.visible() == {}
    server.come_back()
    store.images = images
    place.put(job(images), store)
    assert _images(server) == sorted(images)
    assert len(store.asked) <= len(images) - 7  # four are under way at once, and one more


def test_what_the_lab_writes_meanwhile_is_not_replaced(server: Server, place: Target, store: Store) -> None:
    done = place.put(job(IMAGES), store)
    path = server.behind / done.folder / done.files[0].name
    other = localizer(Plan(seed=9, size=8)).files

    class Writing(Store):
        def __call__(self, index: int) -> int:
            path.write_bytes(b"the lab's")
            return super().__call__(index)

    images = (*other, *IMAGES[3:])
    with pytest.raises(TryLater, match="changed while sorter worked there"):
        place.put(job(images, 2, receipt(done)), Writing(store._folder, images))
    store.images = images
    again = place.put(job(images, 2, receipt(done)), store)
    assert path.read_bytes() == b"the lab's"
    assert [each.state for each in again.files] == ["kept"] + ["written"] * (len(images) - 1)


def test_a_place_put_back_to_an_earlier_day_is_known(server: Server, place: Target, store: Store) -> None:
    done = place.put(job(IMAGES), store)
    shutil.copytree(server.behind, server.base / "backup")
    store.images = (*localizer(Plan(seed=9, size=8)).files, *IMAGES[3:], *LATE)
    later = receipt(place.put(job(store.images, 2, receipt(done)), store), 2)
    for path in server.behind.iterdir():
        shutil.rmtree(path)
    shutil.copytree(server.base / "backup", server.behind, dirs_exist_ok=True)
    found = place.verify(later)
    assert len(found.outdated) == 3 + len(LATE)
    assert (found.missing, found.damaged, found.changed) == ((), (), ())


def test_where_work_of_the_lab_stays_it_is_said_where_the_series_went(
    server: Server, place: Target, store: Store
) -> None:
    held = replace(receipt(place.put(job(IMAGES), store)), moved="it lies elsewhere now")
    folder = server.behind / held.folder
    (folder / "notes.txt").write_text("the lab's")
    assert len(place.remove(held).removed) == len(IMAGES)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "MOVED.txt"}
    assert (folder / "MOVED.txt").read_text() == "it lies elsewhere now\n"


def test_checksums_are_there_for_people(server: Server, place: Target, store: Store) -> None:
    done = place.put(job(IMAGES), store)
    [sums] = (server.behind / done.folder / ".sorter").glob("*.sha256")
    subprocess.run(["sha256sum", "-c", "--quiet", f".sorter/{sums.name}"], cwd=server.behind / done.folder, check=True)


def test_another_series_is_never_mixed_in(server: Server, place: Target, store: Store) -> None:
    done = place.put(job(IMAGES), store)
    other = replace(job(LATE), key="beef" * 8)
    beside = place.put(other, Store(store._folder, LATE))
    assert beside.folder == f"{done.folder}_beefbe"
    assert [server.count(image) for image in (*IMAGES, *LATE)] == [1] * (len(IMAGES) + len(LATE))


def test_what_was_only_planned_where_another_series_lies_changes_nothing_there(
    server: Server, place: Target, store: Store
) -> None:
    there = receipt(place.put(job(IMAGES), store))
    before = sorted(path.name for path in (server.behind / there.folder).iterdir())
    files = tuple(replace(each, sha256="0" * 64) for each in there.files)
    planned = replace(there, key="beef" * 8, files=files, verified="", moved="it lies elsewhere now")
    gone = place.remove(planned)
    assert (gone.removed, gone.left) == ((), ())
    assert sorted(path.name for path in (server.behind / there.folder).iterdir()) == before


def test_of_what_came_back_under_other_names_those_of_before_go(server: Server, place: Target, store: Store) -> None:
    held = receipt(place.put(job(IMAGES), store))
    again = job(IMAGES, revision=3)
    named = [replace(each, name=f"new {each.name}") for each in again.files[1:]]
    files = (again.files[0], *named)
    done = place.put(replace(again, files=files), store)
    assert [server.count(image) for image in IMAGES] == [1] + [2] * (len(IMAGES) - 1)
    removed = place.remove(held)
    assert sorted(removed.removed) == sorted(each.name for each in held.files[1:])
    assert [server.count(image) for image in IMAGES] == [1] * len(IMAGES)
    assert place.verify(receipt(done, 3)).whole


def test_verify_tells_damage_from_edits(server: Server, place: Target, store: Store) -> None:
    done = place.put(job(IMAGES), store)
    held = receipt(done)
    path = server.behind / done.folder / done.files[0].name
    before = path.stat()
    path.write_bytes(IMAGES[0][:-1] + bytes([IMAGES[0][-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, 0))
    assert place.verify(held, deep=False).whole  # presence and size
    assert place.verify(held).damaged == (done.files[0].name,)
    path.write_bytes(b"the lab's")
    assert place.verify(held).changed == (done.files[0].name,)
    mended = place.put(replace(job(IMAGES, 1, held), mend=(done.files[0].name,)), store)
    assert place.verify(receipt(mended)).whole
    assert (path.parent / f"{path.name}.damaged").read_bytes() == b"the lab's"


class Relay:
    """A port before that of a server. It hands on at most `most` bytes of each connection's answers."""

    def __init__(self, to: int, most: int = 1 << 40) -> None:
        self.port, self._to, self._most = free_port(), to, most
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one = self._listening.accept()[0]
            except OSError:
                return
            other = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._up, args=(one, other), daemon=True).start()
            threading.Thread(target=self._down, args=(other, one), daemon=True).start()

    def _up(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(self.changed(data))
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def _down(self, other: socket.socket, one: socket.socket) -> None:
        left = self._most
        with contextlib.suppress(OSError), one, other:
            while left > 0 and (data := other.recv(min(1 << 16, left))):
                one.sendall(data)
                left -= len(data)
            one.shutdown(socket.SHUT_RDWR)

    def changed(self, data: bytes) -> bytes:
        return data

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


class Flipping(Relay):
    """It flips a bit of each image that goes to the server."""

    flips = True

    def changed(self, data: bytes) -> bytes:
        at = data.find(b"DICM")
        if not self.flips or at < 0 or len(data) <= at + 300:
            return data
        return data[: at + 300] + bytes([data[at + 300] ^ 1]) + data[at + 301 :]


def test_a_server_that_flips_a_bit_gets_no_receipt(server: Server, store: Store) -> None:
    flipping = Flipping(server.port)
    server.config.write_text(server.config.read_text().replace(f":{server.port}", f":{flipping.port}"))
    try:
        target = RcloneTarget(server.settings, Files())
        target.check(prepare=True)
        with pytest.raises(TryLater, match="does not give back what was written"):
            target.put(job(IMAGES), store)
        assert server.visible() == {}
        flipping.flips = False
        target.put(job(IMAGES), store)
        assert sorted(server.visible().values()) == sorted(IMAGES)
    finally:
        flipping.close()


def test_a_connection_that_ends_in_the_middle_damages_nothing(server: Server, place: Target, store: Store) -> None:
    """What could not be read to its end is neither damaged nor gone."""
    [*_, large] = localizer(Plan(seed=3, size=1024)).files
    held = receipt(place.put(job([large]), Store(store._folder, [large])))
    relay = Relay(server.port, most=1 << 20)
    server.config.write_text(server.config.read_text().replace(f":{server.port}", f":{relay.port}"))
    try:
        cut = RcloneTarget(server.settings, Files())
        with pytest.raises(TryLater):
            cut.verify(held)
        with given_back(1) as (into, _), pytest.raises(TryLater):
            cut.fetch(held, [held.files[0].name], into)
        with pytest.raises(TryLater):
            cut.remove(held)
        assert server.count(large) == 1
    finally:
        relay.close()


def test_a_full_server_is_away_until_there_is_room(tmp_path: Path) -> None:
    base = tmp_path / "served"
    (base / "behind").mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "none", str(base / "behind")]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("to mount a tmpfs needs root")
    try:
        with serving(OpenSsh, base) as server:
            images = localizer(Plan(seed=3, size=256)).files  # three of 128 KB
            store = Store(tmp_path, images)
            target = RcloneTarget(server.settings, Files())
            target.check(prepare=True)
            with pytest.raises(TryLater) as said:
                target.put(job(images), store)
            assert isinstance(said.value, Away), str(said.value)
            assert server.visible() == {}
            subprocess.run(["mount", "-o", "remount,size=64m", str(base / "behind")], check=True)
            target.put(job(images), store)
            assert sorted(server.visible().values()) == sorted(images)
            store.close()
    finally:
        subprocess.run(["umount", "-l", str(base / "behind")], check=False)


def test_what_others_can_see_of_it_names_nobody(server: Server, place: Target, store: Store) -> None:
    """Arguments of every process there is while files are on their way, and what rclone has in its environment."""
    seen: list[str] = []

    class Looking(Store):
        def __call__(self, index: int) -> int:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.append(path.read_bytes().decode(errors="replace"))
            return super().__call__(index)

    place.put(job(IMAGES), Looking(store._folder, IMAGES))
    ours = [each for each in seen if "rcd" in each.split("\0")]
    assert ours
    assert not any(NAMED in each or "secret" in each for each in ours)


def test_rclone_ends_with_its_worker(server: Server, place: Target) -> None:
    program = (
        "import sys, time; from sorter.builtin.rclone_target import RcloneTarget;"
        f"t = RcloneTarget({dict(server.settings)!r}); t.check(); print(t._remote._process.pid, flush=True);"
        "time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    rclone = int(worker.stdout.readline())
    assert Path(f"/proc/{rclone}/cmdline").read_bytes().startswith(b"rclone\0rcd")
    worker.kill()
    worker.wait()
    worker.stdout.close()
    wait_until(lambda: not Path(f"/proc/{rclone}/cmdline").exists() or _is_zombie(rclone), SOON)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_rclone_that_is_killed_is_begun_anew(place: Target, store: Store) -> None:
    assert isinstance(place, RcloneTarget)
    process = place._remote._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not process.runs, SOON)
    assert len(place.put(job(IMAGES), store).files) == len(IMAGES)


def test_rclone_that_hangs_is_begun_anew(place: Target, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rclone, "_ANSWER", 1.0)
    assert isinstance(place, RcloneTarget)
    process = place._remote._process
    assert process is not None
    place._remote._idle = None
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(Away, match="did not answer for there:; it is begun anew"):
        place.put(job(IMAGES), store)
    wait_until(lambda: not process.runs, SOON)
    monkeypatch.undo()
    assert len(place.put(job(IMAGES), store).files) == len(IMAGES)


def test_wrong_secrets_mean_away_and_a_missing_file_is_held(server: Server, store: Store) -> None:
    text = server.config.read_text()
    server.config.write_text(text.replace("user = me", "user = you"))
    with pytest.raises(Away, match="does not let sorter in"):
        RcloneTarget(server.settings, Files()).put(job(IMAGES), store)
    server.config.write_text(text.replace("[there]", "[elsewhere]"))
    with pytest.raises(Held, match="cannot be used as rclone's configuration file describes it"):
        RcloneTarget(server.settings, Files()).put(job(IMAGES), store)
    server.config.unlink()
    with pytest.raises(Held, match="is not there, or not to be read"):
        RcloneTarget(server.settings, Files()).put(job(IMAGES), store)


def test_another_server_at_its_address_is_given_nothing(tmp_path: Path, store: Store) -> None:
    with serving(OpenSsh, tmp_path / "served") as server:
        RcloneTarget(server.settings, Files()).check(prepare=True)
        known = server.base / "known"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", server.base / "other"], check=True)
        known.write_text(f"[127.0.0.1]:{server.port} {(server.base / 'other.pub').read_text()}")
        with pytest.raises(Away, match="is not the server that its known_hosts_file names"):
            RcloneTarget(server.settings, Files()).put(job(IMAGES), store)
        assert (store.asked, server.visible()) == ([], {})


def test_check_warns_of_a_file_that_others_may_read(server: Server, place: Target) -> None:
    assert place.check().remarks == ()
    server.config.chmod(0o644)
    assert any("chmod 600" in each for each in place.check().remarks)


def test_check_warns_of_servers_that_anybody_may_be(tmp_path: Path) -> None:
    for kind, warned in ((RcloneSftp, True), (OpenSsh, False)):
        with serving(kind, tmp_path / kind.__name__) as server:
            remarks = RcloneTarget(server.settings, Files()).check(prepare=True).remarks
            assert any("give it a known_hosts_file" in each for each in remarks) == warned


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("http://nas.example.org/dav", True),
        ("https://nas.example.org", False),
        ("http://127.0.0.1:1", False),
        ("", False),
    ],
)
def test_an_address_without_encryption_is_known(address: str, warned: bool) -> None:
    assert rclone_target._is_open(address) == warned


def test_the_example_of_the_page_is_good(tmp_path: Path) -> None:
    """As far as can be without those servers: sorter reads the one, and rclone the other."""
    need("rclone")
    chapter = DOCS.read_text().partition("## By SFTP, S3, WebDAV")[2]
    [toml] = re.findall(r"```toml\n(.*?)```", chapter, flags=re.DOTALL)
    [ini] = re.findall(r"```ini\n(.*?)```", chapter, flags=re.DOTALL)
    (tmp_path / "rclone.conf").write_text(ini)
    toml = toml.replace("/etc/sorter/rclone.conf", str(tmp_path / "rclone.conf"))
    (tmp_path / "sorter.toml").write_text(f"[sorter]\nroot = 'r'\n{toml}")
    target = load_config(tmp_path / "sorter.toml").targets["nas"]
    RcloneTarget(target.settings, Files())
    listed = subprocess.run(
        ["rclone", "--config", tmp_path / "rclone.conf", "config", "dump"], capture_output=True, check=True
    )
    described = json.loads(listed.stdout)
    assert {each["type"] for each in described.values()} == {"sftp", "webdav", "s3"}
    assert str(target.settings["remote"]).partition(":")[0] in described


@pytest.mark.parametrize("kind", [WebDav, OpenSsh, S3], ids=lambda kind: kind.__name__)
def test_sorter_delivers_there_verifies_and_withdraws(kind: type[Server], tmp_path: Path) -> None:
    with serving(kind, tmp_path / "served") as server:
        remote = "\n".join(f"{key} = {json.dumps(value)}" for key, value in server.settings.items())
        lab = '[labs.study]\nmatch = ["PatientID=*"]\ntargets = ["far"]\nproducts = ["dicom"]\n'
        config = f'{lab}[targets.far]\nkind = "rclone"\n{remote}\n'
        with RunningSorter(tmp_path / "root", config=config) as sorter:
            _deliver(sorter, server)
            _outage(sorter, server)
            _withdraw(sorter, server)
        assert "Canary77" not in sorter.log.read_text()
        assert "secret" not in sorter.log.read_text()


def _made(seed: int) -> Made:
    return localizer(Plan(seed=seed, size=16, patient_id="Canary77"))


def _deliver(sorter: RunningSorter, server: Server) -> None:
    """Nothing without the marker; then a series that a scanner sends is there, and stands up to verify."""
    sorter.send(_made(1))
    wait_until(lambda: any("has no marker" in each.why for each in _series(sorter)), SOON)
    assert "was made" in sorter_command(sorter, "check", "--targets").stdout
    sorter_command(sorter, "retry")
    sorter.wait_delivered(3, SOON)
    assert _dicom(server) == _stored(sorter, 3)
    sorter_command(sorter, "verify", "--deep")


def _outage(sorter: RunningSorter, server: Server) -> None:
    """The server goes, a series comes, the server is back: it is told, and the series is there."""
    server.go_away()
    sorter.send(_made(2))
    wait_until(lambda: any("does not answer" in each.why for each in _series(sorter)), SOON)
    assert "does not answer" in sorter_command(sorter, "status").stdout
    assert "does not answer" in sorter_command(sorter, "why", "Canary77").stdout
    assert "does not answer" in sorter_command(sorter, "verify", "--deep", code=1).stdout
    server.come_back()
    sorter.wait_delivered(6, SOON)
    assert _dicom(server) == _stored(sorter, 6)
    sorter_command(sorter, "verify", "--deep")


def _withdraw(sorter: RunningSorter, server: Server) -> None:
    asked = json.loads(sorter_command(sorter, "withdraw", "Canary77", "--json").stdout)
    sorter_command(sorter, "withdraw", "Canary77", "--why", "consent", "--confirm", asked["code"])
    wait_until(lambda: server.visible() == {}, SOON)


def _stored(sorter: RunningSorter, count: int) -> list[bytes]:
    """The images in the store, byte for byte."""
    found = [path for path in (sorter.root / "spool" / "store").glob("*/*/images/**/*") if path.is_file()]
    assert len(found) == count
    return sorted(path.read_bytes() for path in found)


def _dicom(server: Server) -> list[bytes]:
    return sorted(content for name, content in server.visible().items() if name.endswith(".dcm"))


@pytest.mark.parametrize("kind", [WebDav, OpenSsh, S3], ids=lambda kind: kind.__name__)
def test_images_leave_the_store_and_come_back_from_there(kind: type[Server], tmp_path: Path) -> None:
    """The lab has thrown its own copies away, so that those at the remote are the only ones."""
    images = sorted(localizer(Plan(seed=4, size=16, patient_id="Canary77")).files)
    with serving(kind, tmp_path / "served") as server:
        RcloneTarget(server.settings, Files()).check(prepare=True)
        remote = "\n".join(f"{key} = {json.dumps(value)}" for key, value in server.settings.items())
        lab = '[labs.study]\nmatch = ["PatientID=*"]\ntargets = ["far"]\nproducts = ["dicom"]\n'
        config = f'[store]\nkeep = 1\n{lab}[targets.far]\nkind = "rclone"\n{remote}\n'
        running = RunningSorter(tmp_path / "root", config=config)
        with running:
            _drop(running, "first", images[:-1])
            running.wait_delivered(len(images) - 1, SOON)
        for path in (running.labs / "study").rglob("*.dcm"):
            path.unlink()
        (running.spool.root / "days.json").write_text('{"days": 5, "seconds": 0}')
        with running:
            wait_until(lambda: not list(running.spool.store.rglob("images/*/*.dcm")), SOON)
            server.go_away()
            _drop(running, "late", images[-1:])
            wait_until(lambda: any("does not answer" in each.why for each in running.series()), SOON)
            server.come_back()
            running.wait_delivered(len(images), SOON)
            assert _dicom(server) == images
            copies = running.labs / "study" / "copies"
            sorter_command(running, "rename", "*", "target:study/copies")
            wait_until(lambda: sorted(path.read_bytes() for path in _whole(copies)) == images, SOON)


def _whole(folder: Path) -> list[Path]:
    """Images that have their names there; what lies below a hidden one is being written."""
    return [
        path for path in folder.rglob("*.dcm") if not any(part[0] == "." for part in path.relative_to(folder).parts)
    ]


def _drop(running: RunningSorter, name: str, images: Sequence[bytes]) -> None:
    folder = running.root / name
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number}.dcm").write_bytes(image)
    folder.rename(running.spool.incoming / name)


def _series(sorter: RunningSorter) -> list[Any]:
    with contextlib.suppress(FileNotFoundError):
        return sorter.series()
    return []


def sorter_command(sorter: RunningSorter, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    places = ["-c", str(sorter.root / "sorter.toml"), "--root", str(sorter.root)]
    done = subprocess.run(
        [sys.executable, "-m", "sorter", *words, *places], capture_output=True, text=True, timeout=SOON, check=False
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ('sftp: "Failure" write /x: no space left on device', Away, "is full"),
        ("507 Insufficient Storage", Away, "is full"),
        ("couldn't connect SSH: ssh: handshake failed: ssh: unable to authenticate", Away, "let sorter in"),
        (
            "couldn't connect SSH: ssh: handshake failed: read tcp 127.0.0.1:1->127.0.0.1:2: i/o timeout",
            Away,
            "not answer",
        ),
        ("couldn't connect SSH: ssh: handshake failed: EOF", Away, "not answer"),
        ("couldn't connect SSH: ssh: handshake failed: knownhosts: key mismatch", Away, "known_hosts_file"),
        ("Not Found", TryLater, "does not give back"),
        ("dial tcp 127.0.0.1:1: connect: connection refused", Away, "does not answer"),
        ("didn't find section in config file", Held, "configuration file"),
        ("permission denied", TryLater, "let sorter write"),
        ("nobody foresaw this of Doe^Jane", TryLater, "could not do"),
    ],
)
def test_what_rclone_says_is_understood_and_never_repeated(text: str, kind: type[Exception], says: str) -> None:
    said = spoken("nas:mri", Failed(500, text))
    assert type(said) is kind
    assert says in str(said)
    assert "Doe" not in str(said)
    assert "Doe" not in str(Failed(500, text))
