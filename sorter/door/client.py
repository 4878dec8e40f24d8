"""The door from outside: the series that this account may see, as if it could read the store."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import sorter.door.requests as ask
from sorter.door.wire import LONGEST_ANSWER, MOST_FILES, Broken, Connection
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.exports import Copy, Found
from sorter.exports.finding import Made
from sorter.exports.source import Told, not_read, open_copy, parcels
from sorter.labs.moving import Tried
from sorter.model import Header, UnitKind, build, plain
from sorter.spool import UnitSummary
from sorter.spool.unit import instance_from, product_from

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds in which a sorter that is busy, or just starting, is asked again."""

_WITHIN = 330.0  # seconds for one answer


class Door:
    """`sorter.exports.source.Source`, by way of the socket of the sorter that runs."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path, self._files = path, files
        self.patience = PATIENCE
        self.unread: dict[str, str] = {}

    def asked(self, request: Any, descriptors: int = 0) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """The lines of the answer, with the descriptors that came with each: the caller's to close.

        A request may be asked twice, when nobody answers at first. SorterError: what the door says instead, or nobody
        answers.
        """
        message = {"ask": type(request).__name__.casefold(), **plain(request)}
        until, pause = time.monotonic() + self.patience, threading.Event()
        while True:
            connection = None
            try:
                connection = Connection(self._connect(), _WITHIN)
                with contextlib.suppress(Broken):  # whoever is sent away at once is told so, and reads it
                    connection.send(message)
                first = connection.receive(LONGEST_ANSWER, descriptors)
                if "busy" not in first:
                    yield from self._lines(connection, first, descriptors)
                    return
                why = "too many ask there"
            except (ConnectionRefusedError, BlockingIOError, Broken) as error:
                why = str(error)
            except OSError as error:
                raise SorterError(_nobody(self.path, error.strerror or str(error))) from None
            finally:
                if connection is not None:
                    connection.close()
            if time.monotonic() > until:
                raise SorterError(_nobody(self.path, why))
            pause.wait(random.uniform(0.05, 0.3))  # noqa: S311  so that not all come again at once

    def _lines(
        self, connection: Connection, line: dict[str, Any], descriptors: int
    ) -> Iterator[tuple[dict[str, Any], list[int]]]:
        try:
            while "end" not in line:
                if "no" in line:
                    raise SorterError(str(line["no"]))
                came, connection.descriptors = connection.descriptors, []
                yield line, came
                line = connection.receive(LONGEST_ANSWER, descriptors)
        except Broken as error:
            raise SorterError(
                f"the sorter at {self.path} ended in the middle of its answer ({error}); ask again"
            ) from None

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        try:
            with self._files.opened(self.path.parent, os.O_PATH | os.O_DIRECTORY) as folder:
                sock.connect(f"/proc/self/fd/{folder}/{self.path.name}")  # its own path may be too long for a socket
        except BaseException:
            sock.close()
            raise
        return sock

    def _items(self, request: Any, name: str, kind: type[T]) -> Iterator[T]:
        for line, _ in self.asked(request):
            if name in line:
                try:
                    yield build(kind, line[name])
                except ValueError:
                    says = (
                        f"the sorter at {self.path} answers what this one does not understand; are both of one version?"
                    )
                    raise SorterError(says) from None

    # --- a source -----------------------------------------------------------------------------------------------------

    def units(self, called: str = "") -> Iterator[UnitSummary]:
        return self._items(ask.Units(called), "unit", UnitSummary)

    def tell(self, unit: UnitSummary) -> Told:
        return next(self._items(ask.Why(unit.key), "told", Told), Told())

    def status(self) -> Mapping[str, Any]:
        """See `sorter.door.answers.status`."""
        return next((line for line, _ in self.asked(ask.Status())), {})

    def candidates(self, units: Sequence[UnitSummary]) -> Iterator[Found]:
        keys, series = iter([each.key for each in units]), {each.key for each in units if each.kind is UnitKind.SERIES}
        while batch := tuple(itertools.islice(keys, ask.MOST_KEYS)):
            left = series.intersection(batch)
            for head in self._items(ask.Heads(batch), "head", ask.Head):
                left.discard(head.key)
                yield Found(
                    head.key, head.identity, head.study_uid, head.series_uids, head.face, head.verdict,
                    folder=Path(head.key), images=(), only=head.only,
                )  # fmt: skip
            self.unread |= {key: not_read(key, "ask the admin of sorter") for key in left}

    def complete(self, found: Sequence[Found]) -> list[Found]:
        return [self._with_images(each) for each in found]

    def _with_images(self, found: Found) -> Found:
        base: Header = {}
        images, elsewhere = [], {}
        for line, _ in self.asked(ask.Images(found.key)):
            if "base" in line:
                base = {name: tuple(each) if isinstance(each, list) else each for name, each in line["base"].items()}
            elif "image" in line:
                image = instance_from(line["image"])
                header = {name: value for name, value in {**base, **image.header}.items() if value != ""}
                images.append(replace(image, header=header))
                if "at" in line:
                    elsewhere[image.file] = Path(str(line["at"]))
        return replace(found, images=tuple(images), elsewhere=elsewhere)

    def made(self, found: Found, product: str) -> Made | None:
        there = next((line["made"] for line, _ in self.asked(ask.Made(found.key, product))), None)
        return None if there is None else Made(Path(found.key, _PRODUCTS, product), product_from(there))

    @contextlib.contextmanager
    def opened(self, copies: Sequence[Copy]) -> Iterator[Mapping[str, int | str]]:
        """A copy's `source` is the key of its series, and the file there: see `_place`. What has left the store is
        read where it was delivered, by whoever asks."""
        found: dict[str, int | str] = {}
        try:
            here = [copy for copy in copies if copy.delivered is None]
            found.update({copy.name: open_copy(self._files, copy) for copy in copies if copy.delivered is not None})
            for (key, product), group in itertools.groupby(here, key=lambda copy: _place(copy)[:2]):
                rest = iter(group)
                while batch := list(itertools.islice(rest, MOST_FILES)):
                    self._fetch(key, product, batch, found)
            yield found
        finally:
            for each in {fd for fd in found.values() if isinstance(fd, int)}:
                self._files.close(each)

    def _fetch(self, key: str, product: str, copies: Sequence[Copy], found: dict[str, int | str]) -> None:
        names: dict[str, list[str]] = {}
        for copy in copies:
            names.setdefault(_place(copy)[2], []).append(copy.name)
        try:
            for line, descriptors in self.asked(ask.Hand(key, tuple(names), product), MOST_FILES):
                for file, descriptor in zip(line["files"], descriptors, strict=True):
                    found.update(dict.fromkeys(names[file], descriptor))
                for file, why in line["cannot"].items():
                    found.update(dict.fromkeys(names[file], str(why)))
        except SorterError as error:
            found.update({copy.name: str(error) for copy in copies if copy.name not in found})

    def remember(self, copies: Sequence[Copy], dest: str) -> None:
        for key, group in itertools.groupby(copies, key=lambda copy: copy.source.parts[0]):
            for _ in self.asked(ask.Note(key, dest, {copy.name: copy.sha256 for copy in group})):
                pass

    def send(self, copies: Sequence[Copy], target: str, folder: str) -> None:
        for place, batch in parcels(copies, folder, lambda copy: "/".join(_place(copy)[:2])):
            key, product, _ = _place(batch[0])
            files = {_place(copy)[2]: os.path.basename(copy.name) for copy in batch}
            for _ in self.asked(ask.Send(key, target, place, files, product)):
                pass

    def claim(self, what: str, lab: str) -> None:
        """See `sorter.door.requests.Claim`."""
        for _ in self.asked(ask.Claim(what, lab)):
            pass

    def labs(self) -> tuple[str, ...]:
        """Those that this account is of."""
        return tuple(str(each) for line, _ in self.asked(ask.Status()) for each in line["labs"])

    def rules(self, lab: str, since: str, keys: Sequence[str] = ()) -> Tried:
        """See `sorter.door.requests.Rules`."""
        [(line, _)] = self.asked(ask.Rules(lab, since, tuple(keys)))
        return build(Tried, line)


_PRODUCTS = "products"


def _place(copy: Copy) -> tuple[str, str, str]:
    """(key of the series, product or "" for its images, file) of a copy by way of the door."""
    key, *rest = copy.source.parts
    if rest[0] == _PRODUCTS:
        return key, rest[1], "/".join(rest[2:])
    return key, "", "/".join(rest)


def _nobody(path: Path, why: str) -> str:
    return f"nobody answers at {path} ({why}); is sorter running? Its admin knows"
