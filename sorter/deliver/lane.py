"""One target's lane in `sort`: its queue, its worker process, and the patience with both.

`sort` never touches a mount. Each target has one thread here and, while there is work, one worker process; what hangs,
fills or dies delays only its own lane. Nothing here is remembered over a restart: what is owed stands in the spool.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sorter.deliver.target import (
    Checked,
    Copied,
    Copies,
    Done,
    Fetched,
    LabLook,
    LabSeen,
    Later,
    Put,
    Refused,
    Removed,
    Result,
    Verified,
    Wanted,
)
from sorter.deliver.workers import GRACE, Started, Worker, Workers
from sorter.errors import Away, Held, SorterError
from sorter.model import Receipt, build, plain
from sorter.wire import MOST_DESCRIPTORS, Channel, WireError, close_all

log = logging.getLogger("sorter.deliver")

OpenInput: TypeAlias = Callable[[Put, Wanted], int]
"""A read-only descriptor of one file in the spool, which the lane closes. SorterError or OSError when there is none."""

Report: TypeAlias = Callable[[Put, Result], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds. `idle`: how long a worker without work stays; None for as long as the lane. `waiting`: how long one
    does whose target waits for something itself. `silence`: how long a worker at work may make no progress before it is
    ended."""

    idle: float | None = 60.0
    waiting: float = 1200.0
    silence: float = 300.0


@dataclass(slots=True)
class _Task:
    """One job for the worker: the frame that starts it, the type of a good answer, whom to tell, and the files that the
    worker may ask for: how many, and how each is opened."""

    frame: Mapping[str, Any]
    good: type
    tell: Callable[[Any], None]
    put: Put | None = None
    receipt: Receipt | None = None  # of what is to be removed
    files: tuple[Wanted, ...] = ()
    open: Callable[[Wanted], int] | None = None
    opens: Callable[[], list[int]] = list  # descriptors that go with the frame, which the lane closes


