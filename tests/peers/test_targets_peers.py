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
from tests.peers.places import SOON, Share, config, delivered, drop, of, out, sshfs

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


def test_a_share_whose_server_ends_in_mid_copy_and_returns(tmp_path: Path, share: Share) -> None:
    mark(share.root, Files())
    with RunningSorter(tmp_path / "root", config=config(far=share.root)) as sorter:
        drop(sorter, "far", 1, size=1024)  # three images of 2 MB
        wait_until(lambda: list(share.behind.rglob("*.part/*.dcm")), SOON)
        share.end_server()
        told = wait_until(lambda: out(sorter), SOON)
        assert told["target"] == "far"
        [waiting] = of(sorter, "far")
        assert waiting.state == "owed"
        assert not list(sorter.spool.unit_folder(waiting.key).rglob("receipts/*.json"))
        assert not [path for path in share.behind.rglob("*.dcm") if ".part" not in str(path)]
        share.unmount()
        share.come_back()
        wait_until(lambda: delivered(sorter, "far", 1), SOON)
        there = [path for path in share.behind.rglob("*.dcm") if ".part" not in str(path)]
        assert len(there) == 3
        assert not list(share.behind.rglob("*.part"))
