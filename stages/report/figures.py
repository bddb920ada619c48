"""The data of figures, which `pictures.py` draws as files and `charts.py` draws for the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from dhkd.stages.report.statistics import Spread
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order. `half` is half the height of the band around each y; it is None for a y without band.

    If no y has a band, `half` may be empty.
    """

    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float | None] = ()


@dataclass(frozen=True)
class Panel:
    """Lines by name in one pair of axes. `levels` are values of y by name, drawn as dashed horizontal lines.

    `limits` are the least and the greatest y that can be, such as 0 and 100 %; bands end there.
    """

    lines: Mapping[str, Line]
    xlabel: str
    ylabel: str
    log_x: bool = False
    log_y: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)
    limits: tuple[float, float] = (-math.inf, math.inf)

    def band(self, line: Line) -> list[tuple[float, float, float]]:
        """Return (x, lower end, upper end) of each point of the line that has a band, within the limits.

        A logarithmic axis has no place for 0 and below; there, a band ends at the lowest y of all lines.
        """
        low, high = self.limits
        if self.log_y:
            low = max(low, min((y for other in self.lines.values() for y in other.y if y > 0), default=low))
        return [
            (x, max(y - half, min(y, low)), min(y + half, max(y, high)))
            for x, y, half in zip(line.x, line.y, line.half, strict=False)
            if half is not None
        ]

    @property
    def every_x(self) -> list[float]:
        """All x of all lines, sorted, to be used as the ticks of a logarithmic axis."""
        return sorted({x for line in self.lines.values() for x in line.x})


@dataclass(frozen=True)
class Values:
    """A panel with one axis and a row for each name; the row shows one value for each seed.

    `marks` are values by name from another source, such as a paper; `marked` labels that source. `limits` are the least
    and the greatest value that can be.
    """

    of_seeds: Mapping[str, Sequence[float]]
    label: str
    marks: Mapping[str, float] = field(default_factory=dict)
    marked: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)

    def bar(self, over_seeds: Spread) -> tuple[float, float] | None:
        """Return how far a mean's error bar extends below and above it, cut off at `limits`; None for a single seed."""
        if over_seeds.reach is None:
            return None
        low, high = self.limits
        below, above = over_seeds.mean - low, high - over_seeds.mean
        return max(0.0, min(over_seeds.reach, below)), max(0.0, min(over_seeds.reach, above))


@dataclass(frozen=True)
class Matrices:
    """Square matrices by name, which share one colour scale."""

    by_name: Mapping[str, Float]

    @property
    def limit(self) -> float:
        """The largest absolute entry; the colour scale goes from -limit to limit."""
        return max(float(np.abs(matrix).max()) for matrix in self.by_name.values())


@dataclass(frozen=True)
class Points:
    """Points in the plane, (N, 2) for each name, coloured by label. All names show the same N samples."""

    by_name: Mapping[str, Float]
    labels_N: NDArray[np.int64]


def names_of(panels: Sequence[Panel]) -> list[str]:
    """Return the names of all lines, in order of first appearance."""
    return list(dict.fromkeys(name for panel in panels for name in panel.lines))


def line_of(spreads: Mapping[int, Spread]) -> Line:
    """Build a line from {x: spread}: y is each spread's mean, and the band reaches as far as the spread's `reach`."""
    means = [spread.mean for spread in spreads.values()]
    return Line(list(spreads), means, [spread.reach for spread in spreads.values()])
