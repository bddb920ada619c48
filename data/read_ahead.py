"""Items that are read shortly before they are needed and forgotten after their last use, by a thread of their own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Knows which item each position of a sequence uses, and keeps `ahead` items more than the ones in use."""

    def __init__(self, read: Callable[[int], T], ahead: int) -> None:
        self._read, self._ahead = read, ahead
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._held: dict[int, Future[T]] = {}
        self._sequence: list[int] = []
        self._rank: dict[int, int] = {}
        self._last: dict[int, int] = {}

    def follow(self, item_N: NDArray[np.int64]) -> None:
        """Begin a new sequence: position p will use item `item_N[p]`, an integer."""
        items, first = np.unique(item_N, return_index=True)
        last = len(item_N) - 1 - np.unique(item_N[::-1], return_index=True)[1]
        self._sequence = items[np.argsort(first)].tolist()
        self._rank = {item: rank for rank, item in enumerate(self._sequence)}
        self._last = dict(zip(items.tolist(), last.tolist(), strict=True))
        for item in [item for item in self._held if item not in self._rank]:
            self._forget(item)

    def take(self, items: list[int], position: int) -> dict[int, T]:
        """These items, waiting for them if need be; those whose last use lies before `position` are forgotten.

        What reading an item raised is raised here.
        """
        for item in [item for item in self._held if self._last[item] < position]:
            self._forget(item)
        furthest = max(self._rank[item] for item in items)
        for item in self._sequence[: furthest + 1 + self._ahead]:
            if item not in self._held and self._last[item] >= position:
                self._held[item] = self._thread.submit(self._read, item)
        return {item: self._held[item].result() for item in items}

    @property
    def num_held(self) -> int:
        """How many items are in memory or on their way."""
        return len(self._held)

    def _forget(self, item: int) -> None:
        self._held.pop(item).cancel()
