"""A share that fails in every way that NFS and SMB servers do, under a sorter that really runs.

What a mount of NFS or SMB would answer is answered by a FUSE file system of ours, fuse_share.py: the calls, the
kernel's cache and the waiting are real, the server's answers are simulated.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sorter.builtin.path_target import mark
from sorter.deliver.lane import Lane, Patience
from sorter.deliver.target import Checked, Later, Refused
from sorter.durable import Files
from sorter.testing.running import RunningSorter
from sorter.testing.targets import TargetSuite
from sorter.testing.waiting import wait_until
from tests.peers.places import (
    SOON,
    Fault,
    FuseShare,
    below,
    config,
    delivered,
    digests,
    drop,
    fuse_share,
    loop_image,
    lying,
    of,
    out,
    receipts,
    run,
    status,
    tmpfs,
)

pytestmark = pytest.mark.peers


@dataclass
class Site:
    """A sorter with a lab on each of two shares, and one whose folder is well."""

    sorter: RunningSorter
    nfs: FuseShare
    smb: FuseShare
    sent: dict[str, Counter[bytes]] = field(default_factory=dict)
    units: Counter[str] = field(default_factory=Counter)
    seed: int = 0

    def share(self, lab: str) -> FuseShare:
        return self.nfs if lab == "nfs" else self.smb

    def drop(self, lab: str, **how: object) -> None:
        """One more series."""
        self.seed += 1
        images = drop(self.sorter, lab, self.seed, **how)  # type: ignore[arg-type]
        self.sent.setdefault(lab, Counter()).update(digests(images))
        self.units[lab] += 1

    def wait_well(self, lab: str) -> None:
        """Everything of this lab is delivered: each image once, and nothing of ours lies about."""
        root = self.share(lab).behind if lab in ("nfs", "smb") else self.sorter.root / lab
        wait_until(lambda: delivered(self.sorter, lab, self.units[lab]), SOON, f"all of {lab}")
        assert lying(root) == self.sent[lab]
        wait_until(lambda: not below(root, "*.part"), SOON, "a page that failed is written again at the next look")

    def why(self, lab: str) -> str:
        """What `status` says of what waits for this lab."""
        return " | ".join(each.why for each in of(self.sorter, lab) if each.state == "owed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("faults")
    with fuse_share(base / "nfs", "nfs") as nfs, fuse_share(base / "smb", "smb") as smb:
        well = base / "sorter" / "well"
        well.mkdir(parents=True)
        for root in (nfs.root, smb.root, well):
            mark(root, Files())
        labs = {"nfs": nfs.root, "smb": smb.root, "well": well}
        with RunningSorter(base / "sorter", config=config(**labs)) as sorter:
            yield Site(sorter, nfs, smb)


@pytest.fixture(autouse=True)
def mended(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        site: Site = request.getfixturevalue("site")
        site.nfs.answer()
        site.smb.answer()


# --- the suite of all targets ----------------------------------------------------------------------------------------


class FusePlace:
    """A share as a `Place` of the suite."""

    code = "sorter.builtin.path_target:PathTarget"
    comparable = True

    def __init__(self, share: FuseShare) -> None:
        self.share, self.settings = share, {"root": str(share.root)}

    def go_away(self) -> None:
        self.share.answer(Fault(("*",), "ESTALE"))

    def come_back(self) -> None:
        self.share.answer()

    def count(self, image: bytes) -> int:
        return lying(self.share.behind)[next(iter(digests([image])))]

    def lose(self, image: bytes) -> bool:
        for path in self.share.behind.rglob("*.dcm"):
            if path.read_bytes() == image:
                path.unlink()
        return True


@pytest.mark.parametrize("kind", ["nfs", "smb"])
class TestFuseShare(TargetSuite):
    """The suite for targets, as on NFS with root squash and as on SMB; the first image's file is what is counted."""

    @pytest.fixture
    def place(self, tmp_path: Path, kind: str) -> Iterator[FusePlace]:
        with fuse_share(tmp_path / "share", kind) as share:
            yield FusePlace(share)


# --- what passes, and is said meanwhile ------------------------------------------------------------------------------


OUTAGES = {  # the fault, and what `status` says of the target
    "full": (Fault(("write", "create", "mkdir"), "ENOSPC"), "is full; make room there"),
    "full in the middle": (Fault(("write",), "ENOSPC", name="*.dcm", skip=2), "is full; make room there"),
    "quota": (Fault(("write",), "EDQUOT", name="*.dcm"), "is over its quota"),
    "quota at fsync": (Fault(("fsync",), "EDQUOT"), "is over its quota"),
    "stale": (Fault(("*",), "ESTALE"), "is a stale mount"),
    "errors of a read": (Fault(("read",), "EIO"), "gives input/output errors"),
    "errors of fsync": (Fault(("fsync",), "EIO"), "gives input/output errors"),
    "read-only": (Fault(("change",), "EROFS"), "is mounted read-only"),
    "no server": (Fault(("*",), "EHOSTDOWN"), "is away (Host is down)"),
    "timed out": (Fault(("*",), "ETIMEDOUT"), "is away (Connection timed out)"),
    "another export": (Fault(("*",), "ENOENT", name=".sorter"), "the marker .sorter/id is missing"),
}


