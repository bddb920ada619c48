"""Items are read once, in order, shortly before they are needed, and are forgotten after their last use."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from dhkd.data.stream.read_ahead import ReadAhead
from hypothesis import given, settings
from hypothesis import strategies as st

Uses = Sequence[int]


class Log:
    """A function that reads items and keeps a list of them."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __call__(self, item: int) -> str:
        self.reads.append(item)
        return f"item {item}"


def follow(ahead: ReadAhead[str], uses: Uses) -> None:
    ahead.follow(np.array(uses, dtype=np.int64))


def walk(ahead: ReadAhead[str], uses: Uses, batch: int) -> Iterator[int]:
    """Take the items of each batch of positions; yields how many items are held then."""
    follow(ahead, uses)
    for start in range(0, len(uses), batch):
        items = sorted(set(uses[start : start + batch]))
        assert ahead.take(items, start) == {item: f"item {item}" for item in items}
        yield ahead.num_held


def first_uses(uses: Uses) -> list[int]:
    return list(dict.fromkeys(uses))


@given(
    uses=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    capacity=st.integers(0, 6),
)
@settings(max_examples=80, deadline=None)
def test_every_item_is_read_once_in_the_order_of_first_use(uses: list[int], batch: int, capacity: int) -> None:
    log = Log()
    for start, held in zip(range(0, len(uses), batch), walk(ReadAhead(log, capacity), uses, batch), strict=True):
        now = uses[start : start + batch]
        # In use: read for this batch or an earlier one, and still needed by this or a later one.
        in_use = [item for item in first_uses(uses[: start + batch]) if item in uses[start:]]
        assert set(now) <= set(in_use)
        assert held <= max(len(in_use), capacity)
        assert held >= min(len(in_use), len(set(now)))
    assert log.reads == first_uses(uses)


def test_the_next_items_are_read_before_they_are_needed() -> None:
    read = {item: threading.Event() for item in range(6)}

    def note(item: int) -> int:
        read[item].set()
        return item

    ahead = ReadAhead(note, 3)
    ahead.follow(np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    assert ahead.take([0], 0) == {0: 0}
    assert all(read[item].wait(60) for item in (1, 2))
    assert ahead.num_held == 3
    assert not read[3].is_set(), "no further ahead than the capacity"
    assert ahead.take([1], 2) == {1: 1}
    assert read[3].wait(60)
    assert ahead.num_held == 3


def test_an_item_is_forgotten_after_its_last_use_and_not_before() -> None:
    log = Log()
    held = list(walk(ReadAhead(log, 1), [7, 1, 7, 2, 7, 3, 3], 1))
    assert held == [1, 2, 1, 2, 1, 1, 1]
    assert log.reads == [7, 1, 2, 3]


def test_items_that_a_process_skips_are_forgotten_too() -> None:
    """A rank takes every other position; items that only the other one uses must not pile up."""
    log = Log()
    ahead = ReadAhead(log, 2)
    uses = list(range(20))
    follow(ahead, uses)
    for position in range(1, 20, 2):
        ahead.take([uses[position]], position)
        assert ahead.num_held <= 2
    assert 19 in log.reads


def test_a_new_sequence_keeps_what_it_needs_and_forgets_the_rest() -> None:
    log = Log()
    ahead = ReadAhead(log, 5)
    follow(ahead, [0, 1, 2])
    ahead.take([0, 1, 2], 0)
    follow(ahead, [2, 3, 4])
    assert ahead.num_held == 1
    ahead.take([2], 0)
    assert ahead.take([3, 4], 1) == {3: "item 3", 4: "item 4"}
    assert log.reads == [0, 1, 2, 3, 4]
    assert list(walk(ahead, [0, 1], 1)) == [2, 1], "read again"
    assert log.reads == [0, 1, 2, 3, 4, 0, 1]


def test_an_error_in_reading_is_raised_where_the_item_is_needed() -> None:
    def fails(item: int) -> int:
        if item == 2:
            raise OSError(f"item {item} is damaged")
        return item

    ahead = ReadAhead(fails, 3)
    ahead.follow(np.arange(5))
    assert ahead.take([0], 0) == {0: 0}
    assert ahead.take([1], 1) == {1: 1}
    for _ in range(2):
        with pytest.raises(OSError, match=r"^item 2 is damaged$"):
            ahead.take([2], 2)
    assert ahead.take([3], 3) == {3: 3}
