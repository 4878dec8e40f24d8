"""What the receiver is told: plain values, with limits that a hostile peer cannot move."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """Sizes are in bytes, times in seconds. The defaults are meant for use; tests make some of them small."""

    ae_title: str = "SORTER"
    host: str = "127.0.0.1"
    port: int = 11112  # 0: any free one
    processes: int = 2  # on that port; see `sorter.receive.workers`

    max_pdu: int = 128 << 10  # longest P-DATA-TF we announce and take (PS3.8 D.1)
    max_request: int = 256 << 10  # longest A-ASSOCIATE-RQ
    max_command: int = 64 << 10
    max_instance: int = 8 << 30

    request_timeout: float = 5.0  # from the connection to the whole A-ASSOCIATE-RQ (ARTIM, PS3.8 9.1.5)
    stall_timeout: float = 60.0  # without a byte inside a message, or without a byte taken of our answer
    idle_timeout: float = 600.0  # without a byte between messages

    waiting: int = 512  # connections that have not asked for an association yet; beyond, the oldest goes
    associations: int = 500  # at once; beyond, a transient rejection

    segment_files: int = 4096
    segment_age: float = 3600.0

    commitments: Path | None = None  # where requests for storage commitment are kept; None: they are not served