@pytest.mark.parametrize("lab", ["nfs", "smb"])
@pytest.mark.parametrize("what", OUTAGES)
def test_an_outage_is_told_delays_its_own_lab_and_passes_by_itself(site: Site, lab: str, what: str) -> None:
    fault, says = OUTAGES[what]
    before = receipts(site.sorter, lab)
    site.share(lab).answer(fault)
    site.drop(lab)
    # perhaps a look at the lab's own corner found it before there was anything to deliver
    told = wait_until(lambda: (found := out(site.sorter)) and found["waiting"] and found, SOON, "status to tell of it")
    assert (told["target"], told["waiting"]) == (lab, 1)
    assert says in told["why"]
    assert says in site.why(lab)
    assert site.share(lab).fired()
    site.drop("well")
    site.wait_well("well")
    assert receipts(site.sorter, lab) == before
    site.share(lab).answer()
    site.wait_well(lab)
    assert out(site.sorter) is None


LATER = {  # the fault, and what `status` says of the series
    "no right to make a folder": (Fault(("mkdir",), "EACCES"), "does not let sorter write"),
    "a folder in use": (Fault(("rename",), "EBUSY"), "is busy: a file or folder there is in use"),
    "a bit flipped after fsync": (
        Fault(("fsync",), flip=True, name="*.dcm"),
        "gave back other bytes than were written",
    ),
}


@pytest.mark.parametrize("lab", ["nfs", "smb"])
@pytest.mark.parametrize("what", LATER)
def test_what_stops_one_delivery_is_told_of_it_and_passes_by_itself(site: Site, lab: str, what: str) -> None:
    fault, says = LATER[what]
    before = receipts(site.sorter, lab)
    site.share(lab).answer(fault)
    site.drop(lab)
    wait_until(lambda: says in site.why(lab), SOON, says)
    met = site.share(lab).fired()
    assert met
    wait_until(lambda: site.share(lab).fired() > met, SOON, "the next attempt")
    assert out(site.sorter) is None
    assert receipts(site.sorter, lab) == before
    assert not lying(site.share(lab).behind) - site.sent[lab]
    site.share(lab).answer()
    site.wait_well(lab)


UNSEEN = {
    "a rename that was done and says it was not": [Fault(("rename",), "ENOENT", done=True, times=1)],
    "each rename says so": [Fault(("rename",), "ENOENT", done=True)],
    "a folder that was made and says it was there": [Fault(("mkdir",), "EEXIST", done=True)],
    "a removal that was done and says it was not": [Fault(("unlink",), "ENOENT", done=True, times=1)],
    "short writes": [Fault(("write",), short=True)],
    "interrupted": [Fault(("write", "fsync", "open"), "EINTR", times=3)],
}


@pytest.mark.parametrize("lab", ["nfs", "smb"])
@pytest.mark.parametrize("what", UNSEEN)
def test_what_a_delivery_does_without(site: Site, lab: str, what: str) -> None:
    """Neither links, RENAME_NOREPLACE nor syncs of folders are there; then an answer is lost, or is half of one."""
    site.share(lab).answer(*UNSEEN[what])
    site.drop(lab, part=slice(2))
    site.wait_well(lab)
    late = drop(site.sorter, lab, site.seed, part=slice(2, None))  # it grows
    site.sent[lab].update(digests(late))
    [unit] = [each for each in of(site.sorter, lab) if each.subject == f"{lab}{site.seed}"]
    wait_until(lambda: receipts(site.sorter, lab)[unit.key] == 2, SOON, "the second revision")
    site.wait_well(lab)


# --- SMB -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["ETXTBSY", "EBUSY", "EACCES"])
def test_a_file_that_is_open_on_smb_waits_until_it_is_closed(site: Site, code: str) -> None:
    """Of a folder that grows, its manifest is what is replaced; a client holds it open."""
    site.drop("smb", part=slice(2))
    site.wait_well("smb")
    site.smb.answer(Fault(("rename",), code, name=".sorter-*.json"))
    late = drop(site.sorter, "smb", site.seed, part=slice(2, None))
    says = {"ETXTBSY": "a file there is open elsewhere", "EBUSY": "is busy", "EACCES": "does not let sorter write"}
    wait_until(lambda: says[code] in site.why("smb"), SOON, says[code])
    assert out(site.sorter) is None
    assert lying(site.smb.behind) == site.sent["smb"]
    site.drop("smb")  # another series is not kept waiting
    wait_until(lambda: sum(each.state == "delivered" for each in of(site.sorter, "smb")) == site.units["smb"] - 1, SOON)
    site.smb.answer()
    site.sent["smb"].update(digests(late))
    site.wait_well("smb")


