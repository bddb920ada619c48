"""What a figure shows, whichever way it is drawn: `pictures.py` makes files of it, `charts.py` the page's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from dhkd.stages.report.statistics import Spread
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order. `half` is half the width of each y's interval, None for a y that has none."""

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
        """All x of all lines, sorted: the ticks of a logarithmic axis."""
        return sorted({x for line in self.lines.values() for x in line.x})


@dataclass(frozen=True)
class Values:
    """A row for each name on one axis, with one value for each seed.

    `marks` are values by name that come from elsewhere; `marked` says from where.
    """

    of_seeds: Mapping[str, Sequence[float]]
    label: str
    marks: Mapping[str, float] = field(default_factory=dict)
    marked: str = ""


@dataclass(frozen=True)
class Matrices:
    """Square matrices by name, which share one scale of colours."""

    by_name: Mapping[str, Float]

    @property
    def limit(self) -> float:
        """The largest absolute entry: the scale goes from minus this to this."""
        return max(float(np.abs(matrix).max()) for matrix in self.by_name.values())


@dataclass(frozen=True)
class Points:
    """Points in the plane, (N, 2) for each name, coloured by label. All names show the same N samples."""

    by_name: Mapping[str, Float]
    labels_N: NDArray[np.int64]


def names_of(panels: Sequence[Panel]) -> list[str]:
    """The names of all lines, in the order in which they come first."""
    return list(dict.fromkeys(name for panel in panels for name in panel.lines))


def line_of(spreads: Mapping[int, Spread]) -> Line:
    """The means by x, with half of their intervals."""
    means = [spread.mean for spread in spreads.values()]
    return Line(list(spreads), means, [spread.half for spread in spreads.values()])
