"""The configuration: every fault at once, each with its line, in words a person understands."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sorter.config import Config, TargetConfig, load, reading, real
from sorter.config.models import NodeSettings, PathSettings, RcloneSettings
from sorter.config.places import places
from sorter.config.reading import OWN_KINDS
from sorter.errors import ConfigError, SorterError

PROJECT = Path(__file__).parents[2]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes sorter.toml, and files of sorter.d by name; returns the path of sorter.toml."""

    def write(text: str, **more: str) -> Path:
        path = tmp_path / "sorter.toml"
        path.write_text(text)
        for name, content in more.items():
            (tmp_path / "sorter.d").mkdir(exist_ok=True)
            (tmp_path / "sorter.d" / f"{name}.toml").write_text(content)
        return path

    return write


def faults(path: Path, root: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, root)
    assert caught.value.exit_code == 2
    return caught.value.faults


# --- where things are -----------------------------------------------------------------------------------------------


def test_a_root_alone_is_enough(tmp_path: Path) -> None:
    config = load(root=tmp_path)
    assert config.spool == tmp_path / "spool"
    assert config.root == tmp_path
    assert (config.receive.ae_title, config.receive.host, config.receive.port) == ("SORTER", "127.0.0.1", 11112)
    assert (config.completion.quiet, config.completion.cap, config.completion.incomplete) == (30, 900, 1800)
    assert config.store.keep == "forever"
    assert config.engine.kind == "local"
    assert config.engine.jobs >= 1
    assert (dict(config.labs), dict(config.plugins), config.senders, config.plugins_folder) == ({}, {}, (), None)
    assert config.all_targets() == {
        "unassigned": TargetConfig.model_validate({"kind": "path", "root": str(tmp_path / "labs" / "unassigned")})
    }
    assert config.lab_root("unassigned") == tmp_path / "labs" / "unassigned"
    assert config.is_default_root("unassigned")
    assert config.locate("receive", "port") == "--root"


def test_nothing_at_all_says_how_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "SYSTEM_CONFIG", tmp_path / "etc" / "sorter.toml")
    with pytest.raises(ConfigError, match=r"there is no configuration: give --root DIR .* or -c FILE"):
        load()


def test_the_file_here_goes_before_that_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system = tmp_path / "etc.toml"
    monkeypatch.setattr(reading, "SYSTEM_CONFIG", system)
    system.write_text('[sorter]\nroot = "/system"\n')
    assert load().root == Path("/system")
    (tmp_path / "sorter.toml").write_text('[sorter]\nroot = "here"\n')
    assert load().root == tmp_path / "here"
    assert load(root=Path("there")).root == tmp_path / "there"


def test_root_takes_the_place_of_the_one_in_the_file(write: Write, tmp_path: Path) -> None:
    path = write('[sorter]\nroot = "/srv/x"\n[labs.memory]\n[receive]\nport = 104\n')
    config = load(path, tmp_path)
    assert (config.root, config.spool) == (tmp_path, tmp_path / "spool")
    assert config.lab_root("memory") == tmp_path / "labs" / "memory"
    assert config.receive.port == 104
    assert list(config.all_targets()) == ["memory", "unassigned"]
    assert list(load(path).all_targets()) == ["memory"]


def test_targets_are_the_roots_of_labs_and_the_configured_ones(write: Write, tmp_path: Path) -> None:
    config = load(
        write(
            '[sorter]\nroot = "r"\nspool = "../elsewhere/spool"\nplugins = "plugins"\n'
            '[labs.a]\nroot = "/labs/a"\ngroup = "staff"\ntargets = ["archive", "node"]\nproducts = ["dicom"]\n'
            '[labs.b]\nmatch = [" PatientID = x* "]\n'
            '[targets.archive]\nkind = "path"\nroot = "archive"\numask = "027"\n'
            '[targets.node]\nkind = "dicom"\nhost = "pacs"\nport = 104\nae_title = "PACS"\n'
            '[targets.other]\nkind = "dicomweb"\nhost = "s3"\ntls = { on = true }\n'
        )
    )
    found = {name: (target.kind, target.settings) for name, target in config.all_targets().items()}
    assert found == {
        "a": ("path", {"root": "/labs/a", "group": "staff"}),
        "b": ("path", {"root": str(tmp_path / "r" / "labs" / "b")}),
        "archive": ("path", {"root": str(tmp_path / "archive"), "umask": "027"}),
        "node": ("dicom", {"host": "pacs", "port": 104, "ae_title": "PACS"}),
        "other": ("dicomweb", {"host": "s3", "tls": {"on": True}}),
    }
    assert config.spool == tmp_path.parent / "elsewhere" / "spool"
    assert config.plugins_folder == tmp_path / "plugins"
    assert [config.is_default_root(name) for name in ("a", "b", "archive", "unassigned")] == [False, True, False, False]
    assert config.labs["b"].match == ("PatientID=x*",)
    assert (config.labs["a"].products, config.labs["b"].products) == (("dicom",), None)
    with pytest.raises(SorterError, match=r"lab c is not configured: add \[labs.c\]"):
        config.lab_root("c")


