"""Which units hold a SOP instance: a cache, kept only where somebody asks (storage commitment).

`by-sop/<3 hex>` has a line for each image: the hash of its SOP Instance UID, and the key of its unit. A line too many
does no harm, because whoever finds one looks into the unit; a line too few would. So whatever is taken into the store
is entered in the same turn, whatever a crash may have left out is entered when the unit is looked at again, and after a
reboot, which can lose what was not synced, it is made anew from the names in the store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sorter.durable import Files
from sorter.spool.layout import Spool
from sorter.spool.unit import Unit, sop_hash

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_WHOLE = "whole"


class BySop:
    """The cache of one spool; for the one process that sorts."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self._files = spool, spool.files
        self._folder = spool.root / "by-sop"
        self._lines: list[tuple[str, str]] = []
        self._walk: Iterator[str] | None = None
        self.whole = False

    def begin(self) -> None:
        """At a start: go on with what is there, or begin to make it anew."""
        boot = _boot(self._files)
        try:
            self.whole = boot != b"" and self._files.read_file(self._folder / _WHOLE, limit=100) == boot
        except FileNotFoundError:
            self.whole = False
        if not self.whole:
            self._start_anew()

    def _start_anew(self) -> None:
        self.discard()
        self._files.make_folders(self._folder)
        self.whole, self._walk = False, self._spool.keys()

    def discard(self) -> None:
        """Remove it: nobody keeps it up to date from here on."""
        if self._files.exists(self._folder):
            self._files.remove_tree(self._folder)

    # --- writing ------------------------------------------------------------------------------------------------

    def note(self, sop_uid: str, key: str) -> None:
        """This unit holds this instance; entered with the next `flush`."""
        self._lines.append((sop_hash(sop_uid), key))

    def note_all(self, key: str, sop_uids: Collection[str]) -> None:
        """This unit holds all these; those that are entered already are not entered again."""
        known = self.find(sop_uids)
        for uid in sop_uids:
            if key not in known.get(uid, ()):
                self.note(uid, key)

    def flush(self) -> None:
        """Enter what was noted. On OSError (a full disk) it is made anew from the start, when that is possible."""
        lines, self._lines = self._lines, []
        try:
            self._enter(lines)
        except OSError:
            self.whole = False
            self._walk = None
            raise

    def _enter(self, lines: Sequence[tuple[str, str]]) -> None:
        shards: dict[str, list[str]] = defaultdict(list)
        for name, key in lines:
            shards[name[:3]].append(f"{name} {key}\n")
        for shard, found in shards.items():
            self._files.append(self._folder / shard, "".join(found).encode(), durable=False)

    def go_on(self, units: int) -> bool:
        """Make more of it, from so many units; False when there is nothing more to be done."""
        if self.whole:
            return False
        if self._walk is None:
            self._start_anew()
        assert self._walk is not None
        for _ in range(units):
            key = next(self._walk, None)
            if key is None:
                self._files.write_file(self._folder / _WHOLE, _boot(self._files))
                self.whole, self._walk = True, None
                return False
            self._enter([(name, key) for name in self._image_names(key)])
        return True

    def _image_names(self, key: str) -> Iterable[str]:
        unit = Unit(self._spool, key)
        yield from (file.rpartition("/")[2][:32] for file in unit.buried())
        images = unit.images
        if not self._files.exists(images):
            return
        for shard in self._files.names(images):
            yield from (name[:32] for name in self._files.names(images / shard))

    # --- reading ------------------------------------------------------------------------------------------------

    def find(self, sop_uids: Iterable[str]) -> Mapping[str, set[str]]:
        """By SOP Instance UID the units that may hold it; look into them. One that no unit holds is left out."""
        wanted = {sop_hash(uid): uid for uid in sop_uids}
        shards: dict[str, set[str]] = defaultdict(set)
        for name in wanted:
            shards[name[:3]].add(name)
        found: dict[str, set[str]] = defaultdict(set)
        for shard, names in shards.items():
            for name, key in self._read(shard):
                if name in names:
                    found[wanted[name]].add(key)
        return found

    def _read(self, shard: str) -> Iterator[tuple[str, str]]:
        try:
            data = self._files.read_file(self._folder / shard).decode("ascii", "replace")
        except FileNotFoundError:
            return
        for each in data.splitlines():
            name, _, key = each.partition(" ")
            if len(name) == len(key) == 32:
                yield name, key


def _boot(files: Files) -> bytes:
    try:
        return files.read_file(_BOOT, limit=100)
    except OSError:
        return b""  # unknown: then only ever made anew
