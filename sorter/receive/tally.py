"""What the processes of one receiver know of each other: counters, and who holds the places for associations.

Memory that they share from before the fork. Each worker has a row, which it alone writes and all read: there is no
lock, and a worker that died leaves nothing taken, as its successor clears the row. Nothing depends on the cells being
of the same moment; two workers may give the last place away at once.
"""

from __future__ import annotations

import mmap

from sorter.protocol.peers import household

_VISITORS, _ASSOCIATIONS, _PLACES = range(3)
_FREE = 0


class Tally:
    """Rows for so many workers, and places for so many associations in each, to be made before they are forked."""

    def __init__(self, workers: int = 1, associations: int = 500) -> None:
        self.width = _PLACES + associations
        self.cells = memoryview(mmap.mmap(-1, workers * self.width * 8)).cast("Q")

    def row(self, number: int) -> Row:
        """Of the `number`-th worker, from 0."""
        return Row(self, number * self.width)


class Row:
    """One worker's cells. `take` and `count` are for one thread, the rest for any."""

    def __init__(self, tally: Tally, at: int) -> None:
        self._cells, self._at, self._width = tally.cells, at, tally.width

    def clear(self) -> None:
        """A new process begins in the place of another."""
        self._cells[self._at : self._at + self._width] = memoryview(bytes(self._width * 8)).cast("Q")

    def visitors(self, now: int) -> None:
        """Connections that have not asked for an association yet."""
        self._cells[self._at + _VISITORS] = now

    def associations(self, now: int) -> None:
        self._cells[self._at + _ASSOCIATIONS] = now

    @property
    def busiest(self) -> bool:
        """Whether another worker has fewer connections than this one: it should take the next."""
        cells, mine = self._cells, self._load(self._at)
        return any(self._load(at) < mine for at in range(0, len(cells), self._width))

    def _load(self, at: int) -> int:
        return self._cells[at + _VISITORS] + self._cells[at + _ASSOCIATIONS]

    def count(self, address: str) -> tuple[int, int]:
        """(associations of this address, all associations), in all workers."""
        key, here, taken = _key(address), 0, 0
        for at in range(0, len(self._cells), self._width):
            places = self._cells[at + _PLACES : at + self._width].tolist()
            here += places.count(key)
            taken += len(places) - places.count(_FREE)
        return here, taken

    def take(self, address: str) -> int | None:
        """A place for an association of this address, to be given back; None where this worker has none left."""
        for place in range(self._at + _PLACES, self._at + self._width):
            if self._cells[place] == _FREE:
                self._cells[place] = _key(address)
                return place
        return None

    def give_back(self, place: int) -> None:
        self._cells[place] = _FREE


def _key(address: str) -> int:
    """The same number in all workers, as they are forked from one process, and another one in its next life."""
    return hash(household(address)) & 0xFFFF_FFFF_FFFF_FFFF or 1
