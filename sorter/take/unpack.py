"""The limited child process that reads an archive: ZIP, tar, gzip, Zstandard, and one archive within another.

`python -m sorter.take.unpack MODE SOCKET SECONDS` is given everything as descriptors, over a socket of messages, and no
path. The first message brings the archive, an empty file to work in, and empty files to write entries into; every later
one brings more of those and says that a bunch more may be written. So the parent owns the names, and says how much of
the archive lies unpacked at a time. After a bunch, synced, the child answers with the names of its entries, which are
text and nothing else; at the end it says how it ended:

    {"entries": [NAME, …]}       one for each file, in the order of the files
    {"entries": […], "end": "whole" | "broken" | "truncated" | "later", "why": SENTENCE, "other": COUNT}

"truncated": more bytes could mend it. "later": not the archive's fault, a full disk for instance. `other` counts the
entries without content: links, devices. MODE `read` unpacks; MODE `copy` writes the archive itself as its one entry.
"""

from __future__ import annotations

import contextlib
import errno
import json
import lzma
import os
import resource
import socket
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Protocol, cast

from sorter.take import kinds
from sorter.take.kinds import GZIP, HEAD, TAR, ZIP

if TYPE_CHECKING:
    from typing import Self

BUNCH = 64
"""Entries that are written before the parent is asked for more."""

ROOM = 64 << 20
"""Bytes after which a bunch ends, however few its entries are."""

HURRY = 1.0
"""Seconds after which a bunch ends, so that what was read goes on its way."""

MOST_ENTRIES = 250_000
MOST_BYTES = 2 << 40
LARGEST = 16 << 30
"""Bytes of one entry: as the largest image that is taken."""

RATIO = 200
"""Bytes unpacked for each byte of the archive; images reach about ten."""

ALWAYS = 64 << 20
"""Bytes that are unpacked whatever the ratio."""

INNER = 2 << 30
"""Bytes of a ZIP archive within an archive: it has to lie unpacked as a whole."""

DEEPEST = 2
"""Archives within each other that are read: one in another."""

LONGEST_NAME = 200
"""Characters of an entry's name that are told: its end."""

MEMORY = 256 << 20
"""Bytes of address space."""

LONGEST_LINK = 4096
"""Bytes of a path that a symbolic link in a ZIP archive leads to: what has more is no link, whatever it is called."""

_STEP = 256 << 10
_WINDOW = 1 << 27  # bytes that a Zstandard frame may refer back to: as its own command allows
_ENCRYPTED = 0x1
_ENTRY = b"PK\x03\x04"
_LOCAL = 30  # bytes of the head of an entry of a ZIP archive, before its name
_WIDEST = 64 << 10  # bytes of a gap between two of them that are looked at: padding has a block of a disk at most


class Broken(Exception):
    """The archive cannot be read, or not to its end; the sentence says why."""


class Truncated(Broken):
    """It ends too early."""


class Limit(Broken):
    """It is more than any archive of images."""


class Full(Exception):
    """The disk is full, or fails: not the archive's fault."""


_UNREADABLE = (
    Broken, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError,
)  # fmt: skip
"""What reading an archive may raise because of what is in it; and see `_is_of_disk`."""

_FROM_ANOTHER_VOLUME = b"M"
_WITHOUT_FILES = (b"D", b"V", b"N")
"""Kinds of entries of GNU tar: the names in a folder, the name of the archive, long names of old."""


class Reader(Protocol):
    """Gives up to so many bytes; none at the end."""

    def read(self, size: int, /) -> bytes: ...


# --- streams ----------------------------------------------------------------------------------------------------------


