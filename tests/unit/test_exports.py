"""`sorter rename`: which series are meant, under which names they come, and that nothing there is ever harmed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from click.testing import CliRunner
from pydicom.uid import generate_uid

from sorter.cli.main import sorter as cli
from sorter.door.client import PATIENCE
from sorter.durable import Files, PathLike
from sorter.errors import SorterError
from sorter.exports import (
    PRESETS,
    Choice,
    Copy,
    Disk,
    Found,
    Left,
    Made,
    Report,
    copy_all,
    in_folder,
    naming,
    plan_copies,
    plan_products,
)  # fmt: skip
from sorter.exports.asking import Asked, choose
from sorter.exports.choosing import Subject, subjects
from sorter.exports.naming import from_percent
from sorter.exports.source import parcels
from sorter.matching import day_of
from sorter.model import UnitKind
from sorter.spool import UnitSummary
from sorter.spool.unit import Product
from sorter.summaries import in_order, title_of
from sorter.testing.synthetic import many


def image(**values: Any) -> bytes:
    """A small image with these header values; None removes one."""
    _, content = next(iter(many(1)))
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in values.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    written = io.BytesIO()
    dataset.save_as(written)
    return written.getvalue()


def series(folder: Path, count: int = 2, **values: Any) -> list[bytes]:
    """A series of so many images in a folder of its own."""
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "PatientID": "P1", **values}
    made = [image(InstanceNumber=number, **uids) for number in range(1, count + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(made):
        (folder / f"{len(list(folder.iterdir()))}-{number}").write_bytes(content)
    return made


def found(folder: Path) -> list[Found]:
    left: list[Left] = []
    result = in_folder(folder, left.append)
    assert not left
    return result


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["rename", *map(str, arguments)])
    text = result.output
    if isinstance(result.exception, SorterError):
        assert code == 1, result.exception
        return text + str(result.exception)
    assert result.exit_code == code, text
    return text


# --- which ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> list[Found]:
    folder = tmp_path / "disk"
    common = {"StudyDate": "20260105", "Modality": "MR"}
    series(folder, 1, PatientID="DEV01", PatientName="Doe^Jane", SeriesNumber=3, SeriesDescription="T1w", **common)
    series(folder, 1, PatientID="DEV01", PatientName="Doe^Jane", SeriesNumber=12, SeriesDescription="rest", **common)
    series(
        folder,
        1,
        PatientID="DEV02",
        PatientName="Roe^Max",
        SeriesNumber=5,
        SeriesDescription="rest",
        StudyDate="20250101",
    )
    return found(folder)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("dev01", ["3", "12"]), ("DEV*", ["3", "12", "5"]), ("DEV0[2]", ["5"]), ("jane doe", ["3", "12"]),
        ("Doe^Jane", ["3", "12"]), ("Roe, Max", ["5"]), ("*roe*", ["5"]), ("nobody", []), ("", []),
    ],
)  # fmt: skip
def test_a_subject_as_people_say_it(several: list[Found], text: str, numbers: list[str]) -> None:
    assert sorted(each.number for each in Subject(text).among(several)) == sorted(numbers)


def test_a_uid_or_the_start_of_a_key(several: list[Found]) -> None:
    one = several[0]
    for text in (one.study_uid, one.series_uids[0], one.key[:8]):
        assert one in Subject(text).among(several)
    assert not Subject(one.key[:7]).among(several)


def test_a_name_that_several_have_is_listed_never_guessed(tmp_path: Path) -> None:
    series(tmp_path, 1, PatientID="A1", PatientName="Doe^Jane")
    series(tmp_path, 1, PatientID="B2", PatientName="Jane^Doe")
    with pytest.raises(SorterError, match="2 subjects have this name: A1, B2; give one"):
        Subject("doe jane").among(found(tmp_path))


def test_a_long_list_is_looked_for_at_once(several: list[Found]) -> None:
    """In a thread beside all else that sorter does, where a lab asks by a file. (Of the processor alone.)"""
    many = [dataclasses.replace(several[each % 3], key=f"{each:032x}") for each in range(10_000)]
    wanted = [Subject(f"nobody {each}", "") for each in range(1000)] + [Subject("DEV02", "x")]
    begun = time.process_time()
    chosen = choose(many, Asked(wanted, Choice(), naming()))
    assert time.process_time() - begun < 5  # 0.1 s; it were 40
    assert (len(chosen.missing), len(chosen.found), set(chosen.new_names.values())) == (1000, 3333, {"x"})


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        (Choice(series="3,5-7"), ["3", "5"]), (Choice(series="*T1*"), ["3"]), (Choice(series="REST"), ["12", "5"]),
        (Choice(series="1-2"), []), (Choice(study="2026-01-05"), ["3", "12"]),
        (Choice(modality="mr"), ["3", "12", "5"]), (Choice(modality="CT"), []), (Choice(lab="x"), []),
        (Choice(since="20260101"), ["3", "12"]),
        (Choice(series="1-99999999999999999999"), ["3", "12", "5"]),
    ],
)  # fmt: skip
def test_flags_narrow_it_down(several: list[Found], choice: Choice, numbers: list[str]) -> None:
    assert sorted(each.number for each in several if choice.fits(each)) == sorted(numbers)


def test_a_range_that_counts_backwards_is_an_error_not_an_empty_choice() -> None:
    with pytest.raises(SorterError, match="in '3,9-5' the range 9-5 ends before it begins; write 5-9"):
        Choice(series="3,9-5")


@pytest.mark.parametrize("text", ["3-", "-3", "3,,5", "3,", "1-2-3", "3 5"])
def test_numbers_that_are_no_list_of_numbers_are_an_error_not_an_empty_choice(text: str) -> None:
    with pytest.raises(SorterError, match="is no list of numbers"):
        Choice(series=text)


def test_blanks_between_numbers_mean_nothing(several: list[Found]) -> None:
    assert [each.number for each in several if Choice(series=" 3, 11 - 12 ").fits(each)] == ["3", "12"]


def test_a_list_of_subjects(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('\ufeffSubject,Name\nDEV01,pilot\n\n# not this one\n"A, B",x\nDEV02\n')
    assert subjects(f"@{path}") == [Subject("DEV01", "pilot"), Subject("A, B", "x"), Subject("DEV02")]
    path.write_text("subject\n")
    with pytest.raises(SorterError, match="names no subject"):
        subjects(f"@{path}")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SorterError, match="no text in UTF-8"):
        subjects(f"@{path}")
    with pytest.raises(SorterError, match="cannot be read"):
        subjects("@/nowhere/list.csv")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("subject;newname\r\nDEV01;P1\r\nDEV02\r\n", [Subject("DEV01", "P1"), Subject("DEV02")]),
        ("Doe, Jane;P1\nRoe, Max;P2\n", [Subject("Doe, Jane", "P1"), Subject("Roe, Max", "P2")]),
        ("DEV01\tP1\n", [Subject("DEV01", "P1")]),
        ("DEV01,a;b\nDEV02\n", [Subject("DEV01", "a;b"), Subject("DEV02")]),
    ],
)
def test_a_list_as_spreadsheets_of_other_countries_write_it(tmp_path: Path, text: str, wanted: list[Subject]) -> None:
    (tmp_path / "list.csv").write_text(text)
    assert subjects(f"@{tmp_path}/list.csv") == wanted


@pytest.mark.parametrize(("text", "says"), [('DEV01\n"DEV02\nDEV03\n', "line 3: unexp"), ("x" * 200_000, "line 1: ")])
def test_what_is_no_list_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SorterError, match=says):
        subjects(f"@{tmp_path}/list.csv")


@pytest.mark.parametrize(
    "one", [Subject("DEV01"), Subject("Doe, Jane"), Subject('A "B", C', "x, y"), Subject("a", "b")]
)
def test_a_subject_as_a_line_of_a_list(one: Subject) -> None:
    assert Subject.of_row(one.row) == one


def test_a_line_that_is_no_row_is_nobodys() -> None:
    assert Subject.of_row("a\rb") == Subject("a\rb")


@pytest.mark.parametrize(
    ("wanted", "new_name", "says"),
    [
        ([Subject("DEV01")], "../..", "can be the name of no subject"),
        ([Subject("DEV01", " ")], "", "can be the name of no subject"),
        ([Subject("DEV*", "P1")], "", r"P1 is for one subject, and DEV\* fits several"),
        ([Subject("DEV01", "P1"), Subject("DEV*"), Subject("DEV01", "P2")], "", "the list calls DEV01 P1 and P2"),
    ],
)
def test_a_new_name_is_a_name_and_of_one_subject(
    several: list[Found], wanted: list[Subject], new_name: str, says: str
) -> None:
    with pytest.raises(SorterError, match=says):
        choose(several, Asked(wanted, Choice(), naming(), new_name))


def test_days_as_people_say_them() -> None:
    days = [day_of(each) for each in ("today", "yesterday", "0d", "1d")]
    assert days[0] == days[2] > days[1] == days[3]
    assert day_of("2026-01-05") == "20260105"
    assert (
        max(day_of(each) for each in ("monday", "Tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"))
        == days[0]
    )
    with pytest.raises(SorterError, match="no day"):
        day_of("soon")


# --- under which names ------------------------------------------------------------------------------------------------


def names(folder: Path, how: str, **new: str) -> list[str]:
    everything = found(folder)
    return sorted(
        copy.name
        for copy in plan_copies(
            everything, naming(how), {each.key: new["name"] for each in everything} if new else None
        )
    )


def test_the_presets(tmp_path: Path) -> None:
    values = {"StudyDate": "20260105", "StudyTime": "101112", "ProtocolName": "T1 w", "AcquisitionNumber": 1}
    series(tmp_path, 1, PatientID="DEV 01", SeriesNumber=3, SeriesDescription="T1/w", **values)
    assert names(tmp_path, "pretty") == ["DEV_01/20260105_1011/003_T1_w/001-0003-000001.dcm"]
    assert names(tmp_path, "percent") == ["DEV_01/20260105101112/3_T1_w/0001.dcm"]
    assert names(tmp_path, "flat") == ["DEV_01_20260105_1011_003_000001.dcm"]
    assert names(tmp_path, "%p_%4s/%r.ima") == ["T1_w_0003/1.ima"]
    assert names(tmp_path, "{subject}/") == ["DEV_01/001-0003-000001.dcm"]
    assert names(tmp_path, "{subject}/{InstanceNumber:05d}") == ["DEV_01/00001"]
    assert names(tmp_path, "percent", name="pilot7") == ["pilot7/20260105101112/3_T1_w/0001.dcm"]
    assert names(tmp_path, "{PatientName}_{PatientID}/", name="x") == ["x_x/001-0003-000001.dcm"]


@pytest.mark.parametrize("pattern", ["%b/%s", "%", "%5", "%y", "{Nothing}", "/abs/{subject}", "{subject"])
def test_a_wrong_pattern_is_said(pattern: str) -> None:
    with pytest.raises(SorterError, match="pattern"):
        naming(pattern)


def test_a_misspelt_preset_makes_no_folder_of_that_name() -> None:
    with pytest.raises(SorterError, match=r'pattern "prety": .* did you mean "pretty"'):
        naming("prety")
    with pytest.raises(SorterError, match=r"right are pretty, percent, flat, or fields as \{subject\}"):
        naming("")
    assert naming("anat/").folder is not None


def test_a_percent_sign_itself() -> None:
    assert from_percent("100%%") == "100%"


@pytest.mark.parametrize("how", PRESETS)
def test_two_sites_with_equal_ids_and_numbers_are_kept_apart(tmp_path: Path, how: str) -> None:
    for _ in range(3):
        series(
            tmp_path, 2, PatientID="P1", SeriesNumber=1, SeriesDescription="same", StudyDate="20260101", StudyTime="10"
        )
    made = names(tmp_path, how)
    assert len({each.casefold() for each in made}) == 6


HOSTILE = [
    "../../etc/passwd", "..", "/", "//", "\\..\\x", "a\0b", "-rf", ".hidden", "CON", "nul.txt", "~root", "$(id)",
    "`id`", "*", "a" * 64, "x\ny", "\x1b[31m", "\u202egnp", "\u200b", "e\u0301", "é", "ﬁ", "A", "a", " ", "",
    "..\u2215..", "．．／", "%s", "{subject}", "%2e%2e/", "file:///etc", "COM1.dcm", "\x7f", "a/../../../b",
]  # fmt: skip


def test_hostile_values_never_leave_the_folder_nor_overwrite(tmp_path: Path) -> None:
    """Some 200 header values, in ID, description and protocol: all images arrive, each once, below DEST."""
    written = 0
    for number, text in enumerate(HOSTILE):
        for keyword in (
            "PatientID",
            "PatientName",
            "SeriesDescription",
            "ProtocolName",
            "StudyID",
            "AccessionNumber",
        ):
            with warnings.catch_warnings(action="ignore"):
                values = {"SpecificCharacterSet": "ISO_IR 192", keyword: text}
                series(tmp_path / "from" / f"{number}-{keyword}", 1, **values)
            written += 1
    assert written >= 200
    around = set(tmp_path.iterdir())
    for how in (*PRESETS, "{SeriesDescription}/{ProtocolName}/", "{StudyDate}{AccessionNumber}_{PatientID}/"):
        dest = tmp_path / "from-here" / "dest"
        copies = plan_copies(found(tmp_path / "from"), naming(how))
        report = copy_all(Disk(Files()), copies, dest, lambda size: None)
        assert not report.failed
        assert not report.taken
        assert sorted(tree(dest).values()) == sorted(tree(tmp_path / "from").values())
        assert not [name for name in tree(dest) if unicodedata.normalize("NFC", name) != name or not name.isprintable()]
        subprocess.run(["rm", "-rf", str(dest.parent)], check=True)
    assert set(tmp_path.iterdir()) == around


def test_an_empty_destination_is_not_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "from", 1)
    monkeypatch.chdir(tmp_path)
    assert "it is empty, as a variable that was never set" in run("*", "", "--from", tmp_path / "from", code=2)
    assert [each.name for each in tmp_path.iterdir()] == ["from"]


# --- copying ----------------------------------------------------------------------------------------------------------


def test_flat_names_go_into_a_folder_of_a_target(several: list[Found]) -> None:
    planned = plan_copies(several, naming("flat"))
    assert {place for place, _ in parcels(planned, "pilot", lambda _: "k")} == {"pilot"}
    with pytest.raises(SorterError, match="have no folder"):
        list(parcels(planned, "", lambda _: "k"))


def copies(folder: Path, count: int = 20) -> tuple[list[Copy], dict[str, bytes]]:
    series(folder, count)
    planned = plan_copies(found(folder), naming("flat"))
    return planned, {copy.name: copy.source.read_bytes() for copy in planned}


def test_a_rerun_changes_nothing(tmp_path: Path) -> None:
    planned, wanted = copies(tmp_path / "from")
    sizes: list[int] = []
    first = copy_all(Disk(Files()), planned, tmp_path / "to", sizes.append)
    assert sorted(first.written) == sorted(wanted)
    assert sum(sizes) == sum(map(len, wanted.values()))
    before = {path: path.stat().st_ino for path in (tmp_path / "to").iterdir()}
    again = copy_all(Disk(Files()), planned, tmp_path / "to", sizes.append)
    assert (again.written, sorted(again.same)) == ([], sorted(wanted))
    assert {path: path.stat().st_ino for path in (tmp_path / "to").iterdir()} == before
    assert tree(tmp_path / "to") == wanted


def test_what_is_there_is_not_overwritten_unless_told_to(tmp_path: Path) -> None:
    planned, wanted = copies(tmp_path / "from")
    (tmp_path / "to").mkdir()
    mine = tmp_path / "to" / planned[3].name
    mine.write_bytes(b"mine")
    report = copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None)
    assert report.taken == [planned[3].name]
    assert mine.read_bytes() == b"mine"
    report = copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None, force=True)
    assert (report.written, report.taken) == ([planned[3].name], [])
    assert tree(tmp_path / "to") == wanted


@pytest.mark.parametrize("force", [False, True])
def test_nothing_that_lies_in_a_shared_folder_stops_the_copying_or_is_written_through(
    tmp_path: Path, force: bool
) -> None:
    """Others of the lab may put there what they like, also under the names that copies have until they are whole."""
    planned, wanted = copies(tmp_path / "from")
    to, mine = tmp_path / "to", tmp_path / "mine"
    to.mkdir()
    mine.write_bytes(b"mine")
    os.mkfifo(to / planned[0].name)
    (to / planned[1].name).mkdir()
    (to / planned[2].name).symlink_to(mine)
    with (to / planned[3].name).open("wb") as endless:
        endless.truncate(1 << 43)
    (to / f".{planned[4].name}.part").hardlink_to(mine)
    os.mkfifo(to / f".{planned[5].name}.part")
    (to / f".{planned[6].name}.part").symlink_to(mine)
    report = copy_all(Disk(Files()), planned, to, lambda size: None, force=force)
    assert mine.read_bytes() == b"mine"
    assert [name for name, _ in report.failed] == [each.name for each in planned[:3]]
    assert {why for _, why in report.failed} == {"something that is no file is there; it was not overwritten"}
    assert report.taken == ([] if force else [planned[3].name])
    assert sorted(report.written) == sorted(wanted.keys() - {each.name for each in planned[: 3 if force else 4]})
    assert all((to / name).read_bytes() == wanted[name] for name in report.written)


class Stop(BaseException):
    """Ctrl-C, or the end of the machine."""


class Interrupted(Files):
    """Ends at the n-th effect."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _effect(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stop

    def write(self, *args: Any, **kwargs: Any) -> Any:
        self._effect()
        return super().write(*args, **kwargs)

    def rename_new(self, *args: Any, **kwargs: Any) -> None:
        self._effect()
        super().rename_new(*args, **kwargs)


