"""One life of sorter on a disk in memory: receive, take, publish, deliver, grow; and the life after a power cut."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from sorter.builtin import _path_stage
from sorter.builtin.path_target import PathTarget
from sorter.config import Config, load
from sorter.daemon import assembly
from sorter.daemon.assembly import Parts, assemble
from sorter.daemon.requests import answer_requests
from sorter.daemon.sort import mark_defaults
from sorter.deliver.target import (
    Checked,
    Copied,
    Copies,
    Fetched,
    LabLook,
    LabSeen,
    Later,
    Put,
    Refused,
    Removed,
    Result,
    Verified,
    Wanted,
)
from sorter.durable import Files
from sorter.engine.engine import Engine
from sorter.engine.work import Limits, Work
from sorter.errors import Away, Held, TryLater
from sorter.model import Receipt
from sorter.pipeline import outlets
from sorter.protocol.dimse import Command
from sorter.protocol.upper_layer import Context
from sorter.receive.arrivals import Arrivals
from sorter.receive.file_meta import Route, file_head
from sorter.receive.incoming import Intake
from sorter.receive.settings import ReceiveSettings
from sorter.spool import Spool
from tests.crash.memory import Memory

ROOT = "/site"
CONFIG = """
[labs.memory]
match = ["Modality=MR"]
products = ["dicom"]
"""


@functools.lru_cache(maxsize=256)
def data_set(
    number: int, *, series: int = 1, pixels: bytes = b"\1\2\3\4", subject: str = "P1", study: str = "1.2.3",
    description: str = "T1",
) -> bytes:  # fmt: skip
    """A small MR image as it is sent: without file meta information."""
    data = Dataset()
    data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = f"{study}.{series}.{number}"
    data.StudyInstanceUID = study
    data.SeriesInstanceUID = f"{study}.{series}"
    data.PatientID = subject
    data.PatientName = "One^Patient"
    data.StudyDate, data.StudyTime = "20260102", "101112"
    data.SeriesNumber, data.InstanceNumber = series, number
    data.SeriesDescription = description
    data.Modality = "MR"
    data.Rows, data.Columns, data.BitsAllocated = 1, 4, 16
    data.PixelData = pixels + b"END."
    data["PixelData"].VR = "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=False)
    whole = buffer.getvalue()
    return whole[whole.index(b"\x08\x00\x16\x00") :]


class Idle(Engine):
    """An engine that makes nothing, for ever: the labs here want no products."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(Path("/none"), Files(), Limits(), None)

    def _begin(self, _: Work) -> None:
        pass

    def cancel(self, _: str) -> None:
        pass

    def stop(self) -> None:
        pass


