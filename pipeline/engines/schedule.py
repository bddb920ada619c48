"""Which unit goes to which worker: the decisions of an engine, without its processes, clocks and network.

So the same code decides on a cluster and in the simulation of one.
"""

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

U = TypeVar("U", bound=Hashable)

# A unit that was lost so many times probably ends its workers itself, for example by their memory. But where workers
# are lost all the time, chance alone loses some of many units so often: those get more attempts.
MOST_LOSSES = 3
LOSSES_AT_ALL = 10
BY_CHANCE = 0.01  # how probable it may be that chance alone gives up any of the units


class Schedule(Generic[U]):
    """The units that are waiting, and those that workers have. Every unit is with at most one worker at a time."""

    def __init__(self, units: Iterable[U], most_losses: int = MOST_LOSSES) -> None:
        self._waiting = deque(units)
        self._with: dict[str, U] = {}
        self._losses: Counter[U] = Counter()
        self._most_losses = most_losses
        self._num_units = len(self._waiting)
        self._num_ended = self._num_losses = 0

    @property
    def num_waiting(self) -> int:
        """The number of units that no worker has."""
        return len(self._waiting)

    @property
    def is_done(self) -> bool:
        """Whether no unit is waiting or with a worker."""
        return not self._waiting and not self._with

    def give(self, worker: str) -> U | None:
        """Give the worker its next unit; return None if none is waiting."""
        assert worker not in self._with
        if not self._waiting:
            return None
        self._with[worker] = self._waiting.popleft()
        return self._with[worker]

    def end(self, worker: str) -> U:
        """Take the unit that the worker has ended, and return it."""
        self._num_ended += 1
        return self._with.pop(worker)

    def give_back(self, worker: str) -> None:
        """Take back the unit of a worker that something else has ended, so that it doesn't count as lost."""
        if worker in self._with:
            self._waiting.appendleft(self._with.pop(worker))

    def lose(self, worker: str) -> U | None:
        """Take back the unit of a lost worker, so that it is the next one to be given.

        Returns the unit if it was lost too often and is given up; otherwise None.
        """
        unit = self._with.pop(worker, None)
        if unit is None:
            return None
        self._losses[unit] += 1
        self._num_losses += 1
        if self._losses[unit] >= self._most_losses and not self._by_chance(unit):
            return unit
        self._waiting.appendleft(unit)
        return None

    def losses_of(self, unit: U) -> int:
        """Return how many workers were lost while they had this unit."""
        return self._losses[unit]

    def _by_chance(self, unit: U) -> bool:
        """Return whether the rate at which other units are lost explains that some unit was lost as often as this."""
        lost = self._losses[unit]
        others = self._num_losses - lost
        if lost >= LOSSES_AT_ALL or not self._num_ended:
            return False
        share = others / (others + self._num_ended)
        return self._num_units * share**lost > BY_CHANCE
