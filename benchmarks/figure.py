"""A measured number, and how it is computed from repetitions."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Figure:
    """One measured number. `quartiles` are the quartiles of the repetitions; `at_most` or `at_least` is the target."""

    name: str
    value: float
    unit: str
    detail: str
    quartiles: tuple[float, float] | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the value reaches its target; None for a figure without a target."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None

    def row(self) -> list[str]:
        """Format the figure as a row of the table."""
        target = "–"
        if self.at_most is not None:
            target = f"≤ {self.at_most:g}"
        elif self.at_least is not None:
            target = f"≥ {self.at_least:g}"
        spread = f"{text_of(self.quartiles[0])} to {text_of(self.quartiles[1])}" if self.quartiles else ""
        verdict = {None: "", True: "yes", False: "NO"}[self.reached]
        return [self.name, self.detail, text_of(self.value), self.unit, spread, target, verdict]


def text_of(value: float) -> str:
    """Format a number with 3 decimals below 10, with 1 below 100, else without decimals."""
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def middle(
    name: str,
    values: Sequence[float] | NDArray[np.float64],
    unit: str,
    detail: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    """Build a figure from the median of the repetitions, with their quartiles."""
    numbers = [float(value) for value in values]
    low, _, high = quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else numbers * 3
    return Figure(name, median(numbers), unit, detail, (low, high), at_most, at_least)


def interleaved(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Time every action in every round, in seconds. Actions take turns, and every other round reverses their order.

    For work of one process alone, `time.process_time` as the clock leaves out what other processes take.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    order = list(actions)
    for number in range(warm_up + rounds):
        for name in order:
            began = clock()
            actions[name]()
            if number >= warm_up:
                seconds[name].append(clock() - began)
        order.reverse()
    return {name: np.array(values) for name, values in seconds.items()}
