"""A share that answers as NFS and SMB servers do, on bad days too: a folder passed through by FUSE.

    /usr/bin/python3 fuse_share.py BEHIND MOUNTED nfs|smb        as root, with Debian's python3-fusepy

The kernel mounts it as any other network file system without a cache of attributes. It knows neither RENAME_NOREPLACE
(libfuse 2 has no such call, so the kernel answers EINVAL as for NFS) nor ACLs, and syncs of folders answer EINVAL.

*nfs*: whoever calls is nobody where he is root (root squash), and of his groups no more than 16 are known (AUTH_SYS).
*smb*: owner, group and permissions are the mount's own, names are one whatever their case, some are refused, no links.

What goes wrong beyond that is told on standard input, one JSON list of faults a line; an empty line of output says that
it holds from now on. A fault is of these `ops` ("*" for all, "change" for those that change anything), for the `name`
(a glob of the last component, of the old one in a rename), of the account `uid` alone, `times` in all, after the first
`skip`. Then the call fails with `error`; or, with `done`, it took place and only its answer is lost; with `hang` there
is no answer until other faults are told; with `flip` one bit of the file is another afterwards; with `short` half of
what was to be written is. Each fault that fires is told on standard output by its number in the list.
"""

import ctypes
import errno
import fnmatch
import json
import os
import sys
import threading

import fusepy

NOBODY = 65534
MOST_GROUPS = 16
_SETGROUPS = {"x86_64": 116, "aarch64": 159}[os.uname().machine]
CHANGES = {
    "chmod", "chown", "create", "fsync", "ftruncate", "link", "mkdir", "rename", "rmdir", "symlink", "truncate",
    "unlink", "utimens", "write",
}  # fmt: skip
REFUSED = set('\\:*?"<>|')
_libc = ctypes.CDLL(None, use_errno=True)


class Faults:
    """Those that were told last."""

    def __init__(self):
        self._lock = threading.Lock()
        self._faults, self._over = [], threading.Event()

    def listen(self):
        for line in sys.stdin:
            with self._lock:
                self._over.set()
                self._over, self._faults = threading.Event(), json.loads(line)
            print(flush=True)

    def of(self, operation, name):
        """The fault that this call meets, and when it is over; (None, None) for none."""
        with self._lock:
            for number, fault in enumerate(self._faults):
                if self._meets(fault, operation, name):
                    print(number, flush=True)
                    return fault, self._over
        return None, None

    def _meets(self, fault, operation, name):
        ops = fault["ops"]
        if not (operation in ops or "*" in ops or ("change" in ops and operation in CHANGES)):
            return False
        if not fnmatch.fnmatch(name, fault.get("name", "*")):
            return False
        if fault.get("uid") not in (None, fusepy.fuse_get_context()[0]):
            return False
        if fault.get("skip", 0) > 0:
            fault["skip"] -= 1
            return False
        fault["times"] = fault.get("times", 1 << 60) - 1
        return fault["times"] >= 0


