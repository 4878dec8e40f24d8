"""Archives that are dropped: read by a child, entry by entry, and never lost, whatever is in them."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import signal
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hostile.bench import Life
from hostile.files import data_set, image, written

from sorter.durable import Files
from sorter.pipeline import archives
from sorter.pipeline.archives import Read
from sorter.pipeline.intake import Whole
from sorter.take import kinds, unpack
from sorter.take.archive import STALLED, Unpacking
from sorter.take.filing import Filed
from sorter.testing.waiting import wait_until


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "spool")


Entries = dict[str, bytes]


def zipped(entries: Entries, **how: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how.pop("compression", zipfile.ZIP_DEFLATED), **how) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(entries: Entries, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def as_zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


SEVERAL = {f"series/IM{number:04d}": image(number) for number in range(1, 200)}
FORMS: dict[str, Callable[[Entries], bytes]] = {
    "zip": zipped,
    "stored.zip": lambda entries: zipped(entries, compression=zipfile.ZIP_STORED),
    "tar": tarred,
    "tar.gz": lambda entries: tarred(entries, "w:gz"),
    "tgz": lambda entries: gzip.compress(tarred(entries)),
    "tar.zst": lambda entries: as_zst(tarred(entries)),
}


def how(news: list[Any]) -> list[str]:
    return [each.end.how for each in news if isinstance(each, Read)]


# --- whole archives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ended", "nameless"])
def test_every_image_of_an_archive_is_taken_and_the_archive_goes(life: Life, form: str, name: str) -> None:
    life.drop(f"a.{form}" if name == "ended" else "a", FORMS[form](SEVERAL))
    news = life.settle()
    assert how(news) == ["whole"]
    assert life.images() == sorted(SEVERAL.values())
    assert life.left() == []
    assert life.aside() == {}
    assert {each.source.uid for each in life.stored()} == {os.getuid()}


@pytest.mark.parametrize("compress", [gzip.compress, as_zst], ids=["gz", "zst"])
def test_one_compressed_image_is_taken(life: Life, compress: Callable[[bytes], bytes]) -> None:
    life.drop("x/one.dcm.gz", compress(image(1)))
    assert how(life.settle()) == ["whole"]
    assert life.images() == [image(1)]


def test_gzip_files_one_after_the_other_are_one(life: Life) -> None:
    content = image(1)
    life.drop("one.gz", gzip.compress(content[:100]) + gzip.compress(content[100:]) + bytes(512))
    assert how(life.settle()) == ["whole"]
    assert life.images() == [content]


def test_an_archive_that_is_read_ends_its_drop(life: Life) -> None:
    life.drop("a.zip", zipped({"1": image(1), "2": image(2)}))
    news = life.settle()
    [whole] = [each for each in news if isinstance(each, Whole)]
    assert {each.source.drop for each in life.stored()} == {whole.drop} == {"incoming/a.zip"}
    assert news.index(whole) > max(news.index(each) for each in news if isinstance(each, Filed))


def test_archives_of_one_folder_end_together(life: Life) -> None:
    """A series may be split over them."""
    for number in (1, 2, 3):
        life.drop(f"x/{number}.zip", zipped({"i": image(number)}))
    news = life.settle()
    first = next(number for number, each in enumerate(news) if isinstance(each, Whole))
    assert len([each for each in news[:first] if isinstance(each, Read)]) == 3
    assert len([each for each in news if isinstance(each, Whole)]) == 3


def test_what_is_no_image_is_set_aside_by_itself_with_its_place_in_the_archive(life: Life) -> None:
    life.drop(
        "x/a.zip", zipped({"README.txt": b"Dear colleague, " * 9, "d/1": image(1), "e": b"", "d/t": image(2)[:-9]})
    )
    assert how(life.settle()) == ["whole"]
    assert life.images() == [image(1)]
    reasons = life.aside()
    assert "text" in reasons["incoming/x/a.zip/README.txt"]
    assert "empty" in reasons["incoming/x/a.zip/e"]
    assert "truncated" in reasons["incoming/x/a.zip/d/t"]
    assert life.aside_bytes()["incoming/x/a.zip/README.txt"] == b"Dear colleague, " * 9
    assert len(reasons) == 3
    assert life.left() == ["incoming/x"]


def test_a_data_set_without_file_meta_gets_one_and_leaves_no_copy(life: Life) -> None:
    content = image(1)
    life.drop("a.zip", zipped({"1": content[content.index(b"\x08\x00\x16\x00") :]}))
    life.settle()
    [stored] = life.images()
    assert stored[128:132] == b"DICM"
    assert life.left() == []


def test_the_same_archive_again_changes_nothing(life: Life) -> None:
    for _ in range(2):
        life.drop("a.tar", tarred(SEVERAL))
        [read] = [each for each in life.settle() if isinstance(each, Read)]
    assert (read.images, read.known) == (0, len(SEVERAL))
    assert len(life.images()) == len(SEVERAL)


def test_archives_in_an_archive_are_read_one_level_deep(life: Life) -> None:
    inner = {"a.zip": zipped({"1": image(1)}), "b.tar.gz": tarred({"2": image(2)}, "w:gz")}
    inner |= {"c.dcm.gz": gzip.compress(image(3)), "notes.txt.gz": gzip.compress(b"hello")}
    life.drop("all.zip", zipped({**inner, "deep.tar": tarred({"d.zip": zipped({"4": image(4)})})}))
    life.settle()
    assert life.images() == sorted([image(1), image(2), image(3)])
    assert life.aside() == {
        "incoming/all.zip/notes.txt.gz": "a gzip file, not DICOM",
        "incoming/all.zip/deep.tar/d.zip": "a ZIP archive, not DICOM",
    }
    assert {each.source.drop for each in life.stored()} == {"incoming/all.zip"}


def test_a_dicom_file_that_starts_like_an_archive_is_none(life: Life) -> None:
    content = b"PK\3\4" + image(1)[4:]
    life.drop("x", content)
    life.settle()
    assert life.images() == [content]


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = ["../../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x\\..\\y", "..", ".", "a\nb", "\x1b[2J", "\u202egpj",
         "x" * 4000, "é", "e\u0301", "con", "a//b", "nul\0l"]  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_names_of_entries_are_text_and_nothing_else(life: Life, tmp_path: Path, form: str) -> None:
    junk = {name: f"text of entry {number}".encode() for number, name in enumerate(NAMES)}
    life.drop("a", FORMS[form]({**junk, "../" * 9 + "image": image(1)}))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(life.spool.root)}
    assert how(life.settle()) == ["whole"]
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(life.spool.root)} == before
    assert life.images() == [image(1)]
    assert sorted(path.read_bytes() for path, _ in life.spool.quarantined()) == sorted(junk.values())
    for origin in life.aside():
        assert origin.startswith("incoming/a/")
        assert origin.isprintable()
        assert ".." not in origin.split("/")
        assert len(origin) < 300


def test_links_devices_and_folders_in_a_tar_are_not_followed(life: Life, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(image(7))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"x{kind!r}")
            info.type, info.linkname = kind, str(tmp_path / "secret")
            archive.addfile(info)
        info = tarfile.TarInfo("image")
        info.size = len(image(1))
        archive.addfile(info, io.BytesIO(image(1)))
    life.drop("a.tar", buffer.getvalue())
    [read] = [each for each in life.settle() if isinstance(each, Read)]
    assert (read.end.how, read.end.other) == ("whole", 4)
    assert life.images() == [image(1)]
    assert (tmp_path / "secret").exists()


def test_a_symbolic_link_in_a_zip_is_not_followed(life: Life) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("image", image(1))
    life.drop("a.zip", buffer.getvalue())
    [read] = [each for each in life.settle() if isinstance(each, Read)]
    assert (read.end.other, read.images, read.aside) == (1, 1, 0)


@pytest.mark.parametrize("becomes", ["nothing", "another"])
def test_an_archive_that_goes_while_another_is_read_is_no_trouble(life: Life, becomes: str) -> None:
    """It was called one that cannot be read now, until something else came."""
    for name in ("a.zip", "b.zip"):
        life.drop(name, zipped({"image": image(1)}))
    [lane, _] = life.intake.archives.lanes
    wait_until(lambda: life.turn() or lane.waiting or setattr(life, "now", life.now + 1))
    second = lane.waiting[0].path
    second.unlink()
    if becomes == "another":
        life.drop(second.name, zipped({"image": image(2)}))
    life.settle(20)
    assert life.intake.problems() == []
    assert life.images() == [image(1), *[image(2)] * (becomes == "another")]
    assert life.left() == []


@pytest.mark.parametrize("made_on", [0, 3], ids=["dos", "unix"])
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_what_has_the_content_of_an_image_is_no_link_whatever_its_archive_calls_it(
    life: Life, kind: int, made_on: int
) -> None:
    large, small = written(data_set(1, PixelData=bytes(1 << 16))), image(3)
    assert len(small) < unpack.LONGEST_LINK
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("image", large), ("report", small)):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = made_on, (kind | 0o777) << 16
            archive.writestr(info, content)
        folder = zipfile.ZipInfo("folder/")
        folder.create_system = made_on
        archive.writestr(folder, image(2))
    life.drop("a.zip", buffer.getvalue())
    life.settle()
    assert life.images() == sorted([large, image(2), small])


@pytest.mark.parametrize("kind", [b"Z", b"M"], ids=["unknown", "the rest of another volume's"])
def test_what_a_tar_archive_holds_by_another_kind_is_not_lost(life: Life, kind: bytes) -> None:
    """A kind that nobody knows is a file (POSIX, ustar); what continues another archive's entry is none by itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in (1, 2):
            info = tarfile.TarInfo(f"{number}")
            info.size, info.type = len(image(number)), kind if number == 1 else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(image(number)))
    life.drop("a.tar", buffer.getvalue())
    life.settle()
    if kind == b"Z":
        assert life.images() == [image(1), image(2)]
    else:
        assert life.images() == [image(2)]
        assert "volume" in life.aside()["incoming/a.tar"]
        assert life.aside_bytes()["incoming/a.tar"] == buffer.getvalue()


