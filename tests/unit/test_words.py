"""What is counted in a sentence."""

from __future__ import annotations

import pytest

from sorter.words import counted


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("images are here", "image is here"),
        ("files were left: they are not as they were", "file was left: it is not as it was"),
        ("deliveries wait", "delivery waits"),
        ("", ""),
    ],
)
def test_one_is_not_many(many: str, one: str) -> None:
    assert [counted(count, many) for count in (0, 1, 2)] == [f"0 {many}", f"1 {one}", f"2 {many}"]