class Near:
    """A lane without a process: the delivery is made at once, by the real target, on the disk in memory."""

    def __init__(
        self, target: str, code: str, settings: Mapping[str, Any], open_input: Callable[[Put, Wanted], int],
        report: Callable[[Put, Result], None], **_: Any,
    ) -> None:  # fmt: skip
        self.disk: Memory = open_input.__self__._spool.files  # type: ignore[attr-defined]
        self.target = PathTarget({**settings, "threads": 1}, self.disk)
        self.open_input, self.report = open_input, report

    def submit(self, put: Put) -> None:
        self.report(put, self.put(put))

    def put(self, put: Put) -> Result:
        with contextlib.ExitStack() as opened:
            source = _Source(put, self, opened)
            try:
                return self.target.put(put, source)
            except TryLater as error:
                return Later(str(error), isinstance(error, Away))
            except Held as error:
                return Refused(str(error))

    def look_at_lab(
        self, job: LabLook, opened: Callable[[Wanted], int], tell: Callable[[LabSeen | Later], None]
    ) -> None:
        self._tell(tell, lambda source: self.target.look_at_lab(job, source), job.pages, opened)

    def copy_for_lab(
        self, job: Copies, opened: Callable[[Wanted], int], tell: Callable[[Copied | Later], None]
    ) -> None:
        self._tell(tell, lambda source: self.target.copy_for_lab(job, source), job.files, opened)

    def _tell(
        self, tell: Callable[[Any], None], work: Callable[[Pulled], object], files: Sequence[Wanted],
        opened: Callable[[Wanted], int],
    ) -> None:  # fmt: skip
        with contextlib.ExitStack() as closing:
            try:
                tell(work(Pulled(files, opened, self.disk, closing)))
            except TryLater as error:
                tell(Later(str(error), isinstance(error, Away)))

    def remove(self, receipt: Receipt, tell: Callable[[Removed | Later | Refused], None]) -> None:
        try:
            tell(self.target.remove(receipt))
        except TryLater as error:
            tell(Later(str(error)))

    def check(self, tell: Callable[[Checked | Later | Refused], None]) -> None:
        try:
            tell(self.target.check())
        except TryLater as error:
            tell(Later(str(error), isinstance(error, Away)))

    def waiting(self) -> int:
        return 0

    def verify(
        self, receipt: Receipt, tell: Callable[[Verified | Later | Refused], None], *, deep: bool = True,
        only: bool = False,
    ) -> None:  # fmt: skip
        try:
            tell(self.target.verify(receipt, deep=deep))
        except TryLater as error:
            tell(Later(str(error), isinstance(error, Away)))

    def fetch(
        self, receipt: Receipt, names: list[str], opens: Callable[[], list[int]],
        tell: Callable[[Fetched | Later | Refused], None],
    ) -> None:  # fmt: skip
        into = opens()
        try:
            answer: Fetched | Later = self.target.fetch(receipt, names, into)
        except TryLater as error:
            answer = Later(str(error), isinstance(error, Away))
        finally:
            for fd in into:
                self.disk.close(fd)
        tell(answer)

    def problem(self) -> str:
        return ""

    def worker_came(self) -> bool:
        return False

    def silence(self) -> float:
        return 0.0

    def take_back(self, _: tuple[str, str] | None = None) -> list[Put]:
        return []

    def withhold(self, _: str) -> tuple[list[Put], list[Receipt]]:
        return [], []

    def stop(self, timeout: float) -> None:
        pass


class Queueing(Near):
    """A lane that has other things to do at first."""

    waiting_puts: ClassVar[list[tuple[Near, Put]]] = []

    def submit(self, put: Put) -> None:
        Queueing.waiting_puts.append((self, put))

    def withhold(self, key: str) -> tuple[list[Put], list[Receipt]]:
        return self._let_go(lambda put: put.key == key), []

    def take_back(self, only: tuple[str, str] | None = None) -> list[Put]:
        return self._let_go(lambda put: only in (None, (put.key, put.product)))

    def _let_go(self, wanted: Callable[[Put], bool]) -> list[Put]:
        mine = [put for lane, put in Queueing.waiting_puts if lane is self and wanted(put)]
        Queueing.waiting_puts = [each for each in Queueing.waiting_puts if each[1] not in mine]
        return mine

    @staticmethod
    def go_on() -> None:
        while Queueing.waiting_puts:
            lane, put = Queueing.waiting_puts.pop(0)
            Near.submit(lane, put)


class Pulled:
    """Files by their places, opened when they are asked for."""

    def __init__(
        self, files: Sequence[Wanted], opened: Callable[[Wanted], int], disk: Memory, closing: contextlib.ExitStack
    ) -> None:
        self.files, self.opened, self.disk, self.closing = files, opened, disk, closing

    def will_need(self, indices: Sequence[int]) -> None:
        pass

    def __call__(self, index: int) -> int:
        fd = self.opened(self.files[index])
        self.closing.callback(self.disk.close, fd)
        return fd


class _Source:
    def __init__(self, put: Put, lane: Near, opened: contextlib.ExitStack) -> None:
        self.put, self.lane, self.opened = put, lane, opened

    def will_need(self, indexes: list[int]) -> None:
        pass

    def __call__(self, index: int) -> int:
        fd = self.lane.open_input(self.put, self.put.files[index])
        self.opened.callback(self.lane.disk.close, fd)
        return fd


