"""What the first bytes of a file say it is, where that decides how it is read: an archive, or perhaps an image.

The limited child process of `sorter.take.unpack` runs this module too, so it needs the standard library only.
"""

from __future__ import annotations

HEAD = 512
"""Bytes that `archive` and `perhaps_dicom` want to see, or the whole file where it is shorter."""

ZIP, TAR, GZIP, ZSTANDARD = "ZIP", "tar", "gzip", "Zstandard"

_MAGIC = {b"PK\x03\x04": ZIP, b"PK\x05\x06": ZIP, b"\x1f\x8b\x08": GZIP, b"\x28\xb5\x2f\xfd": ZSTANDARD}
_BLANK = b" " * 8


def archive(head: bytes) -> str:
    """`ZIP`, `TAR`, `GZIP` or `ZSTANDARD`; "" for anything else. A file with DICM in its place (PS3.10 7.1) is none."""
    if head[128:132] == b"DICM":
        return ""
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return TAR if _is_tar(head) else ""


def _is_tar(head: bytes) -> bool:
    """By the checksum of its first header (POSIX.1-1988 ustar and what came before it)."""
    if len(head) < HEAD or not head[0]:
        return False
    try:
        said = int(head[148:156].strip(b" \0") or b"-", 8)
    except ValueError:
        return False
    return said == sum(head[:148] + _BLANK + head[156:512])


def perhaps_dicom(head: bytes) -> bool:
    """Could a DICOM file, or a data set without preamble, start so? `sorter.take.header.examine` knows."""
    return head[128:132] == b"DICM" or head.startswith(b"DICM") or head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08")
