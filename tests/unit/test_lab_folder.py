"""The lab's corner of its folder: whatever lies there, sorter reads a plain file of the lab, or says why not."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sorter.builtin.path_target import PathTarget, mark
from sorter.cli.main import sorter as command
from sorter.config.lab import Deliver, Naming, Notifications, Rule, read_lab
from sorter.deliver.lane import Lane
from sorter.deliver.target import LabLook, LabSeen, Later, Refused, Wanted
from sorter.durable import Files
from sorter.errors import TryLater
from sorter.labs.asking import Request, read_request
from sorter.labs.corners import ERRORS, LabCorners, _Known
from sorter.labs.news import News
from sorter.labs.python import LabPython
from sorter.labs.requests import Requests
from sorter.labs.scans import Scans
from sorter.model import Name
from sorter.spool import Spool
from sorter.spool.labs import LabRecords
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

MINE = b'[naming]\nfolder = "mine"\n'
DOCS = Path(__file__).parents[2] / "docs" / "lab.md"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "lab"
    root.mkdir()
    mark(root, Files())
    return root


@pytest.fixture
def corner(root: Path) -> Path:
    return root / ".sorter"


class Pages:
    """What a look is given to write: a `Source` of texts."""

    def __init__(self, folder: Path, texts: Mapping[str, str]) -> None:
        self.texts = list(texts.values())
        self.pages = tuple(
            Wanted(name, hashlib.sha256(text.encode()).hexdigest(), len(text.encode()), str(number))
            for number, (name, text) in enumerate(texts.items())
        )
        self.folder, self.given = folder, 0

    def __call__(self, index: int) -> int:
        self.given += 1
        path = self.folder / f"page-{index}"
        path.write_text(self.texts[index])
        return os.open(path, os.O_RDONLY)  # the test's process ends soon enough

    def will_need(self, indices: Sequence[int]) -> None:
        """Nothing is fetched ahead."""


def look(root: Path, known: str = "", errors: str = "", target: PathTarget | None = None, **pages: str) -> LabSeen:
    """As a worker looks; `errors` is what ERRORS.txt should say, `pages` those of other names, "_" for their dots."""
    texts = {**({ERRORS: errors} if errors else {}), **{name.replace("_", "."): text for name, text in pages.items()}}
    source = Pages(root.parent, texts)
    job = LabLook(known, {}, source.pages, () if errors else (ERRORS,))
    return (target or PathTarget({"root": str(root)})).look_at_lab(job, source)


def test_a_file_is_brought_once(root: Path, corner: Path) -> None:
    assert look(root).state == "none"
    (corner / "lab.toml").write_bytes(MINE)
    seen = look(root)
    assert (seen.state, bytes.fromhex(seen.text)) == ("new", MINE)
    assert look(root, hashlib.sha256(MINE).hexdigest()).state == "same"


def link_outside(path: Path) -> None:
    (path.parents[1] / "secret").write_bytes(MINE)
    path.symlink_to(path.parents[1] / "secret")


def linked_folder(path: Path) -> None:
    outside = path.parents[2] / "outside"
    outside.mkdir()
    (outside / "id").write_text("x")
    (outside / "lab.toml").write_bytes(MINE)
    (path.parent / "id").unlink()
    path.parent.rmdir()
    path.parent.symlink_to(outside)


def hard_link(path: Path) -> None:
    (path.parents[2] / "of-another").write_bytes(MINE)
    path.hardlink_to(path.parents[2] / "of-another")


def everybodys(path: Path) -> None:
    path.write_bytes(MINE)
    path.chmod(0o666)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def strangers(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("to give a file away needs root")
    path.write_bytes(MINE)
    os.chown(path, 64_123, -1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (link_outside, "symbolic link"),
        (hard_link, "second name"),
        (everybodys, "everybody"),
        (huge, "longer than 256 KiB"),
        (strangers, "account 64123, which is not of this lab"),
        (Path.mkdir, "is no file"),
        (os.mkfifo, "is no file"),
        (lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
        (lambda path: path.symlink_to("lab.toml"), "symbolic link"),
    ],
    ids=["link", "hard link", "everybody's", "huge", "stranger's", "folder", "pipe", "device", "loop"],
)
def test_what_is_no_plain_file_of_the_lab_is_refused(
    make: Callable[[Path], object], says: str, root: Path, corner: Path
) -> None:
    make(corner / "lab.toml")
    seen = look(root)
    assert seen.state == "refused"
    assert says in seen.why
    assert seen.text == ""


def test_a_corner_that_is_a_link_is_a_mount_that_is_away(root: Path, corner: Path) -> None:
    linked_folder(corner / "lab.toml")
    with pytest.raises(TryLater):
        look(root)


def test_python_beside_it_is_refused_and_the_file_counts(root: Path, corner: Path) -> None:
    (corner / "plugins").mkdir()
    (corner / "plugins" / "mine.py").write_text("import os\n")
    (corner / "lab.toml").write_bytes(MINE)
    seen = look(root)
    assert seen.state == "new"
    assert "runs only where the admin gave the lab an account" in seen.beside[0]


def test_the_page_of_errors_is_written_and_goes(root: Path, corner: Path) -> None:
    look(root, errors="wrong")
    page = corner / "ERRORS.txt"
    assert page.read_text() == "wrong"
    before = page.stat().st_ino
    look(root, errors="wrong")
    assert page.stat().st_ino == before
    look(root)
    assert sorted(os.listdir(corner)) == ["id", "requests"]


def test_a_link_in_the_place_of_the_page_is_not_followed(root: Path, corner: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (corner / "ERRORS.txt").symlink_to(victim)
    (corner / ".ERRORS.txt.part").symlink_to(victim)
    look(root, errors="wrong")
    assert victim.read_text() == "untouched"
    assert not (corner / "ERRORS.txt").is_symlink()
    assert (corner / "ERRORS.txt").read_text() == "wrong"


# --- by the worker of the lab ---------------------------------------------------------------------------------------


class Outlet:
    """The lane of one lab, with its real worker."""

    def __init__(self, root: Path) -> None:
        settings = {"root": str(root)}
        self.lane = Lane("memory", "sorter.builtin.path_target:PathTarget", settings, lambda *_: 0, lambda *_: None)
        self.answers: queue.Queue[None] = queue.Queue()

    def look_at_lab(
        self, lab: str, job: LabLook, opened: Callable[[Wanted], int], tell: Callable[[LabSeen | Later | Refused], None]
    ) -> bool:
        assert lab == "memory"
        self.lane.look_at_lab(job, opened, lambda seen: (tell(seen), self.answers.put(None))[0])
        return True


def test_a_lab_edits_its_file_and_reads_what_is_wrong(root: Path, corner: Path, tmp_path: Path) -> None:
    taken: list[bytes | None] = []
    said: list[tuple[str, ...]] = []
    outlet = Outlet(root)

    def take(_: str, data: bytes | None) -> tuple[str, ...]:
        taken.append(data)
        return ("lab.toml:1: no",) if data == b"wrong" else ()

    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    records = LabRecords(spool.labs, spool.files)
    folders = LabCorners(
        outlet, records, take, lambda _, faults: said.append(tuple(faults)),  # type: ignore[arg-type]
        Scans(records, lambda: True), News(records, lambda _: None),
        Requests(spool, records, outlet, lambda: None, lambda *_: ("", ()), lambda _: ()),  # type: ignore[arg-type]
        LabPython(spool.workers, spool.files, records, lambda: None),
    )  # fmt: skip
    folders.configure({"memory": str(root)}, 30.0)
    now = 0.0

    def seen() -> None:
        nonlocal now
        folders.turn(now)
        outlet.answers.get(timeout=60)
        folders.turn(now)
        now += 30.0

    try:
        (corner / "lab.toml").write_bytes(MINE)
        seen()
        assert taken == [MINE]
        (corner / "lab.toml").write_bytes(b"wrong")
        seen()
        outlet.answers.get(timeout=60)  # the page is written at once, not at the next look
        assert "lab.toml:1: no" in (corner / "ERRORS.txt").read_text()
        corner.rename(root / "away")  # the mount goes: what it said last stays
        seen()
        assert taken == [MINE, b"wrong"]
        (root / "away").rename(corner)
        (corner / "lab.toml").write_bytes(MINE)
        seen()
        outlet.answers.get(timeout=60)
        assert not (corner / "ERRORS.txt").exists()
        (corner / "lab.toml").unlink()
        seen()
        assert taken == [MINE, b"wrong", MINE, None]
        assert said[-1] == ()
    finally:
        outlet.lane.stop(10.0)


# --- the page for labs ----------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_right() -> None:
    usual = {"dicom": Name("{subject}", "x.dcm"), "nifti": Name("{subject}", "x")}
    examples = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    request, *rules = examples
    assert read_request(request.encode(), "pilot.toml").dest == "pilot"
    for example in rules:
        assert read_lab(example.encode(), usual) != read_lab(b"", usual)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("### `[naming]`", Naming),
        ("### `[deliver]`", Deliver),
        ("### `[notifications]`", Notifications),
        ("### `[[rules]]`", Rule),
        ("## Every key of a request", Request),
    ],
)
def test_every_key_is_on_the_page_and_no_other(heading: str, model: type) -> None:
    section = DOCS.read_text().split(f"{heading}\n")[1].split("\n#")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == [
        each.rstrip("_") for each in model.model_fields
    ]
    assert all(field.description for field in model.model_fields.values())


# --- in a sorter that runs ------------------------------------------------------------------------------------------

CONFIG = """
[delivery]
look_every = 0.1

