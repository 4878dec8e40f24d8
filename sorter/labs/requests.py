"""What the labs ask for in request files: one after another of each lab, prepared beside, copied by the lab's worker.

A request is done as often as a crash cuts it off, and once its answer is written down never again: what is there and
equal is left, so doing it twice changes nothing. Between two pieces of it the lab's deliveries have their turn.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sorter.deliver.target import Copied, Copies, LabRequest, Later, Refused, Wanted
from sorter.errors import place_of
from sorter.exports.copying import Copy
from sorter.labs.pages import described
from sorter.labs.preparing import MOST_SAID, Prepared, prepare, remember
from sorter.pipeline.outlets import Outlets
from sorter.spool import Spool
from sorter.spool.labs import LabRecords

log = logging.getLogger("sorter.labs")

ANSWER = ".answer.txt"

PIECE_FILES = 250
PIECE_BYTES = 1 << 30
"""What is copied at a time."""

_OURS = "sorter itself failed; please tell your admin"

AGAIN, BRING = 30.0, 2.0
"""Seconds until a piece is tried again that could not be copied; that waits for images which had left the store."""

Outcome: TypeAlias = Copied | Later | Refused


@dataclass(slots=True)
class _Work:
    """A request that is being done."""

    request: LabRequest
    prepared: Prepared | None = None
    begun: bool = False  # to go through the pieces
    pieces: Iterator[Sequence[Copy]] = field(default_factory=lambda: iter(()))
    piece: Sequence[Copy] = ()
    remembered: bool = False  # of the piece where it goes
    due: float = 0.0
    busy: bool = True  # something is under way, which will tell
    outcome: Outcome | None = None
    written: int = 0
    same: int = 0
    taken: list[str] = field(default_factory=list)
    lost: int = 0
    trouble: str = ""


@dataclass(slots=True)
class _Lab:
    root: str
    answered: dict[str, str]
    answers: dict[str, bytes]  # that the lab was not told yet
    asked: deque[LabRequest] = field(default_factory=deque)
    work: _Work | None = None
    beside: bool = False  # something is under way in a thread, perhaps for a request that is none any more
    fresh: bool = False  # there is an answer since the last look


def _in_a_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="request", daemon=True).start()


@dataclass(slots=True)
class Requests:
    """`wake` is called from other threads when there is something to go on with; `start` starts what takes a while.

    `bring` has images of a unit in the store that left it: (why to wait, those that cannot be had). `granted` says to
    which targets a lab may have copies made.
    """

    spool: Spool
    records: LabRecords
    outlets: Outlets
    wake: Callable[[], None]
    bring: Callable[[str, Sequence[str]], tuple[str, Sequence[str]]]
    granted: Callable[[str], Collection[str]]
    start: Callable[[Callable[[], None]], None] = _in_a_thread
    _labs: dict[str, _Lab] = field(default_factory=dict)

    def configure(self, roots: Mapping[str, str]) -> None:
        """The labs, and where their folders are. What was under way begins anew."""
        self._labs = {
            lab: _Lab(root, self.records.answered(lab), self.records.answers(lab)) for lab, root in roots.items()
        }

    # --- what the corners see -----------------------------------------------------------------------------------

    def heed(self, lab: str, seen: Sequence[LabRequest], names: Sequence[str] | None) -> None:
        """The requests that lie there now; `names` are those of all, None where nobody knows. One that was removed is
        not done any more; one that changed is done anew."""
        if names is None:
            return
        known = self._labs[lab]
        there, left = {each.name: each for each in seen}, set(names)
        if not known.answered.keys() <= left:
            known.answered = {name: digest for name, digest in known.answered.items() if name in left}
            self.records.note_answered(lab, known.answered)
        doing = known.work.request if known.work is not None else None
        if doing is not None and (doing.name not in left or there.get(doing.name, doing) != doing):
            known.work = None
        under_way = known.work.request if known.work is not None else None
        known.asked = deque(
            each for each in there.values() if known.answered.get(each.name) != each.sha256 and each != under_way
        )

    def answered(self, lab: str) -> Mapping[str, str]:
        """Which were answered, with the SHA-256 of what was asked."""
        return self._labs[lab].answered

    def is_fresh(self, lab: str) -> bool:
        """Is there an answer that was not there when this was last asked?"""
        fresh, self._labs[lab].fresh = self._labs[lab].fresh, False
        return fresh

    def pages(self, lab: str) -> list[Wanted]:
        """The answers that the lab does not have yet."""
        answers = self._labs[lab].answers.items()
        return [described(f"requests/{name}", data, f"answers/{name}") for name, data in answers]

    def told(self, lab: str, pages: Sequence[Wanted]) -> None:
        """These pages are in the lab's corner now."""
        for page in pages:
            name = page.name.removeprefix("requests/")
            data = self._labs[lab].answers.get(name)
            if page.name != name and data is not None and hashlib.sha256(data).hexdigest() == page.sha256:
                del self._labs[lab].answers[name]
                self.records.told(lab, name)

    # --- doing it -----------------------------------------------------------------------------------------------

    def turn(self, now: float) -> float:
        """Go on with one request of each lab; returns when to be called again at the latest."""
        until = now + AGAIN
        for lab, known in self._labs.items():
            if (
                known.work is None and known.asked and not known.beside
            ):  # who changes his mind has one thread all the same
                known.work = _Work(known.asked.popleft())
                self._begin(lab, known, known.work)
            if known.work is not None:
                until = min(until, self._go_on(lab, known, known.work, now))
        return until

    def _begin(self, lab: str, known: _Lab, work: _Work) -> None:
        """Prepare it: to look through a large store takes a while."""
        request = work.request
        if request.why:
            work.prepared = Prepared(says=[f"{request.name} is not read: {request.why}"], failed=True)
            work.busy = False
            return

        def run() -> None:
            work.prepared = prepare(self.spool, lab, self.granted(lab), request.name, bytes.fromhex(request.text))

        def failed() -> None:
            work.prepared = Prepared(says=[_OURS], failed=True)

        self._beside(lab, known, work, run, failed)

    def _beside(self, lab: str, known: _Lab, work: _Work, run: Callable[[], None], failed: Callable[[], None]) -> None:
        """In a thread of its own, of which each lab has one at a time. `failed` is called where that is our fault."""

        def attempt() -> None:
            try:
                run()
            except Exception as error:  # noqa: BLE001 - one request never ends the others
                log.error("lab %s: a request failed as it should not (%s); report this", lab, place_of(error))
                failed()
            work.busy = known.beside = False
            self.wake()

        work.busy = known.beside = True
        self.start(attempt)

    def _go_on(self, lab: str, known: _Lab, work: _Work, now: float) -> float:
        if work.busy or work.prepared is None:
            return now + AGAIN
        if work.outcome is not None:
            self._heed_outcome(work, now)
        elif not work.begun:
            work.pieces, work.begun = _pieces(work.prepared.copies), True
            work.piece = next(work.pieces, ())
        if not work.piece or work.trouble:
            self._answer(lab, known, work)
            return now
        if work.due > now:
            return work.due
        if not work.remembered:
            self._remember(lab, known, work)
        else:
            self._copy(lab, work, now)
        return now + AGAIN

    def _remember(self, lab: str, known: _Lab, work: _Work) -> None:
        """Beside too: a piece may be of many series, and each of them is told durably."""

        def run() -> None:
            try:
                remember(self.spool, work.piece, known.root)
                work.remembered = True
            except OSError as error:
                work.outcome = Later(f"what is copied cannot be remembered: {error.strerror}")

        def failed() -> None:
            work.outcome = Refused(_OURS)

        self._beside(lab, known, work, run, failed)

    def _is_here(self, work: _Work) -> bool:
        """Is all of the piece in the store, or will never be again? What cannot be had is left out of it."""
        images: dict[str, list[str]] = {}
        for copy in work.piece:
            _, key, kind, *file = copy.source.relative_to(self.spool.store).parts
            if kind == "images":
                images.setdefault(key, []).append("/".join(file))
        lost = set()
        for key, files in images.items():
            why, gone = self.bring(key, files)
            if why:
                return False
            lost |= {self.spool.unit_folder(key) / "images" / file for file in gone}
        # what was withdrawn, or made anew, since it was looked for
        lost |= {copy.source for copy in work.piece if not self.spool.files.exists(copy.source)}
        here = [copy for copy in work.piece if copy.source not in lost]
        work.lost += len(work.piece) - len(here)
        work.piece = here
        return True

    def _copy(self, lab: str, work: _Work, now: float) -> None:
        assert work.prepared is not None
        if not self._is_here(work):
            work.due = now + BRING
            return
        if not work.piece:
            work.piece, work.remembered = next(work.pieces, ()), False
            return
        sources = {str(number): copy.source for number, copy in enumerate(work.piece)}
        wanted = tuple(Wanted(each.name, each.sha256, each.size, str(n)) for n, each in enumerate(work.piece))

        def tell(outcome: Outcome) -> None:
            work.outcome, work.busy = outcome, False

        work.busy = True
        job = Copies(wanted, work.prepared.force)
        if not self.outlets.copy_for_lab(lab, job, lambda each: self.spool.files.open(sources[each.file]), tell):
            work.busy, work.due = False, now + AGAIN

    def _heed_outcome(self, work: _Work, now: float) -> None:
        outcome, work.outcome = work.outcome, None
        if isinstance(outcome, Copied):
            work.written += len(outcome.written)
            work.same += len(outcome.same)
            work.taken += [work.piece[index].name for index in outcome.taken if index < len(work.piece)]
            work.piece, work.remembered = next(work.pieces, ()), False
        elif isinstance(outcome, Refused):
            work.trouble = outcome.why
        else:
            work.due = now + AGAIN

    def _answer(self, lab: str, known: _Lab, work: _Work) -> None:
        """First the answer, then that it was given: a crash in between does the request again, and changes nothing."""
        name = work.request.name.removesuffix(".toml") + ANSWER
        data = _text(work).encode(errors="replace")
        self.records.write_answer(lab, name, data)
        known.answers[name] = data
        known.answered = {**known.answered, work.request.name: work.request.sha256}
        self.records.note_answered(lab, known.answered)
        known.work, known.fresh = None, True
        self.spool.note("request", lab=lab, written=work.written, same=work.same, not_written=len(work.taken))


