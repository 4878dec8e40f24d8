"""The lab's own corner, `<root>/.sorter/`: what the lab says there, and the pages that sorter writes for it.

lab.toml, requests/NAME.toml       the lab's: its rules, and what it asks for
ERRORS.txt, scans.tsv, …           sorter's: pages, as requests/NAME.answer.txt

Everything in it may be made by anybody in the lab, at any moment: so no link is followed, nothing that is no plain file
is opened for long, nothing is read beyond its bound, and what is written is written beside and renamed over.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import itertools
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sorter.builtin._path_folders import MARKER, Visit, digest, file_name, remove_tree
from sorter.deliver.target import LabLook, LabRequest, LabSeen, Source, Wanted
from sorter.durable import PART, Files
from sorter.errors import Held, TryLater
from sorter.words import counted

LAB_FILE = "lab.toml"
PLUGINS = "plugins"
REQUESTS = "requests"

PYTHON = (
    f"{PLUGINS}/: Python of a lab's own runs only where the admin gave the lab an account of its own (user, in"
    f" sorter.toml, and no only); ask for one, or remove it and write rules into {LAB_FILE}"
)

MOST = 256 << 10
"""Bytes that are read of the lab's file."""

MOST_OF_REQUEST = 64 << 10
"""Bytes that are read of a request."""

MOST_REQUESTS = 100
"""Requests that are read at a look, and"""

MOST_OF_ALL = 1 << 20
"""bytes of them that are told."""

