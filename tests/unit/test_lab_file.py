"""The lab's own file: what it may say, what it can never say, and that a mistake leaves the last good one in force."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.config import load
from sorter.config.lab import MOST_BYTES, MOST_RULES, LabFile, read_kept, read_lab
from sorter.daemon.assembly import load_plugins
from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.labs.files import LabFiles, errors_text
from sorter.model import Header, Identity, Name, Series, UnitKind
from sorter.naming import Pattern, folder_name, values_of
from sorter.plugins import Plugins
from sorter.spool.labs import LabRecords

USUAL = {"dicom": Name("{subject}/{SeriesNumber:03d}", "{InstanceNumber:06d}.dcm"), "nifti": Name("{subject}/n", "x")}

GOOD = b"""
[naming]
folder = "{subject}/{StudyDate:%Y-%m-%d}/{SeriesNumber:03d}_{SeriesDescription}"

[naming.products.nifti]
folder = "{subject}/nifti"

[deliver]
products = ["dicom", "nifti"]

[[rules]]
says = "the pilot is apart"
author = "ana"
date = "2026-01-05"
subject = "PILOT*"
below = "pilot/{session}"

[[rules]]
series = "3,5-7"
modality = "MR"
match = ["ProtocolName=rest*", "StationName=PRISMA"]
folder = "rest/{subject}"
file = "{InstanceNumber:04d}.dcm"
products = ["dicom"]
"""


def series(subject: str = "S1", lab: str | None = "memory", **header: str | int) -> Series:
    known: Header = {"Modality": "MR", "SeriesNumber": 4, "SeriesDescription": "T1", "StudyDate": "20260105", **header}
    return Series("k" * 32, UnitKind.SERIES, "1.2", ("1.2.3",), known, 1, identity=Identity(lab, subject))


def faults(data: bytes | str, usual: Mapping[str, Name] = USUAL) -> list[str]:
    with pytest.raises(ConfigError) as said:
        read_lab(data.encode() if isinstance(data, str) else data, usual)
    return said.value.faults


# --- what it says ---------------------------------------------------------------------------------------------------


def test_an_empty_file_changes_nothing() -> None:
    assert read_lab(b"", USUAL) == LabFile()
    assert LabFile().name(series(), "dicom", USUAL["dicom"]) == USUAL["dicom"]
    assert LabFile().products(series()) is None


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (series(), "{subject}/{StudyDate:%Y-%m-%d}/{SeriesNumber:03d}_{SeriesDescription}"),
        (series("pilot7"), "pilot/{session}/{subject}/{StudyDate:%Y-%m-%d}/{SeriesNumber:03d}_{SeriesDescription}"),
        (series(SeriesNumber=6, ProtocolName="REST_run1"), "rest/{subject}"),
        (series(SeriesNumber=6, StationName="prisma"), "rest/{subject}"),
        (series(SeriesNumber=6), "{subject}/{StudyDate:%Y-%m-%d}/{SeriesNumber:03d}_{SeriesDescription}"),
        (
            series(SeriesNumber=6, ProtocolName="rest", Modality="PT"),
            "{subject}/{StudyDate:%Y-%m-%d}/{SeriesNumber:03d}_{SeriesDescription}",
        ),
        (
            series("PILOT", SeriesNumber=6, ProtocolName="rest"),
            "pilot/{session}/{subject}/{StudyDate:%Y-%m-%d}/{SeriesNumber:03d}_{SeriesDescription}",
        ),
    ],
)  # fmt: skip
def test_the_first_rule_counts_of_which_all_fits(which: Series, name: str) -> None:
    assert read_lab(GOOD, USUAL).name(which, "dicom", USUAL["dicom"]).folder == name


def test_a_rule_has_its_own_products_and_files() -> None:
    found, rest = read_lab(GOOD, USUAL), series(SeriesNumber=3, ProtocolName="rest")
    assert found.products(rest) == ("dicom",)
    assert found.products(series()) == ("dicom", "nifti")
    assert found.name(rest, "dicom", USUAL["dicom"]).file == "{InstanceNumber:04d}.dcm"
    assert found.name(series("PILOT1"), "nifti", USUAL["nifti"]) == Name("pilot/{session}/{subject}/nifti", "x")


def test_a_series_number_without_end_is_nobodys_number() -> None:
    assert read_lab(GOOD, USUAL).rule_for(series(SeriesNumber="9" * 6000, ProtocolName="rest")) is None


# --- what it can never say ------------------------------------------------------------------------------------------

HOSTILE = {
    "a way up": '[naming]\nfolder = "../other/{subject}"',
    "a way up inside": '[naming]\nfolder = "a/../../b"',
    "a way up in front": '[[rules]]\nsubject = "*"\nbelow = ".."',
    "an absolute folder": '[naming]\nfolder = "/etc/cron.d"',
    "an absolute sub-folder": '[[rules]]\nsubject = "*"\nbelow = "/srv/labs/other"',
    "a backslash": '[naming]\nfolder = "a\\\\..\\\\b"',
    "a file in another folder": '[naming]\nfile = "../../x.dcm"',
    "sorter's own folder": '[naming]\nfolder = ".sorter/requests"',
    "a home": '[naming]\nfolder = "~root/{subject"',
    "an attribute of Python": '[naming]\nfolder = "{subject.__class__.__globals__}"',
    "an environment variable": '[naming]\nfolder = "{HOME}"',
    "nothing at all": '[naming]\nfolder = ""',
    "levels without end": '[naming]\nfolder = "' + "a/" * 400 + '"',
    "levels that only add up": '[[rules]]\nsubject = "*"\nbelow = "' + "/".join("abcdefghijklmnop") + '"',
    "a pattern without end": '[naming]\nfolder = "' + "a" * 5000 + '"',
    "its root": 'root = "/srv/labs/other"',
    "its group": 'group = "wheel"',
    "another lab": '[labs.other]\nroot = "/tmp/x"',
    "another target": '[targets.mine]\nkind = "path"\nroot = "/"',
    "the spool": '[sorter]\nspool = "/tmp"',
    "a plugin's settings": "[plugins.identity]\nlabs = []",
    "a rule that says whose it is": '[[rules]]\nsubject = "*"\nlab = "other"\nbelow = "x"',
    "a rule that sends elsewhere": '[[rules]]\nsubject = "*"\ntargets = ["other"]',
    "a rule for everything": '[[rules]]\nbelow = "x"',
    "a range that counts backwards": '[[rules]]\nseries = "9-3"\nbelow = "x"',
    "a rule for nothing": '[[rules]]\nsubject = "*"',
    "rules without end": '[[rules]]\nsubject = "*"\nbelow = "x"\n' * (MOST_RULES + 1),
    "a product that nobody makes": '[deliver]\nproducts = ["rm -rf"]',
    "a binary file": b"\x7fELF\x00\x01\xff\xfe",
    "another alphabet": '[naming]\nfolder = "Jürgen"'.encode("utf-16"),
    "a bomb of lists": "a = " + "[" * 3000,
    "lists that end": "a = " + "[" * 390 + "]" * 390,
    "a number without end": "a = " + "9" * 5000,
    "keys without end": ".".join("a" * 3000) + " = 1",
    "a huge file": b"#" * (MOST_BYTES + 1),
    "a line that ends the line": '"a\\u001b[2J\\nlab.toml:1: all is well" = 1',
    "a direction of writing": '[naming]\n"\\u202efolder" = "x"',
    "a wrong kind": "rules = 3\nnaming = []",
    "no TOML": "folder: {subject}",
}
"""Each must be refused. `read_kept` trusts what was once accepted, so it alone may leave out what sums up."""


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_a_lab_can_never_say(data: str | bytes) -> None:
    said = faults(data)
    assert said
    assert all(each.startswith("lab.toml") and each.isprintable() and len(each) <= 1000 for each in said)
    assert len(said) <= 51


def test_every_fault_has_its_line_and_all_are_told_at_once() -> None:
    said = faults(
        '[naming]\nfolder = "../x"\n\n[[rules]]\nsubject = 3\n\n[[rules]]\nmatch = ["Patient=x"]\nbelwo = "x"\n'
    )
    assert said == [
        'lab.toml:2: naming.folder: pattern "../x", position 1: ".." can be no name, or the start of one',
        "lab.toml:5: rules.0.subject: must be text in quotes, not 3",
        'lab.toml:8: rules.1.match.0: "Patient" is no DICOM keyword, did you mean "PatientID"?',
        'lab.toml:9: rules.1.belwo: there is no such key, did you mean "below"?',
    ]


def _rules(text: str, count: int) -> str:
    return "".join(f'[[rules]]\nbelow = "x"\n{text}\n' for _ in range(count))


@pytest.mark.parametrize(
    "data",
    [
        _rules("match = [" + ", ".join(f'"StudyDescriptiom={each}"' for each in range(20)) + "]", 400),
        _rules('subject = "a"\nfolder = "{SeriesDescriptiom}"\nfile = "{InstanceNumer}"', 500),
        "".join(f'[naming.products.x{each}]\nfolder = "{{SeriesDescriptiom}}"\n' for each in range(3000)),
        "".join(f"k{each} = 1\n" for each in range(20_000)),
        "".join(".".join([f"a{each}", *"a" * 100]) + " = 1\n" for each in range(1000)),
        f"[notifications]\nnews = [{'9,' * 100_000}]",
        f"[deliver]\nproducts = [{'9,' * 100_000}]",
    ],
    ids=["keywords", "patterns", "products", "keys", "dots", "news", "numbers"],
)
def test_a_file_of_nothing_but_faults_takes_the_time_of_nobody_else(data: str) -> None:
    """One thread reads the files of all labs. (Of the processor, so that others on this machine do not count.)"""
    assert len(data) <= MOST_BYTES
    begun = time.process_time()
    assert faults(data)
    assert time.process_time() - begun < 10  # none takes 5 s; it were minutes


def test_what_is_the_admins_is_called_so() -> None:
    assert faults('root = "/x"') == ["lab.toml:1: root: this is the admin's to say, in sorter.toml; remove it here"]


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=20))
def test_no_folder_leaves_the_root_whatever_is_written(folder: str, below: str, value: str) -> None:
    text = f"[naming]\nfolder = {_toml(folder)}\n[[rules]]\nsubject = '*'\nbelow = {_toml(below)}\n"
    try:
        name = read_lab(text.encode("utf-8", "surrogatepass"), USUAL).name(series(), "dicom", USUAL["dicom"])
    except ConfigError:
        return
    made = folder_name(Pattern(name.folder), values_of({"SeriesDescription": value}, Identity("memory", value)))
    assert made
    assert not made.startswith("/")
    assert all(part and not part.startswith(".") for part in made.split("/"))


def _toml(text: str) -> str:
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text if not 0xD800 <= ord(char) <= 0xDFFF) + '"'


# --- the last good copy ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    path = tmp_path_factory.mktemp("admin") / "sorter.toml"
    path.write_text('[labs.memory]\nmatch = ["PatientID=*"]\n[labs.other]\n')
    return load_plugins(load(path, path.parent), Files())


@pytest.fixture
def plugins(loaded: Plugins) -> Plugins:
    loaded.give("naming", {"labs": {}})
    return loaded


@pytest.fixture
def labs(tmp_path: Path) -> LabFiles:
    return LabFiles(LabRecords(tmp_path / "labs", Files()))


def named(plugins: Plugins, lab: str = "memory", target: str = "memory") -> str:
    found = plugins.name(series(lab=lab), "dicom", target).name
    assert found is not None
    return found.folder


MINE = b'[naming]\nfolder = "mine"\n'


def test_a_file_counts_for_its_own_lab_at_its_own_root_alone(plugins: Plugins, labs: LabFiles) -> None:
    usual = named(plugins)
    assert labs.take("memory", MINE, plugins, ()).changed
    assert named(plugins) == "mine"
    assert named(plugins, lab="other", target="other") == usual
    assert named(plugins, lab="other", target="memory") == usual
    assert named(plugins, lab="memory", target="archive") == usual


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_whatever_comes_after_it_the_last_good_one_stays(data: str | bytes, plugins: Plugins, labs: LabFiles) -> None:
    labs.take("memory", MINE, plugins, ())
    taken = labs.take("memory", data.encode() if isinstance(data, str) else data, plugins, ())
    assert taken.faults
    assert not taken.changed
    assert named(plugins) == "mine"
    assert labs.records.good("memory") == MINE


def test_a_restart_knows_it_and_mending_it_ends_the_faults(plugins: Plugins, labs: LabFiles, tmp_path: Path) -> None:
    labs.take("memory", MINE, plugins, ())
    labs.say("memory", labs.take("memory", b"[", plugins, ()).faults)
    again = LabFiles(LabRecords(tmp_path / "labs", Files()))
    again.load(["memory", "other"])
    assert again.in_force == {"memory": read_kept(MINE)}
    assert again.records.faults("memory")
    again.say("memory", again.take("memory", MINE, plugins, ()).faults)
    assert again.records.faults("memory") == ()


def test_a_file_that_is_removed_leaves_what_is_usual(plugins: Plugins, labs: LabFiles) -> None:
    usual = named(plugins)
    labs.take("memory", MINE, plugins, ())
    assert labs.take("memory", None, plugins, ()).changed
    assert named(plugins) == usual
    assert labs.records.good("memory") is None
    assert not labs.take("memory", None, plugins, ()).changed


def test_a_copy_that_the_disk_damaged_holds_the_lab_until_its_file_comes_again(
    plugins: Plugins, labs: LabFiles, tmp_path: Path
) -> None:
    labs.take("memory", MINE, plugins, ())
    (tmp_path / "labs" / "memory" / "lab.toml").write_bytes(b"\x00" * 20)
    labs.load(["memory"])
    assert labs.in_force == {"memory": None}
    assert labs.take("memory", MINE, plugins, ()).changed
    assert labs.in_force == {"memory": read_kept(MINE)}


def test_the_page_of_errors_says_what_and_what_to_do() -> None:
    said = errors_text(faults('[naming]\nfolder = "../x"'))
    assert "lab.toml:2: naming.folder" in said
    assert "Mend what is named" in said
