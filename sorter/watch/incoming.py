"""A folder tree where people and other programs leave files: incoming/, or one that `[[watch]]` names.

Everything is found by looking; events only say when to look. A look takes a short time, however much there is: what
comes new to the top, and small drops that are due, are looked at each time; all the rest in rounds that go on from look
to look. What is ready of a drop is offered when all of the drop was looked at, so that it can be judged as a whole.

A file is ready when its size, times and inode stood still between two looks at least `STILL` seconds apart, nobody is
known to hold it open for writing, and its name is not that of something unfinished. Whether it is an image, whole to
its end, is seen when it is taken. Nothing is followed, nothing is opened that is no regular file, nothing blocks.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TypeAlias

from sorter.durable import Files
from sorter.spool.quarantine import is_retry
from sorter.watch import beneath, names
from sorter.watch.state import Drop, File, Folder, Habits, Look, Ready, State
from sorter.watch.taken import Taken, facts, mark_of
from sorter.watch.waiting import FEW, Waiting, in_turn
from sorter.watch.whole import came_whole
from sorter.watch.writers import open_for_writing

STILL = 2.0
"""Seconds between the two looks between which a file must not change."""

FINAL_AFTER = 600.0
"""Seconds without change after which a file that was given back by `not_yet` is offered for the last time."""

POLL = 2.0
"""Seconds between looks without a hint."""

MOST_OFFERED = 512
"""Files that the caller has at a time: so one image that comes beside 100,000 others need not wait for them."""

DEEPEST = 64
"""Folders within folders."""

SLICE = 0.1
"""Seconds that a look spends on what is new or small, and again on the round, while other files wait to be taken."""

_LONG_SLICE = 0.5  # seconds where none wait
_GAP = 0.5  # seconds between looks at least, and between the begins of two rounds; more where a round takes long
_OF_DUE = 0.75  # of the time at the top that is for what is due, where there is something new
_AT_ONCE = 32  # entries looked at between two looks at the clock
_SELDOM = 60.0  # seconds between looks at what is not expected to change
_OVER_AT_ONCE = 2000  # files that were taken and stay, whose facts are read again at one look
_TEMPORARY_FOR = 3600.0  # seconds after which a temporary name is reported
_STANDING = 86400.0  # seconds after which an emptied folder of a drop that was not whole may go
_USUAL = Habits()

Walk: TypeAlias = "Generator[None, None, None]"
"""Looking at folders, which may be interrupted between any two steps, and gone on with at the next look."""

_LISTED_AFTER = 2.0  # seconds: the coarsest clock of a file system's times


class Incoming:
    """Follows one folder tree. Every `now` is in seconds of one monotonic clock. For one thread, but for `remove`."""

    def __init__(
        self,
        folder: Path,
        files: Files,
        taken: Taken,
        habits: Habits = _USUAL,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`taken` remembers what was taken and is still there, so that another life does not take it again. `clock`
        measures how long a look takes.
        """
        self.folder, self._files, self._taken, self._habits, self.clock = folder, files, taken, habits, clock
        self._now = 0.0
        self._asked, self._asked_at = 0.0, 0.0  # `now` of this look, and what the clock said then
        self._looks = 0
        self._looked: float | None = None
        self._begun: float | None = None  # when the last round began
        self._cost = self._last_cost = 0.0  # seconds of looking that this round took, and the last one
        self._round: Walk | None = None  # where the last look left it
        self._at: Drop | None = None  # the drop in which that was
        self._new: dict[str, float] = {}  # entries of the top that nobody has looked at yet, and when they were found
        self._small: dict[str, float] = {}  # files of the top, and small folders that are waited for: when they are due
        self._behind = False  # were some of them due, and not reached?
        self._soonest = 0.0
        self._fresh = 0
        self._strange: list[tuple[str, str]] = []
        self._told: set[str] = set()  # paths of what was told to be strange, and is so still
        self._root: Folder | None = None
        self._first = True  # is this round the first one?
        self._device = 0
        self._shared = False  # others than this machine write to it: leases say nothing, inodes and ctimes may change
        self._over, self._over_begun, self._left_over = 0, 0.0, 0  # of looking over what was taken and stays
        self._drops: dict[str, Drop] = {}
        self._past: dict[str, Drop] = {}  # drops whose folder went away: a late .done may still come
        self._waiting = Waiting()
        self._offered: dict[str, File] = {}
        self._finishing: dict[Drop, None] = {}  # told to be whole when the last of their files is gone
        self._done_names: set[str] = set()  # top entries called NAME.done
        self._left: set[bytes] = set()  # marks of files that an earlier life took, and could not remove
        self._swept = 0.0
        self._writers: frozenset[str] | None = None
        self._held: dict[int, tuple[str, str, int]] = {}  # by thread: what for, which folder, its descriptor

    # --- what the caller does -----------------------------------------------------------------------------------

    @property
    def there(self) -> bool:
        """Was the folder there at the last look?"""
        return self._root is not None

    @property
    def shared(self) -> bool:
        """Can others than this machine write to the file system that it lies on?"""
        return self._shared

    @property
    def lies_on(self) -> int:
        """The st_dev of the file system that it was found on."""
        return self._device

    @property
    def empty(self) -> bool:
        """Lies nothing at all in it?"""
        root = self._root
        return root is None or not (root.files or root.folders or root.left)

    def look(self, now: float) -> Look:
        """What is new since the last look. It takes a fraction of a second, and less where files wait to be taken.
        OSError: incoming/ cannot be read at all.
        """
        self._now = self._asked = now
        self._asked_at = self.clock()
        for thread in list(self._held):
            self._let_go(thread)
        if self._looked is None or self._unfinished or now - self._looked >= _GAP:
            self._looked = now
            self._scan()
        ready = self._offer()
        strange, self._strange = tuple(self._strange), []
        fresh, self._fresh = self._fresh, 0
        return Look(ready, self._told_whole(), strange, self._emptied(), fresh, self._next())

    @property
    def _unfinished(self) -> bool:
        """Was there no time to look at everything that was due?"""
        return self._round is not None or bool(self._new) or self._behind

    def not_yet(self, ready: Ready) -> None:
        """It is not whole, or changed: offer it again when it has changed, or `final` when it stood still for long."""
        file = self._answered(ready)
        if file is not None:
            if file.final:
                file.since = self._now
            file.final = file.told = False
            self._no_longer(file.path)  # that it cannot be read was said of an earlier time
            self._await(file, State.WAITING, self._now + STILL)

    def again(self, ready: Ready) -> None:
        """It could not be taken, and not for a fault of its own: offer it again soon."""
        file = self._answered(ready)
        if file is not None:
            self._await(file, State.WATCHED, self._now + STILL)

    def unreadable(self, ready: Ready, why: str) -> None:
        """It could be opened, and not be read to its end: that is reported once, and it is offered again seldom."""
        file = self._answered(ready)
        if file is not None:
            if not file.told:
                file.told = True
                self._say(file.path, f"it cannot be read: {why}")
            self._await(file, State.WATCHED, self._now + _SELDOM)

    def gone(self, ready: Ready) -> None:
        """It was taken or set aside. If it is still there it is reported once, remembered, and left alone until it
        changes, over restarts too.
        """
        file = self._answered(ready)
        if file is not None:
            self._await(file, State.GONE, self._now)

    def _answered(self, ready: Ready) -> File | None:
        """It is with the caller no more. None where it has changed meanwhile: what it is now is another offer."""
        file = self._offered.get(ready.path)
        if file is None or file.state is not State.OFFERED or file.ready() != ready:
            return None
        del self._offered[ready.path]
        return file

    def open(self, ready: Ready) -> int:
        """A descriptor for reading, of the file that was found ready; no symbolic link on the way is followed.

        OSError ESTALE: another file is there by now. The caller closes it.
        """
        folder, _, name = ready.path.rpartition("/")
        return beneath.open_file(self._files, self._near("open", folder), name, ready)

    def remove(self, ready: Ready) -> bool:
        """Remove the file that was found ready; False if another is there by now, or none. OSError: it may not be.

        Several threads may do so at once, while nothing else is done here.
        """
        folder, _, name = ready.path.rpartition("/")
        try:
            return beneath.remove_file(self._files, self._near("remove", folder), name, ready)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _near(self, what: str, folder: str) -> int:
        """A descriptor of the folder of the next file, kept while the ones after it lie there too: until the next look,
        or until something else is done in it.
        """
        thread = threading.get_ident()
        if self._held.get(thread, ())[:2] != (what, folder):
            self._let_go(thread)
            self._held[thread] = what, folder, beneath.open_folder(self._files, self.folder, folder)
        return self._held[thread][2]

    def _let_go(self, thread: int) -> None:
        held = self._held.pop(thread, None)
        if held is not None:
            self._files.close(held[2])

    def tidy(self, drop: str) -> bool:
        """Remove the drop's `.done` markers and empty folders, and nothing else. True if nothing is left of it."""
        if not drop or "/" in drop or drop in (".", ".."):
            raise ValueError("a drop is the name of an entry of incoming/")
        with contextlib.suppress(FileNotFoundError), self._files.opened(self.folder, os.O_DIRECTORY) as root:
            if not beneath.remove_empty(self._files, root, drop, DEEPEST):
                return False
            marker = drop + names.DONE
            with contextlib.suppress(OSError):
                if names.may_mark(self._files.stat(marker, at=root)):
                    self._files.unlink(marker, at=root)
        return True

    # --- looking ------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        self._looks, self._writers = self._looks + 1, None
        try:
            root = self._files.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            self._root = None  # it was removed, and will perhaps come back
            self._leave_off()
            return
        try:
            info = self._files.stat(root)
            if self._root is None or (self._root.inode, self._device) != (info.st_ino, info.st_dev):
                self._start(info, self._files.is_shared(root))
            most = SLICE if self._waiting or self._offered else _LONG_SLICE
            self._look_first(root, most)
            self._go_round(root, self.clock() + most)
        except BaseException:
            self._leave_off()
            raise
        finally:
            self._files.close(root)

    def _start(self, info: os.stat_result, shared: bool) -> None:
        self._leave_off()
        self._first = self._root is None
        self._root, self._device, self._shared = Folder("", info.st_ino), info.st_dev, shared
        self._drops, self._past, self._waiting, self._finishing = {}, {}, Waiting(), {}
        self._offered, self._done_names, self._left, self._new, self._small = {}, set(), set(), {}, {}
        self._begun = None
        for path in list(self._told):
            self._no_longer(path)

    def _leave_off(self) -> None:
        """Whatever was begun begins anew."""
        if self._round is not None:
            self._round.close()
        self._round = self._at = None

    def _until(self, walk: Walk, end: float) -> bool:
        """Go on with it; False where the time was over before it was."""
        return not any(self._is_over(end) for _ in walk)

    def _is_over(self, end: float) -> bool:
        """Is the time? `_now` goes on with what is looked at."""
        at = self.clock()
        self._now = self._asked + at - self._asked_at
        return at >= end

    def _look_first(self, root: int, most: float) -> None:
        """At the top itself, for so many seconds: at files and small drops that are due, and then at what is new; of
        both at the smallest, or latest, and at what waits the longest in turn: each is soon reached by one way.

        What is due has most of the time. Whoever only looked at more and more that is new would be late with all of it.
        """
        assert self._root is not None
        self._look_at_top(self._root, root)
        self._match_markers(self._root)
        begun = self.clock()
        due = [name for name, at in self._small.items() if at <= self._now and self._drops[name] is not self._at]
        smallest = sorted(due, key=lambda name: (self._drops[name].open, -self._drops[name].seen))
        in_time = self._look_at_small(in_turn(smallest, due), root, begun + most * (_OF_DUE if self._new else 1.0))
        new = list(self._new)
        new_too = self._look_at_small(in_turn(reversed(new), new), root, begun + most)
        self._behind = not (in_time and new_too)

    def _look_at_small(self, names: Iterable[str], root: int, end: float) -> bool:
        """At these entries of the top; False where the time was over before."""
        top = self._root
        assert top is not None
        for count, name in enumerate(names, 1):
            if name in self._new:
                self._meet(top, name, root, (self._drop(name, self._new.pop(name)), 0))
            elif name in top.files:
                self._check(top.files[name], name, root)
                if name in top.active:
                    self._expect(top.files[name])
            if name in top.folders:
                walk = self._see(name, root)
                if not self._until(walk, end):
                    walk.close()
                    if self._drops[name].open > FEW:
                        self._small.pop(name, None)  # it is the round's
                    return False
            elif count % _AT_ONCE == 0 and self._is_over(end):
                return False
        return True

    def _look_at_top(self, top: Folder, root: int) -> None:
        """What is there, by name; what is new is only noted down."""
        if self._has_changed(top, self._files.stat(root)):
            settled = self._now - top.changed >= _LISTED_AFTER
            found = self._list(top, root)
            self._new = {name: at for name, at in self._new.items() if name in found}
            self._new |= {name: self._now for name in self._unknown(top, found) if name not in self._new}
            top.settled = settled
        if top.left and top.over != self._over:
            self._look_over(top, root, None, 0)

    def _go_round(self, root: int, end: float) -> None:
        """All there is, from where the last look left off."""
        begun = self.clock()
        if self._round is None:
            gap = max(_GAP, min(4 * self._last_cost, self._habits.rest))
            if self._begun is not None and self._asked - self._begun < gap:
                return
            self._begun, self._cost = self._asked, begun - self._asked_at
            self._soonest, self._left_over = min(self._small.values(), default=POLL + self._now), _OVER_AT_ONCE
            self._round = self._look_at_all(root)
        over = self._until(self._round, end)
        self._cost += self.clock() - begun
        if over:
            self._round, self._last_cost = None, self._cost
            self._round_is_over()

    def _look_at_all(self, root: int) -> Walk:
        assert self._root is not None
        with self._files.opened(".", beneath.FOLDER, at=root) as own:
            for name in sorted(self._root.folders, key=lambda name: self._drops[name].open):
                drop = self._drops.get(name)
                if drop is not None and name in self._root.folders and drop.looked != self._looks:
                    self._at = drop
                    yield from self._see(name, own)
                    self._at = None

    def _round_is_over(self) -> None:
        if self._left_over and self._now - self._over_begun >= _SELDOM:  # all of it was looked over: once more
            self._over, self._over_begun = self._over + 1, self._now
        if self._first and not self._new:
            if not (self.empty and self._habits.stays):  # else: perhaps a share is not mounted yet
                self._taken.only(self._left)
            self._first = False
        with contextlib.suppress(OSError):  # a full disk: it is known while this process lives, and written later
            self._taken.keep()

    def _see(self, name: str, root: int) -> Walk:
        """Look at all of a drop."""
        assert self._root is not None
        drop, top = self._drops[name], self._root.folders[name]
        drop.covering, drop.early, drop.due = True, False, math.inf
        yield from self._descend(self._root, top, root, (drop, 1))
        if self._root.folders.get(name) is top:
            self._seen(drop, top)

    def _seen(self, drop: Drop, top: Folder) -> None:
        """All of it was looked at: did it come whole? What stands still is offered from now on."""
        drop.looked, drop.covered = self._looks, drop.covered or drop.covering
        busy = drop.counts[State.WATCHED] + drop.counts[State.WAITING] + drop.counts[State.TEMPORARY]
        if not (busy or drop.offered or drop.judged) and drop.counts[State.QUEUED]:
            drop.judged = True
            drop.moved = came_whole(drop, top)
            if drop.moved:
                self._finishing[drop] = None
        if not (busy and self._may_be_whole(drop)):
            still, drop.still = drop.still, []
            for file in still:
                self._waiting.add(file)
        self._small.pop(drop.name, None)
        if drop.due < math.inf and drop.open <= FEW:
            self._small[drop.name] = drop.due

    def _may_be_whole(self, drop: Drop) -> bool:
        """Is it only too early to say? Once one of its files was offered, nothing can be said any more."""
        untouched = not (drop.offered or drop.grew or drop.restless)
        return untouched and drop.early and not (drop.counts[State.WAITING] or drop.counts[State.TEMPORARY])

    def _visit(self, folder: Folder, fd: int, drop: Drop, depth: int) -> Walk:
        yield from self._look_at(folder, fd, drop, depth)
        for inner in list(folder.folders.values()):
            yield from self._descend(folder, inner, fd, (drop, depth + 1))

    def _look_at(self, folder: Folder, fd: int, drop: Drop, depth: int) -> Walk:
        """At the entries of one folder below the top."""
        info, before = self._files.stat(fd), folder.mtime_ns
        if self._has_changed(folder, info):
            if depth == 1 and info.st_mtime_ns < before:
                drop.set_back = True
            settled = self._now - folder.changed >= _LISTED_AFTER
            for count, name in enumerate(self._unknown(folder, self._list(folder, fd)), 1):
                self._meet(folder, name, fd, (drop, depth))
                if count % _AT_ONCE == 0:
                    yield
            folder.settled = settled
        for count, name in enumerate(list(folder.active), 1):
            file = folder.files.get(name)
            if file is not None and file.due <= self._now:
                self._check(file, name, fd)
            file = folder.files.get(name)
            if file is not None and name in folder.active:
                self._expect(file)
                drop.early = drop.early or file.state is State.WATCHED
            if count % _AT_ONCE == 0:
                yield
        if folder.left and folder.over != self._over:
            self._look_over(folder, fd, drop, depth)
        yield

    def _has_changed(self, folder: Folder, info: os.stat_result) -> bool:
        """May its names be others than those that are known?"""
        if info.st_mtime_ns != folder.mtime_ns:
            folder.mtime_ns, folder.changed, folder.settled = info.st_mtime_ns, self._now, False
        folder.ctime_ns = info.st_ctime_ns
        return not folder.settled

    def _expect(self, file: File) -> None:
        """It is to be looked at again; a mark, of which a tree that stays may have one a folder, in rounds alone."""
        if file.state is State.MARKER and file.home is not self._root:
            return
        self._soonest, file.drop.due = min(self._soonest, file.due), min(file.drop.due, file.due)
        if file.home is self._root:
            self._small.pop(file.name, None)  # who was looked at last comes last
            self._small[file.name] = file.due

    def _list(self, folder: Folder, fd: int) -> dict[str, None]:
        """Its names now; what is gone is forgotten."""
        found = dict.fromkeys(self._files.names(fd))
        for name in folder.files.keys() - found.keys():
            self._forget_file(folder.files[name])
        for name in folder.folders.keys() - found.keys():
            self._forget_folder(folder, name)
        for name in folder.left.keys() - found.keys():
            self._forget_left(folder, name)
        return found

    def _unknown(self, folder: Folder, found: Iterable[str]) -> list[str]:
        """Those of these names that were not there before."""
        known = (folder.files, folder.folders, folder.left)
        return [name for name in found if not any(name in each for each in known)]

    def _look_over(self, folder: Folder, fd: int, drop: Drop | None, depth: int) -> None:
        """Has what was taken and stays here changed? A part of it at each look, so that a large tree costs no more."""
        if not folder.unchecked:
            folder.unchecked = list(folder.left)
        while folder.unchecked and self._left_over:
            name = folder.unchecked.pop()
            self._left_over -= 1
            with contextlib.suppress(FileNotFoundError):
                info = self._files.stat(name, at=fd)
                path = f"{folder.path}/{name}" if folder.path else name
                if name in folder.left and self._mark_of(path, facts(info)) != folder.left[name]:
                    self._forget_left(folder, name)
                    self._meet(folder, name, fd, (drop or self._drop(name, self._now), depth))
        if not folder.unchecked:
            folder.over = self._over

    def _mark_of(self, path: str, found: tuple[int, int, int, int]) -> bytes:
        size, mtime_ns, inode, ctime_ns = found
        return mark_of(path, (size, mtime_ns, 0, 0) if self._shared else (size, mtime_ns, inode, ctime_ns))

    def _descend(self, outer: Folder, inner: Folder, fd: int, where: tuple[Drop, int]) -> Walk:
        name = inner.path.rpartition("/")[2]
        drop, depth = where
        try:
            below = self._files.open(name, beneath.FOLDER, at=fd)
        except OSError as error:
            if error.errno in beneath.AWAY:
                raise
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self._forget_folder(outer, name)
                outer.settled = False
            elif not inner.told:
                inner.told = True
                self._say(inner.path, f"a folder that cannot be opened: {error.strerror}")
            return
        try:
            info = self._files.stat(below)
            if (info.st_ino, info.st_dev) != (inner.inode, self._device):  # another folder of the same name
                self._forget_folder(outer, name)
                outer.settled = False
                return
            yield from self._visit(inner, below, drop, depth)
            inner.told = False
            self._no_longer(inner.path)
        except OSError as error:
            if error.errno in beneath.AWAY:
                raise
            if not inner.told:
                inner.told = True
                self._say(inner.path, f"a folder that cannot be read: {error.strerror}")
        finally:
            self._files.close(below)

    def _meet(self, folder: Folder, name: str, fd: int, where: tuple[Drop, int]) -> None:
        """An entry that was not there before."""
        drop, depth = where
        path = f"{folder.path}/{name}" if folder.path else name
        try:
            info = self._files.stat(name, at=fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in beneath.AWAY:
                raise
            self._enter(File(path, folder, drop, State.STRANGE, (0, 0, 0, 0), 0, 0, self._now, self._now + _SELDOM))
            self._say(path, f"it cannot be looked at: {error.strerror}")
            return
        if stat.S_ISDIR(info.st_mode) and not names.is_temporary_folder(name):
            why = self._not_entered(info, depth)
            if why is None:
                folder.folders[name] = Folder(path, info.st_ino)
                if folder is self._root:
                    self._small[name] = self._now
                self._grown(drop)
                return
            self._say(path, why)
            self._enter(self._file(path, folder, drop, (info, State.STRANGE)))
            return
        if self._is_marker(name, info, drop, depth):
            self._enter(self._file(path, folder, drop, (info, State.MARKER)))
            return
        mark = self._mark_of(path, facts(info))
        if stat.S_ISREG(info.st_mode) and mark in self._taken:
            folder.left[name] = mark
            self._left.add(mark)
            return
        self._fresh += 1
        drop.ever += 1
        drop.newest = self._now
        self._grown(drop)
        self._enter(self._file(path, folder, drop, (info, self._state(path, name, info))))

    def _not_entered(self, info: os.stat_result, depth: int) -> str | None:
        if info.st_dev != self._device:
            return "another file system is mounted there; sorter does not look into it"
        if depth >= DEEPEST:
            return f"folders within folders, more than {DEEPEST} deep"
        return None

    def _is_marker(self, name: str, info: os.stat_result, drop: Drop, depth: int) -> bool:
        if depth == 0 and names.marks(name) is not None:
            self._done_names.add(name)
        if name not in (names.DONE, names.KEEP) or depth == 0 or not names.may_mark(info):
            return False
        if name == names.DONE and depth == 1:
            self._mark(drop, info)
        return True

    def _mark(self, drop: Drop, info: os.stat_result) -> None:
        drop.marker, drop.covered = (info.st_ino, info.st_ctime_ns), False
        self._finishing[drop] = None

    def _match_markers(self, root: Folder) -> None:
        """NAME.done beside NAME, in whichever order they came; or after NAME was taken and removed."""
        for marker in self._done_names:
            file, target = root.files.get(marker), marker.removesuffix(names.DONE)
            drop = self._drops.get(target) if target in root.folders or target in root.files else self._past.get(target)
            if file is None or drop is None or file.state not in (State.WATCHED, State.QUEUED, State.TEMPORARY):
                continue
            if file.info[0] > names.LARGEST_MARK:
                continue
            drop.marker, drop.covered, drop.covering = (file.info[2], file.info[3]), False, False
            self._finishing[drop] = None
            self._set(file, State.MARKER)

    def _state(self, path: str, name: str, info: os.stat_result) -> State:
        why = names.strange_kind(info.st_mode)
        if why is not None:
            self._say(path, why)
            return State.STRANGE
        was_taken_up = is_retry(path.partition("/")[0])  # under that name, in an archive: nobody is writing to it
        if (names.is_temporary(name) and not was_taken_up) or stat.S_ISDIR(info.st_mode):
            return State.TEMPORARY
        orphan = info.st_size == 0 and "/" not in path and names.marks(name) is not None
        return State.TEMPORARY if orphan else State.WATCHED

    def _file(self, path: str, home: Folder, drop: Drop, what: tuple[os.stat_result, State]) -> File:
        info, state = what
        due = self._now + (STILL if state is State.WATCHED else 10.0 if state is State.TEMPORARY else _SELDOM)
        return File(path, home, drop, state, facts(info), info.st_dev, info.st_uid, self._now, due)

    def _enter(self, file: File) -> None:
        file.home.files[file.name] = file
        file.drop.counts[file.state] += 1
        file.home.active.add(file.name)
        self._expect(file)

    def _grown(self, drop: Drop) -> None:
        drop.grew = drop.grew or drop.looked > 0
        drop.judged = drop.moved = False

    def _drop(self, name: str, seen: float) -> Drop:
        found = self._drops.get(name)
        if found is None:
            found = self._drops[name] = Drop(name, seen, newest=self._now)
        return found

    # --- one file, looked at again ------------------------------------------------------------------------------

    def _check(self, file: File, name: str, fd: int) -> None:
        try:
            info = self._files.stat(name, at=fd)
        except FileNotFoundError:
            self._forget_file(file)
            return
        except OSError as error:
            if error.errno in beneath.AWAY:
                raise
            file.due = self._now + _SELDOM
            return
        if facts(info) != file.info or info.st_dev != file.device:
            self._changed(file, name, info)
        elif file.state is State.WATCHED or (file.state is State.STRANGE and stat.S_ISREG(info.st_mode)):
            self._still(file, name, fd)  # what could not be read can perhaps be now: a share was away
        elif file.state is State.WAITING:
            file.due = self._now + min(max(STILL, (self._now - file.since) / 10), 10.0)
            if self._now - file.since >= FINAL_AFTER:
                file.final = True
                self._still(file, name, fd)
        else:
            self._left_alone(file)

    def _changed(self, file: File, name: str, info: os.stat_result) -> None:
        self._forget_file(file)
        self._grown(file.drop)
        if stat.S_ISDIR(info.st_mode):
            file.home.settled = False  # it is met again as a folder
            return
        if file.home is self._root:
            self._drops[name] = file.drop
        if self._is_marker(name, info, file.drop, file.path.count("/")):
            self._enter(self._file(file.path, file.home, file.drop, (info, State.MARKER)))
            return
        self._enter(self._file(file.path, file.home, file.drop, (info, self._state(file.path, name, info))))

    def _still(self, file: File, name: str, fd: int) -> None:
        """It has not changed since the last look: is anybody writing to it?"""
        try:
            reading = self._files.open(name, beneath.FILE, at=fd)
        except FileNotFoundError:
            self._forget_file(file)
            return
        except OSError as error:
            if error.errno in beneath.AWAY:
                raise
            if not file.told:
                file.told = True
                self._say(file.path, f"it cannot be read: {error.strerror}")
            self._await(file, State.STRANGE, self._now + _SELDOM)
            return
        if file.state is State.STRANGE:
            file.told = False
            self._no_longer(file.path)
            self._await(file, State.WATCHED, self._now)
        try:
            same = facts(self._files.stat(reading)) == file.info
            writer = self._has_writer(reading, file.path)
        finally:
            self._files.close(reading)
        if writer or not same:
            file.final, file.drop.restless = False, True
            file.since, file.due = self._now, self._now + STILL
            return
        if file.final and writer is None:
            self._left_unfinished(file)
            return
        self._set(file, State.QUEUED)
        if file.home is self._root:
            self._waiting.add(file)
        else:
            file.drop.still.append(file)

    def _has_writer(self, reading: int, path: str) -> bool | None:
        """None: nobody that can be seen has it open for writing; whether anybody does, cannot be known here."""
        leased = None if self._shared else self._files.has_writer(reading)
        if leased is not None:
            return leased
        if self._writers is None:
            self._writers = open_for_writing(self._files)
        return True if self._writers and f"{os.path.realpath(self.folder)}/{path}" in self._writers else None

    def _left_unfinished(self, file: File) -> None:
        """It ends too early and stands still, but a writer that we cannot see may go on, in an hour or tomorrow: were
        the file set aside, what it writes then would be lost.
        """
        file.final, file.due = False, self._now + _SELDOM
        if not file.told:
            file.told = True
            self._say(file.path, "it ends too early and has not changed for long; left until it changes")

    def _left_alone(self, file: File) -> None:
        file.due = self._now + (10.0 if file.state is State.TEMPORARY else _SELDOM)
        late = self._now - file.since >= _TEMPORARY_FOR
        if file.state is State.GONE:
            self._stays(file)
        elif file.state is State.TEMPORARY and late and not file.told:
            file.told = True
            self._say(file.path, "its name says that it is unfinished; rename it if it is not")

    def _stays(self, file: File) -> None:
        """It was taken and is still there: on purpose, or because it may not be removed."""
        mark = self._mark_of(file.path, file.info)
        self._taken.add(mark)
        self._forget_file(file)
        file.home.left[file.name] = mark
        if not self._habits.stays:
            self._say(file.path, "taken, but it could not be removed; remove it by hand")

    def _await(self, file: File, state: State, due: float) -> None:
        """Look at it again, at `due`."""
        self._set(file, state)
        file.due = due
        if file.home.files.get(file.name) is file:
            file.home.active.add(file.name)
            if file.home is self._root:
                self._expect(file)

    def _set(self, file: File, state: State) -> None:
        file.drop.counts[file.state] -= 1
        file.drop.counts[state] += 1
        file.state = state
        if state in (State.QUEUED, State.OFFERED):
            file.home.active.discard(file.name)
            if file.home is self._root:
                self._small.pop(file.name, None)

    def _forget_file(self, file: File) -> None:
        name = file.name
        del file.home.files[name]
        file.home.active.discard(name)
        file.drop.counts[file.state] -= 1
        if file.state is State.OFFERED:
            self._offered.pop(file.path, None)
        file.state = State.GONE  # whoever still has it in a queue passes it over
        self._no_longer(file.path)
        if file.home is self._root:
            self._done_names.discard(name)
            self._ended(name)

    def _forget_folder(self, outer: Folder, name: str) -> None:
        rest = [outer.folders.pop(name)]
        while rest:
            folder = rest.pop()
            for file in list(folder.files.values()):
                self._forget_file(file)
            for each in list(folder.left):
                self._forget_left(folder, each)
            self._no_longer(folder.path)
            rest += folder.folders.values()
        if outer is self._root:
            self._ended(name)

    def _forget_left(self, folder: Folder, name: str) -> None:
        """What was taken and stayed here went away, or is another by now."""
        self._taken.forget(folder.left.pop(name))
        self._no_longer(f"{folder.path}/{name}" if folder.path else name)

    def _ended(self, name: str) -> None:
        """The top entry of a drop went away."""
        self._small.pop(name, None)
        drop = self._drops.pop(name, None)
        if drop is not None and (drop.ever > 1 or drop.offered):
            self._past[name] = drop
            drop.newest = self._now

    # --- what is told -------------------------------------------------------------------------------------------

    def _say(self, path: str, why: str) -> None:
        """It is left where it is."""
        self._told.add(path)
        self._strange.append((path, why))

    def _no_longer(self, path: str) -> None:
        if path in self._told:
            self._told.discard(path)
            self._strange.append((path, ""))

    def _offer(self) -> tuple[Ready, ...]:
        offered: list[Ready] = []
        for file in self._waiting.next(MOST_OFFERED - len(self._offered)):
            self._set(file, State.OFFERED)
            file.drop.offered = True
            file.final = file.final or names.is_import(file.drop.name)
            self._offered[file.path] = file
            offered.append(file.ready())
        return tuple(offered)

    def _told_whole(self) -> tuple[str, ...]:
        told: list[str] = []
        for drop in list(self._finishing):
            unfinished = drop.open or (drop.marker is None and drop.counts[State.TEMPORARY]) or self._is_unseen(drop)
            evidence = drop.marker or ((0, 0) if drop.moved else None)
            if evidence is None:
                del self._finishing[drop]
            elif not unfinished:
                del self._finishing[drop]
                if drop.told_for != evidence:
                    drop.told_for = evidence
                    told.append(drop.name)
        return tuple(told)

    def _is_unseen(self, drop: Drop) -> bool:
        """May there be files in it that nobody has looked at since its marker was seen?"""
        is_folder = self._root is not None and drop.name in self._root.folders
        return drop.marker is not None and is_folder and not drop.covered

    def _emptied(self) -> tuple[str, ...]:
        if self._now - self._swept < _SELDOM or self._root is None:
            return ()
        self._swept = self._now
        for name in [name for name, drop in self._past.items() if self._now - drop.newest > _TEMPORARY_FOR]:
            del self._past[name]
        return tuple(name for name in self._root.folders if self._is_emptied(self._drops[name]))

    def _is_emptied(self, drop: Drop) -> bool:
        left = sum(drop.counts) - drop.counts[State.MARKER]
        patience = _SELDOM if is_retry(drop.name) else _STANDING  # nobody goes on filling a folder of our own
        return not left and drop.offered and (drop.told_for is not None or self._now - drop.newest >= patience)

    def _next(self) -> float:
        if self._unfinished or (self._waiting and len(self._offered) < MOST_OFFERED):
            return self._now
        soonest = min(self._soonest, self._asked + POLL)
        return soonest if soonest > self._asked or self._looked is None else max(self._looked + _GAP, self._asked)
