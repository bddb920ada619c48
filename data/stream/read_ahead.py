"""Reads items in a thread shortly before they are needed, and forgets them after their last use."""

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Holds the items that the next positions of a sequence use.

    An item, for example a block of a cache, has a number, and `read` returns the item with this number. There are at
    most `capacity` items in memory, or more if one call of `take` asks for more at once.
    """

    def __init__(self, read: Callable[[int], T], capacity: int) -> None:
        self._read, self._capacity = read, capacity
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._held: dict[int, Future[T]] = {}
        self._sequence: list[int] = []  # all items, in the order of their first use
        self._next = 0  # where in `_sequence` reading goes on
        self._last: dict[int, int] = {}  # the last position that uses each item

    def follow(self, item_N: NDArray[np.int64]) -> None:
        """Begin a new sequence, in which position p uses item `item_N[p]`."""
        items, first = np.unique(item_N, return_index=True)
        last = len(item_N) - 1 - np.unique(item_N[::-1], return_index=True)[1]
        self._sequence = items[np.argsort(first)].tolist()
        self._last = dict(zip(items.tolist(), last.tolist(), strict=True))
        self._next = 0
        soon = set(self._sequence[: self._capacity])
        for item in [item for item in self._held if item not in soon]:
            self._forget(item)

    def take(self, items: Collection[int], position: int) -> dict[int, T]:
        """Return these items once they are read. Items whose last use lies before `position` are forgotten.

        Positions must not decrease from call to call. An error in reading one of `items` is raised.
        """
        for item in [item for item in self._held if self._last[item] < position]:
            self._forget(item)
        needed = set(items) - self._held.keys()
        while needed or (len(self._held) < self._capacity and self._next < len(self._sequence)):
            item = self._sequence[self._next]
            self._next += 1
            needed.discard(item)
            if item not in self._held and self._last[item] >= position:
                self._held[item] = self._thread.submit(self._read, item)
        return {item: self._held[item].result() for item in items}

    @property
    def num_held(self) -> int:
        """The number of items that are in memory or being read."""
        return len(self._held)

    def _forget(self, item: int) -> None:
        self._held.pop(item).cancel()
