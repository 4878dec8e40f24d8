"""A real Slurm with one node, on loopback in a network of its own, and the spool hidden from what runs on the node."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Account
from sorter.testing.namespace import own_network
from sorter.testing.ports import free_port
from sorter.testing.waiting import wait_until

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.sock
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/slurmd
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP
PartitionName=other Nodes={host} State=UP
"""

_HIDDEN = 'mount -t tmpfs -o mode=755 none "$1"; shift; exec "$@"'


class Cluster:
    """The daemons below `place`, and commands for them. `hidden` is a folder that jobs find empty."""

    def __init__(self, place: Path, account: Account, hidden: Path) -> None:
        self.place, self.account, self.hidden = place, account, hidden
        self.host = socket.gethostname().partition(".")[0]
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "slurmd"):
            (self.place / name).mkdir(mode=0o755)
        conf = self.place / "slurm.conf"
        conf.write_text(CONF.format(host=self.host, place=self.place, ctld_port=free_port(), slurmd_port=free_port()))
        os.environ["SLURM_CONF"] = str(conf)
        key = self.place / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "sock", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{name}={self.place}/munge.{file}" for name, file in files.items()]
        self._run("munged", "--foreground", "--force", *options)
        wait_until((self.place / "munge.sock").exists, 20, "munged")
        self._run("slurmctld", "-D")
        self.start_node()
        wait_until(lambda: "idle" in self.says("sinfo", "--noheader", "--format=%T"), 60, "the node to be there")

    def start_node(self) -> None:
        """slurmd, in a mount namespace of its own in which the spool is empty; jobs run there too."""
        opened = self.account.prefix[: self.account.prefix.index("setpriv")] or ("unshare", "--mount")
        slurmd = (shutil.which("slurmd") or "slurmd", "-D", "-N", self.host)
        self._run(*opened, "sh", "-c", _HIDDEN, "sh", str(self.hidden), *slurmd)

    def _run(self, *command: str) -> None:
        log = (self.place / f"{len(self._processes)}.log").open("wb")
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True))

    def stop(self) -> None:
        self.says("scancel", f"--user={self.account.uid}", check=False)
        with contextlib.suppress(AssertionError):  # what a test left running, on a node that may be gone
            wait_until(lambda: not self.jobs() and not self.jobs("COMPLETING"), 30, "its jobs to be over")
        for process in reversed(self._processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()
        os.environ.pop("SLURM_CONF")

    # --- what an admin does -----------------------------------------------------------------------------------------

    def says(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def node(self, state: str) -> None:
        self.says("scontrol", "update", f"nodename={self.host}", f"state={state}", "reason=test")

    def node_again(self) -> None:
        """Back from what it was: slurmd may have registered by itself, and then there is nothing to resume."""
        self.says("scontrol", "update", f"nodename={self.host}", "state=resume", check=False)
        usable = ("idle", "mixed", "allocated")
        wait_until(lambda: self.says("sinfo", "--noheader", "--format=%T").split()[0] in usable, 60, "the node")

    def jobs(self, *states: str) -> list[str]:
        """The numbers of jobs in these states; of all that wait or run without any."""
        wanted = [f"--states={','.join(states)}"] if states else []
        return self.says("squeue", "--noheader", "--format=%i", *wanted).split()

    def submitted(self) -> int:
        """How many jobs there ever were: Slurm numbers them from 1."""
        found = self.says("scontrol", "show", "config")
        return int(next(line for line in found.splitlines() if line.startswith("NEXT_JOB_ID")).split("=")[1]) - 1


@contextlib.contextmanager
def running(account: Account) -> Iterator[tuple[Cluster, Path]]:
    """A cluster, and a folder that the account may pass through, with `root/spool` in it that jobs cannot see."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root, and slurmctld, slurmd and munged")
    with own_network(), tempfile.TemporaryDirectory(prefix="slurm-", dir="/var/tmp") as folder:
        # Slurm asks for addresses only of families that this machine has one of, besides the loopback's own.
        subprocess.run(["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"], check=True)
        place = Path(folder)
        place.chmod(0o755)
        root = place / "root"
        for each in (root, root / "spool", place / "share"):
            each.mkdir(mode=0o711)
            os.chown(each, account.uid, account.uid)
        (place / "cluster").mkdir()
        (place / "cluster").chmod(0o755)
        cluster = Cluster(place / "cluster", account, root / "spool")
        try:
            cluster.start()
            yield cluster, place
        finally:
            cluster.stop()
