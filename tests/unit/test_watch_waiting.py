"""Which files come next, where many wait."""

from __future__ import annotations

from collections import Counter

from sorter.watch.state import Drop, File, Folder, State
from sorter.watch.waiting import FEW, Waiting


def drop(waiting: Waiting, name: str, files: int, seen: float = 0.0) -> None:
    home, whole = Folder(name, 1), Drop(name, seen)
    for number in range(files):
        waiting.add(File(f"{name}/{number}", home, whole, State.QUEUED, (0, 0, 0, 0), 0, 0, 0.0, 0.0))


def taken(waiting: Waiting, room: int) -> Counter[str]:
    return Counter(file.drop.name for file in waiting.next(room))


def test_half_of_the_room_is_for_small_drops_and_half_for_who_waits_the_longest() -> None:
    waiting = Waiting()
    drop(waiting, "large", 1000)
    drop(waiting, "small", FEW)
    drop(waiting, "alone", 1)
    assert taken(waiting, 4) == {"alone": 1, "small": 1, "large": 2}
    assert taken(waiting, 100) == {"small": FEW - 1, "large": 100 - FEW + 1}
    assert taken(waiting, 2000) == {"large": 1000 - 2 - 100 + FEW - 1}
    assert not waiting


def test_small_drops_alone_have_all_of_the_room_and_large_ones_take_turns() -> None:
    waiting = Waiting()
    for number in range(10):
        drop(waiting, f"small{number}", 3)
    assert sum(taken(waiting, 20).values()) == 20
    assert sum(taken(waiting, 20).values()) == 10
    drop(waiting, "one", 1000)
    drop(waiting, "other", 1000)
    assert taken(waiting, 256) == {"one": 128, "other": 128}


def test_of_small_drops_the_latest_and_the_oldest_take_turns() -> None:
    waiting = Waiting()
    for number, name in enumerate("abcde"):
        drop(waiting, name, 1, seen=number)
    assert [file.drop.name for file in waiting.next(3)] == ["e", "a", "d"]
    assert [file.drop.name for file in waiting.next(3)] == ["c", "b"]


def test_a_single_file_goes_before_small_drops_that_came_later() -> None:
    waiting = Waiting()
    for number in range(40):
        drop(waiting, str(number), 1 if number == 20 else 10, seen=number)
    assert next(waiting.next(1)).drop.name == "20"


def test_what_is_no_longer_queued_is_passed_over() -> None:
    waiting = Waiting()
    drop(waiting, "a", 40)
    files = list(waiting.next(40))
    for file in files:
        waiting.add(file)
        file.state = State.GONE
    assert list(waiting.next(5)) == []
    assert not waiting