class Remembering(Disk):
    """A store, as far as what is copied out of it goes."""

    def __init__(self) -> None:
        super().__init__(Files())
        self.known: set[str] = set()

    def remember(self, copies: Sequence[Copy], dest: str) -> None:
        self.known |= {f"{dest}/{copy.name}" for copy in copies}


@pytest.mark.parametrize("at", range(0, 40, 4))
def test_interrupted_and_run_again(tmp_path: Path, at: int) -> None:
    planned, wanted = copies(tmp_path / "from")
    giver = Remembering()
    with pytest.raises(Stop):
        copy_all(giver, planned, tmp_path / "to", lambda size: None, files=Interrupted(at))
    for name, content in tree(tmp_path / "to").items():
        assert name.endswith(".part") or wanted[name] == content, "nothing half under a final name"
        assert name.endswith(".part") or str(tmp_path / "to" / name) in giver.known, "a withdrawal knows of it"
    report = copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None)
    assert sorted(report.written + report.same) == sorted(wanted)
    assert {name: content for name, content in tree(tmp_path / "to").items() if not name.endswith(".part")} == wanted


def test_who_copies_to_the_same_place_waits_until_that_is_done(tmp_path: Path) -> None:
    planned, wanted = copies(tmp_path / "from")
    waits, once, reports = threading.Event(), threading.Lock(), list[Report]()

    class Slow(Files):
        """At its first name the other begins, who would write to what has no name yet."""

        def rename_new(self, source: PathLike, target: PathLike) -> None:
            with once:
                if second.ident is None:
                    second.start()
            assert waits.wait(30)
            super().rename_new(source, target)

    def other() -> None:
        reports.append(copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None, waits=waits.set))

    second = threading.Thread(target=other)
    first = copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None, files=Slow())
    second.join(30)
    assert sorted(first.written) == sorted(reports[0].same) == sorted(wanted)
    assert not first.failed
    assert tree(tmp_path / "to") == wanted


