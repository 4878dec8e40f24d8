"""The hostile set, one file after the other, through the real intake: what must hold, in bounded time and memory."""

from __future__ import annotations

import gc
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.bench import Life
from hostile.cases import ALL, Case

from sorter.take import kinds
from sorter.take.filing import Filed
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import many
from sorter.testing.waiting import wait_until

MOST_SECONDS = 1.0
MOST_MEMORY = 200 << 20
NAMES_IN_STORE = re.compile(
    r"[0-9a-f]{2}(/[0-9a-f]{32,64}(/(images(/[0-9a-f]{2}(/[0-9a-f-]+\.dcm)?)?|evidence\.jsonl))?)?"
)


def peak() -> int:
    """Bytes of memory that this process used at most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM in /proc/self/status")


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def largest_child() -> int:
    """Bytes that the largest child of this process so far used at most, those of other tests included.

    Until it executes its program a child has the memory of this process, and the kernel counts that as its own.
    """
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10


def seconds() -> float:
    """Of processor, of this process and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def faults(case: Case, life: Life) -> Iterator[str]:
    """What does not hold of this case."""
    for path in life.spool.incoming.iterdir():
        raise AssertionError(f"{path} was left by the case before")
    before = {path for path, _ in life.spool.quarantined()}
    for name, content in case.files.items():
        life.drop(f"case/{name}", content)
    news = life.settle(4.5)
    filed = [each for each in news if isinstance(each, Filed)]
    good = sum(each.outcome in ("new", "same") for each in filed)
    reasons = {path: note["reason"] for path, note in life.spool.quarantined() if path not in before}
    if case.taken >= 0 and good != case.taken:
        yield f"{good} taken instead of {case.taken}; {[(each.outcome, each.why) for each in filed]}"
    waiting = [path for path in life.spool.incoming.rglob("*") if path.is_file()]
    if len(waiting) != case.waits:
        yield f"{len(waiting)} wait instead of {case.waits}: {sorted(reasons.values())}"
    if case.taken >= 0 and len(reasons) != len(case.aside):
        yield f"{len(reasons)} set aside instead of {len(case.aside)}: {sorted(reasons.values())}"
    unsaid = [reason for reason in reasons.values() if case.aside and not any(re.search(p, reason) for p in case.aside)]
    if unsaid:
        yield f"set aside for another reason: {unsaid}"
    kept = {path.read_bytes() for path in reasons} | {path.read_bytes() for path in waiting}
    for name, content in case.files.items():
        if not case.taken and not kinds.archive(content[:512]) and content not in kept:
            yield f"{name!r} is neither in quarantine nor where it was"
    for path in waiting:
        path.unlink()
    life.settle(4.5)
    for path in sorted(life.spool.incoming.rglob("*"), reverse=True):
        path.rmdir()


@pytest.mark.parametrize("group", ALL, ids=lambda group: group.__name__)
def test_the_hostile_set(group: Callable[[], Iterator[Case]], tmp_path: Path) -> None:
    life = Life(tmp_path / "spool")
    wrong, count = [], 0
    around, earlier, ours = sorted(os.listdir(tmp_path)), largest_child(), 0
    gc.collect()
    gc.freeze()  # what thousands of tests before this one left is not looked through in the time of a case
    for case in group():
        count += 1
        base, begun = forget_peak(), seconds()
        wrong += [f"{case.name}: {fault}" for fault in faults(case, life)]
        ours = max(ours, peak())
        took, used = seconds() - begun, peak() - base
        if took > MOST_SECONDS:
            wrong.append(f"{case.name}: took {took:.2f} s")
        if used > MOST_MEMORY:
            wrong.append(f"{case.name}: took {used >> 20} MB")
    assert not wrong, f"{len(wrong)} of {count} cases:\n" + "\n".join(wrong)
    assert largest_child() <= max(earlier, ours, MOST_MEMORY)
    assert sorted(os.listdir(tmp_path)) == around
    assert not list(life.spool.taking.iterdir())
    assert not Path("/tmp/escaped").exists()
    for path in life.spool.store.rglob("*"):
        assert NAMES_IN_STORE.fullmatch(str(path.relative_to(life.spool.store))), path


def test_there_are_enough() -> None:
    names = [case.name for group in ALL for case in group()]
    print(f"{len(names)} hostile cases")
    assert len(names) == len(set(names)) > 400


@pytest.mark.slow
def test_all_of_it_beside_a_scan_of_a_running_sorter(tmp_path: Path) -> None:
    """Every case at once, dropped while good images come: those are delivered, and each file is somewhere."""
    good = list(many(200, seed=5, a_series=100))
    cases = [case for group in ALL for case in group()]
    with RunningSorter(tmp_path / "site", quiet=2) as sorter:
        for number, case in enumerate(cases):
            folder = sorter.spool.incoming / f"case-{number}"
            for name, content in case.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            if number % 3 == 0 and good:
                name, content = good.pop()
                (sorter.spool.incoming / f"good-{number}").mkdir()
                (sorter.spool.incoming / f"good-{number}" / name).write_bytes(content)
        expected = {content for _, content in many(200, seed=5, a_series=100)} - {content for _, content in good}
        wait_until(lambda: expected <= _contents(sorter.spool.store), 120, "the good images")
        aside = sum(len(case.aside) for case in cases if case.taken >= 0)
        wait_until(lambda: len(list(sorter.spool.quarantined())) >= aside, 120, f"{aside} files to be set aside")
        assert not Path("/tmp/escaped").exists()
        assert {each.name for each in tmp_path.iterdir()} == {"site"}
        for path in sorter.spool.store.rglob("*.dcm"):
            assert NAMES_IN_STORE.fullmatch(str(path.relative_to(sorter.spool.store))), path
        log = sorter.log.read_text()
        assert "started again" not in log, "no process died of it"
        assert "Traceback" not in log


def _contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*.dcm")}
