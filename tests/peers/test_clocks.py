"""A sorter that really runs, and whose wall clock is set by years.

A library of a few lines of C, loaded before libc, lies to it of the wall clock and of no other. (libfaketime 0.9.10
makes Python's sleep fail.)
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sorter.scu.storage import send
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until

pytestmark = [pytest.mark.peers, pytest.mark.sample]

QUIET = 5.0
HOUR, DECADE = 3600, 315_360_000
LABS = """
[labs.scans]
match = ["Modality=MR"]
products = ["dicom"]
expect_daily = "00:01"

[[senders]]
ae = "SCANNER"
silent_after = "1m"
"""


LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *at)
{
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at), file;
    char text[32] = {0};
    if (result == 0 && id == CLOCK_REALTIME && (file = open(getenv("TEST_CLOCK"), O_RDONLY | O_CLOEXEC)) >= 0) {
        if (read(file, text, sizeof text - 1) > 0)
            at->tv_sec += atol(text);
        close(file);
    }
    return result;
}
"""


class Clock:
    """The wall clock of a program: that of the machine, and so many seconds more."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler: install the package gcc")
        self._file, source, library = folder / "clock", folder / "clock.c", folder / "clock.so"
        source.write_text(LIBRARY)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.prefix = ("env", f"LD_PRELOAD={library}", f"TEST_CLOCK={self._file}")
        self.set(0)

    def set(self, seconds: int) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(str(seconds))
        beside.replace(self._file)


def give(sorter: RunningSorter, paths: Sequence[Path]) -> float:
    """The time (monotonic seconds) before the last image can have come."""
    report = send(paths, "127.0.0.1", sorter.port, called="SORTER", calling="SCANNER", progress=lambda _: None)
    assert report.sent == len(paths)
    return time.monotonic()


def images(sorter: RunningSorter) -> dict[str, int]:
    return {str(path): path.stat().st_ino for path in sorter.labs.rglob("*.dcm")}


@pytest.mark.parametrize(("there", "back"), [(HOUR, -HOUR), (DECADE, -DECADE), (-DECADE, DECADE)])
def test_a_clock_that_is_set_publishes_nothing_and_deletes_nothing(
    sample: Path, tmp_path: Path, there: int, back: int
) -> None:
    first, second = sorted((sample / "data/nih-siemens/mr_0003").glob("*.dcm"))
    other = sorted((sample / "data/nih-siemens/mr_0004").glob("*.dcm"))
    clock = Clock(tmp_path)
    with RunningSorter(tmp_path / "site", quiet=QUIET, config=LABS, prefix=clock.prefix) as sorter:
        came = give(sorter, [first])
        wait_until(sorter.series, 10, "the image to be taken")
        clock.set(there)
        sorter.wait_delivered(1)
        assert time.monotonic() - came > QUIET - 0.5, "the step of the clock was taken for silence"
        delivered = images(sorter)
        assert len(delivered) == 1

        clock.set(back)
        came = give(sorter, other)
        found = sorter.wait_delivered(3)
        assert time.monotonic() - came > QUIET - 0.5
        assert [each.revision for each in found] == [1, 1]
        assert images(sorter).items() >= delivered.items()

        sorter.kill()
        clock.set(there)
        sorter.start()
        give(sorter, [first, second, *other])
        found = sorter.wait_delivered(4)
        assert sorted(each.revision for each in found) == [1, 2]
        assert images(sorter).items() >= delivered.items()
        journal = "".join(path.read_text() for path in sorter.spool.journal.glob("*.jsonl"))
        assert '"published"' in journal
        for kind in ("study_settled", "daily_missing", "sender_silent"):
            assert f'"{kind}"' not in journal, "the step of the clock was taken for time that passed"
