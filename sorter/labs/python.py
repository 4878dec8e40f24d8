"""Python of a lab's own, `<root>/.sorter/plugins/*.py`: run as the lab's account, asked of the lab's series alone.

Only labs to which the admin gave an account (`[labs.NAME] user`) have any. Its process is begun where the lab's worker
is begun, by the same keeper, and reads the lab's folder itself: nothing here touches that. Whatever goes wrong there
holds the lab's own series, with a sentence, and nobody else's; an answer that is not the lab's to give is refused.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sorter.deliver.workers import Workers, workers_of
from sorter.durable import Files
from sorter.errors import PluginError
from sorter.model import Add, Identity, Only
from sorter.plugins.hosted import Hosted, Launch, Patience
from sorter.plugins.local import Answer, Asked
from sorter.spool.labs import LabRecords
from sorter.wire import Channel

log = logging.getLogger("sorter.labs")

HOOKS = ("sorter_identify", "sorter_route", "sorter_name")
"""That a lab's own plugins are asked."""

PLACE = ".sorter/plugins"
PATIENCE = Patience(answer=3.0, load=30.0)
AGAIN, LONGEST = 30.0, 600.0
"""Seconds until plugins that could not be loaded are tried again, at first and at most."""

SHARE, PERIOD = 10.0, 100.0
"""Seconds, of so many, that a lab's plugins may take of the thread which decides for all labs. A series takes three
answers at most, and begins anew when one was refused: a share is more than three answers may take."""

_NOTHING = Asked((), ())


@dataclass(frozen=True, slots=True)
class Home:
    """Of one lab: the account, the folder, the interpreter ("": ours), and the targets that it was granted."""

    account: str
    root: Path
    python: str = ""
    targets: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Share:
    """What one lab's plugins have taken of their share. Whoever used it up rests until the next begins."""

    clock: Callable[[], float]
    since: float = 0.0
    spent: float = 0.0
    refused: bool = False

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        begun = self.clock()
        if begun >= self.until:
            self.since, self.spent = begun, 0.0
        try:
            yield
        finally:
            self.spent += self.clock() - begun

    @property
    def until(self) -> float:
        """When the next begins; later, where more was taken than one."""
        return self.since + max(PERIOD, self.spent / SHARE * PERIOD)

    def rest(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self.until - self.clock()) if self.spent >= SHARE else 0.0


@dataclass(slots=True)
class _Own:
    """The plugins of one lab. Neither `hosted` nor `faults`: they are being loaded."""

    home: Home
    workers: Workers
    share: _Share
    mark: str | None = None  # of what lies there; None: not seen yet, "": nothing
    before: str | None = None  # the mark when it was last seen in another life
    hosted: Hosted | None = None
    faults: tuple[str, ...] = ()
    again: float | None = None  # when to load them once more
    pause: float = AGAIN

    @property
    def nothing(self) -> bool:
        """Nothing lies there, or did when it was last seen: a folder that is away at a start holds no series then."""
        return (self.before if self.mark is None else self.mark) == ""

    def close(self) -> None:
        if self.hosted is not None:
            self.hosted.close()
        self.hosted, self.faults, self.again = None, (), None


