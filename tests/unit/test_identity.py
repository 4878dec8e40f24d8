"""Whose a series is: the habits of the field, regular expressions, a table of subjects, and their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.model import Identity, Series, Source, UnitKind
from sorter.plugins import Plugins

LABS = [
    {"name": "memory", "match": ["StudyDescription=Memory*"]},
    {"name": "smith", "projects": ["smith^*", "smith/*", "sleep"]},
    {"name": "quiet", "projects": []},
]


def series(*sources: Source, **header: Any) -> Series:
    return Series("k", UnitKind.SERIES, "1", ("2",), header, 1, sources)


def loaded(folder: Path | None = None, **settings: Any) -> Plugins:
    return Plugins.load({}, folder, Files(), {"identity": {"labs": LABS, **settings}})


def identity(extract: list[str], each: Series) -> Identity:
    found = loaded(extract=extract).identify(each)
    assert not found.failures
    return found.identity


@pytest.mark.parametrize(
    ("extract", "header", "lab", "subject", "session"),
    [
        ("siemens", {"StudyDescription": "Smith^Sleep"}, "smith", "P1", None),
        ("siemens", {"StudyDescription": "Jones^Sleep"}, "smith", "P1", None),  # the project alone is the lab's
        ("siemens", {"StudyDescription": "Jones^Dreams"}, None, "P1", None),
        ("siemens", {"StudyDescription": "quiet^x"}, None, "P1", None),
        ("siemens", {"StudyDescription": "smith^"}, None, "P1", None),
        ("address", {"PatientID": "s01@smith/any"}, "smith", "s01", None),
        ("address", {"PatientID": "@smith/any"}, "smith", "@smith/any", None),
        ("address", {"PatientID": "s01@smith"}, None, "s01@smith", None),
        ("xnat", {"PatientComments": "Project:sleep Subject:S7 Session:S7_MR2"}, "smith", "S7", "S7_MR2"),
        ("xnat", {"PatientComments": "note; session: b, SUBJECT:S7; project:sleep;"}, "smith", "S7", "b"),
        ("xnat", {"StudyComments": "Project:memory Subject:S7"}, "memory", "S7", None),
        ("xnat", {"PatientComments": "nothing of the kind"}, None, "P1", None),
        ("ReferringPhysicianName", {"ReferringPhysicianName": "SMITH^John"}, "smith", "P1", None),
        ("StationName", {"StationName": "Memory"}, "memory", "P1", None),
        ("CalledAE", {}, "memory", "P1", None),
        (r"ProtocolName ~ ^(?P<lab>[a-z]+)_(?P<subject>\d+)_(?P<session>\w+)$", {"ProtocolName": "SLEEP_012_b"},
         "smith", "012", "b"),
        (r"ProtocolName ~ (?P<lab>memory)?(?P<subject>\d+)", {"ProtocolName": "no lab 12"}, None, "12", None),
    ],
)  # fmt: skip
def test_what_an_extractor_reads(
    extract: str, header: dict[str, Any], lab: str | None, subject: str, session: str | None
) -> None:
    each = series(Source("SCANNER", "MEMORY", "10.1.1.1"), **{"PatientID": "P1", **header})
    found = identity([extract], each)
    assert (found.lab, found.subject, found.session) == (lab, subject, session)


def test_each_part_is_given_by_the_first_that_knows_it() -> None:
    each = series(StudyDescription="Memory^Sleep", PatientComments="Project:sleep Subject:S7", PatientID="P1")
    assert identity(["siemens", "xnat"], each) == Identity(
        "memory", "S7", None, {"group": "Memory", "project": "Sleep"}  # `match` comes first where it is not named
    )  # fmt: skip
    assert identity(["xnat", "match"], each).lab == "smith"
    assert identity([], each).labels == {}


def test_other_names_in_an_expression_are_labels() -> None:
    each = series(ProtocolName="T1_site3_wave2")
    found = identity([r"ProtocolName ~ (?P<site>site\d).*(?P<wave>wave\d)"], each)
    assert found.labels == {"site": "site3", "wave": "wave2"}


def test_an_expression_is_compared_with_some_of_very_many_values() -> None:
    """The guard against hangs is the judge: with all of them it would not end today."""
    hostile = {"ProtocolName": tuple(f"{number:06d}{'a' * 1000}" for number in range(100_000))}
    each = Series("k", UnitKind.SERIES, "1", ("2",), {}, 1, (), distinct=hostile)
    slow = "(a|b|c|d)*" * 20
    assert identity([f"ProtocolName ~ ^0+{slow}(?P<subject>x)"], each).subject == "no-id"


@pytest.mark.parametrize(
    ("extract", "says"),
    [
        ("seimens", 'no extractor "seimens", did you mean "siemens"'),
        ("StationNam", 'StationNam is no DICOM keyword, did you mean "StationName"'),
        ("PI^Project", "is no extractor: write match, table, siemens"),
        ("PatientID ~ (?P<subject>", "is no regular expression"),
        ("PatientID ~ .*", "names nothing"),
        ("PatientID ~ (?P<lab>.)(?P<group>.)", "are one in an expression"),
        ("PatientIDs ~ (?P<lab>.)", 'did you mean "PatientID"'),
        (r"PatientID ~ (?P<lab>.)(?P=lab)", "bounded time"),
    ],
)
def test_a_mistake_is_said_when_the_configuration_is_read(extract: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(extract=[extract])
    assert says in str(raised.value)


# --- the table of subjects ------------------------------------------------------------------------------------------

TABLE = """PatientID,StudyDate,lab,subject,session,arm
p1,20260102,smith,P07,2,a
p1,,memory,P07,1,
,20260103,,,s3,
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "subjects.csv").write_text(TABLE)
    return tmp_path


