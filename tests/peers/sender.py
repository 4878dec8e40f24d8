"""pynetdicom as a sender, without its race: its thread may take an answer that comes at once for a request."""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association


class Sender(AE):
    """Its associations send, and are asked nothing while they do."""

    def associate(self, *arguments: Any, **more: Any) -> Association:
        association = super().associate(*arguments, **more)
        if association.is_established:
            pause_reactor(association)
        return association


class _Checkpoint(threading.Event):
    """What pynetdicom's reactor waits at in each round; says when it stands there, and holds it until the end.

    Each request lets it go afterwards, and the next one stops it anew: in between it may take an answer.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self.reached, self._association = threading.Event(), association

    def set(self) -> None:
        if self._association._sent_release or self._association._sent_abort or self._association._kill:
            super().set()

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self.reached.set()
        return super().wait(timeout)


def pause_reactor(association: Association) -> None:
    """Stop the thread that would take our answers for requests, for as long as the association lives.

    To clear its event is not enough: it may be past it, in a round that still takes a message.
    """
    checkpoint = _Checkpoint(association)
    association._reactor_checkpoint = checkpoint
    if not checkpoint.reached.wait(30):
        association.abort()
        raise RuntimeError("the association does not come to rest")
