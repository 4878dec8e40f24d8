"""Walking a folder tree that somebody else owns, and may change under our feet.

Every step is taken from the descriptor of the folder before it, and no symbolic link is ever followed, so that nothing
a lab puts into its root can lead out of it. Sentences name the root and never what lies below it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from sorter.durable import Files
from sorter.errors import Away, Held, SorterError, TryLater

MARKER = ".sorter"
"""The folder in each root that is sorter's and the lab's own; its file `id` says that the mount is really there."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: a named pipe must not make us wait
_STEP = 1 << 20
TURN = 5.0
"""Seconds to wait for another delivery below the same root to end."""

_AWAY = {errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENXIO}
_NOT_POSSIBLE = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}

_ALL_LATER = {
    errno.ENOSPC: "is full; make room there and delivery goes on by itself",
    errno.EDQUOT: "is over its quota; delivery goes on by itself when there is room",
    errno.EROFS: "is mounted read-only; mount it writable and delivery goes on by itself",
    errno.ESTALE: "is a stale mount; mount it again and delivery goes on by itself",
    errno.EIO: "gives input/output errors; look at its server or disk",
}
_LATER = {
    errno.EACCES: "does not let sorter write; give its account, or the lab's group, the right to",
    errno.EPERM: "does not let sorter write; give its account, or the lab's group, the right to",
    errno.EBUSY: "is busy: a file or folder there is in use; delivery goes on by itself",
    errno.ETXTBSY: "is busy: a file there is open elsewhere; delivery goes on by itself when it is closed",
    errno.ENOENT: "changed while it was being delivered into",
    errno.EEXIST: "changed while it was being delivered into",
    errno.ENOTEMPTY: "changed while it was being delivered into",
    errno.EINTR: "was interrupted; delivery goes on by itself",
}
_HELD = {
    errno.ENOTDIR: "has a file or a link where a folder belongs; move it away, then run `sorter retry`",
    errno.ELOOP: "has a link where a folder belongs, and links are never followed; move it away, then `sorter retry`",
    errno.EISDIR: "has a folder where a file belongs; move it away, then run `sorter retry`",
    errno.ENAMETOOLONG: "does not take names this long; shorten the naming pattern, then run `sorter retry`",
}


def spoken(root: str, error: OSError) -> SorterError:
    """The sentence for a failed effect below `root`: TryLater, Away or Held."""
    code = error.errno or 0
    if code in _HELD:
        return Held(f"{root} {_HELD[code]}")
    if code in _ALL_LATER:
        return Away(f"{root} {_ALL_LATER[code]}")
    if code in _LATER:
        return TryLater(f"{root} {_LATER[code]}")
    if code in _AWAY:
        return Away(f"{root} is away ({os.strerror(code)}); delivery goes on by itself when it is back")
    return TryLater(f"{root} cannot be used now: {os.strerror(code)}")


def unread(error: OSError) -> TryLater:
    """The sentence for a file of the store that could not be read, which is no fault of any target's."""
    return TryLater(f"the store cannot be read: {error.strerror}; look at its disk")


def components(relative: str) -> tuple[str, ...]:
    """The parts of a folder name relative to a root. Held for any that could lead elsewhere."""
    parts = tuple(part for part in relative.split("/") if part)
    if relative.startswith("/") or any(part in (".", "..") or "\0" in part for part in parts):
        raise Held("a folder name that leads out of the target's root was asked for; look at the naming pattern")
    return parts


def file_name(name: str) -> str:
    """`name` itself. Held for one that could lead elsewhere or be taken for sorter's own."""
    if not name or name in (".", "..") or "/" in name or "\0" in name or name.startswith(MARKER):
        raise Held("a file name that no target can have was asked for; look at the naming pattern")
    return name


def one_name(name: str) -> str:
    """What names have in common that are one where letter case and composition do not count (SMB, macOS)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@dataclass(frozen=True, slots=True)
class Access:
    """Whose the files are: the group (None: whatever the place gives) and the modes of files and folders."""

    gid: int | None
    file_mode: int
    folder_mode: int


@dataclass(frozen=True, slots=True)
class Look:
    """What stands under a name: digest ("" when not read, or no readable file), and a mark that changes with it."""

    sha256: str
    mark: tuple[int, ...]
    size: int
    changed: float  # modification time, seconds since 1970


TOO_LARGE = "-"
"""In place of the digest of a file that is too large to be anything that was delivered."""


def bound(size: int) -> int:
    """Bytes that are read at most where a file of `size` was delivered, or is to be: any later form of it too. A sparse
    file has as many bytes as somebody likes, and would be read for ever."""
    return 4 * size + (1 << 30)


def _mark(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def digest(files: Files, fd: int) -> str:
    """SHA-256, in hex, of a file's content, read from its start and past the page cache."""
    files.drop_cache(fd)
    found, offset = hashlib.sha256(), 0
    while piece := files.pread(fd, _STEP, offset):
        found.update(piece)
        offset += len(piece)
    return found.hexdigest()


