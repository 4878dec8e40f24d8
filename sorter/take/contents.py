"""The contents of a DICOM file: the file meta information, and the elements of its data set that are asked for.

The bytes may be anything. No data set is built and no pixel is decoded; a deflated data set is inflated only in a
limited child process. Nothing but the standard library is imported: the worker of a node (`sorter.scu`) is to be small.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sorter
from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.take import elements
from sorter.take.elements import Stream, Truncated, Walked

UIDS = {"SOPClassUID": 0x00080016, "SOPInstanceUID": 0x00080018}
UIDS |= {"StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E}
"""What every image has, and no file is taken without."""

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_CODECS = {
    IMPLICIT_LITTLE: elements.IMPLICIT,
    "1.2.840.113619.5.2": elements.IMPLICIT,  # GE's own: implicit little endian, pixels big endian
    _EXPLICIT_BIG: elements.BIG_ENDIAN,
}
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Transfer syntaxes whose data set is deflated as a whole (PS3.5 A.5)."""
_SYNTAX_OF = {
    (False, "<"): IMPLICIT_LITTLE,
    (True, "<"): EXPLICIT_LITTLE,
    (True, ">"): _EXPLICIT_BIG,
}

_META = frozenset({0x0002, 0x0010, 0x0012, 0x0013, 0x0016, 0x0017, 0x0018, 0x0026})
"""What is read of group 0002: SOP class, transfer syntax, who wrote it, the senders' AE titles and address."""

_MOST_META = 1000  # elements of group 0002: it has about twenty, and each costs as much as ten of a data set

_USUAL_META = frozenset({b"OB", b"UL", b"UI", b"SH", b"AE"})
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"

_LARGEST = 16 << 30  # bytes; a native pixel value ends at 4 GiB
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an Office document",
    b"SQLite format 3": "a database",
}
_CHILD_SECONDS = 20
_CHILD_SAYS_AT_MOST = 8 << 20


class IsDirectory(Quarantine):
    """A list of images, of use to a person alone: `sorter.take.directory`."""

    def __init__(self) -> None:
        super().__init__("a media directory (DICOMDIR): the images beside it are taken by themselves")


@dataclass(frozen=True, slots=True)
class Meta:
    """The file meta information as far as it is there, and where the data set begins."""

    offset: int = 0
    prefix: bool = False  # the file starts with 128 bytes and DICM
    values: Mapping[int, str] = field(default_factory=dict)

    @property
    def transfer_syntax(self) -> str:
        return self.values.get(0x00020010, "")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: its file meta information, what was asked for of its data set, its size and its SHA-256."""

    meta: Meta
    walked: Walked
    codec: elements.Codec
    size: int
    sha256: str

    @property
    def transfer_syntax(self) -> str:
        """That of the file meta information, guessed where there is none."""
        return self.meta.transfer_syntax or _SYNTAX_OF[self.codec.explicit, self.codec.order]

    def uids(self) -> dict[str, str]:
        """Those of `UIDS`; the data set's own count, whatever the file meta information says. Quarantine: one is
        missing, or is no UID.
        """
        return {keyword: self._uid(keyword) for keyword in UIDS}

    def _uid(self, keyword: str) -> str:
        """Digits and dots, at most 64: zeros in front and the like are left as real devices write them."""
        found = self.walked.values
        uid = elements.text(found.get(UIDS[keyword], (b"", b""))[1])
        if not uid and keyword == "SOPClassUID":
            uid = self.meta.values.get(0x00020002, "")
        if not uid and not any(tag > UIDS[keyword] for tag in found):
            raise Truncated(f"truncated, or no image: it ends before its {_IN_WORDS[keyword]}")
        if not uid:
            raise Quarantine(f"it has no {_IN_WORDS[keyword]}, so it is no image that could be filed")
        if not _UID.fullmatch(uid) or not uid.strip("."):
            raise Quarantine(f"its {_IN_WORDS[keyword]} is not a valid UID (digits and dots, at most 64)")
        return uid


def read(files: Files, fd: int, wanted: Mapping[int, int], content: bytes | None = None) -> Contents:
    """Read the open regular file once, from its start, in bounded memory. `content` is all of it, where the caller has
    just written it. `wanted` are tags, with the bytes to keep of each value.

    Quarantine: it cannot be an image of ours; the subclass Truncated: it ends too early. OSError: it cannot be read.
    """
    whole = hashlib.sha256()
    stream, meta = start(files, fd, whole, content)
    if meta.transfer_syntax in DEFLATED:
        walked = _inflated(stream, fd, meta, wanted)
        codec = elements.EXPLICIT
    else:
        codec = codec_of(stream, meta)
        walked = elements.walk(stream, codec, wanted)
        if walked.compressed and not meta.transfer_syntax:
            raise Quarantine("compressed pixel data, and no file meta information that says how they are compressed")
    return Contents(meta, walked, codec, stream.end or 0, whole.hexdigest())


def start(
    files: Files, fd: int, whole: elements.Sink | None = None, content: bytes | None = None
) -> tuple[Stream, Meta]:
    """The stream of a regular file at its data set, and the file meta information before it. Quarantine: no image."""
    info = files.stat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise Quarantine("not a regular file")
    if info.st_size > _LARGEST:
        raise Quarantine(f"{info.st_size} bytes: larger than any image")
    read = _reader(files, fd, info.st_size) if content is None else io.BytesIO(content).read
    stream = Stream(read, info.st_size, whole)
    meta = _read_meta(stream)
    if meta.values.get(0x00020002) == _MEDIA_DIRECTORY:
        raise IsDirectory
    return stream, meta


def codec_of(stream: Stream, meta: Meta) -> elements.Codec:
    """How the data set at the stream's position is written. Quarantine: there is none."""
    if meta.transfer_syntax:
        return _CODECS.get(meta.transfer_syntax, elements.EXPLICIT)
    return _guess(stream)