class Association:
    """What the receiver does for one, in a worker of its own."""

    def __init__(self, spool: Spool, worker: str, route: Route) -> None:
        self._arrivals = Arrivals(spool.received, worker, spool.files, ReceiveSettings())
        self._arrivals.begin()
        self._name = self._arrivals.opened(route)
        self._intake = Intake(self._arrivals, self._name, route)

    def store(self, data: bytes) -> None:
        """A C-STORE; once this returns it is answered with success."""
        command = Command(1, 1, MRImageStorage, sop_uid(data), has_data_set=True)
        incoming = self._intake.receive(command, Context(1, MRImageStorage, ExplicitVRLittleEndian))
        incoming.add(memoryview(data))
        incoming.store()
        assert incoming.failure is None

    def end(self, how: str) -> None:
        self._arrivals.ended(self._name, how)
        self._arrivals.close()


@dataclass
class Life:
    """sorter on this disk, from its start. `now` is its clock, in seconds."""

    disk: Memory
    parts: Parts
    now: float = 1000.0
    turning: bool = False
    acknowledged: dict[bytes, None] = field(default_factory=dict)  # data sets answered with success, in order
    dropped: set[bytes] = field(default_factory=set)  # files that a person left in incoming/, and synced

    @property
    def spool(self) -> Spool:
        return self.parts.spool

    def turns(self, seconds: float, step: float = 5.0) -> None:
        end = self.now + seconds
        self.turning = True
        while self.now < end:
            with contextlib.suppress(OSError):  # as `sort` does: the next turn tries again
                answer_requests(self.spool, self.parts)
                self.parts.pipeline.turn(self.now)
            self.now += step
        self.turning = False

    def receive(self, *data_sets: bytes, worker: str = "w1") -> None:
        """As the receiver does it, for one association."""
        association = self.associate(worker)
        for data in data_sets:
            association.store(data)
            self.acknowledged[data] = None
        association.end("released")

    def associate(self, worker: str = "w1", calling: str = "SCANNER") -> Association:
        return Association(self.spool, worker, Route(calling, "SORTER", "127.0.0.1", 4711))

    def drop(self, folder: str, *contents: bytes) -> None:
        """As a person does it who waits for the disk."""
        place = f"{self.spool.incoming}/{folder}"
        self.disk.make_folders(place)
        for number, content in enumerate(contents):
            self.disk.write_file(f"{place}/{number}", content)
            self.dropped.add(content)


def as_file(data: bytes) -> bytes:
    """The data set behind the file meta information of another program."""
    head = file_head(MRImageStorage, sop_uid(data), ExplicitVRLittleEndian, b"")
    return head + data


def sop_uid(data: bytes) -> str:
    at = data.index(b"\x08\x00\x18\x00UI") + 8
    length = int.from_bytes(data[at - 2 : at], "little")
    return data[at : at + length].rstrip(b"\0").decode()


def settings_of(folder: Path, patch: pytest.MonkeyPatch, text: str = "") -> Config:
    """What is the same for all lives, read once; deliveries without a process, and no products.

    A delivery proves each file while it writes the next, as it does with 64 of them. Plugins are asked in this process:
    one of their own writes nothing to the disk that is cut, and each answer would be waited for.
    """
    path = folder / "sorter.toml"
    path.write_text(text or CONFIG)
    config = load(path, Path(ROOT))
    plugins = assembly.load_plugins(config, Memory(), apart=False)
    patch.setattr(assembly, "load_plugins", lambda *_, **__: plugins)
    patch.setattr(assembly, "LocalEngine", Idle)
    patch.setattr(outlets, "Lane", Near)
    patch.setattr(_path_stage, "_MOST_FILES", 1)
    return config


def begin(disk: Memory, settings: Config) -> Life:
    """Start sorter on this disk, as `sort` does."""
    spool = Spool(settings.spool, disk)
    spool.create()
    spool.clear_temporary()
    parts = assemble(settings, spool, lambda: None)
    mark_defaults(settings, disk)
    return Life(disk, parts)
