"""Figures as PNG and SVG files for papers and slides, drawn with matplotlib.

Without matplotlib, which is in an extra, no file is drawn, and a line says so: tables don't need it.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.extras import is_installed, missing
from dhkd.stages.report.figures import Line, Matrices, Panel, Points, Values, names_of
from dhkd.stages.report.looks import Look, looks_of
from dhkd.stages.report.statistics import spread

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

log = logging.getLogger("dhkd")

Content = TypeVar("Content")
Draw = Callable[[Content, str, Path], list[str]]


def _if_possible(draw: "Draw[Content]") -> "Draw[Content]":
    """Return a function that draws if matplotlib is installed, and otherwise says what is missing."""

    @wraps(draw)
    def draw_or_say(content: Content, title: str, path: Path) -> list[str]:
        if is_installed("matplotlib"):
            return draw(content, title, path)
        log.warning("picture %s is left out: %s", path.name, missing("matplotlib"))
        return []

    return draw_or_say


@_if_possible
def draw_lines(panels: Sequence[Panel], title: str, path: Path) -> list[str]:
    """Draw panels side by side with one legend; return the file names."""
    names = names_of(panels)
    looks = looks_of(names)
    entries = [*names, *dict.fromkeys(name for panel in panels for name in panel.levels)]
    figure = _figure(5 * len(panels) + 1 + 0.08 * _longest(entries), max(4.2, 0.2 * len(entries)))
    legend: dict[str, Artist] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, line in panel.lines.items():
            legend.setdefault(name, _draw_line(axes, panel, line, looks[name]))
        for name, level in panel.levels.items():
            legend.setdefault(name, axes.axhline(level, color="grey", linestyle="dashed"))
        _set_axes(axes, panel)
    if len(entries) > 1:
        figure.legend([legend[name] for name in entries], entries, loc="outside right upper", fontsize="small")
    figure.suptitle(title)
    return _save(figure, path)


@_if_possible
def draw_values(panels: Sequence[Values], title: str, path: Path) -> list[str]:
    """Draw panels side by side and return the file names.

    In each panel, every name has a row with the values of its seeds, their mean and the mean's interval.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.of_seeds))
    looks = looks_of(names)
    figure = _figure(3.2 * len(panels) + 1 + 0.08 * _longest(names), 1.2 + 0.3 * len(names))
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(row, panels, strict=True):
        _draw_rows(axes, panel, names, [_colour(looks[name]) for name in names])
        axes.set_xlabel("\n".join(filter(None, (panel.label, panel.marked and f"× {panel.marked}"))))
        axes.grid(alpha=0.3)
    row[0].set_yticks(range(len(names)), names)
    row[0].invert_yaxis()
    figure.suptitle(title)
    return _save(figure, path)


@_if_possible
def draw_matrices(matrices: Matrices, title: str, path: Path) -> list[str]:
    """Draw matrices in a grid, with a colour scale that is symmetric about 0; return the file names."""
    limit = matrices.limit
    figure, cells = _grid(list(matrices.by_name), 3.2)
    for axes, matrix in zip(cells, matrices.by_name.values(), strict=True):
        image = axes.imshow(matrix, cmap="coolwarm", vmin=-limit, vmax=limit, interpolation="nearest")
    figure.colorbar(image, ax=cells)
    figure.suptitle(title)
    return _save(figure, path)


@_if_possible
def draw_points(points: Points, title: str, path: Path) -> list[str]:
    """Draw a grid with a scatter plot for each name, coloured by label; return the file names."""
    figure, cells = _grid(list(points.by_name), 3.8)
    for axes, points_N2 in zip(cells, points.by_name.values(), strict=True):
        axes.scatter(points_N2[:, 0], points_N2[:, 1], c=points.labels_N, cmap="tab20", s=6, linewidths=0)
    figure.suptitle(title)
    return _save(figure, path)


def _draw_rows(axes: Any, panel: Values, names: Sequence[str], colours: Sequence[tuple[float, ...]]) -> None:
    """Draw all rows in a few calls, since each call of matplotlib takes milliseconds."""
    rows = [(y, spread(values), values) for y, name in enumerate(names) if (values := panel.of_seeds.get(name))]
    bars = [(y, top1.mean, *bar) for y, top1, _ in rows if (bar := panel.bar(top1)) is not None]
    seeds = [(y, value) for y, _, values in rows for value in values]
    marks = [(y, panel.marks[name]) for y, name in enumerate(names) if name in panel.marks]
    if bars:
        y, mean, below, above = np.array(bars).T
        of_bars = [colours[int(row)] for row in y]
        axes.hlines(y, mean - below, mean + above, colors=of_bars, linewidth=1.5)
        for ends in (mean - below, mean + above):
            axes.scatter(ends, y, marker="|", color=of_bars, s=30)
    axes.scatter([top1.mean for _, top1, _ in rows], [y for y, *_ in rows], color=[colours[y] for y, *_ in rows], s=36)
    y_of_seeds, values_of_seeds = [y for y, _ in seeds], [value for _, value in seeds]
    ring = {"facecolors": "none", "edgecolors": [colours[y] for y in y_of_seeds], "alpha": 0.6}
    axes.scatter(values_of_seeds, y_of_seeds, s=16, **ring)
    if marks:
        axes.scatter(
            [value for _, value in marks], [y for y, _ in marks], marker="x", color=[colours[y] for y, _ in marks]
        )


def _draw_line(axes: Any, panel: Panel, line: Line, look: Look) -> Any:
    """Draw the line, with its band, and return the artist for the legend."""
    colour = _colour(look)
    (drawn,) = axes.plot(line.x, line.y, markersize=4, color=colour, marker=look.marker, linestyle=look.dash)
    band = {x: (low, high) for x, low, high in panel.band(line)}
    if band:
        low, high = np.array([band.get(x, (np.nan, np.nan)) for x in line.x], dtype=float).T
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
    return drawn


def _set_axes(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    if panel.log_x:
        axes.set_xscale("log")
        axes.set_xticks(panel.every_x, labels=[f"{x:g}" for x in panel.every_x], minor=False)
        axes.set_xticks([], minor=True)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _grid(names: Sequence[str], inches: float) -> "tuple[Figure, list[Any]]":
    """Create a figure with a titled square of `inches` for each name; return the figure and the squares' axes."""
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


def _longest(names: Iterable[str]) -> int:
    return max(map(len, names))


def _colour(look: Look) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in look.colour)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> list[str]:
    """Write the figure to `path` with .png and .svg appended, and return the file names; dots in `path` stay."""
    # Both files have one layout, which takes matplotlib as long as drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # "none" would leave an empty engine, for which each file is drawn twice
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        kind = file.suffix[1:]
        # The SVG gets no date, so that the same figure gives the same file.
        facts = {"Date": None} if kind == "svg" else None
        write_atomically(file, partial(figure.savefig, format=kind, dpi=150, metadata=facts))
    return [str(file) for file in files]