def _pieces(copies: Sequence[Copy]) -> Iterator[Sequence[Copy]]:
    piece: list[Copy] = []
    size = 0
    for copy in copies:
        if piece and (len(piece) == PIECE_FILES or size + copy.size > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(copy)
        size += copy.size
    if piece:
        yield piece


def _text(work: _Work) -> str:
    """Of an answer. Its first line is "done" only where all that was asked for was."""
    prepared = work.prepared
    assert prepared is not None
    failed = prepared.failed or work.taken or work.lost or work.trouble
    lines = ["not done" if failed and not (work.written or work.same) else "done in part" if failed else "done", ""]
    if prepared.copies:
        lines.append(f"{work.written} {prepared.what} of {prepared.series} series were copied to {prepared.dest}; "
                     f"{work.same} were there already.")  # fmt: skip
    lines += prepared.says
    if work.lost:
        says = "have left the store since, or before, and do not lie any more where they were delivered."
        lines.append(f"{work.lost} {prepared.what} {says}")
    lines += [f"not overwritten: {name} is there with other content" for name in work.taken[:MOST_SAID]]
    if len(work.taken) > MOST_SAID:
        lines.append(f"… and {len(work.taken) - MOST_SAID} more")
    if work.taken:
        lines.append("Move these away, give another name, or force = true to overwrite them.")
    if work.trouble:
        lines.append(f"It ended before all was copied: {work.trouble}")
    at = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
    asked = bytes.fromhex(work.request.text).decode(errors="replace").splitlines()[:MOST_SAID]
    lines += ["", f"This answers {work.request.name} at {at}. To ask again, save it with another content or name.", ""]
    lines += [f"    {line}" for line in asked]
    return "\n".join("".join(char if char.isprintable() else "�" for char in line) for line in lines) + "\n"
