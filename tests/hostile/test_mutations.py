"""Real and made files, damaged at random: each ends in a result or in a reason, soon, and nothing else is raised."""

from __future__ import annotations

import io
import os
import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from hostile import cases
from hostile.shapes import FOLDERS, SHIPPED

from sorter.durable import Files
from sorter.errors import Quarantine
from sorter.take import kinds
from sorter.take.contents import DEFLATED
from sorter.take.header import Parsed, examine, file_meta

MOST_SECONDS = 1.0
LARGEST = 200_000  # bytes of a file that is damaged: damage to a header is what matters
NASTY = (
    b"\xff\xff\xff\xff", b"\xfe\xff\xff\xff", b"\0\0\0\0", b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0",
    b"\xfe\xff\xdd\xe0", b"SQ\0\0", b"UN\0\0\xff\xff\xff\xff", b"\xe0\x7f\x10\0", b"\x1b$B", b"\x02\0\x10\0",
)  # fmt: skip

UID = re.compile(r"[0-9.]{1,64}")

Mutation = Callable[[random.Random, bytearray], None]


def flip_bits(rng: random.Random, content: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[place(rng, content)] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, content: bytearray) -> None:
    del content[place(rng, content) :]


def insert(rng: random.Random, content: bytearray) -> None:
    at = place(rng, content)
    content[at:at] = rng.choice([rng.randbytes(rng.randrange(1, 40)), rng.choice(NASTY)])


def overwrite(rng: random.Random, content: bytearray) -> None:
    piece, at = rng.choice(NASTY), place(rng, content)
    content[at : at + len(piece)] = piece


def swap(rng: random.Random, content: bytearray) -> None:
    size = rng.randrange(1, 200)
    one, other = sorted((place(rng, content), place(rng, content)))
    if one + size <= other:
        content[one : one + size], content[other : other + size] = (
            content[other : other + size],
            content[one : one + size],
        )


def repeat(rng: random.Random, content: bytearray) -> None:
    at = place(rng, content)
    content[at:at] = content[at : at + rng.randrange(1, 400)] * rng.choice((1, 2, 50))


MUTATIONS: list[Mutation] = [flip_bits, cut, insert, overwrite, swap, repeat]


def place(rng: random.Random, content: bytearray) -> int:
    """Anywhere, the header more often than the pixels."""
    return rng.randrange(min(len(content), rng.choice((200, 2000, 1 << 30)))) if content else 0


def originals(sample: Path | None) -> list[bytes]:
    paths = [path for folder in FOLDERS for path in sorted((SHIPPED / folder).rglob("*")) if path.is_file()]
    if sample is not None:
        paths += sorted(path for path in (sample / "data").rglob("*") if path.is_file())[::7]
    shipped = [path.read_bytes()[:LARGEST] for path in paths]
    made = [
        cases.file(),
        cases.file(cases.IMPLICIT),
        cases.file(cases.BIG),
        cases.data_set(),
        cases.file(more=cases.items(9)),
    ]
    return [content for content in shipped if content] + made * 20


def parse(content: bytes) -> Parsed:
    fd = os.memfd_create("mutant")
    try:
        Files().write_all(fd, content)
        return examine(Files(), fd)
    finally:
        os.close(fd)


def agrees(content: bytes, parsed: Parsed) -> bool | None:
    """Does pydicom find the same instance?

    None where it cannot read the file, or goes on after what we refuse, or where the UID itself was damaged, so that it
    is none any more (PS3.5 9.1): it says what lies there, and sorter what of it can be a UID.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(
                io.BytesIO(content), force=True, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]
            )
            theirs = found.get("SOPInstanceUID")
    except Exception:  # noqa: BLE001  (pydicom raises whatever it likes at a broken file)
        return None
    uid = str(theirs).strip(" \0")
    return uid == parsed.sop_uid if UID.fullmatch(uid) else None


def damage(seed: int, count: int, sample: Path | None) -> Counter[str]:
    """Damage so many files; how many were taken and set aside. AssertionError names the seed of one that misbehaves."""
    files, said = originals(sample), Counter[str]()
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        content = bytearray(rng.choice(files))
        for _ in range(rng.choice((1, 1, 2, 4))):
            if content:
                rng.choice(MUTATIONS)(rng, content)
        raw = bytes(content)
        if kinds.archive(raw[: kinds.HEAD]):
            said["archive"] += 1
            continue
        begun = time.process_time()
        try:
            parsed = parse(raw)
        except Quarantine as reason:
            said[type(reason).__name__ if str(reason) else "no reason"] += 1
        except Exception as error:  # whatever it is, it must not be
            raise AssertionError(f"{error!r} at seed {seed}-{number}") from error
        else:
            said["taken"] += 1
            assert UID.fullmatch(parsed.sop_uid), f"not a UID at seed {seed}-{number}"
            same = agrees(raw, parsed) if parsed.transfer_syntax not in DEFLATED else None
            said[f"pydicom agrees: {same}"] += 1
            if not parsed.has_meta and parsed.transfer_syntax not in DEFLATED:
                again = parse(file_meta(parsed) + raw[parsed.dataset_offset :])
                assert again.dataset == parsed.dataset, f"another data set behind a file meta at seed {seed}-{number}"
        assert time.process_time() - begun < MOST_SECONDS, f"too slow at seed {seed}-{number}"
    print(f"seed {seed}, {count} damaged files: {dict(said)}")
    return said


def fair(said: Counter[str]) -> None:
    """Both ends are reached, and where pydicom reads an instance it is nearly always the same one."""
    assert not said["no reason"]
    assert said["taken"] > 20
    assert said["Quarantine"] > 20
    assert said["Truncated"] > 20
    assert said["pydicom agrees: False"] <= said["pydicom agrees: True"] // 50


def test_a_thousand_damaged_files() -> None:
    fair(damage(random.SystemRandom().randrange(1 << 32), 1000, None))


@pytest.mark.soak
def test_ten_thousand_damaged_files(sample: Path) -> None:
    fair(damage(random.SystemRandom().randrange(1 << 32), 10_000, sample))