def test_the_first_row_that_speaks_of_a_series_counts(folder: Path) -> None:
    identify = loaded(folder, table="subjects.csv").identify
    assert identify(series(PatientID="P1", StudyDate="20260102")).identity == Identity(
        "smith", "P07", "2", {"arm": "a"}
    )
    assert identify(series(PatientID="P1", StudyDate="20260101")).identity == Identity("memory", "P07", "1")
    found = identify(series(PatientID="P2", StudyDate="20260103", StudyDescription="Memory")).identity
    assert found == Identity("memory", "P2", "s3")


def test_the_place_of_the_table_in_the_order(folder: Path) -> None:
    each = series(PatientID="P1", StudyDescription="Memory", StudyDate="20260102")
    assert loaded(folder, table="subjects.csv").identify(each).identity.lab == "smith"
    plugins = loaded(folder, table="subjects.csv", extract=["match", "table"])
    assert plugins.identify(each).identity == Identity("memory", "P07", "2", {"arm": "a"})


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("PatientID,lab\nP1,memroy\n", ':2: lab "memroy" is not configured, did you mean "memory"'),
        ("PatientID,lab\n\nP1,other\n", ":3: lab \"other\" is not configured; add [labs.other]"),
        ("PatientID,lab\nP1,memory\np1,smith\n", ":3: the row at"),
        ("PatientID,lab\n,memory\n", ":2: the row does not say of which series it speaks"),
        ("PatientID,lab\nP1,\n", ":2: the row says nothing"),
        ("PatientIdd,lab\nP1,memory\n", ':2: PatientIdd is no DICOM keyword, did you mean "PatientID"'),
        ("PatientID,lab\nP1,memory,x\n", ":2: 3 cells for 2 columns"),
    ],
)  # fmt: skip
def test_a_fault_in_the_table_names_its_line(folder: Path, rows: str, says: str) -> None:
    (folder / "subjects.csv").write_text(rows)
    with pytest.raises(ConfigError) as raised:
        loaded(folder, table="subjects.csv")
    assert f"{folder}/subjects.csv{says}" in str(raised.value)


def test_a_table_that_changes_is_read_again_and_a_faulty_one_is_not_used(folder: Path) -> None:
    plugins = loaded(folder, table="subjects.csv")
    (folder / "subjects.csv").write_text("PatientID,lab\nP1,nobody\n")
    assert plugins.refresh() == ()
    assert f'plugins.identity: {folder}/subjects.csv:2: lab "nobody"' in "".join(plugins.table_faults())
    assert plugins.identify(series(PatientID="P1")).identity.lab == "memory"
    (folder / "subjects.csv").write_text("PatientID,lab\nP1,smith\n")
    assert plugins.refresh() == ("identity",)
    assert plugins.identify(series(PatientID="P1")).identity.lab == "smith"
    assert plugins.table_faults() == ()