def test_one_bad_file_never_stops_the_rest(tmp_path: Path) -> None:
    planned, _ = copies(tmp_path / "from")
    planned[5].source.unlink()
    planned[7] = dataclasses.replace(planned[7], sha256="0" * 64)
    report = copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None)
    assert {name for name, _ in report.failed} == {planned[5].name, planned[7].name}
    assert len(report.written) == 18
    assert set(tree(tmp_path / "to")) == set(report.written)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_mount_that_cannot_rename_only_where_nothing_is(tmp_path: Path, code: int) -> None:
    class Mount(Files):
        def rename_new(self, *args: Any, **kwargs: Any) -> None:
            raise OSError(code, os.strerror(code))

    planned, wanted = copies(tmp_path / "from")
    report = copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None, files=Mount())
    assert len(report.written) == 20
    assert tree(tmp_path / "to") == wanted


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    class Full(Files):
        def write(self, *args: Any, **kwargs: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        def reflink(self, *args: Any, **kwargs: Any) -> bool:
            return False

    planned, _ = copies(tmp_path / "from")
    report = copy_all(Disk(Files()), planned, tmp_path / "to", lambda size: None, files=Full())
    assert [why for _, why in report.failed] == ["No space left on device"] * 20


def test_what_cannot_be_remembered_is_not_copied(tmp_path: Path) -> None:
    class Forgetful(Disk):
        def remember(self, copies: Sequence[Copy], dest: str) -> None:
            raise SorterError("the disk is full")

    planned, _ = copies(tmp_path / "from", 3)
    report = copy_all(Forgetful(Files()), planned, tmp_path / "to", lambda size: None)
    assert [why for _, why in report.failed] == ["where it is copied to cannot be remembered: the disk is full"] * 3
    assert not tree(tmp_path / "to")


def test_products_lie_beside_the_folders_of_their_images(tmp_path: Path) -> None:
    values = {"StudyDate": "20260105", "StudyTime": "101112", "SeriesNumber": 3, "AcquisitionNumber": 1}
    series(tmp_path, 2, PatientID="DEV01", SeriesDescription="T1w", **values)
    [one] = found(tmp_path)
    files = (("out.nii.gz", "1" * 64, 10), ("out_e2.json", "2" * 64, 5), ("../x/y.txt", "3" * 64, 1))
    made = [(one, "nifti", Made(tmp_path / "products", Product(files)))]
    assert [copy.name for copy in plan_products(made, naming("pretty"))] == [
        "DEV01/20260105_1011/nifti/003_T1w.nii.gz",
        "DEV01/20260105_1011/nifti/003_T1w_e2.json",
        "DEV01/20260105_1011/nifti/003_T1w_.._x_y.txt",
    ]
    assert plan_products(made, naming("flat"))[0].name == "DEV01_20260105_1011_003_000001.nii.gz"
    [(*_, same)] = made
    assert plan_products([(one, "deid", same)], naming())[0].name == "DEV01/20260105_1011/deid/003_T1w.nii.gz"


# --- any folder -------------------------------------------------------------------------------------------------------


def test_a_plain_folder_with_junk_links_and_copies(tmp_path: Path) -> None:
    made = series(tmp_path / "from" / "a", 3)
    (tmp_path / "from" / "again").write_bytes(made[0])
    (tmp_path / "from" / "notes.txt").write_text("hello")
    (tmp_path / "from" / "link").symlink_to(tmp_path / "from" / "a")
    left: list[Left] = []
    [one] = in_folder(tmp_path / "from", left.append)
    assert len(one.images) == 3
    assert [each.path for each in left] == ["notes.txt"]
    with pytest.raises(SorterError, match="is no folder"):
        in_folder(tmp_path / "nothing", left.append)


def test_other_pixels_under_one_uid_are_both_copied(tmp_path: Path) -> None:
    [one] = series(tmp_path / "from", 1)
    dataset = pydicom.dcmread(io.BytesIO(one))
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(tmp_path / "from" / "other")
    made = names(tmp_path / "from", "flat")
    assert len(made) == 2
    assert any("conflict" in each for each in made)


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", ""])
def test_a_series_number_that_is_none_orders_and_titles_all_the_same(number: str) -> None:
    of = UnitSummary("k", UnitKind.SERIES, "1.2", (), "open", subject="P1", number=number, description="T1")
    assert in_order([dataclasses.replace(of, number="10"), of])[0] == of
    assert title_of(of).startswith("P1")


def test_the_command_from_a_folder(tmp_path: Path) -> None:
    common = {"StudyDate": "20260105", "StudyTime": "1011"}
    series(tmp_path / "disk/z", 2, PatientID="DEV01", SeriesNumber=3, SeriesDescription="T1w", **common)
    series(tmp_path / "disk/a", 1, PatientID="DEV02", SeriesNumber=4, SeriesDescription="rest", **common)
    before = tree(tmp_path / "disk")
    where = ("--from", tmp_path / "disk", "--root", tmp_path)
    listed = json.loads(run("*", "--list", "--json", *where))
    assert [(each["subject"], each["number"], each["images"]) for each in listed] == [
        ("DEV01", "3", 2),
        ("DEV02", "4", 1),
    ]
    assert "T1w" in run("dev01", "--list", *where)
    assert "2 images of 1 series" in run("DEV01", tmp_path / "to", "--dry-run", *where)
    assert not (tmp_path / "to").exists()
    said = run("DEV01", tmp_path / "to", "--as", "pilot 7", *where)
    assert "2 images were copied" in said
    assert "inside them the subject is called as before" in said
    assert {Path(name).parts[0] for name in tree(tmp_path / "to")} == {"pilot_7"}
    assert sorted(tree(tmp_path / "to").values()) == sorted(
        content for name, content in before.items() if content in tree(tmp_path / "to").values()
    )
    assert "0 images were copied" in run("DEV01", tmp_path / "to", "--as", "pilot 7", *where)
    assert "is for one subject" in run("DEV*", tmp_path / "to", "--as", "x", *where, code=1)
    assert "no series in" in run("NOBODY", tmp_path / "to", *where, code=1)
    assert "1 image was copied" in run("DEV02", tmp_path / "to", *where)
    assert "; 1 was there already." in run("DEV02", tmp_path / "to", *where)
    assert "say where to" in run("DEV01", *where, code=1)
    (tmp_path / "list.csv").write_text("subject,newname\nDEV02,two\nNOBODY\n")
    said = run(f"@{tmp_path / 'list.csv'}", tmp_path / "list", *where, code=1)
    assert "not found: NOBODY" in said
    assert {Path(name).parts[0] for name in tree(tmp_path / "list")} == {"two"}
    assert tree(tmp_path / "disk") == before, "the originals stay"


def test_what_lies_in_an_old_folder_under_any_name_stops_nothing(tmp_path: Path) -> None:
    series(tmp_path / "disk/ok")
    for name in (b"[/b] a\\[/c]", b"\xff\xfe", b"up\x1b[2J"):
        path = tmp_path / "disk" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("junk")
    said = run("*", tmp_path / "to [/b]", "--from", tmp_path / "disk", "--root", tmp_path)
    assert "3 files are no images" in said
    assert "[/b] a\\[/c]: a text file" in said
    assert "\x1b" not in said
    assert f"2 images were copied to {tmp_path}/to [/b]; " in said
    assert f"would be copied to {tmp_path}/to [/b]:" in run(
        "*", tmp_path / "to [/b]", "--from", tmp_path / "disk", "--root", tmp_path, "--dry-run"
    )


def test_a_list_says_who_is_missing_also_where_it_is_only_shown(tmp_path: Path) -> None:
    series(tmp_path / "disk/a", 1, PatientID="DEV01")
    (tmp_path / "list.csv").write_text("DEV01\nNOBODY\n")
    said = run(f"@{tmp_path}/list.csv", "--list", "--from", tmp_path / "disk", "--root", tmp_path, code=1)
    assert "DEV01" in said
    assert "not found: NOBODY" in said


def test_help_says_first_that_it_copies() -> None:
    said = run("--help")
    assert said.split("\n\n")[1].strip().startswith("It copies; the originals stay.")


# --- the sample -------------------------------------------------------------------------------------------------------


@pytest.mark.sample
@pytest.mark.parametrize("how", PRESETS)
def test_the_sample_under_every_preset(tmp_path: Path, sample: Path, sample_manifest: dict[str, Any], how: str) -> None:
    """Every image arrives once; the names are what the headers say, read by pydicom and put together by hand."""
    report = copy_all(
        Disk(Files()), plan_copies(in_folder(sample / "data", lambda left: None), naming(how)), tmp_path / "to",
        lambda size: None,
    )  # fmt: skip
    assert not report.failed
    assert not report.taken
    arrived = {
        name: pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        for name, content in tree(tmp_path / "to").items()
    }
    images = [each for each in sample_manifest["files"] if each["dicom"]]
    assert len(arrived) == len({(each["SOPInstanceUID"], each["pixel_sha256"]) for each in images})
    assert {name: expected(how, dataset) for name, dataset in arrived.items()} == {name: name for name in arrived}


@pytest.mark.sample
@pytest.mark.parametrize(
    "how", ["{PatientID}/{SeriesNumber:03d}/{InstanceNumber:06d}.dcm", "{PatientID}_{InstanceNumber}.dcm"]
)
def test_the_samples_collisions_are_kept_apart(tmp_path: Path, sample: Path, how: str) -> None:
    """One PatientID in two studies with equal numbers, and one of two sites: under names that have no day in them."""
    everything = in_folder(sample / "data", lambda left: None)
    copies = plan_copies(everything, naming(how))
    assert len({copy.name.casefold() for copy in copies}) == len(copies) == sum(len(each.images) for each in everything)
    report = copy_all(Disk(Files()), copies, tmp_path / "to", lambda size: None)
    assert (len(report.written), report.taken, report.failed) == (len(copies), [], [])
    wanted = Counter((each.text("PatientID"), each.number) for each in everything)
    assert max(wanted.values()) > 1, "the sample has such series"
    if "/" in how:
        series: dict[str, set[str]] = {}
        for name, content in tree(tmp_path / "to").items():
            dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
            series.setdefault(os.path.dirname(name), set()).add(dataset.SeriesInstanceUID)
        assert {len(each) for each in series.values()} == {1}
        assert len(series) == len(everything)


def expected(how: str, dataset: pydicom.Dataset) -> str:
    """The name of this image as its header has it."""

    def safe(*values: object) -> str:
        text = next((str(each) for each in values if str(each or "").strip()), "")
        return re.sub(r"[^\w.+-]+", "_", unicodedata.normalize("NFC", text)).strip("_").rstrip(".").lstrip("._-")

    def number(keyword: str) -> int:
        return int(dataset.get(keyword) or 0)

    subject = safe(dataset.get("PatientID"), dataset.get("PatientName"), "no-id")
    day, time = str(dataset.get("StudyDate") or ""), str(dataset.get("StudyTime") or "")
    description = safe(dataset.get("SeriesDescription"), dataset.get("ProtocolName"), dataset.get("SequenceName"))
    series, instance = number("SeriesNumber"), number("InstanceNumber")
    return {
        "pretty": (
            f"{subject}/{joined(day, time[:4])}/{joined(f'{series:03d}', description)}/"
            f"{number('AcquisitionNumber'):03d}-{series:04d}-{instance:06d}.dcm"
        ),
        "percent": (
            f"{subject}/{day}{time[:6]}/{joined(str(series), safe(dataset.get('ProtocolName')))}/{instance:04d}.dcm"
        ),
        "flat": f"{joined(subject, day, time[:4], f'{series:03d}', f'{instance:06d}')}.dcm",
    }[how]


def joined(*parts: str) -> str:
    return "_".join(filter(None, parts))


def test_a_place_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    series(tmp_path / "from")
    (tmp_path / "file").write_text("mine")
    for dest in (tmp_path / "file", tmp_path / "file/below"):
        told = CliRunner().invoke(cli, ["rename", "*", str(dest), "--from", str(tmp_path / "from")])
        assert str(told.exception) == f"{tmp_path}/file is no folder; nothing can be copied into it"


def test_a_tab_does_not_wait_for_a_sorter_that_ended(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(tmp_path / "sock"))
    script = Path(sys.executable).with_name("sorter")
    words = {"COMP_WORDS": "sorter rename D", "COMP_CWORD": "2", "_SORTER_COMPLETE": "bash_complete"}
    begun = time.monotonic()
    done = subprocess.run(
        [script], env={**os.environ, **words, "SORTER_SOCKET": str(tmp_path / "sock")}, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert time.monotonic() - begun < PATIENCE


def test_completion_in_a_shell() -> None:
    """What bash asks for; subjects and series are completed from a store, in the tests of the main job."""
    script = Path(sys.executable).with_name("sorter")
    for typed, at, offered in (
        ("sorter rename --na", 2, ["plain,--name"]),
        ("sorter rename DEV x --name p", 5, ["plain,pretty", "plain,percent"]),
    ):
        words = {"COMP_WORDS": typed, "COMP_CWORD": str(at), "_SORTER_COMPLETE": "bash_complete"}
        done = subprocess.run([script], env={**os.environ, **words}, capture_output=True, text=True)
        assert done.stdout.split() == offered