def _reader(files: Files, fd: int, size: int) -> elements.Read:
    """Pieces of the file in order, up to the size it had at first: a file that grows is not followed."""
    offset = 0

    def read(most: int) -> bytes:
        nonlocal offset
        piece = files.pread(fd, min(most, size - offset), offset)
        offset += len(piece)
        return piece

    return read


_IN_WORDS = {
    "SOPClassUID": "SOP Class UID",
    "SOPInstanceUID": "SOP Instance UID",
    "StudyInstanceUID": "Study Instance UID",
    "SeriesInstanceUID": "Series Instance UID",
}


# --- the start of the file -------------------------------------------------------------------------------------------


def _read_meta(stream: Stream) -> Meta:
    """Pass preamble and file meta information (PS3.10 7.1), each as far as it is there; else say what the file is."""
    if stream.fill(512) == 0:
        raise Truncated("an empty file")
    head = stream.buf[:512]
    prefix = head[128:132] == b"DICM"
    if prefix:
        stream.skip(132)
    elif head.startswith(b"DICM"):
        stream.skip(4)
    elif head[:4] == b"\x04\x00\x00\x00" or (head[:2] == b"\x04\x00" and elements.seems_explicit(head)):
        raise IsDirectory
    elif head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise _not_dicom(head)
    found = _meta_values(stream)
    return Meta(stream.offset, prefix, found)


def _meta_values(stream: Stream) -> dict[int, str]:
    """Group 0002, always explicit little endian; where it ends is seen by the group, not by its length.

    Of an element that is there twice the first counts: a received data set may begin with such elements, and who sent
    it is the receiver's word, not its own.
    """
    found, count = _usual_meta_values(stream), 0
    while stream.fill(12) >= 8 and stream.buf[stream.pos : stream.pos + 2] == b"\x02\x00":
        count += 1
        if count > _MOST_META:
            raise Quarantine(f"broken file meta information: more than {_MOST_META:,} elements")
        explicit = elements.seems_explicit(stream.buf[stream.pos : stream.pos + 8])
        tag, _, length = stream.element(elements.EXPLICIT if explicit else elements.IMPLICIT)
        if length == elements.UNDEFINED:
            raise Quarantine(f"broken file meta information: element {elements.name(tag)} has no length")
        if length <= 4096:
            stream.fill(min(length, stream.left()))
            found.setdefault(tag, elements.text(stream.buf[stream.pos : stream.pos + length]))
        stream.value(tag, length)
    return found


