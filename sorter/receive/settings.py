"""What the receiver is told: plain values, with limits that a hostile peer cannot move."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Known:
    """A sender that is listed: by the AE title it calls itself, by an address or a range of them, or by both."""

    ae: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """A second port, on which TLS is spoken."""

    context: ssl.SSLContext
    host: str = "127.0.0.1"
    port: int = 2762  # DICOM's own (PS3.8 9.1.1); 0: any free one


@dataclass(frozen=True, slots=True)
class Keep:
    """What stays free on the spool's disk. None: a share of it, see `sorter.receive.space`."""

    bytes: int | None = None
    inodes: int | None = None


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """Sizes are in bytes, times in seconds. The defaults are meant for use; tests make some of them small."""

    ae_title: str = "SORTER"
    host: str = "127.0.0.1"
    port: int = 11112  # 0: any free one
    processes: int = 2  # on that port; see `sorter.receive.workers`

    tls: Tls | None = None

    senders: tuple[Known, ...] = ()
    strangers: bool = True  # whether others than these are admitted
    called: frozenset[str] | None = None  # the AE titles that may be called; None: any

    max_pdu: int = 128 << 10  # longest P-DATA-TF we announce and take (PS3.8 D.1)
    max_request: int = 256 << 10  # longest A-ASSOCIATE-RQ
    max_command: int = 64 << 10
    max_instance: int = 8 << 30

    request_timeout: float = 5.0  # from the connection to the whole A-ASSOCIATE-RQ (ARTIM, PS3.8 9.1.5)
    stall_timeout: float = 60.0  # without a byte inside a message, or without a byte taken of our answer
    idle_timeout: float = 600.0  # without a byte between messages

    least_rate: float = 1024.0  # bytes/s inside a message, over each `stall_timeout`

    waiting: int = 512  # connections of a process that asked for no association yet; beyond, the oldest goes
    waiting_per_address: int = 128  # of these; beyond, the oldest of that address goes
    waiting_reserve: int = 128  # of these, for addresses of listed senders
    associations: int = 500  # at once, in all processes; beyond, a transient rejection
    per_address: int = 128  # of these; beyond, a transient rejection
    reserve: int = 50  # of these, for listed senders where others are admitted too

    keep: Keep = Keep()

    segment_files: int = 4096
    segment_age: float = 3600.0

    commitments: Path | None = None  # where requests for storage commitment are kept; None: they are not served
