"""pynetdicom as a sender, without its race: its thread may take an answer that comes at once for a request."""

from __future__ import annotations

from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association

from sorter.scu.association import pause_reactor


class Sender(AE):
    """Its associations send, and are asked nothing while they do."""

    def associate(self, *arguments: Any, **more: Any) -> Association:
        association = super().associate(*arguments, **more)
        if association.is_established:
            pause_reactor(association, "sorter")
        return association
