"""The messages of an established association: one at a time, each answered before the next is read (PS3.7 8.2)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from typing import Protocol

from sorter.protocol import dimse, upper_layer
from sorter.protocol.dimse import Command, Outcome, Status
from sorter.protocol.uids import STORAGE_COMMITMENT, VERIFICATION, names_an_instance
from sorter.protocol.upper_layer import AbortReason, Context, ProtocolError
from sorter.protocol.wire import Wire
from sorter.receive.commitment import TOO_BUSY, Desk
from sorter.receive.incoming import Incoming, Intake
from sorter.receive.negotiation import Agreement, is_storage
from sorter.receive.settings import ReceiveSettings

log = logging.getLogger("sorter.receive")

_FULL = (errno.ENOSPC, errno.EDQUOT)


_SUCCESS = Outcome(Status.SUCCESS)
_UNKNOWN_OPERATION = Outcome(Status.UNRECOGNIZED_OPERATION, "this operation is not served here")
_NO_DATA_SET = Outcome(Status.CANNOT_UNDERSTAND, "C-STORE without a data set")
_WRONG_CLASS = Outcome(Status.CLASS_NOT_SUPPORTED, "Affected SOP Class UID missing or not a storage class")
_WRONG_INSTANCE = Outcome(Status.INVALID_INSTANCE, "Affected SOP Instance UID missing or not a UID")
_DISK_FULL = Outcome(Status.OUT_OF_RESOURCES, "disk full")
_NOT_NOW = Outcome(Status.OUT_OF_RESOURCES, "cannot be stored now")

STORE_ANSWERS = (_SUCCESS, _DISK_FULL, _NOT_NOW, _WRONG_CLASS, _WRONG_INSTANCE, _NO_DATA_SET)
"""All that a C-STORE is answered with."""

ECHO_ANSWERS = (_SUCCESS,)
OTHER_ANSWERS = (_UNKNOWN_OPERATION,)
"""What any operation is answered with that is not served."""


class Sink(Protocol):
    """Where the pieces of a data set go."""

    def add(self, data: memoryview) -> None: ...


class Exchange:
    """Reads requests from `wire`, answers them, hands instances to `intake` and N-ACTION to `desk`, if there is one."""

    def __init__(
        self, wire: Wire, agreement: Agreement, intake: Intake, settings: ReceiveSettings, desk: Desk | None
    ) -> None:
        self._wire, self._intake, self._settings, self._desk = wire, intake, settings, desk
        self._contexts: Mapping[int, Context] = agreement.contexts
        self._max_length = agreement.max_length

    def run(self) -> None:
        """Until the association ends, which raises: Released, Aborted, Lost, Stopping or ProtocolError."""
        while True:
            context, command = self._request()
            if command.field == dimse.C_STORE_RQ:
                outcome = self._store(command, context)
            else:
                outcome = self._other(command, context)
            if command.field != dimse.C_CANCEL_RQ:
                answer = dimse.encode_response(command, outcome.status, outcome.comment)
                self._wire.send(upper_layer.encode_data(context.number, answer, self._max_length))
            self._wire.message_done()

    def _request(self) -> tuple[Context, Command]:
        wire = self._wire
        piece = wire.piece()
        wire.in_message = True
        context = self._contexts.get(piece.context)
        if context is None:
            raise ProtocolError("a message in a presentation context that was not accepted")
        data, size = bytearray(), 0
        while True:
            if not piece.command or piece.context != context.number:
                raise ProtocolError("a data set without its command", AbortReason.UNEXPECTED_PARAMETER)
            data += piece.data
            size += max(1, len(piece.data))  # pieces of nothing must end too
            if size > self._settings.max_command:
                raise ProtocolError(f"a command set of more than {self._settings.max_command} bytes")
            if piece.last:
                return context, dimse.decode_command(bytes(data))
            piece = wire.piece()

    def _other(self, command: Command, context: Context) -> Outcome:
        if command.field & dimse.RESPONSE:
            raise ProtocolError("a response to nothing we asked", AbortReason.UNEXPECTED_PARAMETER)
        if command.field == dimse.N_ACTION_RQ and context.abstract == STORAGE_COMMITMENT and self._desk is not None:
            return self._action(command, context, self._desk)
        if command.has_data_set:
            self._data_set(context, None)
        return _SUCCESS if command.field == dimse.C_ECHO_RQ else _UNKNOWN_OPERATION

    def _action(self, command: Command, context: Context, desk: Desk) -> Outcome:
        """A request for storage commitment (PS3.4 J.3.2)."""
        refusal = desk.refusal(command)
        asked = desk.begin() if refusal is None else None
        if asked is None:
            if command.has_data_set:
                self._data_set(context, None)
            return refusal or TOO_BUSY
        with asked:
            self._data_set(context, asked)
            return desk.take(asked, context.transfer)

    def _store(self, command: Command, context: Context) -> Outcome:
        """PS3.4 B.2.3. Whatever is refused, its data set is read to the end first."""
        if not command.has_data_set:
            return _NO_DATA_SET
        refusal = self._refusal(command, context)
        if refusal is not None:
            self._data_set(context, None)
            return refusal
        try:
            incoming = self._intake.receive(command, context)
        except OSError as error:
            self._data_set(context, None)
            return self._no_room(error)
        return self._take(incoming, context)

    def _refusal(self, command: Command, context: Context) -> Outcome | None:
        if context.abstract in (VERIFICATION, STORAGE_COMMITMENT) or not is_storage(command.class_uid):
            return _WRONG_CLASS
        return None if names_an_instance(command.instance_uid) else _WRONG_INSTANCE

    def _take(self, incoming: Incoming, context: Context) -> Outcome:
        self._wire.before_reuse = incoming.write
        try:
            if not self._data_set(context, incoming):
                return _NO_DATA_SET
            incoming.store()
        finally:
            self._wire.before_reuse = None
            incoming.drop()
        if incoming.failure is not None:
            return self._no_room(incoming.failure)
        self._intake.stored += 1
        return _SUCCESS

    def _data_set(self, context: Context, into: Sink | None) -> int:
        """Read a data set to its end, into a sink or into nothing; its size in bytes."""
        file = into if isinstance(into, Incoming) else None
        size, most = 0, self._settings.max_instance
        while True:
            piece = self._wire.piece(piped=file is not None and file.failure is None)
            if piece.command or piece.context != context.number:
                raise ProtocolError("a command inside a data set", AbortReason.UNEXPECTED_PARAMETER)
            size += piece.size
            if size > most:
                raise ProtocolError(f"an instance of more than {most} bytes")
            if file is not None and piece.piped:
                file.pour(self._wire.basin.pipe()[0], piece.size)
                if file.failure is not None:
                    self._wire.basin.drop_pipe()
            elif into is not None:
                into.add(piece.data)
            if piece.last:
                return size

    def _no_room(self, error: OSError) -> Outcome:
        log.error("association %s: an instance could not be stored: %s", self._intake.association, error.strerror)
        return _DISK_FULL if error.errno in _FULL else _NOT_NOW
