"""Whose the files are, on real file systems, in the hands of accounts and groups that are made for it."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import Account, made_account, opened
from sorter.testing.running import RunningSorter
from sorter.testing.waiting import wait_until
from tests.peers.places import SOON, delivered, drop, fuse_share, of, receipts, run

pytestmark = pytest.mark.peers


@contextlib.contextmanager
def made_group(name: str) -> Iterator[int]:
    if os.geteuid() != 0:
        pytest.skip("to make a group needs root")
    subprocess.run(["groupadd", name], check=True)
    try:
        yield grp.getgrnam(name).gr_gid
    finally:
        subprocess.run(["groupdel", name], check=True)


@dataclass(frozen=True)
class People:
    """sorter's account and a person of the lab are both in the group `lab`; a third is not, nor is anyone in `far`."""

    sorter: Account
    person: Account
    stranger: Account
    lab: int
    far: int


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    me = os.getpid()
    with contextlib.ExitStack() as made:
        lab, far = (made.enter_context(made_group(f"{name}-{me}")) for name in ("lab", "far"))
        sorter, person = (made.enter_context(made_account(f"{name}-{me}", f"lab-{me}")) for name in ("sorter", "pat"))
        stranger = made.enter_context(made_account(f"stranger-{me}"))
        yield People(sorter, person, stranger, lab, far)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that other accounts may pass through, as they may not through pytest's."""
    with tempfile.TemporaryDirectory(prefix="sorter-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def root_of(place: Path, owner: int, group: int, mode: int) -> Path:
    place.mkdir()
    os.chown(place, owner, group)
    place.chmod(mode)
    return place


def check(place: Path, code: int = 0) -> str:
    """`sorter check --targets`, by root."""
    done = subprocess.run(
        [*opened(), sys.executable, "-m", "sorter", "check", "--targets", "-c", place / "root" / "sorter.toml"],
        capture_output=True, text=True, timeout=SOON,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


LABS = {  # (owner, group, mode of its folder), what is configured, (group, mode of files, of folders) delivered
    "grouped": (("sorter", "sorter", 0o755), 'group = "{lab}"', ("lab", 0o640, 0o2750)),
    "numbered": (("sorter", "sorter", 0o755), "group = {number}", ("lab", 0o640, 0o2750)),
    "shared": (("sorter", "sorter", 0o755), 'group = "{lab}"\numask = "007"', ("lab", 0o660, 0o2770)),
    "closed": (("sorter", "sorter", 0o755), 'umask = "077"', ("sorter", 0o600, 0o700)),
    "inherits": (("root", "lab", 0o2775), "", ("lab", 0o644, 0o2755)),
    "inherits and writes": (("root", "lab", 0o2775), 'umask = "002"', ("lab", 0o664, 0o2775)),
    "of others": (("root", "far", 0o2777), "", ("far", 0o644, 0o2755)),
    "of others, umask": (("root", "far", 0o2777), 'umask = "002"', ("far", 0o664, 0o2755)),
    "cannot chown": (("sorter", "sorter", 0o755), 'group = "{far}"', ("sorter", 0o640, 0o2750)),
}
NOTES = {
    "of others, umask": "the permissions of folders were left: a chmod would take their set-group-ID bit away",
    "cannot chown": "the group of the files could not be set",
}


@dataclass(frozen=True)
class Site:
    sorter: RunningSorter
    people: People
    checked: str


@pytest.fixture(scope="module")
def site(place: Path, people: People) -> Iterator[Site]:
    owners = {"root": 0, "sorter": people.sorter.uid}
    groups = {"sorter": people.sorter.gid, "lab": people.lab, "far": people.far}
    words = {"lab": grp.getgrgid(people.lab).gr_name, "far": grp.getgrgid(people.far).gr_name, "number": people.lab}
    tables = []
    for number, (lab, ((owner, group, mode), configured, _)) in enumerate(LABS.items()):
        root = root_of(place / lab, owners[owner], groups[group], mode)
        rules = f'match = ["PatientID=L{number}-*"]\nroot = {json.dumps(str(root))}\nproducts = ["dicom"]'
        tables.append(f"[labs.lab{number}]\n{rules}\n{configured.format(**words)}")
    root = root_of(place / "listed", people.sorter.uid, people.sorter.gid, 0o750)
    if run("setfacl", "-m", f"u:{people.person.uid}:rwx,d:u:{people.person.uid}:rwx,d:g::-,d:o::-", root, check=False):
        pytest.skip("ACLs need setfacl, and a file system that knows them")
    tables.append(f'[labs.listed]\nmatch = ["PatientID=listed*"]\nroot = {json.dumps(str(root))}\nproducts = ["dicom"]')
    home = root_of(place / "root", people.sorter.uid, people.sorter.gid, 0o755)
    config = "\n".join([f"[sorter]\nroot = {json.dumps(str(home))}", *tables])
    (home / "sorter.toml").write_text(config)
    root_of(home / "spool", people.sorter.uid, people.sorter.gid, 0o711)
    said = check(place)
    with RunningSorter(home, config=config, prefix=people.sorter.prefix) as sorter:
        yield Site(sorter, people, said)


def deliver(site: Site, lab: str, seed: int, patient: str) -> None:
    """A series that grows."""
    drop(site.sorter, lab, seed, patient=patient, part=slice(2))
    wait_until(lambda: delivered(site.sorter, lab, 1), SOON)
    drop(site.sorter, lab, seed, patient=patient, part=slice(2, None))
    [unit] = of(site.sorter, lab)
    wait_until(lambda: receipts(site.sorter, lab)[unit.key] == 2 and delivered(site.sorter, lab, 1), SOON)


@pytest.mark.parametrize("what", LABS)
def test_group_and_permissions(site: Site, place: Path, what: str) -> None:
    number = list(LABS).index(what)
    _, _, (group, file, folder) = LABS[what]
    deliver(site, f"lab{number}", number, f"L{number}-1")
    made = [path for path in (place / what).rglob("*") if ".sorter" not in path.relative_to(place / what).parts]
    assert sum(path.suffix == ".dcm" for path in made) == 3
    gid = {"lab": site.people.lab, "far": site.people.far, "sorter": site.people.sorter.gid}[group]
    for path in made:
        info = path.stat()
        assert (info.st_uid, info.st_gid) == (site.people.sorter.uid, gid), path
        assert f"{stat.S_IMODE(info.st_mode):o}" == f"{folder if path.is_dir() else file:o}", path
    [unit] = of(site.sorter, f"lab{number}")
    story = (site.sorter.spool.unit_folder(unit.key) / "story.jsonl").read_text()
    assert [note for note in NOTES.values() if note in story] == ([NOTES[what]] if what in NOTES else [])


def test_who_may_read_and_write_follows(site: Site, place: Path) -> None:
    may = {
        ("grouped", "person"): "r", ("grouped", "stranger"): "", ("shared", "person"): "rw", ("closed", "person"): "",
        ("inherits and writes", "person"): "rw", ("inherits", "stranger"): "r",
    }  # fmt: skip
    for (what, who), expected in may.items():
        number = list(LABS).index(what)
        if not of(site.sorter, f"lab{number}"):
            deliver(site, f"lab{number}", number, f"L{number}-1")
        image = next((place / what).rglob("*.dcm"))
        assert allowed(getattr(site.people, who), image) == expected, (what, who)


def allowed(account: Account, path: Path) -> str:
    """What this account may do with a file, by trying."""
    code = (
        "import sys\nfor mode in ('rb', 'r+b'):\n  try: open(sys.argv[1], mode).close()\n  except OSError: continue\n"
        "  print(mode[1:2] == '+' and 'w' or 'r', end='')"
    )
    done = subprocess.run(
        [*account.prefix, sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout


def test_a_default_acl_is_left_as_it_is_and_counts(site: Site, place: Path) -> None:
    deliver(site, "listed", 50, "listed50")
    root = place / "listed"
    wanted = os.getxattr(root, "system.posix_acl_default")
    made = [path for path in root.rglob("*") if ".sorter" not in path.relative_to(root).parts]
    assert sum(path.suffix == ".dcm" for path in made) == 3
    for path in made:
        assert b"system.posix_acl_access" in [os.fsencode(each) for each in os.listxattr(path)]
        if path.is_dir():
            assert os.getxattr(path, "system.posix_acl_default") == wanted
    image = next(root.rglob("*.dcm"))
    assert allowed(site.people.person, image) == "rw"
    assert allowed(site.people.stranger, image) == ""
    assert "the folder has a default ACL" in site.checked


def test_check_writes_as_the_account_that_will_and_leaves_its_marker_alone(site: Site, place: Path) -> None:
    assert f"Targets are checked as sorter-{os.getpid()}." in site.checked
    for what in [*LABS, "listed"]:
        folder = place / what / ".sorter"
        assert folder.stat().st_uid == site.people.sorter.uid
        assert "id" in os.listdir(folder)
    assert site.checked.count("the group of the files could not be set") == 1
    assert "FAILED" not in site.checked


# --- shares, simulated ------------------------------------------------------------------------------------------------


def site_on(place: Path, owner: int, target: Path) -> None:
    """A configuration whose one lab has its folder on a share, and a spool of this account."""
    home = root_of(place / "root", owner, owner, 0o755)
    root_of(home / "spool", owner, owner, 0o711)
    (home / "sorter.toml").write_text(
        f"[sorter]\nroot = {json.dumps(str(home))}\n[labs.far]\nroot = {json.dumps(str(target))}\n"
    )


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sorter-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def test_root_squash_is_told(another: Path, people: People) -> None:
    with fuse_share(another / "share", "nfs") as share:
        site_on(another, 0, share.root)
        assert "root's files belong to account 65534 there (root squash): run sorter under" in check(another)
        share.behind.chmod(0o2770)
        os.chown(share.behind, 0, people.lab)
        said = check(another, code=1)
        assert "does not let sorter write" in said
        assert "to most shares root is nobody (root squash): run sorter under an account" in said


def test_an_account_of_the_labs_group_is_what_a_share_wants(another: Path, people: People) -> None:
    with fuse_share(another / "share", "nfs") as share:
        share.behind.chmod(0o2770)
        os.chown(share.behind, 0, people.lab)
        site_on(another, people.sorter.uid, share.root)
        assert "far" in check(another)
        assert (share.behind / ".sorter/id").stat().st_gid == people.lab


def test_permissions_of_smb_are_told(another: Path, people: People) -> None:
    with fuse_share(another / "share", "smb") as share:
        site_on(another, people.sorter.uid, share.root)
        said = check(another)
        assert "files belong to account 12345 there, whoever writes them" in said
        assert "permissions are the mount's own (0755 where 0644 was asked for), as on SMB" in said


@pytest.mark.parametrize("first", [True, False], ids=["the group is known to the server", "it is the 17th"])
def test_the_17th_group_does_not_count_on_nfs(another: Path, *, first: bool) -> None:
    me = os.getpid()
    with contextlib.ExitStack() as made:
        names = [f"g{number}-{me}" for number in range(20)]
        numbers = [made.enter_context(made_group(name)) for name in names]
        account = made.enter_context(made_account(f"many-{me}", *names))
        with fuse_share(another / "share", "nfs") as share:
            share.behind.chmod(0o2770)
            os.chown(share.behind, 0, min(numbers) if first else max(numbers))
            site_on(another, account.uid, share.root)
            said = check(another, code=0 if first else 1)
            assert ("this account is in 21 groups, and NFS hands on 16 of them" in said) == (not first)