def test_names_that_differ_in_case_alone_and_names_that_windows_refuses(site: Site) -> None:
    for patient in ("smbCase", "SMBcase", "smb:a?*|.", "smb."):
        site.drop("smb", patient=patient)
    site.wait_well("smb")


# --- what never answers ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
@pytest.mark.parametrize("op", ["read", "fsync", "rename"])
def test_a_call_that_never_returns_is_told_of_and_a_stop_does_not_wait_for_it(site: Site, op: str) -> None:
    before = receipts(site.sorter, "nfs")
    site.nfs.answer(Fault((op,), hang=True))
    site.drop("nfs")
    wait_until(lambda: site.nfs.fired(), SOON)
    site.drop("well")
    site.wait_well("well")
    says = "target nfs has not moved for more than 30 s: does its mount hang?"
    wait_until(lambda: says in status(site.sorter)["problems"], SOON, says)
    if op == "fsync":
        assert site.sorter.stop() == 0
        site.sorter.start()
        site.drop("well")
        site.wait_well("well")
    assert receipts(site.sorter, "nfs") == before
    site.nfs.answer()
    site.wait_well("nfs")
    wait_until(lambda: not status(site.sorter)["problems"], SOON)


def test_a_worker_that_not_even_sigkill_ends_gets_no_second_one_beside_it(tmp_path: Path) -> None:
    """The kernel waits for the server's answer, and no signal ends that."""
    answers: queue.Queue[Checked | Later | Refused] = queue.Queue()
    with fuse_share(tmp_path / "share", "nfs") as share:
        mark(share.root, Files())
        settings = {"root": str(share.root)}
        lane = Lane(
            "far", "sorter.builtin.path_target:PathTarget", settings, lambda *_: 0, lambda *_: None,
            patience=Patience(silence=2.0),
        )  # fmt: skip
        lane.check(answers.put)
        assert isinstance(answers.get(timeout=SOON), Checked)
        hung = lane.pid
        assert hung is not None
        share.answer(Fault(("fsync",), hang=True))
        lane.check(answers.put)
        first = answers.get(timeout=SOON)
        lane.check(answers.put)
        second = answers.get(timeout=SOON)
        assert isinstance(first, Later)
        assert isinstance(second, Later)
        assert "did not move for 2 s" in first.why
        assert "still holds a worker that was ended: its mount hangs" in second.why
        assert first.away
        assert second.away
        share.answer()

        def well() -> bool:
            lane.check(answers.put)
            return isinstance(answers.get(timeout=SOON), Checked)

        wait_until(well, SOON, "a worker after the one that hung")
        assert lane.pid not in (None, hung)
        assert lane.stop(SOON)


# --- really full -----------------------------------------------------------------------------------------------------


PLACES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Path]]] = {
    "a tmpfs": lambda root: tmpfs(root, "256k"),
    "a tmpfs without inodes": lambda root: tmpfs(root, "64m,nr_inodes=8"),
    "an ext4": lambda root: loop_image(root, 1, "-O", "^has_journal"),
}
MORE = {"a tmpfs": "size=64m", "a tmpfs without inodes": "nr_inodes=1000"}


@pytest.mark.parametrize("kind", PLACES)
def test_a_full_file_system_delays_its_own_lab_and_is_delivered_to_when_there_is_room(
    tmp_path: Path, kind: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    mark(other, Files())
    with PLACES[kind](tmp_path / "small") as small:
        filler = small / "somebody's"
        if kind == "an ext4":
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                for _ in range(64):
                    file.write(bytes(1 << 14))
            os.truncate(filler, filler.stat().st_size - (1 << 17))
        with RunningSorter(tmp_path / "root", config=config(full=small, other=other)) as sorter:
            images = drop(sorter, "full", 1, size=256)  # three images of 128 KB
            drop(sorter, "other", 2)
            wait_until(lambda: delivered(sorter, "other", 1), SOON)
            told = wait_until(lambda: out(sorter), SOON)
            assert told["target"] == "full"
            assert "is full" in told["why"]
            [waiting] = of(sorter, "full")
            assert waiting.state == "owed"
            assert "make room there" in waiting.why
            assert not below(small, "*.dcm")  # no half of it, under whatever name
            assert not receipts(sorter, "full")
            if kind in MORE:
                run("mount", "-o", f"remount,{MORE[kind]}", small)
            else:
                filler.unlink()
            wait_until(lambda: delivered(sorter, "full", 1), SOON)
            assert lying(small) == digests(images)
            assert not status(sorter)["targets"]
