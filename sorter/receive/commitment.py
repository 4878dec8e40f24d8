"""Storage Commitment, Push Model, as far as the receiver goes: an N-ACTION becomes a durable file (PS3.4 J.3.2)."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from sorter.protocol.commitment import MOST_BYTES, Unreadable, parse
from sorter.protocol.dimse import Command, Outcome, Status
from sorter.protocol.peers import household
from sorter.protocol.uids import COMMITMENT_INSTANCE, STORAGE_COMMITMENT
from sorter.receive.file_meta import Route
from sorter.spool.commitments import Commitments, TooMany

log = logging.getLogger("sorter.receive")

_REQUEST_COMMITMENT = 1  # the one action type (PS3.4 J.3.2.1)


_MOST, _MOST_OF_ADDRESS = 8, 4  # requests that are in memory at once, whatever the number of associations
_PATIENCE = 10.0  # seconds to wait for room
_SLOWEST = 60.0  # seconds in which the longest has come, at 70 KB/s

TOO_BUSY = Outcome(Status.RESOURCE_LIMITATION, "too many requests at once")

_KEPT = Outcome(Status.SUCCESS)
_OTHER_CLASS = Outcome(Status.NO_SUCH_CLASS, "only storage commitment can be asked for here")
_OTHER_INSTANCE = Outcome(Status.NO_SUCH_INSTANCE, "not the well-known SOP instance")
_OTHER_ACTION = Outcome(Status.NO_SUCH_ACTION, "Action Type ID is not 1")
_NO_INFORMATION = Outcome(Status.INVALID_ARGUMENT, "no Action Information")
_TOO_LONG = Outcome(Status.RESOURCE_LIMITATION, f"more than {MOST_BYTES >> 20} MiB; ask for fewer at a time")
_TOO_SLOW = Outcome(Status.RESOURCE_LIMITATION, "it did not come within a minute")
_TOO_MANY = Outcome(Status.RESOURCE_LIMITATION, "too many requests wait for their report")
_NOT_KEPT = Outcome(Status.PROCESSING_FAILURE, "cannot be kept now")

ACTION_ANSWERS = (
    *(_KEPT, _OTHER_CLASS, _OTHER_INSTANCE, _OTHER_ACTION, _NO_INFORMATION),
    *(TOO_BUSY, _TOO_LONG, _TOO_SLOW, _TOO_MANY, _NOT_KEPT),
)
"""All that an N-ACTION is answered with, but for data sets that are no request: those have the status of
`_NO_INFORMATION`, and the reason that `parse` gives."""


class _Room:
    """For so many requests in memory, of which one address has half at most: it alone keeps nobody else waiting."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = Counter[str]()

    def take(self, address: str) -> bool:
        """False where there is none for long."""
        who = household(address)
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_free(who), _PATIENCE):
                return False
            self._taken[who] += 1
            return True

    def _is_free(self, who: str) -> bool:
        return self._taken[who] < _MOST_OF_ADDRESS and self._taken.total() < _MOST

    def give_back(self, address: str) -> None:
        with self._changed:
            self._taken -= Counter([household(address)])  # which forgets who has none
            self._changed.notify_all()


_ROOM = _Room()


class Desk:
    """Takes the requests of one association."""

    def __init__(self, kept: Commitments, route: Route) -> None:
        self._kept, self._route = kept, route

    def refusal(self, command: Command) -> Outcome | None:
        """Why an N-ACTION is refused before its data set is looked at (PS3.7 10.1.4.1.10); None if it is not."""
        if command.class_uid != STORAGE_COMMITMENT:
            return _OTHER_CLASS
        if command.instance_uid != COMMITMENT_INSTANCE:
            return _OTHER_INSTANCE
        if command.action != _REQUEST_COMMITMENT:
            return _OTHER_ACTION
        return None if command.has_data_set else _NO_INFORMATION

    def begin(self) -> Asked | None:
        """A place for a request's data set; None where too many are being read."""
        address = self._route.address
        return Asked(partial(_ROOM.give_back, address)) if _ROOM.take(address) else None

    def take(self, asked: Asked, transfer: str) -> Outcome:
        """Keep the request. Success only when it is durable."""
        if asked.refusal is not None:
            return asked.refusal
        try:
            transaction, instances = parse(bytes(asked.data), transfer)
            who = (self._route.calling, self._route.called, self._route.address)
            request = self._kept.add(transaction, who, instances)
        except Unreadable as reason:
            return Outcome(Status.INVALID_ARGUMENT, str(reason))
        except TooMany:
            return _TOO_MANY
        except OSError as error:
            log.error("a request for storage commitment could not be kept: %s", error.strerror)
            return _NOT_KEPT
        log.info("%s asks for storage commitment of %d instances: %s", who[0], len(instances), request.id)
        return _KEPT


class Asked:
    """The data set of one request while it comes. To be used in a `with`, at whose end `leave` gives its room back: or
    sooner, where it is refused.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self.data = bytearray()
        self.refusal: Outcome | None = None
        self._leave: Callable[[], None] | None = leave
        self._until = time.monotonic() + _SLOWEST

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def add(self, data: memoryview) -> None:
        if self.refusal is not None:
            return
        if len(self.data) + len(data) > MOST_BYTES:
            self._refuse(_TOO_LONG)
        elif time.monotonic() > self._until:
            self._refuse(_TOO_SLOW)
        else:
            self.data += data

    def _refuse(self, why: Outcome) -> None:
        self.refusal = why
        self._end()

    def _end(self) -> None:
        leave, self._leave = self._leave, None
        self.data = bytearray()
        if leave is not None:
            leave()
