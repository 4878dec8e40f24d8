"""What people had copied to a target by `rename`: sent there beside all that is delivered, and taken back with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sorter.accounts import name_of
from sorter.deliver.target import Done, Put, Result, Wanted
from sorter.model import DICOM, Delivered, Receipt
from sorter.pipeline.outlets import Errand, Outlets
from sorter.pipeline.units import Live
from sorter.spool import Spool
from sorter.spool.exports import Export, ExportRecords
from sorter.spool.layout import now as wall_clock
from sorter.words import counted


@dataclass(slots=True)
class Exporting:
    """Owes each export until its target says that it is there, over restarts.

    `wait_for` has images brought back that left the store, for a (product, target): are they on their way?
    """

    spool: Spool
    outlets: Outlets
    wait_for: Callable[[Live, tuple[str, str], Sequence[str]], bool]
    may_leave: Callable[[Live, str], bool]
    _records: ExportRecords = field(init=False)
    _owed: dict[Errand, Export] = field(init=False)
    _resting: set[Errand] = field(default_factory=set)  # of units that are held, and of targets that there are not
    _said: dict[Errand, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._records = ExportRecords(self.spool)
        self._owed = {_errand(each): each for each in self._records.owed()}

    def begin(self, export: Export) -> None:
        """Somebody wants it. What is asked for once more is looked at once more: what is gone there comes again."""
        self._records.add(export)
        self._owed[_errand(export)] = export
        self.look_again()

    def look_again(self) -> None:
        """Something was released, or the targets are others."""
        self._resting.clear()

    def due(self) -> list[str]:
        """Units with something that is owed, and neither on its way nor waiting for another attempt."""
        return [each[0] for each in self._owed if each not in self._resting and not self.outlets.busy(each, 0)]

    def send(self, live: Live) -> None:
        """Send what is due of this unit."""
        for errand, export in [each for each in self._owed.items() if each[0][0] == live.key]:
            if live.unit.held or live.unit.withdrawn or export.target not in self.outlets:
                self._resting.add(errand)
                if not live.unit.held and not live.unit.withdrawn:
                    self._tell(live, errand, f"there is no target {export.target} in the configuration now")
            elif not all(self.may_leave(live, each) for each in _products(export)):
                self._resting.add(errand)
                self._tell(live, errand, "this lab gets certain products and nothing else, [labs.NAME] only")
            elif not self.outlets.busy(errand, 0) and not self.wait_for(live, errand[1:], _gone(live, export)):
                waits = self.outlets.submit(export.target, _put(live, export))
                if waits:
                    self._tell(live, errand, waits)

    def answered(self, live: Live, target: str, put: Put, result: Result) -> None:
        """What the target says of one of them."""
        errand = (put.key, put.product, target)
        if not isinstance(result, Done):
            self._tell(live, errand, result.why)
            return
        receipt = Receipt(live.key, put.product, target, put.revision, result.folder, result.files, wall_clock(),
                          result.note)  # fmt: skip
        live.unit.write_exported(receipt)
        live.troubles.pop(errand[1:], None)
        if errand in self._owed:
            export = self._owed[errand]
            there = sum(each.state != "removed" for each in result.files)
            says = f"{counted(there, 'files were')} copied to {target}, in {result.folder}"
            if there < len(result.files):
                lost = len(result.files) - there
                says += f" ({lost} have left the store, and do not lie any more where they were delivered)"
            live.unit.tell(f"{says}, as {export.who or name_of(export.by)} had asked")
            self._forget(errand)

    def withdrawn(self, live: Live) -> None:
        """The unit is withdrawn: what may be at a target, though no receipt came of it, is to be taken back as well."""
        if self.outlets.under_way(live.key):
            return  # and asked again when that ended
        for errand, export in [each for each in self._owed.items() if each[0][0] == live.key]:
            files = tuple(Delivered(each.name, each.sha256, each.size, each.file) for each in export.files)
            said = "withdrawn before it had a receipt"
            revision = _revision(live)  # that it was sent with, or a later one: else it would be of a newer delivery
            live.unit.write_exported(
                Receipt(live.key, errand[1], export.target, revision, export.folder, files, "", said)
            )
            self._forget(errand)

    def _forget(self, errand: Errand) -> None:
        self._records.remove(self._owed.pop(errand))
        self._said.pop(errand, None)

    def _tell(self, live: Live, errand: Errand, why: str) -> None:
        """Once a reason."""
        if self._said.get(errand) != why:
            self._said[errand] = why
            by = f" that {name_of(self._owed[errand].by)} asked for" if errand in self._owed else ""
            live.unit.tell(f"copies{by} are not at {errand[2]} yet: {why}")


def _errand(export: Export) -> Errand:
    return (export.key, export.product, export.target)


def _revision(live: Live) -> int:
    return live.revision.revision if live.revision is not None else 0


def _products(export: Export) -> set[str]:
    """What its files are of: images, or products in their folders of the store, as "products/nifti-1/out.nii.gz"."""
    parts = [each.file.split("/") for each in export.files]
    return {each[1].rpartition("-")[0] if each[0] == "products" else DICOM for each in parts}


def _gone(live: Live, export: Export) -> list[str]:
    """Images of it that have left the store."""
    files = (each.file.removeprefix("images/") for each in export.files)
    return [file for file in files if file in live.unit.left]


def _put(live: Live, export: Export) -> Put:
    revision = _revision(live)
    manifest = {
        "key": live.key,
        "kind": live.unit.kind.value,
        "study_uid": live.unit.study_uid,
        "series_uids": list(live.unit.series_uids),
        "revision": revision,
    }
    gone = {f"images/{file}" for file in _gone(live, export)}
    files = tuple(Wanted(each.name, each.sha256, each.size, each.file, gone=each.file in gone) for each in export.files)
    return Put(f"{live.key}-{export.product}", live.key, export.product, revision, export.folder, files, None, manifest)
