"""A share of a real sshd, whose server goes and comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sorter.builtin.path_target import mark
from sorter.durable import Files
from sorter.testing.running import RunningSorter
from sorter.testing.targets import TargetSuite
from sorter.testing.waiting import wait_until
from tests.peers.places import SOON, Share, below, config, delivered, digests, drop, lying, of, out, receipts, sshfs

pytestmark = pytest.mark.peers


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    with sshfs(tmp_path / "share") as share:
        yield share


class TestSshfs(TargetSuite):
    """The suite for targets on a real network mount: neither RENAME_NOREPLACE nor lasting inode numbers."""

    @pytest.fixture
    def place(self, share: Share) -> Share:
        return share


@pytest.mark.parametrize("mount", ["stays, and connects again", "goes, and is made again"])
def test_a_share_whose_server_ends_in_mid_copy_and_returns(tmp_path: Path, share: Share, mount: str) -> None:
    if mount.startswith("stays"):
        share.unmount()
        share.mount("reconnect")
    mark(share.root, Files())
    with RunningSorter(tmp_path / "root", config=config(far=share.root)) as sorter:
        images = drop(sorter, "far", 1, size=1024)  # three images of 2 MB
        wait_until(lambda: below(share.behind, "*.dcm"), SOON)
        share.end_server()
        told = wait_until(lambda: out(sorter), SOON)
        assert told["target"] == "far"
        [waiting] = of(sorter, "far")
        assert waiting.state == "owed"
        assert not receipts(sorter, "far")
        assert not lying(share.behind)
        if mount.startswith("stays"):
            share.serve()
        else:
            share.unmount()
            share.come_back()
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        assert lying(share.behind) == digests(images)
        assert not below(share.behind, "*.part")
        assert out(sorter) is None
