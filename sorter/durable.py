"""The one object through which the spool and the targets are touched.

Every effect on a file that matters goes through `Files`, so that a test can make any of them fail, lose power between
any two of them, or run the whole pipeline on a file system in memory. Nothing else in sorter calls `os`, `shutil` or
`pathlib` for an effect; tests/unit/test_architecture.py holds that line.

The class has two halves. The first is the *primitives*, each one system call: a model file system replaces exactly
these. The second is *made of them*, and holds the orders of operations that survive a power cut:

* a new file: write beside under a temporary name, fsync, rename, fsync the folder;
* a moved file: link under the new name, fsync that folder, only then unlink the old name;
* an appended line: write whole under an exclusive lock, fsync.

After a failed fsync the pages are marked clean although they never reached the disk, so fsync is never tried again on
that descriptor: the error is raised and the caller writes anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat as stat_module
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
Buffer: TypeAlias = bytes | bytearray | memoryview

PART = ".part"
"""Suffix of a file that is still being written; whoever starts on a spool may remove it."""

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_COPY_STEP = 8 << 20
_READ_STEP = 1 << 20
NFS = 0x6969
"""f_type (linux/magic.h) of NFS; `_SHARED` has all file systems that other machines, or processes unseen, write to."""

SMB2 = 0xFE534D42
_SMB = frozenset({0x517B, 0xFF534D42, SMB2})  # SMB, CIFS, SMB2

_SHARED = frozenset(
    {
        NFS,
        *_SMB,
        0x65735546,  # FUSE: sshfs, s3fs, and what is local behind one
        0x01021997,  # 9p
        0x00C36400, 0x0BD00BD0, 0x47504653, 0x19830326,  # Ceph, Lustre, GPFS, BeeGFS
        0x5346414F, 0x6B414653, 0x73757245,  # AFS, kAFS, Coda
        0x7461636F, 0x01161970,  # OCFS2, GFS2
    }
)  # fmt: skip
_MANY = 6  # from here on one syncfs is cheaper than an fsync of each

_libc = ctypes.CDLL(None, use_errno=True)
_Offset = ctypes.c_int64  # off64_t


def _libc_error(path: PathLike) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), os.fspath(path))


class Files:
    """Effects on a real file system. `at` is a descriptor of the folder that a relative path starts from."""

    def beat(self) -> None:
        """Long work goes on. Nobody wants to know, but for whom a target works in a worker process."""

    # --- primitives: one system call each -----------------------------------------------------------------------

    def open(self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        """A descriptor, closed on exec. `mode` applies when `flags` creates the file."""
        return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=at)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def readinto(self, fd: int, buffer: bytearray | memoryview) -> int:
        return os.readv(fd, [buffer])

    def write(self, fd: int, data: Buffer) -> int:
        """Bytes written, perhaps fewer than given: see `write_all`."""
        return os.write(fd, data)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        return os.writev(fd, buffers)

    def splice(self, pipe: int, fd: int, size: int) -> int:
        """Move at most `size` bytes that are in a pipe to the end of what was written; how many it were."""
        return os.splice(pipe, fd, size)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_file_system(self, path: PathLike | int) -> None:
        """Everything written to the file system that holds `path` is on disk (syncfs; sync where there is none).

        Of a descriptor, errors of the disk since it was opened are raised.
        """
        if not hasattr(_libc, "syncfs"):
            os.sync()
            return
        fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(fd) != 0:
                raise _libc_error(str(path))
        finally:
            if fd != path:
                os.close(fd)

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        """Let the kernel begin to write these bytes, and wait for nothing. It promises nothing either: a sync does."""
        if hasattr(_libc, "sync_file_range"):
            _libc.sync_file_range(fd, _Offset(offset), _Offset(size), _SYNC_FILE_RANGE_WRITE)

    def drop_cache(self, fd: int) -> None:
        """Ask the kernel to forget the cached pages of a synced file, so that the next read comes from the disk."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        """`new` is replaced if it exists. `at` and `to` are the folders that old and new start from."""
        os.rename(old, new, src_dir_fd=at, dst_dir_fd=to)

    def rename_new(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        """Like `rename`, but FileExistsError where `new` exists. OSError EINVAL where the mount cannot (NFS, sshfs)."""
        if not hasattr(_libc, "renameat2"):
            raise OSError(errno.EINVAL, "this system has no renameat2", os.fspath(new))
        source, target = _AT_FDCWD if at is None else at, _AT_FDCWD if to is None else to
        if _libc.renameat2(source, os.fsencode(old), target, os.fsencode(new), _RENAME_NOREPLACE) != 0:
            raise _libc_error(new)

    def link(self, old: PathLike, new: PathLike, *, at: int | None = None, to: int | None = None) -> None:
        """FileExistsError where `new` exists; a symbolic link is linked, never followed."""
        os.link(old, new, src_dir_fd=at, dst_dir_fd=to, follow_symlinks=False)

    def unlink(self, path: PathLike, *, at: int | None = None) -> None:
        os.unlink(path, dir_fd=at)

    def mkdir(self, path: PathLike, mode: int = 0o700, *, at: int | None = None) -> None:
        os.mkdir(path, mode, dir_fd=at)

    def rmdir(self, path: PathLike, *, at: int | None = None) -> None:
        os.rmdir(path, dir_fd=at)

    def chmod(self, path: PathLike | int, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: PathLike | int, uid: int, gid: int) -> None:
        os.chown(path, uid, gid)

    def set_blocking(self, fd: int, *, blocking: bool) -> None:
        os.set_blocking(fd, blocking)

    def set_times(self, path: PathLike | int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(path, ns=(atime_ns, mtime_ns))

    def stat(self, path: PathLike | int, *, at: int | None = None) -> os.stat_result:
        """Of the thing itself: a symbolic link is never followed."""
        if isinstance(path, int):
            return os.fstat(path)
        return os.stat(path, dir_fd=at, follow_symlinks=False)

    def scan(self, path: PathLike | int) -> list[tuple[str, os.stat_result]]:
        """(name, lstat) of each entry, by name; an entry that vanishes meanwhile is left out."""
        found: list[tuple[str, os.stat_result]] = []
        with os.scandir(path) as entries:
            for entry in entries:
                self.beat()
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
        return sorted(found, key=lambda item: item[0])

    def entries(self, path: PathLike | int) -> Iterator[os.DirEntry[str]]:
        """The entries of a folder one at a time, in no order: for folders of any size."""
        with os.scandir(path) as entries:
            yield from entries

    def names(self, path: PathLike | int) -> list[str]:
        return sorted(os.listdir(path))

    def space(self, path: PathLike) -> os.statvfs_result:
        return os.statvfs(path)

    def reflink(self, source: int, target: int) -> bool:
        """Share the blocks of `source` with the empty file `target`; False where the file system cannot."""
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:
            return False
        return True

    def lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Take the flock of `fd`; False if somebody else holds it and we do not `wait`. Ends with the descriptor."""
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except PermissionError:
            if not self._is_held_by_smb(fd):
                raise
            return False
        return True

    def _is_held_by_smb(self, fd: int) -> bool:
        """Does a refused lock mean that somebody has it? SMB says EACCES then, but also where `fd` is not writable."""
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        return writable and self.file_system(fd) in _SMB

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    def is_shared(self, fd: int) -> bool:
        """Can others than this kernel write to the file system of `fd`? True for network and FUSE mounts.

        There a lease, inode numbers and events say nothing about them: NFS and SMB refuse a lease without a delegation
        as if there were a writer, FUSE grants it whoever writes.
        """
        return self.file_system(fd) in _SHARED

    def file_system(self, fd: int) -> int:
        """What kind of file system the file of `fd` lies on: the number of it in linux/magic.h. (statfs, f_type)"""
        room = ctypes.create_string_buffer(512)  # struct statfs, whose first field is f_type
        if _libc.fstatfs(fd, room) != 0:
            raise _libc_error(str(fd))
        return ctypes.c_long.from_buffer(room).value & 0xFFFFFFFF

    def has_default_acl(self, fd: int) -> bool:
        """Does the folder give what is made in it an access control list of its own (acl(5), default entries)?"""
        try:
            return bool(os.getxattr(fd, "system.posix_acl_default"))
        except (OSError, AttributeError):  # none, or a file system, or another kernel, that knows none
            return False

    def has_writer(self, fd: int) -> bool | None:
        """Does anyone hold the regular file open for writing? None where the kernel does not say.

        It says so where the file is ours, or we have CAP_LEASE, on a local file system: a read lease (fcntl F_SETLEASE)
        is refused while there is a writer. `fd` must be open for reading only.
        """
        try:
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # by default the breaking of a lease would end the process
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError:
            return None
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    # --- made of them -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(
        self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None
    ) -> Iterator[int]:
        fd = self.open(path, flags, mode, at=at)
        try:
            yield fd
        finally:
            self.close(fd)

    def exists(self, path: PathLike, *, at: int | None = None) -> bool:
        try:
            self.stat(path, at=at)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_folder(self, path: PathLike, *, at: int | None = None) -> bool:
        """True for a real folder; a symbolic link to one is not."""
        try:
            return stat_module.S_ISDIR(self.stat(path, at=at).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def write_all(self, fd: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            view = view[self.write(fd, view) :]

    def chunks(self, fd: int, step: int = _READ_STEP) -> Iterator[memoryview]:
        """The rest of the file in pieces of `step` bytes; each piece is valid until the next is asked for."""
        buffer = bytearray(step)
        view = memoryview(buffer)
        while got := self.readinto(fd, buffer):
            yield view[:got]

    def read_file(self, path: PathLike, *, at: int | None = None, limit: int = 1 << 30) -> bytes:
        """The whole content; OSError EFBIG beyond `limit` bytes, ELOOP at a symbolic link."""
        with self.opened(path, os.O_RDONLY | os.O_NOFOLLOW, at=at) as fd:
            if self.stat(fd).st_size > limit:
                raise OSError(errno.EFBIG, "file too large", os.fspath(path))
            return b"".join(bytes(piece) for piece in self.chunks(fd))

    def copy(self, source: int, target: int) -> None:
        """The content of `source`, from its start, into the empty file `target` (shared blocks where possible)."""
        self.copy_synced(source, target, 0)

    def copy_synced(self, source: int, target: int, most: int) -> None:
        """As `copy`, with never more than `most` bytes (0: any number) that are written and not synced; the last of
        them stay so."""
        if self.reflink(source, target):
            return
        offset = synced = 0
        while piece := self.pread(source, _COPY_STEP, offset):
            if most and offset - synced + len(piece) > most:
                self.fsync(target)
                synced = offset
            self.write_all(target, piece)
            offset += len(piece)

    def can_be_read(self, fd: int) -> bool:
        """To its end: to tell, after a copy failed, on which of two disks that was."""
        offset = 0
        try:
            while piece := self.pread(fd, _COPY_STEP, offset):
                offset += len(piece)
        except OSError:
            return False
        return True

    def fsync_folder(self, path: PathLike | int) -> None:
        """The names in a folder are on disk. EINVAL (some network mounts) means: this mount does not know how."""
        try:
            if isinstance(path, int):
                self.fsync(path)
            else:
                with self.opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
                    self.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def fsync_all(self, files: Iterable[PathLike], folders: Iterable[PathLike] = ()) -> None:
        """The content of these files and the names in these folders, all of one file system, are on disk.

        One syncfs where they are many.
        """
        files, folders = sorted({os.fspath(file) for file in files}), sorted({os.fspath(folder) for folder in folders})
        if len(files) + len(folders) >= _MANY:
            self.sync_file_system([*folders, *files][0])
            return
        for file in files:
            with self.opened(file, os.O_RDONLY | os.O_NOFOLLOW) as fd:
                self.fsync(fd)
        for folder in folders:
            self.fsync_folder(folder)

    def fsync_folders(self, paths: Iterable[PathLike]) -> None:
        """All these folders of one file system; one syncfs where they are many."""
        self.fsync_all((), paths)

    def make_folders(self, path: PathLike, mode: int = 0o700) -> None:
        """`path` and what is missing above it, each made durable in its parent."""
        path = os.fspath(path)
        if self.is_folder(path):
            return
        parent = os.path.dirname(path) or "."
        self.make_folders(parent, mode)
        with contextlib.suppress(FileExistsError):
            self.mkdir(path, mode)
        self.fsync_folder(parent)

    def write_file(self, path: PathLike, data: Buffer, mode: int = 0o600, *, durable: bool = True) -> None:
        """Replace `path` by `data` in one step; when this returns and `durable`, a power cut changes nothing."""
        path = os.fspath(path)
        part = f"{path}{PART}"
        with self.opened(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode) as fd:
            self.write_all(fd, data)
            if durable:
                self.fsync(fd)
        self.rename(part, path)
        if durable:
            self.fsync_folder(os.path.dirname(path) or ".")

    def append(self, path: PathLike, data: Buffer, mode: int = 0o600, *, durable: bool = True) -> None:
        """Add `data` at the end in one write. A half line that a power cut left is ended first."""
        path = os.fspath(path)
        new = not self.exists(path)
        with self.opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, mode) as fd:
            size = self.stat(fd).st_size
            torn = size > 0 and self.pread(fd, 1, size - 1) != b"\n"
            self.write_all(fd, b"\n" + bytes(data) if torn else data)
            if durable:
                self.fsync(fd)
        if new and durable:
            self.fsync_folder(os.path.dirname(path) or ".")

    def remove_tree(self, path: PathLike) -> None:
        """A folder and all below it; symbolic links are removed, never followed."""
        path = os.fspath(path)
        for name, info in self.scan(path):
            child = os.path.join(path, name)
            if stat_module.S_ISDIR(info.st_mode):
                self.remove_tree(child)
            else:
                self.unlink(child)
        self.rmdir(path)


class OwnersFiles(Files):
    """Files of root, who works on a folder of another account: what it makes below that folder is the account's.

    Else the account could neither read nor go on writing what a command of root's left there.
    """

    def __init__(self, folder: PathLike) -> None:
        self._folder = os.path.realpath(folder)
        self._owner = os.stat(folder).st_uid

    def open(self, path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o600, *, at: int | None = None) -> int:
        fd = super().open(path, flags, mode, at=at)
        if flags & os.O_CREAT and os.fstat(fd).st_uid != self._owner and self._is_below(path, at):
            os.fchown(fd, self._owner, -1)
        return fd

    def mkdir(self, path: PathLike, mode: int = 0o700, *, at: int | None = None) -> None:
        super().mkdir(path, mode, at=at)
        if self._is_below(path, at):
            os.chown(path, self._owner, -1, dir_fd=at, follow_symlinks=False)

    def _is_below(self, path: PathLike, at: int | None) -> bool:
        top = os.getcwd() if at is None else os.readlink(f"/proc/self/fd/{at}")
        whole = os.path.join(top, os.fspath(path))
        return f"{os.path.realpath(os.path.dirname(whole))}/".startswith(f"{self._folder}/")


def files_of_owner(folder: PathLike) -> Files:
    """To work on what is below `folder` in its owner's stead, where we are root and he is not."""
    if os.geteuid() == 0 and os.path.exists(folder) and os.stat(folder).st_uid != 0:
        return OwnersFiles(folder)
    return Files()
