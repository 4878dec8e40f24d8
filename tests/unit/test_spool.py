"""The spool as a whole: made once by whoever comes first, refused when it is newer, locked by one."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sorter.cli.main import sorter
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.spool import Spool
from tests.bench import start


def test_several_processes_may_make_it_at_the_same_moment(tmp_path: Path) -> None:
    for number in range(20):
        spools = [Spool(tmp_path / str(number), Files()) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(Spool.create, spools))
        assert (spools[0].root / "version").read_text() == "1\n"


def test_a_newer_spool_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("3\n")
    with pytest.raises(SorterError, match="newer sorter"):
        Spool(tmp_path, Files()).create()


@pytest.mark.parametrize(("error", "says"), [(errno.EACCES, "install -d -o "), (errno.EROFS, "Read-only file system")])
def test_one_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path, error: int, says: str) -> None:
    class Refusing(Files):
        def mkdir(self, path: Any, mode: int = 0o700, *, at: int | None = None) -> None:
            raise OSError(error, os.strerror(error), str(path))

    with pytest.raises(SorterError, match=f"spool {tmp_path}/spool cannot be used: .*{says}"):
        Spool(tmp_path / "spool", Refusing()).create()


def test_its_folders_are_closed_to_others_and_incoming_is_open_to_its_group(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    modes = {
        name: (spool.root / name).stat().st_mode & 0o7777 for name in ("received", "store", "incoming", "quarantine")
    }
    assert modes == {"received": 0o700, "store": 0o700, "incoming": 0o3770, "quarantine": 0o700}


def test_a_second_sorter_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Files())
    spool.create()
    first = spool.lock()
    with pytest.raises(SorterError, match="another sorter is sorting"):
        spool.lock()
    spool.files.close(first)
    spool.files.close(spool.lock())


def test_a_command_refuses_a_newer_spool_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", Files())
    spool.create()
    (spool.root / "version").write_text("3\n")
    done = CliRunner().invoke(sorter, ["status", "--root", str(tmp_path)])
    assert (done.exit_code, "newer sorter" in str(done.exception)) == (1, True)


def test_a_start_is_ready_before_it_walked_the_store(tmp_path: Path) -> None:
    few, many = (start.measure(tmp_path / str(series), series, 20) for series in (1, 120))
    assert (few.instances, many.instances) == (20, 2400)
    assert many.looked == few.looked > 0
