"""Simulated time: what happens at which moment, in order."""

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Calls functions at their moments, in seconds; those of one moment in the order in which they were given."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def at(self, moment: float, happen: Callable[[], None]) -> None:
        """Call `happen` at a moment, which is not in the past."""
        assert moment >= self.now
        heapq.heappush(self._events, (moment, next(self._number), happen))

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Call `happen` after some seconds."""
        self.at(self.now + seconds, happen)

    def run(self, until: Callable[[], bool]) -> None:
        """Let things happen until `until` is true or nothing is left to happen."""
        while self._events and not until():
            self.now, _, happen = heapq.heappop(self._events)
            happen()


class Queue:
    """Something that serves one after the other, for example a network of so many bytes per second."""

    def __init__(self) -> None:
        self._free_from = 0.0
        self.busy = 0.0  # seconds

    def serve(self, now: float, seconds: float) -> float:
        """Take up `seconds` of it, when those before are served; return the moment when it is done."""
        self._free_from = max(now, self._free_from) + seconds
        self.busy += seconds
        return self._free_from
