"""What every kind of target has to do, as tests: for those that sorter brings, and for those of plugins.

Subclass `TargetSuite` in a test module, and give it a fixture `place`:

    class TestMyTarget(TargetSuite):
        @pytest.fixture
        def place(self, tmp_path):
            with my_server(tmp_path) as server:
                yield server                # a `Place`

The suite delivers real MR images through the target itself, and through a worker process as sorter does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from sorter.deliver.lane import Lane
from sorter.deliver.target import Checked, Done, Fetched, Giving, Put, Result, Target, Verified, Wanted
from sorter.deliver.worker import load
from sorter.durable import Files
from sorter.errors import Held, SorterError, TryLater
from sorter.model import DICOM, Receipt
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

KEY = "5afe" * 8
NAMED = "Doe_Jane"
"""A part of the names of what is delivered, which no sentence may say."""

IMAGES = localizer(Plan(seed=6, size=8)).files + localizer(Plan(seed=7, size=8)).files
LATE = localizer(Plan(seed=8, size=8)).files
SOON = 60.0  # seconds for a worker to answer


class Place(Protocol):
    """A real place to deliver to, empty at first."""

    code: str  # "module:Class" of the target
    settings: Mapping[str, Any]
    comparable: bool  # can what lies there be compared with a receipt? Else `verify` is Held, and says why

    def count(self, image: bytes) -> int:
        """How often this image lies there."""
        ...

    def lose(self, image: bytes) -> bool:
        """Remove it there, as a person would. False where the place gives nobody a way to."""
        ...

    def go_away(self) -> None: ...

    def come_back(self) -> None: ...


class Store:
    """The images of one put, as read-only descriptors; `asked` says which were wanted. It is a `Source`."""

    def __init__(self, folder: Path, images: Sequence[bytes]) -> None:
        self.images, self.asked = images, list[int]()
        self._folder, self._given = folder, -1

    def will_need(self, indices: Sequence[int]) -> None:
        assert all(0 <= index < len(self.images) for index in indices)

    def __call__(self, index: int) -> int:
        self.close()
        self.asked.append(index)
        path = self._folder / f"{hashlib.sha256(self.images[index]).hexdigest()}.dcm"
        path.write_bytes(self.images[index])
        self._given = os.open(path, os.O_RDONLY)
        return self._given

    def close(self) -> None:
        if self._given >= 0:
            os.close(self._given)
        self._given = -1


@contextlib.contextmanager
def given_back(count: int) -> Iterator[tuple[list[int], Callable[[], list[bytes]]]]:
    """Empty files for a target to write into, and what is in them."""
    files = [os.memfd_create("back") for _ in range(count)]
    try:
        yield files, lambda: [os.pread(fd, 1 << 24, 0) for fd in files]
    finally:
        for fd in files:
            os.close(fd)


def wanted(images: Sequence[bytes]) -> tuple[Wanted, ...]:
    return tuple(
        Wanted(f"{NAMED}-{number:06d}.dcm", hashlib.sha256(image).hexdigest(), len(image), f"00/{number}.dcm")
        for number, image in enumerate(images)
    )


def job(images: Sequence[bytes], revision: int = 1, previous: Receipt | None = None) -> Put:
    """A put of these images, as sorter would make it."""
    manifest = {"key": KEY, "kind": "series", "study_uid": "1.2", "series_uids": ["1.2.3"], "revision": revision}
    folder = f"{NAMED}/20260102_0900/004_T1"
    return Put(f"{KEY}-{revision}", KEY, DICOM, revision, folder, wanted(images), previous, manifest)


def receipt(done: Done, revision: int = 1) -> Receipt:
    """What sorter keeps of a put that was done."""
    return Receipt(KEY, DICOM, "tested", revision, done.folder, done.files, "2026-01-02T09:30:00+00:00", done.note)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


class TargetSuite:
    """The tests. Each gets a `place` of its own."""

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError("give the suite a fixture `place`")

    @pytest.fixture
    def target(self, place: Place) -> Target:
        made = load(place.code, place.settings, Files())
        made.check(prepare=True)
        return made

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        folder = tmp_path / "store-of-the-suite"
        folder.mkdir()
        store = Store(folder, IMAGES)
        yield store
        store.close()

    def test_settings_are_plain_and_wrong_ones_are_refused_with_a_sentence(self, place: Place) -> None:
        assert all(isinstance(value, str | int | float | bool | list | dict) for value in place.settings.values())
        with pytest.raises(Held) as said:
            load(place.code, {}, Files())
        assert len(str(said.value)) > 20

    def test_check_says_whether_a_delivery_could_be_made(self, place: Place, target: Target) -> None:
        assert isinstance(target.check(), Checked)
        place.go_away()
        with pytest.raises(TryLater):
            target.check()
        place.come_back()
        assert isinstance(target.check(), Checked)

    def test_what_is_done_is_there_once_and_named(self, place: Place, target: Target, store: Store) -> None:
        put = job(IMAGES)
        done = target.put(put, store)
        assert [(each.file, each.sha256, each.size) for each in done.files] == [
            (each.file, each.sha256, each.size) for each in put.files
        ]
        assert len({each.name for each in done.files}) == len(IMAGES)
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_the_same_job_again_doubles_nothing(self, place: Place, target: Target, store: Store) -> None:
        first = target.put(job(IMAGES), store)
        assert target.put(job(IMAGES), store).files == first.files
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_a_later_revision_brings_what_is_new_alone(self, place: Place, target: Target, store: Store) -> None:
        before = receipt(target.put(job(IMAGES), store))
        store.images, store.asked = (*IMAGES, *LATE), []
        done = target.put(job(store.images, 2, before), store)
        assert [each.file for each in done.files] == [each.file for each in wanted(store.images)]
        assert sorted(store.asked) == list(range(len(IMAGES), len(store.images)))
        assert [place.count(image) for image in store.images] == [1] * len(store.images)

    def test_a_revision_without_files_is_done(self, target: Target, store: Store) -> None:
        assert target.put(job(()), store).files == ()

    def test_a_file_that_is_not_what_it_should_be_gets_no_receipt(
        self, place: Place, target: Target, store: Store
    ) -> None:
        put = job(IMAGES)
        spoilt = IMAGES[1][:-1] + bytes([IMAGES[1][-1] ^ 1])
        store.images = (IMAGES[0], spoilt, *IMAGES[2:])
        with pytest.raises(Held):
            target.put(put, store)
        store.images = IMAGES
        target.put(put, store)
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_a_place_that_is_away_means_later_and_names_nothing(
        self, place: Place, target: Target, store: Store
    ) -> None:
        place.go_away()
        with pytest.raises(TryLater) as said:
            target.put(job(IMAGES), store)
        assert NAMED not in str(said.value)
        assert "\n" not in str(said.value)
        place.come_back()
        target.put(job(IMAGES), store)
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_a_place_that_goes_in_the_middle(self, place: Place, target: Target, store: Store) -> None:
        class Going(Store):
            def __call__(self, index: int) -> int:
                if len(self.asked) == 2:
                    place.go_away()
                return super().__call__(index)

        with contextlib.suppress(SorterError):  # a target may have all it needs by then
            target.put(job(IMAGES), Going(store._folder, IMAGES))
        place.come_back()
        again = load(place.code, place.settings, Files())
        assert len(again.put(job(IMAGES), store).files) == len(IMAGES)
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_a_store_that_cannot_be_read_is_passed_on(self, place: Place, target: Target, store: Store) -> None:
        class Failing(Store):
            def __call__(self, index: int) -> int:
                if index == 1:
                    raise TryLater("the store cannot be read")
                return super().__call__(index)

        failing = Failing(store._folder, IMAGES)
        with pytest.raises(TryLater, match="the store cannot be read"):
            target.put(job(IMAGES), failing)
        failing.close()
        target.put(job(IMAGES), store)
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_verify_compares(self, place: Place, target: Target, store: Store) -> None:
        held = receipt(target.put(job(IMAGES), store))
        names = tuple(each.name for each in held.files)
        if not place.comparable:
            with pytest.raises(Held):
                target.verify(held)
            return
        found = target.verify(held)
        assert (found.same, found.whole) == (names, True)
        if not place.lose(IMAGES[1]):
            return
        found = target.verify(held)
        assert (found.missing, found.same, found.whole) == (names[1:2], names[:1] + names[2:], False)
        place.go_away()
        with pytest.raises(TryLater):
            target.verify(held)
        place.come_back()

    def test_what_it_gives_back_is_what_was_delivered_or_nothing(
        self, place: Place, target: Target, store: Store
    ) -> None:
        """Only for kinds that can: of the others retention trusts in no copy."""
        if not isinstance(target, Giving):
            return
        held = receipt(target.put(job(IMAGES), store))
        lost = place.lose(IMAGES[1])
        other = replace(held.files[0], sha256="0" * 64)
        names = [each.name for each in held.files]
        with given_back(len(names)) as (into, read):
            found = target.fetch(held, names, into)
            assert found.bad == tuple(names[1:2] if lost else ())
            assert [content for name, content in zip(names, read(), strict=True) if name in found.good] == [
                image for image, name in zip(IMAGES, names, strict=True) if name in found.good
            ]
            assert target.fetch(replace(held, files=(other,)), names[:1], into[:1]).good == ()
            assert target.fetch(held, ["../x", "never.dcm"], into[:2]).good == ()

    def test_what_has_left_the_store_is_not_asked_for(self, place: Place, target: Target, store: Store) -> None:
        first = target.put(job(IMAGES), store)
        store.asked.clear()
        grown = job((*IMAGES, *LATE), revision=2, previous=receipt(first))
        gone = tuple(replace(each, gone=each.file in {file.file for file in first.files}) for each in grown.files)
        done = target.put(replace(grown, files=gone), Store(store._folder, (*IMAGES, *LATE)))
        assert [place.count(image) for image in (*IMAGES, *LATE)] == [1] * (len(IMAGES) + len(LATE))
        assert {each.state for each in done.files} == {"written"}
        anew = replace(grown, files=gone, previous=None, folder=f"{grown.folder} moved", key="feed" * 8)
        late = Store(store._folder, (*IMAGES, *LATE))
        done = target.put(anew, late)
        assert late.asked == list(range(len(IMAGES), len(IMAGES) + len(LATE)))
        assert [each.state for each in done.files] == ["removed"] * len(IMAGES) + ["written"] * len(LATE)

    def test_what_has_left_the_store_keeps_its_name(self, place: Place, target: Target, store: Store) -> None:
        first = target.put(job(IMAGES), store)
        named = job(IMAGES, revision=2, previous=receipt(first))
        gone = tuple(replace(each, name=f"other-{each.name}", gone=True) for each in named.files)
        done = target.put(replace(named, files=gone), store)
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)
        assert {each.state for each in done.files} == {"written"}

    def test_the_only_copy_is_neither_replaced_nor_removed(self, place: Place, target: Target, store: Store) -> None:
        """Only for kinds that give back: what left the store because of others lies there."""
        if not isinstance(target, Giving):
            return
        held = receipt(target.put(job(IMAGES), store))
        newer = (LATE[0], *IMAGES[1:])
        corrected = (replace(job(newer).files[0], file="00/newer.dcm"), *job(newer).files[1:])
        for first in (0, 1):  # another image is to have its name, or none
            grown = job(newer, revision=2, previous=held)
            grown = replace(grown, files=corrected[first:], alone=(held.files[0].name,))
            with pytest.raises(TryLater):
                target.put(grown, Store(store._folder, newer[first:]))
            assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_remove_takes_what_equals_its_receipt_or_says_that_it_left_it(
        self, place: Place, target: Target, store: Store
    ) -> None:
        held = receipt(target.put(job(IMAGES), store))
        removed = target.remove(held)
        for each, image in zip(held.files, IMAGES, strict=True):
            assert place.count(image) == (0 if each.name in removed.removed else 1)
        assert bool(removed.left) == any(place.count(image) for image in IMAGES)
        assert not removed.left or removed.note
        target.remove(held)

    def test_another_digest_is_never_removed(self, place: Place, target: Target, store: Store) -> None:
        held = receipt(target.put(job(IMAGES), store))
        other = replace(held, files=tuple(replace(each, sha256="0" * 64) for each in held.files))
        assert target.remove(other).removed == ()
        assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)

    def test_no_descriptor_is_left_open(self, target: Target, store: Store) -> None:
        before = descriptors()
        held = receipt(target.put(job(IMAGES), store))
        store.close()
        target.remove(held)
        target.check()
        wait_until(lambda: len(descriptors()) == len(before), SOON)  # a connection ends in a thread of its own

    @pytest.mark.usefixtures("target")
    def test_through_a_worker_as_sorter_does(self, place: Place, store: Store) -> None:
        answers: queue.Queue[Result] = queue.Queue()
        checks: queue.Queue[Any] = queue.Queue()

        def opened(put: Put, file: Wanted) -> int:
            return os.dup(store(put.files.index(file)))

        lane = Lane("tested", place.code, place.settings, opened, lambda _, result: answers.put(result))
        try:
            lane.check(checks.put)
            assert isinstance(checks.get(timeout=SOON), Checked)
            lane.submit(job(IMAGES))
            done = answers.get(timeout=SOON)
            assert isinstance(done, Done)
            assert [place.count(image) for image in IMAGES] == [1] * len(IMAGES)
            lane.verify(receipt(done), checks.put)
            found = checks.get(timeout=SOON)
            assert isinstance(found, Verified) if place.comparable else found.never
            with given_back(1) as (into, read):
                held = receipt(done)
                lane.fetch(held, [held.files[0].name], lambda: [os.dup(fd) for fd in into], checks.put)
                fetched = checks.get(timeout=SOON)
                assert isinstance(fetched, Fetched)
                assert read() == [IMAGES[0] if fetched.good else b""]
        finally:
            lane.stop(SOON)
