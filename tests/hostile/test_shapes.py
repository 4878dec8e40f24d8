"""docs/shapes.md says what becomes of real files; here they are dropped again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.shapes import pydicoms, samples

PAGE = Path(__file__).parents[2] / "docs" / "shapes.md"


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    rows = [line.strip("|").split("|", 1) for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {name.strip(" `"): what.strip() for name, what in rows}


def test_what_pydicom_ships_becomes_what_the_page_says(said: dict[str, str]) -> None:
    """Another pydicom may ship other files: those that both know are compared."""
    found = pydicoms()
    known = {name: what for name, what in found.items() if name in said}
    assert len(known) > 100
    assert known == {name: said[name] for name in known}


def test_the_sample_becomes_what_the_page_says(said: dict[str, str], sample: Path) -> None:
    found = samples(sample)
    assert found
    assert found == {name: what for name, what in said.items() if name.startswith("data")}