def test_drop_ins_come_in_the_order_of_their_names(write: Write, tmp_path: Path) -> None:
    path = write(
        '[sorter]\nroot = "r"\n[labs.first]\n[[senders]]\nae = "A"\n',
        b='[labs.third]\n[receive]\nhost = "0.0.0.0"\n',
        a='[labs.second]\n[receive]\nport = 104\n\n[[senders]]\nae = "B"\n',
    )
    (tmp_path / "sorter.d" / ".a.toml.swp").write_text("not read")
    (tmp_path / "sorter.d" / ".hidden.toml").write_text("not read")
    config = load(path)
    assert list(config.labs) == ["first", "second", "third"]
    assert (config.receive.host, config.receive.port) == ("0.0.0.0", 104)
    assert [each.ae for each in config.senders] == ["A", "B"]
    assert config.locate("labs", "second") == "sorter.d/a.toml:1"
    assert config.locate("senders", 1, "ae") == "sorter.d/a.toml:6"
    assert config.locate("senders", "0", "ae") == "sorter.toml:5"


def test_places_for_settings_that_plugins_check_later(write: Write) -> None:
    config = load(write('[sorter]\nroot = "r"\n\n[plugins.subjects]\ntable = "x.csv"\ndeep.er = [\n  1,\n  2,\n]\n'))
    assert config.plugins == {"subjects": {"table": "x.csv", "deep": {"er": [1, 2]}}}
    assert config.locate("plugins", "subjects", "table") == "sorter.toml:5"
    assert config.locate("plugins", "subjects", "deep", "er", 1) == "sorter.toml:8"
    assert config.locate("plugins", "subjects", "missing") == "sorter.toml:4"
    assert config.locate("engine", "jobs") == "sorter.toml"