class Share(fusepy.Operations):
    use_ns = True

    def __init__(self, faults):
        self.faults = faults

    def __call__(self, operation, path, *arguments):
        if operation in ("init", "destroy"):
            return None
        fault, over = self.faults.of(operation, os.path.basename(path or ""))
        if fault is None:
            return self.answer(operation, path, *arguments)
        if fault.get("hang"):
            over.wait()
            return self.answer(operation, path, *arguments)
        if fault.get("done") or fault.get("flip"):
            result = self.answer(operation, path, *arguments)
            if fault.get("flip"):
                self.flip(path)
                return result
        if fault.get("short"):
            data, *rest = arguments
            return self.answer(operation, path, data[: (len(data) + 1) // 2], *rest)
        raise OSError(getattr(errno, fault["error"]), "told so")

    def answer(self, operation, path, *arguments):
        return super().__call__(operation, path, *arguments)

    def flip(self, path):
        with open(self.real(path), "r+b", buffering=0) as file:
            old = file.read(1)
            file.seek(0)
            file.write(bytes([old[0] ^ 1]))

    def real(self, path):
        """From the folder that this process is in: what is above it is open to nobody."""
        return "." + path

    # --- what a file system is asked ---------------------------------------------------------------------------------

    def access(self, path, mode):
        if not os.access(self.real(path), mode, effective_ids=True):
            raise OSError(errno.EACCES, "")

    def chmod(self, path, mode):
        os.chmod(self.real(path), mode)

    def chown(self, path, uid, gid):
        keep = {0xFFFFFFFF: -1}
        os.chown(self.real(path), keep.get(uid, uid), keep.get(gid, gid), follow_symlinks=False)

    def create(self, path, mode, fi=None):
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def fsyncdir(self, path, datasync, fh):
        raise OSError(errno.EINVAL, "")

    def getattr(self, path, fh=None):
        info = os.lstat(self.real(path)) if fh is None else os.fstat(fh)
        found = {key: getattr(info, key) for key in dir(info) if key.startswith("st_")}
        times = {f"st_{each}time": getattr(info, f"st_{each}time_ns") for each in "acm"}
        return {**found, **times}

    def getxattr(self, path, name, position=0):
        raise OSError(errno.EOPNOTSUPP, "")

    def link(self, target, source):
        os.link(self.real(source), self.real(target), follow_symlinks=False)

    def mkdir(self, path, mode):
        os.mkdir(self.real(path), mode)

    def open(self, path, flags):
        return os.open(self.real(path), flags & ~os.O_NOFOLLOW)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self.real(path))]

    def readlink(self, path):
        return os.readlink(self.real(path))

    def release(self, path, fh):
        os.close(fh)

    def rename(self, old, new):
        os.rename(self.real(old), self.real(new))

    def rmdir(self, path):
        os.rmdir(self.real(path))

    def statfs(self, path):
        info = os.statvfs(self.real(path))
        return {key: getattr(info, key) for key in dir(info) if key.startswith("f_") and key not in ("f_fsid",)}

    def symlink(self, target, source):
        os.symlink(source, self.real(target))

    def truncate(self, path, length, fh=None):
        os.truncate(self.real(path) if fh is None else fh, length)

    def unlink(self, path):
        os.unlink(self.real(path))

    def utimens(self, path, times=None):
        os.utime(self.real(path), ns=times, follow_symlinks=False)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)


class Nfs(Share):
    """Each call is made as the account that made it; these credentials are the calling thread's own."""

    def answer(self, operation, path, *arguments):
        uid, gid, pid = fusepy.fuse_get_context()
        groups = self._groups(pid) if uid else []
        uid, gid = (uid, gid) if uid else (NOBODY, NOBODY)
        _libc.syscall(_SETGROUPS, len(groups), (ctypes.c_uint32 * len(groups))(*groups))
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        try:
            return super().answer(operation, path, *arguments)
        finally:
            _libc.setfsuid(0)
            _libc.setfsgid(0)

    def _groups(self, pid):
        """The first 16 of them."""
        try:
            with open(f"/proc/{pid}/status") as status:
                [line] = [each for each in status if each.startswith("Groups:")]
        except FileNotFoundError:
            return []
        return [int(each) for each in line.split()[1:]][:MOST_GROUPS]

    def access(self, path, mode):
        """Is asked where it is done."""


class Smb(Share):
    UID, GID, MODE = 12345, 12346, 0o755

    def real(self, path):
        """The path behind, where each component may be there in another case."""
        found = "."
        for part in [each for each in path.split("/") if each]:
            if REFUSED & set(part) or part[-1] in " .":
                raise OSError(errno.EINVAL, "")
            if not os.path.lexists(os.path.join(found, part)) and os.path.isdir(found):
                part = next((each for each in os.listdir(found) if each.casefold() == part.casefold()), part)
            found = os.path.join(found, part)
        return found

    def access(self, path, mode):
        """Everything is allowed."""

    def getattr(self, path, fh=None):
        found = super().getattr(path, fh)
        return {**found, "st_uid": self.UID, "st_gid": self.GID, "st_mode": found["st_mode"] & 0o170000 | self.MODE}

    def chmod(self, path, mode):
        """Answered, and not done."""

    def chown(self, path, uid, gid):
        raise OSError(errno.EPERM, "")

    def link(self, target, source):
        raise OSError(errno.EOPNOTSUPP, "")

    def symlink(self, target, source):
        raise OSError(errno.EOPNOTSUPP, "")


def main(behind, mounted, kind):
    os.umask(0)
    os.chdir(behind)
    faults = Faults()
    threading.Thread(target=faults.listen, daemon=True).start()
    share = {"nfs": Nfs, "smb": Smb}[kind](faults)
    fusepy.FUSE(
        share, mounted, foreground=True, allow_other=True, use_ino=True, big_writes=True,
        attr_timeout=0, ac_attr_timeout=0, entry_timeout=0, negative_timeout=0,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
