"""Predicted against true counts on real images, and the table of it in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sorter.testing.predictions import Found, series_below, tables

PAGE = Path(__file__).parents[2] / "docs" / "expectations.md"


@pytest.fixture(scope="module")
def found(sample: Path) -> list[Found]:
    return list(series_below(sample / "data"))


def test_every_prediction_is_right_and_most_series_have_one(found: list[Found]) -> None:
    assert len(found) == 10
    assert [each.series.SeriesDescription for each in found if each.right is False] == []
    assert sum(each.right is True for each in found) == 8


def test_no_whole_series_is_said_to_lack_anything(found: list[Found]) -> None:
    lacking = {str(each.series.SeriesDescription): each.structure.holes for each in found if not each.structure.whole}
    assert lacking == {"2D 16Echo qT2": ("images 3, 5–6, 9–12 are missing between number 1 and number 14",)}


def test_the_page_shows_what_the_command_prints(found: list[Found]) -> None:
    shown = re.search(r"<!-- made by .*? -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == tables(found), "run the command that the page names, and put what it prints there"
