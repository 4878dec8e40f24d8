"""A page that a lab's worker brings into the lab's corner: kept in the spool, and handed over as a descriptor."""

from __future__ import annotations

import hashlib

from sorter.deliver.target import Wanted
from sorter.spool.labs import LabRecords


def page(records: LabRecords, lab: str, name: str, data: bytes) -> Wanted:
    """Write it to the spool; what the worker has to know of it."""
    records.write_page(lab, name, data)
    return described(name, data, f"pages/{name}")


def described(name: str, data: bytes, file: str) -> Wanted:
    """The same of what lies in the spool already, at `file` in the lab's folder there."""
    return Wanted(name, hashlib.sha256(data).hexdigest(), len(data), file)
