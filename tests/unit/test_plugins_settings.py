"""The `[plugins.NAME]` tables: validated by the plugin's model, tables read and read again."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorter.durable import Files
from sorter.errors import ConfigError
from sorter.model import Series, UnitKind
from sorter.plugins import Plugins
from sorter.plugins.table import parse_table

SERIES = Series("key", UnitKind.SERIES, "1.2", ("1.2.3",), {"PatientID": "P7"}, 1)

SUBJECTS = """
from pydantic import BaseModel, field_validator
from sorter import Identity, Table, hookimpl

class Nested(BaseModel):
    depth: int = 1

class Settings(BaseModel):
    subjects: Table
    column: str = "subject"
    nested: Nested = Nested()

    @field_validator("column")
    @classmethod
    def lower(cls, value):
        if value != value.lower():
            raise ValueError("a column is written in small letters")
        return value

@hookimpl
def sorter_config():
    return Settings

@hookimpl
def sorter_identify(series, settings):
    return next((Identity(subject=row[settings.column]) for row in settings.subjects
                 if row["id"] == series.PatientID), None)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "subjects.py").write_text(textwrap.dedent(SUBJECTS))
    (tmp_path / "subjects.csv").write_text("id,subject\nP7,sub-007\n")
    (tmp_path / "subjects.py").chmod(0o644)
    tmp_path.chmod(0o755)
    return tmp_path


def load(folder: Path, table: dict[str, Any]) -> Plugins:
    return Plugins.load({"subjects": table}, folder, Files(), {}, lambda *key: f"sorter.toml:{len(key)}")


def faults(folder: Path, table: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, table)
    return caught.value.faults


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_table_is_handed_over_as_rows(folder: Path, kind: str) -> None:
    path = "subjects.csv" if kind == "relative" else str(folder / "subjects.csv")
    plugins = load(folder, {"subjects": path})
    assert plugins.identify(SERIES).identity.subject == "sub-007"
    assert plugins.settings("subjects")["subjects"] == [{"id": "P7", "subject": "sub-007"}]


def test_an_edited_table_is_read_again(folder: Path) -> None:
    plugins = load(folder, {"subjects": "subjects.csv"})
    assert plugins.refresh() == ()
    (folder / "subjects.csv").write_text("id,subject\nP7,sub-0008\n")
    assert plugins.refresh() == ("subjects",)
    assert plugins.refresh() == ()
    assert plugins.identify(SERIES).identity.subject == "sub-0008"


def test_a_replaced_table_of_the_same_size_is_read_again(folder: Path) -> None:
    plugins = load(folder, {"subjects": "subjects.csv"})
    (folder / "new").write_text("id,subject\nP7,sub-009\n")
    (folder / "new").replace(folder / "subjects.csv")
    assert plugins.refresh() == ("subjects",)
    assert plugins.identify(SERIES).identity.subject == "sub-009"


@pytest.mark.parametrize("content", [b"", b"id,subject\nP7,x,y\n", b"id,subject\nP\xff7,x\n", None])
def test_a_mistake_in_an_edited_table_keeps_the_last_good_rows(folder: Path, content: bytes | None) -> None:
    plugins = load(folder, {"subjects": "subjects.csv"})
    path = folder / "subjects.csv"
    path.unlink() if content is None else path.write_bytes(content)
    assert plugins.refresh() == ()
    assert plugins.identify(SERIES).identity.subject == "sub-007"
    assert "plugins.subjects.subjects: " in plugins.table_faults()[0]
    assert str(path) in plugins.table_faults()[0]
    path.write_text("id,subject\nP7,mended\n")
    assert plugins.refresh() == ("subjects",)
    assert plugins.table_faults() == ()
    assert plugins.identify(SERIES).identity.subject == "mended"


def test_every_fault_with_its_place(folder: Path) -> None:
    said = faults(folder, {"column": "ID", "nested": {"depth": "x"}, "colunm": 1})
    assert "sorter.toml:3: plugins.subjects.subjects: must be given" in said
    assert "sorter.toml:3: plugins.subjects.column: a column is written in small letters" in said
    assert any(
        line.startswith("sorter.toml:4: plugins.subjects.nested.depth: input should be a valid integer")
        for line in said
    )
    assert "sorter.toml:3: plugins.subjects.colunm: there is no such setting, did you mean column?" in said
    assert len(said) == 4


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [("gone.csv", "gone.csv cannot be read: No such file or directory"), (".", "is not a file"), (3, "valid tuple")],
)
def test_a_table_that_cannot_be_read(folder: Path, setting: object, sentence: str) -> None:
    assert sentence in faults(folder, {"subjects": setting})[0]


def test_a_relative_path_needs_a_plugins_folder() -> None:
    from sorter.plugins.table import TableReader

    with pytest.raises(ValueError, match=r"x\.csv must be a whole path"):
        TableReader(base=None).read("x.csv")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise RuntimeError('no')", "sorter_config failed: RuntimeError: no"),
        ("return dict", "sorter_config must answer a pydantic model class"),
    ],
)
def test_a_model_that_cannot_be_had(tmp_path: Path, body: str, sentence: str) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "bad.py"
    path.write_text(f"from sorter import hookimpl\n@hookimpl\ndef sorter_config():\n    {body}\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=sentence):
        Plugins.load({}, tmp_path, Files(), {})


def test_a_built_in_takes_sorters_settings_and_the_admins_over_them() -> None:
    given = {"routing": {"labs": {"memory": ["memory"]}, "default": "unassigned"}}
    plugins = Plugins.load({"routing": {"default": "elsewhere"}}, None, Files(), given)
    assert plugins.settings("routing") == {"labs": {"memory": ["memory"]}, "default": "elsewhere"}


# --- the table format ------------------------------------------------------------------------------------------------

PATH = Path("/t/table.csv")


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"a,b\n1,2\n", [{"a": "1", "b": "2"}]),
        (b"\xef\xbb\xbfa;b\r\n 1 ;2\r\n\r\n", [{"a": "1", "b": "2"}]),
        (b"a\tb\n1\n", [{"a": "1", "b": ""}]),
        (b'a,b,\n"x, y",2,,\n', [{"a": "x, y", "b": "2"}]),
        (b"a\n", []),
    ],
)
def test_tables_as_people_write_them(data: bytes, rows: list[dict[str, str]]) -> None:
    assert list(parse_table(data, PATH)) == rows


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"a,a\n", "1: the column name 'a' is used twice"),
        (b"a,,b\n", "1: the column name '' is empty"),
        (b"a\n1,2\n", "2: 2 cells for 1 columns"),
        (b"a\n\xe4\n", "2: not UTF-8 text"),
        (b'a\n"x\n', "unexpected end of data"),
        (b"a\n" + b"x" * 200_000, "field larger than field limit"),
    ],
)
def test_tables_with_mistakes_name_the_line(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_table(data, PATH)


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_a_sentence(data: bytes) -> None:
    said = str(PATH)
    rows: tuple[dict[str, str], ...] = ()
    try:
        rows = parse_table(data, PATH)
    except ValueError as error:
        said = str(error)
    assert str(PATH) in said
    assert all(set(row) == set(rows[0]) for row in rows)
