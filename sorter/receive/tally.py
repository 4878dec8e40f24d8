"""What the processes of one receiver know of each other: a few counters in shared memory.

Each worker has a row, which it alone writes. Nothing depends on the counters being of the same moment.
"""

from __future__ import annotations

from multiprocessing.sharedctypes import RawArray

_VISITORS, _ASSOCIATIONS, _WIDTH = range(3)


class Tally:
    """Rows for so many workers, to be made before they are forked."""

    def __init__(self, workers: int = 1) -> None:
        self.cells = RawArray("Q", workers * _WIDTH)

    def row(self, number: int) -> Row:
        """Of the `number`-th worker, from 0."""
        return Row(self, number * _WIDTH)


class Row:
    """One worker's counters."""

    def __init__(self, tally: Tally, at: int) -> None:
        self._cells, self._at = tally.cells, at

    def clear(self) -> None:
        """A new process begins in the place of another."""
        self._cells[self._at : self._at + _WIDTH] = [0] * _WIDTH

    def visitors(self, now: int) -> None:
        """Connections that have not asked for an association yet."""
        self._cells[self._at + _VISITORS] = now

    def associations(self, now: int) -> None:
        self._cells[self._at + _ASSOCIATIONS] = now

    @property
    def busiest(self) -> bool:
        """Whether another worker has fewer connections than this one: it should take the next."""
        cells = self._cells[:]
        mine = sum(cells[self._at : self._at + _WIDTH])
        return any(sum(cells[at : at + _WIDTH]) < mine for at in range(0, len(cells), _WIDTH))
