"""Counts in sentences that people read: "1 image is", "3 images are"."""

from __future__ import annotations

import re

_ONE = {
    "are": "is",
    "copies": "copy",
    "deliveries": "delivery",
    "files": "file",
    "have": "has",
    "images": "image",
    "instances": "instance",
    "lie": "lies",
    "names": "a name",
    "products": "product",
    "slices": "slice",
    "stay": "stays",
    "studies": "study",
    "them": "it",
    "they": "it",
    "volumes": "volume",
    "wait": "waits",
    "were": "was",
}
"""What words of many are of one."""


def counted(count: int, many: str) -> str:
    """The count, and what is said of many, or of one: (1, "files are") is "1 file is". No received text goes in."""
    return f"{count} {many if count != 1 else re.sub('[a-z]+', lambda found: _ONE.get(found[0], found[0]), many)}"