def look(
    files: Files, name: str, at: int, *, settle: bool = False, read: bool = True, most: int | None = None
) -> Look | None:
    """What stands at `name`; None for nothing. `settle` also makes sure that it would survive a power cut. What is
    larger than `most` is not read: it has a digest that nothing has."""
    try:
        info = files.stat(name, at=at)
    except FileNotFoundError:
        return None
    nothing = Look("", _mark(info), info.st_size if stat.S_ISREG(info.st_mode) else -1, info.st_mtime)
    if not stat.S_ISREG(info.st_mode) or not read:
        return nothing
    try:
        fd = files.open(name, _LOOK, at=at)
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_open_elsewhere(error, info):
            raise  # no edit of the lab's
        if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO):
            return nothing
        raise
    try:
        info = files.stat(fd)
        if not stat.S_ISREG(info.st_mode):
            return nothing
        if most is not None and info.st_size > most:
            return Look(TOO_LARGE, _mark(info), info.st_size, info.st_mtime)
        if settle:
            _try_fsync(files, fd)
        return Look(digest(files, fd), _mark(info), info.st_size, info.st_mtime)
    finally:
        files.close(fd)


def is_open_elsewhere(error: OSError, info: os.stat_result) -> bool:
    """Ours, and readable, and yet not to be read: on SMB, while somebody has it open for himself alone."""
    refused = error.errno in (errno.EACCES, errno.EPERM)
    return refused and info.st_uid == os.geteuid() and bool(info.st_mode & stat.S_IRUSR)


def _try_fsync(files: Files, fd: int) -> None:
    """fsync a file opened for reading, which some SMB mounts refuse."""
    try:
        files.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EACCES, errno.EINVAL):
            raise


def copied(files: Files, name: str, at: int, into: int) -> bool:
    """Copy the regular file `name` into the empty file `into`; False where there is none that can be read."""
    try:
        with files.opened(name, _LOOK, at=at) as fd:
            if not stat.S_ISREG(files.stat(fd).st_mode):
                return False
            files.drop_cache(fd)
            files.copy(fd, into)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO):
            return False
        raise
    return True


def unchanged(files: Files, name: str, at: int, seen: Look) -> bool:
    try:
        return _mark(files.stat(name, at=at)) == seen.mark
    except FileNotFoundError:
        return False


def remove_tree(files: Files, name: str, at: int, depth: int = 8) -> None:
    """Remove a folder of ours and all in it, or a file in its place; nothing there is fine, links are not followed."""
    try:
        if not stat.S_ISDIR(files.stat(name, at=at).st_mode):
            files.unlink(name, at=at)
            return
        if depth == 0:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        with files.opened(name, _FOLDER, at=at) as fd:
            for entry in files.names(fd):
                remove_tree(files, entry, fd, depth - 1)
        files.rmdir(name, at=at)
    except FileNotFoundError:
        return


def _may_keep(gid: int) -> bool:
    """May this process set the set-group-ID bit of a folder of this group? Else a chmod clears it. (chmod(2))"""
    return os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups())


