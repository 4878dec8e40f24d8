"""pynetdicom's SCP as its documentation advises for speed: a handler that writes `encoded_dataset()`. FOLDER PORT"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt


def store(event: evt.Event) -> int:
    path = folder / f"{event.request.AffectedSOPInstanceUID}.dcm"
    path.write_bytes(event.encoded_dataset())
    return 0x0000


folder = Path(sys.argv[1])
ae = AE("SORTER")
ae.supported_contexts = AllStoragePresentationContexts
ae.maximum_associations = 100
ae.maximum_pdu_size = 131072
ae.start_server(("127.0.0.1", int(sys.argv[2])), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
threading.Event().wait()