def test_what_the_command_line_says_goes_first(tmp_path: Path) -> None:
    config = load(root=tmp_path)
    assert config.with_receive() == config
    changed = config.with_receive(host="0.0.0.0", port=0).with_quiet(2000)
    assert (changed.receive.host, changed.receive.port, changed.receive.ae_title) == ("0.0.0.0", 0, "SORTER")
    assert (changed.completion.quiet, changed.completion.cap) == (2000, 2000)
    assert changed.locate("x") == "--root"
    assert list(changed.all_targets()) == ["unassigned"]
    assert config.with_quiet(2).completion.cap == 900
    with pytest.raises(ConfigError, match=r"receive\.host: .* is no host"):
        config.with_receive(host="a host")


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(root=tmp_path).receive.port = 1


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('root = "r"\n\n[recieve]', '3: recieve: there is no such table, did you mean "receive"?'),
        ("[receive]\nae = 'X'", "2: receive.ae: there is no such key"),
        ("[receive]\nhots = 'X'", '2: receive.hots: there is no such key, did you mean "host"?'),
        ("[labs.m]\nmach = []", '2: labs.m.mach: there is no such key, did you mean "match"?'),
        ("[receive]\nport = '104'", '2: receive.port: must be a whole number, not "104"'),
        ("[receive]\nport = 104.5", "2: receive.port: must be a whole number, not 104.5"),
        ("[receive]\nport = 70000", "2: receive.port: must be at most 65535, not 70000"),
        ("[receive]\nport = -1", "2: receive.port: must be at least 0, not -1"),
        ("[receive]\nhost = 5", "2: receive.host: must be text in quotes, not 5"),
        ("[receive]\nhost = ''", '2: receive.host: "" is no host'),
        ("[receive]\ncalled = 'all'", '2: receive.called: must be "any", "own" or a list of AE titles, not "all"'),
        ("[receive]\ncalled = ['A\\\\B']", "is no AE title"),
        ("[receive]\ncalled = []", "2: receive.called: nobody could send, as no AE title may be called; list one"),
        ("[receive]\nhost = '0.0.0.0:104'", 'is a host and a port; write host = "0.0.0.0" and port = 104'),
        (
            "[receive]\nport = 2762\n[receive.tls]\ncert = 'c'\nkey = 'k'\nport = 2762",
            "6: receive.tls.port: 2762 is the port of [receive] too, where no TLS is spoken; choose another",
        ),
        (
            "[receive]\nport = 2762\n[receive.tls]\ncert = 'c'\nkey = 'k'\nhost = '0.0.0.0'",
            "receive.tls.port: 2762 is the port of [receive] too",
        ),
        ("[receive]\nstrangers = false", "2: receive.strangers: nobody could send, as there are no [[senders]]"),
        ("[receive]\nassociations = 50", "1: receive.reserve: 50 of 50 associations would leave none for others"),
        ("[receive.tls]\nkey = 'k'", "1: receive.tls.cert: must be given"),
        (
            "[receive.tls]\ncert = 'c'\nkey = 'k'\nkeys = 'k'",
            '4: receive.tls.keys: there is no such key, did you mean "key"?',
        ),
        ("[receive.tls]\ncert = 'c'\nkey = 5", "3: receive.tls.key: must be a file in quotes, not 5"),
        ("[receive.tls]\ncert = 'c'\nkey = 'k'\nport = 99999", "4: receive.tls.port: must be at most 65535, not 99999"),
        ("[receive]\ntls = true", "2: receive.tls: must be a table, not true"),
        ("receive = 5", "1: receive: must be a table, as [receive], not 5"),
        (
            "[receive]\nae_title = '12345678901234567'",
            '2: receive.ae_title: "12345678901234567" is no AE title: 1 to 16',
        ),
        ("[receive]\nae_title = 'A\\B'", "is no AE title"),
        ('[receive]\nae_title = "A\\tB"', "is no AE title"),
        ("[receive]\nae_title = '   '", "is no AE title"),
        ("[receive]\nae_title = 'Äther'", "is no AE title"),
        ("[[senders]]\nae = 'A'\n[[senders]]\nmay_correct = true", "3: senders.1: says of no sender who it is"),
        ("[[senders]]\naddress = '10.1.2'", '2: senders.0.address: "10.1.2" is no address; write one as "10.1.2.3"'),
        ("[[senders]]\naddress = '10.1.2.3/40'", "is no address"),
        ("[[senders]]\naddress = 'prisma.example.org'", "is no address; write one as"),
        (
            "[[senders]]\naddress = '10.1.2.17/24'",
            '"10.1.2.17/24" is an address and a range at once; write "10.1.2.17", or "10.1.2.0/24" for all of it',
        ),
        ("[[senders]]\naddress = '::ffff:10.1.2.3'", 'is an address of IPv4; write it as "10.1.2.3"'),
        ("[[senders]]\naddress = 'fe80::1%eth0'", 'names a network card; write "fe80::1" alone'),
        ("[[senders]]\nae = 'A'\nquery = 'A'", '3: senders.0.query: "A" is no node; write AE@host:port, as "GE750@'),
        ("[[senders]]\nae = 'A'\nquery = 'A@h:0'", "is no node"),
        ("[[senders]]\nae = 'A'\nquery = 'A@h:65536'", "is no node"),
        ("[[senders]]\nae = 'A'\nquery = '@h:1'", "is no node"),
        ("[[senders]]\nae = 'A'\nquery = 'A@../x:1'", '"../x" is no host'),
        ("[[senders]]\nae = 'A'\nquery = 'seventeen letters@h:1'", "is no AE title"),
        ("[[senders]]\nae = 'A'\nquery = 1", 'must be written as "AE@host:port", not 1'),
        ("[[senders]]\nae = 'A'\nmay_correct = 1", "3: senders.0.may_correct: must be true or false, not 1"),
        ("[senders]\nae = 'A'", "1: senders: must be a list of tables, each begun by [[senders]], not a table"),
        ("senders = [1]", "1: senders.0: must be a table"),
        ("[completion]\nquiet = 0", "2: completion.quiet: must be more than 0, not 0"),
        ("[completion]\nquiet = 'long'", '2: completion.quiet: must be a number, not "long"'),
        ("[completion]\nquiet = inf", "2: completion.quiet: must be"),
        ("[completion]\nquiet = 1000", "2: completion.quiet: 1000 s is longer than cap (900 s)"),
        ("[store]\nkeep = 0", '2: store.keep: must be "forever" or a number of days, at least 1, not 0'),
        ("[store]\nkeep = true", '2: store.keep: must be "forever" or a number of days, at least 1, not true'),
        ("[store]\nkeep = 'ever'", '2: store.keep: must be "forever" or a number of days, at least 1, not "ever"'),
        ("[engine]\nkind = 'slrm'", '2: engine.kind: must be "local" or "slurm", not "slrm"'),
        ("[engine]\njobs = 0", "2: engine.jobs: must be at least 1, not 0"),
        ("[labs.m]\nmatch = 'x=y'", '2: labs.m.match: must be a list, as ["…"], not "x=y"'),
        ("[labs.m]\nmatch = [\n 'PatientID=*',\n 'x'\n]", '4: labs.m.match.1: "x" is no rule; write KEYWORD=GLOB'),
        ("[labs.m]\nmatch = ['PatientID=']", '"PatientID=" is no rule'),
        (
            "[labs.m]\nmatch = ['StudyDescripton=x']",
            '2: labs.m.match.0: "StudyDescripton" is no DICOM keyword, did you mean "StudyDescription"?',
        ),
        ("[labs.m]\nmatch = ['CaledAE=x']", 'did you mean "CalledAE"?'),
        ("[labs.m]\nmatch = ['PatientID=[ab]*[x']", "a [ is never closed"),
        ("[labs.m]\ngroup = true", "2: labs.m.group: must be text in quotes or a whole number, not true"),
        ("[labs.m]\nroot = 5", "2: labs.m.root: must be a folder in quotes, not 5"),
        ("[labs.m]\nroot = ''", "2: labs.m.root: must name a folder"),
        ("[labs.m]\nroot = '~/x'", "2: labs.m.root: ~ is not known here"),
        (
            "[labs.m]\ntargets = ['archiv']\n[targets.archive]\nkind='x'",
            '2: labs.m.targets.0: there is no target "archiv"',
        ),
        ("[labs.m]\ntargets = ['pacs']", 'there is no target "pacs"; add [targets.pacs]'),
        ("[labs.'a/b']", "1: labs.a/b: a name has letters, digits, - and _ only"),
        ("[labs.'..']", "a name has letters, digits"),
        ("[labs]\nm = 5", "2: labs.m: must be a table, as [labs.m], not 5"),
        ("[labs.unassigned]", "1: labs.unassigned: this name is taken"),
        (
            "[labs.m]\n[targets.m]\nkind = 'x'",
            "2: targets.m: a lab's root is a target of its name already (sorter.toml:1)",
        ),
        ("[[watch]]\ntake = 'copy'", "1: watch.0.path: must be given"),
        ("[[watch]]\npath = '/in'\ntake = 'steal'", "3: watch.0.take: must be"),
        ("[[watch]]\npath = '/in'\nobserver = 'inotify'", "3: watch.0.observer: must be"),
        ("[watch]\npath = '/in'", "1: watch: must be a list of tables, each begun by [[watch]], not a table"),
        (
            "[sorter]\nspool = '/r/s'\n[[watch]]\npath = '/r/s/in'",
            "watch.0.path: /r/s/in lies inside the spool",
        ),
        ("[labs.m]\nroot = '/m'\n[[watch]]\npath = '/m/in'", "watch.0.path: /m/in lies inside the root of lab m (/m, "),
        (
            "[[watch]]\npath = '/in'\n[[watch]]\npath = '/in/x'",
            "4: watch.1.path: /in/x lies inside a folder that is watched",
        ),
        ("[targets.x]", "1: targets.x.kind: must be given"),
        ("[targets.x]\nkind = 'path'", "1: targets.x.root: must be given"),
        (
            "[targets.x]\nkind = 'path'\nroot='/x'\numsk = 1",
            '4: targets.x.umsk: there is no such key, did you mean "umask"?',
        ),
        ('[labs.X]\nroot = "/x"\nuser = "a;b"', '3: labs.X.user: "a;b" is no name of an account'),
        ('[labs.X]\nuser = "x-svc"', "2: labs.X.user: x-svc needs a folder of its own; give root"),
        ("[targets.x]\nkind = 'path'\nroot='/x'\numask = '9'", "4: targets.x.umask: must be an octal number in quotes"),
        ("[targets.x]\nkind = 'y'\nsince = 2026-01-01", "3: targets.x.since: write dates and times in quotes"),
        ("[plugins]\nx = 1", "2: plugins.x: must be a table, as [plugins.x], not 1"),
    ],
)
def test_faults(write: Write, tmp_path: Path, text: str, fault: str) -> None:
    found = faults(write(text + "\n"), tmp_path)
    expected = f"sorter.toml:{fault}" if fault[0].isdigit() else fault
    assert any(each.startswith("sorter.toml:") and expected in each for each in found), found
    assert len(found) == (2 if text.startswith("root") else 1), found  # one slip, one sentence


