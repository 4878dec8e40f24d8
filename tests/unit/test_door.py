"""The lab users' door, knocked at by real accounts of this machine, in real groups, of a sorter that is one itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import Account, made_account
from sorter.spool import Unit
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer
from sorter.testing.waiting import wait_until

HOSTILE = Path(__file__).parents[1] / "hostile" / "client.py"

CONFIG = """
[labs.memory]
match = ["PatientID=MEM*"]
groups = ["{memory}"]

[labs.vision]
match = ["PatientID=VIS*"]
groups = ["{vision}", "no-such-group"]
users = ["{guest}"]

[door]
admins = ["{admins}"]
"""

NAMES = {"MEM01": "memory", "VIS01": "vision", "NOB01": None}


def series(subject: str, seed: int) -> tuple[bytes, ...]:
    return localizer(Plan(seed=seed, size=8, patient_id=subject, patient_name=f"Secret^{subject}")).files


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

    def run(self, who: str, *words: object, code: int = 0, **environment: str) -> str:
        """What `sorter` says to one of them, who knows nothing but where sorter keeps things."""
        done = subprocess.run(
            [*self.people[who].prefix, sys.executable, "-m", "sorter", *map(str, words)],
            capture_output=True, text=True, cwd="/", timeout=100, env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def told(self, who: str, *words: object) -> Any:
        return json.loads(self.run(who, *words, "--json", "--root", self.sorter.root))

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
        root.mkdir()
        os.chown(root, people["sorter"].uid, people["sorter"].uid)
        config = CONFIG.format(**groups, guest=names["gus"])
        sorter = stack.enter_context(RunningSorter(root, config=config, prefix=people["sorter"].prefix))
        images = {subject: series(subject, seed) for seed, subject in enumerate(NAMES, 11)}
        found = Site(sorter, place, people, groups, images)
        for subject, files in images.items():
            found.give(subject, files)
        sorter.wait_delivered(9)
        yield found


@pytest.mark.parametrize(
    ("who", "subjects"),
    [
        ("amy", ["MEM01"]), ("bob", ["VIS01"]), ("ben", ["MEM01", "VIS01"]), ("gus", ["VIS01"]),
        ("ada", ["MEM01", "NOB01", "VIS01"]), ("sorter", ["MEM01", "NOB01", "VIS01"]),
    ],
)  # fmt: skip
def test_each_sees_exactly_its_own(site: Site, who: str, subjects: list[str]) -> None:
    assert [each["subject"] for each in site.told(who, "list")] == subjects


def test_a_stranger_is_told_nothing_but_that(site: Site) -> None:
    for words in (["status"], ["rename", "*", site.home("eve")]):
        assert "your account is in no lab's group" in site.run("eve", *words, "--root", site.sorter.root, code=1)
    assert not list(site.home("eve").iterdir())


def test_a_lab_copies_its_own_as_its_own_account(site: Site) -> None:
    dest = site.home("amy") / "pilot"
    said = site.run("amy", "rename", "mem01", dest, "--root", site.sorter.root)
    assert "3 images were copied" in said
    copied = sorted(dest.rglob("*.dcm"))
    assert sorted(each.read_bytes() for each in copied) == sorted(site.images["MEM01"])
    assert {each.stat().st_uid for each in dest.rglob("*")} == {site.people["amy"].uid}
    assert {each["by"] for each in Unit(site.sorter.spool, site.key("MEM01")).exports()} == {site.people["amy"].uid}
    assert "0 images were copied" in site.run("amy", "rename", "MEM*", dest, "--root", site.sorter.root)
    assert "no series here fits" in site.run("amy", "rename", "VIS01", dest, "--root", site.sorter.root, code=1)
    assert "no series here fits" in site.run(
        "amy", "rename", site.key("VIS01"), dest, "--root", site.sorter.root, code=1
    )
    assert sorted(dest.rglob("*.dcm")) == copied


def test_a_lab_copies_what_was_made_of_its_own(site: Site) -> None:
    delivered = sorted(path.read_bytes() for path in (site.sorter.labs / "memory").rglob("nifti/*.nii.gz"))
    assert delivered
    dest = site.home("ben") / "nifti"
    assert "files were copied" in site.run("ben", "rename", "MEM01", dest, "--nifti", "--root", site.sorter.root)
    assert sorted(path.read_bytes() for path in dest.rglob("*.nii.gz")) == delivered
    assert not list(dest.rglob("*.dcm"))


def test_why_and_status_tell_a_lab_of_its_own_and_of_the_rest_how_many(site: Site) -> None:
    wait_until(lambda: list(site.sorter.spool.studies.glob("??/*.json")), 60, "a study to settle")
    said = site.run("amy", "why", "MEM01", "--root", site.sorter.root)
    assert "dicom at memory: delivered to" in said
    assert "nothing of VIS01 is here that you may see" in site.run(
        "amy", "why", "VIS01", "--root", site.sorter.root, code=1
    )
    status = site.told("amy", "status")
    assert status["labs"] == ["memory"]
    assert status["series"]["delivered"] == 1
    assert [(set(each), each["count"]) for each in status["unassigned"]] == [
        ({"date", "scanner", "protocol", "count"}, 1)
    ]
    assert "NOB01" not in json.dumps(status)
    assert "VIS01" not in json.dumps(status)
    assert "of no lab" in site.run("amy", "status", SORTER_SOCKET=str(site.socket))


def test_completion_asks_at_the_door(site: Site) -> None:
    def completed(who: str, line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_SORTER_COMPLETE": "bash_complete"}
        program = Path(sys.executable).with_name("sorter")
        environment = {**os.environ, **words, "SORTER_SOCKET": str(site.socket)}
        command = [*site.people[who].prefix, program]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment).stdout.split()

    assert completed("ben", "sorter rename ") == ["plain,MEM01", "plain,VIS01"]
    assert completed("amy", "sorter rename ") == ["plain,MEM01"]
    assert completed("amy", "sorter rename MEM01 --series ") == ["plain,1"]


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
    script = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "sock.connect(sys.argv[1])\n"
        "print('connected', flush=True)\n"
        "sys.stdin.readline()\n"
        'sock.sendall(b\'{"ask": "units"}\\n\')\n'
        "print(sock.makefile().read(), flush=True)\n"
    )
    assert [each["subject"] for each in site.told("lea", "list")] == ["MEM01"]
    command = [*site.people["lea"].prefix, sys.executable, "-c", script, str(site.socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "connected\n"
        name = f"st{os.getpid()}lea"
        subprocess.run(["gpasswd", "--delete", name, site.groups["memory"]], check=True, capture_output=True)
        said, _ = waiting.communicate("go\n", timeout=60)
    assert "your account is in no lab's group" in said
    assert "MEM01" not in said
    assert "your account is in no lab's group" in site.run("lea", "list", "--root", site.sorter.root, code=1)


@pytest.mark.parametrize("who", ["amy", pytest.param("eve", marks=pytest.mark.peers)])
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
        assert "3 images were" in site.run("bob", "rename", "VIS01", site.home("bob") / who, "--root", site.sorter.root)
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


def test_other_terms_hold_from_the_next_request_on(site: Site) -> None:
    site.sorter.reload("[labs.memory]\nmatch = ['PatientID=MEM*']\n")
    wait_until(
        lambda: "in no lab's group" in subprocess.run(
            [*site.people["amy"].prefix, sys.executable, "-m", "sorter", "list", "--root", str(site.sorter.root)],
            capture_output=True, text=True, cwd="/",
        ).stderr,
        60, "the new configuration",
    )  # fmt: skip
