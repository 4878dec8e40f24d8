"""The process behind the door: whom it lets in, how many, and for how long.

Every bound here is against a client that means harm. A stranger is sent away at the accept, before he costs a thread.
An account has a few connections and one answer at a time, so it harms itself alone. Descriptors that were sent and not
yet fetched count against *our* account, also where `sort` hands files to the targets (RLIMIT_NOFILE, unix(7)
ETOOMANYREFS): so an account has `MOST_FILES` of them at most, all together `HANDING` times as many, and the connection
is kept as long as they are not fetched.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sorter.door.access import AccessLog
from sorter.door.answers import Desk, Handed, Shelf, answer
from sorter.door.terms import Terms, sight_of
from sorter.door.wire import LONGEST_REQUEST, Broken, Connection, peer_of
from sorter.errors import SorterError, place_of
from sorter.spool import Spool

log = logging.getLogger("sorter.door")

MOST = 32
"""Connections at once."""

AN_ACCOUNT = 4
"""Of them of one account."""

HANDING = 8
"""Answers with descriptors at once: 512 of these at most are on their way, half of what is usually allowed."""

ASK_WITHIN = 10.0
ANSWER_WITHIN = 300.0
"""Seconds for the request to come, and for the whole answer to be read."""

TURN_WITHIN = 30.0
"""Seconds that a request waits for the one before it, of the same account, and for its turn to hand out files."""

IDLE = 60.0
"""Seconds without a connection, after which the process ends; the next who knocks starts another."""

BUSY = {"busy": True}
_STRANGER = "your account is in no lab's group here; ask the admin of sorter to add it"


class _Busy(Exception):
    """There was no turn for this request in time; it may be asked again."""


class Server:
    """Answers at a listening socket until `stop`, or until nobody has come for a while."""

    def __init__(self, listener: socket.socket, spool: Spool, terms: Terms) -> None:
        self._listener, self._spool, self._terms = listener, spool, terms
        self._shelf, self._log = Shelf(spool), AccessLog(spool)
        self._lock = threading.Lock()
        self._open: Counter[int] = Counter()  # connections, by account
        self._turns: dict[int, threading.Lock] = {}  # by account
        self._handing = threading.BoundedSemaphore(HANDING)

    def run(self, ended: int, idle: float = IDLE) -> None:
        """Until the pipe `ended` ends, or nobody has come for `idle` seconds."""
        self._listener.setblocking(False)
        last = time.monotonic()
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(ended, selectors.EVENT_READ)
            while True:
                found = [key.fileobj for key, _ in ready.select(idle)]
                if ended in found:
                    return
                if found:
                    last = time.monotonic()
                    self._accept()
                elif not self._open.total() and time.monotonic() - last >= idle:
                    return

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors, or the peer has gone again
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                time.sleep(0.1)
            return
        uid = peer_of(sock)
        if sight_of(uid, self._terms).stranger:
            self._send_away(sock, {"no": _STRANGER})
        elif not self._admit(uid):
            self._send_away(sock, BUSY)
        else:
            threading.Thread(target=self._serve, args=(sock, uid), daemon=True).start()

    def _admit(self, uid: int) -> bool:
        with self._lock:
            if self._open.total() >= MOST or self._open[uid] >= AN_ACCOUNT:
                return False
            self._open[uid] += 1
            return True

    def _send_away(self, sock: socket.socket, message: Mapping[str, Any]) -> None:
        """Without waiting for anything."""
        connection = Connection(sock, 0.05)
        with contextlib.suppress(Broken):
            connection.send(message)
        connection.close()

    # --- one connection, in a thread of its own -----------------------------------------------------------------------

    def _serve(self, sock: socket.socket, uid: int) -> None:
        connection = Connection(sock, ASK_WITHIN)
        try:
            message = connection.receive(LONGEST_REQUEST)
            connection.allow(TURN_WITHIN + ANSWER_WITHIN)
            try:
                with self._turn(uid):
                    self._answer(connection, message, uid)
            except _Busy:
                connection.send(BUSY)
        except Broken:
            pass  # nobody is there any more who could be told
        except Exception as error:  # noqa: BLE001 - the worker's loop: one request never ends the others
            log.error("a request at the door failed in a way that it should not (%s); report this", place_of(error))
        finally:
            connection.close()
            with self._lock:
                self._open[uid] -= 1
                if not self._open[uid]:
                    del self._open[uid]
                    self._turns.pop(uid, None)

    @contextlib.contextmanager
    def _turn(self, uid: int) -> Iterator[None]:
        with self._lock:
            turn = self._turns.setdefault(uid, threading.Lock())
        if not turn.acquire(timeout=TURN_WITHIN):
            raise _Busy
        try:
            yield
        finally:
            turn.release()

    def _answer(self, connection: Connection, message: Mapping[str, Any], uid: int) -> None:
        sight = sight_of(uid, self._terms)  # now, not as it was when he connected
        if sight.stranger:
            connection.send({"no": _STRANGER})
            return
        desk = Desk(self._spool, self._shelf, self._log, self._terms, sight)
        try:
            for each in answer(desk, message):
                if isinstance(each, Handed):
                    self._hand(connection, each)
                else:
                    connection.send(each)
        except SorterError as error:
            connection.send({"no": str(error)})
        except OSError as error:
            connection.send({"no": f"the spool cannot be read now: {error.strerror}; ask the admin of sorter"})
        else:
            connection.send({"end": True})

    def _hand(self, connection: Connection, line: Handed) -> None:
        """Returns when they are fetched, or nobody is there who could: only then is there room for others."""
        if not self._handing.acquire(timeout=TURN_WITHIN):
            raise _Busy
        try:
            connection.send(line.message, line.descriptors)
            connection.wait_taken()
        finally:
            self._handing.release()