class Visit:
    """One job's stay below a root: open descriptors, whom the files shall belong to, and what there is to say.

    Entering it makes sure that the mount is there (Away when not) and, unless it is only to look (`alone` False),
    that nobody else delivers below this root.
    """

    def __init__(self, files: Files, root: str, access: Access, *, alone: bool = True) -> None:
        self.files, self.root, self.access, self._alone = files, root, access, alone
        self.notes: list[str] = []
        self.fd = -1
        self.locked = True
        self._open = contextlib.ExitStack()
        self._folders: dict[tuple[str, ...], int] = {}

    def __enter__(self) -> Visit:
        with contextlib.ExitStack() as failed:
            failed.callback(self._open.close)
            self.fd = self._root()
            self._marker()
            failed.pop_all()
        self._folders[()] = self.fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def note(self, sentence: str) -> None:
        """Say something once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    # --- the root -----------------------------------------------------------------------------------------------

    def _root(self) -> int:
        try:  # the root itself is the admin's, so a link to it is followed
            return self._kept(self.files.open(self.root, os.O_RDONLY | os.O_DIRECTORY))
        except NotADirectoryError:
            raise Held(f"{self.root} is a file, not a folder; give the target another root") from None
        except FileNotFoundError:
            raise Away(f"{self.root} is not there: its mount is away, or it was never made") from None

    def _marker(self) -> None:
        """The marker is there, and nobody else holds it: two writers below one root would take each other for labs."""
        files = self.files
        try:
            folder = self._kept(files.open(MARKER, _FOLDER, at=self.fd))
            try:  # NFS gives a lock only on what is open for writing
                marker = self._kept(files.open("id", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, at=folder))
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                marker = self._kept(files.open("id", _LOOK, at=folder))
        except (FileNotFoundError, NotADirectoryError):
            raise Away(
                f"{self.root}: the marker .sorter/id is missing: the mount is away; "
                "or, if this is the place, run `sorter check --targets` to make it"
            ) from None
        if not self._alone:
            return
        try:
            self._lock(marker)
        except OSError:  # a mount without locks: then this process is trusted to be the only one
            self.locked = False

    def _lock(self, marker: int) -> None:
        """Two targets, or a check beside a delivery, may mean the same folder: whoever comes second waits a little."""
        until = time.monotonic() + TURN
        while not self.files.lock(marker):
            if time.monotonic() >= until:
                raise TryLater(f"another sorter is delivering below {self.root}")
            time.sleep(0.05)

    def folds(self) -> bool:
        """Does this file system take `A` and `a` for one name? Seen, not assumed: the marker has a name to try with."""
        try:
            other = self.files.stat(MARKER.upper(), at=self.fd)
        except OSError:
            return False
        mine = self.files.stat(MARKER, at=self.fd)
        return (other.st_dev, other.st_ino) == (mine.st_dev, mine.st_ino)

    # --- folders ------------------------------------------------------------------------------------------------

    def walk(self, relative: str) -> int | None:
        """A descriptor of the folder, kept until the visit ends; None when it is not there. Held at a link or file."""
        parts = components(relative)
        for count in range(1, len(parts) + 1):
            if parts[:count] not in self._folders:
                try:
                    opened = self.files.open(parts[count - 1], _FOLDER, at=self._folders[parts[: count - 1]])
                except FileNotFoundError:
                    return None
                self._folders[parts[:count]] = self._kept(opened)
        return self._folders[parts]

    def make(self, relative: str) -> int:
        """Like `walk`, but what is missing is made; `settle` makes it durable."""
        parts = components(relative)
        for count in range(1, len(parts) + 1):
            here = "/".join(parts[:count])
            if self.walk(here) is not None:
                continue
            above = self._folders[parts[: count - 1]]
            with contextlib.suppress(FileExistsError):
                listed = self.files.has_default_acl(above)
                self.files.mkdir(parts[count - 1], 0o777 if listed else self.access.folder_mode & 0o777, at=above)
            made = self.walk(here)
            if made is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self.own_folder(made)
        return self._folders[parts]

    def settle(self, relative: str) -> None:
        """The names of this folder and of those above it are on disk."""
        parts = components(relative)
        for count in range(len(parts), -1, -1):
            self.files.fsync_folder(self._folders[parts[:count]])

    def forget(self, relative: str) -> None:
        """The folder got another name or went away: look again when it is next asked for."""
        self._folders.pop(components(relative), None)

    @contextlib.contextmanager
    def passing(self, parts: tuple[str, ...]) -> Iterator[int | None]:
        """A descriptor for a short look, without keeping it; None for what cannot be looked into."""
        with contextlib.ExitStack() as opened:
            fd: int | None = self.fd
            try:
                for part in parts:
                    fd = self.files.open(part, _FOLDER, at=fd)
                    opened.callback(self.files.close, fd)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM):
                    raise
                fd = None
            yield fd

    # --- ownership ----------------------------------------------------------------------------------------------

    def own_file(self, fd: int, *, listed: bool = False) -> None:
        """`listed`: the folder that it was made in has a default ACL, which a chmod would undo."""
        self._own(fd, None if listed else self.access.file_mode)

    def own_folder(self, fd: int) -> None:
        self._own(fd, None if self.files.has_default_acl(fd) else self.access.folder_mode)

    def _own(self, fd: int, mode: int | None) -> None:
        files, gid = self.files, self.access.gid
        info = files.stat(fd)
        if gid is not None and info.st_gid != gid:
            self._tolerant("the group of the files could not be set", lambda: files.chown(fd, -1, gid))
            info = files.stat(fd)
        if mode is None:
            return
        wanted = mode if gid is not None else mode | (info.st_mode & stat.S_ISGID)
        if stat.S_IMODE(info.st_mode) == wanted:
            return
        if info.st_mode & stat.S_ISGID and not _may_keep(info.st_gid):
            self.note("the permissions of folders were left: a chmod would take their set-group-ID bit away")
            return
        self._tolerant("the permissions of the files could not be set", lambda: files.chmod(fd, wanted))

    def _tolerant(self, sentence: str, effect: Callable[[], None]) -> None:
        try:
            effect()
        except OSError as error:
            if error.errno not in _NOT_POSSIBLE:
                raise
            self.note(sentence)

    def _kept(self, fd: int) -> int:
        self._open.callback(self.files.close, fd)
        return fd
