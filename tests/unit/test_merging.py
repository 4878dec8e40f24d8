"""Files that the parts of a dataset have in common: joined to what is there, in no receipt, and the lab's."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sorter.builtin._path_merging import joined
from sorter.builtin.path_target import PathTarget, mark
from sorter.builtin.rclone_target import RcloneTarget
from sorter.deliver.lane import _whole
from sorter.deliver.target import Done, Put, Wanted
from sorter.durable import Files
from sorter.errors import Held
from sorter.model import Delivered, Delivery, Product, Receipt
from sorter.pipeline.workshop import Made
from sorter.plugins.answers import check
from sorter.wire import WireError
from tests.unit.test_path_target import KEY, OTHER, Bytes

TABLE = b"participant_id\tage\nsub-1\t30\n"
MERGE = {"participants.tsv": "rows", "README": "once", ".bidsignore": "lines"}


# --- pure -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "there", "mine", "becomes"),
    [
        ("once", b"ours", b"theirs", b"ours"),
        ("once", b"", b"theirs", b""),  # an emptied file stays empty
        ("lines", b"a\nb", b"b\nc\n", b"a\nb\nc\n"),
        ("lines", b"# why\r\na\r\n", b"a\nc\n", b"# why\r\na\r\nc\r\n"),
        ("rows", TABLE, TABLE, TABLE),
        ("rows", TABLE, b"participant_id\tage\nsub-1\t99\nsub-2\t40\n", TABLE + b"sub-2\t40\n"),
        ("rows", b"sex\tparticipant_id\nF\tsub-1", b"participant_id\tsex\tage\nsub-2\tM\t4\n",
         b"sex\tparticipant_id\nF\tsub-1\nM\tsub-2\n"),
        ("rows", b"\xef\xbb\xbfparticipant_id\thand\r\nsub-1\tleft\r\n", b"participant_id\tage\nsub-2\t4\n",
         b"\xef\xbb\xbfparticipant_id\thand\r\nsub-1\tleft\r\nsub-2\tn/a\r\n"),
        ("rows", TABLE + b"short\n\n", b"participant_id\tage\nsub-2\t40\n", TABLE + b"short\n\nsub-2\t40\n"),
    ],
)  # fmt: skip
def test_what_is_there_stays_and_gets_what_it_lacks(how: str, there: bytes, mine: bytes, becomes: bytes) -> None:
    assert joined(how, there, mine) == becomes
    assert joined(how, becomes, mine) == becomes


@pytest.mark.parametrize("there", [b"", b"name,age\n", b"\xff\xfe\0"])
def test_a_table_that_is_none_is_not_added_to(there: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it (has no|is not UTF-8)"):
        joined("rows", there, TABLE)


# --- at a target ------------------------------------------------------------------------------------------------------


class Dataset:
    def __init__(self, base: Path) -> None:
        self.root, self.store = base / "root", base / "store"
        self.root.mkdir()
        self.store.mkdir()
        mark(self.root, Files())

    def put(self, contents: dict[str, bytes], **changes: Any) -> Done:
        wanted = tuple(
            Wanted(name, hashlib.sha256(content).hexdigest(), len(content), name, merge=MERGE.get(name, ""))
            for name, content in contents.items()
        )
        job = Put("1", KEY, "bids", 1, "bids", wanted, manifest={"kind": "study"}, exact=True)
        source = Bytes(self.store, list(contents.values()))
        try:
            return PathTarget({"root": str(self.root), "threads": 1}).put(replace(job, **changes), source)
        finally:
            source.close()

    def tree(self) -> dict[str, bytes]:
        return {path.relative_to(self.root / "bids").as_posix(): path.read_bytes()
                for path in (self.root / "bids").rglob("*")
                if path.is_file() and not path.name.startswith(".sorter") and ".sorter" not in path.parts}  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def of(who: str) -> dict[str, bytes]:
    table = f"participant_id\tage\nsub-{who}\t30\n".encode()
    return {"README": b"sorter's\n", f"sub-{who}/anat/sub-{who}_T1w.nii.gz": who.encode(), "participants.tsv": table}


def receipt(done: Done, revision: int = 1) -> Receipt:
    return Receipt(KEY, "bids", "memory", revision, done.folder, done.files, "2026-01-01T00:00:00+00:00")


def test_two_units_make_one_dataset(dataset: Dataset) -> None:
    first = dataset.put(of("1"))
    second = dataset.put(of("2"), key=OTHER)
    assert [each.name for each in (*first.files, *second.files)] == [
        "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz"
    ]  # fmt: skip
    whole = {**of("1"), **of("2"), "participants.tsv": TABLE + b"sub-2\t30\n"}
    assert dataset.tree() == whole
    assert dataset.put(of("1"), revision=2, previous=receipt(first)).note == ""
    assert dataset.tree() == whole


def test_what_the_lab_made_of_them_stays_and_so_does_its_mode(dataset: Dataset) -> None:
    first = dataset.put(of("1"))
    (dataset.root / "bids/README").write_bytes(b"ours\n")
    (dataset.root / "bids/participants.tsv").write_bytes(b"participant_id\nsub-9\nsub-1\n")
    (dataset.root / "bids/participants.tsv").chmod(0o664)
    dataset.put(of("1"), revision=2, previous=receipt(first))
    dataset.put(of("2"), key=OTHER)
    assert (dataset.tree()["README"], dataset.tree()["participants.tsv"]) == (
        b"ours\n", b"participant_id\nsub-9\nsub-1\nsub-2\n"
    )  # fmt: skip
    assert (dataset.root / "bids/participants.tsv").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("kind", ["link", "folder", "nonsense"])
def test_what_cannot_be_joined_is_left_and_said(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    place = dataset.root / "bids/participants.tsv"
    place.parent.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"participant_id\n")
    if kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        place.mkdir()
    else:
        place.write_bytes(b"\xff\xfe")
    done = dataset.put(of("1"))
    assert "participants.tsv was left as it is" in done.note
    assert (tmp_path / "elsewhere").read_bytes() == b"participant_id\n"
    assert dataset.tree()["sub-1/anat/sub-1_T1w.nii.gz"] == b"1"


def test_taking_back_leaves_what_others_share(dataset: Dataset) -> None:
    done = dataset.put(of("1"))
    PathTarget({"root": str(dataset.root)}).remove(receipt(done))
    assert set(dataset.tree()) == {"README", "participants.tsv"}


def test_a_name_that_is_anothers_is_held_and_nothing_is_renamed(dataset: Dataset) -> None:
    dataset.put(of("1"))
    before = dataset.tree()
    with pytest.raises(Held, match="another unit's there, or the lab's own"):
        dataset.put({**of("1"), "sub-1/anat/sub-1_T1w.nii.gz": b"other"}, key=OTHER)
    assert dataset.tree() == before


class Dying(Files):
    """Its process ends right before the `at`th change of a name."""

    def __init__(self, at: int) -> None:
        self.at = at

    def _step(self) -> None:
        self.at -= 1
        if self.at < 0:
            raise KeyboardInterrupt

    def rename(self, *args: Any, **kwargs: Any) -> None:
        self._step()
        super().rename(*args, **kwargs)

    def rename_new(self, *args: Any, **kwargs: Any) -> None:
        self._step()
        super().rename_new(*args, **kwargs)


def test_wherever_it_is_cut_off_the_next_attempt_completes_it(dataset: Dataset) -> None:
    dataset.put(of("1"))
    contents = of("2")
    for at in range(10):
        wanted = tuple(Wanted(name, hashlib.sha256(each).hexdigest(), len(each), name, merge=MERGE.get(name, ""))
                       for name, each in contents.items())  # fmt: skip
        job = Put("1", OTHER, "bids", 1, "bids", wanted, exact=True)
        source = Bytes(dataset.store, list(contents.values()))
        try:
            PathTarget({"root": str(dataset.root), "threads": 1}, Dying(at)).put(job, source)
        except KeyboardInterrupt:
            continue
        finally:
            source.close()
        break
    else:
        pytest.fail("it never came to its end")
    assert at >= 2
    assert dataset.tree() == {**of("1"), **of("2"), "participants.tsv": TABLE + b"sub-2\t30\n"}
    assert not [name for name in os.listdir(dataset.root / "bids") if name.endswith(".part")]


def test_a_worker_answers_for_the_units_own_files_alone() -> None:
    own, shared = Wanted("a", "00", 1, "a"), Wanted("README", "11", 1, "README", merge="once")
    job, done = Put("1", KEY, "bids", 1, "bids", (own, shared)), Done("bids", (Delivered("a", "00", 1, "a"),))
    assert _whole(done, job) is done
    with pytest.raises(WireError, match="said nothing of some"):
        _whole(Done("bids", ()), job)


def test_a_remote_cannot_hold_one() -> None:
    job = Put("1", KEY, "bids", 1, "bids", (Wanted("README", "00", 1, "README", merge="once"),))
    with pytest.raises(Held, match="one dataset of many units"):
        RcloneTarget.put(object.__new__(RcloneTarget), job, None)  # type: ignore[arg-type]  # it never comes to it


# --- what a plugin says -----------------------------------------------------------------------------------------------


def test_what_is_made_says_how_it_is_joined_and_keeps_its_names() -> None:
    made = Made((("README", "00", 1), ("sub-1/x.json", "11", 1)), merge={"README": "once"})
    assert [(each.name, each.merge) for each in made.wanted(Delivery("bids", "memory", "bids", stem="out"))] == [
        ("README", "once"), ("sub-1/x.json", "")
    ]  # fmt: skip


@pytest.mark.parametrize("merge", [{"README": "always"}, {"a/README": "once"}, {"": "once"}, {".sorter-x": "once"}])
def test_a_product_that_merges_in_no_known_way_is_refused(merge: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be merged by"):
        check("sorter_products", [Product("bids", "a:b", merge=merge)])