MOST_NAMES = 2000
"""Names in `requests/` that are looked at at all."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe must not make us wait
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
_LONGEST_NAME = 120


@dataclass(slots=True)
class Corner:
    """The corner of one root. `_written` are the pages that were last seen to be as they should: their digest, and a
    mark of the file that changes with it."""

    _written: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def look(self, visit: Visit, job: LabLook, source: Source) -> LabSeen:
        """What the lab says, and the pages written. What cannot be written keeps nothing from being read."""
        with _opened(visit, visit.fd, MARKER) as folder:
            found = _lab_file(visit, folder, job.known)
            python = _python(visit.files, folder)
            said = [PYTHON] if python and not job.python else []
            try:
                requests = self._requests_folder(visit, folder)
            except OSError as error:
                return LabSeen(*found, (*said, _cannot(error)), names=None, unwritten=_names(job), python=python)
            try:
                asked, names, crowded = _requests(visit, requests, job.answered)
                unwritten, why = self._write_pages(visit, (folder, requests), job, source)
            finally:
                visit.files.close(requests)
            return LabSeen(*found, (*said, *crowded, *why), tuple(asked), names, tuple(unwritten), python)

    def _requests_folder(self, visit: Visit, corner: int) -> int:
        files = visit.files
        with contextlib.suppress(FileExistsError):
            files.mkdir(REQUESTS, 0o755, at=corner)
        try:
            folder = files.open(REQUESTS, _FOLDER, at=corner)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            # a link or a file in its place makes room: what is behind a link is not the lab's to show
            files.rename(REQUESTS, f"{REQUESTS}.aside-{os.urandom(4).hex()}", at=corner, to=corner)
            files.mkdir(REQUESTS, 0o755, at=corner)
            folder = files.open(REQUESTS, _FOLDER, at=corner)
        _open_to_lab(visit, folder)
        return folder

    # --- writing ----------------------------------------------------------------------------------------------------

    def _write_pages(
        self, visit: Visit, folders: tuple[int, int], job: LabLook, source: Source
    ) -> tuple[list[str], list[str]]:
        """The names of those that could not be written, and a sentence where there are any."""
        unwritten, why = [], ""
        for index, page in enumerate(job.pages):
            folder, name = _place(page.name, folders)
            try:
                if not self._is_right(visit.files, page, folder, name):
                    self._replace(visit, folder, name, (page, source(index)))
                    self._written[page.name] = page.sha256, _marked(visit.files.stat(name, at=folder))
            except OSError as error:
                unwritten.append(page.name)
                why = why or _cannot(error)
        for page_name in job.gone:
            folder, name = _place(page_name, folders)
            self._written.pop(page_name, None)
            for each in (name, _part(name)):
                _remove(visit.files, each, folder)
        return unwritten, [why] if why else []

    def _is_right(self, files: Files, page: Wanted, folder: int, name: str) -> bool:
        """Is a page there as it should be?"""
        try:
            with files.opened(name, _LOOK, at=folder) as fd:
                info = files.stat(fd)
                if not stat.S_ISREG(info.st_mode) or info.st_size != page.size or info.st_nlink != 1:
                    return False
                if self._written.get(page.name) != (page.sha256, _marked(info)):
                    if digest(files, fd) != page.sha256:
                        return False
                    self._written[page.name] = page.sha256, _marked(info)
                return True
        except OSError:  # there is none, or something that is no file of ours
            return False

    def _replace(self, visit: Visit, folder: int, name: str, what: tuple[Wanted, int]) -> None:
        """Whatever has its name, a link too, is replaced, not followed; a folder of that name is set aside."""
        files, part, (page, content) = visit.files, _part(name), what
        remove_tree(files, part, folder)
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with contextlib.ExitStack() as failed:
            failed.callback(_remove, files, part, folder)
            with files.opened(part, new, visit.access.file_mode, at=folder) as fd:
                files.copy(content, fd)
                if files.stat(fd).st_size != page.size:
                    raise TryLater(f"{visit.root}: a page for the lab could not be written as a whole")
                visit.own_file(fd)
                files.fsync(fd)
            if files.is_folder(name, at=folder):
                files.rename(name, f"{name}.folder-{os.urandom(4).hex()}", at=folder, to=folder)
            files.rename(part, name, at=folder, to=folder)
            failed.pop_all()
        files.fsync_folder(folder)


def _part(name: str) -> str:
    return f".{name}{PART}"


def _remove(files: Files, name: str, folder: int) -> None:
    """If it can be: what lies on is replaced, or removed, at the next look."""
    with contextlib.suppress(OSError):
        remove_tree(files, name, folder)


def _cannot(error: OSError) -> str:
    return f".sorter: sorter cannot write there ({error.strerror}); give its account, or the lab's group, the right to"


def _names(job: LabLook) -> tuple[str, ...]:
    return tuple(each.name for each in job.pages)


def _place(name: str, folders: tuple[int, int]) -> tuple[int, str]:
    corner, requests = folders
    above, _, last = name.rpartition("/")
    if above not in ("", REQUESTS):
        raise Held("a page for a lab was to be written where none belongs; please report this")
    return (requests if above else corner), file_name(last)


def _marked(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


# --- the corner itself ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(visit: Visit, above: int, name: str) -> Iterator[int]:
    try:
        folder = visit.files.open(name, _FOLDER, at=above)
    except OSError as error:
        raise TryLater(f"{visit.root}: .sorter cannot be opened: {error.strerror}") from error
    try:
        _open_to_lab(visit, folder)
        yield folder
    finally:
        visit.files.close(folder)


def _open_to_lab(visit: Visit, folder: int) -> None:
    """Its members may write here, for it is the place for what they say: those of its group; where it has none, whoever
    may write in the lab's folder itself."""
    files = visit.files
    info, root = files.stat(folder), files.stat(visit.fd)
    if info.st_uid != os.geteuid():
        return
    gid = root.st_gid if visit.access.gid is None else visit.access.gid
    mode = stat.S_IMODE(info.st_mode) | (root.st_mode & 0o2070 if visit.access.gid is None else 0o2070)
    with contextlib.suppress(OSError):  # a mount that knows no groups, or has its own
        if info.st_gid != gid:
            files.chown(folder, -1, gid)
        if stat.S_IMODE(files.stat(folder).st_mode) != mode:
            files.chmod(folder, mode)


def _python(files: Files, folder: int) -> str:
    """A mark of what lies among the lab's plugins, another one when any of it changed; "" where there is nothing."""
    marks = hashlib.sha256()
    count = 0
    try:
        with files.opened(PLUGINS, _FOLDER, at=folder) as fd:
            for each in sorted(itertools.islice(files.entries(fd), MOST_NAMES), key=lambda each: each.name):
                if each.name.endswith((".py", ".pyc", ".so")):
                    marks.update(repr((each.name, _marked(each.stat(follow_symlinks=False)))).encode())
                    count += 1
    except OSError:  # there is none, or nothing that can be looked into: then nothing is run either
        return ""
    return marks.hexdigest() if count else ""


# --- reading --------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """It is not read; the sentence is for the lab."""


