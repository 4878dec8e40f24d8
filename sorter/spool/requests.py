"""What is asked of the sorting process: a file each in spool/requests/. `sorter.daemon.requests` answers them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sorter.errors import SorterError
from sorter.spool.layout import Spool


def request(spool: Spool, name: str, what: Mapping[str, Any]) -> None:
    """Leave a request for the sorting process, whether it runs now or not. They are answered in the order of names.

    SorterError: no sorter has started on this spool.
    """
    if not spool.files.exists(spool.requests):
        raise SorterError(f"{spool.root} is no spool that a sorter has started on; check --root or -c")
    files, made = spool.files, spool.requests / f"{name}.new"
    files.write_file(made, json.dumps(what).encode())
    files.rename(made, spool.requests / f"{name}.json")
    files.fsync_folder(spool.requests)
