"""A file system in memory, and every state in which a power cut may leave it.

It is as forgetful as POSIX allows. What was written to a file may be on the disk whole, in part or not at all until the
file was synced. A name that was made, replaced or removed may be on the disk or not until its folder was synced, each
change for itself: a rename across folders may be half there, a newer name without an older one. Syncing a file says
nothing of its name, syncing a folder nothing of what its files hold.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from sorter.durable import Buffer, Files, PathLike

_FIRST_FD = 100_000  # none of the process's own


Change = tuple[tuple[str, "Node | None"], ...]
"""Names of one folder that were made, replaced or (None) removed in one step: on the disk all of them or none."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Of os.DirEntry what is asked for here."""

    name: str
    mode: int

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(eq=False, slots=True)
class Node:
    """A file or a folder. `data` and `names` are what a process sees, `disk…` what is certainly on the disk."""

    number: int
    mode: int
    data: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    disk_data: bytes = b""
    disk_names: dict[str, Node] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)  # since the last sync
    gid: int = 0
    changed: int = 0
    holder: int | None = None  # of its flock

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def sync(self) -> None:
        self.disk_data, self.disk_names = self.data, dict(self.names)
        self.pending.clear()


@dataclass(slots=True)
class _Open:
    node: Node
    flags: int
    offset: int = 0


Entry = tuple[str, int, int, bytes | None]
"""(path, node number, mode, content or None for a folder) of what a recovery would find."""

Image = tuple[Entry, ...]


