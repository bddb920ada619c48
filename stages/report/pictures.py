"""Pictures of analyses, each as PNG and SVG: lines with bands, values over seeds, matrices, scattered points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.stages.report.statistics import spread
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Float = NDArray[np.float64]

MARKERS, STYLES = "osD^v<>PX", ("-", "--", ":")
COLOURS = 10  # of matplotlib's cycle, after which lines of another style begin


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order, with half of each y's interval where there is one."""

    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float | None] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes: lines by name; `log_x`, `log_y` where x or y go by factors."""

    lines: Mapping[str, Line]
    xlabel: str
    ylabel: str
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Values:
    """One axis: each name's values, one of every seed, and `marks`, figures from elsewhere that `marked` explains."""

    of_seeds: Mapping[str, Sequence[float]]
    label: str
    marks: Mapping[str, float] = field(default_factory=dict)
    marked: str = ""


def draw_lines(panels: Sequence[Panel], title: str, path: Path) -> list[str]:
    """Panels side by side, one legend; the files that were written."""
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    figure = _figure(5 * len(panels) + 1 + 0.08 * max(map(len, names)), max(4.2, 0.2 * len(names)))
    legend: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, line in panel.lines.items():
            number = names.index(name)  # the same in every panel
            look = {"marker": MARKERS[number % len(MARKERS)], "linestyle": STYLES[number // COLOURS % len(STYLES)]}
            (drawn,) = axes.plot(line.x, line.y, markersize=4, color=f"C{number % COLOURS}", **look)
            legend.setdefault(name, drawn)
            half = np.array([np.nan if value is None else value for value in line.half], dtype=float)
            if len(half):
                low, high = np.array(line.y) - half, np.array(line.y) + half
                axes.fill_between(line.x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        if panel.log_x:
            axes.set_xscale("log")
            every = sorted({x for line in panel.lines.values() for x in line.x})
            axes.set_xticks(every, labels=[f"{x:g}" for x in every], minor=False)
            axes.set_xticks([], minor=True)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.log_y:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    if len(names) > 1:
        figure.legend([legend[name] for name in names], names, loc="outside right upper", fontsize="small")
    figure.suptitle(title)
    return _save(figure, path)


def draw_values(panels: Sequence[Values], title: str, path: Path) -> list[str]:
    """Panels side by side, a row for each name: its seeds' values, their mean and its interval; the files written."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.of_seeds))
    figure = _figure(3.2 * len(panels) + 1 + 0.08 * max(map(len, names)), 1.2 + 0.3 * len(names))
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(row, panels, strict=True):
        for name, values in panel.of_seeds.items():
            found, y = spread(values), names.index(name)
            colour = f"C{y % COLOURS}"
            axes.errorbar(found.mean, y, xerr=found.half, fmt="o", color=colour, capsize=3)
            axes.plot(values, [y] * len(values), "o", color=colour, markersize=4, markerfacecolor="none", alpha=0.6)
            if name in panel.marks:
                axes.plot(panel.marks[name], y, "x", color=colour)
        axes.set_xlabel("\n".join(filter(None, (panel.label, panel.marked and f"× {panel.marked}"))))
        axes.grid(alpha=0.3)
    row[0].set_yticks(range(len(names)), names)
    row[0].invert_yaxis()
    figure.suptitle(title)
    return _save(figure, path)


def accuracy_curves(curves: Mapping[str, Sequence[float]], teacher_top1: float, title: str, path: Path) -> None:
    """Draw each run's top-1 accuracy in percent after every epoch, and the teacher's as a line, as a PNG at `path`."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7, 4.5)
    axes = figure.subplots()
    for (name, accuracies), marker in zip(curves.items(), cycle(MARKERS), strict=False):
        axes.plot(range(1, len(accuracies) + 1), accuracies, marker=marker, label=name)
    axes.axhline(teacher_top1, color="grey", linestyle="--", label="teacher")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="test top-1 accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=150))


def draw_matrices(matrices: Mapping[str, Float], title: str, path: Path) -> list[str]:
    """Square matrices in one scale of colours that is symmetric about 0; the files that were written."""
    limit = max(float(np.abs(matrix).max()) for matrix in matrices.values())
    figure, cells = _grid(list(matrices), 3.2)
    for axes, matrix in zip(cells, matrices.values(), strict=True):
        image = axes.imshow(matrix, cmap="coolwarm", vmin=-limit, vmax=limit, interpolation="nearest")
    figure.colorbar(image, ax=cells)
    figure.suptitle(title)
    return _save(figure, path)


def draw_points(points: Mapping[str, Float], labels_N: NDArray[np.int64], title: str, path: Path) -> list[str]:
    """Points (N, 2) of each name, coloured by label; the files that were written."""
    figure, cells = _grid(list(points), 3.8)
    for axes, points_N2 in zip(cells, points.values(), strict=True):
        axes.scatter(points_N2[:, 0], points_N2[:, 1], c=labels_N, cmap="tab20", s=6, linewidths=0)
    figure.suptitle(title)
    return _save(figure, path)


def _grid(names: Sequence[str], inches: float) -> "tuple[Figure, list[Any]]":
    """A figure with a square of so many inches for each name, and their axes."""
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(inches * columns + 0.8, (inches + 0.3) * rows + 0.4)
    cells = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in cells[len(names) :]:
        axes.remove()
    for axes, name in zip(cells, names, strict=False):
        axes.set_title(name, fontsize="small")
        axes.set(xticks=[], yticks=[])
    return figure, cells[: len(names)]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> list[str]:
    files = [path.with_suffix(f".{kind}") for kind in ("png", "svg")]
    for file in files:
        kind = file.suffix[1:]
        # Without a date, so that the same figures give the same file.
        facts = {"Date": None} if kind == "svg" else None
        write_atomically(file, partial(figure.savefig, format=kind, dpi=150, metadata=facts))
    return [str(file) for file in files]
