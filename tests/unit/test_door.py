"""The lab users' door, knocked at by real accounts of this machine, in real groups, of a sorter that is one itself.

In the first tier this process takes on the accounts one after the other; in the second each has processes of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import sorter.door.requests as ask
from conftest import Account, made_account
from sorter.builtin.path_target import mark
from sorter.cli.main import sorter as cli
from sorter.door import Door
from sorter.door.answers import unassigned
from sorter.door.wire import LONGEST_ANSWER, LONGEST_PAUSE, Connection
from sorter.durable import Files
from sorter.errors import SorterError
from sorter.model import UnitKind, plain
from sorter.spool import Unit, UnitSummary
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

HOSTILE = Path(__file__).parents[1] / "hostile" / "client.py"

CONFIG = """
[labs.memory]
match = ["PatientID=MEM*"]
may_claim = ["PatientID=NOBODY*"]
groups = ["{memory}"]
on_demand = ["archive"]

[labs.vision]
match = ["PatientID=VIS*"]
groups = ["{vision}", "no-such-group"]
users = ["{guest}"]

[door]
admins = ["{admins}"]

[targets.archive]
kind = "path"
root = "archive"
"""

NAMES = {"MEM01": "memory", "VIS01": "vision", "NOB01": None}


def series(subject: str, seed: int) -> tuple[bytes, ...]:
    return localizer(Plan(seed=seed, size=8, patient_id=subject, patient_name=f"Secret^{subject}")).files


@contextlib.contextmanager
def acting(uid: int) -> Iterator[None]:
    """This process is that account meanwhile: for the kernel, which tells the door, and for the files it makes."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@dataclass(frozen=True)