class Memory(Files):
    """The primitives of `Files` on nodes in memory. `before` is called before each effect."""

    def __init__(self) -> None:
        self._numbers = itertools.count(2)
        self.root = Node(1, stat.S_IFDIR | 0o755)
        self._open: dict[int, _Open] = {}
        self._fds = itertools.count(_FIRST_FD)
        self._lock = threading.RLock()
        self.before: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, image: Image) -> Memory:
        """A disk that holds exactly this."""
        made, nodes = cls(), {}
        for path, number, mode, content in image:
            node = nodes.get(number) or Node(number, mode, content or b"", disk_data=content or b"")
            nodes[number] = node
            node.changed = time.time_ns()
            folder, _, name = path.rpartition("/")
            above = made._walk(folder)
            above.names[name] = above.disk_names[name] = node
        made._numbers = itertools.count(max(nodes, default=1) + 1)
        return made

    # --- states after a power cut -------------------------------------------------------------------------------

    def states(self, most: int, dice: random.Random) -> Iterator[Image]:
        """What may be on the disk now: all of it where that is at most `most` states, else extremes and a sample."""
        with self._lock:
            toggles = self._unsure()
            sizes = [3 if not node.is_folder else 2 for node, _ in toggles]
            total = 1
            for size in sizes:
                total = min(total * size, most + 1)
            choices: Iterator[Sequence[int]]
            choices = itertools.product(*map(range, sizes)) if total <= most else self._sample(sizes, most, dice)
            for choice in choices:
                yield self._image({(id(node), at): picked for (node, at), picked in zip(toggles, choice, strict=True)})

    def _sample(self, sizes: list[int], most: int, dice: random.Random) -> Iterator[Sequence[int]]:
        nothing, everything = [0] * len(sizes), [1] * len(sizes)
        yield nothing
        yield everything
        for at in range(len(sizes)):
            yield [*nothing[:at], 1, *nothing[at + 1 :]]
            yield [*everything[:at], 0, *everything[at + 1 :]]
        for _ in range(max(0, most - 2 - 2 * len(sizes))):
            yield [dice.randrange(size) for size in sizes]

    def _unsure(self) -> list[tuple[Node, int]]:
        """(node, which of its pending changes, or 0 for a file's content) of all that is not certainly on the disk."""
        found, seen, rest = [], set[int](), [self.root]
        while rest:
            node = rest.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.is_folder:
                found += [(node, at) for at in range(len(node.pending))]
                rest += node.disk_names.values()
                rest += [new for change in node.pending for _, new in change if new is not None]
            elif node.data != node.disk_data:
                found.append((node, 0))
        return found

    def _image(self, picked: dict[tuple[int, int], int]) -> Image:
        entries: list[Entry] = []

        def visit(path: str, node: Node) -> None:
            names: dict[str, Node | None] = dict(node.disk_names)
            for at, change in enumerate(node.pending):
                if picked.get((id(node), at)):
                    names.update(change)
            for name, below in sorted(names.items()):
                if below is None:
                    continue
                here = f"{path}/{name}"
                content = None if below.is_folder else _content(below, picked.get((id(below), 0), 1))
                entries.append((here, below.number, below.mode, content))
                if below.is_folder:
                    visit(here, below)

        visit("", self.root)
        return tuple(entries)

    # --- paths --------------------------------------------------------------------------------------------------

    def _walk(self, path: str, start: Node | None = None) -> Node:
        node = self.root if start is None or path.startswith("/") else start
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if not node.is_folder:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if part not in node.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = node.names[part]
        return node

    def _above(self, path: PathLike, at: int | None) -> tuple[Node, str]:
        text = os.fspath(path)
        assert isinstance(text, str)
        assert at is not None or text.startswith("/"), f"{text}: relative to nothing"
        folder, _, name = text.rstrip("/").rpartition("/")
        start = None if at is None else self._open[at].node
        above = self._walk(folder or ("/" if text.startswith("/") else "."), start)
        if not above.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), text)
        return above, name

    def _find(self, path: PathLike, at: int | None) -> Node:
        start = None if at is None else self._open[at].node
        return self._walk(os.fspath(path), start)

    def _set(self, folder: Node, *change: tuple[str, Node | None]) -> None:
        for name, node in change:
            if node is None:
                del folder.names[name]
            else:
                folder.names[name] = node
        folder.pending.append(change)
        folder.changed = time.time_ns()

    def _new(self, mode: int) -> Node:
        node = Node(next(self._numbers), mode)
        node.changed = time.time_ns()
        return node

    # --- primitives ---------------------------------------------------------------------------------------------

    def open(self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        with self._lock:
            try:
                node = self._find(path, at)
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
                above, name = self._above(path, at)
                self.before()
                node = self._new(stat.S_IFREG | mode)
                self._set(above, (name, node))
            else:
                if flags & os.O_CREAT and flags & os.O_EXCL:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                if flags & os.O_DIRECTORY and not node.is_folder:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                if flags & os.O_TRUNC and node.data:
                    self.before()
                    node.data = b""
            fd = next(self._fds)
            self._open[fd] = _Open(node, flags)
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            node = self._open.pop(fd).node
            if node.holder == fd:
                node.holder = None

    def read(self, fd: int, size: int) -> bytes:
        with self._lock:
            opened = self._open[fd]
            piece = opened.node.data[opened.offset : opened.offset + size]
            opened.offset += len(piece)
            return piece

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        with self._lock:
            return self._open[fd].node.data[offset : offset + size]

    def readinto(self, fd: int, buffer: bytearray | memoryview) -> int:
        piece = self.read(fd, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, fd: int, data: Buffer) -> int:
        with self._lock:
            self.before()
            opened = self._open[fd]
            node = opened.node
            at = len(node.data) if opened.flags & os.O_APPEND else opened.offset
            new = bytes(data)
            node.data = node.data[:at].ljust(at, b"\0") + new + node.data[at + len(new) :]
            node.changed = time.time_ns()
            opened.offset = at + len(new)
            return len(new)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        return self.write(fd, b"".join(bytes(each) for each in buffers))

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            self.before()
            node = self._open[fd].node
            node.data = node.data[:size].ljust(size, b"\0")

    def fsync(self, fd: int) -> None:
        with self._lock:
            self.before()
            self._open[fd].node.sync()

    def sync_file_system(self, path: PathLike | int) -> None:
        with self._lock:
            self.before()
            rest, seen = [self.root, *(each.node for each in self._open.values())], set[int]()
            while rest:
                node = rest.pop()
                if id(node) not in seen:
                    seen.add(id(node))
                    node.sync()
                    rest += node.names.values()

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        pass  # it promises nothing

    def drop_cache(self, fd: int) -> None:
        pass

    def rename(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        with self._lock:
            node = self._find(old, at)
            source, name = self._above(old, at)
            target, other = self._above(new, to)
            there = target.names.get(other)
            if there is not None and there.is_folder and there.names:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), new)
            self.before()
            if source is target:
                self._set(source, (other, node), (name, None))
            else:
                self._set(target, (other, node))
                self._set(source, (name, None))

    def rename_new(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        with self._lock:
            target, other = self._above(new, to)
            if other in target.names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            self.rename(old, new, at=at, to=to)

    def link(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        with self._lock:
            node = self._find(old, at)
            target, name = self._above(new, to)
            if name in target.names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            self.before()
            self._set(target, (name, node))

    def unlink(self, path: PathLike, *, at: int | None = None) -> None:
        with self._lock:
            if self._find(path, at).is_folder:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            self.before()
            above, name = self._above(path, at)
            self._set(above, (name, None))

    def mkdir(self, path: PathLike, mode: int = 0o700, *, at: int | None = None) -> None:
        with self._lock:
            above, name = self._above(path, at)
            if name in above.names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self.before()
            self._set(above, (name, self._new(stat.S_IFDIR | mode)))

    def rmdir(self, path: PathLike, *, at: int | None = None) -> None:
        with self._lock:
            node = self._find(path, at)
            if not node.is_folder:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if node.names:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
            self.before()
            above, name = self._above(path, at)
            self._set(above, (name, None))

    def chmod(self, path: PathLike | int, mode: int) -> None:
        with self._lock:
            node = self._open[path].node if isinstance(path, int) else self._find(path, None)
            node.mode = stat.S_IFMT(node.mode) | mode

    def chown(self, path: PathLike | int, uid: int, gid: int) -> None:
        with self._lock:
            node = self._open[path].node if isinstance(path, int) else self._find(path, None)
            node.gid = gid

    def set_times(self, path: PathLike | int, atime_ns: int, mtime_ns: int) -> None:
        with self._lock:
            node = self._open[path].node if isinstance(path, int) else self._find(path, None)
            node.changed = mtime_ns

    def stat(self, path: PathLike | int, *, at: int | None = None) -> os.stat_result:
        with self._lock:
            return self._stat(self._open[path].node if isinstance(path, int) else self._find(path, at))

    def _stat(self, node: Node) -> os.stat_result:
        seconds = node.changed / 1e9
        numbers = (node.mode, node.number, 7, 1, os.getuid(), node.gid, len(node.data))
        times = {f"st_{which}time_ns": node.changed for which in "amc"}
        floats = {f"st_{which}time": seconds for which in "amc"}
        return os.stat_result((*numbers, *(int(seconds),) * 3), {**times, **floats})

    def scan(self, path: PathLike | int) -> list[tuple[str, os.stat_result]]:
        with self._lock:
            node = self._open[path].node if isinstance(path, int) else self._find(path, None)
            return [(name, self._stat(below)) for name, below in sorted(node.names.items())]

    def entries(self, path: PathLike | int) -> Iterator[os.DirEntry[str]]:
        """Of each its name, and whether it is a folder, which is all that is asked of them here."""
        self.names(path)  # of a folder, or an error
        for name, info in self.scan(path):
            yield cast("os.DirEntry[str]", _Entry(name, info.st_mode))

    def names(self, path: PathLike | int) -> list[str]:
        with self._lock:
            node = self._open[path].node if isinstance(path, int) else self._find(path, None)
            if not node.is_folder:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            return sorted(node.names)

    def space(self, path: PathLike) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 1 << 30, 1 << 29, 1 << 29, 1 << 30, 1 << 29, 1 << 29, 0, 255))

    def reflink(self, source: int, target: int) -> bool:
        return False

    def lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        with self._lock:
            node = self._open[fd].node
            if node.holder not in (None, fd):
                return False
            node.holder = fd
            return True

    def unlock(self, fd: int) -> None:
        with self._lock:
            self._open[fd].node.holder = None

    def is_shared(self, fd: int) -> bool:
        return False

    def file_system(self, fd: int) -> int:
        return 0

    def has_default_acl(self, fd: int) -> bool:
        return False

    def has_writer(self, fd: int) -> bool | None:
        return False


def _content(node: Node, which: int) -> bytes:
    """0: as it was synced; 1: all that was written; 2: half of what came since."""
    if which < 2:
        return node.data if which else node.disk_data
    return node.data[: (len(node.disk_data) + len(node.data)) // 2]
