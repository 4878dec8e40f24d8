"""Looking at folders that others fill: what has come, what is finished, what is strange."""

from sorter.watch.hints import Hints
from sorter.watch.incoming import Incoming
from sorter.watch.state import Look, Ready
from sorter.watch.taken import Taken

__all__ = ["Hints", "Incoming", "Look", "Ready", "Taken"]
