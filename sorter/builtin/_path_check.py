"""Is the place really there, could a delivery be made, and what has to be known of it?"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator

from sorter.builtin._path_folders import MARKER, Visit, look, remove_tree, spoken
from sorter.builtin._path_stage import Stage
from sorter.durable import NFS, PART, Files
from sorter.errors import SorterError, TryLater

_MOST_GROUPS = 16  # that NFS hands on of an account (AUTH_SYS, RFC 5531 appendix A)
_NOBODY = 65534  # whom a server takes root for, unless it is told another account (exports(5), anonuid)
_OWN_ACCOUNT = "run sorter under an account that the server knows, and that is in the lab's group"


def mark(root: str | os.PathLike[str], files: Files) -> bool:
    """Make the marker that says "this mount is really there"; False where it is. `root` itself has to exist."""
    try:
        with files.opened(root, os.O_RDONLY | os.O_DIRECTORY) as top:
            with contextlib.suppress(FileExistsError):
                files.mkdir(MARKER, 0o755, at=top)
                files.fsync_folder(top)
            with files.opened(MARKER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, at=top) as folder:
                if files.exists("id", at=folder):
                    return False
                with files.opened("id", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, at=folder) as fd:
                    files.write_all(fd, f"{os.urandom(16).hex()}\n".encode())
                    files.fsync(fd)
                files.fsync_folder(folder)
                return True
    except FileNotFoundError:
        raise SorterError(f"{os.fspath(root)} is not there; mount it, or make it, first") from None
    except OSError as error:
        raise spoken(os.fspath(root), error) from error


@contextlib.contextmanager
def explained(root: str, files: Files) -> Iterator[None]:
    """Whoever is refused is told what an account's name alone does not show: how a share's server sees it."""
    try:
        yield
    except TryLater as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        raise TryLater("; ".join([str(error), *_reasons(root, files)])) from error.__cause__


def _reasons(root: str, files: Files) -> Iterator[str]:
    owner = None
    try:
        with files.opened(root, os.O_RDONLY | os.O_DIRECTORY) as top:
            shared = files.is_shared(top)
            if files.exists(MARKER, at=top):
                owner = files.stat(MARKER, at=top).st_uid
    except OSError:
        shared = True  # not even that is allowed: as for nobody
    if owner not in (None, os.geteuid()):
        yield (
            f"{MARKER} there belongs to account {owner}, not to {os.geteuid()}: if sorter made it just now, the share "
            "gives all that is made to its own account; mount it as sorter's (uid=, or log in there as it)"
        )
    if shared and os.geteuid() == 0:
        yield f"to most shares root is nobody (root squash): {_OWN_ACCOUNT}"
    elif shared and len(os.getgroups()) > _MOST_GROUPS:
        yield _too_many_groups()


def made_remarks(root: str, files: Files) -> Iterator[str]:
    """What a person should know who has just had the marker made."""
    yield f"the marker {root}/{MARKER}/id was made"
    if files.stat(os.path.realpath(root)).st_dev == files.stat("/").st_dev:
        yield (
            "it lies on this machine's own disk: if a share belongs there, it is not mounted; remove .sorter there, "
            "mount the share, and check again"
        )


def probe(visit: Visit, threads: int) -> tuple[str, ...]:
    """Create, sync, rename, read back and delete a small file below `.sorter/`; remarks on how the mount does it.

    TryLater where a delivery could not be made.
    """
    with visit.passing((MARKER,)) as folder:
        if folder is None:
            raise TryLater(f"{visit.root}: .sorter cannot be opened")
        remove_tree(visit.files, f"check{PART}", folder)
        stage = Stage(visit, folder, f"check{PART}", threads)
        content = os.urandom(4096)
        with stage.opened():
            stage.put_bytes("first", content)
            stage.move_new("first", stage.fd, "second")
            seen = look(visit.files, "second", stage.fd)
            info = visit.files.stat("second", at=stage.fd)
            visit.files.unlink("second", at=stage.fd)
            if seen is None or seen.sha256 != hashlib.sha256(content).hexdigest():
                raise TryLater(f"{visit.root} does not give back what was written to it")
            listed = stage.listed
            try:
                stage.end()
            except OSError as error:  # FUSE and NFS keep for a moment what was just open; the next check removes it
                if error.errno != errno.ENOTEMPTY:
                    raise
    return (*visit.notes, *_remarks(visit, info, listed=listed))


def _remarks(visit: Visit, info: os.stat_result, *, listed: bool) -> Iterator[str]:
    """What the file that was just written says of the mount."""
    account = os.geteuid()
    if info.st_uid != account == 0 and (info.st_uid == _NOBODY or visit.files.file_system(visit.fd) == NFS):
        yield f"root's files belong to account {info.st_uid} there (root squash): {_OWN_ACCOUNT}"
    elif info.st_uid != account:
        yield f"files belong to account {info.st_uid} there, whoever writes them: quotas and owners are the mount's own"
    wanted = visit.access.file_mode
    if not listed and stat.S_IMODE(info.st_mode) != wanted:
        yield (
            f"permissions are the mount's own ({stat.S_IMODE(info.st_mode):04o} where {wanted:04o} was asked for), as "
            "on SMB: set file_mode, dir_mode, uid and gid where it is mounted"
        )
    if len(os.getgroups()) > _MOST_GROUPS and visit.files.file_system(visit.fd) == NFS:
        yield _too_many_groups()
    if not visit.locked:
        yield "this mount knows no locks: see to it that only one sorter delivers there"
    if visit.files.has_default_acl(visit.fd):
        yield "the folder has a default ACL: it alone says who may read and write what is delivered"


def _too_many_groups() -> str:
    return (
        f"this account is in {len(os.getgroups())} groups, and NFS hands on {_MOST_GROUPS} of them (sec=sys): a lab's "
        "group may not count there, unless the server looks groups up itself (rpc.mountd --manage-gids)"
    )
