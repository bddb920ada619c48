"""Interactive figures of the page: plotly's data and layout as plain values, drawn in the browser.

They are written as plotly.js takes them. Its Python library would build and check the same values, which takes
milliseconds for each line; tests do that. Every panel is a separate figure, so that the page can place panels side by
side or one below the other. Everything drawn for a name is in one legend group, which the page's legend can hide or
show.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dhkd.stages.report.figures import Matrices, Panel, Points, Values, names_of
from dhkd.stages.report.looks import Look, looks_of
from dhkd.stages.report.statistics import spread
from pydantic_core import from_json

# Any: plotly's JSON, which only plotly reads.
Figure = Mapping[str, Any]
LegendEntry = tuple[str, str, str]  # a name, its colour and its dash, both as CSS values

MOST_BANDS = 8  # if there are more lines, bands would hide one another
MOST_MARKERS = 60  # points of a line; markers of more would touch one another
TOP = 36  # pixels above the axes, for the buttons that plotly shows there
MARGIN = {"l": 60, "r": 10, "t": TOP, "b": 45}
DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
SYMBOLS = dict(
    zip(
        "osD^v<>PX",
        (
            "circle",
            "square",
            "diamond",
            "triangle-up",
            "triangle-down",
            "triangle-left",
            "triangle-right",
            "cross",
            "x",
        ),
        strict=True,
    )
)


def line_charts(panels: Sequence[Panel], order: Sequence[str] = ()) -> list[Figure]:
    """Draw a figure for each panel.

    A line's band is shaded, unless the panels have more than `MOST_BANDS` names. Looks (colour, dash,
    marker) are assigned to the names in `order` first, then to the other names of the panels; the same order gives the
    same looks.
    """
    names = names_of(panels)
    looks = looks_of([*order, *names])
    return [_line_chart(panel, looks, bands=len(names) <= MOST_BANDS) for panel in panels]


def legend_of(panels: Sequence[Panel], order: Sequence[str] = ()) -> list[LegendEntry]:
    """Return the entries of the legend that a chart's panels share; for a single line, return none."""
    names = names_of(panels)
    looks = {name: look for name, look in looks_of([*order, *names]).items() if name in names}
    return [(name, _colour(look), look.dash) for name, look in looks.items()] if len(looks) > 1 else []


def value_charts(panels: Sequence[Values], order: Sequence[str] = ()) -> list[Figure]:
    """Draw a figure for each panel; each name has a row with its seeds' values, their mean and the mean's bar."""
    looks = looks_of([*order, *(name for panel in panels for name in panel.of_seeds)])
    return [_value_chart(panel, looks) for panel in panels]


def matrix_charts(matrices: Matrices) -> list[Figure]:
    """Draw a figure for each matrix, with a colour scale that is symmetric about 0."""
    limit = matrices.limit
    colours = {"colorscale": "RdBu", "reversescale": True, "zmin": -limit, "zmax": limit}
    figures: list[Figure] = []
    for name, matrix in matrices.by_name.items():
        rows = [[_finite(round(value, 3)) for value in row] for row in matrix.tolist()]
        layout = _titled(name, {"l": 30, "r": 10, "t": TOP, "b": 30})
        layout["yaxis"] = {"autorange": "reversed", "scaleanchor": "x", "constrain": "domain"}
        layout["xaxis"] = {"constrain": "domain"}
        figures.append({"data": [{"type": "heatmap", "z": rows, **colours}], "layout": layout})
    return figures


def point_charts(points: Points) -> list[Figure]:
    """Draw a figure for each name's points, coloured by label."""
    labels = points.labels_N.tolist()
    marker = {"color": labels, "colorscale": "Rainbow", "size": 4}
    figures: list[Figure] = []
    for name, points_N2 in points.by_name.items():
        x, y = ([_finite(round(value, 2)) for value in points_N2[:, axis].tolist()] for axis in (0, 1))
        drawn = {"type": "scatter", "x": x, "y": y, "mode": "markers", "marker": marker, "text": [*map(str, labels)]}
        layout = _titled(name, {"l": 10, "r": 10, "t": TOP, "b": 10})
        layout |= {axis: {"showticklabels": False} for axis in ("xaxis", "yaxis")}
        figures.append({"data": [drawn], "layout": layout})
    return figures


