"""Accuracies over seeds: mean, spread, interval, and the difference to a baseline on the same seeds.

Intervals are Student's, two-sided, at 95 %; they say what seeds (order, views, initial weights) account for, and
nothing of the choice of data set or test images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy import stats

CONFIDENCE = 0.95

Verdict = Literal["higher", "lower", "within noise", "one seed"]


@dataclass(frozen=True)
class Spread:
    """`count` values' mean; their standard deviation (of a sample) and half the interval's width: None of one value."""

    count: int
    mean: float
    deviation: float | None
    half: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean of endlessly many seeds lies, 95 times of 100."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)


@dataclass(frozen=True)
class Difference(Spread):
    """Of values to those of the baseline on the same seeds, seed by seed."""

    @property
    def verdict(self) -> Verdict:
        """What the interval says: a difference whose sign it leaves open is within the noise."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "within noise"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(len(values), fmean(values), *_deviation_and_half(values))


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Of values by seed to the baseline's, on the seeds that both have; None where they share none."""
    paired = [value - baseline[seed] for seed, value in values.items() if seed in baseline]
    return Difference(len(paired), fmean(paired), *_deviation_and_half(paired)) if paired else None


def _deviation_and_half(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    deviation = stdev(values)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return deviation, quantile * deviation / len(values) ** 0.5