@pytest.mark.parametrize(
    ("labs", "fault"),
    [
        ("a = '/x'\nb = '/x'", "/x is also the root of lab a (/x, sorter.toml:"),
        ("a = '/x'\nb = '/x/y'", "/x/y lies inside the root of lab a (/x, sorter.toml:"),
        ("a = '/x/y/z'\nb = '/x/../x'", "/x holds the root of lab a (/x/y/z, sorter.toml:"),
        ("a = '/spool/labs'", "/spool/labs lies inside the spool (/spool, sorter.toml:2)"),
        ("a = '/'", "/ holds the spool (/spool, sorter.toml:2)"),
    ],
)
def test_roots_stay_apart(write: Write, labs: str, fault: str) -> None:
    tables = "".join(f"[labs.{line[0]}]\nroot{line[1:]}\n" for line in labs.splitlines())
    found = faults(write(f"[sorter]\nspool = '/spool'\n{tables}"))
    assert len(found) == 1
    assert fault in found[0]
    assert "choose folders apart" in found[0]


@pytest.mark.parametrize("place", ["site/spool/incoming", "site/spool", "site", "site/spool/incoming/deeper"])
def test_a_root_that_leads_into_the_spool_by_a_link_is_refused(write: Write, tmp_path: Path, place: str) -> None:
    (tmp_path / "site/spool/incoming").mkdir(parents=True)
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(tmp_path / "third/../nowhere/../" / place)
    (tmp_path / "third").mkdir()
    (tmp_path / "nowhere").mkdir()
    spool = tmp_path / "site/spool"
    (fault,) = faults(write(f"[sorter]\nspool = '{spool}'\n[labs.a]\nroot = '{tmp_path}/first'\n"))
    assert f"{tmp_path}/first leads to {tmp_path / place}, which " in fault
    assert fault.endswith("choose folders apart from each other")


