"""The data of figures, which `pictures.py` draws as files and `charts.py` draws for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from dhkd.stages.report.statistics import Spread
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order. `half` is half the width of each y's interval; it is None for a y without interval.

    If no y has an interval, `half` may be empty.
    """

    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float | None] = ()


@dataclass(frozen=True)
class Panel:
    """Lines by name in one pair of axes. `levels` are values of y by name, drawn as dashed horizontal lines."""

    lines: Mapping[str, Line]
    xlabel: str
    ylabel: str
    log_x: bool = False
    log_y: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)

    @property
    def every_x(self) -> list[float]:
        """All x of all lines, sorted, to be used as the ticks of a logarithmic axis."""
        return sorted({x for line in self.lines.values() for x in line.x})


@dataclass(frozen=True)
class Values:
    """A panel with one axis and a row for each name; the row shows one value for each seed.

    `marks` are values by name from another source, such as a paper; `marked` labels that source.
    """

    of_seeds: Mapping[str, Sequence[float]]
    label: str
    marks: Mapping[str, float] = field(default_factory=dict)
    marked: str = ""


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
    """Build a line from {x: spread}: y is each spread's mean, and `half` is half the width of the mean's interval."""
    means = [spread.mean for spread in spreads.values()]
    return Line(list(spreads), means, [spread.half for spread in spreads.values()])
