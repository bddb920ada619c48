"""Accuracies over seeds: mean, standard deviation, interval, and the difference from a baseline on the same seeds.

Intervals are two-sided 95 % intervals of Student's t distribution. They cover what changes with the seed (order, views,
initial weights), not the choice of data set or test images. They are not corrected for multiple comparisons.

Figures draw the interval, except that of two values. It is 12.7 times as wide as the values are apart, so it would hide
everything else and reach beyond what an accuracy can be. There, figures draw the range of both values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean
from typing import Literal

CONFIDENCE = 0.95

Verdict = Literal["higher", "lower", "within noise", "one seed"]


@dataclass(frozen=True)
class Spread:
    """The mean of `count` values, their sample standard deviation, and half the width of the mean's interval.

    A single value has no `deviation` and no `half`: both are None.
    """

    count: int
    mean: float
    deviation: float | None
    half: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the 95 % interval of the mean, or None for a single value."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)

    @property
    def reach(self) -> float | None:
        """How far a band reaches from the mean: `half`, or half the distance of two values; None for a single one."""
        return self.deviation / 2**0.5 if self.count == 2 and self.deviation is not None else self.half


@dataclass(frozen=True)
class Difference(Spread):
    """The spread of the differences from a baseline, taken seed by seed."""

    @property
    def verdict(self) -> Verdict:
        """Where the interval lies: above 0, below 0 or around 0 (within noise); one seed has no interval."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "within noise"


def spread(values: Sequence[float]) -> Spread:
    """Compute the spread of one or more values."""
    mean = fmean(values)
    return Spread(len(values), mean, *_deviation_and_half(values, mean))


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Compute the spread of `values` − `baseline` over the seeds that both have, or return None if there are none."""
    paired = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    if not paired:
        return None
    mean = fmean(paired)
    return Difference(len(paired), mean, *_deviation_and_half(paired, mean))


def wilson_interval(percent: float, count: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a share that was `percent` among `count` independent draws, in percent.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22 (1927).
    """
    share, z = percent / 100, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, 100 * (middle - half)), min(100.0, 100 * (middle + half))


def _deviation_and_half(values: Sequence[float], mean: float) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    # `statistics.stdev` computes in fractions, which is exact, and slow for the curves of hundreds of runs.
    squares = math.fsum((value - mean) ** 2 for value in values) if min(values) < max(values) else 0.0
    deviation = math.sqrt(squares / (len(values) - 1))
    return deviation, quantile(len(values) - 1) * deviation / len(values) ** 0.5


@cache
def quantile(freedom: int) -> float:
    """Return the t with which P(|T| ≤ t) is `CONFIDENCE`, for T of Student's distribution with so many degrees.

    It is computed here because it is all that stage two would need of scipy.
    """
    low, high = 0.0, math.pi / 2
    while low < (angle := (low + high) / 2) < high:
        low, high = (angle, high) if _within(angle, freedom) < CONFIDENCE else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Compute P(|T| ≤ √freedom · tan(angle)). Source: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    odd = freedom % 2
    power, total = math.cos(angle) if odd else 1.0, 0.0
    for degree in range(3 if odd else 2, freedom + 1, 2):
        total += power
        power *= math.cos(angle) ** 2 * (degree - 1) / degree
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
