"""Tables that decide: by themselves, and edited while a series is held."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sorter.errors import ConfigError
from sorter.model import Add, Hold, Identity, Only, Skip
from sorter.plugins import Plugins
from sorter.testing.plugins import check_plugin, load_plugin, made_up
from sorter.testing.running import RunningSorter
from sorter.testing.synthetic import Plan, localizer

README = Path(__file__).parents[1] / "README.md"
RULES, CONSENT = re.findall(r"```csv\n(.*?)```", README.read_text(), re.DOTALL)


def loaded(folder: Path, rules: str = RULES, listed: str | None = None) -> Plugins:
    (folder / "rules.csv").write_text(rules)
    tables = {"rules": str(folder / "rules.csv")}
    if listed is not None:
        (folder / "consent.csv").write_text(listed)
        tables["listed"] = str(folder / "consent.csv")
    return load_plugin("table", **tables)


def test_the_table_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    plugin = loaded(tmp_path)
    assert plugin.identify(made_up(PatientID="p0007")).identity == Identity("memory", "sub-007")
    assert plugin.identify(made_up(PatientID="P0008")).identity == Identity()
    for series, route in (
        (made_up(PatientID="P0007", SeriesDescription="AAHead_localizer"), Skip("localizers stay in the store")),
        (made_up(PatientID="PILOT3"), Hold("pilots are looked at first")),
        (made_up(PatientID="P1", SeriesDescription="rest_fMRI"), Only(("memory", "scratch"))),
        (made_up(PatientID="P1", SeriesDescription="T1"), None),
        (made_up(), None),
    ):
        assert plugin.route(series).route == route


def test_who_is_not_listed_is_held(tmp_path: Path) -> None:
    plugin = loaded(tmp_path, "CalledAE,add\nSORTER,memory\n", CONSENT)
    assert plugin.route(made_up(PatientID="P0007", StudyDescription="Memory^a")).route == Add(("memory",))
    held = plugin.route(made_up(PatientID="P0007", StudyDescription="Vision")).route
    assert held == Hold("it is not on the list; put it there, or release it with sorter hold")
    assert isinstance(loaded(tmp_path, RULES, "PatientID\n").route(made_up(PatientID="x")).route, Hold), "an empty list"


@pytest.mark.parametrize(
    ("rules", "listed", "said"),
    [
        ("PatientIdd,lab\nx,y\n", None, 'the column "PatientIdd" is no DICOM keyword'),
        ("PatientID,lab\nx,y\n\n,\nx,\n", None, "/rules.csv:5 says nothing"),
        ("PatientID,hold,skip\nx,a,b\n", None, "/rules.csv:2 says hold and skip; one of them"),
        (RULES, "PatientID,note\n,x\n", "/consent.csv:2 is empty, and would fit every series"),
        (RULES, "PatientID,lab\nx,y\n", 'the column "lab" is no DICOM keyword'),
        ("", None, "is empty; its first line must name the columns"),
    ],
)
def test_what_a_table_may_not_say(tmp_path: Path, rules: str, listed: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        loaded(tmp_path, rules, listed)


def test_it_stands_whatever_scanners_send(tmp_path: Path) -> None:
    (tmp_path / "rules.csv").write_text(RULES)
    (tmp_path / "consent.csv").write_text(CONSENT)
    check_plugin("table", rules=str(tmp_path / "rules.csv"), listed=str(tmp_path / "consent.csv"))


def test_a_series_is_delivered_when_its_row_is_written(tmp_path: Path) -> None:
    consent = tmp_path / "consent.csv"
    consent.write_text("PatientID\nnobody\n")
    made = localizer(Plan(seed=5, size=8))
    with RunningSorter(tmp_path / "site", quiet=0.5, config=f'[plugins.table]\nlisted = "{consent}"\n') as sorter:
        sorter.send(made)
        sorter.wait_event("held")
        assert not list(sorter.labs.rglob("*.dcm"))
        consent.write_text("PatientID\n*\n")
        sorter.wait_delivered(len(made.files))
        assert len(list(sorter.labs.rglob("*.dcm"))) == len(made.files)