class Lane:
    """Deliveries to one target, one after another, in a worker process of its own.

    `code` ("module:Class") and `settings` are the target's; `open_input` and `report` are called on the lane's thread.
    Every put submitted is reported once, unless a newer revision took its place while it waited or the lane stopped.
    `after` is what has to end before it begins: the lane that the target had before.
    """

    def __init__(
        self, target: str, code: str, settings: Mapping[str, Any], open_input: OpenInput, report: Report,
        *, patience: Patience | None = None, stay: bool = False, workers: Workers | None = None,
        after: threading.Thread | None = None,
    ) -> None:  # fmt: skip
        self.target, self._after = target, after
        self._hello = {"target": target, "code": code, "settings": dict(settings)}
        self._open_input, self._report = open_input, report
        self._workers = workers or Started()
        patience = patience or Patience()
        self._idle, self._patience = None if stay else patience.idle, patience
        self._silence = patience.silence
        self._waiting: dict[tuple[str, ...], _Task] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._worker: Worker | None = None
        self._stuck: Worker | None = None
        self._moved: float | None = None  # when the worker last gave a sign of life, while it has a job
        self._thread = threading.Thread(target=self._run, name=f"lane {target}", daemon=True)
        self._thread.start()

    # --- from any thread ----------------------------------------------------------------------------------------

    def submit(self, put: Put) -> None:
        """Deliver `put`. One of the same unit and product that still waits is replaced, unless it is newer."""
        frame, opener = {"do": "put", "job": plain(put)}, functools.partial(self._open_input, put)
        task = _Task(frame, Done, lambda result: self._report(put, result), put, files=put.files, open=opener)
        place = ("put", put.key, put.product)
        with self._changed:
            waiting = self._waiting.get(place)
            if waiting is None or waiting.put is None or waiting.put.revision <= put.revision:
                self._waiting[place] = task
            self._changed.notify_all()

    def remove(self, receipt: Receipt, tell: Callable[[Removed | Later | Refused], None]) -> None:
        """Remove from the target what still equals `receipt`."""
        place = ("remove", receipt.key, receipt.product, str(receipt.revision))
        self._add(place, _Task({"do": "remove", "job": plain(receipt)}, Removed, tell, receipt=receipt))

    def verify(
        self, receipt: Receipt, tell: Callable[[Verified | Later | Refused], None], *, deep: bool = True,
        only: bool = False,
    ) -> None:  # fmt: skip
        """Compare `receipt` with what is at the target. `only`: as if it were the only copy, so Held (told as Refused)
        where the target could not give it back.
        """
        frame = {"do": "verify", "job": plain(receipt), "deep": deep, "only": only}
        self._add(("verify", receipt.key, receipt.product), _Task(frame, Verified, tell))

    def fetch(
        self, receipt: Receipt, names: Sequence[str], opens: Callable[[], list[int]],
        tell: Callable[[Fetched | Later | Refused], None],
    ) -> None:  # fmt: skip
        """Have these files of `receipt` copied from the target into those that `opens`, on the lane's thread, opens."""
        frame = {"do": "fetch", "job": plain(receipt), "names": list(names)}
        self._add(("fetch", receipt.key, receipt.product, *names[:1]), _Task(frame, Fetched, tell, opens=opens))

    def check(self, tell: Callable[[Checked | Later | Refused], None], *, prepare: bool = False) -> None:
        """Could a delivery be made now? `prepare` as in `Target.check`."""
        self._add(("check",), _Task({"do": "check", "prepare": prepare}, Checked, tell))

    def look_at_lab(
        self, job: LabLook, opened: Callable[[Wanted], int], tell: Callable[[LabSeen | Later | Refused], None]
    ) -> None:
        """Look at the lab's own corner, as `LabFolder.look_at_lab`; `opened` is called on the lane's thread."""
        frame = {"do": "lab", "job": plain(job)}
        self._add(("lab",), _Task(frame, LabSeen, tell, files=job.pages, open=opened))

    def copy_for_lab(
        self, job: Copies, opened: Callable[[Wanted], int], tell: Callable[[Copied | Later | Refused], None]
    ) -> None:
        """Copy what the lab asked for, as `LabFolder.copy_for_lab`; one such job at a time."""
        frame = {"do": "copy", "job": plain(job)}
        self._add(("copy",), _Task(frame, Copied, tell, files=job.files, open=opened))

    def take_back(self, only: tuple[str, str] | None = None) -> list[Put]:
        """The puts that wait, or but that of one (unit key, product), which are not delivered now."""
        with self._changed:
            waiting = [(place, task.put) for place, task in self._waiting.items() if task.put is not None]
            found = [(place, put) for place, put in waiting if only in (None, (put.key, put.product))]
            for place, _ in found:
                del self._waiting[place]
        return [put for _, put in found]

    def withhold(self, key: str) -> tuple[list[Put], list[Receipt]]:
        """Of this unit what waits: to be delivered, and to be removed. Neither is done now."""
        with self._changed:
            found = [place for place in self._waiting if place[:2] in (("put", key), ("remove", key))]
            tasks = [self._waiting.pop(place) for place in found]
        receipts = [task.receipt for task in tasks if task.receipt is not None]
        return [task.put for task in tasks if task.put is not None], receipts

    def waiting(self) -> int:
        with self._changed:
            return len(self._waiting)

    def silence(self) -> float:
        """Seconds since the worker's last sign of life while it has a job; 0 while it has none."""
        moved = self._moved
        return 0.0 if moved is None else time.monotonic() - moved

    @property
    def pid(self) -> int | None:
        """Of the worker process, while there is one that we started."""
        worker = self._worker
        return worker.pid if worker else None

    def problem(self) -> str:
        """Why it has no worker and cannot have one, for people; "" where it has, or where nothing is wrong."""
        problem = self._workers.problem()
        return "" if self._worker is not None else problem

    def worker_came(self) -> bool:
        """Could a job be begun now that could not for want of a worker?"""
        return self._workers.came()

    def stop(self, timeout: float) -> bool:
        """Finish the job at hand, but end it after `timeout` seconds; forget what waits. True once the thread ended."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            worker = self._worker
            if worker:
                worker.kill()
            self._thread.join(2 * GRACE)
        return not self._thread.is_alive()

    def _add(self, place: tuple[str, ...], task: _Task) -> None:
        with self._changed:
            self._waiting[place] = task
            self._changed.notify_all()

    # --- on the lane's own thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
        while True:
            task = self._next()
            if task is None:
                self._end_worker()
                if self._stopping:
                    self._workers.close()
                    return
                continue
            self._settle(task)

    def _settle(self, task: _Task) -> None:
        """Do one job and tell its result; no mistake on this side may end the lane."""
        try:
            result = self._serve(task)
        except Exception:
            log.exception("target %s: a job could not be given to its worker", self.target)
            self._end_worker()
            result = Later(f"target {self.target}: sorter itself failed, see its log")
        if self._stopping and isinstance(result, Later):
            return  # it was cut short by the stop: still owed, and no failure
        try:
            task.tell(result)
        except Exception:
            log.exception("target %s: a result could not be taken", self.target)

    def _next(self) -> _Task | None:
        """The job that waits longest; None after the idle time, or at the stop."""
        idle = self._idle
        if idle is not None and self._worker is not None and self._worker.waits:
            idle = max(idle, self._patience.waiting)
        until = None if idle is None else time.monotonic() + idle
        with self._changed:
            while not self._waiting and not self._stopping:
                left = None
                if self._worker is not None and until is not None:
                    left = until - time.monotonic()
                    if left <= 0:
                        return None
                self._changed.wait(left)
            if self._stopping:
                return None
            return self._waiting.pop(next(iter(self._waiting)))

    def _serve(self, task: _Task) -> Any:
        self._moved = time.monotonic()
        try:
            return self._try(task)
        except TimeoutError:
            self._end_worker(kill=True)
            says = f"did not move for {self._silence:g} s, its worker was ended: does its mount hang?"
            return Later(f"target {self.target} {says}", away=True)
        except EOFError:
            return Later(f"the worker of target {self.target} ended {self._end_worker()}")
        except (WireError, ValueError) as error:
            self._end_worker(kill=True)
            return Later(f"the worker of target {self.target} was ended because it spoke nonsense: {error}")
        except OSError as error:
            self._end_worker(kill=True)
            return Later(f"the worker of target {self.target} cannot be reached: {error.strerror}", away=True)
        finally:
            self._moved = None

    def _try(self, task: _Task) -> Any:
        old = self._worker
        for again in (old is not None, False):
            failed = self._start()
            if failed is not None:
                return failed
            assert self._worker is not None
            try:
                return self._converse(self._worker, task)
            except EOFError:
                # A worker that ended while it had nothing to do is nobody's failure: the job goes to a new one.
                if not again or self._worker.heard or self._stopping:  # or it was the stop that ended it
                    raise
                self._end_worker()
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _start(self) -> Later | Refused | None:
        if self._worker is not None:
            return None
        if self._stuck is not None and not self._stuck.gone():
            mend = f"; if not, {self._stuck.mend}" if self._stuck.mend else ""
            return Later(f"target {self.target} still holds a worker that was ended: its mount hangs{mend}", away=True)
        self._stuck = None
        try:
            self._worker = self._workers.start(self._silence)
        except Away as error:
            return Later(str(error), away=True)
        channel = self._worker.channel
        channel.send(self._hello)
        answer, _ = channel.receive()
        while "alive" in answer:  # a target that takes long to begin
            answer, _ = channel.receive()
        if "ready" in answer:
            return None
        self._end_worker()
        failed: Later | Refused = _answer(answer, Done)
        return failed

    def _converse(self, worker: Worker, task: _Task) -> Any:
        channel, worker.heard = worker.channel, False
        descriptors = task.opens()
        try:
            channel.send(task.frame, descriptors)
        finally:
            close_all(descriptors)
        while True:
            answer, _ = channel.receive()
            worker.heard, self._moved = True, time.monotonic()
            if "need" in answer:
                self._hand_over(channel, task, answer["need"])
            elif "alive" not in answer:
                worker.waits = answer.get("waits") is True
                return _whole(_answer(answer, task.good), task.put)

    def _hand_over(self, channel: Channel, task: _Task, asked: Any) -> None:
        if not isinstance(asked, list) or not 0 < len(asked) <= MOST_DESCRIPTORS:
            raise WireError("files were asked for that nobody offered")
        if not all(type(index) is int and 0 <= index < len(task.files) for index in asked):
            raise WireError("files were asked for that the job does not have")
        descriptors: list[int] = []
        try:
            refusal = self._open(task, asked, descriptors)
            if refusal:
                channel.send(refusal)
            else:
                channel.send({"files": asked}, descriptors)
        finally:
            close_all(descriptors)

    def _open(self, task: _Task, asked: list[int], descriptors: list[int]) -> Mapping[str, Any]:
        """Open what was asked for, into `descriptors`; what to answer instead where that fails."""
        assert task.open is not None
        whose = f"{task.put.key[:8]}: " if task.put is not None else ""
        try:
            for index in asked:
                descriptors.append(task.open(task.files[index]))
                if fcntl.fcntl(descriptors[-1], fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                    raise AssertionError("a worker is only ever given read-only descriptors")
        except SorterError as error:
            return {"cannot": str(error), "held": isinstance(error, Held)}
        except FileNotFoundError:
            return {"cannot": f"{whose}a file to deliver is not in the store any more; run `sorter verify`"}
        except OSError as error:
            return {"cannot": f"{whose}the store cannot be read: {error.strerror}"}
        return {}

    def _end_worker(self, *, kill: bool = False) -> str:
        """End the process, if there is one; returns how it went, for people."""
        worker, self._worker = self._worker, None
        if worker is None:
            return ""
        how = worker.end(kill=kill)
        if how is None:  # not even SIGKILL ends what waits inside the kernel for a mount
            self._stuck = worker
            return "but hangs in the kernel"
        return how


def _whole(result: Any, put: Put | None) -> Any:
    """The result; WireError for a put that was done, but not of all that there was to deliver."""
    if put is not None and isinstance(result, Done):
        named = {(each.file, each.sha256) for each in result.files}
        if not all((each.file, each.sha256) in named for each in put.files if not each.merge):
            raise WireError("it said nothing of some of the files that it was to deliver")
    return result


def _answer(answer: Mapping[str, Any], good: type) -> Any:
    if "later" in answer:
        return Later(str(answer["later"]), answer.get("away") is True)
    if "refused" in answer:
        return Refused(str(answer["refused"]), answer.get("never") is True)
    if "done" in answer:
        return build(good, answer["done"])
    raise WireError("an answer that says nothing came")
