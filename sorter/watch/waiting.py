"""Files that are ready and wait to be offered, and which of them come next.

Whoever drops a single image is not to wait for another's hundred thousand. So of the room that there is half goes to
drops of which few files wait, the smallest (of equal ones the latest) and the oldest in turn, and half to those that
wait the longest, a run of files each: a drop of any size goes on, whatever comes beside it, and files of one folder are
mostly taken together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

from sorter.watch.state import Drop, File, State

FEW = 16
"""Files of a drop up to which it counts as small."""

RUN = 32
"""Files of a large drop that are offered one after another."""


_T = TypeVar("_T")


class Waiting:
    """A queue for each drop; a file whose state is no longer QUEUED is passed over."""

    def __init__(self) -> None:
        self._queues: dict[Drop, deque[File]] = {}  # who waits the longest comes first

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, file: File) -> None:
        self._queues.setdefault(file.drop, deque()).append(file)

    def next(self, room: int) -> Iterator[File]:
        """At most `room` files, taken out of their queues."""
        small = sorted((drop for drop, queue in self._queues.items() if len(queue) <= FEW), key=lambda drop: drop.seen)
        left = room if len(small) == len(self._queues) else -(-room // 2)
        smallest = sorted(small, key=lambda drop: (len(self._queues[drop]), -drop.seen))
        for drop in in_turn(smallest, small):
            if left == 0:
                break
            for file in self._run(drop, left):
                left, room = left - 1, room - 1
                yield file
        while room > 0 and self._queues:
            for file in self._run(next(iter(self._queues)), min(room, RUN)):
                room -= 1
                yield file

    def _run(self, drop: Drop, most: int) -> Iterator[File]:
        """At most `most` files of one drop, which is the last one in line then."""
        queue = self._queues[drop]
        while queue and most:
            file = queue.popleft()
            if file.state is State.QUEUED:
                most -= 1
                yield file
        del self._queues[drop]
        if queue:
            self._queues[drop] = queue


def in_turn(one: Iterable[_T], other: Iterable[_T]) -> Iterator[_T]:
    """The same things in two orders: the first by the one, the first by the other, and so on; nothing twice."""
    told = set[_T]()
    for each in chain.from_iterable(zip(one, other, strict=True)):
        if each not in told:
            told.add(each)
            yield each