@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_what_a_zip_archive_does_not_list_is_not_lost(life: Life, where: str) -> None:
    """Two that were written one after the other into one file, or one whose directory misses an entry."""
    if where == "before":
        content = zipped({"1": image(1)}) + zipped({"2": image(2)})
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number in (1, 2, 3):
                archive.writestr(f"{number}", image(number))
            del archive.filelist[1 if where == "between" else 2]
        content = buffer.getvalue()
    life.drop("a.zip", content)
    life.settle()
    assert "does not list" in life.aside()["incoming/a.zip"]
    assert life.aside_bytes()["incoming/a.zip"] == content
    assert image(2 if where == "before" else 1) in life.images()


# --- broken ones ----------------------------------------------------------------------------------------------------

WHOLE = {name: SEVERAL[name] for name in list(SEVERAL)[:9]}


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_entry_that_is_damaged_is_no_error_of_the_disk(life: Life, compression: int) -> None:
    """Python's bzip2 says so by an OSError."""
    content = bytearray(zipped({"1": image(1), "2": image(2)}, compression=compression))
    content[70:90] = bytes(20)
    life.drop("a.zip", bytes(content))
    assert how(life.settle()) == ["broken"]
    assert life.aside_bytes() == {"incoming/a.zip": bytes(content)}
    assert life.images() == [image(2)]


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_that_ends_early_waits_and_is_set_aside_whole_in_the_end(life: Life, form: str) -> None:
    content = FORMS[form](WHOLE)
    content = content[: 9000 if form == "tar" else len(content) * 2 // 3]
    life.drop(f"a.{form}", content)
    assert "truncated" in how(life.settle())
    assert life.aside() == {}
    assert life.left() == [f"incoming/a.{form}"]
    life.settle(700)
    [(origin, reason)] = life.aside().items()
    assert origin == f"incoming/a.{form}"
    assert "truncated" in reason
    assert life.aside_bytes()[origin] == content
    assert set(life.images()) <= set(WHOLE.values())
    assert life.left() == []


@pytest.mark.parametrize("compress", [gzip.compress, as_zst], ids=["gz", "zst"])
def test_one_compressed_image_that_ends_early_waits(life: Life, compress: Callable[[bytes], bytes]) -> None:
    """Wherever it ends: whoever writes it may go on in an hour."""
    image = written(data_set(1, PixelData=random.Random(1).randbytes(400_000)))
    content = compress(image)
    ends = [100, 150_000, len(content) - 100, len(content) - 1]
    for end in ends:
        life.drop(f"{end}.dcm", content[:end])
    assert set(how(life.settle())) == {"truncated"}
    assert life.aside() == {}
    for end in ends:
        life.drop(f"{end}.dcm", content)
    assert set(how(life.settle(30))) == {"whole"}
    assert life.images() == [image]
    assert life.left() == []


ONE, NOISE = as_zst(b"1"), random.Random(1).randbytes(300_000)
SKIPPED = b"\x5f\x2a\x4d\x18\x05\0\0\0abcde"
PLAIN = zstandard.ZstdCompressor(write_content_size=False)
FRAMES = {
    "one": [as_zst(b"x" * 300_000)],
    "of several blocks": [as_zst(NOISE)],
    "without a checksum, or its size": [PLAIN.compress(NOISE)],
    "several": [ONE, PLAIN.compress(NOISE[:70_000]), as_zst(b"")],
    "one to be skipped": [ONE, SKIPPED, as_zst(b"2" * 1000)],
}


@pytest.mark.parametrize("name", FRAMES)
def test_the_end_of_a_zstandard_file_is_seen(name: str) -> None:
    content, ends = b"".join(FRAMES[name]), list(itertools.accumulate(map(len, FRAMES[name])))

    def is_whole(size: int) -> bool:
        stream = unpack.Zstandard(io.BytesIO(content[:size]))
        try:
            while stream.read(100_000):
                pass
        except unpack.Truncated:
            return False
        return True

    sizes = {size for end in ends for size in range(end - 20, end + 20)} | set(range(200))
    assert sorted(filter(is_whole, (size for size in sizes if 0 < size <= len(content)))) == ends


def test_an_archive_that_grows_is_read_when_it_stands_still(life: Life) -> None:
    content = tarred(WHOLE)
    path = life.drop("a.tar", content[:9000])
    life.settle()
    with path.open("ab") as file:
        file.write(content[9000:])
    assert how(life.settle())[-1] == "whole"
    assert life.images() == sorted(WHOLE.values())
    assert life.aside() == {}


def test_one_bad_entry_of_a_zip_keeps_the_archive_and_stops_no_other(life: Life) -> None:
    content = bytearray(zipped(WHOLE, compression=zipfile.ZIP_STORED))
    bad = WHOLE["series/IM0004"]
    content[content.index(bad) + len(bad) - 1] ^= 1
    life.drop("a.zip", bytes(content))
    assert how(life.settle()) == ["broken"]
    assert life.images() == sorted(set(WHOLE.values()) - {bad})
    assert life.aside()["incoming/a.zip"].startswith("1 of its entries could not be read")
    assert life.aside_bytes()["incoming/a.zip"] == bytes(content)
    assert life.left() == []


def damaged(content: bytes, at: float) -> bytes:
    place = int(len(content) * at)
    return content[:place] + bytes(byte ^ 0xA5 for byte in content[place : place + 600]) + content[place + 600 :]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_damage_anywhere_loses_nothing(life: Life, form: str, at: float) -> None:
    content = damaged(FORMS[form](WHOLE), at)
    life.drop("a", content)
    life.settle(700)
    aside = life.aside_bytes()
    assert life.left() == []
    assert aside.get("incoming/a") == content or len(life.images()) + len(aside) == len(WHOLE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"hello, world"), "holds neither a DICOM file nor a tar archive"),
        (as_zst(b"hello, world"), "holds neither a DICOM file nor a tar archive"),
        (zipped({}), "an archive without a file in it"),
        (tarred(WHOLE) * 2, "other bytes follow the end mark"),
        (gzip.compress(image(1)) + b"more", "other bytes follow"),
        (zipped(WHOLE).replace(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x01\x00\x08\x00"), "encrypted"),
    ],
    ids=["gzip of text", "zst of text", "empty zip", "tar twice", "gzip and more", "encrypted"],
)
def test_what_cannot_be_read_is_set_aside_whole_with_its_reason(life: Life, content: bytes, reason: str) -> None:
    life.drop("x/a", content)
    life.settle()
    assert reason in life.aside()["incoming/x/a"]
    assert life.aside_bytes()["incoming/x/a"] == content
    assert life.left() == ["incoming/x"]