class Input:
    """A stream whose first bytes can be looked at before they are read."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self.head = b""
        while len(self.head) < HEAD and (piece := source.read(HEAD - len(self.head))):
            self.head += piece
        self._left = self.head

    def read(self, size: int = _STEP) -> bytes:
        if self._left:
            piece, self._left = self._left[:size], self._left[size:]
            return piece
        return self._source.read(size)


class FromStart:
    """An open file, from its start, whoever else reads it."""

    def __init__(self, fd: int) -> None:
        self._fd, self._offset = fd, 0

    def read(self, size: int) -> bytes:
        piece = os.pread(self._fd, size, self._offset)
        self._offset += len(piece)
        return piece


class Counted:
    """Counts what is read."""

    def __init__(self, source: Reader, count: Callable[[int], None]) -> None:
        self._source, self._count = source, count

    def read(self, size: int) -> bytes:
        piece = self._source.read(size)
        self._count(len(piece))
        return piece


class Gunzip:
    """What is in a gzip file (RFC 1952), never more at once than was asked for."""

    def __init__(self, source: Reader) -> None:
        self._source, self._machine, self._pending = source, self._new(), b""

    @staticmethod
    def _new() -> zlib._Decompress:
        return zlib.decompressobj(zlib.MAX_WBITS | 16)

    def read(self, size: int) -> bytes:
        while not self._machine.eof or self._next_member():
            self._pending = self._pending or self._source.read(64 << 10)
            if not self._pending:
                raise Truncated("truncated: its compressed data have no end")
            piece = self._machine.decompress(self._pending, size)
            self._pending = self._machine.unused_data or self._machine.unconsumed_tail
            if piece:
                return piece
        return b""

    def _next_member(self) -> bool:
        """Gzip files may follow each other (RFC 1952 2.2), and zeros may fill the last block of a medium."""
        rest = self._pending.lstrip(b"\0")
        while not rest and (more := self._source.read(64 << 10)):
            rest = more.lstrip(b"\0")
        if rest and rest[0] != 0x1F:
            raise Broken("other bytes follow its compressed data")
        if rest:
            self._machine, self._pending = self._new(), rest
        return bool(rest)


class _Frames:
    """Passes on what Zstandard compressed, and sees whether it ends where a frame does, which the library does not say
    (RFC 8878, 3.1.1).
    """

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._seen = bytearray()  # the beginning of a head
        self._to_pass, self._in_frame, self._checksum = 0, False, 0

    @property
    def whole(self) -> bool:
        return not (self._seen or self._to_pass or self._in_frame)

    def read(self, size: int) -> bytes:
        piece = self._source.read(size)
        self._seen += piece
        while True:
            passed = min(self._to_pass, len(self._seen))
            del self._seen[:passed]
            self._to_pass -= passed
            if self._to_pass or not self._head():
                return piece

    def _head(self) -> bool:
        """Of a block, or of a frame; False where more of it has to be seen."""
        seen = self._seen
        if self._in_frame and len(seen) >= 3:
            head = int.from_bytes(seen[:3], "little")
            last, same, size = head & 1, head >> 1 & 3 == 1, head >> 3
            self._to_pass = 3 + (1 if same else size) + (self._checksum if last else 0)
            self._in_frame = not last
        elif not self._in_frame and len(seen) >= 8 and seen[1:4] == b"\x2a\x4d\x18":  # one to be skipped
            self._to_pass = 8 + int.from_bytes(seen[4:8], "little")
        elif not self._in_frame and len(seen) >= 5 and seen[1:4] != b"\x2a\x4d\x18":
            flags = seen[4]
            single, content = flags >> 5 & 1, flags >> 6
            sizes = (single if content == 0 else 1 << content) + (0, 1, 2, 4)[flags & 3] + (not single)
            self._to_pass, self._in_frame, self._checksum = 5 + sizes, True, 4 if flags & 4 else 0
        return bool(self._to_pass)


class Zstandard:
    """What is in a Zstandard file (RFC 8878)."""

    def __init__(self, source: Reader) -> None:
        try:
            import zstandard
        except ImportError:
            raise Broken(
                "a Zstandard file, and sorter cannot read those here: pip install 'mri-sorter[zstd]', "
                "then `sorter quarantine retry`"
            ) from None
        self._error = zstandard.ZstdError
        self._frames = _Frames(source)
        machine = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self._stream = machine.stream_reader(cast(IO[bytes], self._frames), read_size=64 << 10, read_across_frames=True)

    def read(self, size: int) -> bytes:
        try:
            piece = self._stream.read(size)
        except self._error as error:
            raise Broken(f"its compressed data are broken ({error})") from None
        if size and not piece and not self._frames.whole:
            raise Truncated("truncated: its compressed data have no end")
        return piece


def _decompressed(kind: str, source: Reader) -> Reader:
    return Gunzip(source) if kind == GZIP else Zstandard(source)


def _holds_something(head: bytes, kind: str) -> bool:
    """Does a compressed entry that starts so hold an image or a tar archive? Of Zstandard, `head` tells too little."""
    if kind != GZIP:
        return True
    got = b""
    with contextlib.suppress(Broken, zlib.error):
        got = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD)
    return kinds.perhaps_dicom(got) or kinds.archive(got) == TAR


class _Header(tarfile.TarInfo):
    """Says what `tarfile` keeps to itself: that an archive ended without its mark, or goes on with no header."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        if len(buf) < tarfile.BLOCKSIZE:
            raise Truncated("truncated: the tar archive has no end mark")
        try:
            found = super().frombuf(buf, encoding or "utf-8", errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise Broken("the tar archive goes on with something that is no entry") from error
            raise
        if found.size < 0:
            raise Broken("an entry of the tar archive has a size below zero")
        return found


# --- the child --------------------------------------------------------------------------------------------------------


class Child:
    """Reads one archive into the files that it is given."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._bunches = 0  # that may be written before the parent has to be heard
        self._files: deque[int] = deque()
        self._written: list[int] = []
        self._names: list[str] = []
        self._bytes, self._since = 0, time.monotonic()
        self._told = 0  # entries
        self._made = 0  # bytes that came out of something compressed
        self.other = 0
        self.faults: list[str] = []
        self._hear()
        self._archive, self._scratch = self._files.popleft(), self._files.popleft()
        self._most = min(max(ALWAYS, os.fstat(self._archive).st_size * RATIO), MOST_BYTES)

    def read(self) -> None:
        source = Input(FromStart(self._archive))
        kind = kinds.archive(source.head)
        if not kind:
            raise Broken("no archive any more")
        self._unpack(kind, source, "", 1)

    def copy(self) -> None:
        self._write("", FromStart(self._archive), sys.maxsize)

    # --- with the parent ----------------------------------------------------------------------------------------

    def _hear(self) -> None:
        data, files, _, _ = socket.recv_fds(self._link, 1 << 10, 4 * BUNCH)
        if not data:
            sys.exit(0)  # the parent is gone: nobody wants to know
        self._bunches += 1
        self._files.extend(files)

    def say(self, **what: object) -> None:
        """A bunch is finished, and perhaps all."""
        for fd in self._written:
            os.fsync(fd)
            os.close(fd)
        self._link.send(json.dumps({"entries": self._names, **what}).encode())
        self._written, self._names, self._bytes, self._since = [], [], 0, time.monotonic()
        self._bunches -= 1

    def wait(self) -> None:
        """Until the parent has heard the last word: a socket closed before that might lose it."""
        while self._link.recv(1 << 10):
            pass

    def _file(self) -> int:
        """The file for the next entry."""
        full = len(self._names) >= BUNCH or self._bytes >= ROOM or time.monotonic() - self._since > HURRY
        if self._names and (full or not self._files):
            self.say()
        while not self._files or not self._bunches:
            self._hear()
        return self._files[0]

    # --- entries ------------------------------------------------------------------------------------------------

    def _entry(self, name: str, source: Input, level: int) -> None:
        """One file of an archive: written out or, if it is an archive, read in its turn."""
        self._told += 1
        if self._told > MOST_ENTRIES:
            raise Limit(f"more than {MOST_ENTRIES:,} entries; {_BY_HAND}")
        kind = kinds.archive(source.head)
        if not kind or level >= DEEPEST or not (kind in (ZIP, TAR) or _holds_something(source.head, kind)):
            self._write(name, source)
            return
        try:
            self._unpack(kind, source, name, level + 1)
        except Limit:
            raise
        except _UNREADABLE as error:
            self.faults.append(why_not(error))

    def _write(self, name: str, source: Reader, most: int = LARGEST) -> None:
        fd, size = self._file(), 0
        try:
            while piece := source.read(_STEP):
                size += len(piece)
                if size > most:
                    raise Broken("an entry is larger than any image")
                _write_all(fd, piece)
        except BaseException:
            _empty(fd)  # it is used for the next one
            raise
        self._written.append(self._files.popleft())
        self._names.append(name[-LONGEST_NAME:])
        self._bytes += size

    def _count(self, size: int) -> None:
        self._made += size
        if self._made > self._most:
            raise Limit(f"unpacked it is more than {RATIO} times larger, as no archive of images is; {_BY_HAND}")

    # --- kinds of archives --------------------------------------------------------------------------------------

    def _unpack(self, kind: str, source: Input, where: str, level: int) -> None:
        """`where`: the name of an archive within the one that was dropped, "" for that itself."""
        if kind == ZIP:
            self._zip(source, where, level)
        elif kind == TAR:
            self._tar(source, where, level)
        else:
            self._compressed(kind, source, where, level)

    def _compressed(self, kind: str, source: Input, where: str, level: int) -> None:
        inner = Input(Counted(_decompressed(kind, source), self._count))
        if kinds.archive(inner.head) == TAR:
            self._tar(inner, where, level)
        elif kinds.perhaps_dicom(inner.head):
            self._write(where, inner)
        elif not inner.head:
            raise Truncated(f"truncated: nothing can be unpacked of the {kind} file")
        else:
            raise Broken(f"a {kind} file that holds neither a DICOM file nor a tar archive")

    def _tar(self, source: Input, where: str, level: int) -> None:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], source), mode="r|", tarinfo=_Header, bufsize=128 << 10) as tar:
                while (header := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    self._tar_entry(tar, header, where, level)
                assert tar.fileobj is not None
                while rest := tar.fileobj.read(_STEP):
                    if rest.count(0) != len(rest):
                        raise Broken("other bytes follow the end mark of the tar archive")
        except tarfile.TarError as error:
            if "unexpected end" in str(error):
                raise Truncated("truncated: the tar archive ends within an entry") from None
            raise Broken(f"the tar archive is broken ({error})") from None

    def _tar_entry(self, tar: tarfile.TarFile, header: tarfile.TarInfo, where: str, level: int) -> None:
        if header.issparse():
            self.faults.append("an entry with holes (a sparse file) is not unpacked")
        elif header.type == _FROM_ANOTHER_VOLUME:
            self.faults.append("an entry goes on from another volume of the tar archive")
        elif header.isreg() or (header.type not in (*tarfile.SUPPORTED_TYPES, *_WITHOUT_FILES) and header.size):
            inside = tar.extractfile(header)
            assert inside is not None
            self._entry(_joined(where, header.name), Input(inside), level)
        elif not header.isdir():
            self.other += 1

    def _zip(self, source: Input, where: str, level: int) -> None:
        with self._seekable(source, level) as file:
            try:
                archive = zipfile.ZipFile(file)
            except zipfile.BadZipFile:
                raise Truncated("truncated: the ZIP archive has no whole directory at its end") from None
            self._check_directory(archive.infolist(), os.fstat(file.fileno()).st_size)
            if _lists_not_all(file, archive):
                self.faults.append("its directory does not list all that is in the ZIP archive")
            for info in archive.infolist():
                if _is_link_or_device(info) and not (info.file_size and _holds_an_image(archive, info)):
                    self.other += 1
                elif not info.is_dir() or info.file_size:
                    self._zip_entry(archive, info, where, level)

    def _zip_entry(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, level: int) -> None:
        """An entry that cannot be read leaves the others readable."""
        try:
            with archive.open(info) as inside:
                self._entry(_joined(where, info.filename), Input(Counted(inside, self._count)), level)
        except Limit:
            raise
        except _UNREADABLE as error:
            self.faults.append(why_not(error))
        except OSError as error:
            if _is_of_disk(error):
                raise
            self.faults.append(why_not(error))

    def _check_directory(self, entries: list[zipfile.ZipInfo], size: int) -> None:
        """What the archive says of itself, before anything is unpacked."""
        if len(entries) > MOST_ENTRIES:
            raise Limit(f"more than {MOST_ENTRIES:,} entries; {_BY_HAND}")
        if any(info.flag_bits & _ENCRYPTED for info in entries):
            raise Broken("it is encrypted; unpack it with its password and drop the folder")
        end = 0
        for info in sorted(entries, key=lambda info: info.header_offset):
            if info.header_offset < 0:
                raise Broken("the ZIP archive's directory is broken")
            if info.header_offset < end:
                raise Limit("entries of the ZIP archive lie on top of each other, as in a bomb")
            end = info.header_offset + 30 + info.compress_size
        if end > size:
            raise Truncated("truncated: entries of the ZIP archive lie behind its end")
        made = self._made
        self._count(sum(info.file_size for info in entries))
        self._made = made

    def _seekable(self, source: Input, level: int) -> IO[bytes]:
        """A ZIP archive as a file: within another archive, it is written into the scratch file first."""
        if level == 1:
            return os.fdopen(os.dup(self._archive), "rb")
        _empty(self._scratch)
        size = 0
        while piece := source.read():
            size += len(piece)
            if size > INNER:
                raise Broken(f"a ZIP archive within it is larger than {INNER >> 30} GB; {_BY_HAND}")
            _write_all(self._scratch, piece)
        return os.fdopen(os.dup(self._scratch), "rb")


_BY_HAND = "if it is one, unpack it by hand and drop the folder"


def _is_link_or_device(info: zipfile.ZipInfo) -> bool:
    """By the mode that an archive of Unix gives; programs of other systems may leave anything there. Nothing that is
    larger than a path is one.
    """
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind not in (0, stat.S_IFREG, stat.S_IFDIR) and info.file_size <= (
        LONGEST_LINK if kind == stat.S_IFLNK else 0
    )


def _holds_an_image(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    """A report may have a kilobyte or two. True for what cannot be read: whoever reads it to its end says why."""
    try:
        with archive.open(info) as inside:
            return kinds.perhaps_dicom(inside.read(HEAD))
    except (*_UNREADABLE, OSError):
        return True


def _lists_not_all(file: IO[bytes], archive: zipfile.ZipFile) -> bool:
    """Do entries lie in a ZIP archive that its directory does not list? So do those of the first of two archives in one
    file: the second has a directory of its own.
    """
    at = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if _begins_an_entry(file, at, info.header_offset):
            return True
        file.seek(info.header_offset + _LOCAL - 4)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        at = info.header_offset + _LOCAL + name + extra + info.compress_size
    return _begins_an_entry(file, at, archive.start_dir)


def _begins_an_entry(file: IO[bytes], start: int, end: int) -> bool:
    """Does one begin in a gap between two others? The sizes of the entry before may stand there, and some padding."""
    if end - start < _LOCAL:
        return False
    file.seek(start)
    return end - start > _WIDEST or _ENTRY in file.read(end - start)


def _joined(where: str, name: str) -> str:
    return f"{where}/{name}" if where else name


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise Full(os.strerror(error.errno or 0)) from None


def _empty(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)


def why_not(error: BaseException) -> str:
    """In words, without the name of an entry, which may be a patient's."""
    if isinstance(error, Broken):
        return str(error)
    if isinstance(error, NotImplementedError):
        return f"an entry is compressed in a way that sorter does not know; {_BY_HAND}"
    return f"its data are broken ({type(error).__name__})"


def _is_of_disk(error: OSError) -> bool:
    """Else it is the archive's: bzip2 has no error of its own, and a place before the start cannot be looked for."""
    return error.errno not in (None, errno.EINVAL)


def how_it_ends(work: Callable[[], None], faults: list[str]) -> tuple[str, str]:
    """Do it; "whole", "broken", "truncated" or "later", and why."""
    try:
        work()
    except Full as error:
        return "later", str(error)
    except Truncated as error:
        return "truncated", str(error)
    except MemoryError:
        return "broken", f"reading it needs more memory than an archive of images does; {_BY_HAND}"
    except OSError as error:
        return ("later", os.strerror(error.errno or 0)) if _is_of_disk(error) else ("broken", why_not(error))
    except Exception as error:  # noqa: BLE001 (the loop of a worker; the archive may be anything)
        return "broken", why_not(error)
    if faults:
        return "broken", f"{len(faults)} of its entries could not be read: {faults[0]}"
    return "whole", ""


def _limit(mode: str, seconds: int) -> None:
    largest = LARGEST if mode == "read" else resource.RLIM_INFINITY
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, largest),
        (resource.RLIMIT_NOFILE, 4 * BUNCH),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:  # a limit may be lowered, never raised
            most = hard if most == resource.RLIM_INFINITY else min(most, hard)
        last = most + (kind == resource.RLIMIT_CPU and most != hard)  # SIGXCPU comes before SIGKILL: it says why
        resource.setrlimit(kind, (most, last))


def main(mode: str, link: int, seconds: int) -> None:
    _limit(mode, seconds)
    child = Child(socket.socket(fileno=link))
    how, why = how_it_ends(child.read if mode == "read" else child.copy, child.faults)
    child.say(end=how, why=why, other=child.other)
    child.wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