def _usual_meta_values(stream: Stream) -> dict[int, str]:
    """The elements that lie whole in the window and are as nearly every file has them, in one tight loop."""
    found: dict[int, str] = {}
    buf, pos = stream.buf, stream.pos
    while pos <= len(buf) - 12:
        group, element, vr, length = elements.EXPLICIT.head.unpack_from(buf, pos)
        start = pos + 8
        if vr == b"OB":
            (length,), start = elements.EXPLICIT.long.unpack_from(buf, start), start + 4
        if group != 2 or vr not in _USUAL_META or length > 4096 or start + length > len(buf):
            break
        pos = start + length
        if element in _META:
            found.setdefault(2 << 16 | element, elements.text(buf[start:pos]))
    stream.pos = pos
    return found


def _guess(stream: Stream) -> elements.Codec:
    """How a data set without file meta information is written: it starts in group 0008, or is none."""
    stream.fill(12)
    head = stream.buf[stream.pos : stream.pos + 12]
    if head[:2] == b"\x08\x00":
        return elements.EXPLICIT if elements.seems_explicit(head) else elements.IMPLICIT
    if head[:2] == b"\x00\x08" and elements.seems_explicit(head):
        return elements.BIG_ENDIAN
    if len(head) < 8:
        raise Truncated("truncated: the file ends before the data set")
    raise Quarantine("not DICOM: no transfer syntax, and what follows is no data set")


def _not_dicom(head: bytes) -> Quarantine:
    for magic, words in _MAGIC.items():
        if head.startswith(magic):
            return Quarantine(f"{words}, not DICOM")
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return Quarantine("a NIfTI file, not DICOM")
    if not head.strip(b"\0"):
        return Truncated("nothing but zeros so far: perhaps still being written")
    if _is_text(head):
        return Quarantine("a text file, not DICOM")
    if len(head) < 132:
        return Truncated(f"not DICOM: only {len(head)} bytes, and no data set")
    return Quarantine("not DICOM: no DICM after 128 bytes, and what it starts with is no data set")


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character is cut at the end
            return head.startswith((b"\xff\xfe", b"\xfe\xff"))
    return not any(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head)


# --- a deflated data set ---------------------------------------------------------------------------------------------


def _inflated(stream: Stream, fd: int, meta: Meta, wanted: Mapping[int, int]) -> Walked:
    """Digest the deflated bytes here; have them inflated and walked by a child with limits (PS3.5 A.5)."""
    rest = hashlib.sha256()
    stream.divert(rest)
    stream.drain()
    asked = ",".join(f"{tag:x}={most}" for tag, most in wanted.items())
    command = [sys.executable, "-P", "-m", "sorter.take.inflate", str(meta.offset), asked]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(Path(sorter.__file__).parent.parent)}
    try:
        child = subprocess.run(
            command, stdin=fd, capture_output=True, env=environment, timeout=_CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Quarantine(f"its deflated data set took more than {_CHILD_SECONDS} s to read") from None
    return _child_said(child, rest.hexdigest())


def _child_said(child: subprocess.CompletedProcess[bytes], dataset: str) -> Walked:
    killed = child.returncode == -signal.SIGKILL  # by somebody else, as where the machine has no memory left
    if (child.returncode < 0 and not killed) or child.returncode == 3:
        raise Quarantine("its deflated data set needs more memory or time than an image does")
    if child.returncode != 0 or len(child.stdout) > _CHILD_SAYS_AT_MOST:
        says = f"the process that reads deflated data sets ended with code {child.returncode}"
        raise OSError(errno.EIO, says)  # the file may be whole: whoever reads it tries again, as after a bad read
    answer = json.loads(child.stdout)
    if "truncated" in answer:
        raise Truncated(answer["truncated"])
    if "reason" in answer:
        raise Quarantine(answer["reason"])
    found = {int(tag): (bytes.fromhex(vr), bytes.fromhex(raw)) for tag, (vr, raw) in answer["values"].items()}
    return Walked(found, dataset, answer["pixels"], answer["order"])