@dataclass(slots=True)
class LabPython:
    """The plugins of all labs. `wake` is called, from any thread, when `turn` should be."""

    sockets: Path
    files: Files
    records: LabRecords
    wake: Callable[[], None]
    patience: Patience = PATIENCE
    clock: Callable[[], float] = time.monotonic
    _labs: dict[str, _Own] = field(default_factory=dict)
    _loaded: deque[tuple[_Own, str, Hosted | None, tuple[str, ...]]] = field(default_factory=deque)

    def configure(self, homes: Mapping[str, Home]) -> None:
        """These labs may have some from now on, and no others."""
        for lab in [lab for lab, own in self._labs.items() if homes.get(lab) != own.home]:
            own = self._labs.pop(lab)
            own.close()
            own.workers.close()
        for lab, home in homes.items():
            if lab not in self._labs:
                workers = workers_of(f"{lab}.plugins", home.account, self.sockets, self.files)
                self._labs[lab] = _Own(home, workers, _Share(self.clock), before=self.records.python(lab))

    def close(self) -> None:
        self.configure({})

    def runs(self, lab: str) -> bool:
        """May this lab have any?"""
        return lab in self._labs

    def doubted(self, lab: str) -> str:
        """Why what is said of copies in the lab's folder is not enough for an image to leave the store; "" if it is.

        Its plugins run as the account that its worker runs as, and might come in that one's place.
        """
        own = self._labs.get(lab)
        if own is None or own.mark == "":
            return ""
        return f"lab {lab} has plugins of its own, which may do whatever its worker may"

    def seen(self, lab: str, mark: str) -> tuple[str, ...]:
        """A look at the lab's corner found this mark; returns what is wrong with its plugins, in sentences for it."""
        own = self._labs.get(lab)
        if own is None:
            return ()
        if mark != own.mark:
            if mark != own.before:  # first: where the disk fails, the next look begins here again
                self.records.note_python(lab, mark)
                own.before = mark
            own.close()
            own.mark, own.pause = mark, AGAIN
            if mark:
                self._load(own, mark)
            else:
                self._loaded.append((own, mark, None, ()))
                self.wake()
        return own.faults

    # --- loading ------------------------------------------------------------------------------------------------

    def _load(self, own: _Own, mark: str) -> None:
        """In a thread of its own: the lab's folder may hang."""

        def load() -> None:
            hosted = Hosted(own.home.root / PLACE, {}, self.patience, launch=_launch(own))
            faults = [*hosted.unloadable, *(fault.says for fault in hosted.faults())]
            for each in hosted.known():
                others = [hook for hook in each.hooks if hook not in HOOKS]
                if others:
                    faults.append(
                        f"{each.name}.py: a lab's own plugins are not asked {', '.join(others)}; ask the admin"
                    )
            self._loaded.append((own, mark, hosted, tuple(f"plugins: {said}" for said in faults)))
            self.wake()

        threading.Thread(target=load, name="lab plugins", daemon=True).start()

    def turn(self, now: float) -> tuple[set[str], float]:
        """The labs whose plugins may answer otherwise by now, and when to be called again at the latest."""
        changed = set[str]()
        names = {id(own): lab for lab, own in self._labs.items()}
        while self._loaded:
            own, mark, hosted, faults = self._loaded.popleft()
            if id(own) not in names or own.mark != mark:  # the configuration, or what lies there, changed meanwhile
                if hosted is not None:
                    hosted.close()
                continue
            changed.add(names[id(own)])
            self._take_up(own, hosted, faults, now)
        for lab, own in self._labs.items():
            if own.again is not None and own.again <= now:
                own.again = None
                own.faults = ()
                self._load(own, own.mark or "")
            if own.hosted is not None and not own.share.rest():
                with own.share.taken():  # to end a process takes as long as its keeper pleases
                    fresh = own.hosted.refresh()
                if fresh:
                    changed.add(lab)
            if own.share.refused and not own.share.rest():
                own.share.refused = False
                changed.add(lab)
        again = [own.again for own in self._labs.values() if own.again is not None]
        again += [now + own.share.rest() for own in self._labs.values() if own.share.refused]
        return changed, min(again, default=now + LONGEST)

    def _take_up(self, own: _Own, hosted: Hosted | None, faults: tuple[str, ...], now: float) -> None:
        own.hosted, own.faults = hosted, faults
        if hosted is not None and faults:
            hosted.close()
            own.hosted = None
            own.again, own.pause = now + own.pause, min(LONGEST, 2 * own.pause)

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, lab: str, hook: str, arguments: Mapping[str, Any]) -> Asked:
        """What the lab's plugins say of a series of the lab. What they may not say counts as a failure."""
        own = self._labs.get(lab)
        if own is None or own.nothing:
            return _NOTHING
        if own.hosted is None:
            return Asked((), (PluginError(f"of lab {lab}", hook, _why_not(own)),))
        if rest := own.share.rest():
            own.share.refused = True
            return Asked((), (PluginError(f"of lab {lab}", hook, _tired(own.share, rest)),))
        with own.share.taken():
            asked = own.hosted.ask(hook, arguments)
        answers: list[Answer] = []
        failures = list(asked.failures)
        for answer in asked.answers:
            said = _not_its_own(answer.value, lab, own.home.targets)
            if said:
                failures.append(PluginError(answer.plugin, hook, said))
            else:
                answers.append(answer)
        return Asked(tuple(answers), tuple(failures))


def _why_not(own: _Own) -> str:
    if own.mark is None:
        return f"what lies in the lab's {PLACE} was not looked at yet"
    return own.faults[0] if own.faults else "they are being loaded"


def _tired(share: _Share, rest: float) -> str:
    return (
        f"they took {share.spent:.0f} s of the time of all labs, and are asked again in {rest:.0f} s;"
        f" {PERIOD:.0f} s have {SHARE:.0f} s for them, so let them answer at once, from a table that is read once"
    )


def _not_its_own(answer: object, lab: str, targets: frozenset[str]) -> str:
    """A sentence where a lab says what is not its own to say."""
    if isinstance(answer, Identity) and answer.lab not in (None, lab):
        return f"a plugin of lab {lab} cannot say that a series belongs to another; leave lab out"
    if isinstance(answer, Add | Only):
        strange = sorted(set(answer.targets) - targets)
        if strange:
            return f"lab {lab} was not granted the target {strange[0]}; it has {', '.join(sorted(targets))}"
    return ""


def _launch(own: _Own) -> Launch:
    """As the lab's account, where its worker is begun."""

    def launch(patience: float) -> tuple[Channel, Callable[[], object]]:
        worker = own.workers.start(patience)
        worker.channel.send({"python": own.home.python})
        return worker.channel, worker.end

    return launch