class Site:
    """A sorter that runs as an account of its own, and people."""

    sorter: RunningSorter
    place: Path
    people: Mapping[str, Account]
    groups: Mapping[str, str]
    images: Mapping[str, tuple[bytes, ...]]

    @property
    def socket(self) -> Path:
        return self.sorter.spool.root / "run" / "sock"

    def run(self, who: str, *words: object, code: int = 0) -> str:
        """What `sorter` says to one of them, who knows nothing but where sorter keeps things."""
        with acting(self.people[who].uid if who in self.people else 0):
            result = CliRunner().invoke(cli, [*map(str, words), "--root", str(self.sorter.root)])
        if isinstance(result.exception, SorterError):
            assert code == 1, result.exception
            return result.output + str(result.exception)
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    def told(self, who: str, *words: object) -> Any:
        return json.loads(self.run(who, *words, "--json"))

    def typed(self, who: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of that account, which never was another's."""
        return subprocess.run(
            [*self.people[who].prefix, sys.executable, "-m", "sorter", *map(str, words)],
            capture_output=True, text=True, cwd="/", timeout=100, env={**os.environ, **environment},
        )  # fmt: skip

    def key(self, subject: str) -> str:
        return next(each.key for each in self.sorter.series() if each.subject == subject)

    def give(self, name: str, files: tuple[bytes, ...]) -> None:
        """Drop a folder, as the account that runs sorter."""
        uid = self.people["sorter"].uid
        part = self.place / name
        part.mkdir()
        for number, content in enumerate(files):
            (part / str(number)).write_bytes(content)
            os.chown(part / str(number), uid, uid)
        os.chown(part, uid, uid)
        part.rename(self.sorter.spool.incoming / name)

    def home(self, who: str) -> Path:
        """A folder of one of them, that others may not look into."""
        folder = self.place / f"home-{who}"
        if not folder.exists():
            folder.mkdir(mode=0o700)
            os.chown(folder, self.people[who].uid, self.people[who].uid)
        return folder


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Two labs: amy is of one, bob of the other, ben of both, gus a guest, eve a stranger, ada an admin, lea leaves."""
    groups = {name: f"st{os.getpid()}{name[0]}" for name in ("memory", "vision", "admins")}
    memory, vision, admins = groups.values()
    belong: dict[str, tuple[str, ...]] = {
        "sorter": (), "amy": (memory,), "bob": (vision,), "ben": (memory, vision), "eve": (), "gus": (),
        "ada": (admins,), "lea": (memory,),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        if os.geteuid() != 0:
            pytest.skip("accounts and groups are made by root")
        for group in groups.values():
            subprocess.run(["groupadd", "--system", group], check=True)
            stack.callback(subprocess.run, ["groupdel", group], check=True)
        names = {who: f"st{os.getpid()}{who}" for who in belong}
        people = {who: stack.enter_context(made_account(names[who], *belong[who])) for who in belong}
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sorter-")))
        place.chmod(0o711)
        root = place / "root"
        (root / "archive").mkdir(parents=True)
        mark(root / "archive", Files())
        for folder in (root, root / "archive"):
            os.chown(folder, people["sorter"].uid, people["sorter"].uid)
        config = CONFIG.format(**groups, guest=names["gus"])
        sorter = stack.enter_context(RunningSorter(root, config=config, prefix=people["sorter"].prefix))
        images = {subject: series(subject, seed) for seed, subject in enumerate(NAMES, 11)}
        found = Site(sorter, place, people, groups, images)
        for subject, files in images.items():
            found.give(subject, files)
        sorter.wait_delivered(9)
        wait_until(lambda: list(sorter.spool.studies.glob("??/*.json")), 60, "a study to settle")
        for words in (["list"], ["status"], ["why", "MEM01"], ["rename", "MEM01", "--list"]):
            found.run("root", *words)  # loads what an account may not: this Python may lie in a closed folder
        yield found


@pytest.mark.parametrize(
    ("who", "subjects"),
    [
        ("amy", ["MEM01"]), ("bob", ["VIS01"]), ("ben", ["MEM01", "VIS01"]), ("gus", ["VIS01"]), ("lea", ["MEM01"]),
        ("ada", ["MEM01", "NOB01", "VIS01"]), ("sorter", ["MEM01", "NOB01", "VIS01"]),
    ],
)  # fmt: skip
def test_each_sees_exactly_its_own(site: Site, who: str, subjects: list[str]) -> None:
    assert [each["subject"] for each in site.told(who, "list")] == subjects
    assert sorted({each["subject"] for each in site.told(who, "rename", "*", "--list")}) == subjects


def test_a_stranger_is_told_nothing_but_that(site: Site) -> None:
    for words in (["status"], ["list"], ["why", "MEM01"], ["rename", "*", site.home("eve")]):
        assert "your account is in no lab's group" in site.run("eve", *words, code=1)
    assert not list(site.home("eve").iterdir())


def test_a_lab_copies_its_own_as_its_own_account(site: Site) -> None:
    dest = site.home("amy") / "pilot"
    said = site.typed("amy", "rename", "mem01", dest, SORTER_SOCKET=str(site.socket))
    assert (said.returncode, "3 images were copied" in said.stdout) == (0, True), said.stderr
    copied = sorted(dest.rglob("*.dcm"))
    assert sorted(each.read_bytes() for each in copied) == sorted(site.images["MEM01"])
    assert {each.stat().st_uid for each in dest.rglob("*")} == {site.people["amy"].uid}
    assert {each["by"] for each in Unit(site.sorter.spool, site.key("MEM01")).exports()} == {site.people["amy"].uid}
    assert "0 images were copied" in site.run("amy", "rename", "MEM*", dest)
    for other in ("VIS01", "NOB01", site.key("VIS01"), "Secret^VIS01"):
        assert "no series here fits" in site.run("amy", "rename", other, dest, code=1)
    assert sorted(dest.rglob("*.dcm")) == copied


def test_a_lab_copies_what_was_made_of_its_own(site: Site) -> None:
    delivered = sorted(path.read_bytes() for path in (site.sorter.labs / "memory").rglob("nifti/*.nii.gz"))
    assert delivered
    dest = site.home("ben") / "nifti"
    assert "files were copied" in site.run("ben", "rename", "MEM01", dest, "--nifti")
    assert sorted(path.read_bytes() for path in dest.rglob("*.nii.gz")) == delivered
    assert not list(dest.rglob("*.dcm"))


@pytest.mark.parametrize(
    ("dest", "name"),
    [("relative", "x"), ("/a\0", "x"), ("/\ud800", "x"), ("/tmp", "../x"), ("/tmp", "a\\b"), ("/tmp", "\ud800"),
     ("/tmp", "a\0"), ("/tmp", ""), ("/tmp", "/etc/passwd")],
)  # fmt: skip
def test_nothing_is_remembered_that_a_withdrawal_would_stumble_over(site: Site, dest: str, name: str) -> None:
    key = site.key("MEM01")
    before = Unit(site.sorter.spool, key).exports_size()
    sha256 = next(iter(Unit.load(site.sorter.spool, key).instances.values())).sha256
    with acting(site.people["amy"].uid), pytest.raises(SorterError, match="cannot be remembered"):
        list(Door(site.socket, Files()).asked(ask.Note(key, dest, {name: sha256})))
    assert Unit(site.sorter.spool, key).exports_size() == before


def test_why_and_status_tell_a_lab_of_its_own_and_of_the_rest_how_many(site: Site) -> None:
    assert "dicom at memory: delivered to" in site.run("amy", "why", "MEM01")
    assert "nothing of VIS01 is here that you may see" in site.run("amy", "why", "VIS01", code=1)
    status = site.told("amy", "status")
    assert status["labs"] == ["memory"]
    assert status["series"]["delivered"] == 1
    assert [(set(each), each["count"]) for each in status["unassigned"]] == [
        ({"date", "scanner", "protocol", "count"}, 1)
    ]
    assert "NOB01" not in json.dumps(status)
    assert "VIS01" not in json.dumps(status)
    assert "Of no lab; if one is yours, claim it" in site.run("amy", "status")


def test_whoever_sends_strays_without_end_keeps_no_lab_from_its_status() -> None:
    found = (
        UnitSummary("k", UnitKind.SERIES, "1.2", (), "kept", study_date=str(number), scanner="😀" * 1024,
                    description="😀" * 1024)
        for number in range(20_000, 0, -1)
    )  # fmt: skip
    told = unassigned(found)
    assert len(json.dumps([plain(each) for each in told])) < LONGEST_ANSWER
    assert [each.date for each in told[:2]] == ["9999", "9998"]


def test_what_was_read_is_written_down_for_the_admin_alone(site: Site) -> None:
    site.told("amy", "list")
    [path] = site.sorter.spool.access.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"at", "uid", "ask"} <= set(lines[-1])
    assert site.people["amy"].uid in {each["uid"] for each in lines}
    assert not [text for text in ("MEM01", "VIS01", "NOB01", "Secret") if text in path.read_text()]


def test_who_leaves_a_group_is_a_stranger_at_once_also_on_an_open_connection(site: Site) -> None:
    assert [each["subject"] for each in site.told("lea", "list")] == ["MEM01"]
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as waiting:
        with acting(site.people["lea"].uid):
            waiting.connect(str(site.socket))
        membership = (f"st{os.getpid()}lea", site.groups["memory"])
        subprocess.run(["gpasswd", "--delete", *membership], check=True, capture_output=True)
        waiting.settimeout(60)
        waiting.sendall(b'{"ask": "units"}\n')
        said = waiting.makefile().read()
    assert "your account is in no lab's group" in said
    assert "MEM01" not in said
    assert "your account is in no lab's group" in site.run("lea", "list", code=1)


def test_copies_go_to_a_target_that_was_granted(site: Site) -> None:
    archive = site.sorter.root / "archive"

    def there(count: int) -> list[Path]:
        def found() -> list[Path]:
            each = sorted(path for path in archive.rglob("*.dcm") if not path.parent.name.startswith("."))
            return each if len(each) == count else []

        return wait_until(found, 60, f"{count} copies in the archive")

    for words, says in (
        (("bob", "VIS01", "target:archive"), "archive is no target of your labs"),
        (("amy", "MEM01", "target:vision"), "vision is no target of your labs"),
        (("amy", "MEM01", "target:nowhere"), "nowhere is no target of your labs"),
        (("amy", "MEM01", "target:archive/../x"), "can be no folder"),
        (("amy", "MEM01", "target:archive", "--name", "flat"), "have no folder"),
        (("amy", "MEM01", "target:archive", "--force"), "leave them out"),
        (("amy", "VIS01", "target:archive"), "no series here fits"),
    ):
        who, subject, *rest = words
        assert says in site.run(who, "rename", subject, *rest, code=1)
    assert "3 files are copied to the target archive" in site.run("amy", "rename", "MEM01", "target:archive/pilot")
    copied = there(3)
    assert sorted(each.read_bytes() for each in copied) == sorted(site.images["MEM01"])
    assert {each.relative_to(archive).parts[:2] for each in copied} == {("pilot", "MEM01")}
    assert {each.stat().st_uid for each in copied} == {site.people["sorter"].uid}
    wait_until(lambda: "3 files were copied to archive" in site.run("amy", "why", "MEM01"), 60, "it to be told")
    copied[0].unlink()
    os.utime(copied[1], (1, 1))
    site.run("amy", "rename", "MEM01", "target:archive/pilot")
    assert there(3) == copied
    assert copied[1].stat().st_mtime == 1, "what is there is left"


def test_a_lab_claims_what_it_is_not_shown(site: Site) -> None:
    assert "you are not of a lab vision" in site.run("amy", "claim", "NOB01", "--lab", "vision", code=1)
    assert "not all that there is" in site.run("amy", "claim", "*", "--lab", "memory", code=1)
    said = [site.run("amy", "claim", what, "--lab", "memory") for what in ("NOB01", "NOB02", "VIS01")]
    assert len({each.replace("NOB02", "NOB01").replace("VIS01", "NOB01") for each in said}) == 1, "nothing is told"
    [claim] = wait_until(lambda: site.sorter.spool.claims.all(), 60, "the claim to wait for the admin")
    assert (claim.lab, claim.keys) == ("memory", (site.key("NOB01"),))
    assert claim.by == f"st{os.getpid()}amy"
    assert [each["subject"] for each in site.told("amy", "list")] == ["MEM01"]


def test_a_lab_tries_its_rules_and_has_its_own_series_moved_by_them(site: Site) -> None:
    root, uid = site.sorter.root / "labs/memory", site.people["sorter"].uid
    vision = set((root.parent / "vision").rglob("*.dcm"))
    own = root / ".sorter/lab.toml"
    own.write_text('[[rules]]\nsubject = "*"\nbelow = "mine"\n')
    os.chown(own, uid, uid)
    own.chmod(0o664)
    assert "you are not of a lab vision" in site.run("amy", "rules", "try", "--lab", "vision", code=1)
    assert "of which lab? give --lab, one of memory, vision" in site.run("ben", "rules", "try", code=1)
    assert "No series of what came" in site.run("bob", "rules", "try")
    said = site.run("amy", "rules", "try")  # the file is read first, however lately that was done
    assert "1 series of what came since" in said
    assert "goes to mine/MEM01/" in said
    assert not (root / "mine").exists()
    anothers = [site.key("MEM01")]
    with acting(site.people["bob"].uid), pytest.raises(SorterError, match="that you may see"):
        Door(site.socket, Files()).rules("vision", "", anothers)
    assert "1 series move now" in site.run("amy", "rules", "apply", "--yes")
    wait_until(lambda: list((root / "mine").rglob("*.dcm")) and not list((root / "MEM01").rglob("*.dcm")), 60, "it")
    assert "No series would lie elsewhere" in site.run("amy", "rules", "apply")
    assert set((root.parent / "vision").rglob("*.dcm")) == vision
    assert f"st{os.getpid()}amy says that the rules are to be asked again" in site.run("amy", "why", "MEM01")


# --- the second tier --------------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_who_fetches_what_is_handed_out_waits_for_nothing() -> None:
    """That descriptors were fetched is noticed at once, also where that was not so at the first look."""
    rounds, asked, begun = 20, threading.Semaphore(0), time.monotonic()
    ours, theirs = (Connection(each, 60.0) for each in socket.socketpair())

    def fetch() -> None:
        for _ in range(rounds):
            asked.acquire()
            wait_until(lambda: ours._unread() > 0, 20, "something to fetch")
            theirs.receive(1000)

    client = threading.Thread(target=fetch)
    client.start()
    for _ in range(rounds):
        ours.send({"files": []})
        asked.release()
        ours.wait_taken()
        assert ours._unread() == 0
    client.join()
    assert time.monotonic() - begun < rounds * LONGEST_PAUSE / 1000 / 2
    for each in (ours, theirs):
        each.close()


@pytest.mark.peers
def test_processes_of_those_accounts_see_the_same(site: Site) -> None:
    for who, subjects in (("amy", ["MEM01"]), ("ben", ["MEM01", "VIS01"]), ("ada", ["MEM01", "NOB01", "VIS01"])):
        for where in ({"SORTER_SOCKET": str(site.socket)}, {}):
            words = ("list", "--json", *(() if where else ("--root", site.sorter.root)))
            assert [each["subject"] for each in json.loads(site.typed(who, *words, **where).stdout)] == subjects
    said = site.typed("eve", "rename", "*", site.home("eve"), SORTER_SOCKET=str(site.socket))
    assert (said.returncode, "your account is in no lab's group" in said.stderr) == (1, True)


@pytest.mark.peers
@pytest.mark.parametrize("who", ["amy", "eve"])
def test_a_hostile_client_gets_nothing_and_harms_no_one(site: Site, who: str) -> None:
    """Of a lab, with all that it may; and a stranger. Others are answered meanwhile, and images are delivered."""
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in site.sorter.spool.store.rglob("*.dcm")}
    command = [*site.people[who].prefix, sys.executable, HOSTILE, site.socket, site.key("VIS01"), site.key("MEM01")]
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    ) as hostile:
        assert hostile.stdout is not None
        assert hostile.stdout.readline() == "all held open\n"
        assert [each["subject"] for each in site.told("bob", "list")] == ["VIS01"]
        assert "3 images were" in site.run("bob", "rename", "VIS01", site.home("bob") / who)
        more = f"MEM-{who}"
        site.give(more, series(more, 31 if who == "amy" else 32))
        wait_until(
            lambda: [each for each in site.sorter.series() if each.subject == more and each.state == "delivered"],
            60, "what comes meanwhile to be delivered",
        )  # fmt: skip
        got, _ = hostile.communicate("end\n", timeout=60)
    assert json.loads(got) == {"got": []}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == digest for path, digest in before.items())
    assert [each["subject"] for each in site.told("ben", "list")][-1] == "VIS01"
    assert "Traceback" not in site.sorter.log.read_text()
    assert "should not" not in site.sorter.log.read_text()


@pytest.mark.peers
def test_other_terms_hold_from_the_next_request_on(site: Site) -> None:
    site.sorter.reload("[labs.memory]\nmatch = ['PatientID=MEM*']\n")
    wait_until(
        lambda: "in no lab's group" in site.typed("amy", "list", SORTER_SOCKET=str(site.socket)).stderr,
        60, "the new configuration",
    )  # fmt: skip