def test_without_its_library_a_zstandard_file_says_what_to_install(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(unpack.Broken, match=r"mri-sorter\[zstd\].*quarantine retry"):
        unpack.Zstandard(io.BytesIO(as_zst(image(1))))


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_bounded_part_is_unpacked_at_any_time(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.drop("a.tar.gz", tarred({str(number): image(number) for number in range(300)}, "w:gz"))
    most = 0
    take = life.filing.take

    def counting(candidates: Any) -> Any:
        nonlocal most
        most = max(most, len(os.listdir(life.spool.taking)))
        return take(candidates)

    monkeypatch.setattr(life.filing, "take", counting)
    assert how(life.settle()) == ["whole"]
    assert len(life.images()) == 300
    assert unpack.BUNCH <= most <= 2 * unpack.BUNCH


def test_an_image_that_is_dropped_meanwhile_does_not_wait_for_the_archive(life: Life) -> None:
    life.drop("a.tar", tarred(SEVERAL))
    life.turn()
    life.now += 2.1
    life.turn()
    assert life.intake.archives.lanes[0].archive is not None
    life.drop("one", image(500))
    life.now += 1
    life.turn()
    life.now += 2.1
    single = [each for each in life.turn() if isinstance(each, Filed) and each.candidate.door is not None]
    assert [each.outcome for each in single] == ["new"]
    assert any(lane.all for lane in life.intake.archives.lanes)
    life.settle()
    assert len(life.images()) == len(SEVERAL) + 1


def test_many_archives_leave_room_for_images(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_WAITING", 3)
    for number in range(12):
        life.drop(f"x/{number}.gz", gzip.compress(image(number)))
    life.settle(40)
    assert len(life.images()) == 12
    assert life.left() == ["incoming/x"]


@pytest.mark.parametrize("form", ["zip", "tar.gz", "tar.zst"])
def test_a_bomb_ends_early(life: Life, form: str) -> None:
    bomb = FORMS[form]({"a": bytes(unpack.ALWAYS), "b": bytes(unpack.ALWAYS)})
    assert len(bomb) < 1 << 20
    life.drop("bomb", bomb)
    life.settle()
    assert "times larger" in life.aside()["incoming/bomb"]
    assert life.aside_bytes()["incoming/bomb"] == bomb


# --- what goes wrong besides ------------------------------------------------------------------------------------------


def test_a_child_that_is_ended_is_no_fault_of_the_archive(life: Life) -> None:
    life.drop("a.tar", tarred(SEVERAL))
    life.turn()
    life.now += 2.1
    life.turn()
    unpacking = life.intake.archives.lanes[0].unpacking
    assert unpacking is not None
    os.kill(unpacking.pid, signal.SIGTERM)
    assert "later" in how(life.settle(20))
    assert life.images() == sorted(SEVERAL.values())
    assert life.aside() == {}
    assert life.left() == []


def test_a_child_that_runs_into_a_limit_keeps_the_archive(life: Life) -> None:
    life.drop("a.tar", tarred(SEVERAL))
    life.turn()
    life.now += 2.1
    life.turn()
    unpacking = life.intake.archives.lanes[0].unpacking
    assert unpacking is not None
    os.kill(unpacking.pid, signal.SIGXCPU)
    assert "broken" in how(life.settle(20))
    assert "more memory or time" in life.aside()["incoming/a.tar"]
    assert life.aside_bytes()["incoming/a.tar"] == tarred(SEVERAL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_archive_of_which_no_copy_could_be_made_stays(life: Life, number: signal.Signals) -> None:
    """Whatever ends the copying child: only what lies in quarantine as a whole is removed."""
    content = tarred(SEVERAL) + b"x" * 512
    life.drop("a.tar", content)
    life.turn()
    life.now += 2.1
    lane = life.intake.archives.lanes[0]
    wait_until(lambda: life.turn() is None or lane.broken is not None, 20, "the archive to be copied")
    assert lane.unpacking is not None
    os.kill(lane.unpacking.pid, number)
    wait_until(lambda: how(life.turn()) == ["later"], 20, "the child to be missed")
    assert "incoming/a.tar" in life.left()
    life.settle(20)
    assert life.aside_bytes() == {"incoming/a.tar": content}
    assert life.left() == []


def waiting_child(folder: Path) -> tuple[Unpacking, int]:
    """A child that copies an archive and was stopped at its start, and the archive's descriptor."""
    (folder / "entries").mkdir()
    (folder / "a.tar").write_bytes(tarred(WHOLE))
    fd = os.open(folder / "a.tar", os.O_RDONLY)
    unpacking = Unpacking(Files(), folder / "entries", fd, copy=True)
    os.kill(unpacking.pid, signal.SIGSTOP)
    return unpacking, fd


def test_an_entry_that_takes_long_is_waited_for_while_it_grows(tmp_path: Path) -> None:
    unpacking, fd = waiting_child(tmp_path)
    [entry] = (tmp_path / "entries").iterdir()
    assert unpacking.entries(0.0) == []
    for number in range(1, 4):
        with entry.open("ab") as file:
            file.write(b"more")
        unpacking.entries(number * (STALLED + 1.0))
        assert unpacking.end is None
    unpacking.entries(4 * (STALLED + 1.0))
    assert unpacking.end is not None
    assert unpacking.end.how == "broken"
    os.close(fd)


def test_a_disk_that_is_full_for_long_is_no_fault_of_the_archive(tmp_path: Path) -> None:
    """The child has said nothing, as nobody asked it to go on."""
    (tmp_path / "entries").mkdir()
    (tmp_path / "a.tar").write_bytes(tarred(SEVERAL))
    fd = os.open(tmp_path / "a.tar", os.O_RDONLY)
    unpacking, hours = Unpacking(Files(), tmp_path / "entries", fd), itertools.count()
    names = list[str]()

    def bunch() -> bool:
        """Until one comes the clock stands still; it is a while before the next is asked for."""
        found = unpacking.entries(now)
        names.extend(name for _, name in found)
        return bool(found) or unpacking.end is not None

    while unpacking.end is None:
        now = next(hours) * 3600.0
        wait_until(bunch, 20, "a bunch")
    assert unpacking.end.how == "whole"
    assert names == list(SEVERAL)
    os.close(fd)


def test_a_full_disk_is_waited_out(tmp_path: Path) -> None:
    class Full(Files):
        left = 5

        def link(self, *args: Any, **kwargs: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            super().link(*args, **kwargs)

    files = Full()
    life = Life(tmp_path / "spool", files)
    life.drop("a.zip", zipped(WHOLE))
    life.turn()
    life.now += 2.1
    for _ in range(3):
        life.turn()
    life.now += 2.1
    wait_until(lambda: life.turn() is None or "No space" in life.intake.problem, 10, "the full disk to be noticed")
    assert life.left()
    files.left = 1000
    life.settle(20)
    assert life.images() == sorted(WHOLE.values())
    assert life.left() == []
    assert life.aside() == {}


def test_after_a_crash_the_archive_is_read_again(tmp_path: Path) -> None:
    """The process ends before each effect of the reading life in turn."""
    content = zipped({"1": image(1), "2": image(2), "README": b"words, " * 40})

    class PowerCut(BaseException):
        pass

    class Crashing(Files):
        at, count = 0, 0

        def _effect(self) -> None:
            self.count += 1
            if self.count == self.at:
                raise PowerCut

    def wrap(name: str) -> Any:
        def effect(self: Crashing, *args: Any, **kwargs: Any) -> Any:
            self._effect()
            return getattr(Files, name)(self, *args, **kwargs)

        return effect

    for name in ("link", "unlink", "write", "mkdir", "rename"):
        setattr(Crashing, name, wrap(name))
    at, ended = 0, False
    while not ended:
        at += 3
        root = tmp_path / str(at)
        Life(root).drop("a.zip", content)
        files = Crashing()
        try:
            life = Life(root, files)
            files.at, files.count = at, 0
            life.settle(2.2)
            ended = True
        except PowerCut:
            life.intake.stop()
        after = Life(root)
        after.settle()
        assert after.images() == sorted([image(1), image(2)]), f"after a crash before effect {at}"
        assert set(after.aside()) == {"incoming/a.zip/README"}
        assert after.left() == []
    assert at > 15


# --- kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_kinds_are_known_by_content(form: str) -> None:
    kind = kinds.archive(FORMS[form](WHOLE)[: kinds.HEAD])
    assert (
        kind
        == {"zip": kinds.ZIP, "tar": kinds.TAR, "gz": kinds.GZIP, "tgz": kinds.GZIP, "zst": kinds.ZSTANDARD}[
            form.rpartition(".")[2]
        ]
    )


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_known(form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        info = tarfile.TarInfo("é" * 40)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert kinds.archive(buffer.getvalue()[:512]) == kinds.TAR


@pytest.mark.parametrize("head", [b"", b"PK", bytes(512), b"\x08\0\x05\0UI", image(1)[:512], b"text " * 200])
def test_other_things_are_no_archives(head: bytes) -> None:
    assert kinds.archive(head[:512]) == ""
