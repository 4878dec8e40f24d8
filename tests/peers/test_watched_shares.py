"""A tree of `[[watch]]` on a network mount that hangs or goes away: all of it is found, nothing half or twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from torture.arrivals import Image, write

from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import many
from sorter.testing.waiting import wait_until
from tests.peers.places import Fault, FuseShare, fuse_share, sshfs

pytestmark = [pytest.mark.peers, pytest.mark.timeout(500)]

NOWHERE = "[labs.nobody]\nmatch = ['PatientID=nobody']\n"


def watched(root: Path, take: str = "copy") -> str:
    return f'{NOWHERE}[[watch]]\npath = "{root}"\ntake = "{take}"\nobserver = "polling"\n'


def images(seed: int, count: int = 20) -> list[Image]:
    return list(many(count, seed=seed, a_series=10))


def stored(sorter: RunningSorter) -> list[bytes]:
    return sorted(path.read_bytes() for path in sorter.spool.store.rglob("*.dcm"))


def all_found(sorter: RunningSorter, sent: list[Image], seconds: float = 100) -> None:
    wanted = sorted(content for _, content in sent)
    wait_until(lambda: stored(sorter) == wanted, seconds, f"{len(sent)} images in the store")
    assert not list(sorter.spool.quarantined())


def beside(sorter: RunningSorter, seed: int) -> list[Image]:
    """What is dropped meanwhile into incoming/, by number."""
    some = images(seed, 1)
    write(sorter.spool.incoming / f"beside-{seed}", some)
    return some


def write_behind(share: FuseShare, name: str, some: list[Image]) -> None:
    """As other machines do: the kernel here hears nothing of it."""
    write(share.behind / name, some)
    share.behind.joinpath(name).chmod(0o777)


def test_one_that_hangs_is_said_and_holds_up_nobody(tmp_path: Path) -> None:
    with (
        fuse_share(tmp_path / "share", "nfs") as share,
        RunningSorter(tmp_path / "site", quiet=300, config=watched(share.root)) as sorter,
    ):
        sent = images(1)
        write_behind(share, "first", sent)
        all_found(sorter, sent)
        share.answer(Fault(("*",), hang=True))
        write_behind(share, "second", more := images(2))
        sent += beside(sorter, 3)
        all_found(sorter, sent, 30)
        wait_until(lambda: any("does not answer" in each for each in sorter.spool.problems()), 120, "it to be said")
        sent += beside(sorter, 4)
        all_found(sorter, sent, 30)
        share.answer()
        all_found(sorter, [*sent, *more])
        wait_until(lambda: not sorter.spool.problems(), 60, "it to be over")


def test_a_mount_whose_server_is_killed_and_comes_back(tmp_path: Path) -> None:
    with (
        sshfs(tmp_path / "share") as share,
        RunningSorter(tmp_path / "site", quiet=300, config=watched(share.root)) as sorter,
    ):
        sent = images(1)
        write(share.behind / "first", sent)
        all_found(sorter, sent)
        share.end_server()
        wait_until(lambda: any(str(share.root) in each for each in sorter.spool.problems()), 60, "it to be said")
        sent += beside(sorter, 2)
        all_found(sorter, sent, 30)
        share.unmount()  # the empty mount point is no share without images
        write(share.behind / "second", more := images(3))
        share.come_back()
        all_found(sorter, [*sent, *more])
        wait_until(lambda: not sorter.spool.problems(), 60, "it to be over")
        assert len([path for path in share.behind.rglob("*") if path.is_file()]) == 40


ANSWERS = [
    *(Fault(("*",), error) for error in ("EIO", "ESTALE", "EHOSTDOWN", "EACCES")),
    *(Fault((call,), "EIO") for call in ("getattr", "readdir", "open", "read", "unlink")),
]


@pytest.mark.parametrize(("kind", "take"), [("nfs", "copy"), ("smb", "move")])
@pytest.mark.parametrize("fault", ANSWERS, ids=lambda each: f"{each.ops[0]}-{each.error}")
def test_whatever_it_answers_for_a_while_all_is_found(kind: str, take: str, fault: Fault, tmp_path: Path) -> None:
    with (
        fuse_share(tmp_path / "share", kind) as share,
        RunningSorter(tmp_path / "site", quiet=300, config=watched(share.root, take)) as sorter,
    ):
        sent = images(1)
        write_behind(share, "first", sent)
        all_found(sorter, sent)
        if take == "move":
            wait_until(lambda: not list((share.behind / "first").rglob("*.dcm")), 60, "what was taken to be removed")
        share.answer(fault)
        write_behind(share, "second", more := images(2))
        if not (take == "copy" and fault.ops == ("unlink",)):  # nothing is removed where it is copied
            wait_until(lambda: share.fired() > 1, 90, f"{fault} to be met")
        alone = beside(sorter, 3)
        wait_until(lambda: alone[0][1] in stored(sorter), 60, "what lies elsewhere to be taken meanwhile")
        share.answer()
        all_found(sorter, [*sent, *more, *alone], 150)
        wait_until(lambda: not sorter.spool.problems(), 120, "nothing to be wrong any more")
        left = [path for path in share.behind.rglob("*") if path.is_file()]
        if take == "copy":
            assert len(left) == 40
        else:  # what could not be removed once was taken: that is said, and it is left
            assert {path.parent.name for path in left} <= {"second"}