[labs.memory]
match = ["Modality=MR"]
products = ["dicom"]

[labs.other]
"""


def status(sorter: RunningSorter) -> list[dict[str, Any]]:
    arguments = ["status", "--json", "-c", str(sorter.root / "sorter.toml"), "--root", str(sorter.root)]
    told = CliRunner().invoke(command, arguments)
    found: list[dict[str, Any]] = json.loads(told.output)["lab_files"]
    return found


def test_a_lab_edits_its_file_while_sorter_runs(tmp_path: Path) -> None:
    with RunningSorter(tmp_path / "site", quiet=0.5, config=CONFIG) as sorter:
        mine, copy = sorter.labs / "memory" / ".sorter", sorter.spool.labs / "memory" / "lab.toml"
        (mine / "lab.toml").write_bytes(MINE)
        wait_until(lambda: copy.exists() and copy.read_bytes() == MINE, 60, "the last good copy")
        (mine / "lab.toml").write_bytes(b'[naming]\nfolder = "../other"\n')
        page = mine / "ERRORS.txt"
        wait_until(lambda: page.exists() and "lab.toml:2: naming.folder" in page.read_text(), 60, "the page of errors")
        assert [(each["lab"], each["page"]) for each in status(sorter)] == [("memory", str(page))]
        for number, image in enumerate(localizer(Plan(seed=6, size=8)).files):
            (sorter.spool.incoming / f"{number}.dcm").write_bytes(image)
        sorter.wait_delivered(len(localizer(Plan(seed=6, size=8)).files))
        assert [each.name for each in (sorter.labs / "memory").iterdir() if each.name != ".sorter"] == ["mine"]
        assert not [each for each in (sorter.labs / "other").iterdir() if each.name != ".sorter"]
        (mine / "lab.toml").write_bytes(MINE)
        wait_until(lambda: not page.exists() and not status(sorter), 60, "the page to go")
        assert copy.read_bytes() == MINE


def test_what_is_empty_or_away_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    """As an editor leaves it between opening it and writing it."""
    taken: list[bytes | None] = []
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    records = LabRecords(spool.labs, spool.files)
    corners = LabCorners(
        None, records, lambda _, data: taken.append(data) or (), lambda *_: None,  # type: ignore[arg-type, func-returns-value]
        Scans(records, lambda: True), News(records, lambda _: None), None, None,  # type: ignore[arg-type]
    )  # fmt: skip
    known = _Known()
    corners._take("memory", known, b"", 0.0)
    assert taken == [b""], "nothing was there before"
    records.keep("memory", MINE)
    for nothing in (b"", None):
        corners._take("memory", known, nothing, 10.0)
        assert known.due == 12.0, "it is looked at again soon"
        corners._take("memory", known, MINE, 12.0)
        assert taken == [b"", *[MINE] * (1 if nothing == b"" else 2)]
    corners._take("memory", known, None, 20.0)
    corners._take("memory", known, None, 22.0)
    assert taken[-1] is None, "it stays away"