def test_a_loop_of_links_leads_nowhere(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    config = load(write(f"[sorter]\nspool='{tmp_path}/spool'\n[labs.a]\nroot='{tmp_path}/a/x'\n"))
    assert list(config.all_targets()) == ["a"]


def test_no_share_is_touched_to_see_where_a_root_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that hangs would hold up each command, and the sorter."""
    share = tmp_path / "a share"
    (share / "deep").mkdir(parents=True)
    (share / "deep" / "lab").symlink_to("/somewhere")
    (tmp_path / "link").symlink_to(share)
    read, looked = os.readlink, list[str]()
    monkeypatch.setattr(os, "readlink", lambda path: looked.append(str(path)) or read(path))
    assert real.leads_to(tmp_path / "link/deep/lab") == Path("/somewhere")
    looked.clear()
    monkeypatch.setattr(real, "_shares", lambda: frozenset({str(share)}))
    assert real.leads_to(tmp_path / "link/deep/lab") == share / "deep/lab"
    assert not [each for each in looked if each.startswith(str(share))]


def test_mounts_of_others_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/proc/filesystems": "nodev\ttmpfs\nnodev\tnfs4\n\text4\n\tfuseblk\nnodev\tfuse\n",
        "/proc/self/mountinfo": (
            "22 1 254:0 / / rw - ext4 /dev/vda rw\n23 22 0:21 / /dev/shm rw shared:1 - tmpfs tmpfs rw\n"
            "24 22 0:40 / /mnt/the\\040NAS rw - nfs4 nas:/x rw\n25 22 8:1 / /mnt/usb rw - fuseblk /dev/sda1 rw\n"
            "26 22 0:41 / /auto rw - autofs auto rw\n27 22 0:42 / /home rw - fuse.sshfs host: rw\n"
        ),
    }
    monkeypatch.setattr(Path, "read_text", lambda self, **_: texts[str(self)])
    assert real._shares() == {"/mnt/the NAS", "/mnt/usb", "/auto", "/home"}


def test_roots_that_only_begin_alike_are_apart(write: Write) -> None:
    config = load(write("[sorter]\nspool='/s'\n[labs.a]\nroot='/s2'\n[labs.b]\nroot='/s2b'\n"))
    assert config.root is None
    assert list(config.all_targets()) == ["a", "b"]


def test_without_a_root_everything_needs_its_own(write: Write) -> None:
    assert faults(write("[labs.m]\nroot = '/x'\n"))[0].startswith("sorter.toml: sorter.root: must be given")
    assert faults(write("[sorter]\nspool='/s'\n[labs.m]\n")) == [
        "sorter.toml:3: labs.m.root: must be given, as there is no root in [sorter] (then it would be labs/m below it)"
    ]


def test_all_faults_are_told_at_once_in_the_order_of_lines(write: Write) -> None:
    path = write(
        '[sorter]\nroot = "r"\nspol = "x"\n[receive]\nport = "x"\nhost = 1\n[labs.a]\nroot = "r/spool"\nbad = 1\n',
        a="[labs.b\n",
        b="[completion]\nquiet = -1\n[labs.a]\n[receive]\nport = 5\n",
        c="x = 'ü".encode("latin-1").decode("latin-1"),
    )
    (path.parent / "sorter.d" / "d.toml").write_bytes(b"[engine]\n# \xfc\n")
    found = faults(path)
    assert [each.split(": ")[0] for each in found] == [
        "sorter.toml:3",
        "sorter.toml:5",
        "sorter.toml:6",
        "sorter.toml:8",
        "sorter.toml:9",
        "sorter.d/a.toml:1",
        "sorter.d/b.toml:2",
        "sorter.d/b.toml:3",
        "sorter.d/b.toml:5",
        "sorter.d/c.toml:1",
        "sorter.d/d.toml:2",
    ]
    assert "this is not TOML: " in found[5]
    assert found[7].endswith("labs.a: already given at sorter.toml:7; keep one of the two")
    assert found[8].endswith("receive.port: already given at sorter.toml:5; keep one of the two")
    assert "this is not UTF-8" in found[10]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (found,) = faults(tmp_path / "sorter.toml", tmp_path)
    assert found == f"sorter.toml: {tmp_path}/sorter.toml cannot be read: No such file or directory"


def test_a_big_or_endless_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sorter.toml"
    path.write_text("#" * (2 << 20))
    assert "is longer than 1 MiB" in faults(path, tmp_path)[0]
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "is longer than 1 MiB" in faults(path, tmp_path)[0]


def test_a_link_is_followed(write: Write, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(write('[sorter]\nroot = "r"\n'))
    assert load(link).root == tmp_path / "r"


# --- where keys stand -----------------------------------------------------------------------------------------------

TRICKY = r'''# a comment = 1
title = "a = b # no" # [no]
'quoted.key' = 1
"esc\u00e4ped \" key" = 2
a . b."c d" = { x = 1, "y z" = [1, 2,
  { deep = 3 }], w.v = '}' }

[table]
text = """
[not.a.table]
not_a_key = 1
\""" still ""text"""""
raw = @@@
[nor.this]
it's '@@@
after = 1
empty = ""
empty_raw = ''
date = 1979-05-27 07:32:00Z # [x]
number = 1_000

[[rows]]
k = 1
  [[rows.inner]]
  z = 0
  [[rows.inner]]
  z = 1
[rows.more]
m = 1
[[ rows ]] # second
k = 2
  [[rows.inner]]
  z = 2
[ "odd [table]" . x ]
y = [ # comment ] here
  "]", '[',

  [ 1, 2 ],
]
'''.replace("@@@", "'''")


def test_places_of_every_kind_of_key() -> None:
    found = {".".join(key): line for key, line in places(TRICKY).items()}
    assert found["title"] == 2
    assert places(TRICKY)["quoted.key",] == 3
    assert found['escäped " key'] == 4
    assert found["a.b.c d.x"] == 5
    assert found["a.b.c d.y z.2.deep"] == 6
    assert found["a.b.c d.w.v"] == 6
    assert found["table"] == 8
    assert (found["table.text"], found["table.raw"], found["table.after"]) == (9, 13, 16)
    assert (found["table.empty"], found["table.empty_raw"], found["table.date"], found["table.number"]) == (
        17,
        18,
        19,
        20,
    )
    assert (found["rows.0"], found["rows.0.inner.0.z"], found["rows.0.inner.1.z"]) == (22, 25, 27)
    assert (found["rows.0.more.m"], found["rows.1"], found["rows.1.k"], found["rows.1.inner.0.z"]) == (29, 30, 31, 33)
    assert (found["odd [table].x.y.1"], found["odd [table].x.y.2.1"]) == (36, 38)
    assert not any("not" in key or "nor" in key for key in found)
    assert places(TRICKY.replace("\n", "\r\n")) == places(TRICKY)


def keys(value: object, above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Every key path of what tomli read: what the locator has to know, no more and no less."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {above} if above else set()
    for key, item in items:
        found |= keys(item, (*above, str(key)))
    return found


def test_places_are_those_of_tomli() -> None:
    assert set(places(TRICKY)) == keys(tomli.loads(TRICKY))
    for path in [*sorted((PROJECT / "examples").rglob("*.toml")), PROJECT / "pyproject.toml"]:
        text = path.read_text()
        assert set(places(text)) == keys(tomli.loads(text)), path


@given(
    st.lists(
        st.sampled_from(
            [
                "[a]\n",
                "[a.b]\n",
                "[[l]]\n",
                "[[l.m]]\n",
                "x=1\n",
                "y.z='''\n[q]'''\n",
                'w="""\\\n "" \\""" """\n',
                "\n",
                "v=[{a=1},[],[[{}]],'#']#]\n",
                "'k k'={}\n",
                '"\\t"=""\n',
                "t={a.b=1,c={d=[1,\n2]}}\n",
                "# [c]\n",
                "u=-inf\r\n",
            ]
        ),
        max_size=12,
    )
)
@settings(max_examples=400, deadline=None)
def test_places_of_whatever_tomli_reads(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        read = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    assert set(places(text)) == keys(read)


# --- examples and docs ----------------------------------------------------------------------------------------------


def test_the_examples_are_good(tmp_path: Path) -> None:
    minimal = load(PROJECT / "examples" / "minimal" / "sorter.toml")
    assert list(minimal.labs) == ["memory"]
    institute = load(PROJECT / "examples" / "institute" / "sorter.toml")
    assert list(institute.labs) == ["memory", "vision", "pilots"]
    assert list(institute.all_targets()) == ["memory", "vision", "pilots", "archive"]
    assert institute.lab_root("pilots") == Path("/srv/sorter/labs/pilots")


DOCS = PROJECT / "docs" / "configuration.md"
HEADINGS = {
    "sorter": "[sorter]", "receive": "[receive]", "receive.tls": "[receive.tls]",
    "senders": "[[senders]]", "watch": "[[watch]]",
    "completion": "[completion]",
    "delivery": "[delivery]",
    "store": "[store]", "engine": "[engine]",
    "engine.slurm": "[engine.slurm]", "engine.slurm.labs": "[engine.slurm.labs.NAME]",
    "door": "[door]", "labs": "[labs.NAME]", "targets": "[targets.NAME]",
    "plugins": "[plugins.NAME]",
}  # fmt: skip


def sections() -> dict[str, str]:
    """The text of each section of the page, by its heading."""
    parts = re.split(r"^## `(.+)`\n", DOCS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def model_of(name: str) -> type[BaseModel]:
    model: type[BaseModel] = Config
    for part in name.split("."):
        annotation = model.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        model = next(each for each in reversed(inner) if isinstance(each, type) and issubclass(each, BaseModel))
    return model


def documented(name: str) -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", sections()[HEADINGS[name]], flags=re.MULTILINE))


def test_every_table_is_documented() -> None:
    assert list(sections()) == list(HEADINGS.values())
    assert {name for name in HEADINGS if "." not in name} == set(Config.model_fields)


@pytest.mark.parametrize("name", [name for name in HEADINGS if name != "plugins"])
def test_every_key_is_documented_and_no_other(name: str) -> None:
    known = set(model_of(name).model_fields)
    if name == "targets":
        known |= {key for kind in OWN_KINDS.values() for key in kind.model_fields}
    assert documented(name) == known
    example = sections()[HEADINGS[name]]
    keys = [key for key in known if f"{name}.{key}" not in HEADINGS]
    assert all(re.search(rf"^{key} = ", example, flags=re.MULTILINE) for key in keys), "each key has an example"


@pytest.mark.parametrize("name", [name for name in HEADINGS if name != "plugins"])
def test_every_key_says_what_it_is(name: str) -> None:
    models = [model_of(name), *(OWN_KINDS.values() if name == "targets" else [])]
    for model in models:
        assert model.__doc__
        assert all(field.description for field in model.model_fields.values()), model


def test_the_examples_of_the_page_are_good(tmp_path: Path) -> None:
    found = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(found) == len(HEADINGS)
    path = tmp_path / "sorter.toml"
    path.write_text("\n".join(found))
    config = load(path)
    assert config.receive.ae_title != "SORTER"  # an example shows something else than the default


def test_the_path_target_reads_what_may_be_written() -> None:
    text = (PROJECT / "sorter" / "builtin" / "path_target.py").read_text()
    asked = set(re.findall(r'settings\.get\("(\w+)"', text))
    assert asked == set(PathSettings.model_fields)


def test_the_dicom_target_reads_what_may_be_written() -> None:
    text = (PROJECT / "sorter" / "scu" / "target.py").read_text()
    asked = set(re.findall(r'settings\.get\("(\w+)"', text))
    assert asked == set(NodeSettings.model_fields)


def test_two_nodes_cannot_report_to_one_port(tmp_path: Path) -> None:
    node = 'kind = "dicom"\nhost = "pacs"\nport = 104\nae_title = "PACS"\ncommitment_port = 11113\n'
    (tmp_path / "sorter.toml").write_text(f"[sorter]\nroot = 'r'\n[targets.a]\n{node}[targets.b]\n{node}")
    with pytest.raises(ConfigError, match=r"targets\.b\.commitment_port: is that of \[targets\.a\] already"):
        load(tmp_path / "sorter.toml")


def test_the_rclone_target_reads_what_may_be_written() -> None:
    text = (PROJECT / "sorter" / "builtin" / "rclone_target.py").read_text()
    asked = set(re.findall(r'settings\.get\("(\w+)"', text))
    assert asked == set(RcloneSettings.model_fields)


@pytest.mark.parametrize("remote", ["mri", ":sftp,host=nas,pass=secret:mri", "nas]:mri", "nas:a\\nb", ""])
def test_a_remote_is_named_and_described_elsewhere(tmp_path: Path, remote: str) -> None:
    """What rclone would take as a description would bring its secrets with it."""
    text = f'[sorter]\nroot = "r"\n[targets.a]\nkind = "rclone"\nremote = "{remote}"\nconfig = "rclone.conf"\n'
    (tmp_path / "sorter.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"is no remote; write NAME:PATH"):
        load(tmp_path / "sorter.toml")
