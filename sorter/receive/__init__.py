"""The embedded storage SCP: what is sent to it is durable under received/ before it says Success.

A connection waits in the `lobby` until it has asked; its `association` gets a thread, agrees on presentation contexts
(`negotiation`), and runs an `exchange` of messages; an instance passes as `incoming` into the segments of `arrivals`.
The encodings, and what moves an association's bytes, are in `sorter.protocol`; `server` is the life of one process,
`workers` that of several.
"""

from sorter.receive.server import Receiver, open_doors, open_to_everybody
from sorter.receive.settings import Keep, Known, ReceiveSettings, Tls
from sorter.receive.workers import Job, run

__all__ = ["Job", "Keep", "Known", "ReceiveSettings", "Receiver", "Tls", "open_doors", "open_to_everybody", "run"]
