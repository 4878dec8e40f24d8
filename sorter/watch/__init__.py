"""Looking at folders that others fill: what has come, what is finished, what is strange."""

from sorter.watch.hints import Hints
from sorter.watch.incoming import Incoming
from sorter.watch.lookout import Lookout, Watched
from sorter.watch.state import Look, Ready, Tree
from sorter.watch.taken import Taken
from sorter.watch.written import Written

__all__ = ["Hints", "Incoming", "Look", "Lookout", "Ready", "Taken", "Tree", "Watched", "Written"]
