"""One instance on its way from the wire into a durable file."""

from __future__ import annotations

from sorter.durable import Buffer
from sorter.protocol.dimse import Command
from sorter.protocol.upper_layer import Context
from sorter.receive.arrivals import Arrivals, Part
from sorter.receive.file_meta import Route, file_head, tail_of_meta

_LOOK_EVERY = 8 << 20  # bytes of one instance: many large ones on their way must not take the last of the disk either
_MOST_PIECES = 256  # collected before they are written; a peer may send them of one byte each


class Incoming:
    """Takes the data set in pieces. An OSError on the way leaves nothing of it, and is kept as `failure`."""

    def __init__(self, arrivals: Arrivals, part: Part, head: bytes) -> None:
        self._arrivals = arrivals
        self._part: Part | None = part
        self._pieces: list[Buffer] = [head]
        self.failure: OSError | None = None
        self._looked = 0  # bytes of it that were there at the last look at the disk

    def add(self, data: memoryview) -> None:
        """`data` must hold until the next `write`."""
        if self._part is not None:
            self._pieces.append(data)
            if len(self._pieces) >= _MOST_PIECES:
                self.write()

    def pour(self, pipe: int, size: int) -> None:
        """Move `size` bytes that wait in a pipe. After a `failure` some of them are still there."""
        if self._pieces:
            self.write()
        if self._part is not None:
            try:
                self._part.pour(pipe, size)
                self._check_room(self._part.size)
            except OSError as error:
                self.failure = error
                self.drop()

    def write(self) -> None:
        """Write what was collected: the pieces are about to be overwritten."""
        if self._part is not None and self._pieces:
            try:
                self._part.write(self._pieces)
                self._check_room(self._part.size)
            except OSError as error:
                self.failure = error
                self.drop()
        self._pieces.clear()

    def _check_room(self, size: int) -> None:
        look = size - self._looked >= _LOOK_EVERY
        if look:
            self._looked = size
        self._arrivals.check_room(look=look)

    def store(self) -> None:
        """It is durable under its name when this returns without a `failure`."""
        self.write()
        if self._part is None:
            return
        part, self._part = self._part, None
        try:
            self._arrivals.store(part)
        except OSError as error:
            self.failure = error

    def drop(self) -> None:
        """Leave nothing; harmless when it was stored or dropped before."""
        if self._part is not None:
            part, self._part = self._part, None
            self._arrivals.drop(part)


class Intake:
    """Where the instances of one association go."""

    def __init__(self, arrivals: Arrivals, association: str, route: Route) -> None:
        self._arrivals, self.association, self.route = arrivals, association, route
        self._tail = tail_of_meta(route)
        self.begun = 0
        self.stored = 0

    def receive(self, command: Command, context: Context) -> Incoming:
        """A place for the instance that `command` announces. OSError where there is none."""
        self.begun += 1
        part = self._arrivals.part(self.association, self.begun)
        return Incoming(
            self._arrivals, part, file_head(command.class_uid, command.instance_uid, context.transfer, self._tail)
        )