def _lab_file(visit: Visit, folder: int, known: str) -> tuple[str, str, str]:
    """The first three of `LabSeen`."""
    try:
        data = _read(visit, folder, LAB_FILE, MOST)
    except FileNotFoundError:
        return "none", "", ""
    except _Refused as refused:
        return "refused", "", f"{LAB_FILE} {refused}"
    if data is None or hashlib.sha256(data).hexdigest() == known:
        return "same", "", ""
    return "new", data.hex(), ""


def _requests(
    visit: Visit, folder: int, answered: Mapping[str, str]
) -> tuple[list[LabRequest], tuple[str, ...] | None, list[str]]:
    """What is asked for, by name; the names of all that lies there; what should be said of the folder itself."""
    names: list[str] = []
    for count, entry in enumerate(visit.files.entries(folder)):
        if count == MOST_NAMES:
            return (
                [],
                None,
                [f"{REQUESTS}/: there are more than {MOST_NAMES} names; nothing is done until it is tidied"],
            )
        if entry.name.endswith(".toml") and not entry.name.startswith("."):
            names.append(entry.name)
    said = []
    if strange := [name for name in names if not _is_plain(name)]:
        said.append(
            f"{REQUESTS}/: {counted(len(strange), 'files have names')} other than letters, digits and ._+-; rename them"
        )
    plain = tuple(name for name in sorted(names) if _is_plain(name))
    if len(plain) > MOST_REQUESTS:
        said.append(f"{REQUESTS}/: there are more than {MOST_REQUESTS} requests; remove those that were answered")
    found: list[LabRequest] = []
    room = MOST_OF_ALL
    for name in plain[:MOST_REQUESTS]:
        request = _request(visit, folder, name, answered.get(name, ""))
        if request is not None and len(request.text) // 2 <= room:  # else it is told once the others were answered
            room -= len(request.text) // 2
            found.append(request)
    return found, plain, said


def _is_plain(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and _LETTERS.issuperset(name)


def _request(visit: Visit, folder: int, name: str, answered: str) -> LabRequest | None:
    try:
        data = _read(visit, folder, name, MOST_OF_REQUEST)
    except FileNotFoundError:
        return None
    except _Refused as refused:
        return LabRequest(name, hashlib.sha256(str(refused).encode()).hexdigest(), why=f"it {refused}")
    if data is None:
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    return LabRequest(name, sha256, "" if sha256 == answered else data.hex())


def _read(visit: Visit, folder: int, name: str, most: int) -> bytes | None:
    """A plain file of the lab, as a whole; None while it is being written. FileNotFoundError, _Refused."""
    files = visit.files
    try:
        fd = files.open(name, _LOOK, at=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _Refused("is a symbolic link; put the file itself here") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            says = "cannot be read by sorter; give its account, or the lab's group, the right to"
            raise _Refused(says) from None
        if error.errno == errno.ENXIO:
            raise _Refused("is no file; put a text file here") from None
        raise
    try:
        info = files.stat(fd)
        _refuse_unfit(visit, info, fd, most)
        data = files.pread(fd, most + 1, 0)
        after = files.stat(fd)
    finally:
        files.close(fd)
    if len(data) > most:
        raise _Refused(f"is longer than {most >> 10} KiB; this is no place for data")
    if (info.st_size, info.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        return None  # it is being written; the next look finds it whole
    return data


def _refuse_unfit(visit: Visit, info: os.stat_result, fd: int, most: int) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise _Refused("is no file; put a text file here")
    if info.st_size > most:
        raise _Refused(f"is longer than {most >> 10} KiB; this is no place for data")
    if visit.files.is_shared(fd):  # owners and links there are the server's matter, which has let this account in
        return
    if info.st_nlink > 1:
        raise _Refused("has a second name elsewhere (a hard link); put a copy of it here")
    if info.st_mode & stat.S_IWOTH:
        raise _Refused("may be written by everybody on this machine; chmod o-w it")
    if not _is_the_labs(visit.files.stat(visit.fd), info.st_uid, visit.access.gid):
        raise _Refused(
            f"belongs to account {info.st_uid}, which is not of this lab; a member of the lab has to write it"
        )


def _is_the_labs(root: os.stat_result, uid: int, gid: int | None) -> bool:
    """Is it root, ourselves, the owner of the lab's folder, or a member of its group?"""
    if uid in (0, os.geteuid(), root.st_uid):
        return True
    try:
        entry = pwd.getpwuid(uid)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, OSError):
        return False
    wanted = root.st_gid if gid is None else gid
    try:
        grp.getgrgid(wanted)
    except KeyError:
        return False
    return wanted in groups
