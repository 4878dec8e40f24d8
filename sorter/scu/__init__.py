"""The sending side: what sorter asks of others. C-ECHO, C-STORE, the reports of storage commitment, C-FIND, C-MOVE."""

from sorter.scu.association import CONTEXTS, PATIENCE, Peer
from sorter.scu.commitment import REPORT_SYNTAXES, report_commitment
from sorter.scu.query import MOST_NAMES, MOVE_DESTINATION_UNKNOWN, Moved, Series, fetch, instances
from sorter.scu.storage import STATUSES, SendReport, echo, send

__all__ = [
    "CONTEXTS",
    "MOST_NAMES",
    "MOVE_DESTINATION_UNKNOWN",
    "PATIENCE",
    "REPORT_SYNTAXES",
    "STATUSES",
    "Moved",
    "Peer",
    "SendReport",
    "Series",
    "echo",
    "fetch",
    "instances",
    "report_commitment",
    "send",
]