def _line_chart(panel: Panel, looks: Mapping[str, Look], *, bands: bool) -> Figure:
    traces: list[Figure] = []
    for name, line in panel.lines.items():
        look, group = looks[name], {"type": "scatter", "legendgroup": name}
        drawn = {
            "line": {"color": _colour(look), "dash": DASHES[look.dash]},
            "marker": {"symbol": SYMBOLS[look.marker]},
        }
        mode = "lines+markers" if len(line.x) <= MOST_MARKERS else "lines"
        traces.append(
            {**_along(line.x), "y": all_rounded(line.y), "name": _plain_text(name), "mode": mode, **group, **drawn}
        )
        points = panel.band(line) if bands else []
        if points:
            # The outline: forward along the upper ends, then back along the lower ends.
            x = [x for x, _, _ in points]
            ends = [high for _, _, high in points] + [low for _, low, _ in reversed(points)]
            area = {"fill": "toself", "fillcolor": _pale(look), "line": {"width": 0}, "mode": "lines"}
            outline = {"x": x + x[::-1], "y": all_rounded(ends)}
            traces.append({**outline, "hoverinfo": "skip", **group, **area})
    layout = _layout(panel.xlabel, panel.ylabel)
    if panel.levels:
        layout |= _levels(panel.levels)
    if panel.log_x:
        ticks = panel.every_x
        layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{x:g}" for x in ticks]}
    if panel.log_y:
        layout["yaxis"] |= {"type": "log", "dtick": 1}
    return {"data": traces, "layout": layout}


def _value_chart(panel: Values, looks: Mapping[str, Look]) -> Figure:
    traces: list[Figure] = []

    def add(name: str, x: Sequence[float], row: str, marker: Mapping[str, Any], **more: Any) -> None:
        place = {"x": [rounded(value) for value in x], "y": [_plain_text(row)] * len(x)}
        look = {"type": "scatter", "mode": "markers", "marker": marker, "hovertemplate": "%{x:.4g}"}
        traces.append({"name": _plain_text(name), **place, **look, **more})

    for name in (name for name in looks if name in panel.of_seeds):
        values, colour = panel.of_seeds[name], _colour(looks[name])
        over_seeds = spread(values)
        bar = panel.bar(over_seeds)
        reach = {} if bar is None else {"error_x": _error_bar(*bar)}
        add(name, [over_seeds.mean], name, {"color": colour, "size": 10}, **reach)
        if len(values) > 1:
            add(f"{name}, a seed", values, name, {"color": colour, "size": 6, "symbol": "circle-open"})
        if name in panel.marks:
            add(panel.marked, [panel.marks[name]], name, {"color": colour, "size": 12, "symbol": "x-thin-open"})
    # Reversed, because plotly puts the first name at the bottom.
    rows = {"autorange": "reversed", "type": "category", "automargin": True}
    height = MARGIN["t"] + 80 + 26 * len(panel.of_seeds)
    return {"data": traces, "layout": {**_layout(panel.label), "yaxis": rows, "height": height}}


def _layout(xlabel: str = "", ylabel: str = "") -> dict[str, Any]:
    axes = {axis: {"title": {"text": label}} for axis, label in (("xaxis", xlabel), ("yaxis", ylabel)) if label}
    return {"margin": MARGIN, "showlegend": False, **axes}


def _titled(name: str, margin: Mapping[str, int]) -> dict[str, Any]:
    title = {"text": _plain_text(name), "font": {"size": 13}, "x": 0.02, "xanchor": "left"}
    return {**_layout(), "margin": margin, "title": title}


def _levels(levels: Mapping[str, float]) -> dict[str, Any]:
    line = {"color": "grey", "dash": DASHES["dashed"]}
    across = {"type": "line", "x0": 0, "x1": 1, "xref": "x domain", "yref": "y", "line": line}
    beside = {"x": 1, "xref": "x domain", "xanchor": "right", "yref": "y", "yanchor": "bottom", "showarrow": False}
    shapes = [{**across, "y0": level, "y1": level} for level in levels.values()]
    notes = [{**beside, "y": level, "text": _plain_text(name)} for name, level in levels.items()]
    return {"shapes": shapes, "annotations": notes}


def _along(x: Sequence[float]) -> dict[str, Any]:
    """Return the x of a trace, as a list or, for consecutive integers such as epochs, by the first one alone."""
    first = x[0] if len(x) else 1
    consecutive = all(isinstance(value, int) for value in x) and list(x) == list(range(int(first), int(first) + len(x)))
    return {"x0": first, "dx": 1} if consecutive else {"x": list(x)}


def _error_bar(below: float, above: float) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "arrayminus": [rounded(below)], "array": [rounded(above)]}


def rounded(value: float, digits: int = 5) -> float | None:
    """Round to so many significant digits; five are finer than a pixel of any chart. None replaces a value that isn't
    finite, which JSON lacks.
    """
    return _finite(float(f"{value:.{digits}g}"))


def all_rounded(values: Sequence[float], digits: int = 5) -> list[float | None]:
    """Round many values as `rounded` does, in a third of the time: they are printed and read as one list."""
    try:
        return list(from_json(f"[{','.join([f'%.{digits}g'] * len(values)) % tuple(values)}]"))
    except ValueError:  # one of them isn't finite
        return [rounded(value, digits) for value in values]


def _finite(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def _plain_text(name: str) -> str:
    """Return a name as plotly shows it unchanged: it takes some markup in names as such."""
    return html.escape(name, quote=False)


def _colour(look: Look) -> str:
    red, green, blue = look.colour
    return f"rgb({red}, {green}, {blue})"


def _pale(look: Look) -> str:
    red, green, blue = look.colour
    return f"rgba({red}, {green}, {blue}, 0.15)"
